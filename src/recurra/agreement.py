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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from recurra.config import UserError
from recurra.evaluation import BATCH_SIZE, surprisals
from recurra.language_model import COUNTED_ROWS, LanguageModel
from recurra.plotting import figure_of, label_axes, save
from recurra.text.corpora import Sources
from recurra.text.documents import Document
from recurra.text.tables import Column, Row, nonempty, open_documents, rows, table_format
from recurra.text.tokenizer import Tokenizer
from recurra.text.vocabulary import LINE_END, UNKNOWN

__all__ = ["PAIRS", "Agreement", "Pair", "Scored", "Tally", "draw", "measure", "read_pairs", "table", "write_pairs_tsv"]

PAIRS = Path(__file__).with_name("data") / "agreement.tsv"
TIE = 1e-4  # nats; two sentences that are nearer to each other differ by the rounding of float32 sums
BLOCK = 5_000  # pairs scored at once
NEAREST = ("same", "other")
BY = ("type", "attractors", "nearest")
PUNCTUATION = re.compile(r"\s*([;:!?]|,(?!\d)|\.(?=\s|$))\s*")

# The verbs whose two forms no rule makes.
SINGULAR = {"is": "are", "was": "were", "has": "have", "does": "do"}
PLURAL = {plural: singular for singular, plural in SINGULAR.items()}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two sentences that differ in grammar.

    Attributes:
        good: the grammatical one.
        bad: the other.
        type: what kind of sentence they are; None where nobody says.
        attractors: nouns between subject and verb of another number than the subject's; None where nobody says.
        nearest: whether the noun nearest before the verb has the ``same`` number as the subject or the ``other``; None
            where there is none in between, or nobody says.
        where: file and line, for messages.
    """

    good: str
    bad: str
    type: str | None = None
    attractors: int | None = None
    nearest: str | None = None
    where: str = ""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A pair and what a model makes of it.

    Attributes:
        pair: the pair.
        good_nats: -log p of the grammatical sentence, its line end included.
        bad_nats: that of the other.
        unknown: words in which the sentences differ that the model does not know; with one of them no score means
            anything.
    """

    pair: Pair
    good_nats: float
    bad_nats: float
    unknown: tuple[str, ...] = ()

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
    """How a model did on pairs of sentences; those with an unknown word are in no tally but ``unknown``."""

    scored: Sequence[Scored]

    @property
    def overall(self) -> Tally:
        """All pairs."""
        return _tally(each for each in self.scored if not each.unknown)

    def by(self, attribute: str) -> dict[Any, Tally]:
        """Tallies by an attribute of the pairs: ``type`` in order of appearance, ``attractors`` by number, ``nearest``.

        Pairs of which it is not known are left out.
        """
        groups: dict[Any, list[Scored]] = {}
        for each in self.scored:
            value = getattr(each.pair, attribute)
            if value is not None and not each.unknown:
                groups.setdefault(value, []).append(each)
        order = {"attractors": sorted(groups), "nearest": [name for name in NEAREST if name in groups]}
        return {value: _tally(groups[value]) for value in order.get(attribute, list(groups))}

    @property
    def left_out(self) -> int:
        """Pairs that differ in a word that the model does not know."""
        return sum(bool(each.unknown) for each in self.scored)

    @property
    def unknown(self) -> Counter[str]:
        """Those words, and in how many pairs each stands."""
        return Counter(word for each in self.scored for word in dict.fromkeys(each.unknown))

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
        return {
            "overall": self.overall.to_mapping(),
            **{f"by_{name}": {str(k): tally.to_mapping() for k, tally in self.by(name).items()} for name in BY},
            "recency": recency,
            "left_out": self.left_out,
            "unknown": dict(self.unknown.most_common()),
        }


def _tally(scored: Iterable[Scored]) -> Tally:
    outcomes = Counter(each.outcome for each in scored)
    return Tally(outcomes.total(), outcomes["right"], outcomes["tie"])


# ---- reading pairs --------------------------------------------------------------------------------------------------


