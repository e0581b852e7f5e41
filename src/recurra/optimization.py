"""How weights move: optimisers, learning-rate schedules, clipping, averages of weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from recurra import distributed
from recurra.config import UserError
from recurra.nn.embedding import Embedding
from recurra.nn.rows import set_row_sparse, tables
from recurra.nn.sampled import SampledOutput

__all__ = [
    "Plateau",
    "TableOptimizer",
    "WeightAverage",
    "build_optimizer",
    "clip_gradients",
    "large_tables",
    "schedule_factor",
]

OPTIMIZERS = ("adam", "adamw", "sgd", "asgd", "adagrad", "rmsprop")
WITH_MOMENTUM = ("sgd", "asgd", "rmsprop")
SCHEDULES = ("cosine", "linear", "constant", "plateau")

# What each optimiser starts from when no learning rate is given; those of SGD and ASGD go with their clipping.
LEARNING_RATES = {"adam": 4e-3, "adamw": 4e-3, "sgd": 20.0, "asgd": 20.0, "adagrad": 0.1, "rmsprop": 1e-3}
# What Adagrad's sums start at, so that the first steps are not the longest of all. TensorFlow's 0.1 goes with gradients
# of losses summed over a batch; here losses are means over a few thousand tokens. With 0.1 learning begins slowly, with
# 1e-4 a rate of 0.2 diverges (LSTM-2048-512 at a quarter of its size on WikiText-2).
ADAGRAD_START = 1e-3
CLIP_NORM = 1.0
CLIP_NORMS = {"sgd": 0.25, "asgd": 0.25}  # where it is another (Merity et al. 2018)


def norm_limit(clip_norm: float | None, optimizer: str) -> float | None:
    """The largest joint norm of gradients: what was given, or what goes with the optimiser; None for no clipping."""
    return (CLIP_NORMS.get(optimizer, CLIP_NORM) if clip_norm is None else clip_norm) or None


def build_optimizer(
    name: str,
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.99),
) -> torch.optim.Optimizer:
    """One of torch's optimisers, fused where torch can; with it, where there are tables, one that updates them by rows.

    ``asgd`` is plain SGD here: its averaging is a :class:`WeightAverage` that the trainer starts (Merity et al. 2018).

    A table is a parameter that is read by rows alone (:func:`recurra.nn.rows.tables`). Rows that a batch did not read
    keep their values under plain SGD and Adagrad: there every table is updated by rows, with the same result. Adam and
    RMSProp move every row at every step, by what they remember of it. They are applied to the rows of the batch alone
    (lazily), which is not the same, for the tables of :func:`large_tables`, where anything else would be out of
    proportion; a mere embedding is updated by the book. With momentum or weight decay all tables are.

    Gradients of tables updated by rows are made of rows as well, so that a step takes time in proportion to the rows
    read. That holds for one process alone: several add up dense gradients, whose rows other than zero then count; the
    updates are the same, but a step takes time in proportion to the tables.

    A module may ask for a rule of its own for some of its parameters by a method ``optimizer_options``, which returns
    pairs of a parameter and a dictionary:

    - ``rule``: ``sgd``, ``adagrad``, or ``row-adagrad``, which keeps one number for each row, the sum of the means of
      its squared gradients;
    - ``rate``: the learning rate where the schedule is at its height, whatever that of the others;
    - ``initial``: where the sums of Adagrad's start, 0.001 if not said.

    Its parameter group keeps that ``rate``: a schedule multiplies it, where a group has one, and ``learning_rate``
    where it has none. Momentum does not reach such parameters, and weight decay is refused where there are any.

    Raises:
        UserError: there is no such optimiser; momentum for one that takes none; weight decay where a parameter has a
            rule of its own.
    """
    if name not in OPTIMIZERS:
        raise UserError(f"unknown optimizer {name!r}; choose from {', '.join(OPTIMIZERS)}")
    if momentum and name not in WITH_MOMENTUM:
        raise UserError(
            f"momentum: expected 0 with {name}, which takes none, got {momentum:g}; leave it out, or choose"
            f" {', '.join(WITH_MOMENTUM)}"
        )
    found = [parameter for parameter, _ in tables(model)]
    if weight_decay or momentum:
        by_rows = []
    elif name in ("sgd", "asgd", "adagrad"):
        by_rows = found
    else:
        by_rows = large_tables(model)
    groups = _own_groups(model)
    if groups and weight_decay:
        raise UserError(
            f"weight_decay: expected 0, got {weight_decay:g}; what has an update rule of its own, as hashed n-grams"
            " have, knows no decay: leave it out, or train without n-grams"
        )
    taken = {parameter for group in groups for parameter in group["params"]}
    by_rows = [parameter for parameter in by_rows if parameter not in taken]
    if by_rows:
        rule = "sgd" if name == "asgd" else "adam" if name == "adamw" else name
        groups.insert(0, {"params": by_rows, "lr": learning_rate, "rule": rule, "betas": betas})
        taken |= set(by_rows)
    made_of_rows = taken.intersection(found) if distributed.world_size() == 1 else set()
    for parameter in model.parameters():
        set_row_sparse(parameter, parameter in made_of_rows)
    others = [parameter for parameter in model.parameters() if parameter not in taken]
    dense = _dense_optimizer(name, others, learning_rate, weight_decay, momentum, betas) if others else None
    return dense if dense is not None and not groups else TableOptimizer(dense, groups)


def large_tables(model: nn.Module) -> list[nn.Parameter]:
    """Tables so large that nothing in a training step may touch all of their rows.

    They are those of sampled output layers and hashed features, and embeddings where the output layer is a sampled one;
    where it is not, each step goes through the whole vocabulary anyway.
    """
    sampled = any(isinstance(module, SampledOutput) for module in model.modules())
    return [
        parameter
        for parameter, owners in tables(model)
        if sampled or not any(isinstance(owner, Embedding) for owner in owners)
    ]


def _own_groups(model: nn.Module) -> list[dict[str, Any]]:
    """A parameter group for each parameter whose module asks for a rule of its own."""
    return [
        {"params": [parameter], "lr": options["rate"], **options}
        for module in model.modules()
        for parameter, options in getattr(module, "optimizer_options", list)()
    ]


def _dense_optimizer(
    name: str,
    parameters: list[nn.Parameter],
    learning_rate: float,
    weight_decay: float,
    momentum: float,
    betas: tuple[float, float],
) -> torch.optim.Optimizer:
    common: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay}
    match name:
        case "adam":
            return torch.optim.Adam(parameters, betas=betas, fused=True, **common)
        case "adamw":
            return torch.optim.AdamW(parameters, betas=betas, fused=True, **common)
        case "adagrad":
            return torch.optim.Adagrad(parameters, initial_accumulator_value=ADAGRAD_START, foreach=True, **common)
        case "rmsprop":
            return torch.optim.RMSprop(parameters, alpha=betas[1], momentum=momentum, foreach=True, **common)
    return torch.optim.SGD(parameters, momentum=momentum, fused=True, **common)


class TableOptimizer(torch.optim.Optimizer):
    """Updates tables by rows, and leaves other parameters to an optimiser of torch's: both as one.

    A step touches only the rows that the gradient has, in the table and in what is remembered of it, and takes time in
    proportion to their number. A dense gradient counts by its rows that are not zero. The rules are those of
    :mod:`torch.optim`, for a row as if the steps that did not touch it had not been; but the bias correction of Adam
    counts all steps, as in :class:`torch.optim.SparseAdam`.

    Args:
        dense: torch's optimiser for the rest; ``None`` where there is no rest.
        groups: parameter groups of tables, with ``lr``, ``rule`` (``sgd``, ``adagrad``, ``row-adagrad``, ``rmsprop`` or
            ``adam``), and ``betas`` or ``initial`` where the rule has them; other entries are not looked at.
    """

    def __init__(self, dense: torch.optim.Optimizer | None, groups: list[dict[str, Any]]) -> None:
        for group in groups:
            if group["rule"] not in RULES:
                raise ValueError(f"rule: expected one of {', '.join(RULES)}, got {group['rule']!r}")
        self._dense = dense
        super().__init__([*(dense.param_groups if dense else []), *groups], {})
        if dense:
            self.state.update(dense.state)
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        """Let torch's optimiser see its groups, and the state, where they are now."""
        self._tables = [group for group in self.param_groups if "rule" in group]
        if self._dense:
            self._dense.state = self.state
            self._dense.param_groups = [group for group in self.param_groups if "rule" not in group]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nothing here evaluates a loss
        """Update every parameter that has a gradient."""
        assert closure is None
        if self._dense:
            self._dense.step()
        for group in self._tables:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    ids, values = _rows_of(parameter.grad)
                    RULES[group["rule"]](parameter, ids, values, self.state[parameter], group)


