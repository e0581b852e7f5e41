"""One step of a few sequences through a whole stack: what generation does all the time.

It is bound by reading every weight once, so nothing else may take time. Weights are read from where they are, as int8
where they have that form (``int8.py``); their addresses, and room for what comes up within a step, are kept from step
to step; and one call of compiled code goes through all layers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from . import native
from .cells import Weights
from .int8 import int8_of, version_of

__all__ = ["Stepper", "stepper_of"]


class Stepper:
    """The layers of a stack in one direction, of one H_cell and one H_out, bound to their weights.

    Args:
        mode: one of ``native.MODES``.
        weights: of each layer, float32, on a CPU. If they are changed, the stepper is of no use any more.
    """

    def __init__(self, mode: str, weights: Sequence[Weights]) -> None:
        first = weights[0]
        weights = [
            own._replace(**{name: w.contiguous() for name, w in own._asdict().items() if w is not None})
            for own in weights
        ]
        self._weights = weights  # keeps alive what is pointed to
        self._steps = (native.Step * len(weights))()
        self._width = first.weight_hh.shape[1]
        self._rows = len(first.weight_hh)
        self._size = self._rows // native.GATES.get(mode, 1)
        self._room: list[Tensor] = []  # [N, G * H_cell] and [N, H_cell]
        for step, own in zip(self._steps, weights, strict=True):
            step.layer.mode, step.layer.steps = native.MODES.index(mode), 1
            step.layer.hidden, step.layer.width = self._size, self._width
            step.inputs = own.weight_ih.shape[1]
            matrices = {name: getattr(own, name) for name in native.Step.MATRICES if getattr(own, name) is not None}
            rounded = {name: int8_of(matrix) for name, matrix in matrices.items()}
            step.is_int8 = None not in rounded.values()
            for name, matrix in matrices.items():
                small = rounded[name]
                if step.is_int8 and small is not None:
                    setattr(step, name, small.values.data_ptr())
                    setattr(step, name.replace("weight", "scale"), small.scale.data_ptr())
                else:
                    assert matrix.dtype == torch.float32, name
                    setattr(step, name, matrix.data_ptr())
            step.layer.weight_hr = step.weight_hr
            for name in ("bias_ih", "bias_hh"):
                bias = getattr(own, name)
                if bias is not None:
                    setattr(step, name, bias.data_ptr())

    def __call__(self, x: Tensor, hidden: Tensor, cell: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Take a step.

        Args:
            x: what the first layer reads, ``[N, H_in]``.
            hidden: h(t-1) of each layer, ``[layers, N, H_out]``.
            cell: c(t-1) of each layer of an LSTM, ``[layers, N, H_cell]``.

        Returns:
            h(t) and c(t), likewise; the output is the last layer's h(t).
        """
        batch, threads = len(x), torch.get_num_threads()
        if not self._room or len(self._room[0]) != batch:
            shapes = (batch, self._rows), (batch, self._size)
            self._room = [torch.empty(shape, dtype=torch.float32, device="cpu") for shape in shapes]
        gates, inner = (part.data_ptr() for part in self._room)
        x, hidden = x.contiguous(), hidden.contiguous()
        next_hidden = torch.empty_like(hidden)
        reads, before, after, apart = x.data_ptr(), hidden.data_ptr(), next_hidden.data_ptr(), 4 * batch * self._width
        next_cell, cell_before, cell_after, cell_apart = None, 0, 0, 4 * batch * self._size
        if cell is not None:
            cell = cell.contiguous()
            next_cell = torch.empty_like(cell)
            cell_before, cell_after = cell.data_ptr(), next_cell.data_ptr()
        for step in self._steps:
            layer = step.layer
            layer.batch, layer.threads, layer.gates, layer.inner = batch, threads, gates, inner
            layer.first_hidden, layer.output, step.x = before, after, reads
            if cell is not None:
                layer.first_cell, layer.cells = cell_before, cell_after
            reads, before, after = after, before + apart, after + apart
            cell_before, cell_after = cell_before + cell_apart, cell_after + cell_apart
        native.take_steps(self._steps)
        return next_hidden, next_cell


class _Kept(threading.local):
    """Steppers by stack, of each thread its own: a step writes into them."""

    def __init__(self) -> None:
        self.found: WeakKeyDictionary[nn.Module, tuple[list[int], Stepper]] = WeakKeyDictionary()


_kept = _Kept()


def stepper_of(stack: nn.Module, mode: str, weights: Callable[[], Sequence[Weights]]) -> Stepper:
    """The stepper kept for a stack, made anew where its parameters are not what they were.

    Args:
        stack: whose parameters make up the weights.
        mode: as for ``Stepper``.
        weights: returns them.
    """
    state = [
        number
        for weight in stack._parameters.values()
        if weight is not None
        for number in (weight.data_ptr(), version_of(weight))
    ]
    kept = _kept.found.get(stack)
    if kept is None or kept[0] != state:
        kept = state, Stepper(mode, weights())
        _kept.found[stack] = kept
    return kept[1]
