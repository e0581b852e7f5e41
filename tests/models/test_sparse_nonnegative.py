"""The sparse non-negative matrix language model, against one in dictionaries that counts everything anew."""

from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from recurra.config import UserError
from recurra.models.skip_grams import NOTHING, FeatureType, feature_keys, feature_types, histories
from recurra.models.sparse_nonnegative import (
    CODES,
    COUNT_BUCKETS,
    PARTS,
    RATIO_BUCKETS,
    TOTAL_BUCKETS,
    WEIGHTS,
    SparseNonnegativeLM,
    SparseNonnegativeLMSettings,
    buckets,
    count,
    leave_one_out,
    matrix,
)
from recurra.text.batches import TokenStream
from recurra.text.vocabulary import LINE_END, Vocabulary
from reference.sparse_nonnegative import Dictionaries, events, left_out_loss

SIZE = 7  # of the vocabulary; the last token is never seen
VOCABULARY = Vocabulary(["<unk>", "<eos>", *"abcde"], [1] * SIZE)
PLAIN = SparseNonnegativeLMSettings(
    order=4, skip_remote=2, skip_words=2, skip_adjacent=1, skip_min_count=1, adjust_events=200, adjust_epochs=2
)
VARIANTS = {
    "skip-grams": PLAIN,
    "frequent skip-grams": dataclasses.replace(PLAIN, skip_min_count=3),
    "n-grams": dataclasses.replace(PLAIN, order=5, skip_remote=0),
    "unigrams": dataclasses.replace(PLAIN, order=1),
    "nothing adjacent": dataclasses.replace(PLAIN, order=2, skip_remote=3, skip_words=3, skip_adjacent=0),
}


def text(lines=25, seed=0):
    """Lines of 0 to 8 tokens, frequent and rare."""
    draw = np.random.default_rng(seed)
    chances = np.array([1, 8, 4, 2, 1]) / 16
    pieces = [[*draw.choice([0, 2, 3, 4, 5], draw.integers(9), p=chances), LINE_END] for _ in range(lines)]
    return np.concatenate(pieces)


TEXTS = {
    "random": text(),
    "one line": np.array([2, 3, 2, 3, 2, 2, 3, LINE_END]),
    "a word a line": np.array([2, LINE_END, 3, LINE_END, 2, LINE_END]),
    "empty lines": np.array([LINE_END] * 4),
    "one token": np.array([4]),
    "no last line end": np.array([2, 3, LINE_END, 2, 3, 4]),
}


def random_weights(settings, seed=1):
    return np.random.default_rng(seed).normal(0.0, 0.7, (len(settings.types), WEIGHTS))


def parts_of(weights):
    """The three tables of each type, as the oracle wants them."""
    return (
        weights[:, : PARTS[1]].reshape(-1, TOTAL_BUCKETS, COUNT_BUCKETS),
        weights[:, PARTS[1] : PARTS[2]].reshape(-1, COUNT_BUCKETS, RATIO_BUCKETS),
        weights[:, PARTS[2] :].reshape(-1, TOTAL_BUCKETS, RATIO_BUCKETS),
    )


def counted(tokens, settings):
    """Counts of a text, with every token an event."""
    stream = TokenStream.from_tokens(tokens)
    return count(stream, SIZE, settings.types, np.arange(len(tokens)), min_count=settings.skip_min_count)


def model(settings, tokens=TEXTS["random"], weights=None):
    weights = random_weights(settings) if weights is None else weights
    return SparseNonnegativeLM(settings, SIZE, matrix(counted(tokens, settings), weights))


@pytest.fixture(params=VARIANTS)
def settings(request):
    return VARIANTS[request.param]


