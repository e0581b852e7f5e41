"""Norms of all pairs against T backward passes of autograd, and how they fall."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gradients.stacks import STACKS, STEPS, TEXT, by_backward_passes, made, model_of
from recurra import gradients, nn
from recurra.config import UserError
from recurra.gradients import Decay, GradientMap, Unrolled


@pytest.mark.parametrize("name", STACKS)
def test_all_pairs_are_those_of_backward_passes(name):
    stack, inputs, loss = made(name)
    unrolled = Unrolled(stack, inputs, loss)
    found = gradients.gradient_map(unrolled)
    np.testing.assert_allclose(found.hidden, by_backward_passes(stack, inputs, loss, "hidden"), rtol=1e-9, atol=1e-15)
    assert (found.hidden[:, *np.triu_indices(STEPS, 1)] == 0).all()
    if stack.state_type is nn.LSTMState:
        np.testing.assert_allclose(found.cell, by_backward_passes(stack, inputs, loss, "cell"), rtol=1e-9, atol=1e-15)
    else:
        assert found.cell is None
    outputs, _ = stack(inputs[:, None])
    torch.testing.assert_close(unrolled.losses, loss(outputs[:, 0]).detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("stride", [2, 3, 5, 12])
def test_a_stride_takes_some_of_the_rows(stride):
    unrolled = Unrolled(*made("lstm, 2 layers"))
    every, some = gradients.gradient_map(unrolled), gradients.gradient_map(unrolled, stride=stride)
    assert some.steps.tolist() == list(range(stride - 1, STEPS, stride))
    np.testing.assert_allclose(some.hidden, every.hidden[:, some.steps], rtol=1e-12)
    np.testing.assert_allclose(some.cell, every.cell[:, some.steps], rtol=1e-12)


def test_nothing_comes_back_over_a_start():
    stack, inputs, loss = made("lstm, 2 layers")
    cut = 5
    whole = gradients.gradient_map(Unrolled(stack, inputs, loss, starts=(cut,)))

    def padded(part):
        return torch.cat((part, part.new_zeros(STEPS - len(part), part.shape[1])))

    first = by_backward_passes(stack, inputs[:cut], lambda outputs: loss(padded(outputs))[:cut], "hidden")
    second = by_backward_passes(stack, inputs[cut:], lambda outputs: loss(padded(outputs).roll(cut, 0))[cut:], "hidden")
    assert whole.starts == (0, cut)
    np.testing.assert_allclose(whole.hidden[:, :cut, :cut], first, rtol=1e-9)
    np.testing.assert_allclose(whole.hidden[:, cut:, cut:], second, rtol=1e-9)
    assert (whole.hidden[:, cut:, :cut] == 0).all()


def test_one_step_of_text():
    found = gradients.gradient_map(Unrolled(*made("gru", steps=1)))
    assert found.hidden.shape == (1, 1, 1)
    curve = gradients.decay(found)
    assert curve.relative.tolist() == [1]
    assert math.isnan(curve.half_life)


def test_pairs_of_a_model_are_those_of_backward_passes():
    lm = model_of(cell="gru", output_norm=True)
    model, tokens = lm.model, torch.from_numpy(lm.tokenizer.encode(TEXT)[:STEPS].astype(np.int64))
    read = torch.cat((torch.ones(1, dtype=torch.long), tokens[:-1]))
    outputs, _, trace = model.recurrent(model.embedding(read)[:, None], trace=True)
    losses = -model.output.log_probs(model.output_norm(model.bridge(outputs)))[range(STEPS), 0, tokens]
    found = gradients.gradient_map(gradients.unroll_model(model, tokens.numpy()))
    for layer in range(2):
        for t in range(STEPS):
            hidden = trace.layers[layer][0]["hidden"]
            expected = torch.autograd.grad(
                losses[t], hidden, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            np.testing.assert_allclose(
                found.hidden[layer, t], [float(each.norm()) for each in expected], rtol=1e-8, atol=1e-15
            )


def test_a_map_that_is_too_large_says_how_large_and_what_helps():
    gradients.check_size(2, 1000, 1, 16e6)
    with pytest.raises(UserError, match=r"take 3\.2 GB of memory, there are 1: give --stride 8 ") as told:
        gradients.check_size(2, 10_000, 1, 1e9, parts=2)
    stride = int(str(told.value).split("--stride ")[1].split()[0])
    gradients.check_size(2, 10_000, stride, 1e9, parts=2)
    for more in ({"parts": 2}, {"features": 1000}, {"drawn": True}, {"listed": True}, {"held": 2e6}):
        with pytest.raises(UserError, match="GB of memory"):
            gradients.check_size(2, 1000, 1, 17e6, **more)


def test_gradients_that_vanish_are_told_apart_in_float32_too():
    """Vectors are brought back to the size of 1 at every step, so that only norms have to be floats."""
    double, single = (gradients.fresh("rnn", hidden_size=8, dtype=t) for t in (torch.float64, torch.float32))
    expected, found = gradients.gradient_map(double), gradients.gradient_map(single)
    assert expected.hidden[0, -1, 0] < 1e-50
    assert found.hidden.dtype == np.float64
    lower = np.tril_indices(200)
    np.testing.assert_allclose(np.log10(found.hidden[0][lower]), np.log10(expected.hidden[0][lower]), atol=1e-3)


def overflowing(steps=230):
    """A network whose state stays at 0 while gradients grow by 40 each step; losses of size 1."""
    stack = nn.RNN(2, 2, bias=False).double().eval()
    with torch.no_grad():
        stack.weight_hh_l0.copy_(40 * torch.eye(2))
    return Unrolled(stack, torch.zeros(steps, 2, dtype=torch.float64), lambda outputs: outputs.sum(1))


def test_gradients_may_be_larger_than_floats():
    curve = gradients.decay(gradients.gradient_map(overflowing()))
    np.testing.assert_allclose(np.log10(curve.relative[:190]), np.log10(40) * np.arange(190), rtol=1e-9, atol=1e-12)
    assert curve.overflow == 192  # 40 ** 192 = 10 ** 307.6, and the mean is over several
    assert np.isinf(curve.relative[192:]).all()
    assert curve.rate == pytest.approx(math.log2(40))
    assert gradients.in_words(curve) == "doubles every 0.188 tokens"
    assert not np.isnan(curve.relative).any()


def test_progress_is_told():
    told = []
    gradients.gradient_map(Unrolled(*made("gru")), progress=lambda *numbers: told.append(numbers))
    assert told == [(n, STEPS) for n in range(STEPS)]


def test_the_rate_of_a_made_up_exponential():
    k = np.arange(1, 60)
    assert gradients.fitted_rate(k, 3 * 0.5 ** (k / 7)) == pytest.approx(-1 / 7)
    assert gradients.fitted_rate(k, 3 * 2 ** (k / 7)) == pytest.approx(1 / 7)
    spoilt = 0.5 ** (k / 7)
    spoilt[::5] *= 1000
    assert gradients.fitted_rate(k, spoilt) == pytest.approx(-1 / 7, rel=0.02)
    spoilt[3], spoilt[4], spoilt[6] = 0, np.nan, np.inf
    assert gradients.fitted_rate(k, spoilt) == pytest.approx(-1 / 7, rel=0.02)
    assert gradients.fitted_rate(k, np.ones(59)) == 0
    assert math.isnan(gradients.fitted_rate([1], [0.5]))
    k = np.arange(5000)
    assert gradients.fitted_rate(k, 0.5 ** (k / 100)) == pytest.approx(-1 / 100)


@pytest.mark.parametrize(
    ("rate", "half_life", "words"),
    [
        (-0.25, 4, "half-life 4 tokens"),
        (0.0, math.inf, "does not fall"),
        (0.001, math.inf, "does not fall"),  # 7 % over the hundred tokens of the fit
        (0.25, math.inf, "doubles every 4 tokens"),
        (math.nan, math.nan, "no half-life"),
    ],
)
def test_a_rate_in_words(rate, half_life, words):
    curve = Decay(np.arange(101), np.ones(101), np.ones(101, int), rate, 100)
    assert curve.half_life == pytest.approx(half_life, nan_ok=True)
    assert curve.overflow is None
    assert gradients.in_words(curve) == words


def test_what_is_level_after_a_drop_is_told_so():
    values = np.where(np.arange(101) < 2, 1.0, 0.2)
    curve = Decay(np.arange(101), values, np.ones(101, int), -0.0001, 100)
    assert gradients.in_words(curve) == "does not fall after k = 2, where half is left"


def test_a_curve_that_is_not_straight_is_told_of():
    k = np.arange(101)
    straight = 0.5 ** (k / 7)
    bent = np.maximum(0.5**k, 0.01 * 0.5 ** (k / 30))
    for values, half, words in (
        (straight, 7, "half-life 7 tokens"),
        (bent, 1, "half-life 30 tokens, not exponential, half at k = 1"),
    ):
        rate = gradients.fitted_rate(k[1:], values[1:])
        curve = Decay(k, values, np.ones(101, int), rate, 100)
        assert gradients.in_words(curve) == words
        assert curve.halved == half
        logs = np.log2(values[1:])
        (_, residual, *_) = np.polyfit(k[1:], logs, 1, full=True)  # no line has a smaller one
        assert curve.straightness <= 1 - float(residual[0]) / np.square(logs - logs.mean()).sum() + 1e-9
        assert (curve.straightness > 0.999) == (values is straight)
    assert math.isnan(Decay(k, np.ones(101), np.ones(101, int), 0.0, 100).straightness)
    assert Decay(k, np.ones(101), np.ones(101, int), 0.0, 100).halved is None


def test_the_decay_of_c_is_not_that_of_h():
    found = gradients.gradient_map(Unrolled(*made("lstm, 2 layers")))
    for layer in (0, 1):
        for state, norms in (("hidden", found.hidden), ("cell", found.cell)):
            curve = gradients.decay(found, layer, state)
            for k in (0, 1, 5):
                rows = np.arange(k, STEPS)
                expected = norms[layer, rows, rows - k].sum() / norms[layer, rows, rows].sum()
                assert curve.relative[k] == pytest.approx(expected)
    assert gradients.decay(found, 1, "cell").relative[1] > 2 * gradients.decay(found, 1).relative[1]
    gru = gradients.gradient_map(Unrolled(*made("gru")))
    assert gradients.decay(gru, state="cell").relative.tolist() == gradients.decay(gru).relative.tolist()
    with pytest.raises(ValueError, match="state: expected one of hidden, cell, got 'c'"):
        gradients.decay(gru, state="c")


def test_decay_is_the_mean_over_losses_within_a_run():
    steps, starts = np.arange(8), (0, 5)
    norms = np.zeros((1, 8, 8))
    for t in steps:
        for i in range(0 if t < 5 else 5, t + 1):
            norms[0, t, i] = (1 + t) * 0.5 ** ((t - i) / 2)  # each t has a size of its own
    curve = gradients.decay(GradientMap(steps, norms, None, starts))
    assert curve.counts.tolist() == [8, 6, 4, 2, 1]
    np.testing.assert_allclose(curve.relative, 0.5 ** (np.arange(5) / 2))
    assert curve.half_life == pytest.approx(2)
    assert curve.fitted == 2
