"""What neural language models have in common, seen on a small one that knows nothing of n-grams or resets."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from recurra.models import neural
from recurra.models.neural import NeuralLM, NeuralState, OutputSettings, build_output
from recurra.nn.classes import collisions
from recurra.nn.embedding import Embedding
from recurra.text.batches import Batch
from recurra.text.vocabulary import LINE_END, SPECIAL, Vocabulary
from recurra.training import _rebuild, _tensors

COUNTS = [3, 40, 50, 40, 30, 20, 10, 9, 8, 7, 6, 5]
VOCABULARY = Vocabulary([*SPECIAL, *"abcdefghij"], COUNTS)
PLAIN = OutputSettings(output="full")
NGRAMS = OutputSettings(output="classes", classes=3, maxent_order=4, maxent_bits=10)
FEATURES = 5


class DecayingLM(NeuralLM):
    """Sees the sum of all word vectors so far, each counting half as much as the one after it."""

    def __init__(self, settings, vocabulary):
        super().__init__(settings, vocabulary)
        self.embedding = Embedding(len(vocabulary), FEATURES)
        self.output = build_output(settings, FEATURES, vocabulary.counts)

    def initial_state(self, batch_size):
        return (self.embedding.weight.new_zeros(batch_size, FEATURES),)

    def vectors(self, inputs, state, *, lengths=None):
        (total,) = state
        found = []
        for vector in self.embedding(inputs):
            total = total / 2 + vector
            found.append(total)
        return torch.stack(found), (total,)


@pytest.fixture(params=[PLAIN, NGRAMS], ids=["plain", "n-grams"])
def lm(request):
    torch.manual_seed(0)
    lm = DecayingLM(request.param, VOCABULARY).double().eval()
    if lm.hashed is not None:
        torch.nn.init.normal_(lm.hashed.table)
    return lm


def text(time, batch):
    tokens = torch.randint(2, len(COUNTS), (time + 1, batch), generator=torch.Generator().manual_seed(1))
    return tokens[:-1], tokens[1:]


def test_words_before_are_remembered_for_n_grams_alone(lm):
    state = lm.start(3)
    assert isinstance(state, NeuralState)
    inputs, _ = text(7, 3)
    reading, state = lm.read(inputs, state)
    if lm.settings.maxent_order:
        assert reading.histories.shape == (7, 3, 3)
        assert state.words.tolist() == inputs[-3:].flip(0).t().tolist()  # the latest first
    else:
        assert reading.histories is None
        assert state.words == ()


@torch.no_grad()
def test_resets_are_as_if_rows_had_read_nothing(lm):
    inputs, targets = text(9, 2)
    resets = torch.zeros(9, 2, dtype=torch.bool)
    resets[4, 1] = resets[6, 0] = True
    parts = [(0, 6, 0), (6, 9, 0), (0, 4, 1), (4, 9, 1)]
    expected = torch.zeros(9, 2, dtype=torch.float64)
    for a, b, row in parts:
        part = slice(a, b), slice(row, row + 1)
        expected[part], _ = lm.score(inputs[part], targets[part], lm.start(1))
    reading, end = lm.read(inputs, lm.start(2), resets=resets)
    torch.testing.assert_close(lm.reading_log_probs(reading, targets), expected)
    state, pieces = lm.start(2), []
    for part in (slice(3), slice(3, 5), slice(5, 9)):
        piece, state = lm.read(inputs[part], state, resets=resets[part])
        pieces.append(lm.reading_log_probs(piece, targets[part]))
    torch.testing.assert_close(torch.cat(pieces), expected)
    torch.testing.assert_close(state, end)
    loss, _ = lm(Batch(inputs, targets, None, resets))
    torch.testing.assert_close(loss.nats, -expected.sum())


@torch.no_grad()
def test_a_state_is_a_nest_of_tensors_that_can_be_taken_apart(lm):
    inputs, targets = text(5, 3)
    _, state = lm.score(inputs, targets, lm.start(3))
    tensors = _tensors(state)
    assert [tensor.shape[-2] for tensor in tensors] == [3] * (1 + bool(lm.settings.maxent_order))
    again = _rebuild(lm.start(3), iter(tensors), torch.clone)
    torch.testing.assert_close(lm.score(inputs, targets, again)[0], lm.score(inputs, targets, state)[0])
    rows = torch.tensor([2, 0, 2])
    chosen, _ = lm.score(inputs[:, rows], targets[:, rows], lm.select(state, rows))
    torch.testing.assert_close(chosen, lm.score(inputs, targets, state)[0][:, rows])


def test_collisions_are_counted_of_the_first_tokens_of_a_long_text(lm, monkeypatch):
    monkeypatch.setattr(neural, "MOST_COUNTED", 200)
    tokens = np.random.default_rng(0).integers(0, len(COUNTS), 300).astype(np.uint16)
    found = lm.ngram_collisions(tokens)
    if not lm.settings.maxent_order:
        assert found is None
        return
    expected = collisions(lm.output, tokens[:200])
    assert json.loads(json.dumps(found)) == {
        "tokens": 200,
        "pairs_2": expected.pairs[0],
        "pairs_3": expected.pairs[1],
        "pairs_4": expected.pairs[2],
        "rows": 64,
        "rows_used": expected.rows,
        "shared": expected.shared,
    }
    assert 0 < found["pairs_2"] < found["pairs_3"] < found["pairs_4"]


def test_n_grams_end_at_line_ends():
    lm = DecayingLM(NGRAMS, VOCABULARY)
    assert lm.hashed.line_end == LINE_END
    assert (lm.hashed.bits, lm.hashed.rate) == (NGRAMS.maxent_bits, NGRAMS.maxent_rate)
