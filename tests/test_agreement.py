"""Agreement: scores by toy models whose preferences are known, pairs from every format, what is shipped."""

from __future__ import annotations

import io
import json
import math
from types import SimpleNamespace

import pytest
import torch

from recurra.agreement import (
    PAIRS,
    Pair,
    Scored,
    Tally,
    draw,
    measure,
    other_number,
    read_pairs,
    table,
    unknown_words,
    write_pairs_tsv,
)
from recurra.config import UserError
from recurra.language_model import LanguageModel
from recurra.models.recurrent_lm import RecurrentLM, RecurrentLMSettings
from recurra.text.tokenizer import WordTokenizer
from recurra.text.vocabulary import Vocabulary

NOUNS = {"key": 0, "keys": 1, "cabinet": 0, "cabinets": 1}  # 0 singular, 1 plural
VERBS = {"is": 0, "are": 1, "was": 0, "were": 1}
WORDS = [*NOUNS, *VERBS, "the", "to", "old", "."]
VOCABULARY = Vocabulary(["<unk>", "<eos>", *WORDS], [0, 9, *[5] * len(WORDS)])


class Toy:
    """What every toy has; the rows of its state are lists of what was read."""

    vocabulary_size = len(VOCABULARY)
    settings = SimpleNamespace(reset="none")
    parameters_count = 0

    def start(self, batch_size):
        return [[] for _ in range(batch_size)]

    def select(self, state, rows):
        return [list(state[row]) for row in rows.tolist()]

    def score(self, inputs, targets, state):
        found = torch.empty(targets.shape)
        for row, read in enumerate(state):
            for step in range(len(inputs)):
                read.append(VOCABULARY.tokens[inputs[step, row]])
                found[step, row] = self.log_prob(VOCABULARY.tokens[targets[step, row]], read)
        return found, state


class Singular(Toy):
    """Likes `is` best, and `was` as much as `were`."""

    def log_prob(self, word, read):
        return {"is": -1.0, "are": -2.0}.get(word, -3.0)


class Sequential(Toy):
    """Makes verbs agree with the noun read last."""

    def log_prob(self, word, read):
        last = next((NOUNS[each] for each in reversed(read) if each in NOUNS), None)
        return -0.5 if VERBS.get(word) == last else -2.0


class Impossible(Toy):
    def log_prob(self, word, read):
        return -math.inf


def of(model, kind="whitespace", vocabulary=VOCABULARY):
    return LanguageModel(model, WordTokenizer(kind, vocabulary))


def pair(good, bad, **known):
    return Pair(good=good, bad=bad, **known)


HAND = [
    pair("the key is old", "the key are old", type="simple", attractors=0),  # right
    pair("the cabinet is old", "the cabinet are old", type="simple", attractors=0),  # right
    pair("the keys are old", "the keys is old", type="simple", attractors=0),  # wrong
    pair("the key was old", "the key were old", type="past", attractors=0),  # tie
    pair("the keys to the cabinet are old", "the keys to the cabinet is old", type="far", attractors=1),  # wrong
    pair("the key has come", "the key have come", type="far", attractors=1),  # unknown
]


def test_accuracies_by_hand():
    result = measure(of(Singular()), HAND)
    assert [each.outcome for each in result.scored] == ["right", "right", "wrong", "tie", "wrong", "unknown"]
    assert result.overall == Tally(pairs=5, right=2, ties=1)
    assert result.overall.accuracy == pytest.approx(2 / 5)
    assert result.overall.wrong == 2
    assert result.by("type") == {"simple": Tally(3, 2, 0), "past": Tally(1, 0, 1), "far": Tally(1, 0, 0)}
    assert result.by("attractors") == {0: Tally(4, 2, 1), 1: Tally(1, 0, 0)}
    assert result.by("nearest") == {}
    assert result.left_out == 1
    assert result.unknown == {"has": 1, "have": 1}
    first = result.scored[0]
    assert first.good_nats == pytest.approx(3 + 3 + 1 + 3 + 3)  # the line end too
    assert first.bad_nats == pytest.approx(3 + 3 + 2 + 3 + 3)


