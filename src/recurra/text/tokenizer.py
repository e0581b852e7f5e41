"""Text to ids and back: characters, words, byte pairs.

A line's end is a token in every tokenizer: ``<eos>``, id 1. A newline encodes to it and it decodes to a newline.

Words and byte pairs share one idea. Lines are cut into chunks at lone spaces, which tokens need not say; each different
chunk is looked at once and remembered. So the cost of a careful splitter, or of byte-pair merges, falls on the few
hundred thousand different chunks of a text, not on its hundred millions of words.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import sys
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from recurra.config import UserError, setting
from recurra.text.documents import Text
from recurra.text.vocabulary import LINE_END, SPECIAL, UNKNOWN, TokenCounter, Vocabulary

if TYPE_CHECKING:
    import tokenizers

Ids: TypeAlias = NDArray[np.int32]

KINDS = ("characters", "words", "whitespace", "byte-pairs")
BLOCK = 1 << 16  # characters encoded at once
REMEMBERED_CHUNKS = 1_000_000  # about 250 MB
COUNTED_AT_ONCE = 100_000_000  # characters
LONGEST_REMEMBERED = 64  # characters
SMALL_TEXT = 2_000_000  # characters; a smaller text has too few words to learn them
LONE_SPACE = re.compile(r"(?<=[^ ]) (?=[^ ])")
JOINER = "￭"
AUTO_WORDS = 50_000
AUTO_BYTE_PAIRS = 8_000
LEARNT_FROM = 5_000_000  # bytes that byte pairs are learnt from; needs up to 100 bytes of memory for each
BYTE_PAIRS_LEAST = 256 + len(SPECIAL)


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """How text becomes tokens."""

    tokenizer: str | None = setting(
        None, "what a token is; words are split from punctuation, whitespace takes them as they stand", choices=KINDS
    )
    vocabulary_size: int | None = setting(None, "most tokens in the vocabulary, <unk> and <eos> included", minimum=3)
    min_count: int | None = setting(None, "least count of a token in the training text", minimum=1)
    lowercase: bool = setting(False, "make all letters small")


class Tokenizer(ABC):
    """Turns text into ids and ids into text.

    Attributes:
        kind: ``characters``, ``words``, ``whitespace`` or ``byte-pairs``.
        vocabulary: Its tokens.
        lowercase: Whether it makes all letters small.
    """

    unknown: ClassVar[int] = UNKNOWN
    line_end: ClassVar[int] = LINE_END
    kind: str
    _spaces_are_tokens: ClassVar[bool] = False

    def __init__(self, vocabulary: Vocabulary, lowercase: bool) -> None:
        self.vocabulary = vocabulary
        self.lowercase = lowercase

    def encode(self, text: str) -> Ids:
        """Return the ids of a text, [tokens]. Each newline is a line end; none is added after an unfinished line."""
        return self._encode(text.lower() if self.lowercase else text)

    def encode_lines(self, lines: Iterable[str]) -> Iterator[Ids]:
        """Yield the ids of lines, each with its line end, in arrays of many lines or of a part of a very long one."""
        for block in _blocks(lines, spaces_are_tokens=self._spaces_are_tokens):
            yield self.encode(block)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids that begin at the beginning of a line.

        A continuation by itself would lose the space before it: decode it together with what it continues.
        """
        return "\n".join(self._decode_line(line) for line in _cut_at_line_ends(ids))

    def token(self, id: int) -> str:
        """Return the token of an id, as the vocabulary has it."""
        return self.vocabulary.tokens[id]

    def piece(self, id: int) -> str:
        """Return what a reader of it should see of a token: of byte pairs the letters, with ▁ for a space."""
        return self.token(id)

    def id(self, token: str) -> int:
        """Return the id of a token: that of ``<unk>`` for one that is not in the vocabulary."""
        return self.vocabulary.id(token)

    def to_mapping(self) -> dict[str, Any]:
        """Return all that there is to it as JSON holds it; :func:`tokenizer_from_mapping` turns it back."""
        return {"kind": self.kind, "lowercase": self.lowercase, "vocabulary": self.vocabulary.to_mapping()}

    @abstractmethod
    def _encode(self, text: str) -> Ids: ...

    @abstractmethod
    def _decode_line(self, ids: list[int]) -> str: ...


