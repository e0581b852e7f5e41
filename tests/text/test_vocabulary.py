import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recurra.config import UserError
from recurra.text.vocabulary import TokenCounter, Vocabulary

COUNTS = {"b": 3, "a": 3, "c": 5, "d": 1, "<unk>": 4, "<eos>": 2}


def test_tokens_follow_by_count_then_by_themselves():
    vocabulary = Vocabulary.from_counts(COUNTS, line_ends=10)
    assert vocabulary.tokens == ["<unk>", "<eos>", "c", "a", "b", "d"]
    assert vocabulary.counts == [4, 12, 5, 3, 3, 1]
    assert [vocabulary.id(token) for token in ("a", "<eos>", "<unk>", "never")] == [3, 1, 0, 0]
    assert len(vocabulary) == 6


@pytest.mark.parametrize(
    ("limits", "tokens", "unknown"),
    [
        ({"size": 4}, ["c", "a"], 4 + 3 + 1),
        ({"size": 2}, [], 4 + 3 + 3 + 5 + 1),
        ({"min_count": 3}, ["c", "a", "b"], 4 + 1),
        ({"size": 3, "min_count": 2, "dropped": 7}, ["c"], 4 + 3 + 3 + 1 + 7),
    ],
)
def test_what_is_left_out_is_counted_as_unknown(limits, tokens, unknown):
    vocabulary = Vocabulary.from_counts(COUNTS, line_ends=0, **limits)
    assert vocabulary.tokens == ["<unk>", "<eos>", *tokens]
    assert vocabulary.counts[0] == unknown


def test_json_and_digest():
    vocabulary = Vocabulary.from_counts({"é": 2, '"': 1, "\u2028": 1}, line_ends=1)
    again = Vocabulary.from_mapping(json.loads(json.dumps(vocabulary.to_mapping())))
    assert again == vocabulary
    assert again.digest() == vocabulary.digest()
    assert len(bytes.fromhex(vocabulary.digest())) == 32
    # the counts do not matter for whether a model fits, the order of the tokens does
    tokens, counts = vocabulary.tokens, vocabulary.counts
    assert Vocabulary(tokens, [0] * len(counts)).digest() == vocabulary.digest()
    assert Vocabulary([*tokens[:2], *tokens[:1:-1]], counts).digest() != vocabulary.digest()


@pytest.mark.parametrize(
    ("tokens", "counts", "message"),
    [
        (["<eos>", "<unk>", "a"], [1, 1, 1], "expected it to begin with"),
        (["<unk>", "<eos>", "a"], [1, 1], "a count for each of 3 tokens, got 2"),
        (["<unk>", "<eos>", "a", "a"], [1, 1, 1, 1], "'a' comes twice"),
    ],
)
def test_what_is_no_vocabulary_is_refused(tokens, counts, message):
    with pytest.raises(UserError, match=message):
        Vocabulary(tokens, counts)


@given(st.lists(st.dictionaries(st.text("abcd", max_size=3), st.integers(1, 9), max_size=12), max_size=12))
def test_counter_is_exact_below_its_limit_and_never_loses_tokens(additions):
    exact = sum(map(Counter, additions), Counter())
    roomy, tight = TokenCounter(limit=len(exact)), TokenCounter(limit=10)
    for addition in additions:
        roomy.add(addition)
        tight.add(addition)
        assert len(tight.counts) <= 10
    assert roomy.counts == exact
    assert roomy.dropped == 0
    assert tight.counts.total() + tight.dropped == exact.total()
    assert all(tight.counts[token] <= exact[token] for token in tight.counts)


def test_counter_drops_the_rare_first():
    counter = TokenCounter(limit=6)
    for _ in range(50):
        counter.add({"the": 3, "of": 2})
    for i in range(100):
        counter.add({f"rare{i}": 1})
    assert counter.counts["the"] == 150
    assert counter.counts["of"] == 100
    assert counter.dropped >= 94