def test_a_model_of_neighbours_agrees_with_the_nearest_noun():
    pairs = [
        pair("the keys to the cabinet are old", "the keys to the cabinet is old", nearest="other"),
        pair("the key to the cabinets was old", "the key to the cabinets were old", nearest="other"),
        pair("the keys to the cabinets are old", "the keys to the cabinets is old", nearest="same"),
    ]
    result = measure(of(Sequential()), pairs)
    assert result.by("nearest") == {"same": Tally(1, 1, 0), "other": Tally(2, 0, 0)}
    content = result.to_mapping()
    assert content["recency"] == {"pairs": 2, "syntactic": 0.0, "sequential": 1.0, "ties": 0.0}
    assert json.loads(json.dumps(content)) == content
    assert "with the nearest noun (sequential recency)   100.0 %" in table(result)


def test_two_impossible_sentences_are_a_tie_and_rounding_is_no_preference():
    assert measure(of(Impossible()), HAND[:1]).overall == Tally(1, 0, 1)
    for gain, outcome in ((1e-3, "right"), (1e-5, "tie"), (-1e-5, "tie"), (-1e-3, "wrong")):
        assert Scored(pair=HAND[0], good_nats=20.0, bad_nats=20.0 + gain).outcome == outcome


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_a_sentence_is_a_line_from_the_start_of_a_text(batch_size):
    torch.manual_seed(0)
    settings = RecurrentLMSettings(hidden_size=8, layers=1, embedding_size=8, output="full", tied=True, reset="none")
    lm = of(RecurrentLM(settings, VOCABULARY).eval())
    result = measure(lm, HAND, batch_size=batch_size)
    for each in result.scored:
        for text, nats in ((each.pair.good, each.good_nats), (each.pair.bad, each.bad_nats)):
            assert nats == pytest.approx(sum(n for _, n in lm.surprisal(text)), rel=1e-5)


def test_capitals_and_full_stops():
    capitals = [pair("The key IS old", "The key ARE old")]
    with pytest.raises(UserError, match=r"words of no pair: outside its vocabulary are 'IS', 'ARE'; try --lowercase"):
        measure(of(Singular()), capitals)
    assert measure(of(Singular()), capitals, lowercase=True).overall == Tally(1, 1, 0)
    last = [pair("old the key is.", "old the key are.")]
    assert measure(of(Singular()), last).overall == Tally(1, 1, 0)  # `.` is a word of this model: it is set apart
    with pytest.raises(UserError, match=r"'is\.', 'are\.'"):
        measure(of(Singular()), last, split_punctuation=False)


def test_unknown_words_are_looked_for_where_the_sentences_differ():
    tokenizer = WordTokenizer("whitespace", VOCABULARY)
    assert unknown_words(tokenizer, "my key is old", "my key are old") == ()
    assert unknown_words(tokenizer, "my key is new", "my key be new") == ("be",)
    assert unknown_words(tokenizer, "the key is", "the key is not") == ("not",)
    assert unknown_words(tokenizer, "a key b is", "c key b are") == ("a", "c")


def test_wilson_s_interval():
    assert Tally(10, 5, 0).interval == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert Tally(10, 10, 0).interval == pytest.approx((0.7225, 1.0), abs=1e-4)
    low, high = Tally(10, 0, 0).interval
    assert low == 0
    assert 0 < high < 0.3


def test_everything_is_shown(tmp_path):
    result = measure(of(Singular()), HAND)
    text = table(result)
    assert "all pairs" in text
    assert "40.0 %" in text
    assert "Left out: 1 of 6 pairs" in text
    assert "has (1)" in text
    assert "sequential" not in text  # nothing is known of the nearest nouns
    file = io.StringIO()
    write_pairs_tsv(file, result)
    lines = [line.split("\t") for line in file.getvalue().splitlines()]
    assert [line[0] for line in lines] == ["outcome", "right", "right", "wrong", "tie", "wrong", "unknown"]
    assert lines[1][1:3] == ["13", "14"]
    pytest.importorskip("matplotlib")
    draw(result, tmp_path / "a.png", title="toy")
    assert (tmp_path / "a.png").stat().st_size > 5_000


