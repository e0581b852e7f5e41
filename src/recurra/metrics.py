"""How good predictions are: the number that each field reports, counted as its own script or library counts it.

====================  ===========================================  =========================================
task                  metrics                                      as defined by
====================  ===========================================  =========================================
tags, labels          accuracy, macro F1, precision, recall        scikit-learn's names and averages
spans (entities)      precision, recall, F1, of whole spans        ``conlleval``, or ``seqeval`` in strict mode
translation           BLEU, chrF                                   ``sacrebleu``, whose signature comes along
reading               exact match, F1 of words                     SQuAD's evaluation script, version 2
transcription         word and character error rate                edits of the corpus over its length
====================  ===========================================  =========================================

Every result is a small dataclass; ``dataclasses.asdict`` makes JSON of it. All are shares from 0 to 1, but BLEU and
chrF, which go from 0 to 100, and error rates, which have no upper bound. What is undefined for want of anything to
count, such as the precision of a class that was never predicted, is 0.
"""

from __future__ import annotations

import importlib.util
import re
import string
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from recurra.config import UserError

__all__ = [
    "Classification",
    "Edits",
    "Reading",
    "ReadingPart",
    "Scores",
    "Spans",
    "Transcription",
    "Translation",
    "accuracy",
    "classification",
    "edits",
    "reading",
    "require",
    "spans",
    "transcription",
    "translation",
]

Scheme: TypeAlias = Literal["bio", "bioes"]  # named as in text/tag_schemes.py
Span: TypeAlias = tuple[str, int, int]  # type, first token, last token

CELLS = 1 << 16  # of edit-distance tables that are worked on side by side: they fit a processor's cache
LIBRARIES = {"seqeval": ("spans", "tag"), "sacrebleu": ("translations", "translate")}  # what scores need; the extra
ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Scores:
    """Precision, recall and F1 of one class or type, and how often it is in the gold data."""

    precision: float
    recall: float
    f1: float
    support: int

    @classmethod
    def of(cls, correct: int, predicted: int, gold: int) -> Scores:
        """From counts."""
        total = predicted + gold
        return cls(
            precision=correct / predicted if predicted else 0.0,
            recall=correct / gold if gold else 0.0,
            f1=2 * correct / total if total else 0.0,
            support=gold,
        )


