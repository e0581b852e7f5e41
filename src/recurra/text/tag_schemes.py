"""Chunks as tags: IOB1, BIO (also called IOB2), BIOES and BILOU, told apart, converted, repaired.

A tag is ``O``, outside any chunk, or a letter, a hyphen and the chunk's type; where there is only one type, it may be
the letter alone. In BIO a chunk begins with B and goes on with I. In IOB1 it is all I, but begins with B where it
follows another of its type without a gap (Ramshaw and Marcus 1995). In BIOES its last word has E, and its only word S.
BILOU is BIOES with L and U for E and S. What is no such tag is read as O.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

__all__ = ["SCHEMES", "Span", "convert", "detect_scheme", "parse_tag", "spans", "tags_of"]

SCHEMES = ("iob1", "bio", "bioes", "bilou")
# Of tags other than O, one in so many may be no chunk tag, by mistake, and the rest are taken for chunks all the same.
ONE_ODD_IN = 20

_TAG = re.compile(r"([BIESLU])(?:-(.+))?\Z", re.DOTALL)
_BILOU = {"L": "E", "U": "S"}
_OUTSIDE = ("O", "")


class Span(NamedTuple):
    """A chunk: its type, its first word and the one after its last."""

    type: str
    start: int
    stop: int


def parse_tag(tag: str) -> tuple[str, str] | None:
    """Return a tag's letter, out of BIOES, and its type, which may be empty; None where it is no chunk tag."""
    if tag == "O":
        return _OUTSIDE
    match = _TAG.match(tag)
    return (_BILOU.get(match[1], match[1]), match[2] or "") if match else None


def detect_scheme(sequences: Iterable[Sequence[str]]) -> str | None:
    """Return the scheme of tag sequences, one of `SCHEMES`; None where they are no chunks, such as parts of speech.

    They are chunks if nearly every tag is a chunk tag; the others are mistakes, and count as O. They are BIOES if
    there is an E or S, BILOU if there is an L or U instead; IOB1 if some chunk begins with I, and B is nowhere but
    right after a chunk of its type; else BIO.
    """
    seen: Counter[str] = Counter()  # first letters; "" for what is no chunk tag
    seen_initial_i = seen_free_b = False
    for tags in sequences:
        letter, kind = _OUTSIDE
        for tag in tags:
            before, before_kind = letter, kind
            parts = parse_tag(tag)
            seen[tag[0] if parts else ""] += 1
            letter, kind = parts or _OUTSIDE
            follows = before != "O" and before_kind == kind
            seen_initial_i |= letter == "I" and not follows
            seen_free_b |= letter == "B" and not follows
    if seen[""] * ONE_ODD_IN > seen.total() - seen["O"]:
        return None
    if seen["E"] or seen["S"]:
        return "bioes"
    if seen["L"] or seen["U"]:
        return "bilou"
    return "iob1" if seen_initial_i and not seen_free_b else "bio"


def spans(tags: Sequence[str]) -> list[Span]:
    """Return the chunks of tags in any of the schemes, in order; what is not valid is read as conlleval reads it.

    conlleval (Tjong Kim Sang and Buchholz 2000) begins a chunk at B and S, and at I and E after O, after E or S, and
    after another type; it ends one after E and S, and before O, B, S and another type.
    """
    found: list[Span] = []
    start = 0
    letter, kind = _OUTSIDE
    for position, tag in enumerate([*tags, "O"]):
        before, before_kind = letter, kind
        letter, kind = parse_tag(tag) or _OUTSIDE
        ends = before in "ES" or letter in "OBS" or kind != before_kind
        if before != "O" and ends:
            found.append(Span(before_kind, start, position))
        if letter != "O" and (before == "O" or ends):
            start = position
    return found


def tags_of(chunks: Iterable[Span], length: int, scheme: str) -> tuple[str, ...]:
    """Return the `length` tags of a sentence with these chunks, in order and apart, in one of `SCHEMES`."""
    assert scheme in SCHEMES, scheme
    endings = {"bioes": ("E", "S"), "bilou": ("L", "U")}.get(scheme)
    tags = ["O"] * length
    before = Span("", -1, -1)
    for chunk in chunks:
        letters = ["I"] * (chunk.stop - chunk.start)
        if scheme != "iob1" or (before.stop == chunk.start and before.type == chunk.type):
            letters[0] = "B"
        if endings:
            letters[-1] = endings[len(letters) == 1]
        tags[chunk.start : chunk.stop] = [f"{letter}-{chunk.type}" if chunk.type else letter for letter in letters]
        before = chunk
    return tuple(tags)


def convert(tags: Sequence[str], scheme: str) -> tuple[str, ...]:
    """Return the chunks of `tags`, in any of the schemes, as tags in `scheme`: always valid ones."""
    return tags_of(spans(tags), len(tags), scheme)
