"""Pictures, as matplotlib has them: what is drawn, and what is written at it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from gradients.test_pairs import overflowing
from recurra import gradients
from recurra.config import UserError
from recurra.gradients import Clipping, Contributions, Decay, GradientMap

pytest.importorskip("matplotlib")
PATH = Path("unwritten.png")


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would have been saved."""
    figures = []
    monkeypatch.setattr("recurra.gradients.pictures.save", lambda figure, _: figures.append(figure))
    return figures


def labels(axes):
    return axes.get_xlabel(), axes.get_ylabel(), axes.get_title(loc="left")


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_a_map_has_a_colour_for_all_pairs_there_are(drawn):
    norms = np.zeros((1, 6, 6))
    for t in range(6):
        for i in range(3 if t >= 3 else 0, t + 1):
            norms[0, t, i] = 10.0 ** (i - t)
    norms[0, 5, 3] = 0  # as small as it can be, but a gradient
    norms[0, 2, 0] = 1e-30  # below all that is shown
    gradients.draw_map(GradientMap(np.arange(6), norms, None, (0, 3)), 0, PATH, title="a title")
    axes, bar = drawn[0].axes
    (image,) = axes.get_images()
    shown = image.get_array()
    places, steps = np.arange(6), np.arange(6)[:, None]
    expected = (places > steps) | ((steps >= 3) & (places < 3))
    assert (shown.mask == expected).all()
    assert shown[5, 4] == pytest.approx(-1)
    assert shown[4, 3] == pytest.approx(-1)
    assert shown[5, 3] == shown[2, 0] == image.norm.vmin == pytest.approx(-12)
    assert image.norm.vmax == 0
    assert image.cmap(0.0)[:3] == (0.93, 0.93, 0.93)  # and not white, as what is not there
    assert image.get_extent() == [-0.5, 5.5, 5.5, -0.5]
    assert labels(axes) == ("i, step of the state h(i) (tokens)", "t, step of the loss J(t) (tokens)", "a title")
    assert bar.get_ylabel() == "‖∂J(t)/∂h(i)‖ (nats per unit of h)"
    assert image.colorbar.extend == "min"
    drawn[0].canvas.draw()
    assert "$10^{-12}$" in [tick.get_text() for tick in bar.get_yticklabels()]


def test_a_map_of_c(drawn):
    found = gradients.gradient_map(gradients.fresh("lstm", hidden_size=3, length=9), stride=3)
    gradients.draw_map(found, 0, PATH, state="cell")
    axes, bar = drawn[0].axes
    shown = axes.get_images()[0].get_array()
    np.testing.assert_allclose(10 ** shown[2], found.cell[0, 2], rtol=1e-9)
    assert axes.get_images()[0].get_extent() == [-0.5, 8.5, 9.5, 0.5]  # rows 2, 5 and 8, three steps high
    assert "c(i)" in axes.get_xlabel()
    assert bar.get_ylabel() == "‖∂J(t)/∂c(i)‖ (nats per unit of c)"


def test_a_map_of_gradients_that_overflow(drawn):
    gradients.draw_map(gradients.gradient_map(overflowing()), 0, PATH)
    (image,) = drawn[0].axes[0].get_images()
    assert image.get_array()[-1, 0] == image.norm.vmax == pytest.approx(250)
    assert image.norm.vmin == pytest.approx(math.log10(math.sqrt(2)))
    assert image.colorbar.extend == "max"
    drawn[0].canvas.draw()  # in which matplotlib's own logarithm would overflow


def test_a_map_of_nothing_is_refused():
    with pytest.raises(UserError, match="all gradients are 0"):
        gradients.draw_map(GradientMap(np.arange(2), np.zeros((1, 2, 2)), None, (0,)), 0, PATH)


def curve(rate, count=21, fitted=10):
    k = np.arange(count)
    return Decay(k, 2.0 ** (rate * k), np.ones(count, int), rate, fitted)


def test_curves_of_decay_and_their_fits(drawn):
    found = {"falls": curve(-0.5), "rises": curve(0.25)}
    gradients.draw_decay(found, PATH, chunk_lengths=(15, 15, 35), title="x")
    (axes,) = drawn[0].axes
    fit, falls, fit_of_rising, rises, chunk = axes.get_lines()
    for fitted, line, each in ((fit, falls, found["falls"]), (fit_of_rising, rises, found["rises"])):
        np.testing.assert_allclose(line.get_ydata(), each.relative)
        assert fitted.get_xdata().tolist() == list(range(1, 11))
        np.testing.assert_allclose(fitted.get_ydata(), each.relative[1:11])
        assert fitted.get_linewidth() < line.get_linewidth()
    assert set(chunk.get_xdata()) == {15}  # 35 is beyond what is drawn
    assert axes.get_yscale() == "log"
    assert labels(axes) == ("distance k (tokens)", "‖∂J(t)/∂h(t−k)‖ relative to k = 0", "x")
    assert legend(axes) == [
        "falls: half-life 2 tokens",
        "rises: doubles every 4 tokens",
        "length of truncated backpropagation",
    ]


