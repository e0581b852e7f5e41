"""Examples from the formats that users have: labelled texts, pairs of texts, recordings; sentences and questions.

Every reader is a generator, so that a file, or standard input, need not be held whole; `list` it to hold it. What it
does not hand on as it is, it counts in a `tally`, under a few words that say what happened. Text is handed on as it is
written, control characters included: what becomes a token is for the tokenizer to say.

Readers that are `labelled`, as they are by default, want every example to have what is to be learned, and pass over
those with an empty text, counted. Readers that are not hand on an example for every line, so that what is predicted
stands beside it; lines that are no table are read as they are, whatever columns a table would have.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from recurra.config import UserError
from recurra.text.columns import Sentence, read_sentences, write_sentences
from recurra.text.corpora import Sources
from recurra.text.documents import Document, NotText
from recurra.text.questions import Answer, Question, read_questions
from recurra.text.tables import Column, Row, nonempty, open_documents, rows, table_format

__all__ = [
    "Answer",
    "Labelled",
    "Pair",
    "Question",
    "Recording",
    "Sentence",
    "held_out",
    "read_labelled",
    "read_pairs",
    "read_questions",
    "read_recordings",
    "read_sentences",
    "write_sentences",
]

Example = TypeVar("Example")

EMPTY_TEXTS = "texts skipped that were empty"
EMPTY_PAIRS = "pairs skipped with an empty side"
FIRST_ROWS = "first rows taken for examples (--header if they name the columns)"
EMPTY_TRANSCRIPTS = "recordings skipped with an empty transcript"
LABELLED_FORMATS = ("tsv", "csv", "jsonl", "lines", "classes")
PAIR_FORMATS = ("tsv", "csv", "jsonl", "parallel")
RECORDING_SUFFIXES = (".wav", ".npy")
STROKES = ".txt"  # in a manifest; by itself that is a manifest


@dataclass(frozen=True)
class Labelled:
    """A text and its class; None where it is not known."""

    text: str
    label: str | None = None


@dataclass(frozen=True)
class Pair:
    """A text and what it becomes, its translation for one; None where that is not known."""

    source: str
    target: str | None = None


@dataclass(frozen=True)
class Recording:
    """A sound, or a sequence of feature vectors, in a file.

    Attributes:
        name: What messages and predictions call it: the path as it was given.
        path: Where the file is: .wav, .npy, or .txt of pen strokes.
        transcript: What it says; None where that is not known.
    """

    name: str
    path: Path
    transcript: str | None = None


def read_labelled(
    sources: Sources,
    *,
    format: str | None = None,
    text: Column | None = None,
    label: Column | None = None,
    header: bool | None = None,
    labelled: bool = True,
    encoding: str = "utf-8",
    errors: str = "strict",
    tally: Counter[str] | None = None,
) -> Iterator[Labelled]:
    r"""Read texts and their classes, one by one.

    ``tsv``, ``csv`` and ``jsonl`` are tables; see :func:`recurra.text.tables.rows`. ``lines`` is a text a line, without
    classes. ``classes`` is several files: the lines of a file have its stem as their class, or its suffix where all
    stems are the same (``rt-polarity.neg``, ``rt-polarity.pos``). In a folder of folders, a class is a folder, and each
    file in it one text, its lines joined by ``\n``.

    Args:
        sources: Files, folders, globs or ``-``.
        format: One of the five. None takes a table by its suffix, then ``classes`` for several files and folders; a
            single file, or standard input, is ``tsv`` if its first line has a tab or is the name given for the text's
            column, else ``lines``.
        text: The column of the text, by name, or by number from 1. By default one with a usual name, such as ``text``;
            of two columns without a header the first.
        label: That of the class. By default one with a usual name, such as ``label``; of two without a header the
            second.
        header: Whether a table's first row names the columns. None: if a column is given by name, or one of
            several has a usual name.
        labelled: Whether a text without a class is an error.
        encoding: The files' encoding.
        errors: What to do with bytes that are not in it: ``strict``, ``replace``, ``ignore``.
        tally: Counts, by what happened, the texts that were passed over; and, if `labelled`, tables without a header.

    Raises:
        UserError: while reading: a source is not there, empty or not text; no such column, a ragged row, not JSON, no
            class, no text at all.
    """
    _check_format(format, LABELLED_FORMATS, "labelled texts")
    documents = open_documents(sources, encoding, errors)
    note = _noted(tally) if labelled else None
    several = len(documents) > 1 or any(Path(source).is_dir() for source in _listed(sources))

    def read() -> Iterator[Labelled]:
        columns = {"text": text, "label": label}
        needed = ["text", "label"] if labelled else ["text"]
        if format == "classes" or (format is None and several and not all(map(table_format, documents))):
            yield from _classes(documents, _listed(sources))
            return
        for document in documents:
            kind = format or table_format(document) or ("lines" if _is_plain(document, text) else "tsv")
            if kind == "lines":
                if labelled:
                    raise UserError(
                        f"{document.name}: lines without classes; expected a table, or a file for each class"
                    )
                yield from map(Labelled, document.lines())
                continue
            for row in rows(document, kind, columns, needed=needed, header=header, blanks=not labelled, note=note):
                yield Labelled(row.text("text"), _label_of(row, labelled))

    found = (one for one in read() if not labelled or _counted(one.text.strip(), tally, EMPTY_TEXTS))
    return nonempty(found, sources, "text")


def read_pairs(
    sources: Sources,
    *,
    format: str | None = None,
    source: Column | None = None,
    target: Column | None = None,
    header: bool | None = None,
    labelled: bool = True,
    encoding: str = "utf-8",
    errors: str = "strict",
    tally: Counter[str] | None = None,
) -> Iterator[Pair]:
    """Read pairs of texts, one by one. Pairs with an empty side are skipped and counted, if `labelled`.

    ``parallel`` is two sources whose lines belong together; ``tsv``, ``csv`` and ``jsonl`` are tables
    (:func:`recurra.text.tables.rows`), in which further columns do not matter: those of Tatoeba's exports come after
    source and target, without a header.

    Args:
        sources: Files, folders, globs or ``-``.
        format: One of the four. None takes a table by its suffix, then ``parallel`` for two sources if `labelled`, then
            ``tsv``; but if not `labelled`, lines that are no table are sources as they are.
        source: The column of the source, by name, or by number from 1. By default one with a usual name, such as
            ``source``, or the first of two languages; the first without a header.
        target: That of the target. By default one with a usual name, such as ``target``, or the second of two
            languages; the second without a header.
        header: Whether a table's first row names the columns. None: if a column is given by name, or one of
            several has a usual name, or two are languages (``English``, ``fr``).
        labelled: Whether a source without a target is an error.
        encoding: The files' encoding.
        errors: What to do with bytes that are not in it: ``strict``, ``replace``, ``ignore``.
        tally: Counts, by what happened, the pairs that were passed over; and, if `labelled`, tables without a header.

    Raises:
        UserError: while reading: a source is not there, empty or not text; no such column, a ragged row, not JSON, no
            target, no pair at all; and at the end of the shorter of two parallel texts.
    """
    _check_format(format, PAIR_FORMATS, "pairs")
    listed = _listed(sources)
    note = _noted(tally) if labelled else None

    def read() -> Iterator[Pair]:
        two = labelled and len(listed) == 2 and not any(map(_is_table, listed))
        if format == "parallel" or (format is None and two):
            if len(listed) != 2:
                raise _not_two(listed)
            yield from _parallel(*(open_documents(one, encoding, errors) for one in listed))
            return
        columns = {"source": source, "target": target}
        needed = ["source", "target"] if labelled else ["source"]
        how: dict[str, Any] = {"needed": needed, "header": header, "blanks": not labelled}
        for document in open_documents(sources, encoding, errors):
            kind = format or table_format(document)
            if kind is None and labelled and None in (source, target) and _is_plain(document, None):
                raise _not_two(listed)
            if kind is None and not labelled and _is_plain(document, source):
                yield from map(Pair, document.lines())
                continue
            for row in rows(document, kind or "tsv", columns, **how, first_ones=True, note=note):
                yield Pair(row.text("source"), row.text("target") if labelled else row.optional_text("target"))

    found = (
        pair
        for pair in read()
        if not labelled or _counted(pair.source.strip() and (pair.target or "").strip(), tally, EMPTY_PAIRS)
    )
    return nonempty(found, sources, "pair")


def read_recordings(
    sources: Sources,
    *,
    path: Column | None = None,
    transcript: Column | None = None,
    header: bool | None = None,
    labelled: bool = True,
    encoding: str = "utf-8",
    errors: str = "strict",
    tally: Counter[str] | None = None,
) -> Iterator[Recording]:
    """Read which recordings there are and what they say, one by one; the sounds themselves are not read.

    A source is a manifest, or a recording, or a folder of recordings. A manifest is a table
    (:func:`recurra.text.tables.rows`; .csv and .jsonl by their suffix, else .tsv) with columns ``path`` and
    ``transcript``; a path in it is relative to the manifest's folder. Recordings with an empty transcript are skipped
    and counted, if `labelled`.

    Args:
        sources: Manifests, .wav and .npy files, folders of them, ``-`` for a manifest.
        path: The manifest's column of paths, by name, or by number from 1. By default one with a usual name, such as
            ``path``; of two columns without a header the first.
        transcript: That of transcripts. By default one with a usual name, such as ``transcript``; of two without a
            header the second.
        header: Whether its first row names the columns. None: if a column is given by name, or one of several
            has a usual name.
        labelled: Whether a recording without a transcript is an error.
        encoding: The manifest's encoding.
        errors: What to do with bytes that are not in it: ``strict``, ``replace``, ``ignore``.
        tally: Counts, by what happened, the recordings that were passed over; and, if `labelled`, tables without a
            header.

    Raises:
        UserError: while reading: a source or a recording is not there, a recording is named otherwise; no such
            column, a ragged row, not JSON, no transcript, no recording at all.
    """
    note = _noted(tally) if labelled else None

    def read() -> Iterator[Recording]:
        for one in _listed(sources):
            place = Path(one)
            if not place.is_dir() and place.suffix.lower() not in RECORDING_SUFFIXES:
                for document in _manifests(one, encoding, errors):
                    yield from _manifest(document, {"path": path, "transcript": transcript}, header, labelled, note)
                continue
            files = sorted(place.rglob("*")) if place.is_dir() else [place]
            found = [file for file in files if file.suffix.lower() in RECORDING_SUFFIXES and file.is_file()]
            if not found:
                raise UserError(f"{one}: " + ("no .wav or .npy file there" if place.is_dir() else "no such file"))
            if labelled:
                raise UserError(
                    f"{one}: recordings without transcripts; give a table of lines `path<TAB>transcript` instead"
                )
            yield from (Recording(str(file), file) for file in found)

    wanted = (
        one for one in read() if not labelled or _counted((one.transcript or "").strip(), tally, EMPTY_TRANSCRIPTS)
    )
    return nonempty(wanted, sources, "recording")


def held_out(
    examples: Iterable[Example], fraction: float, key: Callable[[Example], str], *, part: str = "test"
) -> tuple[list[Example], list[Example]]:
    """Divide examples into those that are kept and about `fraction` of them that are held out, each in their order.

    Which, depends on each one's key alone (its BLAKE2b hash), not on its place or the others: examples of one key are
    on the same side, always, and a larger fraction holds out the same ones and more.

    Args:
        examples: What is divided.
        fraction: How much to hold out, from 0 to 1.
        key: What an example is known by, such as the source of a pair.
        part: The name of what is held out. Parts of different names are chosen independently: hold out "test" first,
            then "valid" from what was kept.

    Raises:
        UserError: nothing is left on a side although the fraction is neither 0 nor 1.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"expected a fraction from 0 to 1, got {fraction}")
    kept: list[Example] = []
    held: list[Example] = []
    for example in examples:
        text = f"{part}\0{key(example)}".encode("utf-8", "surrogatepass")
        place = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) / 2**64
        (held if place < fraction else kept).append(example)
    if 0 < fraction < 1 and not (kept and held):
        total, different = len(kept) + len(held), len({key(example) for example in kept + held})
        found = (
            f"{total:,}"
            if different == total
            else f"{total:,}, {different:,} different: those that belong together are in one part"
        )
        # who has too few for a test has too few for validation as well, and need not be told twice
        parts = ["test", "valid"] if part == "test" else [part]
        advice = ", and ".join(f"--{each} FILE or --{each}-fraction 0" for each in parts)
        raise UserError(f"too few examples ({found}) to set aside {fraction:g} of them as {part}; give {advice}")
    return kept, held


