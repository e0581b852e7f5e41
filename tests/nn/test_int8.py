"""Weights in int8: what they say, when they count, and that a step reads them."""

import pickle

import pytest
import torch

from recurra import nn as rnn
from recurra.nn import native
from recurra.nn.int8 import int8_of, round_to_int8_
from recurra.nn.products import linear


def rounded(*shape):
    weight = torch.nn.Parameter(torch.randn(shape))
    round_to_int8_(weight)
    return weight


def test_rounding_is_to_the_nearest_of_255_in_each_row():
    exact = torch.randn(30, 50) * torch.logspace(-3, 3, 30)[:, None]
    weight = exact.clone()
    round_to_int8_(weight)
    small = int8_of(weight)
    assert small.values.dtype == torch.int8
    torch.testing.assert_close(small.values.abs().amax(1), torch.full((30,), 127, dtype=torch.int8))
    torch.testing.assert_close(small.scale[:, None] * small.values, weight)
    assert ((weight - exact).abs() <= 0.5001 * small.scale[:, None]).all()


def test_rows_of_zeros_stay_zeros():
    weight = torch.zeros(2, 5)
    round_to_int8_(weight)
    assert not weight.any()


def test_a_weight_that_is_changed_has_no_int8_form():
    weight = rounded(4, 5)
    assert int8_of(weight) is not None
    with torch.no_grad():
        weight.mul_(2)
    assert int8_of(weight) is None
    weight = rounded(4, 5)
    weight.data = torch.randn(4, 5)
    assert int8_of(weight) is None
    assert int8_of(pickle.loads(pickle.dumps(rounded(4, 5)))) is None


@pytest.mark.skipif(not native.available(), reason="compiles nothing")
@pytest.mark.parametrize("columns", [3, 16, 100])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_a_product_of_few_rows_reads_it(rows, columns):
    weight, input, bias = rounded(33, columns), torch.randn(rows, columns), torch.randn(33)
    with torch.no_grad():
        torch.testing.assert_close(
            linear(input, weight, bias), torch.nn.functional.linear(input, weight, bias), rtol=1e-4, atol=1e-5
        )
        int8_of(weight).values.zero_()
        torch.testing.assert_close(linear(input, weight, bias), bias.expand(rows, -1))


@pytest.mark.skipif(not native.available(), reason="compiles nothing")
def test_a_step_reads_it():
    stack, input = rnn.LSTM(5, 20, 2, bias=False).eval(), torch.randn(1, 2, 5)
    for weight in stack.parameters():
        round_to_int8_(weight)
        int8_of(weight).values.zero_()
    with torch.no_grad():
        assert not stack(input, stack.initial_state(2))[0].any()
