"""Pretrained word vectors, read for the words of a vocabulary: word2vec's, GloVe's and fastText's files."""

from __future__ import annotations

import gzip
import itertools
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from recurra.config import UserError
from recurra.text.documents import file_document

FORMATS = ("text", "binary")
BLOCK_BYTES = 1 << 20
LONGEST_WORD = 1 << 16  # bytes

_HEADER = re.compile(r"\s*([0-9]+)\s+([0-9]+)\s*\Z")


@dataclass(frozen=True, eq=False)
class WordVectors:
    """Vectors for words.

    Attributes:
        matrix: A vector for each word, [words, features]; 0 where there is none.
        covered: Which words there is one for, [words].
    """

    matrix: NDArray[np.float32]
    covered: NDArray[np.bool_]

    @property
    def share(self) -> float:
        """The part of the words that there is a vector for."""
        return float(self.covered.mean()) if len(self.covered) else 0.0


def read_vectors(
    path: str | Path,
    words: Sequence[str],
    *,
    features: int | None = None,
    lowercase: bool = True,
    format: str | None = None,
    encoding: str = "utf-8",
    errors: str = "strict",
) -> WordVectors:
    """Read the vectors of `words` from a file that is never held whole.

    ``text`` has lines of a word and its numbers, with a space between each and the next, after a line with the numbers
    of words and features (word2vec, fastText .vec) or without one (GloVe). ``binary`` is word2vec's: that line, then
    each word, a space, and its numbers as 32-bit floats. Of a word that comes twice, the first vector is taken.

    Args:
        path: The file, .gz or not.
        words: The words wanted.
        features: How many features a vector has to have; None for any.
        lowercase: Whether a word without a vector gets that of its lower-cased form.
        format: One of the two; None tells it from the file.
        encoding: The words' encoding.
        errors: What to do with bytes of text that are not in it: ``strict``, ``replace``, ``ignore``. In ``binary``
            they are replaced: word2vec cuts words off in the middle of a character.

    Raises:
        UserError: the file is not there, empty, cut off; a line that is too short or has what is no finite number; not
            as many features as asked for.
    """
    wanted = set(words)
    if lowercase:
        wanted |= {word.lower() for word in words}
    width, entries = _opened(Path(path), features, format, encoding, errors)
    found: dict[str, NDArray[np.float32]] = {}
    for entry in entries:
        if entry.word in wanted and entry.word not in found:
            found[entry.word] = _vector(entry)
    matrix = np.zeros((len(words), width), np.float32)
    covered = np.zeros(len(words), np.bool_)
    for index, word in enumerate(words):
        vector = found.get(word)
        if vector is None and lowercase:
            vector = found.get(word.lower())
        if vector is not None:
            matrix[index], covered[index] = vector, True
    return WordVectors(matrix, covered)


def listed_words(
    path: str | Path, *, format: str | None = None, encoding: str = "utf-8", errors: str = "strict"
) -> Iterator[str]:
    """The words of a file of vectors in its order, which is by falling frequency in those that are in use.

    No more of the file is read than is asked for. For the arguments, and what is raised, see :func:`read_vectors`.
    """
    return (entry.word for entry in _opened(Path(path), None, format, encoding, errors)[1])


class _Entry(NamedTuple):
    """A word of a file, and its vector as it stands there: most are not wanted."""

    word: str
    numbers: str | bytes
    where: str  # in messages


def _opened(
    path: Path, features: int | None, format: str | None, encoding: str, errors: str
) -> tuple[int, Iterator[_Entry]]:
    """Return how many features the vectors have, and the words with them."""
    if format is not None and format not in FORMATS:
        raise UserError(f"expected a format of word vectors out of {', '.join(FORMATS)}, got {format!r}")
    if (format or ("binary" if _is_binary(path) else "text")) == "binary":
        return _open_binary(path, features, encoding)
    return _open_text(path, features, encoding, errors)


