"""Recall in made-up texts: what is learnt from them, and how it is told."""

from __future__ import annotations

import dataclasses
import json
import math
import signal

import pytest
import torch

from recurra.config import UserError
from recurra.nn import LSTM
from recurra.probing import (
    CopyTask,
    RecallModel,
    RecallResult,
    RecallRow,
    RecallSettings,
    draw_recall,
    made_up_recall,
    recall,
    recall_table,
)
from recurra.probing.made_up_texts import draw_batch
from recurra.training import Diverged


@pytest.mark.parametrize(
    ("make", "message"),
    [
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
    item, every = (draw_batch(task, 6, (1,), every_token=every) for every in (False, True))
    assert (item.tokens, every.tokens) == (6, 24)
    assert item.inputs.shape == (4, 6)
    log_probs = model.scores(every.inputs, 4).log_softmax(-1).gather(-1, every.targets[..., None])[..., 0]
    assert model(item, None)[0].nats.item() == pytest.approx(-log_probs[-1].sum().item(), rel=1e-5)
    assert model(every, None)[0].nats.item() == pytest.approx(-log_probs.sum().item(), rel=1e-5)


QUICK = {"items": 4, "hidden_size": 32, "batch_size": 32, "learning_rates": (0.02,), "seeds": 1}


def test_an_lstm_learns_what_lies_ten_tokens_back_and_stops_there():
    settings = RecallSettings(task="copy", cells="lstm", forget_biases=(1.0,), distances=(10,), steps=1000, **QUICK)
    before = recall(dataclasses.replace(settings, steps=1)).rows[0]
    seen = []
    (row,) = recall(settings, finished=lambda result: seen.append(len(result.rows))).rows
    assert before.accuracy < 0.6
    assert not before.learnt
    assert row.learnt
    assert row.nats < before.nats
    assert row.steps in range(100, 1000, 100)
    assert (row.chance, row.learning_rate, row.distance, row.problem) == (0.25, 0.02, 10, None)
    assert seen == [1]


def test_rates_are_tried_in_turn_and_the_best_is_kept(monkeypatch):
    tried = []

    def attempt(settings, task, variant, seed, rate, device, watch):
        tried.append(rate)
        judged_by, learnt = found[rate]
        return judged_by, dataclasses.replace(made(task.distance, 0.5), learnt=learnt, learning_rate=rate)

    monkeypatch.setattr(made_up_recall, "_try", attempt)
    settings = RecallSettings(cells="gru", distances=(10,), seeds=1, learning_rates=(0.1, 0.01, 0.1, 0.001))
    found = {0.1: (2.0, False), 0.01: (0.1, True), 0.001: (0.0, True)}
    (row,) = recall(settings).rows
    assert (row.learning_rate, row.steps, row.seconds, tried) == (0.01, 600, 2.0, [0.1, 0.01])
    tried.clear()
    found = {0.1: (math.nan, False), 0.01: (2.0, False), 0.001: (2.5, False)}
    (row,) = recall(settings).rows
    assert (row.learning_rate, row.steps, row.seconds, tried) == (0.01, 900, 3.0, [0.1, 0.01, 0.001])


def test_what_is_tested_was_never_drawn_for_training():
    task = CopyTask(30, 4)
    kinds = [(1, made_up_recall.TEST), (1, made_up_recall.VALID), (1, 0, 0), (1, 1, 0), (1, 0, 1)]
    texts = [set(map(tuple, draw_batch(task, 50, seed).inputs.T.tolist())) for seed in kinds]
    assert len(set.union(*texts)) == 250


def test_the_gradient_that_is_left_is_that_of_a_chain_of_forget_gates():
    """With no weights but the input's, all that comes back from the item is what the forget gates let through."""
    task, distance = CopyTask(6, 4), 6
    torch.manual_seed(0)
    model = RecallModel("lstm", len(task.vocabulary), 8, forget_bias=0.0).double()
    batch = draw_batch(task, 5, (1,))
    with torch.no_grad():
        for name, weight in model.recurrent.named_parameters():
            if "weight_hh" in name or "bias" in name:
                weight.zero_()
            elif "weight_ih" in name:
                weight[: 2 * 8] = 0  # input and forget gates: one half
                weight[3 * 8 :] = 0  # so are the output gates
        embedded = model.embedding(batch.inputs)
        cells = 0
        for x in embedded:
            candidate = (x @ model.recurrent.weight_ih_l0[2 * 8 : 3 * 8].T).tanh()
            cells = 0.5 * cells + 0.5 * candidate
        hidden = (0.5 * cells.tanh()).requires_grad_()
    scores = model.output(hidden)
    loss = torch.nn.functional.cross_entropy(scores, batch.targets[-1], reduction="sum")
    (of_hidden,) = torch.autograd.grad(loss, hidden)
    of_cell = of_hidden * 0.5 * (1 - cells.tanh() ** 2)
    norms = []
    for step, power in ((0, distance), (-1, 0)):
        weight = model.recurrent.weight_ih_l0[16:24].detach()
        candidate = (embedded[step] @ weight.T).tanh()
        of_input = (of_cell * 0.5**power * 0.5 * (1 - candidate**2)).detach() @ weight
        norms.append(of_input.norm(dim=-1).mean())
    assert isinstance(model.recurrent, LSTM)
    assert made_up_recall.gradient_left(model, batch) == pytest.approx(float(norms[0] / norms[1]), rel=1e-9)
    assert made_up_recall.gradient_left(model.float(), batch) == pytest.approx(float(norms[0] / norms[1]), rel=1e-5)
    assert model.output.weight.dtype == torch.float32


def test_a_gradient_that_no_float32_holds_is_told():
    torch.manual_seed(0)
    task = CopyTask(300, 4)
    left = made_up_recall.gradient_left(RecallModel("rnn", len(task.vocabulary), 8), draw_batch(task, 5, (1,)))
    assert 0 < left < 1e-50


def test_a_result_is_complete_when_every_run_is_in_it():
    settings = RecallSettings(cells="gru", distances=(10, 20, 10), seeds=2)
    rows = [made(10, 1.0, "gru"), made(20, 1.0, "gru"), made(10, 1.0, "gru", seed=2)]
    assert not RecallResult(settings, rows).complete
    assert RecallResult(settings, [*rows, made(20, 1.0, "gru", seed=2)]).complete


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without torchrun"):
        recall(RecallSettings(cells="gru", distances=(10,)))


def test_shorter_distances_can_be_learnt_from_too(monkeypatch):
    seen = []

    class Seen(made_up_recall.Trainer):
        def _step(self, batch):
            seen.append(len(batch.inputs))
            return super()._step(batch)

    monkeypatch.setattr(made_up_recall, "Trainer", Seen)
    settings = RecallSettings(task="copy", cells="rnn", distances=(6,), steps=60, **QUICK)
    recall(settings)
    assert set(seen) == {7}
    seen.clear()
    recall(dataclasses.replace(settings, shorter=True))
    assert set(seen) == set(range(2, 8))


def test_a_run_is_the_same_every_time_and_another_with_another_seed():
    settings = RecallSettings(cells="rnn,gru", distances=(6,), steps=3, **{**QUICK, "seeds": 2})
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

    monkeypatch.setattr(made_up_recall, "_run", run)
    result = recall(RecallSettings(cells="gru", distances=(10, 20)))
    assert [row.distance for row in result.rows] == [10]
    assert result.stopped == signal.SIGINT
    assert result.to_mapping()["complete"] is False


def test_a_signal_in_the_middle_of_a_run_ends_all(monkeypatch):
    monkeypatch.setattr(made_up_recall.Trainer, "run", lambda self: signal.SIGTERM)
    result = recall(RecallSettings(cells="gru", distances=(10, 20)))
    assert (list(result.rows), result.stopped) == ([], signal.SIGTERM)


def test_a_run_that_diverges_has_a_row(monkeypatch):
    def run(self):
        raise Diverged("loss nan")

    monkeypatch.setattr(made_up_recall.Trainer, "run", run)
    said = []
    (row,) = recall(
        RecallSettings(cells="rnn", distances=(10,), clip_norms=(0.0,), seeds=1, learning_rates=(1.0,)), say=said.append
    ).rows
    assert row.problem == "diverged at step 1"
    assert 0 <= row.accuracy <= 1
    assert "diverged" in said[-1]


def made(distance, accuracy, cell="lstm", seed=1, clip=1.0, problem=None, nats=1.0, steps=300):
    return RecallRow(
        cell=cell,
        clip_norm=clip,
        forget_bias=1.0 if cell == "lstm" else None,
        distance=distance,
        seed=seed,
        accuracy=accuracy,
        nats=nats,
        chance=0.0625,
        gradient=10.0**-distance,
        learning_rate=0.003,
        learnt=accuracy >= 0.99,
        steps=steps,
        seconds=1.0,
        problem=problem,
    )


ROWS = [
    *[made(10, 1.0), made(10, 0.5, seed=2, steps=1500), made(20, 0.75, steps=1500)],
    *[made(10, 0.25, "rnn", clip=0.0, problem="diverged at step 3", nats=math.nan, steps=2)],
]


def test_the_table_by_hand():
    assert recall_table(RecallResult(RecallSettings(), ROWS)).splitlines() == [
        "| accuracy (%) at distance | 10 | 20 |",
        "|---|---:|---:|",
        "| LSTM, forget bias 1, clipped at 1 | 75.0 (1 of 2) | 75.0 |",
        "| RNN, not clipped | 25.0* |  |",
        "| a guess among 16 items | 6.2 | 6.2 |",
        "",
        "| updates until learnt at distance | 10 | 20 |",
        "|---|---:|---:|",
        "| LSTM, forget bias 1, clipped at 1 | 300 | not in 1,500 |",
        "| RNN, not clipped | not in 2 |  |",
        "",
        "| gradient left before training at distance | 10 | 20 |",
        "|---|---:|---:|",
        "| LSTM, forget bias 1, clipped at 1 | 1e-10 | 1e-20 |",
        "| RNN, not clipped | 1e-10 |  |",
        "",
        "A layer of 64 units for each distance, at most 1,500 updates of 64 new texts at each rate: 0.003, 0.001;"
        " learnt: 99 % of new texts.",
        "Not complete: 4 runs so far.",
        "\\* a run diverged, and was tested as it was before.",
    ]
    content = RecallResult(RecallSettings(), ROWS).to_mapping()
    assert content["rows"][3]["nats"] is None
    assert json.loads(json.dumps(content, allow_nan=False))["settings"]["distances"] == [10, 20, 50, 100]


def test_the_picture_has_a_line_for_each_network_and_a_mark_for_each_seed(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    figures = []
    monkeypatch.setattr(made_up_recall, "save", lambda figure, path: figures.append(figure))
    draw_recall(RecallResult(RecallSettings(), ROWS), tmp_path / "a.png")
    (axes,) = figures[0].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines["LSTM, forget bias 1, clipped at 1"] == [[10, 75], [20, 75]]
    assert lines["RNN, not clipped"] == [[10, 25]]
    assert [[10, 100], [10, 50]] in [line.get_xydata().tolist() for line in axes.lines]
    assert axes.get_xlabel() == "distance (tokens between the two mentions)"
    assert axes.get_ylabel() == "items recalled (%)"
    with pytest.raises(UserError, match="no run is over yet"):
        draw_recall(RecallResult(RecallSettings(), []), tmp_path / "c.png")
