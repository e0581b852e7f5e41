"""The fast kernels, held to the readable path: every output and every gradient, whatever the shape."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from recurra import nn as rnn
from recurra.nn import native
from recurra.nn.cells import HiddenState, LSTMState, Weights
from recurra.nn.kernels import GATES, MODES, _binding, kernel_layer
from recurra.nn.unrolled import readable_layer

COMPILED = [
    False,
    pytest.param(True, marks=pytest.mark.skipif(not native.available(), reason=f"not compiled: {native.why_not()}")),
]
EACH_LOOP = pytest.mark.parametrize("compiled", COMPILED, ids=["tensor", "compiled"])
EACH_MODE = pytest.mark.parametrize("mode", MODES)
SHAPES = {  # L, N, H_in, H_cell: around the widths of vectors, tiles and groups of rows
    "small": (5, 3, 3, 4),
    "uneven": (7, 9, 17, 41),
    "more rows than a group": (4, 101, 5, 20),
    "deeper than a panel": (3, 4, 64, 300),
    "one step": (1, 6, 20, 33),
    "one sequence": (6, 1, 20, 33),
}


def parameters(mode, shape, directions, proj_size=0, bias=True, dtype=torch.float64):
    """Data, weights and states to begin with, all to be differentiated."""
    torch.manual_seed(0)
    steps, batch, inputs, size = shape
    rows, width = GATES.get(mode, 1) * size, proj_size or size

    def drawn(*shape):
        return (torch.randn(shape, dtype=dtype) / shape[-1] ** 0.5).requires_grad_()

    weights = [
        Weights(
            drawn(rows, inputs),
            drawn(rows, width),
            drawn(rows) if bias else None,
            drawn(rows) if bias else None,
            drawn(proj_size, size) if proj_size else None,
        )
        for _ in range(directions)
    ]
    kind = LSTMState if mode == "LSTM" else HiddenState
    states = [kind(*(drawn(batch, part) for part in (width, size)[: len(kind._fields)])) for _ in range(directions)]
    return torch.randn(steps, batch, inputs, dtype=dtype), weights, states


def everything(run, data, weights, states):
    """Outputs, final states, and all gradients of a loss of both."""
    done = run()
    results = [done.output, *(part for state in done.states for part in state)]
    loss = sum(
        (part * torch.linspace(-1, 1, part.numel(), dtype=part.dtype).view_as(part)).sin().sum() for part in results
    )
    leaves = [data, *(part for group in (*states, *weights) for part in group if part is not None)]
    return [*results, *torch.autograd.grad(loss, leaves)]


def packed(data, lengths):
    """Rows of sequences of these lengths, longest first, step after step; and how many there are of each step."""
    batch_sizes = torch.tensor([sum(length > step for length in lengths) for step in range(max(lengths))])
    rows = [data[step, :size] for step, size in enumerate(batch_sizes)]
    return torch.cat(rows).detach().requires_grad_(), batch_sizes


def check(mode, compiled, shape, directions, lengths=None, proj_size=0, bias=True, dtype=torch.float64):
    data, weights, states = parameters(mode, shape, directions, proj_size, bias, dtype)
    batch_sizes = None
    if lengths is not None:
        data, batch_sizes = packed(data, lengths)
    data.requires_grad_()
    given = (data, batch_sizes, states, weights)
    wanted = everything(lambda: readable_layer(_binding(mode), *given), data, weights, states)
    found = everything(lambda: kernel_layer(mode, *given, compiled=compiled), data, weights, states)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    for one, other in zip(found, wanted, strict=True):
        scale = max(1.0, float(other.detach().abs().max())) if other.numel() else 1.0
        torch.testing.assert_close(one / scale, other / scale, rtol=tolerance, atol=tolerance)


@EACH_LOOP
@EACH_MODE
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_padded(mode, compiled, shape, dtype):
    for directions, bias in itertools.product((1, 2), (True, False)):
        check(mode, compiled, shape, directions, bias=bias, dtype=dtype)


@EACH_LOOP
@EACH_MODE
@pytest.mark.parametrize(
    "lengths",
    # The last: threads share the first steps by sequence, the others by unit.
    [[7, 7, 5, 2, 1], [3, 3, 0, 0], [4, 1], [6], [9, 9, *[6] * 20, 5, 4, 4, 1]],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_packed(mode, compiled, lengths, dtype):
    for directions in (1, 2):
        check(mode, compiled, (max(lengths), len(lengths), 9, 35), directions, lengths, dtype=dtype)


@EACH_LOOP
@pytest.mark.parametrize("lengths", [None, [5, 3, 0]])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_projection(compiled, lengths, dtype):
    for proj_size, bias in itertools.product((1, 18, 33), (True, False)):
        check("LSTM", compiled, (5, 3, 7, 40), 2, lengths, proj_size, bias, dtype)


@EACH_LOOP
@EACH_MODE
def test_first_and_second_derivatives_are_those_of_finite_differences(mode, compiled):
    data, weights, states = parameters(mode, (3, 2, 2, 3), 1)
    own, (state,) = weights[0], states
    count = len(state)
    inputs = (data.requires_grad_(), *state, *own[:4])

    def run(data, *rest):
        done = kernel_layer(mode, data, None, [type(state)(*rest[:count])], [Weights(*rest[count:])], compiled=compiled)
        return done.output, *done.states[0]

    assert gradcheck(run, inputs, fast_mode=True)
    assert gradgradcheck(run, inputs, fast_mode=True)


@EACH_LOOP
@EACH_MODE
def test_backward_may_run_twice(mode, compiled):
    data, weights, states = parameters(mode, (4, 3, 5, 6), 1)
    loss = kernel_layer(mode, data, None, states, weights, compiled=compiled).output.sin().sum()
    first = torch.autograd.grad(loss, weights[0][:4], retain_graph=True)
    second = torch.autograd.grad(loss, weights[0][:4])
    assert all(map(torch.equal, first, second))


@EACH_LOOP
@EACH_MODE
def test_data_that_does_not_lie_in_order(mode, compiled):
    data, weights, states = parameters(mode, (5, 3, 4, 20), 2)
    turned = [Weights(*(w if w is None else w.t().contiguous().t() for w in own)) for own in weights]
    strided = [type(state)(*(part.t().contiguous().t() for part in state)) for state in states]
    wanted = kernel_layer(mode, data, None, states, weights, compiled=compiled)
    found = kernel_layer(
        mode, data.transpose(0, 1).contiguous().transpose(0, 1), None, strided, turned, compiled=compiled
    )
    torch.testing.assert_close(found.output, wanted.output)


@EACH_LOOP
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "RNN_RELU"])  # there torch's own relu decides
def test_not_a_number_is_passed_on(mode, compiled):
    data, weights, states = parameters(mode, (3, 2, 4, 20), 1)
    data[1, 0, 0] = torch.nan
    output = kernel_layer(mode, data, None, states, weights, compiled=compiled).output
    assert output[0].isfinite().all()
    assert output[:, 1].isfinite().all()
    assert output[1:, 0].isnan().all()


@EACH_LOOP
@EACH_MODE
@pytest.mark.parametrize("scale", [1e2, 1e4, 1e38])
def test_gates_that_are_all_open_or_shut(mode, compiled, scale):
    data, weights, states = parameters(mode, (3, 2, 4, 20), 1, dtype=torch.float32)
    if mode == "RNN_RELU":
        scale = min(scale, 1e4)
    given = (data * scale, None, states, weights)
    wanted = readable_layer(_binding(mode), *given).output
    found = kernel_layer(mode, *given, compiled=compiled).output
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not native.available(), reason="compiles nothing")
@pytest.mark.parametrize(("mode", "proj_size"), [*((mode, 0) for mode in MODES), ("LSTM", 5)])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_one_step_without_gradients(mode, batch, proj_size):
    for bias, sizes in itertools.product((True, False), ((7, 20), (40, 33), (3, 4))):
        data, weights, states = parameters(mode, (1, batch, *sizes), 2, min(proj_size, 3), bias, torch.float32)
        wanted = readable_layer(_binding(mode), data, None, states, weights)
        with torch.no_grad():
            found = kernel_layer(mode, data, None, states, weights, compiled=True)
        torch.testing.assert_close(found.output, wanted.output, rtol=1e-5, atol=1e-5)
        for one, other in zip(found.states, wanted.states, strict=True):
            torch.testing.assert_close(list(one), list(other), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not native.available(), reason="compiles nothing")
@pytest.mark.parametrize(("mode", "proj_size"), [*((mode, 0) for mode in MODES), ("LSTM", 33)])
@pytest.mark.parametrize("lengths", [[6, 6, 5, 3, 1], [6] * 20 + [5] * 20 + [3, 2, 1]], ids=["few", "many"])
def test_no_result_depends_on_the_number_of_threads(mode, proj_size, lengths):
    data, weights, states = parameters(mode, (6, len(lengths), 8, 70), 2, proj_size)
    data, batch_sizes = packed(data, lengths)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(
                everything(
                    lambda: kernel_layer(mode, data, batch_sizes, states, weights, compiled=True), data, weights, states
                )
            )
    finally:
        torch.set_num_threads(before)
    for found in results[1:]:
        for place, (one, other) in enumerate(zip(found, results[0], strict=True)):
            if place == 0:
                assert torch.equal(one, other)
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@EACH_LOOP
@EACH_MODE
def test_small_numbers_keep_their_digits(mode, compiled):
    data, weights, states = parameters(mode, (3, 2, 4, 20), 1, bias=False, dtype=torch.float32)
    zeros = [type(state)(*(torch.zeros_like(part) for part in state)) for state in states]
    given = (data * 1e-6, None, zeros, weights)
    wanted = readable_layer(_binding(mode), *given).output
    found = kernel_layer(mode, *given, compiled=compiled).output
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=0)
    nothing = kernel_layer(mode, data * 0, None, zeros, weights, compiled=compiled).output
    assert bool(nothing.any()) == (mode == "RNN_SIGMOID")


@EACH_LOOP
def test_new_weights_are_heeded(compiled):
    name = "compiled" if compiled else "tensor"
    first, second = (rnn.LSTM(3, 20, 2, implementation=name) for _ in range(2))
    input = torch.randn(4, 2, 3)
    for batch in (input, input[:1, :1]):
        with torch.no_grad():
            first(batch)
            first.load_state_dict(second.state_dict())
            assert torch.equal(first(batch)[0], second(batch)[0])
            first.weight_hh_l0.mul_(2)
            assert not torch.equal(first(batch.repeat(3, 1, 1))[0], second(batch.repeat(3, 1, 1))[0])
