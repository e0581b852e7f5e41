"""How far back a recurrent network remembers: made-up texts in which a word comes back, and real ones.

In the made-up texts everything depends on one early word: a network that has forgotten it when it is asked guesses.
The distance is the number of tokens between its two mentions, so that the gradient has to find its way back through one
step more. Tasks of this form go back to Hochreiter and Schmidhuber 1997; "her tickets ... she printed her ___" is how
Stanford's lectures on language models put it. In real texts, what is measured is how much likelier a rare word is when
it comes again (compare Khandelwal et al. 2018).
"""

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
from recurra.evaluation import surprisals
from recurra.language_model import LanguageModel
from recurra.models.protocol import LossSum, evaluating
from recurra.nn import GRU, LSTM, RNN
from recurra.plotting import figure_of, save
from recurra.text.batches import TokenStream
from recurra.text.tokenizer import JOINER
from recurra.text.vocabulary import LINE_END, UNKNOWN
from recurra.training import Diverged, Trainer, TrainerSettings, Watcher

__all__ = [
    "CopyTask",
    "RecallModel",
    "RecallResult",
    "RecallRow",
    "RecallSettings",
    "RepeatedRow",
    "RepeatedSettings",
    "RepeatedWords",
    "SentenceTask",
    "draw_recall",
    "draw_repeated",
    "example",
    "recall",
    "recall_table",
    "repeated_table",
    "repeated_words",
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


# ---- made-up texts --------------------------------------------------------------------------------------------------


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
    axes.set_xlabel("distance (tokens between the two mentions)")
    axes.set_ylabel("items recalled (%)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=8)
    save(figure, path)


# ---- real texts -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RepeatedSettings:
    """Which words are followed, and how distances are grouped."""

    rare: float = setting(20.0, "most mentions in a million words of training text", minimum=0)
    edges: tuple[int, ...] = setting(
        (1, 10, 20, 50, 100, 200, 500, 1000), "where groups of distances begin, in tokens", minimum=1
    )
    reset: str | None = setting(
        None, "where the state starts anew; as in training if not given", choices=("none", "documents", "lines")
    )


@dataclass(frozen=True, kw_only=True)
class RepeatedRow:
    """Mentions of rare words so far from the mention before.

    Attributes:
        low: least distance in tokens: 1 for the word that follows directly.
        high: greatest distance; None for the last group, which has no end.
        mentions: how many there are.
        words: how many different words they are of.
        first_nats: -log p of the same words at their first mention in the document: the mean over these mentions.
        nats: -log p of these mentions, the mean.
        gain: by how much a mention is likelier than the first, first_nats - nats.
        error: standard error of the gain, mentions of one word taken together; None where all are of one word.
        line_gain: the gain of the same mentions where the model forgets at every line end: what is there above it is
            remembered from earlier lines. None where the model forgets there anyway.
    """

    low: int
    high: int | None
    mentions: int
    words: int
    first_nats: float
    nats: float
    gain: float
    error: float | None
    line_gain: float | None = None


@dataclass(frozen=True)
class RepeatedWords:
    """How much likelier rare words are when they come again.

    Attributes:
        rows: by distance; groups without a mention are left out.
        mentions: all mentions but the first.
        reset: where the state started anew.
    """

    rows: Sequence[RepeatedRow]
    mentions: int
    reset: str

    def to_mapping(self) -> dict[str, Any]:
        """Return every number by its name, as JSON holds them."""
        return {"reset": self.reset, "mentions": self.mentions, "rows": [dataclasses.asdict(row) for row in self.rows]}


def repeated_words(lm: LanguageModel, stream: TokenStream, settings: RepeatedSettings | None = None) -> RepeatedWords:
    """Measure by how many nats a rare word is likelier when it comes again than at its first mention in the document.

    Where a document speaks of something, its words are likely in any model that reads the line before them; the gain is
    compared with that of the same model without what stands in earlier lines. Needs memory of 8 bytes for each token.

    Args:
        lm: whose tokens are words.
        stream: a text in its tokens.
        settings: which words are followed.

    Raises:
        UserError: the model's tokens are not words, distances that do not ascend, or no rare word comes twice.
    """
    settings = settings or RepeatedSettings()
    if lm.tokenizer.kind not in ("words", "whitespace"):
        raise UserError(f"repeated words are those of a model of words; this one reads {lm.tokenizer.kind}")
    edges = np.array(settings.edges)
    if not len(edges) or (np.diff(edges) <= 0).any():
        raise UserError(f"edges: expected distances that ascend, got {','.join(map(str, settings.edges))}")
    followed = _rare_words(lm, stream, settings.rare)
    positions, before, first = _mentions(stream, followed)
    if not len(positions):
        raise UserError("no rare word of the text comes twice in a document: give a longer text, or a larger --rare")
    words = np.asarray(stream.tokens)[positions]
    reset = settings.reset or lm.model.settings.reset
    gains, nats, first_nats = _gains(lm, stream, reset, positions, first)
    line_gains = None if reset == "lines" else _gains(lm, stream, "lines", positions, first)[0]
    groups = np.searchsorted(edges, positions - before, side="right") - 1
    rows = []
    for group in range(len(edges)):
        inside = groups == group
        if not inside.any():
            continue
        rows.append(
            RepeatedRow(
                low=int(edges[group]),
                high=int(edges[group + 1]) - 1 if group + 1 < len(edges) else None,
                mentions=int(inside.sum()),
                words=len(np.unique(words[inside])),
                first_nats=float(first_nats[inside].mean()),
                nats=float(nats[inside].mean()),
                gain=float(gains[inside].mean()),
                error=clustered_error(gains[inside], words[inside]),
                line_gain=None if line_gains is None else float(line_gains[inside].mean()),
            )
        )
    return RepeatedWords(rows, len(positions), reset)


def _rare_words(lm: LanguageModel, stream: TokenStream, most: float) -> NDArray[np.bool_]:
    """Which ids are words with a letter that the training text has at most so often in a million, [V].

    An ARPA file has no counts; there the text at hand says what is rare.
    """
    vocabulary = lm.tokenizer.vocabulary
    counts = np.array(vocabulary.counts, dtype=np.float64)
    if not counts[LINE_END + 1 :].any():
        counts = np.bincount(np.asarray(stream.tokens), minlength=len(vocabulary)).astype(np.float64)
    lettered = [any(map(str.isalpha, token.strip(JOINER))) for token in vocabulary.tokens]
    followed: NDArray[np.bool_] = np.array(lettered) & (counts * 1e6 <= most * counts.sum())
    followed[[UNKNOWN, LINE_END]] = False
    return followed


def _mentions(stream: TokenStream, followed: NDArray[np.bool_]) -> tuple[Ids, Ids, Ids]:
    """Positions of the second and later mentions of words in a document, of the mention before, and of the first."""
    positions = np.flatnonzero(followed[stream.tokens])
    words = np.asarray(stream.tokens)[positions].astype(np.int64)
    documents = np.searchsorted(stream.document_starts, positions, side="right")
    order = np.lexsort((positions, words, documents))
    positions, words, documents = positions[order], words[order], documents[order]
    again = np.zeros(len(positions), dtype=bool)
    again[1:] = (words[1:] == words[:-1]) & (documents[1:] == documents[:-1])
    firsts = np.maximum.accumulate(np.where(again, 0, np.arange(len(positions)))) if len(positions) else positions
    later = np.flatnonzero(again)
    return positions[later], positions[later - 1], positions[firsts[later]]


def _gains(
    lm: LanguageModel, stream: TokenStream, reset: str, positions: Ids, first: Ids
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Gain of each mention, its nats, and those of the word's first mention."""
    nats = surprisals(
        lm.model,
        stream.tokens,
        reset=reset,  # type: ignore[arg-type]  # checked there
        document_starts=stream.document_starts,
        line_starts=stream.line_starts,
    )
    return nats[first] - nats[positions], nats[positions], nats[first]


def clustered_error(values: NDArray[np.float64], clusters: NDArray[Any]) -> float | None:
    """Standard error of the mean of values that are independent between clusters only; None for a single cluster.

    Args:
        values: [n].
        clusters: which cluster each belongs to, [n].
    """
    _, index = np.unique(clusters, return_inverse=True)
    sums = np.bincount(index, values - values.mean())
    if len(sums) < 2:
        return None
    return float(np.sqrt((sums**2).sum() * len(sums) / (len(sums) - 1)) / len(values))


def repeated_table(result: RepeatedWords) -> str:
    """The rows as a Markdown table."""
    controlled = any(row.line_gain is not None for row in result.rows)
    head = ["distance (tokens)", "mentions", "words", "first (nats)", "again (nats)", "gain (nats)"]
    lines = [
        f"| {' | '.join([*head, *(['gain of the line alone'] if controlled else [])])} |",
        "|---|" + "---:|" * (len(head) - 1 + controlled),
    ]
    for row in result.rows:
        error = "" if row.error is None else f" ± {1.96 * row.error:.2f}"
        cells = [
            _between(row),
            f"{row.mentions:,}",
            f"{row.words:,}",
            f"{row.first_nats:.2f}",
            f"{row.nats:.2f}",
            f"{row.gain:.2f}{error}",
        ]
        if controlled:
            cells.append("" if row.line_gain is None else f"{row.line_gain:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _between(row: RepeatedRow) -> str:
    return f"{row.low}+" if row.high is None else f"{row.low}" if row.low == row.high else f"{row.low}-{row.high}"


def draw_repeated(result: RepeatedWords, path: Path) -> None:
    """Draw the gain against distance with 95 % intervals, and that of the line alone beside it.

    Raises:
        UserError: matplotlib is missing, or the picture's format is unknown.
    """
    figure = figure_of(6.4, 4.0)
    axes = figure.add_subplot()
    places = range(len(result.rows))
    axes.axhline(0, color="0.75", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    label = "state carried over lines" if result.reset != "lines" else "state reset at each line"
    axes.errorbar(
        places,
        [row.gain for row in result.rows],
        yerr=[1.96 * (row.error or 0.0) for row in result.rows],
        color="black",
        linewidth=1.5,
        elinewidth=0.8,
        marker="o",
        markersize=5,
        label=label,
    )
    if any(row.line_gain is not None for row in result.rows):
        lines = [math.nan if row.line_gain is None else row.line_gain for row in result.rows]
        axes.plot(
            places, lines, color="0.5", linewidth=1.2, linestyle="--", marker="s", markersize=4, label="line alone"
        )
    axes.set_xticks(places, [f"{_between(row)}\n({row.mentions:,})" for row in result.rows], fontsize=8)
    axes.set_xlabel("distance from the mention before, in tokens (mentions)")
    axes.set_ylabel("likelier than at the first mention by (nats)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    save(figure, path)
