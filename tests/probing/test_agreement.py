"""Agreement: scores by toy models whose preferences are known, pairs from every format, what is shipped."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from recurra.config import UserError
from recurra.language_model import LanguageModel
from recurra.models.mixture import Mixture
from recurra.models.recurrent_lm import RecurrentLM, RecurrentLMSettings
from recurra.probing import agreement
from recurra.probing.agreement import (
    PAIRS,
    Pair,
    Scored,
    Tally,
    draw,
    measure,
    prepared,
    read_pairs,
    table,
    unknown_words,
    write_pairs_tsv,
)
from recurra.probing.pairs import other_number
from recurra.text.documents import Text
from recurra.text.tokenizer import TokenizerSettings, WordTokenizer, build_tokenizer
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
    assert "with the nearest noun (sequential recency) in 100.0 %." in table(result)


def test_two_impossible_sentences_are_a_tie_and_rounding_is_no_preference():
    assert measure(of(Impossible()), HAND[:1]).overall == Tally(1, 0, 1)
    for gain, outcome in ((1e-3, "right"), (1e-5, "tie"), (-1e-5, "tie"), (-1e-3, "wrong")):
        assert Scored(pair=HAND[0], good_nats=20.0, bad_nats=20.0 + gain).outcome == outcome


def network(vocabulary, seed=0):
    torch.manual_seed(seed)
    settings = RecurrentLMSettings(hidden_size=8, layers=1, embedding_size=8, output="full", tied=True, reset="none")
    return RecurrentLM(settings, vocabulary).eval()


def nats_of(lm, text):
    return sum(nats for _, nats in lm.surprisal(text))


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_a_sentence_is_a_line_from_the_start_of_a_text(batch_size):
    lm = of(network(VOCABULARY))
    for each in measure(lm, HAND, batch_size=batch_size).scored:
        assert each.good_nats == pytest.approx(nats_of(lm, each.pair.good), rel=1e-5)
        assert each.bad_nats == pytest.approx(nats_of(lm, each.pair.bad), rel=1e-5)


@pytest.mark.parametrize("kind", ["characters", "byte-pairs", "words"])
def test_models_of_characters_byte_pairs_and_words(kind):
    text = Text.from_string("the keys to the cabinet are old.\nthe key is old.\nit was here.\n" * 3)
    settings = TokenizerSettings(tokenizer=kind, vocabulary_size=270 if kind == "byte-pairs" else None)
    tokenizer = build_tokenizer(text, settings)
    lm = LanguageModel(network(tokenizer.vocabulary), tokenizer)
    pairs = [
        pair("the key is old.", "the key are old."),
        pair("the keys are here.", "the keys is here."),
        pair("the zoo is old.", "the zoo are old."),
    ]
    result = measure(lm, pairs)
    for each in result.scored:
        assert each.good_nats == pytest.approx(nats_of(lm, each.pair.good), rel=1e-5)
        assert each.bad_nats == pytest.approx(nats_of(lm, each.pair.bad), rel=1e-5)
        assert each.outcome == ("right" if each.good_nats < each.bad_nats else "wrong")
    unknown = [] if kind == "byte-pairs" else ["zoo"]
    assert list(result.unknown_elsewhere) == unknown  # by characters: the letter z
    assert result.overall.pairs == 3


def test_a_mixture_of_models():
    models = [network(VOCABULARY, seed) for seed in (0, 1)]
    (scored, *_) = measure(of(Mixture(models, [0.3, 0.7])), HAND).scored
    for text, nats in ((HAND[0].good, scored.good_nats), (HAND[0].bad, scored.bad_nats)):
        of_each = zip(*([nats for _, nats in of(model).surprisal(text)] for model in models), strict=True)
        by_hand = sum(-math.log(0.3 * math.exp(-one) + 0.7 * math.exp(-other)) for one, other in of_each)
        assert nats == pytest.approx(by_hand, rel=1e-5)


def test_capitals_and_full_stops():
    capitals = [pair("The key IS old", "The key ARE old")]
    with pytest.raises(UserError, match=r"words of no pair: outside its vocabulary are 'IS', 'ARE'; try --lowercase"):
        measure(of(Singular()), capitals)
    assert measure(of(Singular()), capitals, lowercase=True).overall == Tally(1, 1, 0)
    last = [pair("old the key is.", "old the key are.")]
    assert measure(of(Singular()), last).overall == Tally(1, 1, 0)  # `.` is a word of this model: it is set apart
    with pytest.raises(UserError, match=r"'is\.', 'are\.'"):
        measure(of(Singular()), last, split_punctuation=False)


@pytest.mark.parametrize(
    ("text", "apart"),
    [
        ('"He is old," she said.', '" He is old , " she said .'),
        ("the men (and a king) are old!", "the men ( and a king ) are old !"),
        ("the men of the U.S. are old.", "the men of the U.S. are old ."),
        ("Mr. J. Smith is in the U.S.", "Mr. J. Smith is in the U.S."),
        ("it is 3.5 or 1,000 at 3:30; no?", "it is 3.5 or 1,000 at 3:30 ; no ?"),
        ("wait... the king 's men are old .", "wait ... the king 's men are old ."),
        ("so are you and I.", "so are you and I ."),
        ("they left. he is “good”.", "they left . he is “ good ” ."),
    ],
)
def test_punctuation_is_set_apart(text, apart):
    assert prepared(text, lowercase=False, split_punctuation=True) == apart
    assert prepared(apart, lowercase=False, split_punctuation=True) == apart
    assert prepared(text, lowercase=False, split_punctuation=False) == text


def test_unknown_words_where_the_sentences_differ_and_elsewhere():
    tokenizer = WordTokenizer("whitespace", VOCABULARY)
    assert unknown_words(tokenizer, "the key is old", "the key are old") == ((), ())
    assert unknown_words(tokenizer, "my key is old", "my key are old") == ((), ("my",))
    assert unknown_words(tokenizer, "my key is new", "my key be new") == (("be",), ("my", "new"))
    assert unknown_words(tokenizer, "the key is", "the key is not") == (("not",), ())
    assert unknown_words(tokenizer, "a key b is", "c key b are") == (("a", "c"), ("b",))
    assert unknown_words(tokenizer, "the zoo, is.", "the zoo, are.") == (("is.", "are."), ("zoo",))
    words = WordTokenizer("words", VOCABULARY)
    assert unknown_words(words, "the key be.", "the key bes.") == (("be", "bes"), ())


def test_unknown_words_in_both_sentences_are_told():
    pairs = [
        pair("the key is old", "the key are old"),  # right
        pair("the keys are old", "the keys is old"),  # wrong
        pair("the zebra is old", "the zebra are old"),  # right, and no wonder
        pair("The zebra has old", "The zebra have old"),  # left out: in no other number
    ]
    result = measure(of(Singular()), pairs)
    assert result.scored[2].elsewhere == ("zebra",)
    assert (result.overall, result.all_known) == (Tally(3, 2, 0), Tally(2, 1, 0))
    assert (result.doubtful, result.unknown_elsewhere) == (1, {"zebra": 1})
    content = result.to_mapping()
    assert content["all_known"]["accuracy"] == 0.5
    assert content["unknown_elsewhere"] == {"zebra": 1}
    text = table(result)
    assert "1 pair has an unknown word elsewhere: zebra (1)." in text
    (line,) = (line for line in text.splitlines() if "every word known" in line)
    assert [cell.strip() for cell in line.split("|")][3:5] == ["2", "50.0"]
    assert "every word known" not in table(measure(of(Singular()), HAND[:3]))


def test_small_letters_are_proposed_where_they_would_help():
    capitals = [pair("The key is old", "The key are old"), pair("The keys are old", "The keys is old")]
    result = measure(of(Singular()), capitals)
    assert result.all_known is None
    assert result.to_mapping()["all_known"] is None
    assert result.known_in_lowercase == {"The"}
    text = table(result)
    assert "2 pairs have an unknown word elsewhere: The (2); without them no pair is left." in text
    assert "In small letters the model knows The: try --lowercase." in text
    assert "--lowercase" not in table(measure(of(Singular()), capitals, lowercase=True))
    zebra = [pair("Zebra is old", "Zebra are old")]
    assert "--lowercase" not in table(measure(of(Singular()), zebra))  # unknown in either


def test_attractors_are_compared_with_as_many_nouns_in_between():
    between = [(0, 0), (1, 0), (1, 1), (2, 1), (2, 1), (10, 2)]
    pairs = [pair("the key is old", "the key are old", nouns=n, attractors=a) for n, a in between]
    pairs.append(pair("the key is old", "the key are old", attractors=1))  # nobody says how many nouns
    result = measure(of(Singular()), pairs)
    found = result.by("nouns", "attractors")
    assert list(found.items()) == [
        *[((0, 0), Tally(1, 1, 0)), ((1, 0), Tally(1, 1, 0)), ((1, 1), Tally(1, 1, 0))],
        *[((2, 1), Tally(2, 2, 0)), ((10, 2), Tally(1, 1, 0))],
    ]
    assert result.by("attractors")[1] == Tally(4, 4, 0)
    content = result.to_mapping()["by_nouns_and_attractors"]
    assert list(content["1"]) == ["0", "1"]
    assert content["2"]["1"]["pairs"] == 2
    assert "10 nouns, 2 attractors" in table(result)


def test_wilson_s_interval():
    assert Tally(10, 5, 0).interval == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert Tally(10, 10, 0).interval == pytest.approx((0.7225, 1.0), abs=1e-4)
    low, high = Tally(10, 0, 0).interval
    assert low == 0
    assert 0 < high < 0.3


def test_everything_is_shown():
    result = measure(of(Singular()), HAND)
    text = table(result)
    first, rule, overall, *_ = text.splitlines()
    cells = [cell.strip() for cell in first.split("|")]
    assert cells == ["", "", "", "pairs", "accuracy (%)", "95 % interval", "ties", ""]
    assert set(rule) == set("|-:")
    assert [cell.strip() for cell in overall.split("|")][1:5] == ["all pairs", "", "5", "40.0"]
    assert len({len(line) for line in text.splitlines() if line.startswith("|")}) == 1  # aligned
    assert "Left out: 1 of 6 pairs" in text
    assert "has (1)" in text
    assert "sequential" not in text  # nothing is known of the nearest nouns
    assert "nouns in between" not in text


def test_what_is_written_of_every_pair():
    pairs = [*HAND, pair("my key is old", "my key are old", nouns=0, attractors=0, nearest=None)]
    file = io.StringIO()
    write_pairs_tsv(file, measure(of(Singular()), pairs))
    head, *lines = [line.split("\t") for line in file.getvalue().splitlines()]
    assert [line[0] for line in lines] == ["right", "right", "wrong", "tie", "wrong", "unknown", "right"]
    assert lines[0][1:3] == ["13.000000", "14.000000"]  # a tie is decided by the fourth digit
    assert dict(zip(head, lines[5], strict=True))["unknown"] == "has have come"
    last = dict(zip(head, lines[6], strict=True))
    assert (last["nouns"], last["attractors"], last["nearest"], last["unknown"]) == ("0", "0", "", "my")
    assert (last["sentence_good"], last["sentence_bad"]) == ("my key is old", "my key are old")


def test_the_picture_shows_accuracies_and_intervals(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    figures = []
    monkeypatch.setattr(agreement, "save", lambda figure, path: figures.append((figure, path)))
    pairs = [*HAND[:5], pair("the zebra is old", "the zebra are old", type="$x$ | y", nearest="other", nouns=1)]
    result = measure(of(Singular()), pairs)
    draw(result, tmp_path / "a.png", title="toy")
    ((figure, path),) = figures
    (axes,) = figure.axes
    assert path == tmp_path / "a.png"
    assert axes.get_title("left") == "toy"
    assert axes.get_xlabel() == "pairs whose grammatical sentence is likelier (%);\nlines: 95 % interval"
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [
        *["all pairs  (6)", "every word known  (5)", "simple  (3)", "past  (1)", "far  (1)", "$x$ | y  (1)"],
        *["0 attractors  (4)", "1 attractor  (1)", "nearest noun of the other number  (1)"],
    ]
    *intervals, dots = axes.lines[1:]
    assert dots.get_xdata() == pytest.approx([50, 40, 200 / 3, 0, 0, 100, 50, 0, 100])
    assert list(intervals[0].get_xdata()) == pytest.approx([100 * end for end in result.overall.interval])
    assert "$x$ \\| y" in table(result)
    monkeypatch.undo()
    draw(result, tmp_path / "a.png")
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
        "type\tsentence_bad\tattractors\tsentence_good\tnearest\tnouns\nfar\tHe are.\t2\tHe is.\tother\t3\n",
    )
    known = (found.good, found.bad, found.type, found.nouns, found.attractors, found.nearest)
    assert known == ("He is.", "He are.", "far", 3, 2, "other")
    (bare,) = read(tmp_path, "q.tsv", "sentence_good\tsentence_bad\n\nHe is.\tHe are.\n")
    assert (bare.good, bare.type, bare.attractors, bare.nearest) == ("He is.", None, None, None)
    assert bare.where.endswith("q.tsv, line 3")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.tsv", "attractors\ttype\tsentence_bad\tsentence_good\n1\tfar\tHe are.\tHe is.\n"),
        ("p.tsv", "\nSentence_Bad\tSentence_Good\tType\tAttractors\nHe are.\tHe is.\tfar\t1\n"),
        ("p.csv", '"type","sentence_good","sentence_bad","attractors"\nfar,He is.,He are.,1\n'),
        ("p.csv", "sentence_bad,attractors,sentence_good,type\nHe are.,1,He is.,far\n"),
    ],
)
def test_known_names_stand_in_any_order(tmp_path, name, text):
    (found,) = read(tmp_path, name, text)
    assert (found.good, found.bad, found.type, found.attractors) == ("He is.", "He are.", "far", 1)


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


LINZEN = (
    "sentence\torig_sentence\tverb\tverb_pos\tverb_index\thas_rel\tn_intervening\tn_diff_intervening\tlast_intervening"
)


def test_dependencies_of_linzen_et_al(tmp_path):
    names = LINZEN
    rows = [
        "x\tthe keys to the cabinet are on it .\tare\tVBP\t6\tFalse\t1\t1\tNN",
        'x\t"the man that "" knows "" carries it ."\tcarries\tVBZ\t7\tTrue\t0\t0\tna',
    ]
    first, second = read(tmp_path, "l.tsv", "\n".join([names, *rows]) + "\n")
    assert first.bad == "the keys to the cabinet is on it ."
    assert (first.nouns, first.attractors, first.nearest, first.type) == (1, 1, "other", "no relative clause")
    assert second.good == 'the man that " knows " carries it .'
    assert second.bad == 'the man that " knows " carry it .'
    assert (second.nearest, second.type) == (None, "relative clause")
    with pytest.raises(UserError, match=r"l.tsv, line 2: there is no verb 'is' at word 6"):
        read(tmp_path, "l.tsv", names + "\n" + rows[0].replace("\tare\t", "\tis\t") + "\n")


def test_verbs_without_another_form_are_left_out_and_counted(tmp_path):
    rows = [
        "x\tI am old .\tam\tVBP\t2\tFalse\t0\t0\tna",
        "x\tthey 're old .\t're\tVBP\t2\tFalse\t0\t0\tna",
        "x\the 's old .\t's\tVBZ\t2\tFalse\t0\t0\tna",
        "x\tThey 'Re old .\t'Re\tVBP\t2\tFalse\t0\t0\tna",
        "x\the is old .\tis\tVBZ\t2\tFalse\t0\t0\tna",
    ]
    (tmp_path / "l.tsv").write_text("\n".join([LINZEN, *rows]) + "\n")
    skipped = Counter()
    (found,) = read_pairs(tmp_path / "l.tsv", skipped=skipped)
    assert found.bad == "he are old ."
    assert skipped == {"am": 1, "'re": 2, "'s": 1}
    assert len(list(read_pairs(tmp_path / "l.tsv"))) == 1


def test_four_columns_without_names(tmp_path):
    good = "the author next to the guards laughs"
    (found,) = read(tmp_path, "m.tsv", f"prep_anim\tsing_plur\t{good}\t{good[:-1]}\n")
    assert (found.type, found.good, found.bad) == ("prep_anim", good, "the author next to the guards laugh")
    (found,) = read(tmp_path, "m.csv", f'a,b,"well, {good}","well, {good[:-1]}"\n')
    assert found.bad == "well, the author next to the guards laugh"


@pytest.mark.parametrize(
    ("name", "text", "got"),
    [
        ("p.tsv", "good\tbad\ttype\tattractors\nHe is.\tHe are.\tfar\t1\n", "'good', 'bad', 'type', 'attractors'"),
        ("p.csv", "good,bad,type,attractors\nHe is.,He are.,far,1\n", "'good', 'bad', 'type', 'attractors'"),
        ("p.tsv", "good\tbad\nHe is.\tHe are.\n", "'good', 'bad'"),
        ("p.tsv", "He is.\tHe are.\tfar\t1\n", "'He is.', 'He are.', 'far', '1'"),
        ("p.tsv", "type\n", "'type'"),
    ],
)
def test_columns_that_nobody_knows_are_no_sentences(tmp_path, name, text, got):
    expected = (
        r"line 1: expected columns sentence_good and sentence_bad .*orig_sentence.*four without names.*; got " + got
    )
    with pytest.raises(UserError, match=expected):
        read(tmp_path, name, text)


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
        (
            "p.tsv",
            "sentence_good\tsentence_bad\tnouns\tattractors\na\tb\t1\t2\n",
            r"p.tsv, line 2: expected attractors to be some of the nouns in between, got 2 of 1",
        ),
        ("p.tsv", "sentence_good\tsentence_bad\n", r"there is no pair in it"),
        ("p.tsv", "sentence_bad\n", r"no column for the sentence_good|no column 'sentence_good'"),
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
        *[
            ("focuses", "focus"),
            ("biases", "bias"),
            ("caches", "cache"),
            ("aches", "ache"),
            ("quizzes", "quiz"),
            ("waltzes", "waltz"),
        ],
        *[("causes", "cause"), ("discusses", "discuss"), ("buzzes", "buzz"), ("dies", "die"), ("belies", "belie")],
        *[("echoes", "echo"), ("woos", "woo"), ("radios", "radio"), ("shoes", "shoe"), ("plays", "play")],
    ],
)
def test_the_other_number_of_a_verb(singular, plural):
    assert other_number(singular, plural=False) == plural
    assert other_number(plural, plural=True) == singular


# ---- what is shipped ------------------------------------------------------------------------------------------------

NOUNS_SHIPPED = """
    man king son woman brother child servant priest friend captain city house land river wall gate village field
    mountain ship father mother daughter wife prince lord army enemy horse soldier stone law work name nation valley
    temple door sea book master
