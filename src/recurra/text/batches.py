"""A text as one array of ids, on disk or in memory, and the batches that a model is trained on.

The first input of a text, and of a line that is read by itself, is ``<eos>``; every token, each line's ``<eos>`` among
them, is a target once, but for the few at the end that do not fill a row of contiguous streams.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from recurra.config import UserError
from recurra.files import written_whole
from recurra.text.documents import Text
from recurra.text.tokenizer import Tokenizer
from recurra.text.vocabulary import LINE_END, UNKNOWN

Ids: TypeAlias = NDArray[np.integer[Any]]
Offsets: TypeAlias = NDArray[np.int64]

MAGIC = b"RECURRA1"
FOOTER = struct.Struct("<Q8s")  # length of the JSON before it, MAGIC
SMALL_IDS = np.dtype("<u2")
LARGE_IDS = np.dtype("<u4")
OFFSETS = np.dtype("<i8")


@dataclass(frozen=True, eq=False)
class TokenStream:
    """A text as ids.

    Attributes:
        tokens: Ids, each line with its ``<eos>``, [tokens].
        document_starts: Offset of each document's first token, ascending from 0.
        line_starts: Offset of each line's first token, ascending from 0.
        characters: Characters of the text, a line end counting as one.
        words: Words between white space, and one for each line end.
        unknown_tokens: Tokens outside the vocabulary.
        vocabulary: Digest of the vocabulary that the ids belong to.
    """

    tokens: Ids
    document_starts: Offsets
    line_starts: Offsets
    characters: int
    words: int
    unknown_tokens: int
    vocabulary: str

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def from_text(cls, text: str | Text, tokenizer: Tokenizer) -> TokenStream:
        """Encode a text that is small enough to be held in memory.

        Raises:
            UserError: there are no lines in it.
        """
        encoding = _Encoding(Text.from_string(text) if isinstance(text, str) else text, tokenizer)
        tokens = np.concatenate(list(encoding) or [np.empty(0, np.int32)])
        encoding.check()
        return cls.from_tokens(
            tokens,
            encoding.document_starts,
            characters=encoding.characters,
            words=encoding.words,
            vocabulary=tokenizer.vocabulary.digest(),
        )

    @classmethod
    def from_tokens(
        cls,
        tokens: ArrayLike,
        document_starts: ArrayLike = (0,),
        *,
        characters: int = 0,
        words: int = 0,
        vocabulary: str = "",
    ) -> TokenStream:
        """Make a stream of ids that are in memory; without the counts, nothing can be said per character or word."""
        ids = np.asarray(tokens)
        return cls(
            tokens=ids,
            document_starts=np.asarray(document_starts, OFFSETS),
            line_starts=_line_starts(ids),
            characters=characters,
            words=words,
            unknown_tokens=int(np.count_nonzero(ids == UNKNOWN)),
            vocabulary=vocabulary,
        )

    @classmethod
    def open(cls, path: str | Path) -> TokenStream:
        """Map a file that :func:`write_tokens` wrote into memory: nothing of it is read before it is used.

        Raises:
            UserError: it is not such a file, or not the whole of one.
        """
        path = Path(path)
        try:
            size = path.stat().st_size
            with open(path, "rb") as file:
                file.seek(max(0, size - FOOTER.size))
                length, magic = FOOTER.unpack(file.read(FOOTER.size))
                if magic != MAGIC:
                    raise ValueError
                file.seek(size - FOOTER.size - length)
                about = json.loads(file.read(length))
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from error
        except (ValueError, struct.error):
            raise UserError(f"{path}: not a token file, or only a part of one; encode the text again") from None

        begin = 0

        def mapped(dtype: np.dtype[Any], count: int) -> Any:
            nonlocal begin
            begin = -(-begin // dtype.itemsize) * dtype.itemsize
            array = np.memmap(path, dtype, "r", begin, (count,))
            begin += array.nbytes
            return array

        return cls(
            tokens=mapped(np.dtype(about["dtype"]), about["tokens"]),
            document_starts=mapped(OFFSETS, about["documents"]),
            line_starts=mapped(OFFSETS, about["lines"]),
            characters=about["characters"],
            words=about["words"],
            unknown_tokens=about["unknown_tokens"],
            vocabulary=about["vocabulary"],
        )


def write_tokens(text: Text, tokenizer: Tokenizer, path: str | Path) -> TokenStream:
    """Encode a text into a file, in memory that does not grow with the text, and return the stream that is in it.

    The file holds ids (two bytes each where the vocabulary allows it, else four), offsets of documents and of lines
    (eight bytes each), and last what they are, as JSON. It appears whole or not at all.

    Raises:
        UserError: there are no lines in the text.
    """
    path = Path(path)
    dtype = SMALL_IDS if len(tokenizer.vocabulary) <= np.iinfo(SMALL_IDS).max + 1 else LARGE_IDS
    encoding = _Encoding(text, tokenizer)
    tokens = unknown = lines = 0
    line_begins = True
    with written_whole(path, "wb") as file, tempfile.TemporaryFile(dir=path.parent) as line_starts:
        for ids in encoding:
            file.write(ids.astype(dtype).tobytes())
            starts = _line_starts(ids, line_begins)
            line_starts.write((starts + tokens).tobytes())
            line_begins = bool(ids[-1] == LINE_END)
            tokens, lines = tokens + len(ids), lines + len(starts)
            unknown += int(np.count_nonzero(ids == UNKNOWN))
        encoding.check()
        file.write(bytes(-file.tell() % OFFSETS.itemsize))
        file.write(np.asarray(encoding.document_starts, OFFSETS).tobytes())
        line_starts.seek(0)
        shutil.copyfileobj(line_starts, file)
        about = {
            "dtype": dtype.str,
            "tokens": tokens,
            "documents": len(encoding.document_starts),
            "lines": lines,
            "characters": encoding.characters,
            "words": encoding.words,
            "unknown_tokens": unknown,
            "vocabulary": tokenizer.vocabulary.digest(),
        }
        footer = json.dumps(about).encode()
        file.write(footer + FOOTER.pack(len(footer), MAGIC))
    return TokenStream.open(path)


class _Encoding:
    """One pass over a text: yields arrays of ids, and afterwards knows what can only be seen in the text itself."""

    def __init__(self, text: Text, tokenizer: Tokenizer) -> None:
        self.document_starts: list[int] = []
        self.characters = 0
        self.words = 0
        self._text = text
        self._tokenizer = tokenizer

    def __iter__(self) -> Iterator[NDArray[np.int32]]:
        tokens = 0
        for document in self._text.documents:
            start = tokens
            for ids in self._tokenizer.encode_lines(self._counted(document.lines())):
                if len(ids):
                    yield ids
                    tokens += len(ids)
            if tokens > start:
                self.document_starts.append(start)

    def _counted(self, lines: Iterator[str]) -> Iterator[str]:
        for line in lines:
            self.characters += len(line) + 1
            self.words += len(line.split()) + 1
            yield line

    def check(self) -> None:
        if not self.document_starts:
            raise UserError("the text is empty: there is not a line in it")


def _line_starts(ids: Ids, first_begins: bool = True) -> Offsets:
    """Return where lines begin: after each line end, and at the first token if that begins a line."""
    starts = np.flatnonzero(ids[:-1] == LINE_END) + 1
    return np.concatenate([[0], starts]) if first_begins and len(ids) else starts


class Batch(NamedTuple):
    """Sequences side by side.

    Attributes:
        inputs: What is read, int64 [time, batch].
        targets: What is to be predicted at each step, int64 [time, batch].
        lengths: Valid steps of each column, falling, int64 [batch]; the rest is padding of ``<eos>``. None: all are.
        resets: True where a document begins: the state is to be zero before this input; [time, batch]. None: nowhere.
    """

    inputs: Tensor
    targets: Tensor
    lengths: Tensor | None = None
    resets: Tensor | None = None

    @property
    def tokens(self) -> int:
        """How many targets are valid."""
        return self.targets.numel() if self.lengths is None else int(self.lengths.sum())

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device; lengths stay on the CPU, where packing needs them."""
        resets = None if self.resets is None else self.resets.to(device)
        return Batch(self.inputs.to(device), self.targets.to(device), self.lengths, resets)


