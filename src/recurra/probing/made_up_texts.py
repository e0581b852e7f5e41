"""Recall in made-up texts: networks are trained on them, and asked for a word that was read long ago."""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from recurra import distributed
from recurra.config import UserError, setting, to_mapping
from recurra.models.protocol import LossSum, evaluating
from recurra.nn import GRU, LSTM, RNN
from recurra.plotting import figure_of, label_axes, save
from recurra.training import Diverged, Trainer, TrainerSettings, Watcher

__all__ = [
    "CopyTask",
    "RecallModel",
    "RecallResult",
    "RecallRow",
    "RecallSettings",
    "SentenceTask",
    "draw_recall",
    "example",
    "recall",
    "recall_table",
    "task_of",
]

Ids = NDArray[np.int64]

TASKS = ("sentence", "copy")
CELLS = ("rnn", "gru", "lstm")
EPOCH = 1_000  # batches; all of them are new, in every epoch
TEST_EXAMPLES = 1_000
ITEM_WORDS = """
    tickets letter photographs recipe map poem report invitations essay drawings notes contract song diary receipt novel
    speech card list calendar form article script thesis passport plan lecture story booklet address poster label
"""
FILLER_WORDS = """
    and then but so while because the a it was in on at of to with there again very slow old new quiet late long morning
    evening day rain street shop door window office machine queue waited walked looked said came
"""
ITEMS, FILLER = tuple(ITEM_WORDS.split()), tuple(FILLER_WORDS.split())
PEOPLE = (("she", "her"), ("he", "his"))
WANTED = ("wanted", "tried", "hoped", "went")


class SentenceTask:
    """An item is named, other things happen, the item is said again.

        she wanted to print her TICKETS ... filler ... at last she printed her TICKETS

    Nothing between the two mentions says anything about the item; the person is the same in both.

    Args:
        distance: tokens between the mentions, the five before the second among them.
        items: how many there are to choose from.

    Attributes:
        vocabulary: every token; the items come first.
        items: how many of them are items.
        distance: as given.

    Raises:
        UserError: there is no room for the sentence's end, or there are not so many items.
    """

    least: ClassVar[int] = 5
    most_items: ClassVar[int] = len(ITEMS)

    def __init__(self, distance: int, items: int) -> None:
        _check_task(self, distance, items)
        self.distance, self.items = distance, items
        others = [word for person in PEOPLE for word in person] + [*WANTED, "last", "print", "printed", *FILLER]
        self.vocabulary = (*ITEMS[:items], *dict.fromkeys(others))
        self._ids = {word: i for i, word in enumerate(self.vocabulary)}
        self._filler = np.array([self._ids[word] for word in FILLER])

    def draw(self, examples: int, random: np.random.Generator) -> Ids:
        """Return texts [time, examples], time being distance + 7; the last token is the item."""
        item = random.integers(self.items, size=examples)
        subject, owner = np.array([[self._ids[word] for word in person] for person in PEOPLE])[
            random.integers(2, size=examples)
        ].T
        wanted = np.array([self._ids[word] for word in WANTED])[random.integers(len(WANTED), size=examples)]
        filler = random.choice(self._filler, (self.distance - self.least, examples))
        fixed = {word: np.full(examples, self._ids[word]) for word in ("to", "print", "at", "last", "printed")}
        opening = [subject, wanted, fixed["to"], fixed["print"], owner, item]
        closing = [fixed["at"], fixed["last"], subject, fixed["printed"], owner, item]
        return np.stack([*opening, *filler, *closing])


class CopyTask:
    """A symbol, noise, a mark, the symbol again: recall and nothing else.

    Args:
        distance: tokens between the mentions, the mark among them.
        items: how many symbols there are.

    Attributes:
        vocabulary: every token; the symbols come first.
        items: how many of them are symbols.
        distance: as given.

    Raises:
        UserError: there is no room for the mark, or more symbols are wanted than there are letters.
    """

    least: ClassVar[int] = 1
    most_items: ClassVar[int] = 26

    def __init__(self, distance: int, items: int) -> None:
        _check_task(self, distance, items)
        self.distance, self.items = distance, items
        self.vocabulary = (*(chr(ord("A") + i) for i in range(items)), "?", *map(str, range(10)))

    def draw(self, examples: int, random: np.random.Generator) -> Ids:
        """Return texts [time, examples], time being distance + 2; the last token is the symbol."""
        symbol = random.integers(self.items, size=(1, examples))
        noise = random.integers(self.items + 1, len(self.vocabulary), size=(self.distance - 1, examples))
        return np.concatenate([symbol, noise, np.full((1, examples), self.items), symbol])


