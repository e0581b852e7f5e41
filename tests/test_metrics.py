"""Metrics, against the libraries and scripts that define them, enumeration, and small cases counted by hand."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra import metrics as metrics_module
from recurra.config import UserError
from recurra.metrics import (
    Edits,
    ReadingPart,
    Scores,
    accuracy,
    classification,
    edits,
    reading,
    require,
    spans,
    transcription,
    translation,
)

LABELS = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("bcde")), min_size=1, max_size=30)


def as_json(result):
    return json.loads(json.dumps(dataclasses.asdict(result)))


# ---- labels -----------------------------------------------------------------------------------------------------


def test_accuracy():
    assert accuracy(["a", "b", "c", "a"], ["a", "b", "a", "c"]) == 0.5


def test_classification_by_hand():
    result = classification(["a", "a", "a", "b"], ["a", "a", "b", "c"])
    assert result.labels == ("a", "b", "c")
    assert result.confusion == ((2, 1, 0), (0, 0, 1), (0, 0, 0))
    assert result.per_class == {
        "a": Scores(precision=1.0, recall=2 / 3, f1=0.8, support=3),
        "b": Scores(precision=0.0, recall=0.0, f1=0.0, support=1),
        "c": Scores(precision=0.0, recall=0.0, f1=0.0, support=0),
    }
    assert (result.accuracy, result.macro_f1) == (0.5, pytest.approx(0.8 / 3))
    assert as_json(result).keys() >= {"accuracy", "macro_f1", "per_class", "labels", "confusion"}


@settings(max_examples=40)  # scikit-learn takes its time
@given(LABELS)
def test_classification_agrees_with_scikit_learn(pairs):
    pytest.importorskip("sklearn")
    from sklearn import metrics

    gold, predicted = zip(*pairs, strict=True)
    result = classification(gold, predicted)
    each = metrics.precision_recall_fscore_support(gold, predicted, zero_division=0)
    for place, scores in enumerate(result.per_class.values()):
        assert dataclasses.astuple(scores) == pytest.approx([column[place] for column in each])
    macro = metrics.precision_recall_fscore_support(gold, predicted, average="macro", zero_division=0)
    assert (result.macro_precision, result.macro_recall, result.macro_f1) == pytest.approx(macro[:3])
    assert result.accuracy == accuracy(gold, predicted) == pytest.approx(metrics.accuracy_score(gold, predicted))
    labels = list(result.labels)
    if len(labels) == 1:  # which scikit-learn warns of
        return
    assert [list(row) for row in result.confusion] == metrics.confusion_matrix(gold, predicted, labels=labels).tolist()


# ---- spans ------------------------------------------------------------------------------------------------------


def sentences(seed, letters):
    """Random tags of both sides, well-formed or not; a type LOC is in the gold data only, ORG in the predicted."""
    source = random.Random(seed)
    lengths = [source.randrange(8) for _ in range(12)] + [5]

    def side(types):
        tags = ["O", "O", *(f"{letter}-{kind}" for letter in letters for kind in types)]
        return [[source.choice(tags) for _ in range(length)] for length in lengths]

    return side(["PER", "MISC", "LOC"]), side(["PER", "MISC", "ORG"])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("scheme", "strict"), [("bio", None), ("bio", True), ("bioes", None), ("bioes", False)])
def test_spans_agree_with_seqeval(scheme, strict, seed):
    metrics = pytest.importorskip("seqeval.metrics")
    from seqeval.scheme import IOB2, IOBES

    gold, predicted = sentences(seed, "BI" if scheme == "bio" else "BIES")
    predicted = [g if i % 3 == 0 else p for i, (g, p) in enumerate(zip(gold, predicted, strict=True))]
    result = spans(gold, predicted, scheme=scheme, strict=strict)
    assert (result.scheme, result.strict) == (scheme, (scheme == "bioes") if strict is None else strict)
    how = {"zero_division": 0}
    if result.strict:
        how |= {"mode": "strict", "scheme": IOB2 if scheme == "bio" else IOBES}
    report = metrics.classification_report(gold, predicted, output_dict=True, **how)
    named = {"precision": "precision", "recall": "recall", "f1": "f1-score", "support": "support"}
    for kind, scores in result.per_type.items():
        for ours, theirs in named.items():
            assert getattr(scores, ours) == pytest.approx(report[kind][theirs])
    assert result.per_type.keys() == report.keys() - {"micro avg", "macro avg", "weighted avg"}
    for ours, theirs in named.items():
        assert getattr(result, ours) == pytest.approx(report["micro avg"][theirs])
        if ours != "support":
            assert getattr(result, f"macro_{ours}") == pytest.approx(report["macro avg"][theirs])
    assert result.accuracy == pytest.approx(metrics.accuracy_score(gold, predicted))


def test_lenient_and_strict_spans():
    pytest.importorskip("seqeval")
    gold, predicted = [["B-PER", "I-PER", "O"]], [("I-PER", "I-PER", "O")]  # a tuple, too
    assert spans(gold, predicted).f1 == 1.0  # as conlleval counts
    assert spans(gold, predicted, strict=True).f1 == 0.0
    assert spans([["B-A", "E-A"]], [["B-A", "I-A"]], scheme="bioes").f1 == 0.0


def test_no_spans_at_all():
    pytest.importorskip("seqeval")
    result = spans([["O"], []], [["O"], []])
    assert (result.f1, result.macro_f1, result.accuracy, result.per_type) == (0.0, 0.0, 1.0, {})
    assert spans([["O"]], [["O"]], scheme="bioes").f1 == 0.0
    assert as_json(result).keys() >= {"precision", "recall", "f1", "macro_f1", "accuracy", "per_type", "scheme"}


@pytest.mark.parametrize(
    ("gold", "predicted", "options", "message"),
    [
        ([["O"]], [["O"], ["O"]], {}, "as many sentences of predicted tags as sentences of gold tags, got 2 and 1"),
        ([["O"], ["O"]], [["O"], []], {}, "sentence 2: expected as many predicted tags as gold ones, got 0 and 1"),
        ([["NN"]], [["O"]], {}, "sentence 1: expected BIO tags such as O and B-PER, got 'NN'"),
        ([["O"]], [["S-PER"]], {}, "expected BIO tags"),
        ([["O"]], [[""]], {}, "expected BIO tags"),
        ([["O"]], [["O-PER"]], {}, "expected BIO tags"),
        ([["O"]], [["O"]], {"scheme": "IOB"}, "scheme: expected bio or bioes, got 'IOB'"),
        ([], [], {}, "to compare, got none"),
    ],
)
def test_tags_that_cannot_be_compared(gold, predicted, options, message):
    pytest.importorskip("seqeval")
    with pytest.raises(UserError, match=message):
        spans(gold, predicted, **options)


# ---- translation ------------------------------------------------------------------------------------------------

HYPOTHESES = ["The cat sat on the mat.", "It is raining cats and dogs today!", ""]
REFERENCES = ["The cat is sitting on the mat.", "It rains cats and dogs today!", "Yes."]


def test_translation_agrees_with_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu")
    result = translation(HYPOTHESES, REFERENCES)
    assert result.bleu == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score > 0
    assert result.chrf == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score > 0
    assert "tok:13a" in result.bleu_signature
    assert "version:" in result.bleu_signature
    assert "nrefs:1" in result.chrf_signature
    assert as_json(result).keys() == {"bleu", "chrf", "bleu_signature", "chrf_signature"}


def test_translation_by_hand():
    pytest.importorskip("sacrebleu")
    result = translation(["a b c d e"], ["a b c d f"], tokenize="none")
    # precisions 4/5, 3/4, 2/3, 1/2; no brevity penalty
    assert result.bleu == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    perfect = translation(["A b c d."], ["a B c d."], lowercase=True)
    assert (perfect.bleu, perfect.chrf) == pytest.approx((100, 100))
    assert "case:lc" in perfect.bleu_signature
    assert "case:lc" in perfect.chrf_signature


def test_several_references_not_all_as_many():
    sacrebleu = pytest.importorskip("sacrebleu")
    references = [[REFERENCES[0], "The cat sat on a mat."], [REFERENCES[1]], ["Yes.", "Yes indeed."]]
    streams = [[given[0] for given in references], [references[0][1], None, references[2][1]]]
    result = translation(HYPOTHESES, references)
    assert result.bleu == sacrebleu.corpus_bleu(HYPOTHESES, streams).score
    assert result.bleu > translation(HYPOTHESES, REFERENCES).bleu
    assert "nrefs:var" in result.bleu_signature


@pytest.mark.parametrize(
    ("hypotheses", "references", "options", "message"),
    [
        ([], [], {}, "to compare, got none"),
        (["a"], ["a", "b"], {}, "as many hypotheses as references, got 1 and 2"),
        (["a", "b"], [["a"], []], {}, "sentence 2: expected a reference at least, got none"),
        (["a"], ["a"], {"tokenize": "14a"}, "tokenize: expected one of .*13a.*; got '14a'"),
    ],
)
def test_translations_that_cannot_be_compared(hypotheses, references, options, message):
    pytest.importorskip("sacrebleu")
    with pytest.raises(UserError, match=message):
        translation(hypotheses, references, **options)


@pytest.mark.parametrize(
    ("library", "score", "extra"),
    [
        ("seqeval", lambda: spans([["O"]], [["O"]]), "tag"),
        ("sacrebleu", lambda: translation(["a"], ["a"]), "translate"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(library, score, extra, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    for need in (score, lambda: require(library)):
        with pytest.raises(UserError, match=rf"need {library}: pip install 'recurra\[{extra}\]'"):
            need()


# ---- reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "prediction", "accurate", "exact", "overlap"),
    [
        (["kitchen"], "kitchen", 1, 1, 1),
        ("kitchen", "kitchen", 1, 1, 1),  # one answer needs no list
        (["The Panthers"], "panthers.", 0, 1, 1),
        (["An  apple, a pear"], "apple pear", 0, 1, 1),
        (["U.S."], "us", 0, 1, 1),
        (["theatre"], "atre", 0, 0, 0),  # an article is a whole word
        (["in the year 1990"], "1990", 0, 0, 2 * 1 / (3 + 1)),
        (["a b c c"], "c c c b", 0, 0, 2 * 3 / (3 + 4)),  # words count as often as both have them
        (["red", "dark red"], "dark red", 1, 1, 1),
        (["red", "very dark red"], "dark red", 0, 0, 0.8),
        ([], "", 1, 1, 1),
        ([], "the", 0, 1, 1),  # nothing is left of it
        ([], "red", 0, 0, 0),
        (["red"], "", 0, 0, 0),
        (["the", "red"], "red", 1, 1, 1),
        (["the", "red"], "a", 0, 0, 0),  # an answer of which nothing is left does not count beside others
        (["the"], "an", 0, 1, 1),
    ],
)
def test_reading_one_question(answers, prediction, accurate, exact, overlap):
    result = reading([answers], [prediction])
    assert (result.accuracy, result.exact_match, result.f1) == pytest.approx((accurate, exact, overlap))
    part = ReadingPart(result.exact_match, result.f1, 1)
    assert (result.answerable, result.unanswerable) == ((part, None) if answers else (None, part))


def test_reading_is_a_mean_over_questions():
    result = reading([["red"], [], ["big cat"], ["blue"]], ["red", "green", "the cat", "blue."])
    assert (result.accuracy, result.exact_match) == (0.25, 0.5)
    assert result.f1 == pytest.approx((1 + 0 + 2 / 3 + 1) / 4)
    assert result.answerable == ReadingPart(pytest.approx(2 / 3), pytest.approx((2 + 2 / 3) / 3), 3)
    assert result.unanswerable == ReadingPart(0.0, 0.0, 1)
    assert as_json(result).keys() >= {"accuracy", "exact_match", "f1", "questions"}


@pytest.mark.skipif("RECURRA_DATA" not in os.environ, reason="RECURRA_DATA is not set")
def test_the_answers_of_real_questions_are_right():
    path = Path(os.environ["RECURRA_DATA"]) / "xquad-en" / "xquad.en.json"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    questions = [q for article in articles for part in article["paragraphs"] for q in part["qas"]]
    answers = [[answer["text"] for answer in q["answers"]] for q in questions]
    perfect = reading(answers, [f"The {texts[0].upper()}?" for texts in answers])
    assert (perfect.questions, perfect.exact_match, perfect.f1) == (1190, 1.0, 1.0)
    shifted = reading(answers, [texts[0] for texts in answers[1:] + answers[:1]])
    assert 0 < shifted.exact_match < shifted.f1 < 0.1


# ---- transcription ----------------------------------------------------------------------------------------------


def fewest_edits(hypothesis, reference):
    """Every way to align the two, by recursion: the fewest edits, then the fewest substitutions."""
    if not hypothesis or not reference:
        return len(hypothesis) + len(reference), 0, len(hypothesis), len(reference)

    def after(pair, *counts):
        return tuple(a + b for a, b in zip(fewest_edits(*pair), counts, strict=True))

    differ = int(hypothesis[0] != reference[0])
    return min(
        after((hypothesis[1:], reference[1:]), differ, differ, 0, 0),
        after((hypothesis[1:], reference), 1, 0, 1, 0),
        after((hypothesis, reference[1:]), 1, 0, 0, 1),
    )


@given(st.lists(st.tuples(st.text("abc", max_size=5), st.text("abc", max_size=5)), max_size=6))
def test_edits_are_the_fewest_of_all_ways(pairs):
    counts = [fewest_edits(*pair) for pair in pairs]
    result = edits([hypothesis for hypothesis, _ in pairs], [reference for _, reference in pairs])
    assert result == Edits(
        substitutions=sum(count[1] for count in counts),
        insertions=sum(count[2] for count in counts),
        deletions=sum(count[3] for count in counts),
        length=sum(len(reference) for _, reference in pairs),
    )
    assert result.total == sum(count[0] for count in counts)


def distance(a, b):
    """Levenshtein's distance, by the textbook."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        new = [i]
        for j, y in enumerate(b, 1):
            new.append(min(row[j] + 1, new[-1] + 1, row[j - 1] + (x != y)))
        row = new
    return row[-1]


