"""What was saved of a model, put back where it belongs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from recurra.config import UserError

__all__ = ["take_over"]


@torch.no_grad()
def take_over(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into a model's own, by name.

    Args:
        own: what the model has; changed in place.
        tensors: what was saved.

    Raises:
        UserError: they are not those that the model has: a name or a shape is another.
    """
    for name in sorted(own.keys() | tensors.keys()):
        expected = tuple(own[name].shape) if name in own else "none"
        found = tuple(tensors[name].shape) if name in tensors else "none"
        if expected != found:
            raise UserError(f"{name}: expected {expected} by the settings, found {found}")
    for name, parameter in own.items():
        parameter.copy_(tensors[name])
