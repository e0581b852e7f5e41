"""Skip-grams: which sequences of words before a token are features of it, and how often each came with each token.

A feature type (r, s, a) takes r remote words, skips s words and takes the a adjacent words that end just before the
token (Shazeer, Pelemans and Chelba 2015, section 3). The contexts of n-gram models are the types (0, 0, a), the empty
one among them. A line begins with a line end, and no feature reaches beyond it.

Letters used for shapes: W is words of a history, K feature types, F features, P pairs of a feature and a target.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from recurra.text.batches import TokenStream
from recurra.text.vocabulary import LINE_END

Ints: TypeAlias = NDArray[np.integer[Any]]
NOTHING = -1
"""In a history, what is beyond the line's beginning; in a list of features or pairs, none."""
AT_ONCE = 2**16  # tokens that are hashed at a time


class FeatureType(NamedTuple):
    """How many words a feature takes, and which."""

    remote: int
    skipped: int
    adjacent: int

    @property
    def span(self) -> int:
        """How far back it looks, in words."""
        return sum(self)


def feature_types(order: int, remote: int, skipped: int, adjacent: int) -> tuple[FeatureType, ...]:
    """All n-gram contexts of less than `order` words, the shortest first, and then all skip-grams within the bounds.

    Args:
        order: Words of the longest n-gram; a skip-gram, too, takes fewer than so many words.
        remote: Most remote words of a skip-gram.
        skipped: Most words that it skips.
        adjacent: Most words that it takes just before the token.
    """
    contexts = [FeatureType(0, 0, words) for words in range(order)]
    skip_grams = [
        FeatureType(far, skip, near)
        for near in range(adjacent + 1)
        for skip in range(1, skipped + 1)
        for far in range(1, remote + 1)
        if far + near < order
    ]
    return (*contexts, *skip_grams)


def histories(inputs: Ints, before: Ints) -> NDArray[np.int32]:
    """Look back from every position of some texts, as far as its line goes.

    Args:
        inputs: Tokens that are read, [T, N].
        before: The words before them, the latest first, `NOTHING` where the line had not begun, [W, N].

    Returns:
        The word read last at each position, the one before it and so on, up to the line end that begins the line, and
        `NOTHING` beyond, [W, T, N].
    """
    window, steps = len(before), len(inputs)
    tokens = np.concatenate([before[::-1], inputs]).astype(np.int32)
    history = np.empty((window, *inputs.shape), np.int32)
    inside = np.ones(inputs.shape, np.bool_)
    for back in range(window):
        words = tokens[window - back : window - back + steps]
        history[back] = np.where(inside, words, NOTHING)
        inside &= words != LINE_END
    return history


def feature_keys(
    history: NDArray[np.int32], types: Sequence[FeatureType]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_]]]:
    """Name the feature of each type at each position.

    Args:
        history: What :func:`histories` returned, [W, ...], as long as the widest type.
        types: The feature types.

    Yields:
        For each type a hash of the feature's words, and whether the line goes back so far, both [...]. Of ten million
        features of a type, two share a hash with a chance of about 1 in 400,000.
    """
    nearest = np.zeros(history.shape[1:], np.uint64)
    adjacent = [nearest]
    for back in range(max(kind.adjacent for kind in types)):
        nearest = _mixed(nearest, history[back])
        adjacent.append(nearest)
    for kind in types:
        key = adjacent[kind.adjacent]
        for back in range(kind.span - kind.remote, kind.span):
            key = _mixed(key, history[back])
        fires = history[kind.span - 1] != NOTHING if kind.span else np.ones(key.shape, np.bool_)
        yield key.view(np.int64), fires


