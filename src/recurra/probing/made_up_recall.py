"""Recall in made-up texts: networks are trained on them, and asked for a word that was read long ago."""

from __future__ import annotations

import copy
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra import distributed
from recurra.config import UserError, setting, to_mapping
from recurra.models.protocol import LossSum, evaluating
from recurra.nn import GRU, LSTM, RNN
from recurra.plotting import figure_of, label_axes, save
from recurra.probing.made_up_texts import Batches, RecallBatch, Task, draw_batch, example, task_of
from recurra.training import Diverged, Trainer, TrainerSettings, Watcher

__all__ = [
    "RecallModel",
    "RecallResult",
    "RecallRow",
    "RecallSettings",
    "draw_recall",
    "gradient_left",
    "recall",
    "recall_table",
]

TASKS = ("sentence", "copy")
CELLS = ("rnn", "gru", "lstm")
EXAMPLES = 1_000  # texts that are judged by
TEST, VALID = 2**32 - 1, 2**32 - 2  # in place of an epoch's number
LEARNT = 0.99  # of the items
EVALUATE_EVERY = 100  # updates
MARKERS = "osD^vP*X"


class RecallModel(nn.Module):
    """A language model of one recurrent layer, as small as it can be: embedding, layer, scores of all tokens.

    Args:
        cell: ``rnn``, ``gru`` or ``lstm``.
        vocabulary_size: tokens that there are.
        hidden_size: of embedding and layer.
        forget_bias: where the bias of an LSTM's forget gate starts.
    """

    def __init__(self, cell: str, vocabulary_size: int, hidden_size: int, forget_bias: float | None = None) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, hidden_size)
        self.recurrent: RNN | GRU | LSTM
        if cell == "lstm":
            self.recurrent = LSTM(hidden_size, hidden_size, forget_bias=forget_bias)
        else:
            self.recurrent = (GRU if cell == "gru" else RNN)(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, vocabulary_size)

    def scores(self, inputs: Tensor, last: int = 1) -> Tensor:
        """Scores of all tokens after each of the ``last`` steps of inputs [time, examples]: [last, examples, V]."""
        hidden: Tensor = self.recurrent(self.embedding(inputs))[0]
        scores: Tensor = self.output(hidden[-last:])
        return scores

    def forward(self, batch: RecallBatch, state: None = None) -> tuple[LossSum, None]:
        """The training loss, as the Trainer asks for it."""
        scores = self.scores(batch.inputs, len(batch.targets))
        nats = F.cross_entropy(scores.flatten(0, 1), batch.targets.flatten(), reduction="sum")
        return LossSum(nats, batch.tokens), None


@dataclass(frozen=True, kw_only=True)
class RecallSettings:
    """What is tried, and for how long each."""

    task: str = setting("sentence", "a sentence whose item is said again, or a symbol that is copied", choices=TASKS)
    cells: str = setting("rnn,gru,lstm", "kinds of cells, with commas between")
    distances: tuple[int, ...] = setting((10, 20, 50, 100), "tokens between the two mentions", minimum=1)
    items: int = setting(16, "items to be told apart", minimum=2)
    hidden_size: int = setting(64, "units of the layer", minimum=1)
    clip_norms: tuple[float, ...] = setting((1.0,), "largest norms of the gradient to try; 0: no clipping", minimum=0)
    forget_biases: tuple[float, ...] = setting((0.0, 1.0, 5.0), "starts of the LSTM's forget bias to try")
    steps: int = setting(1500, "updates of the weights in each run, at most", minimum=1)
    learning_rates: tuple[float, ...] = setting(
        (3e-3, 1e-3), "highest learning rates of Adam, tried in turn until a run learns it", minimum=0
    )
    batch_size: int = setting(64, "texts of an update", minimum=1)
    every_token: bool = setting(False, "learn to predict every token, not the item alone")
    shorter: bool = setting(False, "learn from texts of all shorter distances too, which shows the way to long ones")
    seeds: int = setting(3, "runs of each, from different random numbers", minimum=1)
    seed: int = setting(1, "of the first run", minimum=0, maximum=2**31)
    device: str = setting("auto", "where to train: auto, cpu, cuda, cuda:1, mps")

    def variants(self) -> list[Variant]:
        """Every kind of network to be tried.

        Raises:
            UserError: an unknown kind of cell, or none.
        """
        cells = [cell.strip() for cell in self.cells.lower().split(",")]
        for cell in cells:
            if cell not in CELLS:
                raise UserError(f"cells: expected {', '.join(CELLS)} or some of them, got {cell!r}")
        return [
            Variant(cell, clip, bias)
            for cell in dict.fromkeys(cells)
            for bias in (dict.fromkeys(self.forget_biases) if cell == "lstm" else (None,))
            for clip in dict.fromkeys(self.clip_norms)
        ]

    def caption(self) -> str:
        """How the networks were trained, in a sentence."""
        rates = ", ".join(f"{rate:g}" for rate in dict.fromkeys(self.learning_rates))
        return (
            f"A layer of {self.hidden_size} units for each distance, at most {self.steps:,} updates of"
            f" {self.batch_size} new texts at each rate: {rates}; learnt: {LEARNT:.0%} of new texts."
        ).replace("%", " %")


