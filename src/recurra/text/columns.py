"""Sentences of words with tags: CoNLL-U, other files of one word a line in columns, and lines of words.

A word holds whatever stands between the separators: no-break spaces, control characters and the like stay inside it,
and so do spaces where columns are separated by tabs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TextIO

from recurra.config import UserError
from recurra.text.corpora import Sources
from recurra.text.documents import Document
from recurra.text.tables import Column, nonempty, open_documents, suffix

CONLLU_COLUMNS = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
FORMATS = ("conllu", "columns", "lines")
EMPTY_WORDS = "rows passed over whose word is empty"
SUFFIXES = {".conllu": "conllu", ".conll": "columns", ".iob": "columns", ".bio": "columns"}

_WORD_ID = re.compile(r"[0-9]+\Z")
_OTHER_ID = re.compile(r"[0-9]+[-.][0-9]+\Z")  # a multiword token's range, an empty node
_SPACES = re.compile(r"([ \t]+)")
_TAB = re.compile(r"(\t)")


class Slot(NamedTuple):
    """A word's line, but for its tag, which stands between `before` and `after`."""

    before: str
    after: str


@dataclass(frozen=True)
class Sentence:
    """Words in their order.

    Attributes:
        words: The words.
        tags: A tag for each; None where there are none.
        rows: The lines of the file that the sentence stands in, a :class:`Slot` for each word among them and plain
            text for what is no word: comments, multiword tokens, empty nodes, the blank line after it. None where the
            sentence was a line of words.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...] | None = None
    rows: tuple[str | Slot, ...] | None = None

    def lines(self, tags: Sequence[str]) -> Iterator[str]:
        """Return the sentence's lines with `tags` in the tag column, as they were otherwise.

        A sentence that was a line of words becomes lines ``word<TAB>tag``.
        """
        if len(tags) != len(self.words):
            raise ValueError(f"expected a tag for each of {len(self.words)} words, got {len(tags)} tags")
        rows = self.rows if self.rows is not None else tuple(Slot(f"{word}\t", "") for word in self.words)
        left = iter(tags)
        for row in rows:
            yield row if isinstance(row, str) else f"{row.before}{next(left)}{row.after}"


def read_sentences(
    sources: Sources,
    *,
    format: str | None = None,
    word: Column | None = None,
    tag: Column | None = None,
    labelled: bool = True,
    encoding: str = "utf-8",
    errors: str = "strict",
    tally: Counter[str] | None = None,
) -> Iterator[Sentence]:
    """Read sentences one by one.

    ``conllu`` is CoNLL-U: ten columns, tabs between them; multiword tokens and empty nodes are no words. ``columns`` is
    any file with one word a line and a blank line after each sentence, with columns between tabs if its first row has
    one, else between spaces. There, a line ``-DOCSTART-`` is no word, nor is one before a sentence that begins with
    ``#`` and has another number of columns than the first row, nor a row whose word is empty, as some published files
    have. ``lines`` is a sentence a line, its words between
    spaces; blank lines are passed over.

    Args:
        sources: Files, folders, globs or ``-``.
        format: One of the three. None tells it from each file: CoNLL-U by its suffix or its first row, then
            ``columns``; but if not `labelled`, ``lines`` unless the suffix is .conll, .iob or .bio or there is a tab in
            the first row.
        word: The column of the word: its number from 1, or from -1 backwards, or in CoNLL-U its name; by default the
            first, in CoNLL-U ``form``.
        tag: That of the tag; by default the last of several, in CoNLL-U ``upos``. If not `labelled` it need not be
            among the columns: then :meth:`Sentence.lines` appends it, as it does where there is only one.
        labelled: Whether a word without a tag is an error.
        encoding: The files' encoding.
        errors: What to do with bytes that are not in it: ``strict``, ``replace``, ``ignore``.
        tally: Counts, by what happened, the rows that were passed over.

    Raises:
        UserError: while reading: a source is not there, empty or not text; no such column, rows of different numbers of
            columns, a tag that is empty, no sentence.
    """
    if format is not None and format not in FORMATS:
        raise UserError(f"expected a format of sentences out of {', '.join(FORMATS)}, got {format!r}")
    documents = open_documents(sources, encoding, errors)
    found = (sentence for one in documents for sentence in _sentences(one, format, word, tag, labelled, tally))
    return nonempty(found, sources, "sentence")


def write_sentences(tagged: Iterable[tuple[Sentence, Sequence[str]]], file: TextIO) -> None:
    """Write sentences with these tags, each as it was read but for its tags, and a blank line after each."""
    for sentence, tags in tagged:
        line = ""
        for line in sentence.lines(tags):
            file.write(f"{line}\n")
        if line.strip(" \t"):
            file.write("\n")


class _Layout(NamedTuple):
    """How words and tags lie in a file; the index of the tag is None where there is none, `width` to append it."""

    is_conllu: bool
    separator: re.Pattern[str]
    width: int
    word: int
    tag: int


def _sentences(
    document: Document,
    format: str | None,
    word: Column | None,
    tag: Column | None,
    labelled: bool,
    tally: Counter[str] | None,
) -> Iterator[Sentence]:
    number, first = _first_row(document)
    if not first:
        return
    kind = format or SUFFIXES.get(suffix(document.name)) or _guessed(first, labelled)
    if kind == "lines":
        if labelled:
            raise UserError(f"{document.name}: lines of words have no tags; expected CoNLL-U or columns")
        lines = map(words_of, document.lines())
        yield from (Sentence(tuple(words)) for words in lines if words)
        return
    layout = _layout(first, kind == "conllu", word, tag, labelled, f"{document.name}, line {number}")
    yield from _blocks(document, layout, labelled, number, tally)


def _first_row(document: Document) -> tuple[int, str]:
    """Return number and text of the first line that is surely a word's; else of the first not blank, or no text."""
    fallback = 1, ""
    for number, line in enumerate(document.lines(), start=1):
        if _is_blank(line):
            continue
        if not line.startswith(("#", "-DOCSTART-")):
            return number, line
        fallback = fallback if fallback[1] else (number, line)
    return fallback


