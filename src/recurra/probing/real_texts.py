"""Recall in real texts: how much likelier a rare word is when it comes again (compare Khandelwal et al. 2018).

That alone says little about memory. Where a text speaks of something, its words are likely in any model that reads the
words around them. So each mention is scored once more by the same model without what it should remember, a control:

- ``replaced``: wherever the word was mentioned before, the model reads another word of like frequency in its place.
  Words are replaced by the part, each part in a reading of its own, and a mention is compared with itself in the
  readings in which other parts are replaced: the texts around it are as strange there, but for its own word.
- ``lines``: the model forgets at every line end. What it says then differs by all that stands in earlier lines. Where
  a line is a paragraph, most of what is near is in it; and a model that never read lines one by one is asked for
  something that it has not learnt.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recurra.config import UserError, setting
from recurra.evaluation import Offsets, surprisals
from recurra.language_model import LanguageModel
from recurra.models.dynamic_evaluation import DynamicEvaluation
from recurra.models.protocol import LanguageModelProtocol, State, device_of, evaluating
from recurra.plotting import figure_of, label_axes, save
from recurra.text.batches import TokenStream
from recurra.text.tokenizer import JOINER
from recurra.text.vocabulary import LINE_END, UNKNOWN, Vocabulary

__all__ = ["RepeatedRow", "RepeatedSettings", "RepeatedWords", "draw_repeated", "repeated_table", "repeated_words"]

Ids = NDArray[np.int64]
Nats = NDArray[np.float64]

CONTROLS = ("replaced", "lines", "none")
NEIGHBOURS = 25  # by frequency, on either side, among which a word is chosen to stand for another


@dataclass(frozen=True, kw_only=True)
class RepeatedSettings:
    """Which words are followed, how distances are grouped, and what is compared."""

    rare: float = setting(20.0, "most mentions in a million words of training text", minimum=0)
    edges: tuple[int, ...] = setting(
        (0, 10, 20, 50, 100, 200, 500, 1000),
        "where groups of distances begin, in tokens between the mentions; what is nearer than the first is left out",
        minimum=0,
    )
    reset: str | None = setting(
        None, "where the state starts anew; as in training if not given", choices=("none", "documents", "lines")
    )
    control: str = setting(
        "replaced",
        "what is compared: other words in the place of earlier mentions, or a model that forgets at line ends",
        choices=CONTROLS,
    )
    passes: int = setting(
        4, "readings in each of which a part of the words is replaced; the more, the less else is changed", minimum=2
    )


@dataclass(frozen=True, kw_only=True)
class RepeatedRow:
    """Mentions of rare words so far from the mention before.

    Attributes:
        low: least distance, in tokens between the two: 0 for the word that follows directly.
        high: greatest distance; None for the last group, which has no end.
        mentions: how many there are.
        words: how many different words they are of.
        first_nats: -log p of the same words at their first mention in the document: the mean over these mentions.
        nats: -log p of these mentions, the mean.
        gain: by how much a mention is likelier than the first, first_nats - nats, in nats.
        error: standard error of the gain, mentions of one word taken together; None where all are of one word.
        control_gain: the gain of the same mentions in the control; None without one.
        memory: gain - control_gain, what the model owes to what the control lacks; None without a control.
        memory_error: standard error of the mean of these differences, as of the gain; None likewise.
    """

    low: int
    high: int | None
    mentions: int
    words: int
    first_nats: float
    nats: float
    gain: float
    error: float | None
    control_gain: float | None = None
    memory: float | None = None
    memory_error: float | None = None


@dataclass(frozen=True)
class RepeatedWords:
    """How much likelier rare words are when they come again.

    Attributes:
        rows: by distance; groups without a mention are left out.
        mentions: all mentions in them.
        nearer: mentions that are nearer to the one before than all groups, and in none of them.
        reset: where the state started anew.
        control: ``replaced``, ``lines`` or ``none``.
    """

    rows: Sequence[RepeatedRow]
    mentions: int
    nearer: int
    reset: str
    control: str

    def to_mapping(self) -> dict[str, Any]:
        """Return every number by its name, as JSON holds them."""
        names = ("reset", "control", "mentions", "nearer")
        return {name: getattr(self, name) for name in names} | {"rows": [dataclasses.asdict(row) for row in self.rows]}


def repeated_words(lm: LanguageModel, stream: TokenStream, settings: RepeatedSettings | None = None) -> RepeatedWords:
    """Measure by how many nats a rare word is likelier when it comes again than at its first mention in the document.

    The module says what that is compared with. Needs memory of some 40 bytes for each token.

    Args:
        lm: whose tokens are words.
        stream: a text in its tokens.
        settings: which words are followed.

    Raises:
        UserError: the model's tokens are not words, distances that do not ascend, no rare word comes twice, a model
            that forgets at line ends and is to be compared with one that does, or one that learns from what it reads
            and is not to know it.
    """
    settings = settings or RepeatedSettings()
    if lm.tokenizer.kind not in ("words", "whitespace"):
        raise UserError(f"repeated words are those of a model of words; this one reads {lm.tokenizer.kind}")
    edges = np.array(settings.edges)
    if not len(edges) or (np.diff(edges) <= 0).any():
        raise UserError(f"edges: expected distances that ascend, got {','.join(map(str, settings.edges))}")
    reset = settings.reset or lm.model.settings.reset
    if settings.control == "lines" and reset == "lines":
        raise UserError("control: the model forgets at line ends as it is; give replaced, or another --reset")
    if settings.control == "replaced" and isinstance(lm.model, DynamicEvaluation):
        raise UserError(
            "control: a model that learns from what it reads learns the words that are replaced; give lines"
        )
    followed = _rare_words(lm, stream, settings.rare)
    positions, before, first = _mentions(stream, followed)
    groups = np.searchsorted(edges, positions - before - 1, side="right") - 1
    shown = groups >= 0
    nearer = int((~shown).sum())
    positions, first, groups = positions[shown], first[shown], groups[shown]
    if not len(positions):
        raise UserError("no rare word of the text comes twice in a document: give a longer text, or a larger --rare")
    words = np.asarray(stream.tokens)[positions]
    all_nats = _surprisals(lm.model, stream, stream.tokens, reset)
    nats, first_nats = all_nats[positions], all_nats[first]
    gains = first_nats - nats
    memories: Nats | None = None
    if settings.control == "lines":
        by_line = _surprisals(lm.model, stream, stream.tokens, "lines")
        memories = gains - (by_line[first] - by_line[positions])
    elif settings.control == "replaced":
        memories = _memories(lm, stream, followed, positions, nats, reset, settings.passes)
    rows = []
    for group in np.unique(groups):
        inside = groups == group
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
                control_gain=None if memories is None else float((gains - memories)[inside].mean()),
                memory=None if memories is None else float(memories[inside].mean()),
                memory_error=None if memories is None else clustered_error(memories[inside], words[inside]),
            )
        )
    return RepeatedWords(rows, len(positions), nearer, reset, settings.control)


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


def _surprisals(model: LanguageModelProtocol, stream: TokenStream, tokens: Any, reset: str) -> Nats:
    """-log p of every token, [tokens]; ``tokens`` in the place of those of the stream."""
    starts: dict[str, Offsets] = {"document_starts": stream.document_starts, "line_starts": stream.line_starts}
    return surprisals(model, tokens, reset=reset, **starts)  # type: ignore[arg-type]  # reset is checked there


class _Reader:
    """A model that reads other words than those it has to predict.

    Ids from V on are words that are replaced: V + w is to be predicted as w, and read as another.

    Args:
        model: which model.
        read: what is read in the place of each word, [V].
    """

    def __init__(self, model: LanguageModelProtocol, read: Tensor) -> None:
        self.model, self.vocabulary_size = model, model.vocabulary_size
        self._read = torch.cat([torch.arange(len(read)), read]).to(device_of(model))

    def start(self, batch_size: int) -> State:
        """The state of rows that have read nothing."""
        return self.model.start(batch_size)

    def select(self, state: State, rows: Tensor) -> State:
        """The state of some rows."""
        return self.model.select(state, rows.to(self._read.device))

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Read one token in every row."""
        return self.model.step(self._read[tokens.to(self._read.device)], state)

    def score(self, inputs: Tensor, targets: Tensor, state: State) -> tuple[Tensor, State]:
        """Log-probabilities of the words themselves, after the words that stand for them."""
        inputs, targets = inputs.to(self._read.device), targets.to(self._read.device)
        return self.model.score(self._read[inputs], targets % self.vocabulary_size, state)


