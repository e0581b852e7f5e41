"""Recall in real texts: repeated words counted by hand."""

from __future__ import annotations

import math
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recurra.config import UserError
from recurra.language_model import LanguageModel
from recurra.probing import (
    RepeatedSettings,
    draw_repeated,
    real_texts,
    repeated_table,
    repeated_words,
)
from recurra.probing.real_texts import clustered_error
from recurra.text.batches import TokenStream
from recurra.text.documents import Document, Text
from recurra.text.tokenizer import CharacterTokenizer, WordTokenizer
from recurra.text.vocabulary import Vocabulary

WORDS = ["rare", "odd", "the", "of", "!"]
VOCABULARY = Vocabulary(["<unk>", "<eos>", *WORDS], [0, 10, 2, 2, 500_000, 500_000, 2])


class Remembers:
    """A word that was read since the start costs 1 nat, any other 5."""

    vocabulary_size = len(VOCABULARY)
    settings = SimpleNamespace(reset="documents")
    parameters_count = 0

    def start(self, batch_size):
        return [set() for _ in range(batch_size)]

    def select(self, state, rows):
        return [set(state[row]) for row in rows.tolist()]

    def score(self, inputs, targets, state):
        found = torch.empty(targets.shape)
        for row, read in enumerate(state):
            for step in range(len(inputs)):
                read.add(int(inputs[step, row]))
                found[step, row] = -1.0 if int(targets[step, row]) in read else -5.0
        return found, state


LM = LanguageModel(Remembers(), WordTokenizer("whitespace", VOCABULARY))
DOCUMENTS = (
    "the rare of rare\nthe of odd the\n! rare !\n",  # `rare` again after 2 tokens, in its line, and after 8, in another
    "rare of\nof of odd odd\n",  # the first mention in a document counts anew; `odd` again after 1, in its line
)


def stream_of(*documents):
    parts = tuple(Document(f"{i}", text.splitlines().__iter__) for i, text in enumerate(documents))
    return TokenStream.from_text(Text(parts), LM.tokenizer)


def test_repeated_words_by_hand():
    result = repeated_words(LM, stream_of(*DOCUMENTS), RepeatedSettings(edges=(1, 2, 5)))
    assert (result.mentions, result.reset) == (3, "documents")
    one, near, far = result.rows
    assert (one.low, one.high, one.mentions, one.words) == (1, 1, 1, 1)
    assert (near.low, near.high, near.mentions) == (2, 4, 1)
    assert (far.low, far.high, far.mentions) == (5, None, 1)
    for row in result.rows:
        assert (row.first_nats, row.nats, row.gain) == pytest.approx((5, 1, 4))
    assert [row.line_gain for row in result.rows] == pytest.approx([4, 4, 0])
    assert far.error is None
    text = repeated_table(result)
    assert "| 1 | 1 | 1 | 5.00 | 1.00 | 4.00 | 4.00 |" in text
    assert "| 5+ | 1 | 1 | 5.00 | 1.00 | 4.00 | 0.00 |" in text


def test_where_the_state_starts_anew_at_lines_nothing_is_compared():
    result = repeated_words(LM, stream_of(*DOCUMENTS), RepeatedSettings(reset="lines"))
    assert [row.line_gain for row in result.rows] == [None]
    assert result.rows[0].gain == pytest.approx(8 / 3)


def test_frequent_words_are_followed_if_they_are_asked_for():
    few, many = (
        repeated_words(LM, stream_of(*DOCUMENTS), RepeatedSettings(rare=rare)).mentions for rare in (20.0, 600_000.0)
    )
    assert few == 3
    assert many == 3 + 2 + 1 + 2  # the: 3 times in one document; of: twice in it, three times in the other; ! never


def test_mentions_are_those_of_a_dictionary():
    random = np.random.default_rng(0)
    tokens = random.integers(1, 7, size=300)
    stream = TokenStream.from_tokens(tokens, [0, 100, 130])
    followed = np.array([False, False, True, True, False, True, True])
    expected = []
    for begin, end in ((0, 100), (100, 130), (130, 300)):
        seen = defaultdict(list)
        for position in range(begin, end):
            if followed[tokens[position]]:
                before = seen[tokens[position]]
                if before:
                    expected.append((position, before[-1], before[0]))
                before.append(position)
    found = zip(*(part.tolist() for part in real_texts._mentions(stream, followed)), strict=True)
    assert sorted(found) == expected


def test_the_standard_error_is_that_of_clusters():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    assert clustered_error(values, np.arange(4)) == pytest.approx(values.std(ddof=1) / 2)
    # clusters {1, 2} and {4, 9}: deviations from the mean of 4 add up to -5 and 5
    assert clustered_error(values, np.array([0, 0, 1, 1])) == pytest.approx(math.sqrt(50 * 2) / 4)
    assert clustered_error(values, np.zeros(4)) is None


def test_mistakes_with_real_texts():
    with pytest.raises(UserError, match="no rare word of the text comes twice"):
        repeated_words(LM, stream_of("the rare of the\n"))
    with pytest.raises(UserError, match="edges: expected distances that ascend, got 5,5"):
        repeated_words(LM, stream_of(*DOCUMENTS), RepeatedSettings(edges=(5, 5)))
    letters = Vocabulary(["<unk>", "<eos>", *"abcde"], [1] * 7)
    with pytest.raises(UserError, match="this one reads characters"):
        repeated_words(LanguageModel(Remembers(), CharacterTokenizer(letters)), stream_of(*DOCUMENTS))


def test_the_picture_of_repeated_words(tmp_path):
    pytest.importorskip("matplotlib")
    draw_repeated(repeated_words(LM, stream_of(*DOCUMENTS), RepeatedSettings(edges=(1, 2, 5))), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5_000
