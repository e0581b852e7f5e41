"""Attention: a query looks up what it needs among the states of a sequence.

Letters in shapes: S steps of the memory, T steps of the queries, N sequences, M features of a memory state, Q of a
query, F of a state that attends to its own sequence. The memory's padding is never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra.config import UserError

from .dropout import check_probability
from .pooling import checked_lengths, valid_steps

__all__ = ["ATTENTIONS", "Attention", "Memory", "SelfAttention"]

ATTENTIONS = ("additive", "dot", "general")


class Memory(NamedTuple):
    """What queries look up, made ready once for all of them; batch first, as the products want it."""

    values: Tensor  # [N, S, M], zeros in padding
    keys: Tensor  # [N, S, features], what queries are compared with
    valid: Tensor  # [N, S], which steps are there

    def select(self, rows: Tensor) -> Memory:
        """Return the memory of the sequences `rows`, int64 ``[K]``, in any order, each any number of times."""
        return Memory(*(part.index_select(0, rows) for part in self))


class Attention(nn.Module):
    r"""Attention of a decoder to an encoder's states.

    .. math:: \alpha_s = \mathrm{softmax}_s(e_s), \quad c = \sum_s \alpha_s m_s

    ``'additive'``: :math:`e_s = v^\top \tanh(W q + U m_s + b)` (Bahdanau et al. 2015, appendix A.1.2); ``'dot'``:
    :math:`e_s = q^\top m_s`; ``'general'``: :math:`e_s = q^\top W m_s` (Luong et al. 2015, section 3.1). What the
    memory contributes is worked out once, by :meth:`prepare`.

    Args:
        query_size: Q.
        memory_size: M.
        kind: one of ``ATTENTIONS``.
        hidden_size: features that additive attention compares in; ``query_size`` if not given.

    Raises:
        UserError: another kind, or ``'dot'`` for queries of another size than the memory.
        ValueError: ``hidden_size`` where there is none.
    """

    def __init__(
        self, query_size: int, memory_size: int, kind: str = "additive", *, hidden_size: int | None = None
    ) -> None:
        super().__init__()
        if kind not in ATTENTIONS:
            raise UserError(f"attention: expected one of {', '.join(ATTENTIONS)}, got {kind!r}")
        if kind == "dot" and query_size != memory_size:
            raise UserError(
                f"dot attention needs decoder states as large as encoder states, got {query_size} and {memory_size};"
                " choose general, or other sizes"
            )
        if hidden_size is not None and kind != "additive":
            raise ValueError(f"hidden_size: only additive attention has one, not {kind}")
        self.kind = kind
        self.query_size = query_size
        self.memory_size = memory_size
        self.hidden_size = hidden_size or query_size
        if kind == "additive":
            self.query = nn.Linear(query_size, self.hidden_size)
            self.key = nn.Linear(memory_size, self.hidden_size, bias=False)
            self.score = nn.Parameter(torch.randn(self.hidden_size) * self.hidden_size**-0.5)
        elif kind == "general":
            self.key = nn.Linear(memory_size, query_size, bias=False)

    @property
    def output_size(self) -> int:
        """Features of a context, M."""
        return self.memory_size

    def prepare(self, memory: Tensor, lengths: Tensor | Sequence[int] | None = None) -> Memory:
        """Work out what all queries need of a memory.

        Args:
            memory: ``[S, N, M]``.
            lengths: of each sequence ``[N]``, from 0 to S, in any order; None if all have S steps.
        """
        if memory.dim() != 3 or memory.shape[2] != self.memory_size:
            raise ValueError(f"memory: expected [S, N, {self.memory_size}], got {tuple(memory.shape)}")
        ends = checked_lengths(lengths, memory.shape[0], memory.shape[1]).to(memory.device)
        valid = valid_steps(ends, len(memory)).t()
        values = memory.transpose(0, 1).masked_fill(~valid[..., None], 0.0).contiguous()
        return Memory(values, values if self.kind == "dot" else self.key(values), valid.contiguous())

    def forward(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Look up.

        Args:
            query: ``[T, N, Q]``, or ``[N, Q]`` for one step.
            memory: of the same N sequences, as :meth:`prepare` gives it.

        Returns:
            The contexts, ``[T, N, M]`` or ``[N, M]``, and the weights, ``[T, N, S]`` or ``[N, S]``: they are 0 in
            padding, and each query's sum is 1. Of a memory without any step the context is zeros, and so are the
            weights.
        """
        batch, alone = len(memory.values), query.dim() == 2
        if query.dim() not in (2, 3) or query.shape[-2:] != (batch, self.query_size):
            raise ValueError(
                f"query: expected [T, {batch}, {self.query_size}] or [{batch}, {self.query_size}],"
                f" got {tuple(query.shape)}"
            )
        asked = query[:, None] if alone else query.transpose(0, 1)  # [N, T, Q]
        if self.kind == "additive":
            compared = (self.query(asked)[:, :, None] + memory.keys[:, None]).tanh_()  # [N, T, S, features]
            scores = compared @ self.score.to(compared.dtype)
        else:
            scores = torch.bmm(asked, memory.keys.transpose(1, 2))  # [N, T, S]
        weights = _softmax(scores, memory.valid[:, None])
        context = torch.bmm(weights.to(memory.values.dtype), memory.values)  # [N, T, M]
        if alone:
            return context[:, 0], weights[:, 0]
        return context.transpose(0, 1), weights.transpose(0, 1)

    def extra_repr(self) -> str:
        """Name kind and sizes for ``print(module)``."""
        return f"{self.query_size}, {self.memory_size}, {self.kind!r}"


