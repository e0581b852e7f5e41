"""Text out of a language model: each token that is chosen becomes the next input.

Tokens are chosen by sampling (with temperature, top-k, top-p), greedily, or by beam search. Everything here works on
any model that follows the protocol; text comes from the tokenizer's `decode`, given as a function.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .config import UserError, setting
from .models.protocol import LanguageModelProtocol, State, device_of, evaluating
from .text.vocabulary import LINE_END, UNKNOWN

Decode: TypeAlias = Callable[[Sequence[int]], str]

REPLACEMENT = "\ufffd"  # what `decode` makes of bytes that are not, or not yet, a character
LONGEST_PART = 3  # bytes that may be there of a UTF-8 character which is not complete
NOTHING_POSSIBLE = "the model gives every token but <unk> probability 0: allow <unk>, or use another model or prompt"


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How to generate text.

    Raises:
        UserError: a number out of its bounds, or settings that do not go together.
    """

    count: int = setting(1, "texts to generate", minimum=1)
    max_tokens: int = setting(200, "longest text, in tokens", minimum=1)
    temperature: float = setting(
        1.0, "divides log-probabilities before sampling: below 1 safer, above 1 wilder", minimum=0
    )
    top_k: int = setting(0, "sample from this many of the likeliest tokens only; 0 for all", minimum=0)
    top_p: float = setting(1.0, "sample from the likeliest tokens of this total probability only", minimum=0, maximum=1)
    greedy: bool = setting(False, "always take the likeliest token")
    beam: int = setting(0, "search for the likeliest text, keeping this many beginnings; 0 for no search", minimum=0)
    length_penalty: float = setting(0.0, "beam search divides by length to this power; 1 ranks by the mean", minimum=0)
    seed: int | None = setting(None, "makes sampling repeatable", minimum=0)
    stop: str = setting("", "a text ends before this string; none if empty")
    allow_unknown: bool = setting(False, "let <unk> be generated")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, low, high = getattr(self, field.name), field.metadata["minimum"], field.metadata["maximum"]
            if value is not None and low is not None and value < low:
                raise UserError(f"{field.name}: expected at least {low}, got {value}")
            if value is not None and high is not None and value > high:
                raise UserError(f"{field.name}: expected at most {high}, got {value}")
        for name in ("temperature", "top_p"):
            if getattr(self, name) == 0:
                raise UserError(f"{name}: expected above 0, got 0; for the likeliest token choose greedy")
        if self.greedy and self.beam:
            raise UserError("greedy and beam do not go together: choose one (a beam of 1 is greedy)")
        if self.greedy and self.count > 1:
            raise UserError(f"greedy gives one text, got count {self.count}: sample, or choose beam for the best few")
        if 0 < self.beam < self.count:
            raise UserError(f"a beam of {self.beam} finds at most {self.beam} texts, got count {self.count}")
        if self.beam and self.stop not in ("", "\n"):
            raise UserError(f"beam search stops at a line end only, got stop {self.stop!r}: sample, or choose greedy")
        if (self.greedy or self.beam) and (self.temperature, self.top_k, self.top_p) != (1, 0, 1):
            chosen = "greedy" if self.greedy else "beam"
            raise UserError(f"temperature, top_k and top_p are for sampling: leave them out, or {chosen}")
        if self.length_penalty and not self.beam:
            raise UserError("length_penalty is for beam search: leave it out, or choose a beam")


class Piece(NamedTuple):
    """What has been added to one of the texts being generated.

    Attributes:
        row: Which text, from 0.
        ids: The tokens added.
        log_prob: Their log-probability under the model itself, whatever temperature they were sampled at, in nats.
        text: The text that is now certain. Several tokens may make one character, so this can be empty, or be the
            text of tokens of earlier pieces. What comes from `stop` on is not in it.
    """

    row: int
    ids: list[int]
    log_prob: float
    text: str


@dataclass(frozen=True)
class Generated:
    """A generated text.

    Attributes:
        ids: Its tokens, those that made the stop string included.
        log_prob: Log-probability of `ids` after the prompt, under the model itself, in nats.
        text: What follows the prompt's text, up to the stop string; begins with a space where a new word does.
    """

    ids: list[int]
    log_prob: float
    text: str


class Hypothesis(NamedTuple):
    """A sequence that beam search found: its tokens, the end token included, and their log-probability in nats."""

    ids: list[int]
    log_prob: float


