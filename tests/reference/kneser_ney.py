"""Interpolated Kneser-Ney in dictionaries, word by word as the papers define it, and querying by backing off.

N-grams are tuples of words; lines begin with "<s>" and end with "</s>", and "<unk>" stands for unknown words.
"""

from collections import Counter, defaultdict


def estimate(lines, words, *, order, smoothing, thresholds, interpolate_unigrams):
    """Probabilities and back-off weights by n-gram; undefined discounts fall back.

    `lines` are lists of words, `words` all words of the vocabulary ("<unk>" and "</s>" among them, not "<s>"), and
    `thresholds` says for each order up to which raw count n-grams are dropped.
    """
    padded = [("<s>", *line, "</s>") for line in lines]
    raw = {
        k: Counter(line[i : i + k] for line in padded for i in range(len(line) - k + 1)) for k in range(1, order + 1)
    }
    del raw[1][("<s>",)]  # nobody predicts it
    probabilities, backoffs = {}, {}
    for k in range(1, order + 1):
        adjusted = dict(raw[k])
        if k < order:
            left = Counter(ngram[1:] for ngram in raw[k + 1])
            adjusted = {g: count if g[0] == "<s>" else left[g] for g, count in raw[k].items()}
        if k == 1:
            adjusted = {(word,): adjusted.get((word,), 0) for word in words}
        discount = discounts(adjusted.values(), smoothing)
        continuations = defaultdict(list)
        for ngram in adjusted:
            continuations[ngram[:-1]].append(ngram)
        for history, ngrams in continuations.items():
            kept = [g for g in ngrams if k == 1 or raw[k][g] > thresholds[k - 1]]
            total = sum(adjusted[g] for g in ngrams)
            free = sum(discount[min(adjusted[g], 3)] for g in kept)
            free += sum(adjusted[g] for g in ngrams if g not in kept)
            if history:
                backoffs[history] = free / total
            for g in kept:
                if k > 1:
                    below = probabilities[g[1:]]
                elif interpolate_unigrams:
                    below = 1 / len(words)
                else:
                    below = g == ("<unk>",)
                probabilities[g] = (adjusted[g] - discount[min(adjusted[g], 3)]) / total + free / total * below
    return probabilities, backoffs


def discounts(counts, smoothing):
    n = Counter(counts)
    if smoothing == "kneser-ney":
        if not (n[1] and n[2]):
            return [0, 0.5, 0.5, 0.5]
        return [0, *[n[1] / (n[1] + 2 * n[2])] * 3]
    if not (n[1] and n[2] and n[3]):
        return [0, 0.5, 1, 1.5]
    y = n[1] / (n[1] + 2 * n[2])
    modified = [1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
    if not all(0 <= d <= j for j, d in enumerate(modified, 1)):
        return [0, 0.5, 1, 1.5]
    return [0, *modified]


def query(probabilities, backoffs, word, history):
    """p(word | history), of whatever length the history is."""
    if (*history, word) in probabilities:
        return probabilities[*history, word]
    if not history:
        return 0.0
    return backoffs.get(history, 1.0) * query(probabilities, backoffs, word, history[1:])
