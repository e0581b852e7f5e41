import gzip
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from recurra.config import UserError
from recurra.models.arpa import read_arpa, write_arpa
from recurra.models.kneser_ney import NgramLM, NgramSettings
from recurra.text.batches import TokenStream
from recurra.text.vocabulary import LINE_END, Vocabulary

GOLDEN = Path(os.environ.get("RECURRA_DATA", "nowhere")) / "kenlm-golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="no kenlm-golden in the folder RECURRA_DATA names")

SMALL = r"""
\data\
ngram 1=5
ngram 2=4
ngram 3=2

\1-grams:
-1.5	<unk>	0
0	<s>	-0.25
-0.5	</s>	0
-0.75	the	-0.125
-1	cat	-0.5

\2-grams:
-0.3	<s> the	-0.2
-0.4	the cat	-0.1
-0.6	cat </s>	0
-0.7	<s> </s>	0

\3-grams:
-0.05	<s> the cat
-0.15	the cat </s>

\end\
"""
THE, CAT = 2, 3


def read(tmp_path, text):
    path = tmp_path / "model.arpa"
    path.write_text(text, encoding="utf-8")
    return read_arpa(path)


def base10(model, history, word):
    """What a model says of a word after a line's first words, read token by token."""
    state = model.start(1)
    for token in [LINE_END, *history]:
        log_probs, state = model.step(torch.tensor([token]), state)
    return float(log_probs[0, word]) / math.log(10)


def check_small(model):
    for history, word, expected in [
        ([], THE, -0.3),
        ([], LINE_END, -0.7),
        ([], CAT, -0.25 - 1),
        ([], 0, -0.25 - 1.5),
        ([THE], CAT, -0.05),
        ([THE], LINE_END, -0.2 - 0.125 - 0.5),
        ([THE, CAT], LINE_END, -0.15),
        ([THE, CAT], THE, -0.1 - 0.5 - 0.75),
        ([CAT, CAT], THE, -0.5 - 0.75),
        ([0], THE, -0.75),
    ]:
        assert base10(model, history, word) == pytest.approx(expected), (history, word)


def random_model(order=4, words=("x", "y", "\u00a0", "\u3000z", "Ω", "-1.5", "\\"), prune=(0,)):
    vocabulary = Vocabulary(["<unk>", "<eos>", *words], [0] * (len(words) + 2))
    ids = np.random.default_rng(1).integers(0, len(vocabulary), 400)
    settings = NgramSettings(order=order, prune=prune, discount_fallback=True)
    return NgramLM.estimate(settings, TokenStream.from_tokens(np.append(ids, LINE_END)), vocabulary), vocabulary


def test_reads_a_small_file(tmp_path):
    model, vocabulary = read(tmp_path, SMALL)
    assert vocabulary.tokens == ["<unk>", "<eos>", "the", "cat"]
    assert vocabulary.counts == [0, 0, 0, 0]
    assert model.order == 3
    check_small(model)


@pytest.mark.parametrize(
    "changes",
    [
        {"\n\\data": "made by hand\nngram 7=3\n\n\\data"},
        {"\t": " "},
        {"\n": "\r\n"},
        {"\n": "\n\n"},
        {"0\t<s>": "-99\t<s>", "</s>\t0": "</s>", "<unk>\t0": "<unk>"},
        {"<s> the cat": "<s> the cat\t0"},
        {"-1.5": "-15e-1"},
        {"ngram 1=5": "ngram  1 = 5"},
    ],
)
def test_tolerates_what_other_tools_write(tmp_path, changes):
    text = SMALL
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    check_small(read(tmp_path, text)[0])