# ---- formats --------------------------------------------------------------------------------------------------------


def read(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return list(read_pairs(path))


def test_columns_by_name(tmp_path):
    (found,) = read(
        tmp_path,
        "p.tsv",
        "type\tsentence_bad\tattractors\tsentence_good\tnearest\nfar\tHe are.\t2\tHe is.\tother\n",
    )
    known = (found.good, found.bad, found.type, found.attractors, found.nearest)
    assert known == ("He is.", "He are.", "far", 2, "other")
    (bare,) = read(tmp_path, "q.tsv", "sentence_good\tsentence_bad\n\nHe is.\tHe are.\n")
    assert (bare.good, bare.type, bare.attractors, bare.nearest) == ("He is.", None, None, None)
    assert bare.where.endswith("q.tsv, line 3")


def test_blimp_lines(tmp_path):
    line = {
        "sentence_good": "A niece of most senators hasn't descended most slopes.",
        "sentence_bad": "A niece of most senators haven't descended most slopes.",
        "field": "morphology",
        "linguistics_term": "subject_verb_agreement",
        "UID": "distractor_agreement_relational_noun",
        "simple_LM_method": True,
        "one_prefix_method": False,
        "pairID": "0",
    }
    (found,) = read(tmp_path, "b.jsonl", json.dumps(line) + "\n")
    assert (found.good, found.bad) == (line["sentence_good"], line["sentence_bad"])
    assert (found.type, found.attractors) == ("distractor_agreement_relational_noun", None)
    del line["UID"]
    line["attractors"] = 1
    (found,) = read(tmp_path, "b.jsonl", json.dumps(line) + "\n")
    assert (found.type, found.attractors) == ("subject_verb_agreement", 1)


def test_dependencies_of_linzen_et_al(tmp_path):
    names = "sentence\torig_sentence\tverb\tverb_pos\tverb_index\thas_rel\tn_diff_intervening\tlast_intervening"
    rows = [
        "x\tthe keys to the cabinet are on it .\tare\tVBP\t6\tFalse\t1\tNN",
        'x\t"the man that "" knows "" carries it ."\tcarries\tVBZ\t7\tTrue\t0\tna',
    ]
    first, second = read(tmp_path, "l.tsv", "\n".join([names, *rows]) + "\n")
    assert first.bad == "the keys to the cabinet is on it ."
    assert (first.attractors, first.nearest, first.type) == (1, "other", "no relative clause")
    assert second.good == 'the man that " knows " carries it .'
    assert second.bad == 'the man that " knows " carry it .'
    assert (second.nearest, second.type) == (None, "relative clause")
    with pytest.raises(UserError, match=r"l.tsv, line 2: there is no verb 'is' at word 6"):
        read(tmp_path, "l.tsv", names + "\n" + rows[0].replace("\tare\t", "\tis\t") + "\n")


def test_four_columns_without_names(tmp_path):
    (found,) = read(
        tmp_path, "m.tsv", "prep_anim\tsing_plur\tthe author next to the guards laughs\tthe author x laugh\n"
    )
    assert (found.type, found.good) == ("prep_anim", "the author next to the guards laughs")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.tsv", "sentence_good\tsentence_bad\na\tb\nc\t\n", r"p.tsv, line 3: there is no sentence_bad"),
        ("p.tsv", "sentence_good\tsentence_bad\na\tb\nc\n", r"p.tsv, line 3: expected 2 columns"),
        ("p.tsv", "sentence_good\ttype\na\tb\n", r"no column for the sentence_bad"),
        ("p.jsonl", '{"sentence_good": "a"}\n', r"p.jsonl, line 1: no key 'sentence_bad'"),
        ("p.jsonl", '{"sentence_good": "a", "sentence_bad": null}\n', r"p.jsonl, line 1: there is no sentence_bad"),
        ("p.jsonl", '{"sentence_good": "a", "sentence_bad": "b\\nc"}\n', r"line 1: sentence_bad: expected one line"),
        ("p.tsv", "sentence_good\tsentence_bad\na\ta\n", r"p.tsv, line 2: the two sentences are the same"),
        (
            "p.tsv",
            "sentence_good\tsentence_bad\tattractors\na\tb\tmany\n",
            r"attractors: expected a whole number",
        ),
        ("p.tsv", "sentence_good\tsentence_bad\tnearest\na\tb\tleft\n", r"line 2: nearest: expected same or other"),
        ("p.tsv", "sentence_good\tsentence_bad\n", r"there is no pair in it"),
        ("p.txt", "a\tb\n", r"p.txt: expected pairs of sentences in a file named .tsv"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, name, text)


@pytest.mark.parametrize(
    ("singular", "plural"),
    [
        *[("is", "are"), ("has", "have"), ("was", "were"), ("does", "do"), ("goes", "go"), ("says", "say")],
        *[("carries", "carry"), ("lies", "lie"), ("watches", "watch"), ("passes", "pass"), ("makes", "make")],
        *[("fixes", "fix"), ("uses", "use"), ("wishes", "wish"), ("runs", "run"), ("Is", "Are")],
    ],
)
def test_the_other_number_of_a_verb(singular, plural):
    assert other_number(singular, plural=False) == plural
    assert other_number(plural, plural=True) == singular


# ---- what is shipped ------------------------------------------------------------------------------------------------

NOUNS_SHIPPED = """
    man king son woman brother child servant priest friend captain city house land river wall gate village field
    mountain ship
"""
SINGULAR_NOUNS = set(NOUNS_SHIPPED.split())
PLURAL_NOUNS = {
    *(word + "s" for word in SINGULAR_NOUNS - {"man", "woman", "child", "city"}),
    *("men", "women", "children", "cities"),
}
FORMS = {("is", "are"), ("was", "were"), ("has", "have")}


def test_shipped_pairs_differ_in_one_verb_and_say_truly_what_stands_between():
    pairs = list(read_pairs(PAIRS))
    assert len(pairs) == 206
    assert len({each.good for each in pairs}) == len(pairs)
    subjects = []
    for each in pairs:
        good, bad = each.good.split(), each.bad.split()
        assert len(good) == len(bad)
        ((place, (right, wrong)),) = [(i, two) for i, two in enumerate(zip(good, bad, strict=True)) if two[0] != two[1]]
        assert (right, wrong) in FORMS | {form[::-1] for form in FORMS}
        assert each.good.endswith(".")
        numbers = [word in PLURAL_NOUNS for word in good[:place] if word in SINGULAR_NOUNS | PLURAL_NOUNS]
        subject, *between = numbers
        assert subject == (right in {plural for _, plural in FORMS}), each.good
        assert each.attractors == sum(number != subject for number in between), each.good
        assert each.nearest == (("same" if between[-1] == subject else "other") if between else None), each.good
        subjects.append(subject)
    assert sum(subjects) == len(pairs) / 2  # a model that always likes the plural is right half of the time
    assert {each.attractors for each in pairs} == {0, 1, 2, 3}


def test_a_few_shipped_pairs_by_hand():
    pairs = {each.good: each for each in read_pairs(PAIRS)}
    simple = pairs["The man is old."]
    assert (simple.bad, simple.type, simple.attractors, simple.nearest) == ("The man are old.", "simple", 0, None)
    one = pairs["The servant of the sons of the woman is young."]
    assert (one.attractors, one.nearest) == (1, "same")
    three = pairs["The man of the lands of the brothers of the sons was there."]
    assert (three.attractors, three.nearest) == (3, "other")
    clause = pairs["The brothers whom the captain sent are great."]
    assert (clause.type, clause.attractors, clause.nearest) == ("object relative clause", 1, "other")