def read_pairs(sources: Sources, *, encoding: str = "utf-8", errors: str = "strict") -> Iterator[Pair]:
    """Read pairs from .tsv, .csv or .jsonl.

    By their columns or keys, these are known:

    - ``sentence_good`` and ``sentence_bad``, and if there are any ``type``, ``attractors`` and ``nearest``; or, in the
      place of the type, BLiMP's ``UID`` or ``linguistics_term`` (Warstadt et al. 2020).
    - ``orig_sentence``, ``verb``, ``verb_index``, ``verb_pos`` and the rest of Linzen et al. 2016. The other sentence
      has the verb's other form, made by rule.
    - without a header, four columns: type, a detail, the grammatical sentence, the other, as Goldberg 2019 has the
      sentences of Marvin and Linzen 2018.

    Raises:
        UserError: while reading: another format, a sentence that is missing, two that are the same, a number of
            attractors that is none.
    """
    return nonempty(_pairs(sources, encoding, errors), sources, "pair")


def _pairs(sources: Sources, encoding: str, errors: str) -> Iterator[Pair]:
    for document in open_documents(sources, encoding, errors):
        kind = table_format(document)
        if kind is None:
            raise UserError(f"{document.name}: expected pairs of sentences in a file named .tsv, .csv or .jsonl")
        for pair in _document_pairs(document, kind):
            if pair.good == pair.bad:
                raise UserError(f"{pair.where}: the two sentences are the same: {pair.good[:60]!r}")
            yield pair


def _document_pairs(document: Document, kind: str) -> Iterator[Pair]:
    own: dict[str, Column | None] = dict.fromkeys(
        ("sentence_good", "sentence_bad", "type", "attractors", "nearest", "UID", "linguistics_term")
    )
    needed = ("sentence_good", "sentence_bad")
    if kind == "jsonl":
        return map(_own_pair, rows(document, kind, own, needed=needed))
    first = next((line for line in document.lines() if line.strip()), "")
    names = [name.strip().strip('"').lower() for name in first.split("," if kind == "csv" else "\t")]
    if "orig_sentence" in names:
        columns: dict[str, Column | None] = dict.fromkeys(("orig_sentence", "verb", "verb_index", "verb_pos"))
        extra: dict[str, Column | None] = dict.fromkeys(("has_rel", "n_diff_intervening", "last_intervening"))
        return map(_linzen_pair, rows(document, kind, columns | extra, needed=list(columns), header=True))
    if "sentence_good" in names or "sentence_bad" in names or len(names) != 4:
        return map(_own_pair, rows(document, kind, own, needed=needed, header=True))
    plain: dict[str, Column | None] = {"type": 1, "sentence_good": 3, "sentence_bad": 4}
    return map(_own_pair, rows(document, kind, plain, needed=list(plain), header=False))


def _own_pair(row: Row) -> Pair:
    attractors = row.optional_text("attractors", numbers=True) or None
    if attractors is not None and not attractors.isdecimal():
        raise UserError(f"{row.where}: attractors: expected a whole number, got {attractors!r}")
    nearest = row.optional_text("nearest") or None
    if nearest not in (*NEAREST, None):
        raise UserError(f"{row.where}: nearest: expected {' or '.join(NEAREST)} or nothing, got {nearest!r}")
    kinds = [row.optional_text(name, numbers=True) for name in ("type", "UID", "linguistics_term")]
    return Pair(
        good=_sentence(row, "sentence_good"),
        bad=_sentence(row, "sentence_bad"),
        type=next((kind for kind in kinds if kind), None),
        attractors=None if attractors is None else int(attractors),
        nearest=nearest,
        where=row.where,
    )


def _sentence(row: Row, name: str) -> str:
    text = row.text(name).strip()
    if not text:
        raise UserError(f"{row.where}: there is no {name}: a pair needs both of its sentences")
    if "\n" in text or "\r" in text:
        raise UserError(f"{row.where}: {name}: expected one line, got {text[:40]!r}")
    return text


