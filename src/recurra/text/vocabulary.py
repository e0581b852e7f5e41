"""Which tokens there are: token <-> id, and how often each was seen."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from recurra.config import UserError

UNKNOWN = 0
LINE_END = 1
SPECIAL = ("<unk>", "<eos>")
COUNTED_TOKENS = 2_000_000  # about 300 MB of counts


class Vocabulary:
    """Tokens by id: ``<unk>`` is 0, ``<eos>`` is 1, the rest follow by falling count, then by token.

    Args:
        tokens: Every token once, in the order of ids.
        counts: How often each was seen in the training text. `counts[0]` is the number of words outside the vocabulary.

    Raises:
        UserError: the special tokens are not where they should be, a token comes twice, the lengths differ.
    """

    def __init__(self, tokens: Sequence[str], counts: Sequence[int]) -> None:
        if tuple(tokens[:2]) != SPECIAL:
            raise UserError(f"vocabulary: expected it to begin with {SPECIAL}, got {tuple(tokens[:2])}")
        if len(tokens) != len(counts):
            raise UserError(f"vocabulary: expected a count for each of {len(tokens)} tokens, got {len(counts)} counts")
        self.tokens = list(tokens)
        self.counts = list(counts)
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            twice = next(token for token, count in Counter(self.tokens).items() if count > 1)
            raise UserError(f"vocabulary: token {twice!r} comes twice")

    @classmethod
    def from_counts(
        cls, counts: Mapping[str, int], *, line_ends: int, dropped: int = 0, size: int | None = None, min_count: int = 1
    ) -> Vocabulary:
        """Choose the tokens of a vocabulary.

        A token ``<unk>`` in the text is an unknown word, and ``<eos>`` a line end, not tokens of their own.

        Args:
            counts: How often each token was seen.
            line_ends: How many lines ended.
            dropped: Tokens seen that `counts` no longer has.
            size: The most tokens to take, the two special ones among them.
            min_count: The least count of a token to take.
        """
        chosen = [(token, count) for token, count in counts.items() if count >= min_count and token not in SPECIAL]
        chosen.sort(key=lambda pair: (-pair[1], pair[0]))
        if size is not None:
            del chosen[max(0, size - len(SPECIAL)) :]
        line_end_words = counts.get(SPECIAL[LINE_END], 0)
        unknown = dropped + sum(counts.values()) - line_end_words - sum(count for _, count in chosen)
        tokens = [*SPECIAL, *(token for token, _ in chosen)]
        return cls(tokens, [unknown, line_ends + line_end_words, *(count for _, count in chosen)])

    def __len__(self) -> int:
        return len(self.tokens)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.tokens == other.tokens and self.counts == other.counts

    __hash__ = None  # type: ignore[assignment]  # lists inside

    def id(self, token: str) -> int:
        """Return a token's id: that of ``<unk>`` for one that is not here."""
        return self.ids.get(token, UNKNOWN)

    def digest(self) -> str:
        """Return a SHA-256 of the tokens in their order, which tells whether a model belongs to this vocabulary."""
        return hashlib.sha256(json.dumps(self.tokens).encode()).hexdigest()

    def to_mapping(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {"tokens": self.tokens, "counts": self.counts}

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Vocabulary:
        """Turn what :meth:`to_mapping` returned back into an equal vocabulary."""
        return cls(mapping["tokens"], mapping["counts"])


class TokenCounter:
    """Counts of tokens in memory that does not grow with the text.

    When more than `limit` different tokens are held, those seen once are dropped; then those seen up to twice, and so
    on until half the limit are left, the bar never being lowered again (as word2vec does, Mikolov et al. 2013). A token
    may be missed, or counted short, by at most the sum of the bars; below `limit` different tokens all is exact.

    Attributes:
        counts: How often each token was seen.
        dropped: How many tokens were seen that `counts` no longer has.
    """

    def __init__(self, limit: int = COUNTED_TOKENS) -> None:
        self.counts: Counter[str] = Counter()
        self.dropped = 0
        self._limit = limit
        self._bar = 0

    def add(self, counts: Mapping[str, int]) -> None:
        """Count tokens, each as often as `counts` says."""
        self.counts.update(counts)
        if len(self.counts) > self._limit:
            seen = self.counts.total()
            while len(self.counts) > self._limit // 2:
                self._bar += 1
                self.counts = Counter({token: count for token, count in self.counts.items() if count > self._bar})
            self.dropped += seen - self.counts.total()
