"""Pictures, by what is in them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from recurra import plotting
from recurra.checkpoint import read_log
from recurra.commands.command import draw_learning_curve
from recurra.config import UserError

pytest.importorskip("matplotlib")

LOG = [
    {"step": 1, "seconds": 6.0, "loss": 5.0},
    {"step": 2, "seconds": 12.0, "valid": 4.0},
    {"step": 3, "seconds": 30.0, "loss": 3.5},
    {"step": 4, "seconds": 36.0, "valid": 3.0},
]


@pytest.fixture
def figures(monkeypatch):
    """What would be saved, with the paths."""
    kept = []
    monkeypatch.setattr(plotting, "save", lambda figure, path: kept.append((figure, path)))
    return kept


def curves(axes):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}


class TestLearningCurve:
    def test_training_and_validation(self, figures, tmp_path):
        plotting.learning_curve(LOG, tmp_path / "c.png", title="a model")
        ((figure, _),) = figures
        (axes,) = figure.axes
        assert curves(axes) == {
            "training": (pytest.approx([0.1, 0.5]), [5.0, 3.5]),
            "validation": (pytest.approx([0.2, 0.6]), [4.0, 3.0]),
        }
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("training time (minutes)", "loss (nats per token)")
        assert axes.get_title(loc="left") == "a model"
        (note,) = axes.texts
        assert note.get_text() == f"perplexity {math.exp(3):.1f}"
        assert note.xy == pytest.approx((0.6, 3.0))

    @pytest.mark.parametrize(("name", "shown"), [("accuracy", "accuracy 0.25"), ("-wer", "wer -0.25")])
    def test_a_score_in_place_of_perplexity(self, name, shown, figures, tmp_path):
        plotting.learning_curve([*LOG, LOG[-1] | {"score": 0.25, "score_name": name}], tmp_path / "c.png")
        assert figures[0][0].axes[0].texts[0].get_text() == shown

    def test_a_run_without_validation(self, figures, tmp_path):
        plotting.learning_curve(LOG[:1], tmp_path / "c.png")
        assert list(curves(figures[0][0].axes[0])) == ["training"]

    def test_nothing_logged(self, tmp_path):
        with pytest.raises(UserError, match="nothing to draw yet"):
            plotting.learning_curve([], tmp_path / "c.png")

    def test_a_line_that_was_cut_short_is_passed_over(self, figures, tmp_path):
        """As whoever else reads the log does."""
        log = "".join(json.dumps(line) + "\n" for line in LOG)
        (tmp_path / "log.jsonl").write_text(log[:-10])
        draw_learning_curve(tmp_path)
        ((figure, path),) = figures
        assert path == tmp_path / "learning_curve.png"
        assert curves(figure.axes[0])["validation"] == (pytest.approx([0.2]), [4.0])
        assert read_log(tmp_path / "log.jsonl") == LOG[:3]

    @pytest.mark.parametrize("log", [None, "", "{"])
    def test_no_log_no_picture(self, log, figures, tmp_path):
        if log is not None:
            (tmp_path / "log.jsonl").write_text(log)
        draw_learning_curve(tmp_path)
        assert figures == []


def test_bars(figures, tmp_path):
    plotting.bars([("first", 3.0), ("second", 120.25)], tmp_path / "b.png", label="perplexity")
    (axes,) = figures[0][0].axes
    assert [bar.get_width() for bar in axes.patches] == [3.0, 120.25]
    assert [name.get_text() for name in axes.get_yticklabels()] == ["first", "second"]
    assert [text.get_text() for text in axes.texts] == ["3.0", "120.2"]
    assert axes.get_xlabel() == "perplexity"
    assert axes.yaxis_inverted()  # the first is on top


def test_attention(figures, tmp_path):
    weights = [[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]]
    plotting.attention(weights, ["a", "b", "x" * 61], ["$y$", "z"], tmp_path / "a.png")
    axes, scale = figures[0][0].axes
    (image,) = axes.get_images()
    np.testing.assert_array_equal(image.get_array(), weights)
    assert (image.norm.vmin, image.norm.vmax) == (0, 1)
    assert [name.get_text() for name in axes.get_xticklabels()] == ["$y$", "z"]
    assert [name.get_text() for name in axes.get_yticklabels()] == ["a", "b", "x" * 59 + "…"]
    assert scale.get_ylabel() == "share of attention"
    with pytest.raises(UserError, match="no attention to draw"):
        plotting.attention([], [], ["a"], tmp_path / "a.png")


def test_swatches(figures, tmp_path):
    plotting.swatches(
        [("red", (255, 0, 0)), ("grey", (51, 51, 51)), ("blue", (0, 0, 255))], tmp_path / "s.png", columns=2
    )
    (axes,) = figures[0][0].axes
    assert [text.get_text() for text in axes.texts] == ["red", "grey", "blue"]
    assert [patch.get_facecolor()[:3] for patch in axes.patches] == [(1, 0, 0), (0.2, 0.2, 0.2), (0, 0, 1)]
    for patch, text in zip(axes.patches, axes.texts, strict=True):  # the name is beside its colour
        assert patch.get_y() < text.get_position()[1] < patch.get_y() + patch.get_height()
        assert 0 < text.get_position()[0] - patch.get_x() - patch.get_width() < 0.1
    with pytest.raises(UserError, match="no colours to draw"):
        plotting.swatches([], tmp_path / "s.png")


class TestSave:
    @pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
    def test_the_name_says_the_format(self, suffix, tmp_path):
        plotting.save(plotting.figure_of(1, 1), tmp_path / f"f{suffix}")
        content = (tmp_path / f"f{suffix}").read_bytes()
        assert {".png": b"\x89PNG", ".svg": b"<svg", ".pdf": b"%PDF"}[suffix] in content[:1000]

    def test_what_cannot_be_written(self, tmp_path):
        with pytest.raises(UserError, match="unknown picture format"):
            plotting.save(plotting.figure_of(1, 1), tmp_path / "f.docx")
        with pytest.raises(UserError, match="no such folder"):
            plotting.save(plotting.figure_of(1, 1), tmp_path / "missing" / "f.png")
        assert list(tmp_path.iterdir()) == []
