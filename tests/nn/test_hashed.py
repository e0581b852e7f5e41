"""Hashed n-grams: which words a history is made of, where its weights lie, and the gradient of the table."""

from __future__ import annotations

import pytest
import torch

from recurra.config import UserError
from recurra.nn.hashed import ABSENT, HashedNgrams, row_gradient, row_sums
from recurra.nn.rows import tables

LINE_END = 1


def ngrams(order, bits, **options):
    return HashedNgrams(order, bits, **{"line_end": LINE_END, "rate": 0.1} | options)


def text(time, batch, words=6, seed=0):
    return torch.randint(words, (time, batch), generator=torch.Generator().manual_seed(seed))


def reach(tokens, resets=()):
    """The oracle: the words of each history, the last one, the last two, ...; None where there are not any."""
    found = []
    for t in range(len(tokens)):
        begin = max((i for i in range(t + 1) if tokens[i] == LINE_END or i in resets), default=0)
        found.append([tuple(tokens[t - k : t + 1]) if t - k >= begin else None for k in range(3)])
    return found


def test_hashes_are_one_to_one_with_the_words_since_the_line_s_beginning():
    hashed, inputs = ngrams(4, 10), text(400, 3)
    hashes, _ = hashed.histories(inputs, hashed.start(3))
    known = {}
    for row in range(3):
        for words, values in zip(reach(inputs[:, row].tolist()), hashes[:, row].tolist(), strict=True):
            for history, value in zip(words, values, strict=True):
                assert (value == ABSENT) == (history is None)
                assert known.setdefault(value, history) == history
    assert len(set(known.values())) == len(known) > 100


def test_resets_begin_a_line_anew_whatever_is_read():
    hashed, inputs = ngrams(4, 10), text(60, 1)
    places = [7, 20, 21, 40]
    resets = torch.zeros(60, 1, dtype=torch.bool)
    resets[places] = True
    hashes, _ = hashed.histories(inputs, hashed.start(1), resets=resets)
    expected = [[h is None for h in words] for words in reach(inputs[:, 0].tolist(), places)]
    assert ((hashes[:, 0] == ABSENT) == torch.tensor(expected)).all()
    # and a state made within a line does not reach back over the reset either
    first, state = hashed.histories(inputs[:21], hashed.start(1), resets=resets[:21])
    second, _ = hashed.histories(inputs[21:], state, resets=resets[21:])
    assert torch.equal(torch.cat([first, second]), hashes)


@pytest.mark.parametrize("order", [2, 5])
def test_pieces_give_what_the_whole_gives_in_any_order_of_rows(order):
    hashed, inputs = ngrams(order, 10), text(30, 4)
    whole, end = hashed.histories(inputs, hashed.start(4))
    assert whole.shape == (30, 4, order - 1)
    state, parts = hashed.start(4), []
    for piece in inputs.split([1, 2, 9, 18]):
        part, state = hashed.histories(piece, state)
        parts.append(part)
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(state, end)
    rows = torch.tensor([2, 0])
    more = text(6, 2, seed=1)
    selected, _ = hashed.histories(more, state[rows])
    expected, _ = hashed.histories(torch.cat([inputs[:, rows], more]), hashed.start(2))
    assert torch.equal(selected, expected[30:])


def test_rows_and_signs_are_spread_evenly_and_independently():
    hashed = ngrams(2, 12, width=16)  # 256 rows
    histories, _ = hashed.histories(torch.arange(2, 4098)[:, None], hashed.start(1))
    found = [hashed.look_up(histories[:, 0], torch.full((4096,), b), torch.full((4096, 1), 0.5)) for b in range(8)]
    rows, signs = (torch.stack(parts)[..., 0] for parts in zip(*found, strict=True))
    assert 0 <= rows.min() <= rows.max() < 256
    for counts in [row.bincount(minlength=256) for row in rows]:  # 16 each, a standard deviation of 4
        assert (
            (counts - 16.0) ** 2 / 16
        ).sum() < 360  # chi squared with 255 degrees of freedom: mean 255, deviation 23
    pairs = (rows[:4] * 256 + rows[4:]).flatten().bincount(minlength=2**16)
    assert pairs.max() < 8
    assert signs.unique().tolist() == [-0.5, 0.5]
    assert (signs.sign().mean(1).abs() < 0.08).all()  # 5 standard deviations
    assert (signs[:4] * signs[4:]).sign().mean().abs() < 0.04
    in_row = torch.zeros(256).index_add_(0, rows.flatten(), signs.flatten().sign())
    assert (in_row.abs() < 6 * 128**0.5).all()


