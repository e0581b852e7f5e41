"""Hashed n-grams: which words a history is made of, where its weights lie, and the gradient of the table."""

from __future__ import annotations

import pytest
import torch

from recurra.config import UserError
from recurra.nn.hashed import ABSENT, Features, HashedNgrams, row_gradient, row_sums
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


def test_rows_and_fingerprints_are_spread_evenly_and_independently():
    hashed = ngrams(2, 12, width=16)  # 256 rows
    histories, _ = hashed.histories(torch.arange(2, 4098)[:, None], hashed.start(1))
    pairs = [hashed.pairs(histories[:, 0, 0], torch.full((4096,), block)) for block in range(8)]
    rows = torch.stack([hashed.rows_of(each) for each in pairs])
    prints = torch.stack([hashed.prints_of(each) for each in pairs])
    assert 0 <= rows.min() <= rows.max() < 256
    for counts in [row.bincount(minlength=256) for row in rows]:  # 16 each, a standard deviation of 4
        assert (
            (counts - 16.0) ** 2 / 16
        ).sum() < 360  # chi squared with 255 degrees of freedom: mean 255, deviation 23
    together = (rows[:4] * 256 + rows[4:]).flatten().bincount(minlength=2**16)
    assert together.max() < 8
    assert int(prints.max()) < 2**15
    assert int(prints.min()) >= 1
    assert prints.unique().numel() > 0.6 * 2**15  # 1 - 1/e of them where 2**15 are drawn
    together = (rows * 256 + prints % 256).flatten().bincount(minlength=2**16)
    assert together.max() < 8


def test_words_and_blocks_are_not_mistaken_for_each_other():
    hashed = ngrams(2, 20)
    histories, _ = hashed.histories(torch.arange(50)[:, None], hashed.start(1))
    words, blocks = torch.arange(50).repeat_interleave(50), torch.arange(50).repeat(50)
    assert len(hashed.pairs(histories[words, 0, 0], blocks).unique()) == 2500


def test_whoever_is_given_a_row_owns_it_and_nobody_else_does():
    hashed = ngrams(2, 12)
    pairs = hashed.pairs(torch.arange(1, 2001) * 7919, torch.arange(2000))
    assert not hashed.owned(pairs).any()
    placed = hashed.assign(pairs[:300], torch.ones(300))
    assert placed == int(hashed.owned(pairs[:300]).sum()) == int((hashed.prints != 0).sum()) < 256
    before = hashed.prints.clone()
    hashed.assign(pairs[300:600], torch.full((300,), 9))  # too late for rows that are taken, however frequent
    assert torch.equal(hashed.prints[before != 0], before[before != 0])
    assert int(hashed.owned(pairs[600:]).sum()) < 5  # one in 2**15 by chance
    absent = hashed.pairs(torch.full((50,), ABSENT), torch.arange(50))
    assert not hashed.owned(absent).any()


def features(entries, counts, weights):
    return Features(*(torch.tensor(part) for part in zip(*entries, strict=True)), weights, counts)


def test_scores_are_weighted_sums_of_rows_in_both_ways_of_computing():
    torch.manual_seed(0)
    table = torch.randn(8, 4, dtype=torch.float64)
    entries = [(5, 0), (5, 2), (1, 3), (7, 0), (2, 1), (5, 3)]  # row, place; the last three of a longer history
    weights = torch.rand(6, dtype=torch.float64)
    found = features(entries, [3, 3], weights)
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for (row, place), weight in zip(entries, weights, strict=True):
        expected[place] += weight * table[row]
    torch.testing.assert_close(row_sums(table, found, 4), expected)
    with torch.no_grad():
        torch.testing.assert_close(row_sums(table, found, 4), expected)


def test_row_gradient_is_autograd_s_coalesced_without_what_weighs_nothing():
    torch.manual_seed(0)
    table = torch.randn(32, 4, dtype=torch.float64, requires_grad=True)
    places = torch.cat([torch.randperm(60)[:50].sort().values, torch.randperm(60)[:25].sort().values])
    rows, deltas = torch.randint(20, (75,)), torch.randn(60, 4, dtype=torch.float64)
    weights = torch.rand(75, dtype=torch.float64) * (torch.rand(75) < 0.7)
    weights[rows == 5] = 0
    given = Features(rows, places, weights, [50, 25])
    (expected,) = torch.autograd.grad(row_sums(table, given, 60), table, deltas)
    found = row_gradient(given, deltas, 32)
    assert found.is_coalesced()
    assert 5 not in found.indices()
    assert (found.indices()[0].diff() > 0).all()
    torch.testing.assert_close(found.to_dense(), expected)
    empty = row_gradient(Features(rows[:0], places[:0], weights[:0], [0, 0]), deltas, 32)
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
        ({"order": 3, "cutoffs": ()}, "expected cutoffs of 1 or more .* got none"),
        ({"order": 3, "cutoffs": (0,)}, "got 0"),
        ({"order": 4, "cutoffs": (3, 1)}, "none below the one before, got 3,1"),
    ],
)
def test_sizes_that_cannot_be_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        ngrams(**{"bits": 10} | options)