def _listed(sources: Sources) -> list[str]:
    return [str(one) for one in ([sources] if isinstance(sources, str | Path) else sources)]


def _check_format(format: str | None, formats: Sequence[str], what: str) -> None:
    if format is not None and format not in formats:
        raise UserError(f"expected a format of {what} out of {', '.join(formats)}, got {format!r}")


def _counted(text: str, tally: Counter[str] | None, what: str) -> bool:
    """Return whether `text` is not empty; count it under `what` if it is."""
    if not text and tally is not None:
        tally[what] += 1
    return bool(text)


def _label_of(row: Row, labelled: bool) -> str | None:
    label = row.optional_text("label", numbers=True)
    if labelled and not label:
        raise UserError(f"{row.where}: the label is missing")
    return label or None


def _classes(documents: Sequence[Document], sources: Sequence[str]) -> Iterator[Labelled]:
    folders = [Path(source) for source in sources if Path(source).is_dir()]
    paths = [Path(document.name) for document in documents]
    files = [path.with_suffix("") if path.suffix == ".gz" else path for path in paths]
    same_stems = len(files) > 1 and len({file.stem for file in files}) == 1 and all(file.suffix for file in files)
    for document, file in zip(documents, files, strict=True):
        home = next((folder for folder in folders if folder in file.parents), None)
        inside = file.relative_to(home).parts if home else (file.name,)
        if len(inside) > 1:
            yield Labelled("\n".join(document.lines()), inside[0])
            continue
        label = file.suffix[1:] if same_stems else file.stem
        yield from (Labelled(line, label) for line in document.lines())