def test_edits_of_long_and_many_sequences_of_any_lengths():
    source = random.Random(0)
    hypotheses, references = (
        [source.choices(range(6), k=source.choice([0, 1, 30, 200])) for _ in range(60)] for _ in range(2)
    )
    hypotheses.append(source.choices(range(6), k=80_000))  # more than are worked on side by side
    references.append([7, 7])
    result = edits(hypotheses, references)
    assert result.total == sum(map(distance, hypotheses[:-1], references[:-1])) + 80_000
    assert result.substitutions + result.deletions <= result.length == sum(map(len, references))
    assert result.insertions - result.deletions == sum(map(len, hypotheses)) - result.length


def test_long_references_are_as_little_padded_as_long_hypotheses(monkeypatch):
    sizes = []
    real = metrics_module._count_edits

    def counted(hypotheses, references):
        sizes.append(len(references) * max(map(len, [*hypotheses, *references])))
        return real(hypotheses, references)

    monkeypatch.setattr(metrics_module, "_count_edits", counted)
    references = [[1, 2], *([[5] * 10] * 20_000), [3] * 60_000]
    assert edits([[1]] * len(references), references).total == 1 + 20_000 * 10 + 60_000
    assert max(sizes) <= metrics_module.CELLS


def test_transcription_by_hand():
    result = transcription(["the cat  sat", "yes\n"], ["the cat sat down", "no yes"])
    assert result.words == Edits(substitutions=0, insertions=0, deletions=2, length=6)
    assert result.characters == Edits(substitutions=0, insertions=0, deletions=8, length=22)
    assert (result.wer, result.cer) == pytest.approx((2 / 6, 8 / 22))
    assert as_json(result)["words"] == {"substitutions": 0, "insertions": 0, "deletions": 2, "length": 6}
    assert as_json(result).keys() >= {"wer", "cer"}


