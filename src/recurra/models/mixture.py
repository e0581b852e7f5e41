"""Mixtures of language models: linear interpolation, and the weights that fit a text best."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recurra.config import UserError
from recurra.models.protocol import LanguageModelProtocol, State, device_of

__all__ = ["Mixture", "fit_weights"]

LogProbs: TypeAlias = NDArray[np.floating[Any]]

TOLERANCE = 1e-9  # nats per token
MOST_ROUNDS = 100  # about five do
RIDGE = 1e-11  # of the curvatures: above their rounding errors, so that models that are alike can be told apart
ROUNDING = 1e-12  # nats per token that may be lost in a step: less than the tolerance, more than errors of a long sum
TOKENS_PER_BLOCK = 2**18  # float64 copies are made of so many at a time


class Mixture(nn.Module):
    r"""Several language models, each believed to a degree (Jelinek & Mercer 1980).

    .. math:: P(w \mid h) = \sum_m \lambda_m P_m(w \mid h)

    Follows :class:`recurra.models.protocol.LanguageModelProtocol`; a state is the tuple of the models' own. It is a
    module, so that what is asked of modules reaches those among its models. Tokens come and log-probabilities go where
    its first module is; each model reads them where it is itself.

    That the models number the same words alike is for the caller to see to; here only their number is known.

    Args:
        models: what is mixed.
        weights: lambda of each, at least 0, together 1; :func:`fit_weights` finds them.

    Raises:
        UserError: there are no models, they have vocabularies of different sizes, or the weights are no such weights.
    """

    def __init__(self, models: Sequence[LanguageModelProtocol], weights: Sequence[float]) -> None:
        super().__init__()
        if not models or len(models) != len(weights):
            raise UserError(
                f"expected one or more models and a weight for each, got {len(models)} and {len(weights)} weights"
            )
        sizes = [model.vocabulary_size for model in models]
        if len(set(sizes)) > 1:
            raise UserError(
                f"models with vocabularies of {', '.join(map(str, sizes))} tokens cannot be mixed: train them on one"
                " vocabulary"
            )
        if not (all(weight >= 0 for weight in weights) and abs(math.fsum(weights) - 1) < 1e-6):
            raise UserError(
                f"expected mixture weights of at least 0 that sum to 1, got {', '.join(f'{w:g}' for w in weights)}"
            )
        self.vocabulary_size = sizes[0]
        self.models = tuple(models)
        self.modules_among_them = nn.ModuleList(model for model in models if isinstance(model, nn.Module))
        self.log_weights = tuple(math.log(weight) if weight else -math.inf for weight in weights)

    def start(self, batch_size: int) -> tuple[State, ...]:
        """The state of rows that have read nothing."""
        return tuple(model.start(batch_size) for model in self.models)

    def step(self, tokens: Tensor, state: tuple[State, ...]) -> tuple[Tensor, tuple[State, ...]]:
        """Read ``tokens [batch]``; log-probabilities ``[batch, vocabulary]`` of what follows."""
        answers = [model.step(tokens.to(device_of(model)), own) for model, own in zip(self.models, state, strict=True)]
        return self._mixed([log_probs for log_probs, _ in answers], tokens), tuple(own for _, own in answers)

    def score(self, inputs: Tensor, targets: Tensor, state: tuple[State, ...]) -> tuple[Tensor, tuple[State, ...]]:
        """Log-probabilities ``[time, batch]`` of ``targets``, each after the inputs up to its own step."""
        answers = [
            model.score(inputs.to(device_of(model)), targets.to(device_of(model)), own)
            for model, own in zip(self.models, state, strict=True)
        ]
        return self._mixed([log_probs for log_probs, _ in answers], inputs), tuple(own for _, own in answers)

    def select(self, state: tuple[State, ...], rows: Tensor) -> tuple[State, ...]:
        """The state of some rows of the batch, in the order of ``rows``."""
        return tuple(
            model.select(own, rows.to(device_of(model))) for model, own in zip(self.models, state, strict=True)
        )

    def _mixed(self, log_probs: Sequence[Tensor], tokens: Tensor) -> Tensor:
        dtype = functools.reduce(torch.promote_types, (part.dtype for part in log_probs))
        weighted = [
            part.to(tokens.device, dtype) + log_weight
            for part, log_weight in zip(log_probs, self.log_weights, strict=True)
        ]
        return torch.stack(weighted).logsumexp(0)


def fit_weights(log_probs: LogProbs, *, tolerance: float = TOLERANCE) -> NDArray[np.float64]:
    r"""Find the mixture weights under which a text is most probable.

    The mean log-probability L is concave in the weights :math:`\lambda`. With the gradient

    .. math:: g_m = \frac{1}{T} \sum_t \frac{P_m(t)}{\sum_k \lambda_k P_k(t)}, \quad \sum_m \lambda_m g_m = 1

    no weights at all are better by more than :math:`\max_m g_m - 1` nats per token, and the rounds end when that is
    below ``tolerance``. Expectation maximisation (Jelinek & Mercer 1980) would multiply each weight by its :math:`g_m`,
    and hardly moves where models are nearly equal. Here each round goes towards the maximum over :math:`\lambda \ge 0`
    of the quadratic that :math:`L - \sum \lambda` looks like from where it is: sequential quadratic programming (Kim,
    Carbonetto, Stephens & Anitescu 2020). The weights need not be held to a sum of 1, which the best of :math:`L - \sum
    \lambda` have by themselves.

    Args:
        log_probs: log-probability that each model gives each token of a text, natural logarithms, [models, tokens];
            -inf where it gives none. Of a text that none of the models was trained on.
        tolerance: how far from the best the result may be, in nats per token.

    Returns:
        The weights, [models]: at least 0, together 1.

    Raises:
        UserError: there is nothing to fit to, a number is nan, or no model gives some token any probability.
    """
    if log_probs.ndim != 2 or 0 in log_probs.shape:
        raise UserError(f"expected log-probabilities [models, tokens], at least one of each, got {log_probs.shape}")
    models, tokens = log_probs.shape
    # Relative to the most any model gives the token, none overflows or vanishes. They keep the type given: what needs
    # double precision are the sums.
    ratios = np.empty_like(log_probs)
    for block in _blocks(tokens):
        best = log_probs[:, block].max(0)
        if not np.isfinite(best).all():
            first = int(np.flatnonzero(~np.isfinite(best))[0])
            found = "probability 0 by every model" if best[first] == -np.inf else f"log-probability {best[first]}"
            raise UserError(
                f"token {block.start + first + 1:,} of {tokens:,} has {found}: to fit weights, add a model that gives"
                " every token some probability"
            )
        np.exp(log_probs[:, block] - best, out=ratios[:, block])
    weights = np.full(models, 1 / models)
    value, gradient, curvature = _expansion(ratios, weights)
    for _ in range(MOST_ROUNDS):
        if gradient.max() - 1 < tolerance:
            break
        curvature *= 1 + RIDGE * np.eye(models)
        aim = _nonnegative_minimum(curvature, curvature @ weights + gradient - 1, tolerance / 10)
        slope = (gradient - 1) @ (aim - weights)
        step = 1.0
        while True:  # ends, as the value of short enough a step is the present one, up to rounding
            trial = weights + step * (aim - weights)
            trial /= trial.sum()  # which is never worse: log s <= s - 1
            reached, gradient, curvature = _expansion(ratios, trial)
            if reached >= value + step * slope / 100 - ROUNDING:
                break
            step /= 2
        weights, value = trial, reached
    return weights


def _expansion(
    ratios: LogProbs, weights: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Mean log-probability as a function of the weights: value, gradient [M] and negative second derivative [M, M].

    Where a token has no probability the value is -inf, and the others are of no use.
    """
    models, tokens = ratios.shape
    value, gradient, curvature = 0.0, np.zeros(models), np.zeros((models, models))
    with np.errstate(divide="ignore", invalid="ignore"):
        for block in _blocks(tokens):
            part = ratios[:, block].astype(np.float64)
            mixed = weights @ part
            part /= mixed
            value += np.log(mixed).sum()
            gradient += part.sum(1)
            curvature += part @ part.T
    return value / tokens, gradient / tokens, curvature / tokens


