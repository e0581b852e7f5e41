"""The stacks: drop-in for torch.nn's; what they add; the two implementations held together."""

from __future__ import annotations

import itertools
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradgradcheck
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from recurra import nn as rnn
from recurra.nn import native
from recurra.nn.sequences import arrange
from zoo import INPUT_SIZE, RECURRENT

INPUT, HIDDEN, LENGTH, BATCH = 3, 4, 5, 3
LENGTHS = [2, 5, 3]
KINDS = {
    "rnn": ("RNN", {}),
    "rnn relu": ("RNN", {"nonlinearity": "relu"}),
    "lstm": ("LSTM", {}),
    "lstm projected": ("LSTM", {"proj_size": 2}),
    "gru": ("GRU", {}),
}
needs_compiler = pytest.mark.skipif(not native.available(), reason=f"not compiled: {native.why_not()}")
IMPLEMENTATIONS = ["readable", "torch", "tensor", pytest.param("compiled", marks=needs_compiler)]
EACH_KIND = pytest.mark.parametrize("kind", KINDS)
CLASSES = [rnn.RNN, rnn.LSTM, rnn.GRU]


@pytest.fixture
def without_compiled(monkeypatch):
    monkeypatch.setenv("RECURRA_NATIVE", "0")
    native._library.cache_clear()
    yield
    monkeypatch.undo()
    native._library.cache_clear()


def parts_of(state):
    return [state] if isinstance(state, torch.Tensor) else list(state)


def pair(kind, *arguments, implementation="auto", **options):
    """Recurra's stack and torch's, each made after the same seed."""
    name, more = KINDS[kind]
    torch.manual_seed(0)
    own = getattr(rnn, name)(*arguments, implementation=implementation, dtype=torch.float64, **options, **more)
    torch.manual_seed(0)
    return own, getattr(nn, name)(*arguments, dtype=torch.float64, **options, **more)


def everything(layer, input, state):
    """Outputs, final states, and the gradients of a loss of both with respect to input, initial state and weights."""
    output, end = layer(input, state)
    data = output.data if isinstance(output, PackedSequence) else output
    loss = (data * torch.linspace(-1, 1, data.shape[-1])).sin().sum() + sum(part.cos().sum() for part in parts_of(end))
    leaves = [input.data if isinstance(input, PackedSequence) else input, *parts_of(state), *layer.parameters()]
    return [data, *parts_of(end), *torch.autograd.grad(loss, leaves)]


