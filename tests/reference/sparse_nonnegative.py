"""The sparse non-negative matrix language model in dictionaries, all counts made anew for every event left out."""

import math
from collections import Counter, defaultdict

LINE_END = 1
TOTAL_BUCKETS, COUNT_BUCKETS, RATIO_BUCKETS = 32, 24, 8


def bucket(number, limit):
    return min(math.floor(2 * math.log2(number)), limit - 1)


def fired(history, types, longer=False):
    """Type number and words of each feature that a history, its latest word last, lets fire.

    Where asked, also the words that its one-word extension to the left has, None for skip-grams, the longest n-gram
    contexts and those that begin their line.
    """
    contexts = sum(skipped == 0 for _, skipped, _ in types)
    for kind, (remote, skipped, adjacent) in enumerate(types):
        span = remote + skipped + adjacent
        if span > len(history):
            continue
        near = tuple(history[len(history) - adjacent :])
        end = len(history) - adjacent - skipped
        words = tuple(history[end - remote : end]) + near
        if not longer:
            yield kind, words
            continue
        extended = None
        if not skipped and adjacent + 1 < contexts and adjacent < len(history):
            extended = tuple(history[len(history) - adjacent - 1 :])
        yield kind, words, extended


def events(tokens):
    """Every token with the words of its line before it, the line end that begins the line first."""
    history = [LINE_END]
    for token in tokens:
        yield tuple(history), token
        history = [LINE_END] if token == LINE_END else [*history, token]


class Dictionaries:
    """The model of some events.

    Args:
        counted: Histories and the tokens after them.
        vocabulary_size: V.
        types: Triples of remote, skipped and adjacent words.
        parts: The adjustment's three tables of weights.
        min_count: Least count of a skip-gram.
    """

    def __init__(self, counted, vocabulary_size, types, parts, min_count=1):
        self.types = types
        self.vocabulary_size = vocabulary_size
        self.parts = parts
        self.counts = defaultdict(Counter)
        self.extensions = defaultdict(set)
        for history, token in counted:
            for kind, words, extended in fired(history, types, longer=True):
                self.counts[kind, words][token] += 1
                if extended is not None:
                    self.extensions[kind, words, token].add(extended)
        for token in range(vocabulary_size):
            self.counts[0, ()][token] += 1
        for feature in list(self.counts):
            if types[feature[0]][1] and self.counts[feature].total() < min_count:
                del self.counts[feature]

    def row(self, feature):
        """The weights of a feature's targets."""
        kind, words = feature
        row, total = self.counts[feature], self.counts[feature].total()
        a, b, c = self.parts
        seen = bucket(total, TOTAL_BUCKETS)
        average = bucket(total / len(row), RATIO_BUCKETS)
        weights = {}
        for token, count in row.items():
            contexts = len(self.extensions.get((kind, words, token), ())) or count
            often = bucket(count, COUNT_BUCKETS)
            spread = bucket(count / contexts, RATIO_BUCKETS)
            adjustment = a[kind][seen][often] + b[kind][often][spread] + c[kind][seen][average]
            weights[token] = math.exp(adjustment) * count / total
        return weights

    def probabilities(self, history):
        """The probability of every token after a history."""
        shares = [0.0] * self.vocabulary_size
        for feature in fired(history, self.types):
            if feature in self.counts:
                for token, weight in self.row(feature).items():
                    shares[token] += weight
        return [share / math.fsum(shares) for share in shares]


def left_out_loss(tokens, chosen, vocabulary_size, types, parts, min_count=1):
    """-log P of each chosen token, in nats, under the counts of all other tokens of the text."""
    everything = list(events(tokens))
    losses = []
    for place in chosen:
        others = everything[:place] + everything[place + 1 :]
        model = Dictionaries(others, vocabulary_size, types, parts, min_count)
        history, token = everything[place]
        losses.append(-math.log(model.probabilities(history)[token]))
    return losses
