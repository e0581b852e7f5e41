"""Models that are traced, and traces made by hand."""

from __future__ import annotations

import numpy as np
import torch

import recurra
from recurra.models.recurrent_lm import RecurrentLM, RecurrentLMSettings
from recurra.text.documents import Text
from recurra.text.tokenizer import TokenizerSettings, build_tokenizer
from recurra.tracing import Traced

TEXT = "the cat sat on the mat\nthe dog sat on the log\n"
GATES = {
    "lstm": {"forget", "input", "output", "candidate", "cell"},
    "gru": {"reset", "update", "candidate"},
    "rnn": set(),
}


def model(cell="lstm", tokenizer="words", **options):
    torch.manual_seed(0)
    tokens = build_tokenizer(Text.from_string(TEXT), TokenizerSettings(tokenizer=tokenizer, min_count=1))
    sizes = {"hidden_size": (6, 5), "layers": 2, "embedding_size": 5, "output": "full", "tied": True, **options}
    settings = RecurrentLMSettings(cell=cell, **sizes)
    return recurra.LanguageModel(RecurrentLM(settings, tokens.vocabulary).eval(), tokens)


def handmade(values, tokens=None, bits=None):
    """A trace of one layer with these hidden values, [T, units]."""
    values = np.asarray(values, np.float32)
    total = len(values)
    return Traced(
        np.arange(total),
        tokens or [f"w{i}" for i in range(total)],
        np.ones(total) if bits is None else np.asarray(bits, np.float64),
        [{"hidden": values}],
        "rnn",
    )
