r"""How gradients flow back through time in a stack of recurrent layers.

A text is read once, step by step, and every state is kept (:class:`Unrolled`). The way back is gone once too, from the
last step to the first. At step i the vectors :math:`\partial J(t)/\partial h(i)` of *all* losses t >= i are the rows of
one batch, and the equations of one step (``nn/cells.py``, differentiated by autograd) take all of them a step further
back in one matrix product per weight: what T backward passes would read the weights for T times.

Within a step the way is from the top: h of layer l at step i goes into the same layer at i + 1 and into layer l + 1 at
i, and its gradient is the sum of what comes back from both. Everything is in evaluation, without dropout.

Letters: T steps of the text, L layers, H units; J(t) the loss of step t in nats, h(i) and c(i) a layer's hidden and
cell state after step i, W_h its hidden-to-hidden weights. Steps, and layers from the bottom up, are indices from 0;
whoever types a layer's number counts from 1 (:func:`find_layer`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from recurra.config import UserError
from recurra.models.recurrent_lm import RecurrentLM
from recurra.nn import GRU, LSTM, RNN, Recurrent
from recurra.nn.cells import LSTMState, State, Weights, drive
from recurra.plotting import figure_of, save
from recurra.text.vocabulary import LINE_END

__all__ = [
    "Bound",
    "Clipping",
    "Contributions",
    "Decay",
    "GradientMap",
    "Split",
    "Unrolled",
    "check_size",
    "clipping",
    "decay",
    "draw_clipping",
    "draw_contributions",
    "draw_decay",
    "draw_map",
    "find_layer",
    "fresh",
    "gradient_map",
    "half_life",
    "recurrent_bounds",
    "split",
    "state_jacobian",
    "unroll_model",
    "verdict",
    "weight_contributions",
]

Floats = NDArray[np.floating[Any]]
GATES = {1: ("",), 3: ("reset", "update", "candidate"), 4: ("input", "forget", "candidate", "output")}  # rows of W_h
SLOPES = {"tanh": 1.0, "relu": 1.0, "sigmoid": 0.25}  # gamma: what the nonlinearity's derivative never exceeds
CLASSES = 100  # that fresh layers are asked to tell apart
MOST_POINTS = 1000  # of a fitted line: it takes the slopes between all pairs of them
DECADES = 12  # that a heat map shows, from its largest value down


# ---- a text, unrolled -----------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """One step of a stack, differentiable: of each layer the state before and after and the gates, and the output."""

    before: list[State]  # parts [1, H]; leaves
    after: list[State]
    gates: list[dict[str, Tensor]]
    output: Tensor  # [1, F]


class Unrolled:
    """A stack that has read one text, with all its states, and the loss of every step.

    Args:
        stack: in evaluation, of one direction; every option of :class:`recurra.nn.Recurrent` is there, also a
            projection, layer normalisation and connections between layers.
        inputs: what its first layer reads, ``[T, H_in]``.
        loss: from the stack's outputs ``[T, F]`` to J ``[T]`` in nats, each of its own step's output alone.
        starts: steps before which the state starts anew; step 0 is always one.

    Attributes:
        losses: J(t) ``[T]``.
        seeds: the gradients of J(t) with respect to the stack's output at t, ``[T, F]``.

    Raises:
        ValueError: the stack is in training or bidirectional, or there are no steps.
    """

    def __init__(
        self, stack: Recurrent, inputs: Tensor, loss: Callable[[Tensor], Tensor], *, starts: Iterable[int] = ()
    ) -> None:
        if stack.training:
            raise ValueError("gradients through time are those of evaluation: call eval() first")
        if stack.bidirectional:
            raise ValueError("expected a stack of one direction: backwards, t >= i has no meaning")
        if not len(inputs):
            raise ValueError("expected at least one step")
        self.stack = stack
        self.inputs = inputs.detach()
        self.starts = {0, *map(int, starts)}
        self._weights = [_detached(stack.weights(layer)) for layer in range(stack.num_layers)]
        self._states: list[list[State]] = []  # before each step
        outputs = []
        with torch.no_grad():
            state: list[State] = []
            for step in range(len(inputs)):
                if step in self.starts:
                    state = stack._zeros(1, self.inputs)
                self._states.append(state)
                taken = self._take(step, state, self._weights)
                state = taken.after
                outputs.append(taken.output)
        with torch.enable_grad():
            found = torch.cat(outputs).requires_grad_()
            losses = loss(found)
            if losses.shape != (len(inputs),):
                raise ValueError(f"expected one loss for each of {len(inputs)} steps, got {tuple(losses.shape)}")
            # J(t) is a function of the output at t alone, so the sum's gradient is all of theirs.
            (self.seeds,) = torch.autograd.grad(losses.sum(), found)
        self.losses = losses.detach()

    def __len__(self) -> int:
        return len(self.inputs)

    def step(self, number: int, weights: Sequence[Weights] | None = None) -> Step:
        """Take a step once more, so that it can be differentiated; weights in place of the stack's may be given."""
        before = [_mapped(lambda part: part.detach().requires_grad_(), state) for state in self._states[number]]
        with torch.enable_grad():
            return self._take(number, before, self._weights if weights is None else weights)

    def _take(self, number: int, before: list[State], weights: Sequence[Weights]) -> Step:
        stack = self.stack
        output = below = self.inputs[number : number + 1]
        after, gates = [], []
        for layer, (state, own) in enumerate(zip(before, weights, strict=True)):
            state, found = stack._step(own, state)(drive(below, own, stack.gate_groups), state)
            output = stack._connect(layer, state.hidden, below)
            below = torch.cat((below, output), -1) if stack.connections == "dense" else output
            after.append(state)
            gates.append(found)
        return Step(before, after, gates, output)


