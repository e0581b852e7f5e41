"""Pretrained word vectors, read for the words of a vocabulary: word2vec's, GloVe's and fastText's files."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

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
        errors: What to do with bytes of text that are not in it: ``strict``, ``replace``, ``ignore``.

    Raises:
        UserError: the file is not there, empty, cut off; a line that is too short or has what is no finite number; not
            as many features as asked for.
    """
    if format is not None and format not in FORMATS:
        raise UserError(f"expected a format of word vectors out of {', '.join(FORMATS)}, got {format!r}")
    path = Path(path)
    wanted = dict.fromkeys(words)
    if lowercase:
        wanted |= dict.fromkeys(word.lower() for word in words)
    kind = format or ("binary" if _is_binary(path) else "text")
    if kind == "binary":
        width, found = _read_binary(path, wanted, features, encoding)
    else:
        width, found = _read_text(path, wanted, features, encoding, errors)
    matrix = np.zeros((len(words), width), np.float32)
    covered = np.zeros(len(words), np.bool_)
    for index, word in enumerate(words):
        vector = found.get(word)
        if vector is None and lowercase:
            vector = found.get(word.lower())
        if vector is not None:
            matrix[index], covered[index] = vector, True
    return WordVectors(matrix, covered)


def _read_text(
    path: Path, wanted: Container[str], features: int | None, encoding: str, errors: str
) -> tuple[int, dict[str, NDArray[np.float32]]]:
    """Return how many features the vectors have, and those of the words wanted."""
    found: dict[str, NDArray[np.float32]] = {}
    width: int | None = None
    for number, line in enumerate(file_document(path, encoding, errors).lines(), start=1):
        line = line.rstrip(" \t")
        where = f"{path}, line {number}"
        if number == 1 and (header := _HEADER.match(line)):
            width = _checked_width(int(header[2]), features, where)
            continue
        spaces = line.count(" ")
        if width is None:
            width = _checked_width(spaces, features, where)
        if spaces < width:
            raise UserError(f"{where}: expected a word and {width} numbers, got {spaces + 1} fields")
        # a word of GloVe's may have spaces inside; most lines are not wanted, and need no cutting
        word = line.partition(" ")[0] if spaces == width else line.rsplit(" ", width)[0]
        if word not in wanted or word in found:
            continue
        try:
            with np.errstate(over="ignore"):  # infinity is refused below
                vector = np.array([float(value) for value in line[len(word) + 1 :].split(" ")], np.float32)
        except ValueError as error:
            raise UserError(f"{where}: not a number in the vector of {word!r}: {error}") from None
        found[word] = _finite(vector, word, where)
    if width is None:
        raise UserError(f"{path}: empty, there are no word vectors in it")
    return width, found


def _read_binary(
    path: Path, wanted: Iterable[str], features: int | None, encoding: str
) -> tuple[int, dict[str, NDArray[np.float32]]]:
    """Return how many features the vectors have, and those of the words wanted."""
    names = {word.encode(encoding, "surrogatepass"): word for word in wanted}  # others may be in no encoding at all
    found: dict[str, NDArray[np.float32]] = {}
    blocks = _blocks(path)
    data = next(blocks, b"")
    line, _, data = data.partition(b"\n")
    header = _HEADER.match(line[:100].decode("latin-1"))
    if not header:
        raise UserError(f"{path}: expected the numbers of words and features in the first line, got {line[:40]!r}")
    count, width = int(header[1]), _checked_width(int(header[2]), features, f"{path}, line 1")
    position = 0
    for number in range(1, count + 1):
        space = data.find(b" ", position)
        while space < 0 or len(data) - space - 1 < 4 * width:
            block = next(blocks, b"")
            if not block or (space < 0 and len(data) - position > LONGEST_WORD):
                what = "a space after the word" if space < 0 else f"{width} numbers"
                raise UserError(f"{path}: cut off or damaged: expected {what} in vector {number} of {count}")
            data, position = data[position:] + block, 0
            space = data.find(b" ")
        word = names.get(data[position:space].removeprefix(b"\n"))
        position = space + 1 + 4 * width
        if word is not None and word not in found:
            vector = np.frombuffer(data, "<f4", width, space + 1).astype(np.float32)
            found[word] = _finite(vector, word, f"{path}, vector {number}")
    return width, found


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


def _finite(vector: NDArray[np.float32], word: str, where: str) -> NDArray[np.float32]:
    if not np.isfinite(vector).all():
        raise UserError(
            f"{where}: expected finite numbers in the vector of {word!r}, got {vector[~np.isfinite(vector)][0]}"
        )
    return vector
