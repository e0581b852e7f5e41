"""Stacks, texts and models whose gradients are looked at, and T backward passes of autograd to compare with."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from recurra import nn
from recurra.language_model import LanguageModel
from recurra.models.recurrent_lm import RecurrentLM, RecurrentLMSettings
from recurra.text.documents import Text
from recurra.text.tokenizer import TokenizerSettings, build_tokenizer

STEPS, INPUT_SIZE, CLASSES = 12, 3, 7

STACKS = {
    "rnn tanh": partial(nn.RNN, INPUT_SIZE, 4),
    "rnn relu": partial(nn.RNN, INPUT_SIZE, 4, 2, "relu"),
    "rnn sigmoid, 3 layers": partial(nn.RNN, INPUT_SIZE, 4, 3, "sigmoid"),
    "lstm": partial(nn.LSTM, INPUT_SIZE, 4),
    "lstm, 2 layers": partial(nn.LSTM, INPUT_SIZE, 4, 2),
    "lstm, 3 layers": partial(nn.LSTM, INPUT_SIZE, (5, 4, 2)),
    "lstm projected, 2 layers": partial(nn.LSTM, INPUT_SIZE, 5, 2, proj_size=3),
    "lstm layer norm": partial(nn.LSTM, INPUT_SIZE, 4, 2, layer_norm=True),
    "lstm zoneout": partial(nn.LSTM, INPUT_SIZE, 4, 2, zoneout=(0.1, 0.4)),
    "gru": partial(nn.GRU, INPUT_SIZE, 4),
    "gru, 3 layers": partial(nn.GRU, INPUT_SIZE, 4, 3),
    "gru reset before, 2 layers": partial(nn.GRU, INPUT_SIZE, 4, 2, reset="before"),
    "gru residual": partial(nn.GRU, INPUT_SIZE, 4, 3, connections="residual"),
    "gru dense": partial(nn.GRU, INPUT_SIZE, 4, 3, connections="dense"),
    "gru highway, dropout": partial(nn.GRU, INPUT_SIZE, 4, 3, connections="highway", between_dropout=0.5),
}


TEXT = "the cat sat on the mat\nthe dog sat on the log\nthe cow sat\n" * 3

SETTINGS = {"hidden_size": 6, "embedding_size": 5, "layers": 2, "tied": False}


def made(name, seed=0, steps=STEPS):
    """A stack, its inputs and the losses of its outputs."""
    torch.manual_seed(seed)
    stack = STACKS[name]().double().eval()
    inputs = torch.randn(steps, INPUT_SIZE, dtype=torch.float64)
    scores = torch.nn.Linear(stack.output_size, CLASSES).double()
    targets = torch.randint(CLASSES, (steps,))
    return stack, inputs, lambda outputs: F.cross_entropy(scores(outputs), targets, reduction="none")


def by_backward_passes(stack, inputs, loss, part):
    """Norms [L, T, T] of the gradients with respect to a part of the state, a backward pass for each t."""
    outputs, _, trace = stack(inputs[:, None], trace=True)
    losses = loss(outputs[:, 0])
    norms = np.zeros((stack.num_layers, len(inputs), len(inputs)))
    for layer in range(stack.num_layers):
        for t in range(len(inputs)):
            found = torch.autograd.grad(
                losses[t], trace.layers[layer][0][part], retain_graph=True, allow_unused=True, materialize_grads=True
            )
            norms[layer, t] = [float(gradient.norm()) for gradient in found]
    return norms


def model_of(tokenizer="words", **settings):
    torch.manual_seed(0)
    tokens = build_tokenizer(Text.from_string(TEXT), TokenizerSettings(tokenizer=tokenizer))
    chosen = RecurrentLMSettings(**{**SETTINGS, "output": "full", **settings})
    return LanguageModel(RecurrentLM(chosen, tokens.vocabulary).double().eval(), tokens)
