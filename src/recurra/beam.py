"""Beam search: the likeliest outputs of a model that writes one token after the other, for many inputs at once.

For conditional generation: what is written belongs to a sentence that has been read, and each sentence of a batch has a
beam of its own. All that is known of the model is a function that makes one step, and one that picks rows of its state.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recurra.config import UserError

__all__ = ["Hypothesis", "LengthPenalty", "Select", "Step", "beam_search"]

LengthPenalty: TypeAlias = Literal["none", "average", "gnmt"]
State = TypeVar("State")
Step: TypeAlias = Callable[[Tensor, State], tuple[Tensor, State] | tuple[Tensor, State, Tensor]]
Select: TypeAlias = Callable[[State, Tensor], State]


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """An output that was found.

    Attributes:
        tokens: Its tokens: those of the prefix and the end token included, the start token not.
        log_prob: Their log-probability, in nats.
        score: The log-probability over the length penalty: what outputs are ranked by.
        ended: Whether the end token is the last; if not, the output was cut at its greatest length.
        extra: What `step` gave besides for each token, ``[len(tokens), ...]``, or None where it gives nothing: for
            instance the attention by which each token was chosen.
    """

    tokens: tuple[int, ...]
    log_prob: float
    score: float
    ended: bool
    extra: Tensor | None = None

    @property
    def content(self) -> tuple[int, ...]:
        """The tokens without the end token."""
        return self.tokens[:-1] if self.ended else self.tokens


@torch.no_grad()
def beam_search(
    step: Step[State],
    select: Select[State],
    state: State,
    *,
    batch: int,
    start: int | Sequence[int],
    end: int,
    max_lengths: int | Sequence[int],
    beam: int = 5,
    n_best: int = 1,
    length_penalty: LengthPenalty = "none",
    alpha: float = 1.0,
    min_length: int = 1,
    prefix: Sequence[Sequence[int]] | None = None,
    forbidden: Sequence[int] = (),
    patience: float = 1.0,
    device: torch.device | str = "cpu",
) -> list[list[Hypothesis]]:
    """Search for the likeliest outputs of each of N sentences, keeping the `beam` best beginnings at each step.

    A token is appended to every beginning in every way. Of the `beam` likeliest results those that end are kept apart,
    and the `beam` likeliest that do not end are the next beginnings. With a beam of 1 this is greedy decoding. The
    search for a sentence is over when `n_best` outputs are there, and no beginning that is left can become better than
    the last of them, or `patience` times `beam` outputs have ended. With a beam that holds everything the result is the
    true optimum.

    A hypothesis Y is ranked by log p(Y) / penalty, where |Y| counts its tokens, end included:

    - ``none``: 1. Long outputs are at a disadvantage.
    - ``average``: |Y|^alpha; alpha 1 is the mean log-probability of a token.
    - ``gnmt``: ((5 + |Y|) / 6)^alpha (Wu et al. 2016, equation 14; values from 0.2 to 1 are usual).

    Nothing depends on the other sentences of a batch, but for what the model itself makes of them. Among equals the
    beginning that was better before comes first, then the lower token.

    Args:
        step: Reads one token in each of R rows, int64 [R], and returns the log-probabilities of what follows, [R, V],
            and the new state; if it likes also a third thing, one entry a row, [R, ...], which is collected along each
            hypothesis. V and the kind of result may not change. The state that went in is not used again.
        select: Returns a state made of copies of some rows, int64 [K], as language models do
            (:class:`recurra.models.protocol.LanguageModelProtocol`).
        state: N rows, one for each sentence, where nothing has been written. In the first step R is N, and later at
            most N times `beam`: sentences that are done leave.
        batch: N.
        start: The token that is read first, the same in each sentence or one for each; it is not part of the output.
        end: The token that ends an output.
        max_lengths: The most tokens of an output, end included, the same for each sentence or one for each. One that
            has not ended there is cut, and comes after all that have ended: it is for want of others.
        beam: How many beginnings are kept.
        n_best: How many outputs to return for each sentence.
        length_penalty: See above.
        alpha: See above; at least 0.
        min_length: The fewest tokens of an output that ends, end included.
        prefix: The tokens that each output begins with, for each sentence; may be empty.
        forbidden: Tokens that are never written, unless in a prefix.
        patience: See above; infinity leaves only the other reason to stop (Kasai et al. 2024).
        device: Where `step` wants its tokens.

    Returns:
        For each sentence at most `n_best` hypotheses, the best first; none where all have probability 0.

    Raises:
        UserError: a number out of its bounds, or a prefix that is longer than the output may be.
        ValueError: arguments that do not belong together, or a step that returns what it should not.
    """
    if beam < 1:
        raise UserError(f"beam: expected at least 1, got {beam}")
    if not 1 <= n_best <= beam:
        raise UserError(f"n_best: expected 1 to {beam}, the size of the beam, got {n_best}")
    if length_penalty not in get_args(LengthPenalty):
        raise UserError(f"length_penalty: expected one of {', '.join(get_args(LengthPenalty))}, got {length_penalty!r}")
    if not 0 <= alpha < math.inf:
        raise UserError(f"alpha: expected at least 0, got {alpha}")
    if not patience > 0:
        raise UserError(f"patience: expected above 0, got {patience}")
    limits = _for_each(max_lengths, batch, "max_lengths")
    if min(limits, default=1) < 1:
        raise UserError(f"max_lengths: expected at least 1, got {min(limits)}")
    prefixes = [list(given) for given in prefix] if prefix is not None else [[] for _ in range(batch)]
    if len(prefixes) != batch:
        raise ValueError(f"prefix: expected {batch}, one for each sentence, got {len(prefixes)}")
    for number, (given, limit) in enumerate(zip(prefixes, limits, strict=True), 1):
        if len(given) > limit:
            raise UserError(f"sentence {number}: its prefix has {len(given)} tokens, its output at most {limit}")
        if end in given:
            raise ValueError(f"sentence {number}: its prefix has the end token, {end}")

    def penalized(log_prob: float, length: int) -> float:
        if length_penalty == "none":
            return log_prob
        return log_prob / math.pow(length if length_penalty == "average" else (5 + length) / 6, alpha)

    history = _History()
    found: list[list[_Found]] = [[] for _ in range(batch)]  # the n_best of each sentence, the best first
    ended = [0] * batch  # how many outputs of each sentence have ended
    # of each row: its sentence, its place in the sentence's beam, the log-probability of what it has written
    sentences, places, totals = np.arange(batch), np.zeros(batch, np.int64), np.zeros(batch)
    tokens, parents = np.array(_for_each(start, batch, "start"), np.int64), np.arange(batch)
    for length in range(1, max(limits, default=0) + 1):
        log_probs, state, *extra = step(torch.from_numpy(tokens).to(device), state)
        history.add(tokens, parents, extra)
        if log_probs.dim() != 2 or len(log_probs) != len(tokens):
            raise ValueError(f"step: expected log-probabilities [{len(tokens)}, V], got {list(log_probs.shape)}")
        banned = (*forbidden, end) if length < min_length else tuple(forbidden)
        values, choices = _candidates(log_probs, 2 * beam, banned)  # [R, K]
        for row, sentence in enumerate(sentences):
            if length <= len(prefixes[sentence]):
                token = prefixes[sentence][length - 1]
                values[row], choices[row, 0] = -math.inf, token
                values[row, 0] = float(log_probs[row, token])

        # All that may follow, sentence by sentence, the likeliest first: [S, beam * K]
        alive, slots = np.unique(sentences, return_inverse=True)
        grid = np.full((len(alive), beam, values.shape[1]), -math.inf)
        grid[slots, places] = totals[:, None] + values
        rows_at = np.zeros((len(alive), beam), np.int64)
        rows_at[slots, places] = np.arange(len(sentences))
        if np.isnan(grid).any():
            raise ValueError("step: log-probabilities are not a number")
        scores = grid.reshape(len(alive), -1)
        ranking = np.argsort(-scores, axis=1, kind="stable")[:, : 2 * beam]
        scores = np.take_along_axis(scores, ranking, 1)
        rows = np.take_along_axis(rows_at, ranking // values.shape[1], 1)
        following = choices[rows, ranking % values.shape[1]]
        possible, ends = scores > -math.inf, following == end
        ending, going = possible & ends, possible & ~ends
        ending[:, beam:] = False
        going &= going.cumsum(1) <= beam
        last = np.array([limits[sentence] == length for sentence in alive])[:, None]
        cut, going = going & last, going & ~last

        for slot, rank in np.argwhere(ending | cut):
            sentence, log_prob = alive[slot], float(scores[slot, rank])
            place = int(rows[slot, rank]), int(following[slot, rank])
            output = _Found(penalized(log_prob, length), log_prob, length, *place)
            bisect.insort_right(found[sentence], output, key=lambda output: (output.token != end, -output.score))
            del found[sentence][n_best:]
            ended[sentence] += int(ending[slot, rank])
        for slot, sentence in enumerate(alive):
            if going[slot].any() and len(found[sentence]) == n_best:
                best = float(scores[slot, going[slot].argmax()])
                # A log-probability only falls, so the best to hope for is to stay as it is while the penalty grows
                hope = max(penalized(best, length + 1), penalized(best, limits[sentence]))
                if hope <= found[sentence][-1].score or ended[sentence] >= patience * beam:
                    going[slot] = False
        if not going.any():
            break
        slots, ranks = going.nonzero()
        sentences, places = alive[slots], going.cumsum(1)[slots, ranks] - 1
        totals, parents, tokens = scores[slots, ranks], rows[slots, ranks], following[slots, ranks]
        if not np.array_equal(parents, np.arange(len(log_probs))):
            state = select(state, torch.from_numpy(parents).to(device))
    return [[history.hypothesis(output, end) for output in outputs] for outputs in found]


@dataclass(frozen=True)
class _Found:
    """Where an output is in the history: the row of the step that its last token was chosen in."""

    score: float
    log_prob: float
    length: int
    row: int
    token: int


class _History:
    """What every step has read and given, from which outputs are put together backwards."""

    def __init__(self) -> None:
        self._tokens: list[NDArray[np.int64]] = []  # that each row read
        self._parents: list[NDArray[np.int64]] = []  # its row in the step before
        self._extras: list[Tensor] = []

    def add(self, tokens: NDArray[np.int64], parents: NDArray[np.int64], extra: list[Any]) -> None:
        self._tokens.append(tokens)
        self._parents.append(parents)
        self._extras += extra

    def hypothesis(self, found: _Found, end: int) -> Hypothesis:
        tokens, rows = [found.token], [found.row]
        for i in range(found.length - 1, 0, -1):
            tokens.append(int(self._tokens[i][rows[-1]]))
            rows.append(int(self._parents[i][rows[-1]]))
        extra = None
        if self._extras:
            extra = torch.stack([self._extras[i][row] for i, row in enumerate(reversed(rows))])
        return Hypothesis(tuple(reversed(tokens)), found.log_prob, found.score, found.token == end, extra)


def _candidates(log_probs: Tensor, k: int, banned: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the k likeliest tokens of each row, or all, and their log-probabilities; banned ones at -inf.

    Only these few leave the device. Among equals lower tokens are taken, and come first.
    """
    k = min(k + len(set(banned)), log_probs.shape[1])
    values, tokens = log_probs.topk(k, dim=-1)
    threshold = values[:, -1:]
    # topk takes any of equals: where there are more of the last than were taken, choose anew
    tied = (((log_probs >= threshold).sum(-1) > k) & (threshold[:, 0] > -math.inf)).nonzero()[:, 0]
    if len(tied):
        sorted_values, sorted_tokens = log_probs[tied].sort(dim=-1, descending=True, stable=True)
        values[tied], tokens[tied] = sorted_values[:, :k], sorted_tokens[:, :k]
    numbers, ids = values.cpu().double().numpy(), tokens.cpu().numpy()
    order = np.lexsort((ids, -numbers), axis=-1)
    numbers, ids = np.take_along_axis(numbers, order, -1), np.take_along_axis(ids, order, -1)
    if len(banned):
        numbers[np.isin(ids, banned)] = -math.inf
    return numbers, ids


def _for_each(given: int | Sequence[int], batch: int, name: str) -> list[int]:
    """One number for each sentence."""
    numbers = [given] * batch if isinstance(given, int) else [int(number) for number in given]
    if len(numbers) != batch:
        raise ValueError(f"{name}: expected {batch}, one for each sentence, got {len(numbers)}")
    return numbers
