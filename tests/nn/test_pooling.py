"""Pooling against the definitions, one sequence at a time."""

from __future__ import annotations

import pytest
import torch

from recurra import nn as rnn
from recurra.config import UserError
from recurra.nn.pooling import POOLINGS, Pooling, checked_lengths, valid_steps

TIME, FEATURES = 5, 4
LENGTHS = [3, 0, 5, 1]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def padded(padding=torch.nan):
    states = torch.randn(TIME, len(LENGTHS), FEATURES, dtype=torch.float64)
    for row, length in enumerate(LENGTHS):
        states[length:, row] = padding
    return states


def by_definition(layer, states):
    """Of one sequence ``[steps, F]``."""
    if layer.kind == "final":
        half = FEATURES // 2
        return torch.cat((states[-1, :half], states[0, half:])) if layer.directions == 2 else states[-1]
    if layer.kind == "max":
        return torch.stack([max(feature) for feature in states.t()])
    if layer.kind == "mean":
        return sum(states) / len(states)
    scores = torch.stack([torch.tanh(layer.hidden.weight @ h + layer.hidden.bias) @ layer.query for h in states])
    shares = scores.exp() / scores.exp().sum()
    return sum(share * h for share, h in zip(shares, states, strict=True))


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("kind", POOLINGS)
def test_pooled_is_as_defined_and_empty_is_zeros(kind, directions):
    layer = Pooling(kind, FEATURES, directions=directions).double()
    states = padded()
    found = layer(states, LENGTHS)
    assert found.shape == (len(LENGTHS), layer.output_size)
    for row, length in enumerate(LENGTHS):
        wanted = by_definition(layer, states[:length, row]) if length else torch.zeros(FEATURES, dtype=torch.float64)
        torch.testing.assert_close(found[row], wanted)
    torch.testing.assert_close(layer(states[:, 2:3]), found[2:3])


@pytest.mark.parametrize("kind", POOLINGS)
def test_padding_reaches_no_gradient(kind):
    layer = Pooling(kind, FEATURES).double()
    found = []
    given = padded()
    for states in (given, given.nan_to_num(7.0)):
        states = states.clone().requires_grad_()
        wanted = [states, *layer.parameters()]
        found.append(torch.autograd.grad(layer(states, LENGTHS).sin().sum(), wanted))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    for row, length in enumerate(LENGTHS):
        assert not found[0][0][length:, row].any()
        assert found[0][0][:length, row].any() or not length


@pytest.mark.parametrize("kind", POOLINGS)
def test_gradients_are_those_of_finite_differences(kind):
    layer = Pooling(kind, FEATURES, directions=2).double()
    states = padded(0.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda states, *_: layer(states, LENGTHS), (states, *layer.parameters()))


@pytest.mark.parametrize("kind", POOLINGS)
def test_no_steps_at_all(kind):
    assert Pooling(kind, FEATURES)(torch.zeros(0, 2, FEATURES)).tolist() == [[0.0] * FEATURES] * 2


@pytest.mark.parametrize("kind", POOLINGS)
def test_bfloat16(kind):
    layer = Pooling(kind, FEATURES)
    states = padded().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(states, LENGTHS)
    pure = layer.bfloat16()(states, LENGTHS)
    for found in (mixed, pure):
        torch.testing.assert_close(found.float(), layer.float()(states.float(), LENGTHS), rtol=0.05, atol=0.05)


def test_the_final_state_is_the_recurrent_layers_own():
    layer = rnn.LSTM(3, 2, bidirectional=True).double()
    states, final = layer(torch.randn(TIME, len(LENGTHS), 3).double(), lengths=LENGTHS)
    found = Pooling("final", 4, directions=2)(states, LENGTHS)
    torch.testing.assert_close(found, torch.cat(tuple(final.hidden), 1))


def test_attention_shows_its_weights():
    layer = Pooling("attention", FEATURES).double()
    weights = layer.weights(padded(), LENGTHS)
    assert torch.equal(weights != 0, valid_steps(torch.tensor(LENGTHS), TIME))
    torch.testing.assert_close(weights.sum(0), torch.tensor([1.0, 0, 1, 1], dtype=torch.float64))
    with pytest.raises(ValueError, match="only pooling by attention has them, not by max"):
        Pooling("max", FEATURES).weights(padded(), LENGTHS)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="pooling: expected one of final, max, mean, attention, got 'sum'"):
        Pooling("sum", 2)
    with pytest.raises(ValueError, match="directions: expected 1, or 2 for an even number of features; got 2"):
        Pooling("final", 3, directions=2)
    with pytest.raises(ValueError, match=r"expected states \[T, N, 3\], got \(2, 2, 4\)"):
        Pooling("max", 3)(torch.zeros(2, 2, 4))


def test_lengths_are_checked():
    assert checked_lengths(None, 3, 2).tolist() == [3, 3]
    assert checked_lengths(torch.tensor([1, 0], dtype=torch.int32), 3, 2).dtype == torch.int64
    for wrong in ([1], [1.0, 2.0], [True, False]):
        with pytest.raises(ValueError, match="lengths: expected 2 integers, one per sequence"):
            checked_lengths(wrong, 3, 2)
    for wrong in ([1, 4], [-1, 2]):
        with pytest.raises(ValueError, match="lengths: expected 0 to 3"):
            checked_lengths(wrong, 3, 2)