def test_probabilities_are_taken_as_they_stand_however_low(tmp_path):
    text = SMALL.replace("-1\tcat", "-99\tcat").replace("-1.5\t<unk>", "-100\t<unk>").replace("0\t<s>", "-99\t<s>")
    model, _ = read(tmp_path, text)
    assert base10(model, [CAT], CAT) == pytest.approx(-0.5 - 99)
    assert base10(model, [CAT], 0) == pytest.approx(-0.5 - 100)
    assert base10(model, [], THE) == pytest.approx(-0.3)
    write_arpa(model, Vocabulary(["<unk>", "<eos>", "the", "cat"], [0] * 4), tmp_path / "again.arpa")
    assert {"-99\tcat\t-0.5", "-100\t<unk>\t0"} < set((tmp_path / "again.arpa").read_text().splitlines())


def test_a_missing_unknown_word_has_the_probability_that_kenlm_gives_it(tmp_path):
    text = SMALL.replace("-1.5\t<unk>\t0\n", "").replace("1=5", "1=4")
    model, vocabulary = read(tmp_path, text)
    assert vocabulary.tokens == ["<unk>", "<eos>", "the", "cat"]
    assert base10(model, [THE], 0) == pytest.approx(-0.2 - 0.125 - 100)
    assert base10(model, [0], THE) == pytest.approx(-0.75)


def test_a_missing_line_end_has_no_probability(tmp_path):
    text = SMALL[: SMALL.index("\n\\2-grams")].replace("ngram 2=4\nngram 3=2\n", "").replace("-0.5\t</s>\t0\n", "")
    model, _ = read(tmp_path, text.replace("1=5", "1=4") + "\\end\\\n")
    assert base10(model, [THE], LINE_END) == -math.inf


def test_adds_missing_beginnings(tmp_path):
    """Of "cat the cat </s>" neither "cat the" nor "cat the cat" is in the file, of "the </s> ..." no end is."""
    text = SMALL.replace("ngram 3=2", "ngram 3=2\nngram 4=2").replace(
        "\\end\\", "\\4-grams:\n-0.01\tcat the cat </s>\n-0.02\tcat the the the\n\\end\\"
    )
    model, _ = read(tmp_path, text)
    assert [len(model.log_probs[k]) for k in (1, 2, 3, 4)] == [4, 5, 4, 2]
    check_small(model)
    assert base10(model, [CAT, THE, CAT], LINE_END) == pytest.approx(-0.01)
    assert base10(model, [CAT, THE, THE], THE) == pytest.approx(-0.02)
    assert base10(model, [CAT], THE) == pytest.approx(-0.5 - 0.75)  # as it was backed off to
    assert base10(model, [CAT, THE], CAT) == pytest.approx(-0.4)
    assert base10(model, [CAT, THE, CAT], CAT) == pytest.approx(-0.1 - 0.5 - 1)


def test_reads_ngrams_whose_end_is_missing(tmp_path):
    text = SMALL.replace("-0.15\tthe cat </s>", "-0.15\tthe cat the")
    model, _ = read(tmp_path, text)
    assert base10(model, [THE, CAT], THE) == pytest.approx(-0.15)
    assert base10(model, [CAT], THE) == pytest.approx(-0.5 - 0.75)


def test_leaves_out_what_crosses_a_line_end(tmp_path):
    text = SMALL.replace("2=4", "2=6").replace("-0.3\t", "-0.1\t</s> <s>\t0\n-0.1\tthe <s>\t-1\n-0.3\t")
    model, _ = read(tmp_path, text)
    assert len(model.keys[2]) == 4
    check_small(model)


