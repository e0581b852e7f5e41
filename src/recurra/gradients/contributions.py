"""The gradient of a repeated weight is the sum of what its uses contribute: W_h, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recurra.config import UserError
from recurra.gradients.unrolled import Unrolled, mapped

__all__ = ["Contributions", "weight_contributions"]

Floats = NDArray[np.floating[Any]]


class Contributions(NamedTuple):
    r"""The gradient of a loss with respect to a layer's W_h, by the steps at which W_h was used.

    Attributes:
        total: :math:`\partial J/\partial W_h`, of the shape of ``weight_hh``: the sum of what the steps contribute.
        norms: of the contribution of each step, ``[T]``.
        shares: how much of the total each contributes, ``[T]``: its component along the total, over the total's norm;
            they sum to 1, and one below 0 pulls the other way. Zeros if the total is 0.
    """

    total: Tensor
    norms: Floats
    shares: Floats


def weight_contributions(unrolled: Unrolled, *, target: int | None = None) -> list[Contributions]:
    r"""Split :math:`\partial J/\partial W_h = \sum_i \partial J/\partial W_h|_{(i)}` of each layer by step.

    Args:
        unrolled: the text that was read.
        target: t, for J = J(t); None for the sum of all losses.

    Raises:
        UserError: no such step.
    """
    count = len(unrolled)
    if target is not None and not 0 <= target < count:
        raise UserError(f"step {target}: the text has {count}, from 0 to {count - 1}")
    layers = range(unrolled.stack.num_layers)
    totals = [torch.zeros_like(unrolled.stack.weights(layer).weight_hh) for layer in layers]
    norms, along = np.zeros((len(layers), count)), np.zeros((len(layers), count))
    with torch.no_grad():
        for step, parts in _by_step(unrolled, target):
            for layer, part in enumerate(parts):
                totals[layer] += part
                norms[layer, step] = float(part.norm())
        for step, parts in _by_step(
            unrolled, target
        ):  # again, now that the totals are known: to keep all takes T * W_h
            for layer, part in enumerate(parts):
                along[layer, step] = float((part * totals[layer]).sum())
    squares = [float(total.square().sum()) for total in totals]
    return [Contributions(totals[n], norms[n], along[n] / (squares[n] or 1.0)) for n in layers]


def _by_step(unrolled: Unrolled, target: int | None) -> Iterator[tuple[int, list[Tensor]]]:
    """What each step, the last first, contributes to the gradient of every layer's W_h."""
    carried = [mapped(torch.zeros_like, state) for state in unrolled.states[0]]
    for i in reversed(range(len(unrolled) if target is None else target + 1)):
        weights = [own._replace(weight_hh=own.weight_hh.detach().requires_grad_()) for own in unrolled.weights]
        step = unrolled.step(i, weights)
        outputs = [part for state in step.after for part in state]
        vectors = [part for state in carried for part in state]
        if target is None or target == i:
            outputs.append(step.output)
            vectors.append(unrolled.seeds[i : i + 1])
        own = [each.weight_hh for each in weights]
        before = [part for state in step.before for part in state]
        found = torch.autograd.grad(outputs, [*own, *before], vectors, allow_unused=True, materialize_grads=True)
        yield i, list(found[: len(own)])
        rest = iter(found[len(own) :])
        new = [type(state)(*(next(rest) for _ in state)) for state in step.before]
        carried = [mapped(torch.zeros_like, state) for state in new] if i in unrolled.starts else new