def _open_text(path: Path, features: int | None, encoding: str, errors: str) -> tuple[int, Iterator[_Entry]]:
    lines = file_document(path, encoding, errors).lines()
    first = next(lines, None)
    if first is None:
        raise UserError(f"{path}: empty, there are no word vectors in it")
    header = _HEADER.match(first)
    width = _checked_width(int(header[2]) if header else first.rstrip(" \t").count(" "), features, f"{path}, line 1")

    def entries() -> Iterator[_Entry]:
        number = 1
        for number, line in enumerate(lines if header else itertools.chain([first], lines), start=2 if header else 1):
            line = line.rstrip(" \t")
            spaces = line.count(" ")
            if spaces < width:
                raise UserError(f"{path}, line {number}: expected a word and {width} numbers, got {spaces + 1} fields")
            # a word of GloVe's may have spaces inside; most lines are not wanted, and need no cutting
            word = line.partition(" ")[0] if spaces == width else line.rsplit(" ", width)[0]
            yield _Entry(word, line[len(word) + 1 :], f"{path}, line {number}")
        if header and number - 1 < int(header[1]):
            raise UserError(f"{path}: cut off: its first line promises {header[1]} words, there are {number - 1}")

    return width, entries()


def _open_binary(path: Path, features: int | None, encoding: str) -> tuple[int, Iterator[_Entry]]:
    blocks = _blocks(path)
    line, _, rest = next(blocks, b"").partition(b"\n")
    header = _HEADER.match(line[:100].decode("latin-1"))
    if not header:
        raise UserError(f"{path}: expected the numbers of words and features in the first line, got {line[:40]!r}")
    count, width = int(header[1]), _checked_width(int(header[2]), features, f"{path}, line 1")

    def entries() -> Iterator[_Entry]:
        data, position = rest, 0
        for number in range(1, count + 1):
            space = data.find(b" ", position)
            while space < 0 or len(data) - space - 1 < 4 * width:
                block = next(blocks, b"")
                if not block or (space < 0 and len(data) - position > LONGEST_WORD):
                    what = "a space after the word" if space < 0 else f"{width} numbers"
                    raise UserError(f"{path}: cut off or damaged: expected {what} in vector {number} of {count}")
                data, position = data[position:] + block, 0
                space = data.find(b" ")
            word = data[position:space].removeprefix(b"\n").decode(encoding, "replace")
            position = space + 1 + 4 * width
            yield _Entry(word, data[space + 1 : position], f"{path}, vector {number}")

    return width, entries()


def _vector(entry: _Entry) -> NDArray[np.float32]:
    """The numbers of an entry."""
    _, numbers, where = entry
    if isinstance(numbers, bytes):
        vector = np.frombuffer(numbers, "<f4").astype(np.float32)
    else:
        try:
            with np.errstate(over="ignore"):  # infinity is refused below
                vector = np.array([float(value) for value in numbers.split(" ")], np.float32)
        except ValueError as error:
            raise UserError(f"{where}: not a number in the vector of {entry.word!r}: {error}") from None
    if not np.isfinite(vector).all():
        raise UserError(
            f"{where}: expected finite numbers in the vector of {entry.word!r}, got {vector[~np.isfinite(vector)][0]}"
        )
    return vector


def _is_binary(path: Path) -> bool:
    """Return whether what stands after the header and the first word cannot be numbers in writing."""
    line, _, rest = next(_blocks(path), b"").partition(b"\n")
    header = _HEADER.match(line[:100].decode("latin-1"))
    # in writing, a number and its space take two bytes at least
    numbers = rest.partition(b" ")[2][: min(2 * int(header[2]) - 1, 64)] if header else b""
    return any(byte < 32 or byte > 126 for byte in numbers)


def _blocks(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            while block := cast(IO[bytes], file).read(BLOCK_BYTES):
                yield block
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: not a whole gzip file: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def _checked_width(width: int, features: int | None, where: str) -> int:
    if not width:
        raise UserError(f"{where}: expected a word and its numbers, got a line without spaces")
    if features is not None and width != features:
        raise UserError(f"{where}: expected vectors of {features} features, got {width}")
    return width