def _parallel(sources: Sequence[Document], targets: Sequence[Document]) -> Iterator[Pair]:
    sides = [
        ((document.name, number, line) for document in documents for number, line in enumerate(document.lines(), 1))
        for documents in (sources, targets)
    ]
    for paired, (source, target) in enumerate(itertools.zip_longest(*sides)):
        if source is None or target is None:
            name, number, _ = source or target
            longer = paired + 1 + sum(1 for _ in sides[0 if target is None else 1])
            counts = (longer, paired) if target is None else (paired, longer)
            named = [f"{side[0].name} {count}" for side, count in zip((sources, targets), counts, strict=True)]
            raise UserError(
                f"expected as many lines on both sides, got {named[0]} and {named[1]};"
                f" the first without a partner is {name}, line {number}"
            )
        yield Pair(source[2], target[2])


def _is_table(source: str) -> bool:
    return table_format(Document(source, lambda: iter(()))) is not None


def _not_two(sources: Sequence[str]) -> UserError:
    return UserError(
        f"expected two parallel files, source and target, or a table with two columns, got {', '.join(sources)}; name"
        " both files, as in `train.en train.fr` or `--valid dev.en,dev.fr`"
    )


def _noted(tally: Counter[str] | None) -> Callable[[str], None] | None:
    """Return what counts first rows that were taken for examples, and keeps the first of them to be shown."""
    if tally is None:
        return None
    shown: list[str] = []

    def note(row: str) -> None:
        shown.append(row)
        tally[f"{FIRST_ROWS}: {shown[0]}"] += 1

    return note


