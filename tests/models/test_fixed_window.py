"""The fixed-window language model: the paper's equation, and what a window is.

What it shares with other models is in test_neural.py.
"""

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


def build(settings):
    torch.manual_seed(0)
    lm = FixedWindowLM(settings, VOCABULARY).double().eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(torch.randn(parameter.shape, dtype=torch.float64), alpha=0.3)
    return lm


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


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"direct": True},
        {"output": "adaptive", "cutoffs": (4, 8), "nonlinearity": "relu"},
        {"window": 1},
        {"window": 9},
    ],
)
def test_before_a_text_are_line_ends(change):
    lm = build(dataclasses.replace(PLAIN, **change))
    inputs, targets = text(3, 2)
    found, _ = lm.score(inputs, targets, lm.start(2))
    empty = torch.full((12, 2), LINE_END)
    _, state = lm.score(empty, empty, lm.start(2))
    torch.testing.assert_close(lm.score(inputs, targets, state)[0], found)


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
