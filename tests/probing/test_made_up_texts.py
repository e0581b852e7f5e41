"""Recall in made-up texts: what they are, and what is learnt from them."""

from __future__ import annotations

import json
import math
import signal

import numpy as np
import pytest
import torch

from recurra.config import UserError
from recurra.probing import (
    CopyTask,
    RecallModel,
    RecallResult,
    RecallRow,
    RecallSettings,
    SentenceTask,
    draw_recall,
    example,
    made_up_texts,
    recall,
    recall_table,
)
from recurra.training import Diverged


@pytest.mark.parametrize("task", [SentenceTask(d, 12) for d in (5, 6, 50)] + [CopyTask(d, 8) for d in (1, 2, 50)])
def test_an_item_comes_twice_so_many_tokens_apart_and_no_other_does(task):
    texts = task.draw(300, np.random.default_rng(0))
    assert len(set(task.vocabulary)) == len(task.vocabulary)
    assert 0 <= texts.min() <= texts.max() < len(task.vocabulary)
    is_item = texts < task.items
    assert (is_item.sum(0) == 2).all()
    first, second = is_item.argmax(0), len(texts) - 1
    assert is_item[second].all()
    assert (second - first - 1 == task.distance).all()
    assert (texts[first, np.arange(300)] == texts[second]).all()
    assert set(texts[second]) == set(range(task.items))


