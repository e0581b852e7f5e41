"""RNN, LSTM and GRU: a stack of each kind of cell, with torch.nn's arguments. Letters are those of ``recurrent.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Unpack

import torch
from torch import Tensor, nn

from . import cells
from .cells import LSTMState, Step, Weights, check_choice
from .recurrent import Device, Options, Recurrent, parameter_name

__all__ = ["GRU", "LSTM", "RNN"]


class RNN(Recurrent):
    """Simple recurrent network, drop-in for ``torch.nn.RNN``.

        h(t) = sigma(W_h h(t-1) + W_e e(t) + b)

    Args:
        input_size: H_in.
        hidden_size: H_cell, one int or one for each layer.
        num_layers: layers of the stack; left at 1 where ``hidden_size`` says how many.
        nonlinearity: sigma: ``'tanh'``, ``'relu'``, or the lecture's logistic ``'sigmoid'``.
        bias: whether there is a b.
        batch_first: padded batches are ``[N, L, features]``; states and traces are as ever.
        dropout: plain dropout between layers.
        bidirectional: read backwards too; the output is both directions' concatenated.
        device: of the parameters.
        dtype: of the parameters.
        options: see ``Recurrent``. For the shapes of input, output and state see ``Recurrent.forward``.
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
        device: Device = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[Options],
    ) -> None:
        mode = "RNN_" + check_choice("nonlinearity", nonlinearity, tuple(cells.NONLINEARITIES)).upper()
        _refuse_projection(type(self).__name__, options)
        given = (num_layers, bias, batch_first, dropout, bidirectional, 0, device, dtype)
        super().__init__(mode, input_size, hidden_size, *given, **options)
        self.nonlinearity = nonlinearity
        self.reset_parameters()

    def bind(self, weights: Weights, mask: Tensor | None) -> Step:
        """As in ``Recurrent``."""
        return cells.bind_rnn(weights, self.nonlinearity, mask)


class LSTM(Recurrent):
    """Long short-term memory, drop-in for ``torch.nn.LSTM``. Its state is an ``LSTMState(hidden, cell)``, a tuple.

        forget(t), input(t), output(t) = sigma(W_h h(t-1) + W_e e(t) + b), each with its own rows
        candidate(t) = tanh(W_h h(t-1) + W_e e(t) + b)
        c(t) = forget(t) * c(t-1) + input(t) * candidate(t)
        h(t) = output(t) * tanh(c(t)), with a projection W_r (output(t) * tanh(c(t)))

    Args:
        proj_size: H_out of the projection W_r (Sak et al. 2014); 0 for none.
        forget_bias: where the forget gate's bias, the sum of both, starts (Jozefowicz et al. 2015: 1); None to draw it.
        options: see ``Recurrent``. The other arguments are those of ``RNN``.
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
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        forget_bias: float | None = None,
        **options: Unpack[Options],
    ) -> None:
        if forget_bias is not None and not bias:
            raise ValueError(f"forget_bias={forget_bias} needs bias=True, got bias={bias}")
        given = (num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype)
        super().__init__("LSTM", input_size, hidden_size, *given, **options)
        self.forget_bias = forget_bias
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As in ``Recurrent``; then the forget gate's bias as asked for."""
        super().reset_parameters()
        if self.forget_bias is None:
            return
        for layer, direction in self._cells():
            size = self.hidden_sizes[layer]
            for name, start in (("bias_ih", self.forget_bias), ("bias_hh", 0.0)):
                nn.init.constant_(self.get_parameter(parameter_name(name, layer, direction))[size : 2 * size], start)

    def bind(self, weights: Weights, mask: Tensor | None) -> Step:
        """As in ``Recurrent``."""
        return cells.bind_lstm(weights, mask)


class GRU(Recurrent):
    """Gated recurrent unit, drop-in for ``torch.nn.GRU``.

        reset(t), update(t) = sigma(W_h h(t-1) + W_e e(t) + b), each with its own rows
        candidate(t) = tanh(reset(t) * (W_h h(t-1) + b_hh) + W_e e(t) + b_ih)     reset='after', torch's
        candidate(t) = tanh(W_h (reset(t) * h(t-1)) + W_e e(t) + b)               reset='before', Cho et al. 2014
        h(t) = update(t) * h(t-1) + (1 - update(t)) * candidate(t)

    Args:
        reset: whether the reset gate acts after or before the matrix product.
        options: see ``Recurrent``. The other arguments are those of ``RNN``.
    """

    gate_count = 3
    gate_groups = cells.GRU_GROUPS

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        reset: str = "after",
        **options: Unpack[Options],
    ) -> None:
        mode = "GRU" if check_choice("reset", reset, cells.RESETS) == "after" else "GRU_RESET_BEFORE"
        _refuse_projection(type(self).__name__, options)
        given = (num_layers, bias, batch_first, dropout, bidirectional, 0, device, dtype)
        super().__init__(mode, input_size, hidden_size, *given, **options)
        self.reset = reset
        self.reset_parameters()

    def bind(self, weights: Weights, mask: Tensor | None) -> Step:
        """As in ``Recurrent``."""
        return cells.bind_gru(weights, self.reset, mask)


def _refuse_projection(name: str, options: Mapping[str, object]) -> None:
    if "proj_size" in options:
        raise ValueError(f"proj_size: only an LSTM has a projection; leave it out of {name}")
