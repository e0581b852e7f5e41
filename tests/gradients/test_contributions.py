"""The gradient of W_h by step, against that of autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradients.stacks import STACKS, STEPS, made
from recurra import gradients
from recurra.config import UserError
from recurra.gradients import Unrolled


@pytest.mark.parametrize("target", [None, 0, 7])
@pytest.mark.parametrize("name", STACKS)
def test_contributions_of_steps_sum_to_the_gradient_of_the_weights(name, target):
    stack, inputs, loss = made(name)
    outputs, _ = stack(inputs[:, None])
    losses = loss(outputs[:, 0])
    weights = [stack.weights(layer).weight_hh for layer in range(stack.num_layers)]
    expected = torch.autograd.grad(losses.sum() if target is None else losses[target], weights)
    unrolled = Unrolled(stack, inputs, loss)
    for layer, gradient in enumerate(expected):
        found = gradients.weight_contributions(unrolled, layer, target=target)
        torch.testing.assert_close(found.total, gradient, rtol=1e-9, atol=1e-13)
        assert found.steps.tolist() == list(range(STEPS if target is None else target + 1))
        assert len(found.norms) == len(found.shares) == len(found.steps)
        assert found.norms[0] == 0  # before the first step h is 0: W_h had nothing to act on
        assert found.parts is None
        if target == 0:
            assert found.shares.tolist() == [0]
        else:
            assert found.shares.sum() == pytest.approx(1, abs=1e-9)
            assert (found.norms[1:] > 0).all() or name == "rnn relu"  # of which all units may be at 0


def test_the_contribution_of_each_step_is_that_of_a_copy_of_the_weights_used_there_alone():
    stack, inputs, loss = made("rnn tanh")
    own = stack.weights(0)
    copies = [own.weight_hh.detach().clone().requires_grad_() for _ in range(STEPS)]
    hidden, outputs = torch.zeros(4, dtype=torch.float64), []
    for x, copy in zip(inputs, copies, strict=True):
        hidden = torch.tanh(own.weight_ih @ x + own.bias_ih + copy @ hidden + own.bias_hh)
        outputs.append(hidden)
    expected = torch.autograd.grad(loss(torch.stack(outputs)).sum(), copies)
    found = gradients.weight_contributions(Unrolled(stack, inputs, loss), keep=True)
    torch.testing.assert_close(found.parts, torch.stack(expected), rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(found.norms, [float(part.norm()) for part in expected], rtol=1e-10)
    total = sum(expected)
    shares = [float((part * total).sum() / total.square().sum()) for part in expected]
    np.testing.assert_allclose(found.shares, shares, rtol=1e-9)


@pytest.mark.parametrize("name", ["lstm projected, 2 layers", "gru highway, dropout", "lstm zoneout"])
def test_nothing_comes_from_before_a_start(name):
    stack, inputs, loss = made(name)
    cut = 5
    unrolled = Unrolled(stack, inputs, loss, starts=(cut,))
    outputs = torch.cat([stack(part[:, None])[0] for part in (inputs[:cut], inputs[cut:])])
    losses = loss(outputs[:, 0])
    weights = [stack.weights(layer).weight_hh for layer in range(stack.num_layers)]
    for target, first in ((None, 0), (3, 0), (cut, cut), (9, cut)):
        wanted = losses.sum() if target is None else losses[target]
        expected = torch.autograd.grad(wanted, weights, retain_graph=True)
        for layer, gradient in enumerate(expected):
            found = gradients.weight_contributions(unrolled, layer, target=target)
            assert found.steps[0] == first
            assert found.norms[0] == 0
            torch.testing.assert_close(found.total, gradient, rtol=1e-9, atol=1e-13)
    whole = gradients.weight_contributions(unrolled)
    assert whole.norms[cut] == 0
    assert (np.delete(whole.norms, [0, cut]) > 0).all()


@pytest.mark.parametrize("steps", [1, 4, 99])
def test_the_last_steps_alone_take_the_state_before_them_as_given(steps):
    stack, inputs, loss = made("lstm, 2 layers")
    first = max(0, STEPS - steps)
    with torch.no_grad():
        given = stack(inputs[:first, None])[1] if first else None
    outputs, _ = stack(inputs[first:, None], given)
    padded = torch.cat((outputs.new_zeros(first, outputs.shape[-1]), outputs[:, 0]))
    expected = torch.autograd.grad(loss(padded)[-1], [stack.weights(layer).weight_hh for layer in (0, 1)])
    for layer, gradient in enumerate(expected):
        found = gradients.weight_contributions(
            Unrolled(stack, inputs, loss), layer, target=STEPS - 1, steps=steps, keep=True
        )
        assert found.steps.tolist() == list(range(first, STEPS))
        torch.testing.assert_close(found.total, gradient, rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(found.parts.sum(0), gradient, rtol=1e-9, atol=1e-14)


def test_there_is_no_such_step():
    unrolled = Unrolled(*made("gru"))
    for step in (-1, 12):
        with pytest.raises(UserError, match=f"step {step}: the text has 12, from 0 to 11"):
            gradients.weight_contributions(unrolled, target=step)
