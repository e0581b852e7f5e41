"""The neural cache: the distribution of the paper, by enumeration, however a text is cut into chunks and rows."""

import dataclasses
import math
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recurra.config import UserError
from recurra.evaluation import surprisals
from recurra.models import neural_cache
from recurra.models.max_entropy import MaxEntLM, MaxEntSettings
from recurra.models.mixture import Mixture
from recurra.models.neural_cache import NeuralCache, tune
from recurra.models.recurrent_lm import RecurrentLM, RecurrentLMSettings
from recurra.text.vocabulary import Vocabulary
from reference.exact_lm import LINE_END, SPENT, HistoryLM

VOCABULARY = 6
FEATURES = 3
THETA, WEIGHT = 0.7, 0.4
WORDS = Vocabulary(["<unk>", "<eos>", "a", "b", "c", "d"], [1, 5, 4, 3, 2, 1])


class FakeReading(NamedTuple):
    hidden: Tensor


class HiddenLM(HistoryLM):
    """The hidden vector is the row of a table that a checksum of the history names; the output layer is linear."""

    def __init__(self, hidden, output):
        super().__init__((hidden @ output.t()).log_softmax(-1))
        self.hidden, self.output = hidden, output

    @classmethod
    def random(cls, seed=0, vocabulary_size=VOCABULARY, features=FEATURES, histories=499, dtype=torch.float64):
        generator = torch.Generator().manual_seed(seed)
        sizes = (histories, features), (vocabulary_size, features)
        return cls(*(torch.randn(*size, generator=generator, dtype=dtype) for size in sizes))

    def read(self, inputs, state):
        checksums = [state]
        for tokens in inputs:
            checksums.append((31 * checksums[-1] + tokens + 1) % len(self.hidden))
        new = checksums[-1].clone()
        state.fill_(SPENT)
        return FakeReading(self.hidden[torch.stack(checksums[1:])]), new

    def reading_log_probs(self, reading, targets=None):
        log_probs = (reading.hidden @ self.output.t()).log_softmax(-1)
        return log_probs if targets is None else log_probs.gather(-1, targets[..., None])[..., 0]

    def hidden_after(self, history):
        checksum = 0
        for token in [LINE_END, *history]:
            checksum = (31 * checksum + int(token) + 1) % len(self.hidden)
        return self.hidden[checksum]


def expected(lm, history, size, theta, weight):
    """The oracle, by the equations: probabilities of what follows a history."""
    own = np.exp(lm.next(history))
    pairs = [(history[:i], history[i]) for i in range(len(history))][-size:]
    if not pairs:
        return own
    now = lm.hidden_after(history)
    cached = np.zeros(lm.vocabulary_size)
    for before, word in pairs:
        cached[word] += math.exp(theta * float(now @ lm.hidden_after(before)))
    return (1 - weight) * own + weight * cached / cached.sum()


def a_text(length, seed=0, vocabulary_size=VOCABULARY):
    return np.random.default_rng(seed).integers(vocabulary_size, size=length)


def as_read(text):
    """Inputs and targets of rows [N, T] read from the beginning, [T, N]."""
    targets = torch.from_numpy(np.array(text)).t()
    return torch.cat([torch.full_like(targets[:1], LINE_END), targets[:-1]]), targets


@pytest.mark.parametrize("theta", [THETA, 0.0])
@pytest.mark.parametrize("size", [1, 4, 1000])
def test_every_step_has_the_distribution_of_the_paper(size, theta):
    lm = HiddenLM.random()
    cache = NeuralCache(lm, size=size, theta=theta, weight=WEIGHT)
    text = a_text(15)
    state = cache.start(1)
    for t, token in enumerate([LINE_END, *text]):
        log_probs, state = cache.step(torch.tensor([token]), state)
        np.testing.assert_allclose(log_probs[0].exp(), expected(lm, text[:t].tolist(), size, theta, WEIGHT))
        assert log_probs.exp().sum().item() == pytest.approx(1)


