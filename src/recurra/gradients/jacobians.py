"""What one step does to gradients: its Jacobian, what gates let through as it is, and what the weights say alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from recurra.config import UserError
from recurra.gradients.unrolled import Unrolled
from recurra.nn import Recurrent
from recurra.nn.cells import LSTMState

__all__ = [
    "NOT_SAID",
    "Bound",
    "Growth",
    "Split",
    "Verdict",
    "growth",
    "recurrent_bounds",
    "split",
    "state_jacobian",
    "verdict",
]

GATES = {1: ("",), 3: ("reset", "update", "candidate"), 4: ("input", "forget", "candidate", "output")}  # rows of W_h
SLOPES = {"tanh": 1.0, "relu": 1.0, "sigmoid": 0.25}  # gamma: what the nonlinearity's derivative never exceeds
NOT_SAID = "neither can be said"
SETTLING = 10  # of so many steps one, the first, is left to a vector to turn where the product stretches most


def state_jacobian(unrolled: Unrolled, step: int, layer: int) -> Tensor:
    """The Jacobian of a layer's state after a step with respect to that before it.

    Returns:
        Of an RNN or GRU that of h(t) with respect to h(t-1), ``[H, H]``; of an LSTM that of (h, c), ``[H + C, H + C]``,
        with that of h alone in ``[:H, :H]``.
    """
    taken = unrolled.step(step)
    rows = [_block(after, list(taken.before[layer])) for after in taken.after[layer]]
    return torch.cat([torch.cat(blocks, 1) for blocks in rows])


class Split(NamedTuple):
    """A Jacobian in two parts: what a gate lets through as it is, and what goes through weights.

    Attributes:
        gate: the diagonal of the first part, ``[H]``: the forget gate of an LSTM, the update gate of a GRU.
        rest: the second, ``[H, H]``.
    """

    gate: Tensor
    rest: Tensor

    @property
    def total(self) -> Tensor:
        """Their sum, the Jacobian."""
        return torch.diag(self.gate) + self.rest


def split(unrolled: Unrolled, step: int, layer: int) -> Split:
    r"""Split the Jacobian of what a gated cell remembers.

    LSTM: :math:`\partial c(t)/\partial c(t-1) = \mathrm{diag}(forget(t)) + \partial c(t)/\partial h(t-1) \;
    \partial h(t-1)/\partial c(t-1)`, where c(t-1) acts on the gates of step t through h(t-1) = output(t-1) *
    tanh(c(t-1)), the output gate of which is of step t-1 and does not depend on c(t-1) (Gers et al. 2000 leave only the
    first term in their gradient). GRU: :math:`\partial h(t)/\partial h(t-1) = \mathrm{diag}(update(t)) + \dots`

    Args:
        unrolled: the text that was read.
        step: t; for an LSTM one that has a step before it, since the state starts at h = 0 whatever c is.
        layer: of an LSTM or a GRU.

    Raises:
        UserError: a simple RNN, which has no such gate, a stack with zoneout, which has one more, or no step before.
    """
    stack, taken = unrolled.stack, unrolled.step(step)
    if stack.gate_count == 1:
        raise UserError("a simple RNN has no gate that its state passes: splitting is for lstm and gru")
    if stack.has_zoneout:
        raise UserError("with zoneout a state passes beside the gates too: the split is for a model without it")
    after, before = taken.after[layer], taken.before[layer]
    if not isinstance(after, LSTMState) or not isinstance(before, LSTMState):
        gate = taken.gates[layer]["update"][0].detach()
        return Split(gate, _block(after.hidden, [before.hidden])[0] - torch.diag(gate))
    if step in unrolled.starts:
        raise UserError(f"step {step}: there is no step before it, whose cell state could act on it; take a later one")
    previous = unrolled.step(step - 1).after[layer]
    assert isinstance(previous, LSTMState)
    by_hidden = _block(after.cell, [before.hidden])[0]
    return Split(taken.gates[layer]["forget"][0].detach(), by_hidden @ _block(previous.hidden, [previous.cell])[0])


class Bound(NamedTuple):
    """What the hidden-to-hidden weights alone say.

    Attributes:
        gate: which rows of W_h these are; empty in a simple RNN.
        largest_singular: the largest singular value of W_h.
        spectral_radius: the largest absolute eigenvalue; None where W_h is not square, with a projection.
        gamma: what the nonlinearity's derivative never exceeds; None where the bound is not valid: in gated cells,
            whose state passes beside W_h, with layer normalisation and with zoneout.
    """

    gate: str
    largest_singular: float
    spectral_radius: float | None
    gamma: float | None

    @property
    def must_vanish(self) -> bool:
        """Whether the largest singular value is below 1 / gamma, which is enough for gradients to vanish."""
        return self.gamma is not None and self.largest_singular < 1 / self.gamma


def recurrent_bounds(stack: Recurrent, layer: int) -> list[Bound]:
    """The bound of Pascanu et al. (2013, section 2.1) for a layer, and the same numbers for each gate's rows of W_h."""
    plain = stack.gate_count == 1 and not stack.layer_norm and not stack.has_zoneout
    gamma = SLOPES[str(stack.nonlinearity)] if plain else None
    found = []
    blocks = stack.weights(layer).weight_hh.detach().chunk(stack.gate_count)
    for gate, block in zip(GATES[stack.gate_count], blocks, strict=True):
        matrix = block.cpu().double()
        square = matrix.shape[0] == matrix.shape[1]
        radius = float(torch.linalg.eigvals(matrix).abs().max()) if square else None
        found.append(Bound(gate, float(torch.linalg.svdvals(matrix)[0]), radius, gamma))
    return found