def columns(steps, rows, seed=3):
    """Inputs and targets of texts side by side, line ends among them, and unseen tokens."""
    tokens = torch.randint(SIZE, (steps + 1, rows), generator=torch.Generator().manual_seed(seed))
    return tokens[:-1], tokens[1:]


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("adjusted", [False, True])
def test_probabilities_are_those_of_the_dictionaries(settings, name, adjusted):
    tokens = TEXTS[name]
    weights = random_weights(settings) * adjusted
    oracle = Dictionaries(events(tokens), SIZE, settings.types, parts_of(weights), settings.skip_min_count)
    lm = model(settings, tokens, weights)
    read = [LINE_END, 2, 3, 2, 2, 4, 6, 3, 2, LINE_END, LINE_END, 5, 2, 3]
    history, state = [], lm.start(1)
    for token in read:
        history = [LINE_END] if token == LINE_END else [*history, token]
        log_probs, state = lm.step(torch.tensor([token]), state)
        expected = torch.tensor(oracle.probabilities(history), dtype=torch.float64)
        torch.testing.assert_close(log_probs[0].double().exp(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", TEXTS)
def test_the_loss_leaves_one_token_out(settings, name):
    tokens = TEXTS[name]
    weights = random_weights(settings)
    chosen = np.random.default_rng(2).permutation(len(tokens))[:12]
    found, _ = leave_one_out(counted(tokens, settings), weights, chosen)
    expected = left_out_loss(tokens, chosen, SIZE, settings.types, parts_of(weights), settings.skip_min_count)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_the_gradient_is_that_of_finite_differences(settings):
    tables, weights = counted(TEXTS["random"], settings), random_weights(settings)
    chosen = np.arange(60)
    _, gradient = leave_one_out(tables, weights, chosen)
    touched = np.argwhere(gradient)
    draw = np.random.default_rng(4)
    directions = [np.zeros_like(weights) for _ in range(20)]
    for direction, place in zip(directions, draw.permutation(touched), strict=False):
        direction[tuple(place)] = 1.0
    directions.append(draw.normal(size=weights.shape))
    for direction in directions:
        above, below = (leave_one_out(tables, weights + h * direction, chosen)[0].mean() for h in (1e-5, -1e-5))
        np.testing.assert_allclose((gradient * direction).sum(), (above - below) / 2e-5, rtol=1e-5, atol=1e-9)


def test_every_kind_of_bucket_is_met():
    """So that the comparisons above say something: the continuation counts differ from the counts, and so on."""
    weights = random_weights(PLAIN)
    _, gradient = leave_one_out(counted(TEXTS["random"], PLAIN), weights, np.arange(len(TEXTS["random"])))
    ratios = gradient[:, PARTS[1] : PARTS[1] + CODES].reshape(-1, COUNT_BUCKETS, RATIO_BUCKETS)
    assert (ratios != 0).any((0, 1)).sum() >= 4
    assert (gradient != 0).any(1).all()


def test_buckets_are_half_powers_of_two():
    numbers = np.array([1, 2, 3, 4, 5, 6, 8, 11, 12, 16, 10**6])
    assert buckets(numbers, 30).tolist() == [0, 2, 3, 4, 4, 5, 6, 6, 7, 8, 29]
    assert buckets(np.array([1.0, 1.41, 1.42, 2.0]), 30).tolist() == [0, 0, 1, 2]


def test_no_probability_is_0_and_their_sum_is_1(settings):
    lm = model(settings)
    inputs, _ = columns(20, 3)
    state = lm.start(3)
    for tokens in inputs:
        log_probs, state = lm.step(tokens, state)
        assert log_probs.shape == (3, SIZE)
        assert log_probs.isfinite().all()
        torch.testing.assert_close(log_probs.double().exp().sum(-1), torch.ones(3).double(), rtol=0, atol=1e-6)


def test_scores_are_those_of_steps_whatever_the_chunks_and_rows(settings):
    lm = model(settings)
    inputs, targets = columns(24, 4)
    whole, end = lm.score(inputs, targets, lm.start(4))
    state = lm.start(4)
    for t in range(24):
        log_probs, state = lm.step(inputs[t], state)
        torch.testing.assert_close(log_probs.gather(-1, targets[t, :, None])[:, 0], whole[t], rtol=0, atol=1e-6)
    assert torch.equal(state, end)
    state, pieces = lm.start(4), []
    for first, last in ((0, 1), (1, 10), (10, 24)):
        piece, state = lm.score(inputs[first:last], targets[first:last], state)
        pieces.append(piece)
    assert torch.equal(torch.cat(pieces), whole)
    assert torch.equal(state, end)
    for row in range(4):
        alone, _ = lm.score(inputs[:, row : row + 1], targets[:, row : row + 1], lm.start(1))
        assert torch.equal(alone[:, 0], whole[:, row])


def test_select_copies_rows():
    lm = model(PLAIN)
    inputs, targets = columns(5, 3)
    _, state = lm.score(inputs, targets, lm.start(3))
    rows = torch.tensor([2, 0, 2, 1])
    expected, _ = lm.step(torch.tensor([2, 3, 4]), state)
    found, _ = lm.step(torch.tensor([4, 2, 4, 3]), lm.select(state, rows))
    assert torch.equal(found, expected[rows])


def test_a_line_end_forgets_the_line_before():
    lm = model(PLAIN)
    _, state = lm.step(torch.tensor([2, 3]), lm.start(2))
    after, _ = lm.step(torch.tensor([LINE_END, LINE_END]), state)
    fresh, _ = lm.step(torch.tensor([LINE_END, LINE_END]), lm.start(2))
    assert torch.equal(after, fresh)


def test_histories_end_where_the_line_begins():
    inputs = np.array([[LINE_END, 5], [3, LINE_END], [4, 2]])
    found = histories(inputs, np.array([[9, 8], [7, LINE_END], [6, NOTHING]]))
    assert found[:, :, 0].T.tolist() == [[LINE_END, NOTHING, NOTHING], [3, LINE_END, NOTHING], [4, 3, LINE_END]]
    assert found[:, :, 1].T.tolist() == [[5, 8, LINE_END], [LINE_END, NOTHING, NOTHING], [2, LINE_END, NOTHING]]


def test_a_skip_gram_is_the_words_on_both_sides_of_those_skipped():
    kind = FeatureType(remote=2, skipped=1, adjacent=1)
    one = np.array([[9], [0], [7], [6], [5]], np.int32)
    for place, same in ((0, False), (1, True), (2, False), (3, False), (4, True)):
        other = one.copy()
        other[place] = 1
        (key, fires), (changed, _) = next(feature_keys(one, [kind])), next(feature_keys(other, [kind]))
        assert fires.all()
        assert (key == changed).all() == same
    one[3] = NOTHING
    assert not next(feature_keys(one, [kind]))[1].any()


def test_feature_types_keep_within_the_bounds():
    types = feature_types(3, 2, 2, 1)
    assert types[:3] == ((0, 0, 0), (0, 0, 1), (0, 0, 2))
    assert set(types[3:]) == {(1, 1, 0), (2, 1, 0), (1, 2, 0), (2, 2, 0), (1, 1, 1), (1, 2, 1)}


def echoes(lines, size, seed):
    """Lines in which most tokens are those of two before."""
    draw = np.random.default_rng(seed)
    tokens = []
    for _ in range(lines):
        line = (2 + draw.zipf(1.3, 12) % (size - 2)).tolist()
        for place in np.flatnonzero(draw.random(10) < 0.7):
            line[place + 2] = line[place]
        tokens += [*line, LINE_END]
    return np.array(tokens)


def test_estimating_learns_from_what_is_left_out():
    vocabulary = Vocabulary(["<unk>", "<eos>", *map(str, range(38))], [1] * 40)
    stream, said = TokenStream.from_tokens(echoes(400, 40, 0)), []
    settings = dataclasses.replace(PLAIN, adjust_events=3000, adjust_epochs=10)
    lm = SparseNonnegativeLM.estimate(settings, stream, vocabulary, say=said.append)
    other = torch.from_numpy(np.append(LINE_END, echoes(100, 40, 1)))[:, None]
    plain = SparseNonnegativeLM.estimate(dataclasses.replace(settings, adjust_events=0), stream, vocabulary)
    learnt, unlearnt = (each.score(other[:-1], other[1:], each.start(1))[0].mean() for each in (lm, plain))
    assert learnt > unlearnt + 0.15
    assert len(said) == 12
    assert "nats" in said[1]
    again = SparseNonnegativeLM.estimate(settings, stream, vocabulary)
    assert all(torch.equal(tensor, again.tensors()[name]) for name, tensor in lm.tensors().items())


def test_without_events_nothing_is_adjusted():
    settings = dataclasses.replace(PLAIN, adjust_events=0)
    found = SparseNonnegativeLM.estimate(settings, TokenStream.from_tokens(TEXTS["random"]), VOCABULARY)
    expected = model(settings, weights=np.zeros((len(settings.types), WEIGHTS)))
    assert torch.equal(found.tensors()["weights"], expected.tensors()["weights"])


def test_a_model_comes_back_from_its_file(tmp_path):
    lm = SparseNonnegativeLM.estimate(PLAIN, TokenStream.from_tokens(TEXTS["random"]), VOCABULARY)
    save_file(lm.tensors(), tmp_path / "weights.safetensors")
    back = SparseNonnegativeLM.from_tensors(PLAIN, VOCABULARY, load_file(tmp_path / "weights.safetensors"))
    inputs, targets = columns(9, 2)
    assert torch.equal(back.score(inputs, targets, back.start(2))[0], lm.score(inputs, targets, lm.start(2))[0])
    assert back.parameters_count == lm.parameters_count == len(lm.tensors()["weights"])
    assert (back.vocabulary_size, back.settings.reset) == (SIZE, "lines")


def test_an_empty_text_is_one_line_of_complaint():
    empty = TokenStream.from_tokens(np.empty(0, np.int64))
    with pytest.raises(UserError, match="no tokens") as caught:
        SparseNonnegativeLM.estimate(PLAIN, empty, VOCABULARY)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("ids", "found"), [([2, 7, 1], "1 to 7"), ([2, -1, 1], "-1 to 2")])
def test_ids_of_another_vocabulary_are_refused(ids, found):
    with pytest.raises(UserError, match=f"expected ids from 0 to 6, got {found}: .* another vocabulary"):
        SparseNonnegativeLM.estimate(PLAIN, TokenStream.from_tokens(np.array(ids)), VOCABULARY)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_tensors_of_another_order_are_refused(order):
    lm, types = model(PLAIN), len(PLAIN.types)
    other = dataclasses.replace(PLAIN, order=order)
    with pytest.raises(UserError, match=f"expected {len(other.types)} feature types by the settings, found {types};"):
        SparseNonnegativeLM.from_tensors(other, VOCABULARY, lm.tensors())


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("keys", lambda table: table[1:], r"keys: expected \d+ entries by the other tensors, found \d+"),
        ("sums", lambda table: table[:0], r"sums: expected \d+ entries by the other tensors, found 0"),
        ("row_starts", lambda table: table[1:], "row_starts: expected"),
        ("row_starts", lambda table: table - 1, r"expected rows of \d+ pairs"),
        ("targets", lambda table: table[:-1], r"weights: expected \d+ entries"),
        ("weights", lambda table: table[:-1], r"weights: expected \d+ entries"),
        (
            "targets",
            lambda table: table.long(),
            r"targets: expected one dimension of torch\.int32, found 1 of torch\.int64",
        ),
        ("weights", lambda table: table[None], r"weights: expected one dimension of torch\.float32, found 2 of"),
        ("type_starts", lambda table: table.flip(0), "the types do not ascend"),
        ("type_starts", lambda table: table.double(), "type_starts: expected one dimension"),
        ("more", lambda _: torch.zeros(1), "more is missing or one too many"),
    ],
)
def test_tensors_that_do_not_fit_together_are_refused(name, change, message):
    tensors = model(PLAIN).tensors()
    tensors[name] = change(tensors.get(name))
    with pytest.raises(UserError, match=f"^[^\n]*{message}[^\n]*$"):
        SparseNonnegativeLM.from_tensors(PLAIN, VOCABULARY, tensors)


