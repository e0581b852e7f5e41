r"""A text is documents, a document is lines: read from any file, folder, glob, .gz or standard input, never held whole.

A line ends at ``\n``, ``\r\n`` or ``\r`` and nowhere else: a form feed, U+2028 and their like stay inside it.
"""

from __future__ import annotations

import atexit
import codecs
import functools
import glob
import gzip
import itertools
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from recurra.config import UserError

BLOCK_BYTES = 1 << 16
UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class NotText(UserError):
    """What was to be read as text is binary, or in another encoding."""


@dataclass(frozen=True)
class Document:
    """A named run of lines.

    Attributes:
        name: What messages call it: a path, or a title inside a named corpus.
        read: Begins a fresh pass over all lines of the source.
        first: Index of the document's first line in the source.
        stop: Index after its last line; None for the end of the source.
    """

    name: str
    read: Callable[[], Iterator[str]]
    first: int = 0
    stop: int | None = None

    def lines(self) -> Iterator[str]:
        """Begin a fresh pass over the lines, without their ends.

        Raises:
            UserError: while reading: a byte that does not fit the encoding, a binary file, a broken .gz.
        """
        if self.first == 0 and self.stop is None:
            return self.read()
        return itertools.islice(self.read(), self.first, self.stop)

    def part(self, first: int, stop: int) -> Document:
        """Return the document of lines `first` up to, not including, `stop` of this one."""
        return Document(self.name, self.read, self.first + first, self.first + stop)


@dataclass(frozen=True)
class Text:
    """Documents, one after the other."""

    documents: tuple[Document, ...]

    @classmethod
    def from_string(cls, string: str, name: str = "text") -> Text:
        """Return a text of one document that holds `string`; an end after the last line adds no empty one."""
        lines = _with_plain_ends(string).split("\n")
        if not lines[-1]:
            lines.pop()
        return cls((Document(name, lines.__iter__),))

    def lines(self) -> Iterator[str]:
        """Begin a fresh pass over the lines of all documents."""
        return itertools.chain.from_iterable(document.lines() for document in self.documents)


def open_source(source: str, encoding: str, errors: str) -> list[Document]:
    """Return the documents of a file, a folder, a glob or standard input (``-``).

    A folder stands for all files below it, sorted by path; a glob for what a shell would make of it. Hidden files and
    empty ones are passed over there, but an empty file that is named itself is an error.

    Raises:
        FileNotFoundError: nothing there.
        UserError: nothing in it, not readable, not text, not in the encoding given.
    """
    _check_encoding(encoding)
    if source == "-":
        return [_nonempty(file_document(_spooled_input(), encoding, errors, name="standard input"))]
    if os.path.lexists(source):
        paths = [Path(source)]
    elif glob.has_magic(source):
        paths = [Path(match) for match in sorted(glob.glob(source, recursive=True))]
        if not paths:
            raise UserError(f"{source}: no file matches")
    else:
        raise FileNotFoundError(source)
    if len(paths) == 1 and not paths[0].is_dir():
        return [_nonempty(file_document(paths[0], encoding, errors))]
    found = [file_document(file, encoding, errors) for path in paths for file in _files(path)]
    documents = [document for document in found if _has_lines(document)]
    if not documents:
        raise UserError(f"{source}: no text in any file there")
    return documents


def file_document(path: Path, encoding: str = "utf-8", errors: str = "strict", name: str | None = None) -> Document:
    """Return the document that is the whole of one file, which is not opened yet."""
    name = name or str(path)
    return Document(name, functools.partial(_lines_of_file, path, name, encoding, errors))


def _files(path: Path) -> list[Path]:
    """Return `path` if it is a file, else the files below it that are not hidden, sorted."""
    if not path.is_dir():
        return [path]
    below = (file for file in path.rglob("*") if file.is_file())
    return sorted(file for file in below if not any(part.startswith(".") for part in file.relative_to(path).parts))


def _has_lines(document: Document) -> bool:
    return next(document.lines(), None) is not None


def _nonempty(document: Document) -> Document:
    if not _has_lines(document):
        raise UserError(f"{document.name}: empty, there is no text in it")
    return document


def _spooled_input() -> Path:
    """Copy standard input to a temporary file, so that it can be read again; the file goes when the program does."""
    descriptor, path = tempfile.mkstemp(prefix="recurra-input-")
    atexit.register(Path(path).unlink, missing_ok=True)
    with open(descriptor, "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return Path(path)


def _check_encoding(encoding: str) -> None:
    try:
        "a".encode(encoding)  # refuses what is no encoding of text
        codecs.getincrementaldecoder(encoding)
    except LookupError:
        raise UserError(f"unknown encoding {encoding!r}; use utf-8, utf-16, latin-1 or another of Python") from None


def _lines_of_file(path: Path, name: str, encoding: str, errors: str) -> Iterator[str]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            yield from _lines(_decoded(cast(IO[bytes], file), name, encoding, errors))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{name}: not a whole gzip file: {error}") from error
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror or error}") from error


def _lines(blocks: Iterator[str]) -> Iterator[str]:
    """Cut decoded blocks into lines. A last line without an end is a line like any other."""
    unfinished: list[str] = []
    for block in blocks:
        head, *lines = block.split("\n")
        unfinished.append(head)
        if lines:
            yield "".join(unfinished)
            unfinished = [lines.pop()]
            yield from lines
    if rest := "".join(unfinished):
        yield rest


def _decoded(file: IO[bytes], name: str, encoding: str, errors: str) -> Iterator[str]:
    r"""Decode a file block by block, with ``\n`` for each line end and without a byte order mark.

    This does what `io.TextIOWrapper` does, but knows where in the file it is when a byte does not fit.
    """
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    offset = 0  # bytes decoded before this block
    line = 1  # number of the line at which this block begins
    at_beginning = True
    carried = ""  # a \r that may be the first half of \r\n
    while True:
        block = file.read(BLOCK_BYTES)
        state = decoder.getstate()
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            # the decoder may have kept bytes of earlier blocks: what it decodes ends where this block ends
            position = offset + len(block) - len(error.object) + error.start
            decoder.setstate(state)
            before = carried + decoder.decode(block[: max(0, position - offset)])
            line += _with_plain_ends(before).count("\n")
            raise _misfit(name, line, position, error, block) from None
        if text and at_beginning:
            text = text.removeprefix("\ufeff")
            at_beginning = False
        text = carried + text
        carried = "\r" if block and text.endswith("\r") else ""
        text = _with_plain_ends(text.removesuffix(carried))
        if "\0" in text:
            line += text[: text.index("\0")].count("\n")
            raise NotText(f"{name}, line {line}: a NUL: this is a binary file, or needs --encoding utf-16")
        yield text
        if not block:
            return
        line += text.count("\n")
        offset += len(block)


def _misfit(name: str, line: int, position: int, error: UnicodeDecodeError, block: bytes) -> NotText:
    """Describe a byte that is not in the encoding, and what to do about it."""
    if position == 0 and block.startswith(UTF_16_MARKS):
        return NotText(f"{name}: begins with the mark of UTF-16, not {error.encoding}; give --encoding utf-16")
    if b"\0" in block and b"\0" not in "a".encode(error.encoding):
        return NotText(f"{name}: a binary file, not text: byte offset {position} is not {error.encoding}")
    return NotText(
        f"{name}, line {line}, byte offset {position}: 0x{error.object[error.start]:02x} is not {error.encoding};"
        " give --encoding, e.g. latin-1, or --errors replace"
    )


def _with_plain_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
