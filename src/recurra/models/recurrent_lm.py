"""The recurrent language model (Mikolov et al. 2010): embedding, recurrent stack, output layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recurra import nn as rnn
from recurra.config import UserError, setting
from recurra.models.protocol import LossSum
from recurra.nn.dropout import LockedDropout
from recurra.nn.embedding import AdaptiveEmbedding, Embedding
from recurra.nn.int8 import round_to_int8_
from recurra.nn.softmax import AdaptiveSoftmax, FullSoftmax
from recurra.text.batches import Batch
from recurra.text.vocabulary import LINE_END

__all__ = ["RecurrentLM", "RecurrentLMSettings"]

CELLS = {"rnn": rnn.RNN, "lstm": rnn.LSTM, "gru": rnn.GRU}


@dataclass(frozen=True, kw_only=True)
class RecurrentLMSettings:
    """What a recurrent language model is made of; ``None`` is settled from the corpus before the model is built."""

    cell: str = setting("lstm", "recurrent cell", choices=("rnn", "lstm", "gru"))
    hidden_size: int | tuple[int, ...] | None = setting(None, "units of a layer, or of each layer", minimum=1)
    layers: int | None = setting(None, "layers of the stack", minimum=1)
    embedding_size: int | None = setting(None, "size of a word vector", minimum=1)
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
    output: str | None = setting(None, "output layer", choices=("full", "adaptive"))
    cutoffs: tuple[int, ...] | None = setting(None, "first word of each cluster of the adaptive softmax", minimum=1)
    shrink: float = setting(2.0, "how many times narrower each cluster is than the one before", minimum=1)
    tied: bool = setting(True, "share the embedding's weights with the output layer")
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


class LMState(NamedTuple):
    """What the model remembers; the recurrent stack's own state."""

    recurrent: Any


