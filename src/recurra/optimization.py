"""How weights move: optimisers, learning-rate schedules, clipping, averages of weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from recurra import distributed
from recurra.config import UserError
from recurra.nn.embedding import Embedding

__all__ = ["Plateau", "WeightAverage", "build_optimizer", "clip_gradients", "schedule_factor"]

OPTIMIZERS = ("adam", "adamw", "sgd", "asgd", "adagrad", "rmsprop")
SCHEDULES = ("cosine", "linear", "constant", "plateau")

# What each optimiser starts from when no learning rate is given; those of SGD and ASGD go with their clipping.
LEARNING_RATES = {"adam": 4e-3, "adamw": 4e-3, "sgd": 20.0, "asgd": 20.0, "adagrad": 0.1, "rmsprop": 1e-3}
CLIP_NORM = 1.0
CLIP_NORMS = {"sgd": 0.25, "asgd": 0.25}  # where it is another (Merity et al. 2018)


def build_optimizer(
    name: str,
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.99),
) -> torch.optim.Optimizer:
    """One of torch's optimisers, fused where torch can.

    ``asgd`` is plain SGD here: its averaging is a :class:`WeightAverage` that the trainer starts (Merity et al. 2018).

    A row of an embedding that no token of the batch had keeps its value under plain SGD and Adagrad: there the
    embedding's gradient is made of the other rows alone, with the same result. Momentum, decay and Adam move every row
    at every step.
    """
    common: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay}
    rows_only = name in ("sgd", "asgd", "adagrad") and not weight_decay and not momentum
    embeddings = _untied_embeddings(model) if rows_only else []
    alone = distributed.world_size() == 1  # several processes add up gradients as one dense array
    for module in model.modules():
        if isinstance(module, Embedding):
            module.row_sparse = alone and any(module is embedding for embedding in embeddings)
    by_rows = [embedding.weight for embedding in embeddings]
    parameters: list[Any] = [p for p in model.parameters() if not any(p is own for own in by_rows)]
    if by_rows:
        if not torch.sparse.check_sparse_tensor_invariants.is_enabled():
            torch.sparse.check_sparse_tensor_invariants.disable()  # as by default: left unsaid, torch warns
        parameters = [{"params": parameters}, {"params": by_rows, "fused": False, "foreach": False}]
    match name:
        case "adam":
            return torch.optim.Adam(parameters, betas=betas, fused=True, **common)
        case "adamw":
            return torch.optim.AdamW(parameters, betas=betas, fused=True, **common)
        case "sgd" | "asgd":
            return torch.optim.SGD(parameters, momentum=momentum, fused=True, **common)
        case "adagrad":
            # The accumulator starts at 0.1, as TensorFlow's does: the first steps are not the longest of all.
            return torch.optim.Adagrad(parameters, initial_accumulator_value=0.1, foreach=True, **common)
        case "rmsprop":
            return torch.optim.RMSprop(parameters, alpha=betas[1], momentum=momentum, foreach=True, **common)
    raise UserError(f"unknown optimizer {name!r}; choose from {', '.join(OPTIMIZERS)}")


def _untied_embeddings(model: nn.Module) -> list[Embedding]:
    """Those whose weight nothing else has."""
    owners = Counter(id(p) for module in model.modules() for p in module._parameters.values())
    return [m for m in model.modules() if isinstance(m, Embedding) and owners[id(m.weight)] == 1]


def schedule_factor(schedule: str, progress: float, warmup: float) -> float:
    """What the learning rate is multiplied by when ``progress`` (0 to 1) of the run is over.

    It rises linearly over the first ``warmup`` of the run, then falls to 1 % of its height along a line or a half
    cosine (Loshchilov & Hutter 2017), or stays. ``plateau`` stays too: :class:`Plateau` lowers it.
    """
    if progress < warmup:
        return max(progress / warmup, 0.01)
    fallen = min(1.0, (progress - warmup) / (1 - warmup)) if warmup < 1 else 0.0
    match schedule:
        case "cosine":
            return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fallen))
        case "linear":
            return 1 - 0.99 * fallen
        case _:
            return 1.0


class Plateau:
    """Lowers the learning rate whenever validation has not improved: to a quarter each time, in the classic recipe."""

    def __init__(self, factor: float, patience: int = 0) -> None:
        self.factor, self.patience = factor, patience
        self.scale, self.best, self.waited = 1.0, math.inf, 0

    def update(self, loss: float) -> None:
        """Take note of a validation loss."""
        if loss < self.best:
            self.best, self.waited = loss, 0
        elif self.waited >= self.patience:
            self.scale, self.waited = self.scale * self.factor, 0
        else:
            self.waited += 1

    def state(self) -> dict[str, float]:
        """What to save; ``load`` takes it back."""
        return {"scale": self.scale, "best": self.best, "waited": self.waited}

    def load(self, state: dict[str, float]) -> None:
        """Take up where ``state`` was."""
        self.scale, self.best, self.waited = state["scale"], state["best"], int(state["waited"])


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], *, norm: float | None, value: float | None) -> Tensor:
    """Clip gradients in place, by value and then by their joint norm (Pascanu et al. 2013).

    Returns:
        The joint norm before either clipping, a scalar tensor.
    """
    grads = [_entries(p) for p in parameters if p.grad is not None]
    total = nn.utils.get_total_norm(grads)
    if value is not None:
        torch._foreach_clamp_min_(grads, -value)
        torch._foreach_clamp_max_(grads, value)
        clipped = nn.utils.get_total_norm(grads)
    else:
        clipped = total
    if norm is not None:
        torch._foreach_mul_(grads, (norm / (clipped + 1e-6)).clamp(max=1.0))
    return total


def _entries(parameter: nn.Parameter) -> Tensor:
    """A gradient's entries, to be changed in place; of a sparse one those of its rows, each there once."""
    grad = parameter.grad
    assert grad is not None
    if grad.is_sparse:
        parameter.grad = grad = grad.coalesce()
        return grad._values()
    return grad


class WeightAverage:
    """A running average of a model's weights.

    With ``decay`` < 1 it is exponential; the first steps weigh alike, so that it needs no correction for its start.
    With ``decay`` = 1 it is the plain mean of all weights since it began (Polyak & Juditsky 1992), as averaged SGD has
    it.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.count = decay, 0
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the model's weights of now."""
        self.count += 1
        weight = max(1 - self.decay, 1 / self.count)
        torch._foreach_lerp_(list(self.weights.values()), [p.detach() for p in model.parameters()], weight)

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Within the block the model has the averaged weights."""
        own = {name: p.detach().clone() for name, p in model.named_parameters()}
        _copy(self.weights, model)
        try:
            yield
        finally:
            _copy(own, model)


@torch.no_grad()
def _copy(weights: dict[str, Tensor], model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
