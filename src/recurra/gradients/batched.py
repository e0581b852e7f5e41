"""Backward passes of many vectors at once, as fast as their products."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from recurra.nn.products import linear

__all__ = ["Batched"]


class Batched(TorchFunctionMode):
    """Products with weights in it are differentiated fast for a batch of vectors, by ``torch.func.vmap``.

    They are left to oneDNN, at a few hundred rows twice as fast as BLAS, and the weights are laid out for it once. The
    numbers are the same. The weights must not need gradients, nor change while this is used.
    """

    def __init__(self) -> None:
        super().__init__()
        self._turned: dict[int, tuple[Tensor, Tensor]] = {}  # weights by identity, kept so that it stays theirs

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Take our own linear, and everything else as it is."""
        if func is not F.linear:
            return func(*args, **(kwargs or {}))
        return self._linear(*args, **(kwargs or {}))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if id(weight) not in self._turned:
            self._turned[id(weight)] = weight, weight.T.contiguous()
        output: Tensor = _Linear.apply(input, weight, bias, self._turned[id(weight)][1])
        return output


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None, turned: Tensor) -> Tensor:
        return linear(input, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(inputs[3])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (turned,) = ctx.saved_tensors
        return _Product.apply(gradients[0], turned), None, None, None


class _Product(torch.autograd.Function):
    """vectors [..., depth] @ turned.T, turned [features, depth]; of a batch of them in one product."""

    @staticmethod
    def forward(vectors: Tensor, turned: Tensor) -> Tensor:
        product: Tensor = linear(vectors.flatten(0, -2), turned)
        return product.reshape(*vectors.shape[:-1], len(turned))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, vectors: Tensor, turned: Tensor) -> Any:
        return _Product.apply(vectors.movedim(in_dims[0], 0), turned), 0