def test_words_and_blocks_are_not_mistaken_for_each_other():
    hashed = ngrams(2, 20)
    histories, _ = hashed.histories(torch.arange(50)[:, None], hashed.start(1))
    words, blocks = torch.arange(50).repeat_interleave(50), torch.arange(50).repeat(50)
    assert len(hashed.pairs(histories[words, 0], blocks).unique()) == 2500


def test_scores_are_weighted_sums_of_rows_in_both_ways_of_computing():
    torch.manual_seed(0)
    hashed = ngrams(4, 8, width=4).double()
    torch.nn.init.normal_(hashed.table)
    rows, weights = torch.randint(64, (9, 3)), torch.randint(2, (9, 3)).double()
    expected = sum(hashed.table[rows[:, k]] * weights[:, k, None] for k in range(3))
    torch.testing.assert_close(row_sums(hashed.table, rows, weights), expected)
    with torch.no_grad():
        torch.testing.assert_close(row_sums(hashed.table, rows, weights), expected)


def test_row_gradient_is_autograd_s_coalesced_without_what_weighs_nothing():
    torch.manual_seed(0)
    hashed = ngrams(4, 7, width=4).double()
    rows, deltas = torch.randint(20, (50, 3)), torch.randn(50, 4, dtype=torch.float64)
    weights = torch.rand(50, 3, dtype=torch.float64) * (torch.rand(50, 3) < 0.7)
    weights[rows == 5] = 0
    (expected,) = torch.autograd.grad(row_sums(hashed.table, rows, weights), hashed.table, deltas)
    found = row_gradient(rows, weights, deltas, 32)
    assert found.is_coalesced()
    assert 5 not in found.indices()
    assert (found.indices()[0].diff() > 0).all()
    torch.testing.assert_close(found.to_dense(), expected)
    empty = row_gradient(rows[:0], weights[:0], deltas[:0], 32)
    assert empty.to_dense().abs().sum() == 0


def test_dropout_leaves_out_features_in_training_only():
    torch.manual_seed(0)
    hashed = ngrams(4, 10, dropout=0.25)
    histories, _ = hashed.histories(text(300, 4), hashed.start(4))
    present = histories != ABSENT
    drawn = hashed.weights(histories)
    assert not drawn[~present].any()
    torch.testing.assert_close(drawn[present].unique(), torch.tensor([0, 1 / 0.75]))
    assert abs((drawn[present] == 0).double().mean() - 0.25) < 0.05
    hashed.eval()
    assert torch.equal(hashed.weights(histories), present.float())


def test_the_table_asks_to_be_trained_by_rows_and_at_its_own_rate():
    hashed = ngrams(3, 10, rate=0.5)
    assert [parameter for parameter, _ in tables(hashed)] == [hashed.table]
    ((parameter, options),) = hashed.optimizer_options()
    assert parameter is hashed.table
    assert (options["rule"], options["rate"]) == ("row-adagrad", 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 1}, "order of at least 2"),
        ({"order": 3, "width": 12}, "rows of 1, 2, 4"),
        ({"order": 3, "bits": 4}, "a table of"),
        ({"order": 3, "bits": 40}, "a table of"),
    ],
)
def test_sizes_that_cannot_be_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        ngrams(**{"bits": 10} | options)
