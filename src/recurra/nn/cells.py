"""One time step of a recurrent network, as the equations are written.

A step takes what the input contributes at time t, the state after time t - 1 and the weights, and returns the state
after time t and the gates by name. Time is the matter of ``unrolled.py``, layers and directions of ``recurrent.py``.

Letters in the equations and in the shapes:

=======  ==============================================================================================
e(t)     input at time t, ``[N, H_in]``
h(t)     hidden state, ``[N, H_out]``; H_out is H_cell, or the projection's size where an LSTM has one
c(t)     cell state of an LSTM, ``[N, H_cell]``
W_e      input-to-hidden weights ``weight_ih [gates * H_cell, H_in]``, with the bias ``bias_ih``
W_h      hidden-to-hidden weights ``weight_hh [gates * H_cell, H_out]``, with the bias ``bias_hh``
sigma    the logistic function 1 / (1 + exp(-x)); in the simple RNN any of ``NONLINEARITIES``
``*``    elementwise product
=======  ==============================================================================================

b is the sum of both biases; there are two because torch and cuDNN have two. Each gate has its own rows of W_e, W_h and
b, which lie in torch's order: input, forget, candidate, output in the LSTM; reset, update, candidate in the GRU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dropout import zoneout

__all__ = [
    "GRUCell",
    "HiddenState",
    "LSTMCell",
    "LSTMState",
    "RNNCell",
    "State",
    "Step",
    "Weights",
    "bind_gru",
    "bind_lstm",
    "bind_rnn",
    "drive",
    "gru_reset_before_step",
    "gru_step",
    "lstm_step",
    "rnn_step",
    "with_zoneout",
]

NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
}
RESETS = ("after", "before")
GRU_GROUPS = (2, 1)  # layer normalisation takes reset and update together (Ba et al. 2016, appendix)


class Weights(NamedTuple):
    """The weights of one cell; the names are those of the parameters, G is the number of gates."""

    weight_ih: Tensor  # W_e [G * H_cell, H_in]
    weight_hh: Tensor  # W_h [G * H_cell, H_out]
    bias_ih: Tensor | None = None  # [G * H_cell]
    bias_hh: Tensor | None = None  # [G * H_cell]
    weight_hr: Tensor | None = None  # projection of an LSTM [H_out, H_cell]
    gain_ih: Tensor | None = None  # layer normalisation of W_e e(t) [G * H_cell]
    gain_hh: Tensor | None = None  # layer normalisation of W_h h(t-1) [G * H_cell]
    gain_cell: Tensor | None = None  # layer normalisation of an LSTM's c(t) [H_cell]
    bias_cell: Tensor | None = None  # [H_cell]

    def split(self, sizes: Sequence[int]) -> list[Weights]:
        """Cut the rows of every weight into blocks of these sizes."""
        blocks = [[None] * len(sizes) if weight is None else weight.split(list(sizes)) for weight in self]
        return [Weights(*block) for block in zip(*blocks, strict=True)]


class HiddenState(NamedTuple):
    """State of a simple RNN or a GRU: h ``[N, H_out]``."""

    hidden: Tensor


class LSTMState(NamedTuple):
    """State of an LSTM: h ``[N, H_out]`` and c ``[N, H_cell]``; for a stack of layers see ``recurrent.LSTM``."""

    hidden: Tensor
    cell: Tensor


State = HiddenState | LSTMState
Gates = dict[str, Tensor]
Step = Callable[[Tensor, Any], tuple[Any, Gates]]  # (driven, state before) -> (state after, gates), the rest filled in


def drive(inputs: Tensor, weights: Weights, groups: Sequence[int] = (1,)) -> Tensor:
    """What inputs ``[..., H_in]``, of any number of steps, contribute: W_e e(t) + b_ih ``[..., G * H_cell]``."""
    return _product(inputs, weights.weight_ih, weights.bias_ih, weights.gain_ih, groups)


def recall(hidden: Tensor, mask: Tensor | None, weights: Weights, groups: Sequence[int] = (1,)) -> Tensor:
    """What the hidden state contributes: W_h h(t-1) + b_hh ``[N, G * H_cell]``.

    Args:
        mask: dropout of h(t-1), the same at every step; its first rows if there are more than in h.
    """
    if mask is not None:
        hidden = hidden * mask[: len(hidden)]
    return _product(hidden, weights.weight_hh, weights.bias_hh, weights.gain_hh, groups)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, gain: Tensor | None, groups: Sequence[int]) -> Tensor:
    """W x + b, or with a gain LN(W x) * gain + b: layer normalisation (Ba et al. 2016, arXiv:1607.06450).

    The bias that is there anyway serves as the shift. Rows of W are normalised in groups of the proportions ``groups``.
    """
    if gain is None:
        return F.linear(x, weight, bias)
    sizes = [len(weight) * share // sum(groups) for share in groups]
    parts = [F.layer_norm(part, part.shape[-1:]) for part in F.linear(x, weight).split(sizes, -1)]
    values = torch.cat(parts, -1) * gain
    return values if bias is None else values + bias


def rnn_step(
    driven: Tensor, state: HiddenState, *, weights: Weights, nonlinearity: str, mask: Tensor | None = None
) -> tuple[HiddenState, Gates]:
    """Simple recurrent network (Elman 1990).

        h(t) = sigma(W_h h(t-1) + W_e e(t) + b)

    Args:
        driven: W_e e(t) + b_ih from ``drive``, ``[N, H_cell]``.
        nonlinearity: sigma, one of ``NONLINEARITIES``.
    """
    sigma = NONLINEARITIES[nonlinearity]
    return HiddenState(sigma(recall(state.hidden, mask, weights) + driven)), {}


def lstm_step(
    driven: Tensor, state: LSTMState, *, weights: Weights, mask: Tensor | None = None
) -> tuple[LSTMState, Gates]:
    """Long short-term memory (Hochreiter and Schmidhuber 1997; with the forget gate of Gers et al. 2000).

        forget(t)    = sigma(W_h h(t-1) + W_e e(t) + b)
        input(t)     = sigma(W_h h(t-1) + W_e e(t) + b)
        output(t)    = sigma(W_h h(t-1) + W_e e(t) + b)
        candidate(t) = tanh(W_h h(t-1) + W_e e(t) + b)
        c(t) = forget(t) * c(t-1) + input(t) * candidate(t)
        h(t) = output(t) * tanh(c(t))

    With a projection W_r (Sak et al. 2014, arXiv:1402.1128) h(t) = W_r (output(t) * tanh(c(t))). With layer
    normalisation the tanh of the last line reads the normalised c(t).

    Args:
        driven: W_e e(t) + b_ih from ``drive``, ``[N, 4 * H_cell]``.
    """
    sums = recall(state.hidden, mask, weights) + driven
    input, forget, candidate, output = sums.chunk(4, -1)
    forget, input, output, candidate = forget.sigmoid(), input.sigmoid(), output.sigmoid(), candidate.tanh()
    cell = forget * state.cell + input * candidate
    hidden = output * _normalised_cell(cell, weights).tanh()
    if weights.weight_hr is not None:
        hidden = F.linear(hidden, weights.weight_hr)
    return LSTMState(hidden, cell), {"forget": forget, "input": input, "output": output, "candidate": candidate}


def _normalised_cell(cell: Tensor, weights: Weights) -> Tensor:
    if weights.gain_cell is None:
        return cell
    return F.layer_norm(cell, cell.shape[-1:], weights.gain_cell, weights.bias_cell)


def gru_step(
    driven: Tensor, state: HiddenState, *, weights: Weights, mask: Tensor | None = None
) -> tuple[HiddenState, Gates]:
    """Gated recurrent unit that resets after the matrix product, as torch and cuDNN do.

        reset(t)     = sigma(W_h h(t-1) + W_e e(t) + b)
        update(t)    = sigma(W_h h(t-1) + W_e e(t) + b)
        candidate(t) = tanh(reset(t) * (W_h h(t-1) + b_hh) + W_e e(t) + b_ih)
        h(t) = update(t) * h(t-1) + (1 - update(t)) * candidate(t)

    Args:
        driven: W_e e(t) + b_ih from ``drive``, ``[N, 3 * H_cell]``.
    """
    reset, update, candidate = driven.chunk(3, -1)
    reset_recalled, update_recalled, candidate_recalled = recall(state.hidden, mask, weights, GRU_GROUPS).chunk(3, -1)
    reset = (reset_recalled + reset).sigmoid()
    update = (update_recalled + update).sigmoid()
    candidate = (reset * candidate_recalled + candidate).tanh()
    hidden = update * state.hidden + (1 - update) * candidate
    return HiddenState(hidden), {"reset": reset, "update": update, "candidate": candidate}


def gru_reset_before_step(
    driven: Tensor, state: HiddenState, *, gates: Weights, rest: Weights, mask: Tensor | None = None
) -> tuple[HiddenState, Gates]:
    """Gated recurrent unit that resets before the matrix product (Cho et al. 2014, arXiv:1406.1078).

    As ``gru_step``, but for

        candidate(t) = tanh(W_h (reset(t) * h(t-1)) + W_e e(t) + b)

    Args:
        driven: W_e e(t) + b_ih from ``drive``, ``[N, 3 * H_cell]``.
        gates: the rows of the weights for reset and update.
        rest: the rows for the candidate, whose product has to wait for the reset gate.
    """
    reset, update, candidate = driven.chunk(3, -1)
    reset_recalled, update_recalled = recall(state.hidden, mask, gates).chunk(2, -1)
    reset = (reset_recalled + reset).sigmoid()
    update = (update_recalled + update).sigmoid()
    candidate = (recall(reset * state.hidden, mask, rest) + candidate).tanh()
    hidden = update * state.hidden + (1 - update) * candidate
    return HiddenState(hidden), {"reset": reset, "update": update, "candidate": candidate}


def bind_rnn(weights: Weights, nonlinearity: str, mask: Tensor | None = None) -> Step:
    """The simple RNN's step with these weights, and a dropout mask of h(t-1)."""
    return partial(rnn_step, weights=weights, nonlinearity=nonlinearity, mask=mask)