def _memories(
    lm: LanguageModel,
    stream: TokenStream,
    followed: NDArray[np.bool_],
    positions: Ids,
    nats: Nats,
    reset: str,
    passes: int,
) -> Nats:
    """By how much mentions are likelier for the mentions before, [mentions].

    That is -log p where the model has read other words for them, less -log p where it has read other words for others.
    """
    tokens = np.asarray(stream.tokens).astype(np.int64)
    words, counts = np.unique(tokens[positions], return_counts=True)
    read = torch.from_numpy(_substitutes(lm.tokenizer.vocabulary, tokens, followed, words))
    reader = _Reader(lm.model, read)
    part_of = np.full(len(lm.tokenizer.vocabulary), -1)
    shuffled = np.random.default_rng(0).permutation(len(words))
    part_of[words[np.lexsort((shuffled, counts))]] = np.arange(len(words)) % passes  # parts of as many mentions
    parts = part_of[tokens]
    memories = np.zeros(len(positions))
    with evaluating(lm.model):
        for part in range(passes):
            found = nats  # where there are fewer words than parts, nothing is replaced in some
            if (parts == part).any():
                marked = np.where(parts == part, tokens + len(read), tokens)
                found = _surprisals(reader, stream, marked, reset)[positions]
            memories += np.where(parts[positions] == part, found, -found / (passes - 1))
    return memories