@pytest.mark.parametrize("theta", [THETA, 0.0])
@pytest.mark.parametrize("size", [1, 4, 1000])
@pytest.mark.parametrize("chunk_length", [1, 2, 5, 100])
@pytest.mark.parametrize("steps", [3, 256])  # of the cache's own chunks
def test_a_text_has_the_same_surprisal_however_it_is_cut(monkeypatch, size, theta, chunk_length, steps):
    monkeypatch.setattr(neural_cache, "MOST_STEPS", steps)
    lm = HiddenLM.random()
    cache = NeuralCache(lm, size=size, theta=theta, weight=WEIGHT)
    text, starts = a_text(30), [0, 12, 13, 20]
    found = surprisals(cache, text, reset="documents", document_starts=starts, batch_size=2, chunk_length=chunk_length)
    wanted = [
        -math.log(expected(lm, text[start:i].tolist(), size, theta, WEIGHT)[text[i]])
        for start, end in zip(starts, [*starts[1:], len(text)], strict=True)
        for i in range(start, end)
    ]
    np.testing.assert_allclose(found, wanted)


@pytest.mark.parametrize("size", [3, 50])
def test_steps_and_scores_go_on_from_each_other(size):
    cache = NeuralCache(HiddenLM.random(), size=size, theta=THETA, weight=WEIGHT)
    inputs, targets = as_read([a_text(20, seed) for seed in range(3)])
    whole, _ = cache.score(inputs, targets, cache.start(3))
    state, parts = cache.start(3), []
    for begin, end in [(0, 1), (1, 2), (2, 9), (9, 10), (10, 11), (11, 20)]:
        if end - begin == 1:
            log_probs, state = cache.step(inputs[begin], state)
            parts.append(log_probs.gather(1, targets[begin, :, None]).t())
        else:
            log_probs, state = cache.score(inputs[begin:end], targets[begin:end], state)
            parts.append(log_probs)
    torch.testing.assert_close(torch.cat(parts), whole)


def test_select_reorders_and_copies_rows():
    cache = NeuralCache(HiddenLM.random(), size=4, theta=THETA, weight=WEIGHT)
    inputs, targets = as_read([a_text(9, seed) for seed in range(3)])
    _, state = cache.score(inputs, targets, cache.start(3))
    rows = torch.tensor([2, 0, 0])
    chosen = cache.select(state, rows)
    word = torch.tensor([5, 5, 5])
    for _ in range(3):
        before, state = cache.step(word, state)
    for _ in range(3):
        after, chosen = cache.step(word, chosen)
    torch.testing.assert_close(after, before[rows])
    fresh = cache.select(cache.start(3), rows)
    torch.testing.assert_close(cache.step(word, fresh)[0], cache.step(word, cache.start(3))[0])


def test_with_theta_0_any_model_has_a_cache_of_words():
    lm = HistoryLM.random(VOCABULARY)
    cache = NeuralCache(lm, size=3, theta=0.0, weight=0.5)
    state = cache.start(1)
    for token in [LINE_END, 2, 4, 4, 5]:
        log_probs, state = cache.step(torch.tensor([token]), state)
    counts = torch.tensor([0, 0, 0, 0, 2, 1]) / 3  # 2 is forgotten
    expected = 0.5 * torch.tensor(lm.next([2, 4, 4, 5])).exp() + 0.5 * counts
    torch.testing.assert_close(log_probs[0].exp(), expected.double())


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_all_weight_may_be_on_one_side(weight):
    lm = HiddenLM.random()
    cache = NeuralCache(lm, size=5, theta=THETA, weight=weight)
    inputs, targets = as_read([a_text(10)])
    found, _ = cache.score(inputs, targets, cache.start(1))
    text = targets[:, 0].tolist()
    wanted = [expected(lm, text[:i], 5, THETA, weight)[text[i]] for i in range(10)]
    np.testing.assert_allclose(found[:, 0].exp(), wanted)


def test_large_products_neither_overflow_nor_vanish():
    lm = HiddenLM.random(dtype=torch.float32)
    cache = NeuralCache(lm, size=50, theta=1e4, weight=WEIGHT)
    inputs, targets = as_read([a_text(60)])
    scored, state = cache.score(inputs, targets, cache.start(1))
    assert scored.isfinite().all()
    stepped, _ = cache.step(targets[-1], state)
    assert stepped.logsumexp(1).item() == pytest.approx(0, abs=1e-5)