class CharacterTokenizer(Tokenizer):
    """A token is a Unicode code point. Unknown ones decode to U+FFFD."""

    kind = "characters"
    _spaces_are_tokens = True

    def __init__(self, vocabulary: Vocabulary, lowercase: bool = False) -> None:
        super().__init__(vocabulary, lowercase)
        if long := [token for token in vocabulary.tokens[len(SPECIAL) :] if len(token) != 1]:
            raise UserError(f"vocabulary: expected single characters, got {long[0]!r}")
        codes = _code_points("".join(vocabulary.tokens[len(SPECIAL) :]))
        self._ids = np.full(sys.maxunicode + 1, UNKNOWN, dtype=np.int32)
        self._ids[codes] = np.arange(len(SPECIAL), len(vocabulary))
        self._ids[ord("\n")] = LINE_END
        self._characters = ["\ufffd", "\n", *vocabulary.tokens[len(SPECIAL) :]]

    def _encode(self, text: str) -> Ids:
        return self._ids[_code_points(text)]

    def _decode_line(self, ids: list[int]) -> str:
        return "".join(self._characters[i] for i in ids)


class WordTokenizer(Tokenizer):
    """A token is a word.

    Kind ``whitespace``: what stands between white space, as it stands; it decodes to words with one space between them.

    Kind ``words``: words with their inner apostrophes, numbers with their inner points and commas, and every other
    symbol by itself. Where no space stood beside a symbol it carries a joiner, as in OpenNMT: `(yes),` becomes
    `(￭ yes ￭) ￭,`. White space other than one space between two words is a token too. So decoding gives back the very
    line, as long as its words are known and it has no joiner of its own.

    In both, a word ``<unk>`` that stands in the text is an unknown word, and ``<eos>`` a line end: texts made for
    language models mark them so. The one decodes to itself, the other to a newline.
    """

    def __init__(self, kind: str, vocabulary: Vocabulary, lowercase: bool = False) -> None:
        super().__init__(vocabulary, lowercase)
        self.kind = kind
        self._ids_of_chunks = _Remembered(self._encode_chunk)

    def _encode(self, text: str) -> Ids:
        if self.kind == "whitespace":
            words = _whitespace_words(text)
            ids = map(self.vocabulary.ids.get, words, itertools.repeat(UNKNOWN))
            return np.fromiter(ids, np.int32, len(words))
        return _flat(map(self._ids_of_chunks.__getitem__, _chunks(text)))

    def _encode_chunk(self, chunk: str) -> tuple[int, ...]:
        return tuple(self.vocabulary.id(token) for token in split_words(chunk))

    def _decode_line(self, ids: list[int]) -> str:
        tokens = [self.vocabulary.tokens[i] for i in ids]
        return " ".join(tokens) if self.kind == "whitespace" else join_words(tokens)


class BytePairTokenizer(Tokenizer):
    """A token is a run of bytes of UTF-8 that is frequent inside words (Sennrich et al. 2016, Radford et al. 2019).

    A token may begin with a space, but not go past one: every line is read as if a space stood before it, so that a
    word is the same token at the beginning of a line as after another word. Any text is known, and decodes to itself.

    Args:
        vocabulary: Tokens as the `tokenizers` library writes them: a printable character for each byte, Ġ for a space.
        merges: Pairs of tokens in the order in which they are merged, each as two tokens with a space between.
        lowercase: Whether to make all letters small.
    """

    kind = "byte-pairs"

    def __init__(self, vocabulary: Vocabulary, merges: Sequence[str], lowercase: bool = False) -> None:
        super().__init__(vocabulary, lowercase)
        self._merges = list(merges)
        self._library = _byte_pairs(vocabulary.ids, self._merges)
        self._ids_of_chunks = _Remembered(self._encode_chunk)

    def to_mapping(self) -> dict[str, Any]:
        """Return all that there is to it, its merges too, as JSON holds it."""
        return {**super().to_mapping(), "merges": self._merges}

    def piece(self, id: int) -> str:
        """As in :class:`Tokenizer`; bytes that are no letter by themselves are �."""
        from tokenizers.decoders import ByteLevel

        if id < len(SPECIAL):
            return self.token(id)
        text: str = ByteLevel().decode([self.token(id)])
        return text.replace(" ", "▁")

    def _encode(self, text: str) -> Ids:
        return _flat(map(self._ids_of_chunks.__getitem__, _chunks(text)))

    def _encode_chunk(self, chunk: str) -> tuple[int, ...]:
        return (LINE_END,) if chunk == "\n" else tuple(self._library.encode(" " + chunk).ids)

    def _decode_line(self, ids: list[int]) -> str:
        text: str = self._library.decode(ids, skip_special_tokens=False)
        return text.removeprefix(" ")


