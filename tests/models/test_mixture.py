"""Mixtures: the sum that they claim to be, and the weights that no others are better than."""

import math
import time

import numpy as np
import pytest
import torch
from torch import nn

from recurra.config import UserError
from recurra.evaluation import surprisals
from recurra.models import mixture
from recurra.models.mixture import Mixture, fit_weights
from recurra.models.protocol import evaluating
from reference.exact_lm import HistoryLM

VOCABULARY = 5
WEIGHTS = (0.5, 0.2, 0.3)


def models():
    return [HistoryLM.random(VOCABULARY, seed=seed) for seed in range(3)]


def test_every_history_has_the_weighted_sum_of_probabilities():
    parts = models()
    lm = Mixture(parts, WEIGHTS)
    for text in np.ndindex(VOCABULARY, VOCABULARY, VOCABULARY):
        state = lm.start(1)
        for token in (1, *text):
            log_probs, state = lm.step(torch.tensor([token]), state)
        expected = sum(w * np.exp(part.next(text)) for w, part in zip(WEIGHTS, parts, strict=True))
        np.testing.assert_allclose(log_probs[0].exp(), expected)
        assert log_probs.exp().sum().item() == pytest.approx(1)


@pytest.mark.parametrize("chunk_length", [1, 4, 100])
def test_a_text_is_scored_as_it_is_stepped(chunk_length):
    parts = models()
    text = np.random.default_rng(0).integers(VOCABULARY, size=30)
    found = surprisals(
        Mixture(parts, WEIGHTS), text, reset="documents", document_starts=[0, 7, 9], chunk_length=chunk_length
    )
    rows = [*(text[:i] for i in range(7)), *(text[7:i] for i in range(7, 9)), *(text[9:i] for i in range(9, 30))]
    expected = [
        -math.log(sum(w * math.exp(part.next(row)[token]) for w, part in zip(WEIGHTS, parts, strict=True)))
        for row, token in zip(rows, text, strict=True)
    ]
    np.testing.assert_allclose(found, expected)


def test_select_reorders_and_copies_rows():
    lm = Mixture(models(), WEIGHTS)
    _, state = lm.step(torch.tensor([2, 3, 4]), lm.start(3))
    chosen = lm.select(state, torch.tensor([2, 0, 0]))
    before, _ = lm.step(torch.tensor([1, 1, 1]), state)
    after, _ = lm.step(torch.tensor([1, 1, 1]), chosen)
    torch.testing.assert_close(after, before[[2, 0, 0]])


def test_what_one_model_excludes_another_may_allow():
    none, some = (HistoryLM(torch.tensor([row])) for row in ([0.0, -math.inf], [math.log(0.75), math.log(0.25)]))
    lm = Mixture([none, some], (0.5, 0.5))
    torch.testing.assert_close(lm.step(torch.tensor([1]), lm.start(1))[0], torch.tensor([[0.875, 0.125]]).log())
    alone = Mixture([none, some], (1.0, 0.0))
    torch.testing.assert_close(alone.step(torch.tensor([1]), alone.start(1))[0], torch.tensor([[0.0, -math.inf]]))


def test_modules_among_the_models_are_reached():
    class Module(nn.Module):
        vocabulary_size = VOCABULARY

    module = Module()
    lm = Mixture([HistoryLM.random(VOCABULARY), module], (0.5, 0.5))
    with evaluating(lm):
        assert not module.training
    assert module.training


@pytest.mark.parametrize(
    ("parts", "weights", "message"),
    [
        ([], [], "one or more models"),
        (models(), [0.5, 0.5], "got 3 and 2 weights"),
        (models(), [0.5, 0.6, -0.1], "at least 0 that sum to 1, got 0.5, 0.6, -0.1"),
        (models(), [0.5, 0.3, 0.3], "sum to 1"),
        (models(), [0.5, 0.5, math.nan], "sum to 1"),
        ([HistoryLM.random(3), HistoryLM.random(4)], [0.5, 0.5], "vocabularies of 3, 4 tokens"),
    ],
)
def test_what_cannot_be_mixed_is_refused(parts, weights, message):
    with pytest.raises(UserError, match=message):
        Mixture(parts, weights)


def nats(log_probs, weights):
    with np.errstate(divide="ignore"):
        return -np.log(np.exp(log_probs).T @ weights).mean()


@pytest.fixture
def log_probs():
    """Four models of 3,000 tokens, of which one is never right and one is no better than another."""
    random = np.random.default_rng(1)
    found = np.log(random.uniform(0.01, 1, size=(4, 3000)))
    found[2] -= 3
    found[3] = found[0] - 0.5
    found[1, ::3] = -np.inf
    return found - 700  # probabilities themselves would underflow