def _guessed(row: str, labelled: bool) -> str:
    fields = row.split("\t")
    if len(fields) == len(CONLLU_COLUMNS) and (_WORD_ID.match(fields[0]) or _OTHER_ID.match(fields[0])):
        return "conllu"
    return "columns" if labelled or len(fields) > 1 else "lines"


def _layout(row: str, is_conllu: bool, word: Column | None, tag: Column | None, labelled: bool, where: str) -> _Layout:
    separator = _TAB if is_conllu or "\t" in row.strip(" \t") else _SPACES
    width = len(CONLLU_COLUMNS) if is_conllu else len(_cells(row, separator)[0]) // 2 + 1
    if is_conllu:
        word, tag = word or "form", tag or "upos"
    word_at = _index(1 if word is None else word, "word", width, is_conllu, where)
    if tag is None:
        tag_at = width - 1 if width > 1 else width
    elif tag == width + 1 or (not (is_conllu or labelled) and (isinstance(tag, str) or abs(tag) > width)):
        tag_at = width
    else:
        tag_at = _index(tag, "tag", width, is_conllu, where)
    if labelled and tag_at == width:
        shown = "only one column" if width == 1 else f"only {width} columns"
        raise UserError(f"{where}: {shown}, and no tags; expected a column of words and one of tags")
    if word_at == tag_at:
        raise UserError(f"{where}: column {word_at + 1} cannot be both the word and the tag")
    return _Layout(is_conllu, separator, width, word_at, tag_at)


def _index(column: Column, what: str, width: int, is_conllu: bool, where: str) -> int:
    if isinstance(column, str):
        if is_conllu and column.lower() in CONLLU_COLUMNS:
            return CONLLU_COLUMNS.index(column.lower())
        there = f"there are {', '.join(CONLLU_COLUMNS)}" if is_conllu else "give its number, as there are no names"
        raise UserError(f"{where}: no column {column!r} for the {what}; {there}")
    if column == 0 or not -width <= column <= width:
        raise UserError(f"{where}: no column {column} for the {what}; there are {width}, counted from 1")
    return column - 1 if column > 0 else width + column