@EACH_KIND
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("form", ["padded", "packed", "packed sorted", "alone"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_outputs_and_gradients_are_torchs(kind, layers, bidirectional, form, implementation):
    for bias, batch_first in itertools.product([True, False], repeat=2):
        own, peer = pair(
            kind, INPUT, HIDDEN, layers,
            bias=bias, batch_first=batch_first, bidirectional=bidirectional, implementation=implementation,
        )  # fmt: skip
        batch = () if form == "alone" else (BATCH,)
        shape = (*batch, LENGTH, INPUT) if batch_first else (LENGTH, *batch, INPUT)
        input = torch.randn(shape).double().requires_grad_()
        if form.startswith("packed"):
            in_order = form == "packed sorted"
            lengths = sorted(LENGTHS, reverse=True) if in_order else LENGTHS
            packed = pack_padded_sequence(input.detach(), lengths, batch_first, in_order)
            input = packed._replace(data=packed.data.requires_grad_())
        begin = peer(input)[1]
        state = [torch.randn_like(part).requires_grad_() for part in parts_of(begin)]
        state = tuple(state) if isinstance(begin, tuple) else state[0]
        found, wanted = everything(own, input, state), everything(peer, input, state)
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(own(input)[0].data, peer(input)[0].data, rtol=1e-10, atol=1e-12)


@EACH_KIND
def test_packed_output_is_packed_as_the_input(kind):
    own, peer = pair(kind, INPUT, HIDDEN, 2, bidirectional=True)
    packed = pack_padded_sequence(torch.randn(LENGTH, BATCH, INPUT).double(), LENGTHS, enforce_sorted=False)
    for given, wanted in zip(own(packed)[0], peer(packed)[0], strict=True):
        torch.testing.assert_close(given, wanted)


@EACH_KIND
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_lengths_are_packing_and_padding(kind, implementation):
    own, peer = pair(kind, INPUT, HIDDEN, 2, bidirectional=True, batch_first=True, implementation=implementation)
    input = torch.randn(BATCH, LENGTH, INPUT).double()
    packed, end = peer(pack_padded_sequence(input, LENGTHS, batch_first=True, enforce_sorted=False))
    wanted, _ = pad_packed_sequence(packed, batch_first=True)
    for lengths in (LENGTHS, torch.tensor(LENGTHS), torch.tensor(LENGTHS, dtype=torch.int32)):
        output, state = own(input, lengths=lengths)
        torch.testing.assert_close(output, wanted)
        torch.testing.assert_close(parts_of(state), parts_of(end))


@EACH_KIND
def test_state_dict_moves_both_ways_and_seed_gives_the_same_weights(kind):
    own, peer = pair(kind, INPUT, HIDDEN, 2, bidirectional=True)
    assert list(own.state_dict()) == list(peer.state_dict())
    torch.testing.assert_close(dict(own.state_dict()), dict(peer.state_dict()), rtol=0, atol=0)
    with torch.no_grad():
        for weight in own.parameters():
            weight.add_(1)
    peer.load_state_dict(own.state_dict())
    torch.testing.assert_close(dict(own.state_dict()), dict(peer.state_dict()), rtol=0, atol=0)
    own.reset_parameters()
    own.load_state_dict(peer.state_dict())
    torch.testing.assert_close(dict(own.state_dict()), dict(peer.state_dict()), rtol=0, atol=0)


def test_positional_arguments_are_torchs():
    for own, peer in (
        (rnn.RNN(3, 4, 2, "relu", False, True, 0.5, True), nn.RNN(3, 4, 2, "relu", False, True, 0.5, True)),
        (rnn.GRU(3, 4, 2, False, True, 0.5, True), nn.GRU(3, 4, 2, False, True, 0.5, True)),
        (rnn.LSTM(3, 4, 2, False, True, 0.5, True, 2), nn.LSTM(3, 4, 2, False, True, 0.5, True, 2)),
    ):
        assert list(own.state_dict()) == list(peer.state_dict())
        names = ("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
        for name in (*names, "proj_size"):
            assert getattr(own, name) == getattr(peer, name)


def test_printed_form_names_what_is_not_by_default():
    layer = rnn.GRU(3, (4, 5), batch_first=True, reset="before", zoneout=0.1)
    assert repr(layer) == "GRU(3, (4, 5), num_layers=2, batch_first=True, zoneout=0.1, reset='before')"


@pytest.mark.parametrize("kind", CLASSES)
def test_moves_copies_and_pickles(kind):
    layer = kind(INPUT, HIDDEN, 2).double()
    layer.flatten_parameters()
    input = torch.randn(LENGTH, BATCH, INPUT).double()
    again = pickle.loads(pickle.dumps(layer))
    assert torch.equal(again(input)[0], layer(input)[0])


@pytest.mark.parametrize("other", IMPLEMENTATIONS[1:])
def test_float32_of_all_implementations(other):
    for kind in CLASSES:
        torch.manual_seed(0)
        layers = [kind(INPUT, 32, 2, bidirectional=True, implementation=name) for name in ("readable", other)]
        layers[1].load_state_dict(layers[0].state_dict())
        input, state = torch.randn(20, 8, INPUT).requires_grad_(), layers[0].initial_state(8)
        state = tuple(part.requires_grad_() for part in state) if kind is rnn.LSTM else state.requires_grad_()
        found, wanted = (everything(layer, input, state) for layer in layers)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", CLASSES)
def test_autocast(kind, implementation):
    layer = kind(INPUT, HIDDEN, 2, implementation=implementation)
    input = torch.randn(LENGTH, BATCH, INPUT)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = layer(input, lengths=LENGTHS)
        half, _ = layer(input.bfloat16(), lengths=LENGTHS)
    output.float().sum().backward()
    wanted, _ = layer(input, lengths=LENGTHS)
    for given in (output, half):
        torch.testing.assert_close(given.float(), wanted, rtol=0.05, atol=0.05)
    assert all(weight.grad.isfinite().all() for weight in layer.parameters())


# A size per layer, and the state


def test_state_of_layers_of_one_size_is_torchs():
    for hidden_size in (4, [4, 4]):
        layer = rnn.LSTM(3, hidden_size, 2, bidirectional=True, proj_size=2)
        _, state = layer(torch.randn(LENGTH, BATCH, 3))
        assert isinstance(state, tuple)
        for given in (state, layer.initial_state(BATCH)):
            assert given.hidden.shape == (4, BATCH, 2)
            assert given.cell.shape == (4, BATCH, 4)


@pytest.mark.parametrize("proj_size", [0, 2])
def test_a_size_per_layer_is_stacked_single_layers(proj_size):
    sizes = (5, 3)
    layer = rnn.LSTM(INPUT, sizes, bidirectional=True, proj_size=proj_size).double()
    assert layer.num_layers == 2
    assert layer.output_size == 2 * (proj_size or 3)
    input, state = torch.randn(LENGTH, BATCH, INPUT).double(), layer.initial_state(BATCH)
    state = rnn.LSTMState(*(tuple(map(torch.randn_like, part)) for part in state))
    assert [part.shape for part in state.cell] == [(BATCH, size) for size in (5, 5, 3, 3)]
    output, end = layer(input, state)
    assert isinstance(end.hidden, tuple)
    below = input
    for index in range(2):
        single = nn.LSTM(below.shape[-1], sizes[index], bidirectional=True, proj_size=proj_size).double()
        weights = {name: value for name, value in layer.state_dict().items() if f"_l{index}" in name}
        single.load_state_dict({name.replace(f"_l{index}", "_l0"): value for name, value in weights.items()})
        own = slice(2 * index, 2 * index + 2)
        below, (hidden, cell) = single(below, tuple(torch.stack(part[own]) for part in state))
        torch.testing.assert_close(end.hidden[own], tuple(hidden))
        torch.testing.assert_close(end.cell[own], tuple(cell))
    torch.testing.assert_close(output, below)


def test_forget_bias_is_the_sum_and_all_else_is_torchs():
    own, peer = pair("lstm", INPUT, HIDDEN, 2, bidirectional=True)
    torch.manual_seed(0)
    own = rnn.LSTM(INPUT, HIDDEN, 2, bidirectional=True, forget_bias=1.5, dtype=torch.float64)
    for name, weight in own.named_parameters():
        wanted = peer.get_parameter(name).clone()
        if name.startswith("bias"):
            total = own.get_parameter(name.replace("ih", "hh")) + own.get_parameter(name.replace("hh", "ih"))
            assert total[HIDDEN : 2 * HIDDEN].eq(1.5).all()
            wanted[HIDDEN : 2 * HIDDEN] = weight[HIDDEN : 2 * HIDDEN]
        assert torch.equal(weight, wanted)


def test_layer_norm_starts_with_gains_of_one_and_all_else_as_torchs():
    own, peer = rnn.LSTM(INPUT, HIDDEN, 2, layer_norm=True), nn.LSTM(INPUT, HIDDEN, 2)
    for layer in (own, peer):
        torch.manual_seed(0)
        layer.reset_parameters()
    starts = {"gain": torch.ones_like, "bias_cell": torch.zeros_like}
    for name, weight in own.named_parameters():
        start = next((start for prefix, start in starts.items() if name.startswith(prefix)), None)
        assert torch.equal(weight, start(weight) if start else peer.get_parameter(name))
    assert sum(name.startswith(tuple(starts)) for name in own.state_dict()) == 8


# Connections


def singles(layer):
    """The layers of a GRU stack of size 4, each on its own."""
    found = []
    for index in range(layer.num_layers):
        weights = {name: value for name, value in layer.state_dict().items() if name.endswith(f"h_l{index}")}
        single = nn.GRU(weights[f"weight_ih_l{index}"].shape[1], 4)
        single.load_state_dict({name.replace(f"_l{index}", "_l0"): value for name, value in weights.items()})
        found.append(single)
    return found


def test_residual_connections():
    layer = rnn.GRU(4, 4, 3, connections="residual")
    input = torch.randn(LENGTH, BATCH, 4)
    first, second, third = singles(layer)
    wanted = first(input)[0]
    wanted = wanted + second(wanted)[0]
    wanted = wanted + third(wanted)[0]
    torch.testing.assert_close(layer(input)[0], wanted)


def test_dense_connections():
    layer = rnn.GRU(INPUT, 4, 3, connections="dense")
    input = torch.randn(LENGTH, BATCH, INPUT)
    first, second, third = singles(layer)
    one = first(input)[0]
    two = second(torch.cat((input, one), -1))[0]
    torch.testing.assert_close(layer(input)[0], third(torch.cat((input, one, two), -1))[0])


def test_highway_connections():
    layer = rnn.GRU(INPUT, 4, 2, connections="highway")
    input = torch.randn(LENGTH, BATCH, INPUT)
    first, second = singles(layer)
    one = first(input)[0]
    gate = torch.sigmoid(one @ layer.weight_highway_l1.T + layer.bias_highway_l1)
    torch.testing.assert_close(layer(input)[0], gate * second(one)[0] + (1 - gate) * one)
    assert layer.bias_highway_l1.eq(-1).all()


def loss_after_training(connections):
    """Eight layers learn to repeat the symbol before: mean cross-entropy of the last 10 of 50 steps. Chance: 1.386."""
    torch.manual_seed(1)
    layer, head = rnn.LSTM(4, 12, 8, connections=connections), nn.Linear(12, 4)
    optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], 0.03)
    losses = []
    for _ in range(50):
        symbols = torch.randint(4, (4, 32))
        scores = head(layer(F.one_hot(symbols, 4).float())[0])
        loss = F.cross_entropy(scores[1:].flatten(0, 1), symbols[:-1].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-10:]) / 10