def _rows_of(grad: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of a gradient that are not all zero, each once: ids ``[n]``, values ``[n, ...]``.

    A row of zeros, as of a word dropped out, counts as not read, whether or not it was written down: one process and
    several so make the same updates.
    """
    if not grad.is_sparse:
        ids = _not_zero(grad)
        return ids, grad[ids]
    grad = grad.coalesce()  # nothing to do where clipping has done it
    ids, values = grad._indices()[0], grad._values()
    kept = _not_zero(values)
    return (ids, values) if len(kept) == len(ids) else (ids[kept], values[kept])


def _not_zero(rows: Tensor) -> Tensor:
    """Numbers of the rows that hold anything but zeros."""
    return _flat(rows).any(1).nonzero()[:, 0]


def _flat(rows: Tensor) -> Tensor:
    """Rows of whatever shape, and of whatever number, as vectors."""
    return rows.reshape(len(rows), math.prod(rows.shape[1:]))


def _sgd(table: Tensor, ids: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    _moved(table, ids, grad, -group["lr"])


def _adagrad(table: Tensor, ids: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    if not state:
        state["sum"] = torch.full_like(table, group.get("initial", ADAGRAD_START))
    total = _changed(state["sum"], ids, lambda rows: rows.addcmul_(grad, grad))
    _moved(table, ids, grad / total.sqrt_().add_(1e-10), -group["lr"])


def _row_adagrad(table: Tensor, ids: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    if not state:
        state["sum"] = table.new_full(table.shape[:1], group.get("initial", ADAGRAD_START))
    total = _changed(state["sum"], ids, lambda rows: rows.add_(_flat(grad).square().mean(1)))
    scale = total.sqrt_().add_(1e-10).view(-1, *[1] * (table.dim() - 1))
    _moved(table, ids, grad / scale, -group["lr"])


def _rmsprop(table: Tensor, ids: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    if not state:
        state["square_avg"] = torch.zeros_like(table)
    decay = group["betas"][1]
    square = _changed(state["square_avg"], ids, lambda rows: rows.mul_(decay).addcmul_(grad, grad, value=1 - decay))
    _moved(table, ids, grad / square.sqrt_().add_(1e-8), -group["lr"])


def _adam(table: Tensor, ids: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    if not state:
        state["step"] = torch.zeros(())
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
    state["step"] += 1
    beta1, beta2 = group["betas"]
    first, second = (1 - beta ** float(state["step"]) for beta in (beta1, beta2))
    mean = _changed(state["exp_avg"], ids, lambda rows: rows.lerp_(grad, 1 - beta1))
    square = _changed(state["exp_avg_sq"], ids, lambda rows: rows.mul_(beta2).addcmul_(grad, grad, value=1 - beta2))
    _moved(table, ids, mean / square.sqrt_().div_(second**0.5).add_(1e-8), -group["lr"] / first)


def _moved(table: Tensor, ids: Tensor, step: Tensor, scale: float) -> None:
    """Add ``scale * step`` to rows that are different ones: copying them back is faster than ``index_add_``."""
    _changed(table, ids, lambda rows: rows.add_(step, alpha=scale))


def _changed(memory: Tensor, ids: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Change some rows of what is remembered of a table; returns a copy of them."""
    rows = change(memory.index_select(0, ids))
    memory.index_copy_(0, ids, rows)
    return rows


RULES = {"sgd": _sgd, "adagrad": _adagrad, "row-adagrad": _row_adagrad, "rmsprop": _rmsprop, "adam": _adam}


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

    An average touches every row at every step, so that :func:`large_tables` are left out and stay as they are, beside
    the averaged weights of the other layers (so Jozefowicz et al. 2016 average the LSTM alone).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.count = decay, 0
        left_out = set(large_tables(model))
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters() if p not in left_out}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the model's weights of now."""
        self.count += 1
        weight = max(1 - self.decay, 1 / self.count)
        torch._foreach_lerp_(list(self.weights.values()), [p.detach() for p in self._averaged(model).values()], weight)

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Within the block the model has the averaged weights."""
        averaged = self._averaged(model)
        own = {name: p.detach().clone() for name, p in averaged.items()}
        _copy(self.weights, averaged)
        try:
            yield
        finally:
            _copy(own, averaged)

    def _averaged(self, model: nn.Module) -> dict[str, nn.Parameter]:
        parameters = dict(model.named_parameters())
        return {name: parameters[name] for name in self.weights}


@torch.no_grad()
def _copy(weights: dict[str, Tensor], parameters: dict[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])
