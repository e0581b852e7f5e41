"""The recurrent language model (Mikolov et al. 2010): embedding, recurrent stack, output layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from recurra import nn as rnn
from recurra.config import UserError, setting
from recurra.models.neural import NeuralLM, OutputSettings, build_output
from recurra.models.protocol import State
from recurra.nn.characters import CharacterCNN, CharacterLSTM
from recurra.nn.dropout import LockedDropout
from recurra.nn.embedding import AdaptiveEmbedding, Embedding
from recurra.nn.int8 import round_to_int8_
from recurra.text.vocabulary import Vocabulary

__all__ = ["RecurrentLM", "RecurrentLMSettings"]

CELLS = {"rnn": rnn.RNN, "lstm": rnn.LSTM, "gru": rnn.GRU}


@dataclass(frozen=True, kw_only=True)
class RecurrentLMSettings(OutputSettings):
    """What a recurrent language model is made of; ``None`` is settled from the corpus before the model is built."""

    cell: str = setting("lstm", "recurrent cell", choices=("rnn", "lstm", "gru"))
    hidden_size: int | tuple[int, ...] | None = setting(None, "units of a layer, or of each layer", minimum=1)
    layers: int | None = setting(None, "layers of the stack", minimum=1)
    embedding_size: int | None = setting(None, "size of a word vector", minimum=1)
    output_size: int | None = setting(
        None, "size of the vector that the output layer sees; a word vector's if not given", minimum=1
    )
    inputs: str = setting("words", "what word vectors are made of", choices=("words", "char-cnn", "char-lstm"))
    character_size: int = setting(16, "size of a character's vector", minimum=1)
    filters: tuple[int, ...] = setting(
        (25, 50, 75, 100, 125, 150), "filters of the char-cnn over 1, 2, 3, ... characters", minimum=0
    )
    highway_layers: int = setting(2, "highway layers of the char-cnn", minimum=0)
    projection_size: int = setting(0, "size an LSTM's hidden state is projected to; 0 for none", minimum=0)
    nonlinearity: str = setting("tanh", "of the rnn cell", choices=("tanh", "relu", "sigmoid"))
    gru_reset: str = setting(
        "after", "the gru's reset gate acts before or after the product", choices=("after", "before")
    )
    forget_bias: float = setting(1.0, "where the bias of an LSTM's forget gate starts")
    connections: str = setting("plain", "between layers", choices=("plain", "residual", "dense", "highway"))
    layer_norm: bool = setting(False, "normalise each cell's sums (Ba et al. 2016)")
    bidirectional: bool = setting(False, "read backwards too (refused for language models)")
    output_norm: bool = setting(True, "normalise the vector that the output layer sees (Ba et al. 2016)")
    tied: bool | None = setting(None, "share the embedding's weights with the output layer")
    word_dropout: float = setting(0.0, "chance that a word's vector is dropped", minimum=0, maximum=0.99)
    input_dropout: float | None = setting(None, "locked dropout on word vectors", minimum=0, maximum=0.99)
    dropout: float | None = setting(None, "locked dropout between layers", minimum=0, maximum=0.99)
    output_dropout: float | None = setting(None, "locked dropout before the output layer", minimum=0, maximum=0.99)
    recurrent_dropout: float = setting(
        0.0, "dropout on the recurrent state, one mask a sequence", minimum=0, maximum=0.99
    )
    weight_dropout: float = setting(0.0, "dropout on hidden-to-hidden weights", minimum=0, maximum=0.99)
    zoneout: float = setting(0.0, "chance that a unit keeps its value for a step", minimum=0, maximum=0.99)
    reset: str = setting("none", "where the state starts anew", choices=("none", "documents", "lines"))

    def __post_init__(self) -> None:
        if self.bidirectional:
            raise UserError(
                "a bidirectional language model would see the word it predicts: reading backwards, it has passed"
                " that word already; train without --bidirectional"
            )


class RecurrentLM(NeuralLM):
    r"""A language model :math:`P(w_{t+1} \mid w_{1..t}) = \mathrm{softmax}(U h_t + b)`, ``h`` being the stack's output.

    Where the stack's output is not as wide as the output layer's input, a linear map stands between them. With
    ``maxent_order``, hashed n-grams add to the scores, trained jointly (Mikolov et al. 2011).

    Args:
        settings: with no size left to choose.
        vocabulary: the words, with their counts in training.

    Raises:
        UserError: sizes that do not fit together, or a bidirectional stack.
    """

    settings: RecurrentLMSettings

    def __init__(self, settings: RecurrentLMSettings, vocabulary: Vocabulary) -> None:
        super().__init__(settings, vocabulary)
        _check(settings)
        counts, width = vocabulary.counts, settings.output_size or settings.embedding_size
        assert width is not None
        self.recurrent = _stack(settings)
        found = self.recurrent.output_size
        self.embedding: Any
        if settings.output == "adaptive" and settings.tied:
            self.output = build_output(settings, width, counts)
            self.embedding = AdaptiveEmbedding(self.output, dropout=settings.word_dropout)
        else:
            self.embedding = _embedding(settings, vocabulary)
            weight = self.embedding.weight if settings.tied else None
            self.output = build_output(settings, width, counts, weight=weight)
        self.bridge = nn.Linear(found, width) if found != width else nn.Identity()
        self.output_norm = nn.LayerNorm(width) if settings.output_norm else nn.Identity()
        self.input_dropout = LockedDropout(settings.input_dropout or 0.0)
        self.output_dropout = LockedDropout(settings.output_dropout or 0.0)

    def initial_state(self, batch_size: int) -> State:
        """The state of the recurrent stack before anything was read."""
        return self.recurrent.initial_state(batch_size)

    def vectors(self, inputs: Tensor, state: State, *, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """From tokens to the vectors that the output layer sees; see :meth:`NeuralLM.vectors`."""
        words = self.input_dropout(self.embedding(inputs))  # [time, batch, embedding]
        found, state = self.recurrent(words, state, lengths=lengths)
        return self.output_dropout(self.output_norm(self.bridge(found))), state

    def round_to_int8_(self) -> None:
        """Round the matrices of cells and output layer in place to what int8 can say, with a scale for each row.

        One step of a few rows then reads a quarter of the memory, which is what takes its time; it needs the compiled
        loops (:mod:`recurra.nn.native`). Longer texts are read by the same rounded weights, as floats.
        """
        others = [
            "bridge.",
            "recurrent.weight_highway",
            "output.hashed.",
            *([] if self.settings.tied else ["embedding."]),
        ]
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2 and not name.startswith(tuple(others)):
                round_to_int8_(parameter)


def _check(settings: RecurrentLMSettings) -> None:
    """Refuse sizes that are still to be chosen, and tied weights where there are none to tie."""
    missing = [
        name
        for name in ("hidden_size", "layers", "embedding_size", "output", "tied")
        if getattr(settings, name) is None
    ]
    if missing:
        raise UserError(f"settings still to be chosen: {', '.join(missing)}")
    if settings.tied and settings.inputs != "words":
        raise UserError(f"inputs {settings.inputs!r} has no weights to share with the output layer: give --no-tied")
    if settings.tied and settings.output_size not in (None, settings.embedding_size):
        raise UserError(
            f"tied weights need as large an output_size as an embedding_size, {settings.embedding_size};"
            f" got {settings.output_size}: give --no-tied"
        )


def _embedding(settings: RecurrentLMSettings, vocabulary: Vocabulary) -> Any:
    """From tokens to word vectors, by the word or by its spelling."""
    width = settings.embedding_size
    assert width is not None
    if settings.inputs == "char-cnn":
        filters = [(reach, count) for reach, count in enumerate(settings.filters, start=1) if count]
        return CharacterCNN(
            vocabulary.tokens,
            width,
            character_size=settings.character_size,
            filters=filters,
            highway_layers=settings.highway_layers,
            dropout=settings.word_dropout,
        )
    if settings.inputs == "char-lstm":
        return CharacterLSTM(
            vocabulary.tokens, width, character_size=settings.character_size, dropout=settings.word_dropout
        )
    return Embedding(len(vocabulary), width, dropout=settings.word_dropout)


def _stack(settings: RecurrentLMSettings) -> Any:
    """The recurrent stack that the settings describe."""
    options: dict[str, Any] = {
        "connections": settings.connections,
        "layer_norm": settings.layer_norm,
        "between_dropout": settings.dropout or 0.0,
        "recurrent_dropout": settings.recurrent_dropout,
        "weight_dropout": settings.weight_dropout,
        "zoneout": settings.zoneout,
    }
    if settings.cell == "rnn":
        options["nonlinearity"] = settings.nonlinearity
    elif settings.cell == "gru":
        options["reset"] = settings.gru_reset
    else:
        options |= {"forget_bias": settings.forget_bias, "proj_size": settings.projection_size}
    if settings.projection_size and settings.cell != "lstm":
        raise UserError(f"projection_size is for the lstm cell, not {settings.cell}; leave it at 0")
    hidden = settings.hidden_size
    if isinstance(hidden, tuple) and len(hidden) == 1:
        hidden = hidden[0]
    if isinstance(hidden, tuple) and len(hidden) != settings.layers:
        raise UserError(
            f"hidden_size lists {len(hidden)} sizes for {settings.layers} layers; give one size, or one a layer"
        )
    try:
        return CELLS[settings.cell](settings.embedding_size, hidden, settings.layers, **options)
    except ValueError as error:
        raise UserError(str(error)) from error
