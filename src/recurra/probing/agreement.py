"""Subject-verb agreement: which of two sentences that differ in their verb a language model takes for the likelier one.

"The keys to the cabinet are" agrees with its subject: syntactic recency. "The keys to the cabinet is" agrees with the
nearest noun: sequential recency, which is what a model does that has learnt no more than what mostly stands side by
side. The nouns between subject and verb whose number is not the subject's are called attractors (Linzen, Dupoux and
Goldberg 2016). A pair of sentences is scored as in Marvin and Linzen 2018 and Warstadt et al. 2020: the model is right
where the whole grammatical sentence, its line end included, has the greater probability.
"""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recurra.config import UserError
from recurra.evaluation import BATCH_SIZE, surprisals
from recurra.language_model import COUNTED_ROWS, LanguageModel
from recurra.plotting import figure_of, label_axes, save
from recurra.probing.pairs import NEAREST, PAIRS, Pair, read_pairs
from recurra.text.tokenizer import Tokenizer
from recurra.text.vocabulary import LINE_END, UNKNOWN

__all__ = ["PAIRS", "Agreement", "Pair", "Scored", "Tally", "draw", "measure", "read_pairs", "table", "write_pairs_tsv"]

TIE = 1e-4  # nats; two sentences that are nearer to each other differ by the rounding of float32 sums
BLOCK = 5_000  # pairs scored at once
BY = ("type", "attractors", "nearest")
BETWEEN = "nouns in between"
SHOWN = 10  # words that are named

# What is set apart at the beginning of a word and at its end, in texts that are cut into words. An abbreviation keeps
# its full stop; single quotes are left, as they may be apostrophes.
OPENING, CLOSING = '"“«([{', '"”»)]},;:!?.'
ABBREVIATION = re.compile(r"(?:\w+\.)+\w+|[A-HJ-Z]|Mrs?|Ms|Dr|St|Jr|Sr|Prof|vs")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """A pair and what a model makes of it.

    Attributes:
        pair: the pair.
        good_nats: -log p of the grammatical sentence, its line end included.
        bad_nats: that of the other.
        unknown: words in which the sentences differ that the model does not know; with one of them no score means
            anything.
        elsewhere: words that both sentences have and the model does not know; where the subject is among them, it
            cannot know what the verb should agree with.
    """

    pair: Pair
    good_nats: float
    bad_nats: float
    unknown: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()

    @property
    def outcome(self) -> str:
        """``right``, ``wrong``, ``tie`` or ``unknown``."""
        if self.unknown:
            return "unknown"
        gain = self.bad_nats - self.good_nats  # nan where both are impossible: a tie
        return "right" if gain > TIE else "wrong" if gain < -TIE else "tie"