def bind_lstm(weights: Weights, mask: Tensor | None = None) -> Step:
    """The LSTM's step with these weights, and a dropout mask of h(t-1)."""
    return partial(lstm_step, weights=weights, mask=mask)


def bind_gru(weights: Weights, reset: str, mask: Tensor | None = None) -> Step:
    """The GRU's step with these weights, and a dropout mask of h(t-1)."""
    if reset == "after":
        return partial(gru_step, weights=weights, mask=mask)
    width = len(weights.weight_hh) // 3
    gates, rest = weights.split((2 * width, width))  # here, once: cut in every step, gradients are also joined in each
    return partial(gru_reset_before_step, gates=gates, rest=rest, mask=mask)


def with_zoneout(step: Step, probabilities: Sequence[float], training: bool) -> Step:
    """A step after which units may keep their old value; a probability for each part of the state."""

    def zoned(driven: Tensor, state: State) -> tuple[State, Gates]:
        proposed, gates = step(driven, state)
        parts = zip(state, proposed, probabilities, strict=True)
        return type(state)(*(zoneout(old, new, p, training) for old, new, p in parts)), gates

    return zoned


def check_choice(name: str, value: str, choices: Sequence[str]) -> str:
    """Return ``value``.

    Raises:
        ValueError: it is not one of ``choices``.
    """
    if value not in choices:
        raise ValueError(f"{name} should be one of {', '.join(map(repr, choices))}; got {value!r}")
    return value


