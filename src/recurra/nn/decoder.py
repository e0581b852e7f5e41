"""Recurrent layers that write: those above the first may read what attention found beside what is below them.

Letters in shapes: T steps, R rows, E features of a token's vector, H of a layer's state, W of the vector that the
output layer sees, M of what attention finds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recurra.nn.cells import LSTMState, check_choice, drive
from recurra.nn.dropout import masked
from recurra.nn.encoder import CELLS
from recurra.nn.recurrent import CONNECTIONS, StackState
from recurra.nn.unrolled import unroll

__all__ = ["Decoder", "Look", "Masks"]

Look = Callable[[Tensor], Tensor]


class Masks(NamedTuple):
    """What is dropped of the decoder, the same at all steps of a target; None where nothing is.

    Attributes:
        words: of token vectors, [R, E].
        between: of what each layer above the first reads of the one below, [R, features].
        recurrent: of each layer's state before a step, [R, H].
        vectors: of what the output layer sees, [R, W].
    """

    words: Tensor | None
    between: list[Tensor | None]
    recurrent: list[Tensor | None]
    vectors: Tensor | None


class Decoder(nn.Module):
    """Recurrent layers, of which those above the first may read what attention found beside what is below them.

    Each layer is a stack of its own: so what is dropped can be given to it, and be the same whether all steps are taken
    at once or one by one.

    Args:
        cell: ``rnn``, ``lstm`` or ``gru``.
        input_size: features that the first layer reads.
        width: H.
        layers: how many.
        context_size: M, where layers read what attention finds; else 0.
        connections: ``plain``, ``residual``, ``dense`` or ``highway``.
        layer_norm: normalise each cell's sums.

    Raises:
        ValueError: there is no such cell or connection.
    """

    def __init__(
        self,
        cell: str,
        input_size: int,
        width: int,
        layers: int,
        *,
        context_size: int = 0,
        connections: str = "plain",
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        cell = check_choice("cell", cell, tuple(CELLS))
        self.connections = check_choice("connections", connections, CONNECTIONS)
        dense = self.connections == "dense"
        self.below = [input_size + k * width if dense or not k else width for k in range(layers)]
        options: dict[str, Any] = {"layer_norm": layer_norm}
        if cell == "lstm":
            options["forget_bias"] = 1.0
        self.layers = nn.ModuleList(
            CELLS[cell](below + (context_size if k else 0), width, **options) for k, below in enumerate(self.below)
        )
        self.gates = nn.ModuleList()
        for _ in range(layers - 1 if self.connections == "highway" else 0):
            gate = nn.Linear(width, width)
            nn.init.constant_(gate.bias, -1.0)  # at first a layer passes on most of what it reads
            self.gates.append(gate)

    def forward(
        self,
        words: Tensor,
        hidden: StackState,
        masks: Masks | None = None,
        *,
        look: Look | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, StackState]:
        """Read token vectors.

        Args:
            words: [T, R, E].
            hidden: state before, entries [layers, R, H].
            masks: what is dropped.
            look: from the first layer's states [T, R, H] to contexts [T, R, M], for the layers above it.
            lengths: steps of each row; what lies beyond is not read, and what is given for it means nothing.

        Returns:
            The last layer's states [T, R, H], and the state after the last step.
        """
        parts: list[Any] = list(hidden) if isinstance(hidden, LSTMState) else [hidden]
        below, context = words, None
        final = []
        for k, layer in enumerate(self.layers):
            reads = below if not k or masks is None else masked(below, masks.between[k - 1])
            if context is not None:
                reads = torch.cat((reads, context), -1)
            before = [part[k : k + 1] for part in parts]
            output, after = _run(layer, reads, before, None if masks is None else masks.recurrent[k], lengths)
            final.append(after)
            if k and self.connections == "residual":
                output = output + below
            elif k and self.connections == "highway":
                share = self.gates[k - 1](below).sigmoid()
                output = share * output + (1 - share) * below
            if not k and look is not None:
                context = look(output)
            below = torch.cat((below, output), -1) if self.connections == "dense" else output
        joined = [torch.cat(part) for part in zip(*final, strict=True)]
        return output, LSTMState(*joined) if isinstance(hidden, LSTMState) else joined[0]


def _run(
    layer: Any, reads: Tensor, before: list[Tensor], mask: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Run one layer from a state, parts [1, R, H]; its states [T, R, H] and the state after the last step."""
    if mask is None:
        output, after = layer(reads, LSTMState(*before) if len(before) > 1 else before[0], lengths=lengths)
        return output, list(after) if isinstance(after, LSTMState) else [after]
    weights = layer.weights(0)
    driven = drive(reads, weights, layer.gate_groups).unbind()
    states, final, _ = unroll(layer.bind(weights, mask), driven, layer.state_type(*(part[0] for part in before)))
    return torch.stack(states), [part[None] for part in final]
