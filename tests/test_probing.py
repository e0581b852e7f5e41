"""Recall: what the made-up texts are, what is learnt from them, and repeated words counted by hand."""

from __future__ import annotations

import json
import math
import signal
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recurra import probing
from recurra.config import UserError
from recurra.language_model import LanguageModel
from recurra.probing import (
    CopyTask,
    RecallModel,
    RecallResult,
    RecallRow,
    RecallSettings,
    RepeatedSettings,
    SentenceTask,
    clustered_error,
    draw_recall,
    draw_repeated,
    example,
    recall,
    recall_table,
    repeated_table,
    repeated_words,
)
from recurra.text.batches import TokenStream
from recurra.text.documents import Document, Text
from recurra.text.tokenizer import CharacterTokenizer, WordTokenizer
from recurra.text.vocabulary import Vocabulary
from recurra.training import Diverged

# ---- made-up texts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [SentenceTask(d, 12) for d in (5, 6, 50)] + [CopyTask(d, 8) for d in (1, 2, 50)])
def test_an_item_comes_twice_so_many_tokens_apart_and_no_other_does(task):
    texts = task.draw(300, np.random.default_rng(0))
    assert len(set(task.vocabulary)) == len(task.vocabulary)
    assert 0 <= texts.min() <= texts.max() < len(task.vocabulary)
    is_item = texts < task.items
    assert (is_item.sum(0) == 2).all()
    first, second = is_item.argmax(0), len(texts) - 1
    assert is_item[second].all()
    assert (second - first - 1 == task.distance).all()
    assert (texts[first, np.arange(300)] == texts[second]).all()
    assert set(texts[second]) == set(range(task.items))


