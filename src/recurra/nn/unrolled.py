"""One layer over time: a cell unrolled step by step, or torch's fused kernel of the same recurrence.

Both take ``(data, batch_sizes, initial, weights)`` and return a ``Layer``. Data is ``[L, N, H_in]``, or packed, then
with the N_t of each step (see ``sequences.py``); states and weights are lists with an entry for each direction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import _VF, Tensor

from .cells import State, Step, Weights, drive

__all__ = ["FUSED", "Layer", "Trace", "flat", "readable_layer", "select", "torch_layer", "unroll"]

# torch's fused kernels, by the mode that torch.nn gives them.
FUSED: dict[str, Callable[..., Any]] = {
    "RNN_TANH": _VF.rnn_tanh,
    "RNN_RELU": _VF.rnn_relu,
    "LSTM": _VF.lstm,
    "GRU": _VF.gru,
}


class Layer(NamedTuple):
    """What a layer gives, all its directions together."""

    output: Tensor  # [L, N, D * H_out], or packed
    states: list[State]  # of each direction, where each sequence ended
    records: list[dict[str, tuple[Tensor, ...]]]  # of each direction, if asked for: see Trace


@dataclass(frozen=True)
class Trace:
    """Everything that a stack computed, step by step.

    Attributes:
        layers: ``layers[layer][direction][name]`` has one tensor ``[N, H_cell]`` per time step, first to last in either
            direction. The names are ``hidden``; in an LSTM ``cell``; and the gates: ``forget``, ``input``, ``output``,
            ``candidate`` in an LSTM, ``reset``, ``update``, ``candidate`` in a GRU. These are the tensors of the
            computation itself: ``torch.autograd.grad(loss, trace.layers[0][0]["hidden"])`` gives the gradient of the
            loss with respect to each hidden state. Where lengths differ, the rows are those of the sequences still
            running, long sequences first.
        order: where lengths differ, the place in the batch of each row; otherwise None.
        batch_size: N.
    """

    layers: list[list[dict[str, tuple[Tensor, ...]]]]
    order: Tensor | None
    batch_size: int

    def stacked(self, name: str, layer: int = 0, direction: int = 0) -> Tensor:
        """Return the values of ``name`` as ``[L, N, H_cell]``, rows as in the batch, 0 beyond a sequence's end."""
        steps = self.layers[layer][direction][name]
        values = torch.stack([F.pad(step, (0, 0, 0, self.batch_size - len(step))) for step in steps])
        return values if self.order is None else values.index_select(1, self.order.argsort())


def readable_layer(
    bind: Callable[[Weights, State], Step],
    data: Tensor,
    batch_sizes: Tensor | None,
    initial: Sequence[State],
    weights: Sequence[Weights],
    *,
    groups: Sequence[int] = (1,),
    record: bool = False,
) -> Layer:
    """Run a layer by the steps of ``cells.py``.

    Args:
        bind: makes a direction's step of its weights and the state it begins with.
        groups: what layer normalisation takes together: see ``cells.drive``.
        record: keep what each step computes.
    """
    outputs, states, records = [], [], []
    for direction, (state, own) in enumerate(zip(initial, weights, strict=True)):
        driven = drive(data, own, groups)
        steps = driven.unbind() if batch_sizes is None else driven.split(batch_sizes.tolist())
        hidden, final, kept = unroll(bind(own, state), steps, state, backwards=direction == 1, record=record)
        output = torch.cat(hidden or [state.hidden[:0]])
        outputs.append(output.view(*data.shape[:-1], output.shape[-1]))
        states.append(final)
        records.append(kept)
    return Layer(torch.cat(outputs, -1), states, records)


def unroll(
    step: Step, driven: Sequence[Tensor], initial: State, *, backwards: bool = False, record: bool = False
) -> tuple[list[Tensor], State, dict[str, tuple[Tensor, ...]]]:
    """Unroll a cell over time.

    Args:
        driven: of each step what the input contributes, ``[N_t, ...]``; the N_t sequences still running come first.
        initial: the state to begin with, ``[N, ...]`` with N at least N_0.
        backwards: go from the last step to the first; each sequence begins at its own end.
        record: keep what each step computes.

    Returns:
        h(t) ``[N_t, ...]`` of each step, first to last; the state ``[N, ...]`` that each sequence came to; the record.
    """
    running = [len(part) for part in driven] or [0]
    state = _rows(initial, 0, running[-1 if backwards else 0])
    ended = [_rows(initial, running[0], None)]  # to begin with, those of no steps
    hidden, records = [], []
    for part in reversed(driven) if backwards else driven:
        before, now = len(state.hidden), len(part)
        if now < before:
            ended.append(_rows(state, now, None))
            state = _rows(state, 0, now)
        elif now > before:
            state = _join([state, _rows(initial, before, now)])
        state, gates = step(part, state)
        hidden.append(state.hidden)
        if record:
            records.append({**state._asdict(), **gates})
    if backwards:
        hidden.reverse()
        records.reverse()
    names = records[0] if records else ()
    return hidden, _join([state, *reversed(ended)]), {name: tuple(kept[name] for kept in records) for name in names}


def torch_layer(
    mode: str, data: Tensor, batch_sizes: Tensor | None, initial: Sequence[State], weights: Sequence[Weights]
) -> Layer:
    """Run a layer by torch's fused kernel.

    Args:
        mode: a key of ``FUSED``.
    """
    begun = initial if batch_sizes is None else [_rows(state, 0, int(batch_sizes[0])) for state in initial]
    parts = tuple(torch.stack(part) for part in zip(*begun, strict=True))  # each [D, N_0, features]
    bias, bidirectional = weights[0].bias_ih is not None, len(weights) == 2
    # Gradients need what cuDNN keeps in training only, so this is training wherever there may be some. No dropout comes
    # with it: that is done outside.
    options = (flat(weights), bias, 1, 0.0, torch.is_grad_enabled(), bidirectional)
    hx = parts if mode == "LSTM" else parts[0]
    if batch_sizes is None:
        output, *final = FUSED[mode](data, hx, *options, False)
    else:
        output, *final = FUSED[mode](data, batch_sizes, hx, *options)
    states = [type(state)(*part) for state, part in zip(initial, zip(*final, strict=True), strict=True)]
    if batch_sizes is not None:  # sequences of no steps end as they began
        states = [_join([end, _rows(start, len(end.hidden), None)]) for start, end in zip(initial, states, strict=True)]
    return Layer(output, states, [])


def flat(weights: Sequence[Weights]) -> list[Tensor]:
    """The weights of all directions, in a row, as torch's kernels take them."""
    return [weight for direction in weights for weight in direction if weight is not None]


def select(state: State, rows: Tensor) -> State:
    """The given rows of a state."""
    return type(state)(*(part.index_select(0, rows) for part in state))


def _rows(state: State, start: int, end: int | None) -> State:
    return type(state)(*(part[start:end] for part in state))


def _join(states: Sequence[State]) -> State:
    """States one below the other."""
    some = [state for state in states if len(state.hidden)] or states
    return some[0] if len(some) == 1 else type(some[0])(*map(torch.cat, zip(*some, strict=True)))
