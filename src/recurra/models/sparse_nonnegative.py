"""The sparse non-negative matrix language model (Shazeer et al. 2015; Pelemans et al. 2016): weighted skip-gram counts.

Letters used for shapes: T is time steps, N rows of a batch, V tokens of the vocabulary, W words of a history, K feature
types, F features, P pairs of a feature and a target, B events of a minibatch.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recurra.config import UserError, setting
from recurra.models.skip_grams import (
    NOTHING,
    FeatureType,
    TypeCounts,
    count_features,
    feature_keys,
    feature_types,
    histories,
)
from recurra.text.batches import TokenStream
from recurra.text.vocabulary import Vocabulary

__all__ = ["SparseNonnegativeLM", "SparseNonnegativeLMSettings"]

Ints: TypeAlias = NDArray[np.integer[Any]]
Floats: TypeAlias = NDArray[np.float64]

SEED = 1  # of the sample of events and of their order
BATCH = 2000  # events in a minibatch
PRECISION = 3.0  # of the weights' prior, a Gaussian around 0
TOTAL_BUCKETS = 32  # of how often a feature was seen
COUNT_BUCKETS = 24  # of how often a pair was
RATIO_BUCKETS = 8  # of ratios of counts
CODES = COUNT_BUCKETS * RATIO_BUCKETS  # below 256
PARTS = (0, TOTAL_BUCKETS * COUNT_BUCKETS, TOTAL_BUCKETS * COUNT_BUCKETS + CODES)  # where a type's weights have parts
WEIGHTS = PARTS[-1] + TOTAL_BUCKETS * RATIO_BUCKETS  # of a type
SPAN = 2**16  # pairs that are worked on at a time, about


@dataclass(frozen=True, kw_only=True)
class SparseNonnegativeLMSettings:
    """Which features a sparse non-negative matrix language model has, and how their weights are learnt."""

    order: int = setting(5, "words of the longest n-gram", minimum=1)
    skip_remote: int = setting(2, "most remote words of a skip-gram; 0 for no skip-grams", minimum=0)
    skip_words: int = setting(5, "most words that a skip-gram skips", minimum=0)
    skip_adjacent: int = setting(1, "most words of a skip-gram after those it skips", minimum=0)
    skip_min_count: int = setting(2, "skip-grams seen fewer times are left out", minimum=1)
    adjust_events: int = setting(500_000, "tokens of the training text to learn weights from", minimum=0)
    adjust_epochs: int = setting(2, "passes over them", minimum=1)
    adjust_rate: float = setting(0.05, "learning rate of the first step, falling to 0", minimum=0)
    reset: str = setting("lines", "where the state starts anew", choices=("lines",))

    @property
    def types(self) -> tuple[FeatureType, ...]:
        """The feature types, K of them."""
        return feature_types(self.order, self.skip_remote, self.skip_words, self.skip_adjacent)


class SparseNonnegativeLM:
    r"""A language model whose probabilities are shares in the rows of a sparse matrix, one row a feature.

    .. math::
        P(w \mid h) = \frac{\sum_{f \in h} M_{fw}}{\sum_{f \in h} \sum_v M_{fv}}, \qquad
        M_{fw} = e^{A(f, w)} \frac{C_{fw}}{C_{f*}}

    where f runs through the n-gram contexts and skip-grams that the words before w form, and C counts them in training.
    A line begins with a line end, and nothing before it is read. The empty feature fires everywhere, and its counts are
    one more than seen, so that no probability is 0.

    The adjustment A is learnt from the training text itself (:func:`learn_adjustment`). It depends on w only through
    counts of the pair (f, w), by buckets, so that how much of a row lies in each bucket is all that the sum over the
    vocabulary needs. A weight for each target, one of the papers' meta-features, would break that.

    Follows :class:`recurra.models.protocol.LanguageModelProtocol`, on the CPU; the state is the last words of the line,
    the latest first, int64 [N, W].

    Args:
        settings: Which features there are.
        vocabulary_size: V.
        tensors: The matrix, as :meth:`tensors` returns it; it is not copied.
    """

    def __init__(
        self, settings: SparseNonnegativeLMSettings, vocabulary_size: int, tensors: Mapping[str, Tensor]
    ) -> None:
        self.settings = settings
        self.vocabulary_size = vocabulary_size
        self._types = settings.types
        self._window = max(1, *(kind.span for kind in self._types))
        self._tensors = dict(tensors)
        self._type_starts: list[int] = tensors["type_starts"].tolist()
        self._keys = tensors["keys"]
        self._row_starts: Ints = tensors["row_starts"].numpy()
        self._sums: NDArray[np.float32] = tensors["sums"].numpy()
        self._targets: NDArray[np.int32] = tensors["targets"].numpy()
        self._weights: NDArray[np.float32] = tensors["weights"].numpy()

    @classmethod
    def estimate(
        cls,
        settings: SparseNonnegativeLMSettings,
        stream: TokenStream,
        vocabulary: Vocabulary,
        *,
        say: Callable[[str], None] = lambda _: None,
    ) -> Self:
        """Count the features of a text, and learn from it how to weigh them.

        At the peak the default feature types take some 240 bytes of memory a token, and 100 MB for the events; half of
        it stays, as the matrix. Of short texts the allocator keeps more: it was 400 bytes a token in all for the 2
        million of WikiText-2, 240 for 12 million of a Zipf distribution. By that 20 GB are enough for some 70 million
        tokens; for more, take fewer skip-grams or a higher ``skip_min_count``.

        Raises:
            UserError: the text is empty, or has ids outside the vocabulary.
        """
        begun = time.perf_counter()
        if len(stream) == 0:
            raise UserError("there is nothing to count: the text has no tokens; give one with at least one line")
        lowest, highest = int(stream.tokens.min()), int(stream.tokens.max())
        if lowest < 0 or highest >= len(vocabulary):
            raise UserError(
                f"expected ids from 0 to {len(vocabulary) - 1}, got {lowest} to {highest}: the text was encoded with"
                " another vocabulary; encode it with this one"
            )
        types = settings.types
        events = np.random.default_rng(SEED).permutation(len(stream))[: settings.adjust_events].copy()
        tables = count(stream, len(vocabulary), types, events, min_count=settings.skip_min_count)
        features = sum(len(table.counts.keys) for table in tables)
        pairs = sum(len(table.counts.targets) for table in tables)
        seconds = time.perf_counter() - begun
        say(f"{features:,} features of {len(types)} types, {pairs:,} pairs with a token, in {seconds:.1f} s")
        weights = learn_adjustment(tables, epochs=settings.adjust_epochs, rate=settings.adjust_rate, say=say)
        model = cls(settings, len(vocabulary), matrix(tables, weights))
        megabytes = sum(tensor.nbytes for tensor in model.tensors().values()) / 1e6
        say(f"the matrix takes {megabytes:,.1f} MB; {time.perf_counter() - begun:.1f} s in all")
        return model

    @property
    def parameters_count(self) -> int:
        """How many entries of the matrix are not 0."""
        return len(self._weights)

    def tensors(self) -> dict[str, Tensor]:
        """The matrix.

        ``type_starts`` [K + 1] says which features are of each type; ``keys`` [F] are their hashes, ascending within a
        type, and ``sums`` [F] the sums of their rows; ``row_starts`` [F + 1] says which pairs are in each row, and
        ``targets`` and ``weights`` [P] are the pairs, ascending by target within a row.
        """
        return dict(self._tensors)

    @classmethod
    def from_tensors(
        cls, settings: SparseNonnegativeLMSettings, vocabulary: Vocabulary, tensors: Mapping[str, Tensor]
    ) -> Self:
        """The model back from its tensors, which may be mapped into memory.

        Raises:
            UserError: tensors are missing, or are not those of these feature types and this vocabulary. Only sizes and
                ends are looked at, as reading all entries would take long.
        """
        _check(settings.types, len(vocabulary), tensors)
        return cls(settings, len(vocabulary), tensors)

    def start(self, batch_size: int) -> Tensor:
        """The state before anything was read."""
        return torch.full((batch_size, self._window), NOTHING)

    def step(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Read ``tokens [N]``; log-probabilities ``[N, V]`` of what follows."""
        history, state = self._read(tokens[None], state)
        shares = np.zeros((len(tokens), self.vocabulary_size))
        for positions, rows in self._fired(history):
            pairs, owner = _ragged(self._row_starts[rows], self._row_starts[rows + 1])
            shares[positions[owner], self._targets[pairs]] += self._weights[pairs]  # no target twice in a row
        return torch.from_numpy(np.log(shares / shares.sum(-1, keepdims=True))).float(), state

    def score(self, inputs: Tensor, targets: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities ``[T, N]`` of ``targets``, each after the inputs up to its own step."""
        history, state = self._read(inputs, state)
        wanted = targets.numpy().reshape(-1)
        shares, sums = np.zeros(len(wanted)), np.zeros(len(wanted))
        for positions, rows in self._fired(history):
            sums[positions] += self._sums[rows]
            ends = self._row_starts[rows + 1]
            pairs = _lower_bounds(self._targets, self._row_starts[rows], ends, wanted[positions])
            inside = np.flatnonzero(pairs < ends)
            found = inside[self._targets[pairs[inside]] == wanted[positions[inside]]]
            shares[positions[found]] += self._weights[pairs[found]]
        shares = np.minimum(shares / sums, 1.0)  # the sums are rounded
        return torch.from_numpy(np.log(shares)).float().view(targets.shape), state

    def select(self, state: Tensor, rows: Tensor) -> Tensor:
        """The state of some rows of the batch, in the order of ``rows``."""
        return state[rows]

    def _read(self, inputs: Tensor, state: Tensor) -> tuple[NDArray[np.int32], Tensor]:
        """What lies before each next token, [W, T, N], and the new state."""
        history = histories(inputs.numpy(), state.numpy().T)
        return history, torch.from_numpy(history[:, -1].T.astype(np.int64))

    def _fired(self, history: NDArray[np.int32]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """For each type, positions of [T * N] where a known feature fires, and its row."""
        history = history.reshape(len(history), -1)
        for number, (keys, fires) in enumerate(feature_keys(history, self._types)):
            first, end = self._type_starts[number : number + 2]
            known = self._keys[first:end]
            if len(known) == 0:
                continue
            wanted = torch.from_numpy(keys)
            rows = torch.searchsorted(known, wanted).clamp_(max=len(known) - 1)
            positions = np.flatnonzero((known[rows] == wanted).numpy() & fires)
            yield positions, first + rows.numpy()[positions]


@dataclass(frozen=True, eq=False)
class TypeTable:
    """Counts of one feature type, as learning wants them. Its events are some tokens of the text, B in all.

    Attributes:
        counts: Counts of the whole text; features and pairs of the events only.
        fewest: How often a feature is seen at least.
        extensions: In how many contexts of one more word each pair was seen; 0 where that is not known, [P].
        only_extension: Whether an event's pair was seen in that event's context of one more word only there, [B].
        histogram_starts: Offset of each feature's first entry in its histogram, and of the end, [F + 1].
        codes: Codes (:func:`pair_codes`) of the feature's pairs, each once, [entries].
        masses: How often the pairs of that code were seen, [entries].
    """

    counts: TypeCounts
    fewest: int
    extensions: NDArray[np.int32]
    only_extension: NDArray[np.bool_]
    histogram_starts: NDArray[np.int32]
    codes: NDArray[np.uint8]
    masses: NDArray[np.int32]


def count(
    stream: TokenStream, vocabulary_size: int, types: Sequence[FeatureType], events: Ints, *, min_count: int = 1
) -> list[TypeTable]:
    """Count a text's features of every type.

    Args:
        stream: The text.
        vocabulary_size: V.
        types: The feature types.
        events: Offsets of the tokens that weights are to be learnt from, [B].
        min_count: Skip-grams seen fewer times than this are left out.
    """
    tables: list[TypeTable] = []
    counted = count_features(stream, vocabulary_size, types, min_count)
    longer: TypeCounts | None = None
    for number, kind in enumerate(types, 1):
        counts = next(counted) if longer is None else longer
        longer = None
        # Where they would all be alike, they take no memory.
        extensions = np.broadcast_to(np.int32(0), len(counts.targets))
        only_extension = np.broadcast_to(np.False_, len(events))
        if number < len(types) and not types[number].skipped:
            longer = next(counted)
            extensions = counts.extensions(longer)
            only_extension = np.append(longer.counts == 1, False)[longer.pair_of[events]]  # the last one is NOTHING's
        fewest = min_count if kind.skipped else 1
        histogram = _histograms(counts, extensions)
        tables.append(TypeTable(counts.at(events), fewest, extensions, only_extension, *histogram))
        del counts  # before the next type takes its memory
    return tables


def _histograms(
    counts: TypeCounts, extensions: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.int32]]:
    """Sum up each feature's counts by code: offsets of features, and of the end; codes; sums."""
    sizes, codes, masses = [np.zeros(1, np.int32)], [np.empty(0, np.uint8)], [np.empty(0, np.int32)]
    for features, pairs, owners in _spans(counts.row_starts):
        seen = counts.counts[pairs]
        places = owners * CODES + pair_codes(seen, extensions[pairs])
        order = np.argsort(places)
        places = places[order]
        starts = np.flatnonzero(np.diff(places, prepend=NOTHING))
        masses.append(np.add.reduceat(seen[order], starts))
        codes.append((places[starts] % CODES).astype(np.uint8))
        own = np.bincount(places[starts] // CODES, minlength=features.stop - features.start)
        sizes.append(own.astype(np.int32))
    return np.cumsum(np.concatenate(sizes), dtype=np.int32), np.concatenate(codes), np.concatenate(masses)


def _spans(row_starts: Ints) -> Iterator[tuple[slice, slice, NDArray[np.int64]]]:
    """Ranges of features that have some `SPAN` pairs, the range of these, and the feature of each, as its number there.

    Args:
        row_starts: Offset of each feature's first pair, and of the end, [F + 1].
    """
    bounds = np.searchsorted(row_starts[:-1], np.arange(0, row_starts[-1], SPAN))
    for first, end in itertools.pairwise(np.unique([*bounds, len(row_starts) - 1]).tolist()):
        owners = np.repeat(np.arange(end - first), np.diff(row_starts[first : end + 1]))
        yield slice(first, end), slice(int(row_starts[first]), int(row_starts[end])), owners


def buckets(numbers: NDArray[Any], limit: int) -> NDArray[np.int64]:
    """The bucket of each number from 1 on, floor(2 log2 n), all beyond the last of `limit` buckets being in that."""
    exponents: NDArray[np.int32] = np.frexp(np.square(numbers, dtype=np.float64))[1]
    return np.minimum(exponents.astype(np.int64) - 1, limit - 1)


def pair_codes(counts: Ints, extensions: Ints) -> NDArray[np.uint8]:
    """What the adjustment knows of a pair, as one number below `CODES`: two buckets.

    One is that of the pair's count. The other is that of its ratio to the number of contexts of one more word in which
    the pair was seen, the continuation count that Kneser-Ney smoothing builds on.

    Args:
        counts: How often each pair was seen, from 1 on.
        extensions: In how many contexts of one more word; 0 stands for as many as the count.
    """
    ratios = counts / np.where(extensions == 0, counts, extensions)
    return (buckets(counts, COUNT_BUCKETS) * RATIO_BUCKETS + buckets(ratios, RATIO_BUCKETS)).astype(np.uint8)


def weight_places(totals: Ints, targets: Ints, owners: Ints, codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Where a type's weights are whose sum is A(f, w).

    A type has ``[TOTAL_BUCKETS, COUNT_BUCKETS]`` weights for how often the feature and the pair were seen, then
    ``[COUNT_BUCKETS, RATIO_BUCKETS]`` for the two buckets of the pair, then ``[TOTAL_BUCKETS, RATIO_BUCKETS]`` for how
    often the feature was seen, and how often with each of its targets on average.

    Args:
        totals: How often each feature was seen, [features].
        targets: With how many different targets, [features].
        owners: The feature of each pair, as its number in the arrays before, [pairs].
        codes: What :func:`pair_codes` says of each pair, [pairs].

    Returns:
        The places of three weights of each pair, [3, pairs].
    """
    often = buckets(totals, TOTAL_BUCKETS)
    average = often * RATIO_BUCKETS + buckets(totals / targets, RATIO_BUCKETS)
    parts = ((often * COUNT_BUCKETS)[owners] + codes // RATIO_BUCKETS, codes, average[owners])
    return np.stack([start + part.astype(np.int64) for start, part in zip(PARTS, parts, strict=True)])


class LeftOut(NamedTuple):
    """What the features of one type say of some events, each under the counts of all other tokens.

    An event's row sums are made of entries: a mass, of counts over the feature's count, times exp(A).

    Attributes:
        events: The event of each entry, as its number among those asked for, [entries].
        places: Where the weights of A are, [3, entries].
        masses: [entries].
        hits: Offset of the last part of the entries, those of the events' own tokens.
    """

    events: NDArray[np.int64]
    places: NDArray[np.int64]
    masses: Floats
    hits: int


def leave_out(table: TypeTable, events: Ints) -> LeftOut:
    """Take each of some events out of the counts of a type, and look at what is left.

    Args:
        table: The counts.
        events: Numbers of events of the table.
    """
    counts = table.counts
    features = counts.feature_of[events]
    fires = np.flatnonzero(features != NOTHING)
    fires = fires[counts.totals[features[fires]] > table.fewest]
    feature, pair = features[fires], counts.pair_of[events[fires]]
    total, seen = counts.totals[feature] - 1, counts.counts[pair]
    left, extensions = seen - 1, table.extensions[pair] - table.only_extension[events[fires]]
    again = np.flatnonzero(left)  # features that still have the token
    targets = counts.row_starts[feature + 1] - counts.row_starts[feature] - (left == 0)

    # A row's sum is its histogram's, less the pair as it was, plus the pair as it is without the event.
    entries, owners = _ragged(table.histogram_starts[feature], table.histogram_starts[feature + 1])
    owners = np.concatenate([owners, np.arange(len(feature)), again])
    was, is_ = pair_codes(seen, table.extensions[pair]), pair_codes(left[again], extensions[again])
    masses = np.concatenate([table.masses[entries], -seen, left[again]]) / total[owners]
    places = weight_places(total, targets, owners, np.concatenate([table.codes[entries], was, is_]))
    return LeftOut(fires[owners], places, masses, len(owners) - len(again))


def leave_one_out(tables: Sequence[TypeTable], weights: Floats, events: Ints) -> tuple[Floats, Floats]:
    """The loss of some events, each under the counts of all other tokens of the text (Pelemans et al. 2016).

    Args:
        tables: Counts of each type.
        weights: Weights of the adjustment, [K, WEIGHTS].
        events: Numbers of events of the tables.

    Returns:
        -log P of each event in nats, [B], and the gradient of their mean, [K, WEIGHTS].
    """
    size = len(events)
    parts = [leave_out(table, events) for table in tables]
    values = [part.masses * np.exp(own[part.places].sum(0)) for own, part in zip(weights, parts, strict=True)]
    sums, shares = np.zeros(size), np.zeros(size)
    for part, value in zip(parts, values, strict=True):
        sums += np.bincount(part.events, value, size)
        shares += np.bincount(part.events[part.hits :], value[part.hits :], size)
    gradient = np.zeros_like(weights)
    for own, part, value in zip(gradient, parts, values, strict=True):
        slopes = value / sums[part.events]
        slopes[part.hits :] -= value[part.hits :] / shares[part.events[part.hits :]]
        for places in part.places:
            own += np.bincount(places, slopes, len(own))
    return np.log(sums / shares), gradient / size


def learn_adjustment(
    tables: Sequence[TypeTable], *, epochs: int, rate: float, say: Callable[[str], None] = lambda _: None
) -> Floats:
    """Learn the adjustment: least loss of the tables' events that are left out of the counts, by Adam, in minibatches.

    A bucket that few rows share may give the token away that was left out of them: its count is the one just below the
    edge. A prior keeps weights near 0 for which there is no more evidence than that.

    Args:
        tables: Counts of each type.
        epochs: Passes over the events.
        rate: Learning rate of the first step; it falls to 0 in a straight line.
        say: Called with the loss of every epoch.

    Returns:
        Its weights, [K, WEIGHTS].
    """
    events = len(tables[0].only_extension)
    learnt = np.zeros((len(tables), WEIGHTS))
    weights = torch.from_numpy(learnt)
    optimizer = torch.optim.Adam([weights], lr=rate)
    starts = range(0, events, BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, epochs * len(starts))
    draw = np.random.default_rng(SEED)
    for epoch in range(epochs if events else 0):
        begun, nats = time.perf_counter(), 0.0
        order = draw.permutation(events)
        for start in starts:
            losses, gradient = leave_one_out(tables, learnt, order[start : start + BATCH])
            nats += losses.sum()
            weights.grad = torch.from_numpy(gradient + PRECISION * learnt / events)
            optimizer.step()
            schedule.step()
        speed = events / (time.perf_counter() - begun)
        say(f"epoch {epoch + 1}: {nats / events:.4f} nats a token that is left out, {speed:,.0f} tokens/s")
    return learnt


def matrix(tables: list[TypeTable], weights: Floats) -> dict[str, Tensor]:
    """The matrix M of counts and adjustment, as :meth:`SparseNonnegativeLM.tensors` describes it.

    Args:
        tables: Counts of each type; they are taken out of the list one by one, so that they and the matrix are never in
            memory both whole.
        weights: Weights of the adjustment, [K, WEIGHTS].
    """
    type_starts = np.cumsum([0, *(len(table.counts.keys) for table in tables)])
    pairs = sum(len(table.counts.targets) for table in tables)
    offsets = np.int32 if pairs <= np.iinfo(np.int32).max else np.int64
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in ("keys", "sums", "row_starts", "targets", "weights")}
    begin = 0  # of the type's pairs
    for own in weights:
        table = tables.pop(0)
        counts = table.counts
        sums, values = np.empty(len(counts.keys), np.float32), np.empty(len(counts.targets), np.float32)
        for rows, part, owners in _spans(counts.row_starts):
            totals, seen = counts.totals[rows], counts.counts[part]
            targets = np.diff(counts.row_starts[rows.start : rows.stop + 1])
            places = weight_places(totals, targets, owners, pair_codes(seen, table.extensions[part]))
            values[part] = np.exp(own[places].sum(0)) * seen / totals[owners]
            sums[rows] = np.bincount(owners, values[part], len(totals))
        row_starts = np.add(counts.row_starts[:-1], begin, dtype=offsets)
        columns: tuple[NDArray[Any], ...] = (counts.keys, sums, row_starts, counts.targets, values)
        for name, array in zip(parts, columns, strict=True):
            parts[name].append(array)
        begin += len(values)
        del table, counts
    parts["row_starts"].append(np.array([pairs], offsets))
    arrays = {"type_starts": type_starts, **{name: np.concatenate(parts.pop(name)) for name in tuple(parts)}}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _check(types: Sequence[FeatureType], vocabulary_size: int, tensors: Mapping[str, Tensor]) -> None:
    """Say whether tensors can be the matrix of these types, without reading all of them.

    Raises:
        UserError: they cannot.
    """
    integers, floats = (torch.int32, torch.int64), (torch.float32,)
    columns = {
        "type_starts": integers[1:],
        "keys": integers[1:],
        "sums": floats,
        "row_starts": integers,
        "targets": integers[:1],
        "weights": floats,
    }
    if strange := columns.keys() ^ tensors.keys():
        raise _foreign(f"{min(strange)} is missing or one too many")
    for name, dtypes in columns.items():
        tensor = tensors[name]
        if tensor.dtype not in dtypes or tensor.ndim != 1:
            raise _foreign(f"{name}: expected one dimension of {dtypes[0]}, found {tensor.ndim} of {tensor.dtype}")
    type_starts, row_starts = tensors["type_starts"], tensors["row_starts"]
    if len(type_starts) != len(types) + 1:
        raise _foreign(f"expected {len(types)} feature types by the settings, found {len(type_starts) - 1}")
    if type_starts[0] != 0 or (type_starts.diff() < 0).any():
        raise _foreign("the types do not ascend")
    features, pairs = int(type_starts[-1]), len(tensors["targets"])
    for name, length in {"keys": features, "sums": features, "row_starts": features + 1, "weights": pairs}.items():
        if len(tensors[name]) != length:
            raise _foreign(f"{name}: expected {length} entries by the other tensors, found {len(tensors[name])}")
    if row_starts[0] != 0 or row_starts[-1] != pairs:
        raise _foreign(f"expected rows of {pairs} pairs, found {int(row_starts[-1] - row_starts[0])}")
    if type_starts[1] != 1 or row_starts[1] != vocabulary_size:  # the empty feature's row has every token
        raise _foreign(f"expected a vocabulary of {vocabulary_size} tokens, found {int(row_starts[1:2].sum())}")


def _foreign(what: str) -> UserError:
    return UserError(
        f"weights of a sparse non-negative matrix: {what}; the file belongs to another model, or its settings were"
        " changed: restore it or train again"
    )


def _ragged(starts: Ints, ends: Ints) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All numbers from each start to its end, one range after the other, and the number of each one's range."""
    lengths = ends - starts
    owners = np.repeat(np.arange(len(lengths)), lengths)
    return np.arange(len(owners)) + (starts - (np.cumsum(lengths) - lengths))[owners], owners


def _lower_bounds(values: Ints, starts: Ints, ends: Ints, wanted: Ints) -> NDArray[np.int64]:
    """In each range of `values`, which ascend there, the first place that is not below what is wanted of it."""
    low, high = starts.astype(np.int64), ends.astype(np.int64)
    for _ in range(int((high - low).max(initial=0)).bit_length()):
        middle = (low + high) // 2
        below = (low < high) & (values[np.minimum(middle, len(values) - 1)] < wanted)
        low, high = np.where(below, middle + 1, low), np.where(below, high, middle)
    return low
