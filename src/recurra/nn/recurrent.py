"""A cell unrolled over time; layers of it stacked, in one direction or both.

The way down the file: what goes in and comes out (``Recurrent``, ``Trace``), which implementation runs
(``implementation``), one layer run by either (``torch_layer``, ``readable_layer``, ``unroll``), and the three layers that
users name, ``RNN``, ``LSTM`` and ``GRU``. Letters in shapes, as in torch.nn:

======  =====================================================================================
L       length of the sequences, in time steps
N       batch size
D       directions: 2 if ``bidirectional``, else 1
H_in    ``input_size``
H_cell  ``hidden_size``, of the layer in question
H_out   ``proj_size`` where there is a projection, else H_cell
======  =====================================================================================

Inside, a sequence's data is ``[L, N, features]``, or packed where lengths differ: sequences are sorted by falling length,
the N_t that are still running at step t are its first N_t rows, and the data is those rows step after step,
``[N_0 + N_1 + ..., features]``. So padding is never read, and no work is done on it.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypedDict, Unpack

import torch
import torch.backends.cudnn.rnn
import torch.nn.functional as F
from torch import _VF, Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .cells import (
    GRU_GROUPS,
    NONLINEARITIES,
    RESETS,
    Gates,
    HiddenState,
    LSTMState,
    Step,
    Weights,
    bind_gru,
    bind_lstm,
    bind_rnn,
    check_choice,
    drive,
)
from .dropout import check_probability, locked_mask, zoneout

__all__ = ["GRU", "LSTM", "RNN", "Recurrent", "Trace", "implementation"]

CONNECTIONS = ("plain", "residual", "dense", "highway")
IMPLEMENTATIONS = ("auto", "readable", "torch")
FUSED = {"RNN_TANH": _VF.rnn_tanh, "RNN_RELU": _VF.rnn_relu, "LSTM": _VF.lstm, "GRU": _VF.gru}  # torch's, by mode

TORCH_WEIGHTS = Weights._fields[:5]  # those that torch.nn has too, in its order

State = HiddenState | LSTMState  # of one cell, [N, features]
StackState = Tensor | tuple[Tensor, ...] | LSTMState  # of all layers; see Recurrent.forward
Records = list[dict[str, Tensor]]  # per step: hidden, cell and gates by name


class Options(TypedDict, total=False):
    """What every recurrent layer takes by keyword beyond torch.nn's arguments; explained in ``Recurrent``."""

    connections: str
    layer_norm: bool
    input_dropout: float
    between_dropout: float
    recurrent_dropout: float
    weight_dropout: float
    zoneout: float | tuple[float, float]
    implementation: str


@dataclass(frozen=True)
class Trace:
    """Everything a stack computed, step by step.

    Attributes:
        layers: ``layers[layer][direction][name]`` is a tuple with one tensor ``[N, H]`` per time step, in the order of time
            for both directions. Names: ``hidden``; ``cell`` in an LSTM; the gates ``forget``, ``input``, ``output``,
            ``candidate`` in an LSTM, ``reset``, ``update``, ``candidate`` in a GRU. They are the very tensors of the
            computation: ``torch.autograd.grad(loss, trace.layers[0][0]["hidden"])`` is the loss's gradient with respect to
            every hidden state. Where sequences differ in length the rows of step t are the N_t sequences still running.
        order: where sequences differ in length, the batch row of each row, long sequences first; otherwise None.
        batch_size: N.
    """

    layers: tuple[tuple[dict[str, tuple[Tensor, ...]], ...], ...]
    order: Tensor | None
    batch_size: int

    def stacked(self, name: str, layer: int = 0, direction: int = 0) -> Tensor:
        """Return the values of ``name`` as ``[L, N, H]``, rows as in the batch, 0 after the end of a sequence."""
        steps = self.layers[layer][direction][name]
        values = torch.stack([F.pad(step, (0, 0, 0, self.batch_size - len(step))) for step in steps])
        return values if self.order is None else values.index_select(1, self.order.argsort())


class _Sequences(NamedTuple):
    """Input as it is inside, and the way back to how it came."""

    data: Tensor  # [L, N, H_in], or packed
    batch_sizes: Tensor | None  # N_t [L], on the CPU, if packed
    batch_size: int
    order: Tensor | None  # the batch row of each row [N], if rows were sorted
    restore: Callable[[Tensor], Any]  # from [L, N, features], or packed, to how the input came


class _Layer(NamedTuple):
    """What a layer returns, all its directions together."""

    output: Tensor  # [L, N, D * H_out], or packed
    states: list[State]  # after each direction's last step
    records: list[Records]  # of each direction, if asked for