def test_curves_that_cannot_be_drawn_to_their_end(drawn):
    rising = gradients.decay(gradients.gradient_map(overflowing()))
    zero = Decay(np.arange(3), np.array([1.0, 0.0, 0.0]), np.ones(3, int), math.nan, 2)
    gradients.draw_decay({"up": rising, "none": zero}, PATH, state="cell")
    (axes,) = drawn[0].axes
    _, up, none = axes.get_lines()
    assert up.get_xdata()[-1] == 156  # 40 ** 156 is just below 1e250
    assert none.get_xdata().tolist() == [0]
    assert legend(axes) == [
        "up: doubles every 0.188 tokens, too large to draw from k = 157",
        "none: no half-life",
    ]
    assert "∂c(t−k)" in axes.get_ylabel()
    drawn[0].canvas.draw()


def test_singular_values_and_gates(drawn):
    whole, cells, gates = [np.array([0.5, 2.0, 1e-9]), np.array([3.0, 1.0, 0.1])], [np.array([0.9])], [np.array([0.8])]
    gradients.draw_jacobians(whole, PATH, state="(h, c)", remembered=cells, gate="forget", opened=gates, title="x")
    (axes,) = drawn[0].axes
    one, first, second, cell, gate = axes.get_lines()
    assert set(one.get_ydata()) == {1}
    assert first.get_ydata().tolist() == [2.0, 0.5, 1e-9]
    assert second.get_ydata().tolist() == [3.0, 1.0, 0.1]
    assert (cell.get_ydata().tolist(), gate.get_ydata().tolist()) == ([0.9], [0.8])
    assert legend(axes) == [
        "∂(h, c)(t)/∂(h, c)(t−1), a line a step",
        "∂c(t)/∂c(t−1) at the same steps",
        "forget gate at the same steps, its units in order",
    ]
    assert axes.get_ylim() == pytest.approx((3e-6, 6))
    assert labels(axes)[1:] == ("singular value of the Jacobian", "x")
    with pytest.raises(UserError, match="give --jacobians"):
        gradients.draw_jacobians([], PATH)


def test_contributions_stand_at_their_steps(drawn):
    found = Contributions(np.arange(4, 7), None, np.array([1.0, 3.0, 2.0]), None, None)
    gradients.draw_contributions(found, PATH, title="x")
    (axes,) = drawn[0].axes
    (bars,) = axes.patches
    assert [each.tolist() for each in bars.get_data()[:2]] == [[1, 3, 2], [3.5, 4.5, 5.5, 6.5]]
    assert axes.get_ylim()[0] == 0
    assert labels(axes)[::2] == ("i, step at which W_h was used (tokens)", "x")
    found = Contributions(np.arange(3), None, np.array([1.0, 1e283, np.inf]), None, None)
    gradients.draw_contributions(found, PATH, title="x")
    assert drawn[1].axes[0].patches[0].get_data()[0].tolist() == [1, 0, 0]
    assert drawn[1].axes[0].get_title("left") == "x, 2 steps too large to draw"


@pytest.mark.parametrize("value", [None, 0.5])
def test_clipping_by_step(value, drawn):
    found = Clipping(2.0, value, np.array([10, 20]), np.array([1.0, 8.0]))
    gradients.draw_clipping(found, PATH, title="x")
    (axes,) = drawn[0].axes
    before, after, limit = axes.get_lines()
    assert before.get_xydata().tolist() == [[10, 1], [20, 8]]
    np.testing.assert_allclose(after.get_xydata(), [[10, 1], [20, 2]], rtol=1e-6)
    assert set(limit.get_ydata()) == {2}
    name = "after clipping" + ("" if value is None else " by norm alone, at most")
    assert legend(axes) == ["before clipping", name, "limit 2"]
    assert labels(axes) == ("training step", "norm of the gradient (nats per token)", "x")
    with pytest.raises(UserError, match="no norms"):
        gradients.draw_clipping(Clipping(2.0, None, np.array([], int), np.array([])), PATH)


def test_files_are_pictures_of_their_form(tmp_path):
    for suffix, magic in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        gradients.draw_decay({"x": curve(-0.5)}, tmp_path / f"x{suffix}")
        assert (tmp_path / f"x{suffix}").read_bytes().startswith(magic)