class Tally(NamedTuple):
    """How many pairs, and in how many of them the model was right, or had no preference. A tie is not right."""

    pairs: int
    right: int
    ties: int

    @property
    def wrong(self) -> int:
        """Pairs in which the ungrammatical sentence is the likelier one."""
        return self.pairs - self.right - self.ties

    @property
    def accuracy(self) -> float:
        """Part of the pairs in which the model was right, 0 to 1."""
        return self.right / self.pairs

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy (Wilson 1927), as if the pairs were independent draws."""
        z, n, p = 1.96, self.pairs, self.accuracy
        centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, (centre - spread) / (1 + z * z / n)), min(1.0, (centre + spread) / (1 + z * z / n))

    def to_mapping(self) -> dict[str, Any]:
        """Return the counts and what follows from them, as JSON holds them."""
        return {**self._asdict(), "wrong": self.wrong, "accuracy": self.accuracy, "interval": list(self.interval)}


@dataclass(frozen=True)
class Agreement:
    """How a model did on pairs of sentences; those that differ in an unknown word are in no tally.

    Attributes:
        scored: the pairs.
        known_in_lowercase: unknown words that the model knows without their capitals.
    """

    scored: Sequence[Scored]
    known_in_lowercase: frozenset[str] = frozenset()

    @property
    def overall(self) -> Tally:
        """All pairs."""
        return _tally(each for each in self.scored if not each.unknown)

    @property
    def all_known(self) -> Tally | None:
        """Pairs without any word that the model does not know; None if there is none."""
        tally = _tally(each for each in self.scored if not (each.unknown or each.elsewhere))
        return tally if tally.pairs else None

    def by(self, *attributes: str) -> dict[Any, Tally]:
        """Tallies by attributes of the pairs: ``type``, ``nouns``, ``attractors``, ``nearest``.

        Types come in order of appearance, the others by number. Several attributes give tuples of them: by ``nouns``
        and ``attractors``, what is counted with the same number of nouns in between differs in attractors alone. Pairs
        of which something is not known are left out.
        """
        groups: dict[Any, list[Scored]] = {}
        for each in self.scored:
            values = tuple(getattr(each.pair, attribute) for attribute in attributes)
            if None not in values and not each.unknown:
                groups.setdefault(values if len(values) > 1 else values[0], []).append(each)
        if attributes == ("nearest",):
            order: Iterable[Any] = [name for name in NEAREST if name in groups]
        else:
            order = groups if "type" in attributes else sorted(groups)
        return {value: _tally(groups[value]) for value in order}

    @property
    def left_out(self) -> int:
        """Pairs that differ in a word that the model does not know."""
        return sum(bool(each.unknown) for each in self.scored)

    @property
    def unknown(self) -> Counter[str]:
        """Those words, and in how many pairs each stands."""
        return Counter(word for each in self.scored for word in dict.fromkeys(each.unknown))

    @property
    def unknown_elsewhere(self) -> Counter[str]:
        """Unknown words that both sentences of a pair have that is counted, and in how many pairs each stands."""
        return Counter(word for each in self.scored if not each.unknown for word in dict.fromkeys(each.elsewhere))

    @property
    def doubtful(self) -> int:
        """Pairs that are counted, and have an unknown word in both sentences."""
        return sum(bool(each.elsewhere) and not each.unknown for each in self.scored)

    def to_mapping(self) -> dict[str, Any]:
        """Return every number by its name, as JSON holds them."""
        nearest = self.by("nearest").get("other")
        recency = None
        if nearest is not None:
            recency = {
                "pairs": nearest.pairs,
                "syntactic": nearest.right / nearest.pairs,
                "sequential": nearest.wrong / nearest.pairs,
                "ties": nearest.ties / nearest.pairs,
            }
        by_nouns: dict[str, dict[str, Any]] = {}
        for (nouns, attractors), tally in self.by("nouns", "attractors").items():
            by_nouns.setdefault(str(nouns), {})[str(attractors)] = tally.to_mapping()
        known = self.all_known
        return {
            "overall": self.overall.to_mapping(),
            "all_known": None if known is None else known.to_mapping(),
            **{f"by_{name}": {str(k): tally.to_mapping() for k, tally in self.by(name).items()} for name in BY},
            "by_nouns_and_attractors": by_nouns,
            "recency": recency,
            "left_out": self.left_out,
            "unknown": dict(self.unknown.most_common()),
            "unknown_elsewhere": dict(self.unknown_elsewhere.most_common()),
            "known_in_lowercase": sorted(self.known_in_lowercase),
        }


def _tally(scored: Iterable[Scored]) -> Tally:
    outcomes = Counter(each.outcome for each in scored)
    return Tally(outcomes.total(), outcomes["right"], outcomes["tie"])


# ---- scoring --------------------------------------------------------------------------------------------------------


def measure(
    lm: LanguageModel,
    pairs: Sequence[Pair],
    *,
    lowercase: bool = False,
    split_punctuation: bool | None = None,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Agreement:
    """Let a model say which sentence of each pair is the likelier.

    Every sentence is a line by itself, read from the start of a text, whatever the model does at line ends otherwise.

    Args:
        lm: of any kind.
        pairs: at least one.
        lowercase: make all letters small first; the model's tokenizer does so by itself if it was trained so.
        split_punctuation: put commas, full stops and their like apart, as in texts that are already cut into words;
            None does so where the model's words are what stands between white space and the full stop is one of them.
        batch_size: sentences read side by side; no number depends on it.
        progress: is called with pairs done, and pairs in all.

    Raises:
        UserError: no pair is left that the model knows the words of.
    """
    tokenizer = lm.tokenizer
    if split_punctuation is None:
        split_punctuation = tokenizer.kind == "whitespace" and tokenizer.id(".") != UNKNOWN
    side_by_side = batch_size or (COUNTED_ROWS if lm.counted else BATCH_SIZE)
    scored: list[Scored] = []
    for first in range(0, len(pairs), BLOCK):
        block = pairs[first : first + BLOCK]
        texts = [
            prepared(text, lowercase=lowercase, split_punctuation=split_punctuation)
            for pair in block
            for text in (pair.good, pair.bad)
        ]
        ids = [np.append(tokenizer.encode(text), LINE_END) for text in texts]
        nats = _sentence_nats(lm, ids, side_by_side)
        for index, pair in enumerate(block):
            both = slice(2 * index, 2 * index + 2)
            unknown: tuple[str, ...] = ()
            elsewhere: tuple[str, ...] = ()
            if any(UNKNOWN in sentence for sentence in ids[both]):
                unknown, elsewhere = unknown_words(tokenizer, *texts[both])
            good_nats, bad_nats = nats[both]
            scored.append(
                Scored(pair=pair, good_nats=good_nats, bad_nats=bad_nats, unknown=unknown, elsewhere=elsewhere)
            )
        if progress is not None:
            progress(len(scored), len(pairs))
    words = {word for each in scored for word in (*each.unknown, *each.elsewhere)}
    small = frozenset(
        word for word in words if word != word.lower() and UNKNOWN not in tokenizer.encode(word.lower()).tolist()
    )
    result = Agreement(scored, small)
    if result.left_out == len(scored):
        named = ", ".join(repr(word) for word, _ in result.unknown.most_common(5))
        raise UserError(
            f"the model knows the words of no pair: outside its vocabulary are {named}"
            f"{' and others' if len(result.unknown) > 5 else ''};"
            " try --lowercase or --split-punctuation, or other pairs"
        )
    return result


def prepared(text: str, *, lowercase: bool, split_punctuation: bool) -> str:
    """Return a sentence as the tokenizer gets it."""
    if split_punctuation:
        text = " ".join(map(_apart, text.split()))
    return text.lower() if lowercase else text


def _apart(word: str) -> str:
    """A word with what stands before and behind it set apart; an abbreviation keeps its full stop."""
    before: list[str] = []
    after: list[str] = []
    while len(word) > 1 and word[0] in OPENING:
        before.append(word[0])
        word = word[1:]
    while word.strip(".") and len(word) > 1 and word[-1] in CLOSING:
        if word[-1] == "." and ABBREVIATION.fullmatch(word[:-1]):
            break
        mark = "..." if word.endswith("...") else word[-1]
        after.append(mark)
        word = word.removesuffix(mark)
    return " ".join([*before, word, *reversed(after)])


def unknown_words(tokenizer: Tokenizer, good: str, bad: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the words that are not in the vocabulary, or have a part that is not.

    Returns:
        Those in which the sentences differ, and those that both have.
    """
    words = good.split(), bad.split()
    differing: list[str] = []
    shared: list[str] = []
    for change, i, j, k, m in difflib.SequenceMatcher(None, *words, autojunk=False).get_opcodes():
        if change == "equal":
            shared += words[0][i:j]
        else:
            differing += [*words[0][i:j], *words[1][k:m]]

    return tuple(_unknown(tokenizer, differing)), tuple(_unknown(tokenizer, shared))