Task = SentenceTask | CopyTask


def _check_task(task: Task, distance: int, items: int) -> None:
    if distance < task.least:
        raise UserError(f"distance: this task needs at least {task.least} tokens between the mentions, got {distance}")
    if not 2 <= items <= task.most_items:
        raise UserError(f"items: this task has from 2 to {task.most_items} of them, got {items}")


def task_of(name: str, distance: int, items: int) -> Task:
    """Return the task ``sentence`` or ``copy`` of a distance."""
    return (SentenceTask if name == "sentence" else CopyTask)(distance, items)


def example(task: Task) -> str:
    """Return a text of a task as it is read, with a gap for the item, and the item after it."""
    *words, item = (task.vocabulary[i] for i in task.draw(1, np.random.default_rng(0))[:, 0])
    return f"{' '.join(words)} ___ ({item})"


class RecallBatch(NamedTuple):
    """Texts side by side.

    Attributes:
        inputs: all tokens but the last, [time, examples].
        targets: what follows each of the last so many inputs, [1 or time, examples]; the item is the last of them.
    """

    inputs: Tensor
    targets: Tensor

    @property
    def tokens(self) -> int:
        """How many tokens are to be predicted."""
        return self.targets.numel()

    def to(self, device: torch.device) -> RecallBatch:
        """Return it on a device."""
        return RecallBatch(self.inputs.to(device), self.targets.to(device))


def _batch(task: Task, examples: int, every_token: bool, seed: Sequence[int]) -> RecallBatch:
    texts = torch.from_numpy(task.draw(examples, np.random.default_rng(seed)))
    return RecallBatch(texts[:-1], texts[1:] if every_token else texts[-1:])


class _Batches(Sequence[RecallBatch]):
    """The batches of an epoch, each drawn when it is asked for."""

    def __init__(self, draw: Callable[[Sequence[int]], RecallBatch], seed: int, epoch: int) -> None:
        self._draw, self._seed = draw, (seed, epoch)

    def __len__(self) -> int:
        return EPOCH

    def __getitem__(self, index: Any) -> Any:
        return self._draw((*self._seed, index))


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
    distances: tuple[int, ...] = setting((10, 20, 50, 100, 200), "tokens between the two mentions", minimum=1)
    items: int = setting(16, "items to be told apart", minimum=2)
    hidden_size: int = setting(64, "units of the layer", minimum=1)
    clip_norms: tuple[float, ...] = setting((1.0,), "largest norms of the gradient to try; 0: no clipping", minimum=0)
    forget_biases: tuple[float, ...] = setting((1.0,), "starts of the LSTM's forget bias to try")
    steps: int = setting(1500, "updates of the weights in each run", minimum=1)
    minutes: float | None = setting(None, "minutes of each run, in place of steps", minimum=0)
    batch_size: int = setting(64, "texts of an update", minimum=1)
    learning_rate: float = setting(3e-3, "highest learning rate, of Adam", minimum=0)
    every_token: bool = setting(False, "learn to predict every token, not the item alone")
    seeds: int = setting(1, "runs of each, from different random numbers", minimum=1)
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
            for bias in (self.forget_biases if cell == "lstm" else (None,))
            for clip in self.clip_norms
        ]


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
    """What one run came to.

    Attributes:
        cell, clip_norm, forget_bias: the network; see :class:`Variant`.
        distance: tokens between the two mentions.
        seed: of the run.
        accuracy: part of 1,000 new texts in which the item is the likeliest of all tokens at the end, 0 to 1.
        nats: -log p of the item there, the mean.
        chance: accuracy of a guess among the items.
        steps: updates made.
        seconds: of training.
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

    def to_mapping(self) -> dict[str, Any]:
        """Return all of it as JSON holds it; nats that are not finite are None."""
        rows = [dataclasses.asdict(row) for row in self.rows]
        for row in rows:
            row["nats"] = row["nats"] if math.isfinite(row["nats"]) else None
        return {"settings": to_mapping(self.settings), "complete": self.stopped is None, "rows": rows}


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
        UserError: a setting that cannot be.
    """
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
                        f" {100 * row.accuracy:.1f} % in {row.seconds:.0f} s"
                        + (f" ({row.problem})" if row.problem else "")
                    )
                    finished(RecallResult(settings, rows))
    except KeyboardInterrupt:  # between two runs, or a second time within one
        stopped = signal.SIGINT
    return RecallResult(settings, rows, stopped)


