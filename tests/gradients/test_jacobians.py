"""Jacobians of a step against torch.func and equations written out here; bounds on constructed matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gradients.stacks import made
from recurra import gradients, nn
from recurra.config import UserError
from recurra.gradients import Bound, Unrolled
from recurra.nn.cells import LSTMState, drive


@pytest.mark.parametrize(
    "name",
    ["rnn relu", "lstm", "lstm projected, 2 layers", "lstm layer norm", "gru", "gru reset before, 2 layers"],
)
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
        driven = drive(reads[None], own)
        new, _ = stack.bind(own, None)(driven, stack.state_type(*(part[None] for part in cut)))
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


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", ["lstm, 3 layers", "lstm projected, 2 layers", "lstm layer norm"])
def test_the_lstms_split_sums_to_how_c_depends_on_c(name, layer):
    """c(t) as a function of c(t-1) alone, through h(t-1), with all that does not depend on it as it was."""
    stack, inputs, loss = made(name)
    step = 6
    unrolled = Unrolled(stack, inputs, loss)
    own, taken, before = stack.weights(layer), unrolled.step(step), unrolled.step(step - 1)
    driven = drive(taken.reads[layer].detach(), own, stack.gate_groups)
    output = before.gates[layer]["output"].detach()

    def after(cell):
        inner = cell[None]
        if stack.layer_norm:
            inner = F.layer_norm(inner, inner.shape[-1:], own.gain_cell, own.bias_cell)
        hidden = output * inner.tanh()
        if own.weight_hr is not None:
            hidden = hidden @ own.weight_hr.T
        state, _ = stack.bind(own, None)(driven, LSTMState(hidden, cell[None]))
        return state.cell[0]

    cell = before.after[layer].cell[0].detach()
    torch.testing.assert_close(after(cell), taken.after[layer].cell[0], rtol=1e-12, atol=1e-15)
    found = gradients.split(unrolled, step, layer)
    expected = torch.autograd.functional.jacobian(after, cell)
    torch.testing.assert_close(found.total, expected, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(found.gate, taken.gates[layer]["forget"][0].detach(), rtol=1e-12, atol=0)


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
    verdict = gradients.verdict([bound], [], 5)
    assert (verdict.says, verdict.grounds) == (("vanish", "weights") if must_vanish else (NOT_SAID, ""))


NOT_SAID = "neither can be said"


def with_doubling(steps):
    """W_h that doubles, with all units of a relu at work: each step makes the gradient twice as long."""
    stack = rnn_with([[2.0, 0.0], [0.0, 2.0]], "relu")
    with torch.no_grad():
        stack.weight_ih_l0.fill_(1.0)
    return Unrolled(stack, torch.ones(steps, 2, dtype=torch.float64), lambda outputs: outputs.sum(1))


def test_the_verdict_is_true_of_gradients():
    unrolled = with_doubling(6)
    values = [torch.linalg.svdvals(gradients.state_jacobian(unrolled, step, 0)) for step in unrolled.continued]
    verdict = gradients.verdict(gradients.recurrent_bounds(unrolled.stack, 0), values, len(unrolled.continued))
    assert (verdict.says, verdict.grounds, verdict.seen) == ("explode", "every step", "grows")
    assert verdict.in_words() == "explode on this text, by the Jacobians of all 5 steps"
    curve = gradients.decay(gradients.gradient_map(unrolled))
    np.testing.assert_allclose(curve.relative, 2.0 ** np.arange(6), rtol=1e-12)
    assert math.isinf(curve.half_life)
    assert curve.rate == pytest.approx(1)


def test_a_verdict_needs_the_jacobians_of_all_steps():
    gated = [Bound("forget", 0.3, 0.2, None)]  # no bound: small weights say nothing where the state passes beside them
    shrinking, growing, mixed = [[0.9, 0.1], [0.8, 0.3]], [[1.9, 1.1], [1.3, 1.2]], [[0.9, 0.1], [1.1, 0.3]]
    assert gradients.verdict(gated, [], 0) == (NOT_SAID, "", "", 0, 0)
    assert gradients.verdict(gated, shrinking, 2) == ("vanish", "every step", "shrinks", 2, 2)
    assert gradients.verdict(gated, growing, 2) == ("explode", "every step", "grows", 2, 2)
    assert gradients.verdict(gated, mixed, 2) == (NOT_SAID, "", "", 2, 2)
    sampled = gradients.verdict(gated, shrinking, 3)
    assert sampled == (NOT_SAID, "", "shrinks", 2, 3)
    assert sampled.in_words() == "neither can be said; every vector shrinks at all 2 sampled steps"
    assert gradients.verdict(gated, growing, 3).in_words().endswith("every vector grows at all 2 sampled steps")
    assert gradients.verdict(gated, mixed, 3).in_words() == NOT_SAID
    small = [Bound("", 1.5, 1.5, 1.0)]
    assert gradients.verdict(small, shrinking, 3).says == NOT_SAID
    assert gradients.verdict([Bound("", 0.9, 0.9, 1.0)], growing, 3).in_words() == "vanish, whatever the text"


def linear(matrix, steps, **options):
    """A tanh RNN that reads nothing, so that h stays 0 and the Jacobian of every step is W_h."""
    matrix = torch.as_tensor(matrix, dtype=torch.float64)
    stack = nn.RNN(2, len(matrix), bias=False).double().eval()
    with torch.no_grad():
        stack.weight_hh_l0.copy_(matrix)
    return Unrolled(stack, torch.zeros(steps, 2, dtype=torch.float64), lambda outputs: outputs.sum(1), **options)


def test_the_growth_of_a_linear_network_is_the_logarithm_of_its_spectral_radius():
    torch.manual_seed(0)
    matrix = torch.randn(6, 6, dtype=torch.float64)
    radius = float(torch.linalg.eigvals(matrix).abs().max())
    found = gradients.growth(linear(matrix, 2001))
    assert found.rate == pytest.approx(math.log2(radius), abs=5e-3)
    assert found.steps == 1800
    shear = gradients.growth(linear([[0.5, 3.0], [0.0, 0.5]], 2001))  # though its largest singular value is 3.08
    assert shear.rate == pytest.approx(-1, abs=5e-3)


def test_the_growth_of_an_orthogonal_network_is_none():
    torch.manual_seed(0)
    turning = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    assert gradients.growth(linear(turning, 30)).rate == pytest.approx(0, abs=1e-12)
    assert gradients.growth(linear(2 * turning, 30, starts=(7, 8))).rate == pytest.approx(1, abs=1e-12)
    assert gradients.growth(linear(2 * turning, 30, starts=(7, 8))).steps == 27 - 2
    assert gradients.growth(linear(0 * turning, 30)).rate == -math.inf
    assert math.isnan(gradients.growth(linear(turning, 1)).rate)


def test_the_growth_is_that_of_the_product_of_jacobians():
    """Of an LSTM the state of the product is (h, c)."""
    unrolled = gradients.fresh("lstm", hidden_size=5, length=300, forget_bias=2.0)
    product, logs = torch.eye(10, dtype=torch.float64), []
    for step in unrolled.continued:
        product = gradients.state_jacobian(unrolled, step, 0) @ product
        size = torch.linalg.matrix_norm(product, 2)
        product = product / size
        logs.append(math.log2(size))
    assert gradients.growth(unrolled).rate == pytest.approx(sum(logs) / len(logs), abs=0.02)


def test_a_verdict_on_a_layer_is_none_on_what_goes_through_those_above():
    """W_h of the first layer halves, W_h of the second grows: so does the gradient with respect to the first."""
    torch.manual_seed(0)
    stack = nn.RNN(3, 4, 2, "relu").double().eval()
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.abs_()
        stack.weight_hh_l0.copy_(0.5 * torch.eye(4))
        stack.weight_hh_l1.copy_(1.3 * torch.eye(4))
    unrolled = Unrolled(stack, torch.rand(40, 3, dtype=torch.float64), lambda outputs: outputs.sum(1))
    lower, upper = (gradients.measure(unrolled, layer, jacobians=39) for layer in (0, 1))
    assert lower.verdict.says == "vanish"
    assert lower.growth.rate == pytest.approx(-1)
    assert lower.map.hidden[0, -1, 0] > 1e4 * lower.map.hidden[0, -1, -1]
    assert lower.decay().rate == pytest.approx(math.log2(1.3), rel=0.05)
    assert not lower.is_highest
    assert "layer 1's own recurrence" in lower.text()
    assert "gradients flow through the layers above as well" in lower.text()
    assert lower.to_mapping()["verdict"]["of"] == "layer 1's own recurrence"
    assert upper.verdict.says == "explode"
    assert upper.growth.rate == pytest.approx(math.log2(1.3))
    assert upper.is_highest
    assert "layers above" not in upper.text()


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
    assert gradients.recurrent_bounds(nn.RNN(2, 3, zoneout=0.1), 0)[0].gamma is None