class Recurrent(nn.Module):
    """A stack of recurrent layers: what ``RNN``, ``LSTM`` and ``GRU`` have in common.

    Their first arguments are torch.nn's, with the same names, defaults and shapes; the same seed gives the same weights.
    New, all by keyword:

    Args:
        hidden_size: an int, or a sequence with the size of each layer.
        dropout: torch's: plain dropout on the output of each layer but the last, drawn anew at every step.
        connections: ``'plain'``; or, from the second layer on, x being what the layer below gives and f the layer:
            ``'residual'`` f(x) + x (He et al. 2016); ``'highway'`` t * f(x) + (1 - t) * x with
            t = sigma(W_t x + b_t) (Srivastava et al. 2015), W_t being ``weight_highway_l[k]``; ``'dense'`` f of the stack's
            input and the outputs of all layers below, concatenated (Huang et al. 2017).
        layer_norm: layer normalisation inside the cell (Ba et al. 2016) of W_e e(t), W_h h(t-1) and the LSTM's c(t); its
            parameters are ``gain_ih_l[k]``, ``gain_hh_l[k]``, ``gain_cell_l[k]``, ``bias_cell_l[k]``.
        input_dropout: dropout of the stack's input, one mask per sequence and call (Gal and Ghahramani 2016).
        between_dropout: dropout of what each layer but the first reads from below, likewise.
        recurrent_dropout: dropout of h(t-1) as the gates read it, likewise.
        weight_dropout: dropout of the hidden-to-hidden weights, drawn once per call (DropConnect; Merity et al. 2018).
        zoneout: probability that a unit keeps its value through a step (Krueger et al. 2017); for an LSTM also a pair, for h
            and for c.
        implementation: ``'auto'``, or the answer of the function ``implementation``.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument out of its range, sizes that do not fit together, or options that the chosen implementation
            does not have.

    Attributes:
        hidden_sizes: H_cell of each layer.
        output_size: features of the output, D * H_out of the last layer.
    """

    mode: str  # as torch.nn names the recurrence; a key of FUSED where torch has it
    gate_count: ClassVar[int]
    gate_groups: ClassVar[tuple[int, ...]] = (1,)  # gates that layer normalisation takes together
    state_type: ClassVar[type[HiddenState] | type[LSTMState]] = HiddenState

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        proj_size: int,
        device: torch.device | str | None,
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
        self.hidden_size = hidden_size if isinstance(hidden_size, int) else tuple(hidden_size)
        self.hidden_sizes = _layer_sizes(hidden_size, num_layers)
        self.num_layers = len(self.hidden_sizes)
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = check_probability("dropout", dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self.connections = check_choice("connections", connections, CONNECTIONS)
        self.layer_norm = layer_norm
        self.input_dropout = check_probability("input_dropout", input_dropout)
        self.between_dropout = check_probability("between_dropout", between_dropout)
        self.recurrent_dropout = check_probability("recurrent_dropout", recurrent_dropout)
        self.weight_dropout = check_probability("weight_dropout", weight_dropout)
        self.zoneout = zoneout
        self.implementation = check_choice("implementation", implementation, IMPLEMENTATIONS)
        self._check_arguments()

        factory = {"device": device, "dtype": dtype}
        for layer in range(self.num_layers):
            for direction in range(self._directions):
                for name, shape in self._weight_shapes(layer).items():
                    weight = None if shape is None else nn.Parameter(torch.empty(shape, **factory))
                    self.register_parameter(name + _suffix(layer, direction), weight)
        if connections == "highway":
            for layer in range(1, self.num_layers):
                width = self.output_size
                self.register_parameter(f"weight_highway_l{layer}", nn.Parameter(torch.empty(width, width, **factory)))
                self.register_parameter(f"bias_highway_l{layer}", nn.Parameter(torch.empty(width, **factory)))
        self.flatten_parameters()

    def _check_arguments(self) -> None:
        """Raise for what is out of range or does not fit together."""
        for name, kind in (("input_size", int), ("bias", bool), ("batch_first", bool), ("proj_size", int)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} should be of type {kind.__name__}, got: {type(getattr(self, name)).__name__}")
        if self.input_size <= 0:
            raise ValueError(f"input_size must be greater than zero, got {self.input_size}")
        if not 0 <= self.proj_size < min(self.hidden_sizes):
            raise ValueError(
                f"proj_size has to be smaller than hidden_size, or 0 for no projection: got proj_size {self.proj_size}"
                f" for hidden_size {self.hidden_size}"
            )
        if self.dropout and self.num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects num_layers"
                f" greater than 1, but got dropout={self.dropout} and num_layers=1",
                stacklevel=4,
            )
        if self.connections in ("residual", "highway") and len(set(self._hidden_widths)) > 1:
            raise ValueError(
                f"connections={self.connections!r} adds a layer's input to its output, so all layers need one size: got"
                f" hidden_size {self.hidden_size}"
            )
        parts = len(self.state_type._fields)
        pair = self.zoneout if isinstance(self.zoneout, Sequence) else (self.zoneout,) * parts
        if len(pair) != parts:
            raise ValueError(f"zoneout: expected a number or {parts} of them {self.state_type._fields}, got {self.zoneout!r}")
        self._zoneouts = [check_probability("zoneout", p) for p in pair]
        implementation(self)

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def _hidden_widths(self) -> list[int]:
        """H_out of each layer."""
        return [self.proj_size or size for size in self.hidden_sizes]

    @property
    def output_size(self) -> int:
        """Features of the output, D * H_out of the last layer."""
        return self._directions * self._hidden_widths[-1]

    def _weight_shapes(self, layer: int) -> dict[str, tuple[int, ...] | None]:
        """Shapes of one cell's weights by the names, and in the order, of ``Weights``."""
        below = [self.input_size, *(self._directions * width for width in self._hidden_widths[:layer])]
        inputs = sum(below) if self.connections == "dense" else below[-1]
        cell, hidden = self.hidden_sizes[layer], self._hidden_widths[layer]
        rows = self.gate_count * cell
        cell_norm = self.layer_norm and self.state_type is LSTMState
        return {
            "weight_ih": (rows, inputs),
            "weight_hh": (rows, hidden),
            "bias_ih": (rows,) if self.bias else None,
            "bias_hh": (rows,) if self.bias else None,
            "weight_hr": (self.proj_size, cell) if self.proj_size else None,
            "gain_ih": (rows,) if self.layer_norm else None,
            "gain_hh": (rows,) if self.layer_norm else None,
            "gain_cell": (cell,) if cell_norm else None,
            "bias_cell": (cell,) if cell_norm and self.bias else None,
        }

    def _weights(self, layer: int, direction: int) -> Weights:
        return Weights(*(getattr(self, name + _suffix(layer, direction)) for name in Weights._fields))

    def reset_parameters(self) -> None:
        """Draw the weights and biases uniformly from -1 / sqrt(H_cell) to 1 / sqrt(H_cell), as torch.nn does.

        Gains start at 1. Highway gates start half shut, with bias -1, so that at first a layer passes on most of its input.
        """
        for layer, size in enumerate(self.hidden_sizes):
            for direction in range(self._directions):
                weights = self._weights(layer, direction)
                for name, weight in weights._asdict().items():
                    if weight is not None and name in TORCH_WEIGHTS:
                        nn.init.uniform_(weight, -1 / math.sqrt(size), 1 / math.sqrt(size))
                    elif weight is not None:
                        nn.init.constant_(weight, 1.0 if name.startswith("gain") else 0.0)
        if self.connections == "highway":
            for layer in range(1, self.num_layers):
                bound = 1 / math.sqrt(self.output_size)
                nn.init.uniform_(getattr(self, f"weight_highway_l{layer}"), -bound, bound)
                nn.init.constant_(getattr(self, f"bias_highway_l{layer}"), -1.0)

    def initial_state(self, batch_size: int) -> StackState:
        """Return the state before anything is read: zeros, in the form that ``forward`` takes and returns."""
        return self._join_states(self._zeros(batch_size))

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: StackState | tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        trace: bool = False,
    ) -> tuple[Any, StackState] | tuple[Any, StackState, Trace]:
        """Read sequences.

        Args:
            input: ``[L, N, H_in]``, with ``batch_first`` ``[N, L, H_in]``; ``[L, H_in]`` for one sequence alone; or packed.
            hx: the state to begin with; zeros if None. No layer keeps a state from one call to the next.
            lengths: length of each sequence ``[N]``, integers from 0 to L in any order, on any device. What lies beyond
                a sequence's end is never read. The output is 0 there, and the state returned is the one at the
                sequence's own end: for a length of 0, the state that came in.
            trace: return also all that was computed on the way; takes the readable implementation.

        Returns:
            The output ``[L, N, D * H_out]`` of the last layer, laid out as the input; the state after the last step; and a
            ``Trace`` if asked for.

            A state's hidden part is ``[layers * D, N, H_out]``: entry ``layer * D + direction`` is ``[N, H_out]``. Where
            ``hidden_size`` differs between layers, it is the tuple of these entries instead of a tensor that stacks them;
            indexing finds the same. So is an LSTM's cell part, with H_cell for H_out. For an input without N, states are
            without N.

        Raises:
            ValueError: input, state or lengths of a wrong shape or type.
        """
        sequences = self._arrange(input, lengths)
        alone = isinstance(input, Tensor) and input.dim() == 2
        initial = self._split_state(hx, sequences, alone)
        run: Callable[..., _Layer] = partial(readable_layer, record=trace)
        if implementation(self, trace=trace) == "torch" and len(sequences.data):  # torch refuses sequences of no steps
            run = torch_layer

        below = self._locked_dropout(sequences.data, self.input_dropout, sequences)
        output, final, records = below, [], []
        for layer in range(self.num_layers):
            reads = below
            if layer:
                reads = F.dropout(reads, self.dropout) if self.training and self.dropout else reads
                reads = self._locked_dropout(reads, self.between_dropout, sequences)
            weights = [self._drawn_weights(layer, direction) for direction in range(self._directions)]
            here = slice(layer * self._directions, (layer + 1) * self._directions)
            done = run(self, reads, sequences.batch_sizes, initial[here], weights)
            output = self._connect(layer, done.output, below)
            below = torch.cat((below, output), -1) if self.connections == "dense" else output
            final += done.states
            records.append(done.records)

        state = self._join_states(final, sequences.order, alone)
        if not trace:
            return sequences.restore(output), state
        layers = tuple(tuple(_by_name(steps) for steps in directions) for directions in records)
        return sequences.restore(output), state, Trace(layers, sequences.order, sequences.batch_size)

    def _arrange(self, input: Tensor | PackedSequence, lengths: Tensor | Sequence[int] | None) -> _Sequences:
        """Check the input and bring it to ``[L, N, H_in]``, or packed where lengths differ."""
        data = input.data if isinstance(input, PackedSequence) else input
        name = type(self).__name__
        if input is data and data.dim() not in (2, 3):
            raise ValueError(f"{name}: expected input to be 2D or 3D, got {data.dim()}D instead")
        if data.shape[-1] != self.input_size:
            raise ValueError(f"{name}: expected input with {self.input_size} features (input_size), got {data.shape[-1]}")
        dtype = self._weights(0, 0).weight_ih.dtype
        if data.dtype != dtype and not torch.is_autocast_enabled(data.device.type):
            raise ValueError(f"{name}: input is {data.dtype} but the weights are {dtype}: give input.to({dtype})")
        if lengths is not None and (input is not data or data.dim() == 2):
            raise ValueError("lengths= is for a padded batch: leave it out for packed sequences and for one sequence alone")

        if isinstance(input, PackedSequence):
            sizes = input.batch_sizes
            order = input.sorted_indices
            return _Sequences(data, sizes, int(sizes[0]), order, lambda output: PackedSequence(output, *input[1:]))
        if data.dim() == 2:
            return _Sequences(data.unsqueeze(1), None, 1, None, lambda output: output.squeeze(1))
        sequences = _Sequences(data, None, data.shape[1], None, lambda output: output)
        if self.batch_first:
            sequences = _Sequences(data.transpose(0, 1), None, data.shape[0], None, lambda output: output.transpose(0, 1))
        return sequences if lengths is None else _packed(sequences, lengths)

    def _split_state(self, hx: StackState | None, sequences: _Sequences, alone: bool) -> list[State]:
        """Check a state and cut it into those of the cells, ``[N, features]`` with rows as in the data."""
        batch = sequences.batch_size
        if hx is None:
            return self._zeros(batch, sequences.data)
        fields = self.state_type._fields
        parts = (hx,) if len(fields) == 1 else hx
        if isinstance(parts, Tensor) or len(parts) != len(fields):
            raise ValueError(f"{type(self).__name__}: expected a state ({', '.join(fields)}), got {_shape(parts)}")
        columns = []
        for name, part, widths in zip(fields, parts, self._state_widths, strict=True):
            expected = [(width,) if alone else (batch, width) for width in widths]
            entries = tuple(part)
            if [tuple(entry.shape) for entry in entries] != expected:
                raise ValueError(
                    f"{type(self).__name__}: expected {name} state of shape"
                    f" {expected if self._ragged else (len(expected), *expected[0])}, got {_shape(part)}"
                )
            columns.append([entry.unsqueeze(0) for entry in entries] if alone else entries)
        states = [self.state_type(*column) for column in zip(*columns, strict=True)]
        return states if sequences.order is None else [_select(state, sequences.order) for state in states]

    def _join_states(self, states: list[State], order: Tensor | None = None, alone: bool = False) -> StackState:
        """The way back of ``_split_state``."""
        if order is not None:
            inverse = order.argsort()
            states = [_select(state, inverse) for state in states]
        parts = []
        for entries in zip(*states, strict=True):
            entries = tuple(entry.squeeze(0) for entry in entries) if alone else entries
            parts.append(entries if self._ragged else torch.stack(entries))
        # Annotated as in the case of layers of one size: there each part is a tensor.
        return LSTMState(*parts) if self.state_type is LSTMState else parts[0]

    @property
    def _ragged(self) -> bool:
        """Whether the layers' states differ in size, so that no tensor holds them all."""
        return len(set(self.hidden_sizes)) > 1

    @property
    def _state_widths(self) -> list[list[int]]:
        """Of each part of the state, the features of each entry."""
        widths = [self._hidden_widths, list(self.hidden_sizes)][: len(self.state_type._fields)]
        return [[width for width in part for _ in range(self._directions)] for part in widths]

    def _zeros(self, batch: int, like: Tensor) -> list[State]:
        entries = zip(*self._state_widths, strict=True)
        return [self.state_type(*(like.new_zeros(batch, width) for width in widths)) for widths in entries]

    def _locked_dropout(self, data: Tensor, p: float, sequences: _Sequences) -> Tensor:
        if not self.training or not p:
            return data
        mask = locked_mask(data.new_empty(sequences.batch_size, data.shape[-1]), p)
        if sequences.batch_sizes is not None:
            _, row = _running(sequences.batch_sizes)
            mask = mask[row.to(data.device)]
        return data * mask

    def _drawn_weights(self, layer: int, direction: int) -> Weights:
        """The weights of a cell, as weight dropout leaves them for this call."""
        weights = self._weights(layer, direction)
        if self.training and self.weight_dropout:
            weights = weights._replace(weight_hh=F.dropout(weights.weight_hh, self.weight_dropout))
        return weights

    def _connect(self, layer: int, output: Tensor, below: Tensor) -> Tensor:
        if layer == 0 or self.connections in ("plain", "dense"):
            return output
        if self.connections == "residual":
            return output + below
        gate = F.linear(below, getattr(self, f"weight_highway_l{layer}"), getattr(self, f"bias_highway_l{layer}")).sigmoid()
        return gate * output + (1 - gate) * below

    def step(self, weights: Weights) -> Step:
        """The cell's step, its weights and options filled in."""
        raise NotImplementedError

    def regularised_step(self, weights: Weights, initial: State) -> Callable[[Tensor, State], tuple[State, Gates]]:
        """``step`` with what this call drops of the hidden state, and with zoneout."""
        step = self.step(weights)
        mask = None
        if self.training and self.recurrent_dropout:
            mask = locked_mask(initial.hidden, self.recurrent_dropout)

        def run(driven: Tensor, state: State) -> tuple[State, Gates]:
            proposed, gates = step(driven, state, mask=None if mask is None else mask[: len(driven)])
            if any(self._zoneouts):
                kept = zip(state, proposed, self._zoneouts, strict=True)
                proposed = self.state_type(*(zoneout(old, new, p, self.training) for old, new, p in kept))
            return proposed, gates

        return run

    def flatten_parameters(self) -> None:
        """Lay each layer's weights out in one block of memory, as cuDNN wants them; elsewhere nothing happens."""
        first = next(self.parameters())
        if self.mode not in FUSED or self.layer_norm or not torch.backends.cudnn.is_acceptable(first):
            return
        cudnn_mode = torch.backends.cudnn.rnn.get_cudnn_mode(self.mode)
        for layer, size in enumerate(self.hidden_sizes):
            flat = _flat([self._weights(layer, direction) for direction in range(self._directions)])
            inputs, each = flat[0].shape[1], len(flat) // self._directions
            sizes = (inputs, cudnn_mode, size, self.proj_size, 1, False, self.bidirectional)
            with torch.no_grad(), torch.cuda.device_of(first):
                torch._cudnn_rnn_flatten_weight(flat, each, *sizes)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.flatten_parameters()
        return self

    def extra_repr(self) -> str:
        """Name the sizes, and the settings that are not the defaults, for ``print(module)``."""
        parameters = {**inspect.signature(Recurrent).parameters, **inspect.signature(type(self)).parameters}
        changed = [
            f"{name}={getattr(self, name)!r}"
            for name, parameter in parameters.items()
            if parameter.default is not parameter.empty and hasattr(self, name) and getattr(self, name) != parameter.default
        ]
        return ", ".join([str(self.input_size), str(self.hidden_size), *changed])