@pytest.mark.parametrize("connections", ["residual", "dense", "highway"])
def test_eight_layers_train(connections):
    assert loss_after_training(connections) < 0.4


def test_eight_plain_layers_do_not():
    assert loss_after_training("plain") > 1.3


# Traces


@pytest.mark.parametrize("lengths", [None, [2, 0, 5]])
@pytest.mark.parametrize("kind", CLASSES)
def test_trace_is_what_was_computed(kind, lengths):
    layer = kind(INPUT, HIDDEN, 2, bidirectional=True).double()
    input = torch.randn(LENGTH, BATCH, INPUT).double()
    plain, _ = layer(input, lengths=lengths)
    output, state, trace = layer(input, lengths=lengths, trace=True)
    torch.testing.assert_close(output, plain)
    hidden = [trace.stacked("hidden", layer=1, direction=direction) for direction in (0, 1)]
    torch.testing.assert_close(torch.cat(hidden, -1), output)

    for index, direction in itertools.product((0, 1), repeat=2):
        names = trace.layers[index][direction]
        values = {name: trace.stacked(name, index, direction) for name in names}
        order = range(LENGTH) if direction == 0 else reversed(range(LENGTH))
        before = {name: torch.zeros(BATCH, HIDDEN).double() for name in ("hidden", "cell")}
        for step in order:
            now = {name: value[step] for name, value in values.items()}
            running = torch.tensor([lengths is None or step < lengths[row] for row in range(BATCH)])[:, None]
            if kind is rnn.LSTM:
                cell = now["forget"] * before["cell"] + now["input"] * now["candidate"]
                torch.testing.assert_close(now["cell"], torch.where(running, cell, 0.0))
                torch.testing.assert_close(now["hidden"], now["output"] * now["cell"].tanh())
            elif kind is rnn.GRU:
                mixed = now["update"] * before["hidden"] + (1 - now["update"]) * now["candidate"]
                torch.testing.assert_close(now["hidden"], torch.where(running, mixed, 0.0))
            before = {name: torch.where(running, now[name], value) for name, value in before.items() if name in now}
        ends = parts_of(state)
        torch.testing.assert_close(before["hidden"], ends[0][2 * index + direction])
        if kind is rnn.LSTM:
            torch.testing.assert_close(before["cell"], ends[1][2 * index + direction])
    assert (
        set(names)
        == {
            rnn.RNN: {"hidden"},
            rnn.LSTM: {"hidden", "cell", "forget", "input", "output", "candidate"},
            rnn.GRU: {"hidden", "reset", "update", "candidate"},
        }[kind]
    )


