"""The neural language model of a fixed window (Bengio et al. 2003, "A Neural Probabilistic Language Model")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recurra.config import setting
from recurra.models.neural import NeuralLM, OutputSettings, build_output
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
        # Of whole windows: nothing recurs, so what is dropped is drawn anew at every step.
        self.input_dropout = nn.Dropout(settings.input_dropout or 0.0)
        self.dropout = nn.Dropout(settings.dropout or 0.0)

    def initial_state(self, batch_size: int) -> Tensor:
        """The words in the window beside the one that is read next, oldest first, int64 ``[batch, window - 1]``."""
        return torch.full((batch_size, self.settings.window - 1), LINE_END, device=self.hidden.weight.device)

    def vectors(self, inputs: Tensor, state: Tensor, *, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """From tokens to the vectors that the output layer sees; see :meth:`NeuralLM.vectors`."""
        return self._read(inputs, state)

    def vectors_with_resets(self, inputs: Tensor, state: Tensor, resets: Tensor) -> tuple[Tensor, Tensor]:
        """The same where windows have to forget, all at once."""
        return self._read(inputs, state, resets)

    def _read(self, inputs: Tensor, words: Tensor, resets: Tensor | None = None) -> tuple[Tensor, Tensor]:
        windows, words = self._windows(inputs, words, resets)
        x = self.input_dropout(windows)
        hidden = self.dropout(NONLINEARITIES[self.settings.nonlinearity](self.hidden(x)))
        return torch.cat([x, hidden], -1) if self.settings.direct else hidden, words

    def _windows(self, inputs: Tensor, words: Tensor, resets: Tensor | None) -> tuple[Tensor, Tensor]:
        """Vectors of the words in the window of each input, ``[time, batch, window * embedding]``, and the next state.

        Each token's vector is looked up once, however many windows it is in.
        """
        steps, older = len(inputs), self.settings.window - 1
        tokens = torch.cat([words.t(), inputs])  # [older + time, batch]
        if resets is None:
            vectors = self.embedding(tokens)
            windows = [vectors[first : first + steps] for first in range(older + 1)]
            return torch.cat(windows, -1), tokens[steps:].t()
        # The word so many steps back is in the window if no reset lies after it.
        times = torch.arange(steps, device=inputs.device)[:, None]
        since = times - torch.where(resets, times, -older - 1).cummax(0).values  # [time, batch]
        vectors = self.embedding(torch.cat([tokens, torch.full_like(tokens[:1], LINE_END)]))
        windows = [
            torch.where((since >= older - first)[..., None], vectors[first : first + steps], vectors[-1])
            for first in range(older + 1)
        ]
        back = torch.arange(older, 0, -1, device=inputs.device) - 1  # from the last input
        kept = torch.where(back <= since[-1, :, None], tokens[steps:].t(), LINE_END)
        return torch.cat(windows, -1), kept
