"""Traces of language models, against plain NumPy; associations, against the formulas; files, read back."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import recurra
from recurra import tracing
from recurra.config import UserError
from recurra.models.recurrent_lm import RecurrentLM, RecurrentLMSettings
from recurra.text.batches import TokenStream
from recurra.text.documents import Text
from recurra.text.tokenizer import TokenizerSettings, build_tokenizer
from recurra.text.vocabulary import LINE_END
from recurra.tracing import Traced, draw, read_labels, trace, track, write_arrays
from reference import recurrence

TEXT = "the cat sat on the mat\nthe dog sat on the log\n"
GATES = {
    "lstm": {"forget", "input", "output", "candidate", "cell"},
    "gru": {"reset", "update", "candidate"},
    "rnn": set(),
}


def model(cell="lstm", tokenizer="words", **options):
    torch.manual_seed(0)
    tokens = build_tokenizer(Text.from_string(TEXT), TokenizerSettings(tokenizer=tokenizer, min_count=1))
    sizes = {"hidden_size": (6, 5), "layers": 2, "embedding_size": 5, "output": "full", "tied": True, **options}
    settings = RecurrentLMSettings(cell=cell, **sizes)
    return recurra.LanguageModel(RecurrentLM(settings, tokens.vocabulary).eval(), tokens)


def handmade(values, tokens=None, bits=None):
    """A trace of one layer with these hidden values, [T, units]."""
    values = np.asarray(values, np.float32)
    total = len(values)
    return Traced(
        np.arange(total),
        tokens or [f"w{i}" for i in range(total)],
        np.ones(total) if bits is None else np.asarray(bits, np.float64),
        [{"hidden": values}],
        "rnn",
    )


@pytest.fixture
def traced():
    return trace(model(), TEXT)


class TestTrace:
    @pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
    def test_states_are_those_of_the_equations(self, cell):
        lm = model(cell)
        found = trace(lm, TEXT)
        ids = [LINE_END, *lm.tokenizer.encode(TEXT)]
        assert found.ids.tolist() == ids[1:]
        weights = {name: value.detach().double().numpy() for name, value in lm.model.recurrent.named_parameters()}
        reads = lm.model.embedding.weight.detach().double().numpy()[ids]
        for layer, size in enumerate((6, 5)):
            own = {name.replace(f"_l{layer}", "_l0"): v for name, v in weights.items() if name.endswith(f"_l{layer}")}
            zeros = np.zeros(size)
            if cell == "lstm":
                reads, cells = recurrence.lstm(reads, zeros, zeros, own)
                np.testing.assert_allclose(found.layers[layer]["cell"], cells[1:], atol=1e-5)
            elif cell == "gru":
                reads = recurrence.gru(reads, zeros, own, "after")
            else:
                reads = recurrence.rnn(reads, zeros, own, "tanh")
            np.testing.assert_allclose(found.layers[layer]["hidden"], reads[1:], atol=1e-5)
            assert found.layers[layer].keys() == GATES[cell] | {"hidden"}
            assert {len(values) for values in found.layers[layer].values()} == {len(ids) - 1}

    def test_gates_explain_the_states(self, traced):
        for layer in traced.layers:
            cell = layer["forget"][1:] * layer["cell"][:-1] + layer["input"][1:] * layer["candidate"][1:]
            np.testing.assert_allclose(layer["cell"][1:], cell, atol=1e-6)
            np.testing.assert_allclose(layer["hidden"], layer["output"] * np.tanh(layer["cell"]), atol=1e-6)

    @pytest.mark.parametrize("reset", ["none", "documents", "lines"])
    def test_surprisal_is_that_of_evaluation_in_bits(self, reset):
        lm = model(reset=reset)
        nats = [nats for _, nats in lm.surprisal(TEXT)]
        np.testing.assert_allclose(trace(lm, TEXT).bits, np.array(nats) / math.log(2), rtol=1e-5)

    def test_does_not_depend_on_how_it_is_cut(self, traced, monkeypatch):
        monkeypatch.setattr(tracing, "CHUNK", 3)
        again = trace(model(), TEXT)
        for whole, cut in zip(traced.layers, again.layers, strict=True):
            for name, values in whole.items():
                np.testing.assert_allclose(cut[name], values, atol=1e-6)

    def test_lines_are_independent_where_the_model_says_so(self):
        lm = model(reset="lines")
        first, second = TEXT.splitlines(keepends=True)
        both = trace(lm, TEXT).values("cell", 1)
        apart = np.concatenate([trace(lm, line).values("cell", 1) for line in (first, second)])
        np.testing.assert_allclose(both, apart, atol=1e-6)
        carried = trace(lm, TEXT, reset="none").values("cell", 1)
        assert np.abs(carried - both)[-3:].max() > 1e-3

    def test_documents_begin_anew(self):
        lm = model(reset="documents")
        documents = [Text.from_string(line) for line in TEXT.splitlines()]
        both = Text(tuple(text.documents[0] for text in documents))
        found = trace(lm, TokenStream.from_text(both, lm.tokenizer))
        second = trace(lm, TEXT.splitlines()[1])
        np.testing.assert_allclose(
            found.values("hidden", 2)[-len(second.ids) - 1 : -1], second.values("hidden", 2), atol=1e-6
        )

    @pytest.mark.parametrize(
        "options",
        [
            {"projection_size": 3, "hidden_size": 6},
            {"connections": "dense", "layer_norm": True},
            {"connections": "highway", "hidden_size": 5, "zoneout": 0.1},
            {"inputs": "char-cnn", "tied": False},
            {"output": "adaptive", "cutoffs": (4,)},
        ],
    )
    def test_every_kind_of_stack_can_be_traced(self, options):
        found = trace(model(**options), TEXT)
        assert len(found.layers) == 2
        assert all(np.isfinite(values).all() for layer in found.layers for values in layer.values())

    def test_other_models_and_empty_texts_are_refused(self):
        with pytest.raises(UserError, match=r"for recurrent language models .* of kind 'ngram'"):
            trace(SimpleNamespace(model=object(), kind="ngram"), TEXT)
        with pytest.raises(UserError, match="text is empty"):
            trace(model(), "")
        with pytest.raises(UserError, match="reset: expected one of"):
            trace(model(), TEXT, reset="pages")
        with pytest.raises(UserError, match="another vocabulary"):
            trace(model(), TokenStream.from_tokens([1, 2], vocabulary="other"))


class TestChoice:
    def test_what_moves_most_comes_first(self):
        values = np.stack([np.zeros(6), 3 * np.ones(6), [0, 1, 0, 1, 0, 1], [0, 5, 0, 5, 0, 5]], 1)
        assert handmade(values).chosen(None, None, None, 2) == [3, 2]
        assert handmade(values).chosen(None, None, [1, 0], 2) == [1, 0]

    def test_ranges_are_told(self, traced):
        with pytest.raises(UserError, match="layer: expected 1 to 2, got 3"):
            traced.values("cell", 3)
        with pytest.raises(UserError, match="layer: expected 1 to 2, got 0"):
            traced.values("cell", 0)
        with pytest.raises(UserError, match="units: expected 0 to 4, got 5"):
            traced.chosen("cell", 2, [1, 5], 3)
        with pytest.raises(UserError, match=r"gate: expected one of .*candidate.* which the lstm has; got 'reset'"):
            traced.values("reset")


class TestTracking:
    def test_numbers_are_correlated(self):
        rng = np.random.default_rng(0)
        values, labels = rng.normal(size=(50, 7)), rng.normal(size=50)
        values[:, 4] = -labels + 0.1 * rng.normal(size=50)
        values[:, 2] = 1.7  # never moves
        found = track(handmade(values), labels.tolist(), count=7)
        assert found.measure == "correlation"
        assert found.best[0].unit == 4
        assert found.best[0].score < -0.9
        scores = {each.unit: each.score for each in found.best}
        for unit in {0, 1, 3, 4, 5, 6}:
            expected = np.corrcoef(values[:, unit].astype(np.float32), labels)[0, 1]
            assert scores[unit] == pytest.approx(expected, abs=1e-9)
        assert scores[2] == 0
        sizes = [abs(each.score) for each in found.best]
        assert sizes == sorted(sizes, reverse=True)

    def test_two_categories_are_point_biserial(self):
        rng = np.random.default_rng(1)
        values = rng.normal(size=(30, 3)).astype(np.float32)
        labels = ["out" if k % 3 else "in" for k in range(30)]
        found = track(handmade(values), labels, count=3)
        assert (found.measure, found.categories) == ("point-biserial", ("in", "out"))
        mask = np.array(labels) == "out"
        for each in found.best:
            x = values[:, each.unit].astype(float)
            share = mask.mean() * (1 - mask.mean())
            expected = (x[mask].mean() - x[~mask].mean()) / x.std() * math.sqrt(share)
            assert each.score == pytest.approx(expected, abs=1e-9)

    def test_more_categories_are_eta_squared(self):
        rng = np.random.default_rng(2)
        labels = [str(k) for k in rng.choice(["noun", "verb", "det"], 40)]
        values = rng.normal(size=(40, 3)).astype(np.float32)
        values[:, 1] += [{"noun": 5, "verb": -5, "det": 0}[label] for label in labels]
        found = track(handmade(values), labels, count=3)
        assert found.measure == "eta squared"
        assert found.best[0].unit == 1
        for each in found.best:
            x = values[:, each.unit].astype(float)
            between = sum(
                (np.array(labels) == c).sum() * (x[np.array(labels) == c].mean() - x.mean()) ** 2
                for c in ("noun", "verb", "det")
            )
            assert each.score == pytest.approx(between / ((x - x.mean()) ** 2).sum(), abs=1e-9)

    @pytest.mark.parametrize("categories", [2, 3])
    def test_chance_is_what_shifted_labels_find(self, categories):
        rng = np.random.default_rng(3)
        labels = [f"c{k}" for k in rng.integers(0, categories, 24)]
        values = rng.normal(size=(24, 4)).astype(np.float32)
        found = track(handmade(values), labels)
        highest = []
        for shift in range(1, 24):
            shifted = labels[-shift:] + labels[:-shift]
            highest.append(abs(track(handmade(values), shifted, count=1).best[0].score))
        assert found.chance[1, "hidden"] == pytest.approx(np.quantile(highest, 0.95), abs=1e-9)

    def test_every_layer_and_gate_has_its_own(self, traced):
        found = track(traced, list(range(len(traced.ids))), count=2)
        assert len(found.best) == 2 * 6 * 2
        assert found.units(2, "cell") == [each.unit for each in found.best if each[:2] == (2, "cell")]
        assert found.chance.keys() == {(layer, name) for layer in (1, 2) for name in traced.layers[0]}
        assert all(math.isnan(chance) for chance in found.chance.values())  # 14 tokens

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (["1"] * 13, "each of the text's 14 tokens, line ends included, got 13"),
            ([], "14 tokens, .* got 0"),
            (["x"] * 14, "all 14 are 'x'"),
            (["1", "nan"] * 7, "finite numbers or names of categories, got 'nan'"),
        ],
    )
    def test_bad_labels(self, traced, labels, message):
        assert len(traced.ids) == 14
        with pytest.raises(UserError, match=message):
            track(traced, labels)

    def test_labels_are_read_between_white_space(self, tmp_path):
        (tmp_path / "l").write_text("1 0\n\n1\t0\r\n2.5")
        assert read_labels(str(tmp_path / "l")) == ["1", "0", "1", "0", "2.5"]
        with pytest.raises(UserError, match="missing"):
            read_labels(str(tmp_path / "missing"))


class TestFiles:
    def test_npz(self, traced, tmp_path):
        assert write_arrays(traced, tmp_path / "t.npz") == [tmp_path / "t.npz"]
        with np.load(tmp_path / "t.npz") as file:
            assert set(file) == {"words", "tokens", "bits"} | {
                f"{name}{layer}" for layer in (1, 2) for name in GATES["lstm"] | {"hidden"}
            }
            assert file["tokens"].tolist() == traced.tokens
            assert file["words"].tolist() == traced.ids.tolist()
            np.testing.assert_array_equal(file["forget2"], traced.layers[1]["forget"])
            assert file["cell1"].shape == (14, 6)

    @pytest.mark.parametrize("cell", ["lstm", "gru"])
    def test_hdf5_is_what_lstmvis_reads(self, cell, tmp_path):
        h5py = pytest.importorskip("h5py")
        found = trace(model(cell, "characters"), "the cat\nsat")
        path, words = write_arrays(found, tmp_path / "t.hdf5")
        with h5py.File(path) as file:
            first = found.layers[0]
            np.testing.assert_array_equal(file["states1"][:], first["cell" if cell == "lstm" else "hidden"])
            if cell == "lstm":
                np.testing.assert_array_equal(file["output1"][:], first["hidden"])
                np.testing.assert_array_equal(file["output_gate1"][:], first["output"])
            assert file["states2"].shape == (11, 5)
            np.testing.assert_array_equal(file["words"][:], found.ids)
        # As LSTMVis does it: a word and an id a line, cut apart at white space.
        pairs = [line.split() for line in words.read_text(encoding="utf-8").splitlines()]
        names = {int(id): name for name, id in pairs}
        assert [names[id] for id in found.ids.tolist()] == [*"the␣cat", "<eos>", *"sat"]

    def test_tokens_of_white_space_stay_apart(self):
        tokens = [" ", "␣", "\t", "\\", "\\u0009", "\x85", "a b", "ab"]
        written = [tracing._unbroken(token) for token in tokens]
        assert all(len(name.split()) == 1 for name in written)
        assert len(set(written)) == len(tokens)

    def test_what_is_missing_or_unknown(self, traced, tmp_path, monkeypatch):
        with pytest.raises(UserError, match=r"unknown format; end the name in one of \.npz"):
            write_arrays(traced, tmp_path / "t.csv")
        monkeypatch.setitem(sys.modules, "h5py", None)
        with pytest.raises(UserError, match=r"pip install 'recurra\[hdf5\]'"):
            write_arrays(traced, tmp_path / "t.h5")
        assert list(tmp_path.iterdir()) == []


class TestPicture:
    @pytest.fixture
    def figures(self, monkeypatch):
        pytest.importorskip("matplotlib")
        kept = []
        monkeypatch.setattr(tracing, "save", lambda figure, path: kept.append(figure))
        return kept

    def test_shows_the_values_and_the_text(self, figures, traced, tmp_path):
        draw(traced, tmp_path / "t.png", units=[4, 0], gate="forget", layer=2)
        axes = figures[0].axes[0]
        (mesh,) = axes.collections
        np.testing.assert_array_equal(mesh.get_array(), traced.values("forget", 2)[:, [4, 0]].T)
        assert (mesh.norm.vmin, mesh.norm.vmax) == (0, 1)
        texts = [text.get_text() for text in axes.texts]
        assert "cat" in texts
        assert "↵" in texts
        assert f"{traced.bits[1]:.1f}" in texts
        assert [label.get_text() for label in axes.get_yticklabels()] == ["bits", "4", "0"]
        heights = [abs(patch.get_height()) for patch in axes.patches]
        np.testing.assert_allclose(np.array(heights) / max(heights), traced.bits / traced.bits.max())

    def test_long_texts_go_on_below(self, figures, tmp_path):
        rng = np.random.default_rng(0)
        values = rng.normal(size=(100, 3))
        draw(handmade(values, tokens=["word"] * 100), tmp_path / "t.png", units=[1])
        meshes = figures[0].axes[0].collections
        assert [mesh.get_array().shape[1] for mesh in meshes] == [19, 19, 19, 19, 19, 5]
        together = np.concatenate([np.asarray(mesh.get_array())[0] for mesh in meshes])
        np.testing.assert_allclose(together, values[:, 1].astype(np.float32))
        assert {mesh.norm.vmax for mesh in meshes} == {np.abs(values[:, 1].astype(np.float32)).max()}

    def test_surprisal_without_end_is_drawn(self, figures, tmp_path):
        draw(handmade(np.ones((3, 1)), bits=[1.0, math.inf, 2.0]), tmp_path / "t.png", units=[0])
        assert [patch.get_height() for patch in figures[0].axes[0].patches] == pytest.approx([-0.45, -0.9, -0.9])

    @pytest.mark.parametrize("suffix", [".png", ".svg"])
    def test_files(self, suffix, tmp_path):
        pytest.importorskip("matplotlib")
        strange = ["$x$", "語", "\t", "long" * 40, "<unk>"]
        draw(handmade(np.eye(5), tokens=strange), tmp_path / f"t{suffix}", units=[0, 3])
        assert (tmp_path / f"t{suffix}").stat().st_size > 1000

    def test_too_much_is_refused(self, figures, traced, tmp_path):
        with pytest.raises(UserError, match="too long to draw: 53 lines"):
            draw(handmade(np.zeros((1000, 1)), tokens=["word"] * 1000), tmp_path / "t.png", units=[0])
        with pytest.raises(UserError, match="units: expected 0 to 4, got 9"):
            draw(traced, tmp_path / "t.png", units=[9])
        with pytest.raises(UserError, match="units: expected 1 to 64 to draw, got 0"):
            draw(traced, tmp_path / "t.png", units=[])