def test_texts_depend_on_the_seed_alone():
    task = SentenceTask(20, 8)
    draws = [task.draw(4, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert (draws[0] == draws[1]).all()
    assert (draws[0] != draws[2]).any()


def test_the_sentence_is_about_one_person():
    task = SentenceTask(9, 8)
    for text in task.draw(50, np.random.default_rng(0)).T:
        words = [task.vocabulary[i] for i in text]
        assert words[0] == words[-4]
        assert (words[0], words[-2]) in {("she", "her"), ("he", "his")}
        assert words[4] == words[-2]
        assert [words[2], words[3], *words[-6:-4], words[-3]] == ["to", "print", "at", "last", "printed"]


def test_the_copied_symbol_is_asked_for_by_a_mark():
    task = CopyTask(5, 4)
    words = [task.vocabulary[i] for i in task.draw(1, np.random.default_rng(0))[:, 0]]
    assert words[-2] == "?"
    assert all(word.isdecimal() for word in words[1:-2])
    assert example(task) == f"{' '.join(words[:-1])} ___ ({words[-1]})"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SentenceTask(4, 8), "at least 5 tokens between the mentions, got 4"),
        (lambda: SentenceTask(10, 1000), "from 2 to .* of them, got 1000"),
        (lambda: CopyTask(0, 8), "at least 1 tokens"),
        (lambda: CopyTask(5, 27), "from 2 to 26"),
        (lambda: recall(RecallSettings(cells="lstm,gpt")), "cells: expected rnn, gru, lstm or some of them, got 'gpt'"),
        (lambda: recall(RecallSettings(distances=(10, 3))), "at least 5"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_every_network_is_tried_once():
    settings = RecallSettings(cells="LSTM, rnn", clip_norms=(0.0, 1.0), forget_biases=(0.0, 1.0))
    assert [str(variant) for variant in settings.variants()] == [
        "LSTM, forget bias 0, not clipped",
        "LSTM, forget bias 0, clipped at 1",
        "LSTM, forget bias 1, not clipped",
        "LSTM, forget bias 1, clipped at 1",
        "RNN, not clipped",
        "RNN, clipped at 1",
    ]


def test_the_loss_is_that_of_the_item_or_of_every_token():
    task = CopyTask(3, 4)
    torch.manual_seed(0)
    model = RecallModel("gru", len(task.vocabulary), 8)
    item, every = (made_up_texts._batch(task, 6, every, (1,)) for every in (False, True))
    assert (item.tokens, every.tokens) == (6, 24)
    assert item.inputs.shape == (4, 6)
    log_probs = model.scores(every.inputs, 4).log_softmax(-1).gather(-1, every.targets[..., None])[..., 0]
    assert model(item, None)[0].nats.item() == pytest.approx(-log_probs[-1].sum().item(), rel=1e-5)
    assert model(every, None)[0].nats.item() == pytest.approx(-log_probs.sum().item(), rel=1e-5)


QUICK = {"items": 4, "hidden_size": 32, "batch_size": 32, "learning_rate": 0.02}


def test_an_lstm_learns_what_lies_ten_tokens_back():
    settings = RecallSettings(task="copy", cells="lstm", distances=(10,), steps=300, **QUICK)
    before = recall(RecallSettings(task="copy", cells="lstm", distances=(10,), steps=1, **QUICK)).rows[0]
    seen = []
    (row,) = recall(settings, finished=lambda result: seen.append(len(result.rows))).rows
    assert before.accuracy < 0.6
    assert row.accuracy > 0.95
    assert row.nats < before.nats
    assert (row.chance, row.steps, row.distance, row.problem) == (0.25, 300, 10, None)
    assert seen == [1]


def test_a_run_is_the_same_every_time_and_another_with_another_seed():
    settings = RecallSettings(cells="rnn,gru", distances=(6,), steps=3, seeds=2, **QUICK)
    first, again = recall(settings).rows, recall(settings).rows
    assert [(row.cell, row.seed) for row in first] == [("rnn", 1), ("gru", 1), ("rnn", 2), ("gru", 2)]
    assert [row.nats for row in first] == [row.nats for row in again]
    assert first[0].nats != first[2].nats


def test_ctrl_c_leaves_the_rows_that_are_finished(monkeypatch):
    runs = iter(["done", KeyboardInterrupt])

    def run(settings, task, variant, seed, device, watch):
        if next(runs) is KeyboardInterrupt:
            raise KeyboardInterrupt
        return made(task.distance, 0.5)

    monkeypatch.setattr(made_up_texts, "_run", run)
    result = recall(RecallSettings(cells="lstm", distances=(10, 20)))
    assert [row.distance for row in result.rows] == [10]
    assert result.stopped == signal.SIGINT
    assert result.to_mapping()["complete"] is False


def test_a_signal_in_the_middle_of_a_run_ends_all(monkeypatch):
    monkeypatch.setattr(made_up_texts.Trainer, "run", lambda self: signal.SIGTERM)
    result = recall(RecallSettings(cells="lstm", distances=(10, 20)))
    assert (list(result.rows), result.stopped) == ([], signal.SIGTERM)


def test_a_run_that_diverges_has_a_row(monkeypatch):
    def run(self):
        raise Diverged("loss nan")

    monkeypatch.setattr(made_up_texts.Trainer, "run", run)
    said = []
    (row,) = recall(RecallSettings(cells="rnn", distances=(10,), clip_norms=(0.0,)), say=said.append).rows
    assert row.problem == "diverged at step 1"
    assert 0 <= row.accuracy <= 1
    assert "diverged" in said[-1]


def made(distance, accuracy, cell="lstm", seed=1, clip=1.0, problem=None, nats=1.0):
    return RecallRow(
        cell=cell,
        clip_norm=clip,
        forget_bias=1.0 if cell == "lstm" else None,
        distance=distance,
        seed=seed,
        accuracy=accuracy,
        nats=nats,
        chance=0.0625,
        steps=10,
        seconds=1.0,
        problem=problem,
    )


ROWS = [
    *[made(10, 1.0), made(10, 0.5, seed=2), made(20, 0.75)],
    *[made(10, 0.25, "rnn", clip=0.0, problem="diverged at step 3", nats=math.nan)],
]


def test_the_table_by_hand():
    assert recall_table(RecallResult(RecallSettings(), ROWS)).splitlines() == [
        "| accuracy (%) at distance | 10 | 20 |",
        "|---|---:|---:|",
        "| LSTM, forget bias 1, clipped at 1 | 75.0 (50.0-100.0) | 75.0 |",
        "| RNN, not clipped | 25.0* |  |",
        "| a guess among 16 items | 6.2 | 6.2 |",
        "",
        "\\* a run diverged, and was tested as it was before.",
    ]
    content = RecallResult(RecallSettings(), ROWS).to_mapping()
    assert content["rows"][3]["nats"] is None
    assert json.loads(json.dumps(content, allow_nan=False))["settings"]["distances"] == [10, 20, 50, 100, 200]


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    draw_recall(RecallResult(RecallSettings(), ROWS), tmp_path / "a.png")
    draw_recall(RecallResult(RecallSettings(), ROWS[:1]), tmp_path / "b.svg")
    assert (tmp_path / "a.png").stat().st_size > 5_000
    assert "tokens between the two mentions" in (tmp_path / "b.svg").read_text() or (tmp_path / "b.svg").exists()
    with pytest.raises(UserError, match="no run is over yet"):
        draw_recall(RecallResult(RecallSettings(), []), tmp_path / "c.png")
