"""Maximum-entropy n-gram features in one hash table (Mikolov et al. 2011).

A maximum-entropy language model gives every n-gram a weight; the score of a word is the sum of the weights of the
n-grams that it ends, and the softmax of the scores is its probability. There are more n-grams than could be listed, so
their weights live in a table of fixed size, at places that a hash of the n-gram names (Mikolov, Deoras, Povey, Burget
and Černocký 2011, "Strategies for training large scale neural network language models").

There, n-grams that share a place share a weight, and one that no text has is given the weight of whatever lies at its
place. With n-grams of up to nine words those are nearly all that a step asks for, and what they add is noise. Here a
row of the table belongs to one owner, or nobody, and knows it by a fingerprint. Owners are counted from the training
text beforehand (:meth:`HashedNgrams.assign`), those seen most often first: an n-gram that has no row adds nothing.

What an output layer wants at a time is the weights of one history before many words. So the unit of the table is a row
of ``width`` weights, those of one history before one *block* of neighbouring words (or classes of words); and what is
counted, and owns a row, is a history before any of a block's words.

Letters used for shapes: T is time steps, N rows of a batch, K features of a token, W the width of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra.config import UserError
from recurra.nn.rows import set_row_sparse

__all__ = ["ABSENT", "Features", "HashedNgrams", "row_gradient", "row_sums"]

ABSENT = 0
"""What stands for the hash of a history that is not there: the line has not as many words yet."""

NOTHING = -1  # in a state: nothing was read there, or something that no n-gram may reach

# Odd, of 64 random-looking bits, as int64 holds them: the golden ratio (Knuth), and the multipliers of splitmix64.
GOLDEN = 0x9E3779B97F4A7C15 - 2**64
MULTIPLIERS = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64

MOST_BITS = 34
NOBODY = 0  # the fingerprint of a row without an owner
PRINT_BITS = 15  # of an owner's fingerprint, taken from the end of its number where its row is not
# Of Adagrad's sums: what 0.003 is for the loss of a single token, with a thousand or two in a batch.
SUMS_START = 1e-9


class Features(NamedTuple):
    """Which rows of the table add to which scores; by rising order of the n-grams, and then by rising place.

    Attributes:
        rows: of the table, int64 ``[q]``.
        places: which of the blocks that were looked up each adds to, int64 ``[q]``; within an order no two the same.
        weights: what each counts, ``[q]``.
        counts: how many there are of each order, K numbers.
    """

    rows: Tensor
    places: Tensor
    weights: Tensor
    counts: list[int]


class HashedNgrams(nn.Module):
    r"""Weights of the n-grams that a word ends: :math:`\mathrm{score}(w) = \sum_{k=1}^K \theta_{(h_k, w)}`.

    The history :math:`h_k` is the last ``k`` words read, K being ``order - 1``. N-grams reach back to the last line
    end, which stands for the beginning of the line, and not over it. Single words have no weight here: the bias of the
    output layer is just that.

    First :meth:`assign` says which n-grams have a weight; without it none has. Then :meth:`histories` turns a text into
    hashes, once, and :meth:`look_up` and :func:`row_sums` find the weights of blocks of words. A history has a row for
    a block only if the history that is shorter by a word has one: so most questions end with the first.

    Args:
        order: words of the longest n-gram, 2 or more.
        bits: the table has ``2**bits`` weights, all zero at the start.
        line_end: the token that ends a line.
        cutoffs: how often a history of 1, 2, ... words must have been seen before a block of words to be given a row
            for it, for whoever counts; the last is for all longer ones.
        rate: learning rate that the table asks for (:meth:`optimizer_options`).
        dropout: probability that a feature of a token is dropped, in training only; others weigh ``1 / (1 - dropout)``.
        width: weights of a row; a power of two. 16 float32 are a cache line.

    Raises:
        UserError: a size that cannot be.
    """

    read_by_rows: ClassVar[tuple[str, ...]] = ("table",)

    prints: Tensor  # fingerprint of each row's owner, int16 [rows]

    def __init__(
        self,
        order: int,
        bits: int,
        *,
        line_end: int,
        rate: float,
        cutoffs: Sequence[int] = (1,),
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
        if not cutoffs or min(cutoffs) < 1 or list(cutoffs) != sorted(cutoffs):
            raise UserError(
                "n-gram features: expected cutoffs of 1 or more for 2-grams, 3-grams, ..., none below the one before,"
                f" got {','.join(map(str, cutoffs)) or 'none'}"
            )
        self.order, self.bits, self.width, self.line_end = order, bits, width, line_end
        self.cutoffs, self.dropout, self.rate = tuple(cutoffs), dropout, rate
        self.table = nn.Parameter(torch.zeros(2**bits // width, width))
        self.register_buffer("prints", torch.zeros(len(self.table), dtype=torch.int16))
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

    def look_up(self, histories: Tensor, owners: Tensor, blocks: Tensor, weights: Tensor) -> Features:
        """Where the scores of blocks of words come from, for :func:`row_sums` and :func:`row_gradient`.

        Args:
            histories: hashes ``[n, K]``.
            owners: whose history each block is scored after, numbers below n, ``[p]``.
            blocks: their numbers, 0 or more, ``[p]``.
            weights: of the features, ``[n, K]``, from :meth:`weights`.
        """
        places = torch.arange(len(blocks), device=blocks.device)
        found = []
        for k in range(self.features):
            pairs = self.pairs(histories[:, k][owners], blocks)
            rows = self.rows_of(pairs)
            kept = (self.prints[rows] == self.prints_of(pairs)).nonzero()[:, 0]
            owners, blocks, places = owners[kept], blocks[kept], places[kept]
            found.append((rows[kept], places, weights[:, k][owners]))
        rows, places, factors = (torch.cat(parts) for parts in zip(*found, strict=True))
        return Features(rows, places, factors, [len(part) for part, _, _ in found])

    @torch.no_grad()
    def assign(self, pairs: Tensor, counts: Tensor) -> int:
        """Give rows that belong to nobody to new owners; the rest go without.

        Args:
            pairs: different ones of a history and a block, int64 ``[q]``, from :meth:`pairs`.
            counts: how often each was seen, ``[q]``. Of those that fall into one row, the most frequent has it.

        Returns:
            How many have a row.
        """
        pairs = pairs[counts.argsort(descending=True, stable=True)].cpu()
        prints = self.prints.cpu()
        pairs = pairs[prints[self.rows_of(pairs)] == NOBODY]
        rows, first = np.unique(self.rows_of(pairs).numpy(), return_index=True)
        prints[torch.from_numpy(rows)] = self.prints_of(pairs[torch.from_numpy(first)])
        self.prints.copy_(prints)
        return len(rows)

    def owned(self, pairs: Tensor) -> Tensor:
        """Which pairs have a row of their own; one of 2**15 that have none is mistaken for the owner of its row."""
        return self.prints[self.rows_of(pairs)] == self.prints_of(pairs)

    def pairs(self, histories: Tensor, blocks: Tensor) -> Tensor:
        """What histories before blocks, ``[q]`` each, are known by: int64, and hardly ever the same for two."""
        odd = _mixed(~blocks) | 1  # a multiplier for each block, of other numbers than words are made to
        return histories * odd

    def rows_of(self, pairs: Tensor) -> Tensor:
        """The rows that pairs lie in: their upper bits (multiply-shift hashing, Dietzfelbinger et al. 1997)."""
        return _shifted(pairs, 64 - (self.bits - self.width.bit_length() + 1))

    def prints_of(self, pairs: Tensor) -> Tensor:
        """Fingerprints of pairs, int16, 1 or more; of a history that is not there one that nobody has."""
        middle = (_shifted(pairs, 64 - MOST_BITS - PRINT_BITS) & (2**PRINT_BITS - 1)).to(torch.int16)
        return torch.where(pairs == ABSENT, -1, middle.clamp_(min=1))

    def optimizer_options(self) -> list[tuple[nn.Parameter, dict[str, Any]]]:
        """How the table wants to be trained (:func:`recurra.optimization.build_optimizer`).

        Most rows are seen a few times in a whole run, some in every batch. Adagrad gives each its own pace, and one
        number a row is enough for it. Its sums start just above zero, gradients being those of a mean over tokens: high
        enough that a row's first mention moves it little.
        """
        return [(self.table, {"rule": "row-adagrad", "rate": self.rate, "initial": SUMS_START})]

    def extra_repr(self) -> str:
        """Name the sizes for ``print(module)``."""
        return f"order={self.order}, bits={self.bits}, width={self.width}, dropout={self.dropout}"


def row_sums(table: Tensor, features: Features, size: int) -> Tensor:
    """Sums ``[size, W]`` of the rows of ``table [R, W]`` that add to each place, by their weights.

    Differentiable any number of times.
    """
    sums = table.new_zeros(size, table.shape[1])
    parts = zip(*(values.split(features.counts) for values in features[:3]), strict=True)
    for rows, places, weights in parts:  # within an order, places are different: nothing to accumulate
        terms = F.embedding(rows, table) * weights[:, None]
        if torch.is_grad_enabled():
            sums = sums.index_add(0, places, terms)
        else:
            sums.index_copy_(0, places, terms.add_(sums.index_select(0, places)))
    return sums


def row_gradient(features: Features, deltas: Tensor, size: int) -> Tensor:
    """The gradient of a table ``[size, W]`` whose rows were summed by :func:`row_sums`.

    Args:
        features: what was summed.
        deltas: gradient of the sums, ``[p, W]``.
        size: rows of the table.

    Returns:
        A coalesced sparse tensor of the rows that were summed with a weight other than zero: each once, rising.
    """
    found, entries = torch.where(features.weights != 0, features.rows, size).sort()
    entries = entries[: int(torch.searchsorted(found, size))]
    unique, counts = found[: len(entries)].unique_consecutive(return_counts=True)
    # Summed as rows of a table are, straight from where they lie: many times as fast as coalesce().
    sums = F.embedding_bag(
        features.places[entries],
        deltas,
        counts.cumsum(0) - counts,
        mode="sum",
        per_sample_weights=features.weights[entries],
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
