"""What packing a batch saves: the arithmetic of sequences of different lengths, padded and packed.

A batch of sequences is a table, a row for each sequence, a column for each step. Padded, every row is filled up to the
length of the longest, and the filling is worked on like the rest. Packed, the rows are sorted, long ones first, so that
those still running at a step are the first ones, and only these are worked on: ``batch_sizes`` of them
(:func:`torch.nn.utils.rnn.pack_padded_sequence`).

What is counted is one unit's weighted sum along each row, as in a recurrence: every cell is multiplied once, and every
cell but the row's first is added to what the cells before it came to. A row of T cells is T multiplications and T - 1
additions. A recurrent layer does as much work at one cell as at another, so what it saves is the share of the cells,
that of the multiplications.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from recurra.config import UserError

__all__ = ["Packing", "Work", "packing"]


@dataclass(frozen=True)
class Work:
    """How many operations one weighted sum over a batch takes."""

    multiplications: int
    additions: int


@dataclass(frozen=True)
class Packing:
    """A batch of sequences, padded and packed.

    Attributes:
        lengths: Of the sequences, long ones first, in steps.
        order: Of each of them its place, from 0, among the lengths as given.
        batch_sizes: How many sequences are still running at each step.
        padded: Work on the batch when all rows are filled up to the longest.
        packed: Work on what is really there.
    """

    lengths: tuple[int, ...]
    order: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    padded: Work
    packed: Work

    @property
    def was_sorted(self) -> bool:
        """Whether the lengths were given long ones first."""
        return self.order == tuple(range(len(self.order)))

    @property
    def saved_multiplications(self) -> float:
        """Share of the multiplications that packing saves, 0 to 1."""
        return 1 - self.packed.multiplications / self.padded.multiplications

    @property
    def saved_additions(self) -> float:
        """Share of the additions that packing saves, 0 to 1; 0 where there are none."""
        return 1 - self.packed.additions / self.padded.additions if self.padded.additions else 0.0


def packing(lengths: Sequence[int]) -> Packing:
    """Lay out sequences of these lengths, in any order, padded and packed; equal ones stay in order.

    Raises:
        UserError: no lengths, or one that is not a whole number of at least 1.
    """
    if not lengths:
        raise UserError("lengths: expected at least one, got none")
    for length in lengths:
        if not isinstance(length, int) or isinstance(length, bool) or length < 1:
            raise UserError(f"lengths: expected whole numbers of at least 1, got {length!r}")
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    ordered = [lengths[i] for i in order]
    batch_sizes: list[int] = []
    for running in range(len(ordered), 0, -1):  # up to the end of the shortest all run, up to the next all but one, ...
        batch_sizes += [running] * (ordered[running - 1] - len(batch_sizes))
    rows, steps, cells = len(ordered), ordered[0], sum(ordered)
    return Packing(
        lengths=tuple(ordered),
        order=tuple(order),
        batch_sizes=tuple(batch_sizes),
        padded=Work(rows * steps, rows * (steps - 1)),
        packed=Work(cells, cells - rows),
    )