def implementation(stack: Recurrent, *, trace: bool = False) -> Literal["readable", "torch"]:
    """Choose what runs the layers of a stack in a call.

    ``'readable'`` is the steps of ``cells.py``, one after the other. It has every option and can be differentiated in
    every way: twice, by ``torch.func``, through the tensors of a trace.

    ``'torch'`` is torch's own fused layer, called layer by layer, so that all that happens between layers or to the weights
    (locked and plain dropout, weight dropout, connections, sizes) costs nothing of its speed. Taken wherever it can be:
    {MEASURED}

    torch has no such layer for the logistic nonlinearity, for the GRU that resets before the product, layer normalisation,
    zoneout, and for recurrent dropout, which is in the way of its single product over a batch; nor does it show its
    gates (``trace``). Under ``torch.func`` transforms its GRU and RNN fail on the CPU (torch 2.13), and cuDNN's layers
    cannot be differentiated twice (not known beforehand: ask for ``'readable'``).

    Raises:
        ValueError: the stack was built with ``implementation='torch'``, which does not have what is asked for.
    """
    missing = {
        stack.mode: stack.mode not in FUSED,
        "layer_norm": stack.layer_norm,
        "zoneout": any(stack._zoneouts),
        "recurrent_dropout": stack.training and stack.recurrent_dropout > 0,
        "trace": trace,
        "torch.func": torch._C._are_functorch_transforms_active(),
    }
    reasons = [name for name, asked in missing.items() if asked]
    if stack.implementation == "torch" and reasons:
        raise ValueError(f"implementation='torch' does not have {', '.join(reasons)}: leave implementation at 'auto'")
    return "readable" if reasons or stack.implementation == "readable" else "torch"


