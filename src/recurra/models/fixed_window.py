"""The neural language model of a fixed window (Bengio et al. 2003, "A Neural Probabilistic Language Model")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recurra.config import setting
from recurra.models.neural import NeuralLM, OutputSettings, Reading, build_output
from recurra.nn.embedding import Embedding
from recurra.text.vocabulary import LINE_END, Vocabulary

__all__ = ["FixedWindowLM", "FixedWindowSettings"]

NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
}


@dataclass(frozen=True, kw_only=True)
class FixedWindowSettings(OutputSettings):
    """What a fixed-window language model is made of; ``None`` is settled from the corpus before the model is built."""

    window: int = setting(4, "words that the next one is predicted from", minimum=1)
    embedding_size: int = setting(128, "size of a word vector", minimum=1)
    hidden_size: int = setting(256, "units of the hidden layer", minimum=1)
    nonlinearity: str = setting("tanh", "of the hidden layer", choices=("tanh", "relu", "sigmoid"))
    direct: bool = setting(False, "the output layer sees the word vectors too, past the hidden layer")
    word_dropout: float = setting(0.0, "chance that a word's vector is dropped", minimum=0, maximum=0.99)
    input_dropout: float | None = setting(None, "dropout on word vectors", minimum=0, maximum=0.99)
    dropout: float | None = setting(None, "dropout on the hidden layer", minimum=0, maximum=0.99)
    reset: str = setting("none", "where the window starts anew", choices=("none", "documents", "lines"))


class FixedWindowState(NamedTuple):
    """What the model remembers: the words that are still in the window, and those that hashed n-grams need."""

    words: Tensor  # the last window - 1, oldest first, int64 [batch, window - 1]
    hashed: Any = ()


class FixedWindowLM(NeuralLM):
    r"""A language model of the last ``window`` words, their vectors side by side being :math:`x`.

    .. math:: P(w_{t+1} \mid w_{t-window+1..t}) = \mathrm{softmax}(b + W x + U \tanh(d + H x))

    which is equation 1 of Bengio et al. 2003. The output layer sees the hidden layer, and with ``direct`` [x, hidden],
    so that its weights are [W, U]; without, there is no W. All words before the beginning of a text, or before a
    reset, are line ends: a text begins as if after empty lines.

    Args:
        settings: with no output layer left to choose.
        vocabulary: the words, with their counts in training.

    Raises:
        UserError: settings that do not fit together.
    """

    settings: FixedWindowSettings

    def __init__(self, settings: FixedWindowSettings, vocabulary: Vocabulary) -> None:
        super().__init__(settings, vocabulary)
        width = settings.window * settings.embedding_size
        self.embedding = Embedding(len(vocabulary), settings.embedding_size, dropout=settings.word_dropout)
        self.hidden = nn.Linear(width, settings.hidden_size)
        seen = settings.hidden_size + (width if settings.direct else 0)
        self.output = build_output(settings, seen, vocabulary.counts)
        # Nothing recurs, so what is dropped is drawn anew at every step.
        self.input_dropout = nn.Dropout(settings.input_dropout or 0.0)
        self.dropout = nn.Dropout(settings.dropout or 0.0)

    def start(self, batch_size: int) -> FixedWindowState:
        """The state before anything was read: line ends."""
        words = torch.full((batch_size, self.settings.window - 1), LINE_END, device=self.hidden.weight.device)
        return FixedWindowState(words, self.output.hashed.start(batch_size) if self.settings.maxent_order else ())

    def read(
        self, inputs: Tensor, state: FixedWindowState, *, lengths: Tensor | None = None
    ) -> tuple[Reading, FixedWindowState]:
        """From tokens to the vectors that the output layer sees; see :meth:`NeuralLM.read`."""
        x, words = self._windows(inputs, state.words)
        histories, hashed = None, state.hashed
        if self.settings.maxent_order:
            histories, hashed = self.output.hashed.histories(inputs, hashed)
        return Reading(self._hidden(x), histories), FixedWindowState(words, hashed)

    def read_with_resets(
        self, inputs: Tensor, state: FixedWindowState, resets: Tensor
    ) -> tuple[Reading, FixedWindowState]:
        """At once where only windows have to forget."""
        if self.settings.maxent_order:
            reading, new = super().read_with_resets(inputs, state, resets)
            assert isinstance(new, FixedWindowState)
            return reading, new
        x, words = self._windows(inputs, state.words, resets)
        return Reading(self._hidden(x)), FixedWindowState(words)

    def _windows(self, inputs: Tensor, words: Tensor, resets: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Vectors of the words in the window of each input, ``[time, batch, window * embedding]``, and the next state.

        Each token's vector is looked up once, however many windows it is in.
        """
        steps, older = len(inputs), self.settings.window - 1
        tokens = torch.cat([words.t(), inputs])  # [older + time, batch]
        if resets is None:
            vectors = self.input_dropout(self.embedding(tokens))
            windows = [vectors[first : first + steps] for first in range(older + 1)]
            return torch.cat(windows, -1), tokens[steps:].t()
        # The word so many steps back is in the window if no reset lies after it.
        times = torch.arange(steps, device=inputs.device)[:, None]
        since = times - torch.where(resets, times, -older - 1).cummax(0).values  # [time, batch]
        vectors = self.input_dropout(self.embedding(torch.cat([tokens, torch.full_like(tokens[:1], LINE_END)])))
        windows = [
            torch.where((since >= older - first)[..., None], vectors[first : first + steps], vectors[-1])
            for first in range(older + 1)
        ]
        back = torch.arange(older, 0, -1, device=inputs.device) - 1  # from the last input
        kept = torch.where(back <= since[-1, :, None], tokens[steps:].t(), LINE_END)
        return torch.cat(windows, -1), kept

    def _hidden(self, x: Tensor) -> Tensor:
        hidden = self.dropout(NONLINEARITIES[self.settings.nonlinearity](self.hidden(x)))
        return torch.cat([x, hidden], -1) if self.settings.direct else hidden