@dataclass(frozen=True)
class Classification:
    """How well labels were predicted.

    Attributes:
        accuracy: Share of labels that are right.
        macro_precision: Mean of the classes' precisions.
        macro_recall: Mean of the classes' recalls.
        macro_f1: Mean of the classes' F1; a class counts if it is in the gold data or was predicted.
        per_class: Scores of each class, in the order of `labels`.
        labels: All classes, sorted.
        confusion: How often gold label i (a row) was predicted as label j (a column).
    """

    accuracy: float
    macro_precision: float
    macro_recall: float
    macro_f1: float
    per_class: dict[str, Scores]
    labels: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Spans:
    """How well spans were found: one is right if its type, its first and its last token are.

    Attributes:
        accuracy: Share of single tags that are right.
        precision: Share of predicted spans that are right, over all types (micro average).
        recall: Share of gold spans that were found, over all types.
        f1: The harmonic mean of the two: what is reported.
        macro_precision: Mean of the types' precisions.
        macro_recall: Mean of the types' recalls.
        macro_f1: Mean of the types' F1.
        support: Gold spans.
        per_type: Scores of each type, sorted by name.
        scheme: How tags say where a span begins and ends.
        strict: Whether only well-formed spans counted.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    macro_precision: float
    macro_recall: float
    macro_f1: float
    support: int
    per_type: dict[str, Scores]
    scheme: Scheme
    strict: bool


@dataclass(frozen=True)
class Translation:
    """BLEU and chrF of a corpus, 0 to 100, and the signatures that say how they were computed."""

    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str


@dataclass(frozen=True)
class ReadingPart:
    """Scores of some of the questions."""

    exact_match: float
    f1: float
    questions: int


@dataclass(frozen=True)
class Reading:
    """How well questions were answered.

    Attributes:
        accuracy: Share of predictions that are one of the answers, to the letter.
        exact_match: The same after normalisation: case, punctuation, articles and white space are no matter.
        f1: Mean over questions of the F1 of words, that of the answer which fits best.
        questions: How many there are.
        answerable: Scores of those that have an answer; None if none has.
        unanswerable: Scores of those that have none; None if all have one.
    """

    accuracy: float
    exact_match: float
    f1: float
    questions: int
    answerable: ReadingPart | None
    unanswerable: ReadingPart | None


@dataclass(frozen=True)
class Edits:
    """The edits that make references of hypotheses: the fewest, and of those ways the one that leaves most in place.

    Attributes:
        substitutions: Tokens that are another in the hypothesis.
        insertions: Tokens of the hypothesis that the reference does not have.
        deletions: Tokens of the reference that the hypothesis does not have.
        length: Tokens of the reference.
    """

    substitutions: int
    insertions: int
    deletions: int
    length: int

    @property
    def total(self) -> int:
        """The edit distance (Levenshtein 1966)."""
        return self.substitutions + self.insertions + self.deletions

    @property
    def rate(self) -> float:
        """Edits per token of the reference; 0 for nothing at all, infinite where only the reference is empty."""
        if self.length:
            return self.total / self.length
        return float("inf") if self.total else 0.0

    def __add__(self, other: Edits) -> Edits:
        return Edits(
            self.substitutions + other.substitutions,
            self.insertions + other.insertions,
            self.deletions + other.deletions,
            self.length + other.length,
        )


@dataclass(frozen=True)
class Transcription:
    """Word and character error rate of a corpus, and the edits that they are made of."""

    wer: float
    cer: float
    words: Edits
    characters: Edits


def require(library: str) -> None:
    """Refuse to go on without a library that scores are computed by: better before training than after.

    Raises:
        UserError: it is not installed; the text says how to install it.
    """
    if importlib.util.find_spec(library) is None:
        what, extra = LIBRARIES[library]
        raise UserError(f"scores of {what} need {library}: pip install 'recurra[{extra}]'")


def accuracy(gold: Sequence[object], predicted: Sequence[object]) -> float:
    """Return the share of predictions that are right.

    Raises:
        UserError: nothing to compare, or not as many predictions as gold labels.
    """
    _check(gold, predicted, "labels", "predictions")
    return sum(a == b for a, b in zip(gold, predicted, strict=True)) / len(gold)


def classification(gold: Sequence[str], predicted: Sequence[str]) -> Classification:
    """Compare predicted labels with gold ones, one for each example.

    Raises:
        UserError: nothing to compare, or not as many predictions as gold labels.
    """
    _check(gold, predicted, "labels", "predictions")
    labels = tuple(sorted({*gold, *predicted}))
    place = {label: i for i, label in enumerate(labels)}
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, ([place[label] for label in gold], [place[label] for label in predicted]), 1)
    correct, columns, rows = confusion.diagonal().tolist(), confusion.sum(0).tolist(), confusion.sum(1).tolist()
    per_class = {label: Scores.of(*counts) for label, *counts in zip(labels, correct, columns, rows, strict=True)}
    return Classification(
        accuracy=sum(correct) / len(gold),
        macro_precision=_mean(scores.precision for scores in per_class.values()),
        macro_recall=_mean(scores.recall for scores in per_class.values()),
        macro_f1=_mean(scores.f1 for scores in per_class.values()),
        per_class=per_class,
        labels=labels,
        confusion=tuple(map(tuple, confusion.tolist())),
    )


def spans(
    gold: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    *,
    scheme: Scheme = "bio",
    strict: bool | None = None,
) -> Spans:
    """Compare the spans that two sequences of tags mark in each sentence. Needs seqeval.

    Tags are ``O``, or a letter of the scheme, a dash and a type: ``B-PER``. Read leniently, as the CoNLL shared tasks'
    ``conlleval`` does, every run of tags of one type is a span, even one that begins with ``I-``: that is the number
    usually reported for BIO. Read strictly, a span that the scheme does not allow is none.

    Args:
        gold: The right tags of each sentence.
        predicted: As many tags for as many sentences.
        scheme: ``bio`` (also known as IOB2) or ``bioes`` (IOBES).
        strict: Whether to read strictly; if None, BIOES is and BIO is not.

    Raises:
        UserError: seqeval is missing, nothing to compare, not as many tags, or a tag that is not of the scheme.
    """
    require("seqeval")
    from seqeval.metrics.sequence_labeling import get_entities
    from seqeval.scheme import IOB2, IOBES, Entities

    if scheme not in ("bio", "bioes"):
        raise UserError(f"scheme: expected bio or bioes, got {scheme!r}")
    if strict is None:
        strict = scheme == "bioes"
    _check(gold, predicted, "sentences of gold tags", "sentences of predicted tags")
    letters = "BI" if scheme == "bio" else "BIES"
    pairs = [(list(right), list(guessed)) for right, guessed in zip(gold, predicted, strict=True)]
    for number, (right, guessed) in enumerate(pairs, 1):
        if len(right) != len(guessed):
            raise UserError(
                f"sentence {number}: expected as many predicted tags as gold ones, got {len(guessed)} and {len(right)}"
            )
        for tag in (*right, *guessed):
            if tag != "O" and not (tag[:1] and tag[0] in letters and tag[1:2] in ("", "-")):
                raise UserError(f"sentence {number}: expected {scheme.upper()} tags such as O and B-PER, got {tag!r}")

    def spans_of(sentences: list[list[str]]) -> list[set[Span]]:
        if not strict:
            return [set(get_entities(tags)) for tags in sentences]
        found = Entities(sentences, IOBES if scheme == "bioes" else IOB2).entities
        return [{(span.tag, span.start, span.end) for span in sentence} for sentence in found]

    count: dict[str, Counter[str]] = {"correct": Counter(), "predicted": Counter(), "gold": Counter()}
    right_side, guessed_side = spans_of([right for right, _ in pairs]), spans_of([guessed for _, guessed in pairs])
    for right_spans, guessed_spans in zip(right_side, guessed_side, strict=True):
        count["correct"].update(type for type, _, _ in right_spans & guessed_spans)
        count["predicted"].update(type for type, _, _ in guessed_spans)
        count["gold"].update(type for type, _, _ in right_spans)
    types = sorted(count["gold"].keys() | count["predicted"].keys())
    per_type = {type: Scores.of(*(counter[type] for counter in count.values())) for type in types}
    micro = Scores.of(*(counter.total() for counter in count.values()))
    return Spans(
        accuracy=_mean(float(a == b) for pair in pairs for a, b in zip(*pair, strict=True)),
        precision=micro.precision,
        recall=micro.recall,
        f1=micro.f1,
        macro_precision=_mean(scores.precision for scores in per_type.values()),
        macro_recall=_mean(scores.recall for scores in per_type.values()),
        macro_f1=_mean(scores.f1 for scores in per_type.values()),
        support=micro.support,
        per_type=per_type,
        scheme=scheme,
        strict=strict,
    )


def translation(
    hypotheses: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    *,
    tokenize: str = "13a",
    lowercase: bool = False,
) -> Translation:
    """Score translations by BLEU (Papineni et al. 2002) and chrF (Popović 2015). Needs sacrebleu.

    Args:
        hypotheses: A translation of each sentence, as text, not split into tokens.
        references: Of each sentence a good translation, or several; not all need have as many.
        tokenize: sacrebleu's tokenizer, for BLEU: ``13a``, ``intl``, ``zh``, ``char``, ``none``, ...
        lowercase: Whether case is no matter, to both.

    Raises:
        UserError: sacrebleu is missing, nothing to compare, not as many hypotheses as references, a sentence without
            a reference, or a tokenizer that is unknown or not installed.
    """
    require("sacrebleu")
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    _check(references, hypotheses, "references", "hypotheses")
    if tokenize not in BLEU.TOKENIZERS:
        raise UserError(f"tokenize: expected one of {', '.join(BLEU.TOKENIZERS)}; got {tokenize!r}")
    choices = [(given,) if isinstance(given, str) else tuple(given) for given in references]
    for number, given in enumerate(choices, 1):
        if not given:
            raise UserError(f"sentence {number}: expected a reference at least, got none")
    most = max(map(len, choices))
    # sacrebleu wants the first reference of every sentence, the second of every sentence, ...; None where there is none
    streams: list[Any] = [[given[i] if i < len(given) else None for given in choices] for i in range(most)]
    try:
        bleu = BLEU(tokenize=tokenize, lowercase=lowercase, force=True)
    except (ImportError, RuntimeError) as error:
        raise UserError(f"tokenize: {tokenize} needs more than is installed: {error}") from None
    chrf = CHRF(lowercase=lowercase)
    return Translation(
        bleu=float(bleu.corpus_score(list(hypotheses), streams).score),
        chrf=float(chrf.corpus_score(list(hypotheses), streams).score),
        bleu_signature=str(bleu.get_signature()),
        chrf_signature=str(chrf.get_signature()),
    )


def reading(gold: Sequence[str] | Sequence[Sequence[str]], predicted: Sequence[str]) -> Reading:
    """Score answers as SQuAD's evaluation script does (Rajpurkar et al. 2016; version 2: 2018).

    Texts are compared in lower case, without punctuation (ASCII), articles and surplus white space; the answer that
    fits best counts. A question without answers is answered right by the empty text only. Where an answer or a
    prediction has no words left, F1 is 1 if both have none, otherwise 0.

    Args:
        gold: The answers of each question: one, several, or an empty list where the text has none.
        predicted: The answer to each question; the empty text says that there is none.

    Raises:
        UserError: nothing to compare, or not as many predictions as questions.
    """
    _check(gold, predicted, "questions", "predictions")
    answers = [(given,) if isinstance(given, str) else tuple(given) for given in gold]
    literal, exact, overlap = [], [], []
    for given, guess in zip(answers, predicted, strict=True):
        literal.append(float(guess in (given or ("",))))
        # as the script has it: answers of which nothing is left do not count, unless there are no others
        normal = list(filter(None, map(_normalized, given))) or [""]
        exact.append(float(_normalized(guess) in normal))
        overlap.append(max(_overlap(answer.split(), _normalized(guess).split()) for answer in normal))

    def part(chosen: list[int]) -> ReadingPart | None:
        if not chosen:
            return None
        return ReadingPart(_mean(exact[i] for i in chosen), _mean(overlap[i] for i in chosen), len(chosen))

    return Reading(
        accuracy=_mean(literal),
        exact_match=_mean(exact),
        f1=_mean(overlap),
        questions=len(answers),
        answerable=part([i for i, given in enumerate(answers) if given]),
        unanswerable=part([i for i, given in enumerate(answers) if not given]),
    )


def transcription(hypotheses: Sequence[str], references: Sequence[str]) -> Transcription:
    """Word and character error rate: edits of the whole corpus over the length of its references.

    Words are what stands between white space. Characters include one space between words. Case and punctuation count:
    whoever does not want that brings both sides to one form before.

    Raises:
        UserError: nothing to compare, not as many hypotheses as references, or references without a word.
    """
    _check(references, hypotheses, "references", "hypotheses")
    hypothesis_words = [text.split() for text in hypotheses]
    reference_words = [text.split() for text in references]
    if not any(reference_words):
        raise UserError("references: expected at least one word to measure errors by, got only empty texts")
    words = edits(hypothesis_words, reference_words)
    characters = edits(list(map(" ".join, hypothesis_words)), list(map(" ".join, reference_words)))
    return Transcription(wer=words.rate, cer=characters.rate, words=words, characters=characters)


def edits(hypotheses: Sequence[Sequence[Hashable]], references: Sequence[Sequence[Hashable]]) -> Edits:
    """Count the edits between pairs of token sequences, summed over all pairs; tokens are anything that hashes.

    The table of Wagner and Fischer (1974) row by row, for many pairs at once. A substitution costs very little more
    than an insertion or a deletion, so that one number counts the edits and, among ways with as few, the substitutions;
    the two lengths then say how many of the rest are insertions.

    Raises:
        UserError: not as many hypotheses as references.
    """
    if len(hypotheses) != len(references):
        raise UserError(f"expected as many hypotheses as references, got {len(hypotheses)} and {len(references)}")
    longest = [max(map(len, pair)) for pair in zip(hypotheses, references, strict=True)]  # both sides are padded
    order = sorted(range(len(longest)), key=lambda i: longest[i])
    result = Edits(0, 0, 0, 0)
    while order:
        # the longest first: as many pairs of about its length as there is room for
        size = max(1, CELLS // (longest[order[-1]] + 1))
        chosen, order = order[-size:], order[:-size]
        result += _count_edits([hypotheses[i] for i in chosen], [references[i] for i in chosen])
    return result


def _count_edits(hypotheses: Sequence[Sequence[Hashable]], references: Sequence[Sequence[Hashable]]) -> Edits:
    """The edits of some pairs, all in one table a row: what is beyond the end of one is never read."""
    numbers: dict[Hashable, int] = {}

    def padded(sequences: Sequence[Sequence[Hashable]], filling: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        lengths = np.array([len(sequence) for sequence in sequences])
        table = np.full((len(sequences), lengths.max()), filling, np.int64)
        for row, sequence in zip(table, sequences, strict=True):
            row[: len(sequence)] = [numbers.setdefault(token, len(numbers)) for token in sequence]
        return table, lengths

    across, across_lengths = padded(hypotheses, -1)
    down, down_lengths = padded(references, -2)
    one = int(across_lengths.max() + down_lengths.max()) + 1  # an edit; more than there can be substitutions
    insertions = one * np.arange(across.shape[1] + 1)
    costs = np.empty((len(across), across.shape[1] + 1), np.int64)
    row = np.broadcast_to(insertions, costs.shape).copy()
    for i in range(down.shape[1] + 1):
        ending = down_lengths == i
        costs[ending] = row[ending]
        if i == down.shape[1]:
            break
        changed = row[:, :-1] + (across != down[:, i : i + 1]) * (one + 1)  # kept, or substituted
        row += one  # deleted
        np.minimum(row[:, 1:], changed, out=row[:, 1:])
        # inserted, any number of times in a row: a running minimum, where an insertion costs nothing
        row -= insertions
        np.minimum.accumulate(row, axis=1, out=row)
        row += insertions
    total, substitutions = np.divmod(costs[np.arange(len(costs)), across_lengths], one)
    surplus = across_lengths - down_lengths  # insertions less deletions
    inserted = (total - substitutions + surplus) // 2
    return Edits(
        substitutions=int(substitutions.sum()),
        insertions=int(inserted.sum()),
        deletions=int((inserted - surplus).sum()),
        length=int(down_lengths.sum()),
    )


def _normalized(answer: str) -> str:
    """SQuAD's normal form: lower case, then no punctuation, then no articles, then single spaces."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(NO_PUNCTUATION)).split())


def _overlap(gold: list[str], predicted: list[str]) -> float:
    """F1 of two bags of words."""
    if not gold or not predicted:
        return float(gold == predicted)
    return 2 * (Counter(gold) & Counter(predicted)).total() / (len(gold) + len(predicted))


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def _check(gold: Sequence[object], predicted: Sequence[object], gold_name: str, predicted_name: str) -> None:
    if len(gold) != len(predicted):
        raise UserError(f"expected as many {predicted_name} as {gold_name}, got {len(predicted)} and {len(gold)}")
    if not len(gold):
        raise UserError(f"expected {gold_name} and {predicted_name} to compare, got none")
