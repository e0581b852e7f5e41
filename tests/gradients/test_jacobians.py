"""Jacobians of a step against torch.func and equations written out here; bounds on constructed matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gradients.stacks import made
from recurra import gradients, nn
from recurra.config import UserError
from recurra.gradients import Bound, Unrolled


@pytest.mark.parametrize("name", ["rnn relu", "lstm", "lstm projected, 2 layers", "gru", "gru reset before, 2 layers"])
@pytest.mark.parametrize("step", [0, 6])
def test_the_jacobian_of_a_step_is_that_of_the_layer(name, step):
    stack, inputs, loss = made(name)
    layer = stack.num_layers - 1
    _, _, trace = stack(inputs[:, None], trace=True)
    found = gradients.state_jacobian(Unrolled(stack, inputs, loss), step, layer)
    width = stack.hidden_widths[-1]

    def parts(t):
        values = trace.layers[layer][0]
        return [values[part][t][0].detach() for part in ("hidden", "cell") if part in values]

    def after(state):
        """The layer's state after the step, given the one before; the layers below are as they were."""
        cut = [state] if len(state) == width else state.split((width, stack.hidden_sizes[-1]))
        own = stack.weights(layer)
        reads = inputs[step] if layer == 0 else trace.layers[layer - 1][0]["hidden"][step][0].detach()
        driven = own.weight_ih @ reads + own.bias_ih
        new, _ = stack.bind(own, None)(driven[None], stack.state_type(*(part[None] for part in cut)))
        return torch.cat([part[0] for part in new])

    before = [part * 0 for part in parts(0)] if step == 0 else parts(step - 1)
    expected = torch.autograd.functional.jacobian(after, torch.cat(before))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_the_lstms_split_is_that_of_the_equations():
    stack, inputs, loss = made("lstm")
    step = 7
    _, _, trace = stack(inputs[:, None], trace=True)
    value = {name: [each[0].detach().numpy() for each in steps] for name, steps in trace.layers[0][0].items()}
    w = stack.weights(0).weight_hh.detach().numpy()
    w_input, w_forget, w_candidate, _ = np.split(w, 4)
    before = value["cell"][step - 1]
    f, i, g = (value[name][step] for name in ("forget", "input", "candidate"))
    by_hidden = (
        (before * f * (1 - f))[:, None] * w_forget
        + (g * i * (1 - i))[:, None] * w_input
        + (i * (1 - g**2))[:, None] * w_candidate
    )
    rest = by_hidden * (value["output"][step - 1] * (1 - np.tanh(before) ** 2))
    found = gradients.split(Unrolled(stack, inputs, loss), step, 0)
    np.testing.assert_allclose(found.gate, f, rtol=1e-12)
    np.testing.assert_allclose(found.rest, rest, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(found.total, np.diag(f) + rest, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", ["gru", "gru reset before, 2 layers"])
def test_the_grus_split_sums_to_the_jacobian(name):
    unrolled = Unrolled(*made(name))
    _, _, trace = unrolled.stack(unrolled.inputs[:, None], trace=True)
    found = gradients.split(unrolled, 4, 0)
    torch.testing.assert_close(found.gate, trace.layers[0][0]["update"][4][0].detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.total, gradients.state_jacobian(unrolled, 4, 0))
    assert float(found.rest.norm()) > 0


def test_what_cannot_be_split_is_refused():
    with pytest.raises(UserError, match="no gate"):
        gradients.split(Unrolled(*made("rnn tanh")), 3, 0)
    with pytest.raises(UserError, match="zoneout"):
        gradients.split(Unrolled(*made("lstm zoneout")), 3, 0)
    with pytest.raises(UserError, match="no step before"):
        gradients.split(Unrolled(*made("lstm")), 0, 0)
    with pytest.raises(UserError, match="no step before"):
        gradients.split(Unrolled(*made("lstm"), starts=(3,)), 3, 0)


def rnn_with(matrix, nonlinearity):
    stack = nn.RNN(2, 2, nonlinearity=nonlinearity).double().eval()
    with torch.no_grad():
        stack.weight_hh_l0.copy_(torch.tensor(matrix))
    return stack


@pytest.mark.parametrize(
    ("matrix", "nonlinearity", "largest", "radius", "must_vanish"),
    [
        ([[0.0, 0.9], [-0.9, 0.0]], "tanh", 0.9, 0.9, True),  # a turned and shrunk plane
        ([[0.5, 3.0], [0.0, 0.5]], "tanh", 3.0811, 0.5, False),  # its radius is small, its singular value is not
        ([[0.0, 3.9], [-3.9, 0.0]], "sigmoid", 3.9, 3.9, True),  # below 1 / gamma = 4
        ([[0.0, 4.1], [-4.1, 0.0]], "sigmoid", 4.1, 4.1, False),
        ([[1.1, 0.0], [0.0, 0.2]], "relu", 1.1, 1.1, False),
    ],
)
def test_the_bound_of_pascanu_on_constructed_matrices(matrix, nonlinearity, largest, radius, must_vanish):
    (bound,) = gradients.recurrent_bounds(rnn_with(matrix, nonlinearity), 0)
    assert bound.largest_singular == pytest.approx(largest, abs=1e-4)
    assert bound.spectral_radius == pytest.approx(radius, abs=1e-7)
    assert bound.gamma == (0.25 if nonlinearity == "sigmoid" else 1)
    assert bound.must_vanish == must_vanish
    assert bound.may_explode != must_vanish
    assert gradients.verdict([bound], []) == ("vanish" if must_vanish else "neither can be said")


def test_the_verdict_is_true_of_gradients():
    """W_h that turns and doubles, with all units of a relu at work: each step makes the gradient twice as long."""
    stack = rnn_with([[2.0, 0.0], [0.0, 2.0]], "relu")
    with torch.no_grad():
        stack.weight_ih_l0.fill_(1.0)
    inputs = torch.ones(6, 2, dtype=torch.float64)
    unrolled = Unrolled(stack, inputs, lambda outputs: outputs.sum(1))
    values = [torch.linalg.svdvals(gradients.state_jacobian(unrolled, step, 0)) for step in range(6)]
    assert gradients.verdict(gradients.recurrent_bounds(stack, 0), values) == "explode"
    curve = gradients.decay(gradients.gradient_map(unrolled))
    np.testing.assert_allclose(curve.relative, 2.0 ** np.arange(6), rtol=1e-12)
    assert math.isinf(curve.half_life)


def test_a_verdict_needs_every_jacobian():
    gated = [Bound("forget", 0.3, 0.2, None)]  # no bound: small weights say nothing where the state passes beside them
    assert gradients.verdict(gated, []) == "neither can be said"
    assert gradients.verdict(gated, [[0.9, 0.1], [0.8, 0.3]]) == "vanish"
    assert gradients.verdict(gated, [[0.9, 0.1], [1.1, 0.3]]) == "neither can be said"
    assert gradients.verdict(gated, [[1.9, 1.1], [1.3, 1.2]]) == "explode"


def test_gates_have_their_own_rows_of_the_weights():
    stack = nn.LSTM(2, 3)
    with torch.no_grad():
        for number, block in enumerate(stack.weight_hh_l0.chunk(4), start=1):
            block.copy_(number * torch.eye(3))
    bounds = gradients.recurrent_bounds(stack, 0)
    found = {bound.gate: bound.largest_singular for bound in bounds}
    assert found == pytest.approx({"input": 1, "forget": 2, "candidate": 3, "output": 4})
    assert all(bound.gamma is None for bound in bounds)
    assert gradients.recurrent_bounds(nn.LSTM(2, 3, proj_size=2), 0)[0].spectral_radius is None
    assert gradients.recurrent_bounds(nn.RNN(2, 3, layer_norm=True), 0)[0].gamma is None
