"""Training as a whole: it learns, it resumes to the bit, and ranks change nothing."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import recurra
from recurra.checkpoint import WEIGHTS, read_tensors
from recurra.config import UserError
from recurra.models.protocol import LossSum
from recurra.training import Diverged, Trainer, TrainerSettings

SMALL = {
    "tokenizer": "whitespace",
    "learning_rate": 4e-3,
    "hidden_size": 16,
    "batch_size": 4,
    "chunk_length": 8,
    "epochs": 3,
    "valid_fraction": 0.1,
    "test_fraction": 0.1,
    "input_dropout": 0.0,
    "dropout": 0.0,
    "output_dropout": 0.0,
}


VERBS = {"cat": "sat", "dog": "ran", "bird": "sang"}


@pytest.fixture
def text(tmp_path):
    """A text whose next word depends on the last two; 400 lines."""
    chance = random.Random(0)
    lines = []
    for _ in range(400):
        animal = chance.choice(["cat", "dog", "bird"])
        lines.append(f"the {animal} {VERBS[animal]} in the {chance.choice('abc')}")
    path = tmp_path / "text.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def weights(directory):
    return read_tensors(Path(directory) / WEIGHTS)[0]


def log(directory):
    return [json.loads(line) for line in (Path(directory) / "log.jsonl").read_text().splitlines()]


def test_learns_what_there_is_to_learn(text, tmp_path):
    outcome = recurra.train_lm(text, tmp_path / "m", **{**SMALL, "epochs": 12})
    # Seven tokens a line, of which two have three equally likely outcomes: 2 ln 3 / 7 nats a token, and hardly less.
    floor = 2 * math.log(3) / 7
    assert floor * 0.97 < outcome.evaluations["test"].nats_per_token < floor * 1.2
    results = json.loads((tmp_path / "m" / "results.json").read_text())
    assert results["test"]["perplexity"] == outcome.evaluations["test"].perplexity
    assert results["test"] == {
        **recurra.load(tmp_path / "m").evaluate(_part(text, 0.9)).to_mapping(),
        "seconds": results["test"]["seconds"],
    }


def _part(text, start):
    lines = text.read_text().splitlines(keepends=True)
    return "".join(lines[round(start * len(lines)) :])


@pytest.mark.parametrize("reset", ["none", "documents", "lines"])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_every_cell_trains_in_every_way_of_feeding(cell, reset, text, tmp_path):
    outcome = recurra.train_lm(text, tmp_path / "m", **SMALL, cell=cell, reset=reset)
    assert outcome.evaluations["valid"].perplexity < 6
    assert outcome.evaluations["valid"].reset == reset


has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
needs_bfloat16 = pytest.mark.skipif(not has_bfloat16, reason="this CPU has no bfloat16 products")


@pytest.mark.skipif(has_bfloat16, reason="this CPU has bfloat16 products")
def test_bfloat16_is_refused_where_there_is_none(text, tmp_path):
    with pytest.raises(UserError, match="no bfloat16 products; leave --precision"):
        recurra.train_lm(text, tmp_path / "m", **SMALL, precision="bfloat16")


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "sgd", "learning_rate": 5.0, "schedule": "plateau", "clip_norm": 0.25},
        {"optimizer": "asgd", "learning_rate": 3.0, "schedule": "constant", "asgd_trigger": 1, "epochs": 8},
        {"optimizer": "adagrad", "schedule": "linear"},
        {"optimizer": "rmsprop", "clip_value": 0.1},
        {"optimizer": "adamw", "weight_decay": 0.01, "average": 0.9},
        pytest.param({"precision": "bfloat16"}, marks=needs_bfloat16),
        {"output": "adaptive", "cutoffs": (5, 8)},
        {"tokenizer": "characters"},
        {"tokenizer": "byte-pairs", "vocabulary_size": 300},
    ],
    ids=str,
)
def test_every_way_of_training_learns(options, text, tmp_path):
    outcome = recurra.train_lm(text, tmp_path / "m", **{**SMALL, **options})
    assert outcome.evaluations["test"].bits_per_character < 1.2


def test_asgd_averages_once_triggered_and_resumes(text, tmp_path):
    options = {
        **SMALL,
        "optimizer": "asgd",
        "learning_rate": 20.0,
        "schedule": "constant",
        "warmup": 0.0,
        "asgd_trigger": 1,
        "epochs": 8,
    }
    recurra.train_lm(text, tmp_path / "whole", **options)
    state, metadata = read_tensors(tmp_path / "whole" / "training" / "state.safetensors")
    assert json.loads(metadata["run"])["averaging"]
    assert any(name.startswith("average.") for name in state)
    recurra.train_lm(text, tmp_path / "parts", **{**options, "epochs": 6})
    recurra.train_lm(directory=tmp_path / "parts", resume=True, epochs=8)
    again, _ = read_tensors(tmp_path / "parts" / "training" / "state.safetensors")
    assert all(torch.equal(state[name], again[name]) for name in state)


def test_tensorboard_events_hold_the_log(text, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recurra.train_lm(text, tmp_path / "m", **SMALL, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "m" / "tensorboard")).Reload()
    lines = log(tmp_path / "m")
    assert [event.step for event in events.Scalars("loss")] == [line["step"] for line in lines]
    assert events.Scalars("valid")[-1].value == pytest.approx(lines[-1]["valid"])


def test_early_stopping_ends_a_run(text, tmp_path):
    recurra.train_lm(text, tmp_path / "m", **{**SMALL, "epochs": 200, "learning_rate": 0.03}, early_stopping=2)
    assert log(tmp_path / "m")[-1]["epoch"] < 100


def test_the_best_weights_are_kept_not_the_last(text, tmp_path):
    outcome = recurra.train_lm(
        text, tmp_path / "m", **{**SMALL, "epochs": 5, "learning_rate": 0.2}, schedule="constant", optimizer="adam"
    )
    valid = [line["valid"] for line in log(tmp_path / "m") if "valid" in line]
    kept = outcome.evaluations["valid"].nats_per_token
    assert abs(kept - min(valid)) < abs(kept - valid[-1])


# ---- resuming -----------------------------------------------------------------------------------------------------

DROPPED = {**SMALL, "dropout": 0.1, "input_dropout": 0.1, "output_dropout": 0.1, "weight_dropout": 0.1}


class Interrupt:
    """Sends a signal to this process when a step has been reached."""

    def __init__(self, step):
        self.step = step

    def __call__(self, progress):
        if progress.step >= self.step:
            self.step = math.inf
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reset": "lines"},
        {"optimizer": "sgd", "average": 0.9},
        {"cell": "gru"},
        {"output": "classes", "maxent_order": 3, "maxent_bits": 12, "tied": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("step", [3, 81])
def test_interrupted_and_resumed_is_bit_identical(step, options, text, tmp_path):
    options = {**DROPPED, **options, "log_every": 1}
    recurra.train_lm(text, tmp_path / "whole", **options)
    stopped = recurra.train_lm(text, tmp_path / "parts", **options, watch=Interrupt(step))
    assert stopped.stopped == signal.SIGINT
    assert not stopped.evaluations
    resumed = recurra.train_lm(directory=tmp_path / "parts", resume=True)
    assert resumed.stopped is None
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    plain = [
        {k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second")} for line in log(tmp_path / "whole")
    ]
    assert plain == [
        {k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second")} for line in log(tmp_path / "parts")
    ]


def command(*arguments):
    return [sys.executable, "-m", "recurra", "train", "lm", *map(str, arguments)]


def flags(options):
    return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def test_killed_at_any_moment_and_resumed_is_bit_identical(text, tmp_path):
    options = {**DROPPED, "save_every": 0, "log_every": 1, "epochs": 2}
    recurra.train_lm(text, tmp_path / "whole", **options)
    arguments = [text, "-o", tmp_path / "parts", *flags(options)]
    for lines in (2, 30):
        process = subprocess.Popen(command(*arguments), stderr=subprocess.DEVNULL)
        path = tmp_path / "parts" / "log.jsonl"
        while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= lines):
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        arguments = ["-o", tmp_path / "parts", "--resume"]
    subprocess.run(command(*arguments), check=True, capture_output=True)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_finished_run_goes_on_when_its_limit_is_raised(text, tmp_path):
    recurra.train_lm(text, tmp_path / "m", **SMALL)
    before = log(tmp_path / "m")[-1]["step"]
    recurra.train_lm(directory=tmp_path / "m", resume=True, epochs=4)
    assert log(tmp_path / "m")[-1]["step"] == before * 4 / 3


def test_resuming_with_another_setting_is_refused(text, tmp_path):
    recurra.train_lm(text, tmp_path / "m", **SMALL)
    with pytest.raises(UserError, match="hidden_size cannot change in a run that is resumed: it was 16, now 17"):
        recurra.train_lm(directory=tmp_path / "m", resume=True, hidden_size=17)


def test_resuming_with_another_corpus_is_refused(text, tmp_path):
    recurra.train_lm(text, tmp_path / "m", **SMALL)
    with pytest.raises(UserError, match="reads what it read before"):
        recurra.train_lm("python-docs", tmp_path / "m", resume=True)
    recurra.train_lm(text, tmp_path / "m", resume=True)


def test_the_last_step_is_validated_once(text, tmp_path):
    recurra.train_lm(text, tmp_path / "m", **SMALL)
    steps = [line["step"] for line in log(tmp_path / "m") if "valid" in line]
    assert len(steps) == len(set(steps)) == SMALL["epochs"]


def test_sigterm_stops_in_order(text, tmp_path):
    process = subprocess.Popen(
        command(text, "-o", tmp_path / "m", *flags({**SMALL, "epochs": 100_000, "log_every": 1})),
        stderr=subprocess.PIPE,
        text=True,
    )
    path = tmp_path / "m" / "log.jsonl"
    while process.poll() is None and not (path.exists() and path.stat().st_size):
        time.sleep(0.02)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "--resume" in said.splitlines()[-1]
    assert recurra.load(tmp_path / "m").perplexity("the cat sat in the a\n") > 1


# ---- ranks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"reset": "lines"}, {"output": "classes", "maxent_order": 3, "maxent_bits": 12}],
    ids=str,
)
def test_two_ranks_train_the_model_of_one(options, text, tmp_path):
    options = {**SMALL, "epochs": 2, **options}
    one = recurra.train_lm(text, tmp_path / "one", **options)
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "recurra"),
            *command(text, "-o", tmp_path / "two", *flags(options))[3:],
        ],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
    )
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-6, rtol=1e-6)
    results = json.loads((tmp_path / "two" / "results.json").read_text())
    assert results["test"]["perplexity"] == pytest.approx(one.evaluations["test"].perplexity, rel=1e-6)


def test_processes_that_cannot_share_the_rows_say_so_in_one_line(text, tmp_path):
    result = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "recurra"),
            *command(text, "-o", tmp_path / "two", *flags({**SMALL, "batch_size": 5}))[3:],
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
    )
    assert result.returncode
    assert result.stderr.count("batch_size 5 cannot be shared out among 2 processes") == 1
    assert "RuntimeError" not in result.stderr


# ---- batches of nothing -------------------------------------------------------------------------------------------


class Line(torch.nn.Module):
    """y = w x; a batch of nothing has no loss."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, batch, state):
        return LossSum((self.weight * batch.value) ** 2, batch.tokens), None