def next_log_probs(lm: LanguageModelProtocol, prompt: Sequence[int]) -> Tensor:
    """Return the log-probability of every token after a prompt, which may be empty, [V] on the CPU, in nats."""
    with torch.no_grad(), evaluating(lm):
        log_probs, _ = _read(lm, prompt)
    return log_probs[0].cpu()


def next_tokens(lm: LanguageModelProtocol, prompt: Sequence[int], k: int) -> list[tuple[int, float]]:
    """Return the k likeliest next tokens and their probabilities, the likeliest first; all V if k is larger.

    Raises:
        UserError: k is below 1.
    """
    if k < 1:
        raise UserError(f"k: expected at least 1, got {k}")
    log_probs = next_log_probs(lm, prompt).double()
    return [(token, math.exp(log_probs[token])) for token in _best(log_probs, k).tolist()]


def generate(
    lm: LanguageModelProtocol, prompt: Sequence[int], settings: GenerationSettings, decode: Decode
) -> list[Generated]:
    """Generate whole texts; for the arguments see :func:`generate_stream`.

    Returns:
        The texts: as sampled, or from beam search the best first, and fewer than `count` where there are no more.
    """
    rows: dict[int, list[Piece]] = defaultdict(list)
    for piece in generate_stream(lm, prompt, settings, decode):
        rows[piece.row].append(piece)
    return [
        Generated(
            ids=[token for piece in rows[row] for token in piece.ids],
            log_prob=sum(piece.log_prob for piece in rows[row]),
            text="".join(piece.text for piece in rows[row]),
        )
        for row in sorted(rows)
    ]


@torch.no_grad()
def generate_stream(
    lm: LanguageModelProtocol, prompt: Sequence[int], settings: GenerationSettings, decode: Decode
) -> Iterator[Piece]:
    """Generate texts token by token, and give each piece away as soon as it is there; beam search only when it ends.

    Row i of a seed depends on the seed and i, not on `count` (but for the model's rounding in batches of other sizes).
    A module is in evaluation mode until the last piece has been taken.

    Args:
        lm: The model.
        prompt: Ids that the texts go on from; may be empty.
        settings: How to choose tokens, and when to stop.
        decode: Returns the text of some ids. It works line by line, and the text of a line's first tokens is the
            beginning of the whole line's text.

    Yields:
        For every token of every row its piece; rows take turns.
    """
    writer = IncrementalDecoder(decode, prompt, settings.stop)
    with evaluating(lm):
        if not settings.beam:
            yield from _choose_tokens(lm, prompt, settings, writer)
            return
        hypotheses = beam_search(
            lm,
            prompt,
            beam=settings.beam,
            max_tokens=settings.max_tokens,
            end_token=LINE_END if settings.stop else None,
            length_penalty=settings.length_penalty,
            allow_unknown=settings.allow_unknown,
        )
        for row, (ids, log_prob) in enumerate(hypotheses[: settings.count]):
            own = writer.copy()
            text = "".join(map(own.push, ids)) + own.finish()
            yield Piece(row, ids, log_prob, text)


@torch.no_grad()
def beam_search(
    lm: LanguageModelProtocol,
    prompt: Sequence[int],
    *,
    beam: int,
    max_tokens: int,
    end_token: int | None = None,
    length_penalty: float = 0.0,
    allow_unknown: bool = False,
) -> list[Hypothesis]:
    """Search for the likeliest continuations of a prompt, keeping the `beam` best beginnings at each step.

    A sequence ends with `end_token` or after `max_tokens` tokens. Its score is its log-probability over its length to
    the power of `length_penalty`. Sequences that have ended are kept aside, and the search goes on until no beginning
    that is left can still be better. With a beam that holds all beginnings the result is the true optimum.

    Returns:
        At most `beam` sequences, the best first.

    Raises:
        UserError: the model gives every continuation probability 0.
    """
    device = device_of(lm)
    ended: list[Hypothesis] = []
    sequences: list[list[int]] = [[]]
    with evaluating(lm):
        log_probs, state = _read(lm, prompt)
        scores = torch.zeros(1, dtype=torch.float64)
        for length in range(1, max_tokens + 1):
            totals = scores[:, None] + _allowed(log_probs, allow_unknown)  # [sequences, vocabulary]
            if end_token is not None:
                endings = zip(sequences, totals[:, end_token].tolist(), strict=True)
                ended += [Hypothesis([*ids, end_token], total) for ids, total in endings if total > -math.inf]
                ended = _ranked(ended, length_penalty)[:beam]
                totals[:, end_token] = -math.inf
            best = _best(totals.flatten(), beam)
            best = best[totals.flatten()[best] > -math.inf]
            parents, tokens = best // totals.shape[1], best % totals.shape[1]
            scores = totals.flatten()[best]
            sequences = [[*sequences[i], token] for i, token in zip(parents.tolist(), tokens.tolist(), strict=True)]
            if not sequences or length == max_tokens:
                break
            # A log-probability only falls, so the best that a beginning can hope for is to stay as it is.
            hope = float(scores[0]) / math.pow(max_tokens, length_penalty)
            if len(ended) == beam and hope <= _score(ended[-1], length_penalty):
                sequences = []
                break
            state = lm.select(state, parents.to(device))
            log_probs, state = lm.step(tokens.to(device), state)
    ended += map(Hypothesis, sequences, scores.tolist())
    if not ended:
        raise UserError(NOTHING_POSSIBLE)
    return _ranked(ended, length_penalty)[:beam]