def _unknown(tokenizer: Tokenizer, words: Sequence[str]) -> Iterator[str]:
    """Those words that are not known, without the punctuation around them if they are not known without it either."""
    for word in words:
        if UNKNOWN in tokenizer.encode(word).tolist():
            bare = word.strip(OPENING + CLOSING)
            yield bare if UNKNOWN in tokenizer.encode(bare).tolist() else word


def _sentence_nats(lm: LanguageModel, ids: Sequence[NDArray[Any]], batch_size: int) -> list[float]:
    """-log p of each sentence, whose ids end with the line end."""
    starts = np.cumsum([0, *map(len, ids)])[:-1]
    nats = surprisals(lm.model, np.concatenate(ids), reset="lines", line_starts=starts, batch_size=batch_size)
    sums: list[float] = np.add.reduceat(nats, starts).tolist()
    return sums


# ---- showing --------------------------------------------------------------------------------------------------------


def _groups(result: Agreement) -> list[tuple[str, dict[str, Tally]]]:
    """What is shown: a title, and tallies by name under it."""
    overall = {"": result.overall}
    if result.doubtful and result.all_known is not None:
        overall["every word known"] = result.all_known
    between = {
        f"{_counted(nouns, 'noun')}, {_counted(attractors, 'attractor')}": tally
        for (nouns, attractors), tally in result.by("nouns", "attractors").items()
    }
    groups = [
        ("all pairs", overall),
        ("type", result.by("type")),
        ("attractors", {_counted(value, "attractor"): tally for value, tally in result.by("attractors").items()}),
        (BETWEEN, between),
        ("nearest noun", {f"{value} number": tally for value, tally in result.by("nearest").items()}),
    ]
    return [(title, tallies) for title, tallies in groups if tallies]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def table(result: Agreement) -> str:
    """Accuracy of all pairs and of each kind of them as a Markdown table, and below it what cannot be told from it."""
    lines = [["", "", "pairs", "accuracy (%)", "95 % interval", "ties"]]
    for title, tallies in _groups(result):
        for index, (name, tally) in enumerate(tallies.items()):
            low, high = tally.interval
            interval = f"{100 * low:.1f} to {100 * high:.1f}"
            cells = [f"{tally.pairs:,}", f"{100 * tally.accuracy:.1f}", interval, f"{tally.ties:,}"]
            lines.append(["" if index else title, str(name).replace("|", "\\|"), *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    written = []
    for line in lines:
        cells = [
            cell.ljust(width) if at < 2 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        written.append(f"| {' | '.join(cells)} |")
    rules = ["-" * (width + 2) if at < 2 else "-" * (width + 1) + ":" for at, width in enumerate(widths)]
    written.insert(1, f"|{'|'.join(rules)}|")
    return "\n".join(["\n".join(written), *(f"\n{note}" for note in _notes(result))]) + "\n"


def _notes(result: Agreement) -> Iterator[str]:
    apart = result.by("nearest").get("other")
    if apart is not None:
        yield (
            f"Where the nearest noun and the subject differ in number ({apart.pairs:,} pairs), the verb agrees with the"
            f" subject (syntactic recency) in {100 * apart.right / apart.pairs:.1f} %, with the nearest noun"
            f" (sequential recency) in {100 * apart.wrong / apart.pairs:.1f} %"
            + (f", with neither (a tie) in {100 * apart.ties / apart.pairs:.1f} %." if apart.ties else ".")
        )
    if result.left_out:
        yield (
            f"Left out: {result.left_out:,} of {len(result.scored):,} pairs, which differ in a word that the model does"
            f" not know: {_named(result.unknown)}."
        )
    if result.doubtful:
        rest = "; without them no pair is left" if result.all_known is None else ""
        have = "has" if result.doubtful == 1 else "have"
        yield (
            f"{_counted(result.doubtful, 'pair')} {have} an unknown word elsewhere:"
            f" {_named(result.unknown_elsewhere)}{rest}."
        )
    if result.known_in_lowercase:
        words = sorted(result.known_in_lowercase)
        yield (
            f"In small letters the model knows {', '.join(words[:SHOWN])}{', ...' * (len(words) > SHOWN)}:"
            " try --lowercase."
        )


def _named(words: Counter[str]) -> str:
    named = ", ".join(f"{word} ({count:,})" for word, count in words.most_common(SHOWN))
    return named + ", ..." * (len(words) > SHOWN)


def draw(result: Agreement, path: Path, *, title: str = "") -> None:
    """Draw accuracies with their 95 % intervals, a line for each kind of pair; the dashed line is a coin's.

    Attractors within equal numbers of nouns are left to the table: they would fill half the picture.

    Raises:
        UserError: matplotlib is missing, or the picture's format is unknown.
    """
    places: list[float] = []
    names: list[str] = []
    tallies: list[Tally] = []
    place = 0.0
    for group, found in _groups(result):
        if group == BETWEEN:
            continue
        for name, tally in found.items():
            places.append(place)
            label = f"nearest noun of the {name}" if group == "nearest noun" else name or group
            names.append(f"{label}  ({tally.pairs:,})")
            tallies.append(tally)
            place += 1
        place += 0.6
    figure = figure_of(7.0, 1.1 + 0.27 * place)
    axes = figure.add_subplot()
    axes.axvline(50, color="0.6", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    for place, tally in zip(places, tallies, strict=True):
        axes.plot([100 * end for end in tally.interval], [place, place], color="0.55", linewidth=1.5, zorder=1)
    axes.plot([100 * tally.accuracy for tally in tallies], places, "o", color="black", markersize=5)
    axes.annotate("a coin", (50, 1), xycoords=("data", "axes fraction"), xytext=(3, -2), textcoords="offset points")
    axes.texts[-1].set(fontsize=8, color="0.4", va="top")
    axes.set_yticks(places, names, fontsize=8, parse_math=False)
    axes.set_ylim(places[-1] + 0.8, -0.8)
    axes.set_xlim(-2, 102)
    label_axes(axes, x="pairs whose grammatical sentence is likelier (%);\nlines: 95 % interval", title=title)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    save(figure, path)


def write_pairs_tsv(file: IO[str], result: Agreement) -> None:
    """Write a line for every pair: outcome, nats of both sentences, what is known of the pair, the sentences.

    ``unknown`` are the words that the model does not know, those in which the sentences differ first.
    """
    known = ("type", "nouns", "attractors", "nearest")
    header = ("outcome", "good_nats", "bad_nats", *known, "unknown", "sentence_good", "sentence_bad")
    file.write("\t".join(header) + "\n")
    for each in result.scored:
        values = (getattr(each.pair, name) for name in known)
        fields = [each.outcome, f"{each.good_nats:.6f}", f"{each.bad_nats:.6f}"]
        fields += ["" if value is None else str(value) for value in values]
        fields += [" ".join([*each.unknown, *each.elsewhere]), each.pair.good, each.pair.bad]
        file.write("\t".join(field.replace("\t", " ") for field in fields) + "\n")
