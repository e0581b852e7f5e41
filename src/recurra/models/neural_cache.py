"""The neural cache (Grave, Joulin & Usunier 2017): what followed in like contexts, not long ago, will follow again.

Letters used for shapes: T is time steps, N rows of a batch, V tokens of the vocabulary, F features of a hidden vector,
K pairs in the cache, B inverse temperatures tried at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recurra.config import UserError
from recurra.models.mixture import fit_weights
from recurra.models.neural import NeuralLM
from recurra.models.protocol import LanguageModelProtocol, State, device_of, evaluating
from recurra.text.vocabulary import LINE_END

__all__ = ["CacheState", "NeuralCache", "ReadingModel", "TunedCache", "tune"]

# Similarities held at a time: 2**20 in float32 are 4 MiB, so that the passes over them stay in a processor's cache.
SCORES_PER_CHUNK = 2**20
MOST_STEPS = 256  # of a chunk: a step is compared with the pairs of all of its chunk, and only those before it count

LARGEST = 1_000_000  # words of a cache, each with a vector
CHUNK_LENGTH = 256  # steps that `tune` has the model read at once
SAMPLE = 1024  # tokens that `tune` judges the length of hidden vectors by
STRENGTHS = (0.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0)  # theta times the mean squared length of a hidden vector


@runtime_checkable
class ReadingModel(LanguageModelProtocol, Protocol):
    """A language model that shows the vectors its output layer sees.

    Its `score` is `read` and then `reading_log_probs`.
    """

    def read(self, inputs: Tensor, state: State) -> tuple[Any, State]:
        """Read ``inputs [T, N]``; what the output layer is given, as ``.hidden [T, N, F]`` of it, and the new state."""

    def reading_log_probs(self, reading: Any, targets: Tensor | None = None) -> Tensor:
        """Log-probabilities after a reading: of all words, [T, N, V], or of ``targets [T, N]``, [T, N]."""


class CacheState(NamedTuple):
    """What has been read: pairs of a hidden vector and the word that followed it, and what the model remembers.

    Once ``size`` pairs are there, each new one takes the place of the oldest.

    Attributes:
        inner: the model's own state.
        last: the latest hidden vector, whose next word is not known yet, [N, F]; None before anything was read.
        hidden: vectors, [size, N, F]; None before there are any.
        words: what followed each, int64 [size, N]; None likewise.
        filled: places in use, from the first on.
        oldest: the place that the next pair takes.
    """

    inner: State
    last: Tensor | None = None
    hidden: Tensor | None = None
    words: Tensor | None = None
    filled: int = 0
    oldest: int = 0


class NeuralCache(nn.Module):
    r"""A language model, and beside it a memory of the last words in their contexts.

    .. math::
        P(w \mid h_t) &= (1 - \lambda) P_{model}(w \mid h_t) + \lambda P_{cache}(w \mid h_t) \\
        P_{cache}(w \mid h_t) &\propto \sum_{i=t-K}^{t-1} [w = x_{i+1}] \exp(\theta h_t \cdot h_i)

    with K the size of the cache. Until a word has followed another there is no cache, and the model speaks alone. With
    ``theta`` 0 the last K words weigh alike: the unigram cache of Kuhn & De Mori (1990), for any model.

    Follows :class:`recurra.models.protocol.LanguageModelProtocol`. No gradients flow through it. Line ends are words
    like others: the cache goes on over them, whatever the model itself forgets there.

    Args:
        model: with hidden vectors (:class:`ReadingModel`), unless ``theta`` is 0. One that is trained by gradient must
            not be one of lines (its ``reset``): every line is a row of its own then, with a cache of its own.
        size: K, how many pairs are remembered.
        theta: how sharply like contexts are told from others, at least 0; in units of one over a squared hidden vector.
        weight: lambda, from 0 to 1.

    Raises:
        UserError: a number out of its bounds, a model that is trained on lines by themselves, or one without hidden
            vectors where they are needed; when it first reads, if its hidden vectors turn out to have no features.
    """

    def __init__(self, model: LanguageModelProtocol, *, size: int, theta: float, weight: float) -> None:
        super().__init__()
        _check(model, size, [theta])
        if not 0 <= weight <= 1:
            raise UserError(f"weight of the cache: expected a number from 0 to 1, got {weight}")
        self.model: LanguageModelProtocol = model
        self.vocabulary_size = model.vocabulary_size
        self.size, self.theta, self.weight = size, theta, weight

    def start(self, batch_size: int) -> CacheState:
        """The state of rows that have read nothing."""
        return CacheState(self.model.start(batch_size))

    @torch.no_grad()
    def step(self, tokens: Tensor, state: CacheState) -> tuple[Tensor, CacheState]:
        """Read ``tokens [batch]``; log-probabilities ``[batch, vocabulary]`` of what follows."""
        state = self._remember(tokens, state)
        if self.theta:
            assert isinstance(self.model, ReadingModel)
            reading, inner = _read(self.model, tokens[None], state.inner)
            last, log_probs = reading.hidden[0], self.model.reading_log_probs(reading)[0]
        else:
            log_probs, inner = self.model.step(tokens, state.inner)
            last = log_probs.new_empty(len(tokens), 0)
        state = state._replace(inner=inner, last=last)
        if state.hidden is None or state.words is None:
            return log_probs, state
        # The order of the pairs does not matter here.
        scores = self.theta * torch.einsum("nf,knf->nk", last, state.hidden[: state.filled])
        shares = scores.softmax(1).to(log_probs.dtype)
        cached = torch.zeros_like(log_probs).scatter_add_(1, state.words[: state.filled].t(), shares)
        return _interpolated(log_probs, cached.log(), self.weight), state

    @torch.no_grad()
    def score(self, inputs: Tensor, targets: Tensor, state: CacheState) -> tuple[Tensor, CacheState]:
        """Log-probabilities ``[time, batch]`` of ``targets``, each after the inputs up to its own step."""
        log_probs, cached, state = _score(self.model, self.size, inputs, targets, state, [self.theta])
        alone = len(log_probs) - cached.shape[1]  # steps without a cache
        mixed = _interpolated(log_probs[alone:], cached[0], self.weight)
        return torch.cat([log_probs[:alone], mixed]), state

    def select(self, state: CacheState, rows: Tensor) -> CacheState:
        """The state of some rows of the batch, in the order of ``rows``."""
        return state._replace(
            inner=self.model.select(state.inner, rows),
            last=None if state.last is None else state.last[rows],
            hidden=None if state.hidden is None else state.hidden[:, rows],
            words=None if state.words is None else state.words[:, rows],
        )

    def _remember(self, tokens: Tensor, state: CacheState) -> CacheState:
        """Put in the pair of the last hidden vector and the word now known to follow it, in place."""
        if state.last is None:
            return state
        hidden, words = state.hidden, state.words
        if hidden is None or words is None:
            hidden = state.last.new_empty(self.size, *state.last.shape)
            words = tokens.new_empty(self.size, *tokens.shape)
        hidden[state.oldest], words[state.oldest] = state.last, tokens
        filled, oldest = min(state.filled + 1, self.size), (state.oldest + 1) % self.size
        return state._replace(hidden=hidden, words=words, filled=filled, oldest=oldest)


@dataclass(frozen=True, kw_only=True)
class TunedCache:
    """What :func:`tune` found.

    Attributes:
        theta: the best inverse temperature.
        weight: the best weight of the cache with it.
        nats_per_token: cross entropy of the text with both.
        model_nats_per_token: cross entropy of the text by the model alone.
        tried: for each theta tried, its best weight and the cross entropy with it.
    """

    theta: float
    weight: float
    nats_per_token: float
    model_nats_per_token: float
    tried: dict[float, tuple[float, float]]


@torch.no_grad()
def tune(
    model: LanguageModelProtocol,
    tokens: NDArray[np.integer[Any]],
    *,
    size: int,
    starts: Sequence[int] | NDArray[np.integer[Any]] = (0,),
    thetas: Sequence[float] | None = None,
    chunk_length: int = CHUNK_LENGTH,
) -> TunedCache:
    """Choose theta and weight of a cache on a text, in one pass over it.

    The text is read as :func:`recurra.evaluation.surprisal_blocks` does, each row from nothing and with an empty cache,
    but row after row. Similarities are computed once and weighed by every theta; what each makes of every token is
    kept, and the best weight for it found by :func:`recurra.models.mixture.fit_weights`.

    Args:
        model: what the cache is to stand beside.
        tokens: ids of a text that the model was not trained on, any integer type, [tokens].
        size: of the cache.
        starts: offset of each row's first token, where the model and the cache start anew, ascending from 0.
        thetas: those to try. None: so many that theta times the mean squared length of a hidden vector, which is the
            exponent of a context like the present one in all, goes from 0 to 32; only 0 where there is no such length,
            without hidden vectors or with none but zeros.
        chunk_length: time steps computed at once.

    Raises:
        UserError: no row has two tokens, there is no theta, or :class:`NeuralCache` refuses the model or one of them.
        ValueError: offsets that do not ascend from 0 or leave the text.
    """
    begins = np.asarray(starts, dtype=np.int64)
    ends = np.append(begins[1:], np.int64(len(tokens)))
    if len(begins) == 0 or begins[0] != 0 or (ends < begins).any():
        raise ValueError("expected offsets that ascend from 0 and stay within the text")
    longest = (ends - begins).max()
    if longest < 2:
        raise UserError(f"expected a row of two tokens or more to tune a cache on, got {longest} in the longest")
    if thetas is not None and not thetas:
        raise UserError("expected one or more theta to try, got none")
    _check(model, size, thetas or ())
    text = torch.from_numpy(np.asarray(tokens).astype(np.int64)).to(device_of(model))[:, None]
    with evaluating(model):
        if thetas is None:
            thetas = _thetas(model, text[:SAMPLE])
        rows = (text[begin:end] for begin, end in zip(begins, ends, strict=True))
        parts = [part for row in rows for part in _score_row(model, size, row, thetas, chunk_length)]
    alone, *by_theta = np.concatenate(parts, 1)
    tried = {}
    for theta, cached_log_probs in zip(thetas, by_theta, strict=True):
        both = np.stack([alone, cached_log_probs])
        weights = fit_weights(both)
        with np.errstate(divide="ignore"):
            mixed = np.logaddexp(*(both + np.log(weights)[:, None]))
        tried[theta] = float(weights[1]), -float(mixed.mean())
    best = min(tried, key=lambda theta: tried[theta][1])
    weight, nats = tried[best]
    return TunedCache(
        theta=best,
        weight=weight,
        nats_per_token=nats,
        model_nats_per_token=-float(alone.mean(dtype=np.float64)),
        tried=tried,
    )


def _check(model: LanguageModelProtocol, size: int, thetas: Sequence[float]) -> None:
    """Refuse what no cache can be made of."""
    if not 1 <= size <= LARGEST:
        raise UserError(f"size of the cache: expected 1 to {LARGEST:,} words, got {size:,}")
    parts = model.modules() if isinstance(model, nn.Module) else ()
    if any(isinstance(part, NeuralLM) and part.settings.reset == "lines" for part in parts):
        raise UserError(
            "a cache remembers what was read before the line, and this model was trained on lines by themselves"
            " (--reset lines): expected one trained with --reset none or documents"
        )
    for theta in thetas:
        if not (theta >= 0 and math.isfinite(theta)):
            raise UserError(f"theta of the cache: expected a number of at least 0, got {theta}")
        if theta and not isinstance(model, ReadingModel):
            raise _nothing_to_compare(model)


def _nothing_to_compare(model: object) -> UserError:
    return UserError(
        "the model has no hidden vectors to compare: expected theta 0, a cache in which all words weigh alike, or a"
        f" neural model by itself (this is a {type(model).__name__})"
    )


def _thetas(model: LanguageModelProtocol, sample: Tensor) -> list[float]:
    """Inverse temperatures that suit the length of a model's hidden vectors, measured on a sample [T, 1]."""
    if not isinstance(model, ReadingModel):
        return [0.0]
    reading, _ = model.read(sample, model.start(1))
    squared_length = float(reading.hidden.float().square().sum(-1).mean())
    return [strength / squared_length for strength in STRENGTHS] if squared_length > 0 else [0.0]