def test_reads_orders_that_are_empty(tmp_path):
    text = SMALL.replace("3=2", "3=0").replace("-0.05\t<s> the cat\n-0.15\tthe cat </s>\n", "")
    model, _ = read(tmp_path, text)
    assert base10(model, [THE], CAT) == pytest.approx(-0.2 - 0.4)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\\data\\", "data", r"line 24: no \\data\\ found"),
        ("\n\\end\\\n", "", r"line 22: the file ends without \\end\\"),
        ("-0.7\t<s> </s>\t0\n", "", r"line 19: expected 4 2-grams, as \\data\\ says, got 3"),
        ("1=5", "1=6", r"line 14: expected 6 1-grams, as \\data\\ says, got 5"),
        ("ngram 2=4", "ngram 3=4", "line 4: expected the number of 2-grams, .* got ngram 3=4"),
        ("ngram 2=4", "ngram two", "line 4: expected the number of 2-grams, .* got ngram two"),
        ("\\2-grams:", "\\3-grams:", r"line 14: expected \\2-grams:, got \\3-grams:"),
        ("\\end\\", "\\4-grams:", r"line 24: expected \\end\\ after the 3-grams, got \\4-grams:"),
        ("-0.4\t", "0.4\t", "line 16: expected the logarithm of a probability, at most 0, got 0.4"),
        ("-0.4\t", "nan\t", "line 16: expected the logarithm of a probability, at most 0, got nan"),
        ("-0.4\t", "-0,4\t", "line 16: expected numbers before and after 2 words, got -0,4 the cat -0.1"),
        ("cat\t-0.1", "cat\tnan", "line 16: expected the logarithm of a back-off weight, got nan"),
        ("-0.4\tthe cat\t-0.1", "-0.4\tcat", "line 16: expected a probability, 2 words .* got 2 fields: -0.4 cat"),
        (
            "-0.6\tcat",
            "-0.6\tNew York cat",
            "line 17: expected a probability, 2 words .* got 6 fields: -0.6 New York cat",
        ),
        ("-0.6\tcat", "-0.6\tdog", "line 17: dog is not among the 1-grams"),
        ("-0.6\tcat </s>", "-0.6\tthe cat", "line 17: the same 2-gram stands in line 16 already"),
        ("-1\tcat", "-1\tthe", "line 12: the comes twice"),
        ("-1.5\t<unk>", "-1.5\t</s>", "line 10: </s> comes twice"),
        ("-1\tcat", "-1\t<eos>", "line 12: the word <eos> is what Recurra calls the end of a line"),
    ],
)
def test_says_in_one_line_what_is_wrong_and_where(tmp_path, old, new, message):
    assert old in SMALL
    with pytest.raises(UserError, match=f"^[^\n]*model.arpa, {message}[^\n]*$"):
        read(tmp_path, SMALL.replace(old, new, 1))


def test_a_file_cut_short_anywhere_is_called_so(tmp_path):
    for length in range(SMALL.index("ngram 1"), len(SMALL) - len("\\\n")):
        with pytest.raises(UserError, match=r"model.arpa, line \d+: the file ends without \\end\\: it was cut short"):
            read(tmp_path, SMALL[:length])
    check_small(read(tmp_path, SMALL[:-1])[0])
    with pytest.raises(UserError, match=r"line 24: expected \\4-grams:, got \\end\\"):  # not cut, but wrong
        read(tmp_path, SMALL[:-1].replace("3=2", "3=2\nngram 4=0").replace("\n\\3", "\\3"))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"none.arpa: cannot be read: No such file"):
        read_arpa(tmp_path / "none.arpa")
    path = tmp_path / "model.arpa.gz"
    path.write_text(SMALL)
    with pytest.raises(UserError, match=r"model.arpa.gz: cannot be read: Not a gzipped file"):
        read_arpa(path)
    path.write_bytes(gzip.compress(SMALL.encode())[:-30])
    with pytest.raises(UserError, match=r"model.arpa.gz: the compressed file is cut short or damaged"):
        read_arpa(path)
    path = tmp_path / "model.arpa"
    path.write_bytes(SMALL.encode().replace(b"the", b"th\xe9"))
    with pytest.raises(UserError, match=r"line 11: expected UTF-8, got th\\xe9"):
        read_arpa(path)


@pytest.mark.parametrize("name", ["model.arpa", "model.arpa.gz"])
@pytest.mark.parametrize(("order", "prune"), [(1, (0,)), (2, (0,)), (4, (0,)), (4, (0, 0, 1))])
def test_what_is_written_reads_the_same(tmp_path, name, order, prune):
    model, vocabulary = random_model(order, prune=prune)
    write_arpa(model, vocabulary, tmp_path / name)
    again, words = read_arpa(tmp_path / name)
    assert words.tokens == vocabulary.tokens
    tensors = again.tensors()
    assert tensors.keys() == model.tensors().keys()
    for part, values in model.tensors().items():
        torch.testing.assert_close(tensors[part], values, rtol=1e-6, atol=1e-7)


