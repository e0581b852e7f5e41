"""Stacks of recurrent layers, in one direction or both.

The way of the data: ``sequences.py`` brings it to the form used inside; here the stack takes it from layer to layer;
``unrolled.py`` runs one layer; ``cells.py`` is one step. Letters in shapes, as in torch.nn:

======  =====================================================================================
L       length of the sequences, in time steps
N       batch size
D       directions: 2 if ``bidirectional``, else 1
H_in    ``input_size``
H_cell  ``hidden_size``, of the layer in question
H_out   ``proj_size`` where there is a projection, else H_cell
======  =====================================================================================
"""

from __future__ import annotations

import inspect
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypedDict, cast

import torch
import torch.backends.cudnn.rnn
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence

from . import cells, native
from .cells import HiddenState, LSTMState, State, Step, Weights, check_choice
from .dropout import check_probability, locked_mask
from .kernels import kernel_layer
from .products import MOST_ROWS
from .sequences import Sequences, arrange
from .stepper import stepper_of
from .unrolled import FUSED, Layer, Trace, flat, readable_layer, select, torch_layer

__all__ = ["Device", "Options", "Recurrent", "StackStep", "implementation", "parameter_name"]

CONNECTIONS = ("plain", "residual", "dense", "highway")
IMPLEMENTATIONS = ("auto", "readable", "torch", "tensor", "compiled")

StackState = Tensor | tuple[Tensor, ...] | LSTMState  # of all layers: see Recurrent.forward
Device = torch.device | str | None


class Options(TypedDict, total=False):
    """What every stack takes by keyword beyond torch.nn's arguments; explained in ``Recurrent``."""

    connections: str
    layer_norm: bool
    input_dropout: float
    between_dropout: float
    recurrent_dropout: float
    weight_dropout: float
    zoneout: float | tuple[float, float]
    implementation: str


class StackStep(NamedTuple):
    """What one step of a stack computes, in lists by layer from the bottom up: see ``Recurrent.step``."""

    before: list[State]  # parts [N, features]
    after: list[State]
    gates: list[dict[str, Tensor]]  # [N, H_cell] by name; none in a simple RNN
    reads: list[Tensor]  # what each layer reads, [N, features]
    output: Tensor  # of the stack, [N, H_out]