def test_a_recurrent_model_shows_its_hidden_vectors():
    lm = recurrent()
    cache = NeuralCache(lm, size=6, theta=0.3, weight=WEIGHT)
    assert list(cache.parameters()) == list(lm.parameters())
    inputs, targets = as_read([a_text(20, seed) for seed in range(2)])
    scored, _ = cache.score(inputs, targets, cache.start(2))
    state, stepped = cache.start(2), []
    for tokens, following in zip(inputs, targets, strict=True):
        log_probs, state = cache.step(tokens, state)
        stepped.append(log_probs.gather(1, following[:, None])[:, 0])
    torch.testing.assert_close(scored, torch.stack(stepped))
    # The last step by the equations.
    with torch.no_grad():
        reading, _ = lm.read(inputs, lm.start(2))
        hidden = reading.hidden[:, 0]
        shares = (0.3 * hidden[13:19] @ hidden[19]).softmax(0)
        cached = shares[inputs[14:20, 0] == targets[19, 0]].sum()
        own = lm.reading_log_probs(reading)[19, 0, targets[19, 0]].exp()
    torch.testing.assert_close(scored[19, 0].exp(), (1 - WEIGHT) * own + WEIGHT * cached)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "expected 1 to 1,000,000 words"),
        ({"theta": -1.0}, "at least 0, got -1.0"),
        ({"theta": math.inf}, "at least 0, got inf"),
        ({"weight": 1.5}, "from 0 to 1, got 1.5"),
        ({"model": HistoryLM.random(3)}, "the model has no hidden vectors to compare: expected theta 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        NeuralCache(**{"model": HiddenLM.random(), "size": 3, "theta": THETA, "weight": WEIGHT} | change)


class Repeating:
    """A text of segments, each of which has few words, and in which like contexts are followed by like words."""

    vocabulary_size = 20

    def text(self, length):
        random = np.random.default_rng(3)
        return np.concatenate([random.choice(random.choice(20, 3), size=50) for _ in range(length // 50)])


@pytest.mark.parametrize("chunk_length", [17, 256])
@pytest.mark.parametrize("starts", [(0,), (0, 0, 1, 60, 111, 400)])
def test_tuning_finds_what_evaluation_confirms(starts, chunk_length):
    lm = HiddenLM.random(vocabulary_size=20)
    text = Repeating().text(600)
    thetas = (0.0, 0.1, 0.5)
    best = tune(lm, text, size=30, starts=starts, thetas=thetas, chunk_length=chunk_length)
    assert tuple(best.tried) == thetas
    assert (best.weight, best.nats_per_token) == best.tried[best.theta]
    assert best.nats_per_token == min(nats for _, nats in best.tried.values()) < best.model_nats_per_token
    rows = {"reset": "documents", "document_starts": starts}
    assert surprisals(lm, text, **rows).mean() == pytest.approx(best.model_nats_per_token, rel=1e-6)

    def nats(theta, weight):
        return surprisals(NeuralCache(lm, size=30, theta=theta, weight=weight), text, **rows).mean()

    for theta, (weight, found) in best.tried.items():
        assert nats(theta, weight) == pytest.approx(found, rel=1e-6)
        assert 0.05 < weight < 0.95
        assert found <= min(nats(theta, weight - 0.02), nats(theta, weight + 0.02))


def test_thetas_tried_follow_from_the_length_of_hidden_vectors():
    small = HiddenLM.random(vocabulary_size=20)
    large = HiddenLM(small.hidden * 10, small.output / 10)  # the same distributions
    text = Repeating().text(300)
    for lm, scale in ((small, 1), (large, 100)):
        squared_length = float(small.hidden.square().sum(1).mean()) * scale
        tried = np.array(list(tune(lm, text, size=30).tried))
        np.testing.assert_allclose(tried * squared_length, neural_cache.STRENGTHS, rtol=0.1)
    assert list(tune(HistoryLM.random(20), text, size=30).tried) == [0.0]


def test_tuning_switches_dropout_off_and_on_again():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.lm, self.modes = HistoryLM.random(20), set()
            self.vocabulary_size, self.start = 20, self.lm.start

        def score(self, inputs, targets, state):
            self.modes.add(self.training)
            return self.lm.score(inputs, targets, state)

    lm = Dropping()
    tune(lm, a_text(30), size=5)
    assert lm.modes == {False}
    assert lm.training


@pytest.mark.parametrize(
    ("length", "options", "message"),
    [
        (0, {}, "two tokens or more to tune a cache on, got 0"),
        (1, {}, "two tokens or more to tune a cache on, got 1"),
        (3, {"starts": (0, 1, 2)}, "two tokens or more to tune a cache on, got 1"),
        (9, {"thetas": ()}, "one or more theta"),
        (9, {"thetas": (0.1, -1.0)}, "at least 0, got -1.0"),
        (9, {"size": 0}, "expected 1 to 1,000,000 words"),
    ],
)
def test_what_cannot_be_tuned_is_refused(length, options, message):
    with pytest.raises(UserError, match=message):
        tune(HiddenLM.random(), a_text(length), **{"size": 3} | options)


@pytest.mark.parametrize("starts", [(), (1, 4), (0, 5, 3), (0, 10)])
def test_rows_are_within_the_text(starts):
    with pytest.raises(ValueError, match="offsets that ascend from 0 and stay within the text"):
        tune(HiddenLM.random(), a_text(9), size=3, starts=starts)


def recurrent(**changes):
    torch.manual_seed(0)
    settings = RecurrentLMSettings(
        hidden_size=8,
        layers=1,
        embedding_size=8,
        output="full",
        tied=False,
        input_dropout=0.0,
        dropout=0.0,
        output_dropout=0.0,
    )
    return RecurrentLM(dataclasses.replace(settings, **changes), WORDS).double().eval()


@pytest.mark.parametrize("theta", [0.0, 0.3])
def test_a_model_of_lines_by_themselves_is_refused(theta):
    lm = recurrent(reset="lines")
    wrapped = Mixture([HistoryLM.random(VOCABULARY), lm], (0.5, 0.5))
    for model in (lm, wrapped):
        with pytest.raises(UserError, match=r"trained on lines by themselves .* --reset none or documents"):
            NeuralCache(model, size=3, theta=theta, weight=WEIGHT)
        with pytest.raises(UserError, match="trained on lines by themselves"):
            tune(model, a_text(9), size=3)


def test_a_counted_model_of_lines_keeps_its_cache_over_line_ends():
    lm = HistoryLM.random(VOCABULARY)
    lm.settings = SimpleNamespace(reset="lines")
    cache = NeuralCache(lm, size=5, theta=0.0, weight=0.5)
    state = cache.start(1)
    for token in [LINE_END, 2, LINE_END, 4]:
        log_probs, state = cache.step(torch.tensor([token]), state)
    counts = torch.tensor([0, 1, 1, 0, 1, 0]).double() / 3
    own = torch.tensor(lm.next([2, LINE_END, 4])).double().exp()
    torch.testing.assert_close(log_probs[0].exp(), 0.5 * own + 0.5 * counts)


def test_vectors_without_features_are_not_compared():
    lm = MaxEntLM(MaxEntSettings(bits=8, classes=2), WORDS).double().eval()
    assert list(tune(lm, a_text(30), size=5).tried) == [0.0]
    cache = NeuralCache(lm, size=3, theta=0.1, weight=WEIGHT)
    inputs, targets = as_read([a_text(5)])
    for read in (
        lambda: cache.step(inputs[0], cache.start(1)),
        lambda: cache.score(inputs, targets, cache.start(1)),
        lambda: tune(lm, a_text(9), size=3, thetas=(0.0, 0.1)),
    ):
        with pytest.raises(UserError, match="the model has no hidden vectors to compare: expected theta 0"):
            read()


def test_vectors_of_zeros_tell_nothing_apart():
    lm = HiddenLM.random()
    assert list(tune(HiddenLM(lm.hidden * 0, lm.output), a_text(30), size=5).tried) == [0.0]
