"""One time step: against torch.nn's cells, and unrolled against the papers' equations in NumPy."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from recurra import nn as rnn
from reference import recurrence

INPUT, HIDDEN, BATCH, LENGTH = 3, 4, 5, 7

PAIRS = {
    "rnn tanh": (rnn.RNNCell, nn.RNNCell, {}),
    "rnn relu": (rnn.RNNCell, nn.RNNCell, {"nonlinearity": "relu"}),
    "lstm": (rnn.LSTMCell, nn.LSTMCell, {}),
    "gru": (rnn.GRUCell, nn.GRUCell, {}),
}


def numpy_weights(layer):
    return {name: weight.detach().numpy() for name, weight in layer.named_parameters()}


def tensors(result):
    return [result] if isinstance(result, torch.Tensor) else list(result)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(BATCH,), ()], ids=["batch", "alone"])
@pytest.mark.parametrize("state_given", [True, False])
def test_cell_is_torchs(name, bias, batch, state_given):
    own_class, torch_class, options = PAIRS[name]
    cells = []
    for cell in (own_class, torch_class):
        torch.manual_seed(0)
        cells.append(cell(INPUT, HIDDEN, bias, dtype=torch.float64, **options))
    own, peer = cells
    assert own.state_dict().keys() == peer.state_dict().keys()
    peer.load_state_dict(own.state_dict())
    input = torch.randn(*batch, INPUT, dtype=torch.float64, requires_grad=True)
    parts = [torch.randn(*batch, HIDDEN, dtype=torch.float64, requires_grad=True) for _ in range(1 + (name == "lstm"))]
    hx = (tuple(parts) if name == "lstm" else parts[0]) if state_given else None
    found = []
    for cell in (own, peer):
        outputs = tensors(cell(input, hx=hx))
        loss = sum((output * (1 + index)).sin().sum() for index, output in enumerate(outputs))
        sought = [input, *(parts if state_given else []), *cell.parameters()]
        found.append([*outputs, *torch.autograd.grad(loss, sought)])
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", PAIRS)
def test_same_seed_same_weights_as_torch(name):
    own_class, torch_class, options = PAIRS[name]
    torch.manual_seed(3)
    own = own_class(INPUT, HIDDEN, **options)
    torch.manual_seed(3)
    peer = torch_class(INPUT, HIDDEN, **options)
    for weight, wanted in zip(own.parameters(), peer.parameters(), strict=True):
        assert torch.equal(weight, wanted)


@pytest.mark.parametrize(
    ("cell", "layer"),
    [
        (rnn.RNNCell(INPUT, HIDDEN, nonlinearity="sigmoid"), rnn.RNN(INPUT, HIDDEN, nonlinearity="sigmoid")),
        (rnn.GRUCell(INPUT, HIDDEN, reset="before"), rnn.GRU(INPUT, HIDDEN, reset="before")),
    ],
    ids=["sigmoid", "reset before"],
)
def test_cell_is_one_step_of_the_layer(cell, layer):
    layer.load_state_dict({f"{name}_l0": weight for name, weight in cell.state_dict().items()})
    input, hidden = torch.randn(BATCH, INPUT), torch.randn(BATCH, HIDDEN)
    torch.testing.assert_close(cell(input, hidden), layer(input[None], hidden[None])[0][0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rnn.RNNCell(3, 4, nonlinearity="softplus"), "nonlinearity should be one of 'tanh', 'relu', 'sigmoid'"),
        (lambda: rnn.GRUCell(3, 4, reset="never"), "reset should be one of 'after', 'before'; got 'never'"),
        (lambda: rnn.LSTMCell(3, 4)(torch.ones(2, 5)), r"expected input of shape \(N, 3\) or \(3,\), got \(2, 5\)"),
        (lambda: rnn.RNNCell(3, 4)(torch.ones(1, 2, 3)), r"got \(1, 2, 3\)"),
        (lambda: rnn.GRUCell(3, 4)(torch.ones(2, 3), torch.ones(1, 4)), r"state of shape \(2, 4\), got \(1, 4\)"),
        (lambda: rnn.LSTMCell(3, 4)(torch.ones(3), (torch.ones(4), torch.ones(1, 4))), r"state of shape \(4,\)"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def one_sequence(layer):
    """A sequence, and the layer's output and initial state, in NumPy."""
    torch.manual_seed(0)
    layer = layer.double()
    for weight in layer.parameters():
        nn.init.normal_(weight, std=0.7)
    input = torch.randn(LENGTH, INPUT).double()
    state = layer.initial_state(1)
    state = rnn.LSTMState(*map(torch.randn_like, state)) if isinstance(state, tuple) else torch.randn_like(state)
    output, end = layer(input[:, None], state)
    begin = [part[0, 0].numpy() for part in tensors(state)]
    return input.numpy(), begin, output[:, 0].detach(), [part[0, 0].detach() for part in tensors(end)]


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu", "sigmoid"])
def test_rnn_is_the_equation(nonlinearity):
    layer = rnn.RNN(INPUT, HIDDEN, 1, nonlinearity, implementation="readable")
    input, begin, output, (hidden,) = one_sequence(layer)
    wanted = torch.from_numpy(recurrence.rnn(input, *begin, numpy_weights(layer), nonlinearity))
    torch.testing.assert_close(output, wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(hidden, wanted[-1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("proj_size", [0, 2])
def test_lstm_is_the_equations(proj_size):
    layer = rnn.LSTM(INPUT, HIDDEN, proj_size=proj_size, implementation="readable")
    input, begin, output, end = one_sequence(layer)
    hidden, cell = map(torch.from_numpy, recurrence.lstm(input, *begin, numpy_weights(layer)))
    torch.testing.assert_close(output, hidden, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(end, [hidden[-1], cell[-1]], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reset", ["after", "before"])
def test_gru_is_the_equations(reset):
    layer = rnn.GRU(INPUT, HIDDEN, reset=reset, implementation="readable")
    input, begin, output, _ = one_sequence(layer)
    wanted = recurrence.gru(input, *begin, numpy_weights(layer), reset)
    torch.testing.assert_close(output, torch.from_numpy(wanted), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "reference"),
    [
        (rnn.LSTM(INPUT, HIDDEN, layer_norm=True), recurrence.layer_norm_lstm),
        (rnn.GRU(INPUT, HIDDEN, layer_norm=True), recurrence.layer_norm_gru),
    ],
    ids=["lstm", "gru"],
)
def test_layer_normalisation_is_the_papers(layer, reference):
    input, begin, output, _ = one_sequence(layer)
    wanted = reference(input, *begin, numpy_weights(layer))
    torch.testing.assert_close(output, torch.from_numpy(wanted), rtol=1e-10, atol=1e-12)