class Recurrent(nn.Module, ABC):
    """A stack of recurrent layers: what ``RNN``, ``LSTM`` and ``GRU`` have in common.

    The first arguments are torch.nn's, with its names, defaults and shapes; a seed gives the same weights. New:

    Args:
        hidden_size: an int, or the sizes of the layers.
        dropout: torch's: plain dropout between layers, drawn anew for every step.
        connections: ``'plain'``, or what a layer f above the first makes of what the layer below gives, x:
            ``'residual'`` f(x) + x (He et al. 2016); ``'highway'`` t * f(x) + (1 - t) * x, t = sigma(W_t x + b_t),
            with W_t in ``weight_highway_l[k]`` (Srivastava et al. 2015); ``'dense'`` f of the stack's input and the
            outputs of all layers below, concatenated (Huang et al. 2017).
        layer_norm: normalise W_e e(t), W_h h(t-1) and an LSTM's c(t) (Ba et al. 2016), with parameters
            ``gain_ih_l[k]``, ``gain_hh_l[k]``, ``gain_cell_l[k]`` and ``bias_cell_l[k]``.
        input_dropout: dropout of the stack's input, one mask per sequence and call (Gal and Ghahramani 2016).
        between_dropout: dropout of what the layers above the first read, likewise.
        recurrent_dropout: dropout of h(t-1) as the gates read it, likewise.
        weight_dropout: dropout of the hidden-to-hidden weights, drawn once a call (DropConnect; Merity et al. 2018).
        zoneout: probability that a unit keeps its value for a step (Krueger et al. 2017); an LSTM also takes two, for h
            and for c.
        implementation: ``'auto'``, or what the function ``implementation`` shall answer.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument out of its range, or two that do not fit together.

    Attributes:
        hidden_sizes: H_cell of each layer.
        output_size: features of the output, D * H_out of the last layer.
    """

    gate_count: ClassVar[int]
    gate_groups: ClassVar[tuple[int, ...]] = (1,)  # gates that layer normalisation takes together
    state_type: ClassVar[type[HiddenState] | type[LSTMState]] = HiddenState

    def __init__(
        self,
        mode: str,  # as torch names the kind of recurrence; a key of FUSED if torch has it
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        proj_size: int,
        device: Device,
        dtype: torch.dtype | None,
        *,
        connections: str = "plain",
        layer_norm: bool = False,
        input_dropout: float = 0.0,
        between_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        implementation: str = "auto",
    ) -> None:
        super().__init__()
        self.mode = mode
        self.input_size = input_size
        self.hidden_size = tuple(hidden_size) if isinstance(hidden_size, Sequence) else hidden_size
        self.hidden_sizes = _layer_sizes(hidden_size, num_layers)
        self.num_layers = len(self.hidden_sizes)
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = check_probability("dropout", dropout)
        self.bidirectional = bidirectional
        self.directions = 2 if bidirectional else 1
        self.proj_size = proj_size
        self.connections = check_choice("connections", connections, CONNECTIONS)
        self.layer_norm = layer_norm
        self.input_dropout = check_probability("input_dropout", input_dropout)
        self.between_dropout = check_probability("between_dropout", between_dropout)
        self.recurrent_dropout = check_probability("recurrent_dropout", recurrent_dropout)
        self.weight_dropout = check_probability("weight_dropout", weight_dropout)
        self.zoneout = zoneout
        self.implementation = check_choice("implementation", implementation, IMPLEMENTATIONS)
        self.hidden_widths = [proj_size or size for size in self.hidden_sizes]  # H_out of each layer
        self.output_size = self.directions * self.hidden_widths[-1]
        self._check_arguments()

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        for layer, direction in self._cells():
            for name, shape in self._weight_shapes(layer).items():
                self.register_parameter(
                    parameter_name(name, layer, direction), None if shape is None else parameter(*shape)
                )
        if connections == "highway":
            for layer in range(1, self.num_layers):
                self.register_parameter(f"weight_highway_l{layer}", parameter(self.output_size, self.output_size))
                self.register_parameter(f"bias_highway_l{layer}", parameter(self.output_size))
        self.flatten_parameters()

    def _check_arguments(self) -> None:
        for name, kind in (("input_size", int), ("bias", bool), ("batch_first", bool), ("proj_size", int)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} should be of type {kind.__name__}, got: {type(getattr(self, name)).__name__}")
        if self.input_size <= 0:
            raise ValueError(f"input_size must be greater than zero, got {self.input_size}")
        if not 0 <= self.proj_size < min(self.hidden_sizes):
            raise ValueError(
                f"proj_size has to be smaller than hidden_size {self.hidden_size}, or 0 for none; got {self.proj_size}"
            )
        if self.dropout and self.num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects num_layers"
                f" greater than 1, but got dropout={self.dropout} and num_layers=1",
                stacklevel=4,
            )
        if self.connections in ("residual", "highway") and len(set(self.hidden_widths)) > 1:
            raise ValueError(
                f"connections={self.connections!r} adds what a layer reads to what it gives: all layers need one size,"
                f" got hidden_size {self.hidden_size}"
            )
        parts = self.state_type._fields
        self._zoneouts = self.zoneout if isinstance(self.zoneout, tuple) else (self.zoneout,) * len(parts)
        if len(self._zoneouts) != len(parts):
            raise ValueError(f"zoneout: expected a number, or one each for {', '.join(parts)}; got {self.zoneout!r}")
        for p in self._zoneouts:
            check_probability("zoneout", p)
        # Cells on top of each other and nothing else, as far as evaluation goes.
        more = self.connections != "plain" or self.bidirectional or self.layer_norm or self.has_zoneout
        self._plain = not (more or self._ragged)
        implementation(self)

    def _cells(self) -> list[tuple[int, int]]:
        """Layer and direction of every cell, in the order of the state's entries."""
        return [(layer, direction) for layer in range(self.num_layers) for direction in range(self.directions)]

    def _weight_shapes(self, layer: int) -> dict[str, tuple[int, ...] | None]:
        """Shapes of a cell's ``Weights``, in their order."""
        below = [self.input_size, *(self.directions * width for width in self.hidden_widths[:layer])]
        inputs = sum(below) if self.connections == "dense" else below[-1]
        cell, hidden = self.hidden_sizes[layer], self.hidden_widths[layer]
        rows = self.gate_count * cell
        normalised_cell = self.layer_norm and self.state_type is LSTMState
        return {
            "weight_ih": (rows, inputs),
            "weight_hh": (rows, hidden),
            "bias_ih": (rows,) if self.bias else None,
            "bias_hh": (rows,) if self.bias else None,
            "weight_hr": (hidden, cell) if self.proj_size else None,
            "gain_ih": (rows,) if self.layer_norm else None,
            "gain_hh": (rows,) if self.layer_norm else None,
            "gain_cell": (cell,) if normalised_cell else None,
            "bias_cell": (cell,) if normalised_cell and self.bias else None,
        }

    def weights(self, layer: int, direction: int = 0) -> Weights:
        """Return the parameters of one cell."""
        return Weights(*(getattr(self, parameter_name(name, layer, direction)) for name in Weights._fields))

    def reset_parameters(self) -> None:
        """Draw weights and biases uniformly from -1 / sqrt(H_cell) to 1 / sqrt(H_cell), as torch.nn does.

        Normalisation starts with gains of 1. Highway gates start with bias -1: a layer passes on most of what it reads.
        """
        for layer, direction in self._cells():
            bound = 1 / math.sqrt(self.hidden_sizes[layer])
            for name, weight in self.weights(layer, direction)._asdict().items():
                if weight is None:
                    continue
                if name.startswith("gain"):
                    nn.init.ones_(weight)
                elif name == "bias_cell":
                    nn.init.zeros_(weight)
                else:
                    nn.init.uniform_(weight, -bound, bound)
        if self.connections == "highway":
            bound = 1 / math.sqrt(self.output_size)
            for layer in range(1, self.num_layers):
                nn.init.uniform_(getattr(self, f"weight_highway_l{layer}"), -bound, bound)
                nn.init.constant_(getattr(self, f"bias_highway_l{layer}"), -1.0)

    def flatten_parameters(self) -> None:
        """Lay each layer's weights out in one block of memory, as cuDNN wants them; elsewhere nothing happens."""
        first = next(self.parameters())
        if self.mode not in FUSED or self.layer_norm or not torch.backends.cudnn.is_acceptable(first):
            return
        cudnn_mode = torch.backends.cudnn.rnn.get_cudnn_mode(self.mode)
        for layer, size in enumerate(self.hidden_sizes):
            weights = flat([self.weights(layer, direction) for direction in range(self.directions)])
            sizes = (weights[0].shape[1], cudnn_mode, size, self.proj_size, 1, False, self.bidirectional)
            with torch.no_grad(), torch.cuda.device_of(first):
                torch._cudnn_rnn_flatten_weight(weights, len(weights) // self.directions, *sizes)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.flatten_parameters()
        return self

    def initial_state(self, batch_size: int) -> StackState:
        """Return the state before anything is read: zeros, in the form that ``forward`` takes and returns."""
        return self._join_state(self._zeros(batch_size, self.weights(0).weight_ih))

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: StackState | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        trace: bool = False,
    ) -> tuple[Tensor | PackedSequence, StackState] | tuple[Tensor | PackedSequence, StackState, Trace]:
        """Read sequences.

        Args:
            input: ``[L, N, H_in]``, with ``batch_first`` ``[N, L, H_in]``; ``[L, H_in]`` for one sequence alone; or a
                PackedSequence.
            hx: the state to begin with; None for zeros. Nothing is kept from one call to the next.
            lengths: of each sequence ``[N]``, integers from 0 to L in any order, on any device. What lies beyond a
                sequence's end is never read; the output is 0 there. The state returned is the one at the sequence's
                own end: for length 0, the one it began with.
            trace: return all that was computed on the way, too.

        Returns:
            The output ``[L, N, D * H_out]`` of the last layer, laid out as the input; the state after the last step;
            and the ``Trace`` if asked for. The output is needed by the backward pass: as torch.nn.LSTM's, it cannot be
            changed in place before that.

            The state is h ``[layers * D, N, H_out]``, of an LSTM ``LSTMState(h, c)`` with c
            ``[layers * D, N, H_cell]``. Entry ``layer * D + direction`` is a cell's own, ``[N, features]``. Where
            ``hidden_size`` differs between layers, h and c are tuples of these entries, since no tensor could stack
            them: indexing finds the same. For a sequence alone there is no N.

        Raises:
            ValueError: input, state or lengths of a wrong shape or type.
        """
        if hx is not None and lengths is None and not trace and isinstance(input, Tensor):
            at_once = self._step_at_once(input, hx)
            if at_once is not None:
                return at_once
        sequences = arrange(input, lengths, self.batch_first)
        self._check_features(sequences.data)
        alone = isinstance(input, Tensor) and input.dim() == 2
        initial = self._split_state(hx, sequences, alone)
        run: Callable[..., Layer] = partial(readable_layer, self._step, groups=self.gate_groups, record=trace)
        chosen = implementation(self, sequences, trace=trace)
        if chosen == "torch" and sequences.steps:  # torch refuses to run over none
            run = partial(torch_layer, self.mode)
        elif chosen in ("tensor", "compiled") and sequences.steps:
            run = partial(kernel_layer, self.mode, compiled=chosen == "compiled")

        output = below = self._locked(sequences, sequences.data, self.input_dropout)
        final: list[State] = []
        records = []
        for layer in range(self.num_layers):
            reads = below
            if layer and self.training:
                reads = F.dropout(reads, self.dropout) if self.dropout else reads
                reads = self._locked(sequences, reads, self.between_dropout)
            weights = [self._drawn_weights(layer, direction) for direction in range(self.directions)]
            own = slice(layer * self.directions, (layer + 1) * self.directions)
            done = run(reads, sequences.batch_sizes, initial[own], weights)
            output = self._connect(layer, done.output, below)
            below = torch.cat((below, output), -1) if self.connections == "dense" else output
            final += done.states
            records.append(done.records)

        restored, state = sequences.restore(output), self._join_state(final, sequences.order, alone)
        if trace:
            return restored, state, Trace(records, sequences.order, sequences.batch_size)
        return restored, state

    def step(
        self, inputs: Tensor, states: Sequence[State] | None = None, weights: Sequence[Weights] | None = None
    ) -> StackStep:
        """Take one step through all layers by the equations of ``cells.py``, in evaluation, and keep what it computes.

        All of it can be differentiated with respect to what was given, any number of times.

        Args:
            inputs: e(t) ``[N, H_in]``.
            states: of each layer after the step before (``after``), parts ``[N, features]``; zeros if not given.
            weights: of each layer, in place of its own.

        Raises:
            ValueError: in training, where dropout lasts longer than a step; in two directions; or other sizes.
        """
        if self.training or self.bidirectional:
            raise ValueError(f"{type(self).__name__}: a step alone is for stacks of one direction, after eval()")
        self._check_features(inputs)
        before = self._zeros(len(inputs), inputs) if states is None else list(states)
        for state, like in zip(before, self._zeros(len(inputs), inputs), strict=True):
            for part, expected in zip(state, like, strict=True):
                if part.shape != expected.shape:
                    raise ValueError(f"states: expected parts {_shape(expected)}, got {_shape(part)}")
        own = [self.weights(layer) for layer in range(self.num_layers)] if weights is None else weights
        after, gates, reads = [], [], []
        output = below = inputs
        for layer, (state, each) in enumerate(zip(before, own, strict=True)):
            reads.append(below)
            state, found = self._step(each, state)(cells.drive(below, each, self.gate_groups), state)
            output = self._connect(layer, state.hidden, below)
            below = torch.cat((below, output), -1) if self.connections == "dense" else output
            after.append(state)
            gates.append(found)
        return StackStep(before, after, gates, reads, output)

    def _step_at_once(self, input: Tensor, hx: StackState) -> tuple[Tensor, StackState] | None:
        """Take one step of a few sequences through all layers at once, if there is nothing to it but that."""
        if torch.compiler.is_compiling() or torch._C._is_tracing() or _differentiates_forward():
            return None
        if torch.is_grad_enabled() or self.training or not self._plain:
            return None
        # What stands in for a weight (torch.nn.utils: parametrize, prune) is made by a module or a hook.
        if self._modules or self._forward_pre_hooks:
            return None
        if self.implementation not in ("auto", "compiled") or not native.available():
            return None
        if input.dim() != 3 or input.shape[self.batch_first] != 1:
            return None
        data = input[:, 0] if self.batch_first else input[0]
        parts: Any = hx if self.state_type is LSTMState else (hx,)
        batch = len(data)
        if not 0 < batch <= MOST_ROWS or data.shape[1] != self.input_size or len(parts) != len(self.state_type._fields):
            return None
        for part, size in zip(parts, (self.hidden_widths[0], self.hidden_sizes[0]), strict=False):
            if not isinstance(part, Tensor) or part.shape != (self.num_layers, batch, size):
                return None
        if any(part.dtype != torch.float32 or part.device.type != "cpu" for part in (data, self.weight_ih_l0, *parts)):
            return None
        if torch.is_autocast_enabled("cpu"):
            return None
        step = stepper_of(self, self.mode, lambda: [self.weights(layer) for layer in range(self.num_layers)])
        hidden, cell = step(data, *parts)
        output = hidden[-1].clone()[:, None] if self.batch_first else hidden[-1:].clone()
        return output, hidden if cell is None else LSTMState(hidden, cell)

    def _check_features(self, data: Tensor) -> None:
        name, dtype = type(self).__name__, self.weight_ih_l0.dtype
        if data.shape[-1] != self.input_size:
            raise ValueError(f"{name}: expected input with input_size {self.input_size}, got {data.shape[-1]} features")
        if data.dtype != dtype and not torch.is_autocast_enabled(data.device.type):
            raise ValueError(
                f"{name}: expected {dtype} input, as the weights are, got {data.dtype}; use input.to({dtype})"
            )
        device = self.weight_ih_l0.device
        if data.device != device:
            raise ValueError(f"{name}: expected input on {device}, where the weights are, got {data.device}")

    @property
    def has_zoneout(self) -> bool:
        """Whether units may keep a part of their value beside the gates."""
        return any(self._zoneouts)

    @property
    def _state_widths(self) -> list[list[int]]:
        """Of each part of the state, the features of its entries."""
        parts = (self.hidden_widths, self.hidden_sizes)[: len(self.state_type._fields)]
        return [[part[layer] for layer, _ in self._cells()] for part in parts]

    @property
    def _ragged(self) -> bool:
        """Whether layers differ in size, so that no tensor stacks their states."""
        return len(set(self.hidden_sizes)) > 1

    def _zeros(self, batch: int, like: Tensor) -> list[State]:
        entries = zip(*self._state_widths, strict=True)
        return [self.state_type(*(like.new_zeros(batch, width) for width in widths)) for widths in entries]

    def _split_state(self, hx: StackState | None, sequences: Sequences, alone: bool) -> list[State]:
        """Check a state; return that of each cell, ``[N, features]``, rows as in the data."""
        batch = sequences.batch_size
        if hx is None:
            return self._zeros(batch, sequences.data)
        name, fields = type(self).__name__, self.state_type._fields
        parts = hx if len(fields) > 1 else (hx,)
        if isinstance(parts, Tensor) or len(parts) != len(fields):
            raise ValueError(f"{name}: expected a state of {len(fields)} parts ({', '.join(fields)}), got {_shape(hx)}")
        columns = []
        for field, part, widths in zip(fields, parts, self._state_widths, strict=True):
            shapes = [(width,) if alone else (batch, width) for width in widths]
            entries = () if part is None else tuple(part)
            if [tuple(entry.shape) for entry in entries] != shapes:
                expected = shapes if self._ragged else (len(shapes), *shapes[0])
                raise ValueError(f"{name}: expected {field} state of shape {expected}, got {_shape(part)}")
            device = sequences.data.device
            if any(entry.device != device for entry in entries):
                raise ValueError(
                    f"{name}: expected {field} state on {device}, as the input is, got {entries[0].device}"
                )
            if not torch.is_autocast_enabled(device.type):
                entries = tuple(entry.to(sequences.data.dtype) for entry in entries)
            columns.append([entry.unsqueeze(0) for entry in entries] if alone else entries)
        states = [self.state_type(*entry) for entry in zip(*columns, strict=True)]
        return states if sequences.order is None else [select(state, sequences.order) for state in states]

    def _join_state(self, states: list[State], order: Tensor | None = None, alone: bool = False) -> StackState:
        """The way back of ``_split_state``."""
        if order is not None:
            inverse = order.argsort()
            states = [select(state, inverse) for state in states]
        parts: list[Any] = []  # a tensor each, or a tuple of them if ragged
        for entries in zip(*states, strict=True):
            own = tuple(entry.squeeze(0) for entry in entries) if alone else entries
            parts.append(own if self._ragged else torch.stack(own))
        return LSTMState(*parts) if self.state_type is LSTMState else parts[0]

    def _locked(self, sequences: Sequences, data: Tensor, p: float) -> Tensor:
        if not self.training or not p:
            return data
        return data * sequences.spread(locked_mask(data.new_empty(sequences.batch_size, data.shape[-1]), p))

    def _drawn_weights(self, layer: int, direction: int) -> Weights:
        """The weights of a cell as weight dropout leaves them for this call."""
        weights = self.weights(layer, direction)
        if self.training and self.weight_dropout:
            weights = weights._replace(weight_hh=F.dropout(weights.weight_hh, self.weight_dropout))
        return weights

    def _connect(self, layer: int, output: Tensor, below: Tensor) -> Tensor:
        if layer == 0 or self.connections in ("plain", "dense"):
            return output
        if self.connections == "residual":
            return output + below
        weight, bias = getattr(self, f"weight_highway_l{layer}"), getattr(self, f"bias_highway_l{layer}")
        gate = F.linear(below, weight, bias).sigmoid()
        return gate * output + (1 - gate) * below

    @abstractmethod
    def bind(self, weights: Weights, mask: Tensor | None) -> Step:
        """Return the cell's step, of ``cells.py``, with these weights and a dropout mask of h(t-1)."""

    def _step(self, weights: Weights, initial: State) -> Step:
        """The cell's step, with what this call drops of h(t-1) and with zoneout."""
        mask = None
        if self.training and self.recurrent_dropout:
            mask = locked_mask(initial.hidden, self.recurrent_dropout)
        step = self.bind(weights, mask)
        return cells.with_zoneout(step, self._zoneouts, self.training) if self.has_zoneout else step

    def extra_repr(self) -> str:
        """Name the sizes, and what else is not as by default, for ``print(module)``."""
        arguments = {**inspect.signature(Recurrent).parameters, **inspect.signature(type(self)).parameters}
        set_ones = [
            f"{name}={getattr(self, name)!r}"
            for name, argument in arguments.items()
            if argument.default is not argument.empty and getattr(self, name, argument.default) != argument.default
        ]
        return ", ".join([str(self.input_size), str(self.hidden_size), *set_ones])


