"""The maximum-entropy language model: what it is before training, how far it looks back, what it learns.

What it shares with other models is in test_neural.py.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from recurra.config import UserError
from recurra.models.max_entropy import MaxEntLM, MaxEntSettings
from recurra.text.batches import Batch, ContiguousStreams, TokenStream
from recurra.text.vocabulary import LINE_END, Vocabulary
from recurra.training import Trainer, TrainingSettings

COUNTS = [3, 40, 50, 40, 30, 20, 10, 9, 8, 7, 6, 5]
VOCABULARY = Vocabulary(["<unk>", "<eos>", *"abcdefghij"], COUNTS)
PLAIN = MaxEntSettings(order=3, bits=16, cutoffs=(1,))
CORPUS = np.random.default_rng(0).integers(0, len(COUNTS), 1000)


def build(settings):
    torch.manual_seed(0)
    lm = MaxEntLM(settings, VOCABULARY).double().eval()
    lm.assign_ngrams(CORPUS)
    torch.nn.init.normal_(lm.hashed.table)
    return lm


def text(time, batch):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(len(COUNTS), (time + 1, batch), generator=generator)
    return tokens[:-1], tokens[1:]


def test_before_training_it_is_the_unigram_model():
    lm = MaxEntLM(PLAIN, VOCABULARY)
    log_probs, _ = lm.step(torch.tensor([LINE_END, 4]), lm.start(2))
    smoothed = np.array(COUNTS) + 1
    np.testing.assert_allclose(log_probs.exp().detach(), [smoothed / smoothed.sum()] * 2, rtol=1e-5)


def test_only_the_last_words_matter():
    lm = build(PLAIN)
    one, other = torch.tensor([[5, 6, 7, 8], [9, 6, 7, 8]]).t().unbind(1)
    found = [lm.score(x[:, None], x[:, None], lm.start(1))[0] for x in (one, other)]
    assert (found[0][:2] != found[1][:2]).all()  # of three tokens read, the last two count
    assert torch.equal(found[0][2:], found[1][2:])


def test_before_a_line_end_nothing_matters():
    lm = build(PLAIN)
    inputs, targets = text(5, 3)
    _, state = lm.score(inputs, targets, lm.start(3))
    after, _ = lm.step(torch.tensor([LINE_END] * 3), state)
    anew, _ = lm.step(torch.tensor([LINE_END] * 3), lm.start(3))
    assert torch.equal(after, anew)


def test_the_trainer_teaches_it_which_word_follows_which_two():
    random = np.random.default_rng(0)
    following = {(a, b): int(random.integers(1, 12)) for a in range(12) for b in range(12)}
    tokens = [LINE_END]
    for _ in range(6000):
        last = 0 if tokens[-1] == LINE_END else tokens[-2]
        tokens.append(following[last, tokens[-1]] if random.random() < 0.9 else int(random.integers(1, 12)))
    stream = TokenStream.from_tokens(np.array(tokens[1:]))
    counts = np.bincount(stream.tokens, minlength=12).tolist()
    torch.manual_seed(0)
    lm = MaxEntLM(MaxEntSettings(order=3, bits=14), Vocabulary(VOCABULARY.tokens, counts))
    valid = list(ContiguousStreams(stream, 1, 1000))[-1:]
    train = ContiguousStreams(TokenStream.from_tokens(stream.tokens[:5000]), 10, 20)
    lm.assign_ngrams(stream.tokens[:5000])
    before = lm(valid[0])[0].mean.item()
    Trainer(lm, TrainingSettings(epochs=4, learning_rate=0.004), lambda _: train).run()
    lm.eval()
    after = lm(valid[0])[0].mean.item()
    entropy = -(0.909 * np.log(0.909) + 10 / 11 * 0.1 * np.log(0.1 / 11))  # of a rule that holds 9 times in 10
    assert entropy < after < entropy + 0.3 < before - 0.5


def test_its_n_grams_learn_at_a_rate_of_their_own():
    lm = MaxEntLM(PLAIN, VOCABULARY)
    lm.assign_ngrams(CORPUS)
    before = {name: parameter.detach().clone() for name, parameter in lm.named_parameters()}
    Trainer(lm, TrainingSettings(max_steps=2, learning_rate=0.0), lambda _: [Batch(*text(9, 3))] * 2).run()
    moved = [name for name, parameter in lm.named_parameters() if not torch.equal(parameter, before[name])]
    assert moved == ["output.hashed.table"]


def test_its_n_grams_are_as_the_settings_say():
    hashed = MaxEntLM(MaxEntSettings(order=4, bits=10, cutoffs=(1, 4), dropout=0.25, rate=0.5), VOCABULARY).hashed
    assert (hashed.order, hashed.bits, hashed.line_end) == (4, 10, LINE_END)
    assert (hashed.cutoffs, hashed.dropout, hashed.rate) == ((1, 4), 0.25, 0.5)


def test_its_parameters_are_weights_of_n_grams_of_classes_and_of_words():
    lm = MaxEntLM(dataclasses.replace(PLAIN, classes=3), VOCABULARY)
    assert lm.parameters_count == 2**16 + 3 + len(COUNTS)


def test_sizes_that_cannot_be_are_one_line():
    with pytest.raises(UserError, match="order of at least 2"):
        MaxEntLM(dataclasses.replace(PLAIN, order=1), VOCABULARY)
