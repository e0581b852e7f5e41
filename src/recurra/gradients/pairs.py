"""The gradient of every loss with respect to every state before it, and how it falls with their distance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from recurra.config import UserError
from recurra.gradients.unrolled import Unrolled, mapped
from recurra.nn.cells import LSTMState

__all__ = ["Decay", "GradientMap", "check_size", "decay", "gradient_map", "half_life", "in_words"]

Floats = NDArray[np.floating[Any]]
MOST_POINTS = 1000  # of a fitted line: it takes the slopes between all pairs of them


@dataclass(frozen=True)
class GradientMap:
    """Norms of the gradients of losses with respect to states.

    Attributes:
        steps: t of each row, ``[R]``, rising.
        hidden: the norm of the gradient of J(t) with respect to h(i) of a layer, ``[L, R, T]``, in nats per unit of h;
            0 where i > t or the state started anew between them.
        cell: the same with respect to c(i) of an LSTM as it goes on to the next step and to h(i); None otherwise.
        starts: steps before which the state started anew, rising from 0.
    """

    steps: NDArray[np.int64]
    hidden: Floats
    cell: Floats | None
    starts: tuple[int, ...]


def check_size(layers: int, steps: int, stride: int, available: float, *, itemsize: int = 8, parts: int = 1) -> None:
    """Refuse a map that does not fit into memory.

    Args:
        layers: L.
        steps: T.
        stride: as for :func:`gradient_map`.
        available: bytes.
        itemsize: bytes of a number.
        parts: of the state that have norms: 2 in an LSTM.

    Raises:
        UserError: it does not fit.
    """
    row = parts * layers * steps * itemsize
    needed = row * len(range(stride - 1, steps, stride))
    if needed > available:
        enough = next((s for s in (2**k for k in range(1, 63)) if row * (steps // s) <= available / 2), steps)
        raise UserError(
            f"pairs of {steps:,} steps take {needed / 1e9:.3g} GB of memory, there are {available / 1e9:.3g}: give"
            f" --stride {max(enough, 2 * stride)} to follow only some losses, or a smaller --length"
        )


def gradient_map(unrolled: Unrolled, *, stride: int = 1) -> GradientMap:
    r"""The norms :math:`\|\partial J(t)/\partial h(i)\|` of every pair t >= i and every layer, in one pass backwards.

    The gradient is the whole one: through time and through the layers above. By the chain of Jacobians
    :math:`\partial J(t)/\partial h(i) = \partial J(t)/\partial h(t) \prod_{i < j \le t} \partial h(j)/\partial h(j-1)`
    in a single layer of a simple RNN or a GRU.

    Args:
        unrolled: the text that was read.
        stride: follow every so manieth loss only, t = stride - 1, 2 * stride - 1, ...; time and memory fall alike.

    Raises:
        UserError: a stride longer than the text.
    """
    stack, count = unrolled.stack, len(unrolled)
    if stride > count:
        raise UserError(f"stride {stride} is longer than the text of {count} steps: give a smaller one")
    steps = torch.arange(stride - 1, count, stride)
    rows, of_lstm = len(steps), stack.state_type is LSTMState
    norms = unrolled.inputs.new_zeros(2 if of_lstm else 1, stack.num_layers, rows, count)
    # What has come back to the state before the step at hand: of each row, that is of each t.
    carried = [mapped(lambda part: part.new_zeros(rows, *part.shape), state) for state in unrolled.states[0]]
    for i in reversed(range(count)):
        first = -(-max(0, i - stride + 1) // stride)  # the first row with t >= i
        if first == rows:
            continue
        step = unrolled.step(i)
        outputs = [part for state in step.after for part in state]
        vectors = [part[first:] for state in carried for part in state]
        if int(steps[first]) == i:
            seed = unrolled.seeds.new_zeros(rows - first, *step.output.shape)
            seed[0, 0] = unrolled.seeds[i]
            outputs.append(step.output)
            vectors.append(seed)
        inputs = [part for state in step.after for part in state] + [part for state in step.before for part in state]
        found = list(torch.autograd.grad(outputs, inputs, vectors, is_grads_batched=True, allow_unused=True))
        before = found[len(found) // 2 :]
        for number, gradient in enumerate(found[: len(found) // 2]):
            layer, part = divmod(number, len(norms))
            if gradient is not None:
                norms[part, layer, first:, i] = torch.linalg.vector_norm(gradient, dim=-1)[:, 0]
        targets = [part[first:] for state in carried for part in state]
        for target, gradient in zip(targets, before, strict=True):
            if gradient is None or i in unrolled.starts:
                target.zero_()
            else:
                target.copy_(gradient)
    values = norms.cpu().numpy()
    starts = tuple(sorted(unrolled.starts))
    return GradientMap(steps.numpy(), values[0], values[1] if of_lstm else None, starts)


# ---- against distance ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decay:
    """How gradients fall with distance.

    Attributes:
        distances: k, ``[K]``, from 0.
        relative: the mean over t of the gradient's norm at h(t-k), over the mean at h(t) for the same t, ``[K]``.
        counts: pairs that each is the mean of, ``[K]``.
        half_life: steps in which it falls to half by the fitted line; infinite if it does not fall, NaN if nothing
            could be fitted.
        fitted: the largest k of the fit.
    """

    distances: NDArray[np.int64]
    relative: Floats
    counts: NDArray[np.int64]
    half_life: float
    fitted: int


def decay(map: GradientMap, layer: int = -1) -> Decay:
    """Average a map over t, by distance; pairs with a start between them do not count.

    The half-life is fitted where at least half of the losses have a state as far back: beyond, few say much.
    """
    steps, norms = map.steps, map.hidden[layer].astype(np.float64)
    starts = np.asarray(map.starts)
    reach = steps - starts[np.searchsorted(starts, steps, side="right") - 1]  # how far back the state goes
    at_zero = norms[np.arange(len(steps)), steps]
    distances = np.arange(int(reach.max()) + 1)
    relative, counts = np.zeros(len(distances)), np.zeros(len(distances), np.int64)
    for k in distances:
        rows = np.flatnonzero(reach >= k)
        whole = at_zero[rows].sum()
        relative[k] = norms[rows, steps[rows] - k].sum() / whole if whole > 0 else np.nan
        counts[k] = len(rows)
    enough = np.flatnonzero(counts >= len(steps) / 2)
    last = int(enough[-1])
    return Decay(distances, relative, counts, half_life(distances[1 : last + 1], relative[1 : last + 1]), last)


def half_life(distances: ArrayLike, values: ArrayLike) -> float:
    """Steps in which values fall to half, by a line through their logarithms.

    The line's slope is the median of the slopes between all pairs of points (Theil 1950, Sen 1968), so that up to 29 %
    of the points may lie anywhere. Values that are not above 0 and those at the edge of what floats hold are left out.

    Returns:
        Infinity if they do not fall; NaN for fewer than two values.
    """
    k, v = np.asarray(distances, np.float64), np.asarray(values, np.float64)
    usable = np.isfinite(v) & (v > 1e-300)
    k, v = k[usable], np.log(v[usable])
    if len(k) > MOST_POINTS:
        chosen = np.linspace(0, len(k) - 1, MOST_POINTS).astype(np.int64)
        k, v = k[chosen], v[chosen]
    if len(k) < 2:
        return math.nan
    left, right = np.triu_indices(len(k), 1)
    slope = float(np.median((v[right] - v[left]) / (k[right] - k[left])))
    return -math.log(2) / slope if slope < 0 else math.inf


def in_words(half_life: float) -> str:
    """A half-life as a text has it."""
    if math.isnan(half_life):
        return "no half-life"
    return "does not fall" if math.isinf(half_life) else f"half-life {half_life:.3g} tokens"