class Variant(NamedTuple):
    """A kind of network.

    Attributes:
        cell: ``rnn``, ``gru`` or ``lstm``.
        clip_norm: largest norm of the gradient; 0 for no clipping.
        forget_bias: where an LSTM's forget bias starts; None for the other cells.
    """

    cell: str
    clip_norm: float
    forget_bias: float | None

    def __str__(self) -> str:
        parts = [] if self.forget_bias is None else [f"forget bias {self.forget_bias:g}"]
        parts.append(f"clipped at {self.clip_norm:g}" if self.clip_norm else "not clipped")
        return f"{self.cell.upper()}, {', '.join(parts)}"


@dataclass(frozen=True, kw_only=True)
class RecallRow:
    """What training one kind of network came to.

    Attributes:
        cell, clip_norm, forget_bias: the network; see :class:`Variant`.
        distance: tokens between the two mentions.
        seed: of the run.
        accuracy: part of 1,000 new texts in which the item is the likeliest of all tokens at the end, 0 to 1.
        nats: -log p of the item there, the mean.
        chance: accuracy of a guess among the items.
        gradient: before training, the norm of the gradient of -log p with respect to the input that names the item,
            over that with respect to the last input: what is left of it after the distance.
        learnt: whether 99 % of 1,000 other texts were recalled at the end of training.
        learning_rate: the one that did best on those.
        steps: updates, at all rates tried.
        seconds: of training, likewise.
        problem: what broke the run off, if anything did; the numbers are then those of the weights before.
    """

    cell: str
    clip_norm: float
    forget_bias: float | None
    distance: int
    seed: int
    accuracy: float
    nats: float
    chance: float
    gradient: float
    learnt: bool
    learning_rate: float
    steps: int
    seconds: float
    problem: str | None = None

    @property
    def variant(self) -> Variant:
        """The kind of network."""
        return Variant(self.cell, self.clip_norm, self.forget_bias)


@dataclass(frozen=True)
class RecallResult:
    """The rows of the runs that came to their end, and the signal that stopped the rest, if one did."""

    settings: RecallSettings
    rows: Sequence[RecallRow]
    stopped: signal.Signals | None = None

    @property
    def complete(self) -> bool:
        """Whether every run that was asked for is among the rows."""
        settings = self.settings
        return len(self.rows) == settings.seeds * len(set(settings.distances)) * len(settings.variants())

    def to_mapping(self) -> dict[str, Any]:
        """Return all of it as JSON holds it; nats that are not finite are None."""
        rows = [dataclasses.asdict(row) for row in self.rows]
        for row in rows:
            row["nats"] = row["nats"] if math.isfinite(row["nats"]) else None
        return {"settings": to_mapping(self.settings), "complete": self.complete, "rows": rows}


def recall(
    settings: RecallSettings,
    *,
    say: Callable[[str], None] = lambda _: None,
    watch: Watcher | None = None,
    finished: Callable[[RecallResult], None] = lambda _: None,
) -> RecallResult:
    """Train every kind of network at every distance, and ask each for the item.

    Seed by seed and distance by distance, so that what is finished can be compared. Ctrl-C ends it after the step in
    hand.

    Args:
        settings: what is tried.
        say: is called with a line of text for each run that is over.
        watch: is called with the progress of each run.
        finished: is called with all rows so far when a run is over.

    Raises:
        UserError: a setting that cannot be, or several processes.
    """
    if distributed.world_size() > 1:
        raise UserError("recall trains one small network after the other: run it without torchrun")
    variants = settings.variants()
    tasks = [task_of(settings.task, distance, settings.items) for distance in dict.fromkeys(settings.distances)]
    device = distributed.choose_device(None if settings.device == "auto" else settings.device)
    nearest = min(tasks, key=lambda task: task.distance)
    say(f"at distance {nearest.distance}: {example(nearest)}")
    rows: list[RecallRow] = []
    stopped: signal.Signals | None = None
    try:
        for seed in range(settings.seed, settings.seed + settings.seeds):
            for task in tasks:
                for variant in variants:
                    row = _run(settings, task, variant, seed, device, watch)
                    if isinstance(row, signal.Signals):
                        return RecallResult(settings, rows, row)
                    rows.append(row)
                    say(
                        f"{variant}, distance {task.distance}{f', seed {seed}' if settings.seeds > 1 else ''}:"
                        f" {100 * row.accuracy:.1f} % after {row.steps:,} updates at {row.learning_rate:g},"
                        f" {row.seconds:.0f} s in all" + (f" ({row.problem})" if row.problem else "")
                    )
                    finished(RecallResult(settings, rows))
    except KeyboardInterrupt:  # between two runs, or a second time within one
        stopped = signal.SIGINT
    return RecallResult(settings, rows, stopped)


