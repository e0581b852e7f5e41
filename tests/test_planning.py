"""What a run would take, beside what it takes."""

from __future__ import annotations

import json

import pytest

from recurra.cli import main
from recurra.config import UserError
from recurra.planning import plan

SMALL = {"vocabulary_size": 2_000, "tokens": 100_000, "scale": 1 / 32}


@pytest.mark.parametrize(
    "preset", ["lstm-2048-512", "lstm-8192-1024-char-cnn", "adaptive-2-layer-lstm-2048", "fixed-window"]
)
def test_real_steps_are_measured(preset):
    found = plan(preset, **SMALL, steps=2)
    assert found.measured["step_seconds"] > 0
    assert found.pass_seconds == pytest.approx(100_000 / found.measured["tokens_per_second"])


@pytest.mark.parametrize("preset", ["lstm-2048-512", "adaptive-lstm-2048", "rnn-2048-blackout"])
def test_memory_is_what_was_worked_out(preset):
    found = plan(preset, vocabulary_size=60_000, tokens=10**6, scale=1 / 4, steps=1)
    process = found.memory["process"]
    assert sum(found.memory.values()) > 1.4 * process  # or nothing would be tested
    # The process itself differs by some 50 MB from machine to machine.
    expected = sum(found.memory.values()) - process
    assert found.measured["peak_bytes"] - process == pytest.approx(expected, rel=0.35, abs=60e6)


def test_arithmetic_of_a_known_model():
    found = plan("lstm-2048-512", vocabulary_size=20_000, tokens=10**6, steps=0)
    recurrent = 4 * 2048 * (512 + 512) + 2048 * 512
    assert found.flops_per_token == pytest.approx(6 * (recurrent + 512 * (8192 + 1)))
    assert found.parameters["recurrent"] == recurrent + 2 * 4 * 2048
    assert sum(found.parameters.values()) == recurrent + 2 * 4 * 2048 + 2 * 20_000 * 512 + 20_000
    assert found.batch_tokens == 128 * 20
    assert found.measured is None


def test_the_big_model_needs_more_memory_than_its_weights_and_their_squares():
    found = plan("lstm-8192-1024", vocabulary_size=793_471, tokens=10**9, steps=0)
    assert found.memory["weights"] == 4 * sum(found.parameters.values())
    assert found.memory["optimizer"] == found.memory["weights"]
    # Rows alone have gradients where the table is large: far less than the weights.
    assert found.memory["gradients"] < found.memory["weights"] / 3
    assert sum(found.memory.values()) < 22e9


def test_other_hardware_is_bound_by_arithmetic_or_by_memory():
    model = {"vocabulary_size": 20_000, "tokens": 10**6, "steps": 0}
    flops = plan("lstm-2048-512", **model).flops_per_token
    fast_memory = plan("lstm-2048-512", **model, peak=1e12, bandwidth=1e15)
    assert fast_memory.hardware_seconds == pytest.approx(flops * 10**6 / 1e12)
    assert plan("lstm-2048-512", **model, peak=1e15, bandwidth=1e10).hardware_seconds > 10


def test_the_command(capsys):
    arguments = ["plan", "lstm-2048-512", "--vocab", "2000", "--tokens", "100000", "--scale", "0.03125", "--steps"]
    assert main([*arguments, "2", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["measured"]["tokens_per_second"] > 0
    assert main([*arguments, "0", "--peak", "1", "--bandwidth", "20"]) == 0
    output = capsys.readouterr().out
    assert "not measured" in output
    assert "on the hardware described" in output


def test_what_cannot_be_planned_is_said_in_one_line():
    for preset, options, message in (
        ("kneser-ney-5", {}, "made by counting"),
        ("lstm", {}, "unknown preset"),
        ("lstm-2048-512", {"peak": 1e12}, "give both"),
        ("lstm-2048-512", {"vocabulary_size": 2}, "vocabulary of 3 to"),
        ("lstm-2048-512", {"scale": 1.0}, "samples: expected 1 to 2000"),
        ("lstm-2048-512", {"peak": float("nan"), "bandwidth": 1e9}, "peak of other hardware"),
        ("lstm-2048-512", {"peak": 1e12, "bandwidth": 0.0}, "bandwidth of other hardware"),
        ("lstm-2048-512", {"steps": -1}, "0 or more"),
    ):
        with pytest.raises(UserError, match=message):
            plan(preset, **{**SMALL, "steps": 0, **options})