def torch_layer(
    stack: Recurrent, data: Tensor, batch_sizes: Tensor | None, initial: Sequence[State], weights: Sequence[Weights]
) -> _Layer:
    """One layer, all its directions, by torch's fused kernel.

    Args:
        data: ``[L, N, H_in]``, or packed, then with ``batch_sizes [L]``.
        initial: the state to begin with, of each direction.
        weights: of each direction.
    """
    started = initial
    if batch_sizes is not None:  # sequences of no steps, which are last, wait outside
        started = [_rows(state, 0, int(batch_sizes[0])) for state in initial]
    hx = tuple(torch.stack(part) for part in zip(*started, strict=True))  # of each part of the state, [D, N_0, features]
    # A backward needs what cuDNN keeps in training only. Its own dropout is not used.
    options = (_flat(weights), stack.bias, 1, 0.0, torch.is_grad_enabled(), stack.bidirectional)
    layout = ((data,), (False,)) if batch_sizes is None else ((data, batch_sizes), ())  # False: batch_first
    output, *final = FUSED[stack.mode](*layout[0], hx if len(hx) > 1 else hx[0], *options, *layout[1])
    states = [stack.state_type(*part) for part in zip(*final, strict=True)]
    if batch_sizes is not None:
        tails = [_rows(state, int(batch_sizes[0]), None) for state in initial]
        states = [_join(pair) for pair in zip(states, tails, strict=True)]
    return _Layer(output, states, [])


