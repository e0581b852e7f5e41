"""Metamorphic checks that every recurrent layer of the zoo must pass, whatever it computes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.autograd import gradcheck
from torch.func import functional_call

from zoo import INPUT_SIZE, ONE_WAY, RECURRENT

LENGTH, BATCH = 6, 4
LENGTHS = [3, 1, 6, 0]  # sorting them is not its own inverse


def built(build, seed=0):
    torch.manual_seed(seed)
    return build().double().eval()


def leaves(state):
    """The tensors of a state: of a stack of layers of one size, one tensor a part; else one a cell."""
    return [state] if isinstance(state, torch.Tensor) else [leaf for part in state for leaf in leaves(part)]


def mapped(state, function):
    """The same state with a function applied to every tensor."""
    if isinstance(state, torch.Tensor):
        return function(state)
    parts = [mapped(part, function) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def random_state(layer, batch=BATCH):
    return mapped(layer.initial_state(batch), torch.randn_like)


def assert_same(given, wanted):
    torch.testing.assert_close(leaves(given), leaves(wanted), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ONE_WAY)
@pytest.mark.parametrize("cut", [0, 1, 3])
def test_reading_in_two_parts_is_reading_at_once(name, cut):
    layer = built(ONE_WAY[name])
    input, state = torch.randn(LENGTH, BATCH, INPUT_SIZE).double(), random_state(layer)
    whole, end = layer(input, state)
    first, between = layer(input[:cut], state)
    second, end_of_parts = layer(input[cut:], between)
    assert_same(torch.cat((first, second)), whole)
    assert_same(end_of_parts, end)


@pytest.mark.parametrize("name", ONE_WAY)
def test_one_step_at_a_time_is_reading_at_once(name):
    layer = built(ONE_WAY[name])
    input = torch.randn(LENGTH, BATCH, INPUT_SIZE).double()
    whole, end = layer(input)
    state, outputs = layer.initial_state(BATCH), []
    for step in input:
        output, state = layer(step[None], state)
        outputs.append(output)
    assert_same(torch.cat(outputs), whole)
    assert_same(state, end)


@pytest.mark.parametrize("name", RECURRENT)
def test_a_batch_is_its_rows_one_by_one(name):
    layer = built(RECURRENT[name])
    input, state = torch.randn(LENGTH, BATCH, INPUT_SIZE).double(), random_state(layer)
    output, end = layer(input, state)
    for row in range(BATCH):
        alone, end_alone = layer(input[:, row], mapped(state, lambda part, row=row: part[..., row, :]))
        assert_same(alone, output[:, row])
        assert_same(end_alone, mapped(end, lambda part, row=row: part[..., row, :]))


@pytest.mark.parametrize("name", RECURRENT)
def test_lengths_are_as_if_each_sequence_were_cut_to_its_own(name):
    layer = built(RECURRENT[name])
    input, state = torch.randn(LENGTH, BATCH, INPUT_SIZE).double(), random_state(layer)
    for row, length in enumerate(LENGTHS):
        input[length:, row] = torch.nan
    output, end = layer(input, state, lengths=LENGTHS)
    for row, length in enumerate(LENGTHS):
        alone, end_alone = layer(input[:length, row], mapped(state, lambda part, row=row: part[..., row, :]))
        assert_same(output[:length, row], alone)
        assert not output[length:, row].any()
        assert_same(mapped(end, lambda part, row=row: part[..., row, :]), end_alone)
        if length == 0:
            assert_same(end_alone, mapped(state, lambda part, row=row: part[..., row, :]))


@pytest.mark.parametrize("name", RECURRENT)
def test_padding_reaches_no_gradient(name):
    layer = built(RECURRENT[name])
    found = []
    for padding in (0.0, torch.nan):
        torch.manual_seed(1)
        input = torch.randn(LENGTH, BATCH, INPUT_SIZE).double()
        for row, length in enumerate(LENGTHS):
            input[length:, row] = padding
        input.requires_grad_()
        output, end = layer(input, lengths=LENGTHS)
        loss = output.pow(2).sum() + sum(part.sin().sum() for part in leaves(end))
        found.append(torch.autograd.grad(loss, [input, *layer.parameters()]))
    assert_same(found[1], found[0])
    for row, length in enumerate(LENGTHS):
        assert not found[1][0][length:, row].any()


@pytest.mark.parametrize("name", RECURRENT)
def test_saved_and_loaded_it_is_the_same(name):
    layer, other = built(RECURRENT[name], seed=0), built(RECURRENT[name], seed=1)
    input = torch.randn(LENGTH, BATCH, INPUT_SIZE).double()
    output, _ = layer(input)
    assert not torch.equal(other(input)[0], output)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(input)[0], output)
    assert torch.equal(copy.deepcopy(layer)(input)[0], output)


@pytest.mark.parametrize("name", RECURRENT)
def test_outside_training_nothing_is_left_to_chance(name):
    layer = built(RECURRENT[name])
    input = torch.randn(LENGTH, BATCH, INPUT_SIZE).double()
    before = torch.get_rng_state()
    first, second = layer(input)[0], layer(input)[0]
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", RECURRENT)
def test_gradients_are_those_of_finite_differences(name):
    layer = built(RECURRENT[name])
    input, state = torch.randn(3, 2, INPUT_SIZE).double().requires_grad_(), leaves(random_state(layer, 2))
    names, weights = zip(*layer.named_parameters(), strict=True)
    form = layer.initial_state(2)

    def run(input, *values):
        parts = iter(values[: len(state)])
        begin = mapped(form, lambda _: next(parts))
        named = dict(zip(names, values[len(state) :], strict=True))
        output, end = functional_call(layer, named, (input, begin), {"lengths": [3, 2]})
        return output, *leaves(end)

    assert gradcheck(run, (input, *(part.requires_grad_() for part in state), *weights), fast_mode=True)
