"""Published systems by name: what they are made of and how they were trained, usable at any scale.

All but the last are rows of the table of perplexities on the One Billion Word benchmark (Chelba et al. 2014) with which
recurrent language models are introduced. A setting that a paper does not give, or gives for training word by word, is
left to be settled from the corpus.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recurra.config import UserError

__all__ = ["PRESETS", "Preset", "find_preset"]

LARGEST = 1_000_000  # units of a layer
SIZES = ("hidden_size", "embedding_size", "output_size", "projection_size", "samples", "filters")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A published system.

    Attributes:
        kind: which of :data:`recurra.models.kinds.KINDS` it is.
        title: what the table calls it.
        source: the paper.
        published: test perplexity on the One Billion Word benchmark, where it was published.
        settings: by name, as flags and files have them.
    """

    kind: str
    title: str
    source: str
    published: float | None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def scaled(self, scale: float) -> dict[str, Any]:
        """The settings with every size multiplied, to the nearest whole number of at least 1; nothing else changes.

        Raises:
            UserError: a scale that is not above 0.
        """
        if not 0 < scale < math.inf:
            raise UserError(f"scale: expected a number above 0, got {scale}")

        def size(value: Any) -> Any:
            return tuple(map(size, value)) if isinstance(value, tuple) else max(1, round(scale * value))

        found = {name: size(value) if name in SIZES else value for name, value in self.settings.items()}
        if found.get("hidden_size", 0) > LARGEST:
            raise UserError(f"scale {scale:g} makes layers of {found['hidden_size']:,} units; the most are {LARGEST:,}")
        return found


# Jozefowicz et al. 2016, sections 3 and 4: batches of 128 rows of 20 steps, Adagrad, importance sampling with 8192
# samples, the LSTM's weights averaged. The paper clips the gradients of the LSTM alone to norm 1; here all are clipped.
_EXPLORING = {
    "cell": "lstm",
    "output": "sampled",
    "samples": 8192,
    "proposal": "log-uniform",
    "tied": False,
    "output_norm": False,
    "optimizer": "adagrad",
    "learning_rate": 0.2,
    "schedule": "constant",
    "warmup": 0.0,
    "clip_norm": 1.0,
    "batch_size": 128,
    "chunk_length": 20,
    "average": 0.999,
}
_BIG = _EXPLORING | {
    "hidden_size": 8192,
    "projection_size": 1024,
    "embedding_size": 1024,
    "layers": 2,
    "input_dropout": 0.25,
    "dropout": 0.25,
    "output_dropout": 0.25,
}
# Grave et al. 2017, section 5: word vectors of 256, Adagrad 0.1, clipping at 1, batches of 128 rows of 20 steps.
_ADAPTIVE = {
    "cell": "lstm",
    "hidden_size": 2048,
    "embedding_size": 256,
    "output_size": 2048,
    "output": "adaptive",
    "shrink": 4.0,
    "tied": False,
    "output_norm": False,
    "optimizer": "adagrad",
    "learning_rate": 0.1,
    "schedule": "constant",
    "warmup": 0.0,
    "clip_norm": 1.0,
    "batch_size": 128,
    "chunk_length": 20,
}

PRESETS = {
    "kneser-ney-5": Preset(
        kind="ngram",
        title="Interpolated Kneser-Ney 5-gram",
        source="Chen & Goodman 1998",
        published=67.6,
        settings={"order": 5, "smoothing": "modified-kneser-ney"},
    ),
    # The published one had some 20 billion n-gram weights (--maxent-bits 34), trained by stochastic gradient descent.
    "rnn-1024-maxent-9": Preset(
        kind="lm",
        title="RNN-1024 + MaxEnt 9-gram",
        source="Mikolov et al. 2011",
        published=51.3,
        settings={
            "cell": "rnn",
            "nonlinearity": "sigmoid",
            "hidden_size": 1024,
            "embedding_size": 1024,
            "layers": 1,
            "output": "classes",
            "maxent_order": 9,
            "tied": False,
        },
    ),
    "rnn-2048-blackout": Preset(
        kind="lm",
        title="RNN-2048 + BlackOut",
        source="Ji et al. 2016",
        published=68.3,
        settings={
            "cell": "rnn",
            "nonlinearity": "sigmoid",
            "hidden_size": 2048,
            "embedding_size": 2048,
            "layers": 1,
            "output": "blackout",
            "samples": 2000,
            "proposal": "unigram",
            "proposal_power": 0.1,
            "tied": False,
            "output_norm": False,
            "optimizer": "rmsprop",
            "batch_size": 128,
            "chunk_length": 20,
        },
    ),
    "sparse-nonnegative-matrix": Preset(
        kind="snm",
        title="Sparse non-negative matrix",
        source="Shazeer et al. 2015",
        published=52.9,
        settings={"order": 10},
    ),
    "lstm-2048-512": Preset(
        kind="lm",
        title="LSTM-2048-512",
        source="Jozefowicz et al. 2016",
        published=43.7,
        settings=_EXPLORING
        | {
            "hidden_size": 2048,
            "projection_size": 512,
            "embedding_size": 512,
            "layers": 1,
            "input_dropout": 0.1,
            "dropout": 0.1,
            "output_dropout": 0.1,
        },
    ),
    "lstm-8192-1024": Preset(
        kind="lm",
        title="2-layer LSTM-8192-1024",
        source="Jozefowicz et al. 2016",
        published=30.6,
        settings=_BIG,
    ),
    "lstm-8192-1024-char-cnn": Preset(
        kind="lm",
        title="2-layer LSTM-8192-1024, character-CNN inputs",
        source="Jozefowicz et al. 2016",
        published=30.0,
        settings=_BIG
        | {
            "inputs": "char-cnn",
            "character_size": 16,
            "filters": (32, 32, 64, 128, 256, 512, 1024, 2048),
            "highway_layers": 2,
        },
    ),
    "adaptive-lstm-2048": Preset(
        kind="lm",
        title="Adaptive softmax, LSTM-2048",
        source="Grave et al. 2017",
        published=43.9,
        settings=_ADAPTIVE | {"layers": 1},
    ),
    "adaptive-2-layer-lstm-2048": Preset(
        kind="lm",
        title="Adaptive softmax, 2-layer LSTM-2048",
        source="Grave et al. 2017",
        published=39.8,
        settings=_ADAPTIVE | {"layers": 2},
    ),
    "fixed-window": Preset(
        kind="window",
        title="Fixed-window neural model",
        source="Bengio et al. 2003",
        published=None,
        settings={"window": 5, "embedding_size": 100, "hidden_size": 60, "direct": True, "output": "full"},
    ),
}


def find_preset(name: str) -> Preset:
    """The preset of a name.

    Raises:
        UserError: there is none; the nearest name is given.
    """
    if name not in PRESETS:
        import difflib

        near = difflib.get_close_matches(name, PRESETS, n=1)
        advice = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(PRESETS)}"
        raise UserError(f"unknown preset {name!r}; {advice}")
    return PRESETS[name]