def implementation(
    stack: Recurrent,
    input: Tensor | PackedSequence | Sequences | None = None,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    trace: bool = False,
) -> Literal["readable", "torch", "tensor", "compiled"]:
    """Choose what runs the layers of a stack over an input, given with its lengths as to the stack itself.

    Without an input it only checks that the stack can have the implementation it was built with.

    ``'readable'``: the steps of ``cells.py``, one after the other. It has every option and can be differentiated in
    every way: by ``torch.func``, with respect to what is in a trace. Where one of these is asked for, it runs.

    ``'compiled'``: the kernels of ``kernels.py`` with the loops of ``cpp/``, on a CPU with a C++ compiler, in
    float32 or float64. Taken wherever it can be, but for padded batches of LSTMs, at which oneDNN, which torch uses, is
    mostly 5 to 15 % faster: see ``_onednn_is_faster``.

    ``'tensor'``: the same kernels with loops of tensor operations, on any device. Without a compiler they are taken on
    a CPU where they are faster than torch's: for sequences packed; for a GRU from H_cell 256 and an RNN from 512 on, or
    for one sequence; and for what torch has not: the logistic nonlinearity, a GRU that resets before the product, or,
    in oneDNN, an LSTM with a projection.

    ``'torch'``: torch's fused layers, one by one. For all else: on a GPU, in lower precision, under torch.compile, and
    for padded LSTMs without a compiler; but not for one or two steps of an LSTM on a CPU, since torch lays the
    weights out anew for oneDNN in every call, nor for one under torch.compile, which fails there.

    ``benchmarks/recurrence.py`` measures all of them side by side; docs/performance.md has what it found. All can be
    differentiated twice but torch's on cuDNN, which cannot be known beforehand: ask for ``'readable'`` there.

    Raises:
        ValueError: the stack was built with an implementation that has not what is asked for.
    """
    sequences = input if isinstance(input, Sequences) or input is None else arrange(input, lengths, stack.batch_first)
    asked_for = {
        "layer_norm": stack.layer_norm,
        "zoneout": stack.has_zoneout,
        "recurrent_dropout": stack.training and stack.recurrent_dropout > 0,
        "trace": trace,
        "torch.func or forward-mode differentiation": _differentiates_forward(),
    }
    missing = [name for name, wanted in asked_for.items() if wanted]
    wish = stack.implementation
    if wish == "torch" and stack.mode not in FUSED:
        missing.append(stack.mode)
    if wish == "compiled" and not native.available():
        missing.append(f"compiled loops here ({native.why_not()})")
    if wish == "compiled" and sequences is not None:
        data = sequences.data
        if data.device.type != "cpu" or stack.weight_ih_l0.dtype not in native.TYPES:
            missing.append(f"compiled loops for {stack.weight_ih_l0.dtype} on {data.device}")
    if missing and wish not in ("auto", "readable"):
        raise ValueError(f"implementation={wish!r} has no {', '.join(missing)}: leave implementation at 'auto'")
    if missing or wish == "readable" or sequences is None or stack.mode not in native.MODES:
        return "readable"
    if wish != "auto":
        return cast(Literal["torch", "tensor", "compiled"], wish)

    data = sequences.data
    on_cpu = data.device.type == "cpu"
    plain = on_cpu and data.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
    if plain and not torch.compiler.is_compiling() and not torch._C._is_tracing():
        size, steps = min(stack.hidden_sizes), sequences.steps
        packed, alone = sequences.batch_sizes is not None, sequences.batch_size == 1
        if native.available():
            onednn = torch.backends.mkldnn.is_available() and data.dtype == torch.float32
            onednn = onednn and stack.mode == "LSTM" and not stack.proj_size and not packed
            return "torch" if onednn and _onednn_is_faster(size, steps, sequences.batch_size) else "compiled"
        faster = {
            "LSTM": packed or stack.proj_size > 0,
            "GRU": packed or alone or size >= 256,
            "RNN_TANH": packed or alone or size >= 512,
            "RNN_RELU": packed or alone or size >= 512,
        }
        if faster.get(stack.mode, True) and steps > 2:
            return "tensor"
    slow = stack.mode == "LSTM" and on_cpu
    slow = slow and (sequences.steps <= 2 or stack.proj_size > 0 or torch.compiler.is_compiling())
    return "readable" if slow or stack.mode not in FUSED else "torch"


