"""Pairs of texts as numbers: the vocabularies of a translator, and how long its targets are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from recurra.config import UserError, setting
from recurra.models.task import Codec
from recurra.text.documents import Document, Text
from recurra.text.examples import Encoded
from recurra.text.readers import Pair
from recurra.text.tokenizer import (
    JOINER,
    Tokenizer,
    TokenizerSettings,
    build_tokenizer,
    join_words,
    split_words,
    tokenizer_from_mapping,
    word_kind,
)
from recurra.text.vocabulary import LINE_END, UNKNOWN

__all__ = ["TranslationCodec", "TranslationSettings", "one_line"]

UNITS = ("words", "byte-pairs", "characters")
SAME_LETTERS = 0.9  # share of the targets' letters that sources have too, from which one vocabulary does for both
MEASURED = 20_000  # pairs whose lengths are looked at
USUAL = 0.99  # quantile of lengths
SPARE = 10  # tokens that a target may be longer than it usually is


@dataclass(frozen=True, kw_only=True)
class TranslationSettings:
    """How pairs of texts become numbers; ``None`` is settled from the data."""

    units: str = setting("byte-pairs", "what a token is", choices=UNITS)
    vocabulary_size: int | None = setting(None, "most tokens in a vocabulary", minimum=3)
    min_count: int | None = setting(None, "least count of a token in the training text", minimum=1)
    lowercase: bool = setting(False, "make all letters small, on both sides")
    joint: bool | None = setting(
        None,
        "one vocabulary for source and target; auto is yes where tokens are no words and both are written in the same"
        " letters",
    )
    copy_unknown: bool = setting(True, "write the source word looked up most in the place of an unknown word")
    longest_source: int = setting(1000, "tokens that are read of a source", minimum=1)
    longest_target: int = setting(500, "tokens of a target that are learnt from, or written", minimum=1)


class TranslationCodec(Codec[Pair]):
    """A tokenizer for each side, or one for both. A source and a target both end with ``<eos>``.

    White space is one space between words, whatever it was. Of what is longer than the longest that is read, the rest
    is left out, and then a target has no end that could be learnt.

    Arrays: ``source`` and, with targets, ``target``: ids with their ``<eos>``. Without targets, where unknown words are
    to be copied, ``text``: the code points of the source.

    Args:
        source: tokenizer of sources.
        target: tokenizer of targets; the same object where the vocabulary is joint.
        longest_source: tokens read of a source.
        longest_target: tokens read of a target, and written of one.
        usual_target: tokens that hardly any target of training has more of.
        usual_ratio: tokens of a target for one of its source that hardly any of training has more of, among the longer
            half of sources: how long a short target is, has little to do with how long its source is.
        copies: whether a prediction may copy words of the source.
    """

    def __init__(
        self,
        source: Tokenizer,
        target: Tokenizer,
        *,
        longest_source: int,
        longest_target: int,
        usual_target: float,
        usual_ratio: float,
        copies: bool,
    ) -> None:
        self.source, self.target = source, target
        self.longest_source, self.longest_target = longest_source, longest_target
        self.usual_target, self.usual_ratio = usual_target, usual_ratio
        self.copies = copies

    @property
    def joint(self) -> bool:
        """Whether both sides have one vocabulary."""
        return self.source is self.target

    @classmethod
    def build(cls, examples: Sequence[Pair], settings: Any) -> Self:
        """Count tokens, choose the vocabularies, and measure how long targets are.

        Args:
            examples: the training pairs.
            settings: :class:`recurra.models.translator.TranslatorSettings`.

        Raises:
            UserError: there is no pair, or one without a target, or no word on one side.
        """
        if not examples:
            raise UserError("there is no pair of texts to learn from")
        sources = [one_line(pair.source) for pair in examples]
        targets = [one_line(_target(pair)) for pair in examples]
        for name, lines in (("source", sources), ("target", targets)):
            if not any(lines):
                raise UserError(f"every {name} text is empty: there is nothing to learn")
        joint = settings.joint
        if joint is None:
            joint = settings.tie == "all" or (settings.units != "words" and _same_letters(sources, targets))
        source = _tokenizer([*sources, *targets] if joint else sources, settings)
        target = source if joint else _tokenizer(targets, settings)
        step = -(-len(examples) // MEASURED)
        sizes = np.array([len(source.encode(line)) + 1 for line in sources[::step]])
        wanted = np.array([len(target.encode(line)) + 1 for line in targets[::step]])
        longer = sizes >= np.median(sizes)
        return cls(
            source,
            target,
            longest_source=settings.longest_source,
            longest_target=settings.longest_target,
            usual_target=float(np.quantile(wanted, USUAL)),
            usual_ratio=float(np.quantile(wanted[longer] / sizes[longer], USUAL)),
            copies=settings.copy_unknown and settings.units == "words" and settings.attention != "none",
        )

    def encode(self, example: Pair, *, targets: bool = True) -> Encoded:
        """Turn a pair into ids.

        Raises:
            UserError: a target is asked for, and there is none.
        """
        text = one_line(example.source)
        source = _ids(self.source, text)[: self.longest_source]
        arrays = {"source": np.append(source, LINE_END)}
        if targets:
            target = _ids(self.target, one_line(_target(example)))
            whole = len(target) <= self.longest_target
            arrays["target"] = np.append(target, LINE_END) if whole else target[: self.longest_target]
        length, count = max(map(len, arrays.values())), len(arrays.get("target", ()))
        if self.copies and not targets:
            arrays["text"] = np.array([ord(character) for character in text], np.int64)
        return Encoded(arrays, length, count)

    def limit(self, source: int) -> int:
        """The most tokens that are written of a target, end included, from those of its source, end included."""
        usual = max(self.usual_target, self.usual_ratio * source)
        return min(self.longest_target + 1, math.ceil(usual) + SPARE)

    def source_words(self, text: str) -> list[str]:
        """The words of a source, in the order of its ids, as a target would have them; for vocabularies of words."""
        chunks = text.split()
        if self.source.kind == "whitespace":
            return chunks
        words = [word for chunk in chunks for word in split_words(chunk)]
        if self.target.kind == self.source.kind:
            return words
        return [word.strip(JOINER) or word for word in words]  # targets do not know what joiners are

    def decode(self, ids: Iterable[int], copied: Mapping[int, str] | None = None) -> str:
        """The text of a target's ids.

        Args:
            ids: without the end.
            copied: what to write in place of unknown words, by their position.
        """
        if not copied:
            return self.target.decode(ids)
        tokens = [copied.get(place, self.target.token(id)) for place, id in enumerate(ids)]
        return " ".join(tokens) if self.target.kind == "whitespace" else join_words(tokens)

    def summary(self) -> str:
        """How large the vocabularies are."""
        kind = self.target.kind
        if self.joint:
            return f"vocabulary: {len(self.target.vocabulary):,} {kind} for both sides"
        return f"vocabularies: {len(self.source.vocabulary):,} and {len(self.target.vocabulary):,} {kind}"

    def to_mapping(self) -> dict[str, Any]:
        """What JSON holds."""
        return {
            "source": None if self.joint else self.source.to_mapping(),
            "target": self.target.to_mapping(),
            "longest_source": self.longest_source,
            "longest_target": self.longest_target,
            "usual_target": self.usual_target,
            "usual_ratio": self.usual_ratio,
            "copies": self.copies,
        }

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Turn what :meth:`to_mapping` returned back."""
        target = tokenizer_from_mapping(mapping["target"])
        names = ("longest_source", "longest_target", "usual_target", "usual_ratio", "copies")
        return cls(
            target if mapping["source"] is None else tokenizer_from_mapping(mapping["source"]),
            target,
            **{name: mapping[name] for name in names},
        )