def _mixed(key: NDArray[np.uint64], words: NDArray[np.int32]) -> NDArray[np.uint64]:
    """Extend a hash by one word: one number of the SplitMix64 generator (Steele, Lea and Flood 2014)."""
    mixed = (key + words.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


@dataclass(frozen=True, eq=False)
class TypeCounts:
    """Counts of the features of one type.

    Attributes:
        keys: Hash of each feature, ascending, [F].
        totals: How often it was seen, [F].
        row_starts: Offset of each feature's first pair, and of the end, [F + 1].
        targets: The pairs' targets, ascending within a feature, [P].
        counts: How often each pair was seen, [P].
        feature_of: The feature of each position of the text, `NOTHING` where none fires, [positions].
        pair_of: The pair of each position, or `NOTHING`, [positions].
    """

    keys: NDArray[np.int64]
    totals: NDArray[np.int32]
    row_starts: NDArray[np.int32]
    targets: NDArray[np.int32]
    counts: NDArray[np.int32]
    feature_of: NDArray[np.int32]
    pair_of: NDArray[np.int32]

    def extensions(self, longer: TypeCounts) -> NDArray[np.int32]:
        """In how many contexts of one more word each pair was seen: how many pairs of `longer` end in it, [P].

        A feature that begins its line has no longer one, so that its pairs have 0.
        """
        somewhere = np.empty(len(longer.targets) + 1, np.int32)  # a position of each longer pair; NOTHING's is the last
        somewhere[longer.pair_of] = np.arange(len(longer.pair_of), dtype=np.int32)
        return np.bincount(self.pair_of[somewhere[:-1]], minlength=len(self.targets)).astype(np.int32)

    def at(self, positions: Ints) -> TypeCounts:
        """The same counts, with features and pairs of some positions only."""
        return replace(self, feature_of=self.feature_of[positions], pair_of=self.pair_of[positions])


def count_features(
    stream: TokenStream, vocabulary_size: int, types: Sequence[FeatureType], min_count: int = 1
) -> Iterator[TypeCounts]:
    """Count a text's features, type by type, each with the tokens that followed it.

    Args:
        stream: The text.
        vocabulary_size: Number of tokens, V.
        types: The feature types.
        min_count: Skip-grams seen fewer times than this are left out.

    Yields:
        The counts of each type. Those of the empty feature are one more for every token of the vocabulary.
    """
    # Each type is counted by a call of its own, whose arrays are gone when it returns: they are what takes memory.
    for kind in types:
        if kind.span:
            yield _count_type(stream.tokens, vocabulary_size, kind, min_count if kind.skipped else 1)
        else:
            yield _count_tokens(stream.tokens, vocabulary_size)


def _count_tokens(tokens: Ints, vocabulary_size: int) -> TypeCounts:
    """The counts of the empty feature, which fires everywhere, plus one for every token."""
    counts = np.bincount(tokens, minlength=vocabulary_size).astype(np.int32) + np.int32(1)
    return TypeCounts(
        keys=np.zeros(1, np.int64),  # as feature_keys hashes no words
        totals=counts.sum(keepdims=True, dtype=np.int32),
        row_starts=np.array([0, vocabulary_size], np.int32),
        targets=np.arange(vocabulary_size, dtype=np.int32),
        counts=counts,
        feature_of=np.zeros(len(tokens), np.int32),
        pair_of=tokens.astype(np.int32),
    )


def _count_type(tokens: Ints, vocabulary_size: int, kind: FeatureType, min_count: int) -> TypeCounts:
    """The counts of one type, leaving out features seen fewer than `min_count` times."""
    keys, positions = _features(tokens, kind)
    features, feature_of, totals = _grouped(keys)
    del keys
    if min_count > 1:
        often = totals >= min_count
        kept = often[feature_of]
        renumbered = np.cumsum(often, dtype=np.int32) - 1
        positions, feature_of = positions[kept], renumbered[feature_of[kept]]
        features, totals = features[often], totals[often]
    wanted = feature_of.astype(np.int64)
    wanted *= vocabulary_size
    wanted += tokens[positions]
    pairs, pair_of, counts = _grouped(wanted)
    del wanted
    return TypeCounts(
        keys=features,
        totals=totals,
        row_starts=np.searchsorted(pairs, np.arange(len(features) + 1) * vocabulary_size).astype(np.int32),
        targets=(pairs % vocabulary_size).astype(np.int32),
        counts=counts,
        feature_of=_placed(feature_of, positions, len(tokens)),
        pair_of=_placed(pair_of, positions, len(tokens)),
    )


def _features(tokens: Ints, kind: FeatureType) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The hashes of a text's features of one type, and before which tokens they stand."""
    keys, fires = np.empty(len(tokens), np.int64), np.empty(len(tokens), np.bool_)
    last, before = np.array([LINE_END]), np.full((kind.span, 1), NOTHING, np.int32)
    for start in range(0, len(tokens), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        inputs = np.concatenate([last, tokens[part][:-1]])
        history = histories(inputs[:, None], before)
        keys[part], fires[part] = next(feature_keys(history[:, :, 0], [kind]))
        last, before = tokens[part][-1:], history[:, -1]
    return keys[fires], np.flatnonzero(fires).astype(np.int32)


def _grouped(values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    """The different values, ascending; the number of each value among them; how often each comes.

    As ``numpy.unique`` does, by a sort that need not be stable, which is several times as fast.
    """
    order = np.argsort(values)
    ordered = values[order]
    first = np.empty(len(values), np.bool_)
    first[:1] = True
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    numbers = np.empty(len(values), np.int32)
    numbers[order] = np.cumsum(first, dtype=np.int32) - np.int32(1)
    del order
    starts = np.flatnonzero(first)
    return ordered[starts], numbers, np.diff(starts, append=len(values)).astype(np.int32)


def _placed(numbers: NDArray[np.int32], positions: NDArray[np.int32], length: int) -> NDArray[np.int32]:
    """An array with `numbers` at `positions` and `NOTHING` elsewhere."""
    placed = np.full(length, NOTHING, np.int32)
    placed[positions] = numbers
    return placed