def build_tokenizer(text: Text, settings: TokenizerSettings | None = None) -> Tokenizer:
    """Make a tokenizer for a text: count its tokens and choose the vocabulary, in memory that does not grow with it.

    What is left open in `settings` is chosen so:

    - tokenizer: ``whitespace`` for a text whose words are already cut apart (it has ``<unk>``, or its commas and full
      stops mostly stand by themselves), else ``characters`` for a small text and ``words`` for one of 2 million
      characters or more;
    - words: all that were seen twice, at most 50,000; just all of them where the text has its own ``<unk>``, and where
      none was seen twice;
    - byte pairs: 8,000 tokens, fewer where the text is smaller than about 800,000 bytes.

    Counts are exact up to 2 million different words (see :class:`TokenCounter`). Byte pairs of a text larger than 5 MB
    are learnt from so much of its words, each in proportion to its count.

    Raises:
        UserError: the text has no tokens but line ends, or a vocabulary of byte pairs is to be smaller than 258.
    """
    settings = settings or TokenizerSettings()
    kind = settings.tokenizer or _fitting_kind(text)
    tokenizer: Tokenizer
    if kind == "characters":
        tokenizer = CharacterTokenizer(_character_vocabulary(text, settings), settings.lowercase)
    elif kind == "byte-pairs":
        tokenizer = _train_byte_pairs(text, settings)
    else:
        tokenizer = WordTokenizer(kind, _word_vocabulary(kind, text, settings), settings.lowercase)
    if not any(tokenizer.vocabulary.counts[LINE_END + 1 :]) and not tokenizer.vocabulary.counts[UNKNOWN]:
        raise UserError("the text has nothing but empty lines; give one with words")
    return tokenizer


def tokenizer_from_mapping(mapping: Mapping[str, Any]) -> Tokenizer:
    """Turn what :meth:`Tokenizer.to_mapping` returned back into an equal tokenizer.

    Raises:
        UserError: an unknown kind, or a vocabulary that cannot be one.
        KeyError, TypeError: something is missing from the mapping, or not what it should be.
    """
    kind, lowercase = mapping["kind"], mapping["lowercase"]
    if kind not in KINDS:
        raise UserError(f"unknown tokenizer {kind!r}; expected one of {', '.join(KINDS)}")
    vocabulary = Vocabulary.from_mapping(mapping["vocabulary"])
    if kind == "characters":
        return CharacterTokenizer(vocabulary, lowercase)
    if kind == "byte-pairs":
        return BytePairTokenizer(vocabulary, mapping["merges"], lowercase)
    return WordTokenizer(kind, vocabulary, lowercase)


# ---- cutting text ---------------------------------------------------------------------------------------------------


def split_words(chunk: str) -> list[str]:
    """Split a chunk of a line into the tokens of ``words``; a chunk is cut from its neighbours by a lone space."""
    if chunk in SPECIAL:
        return [chunk]
    if chunk == "\n":
        return [SPECIAL[LINE_END]]
    matches = list(_word_pattern().finditer(chunk))
    tokens = []
    for i, match in enumerate(matches):
        token = match[0]
        if match.lastgroup == "symbol":
            # between two symbols one joiner is enough, that of the second
            before_word = i + 1 < len(matches) and matches[i + 1].lastgroup == "word"
            token = JOINER * (i > 0) + token + JOINER * before_word
        tokens.append(token)
    return tokens


def join_words(tokens: Iterable[str]) -> str:
    """Undo :func:`split_words`, for the tokens of one line."""
    pieces: list[str] = []
    joined = True
    for token in tokens:
        if not joined and not token.startswith(JOINER):
            pieces.append(" ")
        core = token.removeprefix(JOINER)
        joined = core.endswith(JOINER)
        pieces.append(core.removesuffix(JOINER))
    return "".join(pieces)


@functools.cache
def _word_pattern() -> re.Pattern[str]:
    r"""Words and numbers, or any other single character, or a run of white space.

    Python's ``\w`` leaves out the marks that many scripts write inside words (accents apart from their letters, vowel
    signs) and the joiners of Persian and Indic ones; they are made part of words here.
    """
    marks = [c for c in map(chr, range(0x300, 0x20000)) if unicodedata.category(c)[0] == "M"]
    letter = rf"[\w\u200c\u200d{''.join(marks)}]"
    number = rf"\d+(?:[.,]\d+)*(?!{letter})"
    return re.compile(rf"(?P<word>{number}|{letter}+(?:['’]{letter}+)*)|(?P<symbol>\s+|.)", re.DOTALL)


