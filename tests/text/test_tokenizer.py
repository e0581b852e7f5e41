import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recurra.config import UserError
from recurra.text import tokenizer as module
from recurra.text.corpora import open_text
from recurra.text.documents import Document, Text
from recurra.text.tokenizer import (
    JOINER,
    KINDS,
    TokenizerSettings,
    build_tokenizer,
    join_words,
    split_words,
    tokenizer_from_mapping,
)
from recurra.text.vocabulary import TokenCounter

needs_data = pytest.mark.skipif("RECURRA_DATA" not in os.environ, reason="RECURRA_DATA is not set")

# Any Unicode, with more than its share of what splitting turns on.
spaced = st.text(st.one_of(st.sampled_from(" \t\xa0\u3000ab1.,'’-\u0301é"), st.characters(codec="utf-8")))
line = spaced.map(lambda text: text.replace("\n", "").replace(JOINER, ""))


def build(text, tokenizer, **settings):
    lines = text.removesuffix("\n").split("\n")  # a \r is not a line end here, as in `encode`
    return build_tokenizer(Text((Document("t", lines.__iter__),)), TokenizerSettings(tokenizer=tokenizer, **settings))


def encoded_lines(tokenizer, lines):
    return np.concatenate([np.empty(0, np.int32), *tokenizer.encode_lines(lines)]).tolist()


BYTE_PAIRS = build("the cat sat on the mat, the cat\nthat the bat sat at\n" * 3, "byte-pairs", vocabulary_size=300)


class TestEveryKind:
    @pytest.mark.parametrize("kind", KINDS)
    def test_line_ends(self, kind):
        tokenizer = build("a b\na b\n", kind)
        a_line = tokenizer.encode("a b").tolist()
        assert a_line.count(1) == 0
        assert tokenizer.encode("a b\n").tolist() == [*a_line, 1]
        assert tokenizer.encode("\na b\n\na b").tolist() == [1, *a_line, 1, 1, *a_line]
        assert encoded_lines(tokenizer, ["", "a b", "", "a b"]) == [1, *a_line, 1, 1, *a_line, 1]
        assert tokenizer.decode([1, *a_line, 1, 1, *a_line]) == "\na b\n\na b"
        assert tokenizer.encode("").tolist() == []
        assert tokenizer.encode("a b").dtype == np.int32
        assert tokenizer.decode([]) == ""

    @pytest.mark.parametrize("kind", KINDS)
    def test_json_and_tokens_by_id(self, kind):
        text = "The cat, the hat.\nTHE CAT\n" * 3
        tokenizer = build(text, kind, lowercase=True)
        again = tokenizer_from_mapping(json.loads(json.dumps(tokenizer.to_mapping())))
        assert again.kind == kind
        assert again.vocabulary == tokenizer.vocabulary
        assert again.encode(text).tolist() == tokenizer.encode(text).tolist()
        assert again.decode(again.encode(text)) == text.lower()
        assert [again.id(again.token(i)) for i in range(len(again.vocabulary))] == list(range(len(again.vocabulary)))
        assert (again.token(0), again.token(1)) == ("<unk>", "<eos>")

    @pytest.mark.parametrize("kind", KINDS)
    def test_counts_are_those_of_the_encoded_text_and_fall(self, kind):
        text = "a bc, a  bc.\n\nd a bc d'e 1,5 <eos> <unk>\n" * 2 + "once\n"
        tokenizer = build(text, kind)
        counts = np.bincount(tokenizer.encode(text), minlength=len(tokenizer.vocabulary)).tolist()
        assert tokenizer.vocabulary.counts == counts
        assert counts[2:] == sorted(counts[2:], reverse=True)

    @pytest.mark.parametrize("kind", KINDS)
    def test_blocks_and_pieces_of_long_lines_change_nothing(self, kind, monkeypatch):
        lines = ["", "a b  c d", "x" * 30, "a b " * 20, "", "a, b.  c d e f g h\ti j k l"]
        tokenizer = build("\n".join(lines), kind)
        whole = encoded_lines(tokenizer, lines)
        assert whole == tokenizer.encode("\n".join(lines) + "\n").tolist()
        for size in (1, 2, 7, 33):
            monkeypatch.setattr(module, "BLOCK", size)
            assert encoded_lines(tokenizer, lines) == whole

    @pytest.mark.parametrize("kind", KINDS)
    def test_nothing_but_empty_lines_is_refused(self, kind):
        with pytest.raises(UserError, match="nothing but empty lines"):
            build("\n\n", kind)

    def test_a_mapping_of_another_kind_is_refused(self):
        with pytest.raises(UserError, match="unknown tokenizer 'syllables'; expected one of characters, words"):
            tokenizer_from_mapping({"kind": "syllables", "lowercase": False})


