"""Matrix products ``input @ weight.T``, by whichever library is faster at them on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import native

__all__ = ["MOST_ROWS", "ROWS_MULTIPLE", "linear", "linear_layer", "prepared", "product"]

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

# oneDNN compiles a kernel for every new number of rows: where that changes all the time, pad it to a multiple.
ROWS_MULTIPLE = 16

# A product of so few rows is bound by reading the weights.
MOST_ROWS = 8


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``input @ weight.T + bias``, ``input [rows, features]``; on a CPU by oneDNN, at long, thin matrices the faster.

    A few rows are multiplied by weights that are read once, as int8 where they have such a form (``int8.py``).
    ``benchmarks/products.py`` says what is gained. Not differentiable.
    """
    fits = _plain(input, weight, bias) and input.numel() and len(weight) and input.shape[1] == weight.shape[1]
    if not fits:
        return F.linear(input, weight, bias)
    dense = weight.is_contiguous() and (bias is None or bias.is_contiguous())
    if len(input) <= MOST_ROWS and dense and native.available():
        return native.linear(input, weight, bias)
    if _HAS_ONEDNN and _dense(input) and _dense(weight):
        product: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
        return product
    return F.linear(input, weight, bias)


def product(a: Tensor, b: Tensor, *, out: Tensor | None = None, add: bool = False) -> Tensor:
    """``a @ b``; for ``a = left.T`` the sum over rows that makes the gradient of a weight.

    There the compiled product is the fastest, and takes parts of matrices as they are. Not differentiable.

    Args:
        a: ``[rows, depth]``.
        b: ``[depth, columns]``.
        out: where to write; None for a new tensor.
        add: add to what ``out`` holds.
    """
    if out is None:
        out = a.new_empty(len(a), b.shape[1])
    fits = _plain(a, b, out) and a.numel() and out.numel() and a.shape[1] == len(b)
    if fits and b.stride(1) == out.stride(1) == 1 and native.available():
        native.product(a, b, out=out, add=add)
        return out
    found = linear(a, b.t())
    return out.add_(found) if add else out.copy_(found)


class _Linear(torch.autograd.Function):
    """``input @ weight.T + bias`` by the fastest product at hand, and its gradients likewise."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight)
        return linear(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        for_input, for_weight, for_bias = ctx.needs_input_grad
        grad_bias = grad.sum(0) if for_bias else None
        if torch.is_grad_enabled():  # to be differentiated again: by operations that autograd can follow
            return grad @ weight, grad.t() @ input, grad_bias
        grad = grad.contiguous()
        grad_input = linear(grad, weight.t()) if for_input else None
        return grad_input, product(grad.t(), input) if for_weight else None, grad_bias


def linear_layer(input: Tensor, layer: nn.Linear) -> Tensor:
    """What ``layer`` makes of ``input [rows, features]``, by :func:`linear`; differentiable.

    Fast where the number of rows comes up often: see ``ROWS_MULTIPLE``.
    """
    if torch.is_autocast_enabled(input.device.type) or torch._C._are_functorch_transforms_active():
        return F.linear(input, layer.weight, layer.bias)
    found: Tensor = _Linear.apply(input, layer.weight, layer.bias)
    return found


def prepared(weight: Tensor, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """``linear`` with these weights, laid out once for many calls."""
    if not _HAS_ONEDNN or not _plain(weight, bias):
        return partial(F.linear, weight=weight, bias=bias)
    own = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    return lambda input: torch.ops.mkldnn._linear_pointwise(input, own, bias, "none", [], "")


def _plain(*tensors: Tensor | None) -> bool:
    """Whether all are float32 in the CPU's memory, and nothing but numbers is asked for."""
    if torch.compiler.is_compiling() or torch._C._is_tracing() or torch._C._are_functorch_transforms_active():
        return False
    return all(t is None or (t.device.type == "cpu" and t.dtype == torch.float32) for t in tensors)


def _dense(matrix: Tensor) -> bool:
    """Whether its numbers are one block of memory, either way round: what oneDNN does with others takes ages."""
    return matrix.is_contiguous() or matrix.t().is_contiguous()