Made = TypeVar("Made")


class MadeBatches(Sequence[Made]):
    """Batches that are made when asked for, by number."""

    @overload
    def __getitem__(self, index: int) -> Made: ...
    @overload
    def __getitem__(self, index: slice) -> list[Made]: ...
    def __getitem__(self, index: int | slice) -> Made | list[Made]:
        if isinstance(index, slice):
            return [self._make(number) for number in range(*index.indices(len(self)))]
        return self._make(range(len(self))[index])

    def _make(self, number: int) -> Made:
        raise NotImplementedError


class ContiguousStreams(MadeBatches[Batch]):
    """A text cut into rows of equal length that are read side by side, chunk after chunk (truncated BPTT).

    Row b of B is tokens b*n up to (b+1)*n, n = tokens // B; the at most B-1 tokens after the last row are left out.
    Chunk k is steps k*T up to (k+1)*T of every row; the last chunk may be shorter. The state after a chunk goes on into
    the next. A row's first input is the token before it, the text's first input is ``<eos>``.

    Args:
        stream: The text.
        batch_size: Rows in all, B.
        chunk_length: Steps in a chunk, T.
        rank: Which share of the rows to give; the shares of all ranks side by side are the batch of one process.
        ranks: How many shares there are.
        resets: Whether to say where documents begin.

    Raises:
        UserError: the text is shorter than one batch (B*T tokens), or there are fewer rows than ranks.
    """

    def __init__(
        self,
        stream: TokenStream,
        batch_size: int,
        chunk_length: int,
        *,
        rank: int = 0,
        ranks: int = 1,
        resets: bool = False,
    ) -> None:
        if len(stream) < batch_size * chunk_length:
            raise UserError(
                f"the text has {len(stream):,} tokens, fewer than one batch of {batch_size} rows x {chunk_length} steps"
                f" = {batch_size * chunk_length:,}; give a longer text, or a smaller --batch-size or --chunk-length"
            )
        if batch_size < ranks:
            raise UserError(f"{batch_size} rows cannot be shared by {ranks} ranks; give --batch-size {ranks} or more")
        self._stream = stream
        self._chunk_length = chunk_length
        self._row_length = len(stream) // batch_size
        own = range(batch_size * rank // ranks, batch_size * (rank + 1) // ranks)
        self._row_starts = [row * self._row_length for row in own]
        self._with_resets = resets

    def __len__(self) -> int:
        return math.ceil(self._row_length / self._chunk_length)

    def _make(self, number: int) -> Batch:
        first = number * self._chunk_length
        steps = min(self._chunk_length, self._row_length - first)
        window = np.empty((steps + 1, len(self._row_starts)), np.int64)
        resets = np.zeros((steps, len(self._row_starts)), np.bool_) if self._with_resets else None
        for column, row_start in enumerate(self._row_starts):
            begin = row_start + first
            window[0, column] = self._stream.tokens[begin - 1] if begin else LINE_END
            window[1:, column] = self._stream.tokens[begin : begin + steps]
            if resets is not None:
                low, high = np.searchsorted(self._stream.document_starts, [begin, begin + steps])
                resets[self._stream.document_starts[low:high] - begin, column] = True
        return Batch(
            inputs=torch.from_numpy(window[:-1]),
            targets=torch.from_numpy(window[1:].copy()),
            resets=None if resets is None else torch.from_numpy(resets),
        )


class LineBatches(MadeBatches[Batch]):
    """Lines read each by itself, several of about the same length side by side.

    Lines are shuffled, sorted by length (so equal lengths stay shuffled), cut into batches, and the batches shuffled:
    all by `seed` and `epoch` alone. A batch has its longest line first.

    Args:
        stream: The text.
        batch_size: Lines in a batch. Give this or `tokens_per_batch`.
        tokens_per_batch: The most tokens in a batch, padding among them; a line that is longer has a batch of its own.
        seed: Of the run's random choices.
        epoch: How many passes came before.
        rank: Which share of each batch to give; every rank has as many batches. A rank that has no line of a batch gets
            one column of length 0.
        ranks: How many shares there are.
    """

    def __init__(
        self,
        stream: TokenStream,
        batch_size: int | None = None,
        *,
        tokens_per_batch: int | None = None,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if (batch_size is None) == (tokens_per_batch is None):
            raise ValueError("give either batch_size or tokens_per_batch")
        self._stream = stream
        self._rank, self._ranks = rank, ranks
        self._ends = np.append(stream.line_starts[1:], len(stream))
        lengths = self._ends - stream.line_starts
        random = np.random.default_rng((seed, epoch))
        order = random.permutation(len(lengths))
        self._order = order[np.argsort(lengths[order], kind="stable")]
        firsts = cuts(lengths[self._order], tokens_per_batch, batch_size)
        self._bounds = np.stack([firsts, np.append(firsts[1:], len(order))], axis=1)
        random.shuffle(self._bounds)

    def __len__(self) -> int:
        return len(self._bounds)

    def _make(self, number: int) -> Batch:
        begin, end = self._bounds[number]
        lines = self._order[begin:end][::-1][self._rank :: self._ranks]
        starts, ends = self._stream.line_starts[lines], self._ends[lines]
        if len(lines) == 0:
            starts = ends = np.zeros(1, np.int64)
        lengths = ends - starts
        window = np.full((max(int(lengths[0]), 1) + 1, len(lengths)), LINE_END, np.int64)
        for column, (start, stop) in enumerate(zip(starts, ends, strict=True)):
            window[1 : stop - start + 1, column] = self._stream.tokens[start:stop]
        return Batch(
            inputs=torch.from_numpy(window[:-1]),
            targets=torch.from_numpy(window[1:].copy()),
            lengths=torch.from_numpy(lengths),
        )


def cuts(lengths: Offsets, most_tokens: int | None, most_rows: int | None) -> Offsets:
    """Return where batches begin in sequences sorted by length, each as large as its steps and rows allow.

    Args:
        lengths: rising, 1 or more.
        most_tokens: steps in a batch, padding among them; a longer sequence has a batch of its own. None: any number.
        most_rows: sequences in a batch. None: any number.
    """
    firsts = []
    begin = 0
    while begin < len(lengths):
        firsts.append(begin)
        rows = len(lengths) - begin if most_rows is None else most_rows
        if most_tokens is not None:
            following = lengths[begin : begin + max(1, min(rows, most_tokens // int(lengths[begin])))]
            padded = following * np.arange(1, len(following) + 1)
            rows = max(1, int(np.searchsorted(padded, most_tokens, side="right")))
        begin += rows
    return np.asarray(firsts, OFFSETS)
