"""Attention against the equations in NumPy, one query of one sequence at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recurra.config import UserError
from recurra.nn.attention import ATTENTIONS, Attention, SelfAttention

STEPS, MEMORY, QUERY, QUERIES = 5, 4, 3, 2
LENGTHS = [3, 0, 5, 1]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def built(kind, **options):
    return Attention(MEMORY if kind == "dot" else QUERY, MEMORY, kind, **options).double()


def padded(features=MEMORY, padding=torch.nan):
    states = torch.randn(STEPS, len(LENGTHS), features, dtype=torch.float64)
    for row, length in enumerate(LENGTHS):
        states[length:, row] = padding
    return states


def asked(layer):
    return torch.randn(QUERIES, len(LENGTHS), layer.query_size, dtype=torch.float64)


def softmax(scores):
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def scores(layer, query, memory):
    """Of one query ``[Q]`` over one sequence ``[steps, M]``, as the papers write them."""
    weights = {name: value.detach().numpy() for name, value in layer.named_parameters()}
    if layer.kind == "dot":
        return np.array([query @ state for state in memory])
    if layer.kind == "general":
        return np.array([query @ weights["key.weight"] @ state for state in memory])
    first = weights["query.weight"] @ query + weights["query.bias"]
    return np.array([weights["score"] @ np.tanh(first + weights["key.weight"] @ state) for state in memory])


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_contexts_and_weights_are_those_of_the_equations(kind):
    layer, memory = built(kind), padded()
    query = asked(layer)
    context, weights = layer(query, layer.prepare(memory, LENGTHS))
    assert context.shape == (QUERIES, len(LENGTHS), layer.output_size)
    assert weights.shape == (QUERIES, len(LENGTHS), STEPS)
    for row, length in enumerate(LENGTHS):
        assert not weights[:, row, length:].any()
        for step in range(QUERIES):
            if not length:
                assert not context[step, row].any()
                continue
            states = memory[:length, row].numpy()
            wanted = softmax(scores(layer, query[step, row].numpy(), states))
            np.testing.assert_allclose(weights[step, row, :length].detach().numpy(), wanted, rtol=1e-10)
            np.testing.assert_allclose(context[step, row].detach().numpy(), wanted @ states, rtol=1e-10)


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_a_step_alone_is_one_of_many_and_rows_can_be_selected(kind):
    layer = built(kind)
    query, memory = asked(layer), layer.prepare(padded(), LENGTHS)
    context, weights = layer(query, memory)
    for step in range(QUERIES):
        alone = layer(query[step], memory)
        torch.testing.assert_close(alone[0], context[step])
        torch.testing.assert_close(alone[1], weights[step])
    rows = torch.tensor([2, 0, 2, 1, 3])
    chosen = layer(query[:, rows], memory.select(rows))
    torch.testing.assert_close(chosen[0], context[:, rows])
    torch.testing.assert_close(chosen[1], weights[:, rows])


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_padding_reaches_no_gradient(kind):
    layer = built(kind)
    query, given, found = asked(layer), padded(), []
    for memory in (given, given.nan_to_num(9.0)):
        memory = memory.clone().requires_grad_()
        context, _ = layer(query, layer.prepare(memory, LENGTHS))
        found.append(torch.autograd.grad(context.sin().sum(), [memory, *layer.parameters()]))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
        assert one.isfinite().all()
    for row, length in enumerate(LENGTHS):
        assert not found[0][0][length:, row].any()


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_gradients_are_those_of_finite_differences(kind):
    layer = built(kind)

    def run(query, memory, *_):
        return layer(query, layer.prepare(memory, LENGTHS))

    given = (asked(layer).requires_grad_(), padded(padding=0.0).requires_grad_(), *layer.parameters())
    assert torch.autograd.gradcheck(run, given, fast_mode=True)


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_the_memory_is_worked_out_once(kind):
    layer = built(kind)
    memory = layer.prepare(padded(), LENGTHS)
    if kind != "dot":
        layer.key = None
    layer(asked(layer), memory)


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_a_memory_without_steps(kind):
    layer = built(kind)
    memory = layer.prepare(torch.zeros(0, len(LENGTHS), MEMORY).double())
    context, weights = layer(asked(layer), memory)
    assert context.shape == (QUERIES, len(LENGTHS), MEMORY)
    assert not context.any()
    assert weights.shape == (QUERIES, len(LENGTHS), 0)


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_autocast_keeps_weights_in_float32(kind):
    layer = built(kind).float()
    memory, query = padded().float(), asked(layer).float()
    wanted = layer(query, layer.prepare(memory, LENGTHS))
    with torch.autocast("cpu", torch.bfloat16):
        context, weights = layer(query, layer.prepare(memory, LENGTHS))
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, wanted[1], rtol=0.1, atol=0.02)
    torch.testing.assert_close(context.float(), wanted[0], rtol=0.1, atol=0.05)


def test_additive_attention_compares_in_as_many_features_as_asked_for():
    layer = built("additive", hidden_size=7)
    assert layer.key.weight.shape == (7, MEMORY)
    assert layer(asked(layer), layer.prepare(padded(), LENGTHS))[0].isfinite().all()


def test_attention_names_mistakes():
    with pytest.raises(UserError, match="attention: expected one of additive, dot, general, got 'location'"):
        Attention(3, 3, "location")
    with pytest.raises(UserError, match="dot attention needs decoder states as large as encoder states, got 3 and 4"):
        Attention(3, 4, "dot")
    with pytest.raises(ValueError, match="hidden_size: only additive attention has one, not dot"):
        Attention(3, 3, "dot", hidden_size=2)
    layer = built("general")
    with pytest.raises(ValueError, match=r"memory: expected \[S, N, 4\], got \(2, 2, 3\)"):
        layer.prepare(torch.zeros(2, 2, 3).double())
    with pytest.raises(ValueError, match=r"query: expected \[T, 4, 3\] or \[4, 3\], got \(5, 3\)"):
        layer(torch.zeros(5, 3).double(), layer.prepare(padded(), LENGTHS))


FEATURES, HEADS = 6, 2


def self_attended(layer, states):
    """One sequence ``[steps, F]`` in NumPy."""
    weights = {name: value.detach().numpy() for name, value in layer.named_parameters()}
    queries, keys, values = np.split(states @ weights["projection.weight"].T + weights["projection.bias"], 3, axis=1)
    width, mixed = FEATURES // HEADS, np.zeros_like(states)
    for head in range(HEADS):
        own = slice(head * width, (head + 1) * width)
        for step, query in enumerate(queries[:, own]):
            mixed[step, own] = softmax(keys[:, own] @ query / np.sqrt(width)) @ values[:, own]
    summed = states + mixed @ weights["output.weight"].T + weights["output.bias"]
    centred = summed - summed.mean(1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(1, keepdims=True) + layer.norm.eps)
    return centred / deviation * weights["norm.weight"] + weights["norm.bias"]


def test_self_attention_is_that_of_the_equations():
    layer = SelfAttention(FEATURES, HEADS).double()
    with torch.no_grad():
        layer.norm.weight.normal_()
        layer.norm.bias.normal_()
    states = padded(FEATURES)
    found = layer(states, LENGTHS)
    for row, length in enumerate(LENGTHS):
        assert not found[length:, row].any()
        if length:
            wanted = self_attended(layer, states[:length, row].numpy())
            np.testing.assert_allclose(found[:length, row].detach().numpy(), wanted, rtol=1e-9, atol=1e-12)


def test_self_attention_has_right_gradients_and_none_of_padding():
    layer = SelfAttention(FEATURES, HEADS).double()
    given, found = padded(FEATURES), []
    for states in (given, given.nan_to_num(9.0)):
        states = states.clone().requires_grad_()
        loss = layer(states, LENGTHS).sin().sum()
        found.append(torch.autograd.grad(loss, [states, *layer.parameters()]))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    states = given.nan_to_num(0.0).requires_grad_()
    run = lambda states, *_: layer(states, LENGTHS)  # noqa: E731
    assert torch.autograd.gradcheck(run, (states, *layer.parameters()), fast_mode=True)


def test_self_attention_drops_in_training_only():
    layer = SelfAttention(FEATURES, HEADS, 0.5)
    states = torch.randn(STEPS, 2, FEATURES)
    assert not torch.equal(layer(states), layer(states))
    layer.eval()
    assert torch.equal(layer(states), layer(states))
    layer.train().dropout = 1.0  # nothing is added to the input then
    torch.testing.assert_close(layer(states), layer.norm(states))


def test_self_attention_of_nothing_and_mistakes():
    layer = SelfAttention(FEATURES, HEADS)
    assert layer(torch.zeros(0, 2, FEATURES)).shape == (0, 2, FEATURES)
    assert layer(torch.zeros(2, 0, FEATURES)).shape == (2, 0, FEATURES)
    with pytest.raises(UserError, match="4 heads do not divide 6 features evenly"):
        SelfAttention(6, 4)
    with pytest.raises(ValueError, match=r"expected states \[T, N, 6\], got \(2, 6\)"):
        layer(torch.zeros(2, 6))