def _linzen_pair(row: Row) -> Pair:
    """A pair of a dependency of Linzen et al.: VBZ is a singular verb, VBP a plural one; NN, NNS are nouns."""
    text, verb, pos = _sentence(row, "orig_sentence"), row.text("verb"), row.text("verb_pos")
    if len(text) > 1 and text[0] == text[-1] == '"' and '""' in text:
        text = text[1:-1].replace('""', '"')  # written with the quotes of CSV
    words, index = text.split(), row.text("verb_index")
    if not index.isdecimal() or not 0 < int(index) <= len(words) or words[int(index) - 1].lower() != verb.lower():
        raise UserError(f"{row.where}: there is no verb {verb!r} at word {index} of the sentence")
    if pos not in ("VBZ", "VBP"):
        raise UserError(f"{row.where}: verb_pos: expected VBZ or VBP, got {pos!r}")
    plural = pos == "VBP"
    words[int(index) - 1] = other_number(verb, plural)
    last, relative = row.optional_text("last_intervening"), row.optional_text("has_rel")
    attractors = row.optional_text("n_diff_intervening") or None
    return Pair(
        good=" ".join(text.split()),
        bad=" ".join(words),
        type=None if relative is None else "relative clause" if relative == "True" else "no relative clause",
        attractors=int(attractors) if attractors is not None and attractors.isdecimal() else None,
        nearest=NEAREST[(last == "NNS") != plural] if last in ("NN", "NNS") else None,
        where=row.where,
    )


def other_number(verb: str, plural: bool) -> str:
    """Return a verb of the present tense, or was or were, in the other number.

    Args:
        verb: as it stands in the sentence.
        plural: whether that is the plural.
    """
    small = verb.lower()
    known = PLURAL if plural else SINGULAR
    if small in known:
        other = known[small]
    elif plural:
        if small.endswith("y") and small[-2:-1] not in tuple("aeiou"):
            other = small[:-1] + "ies"
        else:
            other = small + ("es" if small.endswith(("s", "sh", "ch", "x", "z", "o")) else "s")
    elif small.endswith("ies") and len(small) > 4:
        other = small[:-3] + "y"
    elif small.endswith(("sses", "shes", "ches", "xes", "zzes", "oes")):
        other = small[:-2]
    else:
        other = small.removesuffix("s")
    return other.capitalize() if verb[:1].isupper() else other


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
        nats = _sentence_nats(lm, texts, side_by_side)
        for index, pair in enumerate(block):
            good, bad = texts[2 * index : 2 * index + 2]
            unknown = unknown_words(tokenizer, good, bad)
            scored.append(Scored(pair=pair, good_nats=nats[2 * index], bad_nats=nats[2 * index + 1], unknown=unknown))
        if progress is not None:
            progress(len(scored), len(pairs))
    result = Agreement(scored)
    if result.left_out == len(scored):
        words = ", ".join(repr(word) for word, _ in result.unknown.most_common(5))
        raise UserError(
            f"the model knows the words of no pair: outside its vocabulary are {words}"
            f"{' and others' if len(result.unknown) > 5 else ''};"
            " try --lowercase or --split-punctuation, or other pairs"
        )
    return result


def prepared(text: str, *, lowercase: bool, split_punctuation: bool) -> str:
    """Return a sentence as the tokenizer gets it."""
    if split_punctuation:
        text = PUNCTUATION.sub(r" \1 ", text).strip()
    return text.lower() if lowercase else text


def unknown_words(tokenizer: Tokenizer, good: str, bad: str) -> tuple[str, ...]:
    """Return the words in which two sentences differ that are not in the vocabulary, or have a part that is not."""
    words = good.split(), bad.split()
    changes = difflib.SequenceMatcher(None, *words, autojunk=False).get_opcodes()
    differing = [
        word for change, i, j, k, m in changes if change != "equal" for word in (*words[0][i:j], *words[1][k:m])
    ]
    return tuple(word for word in differing if UNKNOWN in tokenizer.encode(word).tolist())


def _sentence_nats(lm: LanguageModel, texts: Sequence[str], batch_size: int) -> list[float]:
    """-log p of each text and its line end."""
    ids = [np.append(lm.tokenizer.encode(text), LINE_END) for text in texts]
    starts = np.cumsum([0, *(len(each) for each in ids)])[:-1]
    nats = surprisals(lm.model, np.concatenate(ids), reset="lines", line_starts=starts, batch_size=batch_size)
    sums: list[float] = np.add.reduceat(nats, starts).tolist()
    return sums


# ---- showing --------------------------------------------------------------------------------------------------------