def _substitutes(vocabulary: Vocabulary, tokens: Ids, followed: NDArray[np.bool_], words: Ids) -> Ids:
    """For each word of the vocabulary what is read in its place, [V]: itself but for the words that are replaced.

    They get rare words of like frequency that the text does not have, a name a name as far as capitals tell; where it
    has all of them, any other.
    """
    counts = np.array(vocabulary.counts, dtype=np.float64)
    capital = np.array([token.strip(JOINER)[:1].isupper() for token in vocabulary.tokens])
    absent = followed.copy()
    absent[tokens] = False
    random = np.random.default_rng(0)
    substitutes = np.arange(len(vocabulary))
    for kind in (False, True):
        for candidates in (absent & (capital == kind), absent, followed):
            found = np.flatnonzero(candidates)
            if len(found) > 1:
                break
        else:
            found = np.arange(LINE_END + 1, len(vocabulary))
        found = found[np.argsort(counts[found], kind="stable")]
        for word in words[capital[words] == kind]:
            low, high = (np.searchsorted(counts[found], counts[word], side) for side in ("left", "right"))
            near = found[max(0, min(low, len(found) - 1) - NEIGHBOURS) : high + NEIGHBOURS]
            near = near[near != word]
            substitutes[word] = random.choice(near) if len(near) else UNKNOWN
    return substitutes


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


CONTROL_NAMES = {"replaced": "without the earlier mentions", "lines": "forgetting at line ends"}


def repeated_table(result: RepeatedWords) -> str:
    """The rows as a Markdown table; what stands behind ± is half of a 95 % interval."""
    head = ["tokens in between", "mentions", "words", "first (nats)", "again (nats)", "gain (nats)"]
    controlled = result.control != "none"
    if controlled:
        head += [f"gain {CONTROL_NAMES[result.control]}", "memory (nats)"]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for row in result.rows:
        cells = [
            _between(row),
            f"{row.mentions:,}",
            f"{row.words:,}",
            f"{row.first_nats:.2f}",
            f"{row.nats:.2f}",
            _with_error(row.gain, row.error),
        ]
        if controlled:
            cells += [_with_error(row.control_gain, None), _with_error(row.memory, row.memory_error)]
        lines.append(f"| {' | '.join(cells)} |")
    if result.nearer:
        lines += ["", f"Left out: {result.nearer:,} mentions that are nearer to the one before."]
    return "\n".join(lines) + "\n"


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return ""
    return f"{round(value, 2) + 0.0:.2f}" + ("" if error is None else f" ± {1.96 * error:.2f}")  # no -0.00


def _between(row: RepeatedRow) -> str:
    return f"{row.low}+" if row.high is None else f"{row.low}" if row.low == row.high else f"{row.low}-{row.high}"


def draw_repeated(result: RepeatedWords, path: Path) -> None:
    """Draw gain, that of the control and what lies between them, memory, against distance, with 95 % intervals.

    Raises:
        UserError: matplotlib is missing, or the picture's format is unknown.
    """
    figure = figure_of(6.4, 4.2)
    axes = figure.add_subplot()
    axes.axhline(0, color="0.75", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    series: list[tuple[str, Sequence[float | None], Sequence[float | None] | None, dict[str, Any]]] = [
        (
            "gain",
            [row.gain for row in result.rows],
            [row.error for row in result.rows],
            {"color": "0.45", "marker": "o"},
        )
    ]
    if result.control != "none":
        controls, memories = [row.control_gain for row in result.rows], [row.memory for row in result.rows]
        dashed = {"color": "0.6", "marker": "s", "linestyle": "--"}
        series += [
            (f"gain {CONTROL_NAMES[result.control]}", controls, None, dashed),
            (
                "memory: the difference",
                memories,
                [row.memory_error for row in result.rows],
                {"color": "black", "marker": "D", "markerfacecolor": "white"},
            ),
        ]
    for index, (label, values, errors, look) in enumerate(series):
        axes.errorbar(
            [place + 0.08 * (index - (len(series) - 1) / 2) for place in range(len(values))],
            [math.nan if value is None else value for value in values],
            yerr=None if errors is None else [1.96 * (error or 0.0) for error in errors],
            linewidth=1.5,
            elinewidth=0.8,
            markersize=5,
            label=label,
            **look,
        )
    axes.set_xticks(
        range(len(result.rows)), [f"{_between(row)}\n({row.mentions:,})" for row in result.rows], fontsize=8
    )
    label_axes(
        axes,
        x="distance: tokens since the mention before (mentions)",
        y="likelier than at the first mention by (nats)",
    )
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=8)
    save(figure, path)