@pytest.mark.parametrize("kind", [rnn.RNN, rnn.GRU])
def test_trace_gives_the_gradient_of_every_hidden_state(kind):
    layer = kind(INPUT, HIDDEN).double()
    input = torch.randn(LENGTH, BATCH, INPUT).double()
    output, _, trace = layer(input, trace=True)
    found = torch.autograd.grad(output[-1].sin().sum(), trace.layers[0][0]["hidden"])
    for step in range(LENGTH - 1):
        hidden = output[step : step + 1].detach().requires_grad_()
        rest, _ = layer(input[step + 1 :], hidden)
        (wanted,) = torch.autograd.grad(rest[-1].sin().sum(), hidden)
        torch.testing.assert_close(found[step], wanted[0])


# Ways to differentiate and to run


@pytest.mark.parametrize("name", ["rnn sigmoid, 2 layers", "lstm layer norm, forget bias", "gru reset before", "gru"])
def test_second_derivatives(name):
    torch.manual_seed(0)
    layer = RECURRENT[name]().double()
    layer.implementation = "readable"
    names, weights = zip(*layer.named_parameters(), strict=True)
    input = torch.randn(2, 2, INPUT_SIZE).double().requires_grad_()

    def run(input, *weights):
        return functional_call(layer, dict(zip(names, weights, strict=True)), (input,))[0]

    assert gradgradcheck(run, (input, *weights), fast_mode=True)


