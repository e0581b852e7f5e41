r"""ARPA files, in which toolkits of n-gram models exchange them.

    \data\
    ngram 1=5
    ngram 2=7

    \1-grams:
    -0.68	the	-0.31
    ...
    \end\

An ARPA file is text. It first says how many n-grams of each order it has. Then each has a line: the base-10 logarithm
of its probability, its words, and that of its back-off weight where longer n-grams go on from it. ``<s>`` and ``</s>``
are the beginning and the end of a line, which to Recurra are one token (see
:class:`~recurra.models.kneser_ney.NgramLM`); ``<unk>`` is an unknown word. The logarithm of 0 cannot be written; -99
stands for it, and what reads it, Recurra as KenLM, takes that for a number like any other.

Words are what stands between ASCII white space, so that other spaces of Unicode may be part of one.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import re
import zlib
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from recurra.config import UserError
from recurra.files import written_whole
from recurra.models.kneser_ney import NgramLM, NgramSettings
from recurra.text.vocabulary import LINE_END, SPECIAL, UNKNOWN, Vocabulary

__all__ = ["read_arpa", "write_arpa"]

BEGIN, END = "<s>", "</s>"
ZERO = -99.0  # what is written for the logarithm of 0
UNKNOWN_WORD = -100.0  # the logarithm of the probability of <unk> where a file has none, as KenLM takes it
LN10 = math.log(10)
WRITTEN_AT_ONCE = 2**16

CUT_SHORT = r"the file ends without \end\: it was cut short; get the whole of it"

LINE_BEGIN = -1  # stands for <s> while a file is read, where LINE_END stands for </s> alone


def read_arpa(path: str | Path) -> tuple[NgramLM, Vocabulary]:
    r"""Read a model and the words it is over from an ARPA file, compressed if its name ends with ``.gz``.

    The vocabulary is ``<unk>``, ``<eos>`` and the words of the file in its order, with counts of 0: the file has none.
    Probabilities are taken as they stand, but for that of ``<s>``, which nothing asks for. A missing ``<unk>`` has a
    base-10 logarithm of -100, as in KenLM; a missing ``</s>`` has probability 0. Text before ``\data\``, blank lines,
    missing back-off weights, and n-grams whose beginning or end the file leaves out are taken as they come; n-grams
    that cross a line's end are left out, as nothing asks for them.

    Raises:
        UserError: the file cannot be read, or is no whole ARPA file; the text names the line.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            # gzip's own way of reading lines is a slow one
            text = io.BufferedReader(gzip.GzipFile(fileobj=file)) if path.suffix == ".gz" else file
            return _read(_Lines(path, text))
    except (EOFError, zlib.error) as error:
        raise UserError(f"{path}: the compressed file is cut short or damaged: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def write_arpa(model: NgramLM, vocabulary: Vocabulary, path: str | Path) -> None:
    """Write a model to an ARPA file, whole or not at all; compressed if its name ends with ``.gz``.

    What reads the same is every number but the logarithm of 0, for which -99 is written.

    Raises:
        UserError: a token of the vocabulary cannot be written: it has white space, or a name that means something else.
    """
    path = Path(path)
    for token in vocabulary.tokens:
        if re.search(r"[\0\t\n\v\f\r ]", token) or not token:
            raise UserError(
                f"{path}: the token {token!r} cannot stand in an ARPA file, where words have no white space and are not"
                " empty; make a model whose tokens are words"
            )
        if token in (BEGIN, END):
            raise UserError(f"{path}: the token {token!r} would be taken for an end of a line; rename it in the text")
    sizes = {k: len(table) for k, table in model.log_probs.items()}
    sizes[1] += 1  # <s> and </s> are two words here
    with contextlib.ExitStack() as stack:
        file: IO[Any] = stack.enter_context(written_whole(path, "wb"))
        if path.suffix == ".gz":
            compressed = gzip.GzipFile("", "wb", 6, file, 0)  # neither name nor time: same model, same bytes
            file = stack.enter_context(io.BufferedWriter(compressed))
        file.write("".join(["\\data\\\n", *(f"ngram {k}={size}\n" for k, size in sizes.items())]).encode())
        for k in sizes:
            file.write(f"\n\\{k}-grams:\n".encode())
            for lines in _written(model, vocabulary, k):
                file.write("".join(lines).encode())
        file.write(b"\n\\end\\\n")


def _written(model: NgramLM, vocabulary: Vocabulary, k: int) -> Iterator[Iterable[str]]:
    """Yield the lines of the n-grams of order k, some at a time."""
    last = np.array(vocabulary.tokens, object)
    last[LINE_END] = END
    first = last.copy()
    if k > 1:
        first[LINE_END] = BEGIN
    for numbers in torch.arange(len(model.log_probs[k])).split(WRITTEN_AT_ONCE):
        ids = model.ngrams(k, numbers).numpy()
        words = [" ".join(row) for row in np.column_stack([first[ids[:, 0]], last[ids[:, 1:]]])]
        log_probs = _base10(model.log_probs[k][numbers])
        backoffs = _base10(model.backoffs[k][numbers]) if k < model.order else None
        if k == 1 and numbers[0] == 0:
            words.insert(LINE_END, BEGIN)
            log_probs.insert(LINE_END, ZERO)
            if backoffs is not None:
                backoffs.insert(LINE_END + 1, 0.0)  # the one there is belongs to <s>
        if backoffs is None:
            yield (f"{p:.7g}\t{w}\n" for p, w in zip(log_probs, words, strict=True))
        else:
            yield (f"{p:.7g}\t{w}\t{b:.7g}\n" for p, w, b in zip(log_probs, words, backoffs, strict=True))


def _base10(logarithms: torch.Tensor) -> list[float]:
    """Natural logarithms as an ARPA file has them."""
    return (logarithms.double() / LN10).masked_fill_(logarithms == -math.inf, ZERO).tolist()


class _Lines:
    """The lines of a file as words, blank ones left out; knows where it is."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self.number = 0
        self._last = b""
        self._words = self._read(file)

    def _read(self, file: IO[bytes]) -> Iterator[list[bytes]]:
        for self.number, self._last in enumerate(file, 1):
            words = self._last.split()
            if words:
                yield words
        self._last = b""

    def __iter__(self) -> Iterator[list[bytes]]:
        return self._words

    def error(self, message: str, number: int | None = None) -> UserError:
        if self._last and not self._last.endswith(b"\n") and self._last.strip() != b"\\end\\":
            message = CUT_SHORT  # in the middle of the line: what is left of it may be anything
        return UserError(f"{self.path}, line {self.number if number is None else number}: {message}")


class _Table(NamedTuple):
    """The n-grams of one order as the file has them: ids [n, k], natural logarithms [n], and line numbers [n]."""

    ids: NDArray[np.int32]
    log_probs: NDArray[np.float32]
    backoffs: NDArray[np.float32]
    lines: NDArray[np.int64]


def _read(lines: _Lines) -> tuple[NgramLM, Vocabulary]:
    counts, heading = _read_counts(lines)
    ids = {b"<unk>": UNKNOWN, END.encode(): LINE_END, BEGIN.encode(): LINE_BEGIN}
    words = list(SPECIAL)
    tables = []
    for k, count in enumerate(counts, 1):
        if heading != rf"\{k}-grams:":
            raise lines.error(rf"expected \{k}-grams:, got {heading}")
        table, heading = _read_table(lines, k, ids, words)
        if len(table.lines) != count:
            raise lines.error(rf"expected {count} {k}-grams, as \data\ says, got {len(table.lines)}")
        tables.append(table)
    if heading != "\\end\\":
        raise lines.error(rf"expected \end\ after the {len(counts)}-grams, got {heading}")
    return _model(tables, len(words), lines), Vocabulary(words, [0] * len(words))


def _read_counts(lines: _Lines) -> tuple[list[int], str]:
    r"""Return how many n-grams of each order there are to be, and the heading that follows."""
    if not any(words == [b"\\data\\"] for words in lines):
        raise lines.error(r"no \data\ found: this is no ARPA file, or only the end of one")
    counts: list[int] = []
    for words in lines:
        text = _text(words)
        if text.startswith("\\"):
            if not counts:
                raise lines.error(f"expected the number of 1-grams, such as ngram 1=5000, got {text}")
            return counts, text
        match = re.fullmatch(r"ngram (\d+) ?= ?(\d+)", text)
        if match is None or int(match[1]) != len(counts) + 1:
            raise lines.error(f"expected the number of {len(counts) + 1}-grams, such as ngram 1=5000, got {text}")
        counts.append(int(match[2]))
    raise lines.error(CUT_SHORT)


def _read_table(lines: _Lines, k: int, ids: dict[bytes, int], words: list[str]) -> tuple[_Table, str]:
    """Read the n-grams of order k up to the next heading, which is returned too.

    Args:
        lines: where to read.
        k: the order.
        ids: the id of each word; unigrams add theirs.
        words: the word of each id; unigrams add theirs.
    """
    found, log_probs, backoffs, numbers = array("i"), array("f"), array("f"), array("q")
    seen: set[bytes] = set()
    for fields in lines:
        if fields[0].startswith(b"\\"):
            table = _table(k, found, log_probs, backoffs, numbers)
            return table, _text(fields)
        if not k < len(fields) <= k + 2:
            raise lines.error(
                f"expected a probability, {k} words and perhaps a back-off weight, got {len(fields)} fields:"
                f" {_text(fields)}"
            )
        try:
            log_prob = float(fields[0])
            backoff = float(fields[k + 1]) if len(fields) == k + 2 else 0.0
        except ValueError:
            raise lines.error(
                f"expected numbers before and after {k} word{'s' * (k > 1)}, got {_text(fields)}"
            ) from None
        if not log_prob <= 0:
            raise lines.error(f"expected the logarithm of a probability, at most 0, got {_text(fields[:1])}")
        if not backoff < math.inf:
            raise lines.error(f"expected the logarithm of a back-off weight, got {_text(fields[k + 1 :])}")
        if k == 1:
            word = fields[1]
            if word in seen:
                raise lines.error(f"{_text([word])} comes twice")
            seen.add(word)
            if word not in ids:
                ids[word] = len(words)
                words.append(_word(word, lines))
        try:
            found.extend([ids[word] for word in fields[1 : k + 1]])
        except KeyError as error:
            raise lines.error(f"{_text(error.args)} is not among the 1-grams") from None
        log_probs.append(log_prob)
        backoffs.append(backoff)
        numbers.append(lines.number)
    raise lines.error(CUT_SHORT)


def _table(k: int, ids: array[int], log_probs: array[float], backoffs: array[float], lines: array[int]) -> _Table:
    def logarithms(values: array[float]) -> NDArray[np.float32]:
        return (np.frombuffer(values, np.float32).astype(np.float64) * LN10).astype(np.float32)

    return _Table(
        np.frombuffer(ids, np.int32).reshape(-1, k),
        logarithms(log_probs),
        logarithms(backoffs),
        np.frombuffer(lines, np.int64),
    )


def _word(word: bytes, lines: _Lines) -> str:
    try:
        text = word.decode()
    except UnicodeDecodeError:
        raise lines.error(f"expected UTF-8, got {_text([word])}") from None
    if text == SPECIAL[LINE_END]:
        raise lines.error(f"the word {text} is what Recurra calls the end of a line; rename it in the file")
    return text


def _text(words: Iterable[bytes]) -> str:
    """Words as a message quotes them."""
    return b" ".join(words).decode(errors="backslashreplace")


def _model(tables: list[_Table], vocabulary_size: int, lines: _Lines) -> NgramLM:
    """Build the model of these n-grams, adding those that longer ones begin with and the file leaves out."""
    order = len(tables)
    model = NgramLM(NgramSettings(order=order), keys={}, log_probs={}, backoffs={})
    model.log_probs[1], model.backoffs[1] = _unigrams(tables[0], vocabulary_size)
    longer = {k: _within_lines(table) for k, table in enumerate(tables[1:], 2)}
    parents = {k: table.ids[:, 0].astype(np.int64) for k, table in longer.items()}  # numbers of what each begins with
    for k in range(2, order + 1):
        wanted = {j: parents[j] * vocabulary_size + table.ids[:, k - 1] for j, table in longer.items()}
        table = longer.pop(k)
        by_key = np.argsort(wanted[k], kind="stable")
        keys = wanted.pop(k)[by_key]
        twice = np.flatnonzero(keys[1:] == keys[:-1])
        if len(twice):
            first, second = table.lines[by_key[twice[0] : twice[0] + 2]].tolist()
            raise lines.error(f"the same {k}-gram stands in line {first} already; leave one of them", second)
        columns = [keys, table.log_probs[by_key], table.backoffs[by_key]]
        _set(model, k, *columns)
        missing = _missing(keys, wanted)
        if len(missing):
            added: list[Any] = [missing, _backed_off(model, k, missing), 0.0]
            places = np.searchsorted(keys, missing)
            columns = [np.insert(column, places, values) for column, values in zip(columns, added, strict=True)]
            _set(model, k, *columns)
        parents = {j: np.searchsorted(columns[0], values) for j, values in wanted.items()}
    del model.backoffs[order]
    return model


def _set(model: NgramLM, k: int, keys: NDArray[Any], log_probs: NDArray[Any], backoffs: NDArray[Any]) -> None:
    model.keys[k] = torch.from_numpy(keys)
    model.log_probs[k] = torch.from_numpy(log_probs)
    model.backoffs[k] = torch.from_numpy(backoffs)


def _unigrams(table: _Table, vocabulary_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and back-off weights of all words, [V]: ``LINE_END`` has those of ``</s>`` and of ``<s>``."""
    ids = table.ids[:, 0]
    begins, ends = ids == LINE_BEGIN, ids == LINE_END
    log_probs = np.full(vocabulary_size, -math.inf, np.float32)
    log_probs[UNKNOWN] = UNKNOWN_WORD * LN10
    log_probs[ids[~begins]] = table.log_probs[~begins]
    backoffs = np.zeros(vocabulary_size, np.float32)
    backoffs[np.where(begins, LINE_END, ids)[~ends]] = table.backoffs[~ends]
    return torch.from_numpy(log_probs), torch.from_numpy(backoffs)


def _within_lines(table: _Table) -> _Table:
    """The n-grams that have the beginning of a line only at their own, and the end of a line only at their own."""
    ids = table.ids
    inside = (ids[:, 1:] != LINE_BEGIN).all(1) & (ids[:, :-1] != LINE_END).all(1)
    kept = _Table(*(values[inside] for values in table))
    return kept._replace(ids=np.where(kept.ids == LINE_BEGIN, LINE_END, kept.ids))


def _missing(keys: NDArray[np.int64], wanted: dict[int, NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return the keys that longer n-grams want and that are not there, each once, ascending."""
    ended = np.append(keys, -1)  # no key is -1: so what lies beyond the last is not there
    absent = [values[ended[np.searchsorted(keys, values)] != values] for values in wanted.values()]
    return np.unique(np.concatenate([np.empty(0, np.int64), *absent]))


def _backed_off(model: NgramLM, k: int, keys: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the log-probabilities of n-grams of order k that a model, complete up to there, does not have, by key."""
    histories, words = map(torch.from_numpy, np.divmod(keys, model.vocabulary_size))
    inputs = model.ngrams(k - 1, histories).T
    targets = torch.cat([inputs[1:], words[None]])
    shorter = NgramLM(NgramSettings(order=k), keys=model.keys, log_probs=model.log_probs, backoffs=model.backoffs)
    log_probs: NDArray[np.float32] = shorter.score(inputs, targets, shorter.start(len(keys)))[0][-1].numpy()
    return log_probs