def one_line(text: str) -> str:
    """The text with one space between words, whatever white space there was."""
    return " ".join(text.split())


def _target(pair: Pair) -> str:
    if pair.target is None:
        raise UserError(f"a pair has no target to learn from: {pair.source[:60]!r}")
    return pair.target


def _same_letters(sources: Sequence[str], targets: Sequence[str]) -> bool:
    """Whether most letters of targets are some that sources have, often enough to be no foreign word's."""
    ours, theirs = (Counter(_letters(lines)) for lines in (sources, targets))
    least = sum(ours.values()) / 10_000
    shared = sum(count for letter, count in theirs.items() if ours[letter] > least)
    return shared >= SAME_LETTERS * sum(theirs.values())


def _letters(lines: Sequence[str]) -> str:
    step = -(-len(lines) // MEASURED)
    return "".join(filter(str.isalpha, "".join(lines[::step]).lower()))


def _tokenizer(lines: Sequence[str], settings: TranslationSettings) -> Tokenizer:
    text = Text((Document("pairs", lambda: iter(lines)),))
    return build_tokenizer(
        text,
        TokenizerSettings(
            tokenizer=word_kind(text) if settings.units == "words" else settings.units,
            vocabulary_size=settings.vocabulary_size,
            min_count=settings.min_count,
            lowercase=settings.lowercase,
        ),
    )


def _ids(tokenizer: Tokenizer, line: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    ids = tokenizer.encode(line).astype(np.int64)
    ids[ids == LINE_END] = UNKNOWN  # a word that looks like the end is not the end
    return ids
