import io
import json
import math
import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn

from recurra import distributed, evaluation
from recurra.config import UserError
from recurra.evaluation import Evaluation, evaluate, surprisal_blocks, surprisals, write_surprisals_tsv
from reference.exact_lm import LINE_END, HistoryLM

UNKNOWN = 0
VOCABULARY = 7


def a_text(seed=0, documents=9):
    """Tokens, document starts and line starts: of all lengths, some documents empty or without last line end."""
    random = np.random.default_rng(seed)
    tokens, document_starts, line_starts = [], [], []
    for _ in range(documents):
        document_starts.append(len(tokens))
        for _ in range(random.integers(0, 8)):
            line_starts.append(len(tokens))
            words = random.choice([0, 2, 3, 4, 5, 6], size=int(random.exponential(6)))
            tokens += [*words.tolist(), LINE_END]
        if random.random() < 0.5 and len(tokens) - document_starts[-1] > 1:
            tokens[-2:] = [5]
    return np.array(tokens, dtype=np.int32), np.array(document_starts), np.array(line_starts)


TOKENS, DOCUMENTS, LINES = a_text()
ROWS = {"none": [0], "documents": DOCUMENTS.tolist(), "lines": LINES.tolist()}
OFFSETS = {"document_starts": DOCUMENTS, "line_starts": LINES}
COUNTS = {"words": 40, "characters": 200}


def expected_nats(lm, tokens, starts):
    """The oracle: each row by itself, one token after the other."""
    nats = []
    for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
        row = tokens[start:end].tolist()
        nats += [-lm.next(row[:i])[token] for i, token in enumerate(row)]
    return np.array(nats)


@pytest.mark.parametrize("reset", ROWS)
@pytest.mark.parametrize(("batch_size", "chunk_length"), [(1, 1), (1, 1000), (3, 4), (1000, 5), (4, 1000)])
def test_every_token_has_its_surprisal_however_the_work_is_cut(reset, batch_size, chunk_length):
    lm = HistoryLM.random(VOCABULARY)
    expected = expected_nats(lm, TOKENS, ROWS[reset])
    found = surprisals(lm, TOKENS, reset=reset, **OFFSETS, batch_size=batch_size, chunk_length=chunk_length)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    result = evaluate(lm, TOKENS, reset=reset, **OFFSETS, **COUNTS, batch_size=batch_size, chunk_length=chunk_length)
    assert result.perplexity == pytest.approx(math.exp(expected.mean()), rel=1e-12)
    assert result.reset == reset


def test_ways_of_resetting_give_different_numbers():
    lm = HistoryLM.random(VOCABULARY)
    perplexities = {evaluate(lm, TOKENS, reset=reset, **OFFSETS, **COUNTS).perplexity for reset in ROWS}
    assert len(perplexities) == 3


def test_all_numbers_of_an_evaluation():
    lm = HistoryLM.random(VOCABULARY)
    nats = expected_nats(lm, TOKENS, [0])
    known = nats[TOKENS != UNKNOWN]
    assert 0 < len(known) < len(nats)
    result = evaluate(lm, TOKENS, words=40, characters=200)
    assert result.to_mapping() == {
        "perplexity": pytest.approx(math.exp(nats.mean())),
        "nats_per_token": pytest.approx(nats.mean()),
        "bits_per_token": pytest.approx(nats.mean() / math.log(2)),
        "bits_per_character": pytest.approx(nats.sum() / math.log(2) / 200),
        "perplexity_per_word": pytest.approx(math.exp(nats.sum() / 40)),
        "perplexity_without_unknown": pytest.approx(math.exp(known.mean())),
        "tokens": len(TOKENS),
        "unknown_tokens": int((TOKENS == UNKNOWN).sum()),
        "words": 40,
        "characters": 200,
        "reset": "none",
        "seconds": result.seconds,
    }
    assert result.seconds > 0


def test_where_tokens_are_words_perplexity_is_per_word():
    result = evaluate(HistoryLM.random(VOCABULARY), TOKENS, words=len(TOKENS), characters=200)
    assert result.perplexity_per_word == result.perplexity


def test_numbers_that_are_not_finite_are_null_in_json():
    impossible = Evaluation(
        known_nats=math.inf,
        unknown_nats=0.0,
        tokens=3,
        unknown_tokens=0,
        words=3,
        characters=9,
        reset="none",
        seconds=0.1,
    )
    assert impossible.perplexity == math.inf
    mapping = json.loads(json.dumps(impossible.to_mapping(), allow_nan=False))
    assert mapping["perplexity"] is None
    assert mapping["tokens"] == 3


