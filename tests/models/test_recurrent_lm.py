"""The recurrent language model: its parts fit together.

What it shares with other models is in test_neural.py.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from recurra.config import UserError
from recurra.models.recurrent_lm import RecurrentLM, RecurrentLMSettings
from recurra.nn import native
from recurra.nn.int8 import int8_of
from recurra.text.batches import Batch
from recurra.text.vocabulary import SPECIAL, Vocabulary

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


def text(time, batch):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(len(COUNTS), (time + 1, batch), generator=generator)
    return tokens[:-1], tokens[1:]


def test_detached_state_stops_gradients():
    lm = RecurrentLM(PLAIN, VOCABULARY)
    inputs, targets = text(4, 2)
    _, state = lm(Batch(inputs, targets))
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