class TestCharacters:
    @given(st.text())
    def test_round_trip_of_any_unicode(self, text):
        tokenizer = build("x" + text, "characters")
        assert tokenizer.decode(tokenizer.encode(text)) == text

    def test_vocabulary_and_unknown(self):
        tokenizer = build("aaabbc\u2028\n", "characters", vocabulary_size=5)
        assert tokenizer.vocabulary.tokens == ["<unk>", "<eos>", "a", "b", "c"]
        assert tokenizer.vocabulary.counts == [1, 1, 3, 2, 1]
        assert tokenizer.encode("abxc\u2028\n").tolist() == [2, 3, 0, 4, 0, 1]
        assert tokenizer.decode([2, 0, 4]) == "a\ufffdc"
        assert build("aaabbc", "characters", min_count=2).vocabulary.tokens == ["<unk>", "<eos>", "a", "b"]


class TestWhitespace:
    def test_words_as_they_stand(self):
        tokenizer = build("The cat , the\u3000cat. \n", "whitespace", min_count=1)
        assert sorted(tokenizer.vocabulary.tokens[2:]) == [",", "The", "cat", "cat.", "the"]
        assert tokenizer.decode(tokenizer.encode("  the\tcat. \n")) == "the cat.\n"

    def test_special_words_of_the_text(self):
        tokenizer = build("a <unk> b\na <eos> b\n", "whitespace")
        assert tokenizer.vocabulary.tokens == ["<unk>", "<eos>", "a", "b"]
        assert tokenizer.vocabulary.counts == [1, 3, 2, 2]
        assert tokenizer.encode("a <unk> never <eos> b").tolist() == [2, 0, 0, 1, 3]
        assert tokenizer.decode([2, 0, 1, 3]) == "a <unk>\nb"

    def test_rare_words_are_unknown_unless_the_text_says_so_itself(self):
        assert build("a a b\n", "whitespace").vocabulary.tokens[2:] == ["a"]
        assert build("a a b <unk>\n", "whitespace").vocabulary.tokens[2:] == ["a", "b"]
        assert build("a b\n", "whitespace").vocabulary.tokens[2:] == ["a", "b"]
        assert build("a a b\n", "whitespace", min_count=1).vocabulary.tokens[2:] == ["a", "b"]
        assert build("a a b\n", "whitespace", vocabulary_size=9).vocabulary.tokens[2:] == ["a", "b"]


class TestWords:
    @pytest.mark.parametrize(
        ("chunk", "tokens"),
        [
            ("said,", "said ￭,"),
            ("(yes),", "(￭ yes ￭) ￭,"),
            ("don't", "don't"),
            ("rock’n’roll's", "rock’n’roll's"),
            ("dogs'", "dogs ￭'"),
            ("'tis", "'￭ tis"),
            ("well-known", "well ￭-￭ known"),
            ("1,000.50", "1,000.50"),
            ("3.", "3 ￭."),
            ("3rd", "3rd"),
            ("1,2a", "1 ￭,￭ 2a"),
            ("...", ". ￭. ￭."),
            ("a@b.c", "a ￭@￭ b ￭.￭ c"),
            ("Zu\u0308rich", "Zu\u0308rich"),
            ("हिन्दी", "हिन्दी"),
            ("می‌خواهم", "می‌خواهم"),
            ("日本。", "日本 ￭。"),
            ("<unk>", "<unk>"),
            ("<unk>,", "<￭ unk ￭> ￭,"),
        ],
    )
    def test_splitting(self, chunk, tokens):
        assert split_words(chunk) == tokens.split(" ")
        assert join_words(tokens.split(" ")) == chunk

    @given(line)
    def test_round_trip_of_any_line(self, text):
        if {"<unk>", "<eos>"} & set(text.split(" ")):
            return
        tokenizer = build("x" + "\n" + text, "words", min_count=1)
        assert tokenizer.decode(tokenizer.encode(text)) == text

    def test_how_a_line_is_cut_does_not_depend_on_the_rest_of_it(self):
        tokenizer = build(" a \tb  c \n", "words", min_count=1)
        assert tokenizer.encode("x a \tb x").tolist() == tokenizer.encode("x a \tb x  x").tolist()[:-2]

    def test_unusual_white_space_is_a_token(self):
        tokenizer = build("    a  b\tc\xa0d \n", "words", min_count=1)
        expected = {"    ￭", "a", "￭  ￭", "b", "￭\t￭", "c", "￭\xa0￭", "d", "￭ "}
        assert set(tokenizer.vocabulary.tokens[2:]) == expected

    def test_special_words_of_the_text(self):
        tokenizer = build("a, <unk> b\na <eos> b\n", "words")
        assert tokenizer.vocabulary.counts[:2] == [1, 3]
        assert tokenizer.decode(tokenizer.encode("a, <unk> b, <eos> b")) == "a, <unk> b,\nb"

    def test_chunks_are_forgotten_when_there_are_many(self, monkeypatch):
        text = " ".join(f"w{i},w{i}" for i in range(200))
        whole = build(text, "words")
        monkeypatch.setattr(module, "REMEMBERED_CHUNKS", 10)
        few = build(text, "words")
        assert few.vocabulary == whole.vocabulary
        assert few.encode(text).tolist() == whole.encode(text).tolist()
        assert len(few._ids_of_chunks) <= 10

    @pytest.mark.parametrize("limit", [("REMEMBERED_CHUNKS", 20), ("COUNTED_AT_ONCE", 300)])
    def test_counting_is_bounded(self, monkeypatch, limit):
        monkeypatch.setattr(module, "TokenCounter", lambda: TokenCounter(limit=50))
        monkeypatch.setattr(module, *limit)
        monkeypatch.setattr(module, "BLOCK", 100)
        text = "\n".join(f"the w{i} of x{i}" for i in range(500))
        vocabulary = build(text, "words", min_count=1).vocabulary
        assert vocabulary.tokens[2:4] == ["of", "the"]
        assert vocabulary.counts[2] == vocabulary.counts[3] == 500
        assert len(vocabulary) < 60
        assert sum(vocabulary.counts) == 5 * 500

    @needs_data
    def test_real_text(self):
        text = open_text("tiny-shakespeare")
        tokenizer = build_tokenizer(text, TokenizerSettings(tokenizer="words", min_count=1))
        written = "".join(f"{line}\n" for line in text.lines())
        assert tokenizer.decode(tokenizer.encode(written)) == written


