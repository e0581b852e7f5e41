"""The recurrent language model: its parts fit together, and its three ways of reading agree."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from recurra.config import UserError
from recurra.models.recurrent_lm import RecurrentLM, RecurrentLMSettings
from recurra.nn import native
from recurra.nn.int8 import int8_of
from recurra.text.batches import Batch
from recurra.text.vocabulary import LINE_END, SPECIAL, Vocabulary

COUNTS = [3, 40, 50, 40, 30, 20, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
VOCABULARY = Vocabulary([*SPECIAL, *"abcdefghijklm", "nn"], COUNTS)
PLAIN = RecurrentLMSettings(
    hidden_size=12,
    layers=2,
    embedding_size=10,
    output="full",
    tied=True,
    input_dropout=0.0,
    dropout=0.0,
    output_dropout=0.0,
)
VARIANTS = {
    "lstm, tied, full": PLAIN,
    "gru before": dataclasses.replace(PLAIN, cell="gru", gru_reset="before"),
    "sigmoid rnn": dataclasses.replace(PLAIN, cell="rnn", nonlinearity="sigmoid"),
    "adaptive, tied": dataclasses.replace(PLAIN, output="adaptive", cutoffs=(4, 9)),
    "adaptive, untied": dataclasses.replace(PLAIN, output="adaptive", cutoffs=(4, 9), tied=False),
    "projected": dataclasses.replace(PLAIN, projection_size=6, output_norm=False),
    "residual, normalised": dataclasses.replace(PLAIN, connections="residual", layer_norm=True),
    "a size a layer": dataclasses.replace(PLAIN, hidden_size=(14, 12), tied=False),
    "classes, n-grams": dataclasses.replace(PLAIN, output="classes", classes=4, maxent_order=3, maxent_bits=10),
    "regularised": dataclasses.replace(
        PLAIN, word_dropout=0.1, input_dropout=0.1, dropout=0.1, output_dropout=0.1, recurrent_dropout=0.1,
        weight_dropout=0.1, zoneout=0.1,
    ),
}  # fmt: skip


@pytest.fixture(params=VARIANTS, ids=list(VARIANTS))
def lm(request):
    torch.manual_seed(0)
    lm = RecurrentLM(VARIANTS[request.param], VOCABULARY).double().eval()
    if lm.hashed is not None:
        torch.nn.init.normal_(lm.hashed.table)
    return lm


def text(time, batch):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(len(COUNTS), (time + 1, batch), generator=generator)
    return tokens[:-1], tokens[1:]


def test_steps_scores_and_loss_are_one_distribution(lm):
    inputs, targets = text(7, 3)
    scored, end = lm.score(inputs, targets, lm.start(3))
    state = lm.start(3)
    for t in range(7):
        log_probs, state = lm.step(inputs[t], state)
        torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(3, dtype=torch.float64))
        torch.testing.assert_close(log_probs.gather(-1, targets[t, :, None])[:, 0], scored[t])
    loss, _ = lm(Batch(inputs, targets, None, None))
    torch.testing.assert_close(loss.nats, -scored.sum())
    assert loss.tokens == 21
    torch.testing.assert_close(lm.step(targets[-1], end)[0], lm.step(targets[-1], state)[0])


def test_chunks_give_what_the_whole_gives(lm):
    inputs, targets = text(8, 2)
    whole, _ = lm(Batch(inputs, targets, None, None))
    first, state = lm(Batch(inputs[:3], targets[:3], None, None))
    second, _ = lm(Batch(inputs[3:], targets[3:], None, None), state)
    torch.testing.assert_close((first + second).nats, whole.nats)


def test_a_reset_row_goes_on_as_from_the_start(lm):
    inputs, targets = text(9, 2)
    resets = torch.zeros(9, 2, dtype=torch.bool)
    resets[4, 1] = resets[6, 0] = True
    found, _ = lm(Batch(inputs, targets, None, resets))
    parts = [(0, 6, 0), (6, 9, 0), (0, 4, 1), (4, 9, 1)]
    expected = sum(
        lm(Batch(inputs[a:b, row : row + 1], targets[a:b, row : row + 1], None, None))[0].nats for a, b, row in parts
    )
    torch.testing.assert_close(found.nats, expected)


def test_lengths_leave_out_what_lies_beyond(lm):
    inputs, targets = text(6, 3)
    lengths = torch.tensor([6, 4, 1])
    found, _ = lm(Batch(inputs, targets, lengths, None))
    scored, _ = lm.score(inputs, targets, lm.start(3))
    torch.testing.assert_close(found.nats, -sum(scored[:n, row].sum() for row, n in enumerate(lengths.tolist())))
    assert found.tokens == 11


def test_a_model_of_lines_forgets_at_a_line_end():
    torch.manual_seed(0)
    lm = RecurrentLM(dataclasses.replace(PLAIN, reset="lines"), VOCABULARY).double().eval()
    inputs, targets = text(5, 2)
    _, state = lm.score(inputs, targets, lm.start(2))
    found, _ = lm.step(torch.tensor([LINE_END, 5]), state)
    fresh, _ = lm.step(torch.tensor([LINE_END, 5]), lm.start(2))
    torch.testing.assert_close(found[0], fresh[0])
    assert (found[1] - fresh[1]).abs().max() > 1e-6


def test_select_reorders_rows(lm):
    inputs, targets = text(5, 3)
    _, state = lm.score(inputs, targets, lm.start(3))
    rows = torch.tensor([2, 0, 0])
    expected, _ = lm.step(torch.tensor([4, 5, 6]), lm.select(state, rows))
    alone, _ = lm.step(torch.tensor([6, 6, 4]), state)
    torch.testing.assert_close(expected[0], alone[2])


def test_training_draws_dropout_and_evaluation_does_not():
    torch.manual_seed(0)
    lm = RecurrentLM(VARIANTS["regularised"], VOCABULARY)
    batch = Batch(*text(7, 3), None, None)
    assert lm(batch)[0].nats != lm(batch)[0].nats
    lm.eval()
    assert lm(batch)[0].nats == lm(batch)[0].nats


def test_detached_state_stops_gradients():
    lm = RecurrentLM(PLAIN, VOCABULARY)
    inputs, targets = text(4, 2)
    _, state = lm(Batch(inputs, targets, None, None))
    assert state.own[0].requires_grad
    assert not lm.detach(state).own[0].requires_grad


@pytest.mark.skipif(not native.available(), reason="no compiled loops")
@torch.no_grad()
def test_int8_is_what_a_step_multiplies_by_where_there_are_classes(monkeypatch):
    torch.manual_seed(0)
    lm = RecurrentLM(dataclasses.replace(PLAIN, output="classes", classes=4, tied=False), VOCABULARY).eval()
    lm.round_to_int8_()
    inputs, targets = text(6, 2)
    scored, _ = lm.score(inputs, targets, lm.start(2))
    multiplied, linear = [], native.linear
    monkeypatch.setattr(native, "linear", lambda x, weight, bias: multiplied.append(weight) or linear(x, weight, bias))
    state = lm.start(2)
    for t in range(6):
        log_probs, state = lm.step(inputs[t], state)
        torch.testing.assert_close(log_probs.gather(-1, targets[t, :, None])[:, 0], scored[t], rtol=0, atol=1e-5)
    for matrix in (lm.output.class_weight, lm.output.weight):
        assert any(weight is matrix and int8_of(weight) is not None for weight in multiplied)


def test_tied_weights_are_one_parameter():
    tied, untied = RecurrentLM(PLAIN, VOCABULARY), RecurrentLM(dataclasses.replace(PLAIN, tied=False), VOCABULARY)
    size = len(COUNTS) * PLAIN.embedding_size
    assert sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in tied.parameters()) == size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bidirectional": True}, "would see the word it predicts"),
        ({"hidden_size": (4, 5, 6)}, "lists 3 sizes for 2 layers"),
        ({"hidden_size": None}, "still to be chosen: hidden_size"),
        ({"tied": None}, "still to be chosen: tied"),
        ({"cell": "gru", "projection_size": 4}, "for the lstm cell"),
        ({"projection_size": 12}, "proj_size"),
        ({"output": "adaptive", "cutoffs": (16,)}, "cutoffs must rise"),
        ({"connections": "residual", "hidden_size": (4, 6)}, "one size"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(change, message):
    with pytest.raises(UserError, match=message) as caught:
        RecurrentLM(dataclasses.replace(PLAIN, **change), VOCABULARY)
    assert "\n" not in str(caught.value)