def readable_layer(
    stack: Recurrent,
    data: Tensor,
    batch_sizes: Tensor | None,
    initial: Sequence[State],
    weights: Sequence[Weights],
    *,
    record: bool = False,
) -> _Layer:
    """The same as ``torch_layer``, by the steps of ``cells.py``; with ``record``, every step's values are kept."""
    outputs, finals, records = [], [], []
    for direction, (state, weight) in enumerate(zip(initial, weights, strict=True)):
        driven = drive(data, weight, stack.gate_groups)
        steps = driven.unbind() if batch_sizes is None else driven.split(batch_sizes.tolist())
        hidden, final, values = unroll(stack.regularised_step(weight, state), steps, state, direction == 1, record)
        outputs.append(torch.cat(hidden or [state.hidden[:0]]).view(*data.shape[:-1], state.hidden.shape[-1]))
        finals.append(final)
        records.append(values)
    return _Layer(torch.cat(outputs, -1), finals, records)


def unroll(
    step: Callable[[Tensor, State], tuple[State, Gates]],
    driven: Sequence[Tensor],
    initial: State,
    backwards: bool = False,
    record: bool = False,
) -> tuple[list[Tensor], State, Records]:
    """Unroll a cell over time.

    Args:
        driven: of each time step, the contribution of the input ``[N_t, ...]``. N_t falls with t: the sequences still
            running are the first rows.
        initial: the state to begin with, ``[N, ...]`` with N at least N_0.
        backwards: go from the last step to the first; each sequence begins at its own last step.
        record: keep what each step computed.

    Returns:
        In the order of time, h(t) ``[N_t, ...]``; the state ``[N, ...]`` that each sequence ended with; the record.
    """
    running = [len(part) for part in driven] or [0]
    state = _rows(initial, 0, running[-1 if backwards else 0])
    ended = [_rows(initial, running[0], None)]  # those of no steps
    hidden, records = [], []
    for part in reversed(driven) if backwards else driven:
        before, now = len(state.hidden), len(part)
        if now < before:
            ended.append(_rows(state, now, before))
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
    return hidden, _join([state, *reversed(ended)]), records