class TestBytePairs:
    @given(st.one_of(st.text(), spaced))
    def test_round_trip_of_any_unicode(self, text):
        ids = BYTE_PAIRS.encode(text)
        assert 0 not in ids
        assert BYTE_PAIRS.decode(ids) == text

    def test_merges_are_learnt(self):
        assert [BYTE_PAIRS.token(i) for i in BYTE_PAIRS.encode("the cat")] == ["Ġthe", "Ġcat"]
        assert BYTE_PAIRS.encode("the").tolist() == BYTE_PAIRS.encode("cat the").tolist()[1:]

    def test_sizes(self):
        assert len(BYTE_PAIRS.vocabulary) <= 300
        assert len(build("the cat sat\n" * 5, "byte-pairs").vocabulary) == 258
        text = "".join(f"{i * 7919 % 1000:03} fold\n" for i in range(2000))
        assert 258 < len(build(text, "byte-pairs").vocabulary) <= 258 + len(text) // 100
        assert len(build(text, "byte-pairs", vocabulary_size=260).vocabulary) == 260
        with pytest.raises(UserError, match=r"byte pairs need a vocabulary of 258, .* got 257"):
            build(text, "byte-pairs", vocabulary_size=257)

    def test_learning_is_reproducible(self):
        text = "".join(f"{i * 7919 % 1000:03} fold, {i * 31 % 97} times\n" for i in range(2000))
        first, second = (build(text, "byte-pairs").to_mapping() for _ in range(2))
        assert first == second

    def test_what_is_learnt_from_is_bounded(self, monkeypatch):
        text = "".join(f"the cat of w{i}\n" for i in range(300))
        whole = build(text, "byte-pairs", vocabulary_size=280)
        monkeypatch.setattr(module, "LEARNT_FROM", 500)
        sampled = build(text, "byte-pairs", vocabulary_size=280)
        assert {"Ġthe", "Ġcat", "Ġof"} <= set(whole.vocabulary.tokens) & set(sampled.vocabulary.tokens)
        assert sampled.vocabulary.counts[sampled.id("Ġthe")] == 300
        assert sampled.decode(sampled.encode(text)) == text

    def test_min_count_is_that_of_a_merge(self):
        tokens = build("ab ab ab cd cd\n" * 2, "byte-pairs", vocabulary_size=300, min_count=5).vocabulary.tokens
        assert "Ġab" in tokens
        assert not any("cd" in token for token in tokens)


def test_pieces_are_what_a_reader_sees():
    text = "déjà vu, déjà vu again\n" * 20
    tokenizer = build(text, "byte-pairs", vocabulary_size=300)
    pieces = [tokenizer.piece(int(id)) for id in tokenizer.encode("déjà vu\n")]
    assert "".join(pieces) == "▁déjà▁vu<eos>"
    words = build(text, "words")
    assert [words.piece(int(id)) for id in words.encode("vu\n")] == ["vu", "<eos>"]


class TestAuto:
    def test_a_small_text_is_read_by_characters(self):
        assert build("Hello, world. And so on, and on.\n", None).kind == "characters"

    @pytest.mark.parametrize("text", ["Hello , world . So on , etc.\n", "a rare <unk> word\n"])
    def test_words_that_are_cut_apart_are_taken_as_they_stand(self, text):
        assert build(text, None).kind == "whitespace"

    def test_a_large_text_is_read_by_words(self, monkeypatch):
        monkeypatch.setattr(module, "SMALL_TEXT", 30)
        assert build("Hello, world. And so on, and on.\n", None).kind == "words"
        assert build("Hello, world.\n", None).kind == "characters"

    @needs_data
    def test_wikitext_has_its_published_vocabulary(self):
        tokenizer = build_tokenizer(open_text("wikitext-2:train"))
        assert tokenizer.kind == "whitespace"
        assert len(tokenizer.vocabulary) == 33_278
        assert sum(tokenizer.vocabulary.counts) == 2_088_628
        assert tokenizer.vocabulary.tokens[2:5] == ["the", ",", "."]
