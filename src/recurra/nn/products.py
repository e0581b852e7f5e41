"""Matrix products ``input @ weight.T``, by whichever library is faster at them on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ROWS_MULTIPLE", "linear", "prepared"]

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

# oneDNN compiles a kernel for every new number of rows: where that changes all the time, pad it to a multiple.
ROWS_MULTIPLE = 16


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``input @ weight.T + bias``; on a CPU by oneDNN, faster at long, thin matrices than torch's BLAS.

    ``benchmarks/products.py`` says by how much. Not differentiable.
    """
    if _onednn_can(input) and len(input):
        product: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
        return product
    return F.linear(input, weight, bias)


def prepared(weight: Tensor, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """``linear`` with these weights, laid out once for many calls."""
    if not _onednn_can(weight):
        return partial(F.linear, weight=weight, bias=bias)
    own = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    return lambda input: torch.ops.mkldnn._linear_pointwise(input, own, bias, "none", [], "")


def _onednn_can(tensor: Tensor) -> bool:
    return _HAS_ONEDNN and tensor.device.type == "cpu" and tensor.dtype == torch.float32