class RNN(Recurrent):
    r"""Simple recurrent network, drop-in for ``torch.nn.RNN``.

        h(t) = sigma(W_h h(t-1) + W_e e(t) + b)

    Args:
        input_size: H_in.
        hidden_size: H_cell, an int or one for each layer.
        num_layers: layers of the stack; left at 1, a list of sizes says how many there are.
        nonlinearity: sigma: ``'tanh'``, ``'relu'``, or the lecture's logistic ``'sigmoid'``.
        bias: whether there is a b.
        batch_first: batches are ``[N, L, features]``; states and traces are not affected.
        dropout: plain dropout between layers.
        bidirectional: read the sequence backwards too; the outputs of both directions are concatenated.
        device: of the parameters.
        dtype: of the parameters.
        options: see ``Recurrent``.

    Shapes of input, output and state: see ``Recurrent.forward``.
    """

    gate_count = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[Options],
    ) -> None:
        mode = "RNN_" + check_choice("nonlinearity", nonlinearity, tuple(NONLINEARITIES)).upper()
        sizes = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0, device, dtype)
        super().__init__(mode, *sizes, **options)
        self.nonlinearity = nonlinearity
        self.reset_parameters()

    def step(self, weights: Weights) -> Step:
        """``rnn_step`` with these weights."""
        return bind_rnn(weights, self.nonlinearity)


