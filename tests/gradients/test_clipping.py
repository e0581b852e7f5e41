"""What clipping did, from logs, against what training does."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from recurra.config import UserError
from recurra.gradients import read_clipping
from recurra.optimization import clip_gradients


def logged(folder, lines, **training):
    """A model's folder with a log."""
    settings = {"clip_norm": 1.0, "clip_value": 0.0, "optimizer": "adam"} | training
    (folder / "settings.json").write_text(json.dumps({"format": 1, "kind": "lm", "training": settings}))
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_clipping_is_what_training_does(tmp_path):
    weight = torch.nn.Parameter(torch.zeros(3))
    lines, left = [{"step": 1, "valid": 3.0}], []
    for step, size in enumerate((0.1, 0.9, 5.0), start=1):
        weight.grad = torch.full((3,), size)
        lines.append({"step": step, "gradient_norm": float(clip_gradients([weight], norm=1.0, value=None))})
        left.append(float(weight.grad.norm()))
    found = read_clipping(logged(tmp_path, lines))
    assert found.steps.tolist() == [1, 2, 3]
    np.testing.assert_allclose(found.after, left, rtol=1e-5)
    assert found.acted.tolist() == [False, True, True]
    assert not read_clipping(logged(tmp_path, lines, clip_norm=0.0)).acted.any()
    assert len(read_clipping(logged(tmp_path, lines[:1])).steps) == 0


@pytest.mark.parametrize(
    ("training", "limit", "value"),
    [
        ({"clip_norm": 0.5}, 0.5, None),
        ({"clip_norm": None, "clip_value": 2.0, "optimizer": "sgd"}, 0.25, 2.0),
        ({"clip_norm": 0.0}, None, None),
    ],
)
def test_limits_are_those_of_the_settings(training, limit, value, tmp_path):
    lines = [{"step": 50, "gradient_norm": 2.0}, {"step": 60, "valid": 1.0}, {"step": 100, "gradient_norm": 0.125}]
    found = read_clipping(logged(tmp_path, lines, **training))
    assert (found.clip_norm, found.clip_value) == (limit, value)
    assert (found.steps.tolist(), found.before.tolist()) == ([50, 100], [2.0, 0.125])
    expected = [1.0, 1.0] if limit is None else [limit / (2 + 1e-6), 1.0]
    assert found.factors.tolist() == pytest.approx(expected, rel=1e-12)


def test_logs_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_clipping(tmp_path / "missing")
    (tmp_path / "settings.json").write_text('{"format": 1, "kind": "ngram"}')
    with pytest.raises(UserError, match="not trained by gradient"):
        read_clipping(tmp_path)
    log = logged(tmp_path, []) / "log.jsonl"
    log.unlink()
    with pytest.raises(UserError, match=r"log\.jsonl: missing"):
        read_clipping(tmp_path)
    log.write_text('{"step": 1, "gradient_norm": "x"}\n')
    with pytest.raises(UserError, match="damaged"):
        read_clipping(tmp_path)
    log.write_text('{"step": 1, "gradient_norm": null}\n{"step": 1}\n')
    assert read_clipping(tmp_path).steps.tolist() == []
    log.write_text('{"step": 1, "gradient_norm": 1.0}\n{"step": 2, "gradient_no')  # a run that was killed
    assert read_clipping(tmp_path).steps.tolist() == [1]
