"""Pictures of traces, by what is in them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from recurra.config import UserError
from recurra.tracing import draw, pictures, trace
from tracing.models import TEXT, handmade, model

pytest.importorskip("matplotlib")


@pytest.fixture
def traced():
    return trace(model(), TEXT)


@pytest.fixture
def axes_of(monkeypatch, tmp_path):
    """Draw, and give the axes with the heat maps and those with their scale."""
    kept = []
    monkeypatch.setattr(pictures, "save", lambda figure, path: kept.append(figure))

    def drawn(traced, **options):
        draw(traced, tmp_path / "t.png", **options)
        return kept[-1].axes

    return drawn


def maps(axes):
    return [np.asarray(mesh.get_array()) for mesh in axes.collections]


def words(axes):
    return [text.get_text() for text in axes.texts if text.get_fontsize() == 8]


class TestValues:
    def test_a_gate(self, axes_of, traced):
        axes, scale = axes_of(traced, units=[4, 0], gate="forget", layer=2)
        (mesh,) = axes.collections
        np.testing.assert_array_equal(mesh.get_array(), traced.values("forget", 2)[:, [4, 0]].T)
        assert (mesh.norm.vmin, mesh.norm.vmax) == (0, 1)
        assert [label.get_text() for label in axes.get_yticklabels()] == ["bits", "4", "0"]
        assert axes.get_title(loc="left") == "forget gate, layer 2, after each token"
        assert axes.get_xlabel() == f"tokens of the text; bars: surprisal of each, up to {traced.bits.max():.1f} bits"
        assert axes.get_ylabel() == "unit"
        assert scale.get_ylabel() == "forget gate"

    def test_a_state_has_both_signs(self, axes_of, traced):
        axes, scale = axes_of(traced, units=[1, 3])
        (mesh,) = axes.collections
        largest = np.abs(traced.values("cell", 2)[:, [1, 3]]).max()
        assert (mesh.norm.vmin, mesh.norm.vmax) == (-largest, largest)
        assert (axes.get_title(loc="left"), scale.get_ylabel()) == (
            "cell state c, layer 2, after each token",
            "cell state c",
        )

    def test_is_grey_and_darker_is_higher(self, axes_of):
        (mesh,) = axes_of(handmade([[-1.0], [0.0], [0.5], [1.0]]), units=[0])[0].collections
        colours = mesh.cmap(mesh.norm(np.asarray(mesh.get_array())[0]))[:, :3]
        np.testing.assert_allclose(colours, colours[:, :1].repeat(3, 1))
        assert (np.diff(colours[:, 0]) < -0.05).all()
        assert (colours[0, 0], colours[-1, 0]) == (1, 0)

    def test_a_row_lies_beside_its_name(self, axes_of, traced):
        axes, _ = axes_of(traced, units=[4, 0, 2])
        (mesh,) = axes.collections
        edges = mesh.get_coordinates()[:, 0, 1]
        middles = (edges[:-1] + edges[1:]) / 2
        names = dict(zip(axes.get_yticks(), [label.get_text() for label in axes.get_yticklabels()], strict=True))
        assert [names[middle] for middle in middles] == ["4", "0", "2"]


class TestText:
    def test_tokens_stand_over_their_columns(self, axes_of, traced):
        axes, _ = axes_of(traced, units=[0])
        (mesh,) = axes.collections
        assert words(axes) == [token.replace("<eos>", "↵") for token in traced.tokens]
        begins = [text.get_position()[0] for text in axes.texts if text.get_fontsize() == 8]
        np.testing.assert_array_equal(begins, mesh.get_coordinates()[0, :-1, 0])
        for text, bits in zip([t for t in axes.texts if t.get_fontsize() < 8], traced.bits[:6], strict=False):
            assert text.get_text() == f"{bits:.1f}"

    def test_bars_are_surprisals(self, axes_of, traced):
        axes, _ = axes_of(traced, units=[0])
        heights = [abs(patch.get_height()) for patch in axes.patches]
        np.testing.assert_allclose(np.array(heights) / max(heights), traced.bits / traced.bits.max())

    def test_surprisal_without_end_is_drawn(self, axes_of):
        axes, _ = axes_of(handmade(np.ones((3, 1)), bits=[1.0, math.inf, 2.0]), units=[0])
        assert [patch.get_height() for patch in axes.patches] == pytest.approx([-0.45, -0.9, -0.9])

    def test_nothing_overlaps(self, axes_of, traced):
        """Neither tokens nor numbers of neighbours, as they come out of the renderer."""
        long = trace(model(), TEXT * 4)
        for found, size in ((traced, 8), (long, 8), (long, 5.5)):
            axes, _ = axes_of(found, units=[0])
            figure = axes.figure
            figure.draw_without_rendering()
            boxes = [text.get_window_extent() for text in axes.texts if text.get_fontsize() == size]
            assert boxes
            for number, box in enumerate(boxes):
                assert not any(box.overlaps(other) for other in boxes[number + 1 :])

    def test_long_texts_go_on_below(self, axes_of):
        values = np.random.default_rng(0).normal(size=(100, 3))
        axes, _ = axes_of(handmade(values, tokens=["word"] * 100), units=[1])
        assert [part.shape[1] for part in maps(axes)] == [13] * 7 + [9]  # 14 would fit: about as long as each other
        np.testing.assert_allclose(np.concatenate(maps(axes), 1)[0], values[:, 1].astype(np.float32))
        assert {mesh.norm.vmax for mesh in axes.collections} == {np.abs(values[:, 1].astype(np.float32)).max()}
        assert len(words(axes)) == 100

    def test_lines_of_characters_end_between_words(self, axes_of):
        text = "wherefore art thou " * 8
        axes, _ = axes_of(handmade(np.ones((len(text), 1)), tokens=list(text)), units=[0])
        lengths = [part.shape[1] for part in maps(axes)]
        assert sum(lengths) == len(text)
        assert max(lengths) <= 72
        ends = np.cumsum(lengths)
        assert len(ends) > 1
        assert all(text[end - 1] == " " for end in ends)

    def test_what_is_joined_stays_with_its_word(self, axes_of):
        tokens = ["word", "word", "￭,"] * 20
        axes, _ = axes_of(handmade(np.ones((60, 1)), tokens=tokens), units=[0])
        firsts = [words(axes)[sum(p.shape[1] for p in maps(axes)[:k])] for k in range(len(maps(axes)))]
        assert len(firsts) > 1
        assert set(firsts) == {"word"}

    def test_no_line_is_longer_than_the_page(self, axes_of):
        """Even where a line can end in one place only, and what follows it is long."""
        tokens = ["a", *["b￭"] * 23, "cccc￭", "d"]
        axes, _ = axes_of(handmade(np.ones((26, 1)), tokens=tokens), units=[0])
        ends = [mesh.get_coordinates()[0, -1, 0] for mesh in axes.collections]
        assert len(ends) == 3
        assert max(ends) <= 72
        assert words(axes) == [token.replace("￭", "‿") for token in tokens]

    def test_strange_tokens(self, axes_of):
        tokens = ["$x$", "語語", "\t", "long" * 40, "<unk>", "￭."]
        axes, _ = axes_of(handmade(np.eye(6), tokens=tokens), units=[0, 3])
        shown = words(axes)
        assert shown[:3] == ["$x$", "語語", "\\t"]
        assert (len(shown[3]), shown[3][-5:]) == (60, "glon…")
        assert shown[4:] == ["<unk>", "‿."]
        edges = axes.collections[0].get_coordinates()[0, :, 0]
        assert np.diff(edges)[:3].tolist() == [4, 5, 3]  # ideographs are twice as wide; one for the gap


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_files(suffix, tmp_path):
    draw(handmade(np.eye(3), tokens=["a", "語", "\x07"]), tmp_path / f"t{suffix}", units=[0, 1])
    content = (tmp_path / f"t{suffix}").read_bytes()
    assert {".png": b"\x89PNG", ".svg": b"<svg", ".pdf": b"%PDF"}[suffix] in content[:1000]


def test_the_most_that_is_drawn_is_drawn(tmp_path):
    """As high as a picture can be: there is a limit to what can be rendered."""
    units = pictures.MOST_UNITS
    lines = pictures.MOST_ROWS // (units + pictures.TEXT_ROWS)
    found = handmade(np.ones((lines * 14, units)), tokens=["word"] * (lines * 14))
    draw(found, tmp_path / "t.svg", units=range(units))
    assert (tmp_path / "t.svg").exists()


def test_too_much_is_refused(axes_of, traced):
    long = handmade(np.zeros((1000, 10)), tokens=["word"] * 1000)
    with pytest.raises(UserError, match=r"too long to draw: 72 lines .* at most 49 with 10 units; give a shorter text"):
        axes_of(long, units=range(10))
    with pytest.raises(UserError, match="units: expected 0 to 4, got 9"):
        axes_of(traced, units=[9])
    with pytest.raises(UserError, match="units: expected 1 to 64 to draw, got 0"):
        axes_of(traced, units=[])
