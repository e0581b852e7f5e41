"""Recall in real texts: how much likelier a rare word is when it comes again (compare Khandelwal et al. 2018)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.config import UserError, setting
from recurra.evaluation import surprisals
from recurra.language_model import LanguageModel
from recurra.plotting import figure_of, label_axes, save
from recurra.text.batches import TokenStream
from recurra.text.tokenizer import JOINER
from recurra.text.vocabulary import LINE_END, UNKNOWN

__all__ = ["RepeatedRow", "RepeatedSettings", "RepeatedWords", "draw_repeated", "repeated_table", "repeated_words"]

Ids = NDArray[np.int64]


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
    label_axes(
        axes,
        x="distance from the mention before, in tokens (mentions)",
        y="likelier than at the first mention by (nats)",
    )
    axes.legend(frameon=False, fontsize=8)
    save(figure, path)