@pytest.mark.parametrize("name", ["rnn", "lstm", "lstm both ways", "gru", "gru highway"])
def test_gradients_per_sample(name):
    layer = RECURRENT[name]()
    weights = dict(layer.named_parameters())
    batch = torch.randn(BATCH, LENGTH, INPUT_SIZE)
    with torch.no_grad():
        _, state = layer(batch[0])  # one for all samples

    def loss(weights, sample):
        return functional_call(layer, weights, (sample, state))[0].sin().sum()

    found = vmap(grad(loss), (None, 0))(weights, batch)
    for row, sample in enumerate(batch):
        wanted = torch.autograd.grad(loss(weights, sample), list(weights.values()))
        torch.testing.assert_close([value[row] for value in found.values()], list(wanted))


@pytest.mark.parametrize("name", ["rnn", "lstm", "lstm readable", "gru reset before"])
def test_compiles_in_one_graph(name):
    torch.compiler.reset()
    layer = RECURRENT[name]()
    input = torch.randn(3, BATCH, INPUT_SIZE)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(input), layer(input))


def test_layer_may_be_used_twice_in_one_graph():
    layer, peer = pair("lstm", HIDDEN, HIDDEN)
    input = torch.randn(LENGTH, BATCH, HIDDEN).double()
    for run in (layer, peer):
        run(run(input)[0].flip(0))[0].sum().backward()
    for weight, wanted in zip(layer.parameters(), peer.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, wanted.grad)