def _run(
    settings: RecallSettings, task: Task, variant: Variant, seed: int, device: torch.device, watch: Watcher | None
) -> RecallRow | signal.Signals:
    """Train one kind of network on one task at one rate after the other; the best of them, or what stopped it."""
    tried: list[tuple[float, RecallRow]] = []
    for rate in dict.fromkeys(settings.learning_rates):
        found = _try(settings, task, variant, seed, rate, device, watch)
        if isinstance(found, signal.Signals):
            return found
        tried.append(found)
        if found[1].learnt:
            break
    rows = [row for _, row in tried]
    _, best = min(tried, key=lambda each: math.inf if math.isnan(each[0]) else each[0])
    return dataclasses.replace(best, steps=sum(row.steps for row in rows), seconds=sum(row.seconds for row in rows))


def _try(
    settings: RecallSettings,
    task: Task,
    variant: Variant,
    seed: int,
    rate: float,
    device: torch.device,
    watch: Watcher | None,
) -> tuple[float, RecallRow] | signal.Signals:
    """Train one network at one rate until it has learnt the task; or the signal that stopped it.

    Returns:
        Nats of the items of the texts that say when it has learnt it, by which rates are compared; and its row, with
        numbers of texts that decide nothing.
    """
    torch.manual_seed(seed)
    model = RecallModel(variant.cell, len(task.vocabulary), settings.hidden_size, variant.forget_bias).to(device)
    training = TrainerSettings(
        max_steps=settings.steps,
        learning_rate=rate,
        clip_norm=variant.clip_norm,
        evaluate_every=EVALUATE_EVERY,
        precision="float32",
        seed=seed,
    )
    tasks = [task]
    if settings.shorter:
        tasks += [type(task)(distance, task.items) for distance in range(task.least, task.distance)]
    valid = draw_batch(task, EXAMPLES, (seed, VALID)).to(device)
    gradient = gradient_left(model, valid)

    def score() -> tuple[str, float]:
        accuracy, _ = _tested(model, valid)
        if accuracy >= LEARNT:
            trainer.finish()
        return "accuracy", accuracy

    trainer = Trainer(
        model,
        training,
        lambda epoch: Batches(tasks, settings.batch_size, (seed, epoch), every_token=settings.every_token),
        valid=[valid],
        score=score,
        carry_state=False,
        watch=watch,
    )
    begun, problem = time.perf_counter(), None
    try:
        if stopped := trainer.run():
            return stopped
    except Diverged:
        problem = f"diverged at step {trainer.run_state.step + 1}"
    seconds = time.perf_counter() - begun
    reached, judged_by = _tested(model, valid)
    accuracy, nats = _tested(model, draw_batch(task, EXAMPLES, (seed, TEST)).to(device))
    return judged_by, RecallRow(
        **variant._asdict(),
        distance=task.distance,
        seed=seed,
        accuracy=accuracy,
        nats=nats,
        chance=1 / task.items,
        gradient=gradient,
        learnt=reached >= LEARNT,
        learning_rate=rate,
        steps=trainer.run_state.step,
        seconds=seconds,
        problem=problem,
    )


def gradient_left(model: RecallModel, batch: RecallBatch) -> float:
    """How much of the last input's gradient is left where the item was named.

    Args:
        model: whose loss is -log p of the item at the end.
        batch: texts in which the item is named once before its end.

    Returns:
        The mean norm over texts of the gradient with respect to the input there, over that of the last input's.
    """
    exact, batch = copy.deepcopy(model).to("cpu", torch.float64), batch.to(torch.device("cpu"))  # it vanishes
    inputs = exact.embedding(batch.inputs).detach().requires_grad_()
    scores = exact.output(exact.recurrent(inputs)[0][-1])
    (gradient,) = torch.autograd.grad(F.cross_entropy(scores, batch.targets[-1], reduction="sum"), inputs)
    norms = gradient.norm(dim=-1)
    place = (batch.inputs == batch.targets[-1]).int().argmax(0, keepdim=True)
    return float(norms.gather(0, place).mean() / norms[-1].mean())


@torch.no_grad()
def _tested(model: RecallModel, batch: RecallBatch) -> tuple[float, float]:
    """Accuracy and nats of the items."""
    with evaluating(model):
        scores = model.scores(batch.inputs)[0]
    items = batch.targets[-1]
    return float((scores.argmax(-1) == items).double().mean()), float(F.cross_entropy(scores, items))