def _chunks(text: str) -> list[str]:
    """Cut a text at lone spaces, which are left out, and at newlines, which are chunks by themselves."""
    chunks: list[str] = []
    for line in text.split("\n"):
        words = line.strip(" ")
        if "  " in words or not words:
            chunks += LONE_SPACE.split(line) if line else ()
        else:  # the usual case, and several times as fast
            parts = words.split(" ")
            if len(words) < len(line):  # spaces at the edges are not lone
                before, _, after = line.partition(words)
                parts[0] = before + parts[0]
                parts[-1] += after
            chunks += parts
        chunks.append("\n")
    chunks.pop()
    return chunks


def _whitespace_words(text: str) -> list[str]:
    return text.replace("\n", f" {SPECIAL[LINE_END]} ").split()


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _blocks(lines: Iterable[str], *, spaces_are_tokens: bool) -> Iterator[str]:
    """Join lines, each with its newline, to texts of about `BLOCK` characters; cut longer lines at lone spaces."""
    gathered: list[str] = []
    size = 0
    for line in lines:
        if len(line) > BLOCK:
            if gathered:
                yield "\n".join(gathered) + "\n"
                gathered, size = [], 0
            *heads, line = _pieces(line, spaces_are_tokens)
            yield from heads
        gathered.append(line)
        size += len(line) + 1
        if size >= BLOCK:
            yield "\n".join(gathered) + "\n"
            gathered, size = [], 0
    if gathered:
        yield "\n".join(gathered) + "\n"


def _pieces(line: str, spaces_are_tokens: bool) -> Iterator[str]:
    """Cut a long line at lone spaces; where spaces are no tokens, that at the cut is left out."""
    begin = 0
    while len(line) - begin > BLOCK and (space := LONE_SPACE.search(line, begin + BLOCK)):
        yield line[begin : space.start()]
        begin = space.start() if spaces_are_tokens else space.end()
    yield line[begin:]


def _cut_at_line_ends(ids: Iterable[int]) -> Iterator[list[int]]:
    line: list[int] = []
    for i in ids:
        if i == LINE_END:
            yield line
            line = []
        else:
            line.append(int(i))
    yield line


class _Remembered(dict[str, tuple[int, ...]]):
    """Ids of chunks, worked out when first asked for; emptied when it has grown large."""

    def __init__(self, encode: Callable[[str], tuple[int, ...]]) -> None:
        super().__init__()
        self._encode = encode

    def __missing__(self, chunk: str) -> tuple[int, ...]:
        ids = self._encode(chunk)
        if len(chunk) <= LONGEST_REMEMBERED:
            if len(self) >= REMEMBERED_CHUNKS:
                self.clear()
            self[chunk] = ids
        return ids


def _flat(ids_of_chunks: Iterable[tuple[int, ...]]) -> Ids:
    return np.fromiter(itertools.chain.from_iterable(ids_of_chunks), np.int32)


# ---- choosing a vocabulary ------------------------------------------------------------------------------------------


def word_kind(text: Text) -> str:
    """The kind of tokenizer whose tokens are words, for a text: ``whitespace`` where they are cut apart already."""
    kind = _fitting_kind(text)
    return "words" if kind == "characters" else kind


def _fitting_kind(text: Text) -> str:
    characters = standing = attached = 0
    for block in _blocks(text.lines(), spaces_are_tokens=True):
        words = block.split()
        if SPECIAL[UNKNOWN] in words:
            return "whitespace"
        stops = [word for word in words if word[-1] in ",."]
        standing += sum(len(word) == 1 for word in stops)
        attached += sum(len(word) > 1 for word in stops)
        characters += len(block)
        if characters >= SMALL_TEXT:
            break
    if standing > attached:
        return "whitespace"
    return "words" if characters >= SMALL_TEXT else "characters"


def _lowered_blocks(text: Text, settings: TokenizerSettings, *, spaces_are_tokens: bool = False) -> Iterator[str]:
    for block in _blocks(text.lines(), spaces_are_tokens=spaces_are_tokens):
        yield block.lower() if settings.lowercase else block