def unroll_model(model: RecurrentLM, tokens: ArrayLike, *, starts: Iterable[int] = ()) -> Unrolled:
    """Read a text by a recurrent language model.

    Args:
        model: in evaluation; of float64 for gradients that vanish below what float32 holds.
        tokens: the text, ids ``[T]``. J(t) is -log p(tokens[t]), and what is read at step t is the token before it, at
            step 0 a line end.
        starts: places in the text before which the state starts anew (``settings.reset`` of the model).

    Raises:
        UserError: another kind of model, or no text.
    """
    if not isinstance(model, RecurrentLM):
        raise UserError(
            f"{type(model).__name__} has no gradients through time: give a recurrent language model (train lm)"
        )
    device = model.recurrent.weight_ih_l0.device
    targets = torch.from_numpy(np.asarray(tokens, np.int64)).to(device)
    if not len(targets):
        raise UserError("the text is empty: there is nothing whose gradient could be taken")
    inputs = torch.cat((targets.new_full((1,), LINE_END), targets[:-1]))[:, None]
    starts = {0, *map(int, starts)}
    with torch.no_grad():
        words = model.embedding(inputs)[:, 0]
        histories = None
        if model.hashed is not None:
            resets = torch.zeros_like(inputs, dtype=torch.bool)
            resets[sorted(starts)] = True
            histories = model.hashed.histories(inputs, model.hashed.start(1), resets=resets)[0]

    def loss(outputs: Tensor) -> Tensor:
        hidden = model.output_norm(model.bridge(outputs))[:, None]
        given = () if histories is None else (histories,)
        log_probs: Tensor = model.output.log_probs(hidden, targets[:, None], *given)
        return -log_probs[:, 0]

    stack: Recurrent = model.recurrent
    return Unrolled(stack, words, loss, starts=starts)


