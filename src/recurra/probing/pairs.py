"""Pairs of sentences that differ in their verb: in files of our own, BLiMP's, Linzen et al.'s, Marvin and Linzen's."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recurra.config import UserError
from recurra.text.corpora import Sources
from recurra.text.documents import Document
from recurra.text.tables import Column, Row, nonempty, open_documents, rows, table_format

__all__ = ["NEAREST", "PAIRS", "Pair", "other_number", "read_pairs"]

PAIRS = Path(__file__).parents[1] / "data" / "agreement.tsv"
NEAREST = ("same", "other")
COLUMNS = (
    "sentence_good and sentence_bad (with type, nouns, attractors and nearest if there are any); orig_sentence, verb,"
    " verb_index and verb_pos, as Linzen et al. have them; or four without names, of which the last two are sentences"
    " that share most of their words"
)

# The verbs whose two forms no rule makes.
SINGULAR = {"is": "are", "was": "were", "has": "have", "does": "do", "tiptoes": "tiptoe", "quizzes": "quiz"} | {
    plural + end: plural
    for end, plurals in {
        "s": "ache cache axe finesse shoe toe hoe canoe underlie overlie belie untie",
        "es": "focus refocus bias canvas bus chorus caucus gas",
        "zes": "whiz",
    }.items()
    for plural in plurals.split()
}
PLURAL = {plural: singular for singular, plural in SINGULAR.items()}
# Those that stand for several verbs or for none, or have an "I": no other form is the wrong one.
NO_OTHER = re.compile(r"am|ai|['’].*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two sentences that differ in grammar.

    Attributes:
        good: the grammatical one.
        bad: the other.
        type: what kind of sentence they are; None where nobody says.
        nouns: nouns between subject and verb; None where nobody says.
        attractors: those of them that have another number than the subject; None where nobody says.
        nearest: whether the noun nearest before the verb has the ``same`` number as the subject or the ``other``; None
            where there is none in between, or nobody says.
        where: file and line, for messages.
    """

    good: str
    bad: str
    type: str | None = None
    nouns: int | None = None
    attractors: int | None = None
    nearest: str | None = None
    where: str = ""


def read_pairs(
    sources: Sources, *, skipped: Counter[str] | None = None, encoding: str = "utf-8", errors: str = "strict"
) -> Iterator[Pair]:
    """Read pairs from .tsv, .csv or .jsonl.

    By their columns or keys, in any order, these are known:

    - ``sentence_good`` and ``sentence_bad``, and if there are any ``type``, ``nouns``, ``attractors`` and ``nearest``;
      or, in the place of the type, BLiMP's ``UID`` or ``linguistics_term`` (Warstadt et al. 2020).
    - ``orig_sentence``, ``verb``, ``verb_index``, ``verb_pos`` and the rest of Linzen et al. 2016. The other sentence
      has the verb's other form, made by rule. Verbs that have none, *am* and what is left of one behind an apostrophe,
      are left out.
    - without a header, four columns: type, a detail, the grammatical sentence, the other, as Goldberg 2019 has the
      sentences of Marvin and Linzen 2018.

    Args:
        sources: files, folders, globs.
        skipped: counts the verbs that were left out.
        encoding: of the files.
        errors: what is done about bytes that are no text.

    Raises:
        UserError: while reading: another format, columns that nobody knows, a sentence that is missing, two that are
            the same, a number that is none.
    """
    skipped = Counter() if skipped is None else skipped
    return nonempty(_pairs(sources, skipped, encoding, errors), sources, "pair")


def _pairs(sources: Sources, skipped: Counter[str], encoding: str, errors: str) -> Iterator[Pair]:
    for document in open_documents(sources, encoding, errors):
        kind = table_format(document)
        if kind is None:
            raise UserError(f"{document.name}: expected pairs of sentences in a file named .tsv, .csv or .jsonl")
        for pair in _document_pairs(document, kind, skipped):
            if pair.good == pair.bad:
                raise UserError(f"{pair.where}: the two sentences are the same: {pair.good[:60]!r}")
            yield pair


