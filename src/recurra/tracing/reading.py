"""A text read by a recurrent language model, with every gate and state kept."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recurra.config import UserError
from recurra.evaluation import row_starts, surprisals
from recurra.language_model import LanguageModel
from recurra.models.protocol import device_of, evaluating
from recurra.models.recurrent_lm import RecurrentLM
from recurra.text.batches import TokenStream
from recurra.text.vocabulary import LINE_END

__all__ = ["GATES", "OPENED", "Traced", "Values", "check_size", "trace"]

Values = NDArray[np.float32]

GATES = ("forget", "input", "output", "candidate", "hidden", "cell", "reset", "update")
OPENED = ("forget", "input", "output", "reset", "update")  # between 0 and 1, the others on both sides of 0
CHUNK = 256  # steps read at a time
WORKING = 12  # bytes for each number of the widest array, to find out what moves and what it goes with


@dataclass(frozen=True)
class Traced:
    """What a model computed over a text of T tokens.

    Row t of every array is what the model has just after it has read token t of the text, counted from 0: its h(t) and
    c(t), and the gates that made them. The line end that it reads before the text has no row.

    Attributes:
        ids: the tokens, int64 [T].
        tokens: as the vocabulary has them.
        bits: surprisal -log2 p of each token given those before it, [T]: row t - 1 is what the model expected it from.
        layers: of each layer, from a name (``hidden``; ``cell`` in an LSTM; the gates) to float32 [T, units].
        cell: ``lstm``, ``gru`` or ``rnn``.
    """

    ids: NDArray[np.int64]
    tokens: list[str]
    bits: NDArray[np.float64]
    layers: list[dict[str, Values]]
    cell: str

    @property
    def usual(self) -> str:
        """What is looked at where nothing was chosen: the cell, where there is one."""
        return "cell" if "cell" in self.layers[0] else "hidden"

    def values(self, gate: str | None = None, layer: int | None = None) -> Values:
        """The values of one gate, of h or of c, ``[T, units]``.

        Args:
            gate: one of :data:`GATES` that the kind of cell has; None for c, or h where there is none.
            layer: counted from 1; None for the last.

        Raises:
            UserError: there is no such layer or gate.
        """
        number = len(self.layers) if layer is None else layer
        if not 1 <= number <= len(self.layers):
            raise UserError(f"layer: expected 1 to {len(self.layers)}, got {number}")
        found, name = self.layers[number - 1], gate or self.usual
        if name not in found:
            raise UserError(f"gate: expected one of {', '.join(found)}, which the {self.cell} has; got {name!r}")
        return found[name]

    def chosen(self, gate: str | None, layer: int | None, units: Sequence[int] | None, count: int) -> list[int]:
        """The units asked for, or without any the ``count`` whose values move most (largest standard deviation).

        Raises:
            UserError: there is no such layer, gate or unit.
        """
        values = self.values(gate, layer)
        size = values.shape[1]
        if units is None:
            return [int(unit) for unit in np.argsort(-values.std(0, dtype=np.float64), kind="stable")[:count]]
        for unit in units:
            if not 0 <= unit < size:
                raise UserError(f"units: expected 0 to {size - 1}, got {unit}")
        return list(units)


def check_size(lm: LanguageModel, tokens: int, available: float) -> None:
    """Refuse a trace that does not fit into memory.

    Args:
        lm: as for :func:`trace`.
        tokens: T of the text.
        available: bytes.

    Raises:
        UserError: it does not fit, or this is another kind of model.
    """
    widths = [width for layer in _widths(_recurrent(lm)) for width in layer.values()]
    row = np.dtype(np.float32).itemsize * sum(widths) + WORKING * max(widths)
    if tokens * row > available:
        raise UserError(
            f"a trace of {tokens:,} tokens takes {tokens * row / 1e9:.3g} GB of memory, there are"
            f" {available / 1e9:.3g}: give a text of at most {int(available / 2 / row):,} tokens"
        )


def trace(lm: LanguageModel, text: str | TokenStream, *, reset: str | None = None) -> Traced:
    """Read a text and keep every gate, hidden and cell value of every token and layer.

    The model has read a line end before the first token, and begins anew where evaluation lets it. Row t is what it has
    after token t: see :class:`Traced`. For memory, see :func:`check_size`.

    Args:
        lm: a recurrent language model.
        text: a text as it stands, to which no line end is added; or one already turned into tokens.
        reset: where the state starts anew (``none``, ``documents``, ``lines``); as in training if not given.

    Raises:
        UserError: another kind of model, no tokens, or an unknown ``reset``.
    """
    model = _recurrent(lm)
    digest = lm.tokenizer.vocabulary.digest()
    stream = text if isinstance(text, TokenStream) else TokenStream.from_tokens(lm.tokenizer.encode(text))
    if isinstance(text, TokenStream) and text.vocabulary != digest:
        raise UserError(
            "these tokens belong to another vocabulary than the model's: encode the text with its tokenizer"
        )
    if not len(stream):
        raise UserError("the text is empty: expected at least one token to trace")
    ids = np.asarray(stream.tokens, np.int64)
    reset = reset or model.settings.reset
    rows: dict[str, Any] = {
        "reset": reset,
        "document_starts": stream.document_starts,
        "line_starts": stream.line_starts,
    }
    starts = {int(start) for start in row_starts(**rows)}
    nats = surprisals(model, ids, **rows)
    if reset == "lines":  # a line end is read as the beginning of the next line, even where none follows
        starts |= {int(place) + 1 for place in np.flatnonzero(ids == LINE_END)}
    layers = _states(model, np.concatenate(([LINE_END], ids)), starts)
    tokens = [lm.tokenizer.token(int(id)) for id in ids]
    return Traced(ids, tokens, nats / math.log(2), layers, model.settings.cell)


def _recurrent(lm: LanguageModel) -> RecurrentLM:
    if not isinstance(lm.model, RecurrentLM):
        raise UserError(f"tracing is for recurrent language models (lm), this one is of kind {lm.kind!r}")
    return lm.model


@torch.no_grad()
def _widths(model: RecurrentLM) -> list[dict[str, int]]:
    """How many numbers each layer has of each name, found by reading a line end."""
    with evaluating(model):
        words = torch.tensor([[LINE_END]], device=device_of(model))
        _, _, found = model.recurrent(model.embedding(words), None, trace=True)
    return [{name: steps[0].shape[-1] for name, steps in directions[0].items()} for directions in found.layers]


@torch.no_grad()
def _states(model: RecurrentLM, inputs: NDArray[np.int64], starts: set[int]) -> list[dict[str, Values]]:
    """Everything the stack computes over inputs, but for the first of them; before ``starts`` it begins anew."""
    kept = [
        {name: np.empty((len(inputs) - 1, width), np.float32) for name, width in layer.items()}
        for layer in _widths(model)
    ]
    state: Any = None
    cuts = sorted({*(start for start in starts if start < len(inputs)), *range(0, len(inputs), CHUNK), len(inputs)})
    with evaluating(model):
        for begin, end in itertools.pairwise(cuts):
            state = None if begin in starts else state
            words = torch.from_numpy(inputs[begin:end, None]).to(device_of(model))
            _, state, found = model.recurrent(model.embedding(words), state, trace=True)
            first = int(begin == 0)
            for arrays, directions in zip(kept, found.layers, strict=True):
                for name, steps in directions[0].items():
                    values = torch.cat(steps)[first:].float().cpu().numpy()
                    arrays[name][begin + first - 1 : end - 1] = values
    return kept