"""
PLURALS = {"man": "men", "woman": "women", "child": "children", "city": "cities", "wife": "wives"} | {
    "army": "armies",
    "enemy": "enemies",
}
SINGULAR_NOUNS = set(NOUNS_SHIPPED.split())
PLURAL_NOUNS = {PLURALS.get(noun, noun + "s") for noun in SINGULAR_NOUNS}
FORMS = {"is": "are", "was": "were", "has": "have"} | {
    verb + "s": verb for verb in ("stand", "know", "come", "say", "run", "live", "lie", "speak")
}
WITH_CLAUSES = "knew saw said thought found felt heard feared believed told wished made let"  # saw [the son was old]


def shipped():
    """Each pair, its words, the place of the verb, and the verb's two forms, the right one first."""
    for each in read_pairs(PAIRS):
        good, bad = (text.removesuffix(".").split() for text in (each.good, each.bad))
        assert len(good) == len(bad)
        ((place, (right, wrong)),) = [(i, two) for i, two in enumerate(zip(good, bad, strict=True)) if two[0] != two[1]]
        assert each.good.endswith(".")
        assert each.good[0].isupper()
        yield each, good, place, (right, wrong)


def test_shipped_pairs_differ_in_one_verb_and_say_truly_what_stands_between():
    count = 0
    for each, words, place, (right, wrong) in shipped():
        assert FORMS.get(right) == wrong or FORMS.get(wrong) == right, each.good
        before = [word in PLURAL_NOUNS for word in words[:place] if word in SINGULAR_NOUNS | PLURAL_NOUNS]
        if each.type == "there":
            assert not before
            before = [next(word in PLURAL_NOUNS for word in words[place:] if word in SINGULAR_NOUNS | PLURAL_NOUNS)]
        subject, *between = before
        assert subject == (right in FORMS.values()), each.good
        assert each.nouns == len(between), each.good
        assert each.attractors == sum(number != subject for number in between), each.good
        assert each.nearest == (("same" if between[-1] == subject else "other") if between else None), each.good
        count += 1
    assert count == 354
    assert len({each.good for each in read_pairs(PAIRS)}) == count


