"""One step at a time through a whole stack: the same as its layers, whatever is done to them in between."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.utils.prune
from torch.autograd import forward_ad

from recurra import nn as rnn
from recurra.nn import native
from recurra.nn.int8 import round_to_int8_

INPUT, HIDDEN, LAYERS = 7, 20, 3
STACKS = {
    "rnn tanh": lambda **o: rnn.RNN(INPUT, HIDDEN, LAYERS, **o),
    "rnn relu": lambda **o: rnn.RNN(INPUT, HIDDEN, LAYERS, "relu", **o),
    "rnn sigmoid": lambda **o: rnn.RNN(INPUT, HIDDEN, LAYERS, "sigmoid", **o),
    "lstm": lambda **o: rnn.LSTM(INPUT, HIDDEN, LAYERS, **o),
    "lstm without bias": lambda **o: rnn.LSTM(INPUT, HIDDEN, LAYERS, bias=False, **o),
    "lstm projected": lambda **o: rnn.LSTM(INPUT, HIDDEN, LAYERS, proj_size=5, **o),
    "gru": lambda **o: rnn.GRU(INPUT, HIDDEN, LAYERS, **o),
    "gru reset before": lambda **o: rnn.GRU(INPUT, HIDDEN, LAYERS, reset="before", **o),
    "dropout": lambda **o: rnn.LSTM(INPUT, HIDDEN, LAYERS, weight_dropout=0.5, input_dropout=0.5, **o),
    "ragged": lambda **o: rnn.LSTM(INPUT, [HIDDEN, 9], **o),
    "both directions": lambda **o: rnn.GRU(INPUT, HIDDEN, LAYERS, bidirectional=True, **o),
    "residual": lambda **o: rnn.GRU(INPUT, HIDDEN, LAYERS, connections="residual", **o),
    "zoneout": lambda **o: rnn.LSTM(INPUT, HIDDEN, LAYERS, zoneout=0.3, **o),
}
each_stack = pytest.mark.parametrize("make", STACKS.values(), ids=STACKS)
pytestmark = pytest.mark.skipif(not native.available(), reason="compiles nothing")


def flat(state):
    return [state] if isinstance(state, torch.Tensor) else [tensor for part in state for tensor in flat(part)]


def read(stack, inputs, batch_first=False):
    """Outputs of some steps, and the state after them."""
    state, outputs = stack.initial_state(inputs.shape[1]), []
    for input in inputs:
        output, state = stack(input.unsqueeze(1 if batch_first else 0), state)
        outputs.append(output.squeeze(1 if batch_first else 0))
    return [torch.stack(outputs), *flat(state)]


def close(found, wanted, tolerance=1e-5):
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@each_stack
@pytest.mark.parametrize("batch", [1, 3, 8, 9])
@pytest.mark.parametrize("batch_first", [False, True])
def test_steps_are_those_of_the_readable_layers(make, batch, batch_first):
    stack, readable = (
        make(batch_first=batch_first).eval(),
        make(implementation="readable", batch_first=batch_first).eval(),
    )
    readable.load_state_dict(stack.state_dict())
    inputs = torch.randn(4, batch, INPUT)
    with torch.no_grad():
        wanted = read(readable, inputs, batch_first)
        close(read(stack, inputs, batch_first), wanted)
    with torch.inference_mode():
        close(read(stack, inputs, batch_first), wanted)


def test_a_step_is_one_call(monkeypatch):
    calls, real = [], native.take_steps
    monkeypatch.setattr(native, "take_steps", lambda steps: (calls.append(len(steps)), real(steps)))
    stack, inputs = rnn.LSTM(INPUT, HIDDEN, LAYERS).eval(), torch.randn(4, 2, INPUT)
    with torch.no_grad():
        read(stack, inputs)
        assert calls == [LAYERS] * 4
        with torch.autocast("cpu", torch.bfloat16):
            read(stack, inputs)
        stack.train()
        stack.weight_dropout = 0.5
        read(stack, inputs)
    assert len(calls) == 4 + LAYERS * 4  # layer by layer where weights are dropped
    read(stack, inputs)
    assert len(calls) == 4 + LAYERS * 4


def changes():
    def load(stack):
        stack.load_state_dict(rnn.LSTM(INPUT, HIDDEN, LAYERS).state_dict())

    def assign(stack):
        stack.load_state_dict(rnn.LSTM(INPUT, HIDDEN, LAYERS).state_dict(), assign=True)

    def write(stack):
        with torch.no_grad():
            stack.weight_hh_l1.mul_(0.5)

    def move(stack):
        stack.double().float()

    def parametrize(stack):
        torch.nn.utils.parametrize.register_parametrization(stack, "weight_hh_l0", torch.nn.Tanh())

    def prune_twice(stack):
        torch.nn.utils.prune.l1_unstructured(stack, "weight_hh_l0", 0.5)
        read(stack, torch.zeros(1, 1, INPUT))
        torch.nn.utils.prune.l1_unstructured(stack, "weight_hh_l0", 0.5)

    def turn(stack):
        stack.load_state_dict({k: w.t().contiguous().t() for k, w in stack.state_dict().items()}, assign=True)

    def take_the_readable(stack):
        stack.implementation = "readable"

    def round_all(stack):
        for weight in stack.parameters():
            if weight.dim() == 2:
                round_to_int8_(weight)

    return (load, assign, write, move, parametrize, prune_twice, turn, take_the_readable, round_all)


@pytest.mark.parametrize("change", changes(), ids=lambda change: change.__name__)
def test_what_is_done_to_the_weights_is_heeded(change):
    stack, inputs = rnn.LSTM(INPUT, HIDDEN, LAYERS).eval(), torch.randn(3, 2, INPUT)
    with torch.no_grad():
        read(stack, inputs)
        change(stack)
        readable = rnn.LSTM(INPUT, HIDDEN, LAYERS, implementation="readable").eval()
        weights = {name: getattr(stack, name).detach() for name in readable.state_dict()}
        readable.load_state_dict(weights)
        close(read(stack, inputs), read(readable, inputs))


def test_a_stack_that_has_stepped_can_be_copied_and_pickled():
    stack, inputs = rnn.GRU(INPUT, HIDDEN, LAYERS).eval(), torch.randn(3, 1, INPUT)
    with torch.no_grad():
        wanted = read(stack, inputs)
        for other in (copy.deepcopy(stack), pickle.loads(pickle.dumps(stack))):
            close(read(other, inputs), wanted, 0)
            other.weight_hh_l0.zero_()
            close(read(stack, inputs), wanted, 0)


def test_threads_step_side_by_side():
    stack, inputs = rnn.LSTM(64, 64, 2).eval(), [torch.randn(50, 1 + i % 3, 64) for i in range(8)]

    def run(own):
        with torch.no_grad():
            return read(stack, own)

    wanted = [run(own) for own in inputs]
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(run, inputs), wanted, strict=True):
            close(found, expected, 1e-6)


def test_the_state_is_the_callers():
    stack = rnn.LSTM(INPUT, HIDDEN, LAYERS).eval()
    with torch.no_grad():
        before = stack.initial_state(2)
        output, state = stack(torch.randn(1, 2, INPUT), before)
        assert not any(part.any() for part in before)
        kept = [part.clone() for part in state]
        output.zero_()
        stack(torch.randn(1, 2, INPUT), state)
        close(state, kept, 0)
        turned = [part.transpose(0, 2).contiguous().transpose(0, 2) for part in state]  # not in order
        close(flat(stack(torch.ones(1, 2, INPUT), tuple(turned))), flat(stack(torch.ones(1, 2, INPUT), state)), 0)


def test_a_state_of_another_shape_is_refused():
    stack = rnn.LSTM(INPUT, HIDDEN, LAYERS).eval()
    with torch.no_grad(), pytest.raises(ValueError, match="expected hidden state of shape"):
        stack(torch.randn(1, 2, INPUT), stack.initial_state(3))
    with torch.no_grad(), pytest.raises(ValueError, match=f"expected input with input_size {INPUT}"):
        stack(torch.randn(1, 2, INPUT + 1), stack.initial_state(2))
    with torch.no_grad(), pytest.raises(ValueError, match="expected a state of 2 parts"):
        stack(torch.randn(1, 2, INPUT), (torch.zeros(LAYERS, 2, HIDDEN),))


def test_a_state_of_another_type_is_converted_or_refused():
    stack, input = rnn.GRU(INPUT, HIDDEN, LAYERS).eval(), torch.randn(1, 2, INPUT)
    state = torch.randn(LAYERS, 2, HIDDEN)
    with torch.no_grad():
        wanted = flat(stack(input, state))
        close(flat(stack(input, state.double())), wanted)
        close(flat(stack(input, state.bfloat16())), wanted, 0.05)
        with pytest.raises(ValueError, match="expected cell state of shape"):
            rnn.LSTM(INPUT, HIDDEN, LAYERS).eval()(input, (state, None))


def test_whatever_torch_makes_by_default_is_not_what_a_step_needs():
    stack, input = rnn.GRU(INPUT, HIDDEN, LAYERS).eval(), torch.randn(1, 2, INPUT)
    state = stack.initial_state(2)
    with torch.no_grad():
        wanted = flat(stack(input, state))
        for set_default, value, back in (
            (torch.set_default_dtype, torch.bfloat16, torch.float32),
            (torch.set_default_device, "meta", "cpu"),
        ):
            set_default(value)
            try:
                found = flat(stack(input.repeat(1, 3, 1), state.repeat(1, 3, 1)))
            finally:
                set_default(back)
            close([part[:, :2] for part in found], wanted)


def test_a_stack_made_in_inference_mode_steps():
    with torch.inference_mode():
        stack = rnn.LSTM(INPUT, HIDDEN, LAYERS).eval()
        readable = rnn.LSTM(INPUT, HIDDEN, LAYERS, implementation="readable").eval()
        readable.load_state_dict(stack.state_dict())
        inputs = torch.randn(3, 2, INPUT)
        close(read(stack, inputs), read(readable, inputs))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own use of it
def test_forward_mode_differentiation_goes_through_the_step():
    stack, input = rnn.RNN(INPUT, HIDDEN).eval(), torch.randn(1, 2, INPUT)
    with torch.no_grad(), forward_ad.dual_level():
        output, _ = stack(forward_ad.make_dual(input, torch.ones_like(input)), stack.initial_state(2))
        assert forward_ad.unpack_dual(output).tangent is not None


def test_compiles_in_one_graph():
    stack, input = rnn.GRU(INPUT, HIDDEN).eval(), torch.randn(1, 2, INPUT)
    state = stack.initial_state(2)
    with torch.no_grad():
        close(flat(torch.compile(stack, backend="eager", fullgraph=True)(input, state)), flat(stack(input, state)))


def test_nothing_of_another_device_is_touched():
    stack, input = rnn.LSTM(INPUT, HIDDEN, LAYERS).eval(), torch.randn(1, 2, INPUT)
    state = stack.initial_state(2)
    with torch.no_grad():
        with pytest.raises(ValueError, match="expected hidden state on cpu, as the input is, got meta"):
            stack(input, tuple(part.to("meta") for part in state))
        with pytest.raises(ValueError, match="expected input on cpu, where the weights are, got meta"):
            stack(input.to("meta"), state)
        with pytest.raises(ValueError, match="expected input on meta, where the weights are, got cpu"):
            stack.to("meta")(input, state)
