"""Traces of language models, against plain NumPy."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from recurra.config import UserError
from recurra.gradients import unroll_model
from recurra.text.batches import TokenStream
from recurra.text.documents import Text
from recurra.text.vocabulary import LINE_END
from recurra.tracing import check_size, reading, trace
from reference import recurrence
from tracing.models import GATES, TEXT, handmade, model


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

    def test_a_row_is_what_is_there_after_its_token(self):
        """As the docstring says: row t is h(t + 1) of the gradients."""
        lm = model("gru")
        found = trace(lm, TEXT)
        unrolled = unroll_model(lm.model, found.ids)
        after = np.stack([unrolled.step(t).after[1].hidden[0].detach().numpy() for t in range(14)])  # h(t) of layer 2
        np.testing.assert_allclose(found.values("hidden", 2)[:-1], after[1:], atol=1e-6)
        # Another last token changes the last row, and nothing before it.
        other = trace(lm, TokenStream.from_tokens([*found.ids[:-1], 3], vocabulary=lm.tokenizer.vocabulary.digest()))
        changed = np.abs(other.values("hidden", 1) - found.values("hidden", 1)).max(1) > 0
        assert changed.tolist() == [False] * 13 + [True]

    @pytest.mark.parametrize("reset", ["none", "documents", "lines"])
    def test_surprisal_is_that_of_evaluation_in_bits(self, reset):
        lm = model(reset=reset)
        nats = [nats for _, nats in lm.surprisal(TEXT)]
        np.testing.assert_allclose(trace(lm, TEXT).bits, np.array(nats) / math.log(2), rtol=1e-5)

    def test_does_not_depend_on_how_it_is_cut(self, traced, monkeypatch):
        monkeypatch.setattr(reading, "CHUNK", 3)
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


class TestSize:
    @pytest.mark.parametrize(("cell", "numbers"), [("lstm", 6 * 11), ("gru", 4 * 11), ("rnn", 11)])
    def test_counts_all_arrays_and_what_is_worked_with(self, cell, numbers):
        row = 4 * numbers + reading.WORKING * 6
        check_size(model(cell), 1000, 1000 * row)
        with pytest.raises(UserError, match=r"1,001 tokens takes .* GB of memory.*: give a text of at most 500 tokens"):
            check_size(model(cell), 1001, 1000 * row)

    def test_is_that_of_what_is_kept(self):
        lm = model(projection_size=3, hidden_size=6)
        found = trace(lm, TEXT)
        kept = sum(values.nbytes for layer in found.layers for values in layer.values())
        widest = max(values.shape[1] for layer in found.layers for values in layer.values())
        check_size(lm, 14, kept + 14 * widest * reading.WORKING)
        with pytest.raises(UserError, match="14 tokens"):
            check_size(lm, 14, kept + 14 * widest * reading.WORKING - 1)

    def test_other_models(self):
        with pytest.raises(UserError, match="of kind 'ngram'"):
            check_size(SimpleNamespace(model=object(), kind="ngram"), 1, math.inf)