class Verdict(NamedTuple):
    """What is certain about gradients that go through many steps of one layer's own recurrence.

    Of the layers above, through which they flow as well, it says nothing: it is one on the whole gradient with respect
    to the highest layer's state only.

    Attributes:
        says: ``vanish``, ``explode`` or ``neither can be said``.
        grounds: what it rests on: ``weights``, W_h alone, so that it holds for any text; ``every step``, the Jacobians
            of all steps of the text, for which it holds then; or nothing.
        seen: what all Jacobians that there are do to every vector: ``shrinks``, ``grows`` or nothing. From a sample of
            the steps nothing follows for the others.
        jacobians: how many there are.
        steps: how many steps there could be Jacobians of.
    """

    says: str
    grounds: str
    seen: str
    jacobians: int
    steps: int

    @property
    def certain(self) -> bool:
        """Whether anything could be said."""
        return self.says != NOT_SAID

    def in_words(self) -> str:
        """The verdict as a text has it, with its grounds."""
        if self.grounds == "weights":
            return f"{self.says}, whatever the text"
        if self.certain:
            return f"{self.says} on this text, by the Jacobians of all {self.steps} steps"
        sampled = f"; every vector {self.seen} at all {self.jacobians} sampled steps" if self.seen else ""
        return self.says + sampled


def verdict(bounds: Sequence[Bound], singular_values: Iterable[ArrayLike], steps: int) -> Verdict:
    """What the weights of a layer and the Jacobians of its steps say about gradients through its own recurrence.

    Args:
        bounds: from :func:`recurrent_bounds`.
        singular_values: of the Jacobian of the layer's whole state at some steps.
        steps: how many there are in the text, but for starts (:attr:`Unrolled.continued`).

    Returns:
        ``vanish`` where W_h makes every gradient shorter at every step of any text, or the Jacobians of all steps do.
        ``explode`` where these make every gradient longer; W_h alone can only allow it, as the condition of Pascanu et
        al. is necessary, not sufficient. Else ``neither can be said``.
    """
    values = [np.asarray(each) for each in singular_values]
    seen = ""
    if values and all(each.max() < 1 for each in values):
        seen = "shrinks"
    elif values and all(each.min() > 1 for each in values):
        seen = "grows"
    counts = (seen, len(values), steps)
    if any(bound.must_vanish for bound in bounds):
        return Verdict("vanish", "weights", *counts)
    if seen and len(values) == steps:
        return Verdict("vanish" if seen == "shrinks" else "explode", "every step", *counts)
    return Verdict(NOT_SAID, "", *counts)


class Growth(NamedTuple):
    """How fast the product of a layer's Jacobians grows along a text.

    Attributes:
        rate: log2 per step, the largest Lyapunov exponent of the layer's own recurrence, as far as the text tells it:
            below 0 gradients through it vanish, above 0 they explode. Minus infinity where nothing passes at all, NaN
            for too few steps.
        steps: that it is the mean of.
    """

    rate: float
    steps: int


def growth(unrolled: Unrolled, layer: int = -1) -> Growth:
    """Follow one vector back through all steps of a layer's own recurrence, and take the mean growth of its length.

    Almost every vector turns to where the product of Jacobians stretches most, so that its growth is that of the whole
    product (Benettin et al. 1980; the first column of the QR iteration, which the others do not change). The first
    steps, in which it turns, do not count. At starts the vector goes on as it is.
    """
    steps = unrolled.continued[::-1]
    turning = len(steps) // SETTLING
    if not steps:
        return Growth(math.nan, 0)
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(part.shape, generator=generator, dtype=torch.float64) for part in unrolled.states[0][layer]]
    vector = [part.to(like) for part, like in zip(drawn, unrolled.states[0][layer], strict=True)]
    logs = []
    for step in steps:
        length = float(torch.cat(vector, -1).norm())
        taken = unrolled.step(step)
        given = [part / length for part in vector]
        vector = list(
            torch.autograd.grad(
                list(taken.after[layer]), list(taken.before[layer]), given, allow_unused=True, materialize_grads=True
            )
        )
        longer = float(torch.cat(vector, -1).norm())
        if not longer:
            return Growth(-math.inf, len(steps) - turning)
        logs.append(math.log2(longer))
    return Growth(float(np.mean(logs[turning:])), len(steps) - turning)


def _block(output: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Jacobians of ``output [1, A]`` with respect to each of ``inputs [1, B]``, ``[A, B]``: a row for each output."""
    rows = torch.eye(output.shape[1], dtype=output.dtype, device=output.device)[:, None]
    found = torch.autograd.grad(output, inputs, rows, is_grads_batched=True, allow_unused=True, retain_graph=True)
    return [
        output.new_zeros(output.shape[1], part.shape[1]) if gradient is None else gradient[:, 0]
        for gradient, part in zip(found, inputs, strict=True)
    ]
