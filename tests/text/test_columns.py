import gzip
import io
import os
import sys
import types
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recurra.config import UserError
from recurra.text.columns import EMPTY_WORDS, Sentence, read_sentences, write_sentences

needs_data = pytest.mark.skipif("RECURRA_DATA" not in os.environ, reason="RECURRA_DATA is not set")

CONLLU = """\
# sent_id = 1
# text = Don't go.
1-2\tDon't\t_\t_\t_\t_\t_\t_\t_\t_
1\tDo\tdo\tAUX\tVB\t_\t3\taux\t_\t_
2\tn't\tnot\tPART\tRB\tPolarity=Neg\t3\tadvmod\t_\t_
3\tgo\tgo\tVERB\tVB\t_\t0\troot\t_\tSpaceAfter=No
3.1\tthere\tthere\tADV\tRB\t_\t_\t_\t3:advmod\t_
4\t.\t.\tPUNCT\t.\t_\t3\tpunct\t_\t_

# sent_id = 2
1\tNew York\tNew York\tPROPN\tNNP\t_\t0\troot\t_\t_

"""

CONLL_2003 = """\
-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O

# a comment of six words here
#  NN  B-NP O
Peter NNP B-NP B-PER


"""


def sentences(path: Path, content: str, **options) -> list[Sentence]:
    path.write_bytes(content.encode())
    return list(read_sentences(path, **options))


def written(found: list[Sentence], tags: str | None = None) -> str:
    """Write sentences with the tags they have, or with `tags`, a letter each, for every sentence."""
    file = io.StringIO()
    write_sentences(((one, (tags or one.tags)[: len(one.words)]) for one in found), file)
    return file.getvalue()


class TestConllu:
    def test_words_and_tags(self, tmp_path):
        first, second = sentences(tmp_path / "t.txt", CONLLU)
        assert first.words == ("Do", "n't", "go", ".")
        assert first.tags == ("AUX", "PART", "VERB", "PUNCT")
        assert second.words == ("New York",)

    @pytest.mark.parametrize(
        ("tag", "tags"),
        [
            ("xpos", "VB RB VB ."),
            ("FEATS", "_ Polarity=Neg _ _"),
            ("deprel", "aux advmod root punct"),
            (3, "do not go ."),
        ],
    )
    def test_other_columns(self, tmp_path, tag, tags):
        assert sentences(tmp_path / "t.conllu", CONLLU, tag=tag)[0].tags == tuple(tags.split())

    def test_word_from_another_column(self, tmp_path):
        assert sentences(tmp_path / "t", CONLLU, word="lemma")[0].words == ("do", "not", "go", ".")

    def test_writing_fills_in_the_tag_and_nothing_else(self, tmp_path):
        assert written(sentences(tmp_path / "t", CONLLU)) == CONLLU
        assert written(sentences(tmp_path / "t", CONLLU), "ABCD") == (
            CONLLU.replace("AUX", "A")
            .replace("PART", "B")
            .replace("VERB", "C")
            .replace("PUNCT", "D")
            .replace("PROPN", "A")
        )

    @pytest.mark.parametrize(
        ("content", "options", "message"),
        [
            (CONLLU, {"tag": "pos"}, "no column 'pos' for the tag; there are id, form, lemma, upos"),
            (CONLLU, {"tag": 11, "labelled": True}, "only 10 columns, and no tags"),
            (CONLLU, {"tag": "form"}, "column 2 cannot be both the word and the tag"),
            (CONLLU + "1\ta\tb\n", {}, r"line 13: expected 10 columns, got 3"),
            (CONLLU + "one" + "\ta" * 9, {}, "line 13: expected a word's number in CoNLL-U, got 'one'"),
        ],
    )
    def test_mistakes(self, tmp_path, content, options, message):
        with pytest.raises(UserError, match=message):
            sentences(tmp_path / "t.conllu", content, **options)