def fresh(
    cell: str,
    *,
    hidden_size: int = 128,
    layers: int = 1,
    length: int = 200,
    seed: int = 1,
    nonlinearity: str = "tanh",
    recurrent_scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> Unrolled:
    """Fresh layers that read noise, drawn from the normal distribution; J(t) is of a fresh softmax over random classes.

    Args:
        cell: ``rnn``, ``lstm`` or ``gru``; weights as torch.nn draws them.
        hidden_size: H, and the size of the inputs.
        layers: L.
        length: T.
        seed: of weights, inputs and classes; the same ones every time.
        nonlinearity: of the rnn.
        recurrent_scale: what W_h is multiplied by.
        dtype: of everything.

    Raises:
        UserError: no such cell.
    """
    kinds: dict[str, Callable[..., Recurrent]] = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
    if cell not in kinds:
        raise UserError(f"cell: expected rnn, lstm or gru, got {cell!r}")
    options = {"nonlinearity": nonlinearity} if cell == "rnn" else {}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        stack = kinds[cell](hidden_size, hidden_size, layers, dtype=dtype, **options).eval()
        for layer in range(layers):
            stack.weights(layer).weight_hh.mul_(recurrent_scale)
        inputs = torch.randn(length, hidden_size, dtype=dtype)
        scores = torch.nn.Linear(hidden_size, CLASSES, dtype=dtype)
        targets = torch.randint(CLASSES, (length,))
    return Unrolled(stack, inputs, lambda outputs: F.cross_entropy(scores(outputs), targets, reduction="none"))


def find_layer(unrolled: Unrolled, number: int | None) -> int:
    """The index of a layer that is numbered from 1, the lowest, to L; of the last for None.

    Raises:
        UserError: there is no such layer.
    """
    layers = unrolled.stack.num_layers
    if number is None:
        return layers - 1
    if not 1 <= number <= layers:
        raise UserError(f"layer {number}: the model has {layers}, numbered from 1, which reads the words")
    return number - 1


# ---- pairs of steps -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GradientMap:
    """Norms of the gradients of losses with respect to states.

    Attributes:
        steps: t of each row, ``[R]``, rising.
        hidden: the norm of the gradient of J(t) with respect to h(i) of a layer, ``[L, R, T]``, in nats per unit of h;
            0 where i > t or the state started anew between them.
        cell: the same with respect to c(i) of an LSTM as it goes on to the next step and to h(i); None otherwise.
        starts: steps before which the state started anew, rising from 0.
    """

    steps: NDArray[np.int64]
    hidden: Floats
    cell: Floats | None
    starts: tuple[int, ...]


def check_size(layers: int, steps: int, stride: int, available: float, *, itemsize: int = 8, parts: int = 1) -> None:
    """Refuse a map that does not fit into memory.

    Args:
        layers: L.
        steps: T.
        stride: as for :func:`gradient_map`.
        available: bytes.
        itemsize: bytes of a number.
        parts: of the state that have norms: 2 in an LSTM.

    Raises:
        UserError: it does not fit.
    """
    row = parts * layers * steps * itemsize
    needed = row * len(range(stride - 1, steps, stride))
    if needed > available:
        enough = next((s for s in (2**k for k in range(1, 63)) if row * (steps // s) <= available / 2), steps)
        raise UserError(
            f"pairs of {steps:,} steps take {needed / 1e9:.3g} GB of memory, there are {available / 1e9:.3g}: give"
            f" --stride {max(enough, 2 * stride)} to follow only some losses, or a smaller --length"
        )


def gradient_map(unrolled: Unrolled, *, stride: int = 1) -> GradientMap:
    r"""The norms :math:`\|\partial J(t)/\partial h(i)\|` of every pair t >= i and every layer, in one pass backwards.

    The gradient is the whole one: through time and through the layers above. By the chain of Jacobians
    :math:`\partial J(t)/\partial h(i) = \partial J(t)/\partial h(t) \prod_{i < j \le t} \partial h(j)/\partial h(j-1)`
    in a single layer of a simple RNN or a GRU.

    Args:
        unrolled: the text that was read.
        stride: follow every so manieth loss only, t = stride - 1, 2 * stride - 1, ...; time and memory fall alike.

    Raises:
        UserError: a stride longer than the text.
    """
    stack, count = unrolled.stack, len(unrolled)
    steps = torch.arange(stride - 1, count, stride)
    if not len(steps):
        raise UserError(f"stride {stride} is longer than the text of {count} steps: give a smaller one")
    rows, of_lstm = len(steps), stack.state_type is LSTMState
    norms = unrolled.inputs.new_zeros(2 if of_lstm else 1, stack.num_layers, rows, count)
    # What has come back to the state before the step at hand: of each row, that is of each t.
    carried = [_mapped(lambda part: part.new_zeros(rows, *part.shape), state) for state in unrolled._states[0]]
    for i in reversed(range(count)):
        first = -(-max(0, i - stride + 1) // stride)  # the first row with t >= i
        if first == rows:
            continue
        step = unrolled.step(i)
        outputs = [part for state in step.after for part in state]
        vectors = [part[first:] for state in carried for part in state]
        if int(steps[first]) == i:
            seed = unrolled.seeds.new_zeros(rows - first, *step.output.shape)
            seed[0, 0] = unrolled.seeds[i]
            outputs.append(step.output)
            vectors.append(seed)
        inputs = [part for state in step.after for part in state] + [part for state in step.before for part in state]
        found = list(torch.autograd.grad(outputs, inputs, vectors, is_grads_batched=True, allow_unused=True))
        before = found[len(found) // 2 :]
        for number, gradient in enumerate(found[: len(found) // 2]):
            layer, part = divmod(number, len(norms))
            if gradient is not None:
                norms[part, layer, first:, i] = torch.linalg.vector_norm(gradient, dim=-1)[:, 0]
        targets = [part[first:] for state in carried for part in state]
        for target, gradient in zip(targets, before, strict=True):
            if gradient is None or i in unrolled.starts:
                target.zero_()
            else:
                target.copy_(gradient)
    values = norms.cpu().numpy()
    starts = tuple(sorted(unrolled.starts))
    return GradientMap(steps.numpy(), values[0], values[1] if of_lstm else None, starts)


# ---- one step -------------------------------------------------------------------------------------------------------


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
    if any(stack._zoneouts):
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

    @property
    def may_explode(self) -> bool:
        """Whether it is above 1 / gamma, without which gradients cannot explode; True where the bound is not valid."""
        return self.gamma is None or self.largest_singular > 1 / self.gamma


def recurrent_bounds(stack: Recurrent, layer: int) -> list[Bound]:
    """The bound of Pascanu et al. (2013, section 2.1) for a layer, and the same numbers for each gate's rows of W_h."""
    plain = stack.gate_count == 1 and not stack.layer_norm and not any(stack._zoneouts)
    gamma = SLOPES[str(stack.nonlinearity)] if plain else None
    found = []
    blocks = stack.weights(layer).weight_hh.detach().chunk(stack.gate_count)
    for gate, block in zip(GATES[stack.gate_count], blocks, strict=True):
        matrix = block.double().cpu()
        square = matrix.shape[0] == matrix.shape[1]
        radius = float(torch.linalg.eigvals(matrix).abs().max()) if square else None
        found.append(Bound(gate, float(torch.linalg.svdvals(matrix)[0]), radius, gamma))
    return found


def verdict(bounds: Sequence[Bound], singular_values: Iterable[ArrayLike]) -> str:
    """What is certain about gradients that go through many steps of a layer.

    Args:
        bounds: from :func:`recurrent_bounds`.
        singular_values: of the Jacobian of the layer's whole state at some steps.

    Returns:
        ``vanish``: W_h makes every gradient shorter at every step of any text, or each of the Jacobians does.
        ``explode``: each of the Jacobians makes every gradient longer; W_h alone can only allow it, as the condition of
        Pascanu et al. is necessary, not sufficient. Else ``neither can be said``.
    """
    values = [np.asarray(each) for each in singular_values]
    if any(bound.must_vanish for bound in bounds) or (values and all(each.max() < 1 for each in values)):
        return "vanish"
    if all(bound.may_explode for bound in bounds) and values and all(each.min() > 1 for each in values):
        return "explode"
    return "neither can be said"


# ---- the gradient of the weights ------------------------------------------------------------------------------------


class Contributions(NamedTuple):
    r"""The gradient of a loss with respect to a layer's W_h, by the steps at which W_h was used.

    Attributes:
        total: :math:`\partial J/\partial W_h`, of the shape of ``weight_hh``: the sum of what the steps contribute.
        norms: of the contribution of each step, ``[T]``.
        shares: how much of the total each contributes, ``[T]``: its component along the total, over the total's norm;
            they sum to 1, and one below 0 pulls the other way. Zeros if the total is 0.
    """

    total: Tensor
    norms: Floats
    shares: Floats


def weight_contributions(unrolled: Unrolled, *, target: int | None = None) -> list[Contributions]:
    r"""Split :math:`\partial J/\partial W_h = \sum_i \partial J/\partial W_h|_{(i)}` of each layer by step.

    Args:
        unrolled: the text that was read.
        target: t, for J = J(t); None for the sum of all losses.

    Raises:
        UserError: no such step.
    """
    count = len(unrolled)
    if target is not None and not 0 <= target < count:
        raise UserError(f"step {target}: the text has {count}, from 0 to {count - 1}")
    layers = range(unrolled.stack.num_layers)
    totals = [torch.zeros_like(unrolled.stack.weights(layer).weight_hh) for layer in layers]
    norms, along = np.zeros((len(layers), count)), np.zeros((len(layers), count))
    with torch.no_grad():
        for step, parts in _by_step(unrolled, target):
            for layer, part in enumerate(parts):
                totals[layer] += part
                norms[layer, step] = float(part.norm())
        for step, parts in _by_step(
            unrolled, target
        ):  # again, now that the totals are known: to keep all takes T * W_h
            for layer, part in enumerate(parts):
                along[layer, step] = float((part * totals[layer]).sum())
    squares = [float(total.square().sum()) for total in totals]
    return [Contributions(totals[n], norms[n], along[n] / (squares[n] or 1.0)) for n in layers]


def _by_step(unrolled: Unrolled, target: int | None) -> Iterator[tuple[int, list[Tensor]]]:
    """What each step, the last first, contributes to the gradient of every layer's W_h."""
    carried = [_mapped(torch.zeros_like, state) for state in unrolled._states[0]]
    for i in reversed(range(len(unrolled) if target is None else target + 1)):
        weights = [own._replace(weight_hh=own.weight_hh.detach().requires_grad_()) for own in unrolled._weights]
        step = unrolled.step(i, weights)
        outputs = [part for state in step.after for part in state]
        vectors = [part for state in carried for part in state]
        if target is None or target == i:
            outputs.append(step.output)
            vectors.append(unrolled.seeds[i : i + 1])
        own = [each.weight_hh for each in weights]
        before = [part for state in step.before for part in state]
        found = torch.autograd.grad(outputs, [*own, *before], vectors, allow_unused=True, materialize_grads=True)
        yield i, list(found[: len(own)])
        rest = iter(found[len(own) :])
        new = [type(state)(*(next(rest) for _ in state)) for state in step.before]
        carried = [_mapped(torch.zeros_like, state) for state in new] if i in unrolled.starts else new


# ---- against distance -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decay:
    """How gradients fall with distance.

    Attributes:
        distances: k, ``[K]``, from 0.
        relative: the mean over t of the gradient's norm at h(t-k), over the mean at h(t) for the same t, ``[K]``.
        counts: pairs that each is the mean of, ``[K]``.
        half_life: steps in which it falls to half by the fitted line; infinite if it does not fall, NaN if nothing
            could be fitted.
        fitted: the largest k of the fit.
    """

    distances: NDArray[np.int64]
    relative: Floats
    counts: NDArray[np.int64]
    half_life: float
    fitted: int


def decay(map: GradientMap, layer: int = -1) -> Decay:
    """Average a map over t, by distance; pairs with a start between them do not count.

    The half-life is fitted where at least half of the losses have a state as far back: beyond, few say much.
    """
    steps, norms = map.steps, map.hidden[layer].astype(np.float64)
    starts = np.asarray(map.starts)
    reach = steps - starts[np.searchsorted(starts, steps, side="right") - 1]  # how far back the state goes
    at_zero = norms[np.arange(len(steps)), steps]
    distances = np.arange(int(reach.max()) + 1)
    relative, counts = np.zeros(len(distances)), np.zeros(len(distances), np.int64)
    for k in distances:
        rows = np.flatnonzero(reach >= k)
        whole = at_zero[rows].sum()
        relative[k] = norms[rows, steps[rows] - k].sum() / whole if whole > 0 else np.nan
        counts[k] = len(rows)
    enough = np.flatnonzero(counts >= len(steps) / 2)
    last = int(enough[-1])
    return Decay(distances, relative, counts, half_life(distances[1 : last + 1], relative[1 : last + 1]), last)


def half_life(distances: ArrayLike, values: ArrayLike) -> float:
    """Steps in which values fall to half, by a line through their logarithms.

    The line's slope is the median of the slopes between all pairs of points (Theil 1950, Sen 1968), so that up to 29 %
    of the points may lie anywhere. Values that are not above 0 and those at the edge of what floats hold are left out.

    Returns:
        Infinity if they do not fall; NaN for fewer than two values.
    """
    k, v = np.asarray(distances, np.float64), np.asarray(values, np.float64)
    usable = np.isfinite(v) & (v > 1e-300)
    k, v = k[usable], np.log(v[usable])
    if len(k) > MOST_POINTS:
        chosen = np.linspace(0, len(k) - 1, MOST_POINTS).astype(np.int64)
        k, v = k[chosen], v[chosen]
    if len(k) < 2:
        return math.nan
    left, right = np.triu_indices(len(k), 1)
    slope = float(np.median((v[right] - v[left]) / (k[right] - k[left])))
    return -math.log(2) / slope if slope < 0 else math.inf


# ---- in training ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clipping:
    """The joint norm of all gradients at the training steps that the log has, before and after clipping.

    Attributes:
        clip_norm: the largest that is let through; None for no clipping.
        steps: ``[S]``.
        before: ``[S]``, in nats per token and unit of the weights.
        after: ``[S]``.
    """

    clip_norm: float | None
    steps: NDArray[np.int64]
    before: Floats
    after: Floats

    @property
    def acted(self) -> NDArray[np.bool_]:
        """At which of the steps the norm was above the limit, ``[S]``."""
        return self.before > (math.inf if self.clip_norm is None else self.clip_norm)


def clipping(lines: Iterable[Mapping[str, Any]], *, clip_norm: float | None, clip_value: float = 0.0) -> Clipping:
    """Say what clipping did, from what training logged.

    Args:
        lines: of ``log.jsonl``; those without ``gradient_norm`` are passed over.
        clip_norm: of the training's settings; None or 0 for none.
        clip_value: likewise.

    Raises:
        UserError: no norms were logged, or gradients were clipped by value too: what that left the log does not say.
    """
    if clip_value:
        raise UserError(
            f"gradients were clipped by value (clip_value {clip_value:g}): the log does not say what was left"
        )
    logged = [(line["step"], line["gradient_norm"]) for line in lines if "gradient_norm" in line]
    if not logged:
        raise UserError("the log has no gradient norms yet: train for longer, or with a smaller --log-every")
    steps, before = np.asarray([step for step, _ in logged], np.int64), np.asarray([norm for _, norm in logged], float)
    # As `clip_gradients` has it.
    factors = np.minimum(1.0, clip_norm / (before + 1e-6)) if clip_norm else np.ones_like(before)
    return Clipping(clip_norm or None, steps, before, before * factors)


# ---- pictures -------------------------------------------------------------------------------------------------------


def draw_map(map: GradientMap, layer: int, path: Path, *, title: str = "") -> None:
    """Draw the norms of all pairs as a heat map on a logarithmic scale of greys: black is large.

    Args:
        map: the norms.
        layer: whose.
        path: the picture; its suffix names the format.
        title: what stands above it.

    Raises:
        UserError: matplotlib is missing, or all gradients are 0.
    """
    norms = np.ma.masked_less_equal(map.hidden[layer].astype(np.float64), 0)
    if norms.count() == 0:
        raise UserError("all gradients are 0: there is nothing to draw")
    figure = figure_of(6.0, 5.0)
    from matplotlib.colors import LogNorm

    axes = figure.add_subplot()
    largest = float(norms.max())
    smallest = max(float(norms.min()), largest * 10.0**-DECADES)
    scale = LogNorm(smallest if smallest < largest else largest / 10, largest)
    steps, count = map.steps, norms.shape[1]
    half = (steps[1] - steps[0]) / 2 if len(steps) > 1 else 0.5
    extent = (-0.5, count - 0.5, steps[-1] + half, steps[0] - half)
    picture = axes.imshow(
        norms, cmap="gray_r", norm=scale, extent=extent, aspect="auto", interpolation="nearest", origin="upper"
    )
    axes.set_xlabel("i, step of the state h(i) (tokens)")
    axes.set_ylabel("t, step of the loss J(t) (tokens)")
    axes.set_title(title, fontsize="medium", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    bar = figure.colorbar(picture, ax=axes, extend="min" if float(norms.min()) < smallest else "neither")
    bar.set_label("‖∂J(t)/∂h(i)‖ (nats per unit of h)")
    bar.outline.set_visible(False)
    save(figure, path)


def draw_decay(curves: Mapping[str, Decay], path: Path, *, title: str = "") -> None:
    """Draw how gradients fall with distance, a curve for each name, on a logarithmic scale.

    Raises:
        UserError: matplotlib is missing.
    """
    figure = figure_of(6.4, 4.0)
    axes = figure.add_subplot()
    styles = ("-", "--", ":", "-.")
    for number, (name, curve) in enumerate(curves.items()):
        shown = curve.relative > 0
        axes.plot(
            curve.distances[shown],
            curve.relative[shown],
            color=str(0.0 if len(curves) == 1 else 0.6 * number / (len(curves) - 1)),
            linestyle=styles[number % len(styles)],
            linewidth=1.4,
            label=f"{name}: {in_words(curve.half_life)}",
        )
    axes.set_yscale("log")
    axes.set_xlabel("distance k (tokens)")
    axes.set_ylabel("‖∂J(t)/∂h(t−k)‖ relative to k = 0")
    axes.set_title(title, fontsize="medium", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save(figure, path)


def draw_contributions(found: Contributions, path: Path, *, title: str = "") -> None:
    """Draw the norm of what each step contributes to the gradient of W_h.

    Raises:
        UserError: matplotlib is missing.
    """
    figure = figure_of(6.4, 3.4)
    axes = figure.add_subplot()
    axes.fill_between(np.arange(len(found.norms)), found.norms, step="mid", color="0.6", linewidth=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("i, step at which W_h was used (tokens)")
    axes.set_ylabel("norm of ∂J/∂W_h at step i\n(nats per unit of W_h)")
    axes.set_title(title, fontsize="medium", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def draw_clipping(found: Clipping, path: Path, *, title: str = "") -> None:
    """Draw the norms of gradients in training, before and after clipping.

    Raises:
        UserError: matplotlib is missing.
    """
    figure = figure_of(6.4, 4.0)
    axes = figure.add_subplot()
    axes.plot(found.steps, found.before, color="0.6", linewidth=1, label="before clipping")
    axes.plot(found.steps, found.after, color="black", linewidth=1, label="after clipping")
    if found.clip_norm is not None:
        axes.axhline(found.clip_norm, color="black", linewidth=0.6, linestyle=":", label=f"limit {found.clip_norm:g}")
    axes.set_yscale("log")
    axes.set_xlabel("training step")
    axes.set_ylabel("norm of the gradient (nats per token)")
    axes.set_title(title, fontsize="medium", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save(figure, path)


def in_words(half_life: float) -> str:
    """A half-life as a text has it."""
    if math.isnan(half_life):
        return "no half-life"
    return "does not fall" if math.isinf(half_life) else f"half-life {half_life:.3g} tokens"


# ---- parts ----------------------------------------------------------------------------------------------------------


def _detached(weights: Weights) -> Weights:
    return Weights(*(None if weight is None else weight.detach() for weight in weights))  # type: ignore[arg-type]


def _mapped(change: Callable[[Tensor], Tensor], state: State) -> State:
    return type(state)(*map(change, state))


def _block(output: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Jacobians of ``output [1, A]`` with respect to each of ``inputs [1, B]``, ``[A, B]``: a row for each output."""
    rows = torch.eye(output.shape[1], dtype=output.dtype, device=output.device)[:, None]
    found = torch.autograd.grad(output, inputs, rows, is_grads_batched=True, allow_unused=True, retain_graph=True)
    return [
        output.new_zeros(output.shape[1], part.shape[1]) if gradient is None else gradient[:, 0]
        for gradient, part in zip(found, inputs, strict=True)
    ]