def chosen(layer, length=LENGTH, batch=BATCH, lengths=None, dtype=torch.float32, **asked_for):
    return rnn.implementation(layer, arrange(torch.zeros(length, batch, INPUT, dtype=dtype), lengths), **asked_for)


def test_choice_of_implementation():
    for kind in CLASSES:
        assert chosen(kind(INPUT, HIDDEN, implementation="readable")) == "readable"
        assert chosen(kind(INPUT, HIDDEN), trace=True) == "readable"
        for option in ("layer_norm", "zoneout", "recurrent_dropout"):
            assert chosen(kind(INPUT, HIDDEN, **{option: option == "layer_norm" or 0.1})) == "readable"
        with torch.autocast("cpu", torch.bfloat16):
            assert chosen(kind(INPUT, HIDDEN)) == "torch"
        assert chosen(kind(INPUT, HIDDEN), dtype=torch.bfloat16) == "torch"
    with torch.autocast("cpu", torch.bfloat16):
        assert chosen(rnn.LSTM(INPUT, HIDDEN), length=1) == "readable"
        assert chosen(rnn.GRU(INPUT, HIDDEN, reset="before")) == "readable"
        assert chosen(rnn.LSTM(INPUT, HIDDEN, proj_size=2)) == "readable"
    assert chosen(rnn.LSTM(INPUT, HIDDEN, implementation="torch"), length=1) == "torch"
    assert chosen(rnn.GRU(INPUT, HIDDEN, implementation="tensor"), length=1) == "tensor"


@needs_compiler
def test_choice_with_compiled_loops():
    assert chosen(rnn.RNN(INPUT, HIDDEN, nonlinearity="sigmoid")) == "compiled"
    assert chosen(rnn.GRU(INPUT, HIDDEN)) == "compiled"
    assert chosen(rnn.GRU(INPUT, HIDDEN), dtype=torch.float64) == "compiled"
    assert chosen(rnn.GRU(INPUT, HIDDEN, recurrent_dropout=0.1).eval()) == "compiled"
    assert chosen(rnn.LSTM(INPUT, HIDDEN)) == "torch"
    assert chosen(rnn.LSTM(INPUT, HIDDEN), lengths=[5, 4, 3]) == "compiled"
    assert chosen(rnn.LSTM(INPUT, HIDDEN), batch=1) == "compiled"
    assert chosen(rnn.LSTM(INPUT, HIDDEN), length=1) == "compiled"
    assert chosen(rnn.LSTM(INPUT, HIDDEN), batch=2) == "compiled"
    assert chosen(rnn.LSTM(INPUT, HIDDEN), length=2) == "compiled"
    assert chosen(rnn.LSTM(INPUT, 1024), batch=20) == "torch"


def test_choice_without_a_compiler(without_compiled):
    assert chosen(rnn.GRU(INPUT, HIDDEN, reset="before")) == "tensor"
    assert chosen(rnn.RNN(INPUT, HIDDEN, nonlinearity="sigmoid")) == "tensor"
    assert chosen(rnn.LSTM(INPUT, HIDDEN, proj_size=2)) == "tensor"
    assert chosen(rnn.LSTM(INPUT, HIDDEN), lengths=[5, 4, 3]) == "tensor"
    assert chosen(rnn.LSTM(INPUT, HIDDEN), length=1) == "readable"
    for kind in CLASSES:
        assert chosen(kind(INPUT, HIDDEN)) == "torch"
    with pytest.raises(
        ValueError, match=r"implementation='compiled' has no compiled loops here \(RECURRA_NATIVE is 0\)"
    ):
        rnn.GRU(INPUT, HIDDEN, implementation="compiled")


