"""Dropout for sequences: what is dropped stays dropped for the whole sequence.

Plain dropout draws anew at every time step, and a recurrence then finds its memory perturbed at every step. Gal and
Ghahramani (2016, "A Theoretically Grounded Application of Dropout in Recurrent Neural Networks", arXiv:1512.05287) draw
one mask per sequence; Krueger et al. (2017, "Zoneout", arXiv:1606.01305) put the old value in place of a zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LockedDropout", "check_probability", "locked_mask", "masked", "zoneout"]


def check_probability(name: str, value: float) -> float:
    """Return ``value`` as a float.

    Raises:
        ValueError: ``value`` is not a number from 0 to 1.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name} should be a number in range [0, 1], the probability of a drop; got {value!r}")
    return float(value)


def locked_mask(like: Tensor, p: float) -> Tensor:
    """Draw a mask shaped as ``like``: each value 0 with probability ``p``, else 1 / (1 - p), so that the mean is 1."""
    return F.dropout(torch.ones_like(like), p)


def masked(vectors: Tensor, mask: Tensor | None) -> Tensor:
    """``vectors`` times a mask that was drawn for them; None drops nothing."""
    return vectors if mask is None else vectors * mask


def zoneout(previous: Tensor, proposed: Tensor, p: float, training: bool) -> Tensor:
    """Keep each value of the previous state with probability ``p`` (Krueger et al. 2017, section 3).

    In training each value is either kept or replaced; otherwise the result is the expectation of that.

    Args:
        previous: the state before the step.
        proposed: the state that the step makes of it, of the same shape.
    """
    if training:
        return torch.where(torch.rand_like(proposed) < p, previous, proposed)
    return p * previous + (1 - p) * proposed


class LockedDropout(nn.Module):
    """Dropout with one mask per sequence, the same at every time step (Gal and Ghahramani 2016); in training only.

    Args:
        p: probability of a feature being zeroed; the others are scaled by 1 / (1 - p).
        batch_first: the input is ``[batch, time, features]`` rather than ``[time, batch, features]``.

    Raises:
        ValueError: ``p`` is not from 0 to 1, or the input has not three dimensions.
    """

    def __init__(self, p: float = 0.5, batch_first: bool = False) -> None:
        super().__init__()
        self.p = check_probability("p", p)
        self.batch_first = batch_first

    def forward(self, input: Tensor) -> Tensor:
        """Return the input, ``[time, batch, features]`` or as ``batch_first`` says, with features dropped."""
        if input.dim() != 3:
            raise ValueError(f"LockedDropout: expected input with 3 dimensions, got shape {tuple(input.shape)}")
        if not self.training or not self.p or not input.numel():
            return input
        time = 1 if self.batch_first else 0
        return input * locked_mask(input.narrow(time, 0, 1), self.p)

    def extra_repr(self) -> str:
        """Name the settings for ``print(module)``."""
        return f"p={self.p}" + (", batch_first=True" if self.batch_first else "")
