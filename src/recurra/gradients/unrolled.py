"""A text that a stack of recurrent layers has read, with every state, ready for the way back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from recurra.config import UserError
from recurra.models.recurrent_lm import RecurrentLM
from recurra.nn import GRU, LSTM, RNN, Recurrent
from recurra.nn.cells import State, Weights
from recurra.nn.recurrent import StackStep
from recurra.text.vocabulary import LINE_END

__all__ = ["Unrolled", "check_seed", "find_layer", "fresh", "mapped", "norm_of", "unroll_model"]

CLASSES = 100  # that fresh layers are asked to tell apart
LARGEST_SEED = 2**53


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
        states: of each step the layers' states before it, parts ``[1, H]``.
        weights: of each layer, not to be differentiated.
        starts: as given, and 0.

    Raises:
        UserError: states or losses that are not finite any more.
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
        self.weights = [_detached(stack.weights(layer)) for layer in range(stack.num_layers)]
        self.states: list[list[State]] = []  # before each step
        outputs = []
        with torch.no_grad():
            state: list[State] | None = None
            for step in range(len(inputs)):
                before = None if step in self.starts else state
                taken = stack.step(self.inputs[step : step + 1], before, self.weights)
                if not all(bool(part.isfinite().all()) for after in taken.after for part in after):
                    raise UserError(f"the state is not finite from step {step} on; shorten the text (--length)")
                self.states.append(taken.before)
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
        finite = self.losses.isfinite() & self.seeds.isfinite().all(1)
        if not bool(finite.all()):
            raise UserError(
                f"the loss is not finite at step {int((~finite).nonzero()[0])}; shorten the text (--length)"
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def step(self, number: int, weights: Sequence[Weights] | None = None) -> StackStep:
        """Take a step once more, so that it can be differentiated; weights in place of the stack's may be given.

        The states before it are leaves of their own: nothing goes back beyond them.
        """
        before = [mapped(lambda part: part.detach().requires_grad_(), state) for state in self.states[number]]
        with torch.enable_grad():
            inputs = self.inputs[number : number + 1]
            return self.stack.step(inputs, before, self.weights if weights is None else weights)

    @property
    def continued(self) -> list[int]:
        """Steps that have a step before them, all but the starts: those with a Jacobian that gradients go through."""
        return [step for step in range(len(self)) if step not in self.starts]


def unroll_model(model: RecurrentLM, tokens: ArrayLike, *, starts: Iterable[int] = ()) -> Unrolled:
    """Read a text by a recurrent language model.

    Args:
        model: in evaluation; of float64 for gradients that vanish below what float32 holds.
        tokens: the text, ids ``[T]``. J(t) is -log p(tokens[t]), and what is read at step t is the token before it, at
            step 0 a line end.
        starts: places in the text before which the state starts anew (``settings.reset`` of the model).

    Raises:
        UserError: another kind of model, no text, or states or losses that are not finite.
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
    forget_bias: float | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
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
        forget_bias: where the bias of the lstm's forget gate is; None to draw it as all others.
        dtype: of everything; what is drawn is the same in all.
        device: likewise.

    Raises:
        UserError: no such cell, a number out of its range, or states that are not finite any more.
    """
    kinds: dict[str, Callable[..., Recurrent]] = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
    if cell not in kinds:
        raise UserError(f"cell: expected rnn, lstm or gru, got {cell!r}")
    check_seed(seed)
    for name, value in (("recurrent_scale", recurrent_scale), ("forget_bias", forget_bias or 0.0)):
        if not math.isfinite(value):
            raise UserError(f"{name}: expected a finite number, got {value}")
    if forget_bias is not None and cell != "lstm":
        raise UserError(f"forget_bias: only an lstm has a forget gate, not a fresh {cell}; leave it out")
    choices: dict[str, dict[str, Any]] = {"rnn": {"nonlinearity": nonlinearity}, "lstm": {"forget_bias": forget_bias}}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        stack = kinds[cell](hidden_size, hidden_size, layers, dtype=torch.float64, **choices.get(cell, {})).eval()
        for layer in range(layers):
            stack.weights(layer).weight_hh.mul_(recurrent_scale)
        inputs = torch.randn(length, hidden_size, dtype=torch.float64).to(device, dtype)
        scores = torch.nn.Linear(hidden_size, CLASSES, dtype=torch.float64).to(device, dtype)
        targets = torch.randint(CLASSES, (length,)).to(device)
    return Unrolled(
        stack.to(device, dtype), inputs, lambda outputs: F.cross_entropy(scores(outputs), targets, reduction="none")
    )


def check_seed(seed: int) -> None:
    """Refuse a seed that is no seed.

    Raises:
        UserError: it is below 0, or too large.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"seed: expected 0 to {LARGEST_SEED}, got {seed}")


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


def mapped(change: Callable[[Tensor], Tensor], state: State) -> State:
    """A state whose parts are changed."""
    return type(state)(*map(change, state))


def norm_of(values: Tensor) -> float:
    """The Euclidean norm of all values, of whatever size: their squares need not be floats."""
    largest = float(values.abs().max())
    return largest * float((values / largest).norm()) if 0 < largest < math.inf else largest


def _detached(weights: Weights) -> Weights:
    return Weights(*(None if weight is None else weight.detach() for weight in weights))  # type: ignore[arg-type]