def _document_pairs(document: Document, kind: str, skipped: Counter[str]) -> Iterator[Pair]:
    needed = ("sentence_good", "sentence_bad")
    own: dict[str, Column | None] = dict.fromkeys(
        (*needed, "type", "nouns", "attractors", "nearest", "UID", "linguistics_term")
    )
    if kind == "jsonl":
        return map(_own_pair, rows(document, kind, own, needed=needed))
    number, first = next(
        ((number, line) for number, line in enumerate(document.lines(), start=1) if line.strip()), (0, "")
    )
    fields = next(csv.reader([first]), [""]) if kind == "csv" else first.split("\t")
    names = [field.strip().lower() for field in fields]
    if "orig_sentence" in names:
        columns: dict[str, Column | None] = dict.fromkeys(("orig_sentence", "verb", "verb_index", "verb_pos"))
        extra: dict[str, Column | None] = dict.fromkeys(
            ("has_rel", "n_intervening", "n_diff_intervening", "last_intervening")
        )
        found = rows(document, kind, columns | extra, needed=list(columns), header=True)
        return (pair for row in found if (pair := _linzen_pair(row, skipped)) is not None)
    if not number or "sentence_good" in names or "sentence_bad" in names:
        return map(_own_pair, rows(document, kind, own, needed=needed, header=True))
    if len(names) != 4 or not _alike(names[2], names[3]):
        there = ", ".join(repr(field.strip()[:40]) for field in fields[:10])
        raise UserError(f"{document.name}, line {number}: expected columns {COLUMNS}; got {there}")
    plain: dict[str, Column | None] = {"type": 1, "sentence_good": 3, "sentence_bad": 4}
    return map(_own_pair, rows(document, kind, plain, needed=list(plain), header=False))


def _alike(good: str, bad: str) -> bool:
    """Whether two texts share at least half of the words of the longer one."""
    left, right = good.split(), bad.split()
    return 2 * (Counter(left) & Counter(right)).total() >= max(len(left), len(right), 1)


def _own_pair(row: Row) -> Pair:
    nouns, attractors = _number(row, "nouns"), _number(row, "attractors")
    if nouns is not None and attractors is not None and attractors > nouns:
        raise UserError(
            f"{row.where}: expected attractors to be some of the nouns in between, got {attractors} of {nouns}"
        )
    nearest = row.optional_text("nearest") or None
    if nearest not in (*NEAREST, None):
        raise UserError(f"{row.where}: nearest: expected {' or '.join(NEAREST)} or nothing, got {nearest!r}")
    kinds = [row.optional_text(name, numbers=True) for name in ("type", "UID", "linguistics_term")]
    return Pair(
        good=_sentence(row, "sentence_good"),
        bad=_sentence(row, "sentence_bad"),
        type=next((kind for kind in kinds if kind), None),
        nouns=nouns,
        attractors=attractors,
        nearest=nearest,
        where=row.where,
    )


def _number(row: Row, name: str) -> int | None:
    text = row.optional_text(name, numbers=True) or None
    if text is not None and not text.isdecimal():
        raise UserError(f"{row.where}: {name}: expected a whole number, got {text!r}")
    return None if text is None else int(text)


def _sentence(row: Row, name: str) -> str:
    text = row.text(name).strip()
    if not text:
        raise UserError(f"{row.where}: there is no {name}: a pair needs both of its sentences")
    if "\n" in text or "\r" in text:
        raise UserError(f"{row.where}: {name}: expected one line, got {text[:40]!r}")
    return text


def _linzen_pair(row: Row, skipped: Counter[str]) -> Pair | None:
    """A pair of a dependency of Linzen et al.: VBZ is a singular verb, VBP a plural one; NN, NNS are nouns.

    None, and counted, where the verb has no other form.
    """
    text, verb, pos = _sentence(row, "orig_sentence"), row.text("verb"), row.text("verb_pos")
    if len(text) > 1 and text[0] == text[-1] == '"' and '""' in text:
        text = text[1:-1].replace('""', '"')  # written with the quotes of CSV
    words, index = text.split(), row.text("verb_index")
    if not index.isdecimal() or not 0 < int(index) <= len(words) or words[int(index) - 1].lower() != verb.lower():
        raise UserError(f"{row.where}: there is no verb {verb!r} at word {index} of the sentence")
    if pos not in ("VBZ", "VBP"):
        raise UserError(f"{row.where}: verb_pos: expected VBZ or VBP, got {pos!r}")
    if NO_OTHER.fullmatch(verb.lower()):
        skipped[verb.lower()] += 1
        return None
    plural = pos == "VBP"
    words[int(index) - 1] = other_number(verb, plural)
    last, relative = row.optional_text("last_intervening"), row.optional_text("has_rel")
    nouns, attractors = (
        int(text) if text is not None and text.isdecimal() else None
        for text in (row.optional_text("n_intervening"), row.optional_text("n_diff_intervening"))
    )
    return Pair(
        good=" ".join(text.split()),
        bad=" ".join(words),
        type=None if relative is None else "relative clause" if relative == "True" else "no relative clause",
        nouns=nouns,
        attractors=attractors,
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
        vowel = small[-2:-1] in tuple("aeiou")
        if small.endswith("y") and not vowel:
            other = small[:-1] + "ies"
        elif small.endswith(("s", "sh", "ch", "x", "z")) or (small.endswith("o") and not vowel):
            other = small + "es"
        else:
            other = small + "s"
    elif small.endswith("ies") and len(small) > 4:
        other = small[:-3] + "y"
    elif small.endswith(("sses", "shes", "ches", "xes", "zzes", "tzes", "oes")):
        other = small[:-2]
    else:
        other = small.removesuffix("s")
    return other.capitalize() if verb[:1].isupper() else other