@pytest.mark.parametrize("kind", CLASSES)
def test_sequences_of_no_steps(kind):
    layer = kind(INPUT, HIDDEN, 2, bidirectional=True)
    state = layer.initial_state(BATCH)
    state = tuple(map(torch.randn_like, state)) if kind is rnn.LSTM else torch.randn_like(state)
    for length, lengths in ((0, None), (LENGTH, [0, 0, 0])):
        output, end = layer(torch.randn(length, BATCH, INPUT), state, lengths=lengths)
        assert output.shape == (length, BATCH, 2 * HIDDEN)
        assert not output.any()
        torch.testing.assert_close(parts_of(end), parts_of(state))


def test_batch_of_no_sequences():
    output, state = rnn.GRU(INPUT, HIDDEN)(torch.randn(LENGTH, 0, INPUT))
    assert output.shape == (LENGTH, 0, HIDDEN)
    assert state.shape == (1, 0, HIDDEN)


# Mistakes


def forward(*arguments, kind=rnn.LSTM, **options):
    return lambda: kind(3, 4, 2)(*arguments, **options)


X = torch.zeros(5, 2, 3)
PACKED = pack_padded_sequence(X, [5, 4])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rnn.LSTM(0, 4), "input_size must be greater than zero, got 0"),
        (lambda: rnn.LSTM(3, 0), "hidden_size must be greater than zero, got 0"),
        (lambda: rnn.LSTM(3, (4, -1)), "hidden_size must be greater than zero, got -1"),
        (lambda: rnn.LSTM(3, 4, 0), "num_layers must be greater than zero, got 0"),
        (lambda: rnn.LSTM(3, (4, 4), 3), "sizes for 2 layers, but num_layers is 3"),
        (lambda: rnn.LSTM(3, ()), "sizes for 0 layers, but num_layers is 1"),
        (lambda: rnn.LSTM(3, 4, proj_size=4), "proj_size has to be smaller than hidden_size 4, or 0 for none; got 4"),
        (lambda: rnn.LSTM(3, 4, 2, dropout=1.5), "dropout should be a number in range"),
        (lambda: rnn.LSTM(3, 4, zoneout=(0.1, 2)), "zoneout should be a number in range"),
        (lambda: rnn.GRU(3, 4, zoneout=(0.1, 0.1)), "zoneout: expected a number, or one each for hidden"),
        (lambda: rnn.GRU(3, 4, weight_dropout=-1), "weight_dropout should be a number in range"),
        (lambda: rnn.GRU(3, 4, connections="skip"), "connections should be one of 'plain', 'residual', 'dense'"),
        (lambda: rnn.GRU(3, (4, 5), connections="residual"), r"all layers need one size, got hidden_size \(4, 5\)"),
        (lambda: rnn.GRU(3, 4, reset="maybe"), "reset should be one of"),
        (lambda: rnn.RNN(3, 4, nonlinearity="gelu"), "nonlinearity should be one of"),
        (lambda: rnn.GRU(3, 4, implementation="fast"), "implementation should be one of"),
        (lambda: rnn.GRU(3, 4, layer_norm=True, implementation="torch"), "implementation='torch' has no layer_norm"),
        (lambda: rnn.LSTM(3, 4, bias=False, forget_bias=1), "forget_bias=1 needs bias=True, got bias=False"),
        (forward(torch.zeros(5, 2, 7)), "LSTM: expected input with input_size 3, got 7 features"),
        (forward(torch.zeros(5)), "expected input to be 2D or 3D, got 1D"),
        (forward(X.double()), "expected torch.float32 input, as the weights are, got torch.float64"),
        (forward(X, torch.zeros(2, 2, 4)), "expected a state of 2 parts"),
        (forward(X, (torch.zeros(2, 2, 4), torch.zeros(2, 1, 4))), r"cell state of shape \(2, 2, 4\), got \(2, 1, 4\)"),
        (forward(X, torch.zeros(2, 2, 5), kind=rnn.GRU), r"hidden state of shape \(2, 2, 4\), got \(2, 2, 5\)"),
        (forward(X[:, 0], torch.zeros(2, 1, 4), kind=rnn.GRU), r"state of shape \(2, 4\), got \(2, 1, 4\)"),
        (lambda: rnn.GRU(3, (4, 5))(X, torch.zeros(2, 2, 4)), r"shape \[\(2, 4\), \(2, 5\)\], got \(2, 2, 4\)"),
        (forward(X, lengths=[5]), r"lengths: expected 2 integers, one per sequence; got torch.int64 \(1,\)"),
        (forward(X, lengths=[5.0, 1.0]), "lengths: expected 2 integers, one per sequence; got torch.float32"),
        (forward(X, lengths=[5, 6]), "lengths: expected 0 to 5, the length of the input; got 5 to 6"),
        (forward(X, lengths=[-1, 5]), "lengths: expected 0 to 5, the length of the input; got -1 to 5"),
        (forward(PACKED, lengths=[5, 4]), "lengths: expected a padded batch"),
        (forward(X[:, 0], lengths=[5]), "lengths: expected a padded batch"),
    ],
)  # fmt: skip
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("arguments", [{"hidden_size": 4.0}, {"bias": 1}, {"batch_first": 0}, {"input_size": "3"}])
def test_mistaken_types_are_named(arguments):
    with pytest.raises(TypeError, match=f"{next(iter(arguments))} should be of type"):
        rnn.LSTM(**{"input_size": 3, "hidden_size": 4} | arguments)


