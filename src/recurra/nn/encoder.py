"""The encoder that task models share: word vectors in, a state for each word out.

Letters in shapes: T time steps, N sequences, E features of a word vector, F of a state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from recurra.config import UserError, setting

from .attention import SelfAttention
from .dropout import LockedDropout
from .layers import GRU, LSTM, RNN
from .recurrent import StackState

__all__ = ["Encoder", "EncoderSettings", "settle_encoder"]

Chosen = TypeVar("Chosen", bound="EncoderSettings")

CELLS = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
RESIDUAL_FROM = 4  # layers, where connections are chosen automatically


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """What an encoder is made of.

    Raises:
        UserError: settings that do not go together.
    """

    cell: str = setting("lstm", "recurrent cell", choices=("rnn", "lstm", "gru"))
    hidden_size: int | tuple[int, ...] = setting(256, "units of a layer and direction, or of each layer", minimum=1)
    layers: int = setting(1, "layers of the stack", minimum=1)
    bidirectional: bool = setting(True, "read backwards too")
    connections: str | None = setting(
        None,
        f"between layers; auto is residual from {RESIDUAL_FROM} layers of one size on, else plain",
        choices=("plain", "residual", "dense", "highway"),
    )
    layer_norm: bool = setting(False, "normalise each cell's sums (Ba et al. 2016)")
    input_dropout: float = setting(0.0, "locked dropout on word vectors", minimum=0, maximum=0.99)
    dropout: float = setting(
        0.0, "locked dropout between layers; in self-attention, dropout of weights and results", minimum=0, maximum=0.99
    )
    output_dropout: float = setting(0.0, "locked dropout on the encoder's states", minimum=0, maximum=0.99)
    recurrent_dropout: float = setting(
        0.0, "dropout on the recurrent state, one mask a sequence", minimum=0, maximum=0.99
    )
    self_attention: int = setting(0, "heads of self-attention over the last layer's states; 0 for none", minimum=0)
    passes: int = setting(1, "how often the input is read, one time after the other", minimum=1, maximum=2)

    def __post_init__(self) -> None:
        if self.passes == 2 and self.bidirectional:
            raise UserError(
                "passes 2 is for an encoder of one direction, which reads its input again knowing all of it; a"
                " bidirectional one knows it from both sides: give --no-bidirectional, or 1 pass"
            )
        if isinstance(self.hidden_size, tuple) and len(self.hidden_size) not in (1, self.layers):
            raise UserError(
                f"hidden_size lists {len(self.hidden_size)} sizes for {self.layers} layers; give one, or one a layer"
            )


def settle_encoder(settings: Chosen) -> Chosen:
    """Choose the connections, where they are left open: those of many layers of one size are residual."""
    if settings.connections is not None:
        return settings
    sizes = settings.hidden_size
    even = isinstance(sizes, int) or len(set(sizes)) == 1
    return dataclasses.replace(
        settings, connections="residual" if settings.layers >= RESIDUAL_FROM and even else "plain"
    )


class Encoder(nn.Module):
    """A stack of recurrent layers over word vectors, with self-attention over its states if asked for.

    With ``passes=2`` it reads each sequence twice, the second time from the state in which the first left it, and gives
    the states of the second (Zaremba and Sutskever 2014, "Learning to Execute", section 4: input doubling).

    Args:
        settings: of this class, or of one that has the same fields.
        input_size: E.

    Raises:
        UserError: settings that do not go together.

    Attributes:
        settings: with the connections settled.
        output_size: F.
        recurrent: the stack.
    """

    def __init__(self, settings: EncoderSettings, input_size: int) -> None:
        super().__init__()
        settings = settle_encoder(settings)
        sizes = settings.hidden_size
        sizes = sizes if isinstance(sizes, tuple) and len(sizes) > 1 else _one(sizes)
        options: dict[str, Any] = {
            "bidirectional": settings.bidirectional,
            "connections": settings.connections,
            "layer_norm": settings.layer_norm,
            "between_dropout": settings.dropout,
            "recurrent_dropout": settings.recurrent_dropout,
        }
        if settings.cell == "lstm":
            options["forget_bias"] = 1.0  # Jozefowicz et al. 2015
        self.settings = settings
        self.recurrent: Any
        try:
            self.recurrent = CELLS[settings.cell](input_size, sizes, settings.layers, **options)
        except ValueError as error:
            raise UserError(str(error)) from error
        self.input_size = input_size
        self.output_size: int = self.recurrent.output_size
        self.self_attention = None
        if settings.self_attention:
            self.self_attention = SelfAttention(self.output_size, settings.self_attention, settings.dropout)
        self.input_dropout = LockedDropout(settings.input_dropout)
        self.output_dropout = LockedDropout(settings.output_dropout)

    @property
    def directions(self) -> int:
        """2 if states are those of both directions, concatenated."""
        return 2 if self.settings.bidirectional else 1

    def forward(self, vectors: Tensor, lengths: Tensor | Sequence[int] | None = None) -> tuple[Tensor, StackState]:
        """Read sequences.

        Args:
            vectors: ``[T, N, E]``; what lies beyond a sequence's end is never read.
            lengths: of each sequence ``[N]``, from 0 to T, in any order; None if all have T steps.

        Returns:
            The states ``[T, N, F]``, zeros in padding; and the state that each sequence left the stack in, as
            ``Recurrent.forward`` gives it.
        """
        words = self.input_dropout(vectors)
        start = None
        for _ in range(self.settings.passes - 1):
            _, start = self.recurrent(words, start, lengths=lengths)
        states, final = self.recurrent(words, start, lengths=lengths)
        if self.self_attention is not None:
            states = self.self_attention(states, lengths)
        return self.output_dropout(states), final

    @property
    def streams(self) -> bool:
        """Whether it can read a word at a time: whether no state depends on words that come later."""
        return self._obstacle() is None

    def check_streams(self) -> None:
        """Say why it cannot read a word at a time, if it cannot.

        Raises:
            UserError: the setting that is in the way.
        """
        obstacle = self._obstacle()
        if obstacle is not None:
            raise UserError(f"this model cannot answer as input arrives: {obstacle}")

    def _obstacle(self) -> str | None:
        if self.settings.bidirectional:
            return "it is bidirectional, and reads backwards from the end; train with --no-bidirectional"
        if self.settings.passes > 1:
            return "it reads its input twice, and must have the end of it; train with --passes 1"
        if self.settings.self_attention:
            return "its self-attention looks at all words at once; train with --self-attention 0"
        return None

    def start(self, batch_size: int) -> StackState:
        """Return the state of `batch_size` sequences of which nothing has been read.

        Raises:
            UserError: as :meth:`check_streams`.
        """
        self.check_streams()
        state: StackState = self.recurrent.initial_state(batch_size)
        return state

    def step(self, vectors: Tensor, state: StackState) -> tuple[Tensor, StackState]:
        """Read one word in every sequence; step by step is the same as all at once, in evaluation.

        Args:
            vectors: ``[N, E]``.
            state: what was read before.

        Returns:
            The states ``[N, F]``, and what has been read now.

        Raises:
            UserError: as :meth:`check_streams`.
        """
        self.check_streams()
        states, state = self.recurrent(self.input_dropout(vectors[None]), state)
        return self.output_dropout(states)[0], state


def _one(sizes: int | tuple[int, ...]) -> int:
    """One size, given as such or as the only one of a list."""
    return sizes[0] if isinstance(sizes, tuple) else sizes
