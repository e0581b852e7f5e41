"""Recall in real texts: repeated words counted by hand."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recurra.config import UserError
from recurra.language_model import LanguageModel
from recurra.models.dynamic_evaluation import DynamicEvaluation
from recurra.models.recurrent_lm import RecurrentLM, RecurrentLMSettings
from recurra.probing import (
    RepeatedRow,
    RepeatedSettings,
    RepeatedWords,
    draw_repeated,
    real_texts,
    repeated_table,
    repeated_words,
)
from recurra.probing.real_texts import clustered_error
from recurra.text.batches import TokenStream
from recurra.text.documents import Document, Text
from recurra.text.tokenizer import CharacterTokenizer, WordTokenizer
from recurra.text.vocabulary import LINE_END, Vocabulary

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
    result = repeated_words(LM, stream_of(*DOCUMENTS), RepeatedSettings(edges=(0, 1, 5)))
    assert (result.mentions, result.nearer, result.reset, result.control) == (3, 0, "documents", "replaced")
    one, near, far = result.rows
    assert (one.low, one.high, one.mentions, one.words) == (0, 0, 1, 1)
    assert (near.low, near.high, near.mentions) == (1, 4, 1)
    assert (far.low, far.high, far.mentions) == (5, None, 1)
    for row in result.rows:
        assert (row.first_nats, row.nats, row.gain) == pytest.approx((5, 1, 4))
        assert (row.control_gain, row.memory) == pytest.approx((0, 4))  # it never read the word
        assert (row.error, row.memory_error) == (None, None)
    text = repeated_table(result)
    assert "| tokens in between | mentions | words | first (nats) | again (nats) | gain (nats) | gain without" in text
    assert "| 0 | 1 | 1 | 5.00 | 1.00 | 4.00 | 0.00 | 4.00 |" in text
    assert "| 5+ | 1 | 1 | 5.00 | 1.00 | 4.00 | 0.00 | 4.00 |" in text


def test_a_model_that_forgets_at_line_ends_is_another_control():
    result = repeated_words(LM, stream_of(*DOCUMENTS), RepeatedSettings(edges=(0, 1, 5), control="lines"))
    assert [row.control_gain for row in result.rows] == pytest.approx([4, 4, 0])
    assert [row.memory for row in result.rows] == pytest.approx([0, 0, 4])
    assert "gain forgetting at line ends" in repeated_table(result)
    settings = RepeatedSettings(reset="lines", control="lines")
    with pytest.raises(UserError, match="control: the model forgets at line ends as it is; give replaced"):
        repeated_words(LM, stream_of(*DOCUMENTS), settings)


def test_what_was_in_the_same_line_is_remembered_where_lines_are_read_one_by_one():
    result = repeated_words(LM, stream_of(*DOCUMENTS), RepeatedSettings(edges=(0, 1, 5), reset="lines"))
    assert [row.gain for row in result.rows] == pytest.approx([4, 4, 0])
    assert [row.memory for row in result.rows] == pytest.approx([4, 4, 0])


def test_without_a_control_there_is_no_memory():
    result = repeated_words(LM, stream_of(*DOCUMENTS), RepeatedSettings(control="none"))
    assert {(row.control_gain, row.memory, row.memory_error) for row in result.rows} == {(None, None, None)}
    assert "memory" not in repeated_table(result)


def test_mentions_that_are_too_near_are_counted_apart():
    result = repeated_words(LM, stream_of(*DOCUMENTS), RepeatedSettings(edges=(1, 5)))
    assert (result.mentions, result.nearer) == (2, 1)
    assert sum(row.mentions for row in result.rows) == 2
    assert "Left out: 1 mentions that are nearer" in repeated_table(result)
    content = result.to_mapping()
    assert (content["mentions"], content["nearer"], content["control"]) == (2, 1, "replaced")
    with pytest.raises(UserError, match="no rare word of the text comes twice"):
        repeated_words(LM, stream_of(*DOCUMENTS), RepeatedSettings(edges=(50,)))


def test_errors_are_of_differences_by_word():
    """Two words; their gains differ widely, what is remembered does not."""
    result = repeated_words(Uneven.lm(), stream_of("rare rare the odd odd rare\n"), RepeatedSettings(edges=(0,)))
    (row,) = result.rows
    # gains: rare 8 and 8, odd 2; memories: rare 1 and 1, odd 1
    assert (row.mentions, row.words) == (3, 2)
    assert row.gain == pytest.approx(6)
    assert row.error == pytest.approx(math.sqrt((4**2 + 4**2) * 2) / 3)
    assert row.memory == pytest.approx(1)
    assert row.memory_error == pytest.approx(0, abs=1e-6)


class Uneven(Remembers):
    """`rare` costs 9 nats at first and `odd` 3; 1 where they were read, 2 where something else was in their place."""

    @classmethod
    def lm(cls):
        return LanguageModel(cls(), WordTokenizer("whitespace", VOCABULARY))

    def start(self, batch_size):
        return [[] for _ in range(batch_size)]

    def select(self, state, rows):
        return [list(state[row]) for row in rows.tolist()]

    def score(self, inputs, targets, state):
        rare, odd = VOCABULARY.tokens.index("rare"), VOCABULARY.tokens.index("odd")
        found = torch.zeros(targets.shape)
        for row, read in enumerate(state):
            for step in range(len(inputs)):
                read.append(int(inputs[step, row]))
                target = int(targets[step, row])
                first = (target == rare and len(read) == 1) or (target == odd and len(read) == 4)
                cost = (9.0 if target == rare else 3.0) if first else 1.0 if target in read else 2.0
                found[step, row] = -cost
        return found, state


# ---- a real network -------------------------------------------------------------------------------------------------


LINES = np.array([0, 7, 11, 20, 34])  # where the stream's lines end


def network_and_stream():
    torch.manual_seed(0)
    settings = RecurrentLMSettings(hidden_size=8, layers=1, embedding_size=8, output="full", tied=True)
    lm = LanguageModel(RecurrentLM(settings, VOCABULARY).eval(), WordTokenizer("whitespace", VOCABULARY))
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.mul_(3)  # so that words make a difference
    tokens = np.random.default_rng(1).integers(2, 7, size=40)
    tokens[LINES] = 1
    return lm, TokenStream.from_tokens(tokens, [0, 12])


def by_hand(model, tokens, starts, read=None):
    """-log p of each token, a step at a time; ``read`` says what is read in the place of which."""
    nats, state, inputs = [], None, LINE_END
    for position, token in enumerate(tokens.tolist()):
        if position in starts:
            state, inputs = model.start(1), LINE_END
        with torch.no_grad():
            log_probs, state = model.step(torch.tensor([(read or {}).get(inputs, inputs)]), state)
        nats.append(-float(log_probs[0, token]))
        inputs = token
    return np.array(nats)


def grouped(values, positions, before, edges):
    distances = positions - before - 1
    bounds = zip(edges, [*edges[1:], math.inf], strict=True)
    groups = [values[(distances >= low) & (distances < high)] for low, high in bounds]
    return [float(group.mean()) for group in groups if len(group)]


@pytest.mark.parametrize("reset", ["none", "documents", "lines"])
def test_the_controls_of_a_recurrent_network_step_by_step(reset):
    lm, stream = network_and_stream()
    edges = (0, 2, 6)
    starts = {"none": [0], "documents": [0, 12], "lines": stream.line_starts.tolist()}
    rare, odd = (VOCABULARY.tokens.index(word) for word in ("rare", "odd"))
    followed = np.isin(np.arange(len(VOCABULARY)), [rare, odd])
    positions, before, first = real_texts._mentions(stream, followed)
    nats = by_hand(lm.model, stream.tokens, starts[reset])
    gains = nats[first] - nats[positions]
    result = repeated_words(lm, stream, RepeatedSettings(edges=edges, reset=reset, passes=2))
    assert [row.gain for row in result.rows] == pytest.approx(grouped(gains, positions, before, edges), abs=1e-4)
    # `rare` and `odd` are all rare words there are: each stands for the other, each in a reading of its own
    own, other = (by_hand(lm.model, stream.tokens, starts[reset], read) for read in ({rare: odd}, {odd: rare}))
    memories = np.where(stream.tokens == rare, own - other, other - own)[positions]
    assert [row.memory for row in result.rows] == pytest.approx(grouped(memories, positions, before, edges), abs=1e-4)
    assert max(abs(row.memory) for row in result.rows) > 0.01
    if reset != "lines":
        lines = by_hand(lm.model, stream.tokens, starts["lines"])
        line_gains = grouped(lines[first] - lines[positions], positions, before, edges)
        result = repeated_words(lm, stream, RepeatedSettings(edges=edges, reset=reset, control="lines"))
        assert [row.control_gain for row in result.rows] == pytest.approx(line_gains, abs=1e-4)
        for row in result.rows:
            assert row.memory == pytest.approx(row.gain - row.control_gain)


@pytest.mark.parametrize("passes", [2, 3, 7])
def test_readings_in_which_nothing_is_replaced_change_nothing(passes):
    """One word alone: every reading but its own is that of the text as it is."""
    result = repeated_words(LM, stream_of("the rare of rare\nthe rare\n"), RepeatedSettings(passes=passes))
    assert [row.memory for row in result.rows] == pytest.approx([4] * len(result.rows))


def test_what_stands_for_a_word_is_as_rare_and_not_in_the_text():
    tokens = ["<unk>", "<eos>", "the", *(f"w{i}" for i in range(300)), *(f"N{i}" for i in range(300))]
    counts = [0, 9, 10**6, *range(1, 301), *range(1, 301)]
    followed = np.arange(len(tokens)) > 2
    text = np.array([2, 3, 53, 303, 453, 2, 4])
    words = np.array([3, 53, 303, 453])
    read = real_texts._substitutes(Vocabulary(tokens, counts), text, followed, words)
    untouched = np.setdiff1d(np.arange(len(tokens)), words)
    assert (read[untouched] == untouched).all()
    for word in words:
        assert read[word] not in text
        assert tokens[read[word]][0] == tokens[word][0]  # a name for a name
        assert abs(counts[read[word]] - counts[word]) <= 2 * real_texts.NEIGHBOURS + 2


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
    settings = RecurrentLMSettings(hidden_size=4, layers=1, embedding_size=4, output="full", tied=True)
    model = DynamicEvaluation(RecurrentLM(settings, VOCABULARY), learning_rate=0.1, decay=0.0, segment=5)
    adapting = LanguageModel(model, LM.tokenizer)
    with pytest.raises(UserError, match="control: a model that learns from what it reads"):
        repeated_words(adapting, stream_of(*DOCUMENTS), RepeatedSettings(reset="none"))
    with pytest.raises(UserError, match="edges: expected distances that ascend, got 5,5"):
        repeated_words(LM, stream_of(*DOCUMENTS), RepeatedSettings(edges=(5, 5)))
    letters = Vocabulary(["<unk>", "<eos>", *"abcde"], [1] * 7)
    with pytest.raises(UserError, match="this one reads characters"):
        repeated_words(LanguageModel(Remembers(), CharacterTokenizer(letters)), stream_of(*DOCUMENTS))


def test_the_picture_of_repeated_words(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    figures = []
    monkeypatch.setattr(real_texts, "save", lambda figure, path: figures.append(figure))
    rows = [
        RepeatedRow(
            low=0,
            high=9,
            mentions=1200,
            words=2,
            first_nats=9.0,
            nats=6.0,
            gain=3.0,
            error=0.5,
            control_gain=2.0,
            memory=1.0,
            memory_error=0.25,
        ),
        RepeatedRow(
            low=10,
            high=None,
            mentions=1,
            words=1,
            first_nats=9.0,
            nats=8.0,
            gain=1.0,
            error=None,
            control_gain=1.0,
            memory=0.0,
            memory_error=None,
        ),
    ]
    result = RepeatedWords(rows, 1201, 0, "none", "replaced")
    draw_repeated(result, tmp_path / "a.png")
    draw_repeated(dataclasses.replace(result, control="none"), tmp_path / "b.png")
    (axes,) = figures[0].axes
    found = {container.get_label(): container for container in axes.containers}
    assert list(found) == ["gain", "gain without the earlier mentions", "memory: the difference"]
    assert [list(container[0].get_ydata()) for container in found.values()] == [[3, 1], [2, 1], [1, 0]]
    ends = found["memory: the difference"][2][0].get_segments()
    assert ends[0][:, 1] == pytest.approx([1 - 1.96 * 0.25, 1 + 1.96 * 0.25])
    assert ends[1][:, 1] == pytest.approx([0, 0])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0-9\n(1,200)", "10+\n(1)"]
    assert "tokens since the mention before" in axes.get_xlabel()
    assert axes.get_ylabel().endswith("(nats)")
    assert [container.get_label() for container in figures[1].axes[0].containers] == ["gain"]
    assert "| 0-9 | 1,200 | 2 | 9.00 | 6.00 | 3.00 ± 0.98 | 2.00 | 1.00 ± 0.49 |" in repeated_table(result)
    monkeypatch.undo()
    draw_repeated(result, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5_000