def test_a_perplexity_too_large_for_a_float_is_infinite():
    lm = HistoryLM(torch.full((5, VOCABULARY), -1000.0))
    result = evaluate(lm, TOKENS, **COUNTS)
    assert result.nats_per_token == 1000
    assert result.perplexity == math.inf


def test_unknown_tokens_may_be_impossible():
    table = HistoryLM.random(VOCABULARY).table.clone()
    table[:, UNKNOWN] = -math.inf
    lm = HistoryLM(table)
    result = evaluate(lm, TOKENS, **COUNTS)
    known = expected_nats(lm, TOKENS, [0])[TOKENS != UNKNOWN]
    assert result.perplexity == math.inf
    assert result.perplexity_without_unknown == pytest.approx(math.exp(known.mean()))


def test_a_text_of_unknown_words_only():
    result = evaluate(HistoryLM.random(VOCABULARY), np.zeros(4, dtype=np.int64), **COUNTS)
    assert result.unknown_tokens == 4
    assert result.to_mapping()["perplexity_without_unknown"] is None


def test_a_memory_mapped_text(tmp_path):
    mapped = np.memmap(tmp_path / "tokens", dtype=np.uint16, mode="w+", shape=len(TOKENS))
    mapped[:] = TOKENS
    lm = HistoryLM.random(VOCABULARY)
    for reset in ROWS:
        found = evaluate(lm, mapped, reset=reset, **OFFSETS, **COUNTS)
        assert found.nats == evaluate(lm, TOKENS, reset=reset, **OFFSETS, **COUNTS).nats


def test_per_token_and_progress_in_the_same_pass():
    lm = HistoryLM.random(VOCABULARY)
    nats, calls = np.full(len(TOKENS), np.nan), []
    options = {"batch_size": 2, "chunk_length": 4, "progress": lambda *call: calls.append(call)}
    evaluate(lm, TOKENS, reset="lines", **OFFSETS, **COUNTS, per_token=nats, **options)
    np.testing.assert_allclose(nats, expected_nats(lm, TOKENS, ROWS["lines"]), rtol=1e-12)
    done = [call[0] for call in calls]
    assert len(done) > 1
    assert done == sorted(done)
    assert calls[-1] == (len(TOKENS), len(TOKENS))


def test_rows_of_like_length_are_read_together():
    lm = HistoryLM.random(VOCABULARY)
    surprisals(lm, TOKENS, reset="lines", line_starts=LINES, batch_size=4)
    assert lm.cells < 1.3 * len(TOKENS)  # little padding
    assert lm.steps < 0.5 * len(TOKENS)  # and yet side by side


@pytest.mark.parametrize("reset", ROWS)
def test_ranks_share_the_rows(reset):
    lm = HistoryLM.random(VOCABULARY)
    nats, times_read = np.zeros(len(TOKENS)), np.zeros(len(TOKENS))
    for rank in range(3):
        for positions, block in surprisal_blocks(lm, TOKENS, ROWS[reset], batch_size=2, rank=rank, ranks=3):
            nats[positions] = block
            times_read[positions] += 1
    assert (times_read == 1).all()
    np.testing.assert_allclose(nats, expected_nats(lm, TOKENS, ROWS[reset]), rtol=1e-12)


def test_evaluation_sums_over_ranks(monkeypatch):
    lm = HistoryLM.random(VOCABULARY)
    options = {"reset": "documents", **OFFSETS, **COUNTS, "batch_size": 2}
    whole = evaluate(lm, TOKENS, **options)
    shares = []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "sum_over_ranks", lambda share: shares.append(share) or sum(shares))
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        result = evaluate(lm, TOKENS, **options)
    assert (shares[0] > 0).all()
    assert (shares[1] > 0).all()
    assert result.perplexity == pytest.approx(whole.perplexity, rel=1e-12)
    assert result.perplexity_without_unknown == pytest.approx(whole.perplexity_without_unknown, rel=1e-12)
    assert (result.tokens, result.unknown_tokens) == (whole.tokens, whole.unknown_tokens)


class UniformLM:
    vocabulary_size = 4

    def start(self, batch_size):
        return batch_size

    def score(self, inputs, targets, state):
        return torch.full(targets.shape, -math.log(4)), state

    def select(self, state, rows):
        return len(rows)


