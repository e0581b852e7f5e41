"""Weights in int8 for one-token work: a quarter of the memory to read, with a scale for each row.

Only weights are rounded, to nearest, symmetrically; what they are multiplied by is not. A rounded weight keeps the
rounded values as floats too, so that long texts are read by the very same model with the ordinary products.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Int8Matrix", "int8_of", "round_to_int8_", "version_of"]

_NAME = "_recurra_int8"


class Int8Matrix(NamedTuple):
    """``scale[:, None] * values`` is the matrix; address and version are those of the weight when it was made."""

    values: Tensor  # int8 [rows, columns]
    scale: Tensor  # float32 [rows]
    address: int
    version: int


@torch.no_grad()
def round_to_int8_(weight: Tensor) -> None:
    """Round a matrix ``[rows, columns]`` in place to what int8 can say, and keep it in that form too."""
    scale = (weight.abs().amax(1) / 127).clamp(min=torch.finfo(weight.dtype).tiny)
    values = (weight / scale[:, None]).round_()
    weight.copy_(values * scale[:, None])
    setattr(weight, _NAME, Int8Matrix(values.to(torch.int8), scale.float(), weight.data_ptr(), version_of(weight)))


def int8_of(weight: Tensor) -> Int8Matrix | None:
    """The int8 form of a weight; None if it has none, or has been changed since, other than through ``weight.data``."""
    found: Int8Matrix | None = getattr(weight, _NAME, None)
    if found is None or (found.address, found.version) != (weight.data_ptr(), version_of(weight)):
        return None
    return found


def version_of(weight: Tensor) -> int:
    """A number that rises when a tensor is changed in place; always 0 in inference mode, where none is kept."""
    return 0 if weight.is_inference() else weight._version
