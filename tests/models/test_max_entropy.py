"""The maximum-entropy language model: what it is before training, what it learns; its ways of reading agree."""

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
PLAIN = MaxEntSettings(order=3, bits=10)
VARIANTS = {
    "plain": PLAIN,
    "bigrams": dataclasses.replace(PLAIN, order=2),
    "long, colliding": dataclasses.replace(PLAIN, order=6, bits=8),
    "one class": dataclasses.replace(PLAIN, classes=1),
    "dropout": dataclasses.replace(PLAIN, dropout=0.3),
}


def build(settings):
    torch.manual_seed(0)
    lm = MaxEntLM(settings, VOCABULARY).double().eval()
    torch.nn.init.normal_(lm.hashed.table)
    return lm


@pytest.fixture(params=VARIANTS, ids=list(VARIANTS))
def lm(request):
    return build(VARIANTS[request.param])


def text(time, batch):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(len(COUNTS), (time + 1, batch), generator=generator)
    return tokens[:-1], tokens[1:]


def test_before_training_it_is_the_unigram_model():
    lm = MaxEntLM(PLAIN, VOCABULARY)
    log_probs, _ = lm.step(torch.tensor([LINE_END, 4]), lm.start(2))
    smoothed = np.array(COUNTS) + 1
    np.testing.assert_allclose(log_probs.exp().detach(), [smoothed / smoothed.sum()] * 2, rtol=1e-5)


@torch.no_grad()
def test_steps_scores_and_loss_are_one_distribution(lm):
    inputs, targets = text(9, 3)
    scored, end = lm.score(inputs, targets, lm.start(3))
    state = lm.start(3)
    for t in range(9):
        log_probs, state = lm.step(inputs[t], state)
        torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(3, dtype=torch.float64))
        torch.testing.assert_close(log_probs.gather(-1, targets[t, :, None])[:, 0], scored[t])
    loss, _ = lm(Batch(inputs, targets))
    torch.testing.assert_close(loss.nats, -scored.sum())
    assert loss.tokens == 27
    assert torch.equal(state.words, end.words)


@torch.no_grad()
def test_chunks_give_what_the_whole_gives_and_resets_what_the_parts_give(lm):
    inputs, targets = text(9, 2)
    whole, _ = lm(Batch(inputs, targets))
    first, state = lm(Batch(inputs[:4], targets[:4]))
    second, _ = lm(Batch(inputs[4:], targets[4:]), lm.detach(state))
    torch.testing.assert_close((first + second).nats, whole.nats)
    resets = torch.zeros(9, 2, dtype=torch.bool)
    resets[4, 1] = resets[6, 0] = True
    found, _ = lm(Batch(inputs, targets, None, resets))
    parts = [(0, 6, 0), (6, 9, 0), (0, 4, 1), (4, 9, 1)]
    expected = sum(lm(Batch(inputs[a:b, row : row + 1], targets[a:b, row : row + 1]))[0].nats for a, b, row in parts)
    torch.testing.assert_close(found.nats, expected)


@torch.no_grad()
def test_lengths_leave_out_what_lies_beyond(lm):
    inputs, targets = text(6, 3)
    lengths = torch.tensor([6, 4, 1])
    found, _ = lm(Batch(inputs, targets, lengths))
    scored, _ = lm.score(inputs, targets, lm.start(3))
    torch.testing.assert_close(found.nats, -sum(scored[:n, row].sum() for row, n in enumerate(lengths.tolist())))


@torch.no_grad()
def test_rows_are_selected_and_lines_forgotten():
    lm = build(PLAIN)
    inputs, targets = text(5, 3)
    _, state = lm.score(inputs, targets, lm.start(3))
    expected, _ = lm.step(torch.tensor([4, 5]), lm.select(state, torch.tensor([2, 0])))
    alone, _ = lm.step(torch.tensor([5, 6, 4]), state)
    torch.testing.assert_close(expected, alone[[2, 0]])
    after, _ = lm.step(torch.tensor([LINE_END] * 3), state)
    fresh, _ = lm.step(torch.tensor([LINE_END] * 3), lm.start(3))
    assert torch.equal(after, fresh)


def test_only_the_last_words_matter():
    lm = build(PLAIN)
    one, other = torch.tensor([[5, 6, 7, 8], [9, 6, 7, 8]]).t().unbind(1)
    found = [lm.score(x[:, None], x[:, None], lm.start(1))[0] for x in (one, other)]
    assert (found[0][:2] != found[1][:2]).all()  # of three tokens read, the last two count
    assert torch.equal(found[0][2:], found[1][2:])


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
    before = lm(valid[0])[0].mean.item()
    Trainer(lm, TrainingSettings(epochs=4, learning_rate=0.004), lambda _: train).run()
    lm.eval()
    after = lm(valid[0])[0].mean.item()
    entropy = -(0.909 * np.log(0.909) + 10 / 11 * 0.1 * np.log(0.1 / 11))  # of a rule that holds 9 times in 10
    assert entropy < after < entropy + 0.3 < before - 0.5


def test_its_n_grams_learn_at_a_rate_of_their_own():
    lm = MaxEntLM(PLAIN, VOCABULARY)
    before = {name: parameter.detach().clone() for name, parameter in lm.named_parameters()}
    Trainer(lm, TrainingSettings(max_steps=2, learning_rate=0.0), lambda _: [Batch(*text(9, 3))] * 2).run()
    moved = [name for name, parameter in lm.named_parameters() if not torch.equal(parameter, before[name])]
    assert moved == ["output.hashed.table"]


def test_saved_and_made_anew_it_says_the_same():
    lm = MaxEntLM(PLAIN, VOCABULARY)
    torch.nn.init.normal_(lm.hashed.table)
    tensors = {name: tensor.detach().clone() for name, tensor in lm.tensors().items()}
    again = MaxEntLM.from_tensors(PLAIN, VOCABULARY, tensors)
    inputs, targets = text(6, 2)
    assert torch.equal(lm.score(inputs, targets, lm.start(2))[0], again.score(inputs, targets, again.start(2))[0])
    assert lm.parameters_count == sum(tensor.numel() for tensor in tensors.values())


def test_sizes_that_cannot_be_are_one_line():
    with pytest.raises(UserError, match="order of at least 2"):
        MaxEntLM(dataclasses.replace(PLAIN, order=1), VOCABULARY)
