"""Connectionist temporal classification: from frames to symbols without an alignment (Graves et al. 2006).

A path gives every frame a symbol or the blank, 0; it stands for what is left of it once repeats are merged and then
blanks are dropped. The probability of a sequence of symbols is the sum over all paths that stand for it.

Letters in shapes: T frames, N sequences, C symbols with the blank, U symbols of a target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from recurra.config import UserError

from .pooling import checked_lengths, valid_steps

__all__ = ["BLANK", "Hypothesis", "ctc_loss", "greedy", "prefix_beam_search"]

BLANK = 0
LEAST = -1e4  # a log-probability whose exponential is 0

Numbers = NDArray[np.float64]


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    lengths: Tensor | Sequence[int] | None,
    target_lengths: Tensor | Sequence[int] | None,
) -> Tensor:
    """Return -log p of the targets, summed over the batch, in nats; in float32 or better, whatever autocast says.

    Args:
        log_probs: normalised, ``[T, N, C]``; what lies beyond an end is never read, here and in `targets`.
        targets: symbols from 1 to C - 1, ``[U, N]``.
        lengths: frames of each sequence ``[N]``, from 0 to T, in any order; None if all have T.
        target_lengths: symbols of each target ``[N]``, from 0 to U; None if all have U.

    Raises:
        UserError: a target that has no path: more symbols, with a blank between equal ones, than frames.
        ValueError: shapes or numbers that do not fit.
    """
    if log_probs.dim() != 3 or targets.dim() != 2 or targets.shape[1] != log_probs.shape[1]:
        raise ValueError(
            f"ctc_loss: expected log_probs [T, N, C] and targets [U, N], got {tuple(log_probs.shape)} and"
            f" {tuple(targets.shape)}"
        )
    time, batch, symbols = log_probs.shape
    ends = checked_lengths(lengths, time, batch)
    target_ends = checked_lengths(target_lengths, len(targets), batch)
    there = valid_steps(target_ends, len(targets)).to(targets.device)
    targets = targets.masked_fill(~there, BLANK + 1)
    if targets.numel() and not (BLANK < int(targets.min()) <= int(targets.max()) < max(symbols, BLANK + 2)):
        raise ValueError(f"targets: expected 1 to {symbols - 1}, got {targets.min()} to {targets.max()}")
    repeats = ((targets[1:] == targets[:-1]) & there[1:]).sum(0).cpu()
    for row in (target_ends + repeats > ends).nonzero()[:1, 0].tolist():
        more = f" and {int(repeats[row])} blanks between equal ones" if repeats[row] else ""
        raise UserError(
            f"sequence {row}: {int(target_ends[row])} symbols{more} do not fit into {int(ends[row])} frames; leave it"
            " out, or reduce the frames less"
        )
    some = ends > 0  # without frames only the empty target is left, which is certain
    if not bool(some.all()):
        rows = some.nonzero()[:, 0]
        log_probs, targets = log_probs[:, rows.to(log_probs.device)], targets[:, rows.to(targets.device)]
        ends, target_ends = ends[rows], target_ends[rows]
    if not len(ends):
        return log_probs.sum()
    with torch.autocast(log_probs.device.type, enabled=False):
        log_probs = log_probs.to(torch.promote_types(log_probs.dtype, torch.float32))
        return F.ctc_loss(log_probs, targets.t(), ends, target_ends, blank=BLANK, reduction="sum")


def greedy(log_probs: Tensor, lengths: Tensor | Sequence[int] | None = None) -> list[list[int]]:
    """Return what the likeliest path of each sequence stands for, a list of symbols a sequence.

    Args:
        log_probs: ``[T, N, C]``, normalised or not.
        lengths: frames of each sequence ``[N]``, from 0 to T, in any order; None if all have T.
    """
    ends = checked_lengths(lengths, log_probs.shape[0], log_probs.shape[1])
    best = log_probs.argmax(-1).cpu()  # [T, N]
    starts = torch.ones_like(best, dtype=torch.bool)
    starts[1:] = best[1:] != best[:-1]
    kept = starts & (best != BLANK) & valid_steps(ends, len(best))
    return [path[keep].tolist() for path, keep in zip(best.t(), kept.t(), strict=True)]


class Hypothesis(NamedTuple):
    """What may have been said."""

    symbols: tuple[int, ...]
    score: float  # what hypotheses are ranked by
    ctc: float  # log-probability by the frames, in nats
    language_model: float  # log-probability by the language model, in nats; 0 without one


def prefix_beam_search(
    log_probs: Tensor,
    beam: int = 16,
    *,
    language_model: Any = None,
    tokens: Sequence[Sequence[int]] | None = None,
    separator: int | None = None,
    word_tokens: Callable[[tuple[int, ...]], Sequence[int]] | None = None,
    lm_weight: float = 1.0,
    word_bonus: float = 0.0,
    line_end: int = 1,
    score_end: bool = True,
    most_symbols: int = 20,
) -> list[Hypothesis]:
    """Search for the likeliest symbols, all paths of each taken together (Graves 2012, section 7.5).

    Ranked by log p(symbols | frames) + lm_weight * log p(symbols) + word_bonus * words, the second by a language model
    (Hannun et al. 2014, "First-Pass Large Vocabulary Continuous Speech Recognition", equation 4). A text begins after a
    line end, and ends with one. Exact if the beam is as wide as there are prefixes, and no symbols are left out.

    Until a word has ended, nobody knows what the language model makes of it. Half a word is ranked as if it were going
    to be an ordinary one: its bonus is there, and its log-probability is the one to be expected, the negative entropy
    of what the language model says there. Of a word of several tokens, the first counts as the word ends, the others
    from the next frame on.

    Args:
        log_probs: of one sequence, normalised, ``[T, C]``.
        beam: prefixes that are kept after each frame.
        language_model: whatever has ``start``, ``step`` and ``select`` of the protocol of language models, ready for
            evaluation; with `tokens`, over symbols; with `separator` and `word_tokens`, over words.
        tokens: the language model's tokens for each symbol, C of them; those of the blank are not looked at.
        separator: the symbol between words, which are scored when they end, at a separator or with the frames. Words
            without any symbol are none.
        word_tokens: gives the language model's tokens for the symbols of a word.
        lm_weight: what the language model's log-probabilities are multiplied by.
        word_bonus: added for each word; without `separator` for each symbol.
        line_end: the language model's token for the line end.
        score_end: whether the language model's line end at the end counts.
        most_symbols: the likeliest symbols of each frame that prefixes grow by; all others are taken for impossible.

    Returns:
        As many hypotheses as were kept, the best first.

    Raises:
        UserError: a beam below 1.
        ValueError: shapes or arguments that do not fit together.
    """
    if log_probs.dim() != 2 or log_probs.shape[1] < 1:
        raise ValueError(f"prefix_beam_search: expected log_probs [T, C], got {tuple(log_probs.shape)}")
    if beam < 1:
        raise UserError(f"beam: expected at least 1, got {beam}")
    if most_symbols < 1:
        raise ValueError(f"most_symbols: expected at least 1, got {most_symbols}")
    symbols = log_probs.shape[1]
    if tokens is not None and len(tokens) != symbols:
        raise ValueError(f"tokens: expected {symbols}, those of each symbol, got {len(tokens)}")
    if language_model is not None:
        by_words = separator is not None and word_tokens is not None
        if by_words == (tokens is not None) or (tokens is not None and separator is not None):
            raise ValueError("language_model: expected either tokens, or separator and word_tokens, to go with it")
    elif tokens is not None or word_tokens is not None:
        raise ValueError("tokens and word_tokens: expected a language_model to go with them")
    model = None if language_model is None or lm_weight == 0 else _Reader(language_model)
    scorer = _Scorer(model, symbols, tokens, separator, word_tokens, lm_weight, word_bonus)

    # Of each prefix the log-probability of the paths so far that end with the blank, and of the others.
    prefixes: list[tuple[int, ...]] = [()]
    blank, other = np.zeros(1), np.full(1, -np.inf)
    texts = [scorer.begin(line_end)]
    for frame in log_probs.detach().double().cpu().numpy():
        adds = BLANK + 1 + np.sort(_best(frame[BLANK + 1 :], most_symbols))  # symbols that prefixes may grow by
        column_of = {int(symbol): column for column, symbol in enumerate(adds)}
        last = np.array([prefix[-1] if prefix else BLANK for prefix in prefixes])
        total = np.logaddexp(blank, other)
        stay_blank, stay_other = total + frame[BLANK], other + frame[last]
        grown = total[:, None] + frame[adds]
        place = {prefix: row for row, prefix in enumerate(prefixes)}
        columns = np.array([column_of.get(int(symbol), -1) for symbol in last])  # of the last symbol
        rows = np.flatnonzero(columns >= 0)
        grown[rows, columns[rows]] = blank[rows] + frame[last[rows]]  # an equal one follows a blank only
        for row in rows:
            parent = place.get(prefixes[row][:-1])
            if parent is not None:  # what the parent grows into is here already
                stay_other[row] = np.logaddexp(stay_other[row], grown[parent, columns[row]])
                grown[parent, columns[row]] = -np.inf
        so_far = np.array([text.score for text in texts])
        gains = np.stack([text.gains[adds] for text in texts])
        scores = np.concatenate(
            (np.logaddexp(stay_blank, stay_other) + so_far, (grown + so_far[:, None] + gains).ravel())
        )
        chosen = _best(scores, beam)
        stays = chosen[chosen < len(prefixes)]
        parents, columns = np.divmod(chosen[chosen >= len(prefixes)] - len(prefixes), max(1, len(adds)))
        steps = [(row, int(adds[column])) for row, column in zip(parents, columns, strict=True)]
        texts = [texts[row] for row in stays] + scorer.extended([(texts[row], symbol) for row, symbol in steps])
        prefixes = [prefixes[row] for row in stays] + [(*prefixes[row], symbol) for row, symbol in steps]
        blank = np.concatenate((stay_blank[stays], np.full(len(steps), -np.inf)))
        other = np.concatenate((stay_other[stays], grown[parents, columns]))

    found = [
        Hypothesis(prefix, float(ctc + score), float(ctc), float(log_prob))
        for prefix, ctc, (score, log_prob) in zip(
            prefixes, np.logaddexp(blank, other), scorer.ended(texts, line_end if score_end else None), strict=True
        )
    ]
    return sorted(found, key=lambda hypothesis: -hypothesis.score)


def _best(scores: Numbers, count: int) -> NDArray[np.int64]:
    """Return the places of the highest scores, the best first; of what is impossible none, unless there is no other."""
    places = np.arange(len(scores)) if len(scores) <= count else np.argpartition(-scores, count - 1)[:count]
    places = places[np.argsort(-scores[places], kind="stable")]
    possible = places[scores[places] > -np.inf]
    return possible if len(possible) else places[:1]


class _Context(NamedTuple):
    """What the language model says after a text."""

    states: Any  # of several texts
    row: int  # of this one
    log_probs: Numbers  # of what follows, by token
    expected: float  # the mean of that, as what follows has it: the negative entropy


class _Text(NamedTuple):
    """A prefix as the language model sees it."""

    score: float  # what it adds to the prefix's score, what is expected of half a word included
    log_prob: float  # by the language model, of what is complete
    gains: Numbers  # what growing by each symbol would add to the score, [C]
    word: tuple[int, ...]  # symbols since the last separator, where there are separators
    tokens: tuple[int, ...]  # the word's
    context: _Context | None  # before the word


class _Reader:
    """A language model that goes on from many texts: those that were read together are rows of one state."""

    def __init__(self, model: Any) -> None:
        self.model = model
        tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
        self.device = tensors[0].device if tensors else torch.device("cpu")

    @torch.no_grad()
    def begin(self, line_end: int) -> _Context:
        return self._read([line_end], self.model.start(1))[0]

    @torch.no_grad()
    def read(self, contexts: Sequence[_Context], tokens: Sequence[int]) -> list[_Context]:
        """Read one token after each text. The model is stepped once for all that share a state."""
        groups: dict[int, list[int]] = {}
        for place, context in enumerate(contexts):
            groups.setdefault(id(context.states), []).append(place)
        found: dict[int, _Context] = {}
        for places in groups.values():
            rows = torch.tensor([contexts[place].row for place in places], device=self.device)
            state = self.model.select(contexts[places[0]].states, rows)
            found.update(zip(places, self._read([tokens[place] for place in places], state), strict=True))
        return [found[place] for place in range(len(contexts))]

    def _read(self, tokens: Sequence[int], state: Any) -> list[_Context]:
        log_probs, state = self.model.step(torch.tensor(tokens, device=self.device), state)
        log_probs = log_probs.double()
        means = (log_probs.exp() * log_probs.clamp(min=LEAST)).sum(-1).tolist()
        rows = zip(log_probs.cpu().numpy(), means, strict=True)
        return [_Context(state, row, own, mean) for row, (own, mean) in enumerate(rows)]


class _Scorer:
    """What language model and bonus add to the score of a prefix, by symbols or by words."""

    def __init__(
        self,
        model: _Reader | None,
        symbols: int,
        tokens: Sequence[Sequence[int]] | None,
        separator: int | None,
        word_tokens: Callable[[tuple[int, ...]], Sequence[int]] | None,
        lm_weight: float,
        bonus: float,
    ) -> None:
        self.model = model
        self.symbols = symbols
        self.tokens = None if tokens is None else [(), *map(tuple, tokens[BLANK + 1 :])]
        self.separator = separator
        self.word_tokens = word_tokens
        self.lm_weight = lm_weight
        self.bonus = bonus
        known = [(symbol, own[0]) for symbol, own in enumerate(self.tokens or ()) if own]
        self.known, self.firsts = np.array(known, np.int64).reshape(-1, 2).T

    def begin(self, line_end: int) -> _Text:
        """Return the text without any symbol."""
        return self._text(0.0, 0.0, (), self.model.begin(line_end) if self.model else None)

    def extended(self, steps: Sequence[tuple[_Text, int]]) -> list[_Text]:
        """Return the texts that result from reading a symbol after each of some."""
        completed = [self._completed(text, symbol) for text, symbol in steps]
        found = []
        for (text, symbol), (rest, log_prob, context) in zip(
            steps, self._read([text for text, _ in steps], completed), strict=True
        ):
            word = () if self.separator is None or symbol == self.separator else (*text.word, symbol)
            score = text.score + float(text.gains[symbol]) + self.lm_weight * rest
            found.append(self._text(score, text.log_prob + log_prob, word, context))
        return found

    def ended(self, texts: Sequence[_Text], line_end: int | None) -> list[tuple[float, float]]:
        """Return score and log-probability of texts that end here, their last words and the line end with them."""
        found = []
        for text, (rest, own, context) in zip(texts, self._read(texts, [text.tokens for text in texts]), strict=True):
            score, log_prob = text.score + self.lm_weight * rest, text.log_prob + own
            if text.word:
                score += float(text.gains[self.separator])
            if context is not None and line_end is not None:
                score += self.lm_weight * float(context.log_probs[line_end])
                log_prob += float(context.log_probs[line_end])
            found.append((score, log_prob))
        return found

    def _completed(self, text: _Text, symbol: int) -> tuple[int, ...]:
        """Return the tokens that a symbol completes, if it completes any."""
        if self.separator is None:
            return () if self.tokens is None else self.tokens[symbol]
        return text.tokens if symbol == self.separator else ()

    def _read(
        self, texts: Sequence[_Text], tokens: Sequence[tuple[int, ...]]
    ) -> list[tuple[float, float, _Context | None]]:
        """Read tokens after texts: log-probability of those after the first, of all of them; and what follows."""
        contexts = [text.context for text in texts]
        log_probs: list[list[float]] = [[] for _ in texts]
        if self.model is not None:
            for number in range(max(map(len, tokens), default=0)):
                places = [place for place, own in enumerate(tokens) if len(own) > number]
                before = [context for place in places if (context := contexts[place]) is not None]
                for place, context in zip(places, before, strict=True):
                    log_probs[place].append(float(context.log_probs[tokens[place][number]]))
                after = self.model.read(before, [tokens[place][number] for place in places])
                for place, context in zip(places, after, strict=True):
                    contexts[place] = context
        return [(sum(own[1:]), sum(own), context) for own, context in zip(log_probs, contexts, strict=True)]

    def _text(self, score: float, log_prob: float, word: tuple[int, ...], context: _Context | None) -> _Text:
        tokens: tuple[int, ...] = ()
        if self.separator is None:
            gains = np.full(self.symbols, self.bonus)
            if context is not None:
                gains[self.known] += self.lm_weight * context.log_probs[self.firsts]
            return _Text(score, log_prob, gains, word, tokens, context)
        expected = self.bonus + (0.0 if context is None else self.lm_weight * context.expected)
        if not word:  # whatever comes next begins one
            gains = np.full(self.symbols, expected)
            gains[self.separator] = 0.0
            return _Text(score, log_prob, gains, word, tokens, context)
        if self.word_tokens is not None:
            tokens = tuple(self.word_tokens(word))
        first = self.lm_weight * float(context.log_probs[tokens[0]]) if tokens and context is not None else 0.0
        gains = np.zeros(self.symbols)
        gains[self.separator] = self.bonus + first - expected
        return _Text(score, log_prob, gains, word, tokens, context)