def _score_row(
    model: LanguageModelProtocol, size: int, row: Tensor, thetas: Sequence[float], chunk_length: int
) -> Iterator[NDArray[np.float32]]:
    """Log-probabilities of a row [T, 1] from its beginning: by the model, and by the cache alone with each theta.

    Yields:
        Those of a chunk, [1 + B, steps].
    """
    inputs = torch.cat([torch.full_like(row[:1], LINE_END), row[:-1]])
    state = CacheState(model.start(1))
    for begin in range(0, len(row), chunk_length):
        chunk = slice(begin, begin + chunk_length)
        log_probs, cached, state = _score(model, size, inputs[chunk], row[chunk], state, thetas)
        if begin == 0:  # no cache before the second step, where every mixture is the model
            cached = torch.cat([log_probs[:1].expand(len(thetas), 1, 1), cached], 1)
        yield torch.cat([log_probs[None], cached])[:, :, 0].float().cpu().numpy()


def _read(model: ReadingModel, inputs: Tensor, state: State) -> tuple[Any, State]:
    """Read for vectors that are to be compared."""
    reading, state = model.read(inputs, state)
    if reading.hidden.shape[-1] == 0:
        raise _nothing_to_compare(model)
    return reading, state


def _score(
    model: LanguageModelProtocol,
    size: int,
    inputs: Tensor,
    targets: Tensor,
    state: CacheState,
    thetas: Sequence[float],
) -> tuple[Tensor, Tensor, CacheState]:
    """Score targets by the model and by a cache, apart, for several theta.

    Returns:
        Log-probabilities by the model, [T, N]; by the cache, [B, T, N], without the text's first step, where there is
        no cache; and the new state.
    """
    if any(thetas):
        assert isinstance(model, ReadingModel)
        reading, inner = _read(model, inputs, state.inner)
        hidden, log_probs = reading.hidden, model.reading_log_probs(reading, targets)
    else:  # vectors of no features are all alike
        log_probs, inner = model.score(inputs, targets, state.inner)
        hidden = log_probs.new_empty(*inputs.shape, 0)
    # All pairs in the order of the text: those in the cache, and those that the inputs complete.
    old, old_words = _in_order(state)
    last = [state.last[None]] if state.last is not None else []
    first = 1 - len(last)
    pairs = torch.cat([*old, *last, hidden[:-1]]), torch.cat([*old_words, inputs[first:]])
    before = len(pairs[0]) - len(inputs) + first  # pairs that the first step with a cache does not see the last of
    cached = [
        log_probs.new_empty(len(thetas), 0, inputs.shape[1]),
        *_score_by_cache(hidden[first:], targets[first:], *pairs, before, size, thetas),
    ]
    state = CacheState(inner, hidden[-1], *_ring(*pairs, size))
    return log_probs, torch.cat(cached, 1).to(log_probs.dtype), state


