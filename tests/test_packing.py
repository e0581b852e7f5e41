"""The arithmetic of packing, against a table that is filled and counted cell by cell, and against torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recurra.config import UserError
from recurra.packing import Work, packing


def test_the_lecture_s_example():
    batch = packing([9, 8, 6, 4, 3, 2])
    assert batch.padded == Work(multiplications=54, additions=48)
    assert batch.packed == Work(multiplications=32, additions=26)
    assert batch.batch_sizes == (6, 6, 5, 4, 3, 3, 2, 2, 1)
    assert batch.was_sorted
    assert batch.saved_multiplications == pytest.approx(22 / 54)
    assert batch.saved_additions == pytest.approx(22 / 48)


def weighted_sum(row: list[int | None]) -> Work:
    """Count the operations of a weighted sum along a row as they are done; None is a cell that is not there."""
    multiplications = additions = 0
    total = None
    for value in row:
        if value is None:
            continue
        multiplications += 1
        if total is None:
            total = value * 2
        else:
            total += value * 2
            additions += 1
    return Work(multiplications, additions)


def whole(rows: list[list[int | None]]) -> Work:
    work = [weighted_sum(row) for row in rows]
    return Work(sum(one.multiplications for one in work), sum(one.additions for one in work))


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_counts_are_those_of_the_table_and_batch_sizes_those_of_torch(lengths):
    batch = packing(lengths)
    longest = max(lengths)
    assert batch.padded == whole([[1] * longest for _ in lengths])
    assert batch.packed == whole([[1] * length + [None] * (longest - length) for length in lengths])
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        torch.zeros(longest, len(lengths), 1), torch.tensor(lengths), enforce_sorted=False
    )
    assert batch.batch_sizes == tuple(packed.batch_sizes.tolist())
    assert sum(batch.batch_sizes) == batch.packed.multiplications == sum(lengths)
    assert batch.lengths == tuple(lengths[place] for place in batch.order) == tuple(sorted(lengths, reverse=True))
    assert batch.was_sorted == (list(batch.lengths) == lengths)


def test_equal_lengths_stay_in_order_and_save_nothing():
    batch = packing([3, 3, 3])
    assert (batch.order, batch.was_sorted) == ((0, 1, 2), True)
    assert (batch.saved_multiplications, batch.saved_additions) == (0, 0)


def test_sequences_of_one_step_have_nothing_to_add():
    batch = packing([1, 1])
    assert batch.padded == batch.packed == Work(2, 0)
    assert batch.saved_additions == 0


@pytest.mark.parametrize(
    ("lengths", "message"),
    [([], "at least one, got none"), ([3, 0], "got 0"), ([-2], "got -2"), ([2.0], r"got 2\.0"), ([True], "got True")],
)
def test_lengths_that_are_none(lengths, message):
    with pytest.raises(UserError, match=message):
        packing(lengths)