def _nonnegative_minimum(
    matrix: NDArray[np.float64], vector: NDArray[np.float64], tolerance: float
) -> NDArray[np.float64]:
    """The x >= 0 where ``x @ matrix @ x / 2 - vector @ x`` is least, for a positive definite matrix.

    By the active sets of Lawson & Hanson (1974, chapter 23): entries are set free from zero one by one, each where the
    descent is steepest, and go back to zero when others push them there.
    """
    x, free = np.zeros(len(vector)), np.zeros(len(vector), bool)
    for _ in range(3 * len(vector)):  # more than it takes, but for rounding errors
        descent = np.where(free, -np.inf, vector - matrix @ x)
        if descent.max() <= tolerance:
            break
        free[descent.argmax()] = True
        while True:
            aim = np.zeros(len(vector))
            aim[free] = np.linalg.solve(matrix[np.ix_(free, free)], vector[free])
            stopped = np.flatnonzero(aim < 0)
            if len(stopped) == 0:
                break
            shares = x[stopped] / (x[stopped] - aim[stopped])  # of the way, until an entry is zero
            x = np.maximum(x + shares.min() * (aim - x), 0)
            free[stopped[shares.argmin()]] = False
            x[~free] = 0
        x = aim
    return x


def _blocks(tokens: int) -> Iterator[slice]:
    return (slice(start, start + TOKENS_PER_BLOCK) for start in range(0, tokens, TOKENS_PER_BLOCK))
