"""Dynamic evaluation (Krause et al. 2018): a model that goes on learning from the text it is reading."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from recurra.config import UserError
from recurra.models.neural import NeuralLM
from recurra.models.protocol import State, device_of
from recurra.nn.hashed import HashedNgrams
from recurra.text.batches import Batch

__all__ = ["AdaptedState", "DynamicEvaluation", "gradient_statistics"]

SEGMENT = 5  # tokens between updates, as in the paper
EPSILON = 50.0  # on WikiText-2, 1 to 8 did worse than gradient descent, and 40 to 100 better


class AdaptedState(NamedTuple):
    """What has been read, and what was learnt from it.

    Attributes:
        model: a copy of the model, with the weights as they are by now.
        inner: its state.
        begin: its state before the inputs that nothing was learnt from yet; ``inner`` itself while there are none.
        inputs: those inputs, fewer than make a segment, or a segment whose last target is not known, [inputs, 1].
        targets: what followed them, [targets, 1]; one fewer than inputs, where the last is still to come.
    """

    model: NeuralLM
    inner: State
    begin: State
    inputs: Tensor
    targets: Tensor


class DynamicEvaluation(nn.Module):
    r"""A language model whose weights take a step down the gradient after every segment of the text it reads.

    After each segment of ``segment`` tokens, with gradient :math:`\nabla` of its mean loss in nats per token,

    .. math:: \theta \leftarrow \theta
        - \eta \frac{1 + \epsilon}{R / \bar R + \epsilon} \nabla + \min(1, \lambda R / \bar R) (\theta_0 - \theta)

    with the trained weights :math:`\theta_0`, the root R of their mean squared gradients in training, and its mean
    :math:`\bar R` over all weights. That is the paper's RMS with a global prior, where the fraction is :math:`1 / (R +
    \epsilon')`, in other units: here learning rate and epsilon mean the same for gradients of any size, and a weight
    with an average R takes the step of gradient descent. Without statistics all weights do: :math:`\theta \leftarrow
    \theta - \eta \nabla + \lambda (\theta_0 - \theta)`. Gradients flow to the beginning of the segment. A token is
    predicted before anything is learnt from it.

    Follows :class:`recurra.models.protocol.LanguageModelProtocol`, for one row at a time. The model itself is never
    changed: a state holds an adapted copy. Segments are counted from the beginning of the text, so that results do not
    depend on how many tokens are read at once.

    Args:
        model: trained by gradient, without hashed n-grams. Its state is carried over line ends.
        learning_rate: eta, at least 0.
        decay: lambda, from 0 to 1: how far weights return to the trained ones with each step.
        segment: tokens between two steps.
        statistics: of :func:`gradient_statistics`; None for plain gradient descent.
        epsilon: keeps weights that rarely have a gradient from large steps; the larger, the more alike all are treated;
            above 0.

    Raises:
        UserError: a number out of its bounds, statistics of another model, or a model that is not trained by gradient
            itself, has hashed n-grams, or is of independent lines.
    """

    def __init__(
        self,
        model: NeuralLM,
        *,
        learning_rate: float,
        decay: float,
        segment: int = SEGMENT,
        statistics: Mapping[str, Tensor] | None = None,
        epsilon: float = EPSILON,
    ) -> None:
        super().__init__()
        _check(model)
        if model.settings.reset == "lines":
            raise UserError(
                "dynamic evaluation reads a text as one row, and this model forgets it at every line end: expected a"
                " model trained with --reset none or documents"
            )
        if not (learning_rate >= 0 and math.isfinite(learning_rate)):
            raise UserError(f"learning rate of dynamic evaluation: expected at least 0, got {learning_rate}")
        if not 0 <= decay <= 1:
            raise UserError(f"decay of dynamic evaluation: expected a number from 0 to 1, got {decay}")
        if segment < 1:
            raise UserError(f"segment of dynamic evaluation: expected 1 token or more, got {segment}")
        if not (epsilon > 0 and math.isfinite(epsilon)):
            raise UserError(f"epsilon of dynamic evaluation: expected a number above 0, got {epsilon}")
        self.model = model
        self.vocabulary_size = model.vocabulary_size
        self.learning_rate, self.decay, self.segment = learning_rate, decay, segment
        self._scales = None if statistics is None else _scales(model, statistics, decay, epsilon)

    def start(self, batch_size: int) -> AdaptedState:
        """The state of one row that has read nothing, with the weights as they were trained.

        Raises:
            UserError: several rows are asked for.
        """
        if batch_size != 1:
            raise UserError(
                f"dynamic evaluation reads one text at a time, with weights of its own; asked for {batch_size} rows"
                " side by side: read the text as one row (reset none), or with a batch size of 1"
            )
        model = copy.deepcopy(self.model).eval().requires_grad_(True)
        nothing = torch.empty(0, 1, dtype=torch.long, device=device_of(model))
        inner = model.start(1)
        return AdaptedState(model, inner, inner, nothing, nothing)

    def step(self, tokens: Tensor, state: AdaptedState) -> tuple[Tensor, AdaptedState]:
        """Read ``tokens [1]``; log-probabilities ``[1, vocabulary]`` of what follows.

        What follows is known when it is read, so a segment that is read step by step is learnt from at the step after
        it, before anything else is predicted.

        Raises:
            UserError: as :meth:`score`.
        """
        state = self._followed(tokens[None], state)
        begin = self._begin(state)
        with torch.no_grad():
            log_probs, inner = state.model.step(tokens, state.inner)
        return log_probs, state._replace(inner=inner, begin=begin, inputs=torch.cat([state.inputs, tokens[None]]))

    def score(self, inputs: Tensor, targets: Tensor, state: AdaptedState) -> tuple[Tensor, AdaptedState]:
        """Log-probabilities ``[time, 1]`` of ``targets``, each after the inputs up to its own step.

        Raises:
            UserError: the loss is not finite any more.
        """
        state = self._followed(inputs[:1], state)
        parts = []
        done = 0
        while done < len(inputs):
            missing = self.segment - len(state.inputs)
            chunk = slice(done, done + missing)
            log_probs, state = self._score(inputs[chunk], targets[chunk], state)
            parts.append(log_probs)
            done += missing
        return torch.cat(parts), state

    def select(self, state: AdaptedState, rows: Tensor) -> AdaptedState:
        """A copy of the state, weights and all.

        Raises:
            UserError: several rows are asked for.
        """
        if len(rows) != 1:
            raise UserError(
                f"dynamic evaluation writes one text at a time, with weights of its own; asked for {len(rows)} side by"
                " side: use a beam and a batch of 1"
            )
        model = copy.deepcopy(state.model)
        begin = model.select(state.begin, rows)
        inner = model.select(state.inner, rows) if len(state.inputs) else begin
        return AdaptedState(model, inner, begin, state.inputs, state.targets)

    def _score(self, inputs: Tensor, targets: Tensor, state: AdaptedState) -> tuple[Tensor, AdaptedState]:
        """Score no more tokens than a segment is short of."""
        known = len(state.inputs)
        if known + len(inputs) == self.segment:
            log_probs, state = self._learnt(
                state._replace(inputs=torch.cat([state.inputs, inputs]), targets=torch.cat([state.targets, targets]))
            )
            return log_probs[known:], state
        begin = self._begin(state)
        with torch.no_grad():
            log_probs, inner = state.model.score(inputs, targets, state.inner)
        inputs, targets = torch.cat([state.inputs, inputs]), torch.cat([state.targets, targets])
        return log_probs, AdaptedState(state.model, inner, begin, inputs, targets)

    def _followed(self, token: Tensor, state: AdaptedState) -> AdaptedState:
        """The state once the token that follows its last input is known, ``[1, 1]``: it may complete a segment."""
        if len(state.inputs) > len(state.targets):
            state = state._replace(targets=torch.cat([state.targets, token]))
            if len(state.targets) == self.segment:
                _, state = self._learnt(state)
        return state

    def _begin(self, state: AdaptedState) -> State:
        """The state before the segment, to be read again when it is complete: a copy, as reading spends a state."""
        if len(state.inputs):
            return state.begin
        return state.model.select(state.inner, torch.zeros(1, dtype=torch.long, device=state.inputs.device))

    def _learnt(self, state: AdaptedState) -> tuple[Tensor, AdaptedState]:
        """Read a whole segment from its beginning, and step down the gradient of its loss.

        Returns:
            The log-probabilities of its targets before the step, [segment, 1], and the state after it.

        Raises:
            UserError: the loss is not finite.
        """
        model = state.model
        with torch.enable_grad():
            log_probs, inner = model.score(state.inputs, state.targets, state.begin)
            loss = -log_probs.mean()
            gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        if not math.isfinite(loss.item()):
            raise UserError(
                f"dynamic evaluation has diverged, with a loss of {loss.item()} nats per token: give a learning rate"
                f" below {self.learning_rate:g}, or a decay above {self.decay:g}"
            )
        with torch.no_grad():
            for (name, weight), trained, gradient in zip(
                model.named_parameters(), self.model.parameters(), gradients, strict=True
            ):
                precision, pull = (None, self.decay) if self._scales is None else self._scales[name]
                weight.lerp_(trained, pull)  # before the step: it is the old weight that is pulled back
                if gradient is None:
                    continue
                dense = gradient.to_dense() if gradient.is_sparse else gradient
                if precision is None:
                    weight.sub_(dense, alpha=self.learning_rate)
                else:
                    weight.addcmul_(dense, precision, value=-self.learning_rate)
        inner = model.detach(inner)
        return log_probs.detach(), AdaptedState(model, inner, inner, state.inputs[:0], state.targets[:0])


def gradient_statistics(model: NeuralLM, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Mean squares of the gradients of each weight over training text.

    The gradients are those of a batch's mean loss, in nats per token, without dropout. A sample of the text is enough:
    only how large they are in comparison with each other matters to :class:`DynamicEvaluation`.

    Args:
        model: trained by gradient, without hashed n-grams; it is not changed.
        batches: contiguous streams of training text; each row goes on from the batch before.

    Returns:
        For each parameter, by name, a tensor of its shape.

    Raises:
        UserError: there are no batches, or :class:`DynamicEvaluation` does not take such a model.
    """
    _check(model)
    twin = copy.deepcopy(model).eval().requires_grad_(True)
    device = device_of(twin)
    parameters = dict(twin.named_parameters())
    sums = {name: torch.zeros_like(parameter, requires_grad=False) for name, parameter in parameters.items()}
    state, count = None, 0
    for batch in batches:
        with torch.enable_grad():
            loss, state = twin(batch.to(device), state)
            gradients = torch.autograd.grad(loss.mean, list(parameters.values()), allow_unused=True)
        state = twin.detach(state)
        for total, gradient in zip(sums.values(), gradients, strict=True):
            if gradient is not None:
                total += (gradient.to_dense() if gradient.is_sparse else gradient).square()
        count += 1
    if not count:
        raise UserError("the text is too short for gradient statistics: expected one batch or more, got none")
    return {name: total / count for name, total in sums.items()}