def _manifests(source: str, encoding: str, errors: str) -> tuple[Document, ...]:
    try:
        return open_documents(source, encoding, errors)
    except NotText as error:
        where = "standard input is expected to be" if source == "-" else "expected .wav, .npy or"
        raise UserError(f"{error}; {where} a manifest: a list of paths of recordings, a line each") from None


def _manifest(
    document: Document,
    columns: dict[str, Column | None],
    header: bool | None,
    labelled: bool,
    note: Callable[[str], None] | None,
) -> Iterator[Recording]:
    folder = Path(document.name).parent if document.name != "standard input" else Path()
    kind = table_format(document)
    if kind is None and not labelled and _is_plain(document, columns["path"]):
        columns, header = {"path": 1, "transcript": None}, False
    needed = list(columns) if labelled else ["path"]
    for row in rows(document, kind or "tsv", columns, needed=needed, header=header, note=note):
        name = row.text("path")
        file = folder / name
        if file.suffix.lower() not in (*RECORDING_SUFFIXES, STROKES):
            raise UserError(f"{row.where}: expected a recording named .wav, .npy or .txt, got {name!r}")
        if not file.is_file():
            raise UserError(f"{row.where}: there is no {file}")
        yield Recording(name, file, row.text("transcript") if labelled else row.optional_text("transcript"))


def _is_plain(document: Document, column: Column | None) -> bool:
    """Return whether lines are no table: the first has no tab, and is not the name of the column that is wanted."""
    first = next((line for line in document.lines() if line.strip()), "")
    return "\t" not in first and not (isinstance(column, str) and first.strip().lower() == column.lower())
