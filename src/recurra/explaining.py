"""The numbers behind the equations: one step of a cell line by line, a gradient step by step, clipping.

Everything is computed in float64, whatever the model's weights are saved in. Layers are counted from 1, units from 0.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from recurra.config import UserError
from recurra.language_model import LanguageModel
from recurra.models.neural import Reading
from recurra.models.recurrent_lm import CELLS, RecurrentLM
from recurra.nn.cells import NONLINEARITIES, HiddenState, LSTMState, State, Weights, drive, recall
from recurra.nn.recurrent import Recurrent
from recurra.optimization import clip_gradients
from recurra.text.batches import Batch
from recurra.text.vocabulary import LINE_END

__all__ = [
    "Clipped",
    "Clipping",
    "Contributions",
    "Line",
    "Situation",
    "Step",
    "clipping",
    "contributions",
    "fresh",
    "reading",
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
    """A stack and what it reads, T steps from the zero state.

    Attributes:
        stack: float64, without dropout.
        cell: ``lstm``, ``gru`` or ``rnn``.
        words: e(1) to e(T), ``[T, 1, H_in]``.
        reads: what to call them.
        loss: J as a function of the last step's output ``[1, H_out]``.
        what: J in words.
    """

    stack: Recurrent
    cell: str
    words: Tensor
    reads: list[str]
    loss: Callable[[Tensor], Tensor]
    what: str

    def check(self, layer: int, unit: int) -> None:
        """Raise UserError where there is no such layer or unit."""
        if not 1 <= layer <= self.stack.num_layers:
            raise UserError(f"layer: expected 1 to {self.stack.num_layers}, got {layer}")
        size = self.stack.hidden_widths[layer - 1]
        if not 0 <= unit < size:
            raise UserError(f"unit: expected 0 to {size - 1}, got {unit}")


def fresh(cell: str, *, seed: int = 1, steps: int = 5) -> Situation:
    """A layer of 4 units that reads random vectors of 3 features; J is half the squared distance of h(T) from a target.

    Args:
        cell: ``lstm``, ``gru`` or ``rnn``.
        seed: of weights, vectors and target.
        steps: T.

    Raises:
        UserError: a seed that is too large.
    """
    if seed > 2**53:
        raise UserError(f"seed: expected 0 to {2**53}, got {seed}")
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        stack = CELLS[cell](INPUT_SIZE, HIDDEN_SIZE, dtype=torch.float64).eval()
        words = torch.randn(steps, 1, INPUT_SIZE, dtype=torch.float64)
        target = torch.rand(1, HIDDEN_SIZE, dtype=torch.float64) * 2 - 1
    return Situation(
        stack,
        cell,
        words,
        [f"e({step})" for step in range(1, steps + 1)],
        lambda output: 0.5 * ((output - target) ** 2).sum(),
        "half the squared distance of h(T) from a target",
    )


def reading(lm: LanguageModel, text: str, *, target: bool = False) -> Situation:
    """A recurrent language model that reads a text, from the line end before it.

    Args:
        lm: the model.
        text: as it stands; of a model whose lines are independent only the last line counts.
        target: keep the last token back, as what is to be predicted: J is its surprisal in nats.

    Raises:
        UserError: another kind of model, or nothing to predict.
    """
    if not isinstance(lm.model, RecurrentLM):
        raise UserError(f"expected a recurrent language model (lm), this one is of kind {lm.kind!r}")
    ids: list[int] = [LINE_END, *lm.tokenizer.encode(text).tolist()]
    goal = LINE_END
    if target:
        if len(ids) < 2:
            raise UserError("text: expected at least one token, whose surprisal is the loss; give --text")
        goal = ids.pop()
    if lm.model.settings.reset == "lines":
        ids = ids[len(ids) - 1 - ids[::-1].index(LINE_END) :]
    model = copy.deepcopy(lm.model).cpu().double().eval()
    inputs = torch.tensor(ids)[:, None]
    with torch.no_grad():
        words = model.embedding(inputs)
    histories = None
    if model.hashed is not None:
        histories = model.hashed.histories(inputs, model.start(1).words)[0][-1]

    def loss(output: Tensor) -> Tensor:
        vectors = model.output_norm(model.bridge(output))
        return -model.reading_log_probs(Reading(vectors, histories))[0, goal]

    names = [lm.tokenizer.token(id) for id in ids]
    what = f"-log p({lm.tokenizer.token(goal)!r}), the surprisal of what follows, in nats"
    return Situation(model.recurrent, model.settings.cell, words, names, loss, what)


# ---- one step -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
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
def step_lines(situation: Situation, *, layer: int = 1, unit: int = 0) -> Step:
    """The last step of a situation in one layer: the equations of ``nn/cells.py``, with the numbers of one unit.

    Raises:
        UserError: there is no such layer or unit.
    """
    situation.check(layer, unit)
    stack = situation.stack
    _, _, trace = stack(situation.words, None, trace=True)
    reads = below = situation.words[-1]
    for number in range(layer - 1):  # as the stack goes from layer to layer
        output = stack._connect(number, trace.layers[number][0]["hidden"][-1], below)
        below = torch.cat((below, output), -1) if stack.connections == "dense" else output
        reads = below
    own = trace.layers[layer - 1][0]
    width, size = stack.hidden_widths[layer - 1], stack.hidden_sizes[layer - 1]
    past = len(situation.words) > 1
    hidden = own["hidden"][-2] if past else reads.new_zeros(1, width)
    before: State = HiddenState(hidden)
    if stack.state_type is LSTMState:
        before = LSTMState(hidden, own["cell"][-2] if past else reads.new_zeros(1, size))
    weights = stack.weights(layer - 1)
    lines = {"lstm": _lstm, "gru": _gru, "rnn": _rnn}[situation.cell](stack, weights, reads, before)
    return Step(
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


@dataclass(frozen=True)
class Contributions:
    r"""The gradient of one step's loss with respect to W_h, as a sum over the steps that W_h was used at.

    .. math:: \frac{\partial J}{\partial W_h} = \sum_k \left.\frac{\partial J}{\partial W_h}\right|_{(k)}

    (Werbos 1990, "Backpropagation through time: what it does and how to do it".) The summand of step k is the gradient
    with respect to the W_h of step k alone, as if every step had one of its own.

    Attributes:
        loss: J.
        first: the number of the first of the K steps, from 1; the state before it is taken as given (truncated BPTT).
        parts: the summands ``[K, gates * H_cell, H_out]``.
        together: what autograd gives for one W_h in all K steps, ``[gates * H_cell, H_out]``.
    """

    loss: float
    first: int
    parts: Tensor
    together: Tensor

    @property
    def total(self) -> Tensor:
        """The sum over the steps."""
        return self.parts.sum(0)

    @property
    def difference(self) -> float:
        """How far the sum is from what autograd gives, in the entry where it is farthest."""
        return float((self.total - self.together).abs().max())


def contributions(situation: Situation, *, layer: int = 1, steps: int = 5) -> Contributions:
    """Take the gradient of the last step's J apart, over the last ``steps`` steps, or all if there are fewer.

    Raises:
        UserError: there is no such layer.
    """
    situation.check(layer, 0)
    stack, words = situation.stack, situation.words
    count = min(steps, len(words))
    state = stack.initial_state(1)
    if count < len(words):
        with torch.no_grad():
            _, state = stack(words[:-count], state)
    name = f"weight_hh_l{layer - 1}"
    weight = stack.get_parameter(name).detach()
    copies = [weight.clone().requires_grad_() for _ in range(count)]
    reached: Any = state
    for own, word in zip(copies, words[-count:], strict=True):
        output, reached = functional_call(stack, {name: own}, (word[None], reached))
    loss = situation.loss(output[-1])
    parts = torch.stack(torch.autograd.grad(loss, copies))
    shared = weight.clone().requires_grad_()
    output, _ = functional_call(stack, {name: shared}, (words[-count:], state))
    (together,) = torch.autograd.grad(situation.loss(output[-1]), shared)
    return Contributions(float(loss.detach()), len(words) - count + 1, parts, together)


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
class Clipping:
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


def clipping(gradient: Sequence[float] | Tensor, *, norm: float, value: float) -> Clipping:
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
    factor = min(1.0, norm / (before.norm + 1e-6))
    return Clipping(before, factor, clipped(norm=norm, value=None), clipped(norm=None, value=value))


def text_gradient(lm: LanguageModel, text: str) -> Tensor:
    """The gradient of a text's mean surprisal with respect to all of a model's weights, ``[weights]``.

    Raises:
        UserError: another kind of model, or an empty text.
    """
    if not isinstance(lm.model, RecurrentLM):
        raise UserError(f"expected a recurrent language model (lm), this one is of kind {lm.kind!r}")
    ids = torch.tensor([LINE_END, *lm.tokenizer.encode(text).tolist()])[:, None]
    if len(ids) < 2:
        raise UserError("text: expected at least one token; the text is empty")
    model = copy.deepcopy(lm.model).cpu().double().eval()
    loss, _ = model(Batch(ids[:-1], ids[1:]))
    loss.mean.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return torch.cat([(grad.to_dense() if grad.is_sparse else grad).flatten() for grad in gradients])