def _check(model: object) -> None:
    """Refuse a model that cannot take steps, or only very slow ones."""
    if not isinstance(model, NeuralLM):
        raise UserError(
            f"dynamic evaluation needs a model that is itself trained by gradient, got {type(model).__name__}: give one"
            " alone, without a mixture or a cache around it"
        )
    for part in model.modules():
        if isinstance(part, HashedNgrams):
            raise UserError(
                f"dynamic evaluation moves every weight after each few tokens, and the {part.table.numel():,} of this"
                " model's hashed n-grams would take longer than all else: expected a model without them,"
                " such as a recurrent one with --maxent-order 0"
            )


def _scales(
    model: NeuralLM, statistics: Mapping[str, Tensor], decay: float, epsilon: float
) -> dict[str, tuple[Tensor, Tensor]]:
    """What gradients are multiplied by, and how far weights are pulled back with each step, by parameter name."""
    weights = dict(model.named_parameters())
    for name in sorted(weights.keys() | statistics.keys()):
        if name not in weights or name not in statistics or statistics[name].shape != weights[name].shape:
            raise UserError(f"gradient statistics of another model: {name} differs; collect them anew from this model")
    roots = {name: statistics[name].to(weight.device, weight.dtype).sqrt() for name, weight in weights.items()}
    mean = sum(float(root.sum(dtype=torch.float64)) for root in roots.values()) / sum(map(torch.numel, roots.values()))
    if not (mean > 0 and math.isfinite(mean)):
        raise UserError(f"gradient statistics with a mean root of {mean}: expected a number above 0; collect them anew")
    return {
        name: ((1 + epsilon) / (root / mean + epsilon), (decay / mean * root).clamp(max=1.0))
        for name, root in roots.items()
    }