@pytest.mark.parametrize("reset", ["none", "documents"])
def test_memory_does_not_grow_with_the_text(reset):
    tokens = np.zeros(1_000_000, dtype=np.uint8)
    starts = [0, 10, 500_000]
    tracemalloc.start()
    try:
        result = evaluate(UniformLM(), tokens, reset=reset, document_starts=starts, **COUNTS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.perplexity == pytest.approx(4)
    assert peak < len(tokens)


class NoisyLM(nn.Module):
    """Says nonsense where it is not in evaluation mode."""

    vocabulary_size = VOCABULARY

    def __init__(self):
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(VOCABULARY))
        self.dropout = nn.Dropout(0.5)

    def start(self, batch_size):
        return ()

    def score(self, inputs, targets, state):
        assert not torch.is_grad_enabled()
        return (self.dropout(self.scores + 1) - 1).log_softmax(-1)[targets], state


def test_a_module_is_evaluated_without_dropout_and_left_as_it_was():
    lm = NoisyLM()
    assert evaluate(lm, TOKENS, **COUNTS).perplexity == pytest.approx(VOCABULARY)
    assert lm.training
    assert lm.dropout.training
    lm.dropout.eval()  # a part that is frozen stays so
    evaluate(lm, TOKENS, **COUNTS)
    assert lm.training
    assert not lm.dropout.training


def test_gradients_stay_on_between_the_blocks():
    for _ in surprisal_blocks(NoisyLM(), TOKENS, [0], chunk_length=5):
        assert torch.is_grad_enabled()


def test_mistakes_are_explained():
    lm = HistoryLM.random(VOCABULARY)
    with pytest.raises(UserError, match="the text has no tokens"):
        evaluate(lm, np.array([], dtype=np.int32), **COUNTS)
    with pytest.raises(UserError, match="reset: expected one of none, documents, lines, got 'sentences'"):
        evaluate(lm, TOKENS, reset="sentences", **COUNTS)
    with pytest.raises(UserError, match="needs to know where lines begin: give line_starts"):
        evaluate(lm, TOKENS, reset="lines", document_starts=DOCUMENTS, **COUNTS)
    for starts in ([], [1, 3], [0, 5, 4], [0, len(TOKENS) + 1]):
        with pytest.raises(ValueError, match="expected offsets that ascend from 0"):
            surprisals(lm, TOKENS, reset="lines", line_starts=starts)


def test_surprisals_as_a_table():
    words = ["<unk>", "<eos>", "a\tb", "back\\slash", "\n", '"']
    tokens = np.array([2, 1, 3, 0, 1, 4, 5])
    file = io.StringIO()
    nats = math.log(2) * np.arange(7)
    write_surprisals_tsv(file, tokens, nats, token=words.__getitem__, document_starts=[0, 2, 2, 5])
    lines = file.getvalue().split("\n")
    assert lines[0] == "position\tdocument\tline\ttoken\tnats\tbits\tunknown"
    assert lines[-1] == ""
    rows = [line.split("\t") for line in lines[1:-1]]
    assert [row[:4] for row in rows] == [
        ["1", "1", "1", r"a\tb"],
        ["2", "1", "1", "<eos>"],
        ["3", "3", "1", r"back\\slash"],
        ["4", "3", "1", "<unk>"],
        ["5", "3", "1", "<eos>"],
        ["6", "4", "1", r"\n"],
        ["7", "4", "1", '"'],
    ]
    assert [row[5:] for row in rows] == [[str(i), str(int(i == 3))] for i in range(7)]
    np.testing.assert_allclose([float(row[4]) for row in rows], nats, rtol=1e-8)


def test_lines_are_counted_within_a_document():
    file = io.StringIO()
    write_surprisals_tsv(file, [2, 1, 1, 2, 2], [0.0] * 5, token=str, document_starts=[0, 4])
    assert [line.split("\t")[2] for line in file.getvalue().splitlines()[1:]] == ["1", "1", "2", "3", "1"]


def test_rows_are_sorted_within_windows_only(monkeypatch):
    """A text of endless short lines is read from front to back, a window at a time."""
    monkeypatch.setattr(evaluation, "SORTED_BATCHES", 2)
    lm = HistoryLM.random(VOCABULARY)
    window = int(LINES[4])  # two batches of two lines
    seen = 0
    for positions, _ in surprisal_blocks(lm, TOKENS, LINES, batch_size=2):
        assert seen >= window or positions.max() < window
        seen += len(positions)
    np.testing.assert_allclose(
        surprisals(lm, TOKENS, reset="lines", line_starts=LINES, batch_size=2),
        expected_nats(lm, TOKENS, ROWS["lines"]),
        rtol=1e-12,
    )
