"""How well a language model predicts a text: surprisal of every token, perplexity, bits.

Every token of the text is predicted and counted, line ends included. What the model remembers while it reads is the
reader's choice, and the result names it:

- ``none``: the state is never reset; the text is one row, from its start to its end.
- ``documents``: every document is read by itself, from the zero state.
- ``lines``: every line is read by itself, as n-gram models traditionally do.

The numbers depend on the model, the text and that choice, never on how the work is cut into batches, chunks and ranks.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from . import distributed
from .config import UserError
from .models.protocol import LanguageModelProtocol, device_of, evaluating
from .text.vocabulary import LINE_END, UNKNOWN

Reset: TypeAlias = Literal["none", "documents", "lines"]
Offsets: TypeAlias = Sequence[int] | NDArray[np.integer[Any]]
Tokens: TypeAlias = NDArray[np.integer[Any]]

BATCH_SIZE = 32
CHUNK_LENGTH = 256
SORTED_BATCHES = 100  # rows are sorted by length within so many batches: little padding, yet memory has a bound


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How well a model predicted a text.

    Attributes:
        known_nats: Sum of -log p over the tokens that the vocabulary has, in nats.
        unknown_nats: The same sum over unknown tokens.
        tokens: Tokens predicted, line ends included.
        unknown_tokens: How many of them are outside the vocabulary and were predicted as ``<unk>``.
        words: Words between white space, and one for each line end.
        characters: Characters, line ends included.
        reset: Where the model began anew: ``none``, ``documents`` or ``lines``.
        seconds: Time taken.
    """

    known_nats: float
    unknown_nats: float
    tokens: int
    unknown_tokens: int
    words: int
    characters: int
    reset: Reset
    seconds: float

    @property
    def nats(self) -> float:
        """Sum of -log p over all tokens, in nats."""
        return self.known_nats + self.unknown_nats

    @property
    def nats_per_token(self) -> float:
        """Cross entropy, in nats."""
        return self.nats / self.tokens

    @property
    def bits_per_token(self) -> float:
        """Cross entropy, in bits."""
        return self.nats_per_token / math.log(2)

    @property
    def bits_per_character(self) -> float:
        """Bits for the whole text over its characters: comparable between any two tokenizers."""
        return self.nats / math.log(2) / self.characters

    @property
    def perplexity(self) -> float:
        """exp(nats per token); infinite where a token had probability 0."""
        return _exp(self.nats_per_token)

    @property
    def perplexity_per_word(self) -> float:
        """exp(nats per word); the perplexity itself where tokens are the words between white space."""
        return _exp(self.nats / self.words)

    @property
    def perplexity_without_unknown(self) -> float:
        """Perplexity with unknown tokens read but left out of the average; nan where no token is known."""
        known = self.tokens - self.unknown_tokens
        return _exp(self.known_nats / known) if known else math.nan

    def to_mapping(self) -> dict[str, str | int | float | None]:
        """Return every number by its name, as JSON holds them: None for one that is not finite."""
        numbers: dict[str, str | int | float] = {
            "perplexity": self.perplexity,
            "nats_per_token": self.nats_per_token,
            "bits_per_token": self.bits_per_token,
            "bits_per_character": self.bits_per_character,
            "perplexity_per_word": self.perplexity_per_word,
            "perplexity_without_unknown": self.perplexity_without_unknown,
            "tokens": self.tokens,
            "unknown_tokens": self.unknown_tokens,
            "words": self.words,
            "characters": self.characters,
            "reset": self.reset,
            "seconds": self.seconds,
        }
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in numbers.items()
        }