def test_error_rates_are_of_the_corpus_and_may_exceed_1():
    assert transcription(["x", "b c d e f"], ["a", ""]).wer == 6.0  # an empty reference adds insertions
    assert transcription(["", ""], ["one", "two"]).wer == 1.0
    assert transcription(["Ünïcode 🙂"], ["Ünïcode 🙃"]).cer == pytest.approx(1 / 9)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda: accuracy([], []), "expected labels and predictions to compare, got none"),
        (lambda: accuracy(["a"], []), "expected as many predictions as labels, got 0 and 1"),
        (lambda: classification([], []), "to compare, got none"),
        (lambda: classification(["a"], ["a", "b"]), "expected as many predictions as labels, got 2 and 1"),
        (lambda: reading([], []), "to compare, got none"),
        (lambda: reading([["a"]], []), "expected as many predictions as questions, got 0 and 1"),
        (lambda: transcription([], []), "to compare, got none"),
        (lambda: transcription(["a"], []), "expected as many hypotheses as references, got 1 and 0"),
        (lambda: transcription(["a"], [" "]), "at least one word"),
        (lambda: edits(["a"], []), "expected as many hypotheses as references, got 1 and 0"),
    ],
)
def test_what_cannot_be_compared(score, message):
    with pytest.raises(UserError, match=message):
        score()
