"""The gradient of W_h by step, against that of autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradients.stacks import STEPS, WEIGHTS, made
from recurra import gradients
from recurra.gradients import Unrolled


@pytest.mark.parametrize("target", [None, 0, 7, STEPS - 1])
@pytest.mark.parametrize("name", WEIGHTS)
def test_contributions_of_steps_sum_to_the_gradient_of_the_weights(name, target):
    stack, inputs, loss = made(name)
    outputs, _ = stack(inputs[:, None])
    losses = loss(outputs[:, 0])
    weights = [stack.weights(layer).weight_hh for layer in range(stack.num_layers)]
    expected = torch.autograd.grad(losses.sum() if target is None else losses[target], weights)
    found = gradients.weight_contributions(Unrolled(stack, inputs, loss), target=target)
    for each, gradient in zip(found, expected, strict=True):
        torch.testing.assert_close(each.total, gradient, rtol=1e-10, atol=1e-14)
        if target == 0:  # h(-1) is 0: W_h had nothing to act on
            assert each.shares.tolist() == [0] * STEPS
        else:
            assert each.shares.sum() == pytest.approx(1, abs=1e-10)
        assert (each.norms[(STEPS if target is None else target + 1) :] == 0).all()


def test_the_contribution_of_each_step_is_that_of_a_copy_of_the_weights_used_there_alone():
    stack, inputs, loss = made("rnn tanh")
    own = stack.weights(0)
    copies = [own.weight_hh.detach().clone().requires_grad_() for _ in range(STEPS)]
    hidden, outputs = torch.zeros(4, dtype=torch.float64), []
    for x, copy in zip(inputs, copies, strict=True):
        hidden = torch.tanh(own.weight_ih @ x + own.bias_ih + copy @ hidden + own.bias_hh)
        outputs.append(hidden)
    expected = torch.autograd.grad(loss(torch.stack(outputs)).sum(), copies)
    (found,) = gradients.weight_contributions(Unrolled(stack, inputs, loss))
    np.testing.assert_allclose(found.norms, [float(part.norm()) for part in expected], rtol=1e-10)
    total = sum(expected)
    shares = [float((part * total).sum() / total.square().sum()) for part in expected]
    np.testing.assert_allclose(found.shares, shares, rtol=1e-9)
