"""The fixed-window language model: the paper's equation, and its ways of reading agree."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from recurra.config import UserError
from recurra.models.fixed_window import FixedWindowLM, FixedWindowSettings
from recurra.text.batches import Batch
from recurra.text.vocabulary import LINE_END, Vocabulary

COUNTS = [3, 40, 50, 40, 30, 20, 10, 9, 8, 7, 6, 5]
VOCABULARY = Vocabulary(["<unk>", "<eos>", *"abcdefghij"], COUNTS)
PLAIN = FixedWindowSettings(window=4, embedding_size=5, hidden_size=7, output="full")
VARIANTS = {
    "plain": PLAIN,
    "direct": dataclasses.replace(PLAIN, direct=True),
    "adaptive, direct, relu": dataclasses.replace(
        PLAIN, output="adaptive", cutoffs=(4, 8), direct=True, nonlinearity="relu"
    ),
    "one word, sigmoid": dataclasses.replace(PLAIN, window=1, nonlinearity="sigmoid"),
    "long window": dataclasses.replace(PLAIN, window=9),
    "classes, n-grams": dataclasses.replace(PLAIN, output="classes", classes=3, maxent_order=2, maxent_bits=10),
    "dropout": dataclasses.replace(PLAIN, direct=True, word_dropout=0.2, input_dropout=0.2, dropout=0.2),
}


def build(settings):
    torch.manual_seed(0)
    lm = FixedWindowLM(settings, VOCABULARY).double().eval()
    with torch.no_grad():
        for parameter in lm.parameters():  # so that n-grams, which start at zero, say something too
            parameter.add_(torch.randn(parameter.shape, dtype=torch.float64), alpha=0.3)
    return lm


@pytest.fixture(params=VARIANTS, ids=list(VARIANTS))
def lm(request):
    return build(VARIANTS[request.param])


def text(time, batch):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(len(COUNTS), (time + 1, batch), generator=generator)
    return tokens[:-1], tokens[1:]


def equation(lm, read):
    """log P of what follows the words ``read``, as Bengio et al. (2003) write it."""
    window = ([LINE_END] * lm.settings.window + read)[-lm.settings.window :]
    parameters = {name: parameter.detach().numpy() for name, parameter in lm.named_parameters()}
    x = np.concatenate([parameters["embedding.weight"][word] for word in window])
    hidden = np.tanh(parameters["hidden.bias"] + parameters["hidden.weight"] @ x)
    direct, other = parameters["output.weight"][:, : -len(hidden)], parameters["output.weight"][:, -len(hidden) :]
    y = parameters["output.bias"] + other @ hidden
    if direct.size:
        y = y + direct @ x
    return y - np.log(np.exp(y).sum())


@pytest.mark.parametrize("direct", [False, True])
def test_the_equation_of_the_paper(direct):
    lm = build(dataclasses.replace(PLAIN, direct=direct))
    inputs, _ = text(6, 2)
    state = lm.start(2)
    for t in range(6):
        log_probs, state = lm.step(inputs[t], state)
        for row in range(2):
            expected = equation(lm, inputs[: t + 1, row].tolist())
            np.testing.assert_allclose(log_probs[row].detach(), expected, rtol=1e-10)


def test_steps_scores_and_loss_are_one_distribution(lm):
    inputs, targets = text(7, 3)
    scored, end = lm.score(inputs, targets, lm.start(3))
    state = lm.start(3)
    for t in range(7):
        log_probs, state = lm.step(inputs[t], state)
        torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(3, dtype=torch.float64))
        torch.testing.assert_close(log_probs.gather(-1, targets[t, :, None])[:, 0], scored[t])
    loss, _ = lm(Batch(inputs, targets))
    torch.testing.assert_close(loss.nats, -scored.sum())
    assert loss.tokens == 21
    torch.testing.assert_close(lm.step(targets[-1], end)[0], lm.step(targets[-1], state)[0])


@pytest.mark.parametrize("cut", [1, 3, 7])
def test_chunks_give_what_the_whole_gives(lm, cut):
    inputs, targets = text(8, 2)
    whole, _ = lm(Batch(inputs, targets))
    first, state = lm(Batch(inputs[:cut], targets[:cut]))
    second, _ = lm(Batch(inputs[cut:], targets[cut:]), lm.detach(state))
    torch.testing.assert_close((first + second).nats, whole.nats)


def test_only_the_window_matters():
    lm = build(PLAIN)
    read = torch.arange(2, 10)[:, None]
    _, state = lm.score(read, read, lm.start(1))
    after = {}
    for words in (3, 2):  # beside the one that the step reads
        _, other = lm.score(read[-words:], read[-words:], lm.start(1))
        after[words], _ = lm.step(read[0], other)
    found, _ = lm.step(read[0], state)
    torch.testing.assert_close(found, after[3], rtol=0, atol=0)
    assert (found - after[2]).abs().max() > 1e-6


def test_before_a_text_are_line_ends(lm):
    inputs, targets = text(3, 2)
    found, _ = lm.score(inputs, targets, lm.start(2))
    if lm.settings.maxent_order:
        pytest.skip("n-grams know where a text begins")
    empty = torch.full((12, 2), LINE_END)
    _, state = lm.score(empty, empty, lm.start(2))
    torch.testing.assert_close(lm.score(inputs, targets, state)[0], found)


@pytest.mark.parametrize("cut", [None, 2, 5, 7])
def test_a_reset_row_goes_on_as_from_the_start(lm, cut):
    inputs, targets = text(9, 3)
    resets = torch.zeros(9, 3, dtype=torch.bool)
    resets[4, 1] = resets[6, 0] = resets[7, 0] = resets[8, 1] = resets[0, 2] = True
    state, found = None, 0
    for part in [slice(None)] if cut is None else [slice(cut), slice(cut, None)]:
        loss, state = lm(Batch(inputs[part], targets[part], None, resets[part]), state)
        found = found + loss.nats
    parts = [(0, 6, 0), (6, 7, 0), (7, 9, 0), (0, 4, 1), (4, 8, 1), (8, 9, 1), (0, 9, 2)]
    expected = sum(lm(Batch(inputs[a:b, row : row + 1], targets[a:b, row : row + 1]))[0].nats for a, b, row in parts)
    torch.testing.assert_close(found, expected)


def test_a_reset_at_the_first_input_forgets_the_state(lm):
    inputs, targets = text(5, 2)
    _, state = lm.score(inputs, targets, lm.start(2))
    resets = torch.zeros(5, 2, dtype=torch.bool)
    resets[0, 1] = True
    row = Batch(inputs[:, 1:], targets[:, 1:])
    other = Batch(inputs[:, :1], targets[:, :1])
    expected = lm(row)[0] + lm(other, lm.select(state, torch.tensor([0])))[0]
    torch.testing.assert_close(lm(Batch(inputs, targets, None, resets), state)[0].nats, expected.nats)


def test_lengths_leave_out_what_lies_beyond(lm):
    inputs, targets = text(6, 3)
    lengths = torch.tensor([6, 4, 1])
    found, _ = lm(Batch(inputs, targets, lengths))
    scored, _ = lm.score(inputs, targets, lm.start(3))
    torch.testing.assert_close(found.nats, -sum(scored[:n, row].sum() for row, n in enumerate(lengths.tolist())))
    assert found.tokens == 11


def test_a_batch_is_its_rows(lm):
    inputs, targets = text(6, 3)
    scored, _ = lm.score(inputs, targets, lm.start(3))
    for row in range(3):
        alone, _ = lm.score(inputs[:, row : row + 1], targets[:, row : row + 1], lm.start(1))
        torch.testing.assert_close(scored[:, row], alone[:, 0])


def test_select_reorders_rows(lm):
    inputs, targets = text(5, 3)
    _, state = lm.score(inputs, targets, lm.start(3))
    tokens = torch.tensor([4, 5, 6])
    before, _ = lm.step(tokens, lm.select(state, torch.arange(3)))
    rows = torch.tensor([2, 0, 0, 1])
    after, _ = lm.step(tokens[rows], lm.select(state, rows))
    torch.testing.assert_close(after, before[rows])


def test_a_model_of_lines_forgets_at_a_line_end():
    lm = build(dataclasses.replace(PLAIN, reset="lines"))
    inputs, targets = text(5, 2)
    _, state = lm.score(inputs, targets, lm.start(2))
    found, _ = lm.step(torch.tensor([LINE_END, 5]), state)
    fresh, _ = lm.step(torch.tensor([LINE_END, 5]), lm.start(2))
    torch.testing.assert_close(found[0], fresh[0])
    assert (found[1] - fresh[1]).abs().max() > 1e-6


@pytest.mark.parametrize("with_resets", [False, True])
def test_gradcheck(with_resets):
    lm = build(dataclasses.replace(PLAIN, direct=True, embedding_size=2, hidden_size=3))
    inputs, targets = text(5, 2)
    resets = torch.zeros(5, 2, dtype=torch.bool)
    resets[2, 0] = True
    batch = Batch(inputs, targets, None, resets if with_resets else None)
    names, parameters = zip(*lm.named_parameters(), strict=True)

    def loss(*values):
        return torch.func.functional_call(lm, dict(zip(names, values, strict=True)), (batch,))[0].nats

    assert torch.autograd.gradcheck(loss, parameters)


def test_parameters_are_those_of_the_paper():
    vocabulary, window, features, hidden = len(COUNTS), 4, 5, 7
    free = vocabulary * (1 + features + hidden) + hidden * (1 + window * features)
    assert FixedWindowLM(PLAIN, VOCABULARY).parameters_count == free
    direct = FixedWindowLM(dataclasses.replace(PLAIN, direct=True), VOCABULARY)
    assert direct.parameters_count == free + vocabulary * window * features


def test_saved_and_loaded_it_is_the_same(lm):
    inputs, targets = text(5, 2)
    again = type(lm).from_tensors(lm.settings, VOCABULARY, {name: t.clone() for name, t in lm.tensors().items()})
    again.eval().double().load_tensors(lm.tensors())
    expected, _ = lm.score(inputs, targets, lm.start(2))
    torch.testing.assert_close(again.score(inputs, targets, again.start(2))[0], expected, rtol=0, atol=0)


def test_training_draws_dropout_and_evaluation_does_not():
    lm = build(VARIANTS["dropout"])
    batch = Batch(*text(7, 3))
    assert lm(batch)[0].nats == lm(batch)[0].nats
    lm.train()
    assert lm(batch)[0].nats != lm(batch)[0].nats


def test_dropout_is_drawn_anew_for_every_window():
    lm = build(dataclasses.replace(PLAIN, direct=True, input_dropout=0.5)).train()
    reading, _ = lm.read(text(40, 3)[0], lm.start(3))
    windows = reading.hidden[..., : 4 * 5].unflatten(-1, (4, 5)) != 0
    same = windows[1:, :, :3] == windows[:-1, :, 1:]  # of one word, in two windows
    assert 0.4 < same.double().mean() < 0.6


def test_a_few_steps_of_training_learn_a_rule_of_two_words():
    torch.manual_seed(0)
    lm = FixedWindowLM(dataclasses.replace(PLAIN, window=2, hidden_size=32), VOCABULARY)
    a, b = torch.randint(2, 6, (2, 400))
    tokens = torch.stack([a, b, 2 + (a + b) % 4 + 4], 1).reshape(-1)  # every third word follows from the two before
    inputs, targets = tokens[:-1].view(-1, 1), tokens[1:].view(-1, 1)
    optimizer = torch.optim.Adam(lm.parameters(), 0.03)
    for _ in range(150):
        optimizer.zero_grad()
        lm(Batch(inputs, targets))[0].mean.backward()
        optimizer.step()
    scored, _ = lm.score(inputs, targets, lm.start(1))
    assert scored[1::3].exp().mean() > 0.9


def test_an_output_layer_still_to_be_chosen_is_one_line():
    with pytest.raises(UserError, match="still to be chosen: output"):
        FixedWindowLM(FixedWindowSettings(), VOCABULARY)