def _score_by_cache(
    hidden: Tensor, targets: Tensor, keys: Tensor, words: Tensor, before: int, size: int, thetas: Sequence[float]
) -> Iterator[Tensor]:
    """Log-probabilities of targets by the cache alone, a chunk of steps at a time.

    Args:
        hidden: of the steps, [T, N, F].
        targets: of the steps, [T, N].
        keys: hidden vectors of the pairs in the order of the text, [before + T, N, F].
        words: their words, [before + T, N].
        before: step t sees pairs up to number ``before + t``, its own word the last of them; at most ``size``.
        size: how many pairs a step sees at most.
        thetas: B inverse temperatures.

    Yields:
        Log-probabilities, [B, steps, N].
    """
    steps = max(1, min(MOST_STEPS, SCORES_PER_CHUNK // (hidden.shape[1] * (size + MOST_STEPS))))
    for begin in range(0, len(hidden), steps):
        end = min(begin + steps, len(hidden))
        seen = slice(max(0, before + begin + 1 - size), before + end)
        numbers = torch.arange(seen.start, seen.stop, device=hidden.device)
        newest = torch.arange(before + begin, before + end, device=hidden.device)[:, None]
        unseen = (numbers > newest) | (numbers <= newest - size)  # [steps, K]
        # [N, steps, K]
        products = hidden[begin:end].transpose(0, 1) @ keys[seen].permute(1, 2, 0)
        products.masked_fill_(unseen, -math.inf)
        products -= products.amax(2, keepdim=True)  # before theta: it does not change which is largest
        hits = words[seen].t()[:, None] == targets[begin:end].t()[:, :, None]
        parts = []
        for theta in thetas:
            # 0 times minus infinity is nan.
            shares = (products * theta).exp_() if theta else (~unseen).to(products.dtype).expand_as(products)
            parts.append((shares * hits).sum(2) / shares.sum(2))
        yield torch.stack(parts).log_().transpose(1, 2)


def _ring(keys: Tensor, words: Tensor, size: int) -> tuple[Tensor | None, Tensor | None, int, int]:
    """The last pairs as :class:`CacheState` has them: vectors, words, how many, and the place of the oldest."""
    if len(keys) == 0:
        return None, None, 0, 0
    filled = min(len(keys), size)
    hidden = keys.new_empty(size, *keys.shape[1:])
    followers = words.new_empty(size, *words.shape[1:])
    hidden[:filled], followers[:filled] = keys[-filled:], words[-filled:]
    return hidden, followers, filled, filled % size


def _in_order(state: CacheState) -> tuple[list[Tensor], list[Tensor]]:
    """Vectors and words of the cache, the oldest first; each a list of none or one, to be put before others."""
    if state.hidden is None or state.words is None:
        return [], []
    if state.filled < len(state.hidden):
        return [state.hidden[: state.filled]], [state.words[: state.filled]]
    return [state.hidden.roll(-state.oldest, 0)], [state.words.roll(-state.oldest, 0)]


def _interpolated(log_probs: Tensor, cached: Tensor, weight: float) -> Tensor:
    """Log of ``(1 - weight) * exp(log_probs) + weight * exp(cached)``."""
    own = math.log1p(-weight) if weight < 1 else -math.inf
    return torch.logaddexp(log_probs + own, cached + (math.log(weight) if weight else -math.inf))