class _Cell(nn.Module):
    """What the step modules share: the parameters of torch.nn's cells, and the checks of what comes in."""

    bias_ih: nn.Parameter | None
    bias_hh: nn.Parameter | None

    def __init__(
        self,
        gates: int,
        input_size: int,
        hidden_size: int,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        rows = gates * hidden_size
        self.weight_ih = nn.Parameter(torch.empty(rows, input_size, device=device, dtype=dtype))
        self.weight_hh = nn.Parameter(torch.empty(rows, hidden_size, device=device, dtype=dtype))
        for name in ("bias_ih", "bias_hh"):
            self.register_parameter(name, nn.Parameter(torch.empty(rows, device=device, dtype=dtype)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights uniformly from -1 / sqrt(H_cell) to 1 / sqrt(H_cell), as torch.nn does."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def _weights(self) -> Weights:
        return Weights(self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)

    def _enter(self, input: Tensor, state: Sequence[Tensor] | None, parts: int) -> tuple[Tensor, Sequence[Tensor]]:
        """What the input contributes, and the state or zeros; the steps take ``[N, ...]`` and ``[...]`` alike."""
        name = type(self).__name__
        if input.dim() not in (1, 2) or input.shape[-1] != self.input_size:
            raise ValueError(
                f"{name}: expected input of shape (N, {self.input_size}) or ({self.input_size},),"
                f" got {tuple(input.shape)}"
            )
        expected = (*input.shape[:-1], self.hidden_size)
        if state is None:
            state = [input.new_zeros(expected)] * parts
        for part in state:
            if part.shape != expected:
                raise ValueError(f"{name}: expected state of shape {tuple(expected)}, got {tuple(part.shape)}")
        return drive(input, self._weights()), state

    def extra_repr(self) -> str:
        """Name the sizes for ``print(module)``."""
        return f"{self.input_size}, {self.hidden_size}" + ("" if self.bias else ", bias=False")


class RNNCell(_Cell):
    """``rnn_step`` as a module, drop-in for ``torch.nn.RNNCell``.

    Args:
        nonlinearity: ``'tanh'``, ``'relu'`` or the lecture's ``'sigmoid'``.

    Raises:
        ValueError: unknown nonlinearity, or input or state of a wrong size.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(1, input_size, hidden_size, bias, device, dtype)
        self.nonlinearity = check_choice("nonlinearity", nonlinearity, tuple(NONLINEARITIES))

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Return h(t) ``[N, H_cell]`` for ``input [N, H_in]`` and ``hx``, h(t-1); all without N for one sequence."""
        driven, (hidden,) = self._enter(input, None if hx is None else (hx,), 1)
        state, _ = rnn_step(driven, HiddenState(hidden), weights=self._weights(), nonlinearity=self.nonlinearity)
        return state.hidden


class LSTMCell(_Cell):
    """``lstm_step`` as a module, drop-in for ``torch.nn.LSTMCell``.

    Raises:
        ValueError: input or state of a wrong size.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(4, input_size, hidden_size, bias, device, dtype)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> LSTMState:
        """Return h(t), c(t) ``[N, H_cell]`` for ``input [N, H_in]`` and ``hx``, (h(t-1), c(t-1)); N may be absent."""
        driven, (hidden, cell) = self._enter(input, hx, 2)
        state, _ = lstm_step(driven, LSTMState(hidden, cell), weights=self._weights())
        return state


class GRUCell(_Cell):
    """``gru_step`` as a module, drop-in for ``torch.nn.GRUCell``.

    Args:
        reset: whether the reset gate acts ``'after'`` the matrix product (torch) or ``'before'`` it (the paper).

    Raises:
        ValueError: unknown ``reset``, or input or state of a wrong size.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        reset: str = "after",
    ) -> None:
        super().__init__(3, input_size, hidden_size, bias, device, dtype)
        self.reset = check_choice("reset", reset, RESETS)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Return h(t) ``[N, H_cell]`` for ``input [N, H_in]`` and ``hx``, h(t-1); all without N for one sequence."""
        driven, (hidden,) = self._enter(input, None if hx is None else (hx,), 1)
        state: HiddenState
        state, _ = bind_gru(self._weights(), self.reset)(driven, HiddenState(hidden))
        return state.hidden