class RecurrentLM(nn.Module):
    r"""A language model :math:`P(w_{t+1} \mid w_{1..t}) = \mathrm{softmax}(U h_t + b)`, ``h`` being the stack's output.

    Follows :class:`recurra.models.protocol.LanguageModelProtocol`. Where the stack's output is not as wide as the
    output layer's input, a linear map stands between them.

    Args:
        settings: with no size left to choose.
        counts: counts of the words in training, by id.

    Raises:
        UserError: sizes that do not fit together, or a bidirectional stack.
    """

    def __init__(self, settings: RecurrentLMSettings, counts: Sequence[int]) -> None:
        super().__init__()
        self.settings = settings
        self.vocabulary_size = len(counts)
        if settings.bidirectional:
            raise UserError(
                "a bidirectional language model would see the word it predicts: reading backwards, it has passed"
                " that word already; train without --bidirectional"
            )
        missing = [
            name for name in ("hidden_size", "layers", "embedding_size", "output") if getattr(settings, name) is None
        ]
        if missing:
            raise UserError(f"settings still to be chosen: {', '.join(missing)}")
        assert settings.embedding_size is not None
        assert settings.hidden_size is not None
        assert settings.layers is not None
        width = settings.embedding_size
        self.recurrent = _stack(settings)
        found = self.recurrent.output_size
        self.output: FullSoftmax | AdaptiveSoftmax
        self.embedding: Embedding | AdaptiveEmbedding
        if settings.output == "adaptive":
            self.output = AdaptiveSoftmax(width, counts, cutoffs=settings.cutoffs, shrink=settings.shrink)
            self.embedding = (
                AdaptiveEmbedding(self.output, dropout=settings.word_dropout)
                if settings.tied
                else Embedding(len(counts), width, dropout=settings.word_dropout)
            )
        else:
            self.embedding = Embedding(len(counts), width, dropout=settings.word_dropout)
            self.output = FullSoftmax(width, counts, weight=self.embedding.weight if settings.tied else None)
        self.bridge = nn.Linear(found, width) if found != width else nn.Identity()
        self.output_norm = nn.LayerNorm(width) if settings.output_norm else nn.Identity()
        self.input_dropout = LockedDropout(settings.input_dropout or 0.0)
        self.output_dropout = LockedDropout(settings.output_dropout or 0.0)

    def forward(self, batch: Batch, state: LMState | None = None) -> tuple[LossSum, LMState]:
        """The training loss of a batch.

        Args:
            batch: ``inputs`` and ``targets [time, batch]``; with ``lengths [batch]`` where sequences end, or ``resets
                [time, batch]`` where the state starts anew.
            state: from the chunk before; ``None`` starts from zeros.

        Returns:
            The summed loss in nats over the valid targets, with their number, and the state to go on from.
        """
        hidden, state = self._read(batch.inputs, state, lengths=batch.lengths, resets=batch.resets)
        targets = batch.targets
        if batch.lengths is not None:
            steps = torch.arange(len(targets), device=targets.device)[:, None]
            valid = steps < batch.lengths.to(targets.device)
            hidden, targets = hidden[valid], targets[valid]
        return LossSum(self.output.loss(hidden, targets), targets.numel()), state

    def start(self, batch_size: int) -> LMState:
        """The state before anything was read."""
        return LMState(self.recurrent.initial_state(batch_size))

    def step(self, tokens: Tensor, state: LMState) -> tuple[Tensor, LMState]:
        """Read ``tokens [batch]``; log-probabilities ``[batch, vocabulary]`` of what follows.

        A model whose lines are independent (``reset`` is ``lines``) forgets what was before a line end when it reads
        one, as it did in training: so it writes line after line. :meth:`score` leaves resets to its caller.
        """
        if self.settings.reset == "lines":
            state = LMState(map_state(state.recurrent, (tokens != LINE_END)[:, None].mul))
        hidden, state = self._read(tokens[None], state)
        return self.output.log_probs(hidden[0]), state

    def score(self, inputs: Tensor, targets: Tensor, state: LMState) -> tuple[Tensor, LMState]:
        """Log-probabilities ``[time, batch]`` of ``targets``, each after the inputs up to its own step."""
        hidden, state = self._read(inputs, state)
        return self.output.log_probs(hidden, targets), state

    def select(self, state: LMState, rows: Tensor) -> LMState:
        """The state of some rows of the batch, in the order of ``rows``."""
        return LMState(map_state(state.recurrent, lambda value: value.index_select(-2, rows)))

    def detach(self, state: LMState) -> LMState:
        """The same state, cut off from the graph: gradients flow no further back (truncated BPTT)."""
        return LMState(map_state(state.recurrent, Tensor.detach))

    def round_to_int8_(self) -> None:
        """Round the matrices of cells and output layer in place to what int8 can say, with a scale for each row.

        One step of a few rows then reads a quarter of the memory, which is what takes its time; it needs the compiled
        loops (:mod:`recurra.nn.native`). Longer texts are read by the same rounded weights, as floats.
        """
        others = ("bridge.", "recurrent.weight_highway", *(() if self.settings.tied else ("embedding.",)))
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2 and not name.startswith(others):
                round_to_int8_(parameter)

    def _read(
        self, inputs: Tensor, state: LMState | None, *, lengths: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, LMState]:
        vectors = self.input_dropout(self.embedding(inputs))  # [time, batch, embedding]
        recurrent = state.recurrent if state is not None else self.recurrent.initial_state(inputs.shape[1])
        if resets is None:
            hidden, recurrent = self.recurrent(vectors, recurrent, lengths=lengths)
        else:
            # No state is reset within a segment, so that any kernel can run it.
            starts = sorted({0, *resets.any(1).nonzero()[:, 0].tolist()})
            pieces = []
            for start, end in zip(starts, [*starts[1:], len(inputs)], strict=True):
                kept = ~resets[start, :, None]  # [batch, 1]
                recurrent = map_state(recurrent, kept.mul)
                piece, recurrent = self.recurrent(vectors[start:end], recurrent)
                pieces.append(piece)
            hidden = torch.cat(pieces)
        return self.output_dropout(self.output_norm(self.bridge(hidden))), LMState(recurrent)


def map_state(state: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``function`` to every tensor of a state, keeping its tuples and named tuples."""
    if isinstance(state, Tensor):
        return function(state)
    parts = [map_state(part, function) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)


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