class Value(NamedTuple):
    value: float
    tokens: int

    def to(self, _):
        return self


def test_a_batch_in_which_nothing_is_predicted_changes_nothing():
    settings = TrainerSettings(max_steps=3, log_every=1, optimizer="sgd", learning_rate=0.1, warmup=0.0)
    seen = []
    model = Line()
    batches = [Value(1.0, 1), Value(math.nan, 0), Value(1.0, 1)]
    Trainer(model, settings, lambda _: batches, watch=lambda p: seen.append((p.loss, model.weight.item()))).run()
    assert seen[1] == (None, seen[0][1])
    assert seen[2][1] < seen[0][1] < 1
    with pytest.raises(ValueError, match="in which something is to be predicted"):
        Trainer(model, settings, lambda _: batches, valid=batches[1:2]).evaluate()


def test_early_stopping_is_an_end_where_there_is_validation_data():
    settings = TrainerSettings(early_stopping=1, optimizer="sgd", learning_rate=0.1)
    batches = [Value(1.0, 1)]
    with pytest.raises(UserError, match="training has no end"):
        Trainer(Line(), settings, lambda _: batches)
    scores = iter([1.0, 2.0, 2.0])
    seen = []
    options = {"valid": batches, "score": lambda: ("-wer", next(scores)), "watch": seen.append}
    Trainer(Line(), settings, lambda _: batches, **options).run()
    assert [(p.score_name, p.score, p.learning_rate) for p in seen] == [
        ("-wer", score, 0.1) for score in (1.0, 2.0, 2.0)
    ]
    assert seen[0].to_mapping()["score_name"] == "-wer"


# ---- what goes wrong ----------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_and_keeps_the_best(text, tmp_path):
    with pytest.raises(Diverged, match=r"step \d+: .* lower --learning-rate") as caught:
        recurra.train_lm(
            text, tmp_path / "m", **{**SMALL, "epochs": 50, "learning_rate": 1e38}, optimizer="sgd", clip_norm=0.0,
            schedule="constant", warmup=0.5, evaluate_every=1, output_norm=False,
        )  # fmt: skip
    assert "kept" in str(caught.value)
    assert all(weight.isfinite().all() for weight in recurra.load(tmp_path / "m").model.parameters())


def test_disk_full_while_saving_keeps_the_old_checkpoint(text, tmp_path, monkeypatch):
    recurra.train_lm(text, tmp_path / "m", **SMALL)
    before = weights(tmp_path / "m")
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        recurra.train_lm(directory=tmp_path / "m", resume=True, epochs=4)
    monkeypatch.setattr(os, "fsync", real)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(tmp_path / "m").items())
    recurra.train_lm(directory=tmp_path / "m", resume=True, epochs=4)