def _grouped(rows: Sequence[RecallRow]) -> dict[Variant, dict[int, list[RecallRow]]]:
    """Rows by network and distance, both in the order of the rows."""
    found: dict[Variant, dict[int, list[RecallRow]]] = {}
    for row in rows:
        found.setdefault(row.variant, {}).setdefault(row.distance, []).append(row)
    return found


def recall_table(result: RecallResult) -> str:
    """What was recalled, how many updates it took and what reached the item before them, as Markdown.

    Accuracies are means of all seeds, in per cent; where there are several, how many of them have learnt it stands
    beside. Updates are medians of those that have, at all rates tried. A star stands beside what was broken off.
    """
    distances = sorted({row.distance for row in result.rows})
    grouped = _grouped(result.rows)

    def table(what: str, of: Callable[[list[RecallRow]], str]) -> list[str]:
        lines = [f"| {what} at distance | {' | '.join(map(str, distances))} |", "|---|" + "---:|" * len(distances)]
        for variant, by_distance in grouped.items():
            cells = [of(by_distance[distance]) if distance in by_distance else "" for distance in distances]
            lines.append(f"| {variant} | {' | '.join(cells)} |")
        return lines

    def accuracy(rows: list[RecallRow]) -> str:
        text = f"{100 * sum(row.accuracy for row in rows) / len(rows):.1f}"
        if len(rows) > 1:
            text += f" ({sum(row.learnt for row in rows)} of {len(rows)})"
        return text + "*" * any(row.problem for row in rows)

    def updates(rows: list[RecallRow]) -> str:
        learnt = [row.steps for row in rows if row.learnt]
        return f"{np.median(learnt):,.0f}" if learnt else f"not in {max(row.steps for row in rows):,}"

    def left(rows: list[RecallRow]) -> str:
        return f"{np.median([row.gradient for row in rows]):.1g}"

    lines = table("accuracy (%)", accuracy)
    if result.rows:
        guess = f"{100 * result.rows[0].chance:.1f}"
        lines.append(f"| a guess among {result.settings.items} items | {' | '.join([guess] * len(distances))} |")
    lines += ["", *table("updates until learnt", updates)]
    lines += ["", *table("gradient left before training", left), "", result.settings.caption()]
    if not result.complete:
        lines += [f"Not complete: {len(result.rows)} runs so far."]
    if any(row.problem for row in result.rows):
        lines += ["\\* a run diverged, and was tested as it was before."]
    return "\n".join(lines) + "\n"


def draw_recall(result: RecallResult, path: Path) -> None:
    """Draw accuracy against distance, a line for each kind of network; dashes are the seeds that it is the mean of.

    Raises:
        UserError: there is nothing to draw, matplotlib is missing, or the picture's format is unknown.
    """
    if not result.rows:
        raise UserError(f"{path}: no run is over yet, there is nothing to draw")
    lines = {"rnn": ":", "gru": "--", "lstm": "-"}
    grouped = _grouped(result.rows)
    kinds = list(dict.fromkeys(variant._replace(clip_norm=0) for variant in grouped))
    figure = figure_of(6.4, 4.2)
    axes = figure.add_subplot()
    for variant, by_distance in grouped.items():
        distances = sorted(by_distance)
        values = [[100 * row.accuracy for row in by_distance[distance]] for distance in distances]
        kind = kinds.index(variant._replace(clip_norm=0))
        colour = f"{0.7 * kind / len(kinds):.2f}"
        axes.plot(
            distances,
            [sum(each) / len(each) for each in values],
            color=colour,
            linestyle=lines[variant.cell],
            linewidth=1.5,
            marker=MARKERS[kind % len(MARKERS)],
            markersize=5,
            markerfacecolor=colour if variant.clip_norm else "white",
            label=str(variant),
        )
        for distance, each in zip(distances, values, strict=True):
            if len(each) > 1:
                axes.plot([distance] * len(each), each, "_", color=colour, markersize=7, zorder=1)
    shown = sorted({row.distance for row in result.rows})
    axes.axhline(100 * result.rows[0].chance, color="0.75", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    axes.annotate(
        "chance",
        (0, 100 * result.rows[0].chance),
        xycoords=("axes fraction", "data"),
        xytext=(4, 3),
        textcoords="offset points",
        fontsize=8,
        color="0.4",
    )
    axes.set_xscale("log")
    axes.set_xticks(shown, [str(distance) for distance in shown])
    axes.minorticks_off()
    axes.set_ylim(-3, 103)
    label_axes(axes, x="distance (tokens between the two mentions)", y="items recalled (%)")
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=8)
    save(figure, path)
