"""The gradient of a repeated weight is the sum of what its uses contribute: W_h, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recurra.config import UserError
from recurra.gradients.unrolled import Unrolled, mapped, norm_of

__all__ = ["Contributions", "weight_contributions"]

Floats = NDArray[np.floating[Any]]


class Contributions(NamedTuple):
    r"""The gradient of a loss with respect to a layer's W_h, by the K steps at which W_h was used.

    Attributes:
        steps: their numbers ``[K]``, rising.
        total: :math:`\partial J/\partial W_h`, of the shape of ``weight_hh``: the sum of what the steps contribute.
        norms: of the contribution of each step, ``[K]``, in nats per unit of W_h.
        shares: how much of the total each contributes, ``[K]``: its component along the total, over the total's norm;
            they sum to 1, and one below 0 pulls the other way. Zeros if the total is 0.
        parts: the contributions themselves, ``[K, *weight_hh.shape]``, if asked for.
    """

    steps: NDArray[np.int64]
    total: Tensor
    norms: Floats
    shares: Floats
    parts: Tensor | None


def weight_contributions(
    unrolled: Unrolled, layer: int = -1, *, target: int | None = None, steps: int | None = None, keep: bool = False
) -> Contributions:
    r"""Split :math:`\partial J/\partial W_h = \sum_i \partial J/\partial W_h|_{(i)}` of a layer by step.

    The summand of step i is the gradient with respect to the W_h of step i alone, as if every step had one of its own
    (Werbos 1990, "Backpropagation through time: what it does and how to do it").

    Args:
        unrolled: the text that was read.
        layer: an index, from 0 or from the end.
        target: t, for J = J(t); None for the sum of all losses. J(t) goes back to where the state started anew.
        steps: the last so many alone: the state before them is taken as given, as in truncated backpropagation.
        keep: the contributions themselves too, which takes K times the memory of W_h.

    Raises:
        UserError: no such step.
    """
    count, layer = len(unrolled), range(unrolled.stack.num_layers)[layer]
    if target is not None and not 0 <= target < count:
        raise UserError(f"step {target}: the text has {count}, from 0 to {count - 1}")
    last = count - 1 if target is None else target
    first = 0 if target is None else max(start for start in unrolled.starts if start <= target)
    if steps is not None:
        first = max(first, last + 1 - steps)
    total = torch.zeros_like(unrolled.stack.weights(layer).weight_hh)
    norms, along = np.zeros(last + 1 - first), np.zeros(last + 1 - first)
    kept = []
    with torch.no_grad():
        for step, part in _by_step(unrolled, layer, target, first):
            total += part
            norms[step - first] = norm_of(part)
            if keep:
                kept.append(part)
        size = norm_of(total)
        direction = total / (size or 1.0)
        # Once more, now that the total is known, unless all were kept: together they are K times as large as W_h.
        again = zip(range(last, first - 1, -1), kept, strict=True) if keep else _by_step(unrolled, layer, target, first)
        for step, part in again:
            along[step - first] = float((part * direction).sum()) / (size or 1.0)
    parts = torch.stack(kept[::-1]) if keep else None
    return Contributions(np.arange(first, last + 1), total, norms, along, parts)


def _by_step(unrolled: Unrolled, layer: int, target: int | None, first: int) -> Iterator[tuple[int, Tensor]]:
    """What each step, from the last to ``first``, contributes to the gradient of a layer's W_h."""
    # Nothing that comes from W_h of a layer goes through the layers below it.
    carried = [mapped(torch.zeros_like, state) for state in unrolled.states[0][layer:]]
    for i in reversed(range(first, len(unrolled) if target is None else target + 1)):
        own = unrolled.weights[layer].weight_hh.detach().requires_grad_()
        weights = list(unrolled.weights)
        weights[layer] = weights[layer]._replace(weight_hh=own)
        step = unrolled.step(i, weights)
        outputs = [part for state in step.after[layer:] for part in state]
        vectors = [part for state in carried for part in state]
        if target is None or target == i:
            outputs.append(step.output)
            vectors.append(unrolled.seeds[i : i + 1])
        before = [part for state in step.before[layer:] for part in state]
        found, *others = torch.autograd.grad(
            outputs, [own, *before], vectors, allow_unused=True, materialize_grads=True
        )
        yield i, found
        rest = iter(others)
        new = [type(state)(*(next(rest) for _ in state)) for state in step.before[layer:]]
        carried = [mapped(torch.zeros_like, state) for state in new] if i in unrolled.starts else new
