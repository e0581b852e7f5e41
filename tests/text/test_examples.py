"""Examples side by side: what is padding, and which example is in which batch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from recurra.text.examples import Encoded, ExampleBatches, collate


def encoded(number, length):
    """An example that is known by its number, with two arrays of different lengths and two features."""
    steps = np.full(length, number, np.int64)
    return Encoded(
        {"words": steps, "frames": np.full((2 * length, 2), number, np.float32), "number": np.array(number)},
        2 * length,
        length + 1,
    )


LENGTHS = [3, 0, 7, 1, 3, 3, 12, 2, 5, 3, 1, 4, 4, 40, 6]
EXAMPLES = [encoded(number, length) for number, length in enumerate(LENGTHS)]


def numbers(batch):
    return batch.arrays["number"].tolist() if batch.size else []


def batches(examples=EXAMPLES, **options):
    return ExampleBatches(examples, **{"batch_size": 4, **options})


class TestCollate:
    def test_columns_are_the_examples_with_zeros_behind(self):
        some = [EXAMPLES[number] for number in (0, 1, 2)]
        batch = collate(some)
        assert (batch.size, batch.tokens) == (3, 4 + 1 + 8)
        assert batch.arrays["words"].shape == (7, 3)
        assert batch.arrays["frames"].shape == (14, 3, 2)
        assert batch.arrays["number"].tolist() == [0, 1, 2]
        assert batch.lengths.keys() == {"words", "frames"}
        for name in batch.lengths:
            array, lengths = batch.arrays[name], batch.lengths[name]
            assert lengths.dtype == torch.int64
            for column, example in enumerate(some):
                own = example.arrays[name]
                assert lengths[column] == len(own)
                np.testing.assert_array_equal(array[: len(own), column].numpy(), own)
                assert not array[len(own) :, column].any()
            assert array.numpy().dtype == some[0].arrays[name].dtype

    def test_nothing(self):
        assert collate([]) == ({}, {}, 0, 0)
        empty = collate([EXAMPLES[1], EXAMPLES[1]])
        assert empty.arrays["words"].shape == (0, 2)
        assert empty.lengths["words"].tolist() == [0, 0]

    def test_a_batch_of_another_device_keeps_its_lengths(self):
        batch = collate(EXAMPLES[:3]).to("meta")
        assert {array.device.type for array in batch.arrays.values()} == {"meta"}
        assert {lengths.device.type for lengths in batch.lengths.values()} == {"cpu"}


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("batch_tokens", [None, 1, 30, 1000])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
class TestBatches:
    def test_every_example_comes_once_where_the_order_says(self, shuffled, batch_tokens, batch_size):
        made = batches(shuffled=shuffled, batch_tokens=batch_tokens, batch_size=batch_size, seed=3)
        assert sorted(itertools.chain.from_iterable(map(numbers, made))) == list(range(len(EXAMPLES)))
        assert [numbers(batch) for batch in made] == [places.tolist() for places in made.order]
        assert len(made) == len(made.order)
        assert sum(batch.tokens for batch in made) == sum(example.targets for example in EXAMPLES)

    def test_none_is_too_large(self, shuffled, batch_tokens, batch_size):
        made = batches(shuffled=shuffled, batch_tokens=batch_tokens, batch_size=batch_size)
        for batch in made:
            assert 1 <= batch.size <= batch_size
            steps = 2 * max(LENGTHS[number] for number in numbers(batch)) * batch.size
            assert batch_tokens is None or steps <= batch_tokens or batch.size == 1

    def test_shares_add_up(self, shuffled, batch_tokens, batch_size):
        options = {"shuffled": shuffled, "batch_tokens": batch_tokens, "batch_size": batch_size, "seed": 1}
        whole, shares = batches(**options), [batches(**options, rank=rank, ranks=3) for rank in range(3)]
        for batch, *parts in zip(whole, *shares, strict=True):
            assert sorted(itertools.chain.from_iterable(map(numbers, parts))) == sorted(numbers(batch))
            assert sum(part.tokens for part in parts) == batch.tokens
            assert max(part.size for part in parts) - min(part.size for part in parts) <= 1


class TestOrder:
    def test_by_seed_and_epoch_alone(self):
        def order(**options):
            return [places.tolist() for places in batches(**options).order]

        assert order(seed=1, epoch=2) == order(seed=1, epoch=2) == order(seed=1, epoch=2, rank=1, ranks=2)
        assert len({str(order(seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(3)}) == 9
        assert order(shuffled=False, seed=1) == order(shuffled=False, seed=2, epoch=3)

    def test_examples_of_one_length_do_not_stay_together(self):
        same = [encoded(number, 2) for number in range(12)]
        assert len({tuple(sorted(numbers(batches(same, epoch=epoch)[0]))) for epoch in range(5)}) > 1

    def test_for_evaluation_the_longest_come_first(self):
        lengths = [LENGTHS[number] for batch in batches(shuffled=False) for number in numbers(batch)]
        assert lengths == sorted(LENGTHS, reverse=True)

    def test_little_is_padding(self):
        padded = sum(batch.arrays["words"].numel() for batch in batches(batch_tokens=30))
        assert sum(LENGTHS) <= padded < 1.2 * sum(LENGTHS)


def test_a_share_of_too_few_is_empty():
    share = batches(EXAMPLES[:2], rank=2, ranks=3)
    assert len(share) == 1
    assert share[0] == ({}, {}, 0, 0)


def test_no_examples():
    assert list(batches([])) == []