def _differentiates_forward() -> bool:
    """Whether torch.func transforms or forward-mode differentiation are under way, which go through readable steps."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _onednn_is_faster(size: int, steps: int, batch: int) -> bool:
    """Whether torch's LSTM by oneDNN beats the compiled loops on a padded batch.

    It does not for one or two steps, since it lays the weights out anew in every call; for one or two sequences, whose
    steps are bound by reading weights; and with 512-bit vectors from 1024 units on for few sequences, or without
    gradients.
    """
    wide = size >= 1024 and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return steps > 2 and batch > 2 and not (wide and (batch <= 8 or not torch.is_grad_enabled()))


def _layer_sizes(hidden_size: int | Sequence[int], num_layers: int) -> tuple[int, ...]:
    """H_cell of each layer."""
    if num_layers <= 0:
        raise ValueError(f"num_layers must be greater than zero, got {num_layers}")
    sizes = tuple(hidden_size) if isinstance(hidden_size, Sequence) else (hidden_size,) * num_layers
    if len(sizes) != num_layers and (num_layers > 1 or not sizes):
        raise ValueError(f"hidden_size has sizes for {len(sizes)} layers, but num_layers is {num_layers}")
    for size in sizes:
        if not isinstance(size, int):
            raise TypeError(f"hidden_size should be of type int, got: {type(size).__name__}")
        if size <= 0:
            raise ValueError(f"hidden_size must be greater than zero, got {size}")
    return sizes


def parameter_name(name: str, layer: int, direction: int) -> str:
    """A parameter's name in torch.nn's manner."""
    return f"{name}_l{layer}" + ("_reverse" if direction else "")


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return str(tuple(value.shape))
    return "None" if value is None else f"({', '.join(map(_shape, value))})"