def test_texts_depend_on_the_seed_alone():
    task = SentenceTask(20, 8)
    draws = [task.draw(4, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert (draws[0] == draws[1]).all()
    assert (draws[0] != draws[2]).any()


def test_the_sentence_is_about_one_person():
    task = SentenceTask(9, 8)
    for text in task.draw(50, np.random.default_rng(0)).T:
        words = [task.vocabulary[i] for i in text]
        assert words[0] == words[-4]
        assert (words[0], words[-2]) in {("she", "her"), ("he", "his")}
        assert words[4] == words[-2]
        assert [words[2], words[3], *words[-6:-4], words[-3]] == ["to", "print", "at", "last", "printed"]


def test_the_copied_symbol_is_asked_for_by_a_mark():
    task = CopyTask(5, 4)
    words = [task.vocabulary[i] for i in task.draw(1, np.random.default_rng(0))[:, 0]]
    assert words[-2] == "?"
    assert all(word.isdecimal() for word in words[1:-2])
    assert example(task) == f"{' '.join(words[:-1])} ___ ({words[-1]})"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SentenceTask(4, 8), "at least 5 tokens between the mentions, got 4"),
        (lambda: SentenceTask(10, 1000), "from 2 to .* of them, got 1000"),
        (lambda: CopyTask(0, 8), "at least 1 tokens"),
        (lambda: CopyTask(5, 27), "from 2 to 26"),
        (lambda: recall(RecallSettings(cells="lstm,gpt")), "cells: expected rnn, gru, lstm or some of them, got 'gpt'"),
        (lambda: recall(RecallSettings(distances=(10, 3))), "at least 5"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_every_network_is_tried_once():
    settings = RecallSettings(cells="LSTM, rnn", clip_norms=(0.0, 1.0), forget_biases=(0.0, 1.0))
    assert [str(variant) for variant in settings.variants()] == [
        "LSTM, forget bias 0, not clipped",
        "LSTM, forget bias 0, clipped at 1",
        "LSTM, forget bias 1, not clipped",
        "LSTM, forget bias 1, clipped at 1",
        "RNN, not clipped",
        "RNN, clipped at 1",
    ]


def test_the_loss_is_that_of_the_item_or_of_every_token():
    task = CopyTask(3, 4)
    torch.manual_seed(0)
    model = RecallModel("gru", len(task.vocabulary), 8)
    item, every = (probing._batch(task, 6, every, (1,)) for every in (False, True))
    assert (item.tokens, every.tokens) == (6, 24)
    assert item.inputs.shape == (4, 6)
    log_probs = model.scores(every.inputs, 4).log_softmax(-1).gather(-1, every.targets[..., None])[..., 0]
    assert model(item, None)[0].nats.item() == pytest.approx(-log_probs[-1].sum().item(), rel=1e-5)
    assert model(every, None)[0].nats.item() == pytest.approx(-log_probs.sum().item(), rel=1e-5)


QUICK = {"items": 4, "hidden_size": 32, "batch_size": 32, "learning_rate": 0.02}


def test_an_lstm_learns_what_lies_ten_tokens_back():
    settings = RecallSettings(task="copy", cells="lstm", distances=(10,), steps=300, **QUICK)
    before = recall(RecallSettings(task="copy", cells="lstm", distances=(10,), steps=1, **QUICK)).rows[0]
    seen = []
    (row,) = recall(settings, finished=lambda result: seen.append(len(result.rows))).rows
    assert before.accuracy < 0.6
    assert row.accuracy > 0.95
    assert row.nats < before.nats
    assert (row.chance, row.steps, row.distance, row.problem) == (0.25, 300, 10, None)
    assert seen == [1]


def test_a_run_is_the_same_every_time_and_another_with_another_seed():
    settings = RecallSettings(cells="rnn,gru", distances=(6,), steps=3, seeds=2, **QUICK)
    first, again = recall(settings).rows, recall(settings).rows
    assert [(row.cell, row.seed) for row in first] == [("rnn", 1), ("gru", 1), ("rnn", 2), ("gru", 2)]
    assert [row.nats for row in first] == [row.nats for row in again]
    assert first[0].nats != first[2].nats


def test_ctrl_c_leaves_the_rows_that_are_finished(monkeypatch):
    runs = iter(["done", KeyboardInterrupt])

    def run(settings, task, variant, seed, device, watch):
        if next(runs) is KeyboardInterrupt:
            raise KeyboardInterrupt
        return made(task.distance, 0.5)

    monkeypatch.setattr(probing, "_run", run)
    result = recall(RecallSettings(cells="lstm", distances=(10, 20)))
    assert [row.distance for row in result.rows] == [10]
    assert result.stopped == signal.SIGINT
    assert result.to_mapping()["complete"] is False


def test_a_signal_in_the_middle_of_a_run_ends_all(monkeypatch):
    monkeypatch.setattr(probing.Trainer, "run", lambda self: signal.SIGTERM)
    result = recall(RecallSettings(cells="lstm", distances=(10, 20)))
    assert (list(result.rows), result.stopped) == ([], signal.SIGTERM)


def test_a_run_that_diverges_has_a_row(monkeypatch):
    def run(self):
        raise Diverged("loss nan")

    monkeypatch.setattr(probing.Trainer, "run", run)
    said = []
    (row,) = recall(RecallSettings(cells="rnn", distances=(10,), clip_norms=(0.0,)), say=said.append).rows
    assert row.problem == "diverged at step 1"
    assert 0 <= row.accuracy <= 1
    assert "diverged" in said[-1]


def made(distance, accuracy, cell="lstm", seed=1, clip=1.0, problem=None, nats=1.0):
    return RecallRow(
        cell=cell,
        clip_norm=clip,
        forget_bias=1.0 if cell == "lstm" else None,
        distance=distance,
        seed=seed,
        accuracy=accuracy,
        nats=nats,
        chance=0.0625,
        steps=10,
        seconds=1.0,
        problem=problem,
    )


ROWS = [
    *[made(10, 1.0), made(10, 0.5, seed=2), made(20, 0.75)],
    *[made(10, 0.25, "rnn", clip=0.0, problem="diverged at step 3", nats=math.nan)],
]


def test_the_table_by_hand():
    assert recall_table(RecallResult(RecallSettings(), ROWS)).splitlines() == [
        "| accuracy (%) at distance | 10 | 20 |",
        "|---|---:|---:|",
        "| LSTM, forget bias 1, clipped at 1 | 75.0 (50.0-100.0) | 75.0 |",
        "| RNN, not clipped | 25.0* |  |",
        "| a guess among 16 items | 6.2 | 6.2 |",
        "",
        "\\* a run diverged, and was tested as it was before.",
    ]
    content = RecallResult(RecallSettings(), ROWS).to_mapping()
    assert content["rows"][3]["nats"] is None
    assert json.loads(json.dumps(content, allow_nan=False))["settings"]["distances"] == [10, 20, 50, 100, 200]


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    draw_recall(RecallResult(RecallSettings(), ROWS), tmp_path / "a.png")
    draw_recall(RecallResult(RecallSettings(), ROWS[:1]), tmp_path / "b.svg")
    assert (tmp_path / "a.png").stat().st_size > 5_000
    assert "tokens between the two mentions" in (tmp_path / "b.svg").read_text() or (tmp_path / "b.svg").exists()
    with pytest.raises(UserError, match="no run is over yet"):
        draw_recall(RecallResult(RecallSettings(), []), tmp_path / "c.png")


# ---- real texts -----------------------------------------------------------------------------------------------------

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
    found = zip(*(part.tolist() for part in probing._mentions(stream, followed)), strict=True)
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
