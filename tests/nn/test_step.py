"""One step of a stack, `Recurrent.step`, against its `forward`."""

from __future__ import annotations

import pytest
import torch

from recurra import nn

STACKS = {
    "rnn": lambda: nn.RNN(3, 4, 2, "relu"),
    "lstm": lambda: nn.LSTM(3, (5, 4), forget_bias=1.0),
    "lstm projected, dense": lambda: nn.LSTM(3, 5, 3, proj_size=2, connections="dense"),
    "lstm layer norm, no bias": lambda: nn.LSTM(3, 4, 2, bias=False, layer_norm=True),
    "lstm zoneout": lambda: nn.LSTM(3, 4, 2, zoneout=(0.1, 0.4), recurrent_dropout=0.5),
    "gru": lambda: nn.GRU(3, 4, 2),
    "gru before, residual": lambda: nn.GRU(3, 4, 3, reset="before", connections="residual", weight_dropout=0.5),
    "gru highway, layer norm": lambda: nn.GRU(3, 4, 3, connections="highway", layer_norm=True, between_dropout=0.5),
}
STEPS, BATCH = 5, 2


def made(name):
    torch.manual_seed(0)
    return STACKS[name]().double().eval(), torch.randn(STEPS, BATCH, 3, dtype=torch.float64)


@pytest.mark.parametrize("name", STACKS)
def test_step_after_step_is_forward(name):
    stack, inputs = made(name)
    outputs, final, trace = stack(inputs, trace=True)
    states = None
    for t in range(STEPS):
        taken = stack.step(inputs[t], states)
        if t:
            assert all(one is two for one, two in zip(taken.before, states, strict=True))
        else:
            assert not any(part.any() for state in taken.before for part in state)
        states = taken.after
        torch.testing.assert_close(taken.output, outputs[t], rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(taken.reads[0], inputs[t], rtol=0, atol=0)
        for layer, (state, gates) in enumerate(zip(states, taken.gates, strict=True)):
            for part, value in {**state._asdict(), **gates}.items():
                expected = trace.layers[layer][0][part][t]
                torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-15)
            assert taken.reads[layer].shape == (BATCH, stack.weights(layer).weight_ih.shape[1])
    last = final if stack.state_type is nn.LSTMState else (final,)
    for part, value in enumerate(last):
        for layer, state in enumerate(states):
            torch.testing.assert_close(state[part], value[layer], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", STACKS)
def test_gradients_of_steps_are_those_of_forward(name):
    stack, inputs = made(name)
    layers = range(stack.num_layers)
    expected = torch.autograd.grad(stack(inputs)[0].square().sum(), [stack.weights(n).weight_hh for n in layers])
    copies = [stack.weights(n).weight_hh.detach().clone().requires_grad_() for n in layers]
    weights = [stack.weights(n)._replace(weight_hh=copies[n]) for n in layers]
    states, loss = None, 0
    for x in inputs:
        taken = stack.step(x, states, weights)
        states, loss = taken.after, loss + taken.output.square().sum()
    for own, other in zip(torch.autograd.grad(loss, copies), expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-13)


def test_weights_may_be_others():
    stack, inputs = made("gru")
    with torch.no_grad():
        zeros = [nn.cells.Weights(*(None if w is None else w * 0 for w in stack.weights(n))) for n in range(2)]
        assert not stack.step(inputs[0], None, zeros).output.any()
        assert stack.step(inputs[0]).output.any()


def test_what_has_zoneout_says_so():
    assert [nn.LSTM(3, 4, zoneout=p).has_zoneout for p in (0.0, (0.0, 0.1), 0.2)] == [False, True, True]


def test_mistakes_are_named():
    stack, inputs = made("rnn")
    with pytest.raises(ValueError, match="after eval"):
        stack.train().step(inputs[0])
    with pytest.raises(ValueError, match="one direction"):
        nn.GRU(3, 4, bidirectional=True).eval().step(torch.zeros(1, 3))
    stack.eval()
    with pytest.raises(ValueError, match="expected input with input_size 3, got 2 features"):
        stack.step(inputs[0, :, :2])
    with pytest.raises(ValueError, match="argument 2 is longer"):
        stack.step(inputs[0], stack.step(inputs[0]).after[:1])
