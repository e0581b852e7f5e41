"""Connectionist temporal classification against enumeration of all paths."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch

from recurra.config import UserError
from recurra.nn.ctc import ctc_loss, greedy, prefix_beam_search

SYMBOLS, WIDE = 3, 100_000


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def frames(time, symbols=SYMBOLS, batch=None, scale=2.0):
    shape = (time, symbols) if batch is None else (time, batch, symbols)
    return (torch.randn(shape, dtype=torch.float64) * scale).log_softmax(-1)


def stands_for(path):
    return tuple(symbol for symbol, _ in itertools.groupby(path) if symbol)


def enumerated(log_probs):
    """Log-probability of every sequence of symbols ``log_probs [T, C]`` can stand for."""
    rows, found = log_probs.exp().tolist(), {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(rows)):
        symbols = stands_for(path)
        found[symbols] = found.get(symbols, 0.0) + math.prod(row[s] for row, s in zip(rows, path, strict=True))
    return {symbols: math.log(probability) for symbols, probability in found.items()}


LENGTHS, TARGETS = [4, 0, 5, 1], [(1, 1), (), (2, 1, 2), ()]


def batch(padding=torch.nan):
    log_probs = frames(5, batch=len(LENGTHS))
    targets = torch.full((4, len(TARGETS)), -100)
    for row, (length, target) in enumerate(zip(LENGTHS, TARGETS, strict=True)):
        log_probs[length:, row] = padding
        targets[: len(target), row] = torch.tensor(target, dtype=torch.long)
    return log_probs, targets, [len(target) for target in TARGETS]


def test_loss_is_the_sum_over_paths():
    log_probs, targets, target_lengths = batch()
    wanted = sum(
        -enumerated(log_probs[:length, row])[target]
        for row, (length, target) in enumerate(zip(LENGTHS, TARGETS, strict=True))
    )
    assert ctc_loss(log_probs, targets, LENGTHS, target_lengths).item() == pytest.approx(wanted, rel=1e-12)
    assert ctc_loss(log_probs[:, :0], targets[:, :0], [], []) == 0
    assert ctc_loss(log_probs[:, 1:2], targets[:, 1:2], [0], [0]) == 0
    alone = ctc_loss(log_probs[:, 2:3], targets[:3, 2:3], None, None)
    assert alone.item() == pytest.approx(-enumerated(log_probs[:, 2])[2, 1, 2], rel=1e-12)


def test_loss_gradients_are_right_and_none_of_padding():
    log_probs, targets, target_lengths = batch()
    log_probs.requires_grad_()
    ctc_loss(log_probs, targets, LENGTHS, target_lengths).backward()
    for row, length in enumerate(LENGTHS):
        assert not log_probs.grad[length:, row].any()
        assert log_probs.grad[:length, row].isfinite().all()
    scores = torch.randn(5, len(LENGTHS), SYMBOLS, dtype=torch.float64, requires_grad=True)
    run = lambda scores: ctc_loss(scores.log_softmax(-1), targets, LENGTHS, target_lengths)  # noqa: E731
    assert torch.autograd.gradcheck(run, scores)


def test_loss_is_float32_under_autocast():
    log_probs, targets, target_lengths = batch(0.0)
    log_probs = log_probs.float()
    wanted = ctc_loss(log_probs, targets, LENGTHS, target_lengths)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ctc_loss(log_probs, targets, LENGTHS, target_lengths), wanted)
        assert ctc_loss(log_probs.bfloat16(), targets, LENGTHS, target_lengths).dtype == torch.float32


def test_targets_without_a_path_are_named():
    log_probs = frames(5, batch=2)
    targets = torch.tensor([[1, 2], [1, 2], [1, 2]])
    assert ctc_loss(log_probs, targets, [5, 5], [3, 3]).isfinite()
    with pytest.raises(UserError, match="sequence 1: 3 symbols and 2 blanks between equal ones do not fit into 4"):
        ctc_loss(log_probs, targets, [5, 4], [3, 3])
    with pytest.raises(UserError, match="sequence 0: 1 symbols do not fit into 0 frames"):
        ctc_loss(log_probs, targets, [0, 4], [1, 0])
    for wrong in (0, SYMBOLS, -1):
        with pytest.raises(ValueError, match="targets: expected 1 to 2"):
            ctc_loss(log_probs, torch.full((1, 2), wrong), None, None)
    with pytest.raises(ValueError, match="expected log_probs"):
        ctc_loss(log_probs, targets[:, :1], None, None)


def test_greedy_merges_repeats_and_drops_blanks():
    paths = torch.tensor([[1, 1, 0, 1, 2, 2], [0, 2, 2, 1, 1, 1], [2, 0, 2, 1, 0, 0]]).t()
    scores = torch.nn.functional.one_hot(paths, SYMBOLS).float()
    scores[4:, 2] = torch.nan
    assert greedy(scores, [6, 3, 4]) == [[1, 1, 2], [2], [2, 2, 1]]
    assert greedy(scores[:, :2]) == [[1, 1, 2], [2, 1]]
    assert greedy(scores, [0, 0, 0]) == [[], [], []]
    assert greedy(torch.zeros(0, 2, SYMBOLS)) == [[], []]


@pytest.mark.parametrize("time", [0, 1, 4, 6])
def test_a_wide_beam_finds_every_sequence_with_its_probability(time):
    log_probs = frames(time)
    wanted = enumerated(log_probs)
    found = prefix_beam_search(log_probs, WIDE)
    assert {hypothesis.symbols for hypothesis in found} == set(wanted)
    for hypothesis in found:
        assert hypothesis.ctc == hypothesis.score == pytest.approx(wanted[hypothesis.symbols], rel=1e-10, abs=1e-12)
        assert hypothesis.language_model == 0
    assert found == sorted(found, key=lambda hypothesis: -hypothesis.score)


def test_the_likeliest_sequence_need_not_be_that_of_the_likeliest_path():
    log_probs = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).log()
    assert greedy(log_probs[:, None]) == [[]]
    assert prefix_beam_search(log_probs, 2)[0].symbols == (1,)


@pytest.mark.parametrize("beam", [1, 2, 3, 8])
def test_a_narrow_beam_keeps_some_and_never_counts_too_much(beam):
    for _ in range(20):
        log_probs = frames(6)
        wanted = enumerated(log_probs)
        found = prefix_beam_search(log_probs, beam)
        assert 0 < len(found) <= beam
        assert len({hypothesis.symbols for hypothesis in found}) == len(found)
        for hypothesis in found:
            assert hypothesis.ctc <= wanted[hypothesis.symbols] + 1e-12


class FakeLM:
    """Log-probabilities drawn anew for each history; says so if a spent state is used."""

    def __init__(self, size):
        self.size = size
        self.steps = 0

    def log_probs(self, history):
        draw = random.Random(repr(history))
        return torch.tensor([draw.gauss(0, 2) for _ in range(self.size)], dtype=torch.float64).log_softmax(0)

    def start(self, batch_size):
        return {"histories": [()] * batch_size}

    def step(self, tokens, state):
        self.steps += 1
        histories = [(*h, t) for h, t in zip(state.pop("histories"), tokens.tolist(), strict=True)]
        return torch.stack([self.log_probs(history) for history in histories]), {"histories": histories}

    def select(self, state, rows):
        return {"histories": [state["histories"][row] for row in rows.tolist()]}

    def text(self, tokens, end):
        """Log-probability of a whole text."""
        tokens = [1, *tokens, *([1] if end else [])]
        return sum(float(self.log_probs(tuple(tokens[:i]))[tokens[i]]) for i in range(1, len(tokens)))


def assert_ranked(found, wanted):
    """``wanted`` gives score, log-probability by frames and by language model of every sequence."""
    assert {hypothesis.symbols for hypothesis in found} == set(wanted)
    for hypothesis in found:
        assert hypothesis[1:] == pytest.approx(wanted[hypothesis.symbols], rel=1e-9, abs=1e-9)
    assert found[0].symbols == max(wanted, key=lambda symbols: wanted[symbols][0])


@pytest.mark.parametrize("end", [True, False])
def test_a_language_model_over_symbols_is_counted_in(end):
    model, tokens = FakeLM(7), [(), (5,), (3, 4)]
    log_probs = frames(5)
    found = prefix_beam_search(
        log_probs, WIDE, language_model=model, tokens=tokens, lm_weight=0.7, word_bonus=0.4, score_end=end
    )
    wanted = {}
    for symbols, ctc in enumerated(log_probs).items():
        log_prob = model.text([token for symbol in symbols for token in tokens[symbol]], end)
        wanted[symbols] = (ctc + 0.7 * log_prob + 0.4 * len(symbols), ctc, log_prob)
    assert_ranked(found, wanted)


def words_of(symbols, separator):
    groups = itertools.groupby(symbols, lambda symbol: symbol == separator)
    return [tuple(group) for is_separator, group in groups if not is_separator]


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("with_model", [True, False])
def test_a_language_model_over_words_is_counted_in_as_words_end(end, with_model):
    model, separator = FakeLM(9), 2
    spelled = {(1,): [4], (1, 1): [5, 8], (3,): [6], (3, 1): [7, 2, 4]}
    tokens = lambda word: spelled.get(word, [0])  # noqa: E731
    log_probs = frames(5, symbols=4)
    joined = {"language_model": model, "word_tokens": tokens} if with_model else {}
    found = prefix_beam_search(
        log_probs, WIDE, separator=separator, lm_weight=1.3, word_bonus=0.9, score_end=end, **joined
    )
    wanted = {}
    for symbols, ctc in enumerated(log_probs).items():
        words = words_of(symbols, separator)
        read = [token for word in words for token in tokens(word)]
        log_prob = model.text(read, end) if with_model else 0.0
        wanted[symbols] = (ctc + 1.3 * log_prob + 0.9 * len(words), ctc, log_prob)
    assert_ranked(found, wanted)


def test_the_language_model_decides_where_frames_do_not():
    log_probs = torch.tensor([[0.02, 0.49, 0.49]] * 2).log()

    class Alternating(FakeLM):
        def log_probs(self, history):
            likely = 5 - history[-1] if len(history) > 1 else 2  # 2 3 2 3 ...
            return torch.tensor([0.997 if token == likely else 0.001 for token in range(4)]).log()

    options = {"tokens": [(), (2,), (3,)], "word_bonus": 1.0, "score_end": False}
    found = prefix_beam_search(log_probs, 4, language_model=Alternating(4), **options)
    assert found[0].symbols == (1, 2)
    assert {hypothesis.symbols for hypothesis in found[-2:]}.isdisjoint({(1, 2), (1,)})
    unweighted = prefix_beam_search(log_probs, 4, language_model=Alternating(4), tokens=[(), (2,), (3,)], lm_weight=0)
    assert [h.score for h in unweighted] == [h.score for h in prefix_beam_search(log_probs, 4)]


def test_prefixes_are_read_together_and_only_when_they_are_kept():
    model = FakeLM(7)
    log_probs = frames(40, symbols=7)
    prefix_beam_search(log_probs, 4, language_model=model, tokens=[(token,) for token in range(7)])
    assert model.steps <= 1 + 4 * 40
    model.steps = 0
    blanks = torch.full((40, 3), 1e-9).log()
    blanks[:, 0] = 0.0
    prefix_beam_search(blanks, 1, language_model=model, tokens=[(), (2,), (3,)])
    assert model.steps == 1


class Uniform(FakeLM):
    def log_probs(self, history):
        return torch.full((self.size,), 1 / self.size, dtype=torch.float64).log()


@pytest.mark.parametrize("bonus", [0.0, 5.0])
def test_half_a_word_is_ranked_as_if_it_were_to_be_an_ordinary_one(bonus):
    """It neither outranks a word that has ended, whose improbability has been counted, nor waits for its bonus."""
    log_probs = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.6, 0.4]]).log()
    options = {"separator": 2, "word_tokens": lambda word: [2], "word_bonus": bonus, "score_end": False}
    (found,) = prefix_beam_search(log_probs, 1, language_model=Uniform(100), **options)
    assert found.symbols == (1, 2)
    assert found.language_model == pytest.approx(-math.log(100))
    assert found.score == pytest.approx(math.log(0.6) - math.log(100) + bonus)


def test_only_the_likeliest_symbols_of_a_frame_are_tried():
    log_probs = frames(4, symbols=9)
    best = {int(frame[1:].argmax()) + 1 for frame in log_probs}
    found = prefix_beam_search(log_probs, WIDE, most_symbols=1)
    assert {symbol for hypothesis in found for symbol in hypothesis.symbols} == best
    everything = {h.symbols: h.ctc for h in prefix_beam_search(log_probs, WIDE, most_symbols=8)}
    assert all(hypothesis.ctc <= everything[hypothesis.symbols] + 1e-12 for hypothesis in found)
    assert len(everything) > 20 * len(found)


def test_what_is_impossible_is_not_kept():
    log_probs = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]).log()
    (found,) = prefix_beam_search(log_probs)
    assert found.symbols == (1,)
    assert found.score == pytest.approx(0, abs=1e-6)
    certain = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]).log()
    assert [hypothesis.symbols for hypothesis in prefix_beam_search(certain, WIDE)] == [(1, 1)]


def test_search_names_mistakes():
    log_probs = frames(3)
    with pytest.raises(UserError, match="beam: expected at least 1, got 0"):
        prefix_beam_search(log_probs, 0)
    with pytest.raises(ValueError, match=r"expected log_probs \[T, C\]"):
        prefix_beam_search(log_probs[None])
    with pytest.raises(ValueError, match="tokens: expected 3, those of each symbol, got 2"):
        prefix_beam_search(log_probs, language_model=FakeLM(3), tokens=[(), (2,)])
    symbols = [(), (1,), (2,)]
    for options in ({}, {"separator": 1}, {"tokens": symbols, "separator": 1}):
        with pytest.raises(ValueError, match="expected either tokens, or separator and word_tokens"):
            prefix_beam_search(log_probs, language_model=FakeLM(3), **options)
    with pytest.raises(ValueError, match="expected a language_model to go with them"):
        prefix_beam_search(log_probs, tokens=symbols)
    with pytest.raises(ValueError, match="most_symbols: expected at least 1, got 0"):
        prefix_beam_search(log_probs, most_symbols=0)