def _character_vocabulary(text: Text, settings: TokenizerSettings) -> Vocabulary:
    counts = np.zeros(sys.maxunicode + 1, dtype=np.int64)
    for block in _lowered_blocks(text, settings, spaces_are_tokens=True):
        found = np.bincount(_code_points(block))
        counts[: len(found)] += found
    line_ends = int(counts[ord("\n")])
    counts[ord("\n")] = 0
    by_character = {chr(code): int(counts[code]) for code in np.flatnonzero(counts)}
    return Vocabulary.from_counts(
        by_character, line_ends=line_ends, size=settings.vocabulary_size, min_count=settings.min_count or 1
    )


def _word_vocabulary(kind: str, text: Text, settings: TokenizerSettings) -> Vocabulary:
    blocks = _lowered_blocks(text, settings)
    if kind == "whitespace":
        counter = _count(blocks, _whitespace_words, lambda word: [word])
    else:
        counter = _count(blocks, _chunks, split_words)
    counts, size, min_count = counter.counts, settings.vocabulary_size, settings.min_count
    if size is None and min_count is None and SPECIAL[UNKNOWN] not in counts:
        size = AUTO_WORDS
        # a model learns what an unknown word is like from the words seen once, unless that is all of them
        min_count = 2 if any(count > 1 for word, count in counts.items() if word not in SPECIAL) else 1
    return Vocabulary.from_counts(counts, line_ends=0, dropped=counter.dropped, size=size, min_count=min_count or 1)


def _count(
    blocks: Iterable[str], cut: Callable[[str], list[str]], tokens_of: Callable[[str], Sequence[str]]
) -> TokenCounter:
    """Cut blocks into chunks and count the chunks' tokens, looking at each different chunk seldom, mostly once."""
    counter = TokenCounter()
    chunks: Counter[str] = Counter()
    held = 0  # characters of `chunks` at the most

    def count_chunks() -> None:
        nonlocal held
        tokens: Counter[str] = Counter()
        for chunk, count in chunks.items():
            for token in tokens_of(chunk):
                tokens[token] += count
        counter.add(tokens)
        chunks.clear()
        held = 0

    for block in blocks:
        chunks.update(cut(block))
        held += len(block)
        if len(chunks) > REMEMBERED_CHUNKS or held > COUNTED_AT_ONCE:
            count_chunks()
    count_chunks()
    return counter


def _train_byte_pairs(text: Text, settings: TokenizerSettings) -> BytePairTokenizer:
    import tokenizers

    size = settings.vocabulary_size
    if size is not None and size < BYTE_PAIRS_LEAST:
        raise UserError(
            f"byte pairs need a vocabulary of {BYTE_PAIRS_LEAST}, for all bytes, <unk> and <eos>; got {size}"
        )
    # Merges stay inside pieces: words, numbers and runs of symbols, written with a printable character for each byte.
    splitter = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)

    def pieces_of(chunk: str) -> list[str]:
        return [chunk] if chunk == "\n" else [piece for piece, _ in splitter.pre_tokenize_str(" " + chunk)]

    pieces = _count(_lowered_blocks(text, settings), _chunks, pieces_of).counts
    line_ends = pieces.pop("\n", 0)
    length = sum(len(piece) * count for piece, count in pieces.items())
    if size is None:
        size = min(AUTO_BYTE_PAIRS, BYTE_PAIRS_LEAST + length // 100)
    share = min(1.0, LEARNT_FROM / max(1, length))

    def sample() -> Iterator[str]:
        room = LEARNT_FROM
        for piece, count in pieces.most_common():
            times = max(1, round(count * share))
            yield f"{piece} " * times
            room -= len(piece) * times
            if room <= 0:
                return

    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size - len(SPECIAL),
        min_frequency=max(1, round((settings.min_count or 2) * share)),
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    library.train_from_iterator(sample(), trainer)
    model = json.loads(library.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    counts = dict.fromkeys(model["vocab"], 0)
    for piece, count in pieces.items():
        for token in library.model.tokenize(piece):
            counts[token.value] += count
    return BytePairTokenizer(
        Vocabulary.from_counts(counts, line_ends=line_ends, min_count=0), merges, settings.lowercase
    )


def _byte_pairs(ids: dict[str, int], merges: Sequence[str]) -> tokenizers.Tokenizer:
    import tokenizers

    pairs = [(first, second) for first, _, second in (merge.partition(" ") for merge in merges)]
    library = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=ids, merges=pairs))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    return library
