"""N-gram language models: counted, smoothed by interpolated Kneser-Ney, queried by backing off.

What is stored of an n-gram model is a probability for every n-gram that was kept, and a back-off weight for every one
that other n-grams continue. Where a word w was not seen after a history h, the history is cut short from the left,

    p(w | h) = p*(w | h)                 where the n-gram (h, w) is in the model,
             = b(h) p(w | h')            where it is not; h' is h without its first word, and b is 1 where h is not

so that the same tables serve whatever smoothing made them (Katz 1987), those read from an ARPA file among them.

The smoothings are interpolated: the n-grams of each order give a part of their probability, the discount, to what the
order below says. See Kneser and Ney 1995; Chen and Goodman 1998, "An Empirical Study of Smoothing Techniques for
Language Modeling", section 3, for the modified form with three discounts; and Heafield et al. 2013, "Scalable Modified
Kneser-Ney Language Model Estimation", whose estimate (that of KenLM's lmplz) this is, number by number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recurra.config import UserError, setting
from recurra.text.batches import TokenStream
from recurra.text.vocabulary import LINE_END, UNKNOWN, Vocabulary

__all__ = ["NgramLM", "NgramSettings"]

Floats = NDArray[np.float64]
Integers = NDArray[np.integer[Any]]

FALLBACK_DISCOUNTS = {"modified-kneser-ney": (0.5, 1.0, 1.5), "kneser-ney": (0.5, 0.5, 0.5)}


@dataclass(frozen=True, kw_only=True)
class NgramSettings:
    """How an n-gram model is estimated."""

    order: int = setting(5, "words of the longest n-grams: one more than the history has", minimum=1)
    smoothing: str = setting(
        "modified-kneser-ney", "three discounts an order, or one", choices=("modified-kneser-ney", "kneser-ney")
    )
    prune: tuple[int, ...] = setting(
        (0,), "drop n-grams seen at most so often, order by order; the last is for all higher orders", minimum=0
    )
    interpolate_unigrams: bool = setting(
        True, "share what unigrams are discounted among all words; else it is <unk>'s alone"
    )
    discount_fallback: bool = setting(False, "take fixed discounts where the text is too small to estimate them")
    reset: str = setting("lines", "where the state starts anew: n-grams never cross a line end", choices=("lines",))


class NgramLM:
    r"""A back-off n-gram model, in sorted tables that are searched where they lie, in memory or in a mapped file.

    Follows :class:`recurra.models.protocol.LanguageModelProtocol`. :meth:`estimate` makes one from a text,
    :func:`recurra.models.arpa.read_arpa` from an ARPA file.

    The n-grams form a trie, read forwards: an n-gram's parent is the n-gram without its last word. Those of order k
    are numbered from 0 by the number of their parent, then by last word, and what finds one is its *key*,

        key = number of the parent * V + last word.

    Unigrams are numbered by word. So the n-grams that continue one history stand side by side, and the tables need
    neither pointers nor words.

    ``LINE_END`` is both ends of a line: as the first word of an n-gram it is the beginning, usually written ``<s>``, as
    the last the end, ``</s>``. It never stands between others. So the log-probability of unigram ``LINE_END`` is that
    of a line's end, and its back-off that of a line's beginning; and a model that reads it keeps nothing of what was
    before.

    The state, int64 [N, order - 1], has the numbers of the last 1, 2, ... order - 1 words read; -1 where the model does
    not have them.

    Args:
        settings: those it was estimated with; of a model from elsewhere, only the order counts.
        keys: int64 [n-grams], ascending, of each order from 2.
        log_probs: natural logarithms, float32 [n-grams], of each order from 1.
        backoffs: natural logarithms, float32 [n-grams], of each order from 1 but the highest.
    """

    def __init__(
        self,
        settings: NgramSettings,
        *,
        keys: Mapping[int, Tensor],
        log_probs: Mapping[int, Tensor],
        backoffs: Mapping[int, Tensor],
    ) -> None:
        self.settings = settings
        self.keys = dict(keys)
        self.log_probs = dict(log_probs)
        self.backoffs = dict(backoffs)

    @classmethod
    def estimate(
        cls,
        settings: NgramSettings,
        stream: TokenStream,
        vocabulary: Vocabulary,
        *,
        say: Callable[[str], None] = lambda _: None,
    ) -> Self:
        """Estimate a model from a text; 5-grams take some 100 bytes of memory a token.

        Args:
            settings: what to estimate.
            stream: the text, whose lines all end with ``LINE_END``.
            vocabulary: what its ids stand for.
            say: is told about each order as it is done.

        Raises:
            UserError: there are no tokens, or ids outside the vocabulary, or no line is long enough for the order;
                discounts cannot be estimated; thresholds that do not fit.
        """
        thresholds = _thresholds(settings)
        if len(stream) == 0:
            raise UserError("there is nothing to count: the text has no tokens; give one with at least one line")
        text = np.empty(len(stream) + 1, np.int32)
        text[0], text[1:] = LINE_END, stream.tokens
        if text.min() < 0 or text.max() >= len(vocabulary):
            raise UserError(
                f"expected ids from 0 to {len(vocabulary) - 1}, got {text.min()} to {text.max()}: the text was encoded"
                " with another vocabulary; encode it with this one"
            )
        model = cls(settings, keys={}, log_probs={}, backoffs={})
        for k, level in enumerate(_levels(text, len(vocabulary), settings, thresholds, say), 1):
            model.log_probs[k] = _log(level.probabilities)
            if k > 1:
                model.keys[k] = torch.from_numpy(level.keys)
                model.backoffs[k - 1] = _log(level.gammas)
        return model

    @classmethod
    def from_tensors(cls, settings: NgramSettings, vocabulary: Vocabulary, tensors: Mapping[str, Tensor]) -> Self:
        """The model whose :meth:`tensors` these are; they are used where they lie.

        Raises:
            UserError: tables are missing, or are not those of this order and vocabulary. Only sizes and ends are looked
                at, as reading all entries would take long.
        """
        orders = range(1, settings.order + 1)
        names = {"keys": orders[1:], "log_probs": orders, "backoffs": orders[:-1]}
        if strange := {f"{name}.{k}" for name, parts in names.items() for k in parts} ^ tensors.keys():
            raise _foreign(f"{min(strange)} is missing or one too many", settings)
        tables = {name: {k: tensors[f"{name}.{k}"] for k in parts} for name, parts in names.items()}
        _check(settings, len(vocabulary), **tables)
        return cls(settings, **tables)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tables by name: ``keys``, ``log_probs`` and ``backoffs``, a dot, the order."""
        tables = {"keys": self.keys, "log_probs": self.log_probs, "backoffs": self.backoffs}
        return {f"{name}.{k}": table for name, parts in tables.items() for k, table in parts.items()}

    @property
    def order(self) -> int:
        """Words of the longest n-grams."""
        return self.settings.order

    @property
    def vocabulary_size(self) -> int:
        """V, the number of tokens."""
        return len(self.log_probs[1])

    @property
    def parameters_count(self) -> int:
        """How many probabilities and back-off weights there are."""
        return sum(len(table) for tables in (self.log_probs, self.backoffs) for table in tables.values())

    def start(self, batch_size: int) -> Tensor:
        """Return the state of `batch_size` rows that have read nothing yet."""
        return torch.full((batch_size, self.order - 1), -1)

    def step(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Read ``tokens [batch]``; log-probabilities ``[batch, vocabulary]`` of what follows."""
        after = torch.empty_like(state)
        log_probs = self.log_probs[1].repeat(len(tokens), 1)
        context = tokens
        for k in range(2, self.order + 1):
            after[:, k - 2] = context
            log_probs += _at(self.backoffs[k - 1], context)[:, None]
            row, place, word = self._continuations(k, context)
            log_probs[row, word] = self.log_probs[k][place]
            if k < self.order:
                context = self._find(k, state[:, k - 2], tokens).masked_fill(tokens == LINE_END, -1)
        return log_probs, after

    def score(self, inputs: Tensor, targets: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities ``[time, batch]`` of ``targets``, each after the inputs up to its own step."""
        # What is searched for a target is searched for the next input too, where they are the same token.
        apart = torch.ones_like(targets, dtype=torch.bool)
        apart[:-1] = inputs[1:] != targets[:-1]
        after = torch.empty_like(state)
        log_probs = self.log_probs[1][targets]
        context = inputs  # the last k - 1 words after each input, [time, batch]
        for k in range(2, self.order + 1):
            before = torch.cat([state[None, :, k - 2], context])
            after[:, k - 2] = before[-1]
            read = self._find(k, before[:-1], inputs)
            found = torch.cat([read[1:], read[:1]])
            found[apart] = self._find(k, context[apart], targets[apart])
            backed_off = log_probs + _at(self.backoffs[k - 1], context)
            log_probs = torch.where(found >= 0, _at(self.log_probs[k], found), backed_off)
            context = read.masked_fill(inputs == LINE_END, -1)
        return log_probs, after

    def select(self, state: Tensor, rows: Tensor) -> Tensor:
        """The state of some rows of the batch, in the order of ``rows``."""
        return state[rows]

    def ngrams(self, k: int, numbers: Tensor) -> Tensor:
        """Return the words of n-grams of order k, given by their numbers [n]: ids, [n, k]."""
        words = []
        for level in range(k, 1, -1):
            keys = self.keys[level][numbers]
            words.append(keys % self.vocabulary_size)
            numbers = keys // self.vocabulary_size
        return torch.stack([numbers, *reversed(words)], dim=1)

    def _find(self, k: int, parents: Tensor, words: Tensor) -> Tensor:
        """Return the numbers of n-grams of order k, -1 for those that are not in the model; of any shape."""
        keys = self.keys[k]
        # A parent that is not in the model, -1, makes a key below 0, which nothing has.
        wanted, order = (parents * self.vocabulary_size + words).flatten().sort()  # neighbours are near in memory
        places = torch.searchsorted(keys, wanted).clamp_(max=max(0, len(keys) - 1))
        found = torch.where(keys[places] == wanted, places, -1) if len(keys) else torch.full_like(wanted, -1)
        return torch.empty_like(found).index_copy_(0, order, found).view(words.shape)

    def _continuations(self, k: int, contexts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return all n-grams of order k that go on from contexts [n]: whose they are, numbers, last words."""
        begins = contexts * self.vocabulary_size
        first = torch.searchsorted(self.keys[k], begins)
        counts = torch.searchsorted(self.keys[k], begins + self.vocabulary_size) - first
        row = torch.repeat_interleave(counts)
        number = torch.arange(len(row)) + (first - counts.cumsum(0) + counts)[row]
        return row, number, self.keys[k][number] - begins[row]


def _check(
    settings: NgramSettings,
    vocabulary_size: int,
    keys: Mapping[int, Tensor],
    log_probs: Mapping[int, Tensor],
    backoffs: Mapping[int, Tensor],
) -> None:
    """Say whether tables of all orders fit together, without reading all of them.

    Raises:
        UserError: they do not.
    """
    if log_probs[1].numel() != vocabulary_size:
        raise _foreign(f"{log_probs[1].numel()} words, with a vocabulary of {vocabulary_size}", settings)
    for name, tables, dtype in (
        ("keys", keys, torch.int64),
        ("log_probs", log_probs, torch.float32),
        ("backoffs", backoffs, torch.float32),
    ):
        for k, table in tables.items():
            found, expected = f"{table.dtype} {list(table.shape)}", f"{dtype} {[log_probs[k].numel()]}"
            if found != expected:
                raise _foreign(f"{name}.{k}: expected {expected}, found {found}", settings)
    for k, ascending in keys.items():
        if len(ascending) and not 0 <= ascending[0] <= ascending[-1] < len(log_probs[k - 1]) * vocabulary_size:
            raise _foreign(f"keys.{k} has {k}-grams that begin with no {k - 1}-gram", settings)


def _foreign(what: str, settings: NgramSettings) -> UserError:
    return UserError(
        f"weights of an n-gram model of order {settings.order}: {what}; the file belongs to another model, or its"
        " settings were changed: restore it or train again"
    )


def _at(table: Tensor, numbers: Tensor) -> Tensor:
    """Return a table's values at these places, 0 where the place is -1."""
    if len(table) == 0:
        return torch.zeros_like(numbers, dtype=table.dtype)
    return torch.where(numbers >= 0, table[numbers.clamp(min=0)], 0.0)


# Estimation. Everything is an array over n-grams, numbered as the model numbers them but before pruning; one order is
# in memory together with the next, whose n-grams say how often its own are continued on the left.


class _Counts(NamedTuple):
    """The different n-grams of one order: keys, ascending; how often each was seen; the numbers of their suffixes."""

    keys: NDArray[np.int64]
    raw: Integers
    suffixes: Integers


class _Level(NamedTuple):
    """The n-grams of one order that are kept: keys, probabilities; and the back-off weights of the order below."""

    keys: NDArray[np.int64]
    probabilities: Floats
    gammas: Floats


def _levels(
    text: NDArray[np.int32],
    vocabulary_size: int,
    settings: NgramSettings,
    thresholds: tuple[int, ...],
    say: Callable[[str], None],
) -> Iterator[_Level]:
    """Estimate order after order, from unigrams up, each interpolated with the one below.

    With a(h, w) the adjusted count and D(a) its discount (Heafield et al. 2013, section 3),

        p(w | h) = (a(h, w) - D(a(h, w))) / sum_v a(h, v) + gamma(h) p(w | h'),

    where gamma(h) is what the discounts of the n-grams kept after h, and all of the others, have set free. Below
    unigrams lies the uniform distribution.
    """
    counting = _count(text, vocabulary_size, settings.order)
    counts = next(counting)
    below = _below_unigrams(vocabulary_size, settings)  # p(w | h') by number of the suffix
    kept_below = np.ones(1, np.bool_)
    shifts = np.zeros(1, np.int64)  # what pruning of the order below takes from a key, by number of the parent
    begin = np.array([LINE_END, LINE_END + 1])  # between which numbers the n-grams stand that begin a line
    for k, threshold in enumerate(thresholds, 1):
        following = next(counting, None)
        if following is None:
            adjusted = counts.raw
        else:
            adjusted = np.bincount(following.suffixes, minlength=len(counts.keys))
            if k > 1:  # unigram LINE_END is a line's end
                adjusted[slice(*begin)] = counts.raw[slice(*begin)]  # nothing can stand to the left of these
        discounts = _discounts(adjusted, k, settings)
        kept = counts.raw > threshold if k > 1 else np.ones(vocabulary_size, np.bool_)
        say(f"{k}-grams: {kept.sum():,} of {len(kept):,}, discounts {', '.join(f'{d:.4f}' for d in discounts[1:])}")

        parents = counts.keys // vocabulary_size
        taken = discounts[np.minimum(adjusted, 3)]
        totals = np.bincount(parents, weights=adjusted, minlength=len(kept_below))
        freed = np.bincount(parents, weights=np.where(kept, taken, adjusted), minlength=len(kept_below))
        gammas = np.divide(freed, totals, out=np.ones_like(freed), where=totals > 0)  # 1 where nothing goes on
        probabilities = np.subtract(adjusted, taken, out=taken)
        probabilities /= totals[parents]
        probabilities += gammas[parents] * below[counts.suffixes]

        keys = counts.keys[kept]
        keys += shifts[parents[kept]]
        del parents, totals, freed
        yield _Level(keys, probabilities[kept], gammas[kept_below])
        if following is not None:
            begin = np.searchsorted(following.keys, begin * vocabulary_size)
            below, counts, kept_below = probabilities, following, kept
            shifts = -vocabulary_size * np.cumsum(~kept)


def _count(text: NDArray[np.int32], vocabulary_size: int, order: int) -> Iterator[_Counts]:
    """Count the n-grams of order 1, 2, ... of a text, which begins with the line end before its first word.

    The number of the n-gram that ends at each position is a matter of sorting: (k-1)-gram before, then word.

    Raises:
        UserError: no line has an n-gram of some order.
    """
    words = np.arange(vocabulary_size)
    yield _Counts(words, np.bincount(text[1:], minlength=vocabulary_size), words)
    indices = np.int32 if len(text) < 2**31 else np.int64
    numbers = text.astype(indices)  # of the n-gram that ends at each position
    ends = np.arange(1, len(text), dtype=indices)  # the positions at which one ends
    for k in range(2, order + 1):
        if len(ends) == 0:
            raise UserError(
                f"order {order}: the longest line, its beginning and end counted, has {k - 1} tokens, so that {k - 1}"
                " is the highest order possible; set order to that, or give a text of longer lines"
            )
        keys = numbers[ends - 1].astype(np.int64)
        keys *= vocabulary_size
        keys += text[ends]
        by_key = np.argsort(keys)
        keys = keys[by_key]
        sorted_ends = ends[by_key]
        del by_key
        is_first = np.append(True, keys[1:] != keys[:-1])
        first = np.flatnonzero(is_first).astype(indices)
        suffixes = numbers[sorted_ends[first]]
        numbers[sorted_ends] = np.cumsum(is_first, dtype=indices) - 1
        del sorted_ends, is_first
        raw = np.diff(first, append=indices(len(keys)))
        keys = keys[first]
        yield _Counts(keys, raw, suffixes)
        ends = ends[text[ends] != LINE_END] + 1  # nothing goes on from a line's end
        ends = ends[ends < len(text)]


def _below_unigrams(vocabulary_size: int, settings: NgramSettings) -> Floats:
    """Return the distribution that unigrams are interpolated with, [V]."""
    if settings.interpolate_unigrams:
        return np.full(vocabulary_size, 1 / vocabulary_size)
    unknown = np.zeros(vocabulary_size)
    unknown[UNKNOWN] = 1
    return unknown


def _discounts(adjusted: Integers, k: int, settings: NgramSettings) -> Floats:
    """Return what is taken from an adjusted count of 0, 1, 2, and 3 or more, [4].

    Of n_j n-grams with an adjusted count of j, Y = n_1 / (n_1 + 2 n_2), the discounts are D_j = j - (j + 1) Y n_{j+1} /
    n_j (Chen and Goodman 1998, equation 26), or Y for all of them in the plain form.

    Raises:
        UserError: there are too few n-grams to tell, and no fallback was asked for.
    """
    seen = np.bincount(np.minimum(adjusted, 5), minlength=6).tolist()
    modified = settings.smoothing == "modified-kneser-ney"
    problem = next((f"none has a count of {j}" for j in ((1, 2, 3) if modified else (1, 2)) if seen[j] == 0), "")
    if not problem:
        share = seen[1] / (seen[1] + 2 * seen[2])
        if not modified:
            return np.array([0.0, share, share, share])
        estimates = [j - (j + 1) * share * seen[j + 1] / seen[j] for j in (1, 2, 3)]
        bad = [j for j in (1, 2, 3) if not 0 <= estimates[j - 1] <= j]
        if not bad:
            return np.array([0.0, *estimates])
        problem = f"that for a count of {bad[0]} comes out as {estimates[bad[0] - 1]:.3g}"
    if settings.discount_fallback:
        return np.array([0.0, *FALLBACK_DISCOUNTS[settings.smoothing]])
    raise UserError(
        f"the discounts of {k}-grams cannot be estimated: {problem}; give more text or set discount_fallback"
        " (--discount-fallback)"
    )


def _thresholds(settings: NgramSettings) -> tuple[int, ...]:
    """Return up to which count n-grams are dropped, for every order.

    Raises:
        UserError: there are more than orders, the first is not 0, or one is below the one before: then an n-gram might
            be kept whose beginning is not.
    """
    given = settings.prune or (0,)
    if len(given) > settings.order or given[0] != 0 or list(given) != sorted(given):
        raise UserError(
            f"prune: expected at most {settings.order} thresholds, one an order, of which the first is 0 (words are"
            f" not pruned) and none is below the one before, got {','.join(map(str, given))}"
        )
    return given + given[-1:] * (settings.order - len(given))


def _log(probabilities: Floats) -> Tensor:
    """Natural logarithms, float32; of 0 it is minus infinity."""
    with np.errstate(divide="ignore"):
        return torch.from_numpy(np.log(probabilities).astype(np.float32))