@pytest.mark.parametrize("block", [100, 2**18])
def test_no_weights_are_better_than_the_fitted(monkeypatch, log_probs, block):
    monkeypatch.setattr(mixture, "TOKENS_PER_BLOCK", block)
    weights = fit_weights(log_probs)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    shifted = log_probs + 700
    best = nats(shifted, weights)
    steps = np.linspace(0, 1, 51)
    grid = [(a, b, c, 1 - a - b - c) for a in steps for b in steps for c in (0, 0.02, 0.1) if a + b + c <= 1]
    assert len(grid) > 3000
    assert best <= min(nats(shifted, np.array(other)) for other in grid) + 1e-9
    np.testing.assert_allclose(weights[2:], 0, atol=1e-3)
    # The optimum in one dimension, where the derivative is zero.
    a, b = np.exp(shifted[:2])
    assert np.mean((a - b) / (weights[0] * a + (1 - weights[0]) * b)) == pytest.approx(0, abs=1e-4)


def test_weights_that_made_a_text_are_found_again():
    random = np.random.default_rng(2)
    distributions = random.dirichlet(np.ones(50), size=3)
    text = random.choice(50, p=np.array(WEIGHTS) @ distributions, size=200_000)
    found = fit_weights(np.log(distributions[:, text]).astype(np.float32))
    np.testing.assert_allclose(found, WEIGHTS, atol=0.01)


def gap(log_probs, weights):
    """How many nats per token any other weights may be better by: the bound that the documentation gives."""
    relative = np.exp(log_probs - log_probs.max(0))
    return (relative / (weights @ relative)).mean(1).max() - 1


@pytest.mark.parametrize("spread", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("share", [None, 0.3, 0.9])  # that the other has in the best mixture; None: as it comes
def test_nearly_equal_models_are_told_apart_at_once(spread, share):
    random = np.random.default_rng(5)
    one = random.normal(-5, 2, 2000)
    noise = random.normal(0, spread, 2000)
    if share is not None:  # to the second order, where its mean is (share - 1 / 2) of its variance
        noise += (share - 0.5) * noise.var() - noise.mean()
    log_probs = np.stack([one, one + noise])
    begun = time.perf_counter()
    weights = fit_weights(log_probs)
    assert time.perf_counter() - begun < 0.5
    assert gap(log_probs, weights) < mixture.TOLERANCE
    if share is not None and spread == 1e-3:  # with 1e-5 all weights are within the tolerance
        assert weights[1] == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("seed", range(20))
def test_any_models_are_fitted_within_the_tolerance(monkeypatch, seed):
    passes = []
    expansion = mixture._expansion
    monkeypatch.setattr(mixture, "_expansion", lambda *given: passes.append(1) or expansion(*given))
    random = np.random.default_rng(seed)
    log_probs = random.normal(-5, 3, 500) + random.normal(0, 10 ** random.uniform(-6, 1, (8, 1)), (8, 500))
    log_probs[5] = log_probs[6]  # the same twice
    log_probs[7] = log_probs[0] - 3  # always worse than another
    log_probs[1, ::7] = log_probs[2] = -np.inf
    weights = fit_weights(log_probs)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert gap(log_probs, weights) < mixture.TOLERANCE
    assert len(passes) <= 25


def test_a_model_that_is_needed_once_gets_a_small_weight():
    random = np.random.default_rng(0)
    log_probs = np.stack([np.zeros(100_000), random.normal(-9, 1, 100_000)])
    log_probs[0, 77] = -np.inf
    weights = fit_weights(log_probs)
    assert gap(log_probs, weights) < mixture.TOLERANCE
    assert 0.5e-5 < weights[1] < 2e-5


def test_one_model_has_all_the_weight():
    assert fit_weights(np.array([[-1.0, -2.0]])).tolist() == [1.0]


def test_a_token_without_any_probability_is_named():
    log_probs = np.full((2, 1500), -1.0, np.float32)
    log_probs[0, :] = log_probs[1, 1233] = -np.inf
    with pytest.raises(UserError, match=r"token 1,234 of 1,500 has probability 0 by every model"):
        fit_weights(log_probs)
    log_probs[1, 700] = np.nan
    with pytest.raises(UserError, match=r"token 701 of 1,500 has log-probability nan"):
        fit_weights(log_probs)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,)])
def test_nothing_to_fit_to_is_said(shape):
    with pytest.raises(UserError, match="at least one of each"):
        fit_weights(np.zeros(shape))