class LSTM(Recurrent):
    """Long short-term memory, drop-in for ``torch.nn.LSTM``.

        forget(t), input(t), output(t) = sigma(W_h h(t-1) + W_e e(t) + b), each with rows of its own
        candidate(t) = tanh(W_h h(t-1) + W_e e(t) + b)
        c(t) = forget(t) * c(t-1) + input(t) * candidate(t)
        h(t) = output(t) * tanh(c(t)), with a projection W_r (output(t) * tanh(c(t)))

    Takes and returns an ``LSTMState(hidden, cell)``, which is a tuple.

    Args:
        proj_size: H_out of the projection W_r (Sak et al. 2014); 0 for none.
        forget_bias: where the forget gate's bias starts, the sum of both (1 in Jozefowicz et al. 2015); None as torch draws it.
        options: see ``Recurrent``; the other arguments are as in ``RNN``.
    """

    gate_count = 4
    state_type = LSTMState

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        forget_bias: float | None = None,
        **options: Unpack[Options],
    ) -> None:
        if forget_bias is not None and not bias:
            raise ValueError(f"forget_bias={forget_bias} needs bias=True")
        sizes = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype)
        super().__init__("LSTM", *sizes, **options)
        self.forget_bias = forget_bias
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As in ``Recurrent``, then set the forget gate's biases if asked to."""
        super().reset_parameters()
        if self.forget_bias is None:
            return
        for layer, size in enumerate(self.hidden_sizes):
            for direction in range(self._directions):
                weights = self._weights(layer, direction)
                for bias, value in ((weights.bias_ih, self.forget_bias), (weights.bias_hh, 0.0)):
                    nn.init.constant_(bias[size : 2 * size], value)

    def step(self, weights: Weights) -> Step:
        """``lstm_step`` with these weights."""
        return bind_lstm(weights)


