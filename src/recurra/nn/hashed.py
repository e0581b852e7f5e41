"""Maximum-entropy n-gram features in one hash table (Mikolov et al. 2011).

A maximum-entropy language model gives every n-gram a weight; the score of a word is the sum of the weights of the
n-grams that it ends, and the softmax of the scores is its probability. There are more n-grams than could be listed, so
their weights live in a table of fixed size, at places that a hash of the n-gram names (Mikolov, Deoras, Povey, Burget
and Černocký 2011, "Strategies for training large scale neural network language models"). N-grams that share a place
share a weight.

What an output layer wants at a time is the weights of one history before many words. So the unit of the table is a row
of ``width`` weights, those of one history before one *block* of neighbouring words (or classes of words): as many bytes
as the processor reads from memory at a time anyway.

Letters used for shapes: T is time steps, N rows of a batch, K features of a token, W the width of a row.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra.config import UserError
from recurra.nn.rows import set_row_sparse

__all__ = ["ABSENT", "HashedNgrams", "row_gradient", "row_sums"]

ABSENT = 0
"""What stands for the hash of a history that is not there: the line has not as many words yet."""

NOTHING = -1  # in a state: nothing was read there, or something that no n-gram may reach

# Odd, of 64 random-looking bits, as int64 holds them: the golden ratio (Knuth), and the multipliers of splitmix64.
GOLDEN = 0x9E3779B97F4A7C15 - 2**64
MULTIPLIERS = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64

MOST_BITS = 34
SIGN_BIT = 29  # of a pair's number; its row is in the 30 or so bits at the other end
# Of Adagrad's sums: what 0.003 is for the loss of a single token, with a thousand or two in a batch.
SUMS_START = 1e-9


class HashedNgrams(nn.Module):
    r"""Weights of the n-grams that a word ends: :math:`\mathrm{score}(w) = \sum_{k=1}^K \theta_{(h_k, w)}`.

    The history :math:`h_k` is the last ``k`` words read, K being ``order - 1``. N-grams reach back to the last line
    end, which stands for the beginning of the line, and not over it. Single words have no weight here: the bias of the
    output layer is just that.

    Use it in two steps: :meth:`histories` turns a text into hashes, once; :meth:`look_up` and :func:`row_sums` find the
    weights of blocks of words. Blocks of the same history lie at places as independent as any.

    Args:
        order: words of the longest n-gram, 2 or more.
        bits: the table has ``2**bits`` weights, all zero at the start.
        line_end: the token that ends a line.
        rate: learning rate that the table asks for (:meth:`optimizer_options`).
        dropout: probability that a feature of a token is dropped, in training only; others weigh ``1 / (1 - dropout)``.
        width: weights of a row; a power of two. 16 float32 are a cache line.

    Raises:
        UserError: a size that cannot be.
    """

    read_by_rows: ClassVar[tuple[str, ...]] = ("table",)

    def __init__(
        self,
        order: int,
        bits: int,
        *,
        line_end: int,
        rate: float,
        dropout: float = 0.0,
        width: int = 16,
    ) -> None:
        super().__init__()
        if order < 2:
            raise UserError(f"n-gram features: expected an order of at least 2 (the bias is order 1), got {order}")
        if width < 1 or width & (width - 1) or not width.bit_length() <= bits <= MOST_BITS:
            raise UserError(
                f"n-gram features: expected rows of 1, 2, 4, ... weights and a table of 2**{width.bit_length()} to"
                f" 2**{MOST_BITS} weights, got rows of {width} and 2**{bits}"
            )
        self.order, self.bits, self.width, self.line_end = order, bits, width, line_end
        self.dropout, self.rate = dropout, rate
        self.table = nn.Parameter(torch.zeros(2**bits // width, width))
        set_row_sparse(self.table, True)  # unless an optimiser decides otherwise

    @property
    def features(self) -> int:
        """K, the features of a token."""
        return self.order - 1

    def start(self, batch_size: int) -> Tensor:
        """The state before anything was read, int64 ``[batch_size, K]``: the last tokens, the latest first."""
        return torch.full((batch_size, self.features), NOTHING, device=self.table.device)

    def histories(self, inputs: Tensor, state: Tensor, *, resets: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Hash what was read up to each step.

        Args:
            inputs: tokens, int64 ``[T, N]``.
            state: what was read before, ``[N, K]``.
            resets: True where what came before is forgotten before that input is read, ``[T, N]``; None: nowhere.

        Returns:
            Hashes, int64 ``[T, N, K]``: of the last token, of the last two, and so on, ``ABSENT`` where there are not
            as many in the line; and the state after the last input.
        """
        before, steps = self.features, len(inputs)
        tokens = torch.cat([state.t().flip(0), inputs])  # [K + T, N]
        begins = tokens == self.line_end
        if resets is not None:
            begins[before:] |= resets
        value = torch.zeros_like(inputs)
        present = torch.ones_like(inputs, dtype=torch.bool)
        hashes, after = [], []
        for back in range(before):
            window = slice(before - back, before - back + steps)
            present = present & (tokens[window] != NOTHING)
            value = _mixed(value + (tokens[window] + 1) * GOLDEN)
            hashes.append(torch.where(present, value, ABSENT))
            after.append(torch.where(present[-1], tokens[window][-1], NOTHING))
            present = present & ~begins[window]
        return torch.stack(hashes, -1), torch.stack(after, -1)

    def weights(self, histories: Tensor) -> Tensor:
        """What each feature counts, as ``histories [..., K]``: 1, or 0 for one that is not there; dropout is drawn."""
        weights = (histories != ABSENT).to(self.table.dtype)
        return F.dropout(weights, self.dropout, self.training)

    def look_up(self, histories: Tensor, blocks: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Where the scores of blocks of words come from, for :func:`row_sums` and :func:`row_gradient`.

        Each pair of a history and a block has a sign of its own, with which its row counts. What is learnt of others in
        the same row so comes with a random sign, and is as likely to raise a score as to lower it (Weinberger et al.
        2009, "Feature Hashing for Large Scale Multitask Learning").

        Args:
            histories: hashes ``[n, K]``.
            blocks: their numbers, 0 or more, ``[n]``.
            weights: of the features, ``[n, K]``, from :meth:`weights`.

        Returns:
            Rows of the table, int64 ``[n, K]``, and the weights with those signs.
        """
        pairs = self.pairs(histories, blocks)
        return self.rows_of(pairs), weights * (1 - 2 * ((pairs >> SIGN_BIT) & 1))

    def pairs(self, histories: Tensor, blocks: Tensor) -> Tensor:
        """What pairs of a history and a block are known by: int64, and hardly ever the same for two."""
        odd = _mixed(~blocks) | 1  # a multiplier for each block, of other numbers than words are made to
        return histories * odd[..., None]

    def rows_of(self, pairs: Tensor) -> Tensor:
        """The rows that pairs lie in: their upper bits (multiply-shift hashing, Dietzfelbinger et al. 1997)."""
        return _shifted(pairs, 64 - (self.bits - self.width.bit_length() + 1))

    def optimizer_options(self) -> list[tuple[nn.Parameter, dict[str, Any]]]:
        """How the table wants to be trained (:func:`recurra.optimization.build_optimizer`).

        Most rows are seen a few times in a whole run, some in every batch. Adagrad gives each its own pace, and one
        number a row is enough for it. Its sums start just above zero, gradients being those of a mean over tokens: high
        enough that a history's first mention of a block of words that do not follow it moves them little.
        """
        return [(self.table, {"rule": "row-adagrad", "rate": self.rate, "initial": SUMS_START})]

    def extra_repr(self) -> str:
        """Name the sizes for ``print(module)``."""
        return f"order={self.order}, bits={self.bits}, width={self.width}, dropout={self.dropout}"


def row_sums(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows of ``table [R, W]``, for ``rows [n, K]`` and ``weights [n, K]``: ``[n, W]``.

    Differentiable any number of times.
    """
    if not torch.is_grad_enabled():
        found: Tensor = F.embedding_bag(rows, table, mode="sum", per_sample_weights=weights)
        return found
    parts = [F.embedding(row, table) * weight[:, None] for row, weight in zip(rows.t(), weights.t(), strict=True)]
    return torch.stack(parts).sum(0)


def row_gradient(rows: Tensor, weights: Tensor, deltas: Tensor, size: int) -> Tensor:
    """The gradient of a table ``[size, W]`` whose rows were summed by :func:`row_sums`.

    Args:
        rows: which were summed, int64 ``[n, K]``.
        weights: with what weights, ``[n, K]``.
        deltas: gradient of the sums, ``[n, W]``.

    Returns:
        A coalesced sparse tensor of the rows that occur with a weight: each once, rising.
    """
    found, entries = torch.where(weights != 0, rows, size).view(-1).sort()
    entries = entries[: int(torch.searchsorted(found, size))]
    unique, counts = found[: len(entries)].unique_consecutive(return_counts=True)
    # Summed as rows of a table are, straight from where they lie: many times as fast as coalesce().
    sums = F.embedding_bag(
        entries // rows.shape[1],
        deltas,
        counts.cumsum(0) - counts,
        mode="sum",
        per_sample_weights=weights.reshape(-1)[entries],
    )
    shape = size, deltas.shape[1]
    gradient: Tensor = torch.sparse_coo_tensor(unique[None], sums, shape, is_coalesced=True, check_invariants=False)
    return gradient


def _shifted(value: Tensor, bits: int) -> Tensor:
    """``value >> bits`` as if int64 had no sign."""
    mask: int = 2 ** (64 - bits) - 1
    return (value >> bits) & mask


def _mixed(value: Tensor) -> Tensor:
    """Every bit of the result depends on all of ``value``'s: the last step of splitmix64 (Steele et al. 2014)."""
    for multiplier, shift in zip(MULTIPLIERS, (30, 27), strict=True):
        value = (value ^ _shifted(value, shift)) * multiplier  # wraps around
    return value ^ _shifted(value, 31)