def restrict(log_probs: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Return the log-probabilities to sample from, the likeliest put at 0 in each row; -inf for what is left out.

    In the order that Hugging Face's transformers apply them: temperature, then top-k (Fan et al. 2018), then top-p
    (nucleus sampling, Holtzman et al. 2020) on what is left. Among equals the lower id is kept, so that top-k keeps
    exactly k tokens, and top-p the fewest whose probability reaches p, always at least one.

    Args:
        log_probs: The model's, on the CPU, [N, V].
        temperature: Divides them; above 0.
        top_k: Tokens to keep; 0 for all.
        top_p: Probability to keep, above 0 and at most 1.
    """
    weights = (log_probs - log_probs.max(-1, keepdim=True).values) / temperature
    if 0 < top_k < weights.shape[-1]:
        threshold = weights.topk(top_k, dim=-1).values[:, -1:]
        weights = weights.masked_fill(~_largest(weights, top_k, threshold), -math.inf)
    if top_p < 1:
        probabilities = weights.softmax(-1)
        falling = torch.from_numpy(-np.sort(-probabilities.numpy(), axis=-1))  # NumPy's sort is 8 times as fast
        before = functional.pad(falling.cumsum(-1)[:, :-1], (1, 0))  # probability of all likelier tokens
        size = (before < top_p).sum(-1, keepdim=True)
        kept = _largest(probabilities, size, falling.gather(-1, size - 1))
        weights = weights.masked_fill(~kept, -math.inf)
    return weights


def _choose_tokens(
    lm: LanguageModelProtocol, prompt: Sequence[int], settings: GenerationSettings, writer: IncrementalDecoder
) -> Iterator[Piece]:
    """Sample, or choose greedily, one token after the other in all rows; a row leaves the batch when it has ended."""
    device = device_of(lm)
    rows = list(range(settings.count))
    writers = [writer.copy() for _ in rows]
    seed = secrets.randbits(64) if settings.seed is None else settings.seed
    streams = [np.random.default_rng([seed, row]) for row in rows]
    log_probs, state = _read(lm, prompt)
    state = lm.select(state, torch.zeros(len(rows), dtype=torch.long, device=device))
    log_probs = log_probs.expand(len(rows), -1)
    for length in range(1, settings.max_tokens + 1):
        allowed = _allowed(log_probs, settings.allow_unknown)
        if not allowed.max(-1).values.isfinite().all():
            raise UserError(NOTHING_POSSIBLE)
        if settings.greedy:
            tokens = allowed.argmax(-1)
        else:
            uniforms = torch.tensor([streams[row].random() for row in rows], dtype=torch.float64)
            weights = restrict(allowed, temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p)
            tokens = _draw(weights, uniforms)
        chosen = allowed.gather(-1, tokens[:, None])[:, 0].tolist()
        going = []
        for place, (row, token, log_prob) in enumerate(zip(rows, tokens.tolist(), chosen, strict=True)):
            text = writers[row].push(token)
            if length == settings.max_tokens or writers[row].stopped:
                text += writers[row].finish()
            else:
                going.append(place)
            yield Piece(row, [token], log_prob, text)
        if not going:
            return
        if len(going) < len(rows):
            kept = torch.tensor(going)
            rows, tokens, state = [rows[i] for i in going], tokens[kept], lm.select(state, kept.to(device))
        log_probs, state = lm.step(tokens.to(device), state)


def _read(lm: LanguageModelProtocol, prompt: Sequence[int]) -> tuple[Tensor, State]:
    """Read a prompt as one row; return the log-probabilities of what follows, [1, V], and the state."""
    inputs = torch.tensor([LINE_END, *prompt], dtype=torch.long, device=device_of(lm))[:, None]  # [time, 1]
    state = lm.start(1)
    if len(inputs) > 1:
        _, state = lm.score(inputs[:-1], inputs[1:], state)  # all steps but the last at once
    return lm.step(inputs[-1], state)


def _allowed(log_probs: Tensor, allow_unknown: bool) -> Tensor:
    """Return log-probabilities in double precision on the CPU, that of the unknown token -inf unless it is allowed."""
    log_probs = log_probs.cpu().double().clone()
    if not allow_unknown:
        log_probs[:, UNKNOWN] = -math.inf
    return log_probs


def _draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one token for each row by inverting the distribution function.

    Args:
        weights: Log-probabilities as :func:`restrict` returns them, float64 [N, V].
        uniforms: Numbers in [0, 1), float64 [N].
    """
    masses = weights.exp().cumsum(-1)
    # The first token whose mass exceeds the target: one of probability 0 adds nothing, and is never the first.
    return torch.searchsorted(masses, uniforms[:, None] * masses[:, -1:], right=True)[:, 0]


def _largest(values: Tensor, k: int | Tensor, threshold: Tensor) -> Tensor:
    """Return a mask of the k largest values of each row; among equals those further left.

    Args:
        values: Any numbers, [N, V].
        k: How many to take, of every row or of each, [N, 1].
        threshold: The k-th largest value of each row, [N, 1].
    """
    above = values > threshold
    level = values == threshold
    return above | (level & (level.cumsum(-1) <= k - above.sum(-1, keepdim=True)))


def _best(values: Tensor, k: int) -> Tensor:
    """Return the indices of the k largest values, or of all, the largest first; among equals the lower first."""
    if k >= len(values):
        return values.argsort(descending=True, stable=True)
    threshold = values.topk(k).values[-1]
    indices = _largest(values[None], k, threshold)[0].nonzero()[:, 0]
    return indices[values[indices].argsort(descending=True, stable=True)]


def _score(hypothesis: Hypothesis, length_penalty: float) -> float:
    return hypothesis.log_prob / math.pow(len(hypothesis.ids), length_penalty)


def _ranked(hypotheses: list[Hypothesis], length_penalty: float) -> list[Hypothesis]:
    return sorted(hypotheses, key=lambda hypothesis: -_score(hypothesis, length_penalty))


class IncrementalDecoder:
    """Turns tokens into text as they come, and gives away only what no later token can change.

    What it gave away and :meth:`finish` together are what decoding all tokens at once gives, up to the stop string.

    Args:
        decode: a tokenizer's.
        prompt: what the tokens go on from; none of its text is given away.
        stop: the text ends before this string; none if empty.

    Attributes:
        stopped: whether the stop string has come.
    """

    def __init__(self, decode: Decode, prompt: Sequence[int] = (), stop: str = "") -> None:
        ends = [place for place, token in enumerate(prompt) if token == LINE_END]
        self._decode = decode
        self._stop = stop
        self._line = list(prompt[ends[-1] + 1 :] if ends else prompt)  # tokens of the line being written
        self._taken = len(decode(self._line))  # characters of it that have been given away, or are held
        self._held = ""  # may be the beginning of the stop string
        self.stopped = False

    def copy(self) -> IncrementalDecoder:
        """Return another one that goes on from here."""
        other = copy.copy(self)
        other._line = self._line.copy()
        return other

    def push(self, token: int) -> str:
        """Add a token, and return the text that is certain now."""
        self._line.append(token)
        text = self._decode(self._line)
        end = len(text)
        while end > len(text) - LONGEST_PART and text[:end].endswith(REPLACEMENT):
            end -= 1
        certain = text[self._taken : end]
        self._taken = max(self._taken, end)
        if token == LINE_END:
            self._line, self._taken = [], 0
        return self._release(certain)

    def finish(self) -> str:
        """Return what was held back, since no token to come belongs to it."""
        text = self._decode(self._line)
        rest = self._release(text[self._taken :])
        self._taken = max(self._taken, len(text))
        held, self._held = self._held, ""
        return rest + held

    def _release(self, text: str) -> str:
        """Return held and new text, less an end that may be the beginning of the stop string."""
        text = self._held + text
        if self.stopped:
            return ""
        place = text.find(self._stop) if self._stop else -1
        if place >= 0:
            self.stopped = True
            self._held = ""
            return text[:place]
        longest = min(len(text), len(self._stop) - 1)
        keep = next((n for n in range(longest, 0, -1) if text.endswith(self._stop[:n])), 0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]
