"""The numbers behind the equations: one step of a cell line by line, a gradient through time, clipping.

Everything is computed in float64, whatever the model's weights are saved in. Layers are counted from 1, units and steps
from 0: step t reads token t - 1, step 0 the line end before the text, and predicts token t.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra.config import UserError
from recurra.evaluation import row_starts
from recurra.gradients import Unrolled, check_seed, unroll_model
from recurra.language_model import LanguageModel
from recurra.models.recurrent_lm import CELLS, RecurrentLM
from recurra.nn.cells import NONLINEARITIES, State, Weights, drive, recall
from recurra.nn.recurrent import Recurrent
from recurra.optimization import clip_gradients
from recurra.text.batches import Batch, TokenStream
from recurra.text.vocabulary import LINE_END

__all__ = [
    "CellStep",
    "Clipped",
    "ClippedBothWays",
    "Line",
    "Situation",
    "clip_both_ways",
    "gradient_by_autograd",
    "reading",
    "small_layer",
    "step_lines",
    "text_gradient",
]

INPUT_SIZE, HIDDEN_SIZE = 3, 4  # of a fresh layer
ROWS = {  # whose rows lie where in W_e, W_h and b
    "rnn": ("h",),
    "lstm": ("input", "forget", "candidate", "output"),
    "gru": ("reset", "update", "candidate"),
}
SUMS = "W_h h(t-1) + W_e e(t) + b"


class Line(NamedTuple):
    """One equation of a step, with the numbers of one unit.

    Attributes:
        name: the left-hand side, as ``nn/cells.py`` has it.
        equation: the right-hand side, likewise; with layer normalisation, LN stands around what is normalised.
        terms: the numbers of the symbols in it.
        value: what comes out.
    """

    name: str
    equation: str
    terms: dict[str, float]
    value: float

    def with_numbers(self, digits: int = 4) -> str:
        """The right-hand side, every symbol replaced by its number."""
        names = sorted(self.terms, key=len, reverse=True)
        pattern = r"(?<!\w)(?:" + "|".join(map(re.escape, names)) + r")(?!\w)"
        return re.sub(pattern, lambda match: f"{self.terms[match[0]]:.{digits}f}", self.equation)


@dataclass(frozen=True)
class Situation:
    """A stack that has read T steps from the zero state, of which the last is looked at.

    Attributes:
        unrolled: the stack, in float64 and without dropout, with what it read and the loss J(t) of every step.
        cell: ``lstm``, ``gru`` or ``rnn``.
        reads: what to call what is read at each step.
        what: the last step's J in words.
    """

    unrolled: Unrolled
    cell: str
    reads: list[str]
    what: str

    @property
    def stack(self) -> Recurrent:
        """The stack."""
        return self.unrolled.stack

    def layer(self, number: int | None, unit: int = 0) -> int:
        """The number of a layer, from 1; the last for None.

        Raises:
            UserError: there is no such layer, or unit in it.
        """
        number = self.stack.num_layers if number is None else number
        if not 1 <= number <= self.stack.num_layers:
            raise UserError(f"layer: expected 1 to {self.stack.num_layers}, got {number}")
        size = self.stack.hidden_widths[number - 1]
        if not 0 <= unit < size:
            raise UserError(f"unit: expected 0 to {size - 1}, got {unit}")
        return number


def small_layer(cell: str, *, seed: int = 1, steps: int = 5) -> Situation:
    """A fresh layer of 4 units that reads random vectors of 3 features.

    J(t) is half the squared distance of h(t) from a target.

    Args:
        cell: ``lstm``, ``gru`` or ``rnn``.
        seed: of weights, vectors and target.
        steps: T.

    Raises:
        UserError: a seed that is none.
    """
    check_seed(seed)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        stack = CELLS[cell](INPUT_SIZE, HIDDEN_SIZE, dtype=torch.float64).eval()
        inputs = torch.randn(steps, INPUT_SIZE, dtype=torch.float64)
        target = torch.rand(1, HIDDEN_SIZE, dtype=torch.float64) * 2 - 1
    unrolled = Unrolled(stack, inputs, lambda outputs: 0.5 * ((outputs - target) ** 2).sum(1))
    names = [f"e({step})" for step in range(steps)]
    return Situation(unrolled, cell, names, f"half the squared distance of h({steps - 1}) from a target")


def reading(lm: LanguageModel, text: str, *, target: bool = False) -> Situation:
    """A recurrent language model that reads a text, from the line end before it.

    Args:
        lm: the model.
        text: as it stands; of a model whose lines are independent only the last line counts.
        target: keep the last token back, as what is to be predicted: the last J is its surprisal in nats. Otherwise it
            is that of a line end.

    Raises:
        UserError: another kind of model, or nothing to predict.
    """
    if not isinstance(lm.model, RecurrentLM):
        raise UserError(f"expected a recurrent language model (lm), this one is of kind {lm.kind!r}")
    ids: list[int] = [*lm.tokenizer.encode(text).tolist(), *([] if target else [LINE_END])]
    if not ids:
        raise UserError("text: it is empty; expected at least one token, whose surprisal is the loss")
    read = [LINE_END, *ids[:-1]]
    if lm.model.settings.reset == "lines":
        ids = ids[len(read) - 1 - read[::-1].index(LINE_END) :]
        read = [LINE_END, *ids[:-1]]
    model = copy.deepcopy(lm.model).cpu().double().eval()
    names = [lm.tokenizer.token(id) for id in read]
    what = f"-log p({lm.tokenizer.token(ids[-1])!r}), the surprisal of what follows, in nats"
    return Situation(unroll_model(model, ids), model.settings.cell, names, what)


# ---- one step -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CellStep:
    """A step of one layer and what led to it.

    Attributes:
        reads: what the layer reads, ``[1, H_in]``: the word's vector in the first layer.
        before: the layer's state after step t - 1, ``[1, ...]``.
        lines: the equations with the numbers of one unit.
    """

    reads: Tensor
    before: State
    lines: list[Line]


@torch.no_grad()
def step_lines(situation: Situation, *, layer: int | None = None, unit: int = 0) -> CellStep:
    """The last step of a situation in one layer: the equations of ``nn/cells.py``, with the numbers of one unit.

    Args:
        situation: what is read.
        layer: from 1; None for the last.
        unit: from 0.

    Raises:
        UserError: there is no such layer or unit.
    """
    index = situation.layer(layer, unit) - 1
    stack, unrolled = situation.stack, situation.unrolled
    taken = unrolled.step(len(unrolled) - 1)
    reads = taken.reads[index].detach()
    before = type(taken.before[index])(*(part.detach() for part in taken.before[index]))
    weights = unrolled.weights[index]
    lines = {"lstm": _lstm, "gru": _gru, "rnn": _rnn}[situation.cell](stack, weights, reads, before)
    return CellStep(
        reads,
        before,
        [
            Line(
                name,
                equation,
                {term: float(numbers[0, unit]) for term, numbers in terms.items()},
                float(value[0, unit]),
            )
            for name, equation, terms, value in lines
        ],
    )


Vectors = list[tuple[str, str, dict[str, Tensor], Tensor]]  # a line's name, equation, terms and value, of all units


def _sums(stack: Recurrent, weights: Weights, reads: Tensor, before: State, gates: int) -> list[dict[str, Tensor]]:
    """What adds up before the nonlinearity, of each block of rows: by the names of the terms."""
    from_hidden = recall(before.hidden, None, weights._replace(bias_hh=None), stack.gate_groups).chunk(gates, -1)
    from_input = drive(reads, weights._replace(bias_ih=None), stack.gate_groups).chunk(gates, -1)
    blocks = []
    for hidden, input, bias in zip(from_hidden, from_input, _biases(weights, gates), strict=True):
        names = _normalised("W_h h(t-1)", stack), _normalised("W_e e(t)", stack)
        blocks.append({names[0]: hidden, names[1]: input, "b": sum(bias, torch.zeros(()))})
    return blocks


def _biases(weights: Weights, gates: int) -> list[tuple[Tensor, Tensor]]:
    """b_ih and b_hh ``[1, H_cell]`` of each block of rows; zeros where there are none."""
    zeros = weights.weight_hh.new_zeros(len(weights.weight_hh))
    parts = [zeros if bias is None else bias for bias in (weights.bias_ih, weights.bias_hh)]
    return list(zip(*(part[None].chunk(gates, -1) for part in parts), strict=True))


def _normalised(term: str, stack: Recurrent) -> str:
    return f"LN({term})" if stack.layer_norm else term


def _equation(text: str, stack: Recurrent) -> str:
    """An equation of ``nn/cells.py``, LN written where the stack has it."""
    for term in ("W_h h(t-1)", "W_e e(t)"):
        text = text.replace(term, _normalised(term, stack))
    return text


def _rnn(stack: Any, weights: Weights, reads: Tensor, before: State) -> Vectors:
    (terms,) = _sums(stack, weights, reads, before, 1)
    value = NONLINEARITIES[stack.nonlinearity](_added(terms))
    return [("h(t)", _equation(f"sigma({SUMS})", stack), terms, value)]


def _lstm(stack: Any, weights: Weights, reads: Tensor, before: Any) -> Vectors:
    blocks = dict(zip(ROWS["lstm"], _sums(stack, weights, reads, before, 4), strict=True))
    lines: Vectors = []
    gates = {}
    for gate in ("forget", "input", "output", "candidate"):
        terms, name = blocks[gate], "tanh" if gate == "candidate" else "sigma"
        gates[gate] = _added(terms).tanh() if gate == "candidate" else _added(terms).sigmoid()
        lines.append((f"{gate}(t)", _equation(f"{name}({SUMS})", stack), terms, gates[gate]))
    cell = gates["forget"] * before.cell + gates["input"] * gates["candidate"]
    terms = {f"{gate}(t)": gates[gate] for gate in ("forget", "input", "candidate")} | {"c(t-1)": before.cell}
    lines.append(("c(t)", "forget(t) * c(t-1) + input(t) * candidate(t)", terms, cell))
    inner = cell
    if weights.gain_cell is not None:
        inner = F.layer_norm(cell, cell.shape[-1:], weights.gain_cell, weights.bias_cell)
    shown = _normalised("c(t)", stack)
    equation, terms = f"output(t) * tanh({shown})", {"output(t)": gates["output"], shown: inner}
    hidden = gates["output"] * inner.tanh()
    if weights.weight_hr is not None:  # all units of the cell, none alone
        hidden = F.linear(hidden, weights.weight_hr)
        equation = f"W_r ({equation})"
        terms = {equation: hidden}
    lines.append(("h(t)", equation, terms, hidden))
    return lines


def _gru(stack: Any, weights: Weights, reads: Tensor, before: State) -> Vectors:
    blocks = dict(zip(ROWS["gru"], _sums(stack, weights, reads, before, 3), strict=True))
    lines: Vectors = []
    gates = {}
    for gate in ("reset", "update"):
        gates[gate] = _added(blocks[gate]).sigmoid()
        lines.append((f"{gate}(t)", _equation(f"sigma({SUMS})", stack), blocks[gate], gates[gate]))
    recalled, driven = _normalised("W_h h(t-1)", stack), _normalised("W_e e(t)", stack)
    sums = blocks["candidate"]
    if stack.reset == "after":
        bias_ih, bias_hh = _biases(weights, 3)[2]
        equation = "tanh(reset(t) * (W_h h(t-1) + b_hh) + W_e e(t) + b_ih)"
        terms = {
            "reset(t)": gates["reset"], recalled: sums[recalled], "b_hh": bias_hh, driven: sums[driven], "b_ih": bias_ih
        }  # fmt: skip
        candidate = (gates["reset"] * (sums[recalled] + bias_hh) + sums[driven] + bias_ih).tanh()
    else:
        size = len(weights.weight_hh) // 3
        rest = weights.split((2 * size, size))[1]._replace(bias_hh=None)
        product = _normalised("W_h (reset(t) * h(t-1))", stack)
        equation = f"tanh({product} + W_e e(t) + b)"
        terms = {product: recall(gates["reset"] * before.hidden, None, rest), driven: sums[driven], "b": sums["b"]}
        candidate = _added(terms).tanh()
    lines.append(("candidate(t)", _equation(equation, stack), terms, candidate))
    hidden = gates["update"] * before.hidden + (1 - gates["update"]) * candidate
    terms = {"update(t)": gates["update"], "h(t-1)": before.hidden, "candidate(t)": candidate}
    lines.append(("h(t)", "update(t) * h(t-1) + (1 - update(t)) * candidate(t)", terms, hidden))
    return lines


def _added(terms: dict[str, Tensor]) -> Tensor:
    first, *others = terms.values()
    return sum(others, first)


# ---- backpropagation through time -----------------------------------------------------------------------------------


def gradient_by_autograd(situation: Situation, *, layer: int | None = None, steps: int = 5) -> Tensor:
    """What autograd gives for the last step's J and the one W_h that a layer has in all of the last ``steps`` steps.

    The state before them is taken as given (truncated backpropagation). It is what the contributions of these steps
    sum to: :func:`recurra.gradients.weight_contributions`.

    Returns:
        ``[gates * H_cell, H_out]``.

    Raises:
        UserError: there is no such layer.
    """
    index = situation.layer(layer) - 1
    unrolled, last = situation.unrolled, len(situation.unrolled) - 1
    shared = unrolled.weights[index].weight_hh.clone().requires_grad_()
    weights = list(unrolled.weights)
    weights[index] = weights[index]._replace(weight_hh=shared)
    first = max(0, last + 1 - steps)
    states, output = unrolled.states[first], unrolled.inputs
    for step in range(first, last + 1):
        taken = unrolled.stack.step(unrolled.inputs[step : step + 1], states, weights)
        states, output = taken.after, taken.output
    (gradient,) = torch.autograd.grad(output, shared, unrolled.seeds[last:])
    return gradient


# ---- clipping -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clipped:
    """A gradient after clipping.

    Attributes:
        gradient: ``[n]``.
        norm: its Euclidean norm.
        largest: the size of its largest entry.
        cosine: of the angle to the gradient before; 1 where the direction is the same.
    """

    gradient: Tensor
    norm: float
    largest: float
    cosine: float


@dataclass(frozen=True)
class ClippedBothWays:
    """A gradient before and after clipping (Pascanu et al. 2013, arXiv:1211.5063, algorithm 1).

    Attributes:
        before: as it was.
        factor: what clipping by norm multiplies it by: min(1, limit / (norm + 1e-6)).
        by_norm: the whole of it made shorter, where it is longer than the limit.
        by_value: every entry cut off at the limit.
    """

    before: Clipped
    factor: float
    by_norm: Clipped
    by_value: Clipped


def clip_both_ways(gradient: Sequence[float] | Tensor, *, norm: float, value: float) -> ClippedBothWays:
    """Clip a gradient both ways, by what the trainer does (:func:`recurra.optimization.clip_gradients`).

    Args:
        gradient: n numbers.
        norm: the limit of the norm.
        value: the limit of an entry.

    Raises:
        UserError: no numbers, one that is not finite, or a limit that is not above 0.
    """
    for name, limit in (("norm", norm), ("value", value)):
        if not (limit > 0 and math.isfinite(limit)):
            raise UserError(f"{name}: expected a number above 0, got {limit}")
    given = torch.as_tensor(gradient, dtype=torch.float64).detach().flatten()
    if not len(given) or not bool(given.isfinite().all()):
        raise UserError("gradient: expected at least one number, all of them finite")

    def clipped(**limits: float | None) -> Clipped:
        parameter = nn.Parameter(torch.zeros_like(given))
        parameter.grad = given.clone()
        clip_gradients([parameter], **limits)
        after = parameter.grad
        lengths = float(after.norm()) * float(given.norm())
        cosine = float(after @ given) / lengths if lengths else 1.0
        return Clipped(after, float(after.norm()), float(after.abs().max()), cosine)

    before = clipped(norm=None, value=None)
    if not math.isfinite(before.norm):
        raise UserError("gradient: its norm is larger than floats can be; give smaller numbers")
    factor = min(1.0, norm / (before.norm + 1e-6))
    return ClippedBothWays(before, factor, clipped(norm=norm, value=None), clipped(norm=None, value=value))


def text_gradient(lm: LanguageModel, text: str) -> Tensor:
    """The gradient of a text's mean surprisal with respect to all of a model's weights, ``[weights]``.

    The state starts anew where it did in training, as in evaluation.

    Raises:
        UserError: another kind of model, or an empty text.
    """
    if not isinstance(lm.model, RecurrentLM):
        raise UserError(f"expected a recurrent language model (lm), this one is of kind {lm.kind!r}")
    ids = lm.tokenizer.encode(text)
    if not len(ids):
        raise UserError("text: expected at least one token; the text is empty")
    stream = TokenStream.from_tokens(ids)
    starts = row_starts(lm.model.settings.reset, stream.document_starts, stream.line_starts)
    targets = torch.from_numpy(np.asarray(ids, np.int64))[:, None]
    resets = torch.zeros_like(targets, dtype=torch.bool)
    resets[np.asarray(starts, np.int64)] = True
    model = copy.deepcopy(lm.model).cpu().double().eval()
    inputs = torch.cat((torch.full_like(targets[:1], LINE_END), targets[:-1]))
    loss, _ = model(Batch(inputs, targets, resets=resets))
    loss.mean.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return torch.cat([(grad.to_dense() if grad.is_sparse else grad).flatten() for grad in gradients])
