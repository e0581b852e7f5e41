"""Weights in int8 for one-token work: a quarter of the memory to read, with a scale for each row.

Only weights are rounded, to nearest, symmetrically; what they are multiplied by is not. A rounded weight keeps the
rounded values as floats too, so that long texts are read by the very same model with the ordinary products.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Int8Matrix", "int8_of", "round_to_int8_"]

_NAME = "_recurra_int8"


class Int8Matrix(NamedTuple):
    """``scale[:, None] * values`` is the matrix; ``version`` that of the weight when it was made."""

    values: Tensor  # int8 [rows, columns]
    scale: Tensor  # float32 [rows]
    version: int


@torch.no_grad()
def round_to_int8_(weight: Tensor) -> None:
    """Round a matrix ``[rows, columns]`` in place to what int8 can say, and keep it in that form too."""
    scale = (weight.abs().amax(1) / 127).clamp(min=torch.finfo(weight.dtype).tiny)
    values = (weight / scale[:, None]).round_()
    weight.copy_(values * scale[:, None])
    setattr(weight, _NAME, Int8Matrix(values.to(torch.int8), scale.float(), weight._version))


def int8_of(weight: Tensor) -> Int8Matrix | None:
    """The int8 form of a weight; None if it has none, or has been changed since."""
    found: Int8Matrix | None = getattr(weight, _NAME, None)
    return found if found is not None and found.version == weight._version else None