def test_dropout_between_one_layer_warns_as_torch_does():
    with pytest.warns(UserWarning, match="non-zero dropout expects num_layers greater than 1"):
        rnn.LSTM(3, 4, dropout=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rnn.LSTM(3, 4, 2, dropout=0.5)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("lengths", [None, [5, 3, 0, 2]])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(kind, lengths, use_reentrant):
    layer, gradients = kind(INPUT, HIDDEN), []
    input = torch.randn(5, 4, INPUT, requires_grad=True)
    for run in (lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=use_reentrant)):
        run(lambda x: layer(x, lengths=lengths)[0], input).sin().sum().backward()
        gradients.append([part.grad for part in (input, *layer.parameters())])
        input.grad = None
        layer.zero_grad()
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_a_state_of_another_type_is_converted(kind, dtype):
    layer, input = kind(INPUT, HIDDEN, 2), torch.randn(5, 3, INPUT)
    state = torch.ones(2, 3, HIDDEN)
    for lengths in (None, [5, 2, 1]):
        wanted, _ = layer(input, (state, state) if kind is rnn.LSTM else state, lengths=lengths)
        state_like = state.to(dtype)
        found, _ = layer(input, (state_like, state_like) if kind is rnn.LSTM else state_like, lengths=lengths)
        torch.testing.assert_close(found, wanted)


def test_only_an_lstm_has_a_projection():
    with pytest.raises(ValueError, match="proj_size: only an LSTM has a projection; leave it out of GRU"):
        rnn.GRU(3, 4, proj_size=2)


def test_no_lengths_for_no_sequences():
    assert rnn.GRU(INPUT, HIDDEN)(torch.randn(5, 0, INPUT), lengths=[])[0].shape == (5, 0, HIDDEN)


def test_implementation_takes_what_the_layer_takes():
    layer, input = rnn.LSTM(INPUT, HIDDEN, batch_first=True), torch.randn(3, 5, INPUT)
    packed = pack_padded_sequence(input, [5, 3, 1], batch_first=True)
    assert rnn.implementation(layer, input) == "torch"
    assert rnn.implementation(layer, packed) == rnn.implementation(layer, input, lengths=[5, 3, 1])
    assert rnn.implementation(layer, packed) in ("compiled", "tensor")


def test_an_lstm_under_torch_compile_is_read_step_by_step():
    layer, input = rnn.LSTM(INPUT, HIDDEN), torch.randn(4, 3, INPUT)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(input)[0], layer(input)[0])