class GRU(Recurrent):
    """Gated recurrent unit, drop-in for ``torch.nn.GRU``.

        reset(t), update(t) = sigma(W_h h(t-1) + W_e e(t) + b), each with rows of its own
        candidate(t) = tanh(reset(t) * (W_h h(t-1) + b_hh) + W_e e(t) + b_ih)     reset='after', torch's
        candidate(t) = tanh(W_h (reset(t) * h(t-1)) + W_e e(t) + b)               reset='before', Cho et al. 2014
        h(t) = update(t) * h(t-1) + (1 - update(t)) * candidate(t)

    Args:
        reset: whether the reset gate acts after or before the matrix product.
        options: see ``Recurrent``; the other arguments are as in ``RNN``.
    """

    gate_count = 3
    gate_groups = GRU_GROUPS

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        reset: str = "after",
        **options: Unpack[Options],
    ) -> None:
        mode = "GRU" if check_choice("reset", reset, RESETS) == "after" else "GRU_RESET_BEFORE"
        sizes = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, 0, device, dtype)
        super().__init__(mode, *sizes, **options)
        self.reset = reset
        self.reset_parameters()

    def step(self, weights: Weights) -> Step:
        """The GRU's step with these weights."""
        return bind_gru(weights, self.reset)


def _layer_sizes(hidden_size: int | Sequence[int], num_layers: int) -> tuple[int, ...]:
    """H_cell of each layer."""
    if num_layers <= 0:
        raise ValueError(f"num_layers must be greater than zero, got {num_layers}")
    sizes = (hidden_size,) * num_layers if not isinstance(hidden_size, Sequence) else tuple(hidden_size)
    for size in sizes:
        if not isinstance(size, int):
            raise TypeError(f"hidden_size should be of type int, got: {type(size).__name__}")
        if size <= 0:
            raise ValueError(f"hidden_size must be greater than zero, got {size}")
    if len(sizes) != num_layers and (num_layers > 1 or not sizes):
        raise ValueError(f"hidden_size has sizes for {len(sizes)} layers, num_layers is {num_layers}")
    return sizes


def _suffix(layer: int, direction: int) -> str:
    return f"_l{layer}" + ("_reverse" if direction else "")


def _flat(weights: Sequence[Weights]) -> list[Tensor]:
    return [weight for direction in weights for weight in direction if weight is not None]


def _rows(state: State, start: int, end: int | None) -> State:
    return type(state)(*(part[start:end] for part in state))


def _select(state: State, rows: Tensor) -> State:
    return type(state)(*(part.index_select(0, rows) for part in state))


def _join(states: Sequence[State]) -> State:
    """Put the rows of states one under the other."""
    some = [state for state in states if len(state.hidden)] or states
    return some[0] if len(some) == 1 else type(some[0])(*map(torch.cat, zip(*some, strict=True)))


def _by_name(records: Records) -> dict[str, tuple[Tensor, ...]]:
    return {name: tuple(record[name] for record in records) for name in records[0]} if records else {}


def _shape(state: Any) -> str:
    return str(tuple(state.shape)) if isinstance(state, Tensor) else f"({', '.join(map(_shape, state))})"


def _running(batch_sizes: Tensor) -> tuple[Tensor, ...]:
    """Of each row of packed data, its step and its sequence."""
    rows = torch.arange(int(batch_sizes.max()) if len(batch_sizes) else 0)
    return (rows < batch_sizes[:, None]).nonzero(as_tuple=True)


def _packed(padded: _Sequences, lengths: Tensor | Sequence[int]) -> _Sequences:
    """Pack a padded batch, unless all sequences fill it.

    Packing rather than running the padding too: the cell state at a sequence's own end could not be had from torch's layers
    otherwise, nor could a backward direction begin there.
    """
    data, batch = padded.data, padded.batch_size
    time = len(data)
    ends = torch.as_tensor(lengths).detach().cpu()
    if ends.shape != (batch,) or ends.is_floating_point() or ends.dtype == torch.bool:
        raise ValueError(f"lengths: expected {batch} integers, one for each sequence, got {ends.dtype} {tuple(ends.shape)}")
    if bool(((ends < 0) | (ends > time)).any()):
        raise ValueError(f"lengths: expected 0 to {time}, got {int(ends.min())} to {int(ends.max())}")
    if bool((ends == time).all()):
        return padded
    order = ends.argsort(descending=True, stable=True)
    batch_sizes = (ends > torch.arange(int(ends.max()))[:, None]).sum(1)
    step, row = _running(batch_sizes)
    place = (step.to(data.device), order[row].to(data.device))

    def restore(output: Tensor) -> Any:
        return padded.restore(output.new_zeros(time, batch, output.shape[-1]).index_put(place, output))

    return _Sequences(data[place], batch_sizes, batch, order.to(data.device), restore)