def _softmax(scores: Tensor, valid: Tensor) -> Tensor:
    """Softmax over the last dimension, in float32 or better, with 0 for what is not there."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    # The least number rather than -inf: where nothing is there, weights are finite, to be set to 0.
    return scores.masked_fill(~valid, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(~valid, 0.0)


class SelfAttention(nn.Module):
    r"""Multi-head self-attention with a residual connection and layer normalisation (Vaswani et al. 2017, section 3.2).

    .. math:: y = \mathrm{norm}(x + \mathrm{dropout}(W_o [\mathrm{head}_1; ...; \mathrm{head}_h]))

    A head is :math:`\mathrm{softmax}(q k^\top / \sqrt{F / h}) v` of its own share of the features. There are no
    positions in it: what it reads, a recurrent layer's states, knows of order.

    Args:
        features: F.
        heads: h, which must divide F.
        dropout: of weights and of what is added to the input, in training.

    Raises:
        UserError: heads that do not divide the features.
    """

    def __init__(self, features: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if heads < 1 or features % heads:
            raise UserError(f"self-attention: {heads} heads do not divide {features} features evenly; choose others")
        self.features = features
        self.heads = heads
        self.dropout = check_probability("dropout", dropout)
        self.projection = nn.Linear(features, 3 * features)  # to queries, keys and values
        self.output = nn.Linear(features, features)
        self.norm = nn.LayerNorm(features)

    def forward(self, states: Tensor, lengths: Tensor | Sequence[int] | None = None) -> Tensor:
        """Return new states, ``[T, N, F]``, zeros in padding.

        Args:
            states: ``[T, N, F]``.
            lengths: of each sequence ``[N]``, from 0 to T, in any order; None if all have T steps.
        """
        if states.dim() != 3 or states.shape[2] != self.features:
            raise ValueError(f"SelfAttention: expected states [T, N, {self.features}], got {tuple(states.shape)}")
        time, batch, _ = states.shape
        if not time or not batch:
            return states
        ends = checked_lengths(lengths, time, batch).to(states.device)
        valid = valid_steps(ends, time)
        padding = ~valid[..., None]
        states = states.masked_fill(padding, 0.0)
        # [T, N, 3 F] to three of [N, h, T, F / h]
        parts = self.projection(states).view(time, batch, 3, self.heads, -1).permute(2, 1, 3, 0, 4)
        seen = valid.t()[:, None, None, :].clone()
        seen[..., 0] = True  # all steps see one at least; where the first is padding, so are all, and are zeroed below
        p = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=seen, dropout_p=p)
        added = self.output(mixed.permute(2, 0, 1, 3).reshape(time, batch, self.features))
        found: Tensor = self.norm(states + F.dropout(added, p, self.training))
        return found.masked_fill(padding, 0.0)

    def extra_repr(self) -> str:
        """Name the settings for ``print(module)``."""
        return f"{self.features}, heads={self.heads}, dropout={self.dropout}"