def _run(
    settings: RecallSettings, task: Task, variant: Variant, seed: int, device: torch.device, watch: Watcher | None
) -> RecallRow | signal.Signals:
    """Train one network on one task and test it; the signal that stopped it, if one did."""
    torch.manual_seed(seed)
    model = RecallModel(variant.cell, len(task.vocabulary), settings.hidden_size, variant.forget_bias).to(device)
    draw = partial(_batch, task, settings.batch_size, settings.every_token)
    training = TrainerSettings(
        max_steps=None if settings.minutes is not None else settings.steps,
        max_minutes=settings.minutes,
        learning_rate=settings.learning_rate,
        clip_norm=variant.clip_norm,
        precision="float32",
        seed=seed,
    )
    trainer = Trainer(model, training, partial(_Batches, draw, seed), carry_state=False, watch=watch)
    begun, problem = time.perf_counter(), None
    try:
        if stopped := trainer.run():
            return stopped
    except Diverged:
        problem = f"diverged at step {trainer.run_state.step + 1}"
    seconds = time.perf_counter() - begun
    accuracy, nats = _tested(model, task, seed, device)
    return RecallRow(
        **variant._asdict(),
        distance=task.distance,
        seed=seed,
        accuracy=accuracy,
        nats=nats,
        chance=1 / task.items,
        steps=trainer.run_state.step,
        seconds=seconds,
        problem=problem,
    )


@torch.no_grad()
def _tested(model: RecallModel, task: Task, seed: int, device: torch.device) -> tuple[float, float]:
    """Accuracy and nats of the item in texts that are the same for all networks, and not those of training."""
    batch = _batch(task, TEST_EXAMPLES, False, (seed,)).to(device)  # one number, where training's seeds have three
    with evaluating(model):
        scores = model.scores(batch.inputs)[0]
    items = batch.targets[0]
    return float((scores.argmax(-1) == items).double().mean()), float(F.cross_entropy(scores, items))


def _grouped(rows: Sequence[RecallRow]) -> dict[Variant, dict[int, list[RecallRow]]]:
    """Rows by network and distance, both in the order of the rows."""
    found: dict[Variant, dict[int, list[RecallRow]]] = {}
    for row in rows:
        found.setdefault(row.variant, {}).setdefault(row.distance, []).append(row)
    return found


def recall_table(result: RecallResult) -> str:
    """Accuracies in per cent as a Markdown table: the mean of all seeds, and in parentheses the least and the greatest.

    A star stands beside what was broken off.
    """
    distances = sorted({row.distance for row in result.rows})
    lines = [
        "| accuracy (%) at distance | " + " | ".join(map(str, distances)) + " |",
        "|---|" + "---:|" * len(distances),
    ]
    for variant, by_distance in _grouped(result.rows).items():
        cells = []
        for distance in distances:
            rows = by_distance.get(distance, [])
            values = [100 * row.accuracy for row in rows]
            text = f"{sum(values) / len(values):.1f}" if values else ""
            if len(values) > 1:
                text += f" ({min(values):.1f}-{max(values):.1f})"
            cells.append(text + "*" * any(row.problem for row in rows))
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    if result.rows:
        guess = f"{100 * result.rows[0].chance:.1f}"
        lines.append(f"| a guess among {result.settings.items} items | {' | '.join([guess] * len(distances))} |")
    if any(row.problem for row in result.rows):
        lines += ["", "\\* a run diverged, and was tested as it was before."]
    return "\n".join(lines) + "\n"


def draw_recall(result: RecallResult, path: Path) -> None:
    """Draw accuracy against distance, a line for each kind of network; bars go from the worst seed to the best.

    Raises:
        UserError: there is nothing to draw, matplotlib is missing, or the picture's format is unknown.
    """
    if not result.rows:
        raise UserError(f"{path}: no run is over yet, there is nothing to draw")
    looks = {"rnn": ("0.6", ":"), "gru": ("0.4", "--"), "lstm": ("black", "-")}
    markers = "osD^vP*X"
    figure = figure_of(6.4, 4.2)
    axes = figure.add_subplot()
    for index, (variant, by_distance) in enumerate(_grouped(result.rows).items()):
        distances = sorted(by_distance)
        values = [np.array([100 * row.accuracy for row in by_distance[distance]]) for distance in distances]
        means = np.array([each.mean() for each in values])
        spread = np.array([[m - each.min(), each.max() - m] for m, each in zip(means, values, strict=True)]).T
        colour, line = looks[variant.cell]
        axes.errorbar(
            distances,
            means,
            yerr=spread if any(len(each) > 1 for each in values) else None,
            color=colour,
            linestyle=line,
            linewidth=1.5,
            elinewidth=0.8,
            marker=markers[index % len(markers)],
            markersize=5,
            markerfacecolor=colour if variant.clip_norm else "white",
            label=str(variant),
        )
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
