"""Chunks as tags: IOB1, BIO (also called IOB2) and BIOES, told apart, converted, repaired.

A tag is ``O``, outside any chunk, or a letter, a hyphen and the chunk's type. In BIO a chunk begins with B and goes on
with I. In IOB1 it is all I, but begins with B where it follows another of its type without a gap (Ramshaw and Marcus
1995). In BIOES its last word has E, and its only word S. BILOU, which has L and U for E and S, is read as well.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from recurra.text.columns import Sentence

SCHEMES = ("iob1", "bio", "bioes")
REPAIRED = "tags repaired that were not valid in their scheme"

_TAG = re.compile(r"([BIESLU])-(.+)\Z", re.DOTALL)
_BILOU = {"L": "E", "U": "S"}
_OUTSIDE = ("O", "")


class Span(NamedTuple):
    """A chunk: its type, its first word and the one after its last."""

    type: str
    start: int
    stop: int


def detect_scheme(sequences: Iterable[Sequence[str]]) -> str | None:
    """Return the scheme of tag sequences, one of `SCHEMES`; None where they are no chunks, such as parts of speech.

    They are chunks if every tag is ``O`` or a letter, a hyphen and a type. They are BIOES if there is an E or S; IOB1
    if some chunk begins with I, and B is nowhere but right after a chunk of its type; else BIO.
    """
    seen_end = seen_initial_i = seen_free_b = False
    for tags in sequences:
        letter, kind = _OUTSIDE
        for tag in tags:
            before, before_kind = letter, kind
            parts = _parts(tag)
            if parts is None:
                return None
            letter, kind = parts
            follows = before != "O" and before_kind == kind
            seen_end |= letter in "ES"
            seen_initial_i |= letter == "I" and not follows
            seen_free_b |= letter == "B" and not follows
    if seen_end:
        return "bioes"
    return "iob1" if seen_initial_i and not seen_free_b else "bio"


def spans(tags: Sequence[str]) -> list[Span]:
    """Return the chunks of tags in any of the schemes, in order; what is not valid is read as conlleval reads it.

    conlleval (Tjong Kim Sang and Buchholz 2000) begins a chunk at B and S, and at I and E after O, after E or S, and
    after another type; it ends one after E and S, and before O, B, S and another type.

    Raises:
        ValueError: a tag is no chunk tag.
    """
    found: list[Span] = []
    start = 0
    letter, kind = _OUTSIDE
    for position, tag in enumerate([*tags, "O"]):
        before, before_kind = letter, kind
        parts = _parts(tag)
        if parts is None:
            raise ValueError(f"expected O or a tag such as B-PER, got {tag!r}")
        letter, kind = parts
        ends = before in "ES" or letter in "OBS" or kind != before_kind
        if before != "O" and ends:
            found.append(Span(before_kind, start, position))
        if letter != "O" and (before == "O" or ends):
            start = position
    return found


def tags_of(chunks: Iterable[Span], length: int, scheme: str) -> tuple[str, ...]:
    """Return the `length` tags of a sentence with these chunks, in order and apart, in one of `SCHEMES`."""
    assert scheme in SCHEMES, scheme
    tags = ["O"] * length
    before = Span("", -1, -1)
    for chunk in chunks:
        letters = ["I"] * (chunk.stop - chunk.start)
        if scheme != "iob1" or (before.stop == chunk.start and before.type == chunk.type):
            letters[0] = "B"
        if scheme == "bioes":
            letters[-1] = "S" if len(letters) == 1 else "E"
        tags[chunk.start : chunk.stop] = [f"{letter}-{chunk.type}" for letter in letters]
        before = chunk
    return tuple(tags)


def convert(tags: Sequence[str], scheme: str) -> tuple[str, ...]:
    """Return the chunks of `tags`, in any of the schemes, as tags in `scheme`: always valid ones."""
    return tags_of(spans(tags), len(tags), scheme)


def in_scheme(
    sentences: Iterable[Sentence], scheme: str, *, detected: str, tally: Counter[str] | None = None
) -> Iterator[Sentence]:
    """Convert the tags of sentences from the scheme that was detected; `tally` counts the tags that had to be repaired.

    Raises:
        ValueError: a sentence without tags, or with one that is no chunk tag.
    """
    for sentence in sentences:
        if sentence.tags is None:
            raise ValueError("a sentence without tags has no scheme")
        chunks, length = spans(sentence.tags), len(sentence.tags)
        if tally is not None:
            valid = tags_of(chunks, length, detected)
            repaired = sum(_parts(one) != _parts(other) for one, other in zip(sentence.tags, valid, strict=True))
            if repaired:
                tally[REPAIRED] += repaired
        yield dataclasses.replace(sentence, tags=tags_of(chunks, length, scheme))


def _parts(tag: str) -> tuple[str, str] | None:
    """Return a tag's letter and type; None where it is no chunk tag."""
    if tag == "O":
        return _OUTSIDE
    match = _TAG.match(tag)
    return (_BILOU.get(match[1], match[1]), match[2]) if match else None