def test_every_verb_is_as_often_singular_as_plural_in_every_cell():
    """Whoever always likes the plural is right half of the time, whatever verbs the model does not know."""
    cells = Counter()
    for each, _, _, (right, wrong) in shipped():
        plural = right in FORMS.values()
        cells[each.type, each.attractors, wrong if plural else right] += 1 if plural else -1
    assert {cell: sum_ for cell, sum_ in cells.items() if sum_} == {}


def test_what_is_shipped_is_of_many_kinds():
    pairs = list(read_pairs(PAIRS))
    assert {(each.nouns, each.attractors) for each in pairs} == {(n, a) for n in range(4) for a in range(n + 1)}
    assert len({each.type for each in pairs}) == 10
    assert sum(each.good.endswith(" there.") for each in pairs) < 5
    assert Counter(each.good.split()[0] for each in pairs)["The"] < 0.75 * len(pairs)


def test_no_verb_of_a_relative_clause_takes_what_follows_for_a_clause():
    """In "the priests who knew the king is there" the king may be there: no form would be wrong."""
    for each, words, place, (right, _) in shipped():
        if "clause" in each.type or each.type == "coordinated verbs":
            assert not set(words[:place]) & set(WITH_CLAUSES.split()), each.good
            assert not ("helped" in words[:place] and right not in ("is", "are", "was", "were")), each.good  # him stand


def test_a_few_shipped_pairs_by_hand():
    pairs = {each.good: each for each in read_pairs(PAIRS)}
    simple = pairs["The man is old."]
    assert (simple.bad, simple.type, simple.nouns, simple.attractors, simple.nearest) == (
        *("The man are old.", "simple"),
        *(0, 0, None),
    )
    one = pairs["The servant of the sons of the woman is young."]
    assert (one.nouns, one.attractors, one.nearest) == (2, 1, "same")
    three = pairs["The field near the gates of the cities of the kings is small."]
    assert (three.nouns, three.attractors, three.nearest) == (3, 3, "other")
    clause = pairs["The gates which the prince built are great."]
    assert (clause.type, clause.nouns, clause.attractors, clause.nearest) == ("object relative clause", 1, 1, "other")
    verb = pairs["The river near the villages comes from the mountains."]
    assert verb.bad == "The river near the villages come from the mountains."