class TestColumns:
    def test_first_and_last_of_several(self, tmp_path):
        first, second = sentences(tmp_path / "t", CONLL_2003)
        assert (first.words, first.tags) == (("EU", "rejects"), ("B-ORG", "O"))
        assert (second.words, second.tags) == (("#", "Peter"), ("O", "B-PER"))

    def test_by_number(self, tmp_path):
        found = sentences(tmp_path / "t", CONLL_2003, word=-1, tag=2)
        assert [(one.words, one.tags) for one in found] == [
            (("B-ORG", "O"), ("NNP", "VBZ")),
            (("O", "B-PER"), ("NN", "NNP")),
        ]

    def test_writing_keeps_comments_spaces_and_blank_lines(self, tmp_path):
        found = sentences(tmp_path / "t", CONLL_2003)
        assert written(found) == CONLL_2003
        assert written(found[1:], "XY") == ("# a comment of six words here\n#  NN  B-NP X\nPeter NNP B-NP Y\n\n\n")

    def test_tags_are_appended_where_there_is_no_column(self, tmp_path):
        assert written(sentences(tmp_path / "t", "a\n#b\n\nc", labelled=False, format="columns"), "XY") == (
            "a\tX\n#b\tY\n\nc\tX\n\n"
        )
        for tag in (4, -3, "upos"):  # wherever it was in training
            found = sentences(tmp_path / "t", "a NN\nb VB\n", labelled=False, format="columns", tag=tag)
            assert list(found[0].lines(["x", "y"])) == ["a NN x", "b VB y"]
        found = sentences(tmp_path / "t", "a NN\nb VB\n", labelled=False, format="columns", tag=3)
        assert found[0].tags is None
        assert written(found, "XY") == "a NN X\nb VB Y\n\n"

    def test_tags_that_are_there_are_replaced(self, tmp_path):
        assert written(sentences(tmp_path / "t", "a\tO\nb\tO\n", labelled=False), "XY") == "a\tX\nb\tY\n\n"

    def test_control_characters_and_odd_spaces_stay_in_the_word(self, tmp_path):
        (found,) = sentences(tmp_path / "t", "10\xa0000 O\na\x0b\x1cb\u2028 O\n")
        assert found.words == ("10\xa0000", "a\x0b\x1cb\u2028")

    def test_hash_is_a_word_where_it_has_a_tag(self, tmp_path):
        (found,) = sentences(tmp_path / "t", "#tag\tO\n#\tO\nof\tO\n")
        assert found.words == ("#tag", "#", "of")

    def test_rows_without_a_word_are_kept_and_counted(self, tmp_path):
        tally: Counter[str] = Counter()
        content = "a\tO\n\tO\nb\tB\n\n\tO\n\nc\tO\n"
        found = sentences(tmp_path / "t", content, tally=tally)
        assert [one.words for one in found] == [("a", "b"), ("c",)]
        assert tally == {EMPTY_WORDS: 2}
        assert written(found) == content + "\n"

    def test_several_files_do_not_run_into_each_other(self, tmp_path):
        for name in "ab":
            (tmp_path / name).write_text(f"{name} O")
        assert [one.words for one in read_sentences([tmp_path / "b", tmp_path / "a"])] == [("b",), ("a",)]

    def test_gzip_mark_encoding(self, tmp_path):
        (tmp_path / "t.conll.gz").write_bytes(gzip.compress("\ufeffé O\n".encode()))
        (found,) = read_sentences(tmp_path / "t.conll.gz")
        assert found.words == ("é",)
        (tmp_path / "l").write_bytes("é O\n".encode("latin-1"))
        assert next(read_sentences(tmp_path / "l", encoding="latin-1")).words == ("é",)

    @pytest.mark.parametrize(
        ("content", "options", "message"),
        [
            ("a O\nb NN O\n", {}, r"t, line 2: expected 2 columns as in line 1, got 3"),
            ("x O\n# c O\ny O\n", {}, r"t, line 2: expected 2 columns as in line 1, got 3"),
            ("a\nb\n", {}, r"t, line 1: only one column, and no tags; expected a column of words and one of tags"),
            ("\n\na O\n", {"tag": 5}, r"t, line 3: no column 5 for the tag; there are 2, counted from 1"),
            ("a O\n", {"tag": "ner"}, r"no column 'ner' for the tag; give its number"),
            ("a\tO\nb\t\n", {}, r"t, line 2: the tag is empty"),
            ("\n \n", {}, r"t: there is no sentence in it"),
            ("-DOCSTART- O\n", {}, r"t: there is no sentence in it"),
            (
                "a O\n",
                {"format": "conll"},
                r"expected a format of sentences out of conllu, columns, lines, got 'conll'",
            ),
            ("a O\n", {"format": "lines"}, r"lines of words have no tags"),
        ],
    )
    def test_mistakes(self, tmp_path, content, options, message):
        with pytest.raises(UserError, match=message):
            sentences(tmp_path / "t", content, **options)

    def test_missing(self):
        with pytest.raises(UserError, match="no such file"):
            list(read_sentences("nowhere.conll"))


class TestLines:
    def test_words_between_spaces(self, tmp_path):
        found = sentences(tmp_path / "t.txt", "the  cat sat \n\n10\xa0000 dogs\n", labelled=False)
        assert found == [Sentence(("the", "cat", "sat")), Sentence(("10\xa0000", "dogs"))]
        assert written(found, "ABC") == "the\tA\ncat\tB\nsat\tC\n\n10\xa0000\tA\ndogs\tB\n\n"

    def test_standard_input(self, monkeypatch):
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"a b\nc\n")))
        assert [one.words for one in read_sentences("-", labelled=False)] == [("a", "b"), ("c",)]

    def test_number_of_tags(self):
        with pytest.raises(ValueError, match="expected a tag for each of 2 words, got 1"):
            list(Sentence(("a", "b")).lines(["X"]))


words = st.text(st.characters(exclude_characters="\0\r\n\t ", codec="utf-8"), min_size=1).filter(
    lambda word: not word.startswith(("#", "-DOCSTART-", "\ufeff"))
)


@given(st.lists(st.lists(st.tuples(words, words), min_size=1), min_size=1))
def test_what_is_written_is_what_is_read(tmp_path_factory, content):
    text = "".join("".join(f"{word}\t{tag}\n" for word, tag in sentence) + "\n" for sentence in content)
    found = sentences(tmp_path_factory.mktemp("t") / "t", text)
    assert [list(zip(one.words, one.tags or (), strict=True)) for one in found] == content
    assert written(found) == text


@needs_data
@pytest.mark.parametrize(
    ("file", "count", "total"),
    [
        ("ud-english-ewt/en_ewt-ud-test.conllu", 2077, 25094),
        ("wnut17/emerging.test.annotated", 1287, 23394),
        ("broad-twitter-ner/btc.dev", 1000, 15024),  # and a sentence of one row without a word
    ],
)
def test_real_files_come_back_byte_for_byte(file, count, total):
    path = Path(os.environ["RECURRA_DATA"]) / file
    if not path.exists():
        pytest.skip(f"{path} is not there")
    found = list(read_sentences(path))
    assert (len(found), sum(len(one.words) for one in found)) == (count, total)
    assert written(found).rstrip("\n") == path.read_bytes().decode().replace("\r\n", "\n").rstrip("\n")