def table(result: Agreement) -> str:
    """Accuracy of all pairs and of each kind of them, in lines of text."""
    sections: list[tuple[str, Mapping[str, Tally]]] = [("", {"all pairs": result.overall})]
    for attribute, title in zip(BY, ("type", "attractors", "nearest noun"), strict=True):
        sections.append((title, {_named(attribute, value): each for value, each in result.by(attribute).items()}))
    width = max(len(name) for _, tallies in sections for name in tallies) + 4
    lines = [f"{'':<{width}}{'pairs':>8}{'accuracy':>11}{'95 % interval':>17}{'ties':>7}"]
    for title, tallies in sections:
        if title and tallies:
            lines += ["", title]
        for name, tally in tallies.items():
            low, high = tally.interval
            interval = f"{100 * low:.1f} to {100 * high:.1f}"
            lines.append(
                f"{'  ' * bool(title) + name:<{width}}{tally.pairs:>8,}{100 * tally.accuracy:>9.1f} %"
                f"{interval:>17}{tally.ties:>7,}"
            )
    apart = result.by("nearest").get("other")
    if apart is not None:
        lines += [
            "",
            f"Where the nearest noun and the subject differ in number ({apart.pairs:,} pairs), the verb agrees",
            f"  with the subject (syntactic recency)         {100 * apart.right / apart.pairs:>5.1f} %",
            f"  with the nearest noun (sequential recency)   {100 * apart.wrong / apart.pairs:>5.1f} %",
        ]
        if apart.ties:
            lines.append(f"  with neither: a tie                          {100 * apart.ties / apart.pairs:>5.1f} %")
    if result.left_out:
        words = ", ".join(f"{word} ({count})" for word, count in result.unknown.most_common(10))
        lines += [
            "",
            f"Left out: {result.left_out:,} of {len(result.scored):,} pairs, which differ in a word that the model does"
            f" not know: {words}" + (", ..." if len(result.unknown) > 10 else ""),
        ]
    return "\n".join(lines)


def _named(attribute: str, value: Any) -> str:
    if attribute == "attractors":
        return f"{value} attractor{'' if value == 1 else 's'}"
    if attribute == "nearest":
        return f"nearest noun of the {value} number"
    return str(value)


def draw(result: Agreement, path: Path, *, title: str = "") -> None:
    """Draw accuracies with their 95 % intervals, a line for each kind of pair; the dashed line is a coin's.

    Raises:
        UserError: matplotlib is missing, or the picture's format is unknown.
    """
    groups = [{"all pairs": result.overall}]
    groups += [{_named(name, value): tally for value, tally in result.by(name).items()} for name in BY]
    places: list[float] = []
    names: list[str] = []
    tallies: list[Tally] = []
    place = 0.0
    for group in groups:
        for name, tally in group.items():
            places.append(place)
            names.append(f"{name}  ({tally.pairs:,})")
            tallies.append(tally)
            place += 1
        place += 0.6 if group else 0
    figure = figure_of(7.0, 1.1 + 0.3 * place)
    axes = figure.add_subplot()
    axes.axvline(50, color="0.6", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    for place, tally in zip(places, tallies, strict=True):
        axes.plot([100 * end for end in tally.interval], [place, place], color="0.55", linewidth=1.5, zorder=1)
    axes.plot([100 * tally.accuracy for tally in tallies], places, "o", color="black", markersize=5)
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(-2, 102)
    label_axes(axes, x="pairs whose grammatical sentence is the likelier one (%)", title=title)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    save(figure, path)


def write_pairs_tsv(file: IO[str], result: Agreement) -> None:
    """Write a line for every pair: outcome, nats of both sentences, what is known of the pair, the sentences."""
    file.write("outcome\tgood_nats\tbad_nats\ttype\tattractors\tnearest\tsentence_good\tsentence_bad\n")
    for each in result.scored:
        pair = each.pair
        known = ("" if value is None else str(value) for value in (pair.type, pair.attractors, pair.nearest))
        fields = (each.outcome, f"{each.good_nats:.6g}", f"{each.bad_nats:.6g}", *known, pair.good, pair.bad)
        file.write("\t".join(field.replace("\t", " ") for field in fields) + "\n")