def _blocks(
    document: Document, layout: _Layout, labelled: bool, first: int, tally: Counter[str] | None
) -> Iterator[Sentence]:
    rows: list[str | Slot] = []
    words: list[str] = []
    tags: list[str] = []
    after: list[str | Slot] = []  # the lines since the sentence ended; None is known yet of whose they are
    ended = False
    for number, line in enumerate(document.lines(), start=1):
        if _is_blank(line):
            ended = ended or bool(words)
            (after if ended else rows).append(line)
            continue
        where = f"{document.name}, line {number}"
        if _is_no_word(line, layout, ended or not words, where):
            (after if ended else rows).append(line)
            continue
        word, tag, slot = _cut(line, layout, labelled, first, where)
        if not word:
            if tally is not None:
                tally[EMPTY_WORDS] += 1
            (after if ended else rows).append(line)
            continue
        if ended:
            blank = next((i for i, row in enumerate(after) if not _is_blank(str(row))), len(after))
            yield _sentence(words, tags, [*rows, *after[:blank]])
            rows, after, ended, words, tags = after[blank:], [], False, [], []
        words.append(word)
        tags.append(tag)
        rows.append(slot)
    if words:
        yield _sentence(words, tags, rows + after)


def _is_blank(line: str) -> bool:
    return not line.strip(" \t")


def _is_no_word(line: str, layout: _Layout, between: bool, where: str) -> bool:
    """Return whether a line is a comment or the like; `between` says that it does not stand inside a sentence."""
    if layout.is_conllu:
        if line.startswith("#"):
            return True
        identifier = line.partition("\t")[0]
        if not _WORD_ID.match(identifier) and not _OTHER_ID.match(identifier):
            raise UserError(f"{where}: expected a word's number in CoNLL-U, got {identifier[:40]!r}")
        return not _WORD_ID.match(identifier)
    if line.startswith("-DOCSTART-"):
        return True
    return between and line.startswith("#") and len(_cells(line, layout.separator)[0]) // 2 + 1 != layout.width


def _cells(line: str, separator: re.Pattern[str]) -> tuple[list[str], str, str]:
    """Return columns and the separators between them, by turns, and the blanks that stand before and after them all."""
    if separator is _TAB:
        return separator.split(line), "", ""
    text = line.strip(" \t")
    begin = line.index(text)
    return separator.split(text), line[:begin], line[begin + len(text) :]


def _cut(line: str, layout: _Layout, labelled: bool, first: int, where: str) -> tuple[str, str, Slot]:
    parts, lead, trail = _cells(line, layout.separator)
    cells = parts[::2]
    if len(cells) != layout.width:
        wanted = f"{layout.width} columns" + ("" if layout.is_conllu else f" as in line {first}")
        raise UserError(f"{where}: expected {wanted}, got {len(cells)}")
    if layout.tag == layout.width:
        separator = "\t" if layout.separator is _TAB or layout.width == 1 else " "
        return cells[layout.word], "", Slot(lead + "".join(parts) + separator, "")
    tag = cells[layout.tag]
    if labelled and cells[layout.word] and not tag:
        raise UserError(f"{where}: the tag is empty")
    before, after = "".join(parts[: 2 * layout.tag]), "".join(parts[2 * layout.tag + 1 :])
    return cells[layout.word], tag, Slot(lead + before, after + trail)


def words_of(line: str) -> list[str]:
    """Return what stands between the spaces and tabs of a line; other white space is part of a word."""
    return [part for part in _SPACES.split(line)[::2] if part]


def _sentence(words: list[str], tags: list[str], rows: list[str | Slot]) -> Sentence:
    return Sentence(tuple(words), tuple(tags) if all(tags) else None, tuple(rows))