def test_writes_as_the_format_says(tmp_path):
    model, vocabulary = read(tmp_path, SMALL)
    write_arpa(model, vocabulary, tmp_path / "again.arpa")
    text = (tmp_path / "again.arpa").read_text()
    expected = SMALL.lstrip().replace("0\t<s>", "-99\t<s>")
    assert sorted(text.splitlines()) == sorted(expected.splitlines())
    assert text.startswith("\\data\\\nngram 1=5\nngram 2=4\nngram 3=2\n\n\\1-grams:\n-1.5\t<unk>\t0\n-99\t<s>\t-0.25\n")
    assert text.endswith("\n\n\\end\\\n")


def test_written_in_parts_it_is_the_same(tmp_path, monkeypatch):
    model, vocabulary = random_model()
    write_arpa(model, vocabulary, tmp_path / "whole.arpa")
    monkeypatch.setattr("recurra.models.arpa.WRITTEN_AT_ONCE", 7)
    write_arpa(model, vocabulary, tmp_path / "parts.arpa")
    assert (tmp_path / "parts.arpa").read_bytes() == (tmp_path / "whole.arpa").read_bytes()


def test_probability_zero_is_written_as_the_number_that_stands_for_it(tmp_path):
    vocabulary = Vocabulary(["<unk>", "<eos>", "a", "never"], [0] * 4)
    settings = NgramSettings(order=2, interpolate_unigrams=False, discount_fallback=True)
    model = NgramLM.estimate(settings, TokenStream.from_tokens(np.array([2, 2, 1, 2, 1])), vocabulary)
    write_arpa(model, vocabulary, tmp_path / "model.arpa")
    assert "-99\tnever\t0\n" in (tmp_path / "model.arpa").read_text()
    assert read_arpa(tmp_path / "model.arpa")[0].log_probs[1][3] == pytest.approx(-99 * math.log(10))


@pytest.mark.parametrize("word", ["New York", " ", "a\tb", "", "<s>", "</s>"])
def test_words_that_cannot_be_written_are_named_and_nothing_is_written(tmp_path, word):
    model, vocabulary = random_model(2, ("x", word))
    with pytest.raises(UserError, match=re.escape(f"the token {word!r} ")):
        write_arpa(model, vocabulary, tmp_path / "model.arpa")
    assert not list(tmp_path.iterdir())


@needs_golden
def test_reads_what_kenlm_wrote():
    path = GOLDEN / "order4-prune.arpa.gz"
    expected = {}
    for line in gzip.decompress(path.read_bytes()).decode().split("\n"):
        if "\t" in line:
            probability, words, *backoff = line.split("\t")
            expected[words] = float(probability), float(*backoff or [0])
    model, vocabulary = read_arpa(path)
    found = {}
    for k, log_probs in model.log_probs.items():
        numbers = torch.arange(len(log_probs))
        backoffs = model.backoffs[k] if k < model.order else torch.zeros(len(numbers))
        values = (torch.stack([log_probs, backoffs], 1) / math.log(10)).tolist()
        for (first, *rest), value in zip(model.ngrams(k, numbers).tolist(), values, strict=True):
            words = ["<s>" if first == LINE_END else vocabulary.tokens[first]]
            words += ["</s>" if i == LINE_END else vocabulary.tokens[i] for i in rest]
            found[" ".join(words)] = tuple(value)
    expected["<s>"] = expected.pop("</s>")[0], expected["<s>"][1]  # one entry of ours
    assert found.keys() == expected.keys()
    difference = np.array(list(found.values())) - [expected[words] for words in found]
    assert np.abs(difference).max() < 1e-6
