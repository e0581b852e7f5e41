"""The gradient of every loss with respect to every state before it, and how it falls with their distance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from recurra.config import UserError
from recurra.gradients.batched import Batched
from recurra.gradients.unrolled import Unrolled, mapped
from recurra.nn.cells import LSTMState
from recurra.nn.products import ROWS_MULTIPLE

__all__ = ["STATES", "Decay", "GradientMap", "check_size", "decay", "fitted_rate", "gradient_map", "in_words"]

Floats = NDArray[np.floating[Any]]
STATES = ("hidden", "cell")
MOST_POINTS = 1000  # of a fitted line: it takes the slopes between all pairs of them
LEVEL = 0.5  # of log2 over a fitted range: what changes by less is level
STRAIGHT = 0.9  # R² of a fit, from which on a curve counts as exponential
SCALED = 100  # powers of 2 that vectors are brought back by at once, which float32 has

# What a map takes beside itself, found by measuring: bytes of a pair while matplotlib draws it, and in lists that
# become JSON; vectors of the size of the state, for each loss, on their way back.
DRAWN, LISTED, WORKING = 130, 100, 16


@dataclass(frozen=True)
class GradientMap:
    """Norms of the gradients of losses with respect to states.

    Attributes:
        steps: t of each row, ``[R]``, rising.
        hidden: the norm of the gradient of J(t) with respect to h(i) of a layer, ``[L, R, T]``, float64, in nats per
            unit of h; 0 where i > t or the state started anew between them, infinite beyond what floats hold.
        cell: the same with respect to c(i) of an LSTM as it goes on to the next step and to h(i); None otherwise.
        starts: steps before which the state started anew, rising from 0.
    """

    steps: NDArray[np.int64]
    hidden: Floats
    cell: Floats | None
    starts: tuple[int, ...]

    def of(self, state: str) -> Floats:
        """The norms for ``hidden`` or ``cell``; for ``hidden`` where there is no c.

        Raises:
            ValueError: another name.
        """
        if state not in STATES:
            raise ValueError(f"state: expected one of {', '.join(STATES)}, got {state!r}")
        return self.cell if state == "cell" and self.cell is not None else self.hidden

    @property
    def begun(self) -> NDArray[np.int64]:
        """Of each row the step at which the state of its loss started, ``[R]``."""
        starts = np.asarray(self.starts)
        begun: NDArray[np.int64] = starts[np.searchsorted(starts, self.steps, side="right") - 1]
        return begun


def check_size(
    layers: int,
    steps: int,
    stride: int,
    available: float,
    *,
    parts: int = 1,
    features: int = 0,
    itemsize: int = 8,
    drawn: bool = False,
    listed: bool = False,
    held: float = 0.0,
) -> None:
    """Refuse a map that does not fit into memory, with all that is made of it.

    Args:
        layers: L.
        steps: T.
        stride: as for :func:`gradient_map`.
        available: bytes.
        parts: of the state: 2 in an LSTM.
        features: of the state, all layers and parts together.
        itemsize: bytes of a number of the model.
        drawn: whether the map is drawn, of one layer and part.
        listed: whether pairs go into JSON, one layer's.
        held: bytes that are taken besides.

    Raises:
        UserError: it does not fit.
    """
    row = steps * (8 * parts * layers + max(drawn * DRAWN, listed * parts * LISTED)) + WORKING * features * itemsize
    held += 3 * steps * features * itemsize  # states, and what they are made of
    needed = row * len(range(stride - 1, steps, stride)) + held
    if needed > available:
        room = (available - held) / 2
        enough = next((s for s in (2**k for k in range(1, 63)) if row * (steps // s) <= room), steps)
        raise UserError(
            f"pairs of {steps:,} steps take {needed / 1e9:.3g} GB of memory, there are {available / 1e9:.3g}: give"
            f" --stride {max(enough, 2 * stride)} to follow only some losses, or a smaller --length"
        )


def gradient_map(
    unrolled: Unrolled, *, stride: int = 1, progress: Callable[[int, int], None] | None = None
) -> GradientMap:
    r"""The norms :math:`\|\partial J(t)/\partial h(i)\|` of every pair t >= i and every layer, in one pass backwards.

    The gradient is the whole one: through time and through the layers above. By the chain of Jacobians
    :math:`\partial J(t)/\partial h(i) = \partial J(t)/\partial h(t) \prod_{i < j \le t} \partial h(j)/\partial h(j-1)`
    in a single layer of a simple RNN or a GRU; in an LSTM the state of the chain is (h, c).

    Vectors are brought back to the size of 1 at each step, by powers of 2 that are remembered, so that norms neither
    vanish nor overflow before float64 does, in float32 too.

    Args:
        unrolled: the text that was read.
        stride: follow every so manieth loss only, t = stride - 1, 2 * stride - 1, ...; time and memory fall alike.
        progress: told how many steps are done, and of how many.

    Raises:
        UserError: a stride longer than the text.
    """
    stack, count = unrolled.stack, len(unrolled)
    if stride > count:
        raise UserError(f"stride {stride} is longer than the text of {count} steps: give a smaller one")
    steps = np.arange(stride - 1, count, stride)
    rows, of_lstm = len(steps), stack.state_type is LSTMState
    norms = np.zeros((2 if of_lstm else 1, stack.num_layers, rows, count))
    # What has come back to the state before the step at hand: of each row, that is of each t, times 2 ** -exponent.
    carried = [mapped(lambda part: part.new_zeros(rows, *part.shape), state) for state in unrolled.states[0]]
    exponents, batched = np.zeros(rows, np.int64), Batched()
    for done, i in enumerate(reversed(range(count))):
        if progress is not None:
            progress(done, count)
        first = -(-max(0, i - stride + 1) // stride)  # the first row with t >= i
        if first == rows:
            continue
        newest, first = first, first - first % ROWS_MULTIPLE  # rows before it are zeros
        with batched:
            step = unrolled.step(i)
        outputs = [part for state in step.after for part in state]
        vectors = [part[first:] for state in carried for part in state]
        if int(steps[newest]) == i:
            seed = unrolled.seeds.new_zeros(rows - first, *step.output.shape)
            seed[newest - first, 0] = unrolled.seeds[i]
            outputs.append(step.output)
            vectors.append(seed)
        inputs = [part for state in step.after for part in state] + [part for state in step.before for part in state]
        found = _products(outputs, inputs, vectors)
        before = found[len(found) // 2 :]
        for number, gradient in enumerate(found[: len(found) // 2]):
            layer, part = divmod(number, len(norms))
            if gradient is not None:
                sizes = torch.linalg.vector_norm(gradient, dim=-1)[:, 0].cpu().double().numpy()
                with np.errstate(over="ignore"):
                    norms[part, layer, first:, i] = np.ldexp(sizes, exponents[first:])
        targets = [part[first:] for state in carried for part in state]
        powers = _powers(before)
        if powers is None or i in unrolled.starts:
            for target in targets:
                target.zero_()
            continue
        exponents[first:] += powers
        scale = torch.from_numpy(np.ldexp(1.0, -powers)).to(targets[0])[:, None, None]
        for target, gradient in zip(targets, before, strict=True):
            if gradient is None:
                target.zero_()
            else:
                torch.mul(gradient, scale, out=target)
    return GradientMap(steps, norms[0], norms[1] if of_lstm else None, tuple(sorted(unrolled.starts)))


def _products(outputs: list[Tensor], inputs: list[Tensor], vectors: list[Tensor]) -> list[Tensor | None]:
    """Vector-Jacobian products of a batch of vectors, with respect to each input that they reach."""

    def of_one(*vector: Tensor) -> tuple[Tensor, ...]:
        found = torch.autograd.grad(outputs, inputs, vector, allow_unused=True, retain_graph=True)
        reached[:] = [gradient is not None for gradient in found]
        return tuple(gradient for gradient in found if gradient is not None)

    reached: list[bool] = []
    found = iter(torch.func.vmap(of_one)(*vectors))
    return [next(found) if each else None for each in reached]


def _powers(gradients: Sequence[Tensor | None]) -> NDArray[np.int64] | None:
    """Of each row the power of 2 next to the largest entry, ``[R]``; None where there are no gradients at all."""
    largest = [gradient.abs().amax((1, 2)) for gradient in gradients if gradient is not None]
    if not largest:
        return None
    powers = np.frexp(torch.stack(largest).amax(0).cpu().double().numpy())[1]
    clipped: NDArray[np.int64] = np.clip(powers, -SCALED, SCALED).astype(np.int64)
    return clipped


# ---- against distance ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decay:
    """How gradients fall with distance.

    Attributes:
        distances: k, ``[K]``, from 0.
        relative: the mean over t of the gradient's norm at h(t-k), or c(t-k), over the mean at k = 0 for the same t,
            ``[K]``; infinite where it overflows.
        counts: pairs that each is the mean of, ``[K]``.
        rate: by how much log2 of it rises per token, by the fitted line: below 0 it falls. NaN if nothing could be
            fitted.
        fitted: the largest k of the fit.
    """

    distances: NDArray[np.int64]
    relative: Floats
    counts: NDArray[np.int64]
    rate: float
    fitted: int

    @property
    def half_life(self) -> float:
        """Tokens in which it falls to half; infinite if it does not fall, NaN if nothing could be fitted."""
        if math.isnan(self.rate):
            return math.nan
        return -1 / self.rate if self.rate < 0 else math.inf

    @property
    def halved(self) -> int | None:
        """The first distance at which no more than half of it is left; None if there is none."""
        below = np.flatnonzero(self.relative[: self.fitted + 1] <= 0.5)
        return int(self.distances[below[0]]) if len(below) else None

    @property
    def straightness(self) -> float:
        """R² of log2 of it against distance over the fit: near 1 it is exponential, and the rate says all; or NaN."""
        k, v = _usable(self.distances[1 : self.fitted + 1], self.relative[1 : self.fitted + 1])
        if len(k) < 2 or math.isnan(self.rate) or not np.ptp(v):
            return math.nan
        apart = v - self.rate * k
        return max(0.0, 1 - float(np.square(apart - apart.mean()).sum() / np.square(v - v.mean()).sum()))

    @property
    def overflow(self) -> int | None:
        """The first distance at which gradients are larger than floats can be; None if there is none."""
        beyond = np.flatnonzero(np.isposinf(self.relative))
        return int(self.distances[beyond[0]]) if len(beyond) else None


def decay(map: GradientMap, layer: int = -1, state: str = "hidden") -> Decay:
    """Average a map over t, by distance; pairs with a start between them do not count.

    The rate is fitted from k = 1, where at least half of the losses have a state as far back: beyond, few say much.

    Args:
        map: the norms.
        layer: an index, from 0 or from the end.
        state: ``hidden`` or ``cell``. In an LSTM they differ from k = 1 on: J(t) depends on h(t) directly, but on
            h(t-k) through the gates of the next step alone, while c(t-k) is passed on beside them.
    """
    steps, norms = map.steps, map.of(state)[layer]
    reach = steps - map.begun  # how far back the state goes
    at_zero = norms[np.arange(len(steps)), steps]
    distances = np.arange(int(reach.max()) + 1)
    relative, counts = np.zeros(len(distances)), np.zeros(len(distances), np.int64)
    with np.errstate(over="ignore"):
        for k in distances:
            rows = np.flatnonzero(reach >= k)
            whole = at_zero[rows].sum()
            relative[k] = norms[rows, steps[rows] - k].sum() / whole if whole > 0 else np.nan
            counts[k] = len(rows)
    last = int(np.flatnonzero(counts >= len(steps) / 2)[-1])
    return Decay(distances, relative, counts, fitted_rate(distances[1 : last + 1], relative[1 : last + 1]), last)


def fitted_rate(distances: ArrayLike, values: ArrayLike) -> float:
    """By how much log2 of values rises for a distance of 1, by a line through it.

    The line's slope is the median of the slopes between all pairs of points (Theil 1950, Sen 1968), so that up to 29 %
    of the points may lie anywhere. Values that are not above 0 and those at the edge of what floats hold are left out.

    Returns:
        Below 0 if they fall; NaN for fewer than two values.
    """
    k, v = _usable(distances, values)
    if len(k) > MOST_POINTS:
        chosen = np.linspace(0, len(k) - 1, MOST_POINTS).astype(np.int64)
        k, v = k[chosen], v[chosen]
    if len(k) < 2:
        return math.nan
    left, right = np.triu_indices(len(k), 1)
    return float(np.median((v[right] - v[left]) / (k[right] - k[left])))


def _usable(distances: ArrayLike, values: ArrayLike) -> tuple[Floats, Floats]:
    """Distances of the values that are well within what floats hold, and log2 of these."""
    k, v = np.asarray(distances, np.float64), np.asarray(values, np.float64)
    usable = np.isfinite(v) & (v > 1e-300)
    return k[usable], np.log2(v[usable])


def in_words(curve: Decay) -> str:
    """How gradients fall, or rise, as a text has it."""
    if math.isnan(curve.rate):
        return "no half-life"
    if abs(curve.rate) * curve.fitted < LEVEL:
        words = "does not fall"
        return words if curve.halved is None else f"{words} after k = {curve.halved}, where half is left"
    tokens = f"{1 / abs(curve.rate):.3g} tokens"
    words = f"half-life {tokens}" if curve.rate < 0 else f"doubles every {tokens}"
    if curve.straightness < STRAIGHT:
        words += ", not exponential"
    # Where the beginning is steeper than the line, the half-life alone would mislead.
    early = curve.halved is not None and curve.rate < 0 and curve.halved < curve.half_life / 2
    return f"{words}, half at k = {curve.halved}" if early else words