def evaluate(
    lm: LanguageModelProtocol,
    tokens: Tokens,
    *,
    words: int,
    characters: int,
    reset: Reset = "none",
    document_starts: Offsets | None = None,
    line_starts: Offsets | None = None,
    unknown: int = UNKNOWN,
    batch_size: int = BATCH_SIZE,
    chunk_length: int = CHUNK_LENGTH,
    per_token: NDArray[np.float64] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure how well a model predicts a text.

    With several ranks, every rank calls this with the same text, does its share and gets the result of all; with reset
    ``none`` there is only one row to read, and the first rank reads it. Memory does not grow with the length of the
    text, which may be memory-mapped.

    Args:
        lm: The model.
        tokens: The text's ids, any integer type, [tokens].
        words: Words of the text between white space, and one for each line end.
        characters: Characters of the text, line ends included.
        reset: Where the model begins anew; see the module.
        document_starts: Offset of each document's first token, ascending from 0; needed for ``documents``.
        line_starts: Offset of each line's first token, ascending from 0; needed for ``lines``.
        unknown: The id of ``<unk>``.
        batch_size: Rows read side by side; no number depends on it.
        chunk_length: Time steps computed at once; no number depends on it.
        per_token: Filled with the surprisal of each token that this rank reads, in nats, [tokens].
        progress: Called with tokens read by this rank so far, and tokens in all.

    Raises:
        UserError: no tokens, an unknown `reset`, or offsets that it needs were not given.
    """
    begun = time.perf_counter()
    starts = row_starts(reset, document_starts, line_starts)
    if len(tokens) == 0:
        raise UserError("there is nothing to evaluate: the text has no tokens; give one with at least one character")
    known_nats = unknown_nats = 0.0
    read = unknown_tokens = 0
    blocks = surprisal_blocks(
        lm,
        tokens,
        starts,
        batch_size=batch_size,
        chunk_length=chunk_length,
        rank=distributed.rank(),
        ranks=distributed.world_size(),
    )
    for positions, block in blocks:
        is_unknown = tokens[positions] == unknown
        known_nats += float(block[~is_unknown].sum())
        unknown_nats += float(block[is_unknown].sum())
        unknown_tokens += int(np.count_nonzero(is_unknown))
        if per_token is not None:
            per_token[positions] = block
        read += len(positions)
        if progress is not None:
            progress(read, len(tokens))
    sums = torch.tensor([known_nats, unknown_nats, unknown_tokens], dtype=torch.float64)
    known_nats, unknown_nats, unknown_count = distributed.sum_over_ranks(sums).tolist()
    return Evaluation(
        known_nats=known_nats,
        unknown_nats=unknown_nats,
        tokens=len(tokens),
        unknown_tokens=int(unknown_count),
        words=words,
        characters=characters,
        reset=reset,
        seconds=time.perf_counter() - begun,
    )


def surprisals(
    lm: LanguageModelProtocol,
    tokens: Tokens,
    *,
    reset: Reset = "none",
    document_starts: Offsets | None = None,
    line_starts: Offsets | None = None,
    batch_size: int = BATCH_SIZE,
    chunk_length: int = CHUNK_LENGTH,
) -> NDArray[np.float64]:
    """Return the surprisal -log p of every token of a text, in nats and in the order of the text, [tokens].

    For the arguments see :func:`evaluate`.
    """
    starts = row_starts(reset, document_starts, line_starts)
    nats = np.empty(len(tokens))
    for positions, block in surprisal_blocks(lm, tokens, starts, batch_size=batch_size, chunk_length=chunk_length):
        nats[positions] = block
    return nats


@torch.no_grad()
def surprisal_blocks(
    lm: LanguageModelProtocol,
    tokens: Tokens,
    starts: Offsets,
    *,
    batch_size: int = BATCH_SIZE,
    chunk_length: int = CHUNK_LENGTH,
    rank: int = 0,
    ranks: int = 1,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Score a text piece by piece, in memory that does not grow with its length.

    The text is cut into rows at `starts`. Each row is read by itself, its first token predicted from the line end;
    rows of like length are read side by side. A module is in evaluation mode until the last piece has been taken.

    Args:
        lm: The model.
        tokens: The text's ids, any integer type, [tokens].
        starts: Offset of each row's first token, ascending from 0.
        batch_size: Rows read side by side.
        chunk_length: Time steps computed at once.
        rank: Which share of the rows to read; the shares of all ranks are the whole text.
        ranks: How many shares there are.

    Yields:
        Offsets of some tokens, [n], and their surprisal in nats, [n]; every token comes once, in no order.
    """
    begins = np.asarray(starts, dtype=np.int64)
    ends = np.append(begins[1:], np.int64(len(tokens)))
    if len(begins) == 0 or begins[0] != 0 or (ends < begins).any():
        raise ValueError("expected offsets that ascend from 0 and stay within the text")
    with evaluating(lm):
        for rows in itertools.islice(_batches(ends - begins, batch_size), rank, None, ranks):
            yield from _score_rows(lm, tokens, begins[rows], ends[rows], chunk_length)


def _batches(lengths: NDArray[np.int64], batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Group rows by like length, the longest first in every group."""
    for window in range(0, len(lengths), SORTED_BATCHES * batch_size):
        order = window + np.argsort(-lengths[window : window + SORTED_BATCHES * batch_size], kind="stable")
        for first in range(0, len(order), batch_size):
            yield order[first : first + batch_size]


def _score_rows(
    lm: LanguageModelProtocol,
    tokens: Tokens,
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    chunk_length: int,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Score rows, longest first, side by side and chunk by chunk; a row leaves the batch when it has ended."""
    device = device_of(lm)
    state = lm.start(len(starts))
    for done in range(0, int(ends[0] - starts[0]), chunk_length):
        going = int(np.count_nonzero(ends - starts > done))
        if going < len(starts):
            starts, ends = starts[:going], ends[:going]
            state = lm.select(state, torch.arange(going, device=device))
        width = min(chunk_length, int(ends[0] - starts[0]) - done)
        positions = starts + done + np.arange(width)[:, None]  # [time, rows]
        inside = positions < ends
        clipped = np.minimum(positions, ends - 1)  # a row that ends within the chunk is padded with its last token
        targets = tokens[clipped]
        inputs = np.where(positions == starts, LINE_END, tokens[clipped - 1])
        log_probs, state = lm.score(_tensor(inputs, device), _tensor(targets, device), state)
        yield positions[inside], 0.0 - log_probs.cpu().double().numpy()[inside]  # from 0.0, so that none is -0.0


def write_surprisals_tsv(
    file: IO[str],
    tokens: Iterable[int],
    nats: Iterable[float],
    *,
    token: Callable[[int], str],
    document_starts: Offsets = (0,),
    unknown: int = UNKNOWN,
) -> None:
    r"""Write one line per token: position, document, line, token, nats, bits, unknown; tab-separated, with a header.

    Positions, documents, and lines within their document are counted from 1; `unknown` is 0 or 1. Nothing is quoted:
    within a token, tab, line feed, carriage return and backslash are written ``\t``, ``\n``, ``\r`` and ``\\``.

    Args:
        file: Where to write.
        tokens: The text's ids, in order.
        nats: The surprisal of each of them, in nats.
        token: Returns an id's token as text.
        document_starts: Offset of each document's first token, ascending from 0.
        unknown: The id of ``<unk>``.
    """
    escapes = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})
    file.write("position\tdocument\tline\ttoken\tnats\tbits\tunknown\n")
    coming = iter(document_starts)
    next_start = next(coming, None)
    document, line = 0, 1
    for position, (id_, surprisal) in enumerate(zip(tokens, nats, strict=True)):
        while position == next_start:  # more than once where documents are empty
            document, line = document + 1, 1
            next_start = next(coming, None)
        text = token(int(id_)).translate(escapes)
        bits = surprisal / math.log(2)
        row = f"{position + 1}\t{document}\t{line}\t{text}\t{surprisal:.9g}\t{bits:.9g}\t{int(id_ == unknown)}\n"
        file.write(row)
        line += id_ == LINE_END


def row_starts(reset: str, document_starts: Offsets | None, line_starts: Offsets | None) -> Offsets:
    """Return where rows begin under a way of resetting."""
    if reset not in get_args(Reset):
        raise UserError(f"reset: expected one of {', '.join(get_args(Reset))}, got {reset!r}")
    starts = {"none": (0,), "documents": document_starts, "lines": line_starts}[reset]
    if starts is None:
        raise UserError(f"reset {reset!r} needs to know where {reset} begin: give {reset[:-1]}_starts")
    return starts


def _tensor(ids: NDArray[Any], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(ids.astype(np.int64)).to(device)


def _exp(nats: float) -> float:
    """Return e to the power of `nats`: infinity where that is too large for a float."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf
