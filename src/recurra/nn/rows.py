"""Tables read by rows: embeddings, sampled output layers, hashed features.

Of a table with a row for each of V words, a step reads a few thousand. The gradient of the others is zero, and need
not be written down: a step then costs the same whatever V is. :func:`rows` reads a table so, and a module says which of
its parameters it reads in no other way in training in ``read_by_rows``, a tuple of their names; in evaluation it may
read all of them. Whether the gradient of a table is made of rows is a mark on the parameter itself, so that all who
share it agree; it depends on all of them and on the optimiser: :func:`recurra.optimization.build_optimizer` sets it.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["is_row_sparse", "rows", "set_row_sparse", "tables"]


def rows(parameter: Tensor, ids: Tensor) -> Tensor:
    """Rows of a table: ``parameter[ids]``.

    The gradient of the parameter is dense, or a hybrid ``torch.sparse_coo`` one of the rows that were read, where
    :func:`set_row_sparse` has said so: indices ``[1, n]`` and values ``[n, ...]`` for n ids, repeated as the ids are
    (``coalesce`` adds them up). What is to be differentiated again gets a dense one.

    Args:
        parameter: a table ``[V, ...]`` of any rank: vectors, biases, matrices.
        ids: row numbers from 0 to V - 1, int64 ``[*]``.

    Returns:
        ``[*, ...]``.

    Raises:
        IndexError: an id is out of range.
    """
    flat = ids.reshape(-1)
    if is_row_sparse(parameter):
        found: Tensor = _SparseRows.apply(parameter, flat)
    else:  # as an embedding, whose backward is the fastest that torch has
        found = nn.functional.embedding(flat, parameter.reshape(len(parameter), -1))
    return found.view(*ids.shape, *parameter.shape[1:])


class _SparseRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape = parameter.shape
        return parameter.index_select(0, ids)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # autograd cannot follow what a sparse tensor is made of
            return grad.new_zeros(ctx.shape).index_add(0, ids, grad), None
        return torch.sparse_coo_tensor(ids[None], grad, ctx.shape, check_invariants=False), None


def set_row_sparse(parameter: Tensor, value: bool) -> None:
    """Say whether :func:`rows` gives this parameter a gradient made of rows."""
    parameter.row_sparse = value  # type: ignore[attr-defined]


def is_row_sparse(parameter: Tensor) -> bool:
    """Whether :func:`rows` gives this parameter a gradient made of rows; not before somebody has said so."""
    return getattr(parameter, "row_sparse", False)


def tables(model: nn.Module) -> list[tuple[nn.Parameter, list[nn.Module]]]:
    """The parameters of a model that training reads by rows alone, each with the modules that own it.

    A weight that an embedding shares with an output layer over all words is none.
    """
    owners: dict[nn.Parameter, list[nn.Module]] = defaultdict(list)
    elsewhere: set[nn.Parameter] = set()
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if name in getattr(module, "read_by_rows", ()):
                owners[parameter].append(module)
            else:
                elsewhere.add(parameter)
    return [(parameter, modules) for parameter, modules in owners.items() if parameter not in elsewhere]