def test_tensors_that_are_missing_or_of_another_vocabulary_are_refused():
    tensors = model(PLAIN).tensors()
    with pytest.raises(UserError, match="expected a vocabulary of 6 tokens, found 7"):
        SparseNonnegativeLM.from_tensors(PLAIN, Vocabulary(VOCABULARY.tokens[:-1], [1] * (SIZE - 1)), tensors)
    del tensors["sums"]
    with pytest.raises(UserError, match="sums is missing"):
        SparseNonnegativeLM.from_tensors(PLAIN, VOCABULARY, tensors)


def test_counting_in_parts_is_the_same(settings, monkeypatch):
    weights = random_weights(settings)
    expected, expected_tables = model(settings, weights=weights).tensors(), counted(TEXTS["random"], settings)
    monkeypatch.setattr("recurra.models.skip_grams.AT_ONCE", 3)
    monkeypatch.setattr("recurra.models.sparse_nonnegative.SPAN", 5)
    for name, tensor in model(settings, weights=weights).tensors().items():
        assert torch.equal(tensor, expected[name]), name
    for table, other in zip(counted(TEXTS["random"], settings), expected_tables, strict=True):
        for name in ("histogram_starts", "codes", "masses"):
            np.testing.assert_array_equal(getattr(table, name), getattr(other, name))


def test_memory_of_an_estimate(monkeypatch):
    """Of what counting needs beside the counts, only one type's is there at a time, and counts become the matrix."""
    vocabulary = Vocabulary(["<unk>", "<eos>", *map(str, range(998))], [1] * 1000)
    stream = TokenStream.from_tokens(echoes(4000, 1000, 0))
    monkeypatch.setattr("recurra.models.skip_grams.AT_ONCE", 2**12)
    monkeypatch.setattr("recurra.models.sparse_nonnegative.SPAN", 2**12)
    tracemalloc.start()
    lm = SparseNonnegativeLM.estimate(SparseNonnegativeLMSettings(adjust_events=0), stream, vocabulary)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.2 * sum(tensor.nbytes for tensor in lm.tensors().values())
