import gzip
import io
import os
import sys
import types
from collections import Counter
from pathlib import Path

import pytest

from recurra.config import UserError
from recurra.text import readers
from recurra.text.readers import (
    Labelled,
    Pair,
    Recording,
    held_out,
    read_labelled,
    read_pairs,
    read_recordings,
)

needs_data = pytest.mark.skipif("RECURRA_DATA" not in os.environ, reason="RECURRA_DATA is not set")


def file(path: Path, content: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode(encoding))
    return path


def feed(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(content)))


class TestLabelled:
    def test_tables(self, tmp_path):
        wanted = [Labelled("a, b", "x"), Labelled("c", "y")]
        assert list(read_labelled(file(tmp_path / "t.tsv", "a, b\tx\nc\ty\n"))) == wanted
        assert list(read_labelled(file(tmp_path / "t.csv", 'label,text\nx,"a, b"\ny,c\n'))) == wanted
        content = '{"s": "a, b", "c": "x"}\n{"s": "c", "c": "y"}\n'
        assert list(read_labelled(file(tmp_path / "t.jsonl", content), text="s", label="c")) == wanted
        assert list(read_labelled(file(tmp_path / "t.txt", "a, b\tx\nc\ty\n"))) == wanted

    def test_numbers_are_labels_in_jsonl(self, tmp_path):
        content = '{"text": "a", "label": 1}\n'
        assert list(read_labelled(file(tmp_path / "t.jsonl", content))) == [Labelled("a", "1")]

    def test_text_is_handed_on_as_it_is(self, tmp_path):
        odd = " a\x07b\x0b\xa0\u2028c "
        assert list(read_labelled(file(tmp_path / "t.tsv", f"{odd}\tx\n"))) == [Labelled(odd, "x")]

    def test_a_file_a_class(self, tmp_path):
        file(tmp_path / "d" / "spam.txt", "a\nb\n")
        (tmp_path / "d" / "ham.txt.gz").write_bytes(gzip.compress(b"c\n"))
        wanted = [Labelled("c", "ham"), Labelled("a", "spam"), Labelled("b", "spam")]
        assert list(read_labelled(tmp_path / "d")) == wanted
        assert list(read_labelled(str(tmp_path / "d" / "*.txt*"))) == wanted
        assert list(read_labelled([tmp_path / "d" / "spam.txt"], format="classes")) == wanted[1:]

    def test_the_suffix_is_the_class_where_all_stems_are_the_same(self, tmp_path):
        paths = [file(tmp_path / f"rt.{label}", f"é {label}\n", "latin-1") for label in ("neg", "pos")]
        assert list(read_labelled(paths, encoding="latin-1")) == [Labelled("é neg", "neg"), Labelled("é pos", "pos")]

    def test_a_folder_a_class(self, tmp_path):
        file(tmp_path / "pos" / "1.txt", "a\nb\n")
        file(tmp_path / "neg" / "deep" / "2.txt", "c\n")
        assert list(read_labelled(tmp_path)) == [Labelled("c", "neg"), Labelled("a\nb", "pos")]

    def test_a_folder_of_tables_is_read_as_tables(self, tmp_path):
        file(tmp_path / "1.tsv", "a\tx\n")
        file(tmp_path / "2.csv", "b,y\n")
        assert list(read_labelled(tmp_path)) == [Labelled("a", "x"), Labelled("b", "y")]

    def test_empty_texts_are_skipped_and_counted(self, tmp_path):
        tally: Counter[str] = Counter()
        found = list(read_labelled(file(tmp_path / "t.tsv", "a\tx\n \ty\n\nb\tz\n"), tally=tally))
        assert found == [Labelled("a", "x"), Labelled("b", "z")]
        assert tally == {readers.EMPTY_TEXTS: 1, f"{readers.FIRST_ROWS}: 'a', 'x'": 1}

    def test_first_rows_that_may_be_headers_are_counted(self, tmp_path):
        paths = [file(tmp_path / f"{name}.csv", f"{name},rating\ngood,x\n") for name in ("headline", "body1")]
        paths.append(file(tmp_path / "c.csv", "text,label\nbad,y\n"))
        tally: Counter[str] = Counter()
        assert len(list(read_labelled(paths, tally=tally))) == 5
        assert tally == {f"{readers.FIRST_ROWS}: 'headline', 'rating'": 2}
        tally.clear()
        list(read_labelled(paths, tally=tally, labelled=False))
        list(read_labelled(paths, tally=tally, header=True, text=1, label=2))
        assert not tally

    def test_three_columns_are_not_taken_by_their_place(self, tmp_path):
        path = file(tmp_path / "t.csv", "review_id,review_body,rating\n1,good,x\n")
        with pytest.raises(
            UserError, match="which column is the text and which the label, got 'review_id', 'review_body'"
        ):
            list(read_labelled(path))
        path = file(tmp_path / "t.csv", "review_id,Review,mood\n1,good,x\n")
        assert list(read_labelled(path)) == [Labelled("good", "x")]

    def test_for_prediction_every_line_is_an_example(self, tmp_path, monkeypatch):
        path = file(tmp_path / "t.txt", "a b\n\nc\n")
        assert list(read_labelled(path, labelled=False)) == [Labelled("a b"), Labelled(""), Labelled("c")]
        path = file(tmp_path / "t.tsv", "a\tx\n\nb\t\n")
        assert list(read_labelled(path, labelled=False)) == [Labelled("a", "x"), Labelled(""), Labelled("b")]
        path = file(tmp_path / "t.tsv", "text\na\n")  # one column: no header, unless it is said to be one
        assert list(read_labelled(path, labelled=False)) == [Labelled("text"), Labelled("a")]
        assert list(read_labelled(path, labelled=False, text="text")) == [Labelled("a")]
        path = file(tmp_path / "t.jsonl", '{"text": "a"}\n')
        assert list(read_labelled(path, labelled=False)) == [Labelled("a")]
        feed(monkeypatch, b"\xef\xbb\xbfa\r\nb")
        assert list(read_labelled("-", labelled=False)) == [Labelled("a"), Labelled("b")]

    def test_plain_lines_have_no_columns(self, tmp_path):
        path = file(tmp_path / "t", "a b\nc\n")
        for text in ("review", 3):
            found = list(read_labelled(path, labelled=False, text=text, label="stars", header=True))
            assert found == [Labelled("a b"), Labelled("c")]
        path = file(tmp_path / "t", "review\na b\n")  # a table of one column, which is called so
        assert list(read_labelled(path, labelled=False, text="Review")) == [Labelled("a b")]
        path = file(tmp_path / "t", "stars\treview\n1\ta b\n")
        assert list(read_labelled(path, labelled=False, text="review")) == [Labelled("a b")]
        assert list(read_labelled(path, labelled=False, text="review", label="class")) == [Labelled("a b")]
        with pytest.raises(
            UserError, match="line 1: no column 'body' for the text; there are 'stars', 'review'; give --text"
        ):
            list(read_labelled(path, labelled=False, text="body"))

    @pytest.mark.parametrize(
        ("name", "content", "options", "message"),
        [
            ("t.tsv", "id\ttext\n", {}, r"t\.tsv, line 1: no column for the label; there are 'id', 'text'"),
            (
                "t.tsv",
                "id\tbody\n",
                {"labelled": False, "text": "txt"},
                r"no column 'txt' for the text; there are 'id', 'body'; give --text-column NAME or NUMBER",
            ),
            ("t.tsv", "a\tx\nb\t\n", {}, r"t\.tsv, line 2: the label is missing"),
            ("t.txt", "a\nb\n", {}, r"lines without classes; expected a table, or a file for each class"),
            ("t.jsonl", '{"text": 1, "label": "x"}', {}, r"line 1: expected text to be text, got 1"),
            ("t.jsonl", '{"text": "a", "label": true}', {}, r"line 1: expected label to be text, got true"),
            ("t.jsonl", '{"text": "a", "label": null}', {}, r"line 1: the label is missing"),
            ("t.jsonl", '{"label": "a"}', {"labelled": False}, r"line 1: no key 'text' for the text"),
            ("t.tsv", "text\tlabel\n", {}, r"t\.tsv: there is no text in it"),
            ("t.tsv", " \tx\n", {}, r"t\.tsv: there is no text in it"),
            ("t.tsv", "a\tx\n", {"format": "xml"}, r"out of tsv, csv, jsonl, lines, classes, got 'xml'"),
        ],
    )
    def test_mistakes(self, tmp_path, name, content, options, message):
        with pytest.raises(UserError, match=message):
            list(read_labelled(file(tmp_path / name, content), **options))

    def test_empty_file_and_wrong_encoding(self, tmp_path):
        with pytest.raises(UserError, match="empty, there is no text in it"):
            list(read_labelled(file(tmp_path / "e.tsv", "")))
        with pytest.raises(UserError, match="line 1, byte offset 0: 0xe9 is not utf-8"):
            list(read_labelled(file(tmp_path / "t.tsv", "é\tx\n", "latin-1")))
        assert list(read_labelled(tmp_path / "t.tsv", errors="replace")) == [Labelled("\ufffd", "x")]

    def test_lines_are_read_as_they_are_asked_for(self, tmp_path):
        examples = read_labelled(file(tmp_path / "t.tsv", "a\tx\nb\n"))
        assert next(examples) == Labelled("a", "x")
        with pytest.raises(UserError, match="line 2"):
            next(examples)


class TestPairs:
    def test_parallel_files(self, tmp_path):
        paths = [file(tmp_path / "en", "a\r\nb\r\n"), file(tmp_path / "fr", "x\ny")]
        assert list(read_pairs(paths)) == [Pair("a", "x"), Pair("b", "y")]

    def test_tables(self, tmp_path):
        assert list(read_pairs(file(tmp_path / "t.txt", "a\tx\tCC-BY\nb\ty\tCC0\n"))) == [
            Pair("a", "x"),
            Pair("b", "y"),
        ]
        assert list(read_pairs(file(tmp_path / "t.tsv", "a\tx\tz\n"), source=3, target=1)) == [Pair("z", "a")]
        paths = [file(tmp_path / f"{name}.jsonl", f'{{"source": "{name}", "target": "x"}}') for name in "ab"]
        assert list(read_pairs(paths)) == [Pair("a", "x"), Pair("b", "x")]

    def test_empty_sides_are_skipped_and_counted(self, tmp_path):
        tally: Counter[str] = Counter()
        paths = [file(tmp_path / "en", "a\n\nc\n"), file(tmp_path / "fr", "x\ny\n \n")]
        assert list(read_pairs(paths, tally=tally)) == [Pair("a", "x")]
        assert tally == {readers.EMPTY_PAIRS: 2}

    def test_for_prediction_every_line_is_an_example(self, tmp_path):
        path = file(tmp_path / "t.txt", "a\n\nb\n")
        assert list(read_pairs(path, labelled=False)) == [Pair("a"), Pair(""), Pair("b")]
        for source, target in (("en", "fr"), (3, 1)):
            found = list(read_pairs(path, labelled=False, source=source, target=target, header=True))
            assert found == [Pair("a"), Pair(""), Pair("b")]

    def test_two_files_are_parallel_if_there_are_targets_or_it_is_said(self, tmp_path):
        paths = [file(tmp_path / "a.en", "a\nb\n"), file(tmp_path / "b.en", "x\ny\n")]
        assert list(read_pairs(paths, labelled=False)) == [Pair("a"), Pair("b"), Pair("x"), Pair("y")]
        assert list(read_pairs(paths, labelled=False, format="parallel")) == [Pair("a", "x"), Pair("b", "y")]

    @pytest.mark.parametrize(
        ("sides", "message"),
        [
            (("a\nb\nc\nd\n", "x\n"), r"got \S*en 4 and \S*fr 1; the first without a partner is \S*en, line 2$"),
            (("a\n", "x\ny\nz\n"), r"got \S*en 1 and \S*fr 3; the first without a partner is \S*fr, line 2$"),
        ],
    )
    def test_unequal_files(self, tmp_path, sides, message):
        paths = [file(tmp_path / name, side) for name, side in zip(("en", "fr"), sides, strict=True)]
        with pytest.raises(UserError, match=message):
            list(read_pairs(paths))

    @pytest.mark.parametrize(
        ("content", "options", "message"),
        [
            ("a\nb\n", {"format": "tsv"}, r"line 1: no column for the target; there is 1, without names"),
            ("a\tb\nc\n", {}, r"line 2: expected 2 columns as in the first row, got 1"),
            (
                "a\tb\n",
                {"format": "parallel"},
                r"expected two parallel files, source and target, .* got \S+/t; name both",
            ),
            ("a\t\n", {}, r"there is no pair in it"),
        ],
    )
    def test_mistakes(self, tmp_path, content, options, message):
        with pytest.raises(UserError, match=message):
            list(read_pairs(file(tmp_path / "t", content), **options))

    @pytest.mark.parametrize("names", [["p.en"], ["p.en", "p.fr", "p.de"], ["p.en", "t.tsv"]])
    def test_parallel_files_are_two(self, tmp_path, names):
        paths = [str(file(tmp_path / name, "a\tx\n" if name == "t.tsv" else "a\nb\n")) for name in names]
        message = (
            f"expected two parallel files, source and target, or a table with two columns, got {', '.join(paths)}; name"
            " both files, as in `train.en train.fr` or `--valid dev.en,dev.fr`"
        )
        with pytest.raises(UserError) as error:
            list(read_pairs(paths))
        assert str(error.value) == message

    def test_a_text_may_be_both_sides(self, tmp_path):
        assert list(read_pairs(file(tmp_path / "t", "a\n"), source=1, target=1)) == [Pair("a", "a")]

    def test_languages_as_a_header(self, tmp_path):
        path = file(tmp_path / "t.tsv", "French\tEnglish\na\tx\n")
        assert list(read_pairs(path)) == [Pair("a", "x")]
        assert list(read_pairs(path, labelled=False)) == [Pair("a", "x")]

    def test_non_string(self, tmp_path):
        with pytest.raises(UserError, match="line 1: expected target to be text, got 2"):
            list(read_pairs(file(tmp_path / "t.jsonl", '{"source": "a", "target": 2}')))


class TestRecordings:
    @pytest.fixture
    def folder(self, tmp_path):
        for name in ("b.wav", "sub/a.npy", "c.txt"):
            file(tmp_path / "sounds" / name, "")
        return tmp_path / "sounds"

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("m.tsv", "b.wav\ttwo words\nsub/a.npy\tone\n"),
            ("m.txt", "speaker\ttranscript\tpath\n1\ttwo words\tb.wav\n2\tone\tsub/a.npy\n"),
            (
                "m.jsonl",
                '{"path": "b.wav", "transcript": "two words"}\n{"path": "sub/a.npy", "transcript": "one"}\n',
            ),
        ],
    )
    def test_manifests_are_relative_to_themselves(self, folder, name, content):
        assert list(read_recordings(file(folder / name, content))) == [
            Recording("b.wav", folder / "b.wav", "two words"),
            Recording("sub/a.npy", folder / "sub" / "a.npy", "one"),
        ]

    def test_a_manifest_names_drawings(self, folder):
        path = file(folder / "m.tsv", "c.txt\tx\n")
        assert list(read_recordings(path)) == [Recording("c.txt", folder / "c.txt", "x")]

    def test_folders_and_single_files(self, folder):
        paths = [folder / "b.wav", folder / "sub" / "a.npy"]
        assert list(read_recordings(folder, labelled=False)) == [Recording(str(path), path) for path in paths]
        assert list(read_recordings(paths, labelled=False)) == [Recording(str(path), path) for path in paths]

    def test_manifest_on_standard_input_is_relative_to_here(self, folder, monkeypatch):
        monkeypatch.chdir(folder)
        feed(monkeypatch, b"b.wav\n")
        assert list(read_recordings("-", labelled=False)) == [Recording("b.wav", Path("b.wav"))]
        feed(monkeypatch, b"b.wav\n")
        found = list(read_recordings("-", labelled=False, path="file", transcript="said", header=True))
        assert found == [Recording("b.wav", Path("b.wav"))]

    def test_empty_transcripts_are_skipped_and_counted(self, folder):
        tally: Counter[str] = Counter()
        path = file(folder / "m.tsv", "b.wav\t\nsub/a.npy\tone\n")
        assert [one.transcript for one in read_recordings(path, tally=tally)] == ["one"]
        assert tally == {readers.EMPTY_TRANSCRIPTS: 1, f"{readers.FIRST_ROWS}: 'b.wav', ''": 1}

    def test_standard_input_is_a_manifest(self, folder, monkeypatch):
        feed(monkeypatch, b"RIFF\xff\0\0\0WAVE")
        with pytest.raises(
            UserError,
            match=r"binary file.*; standard input is expected to be a manifest: a list of paths of recordings",
        ):
            list(read_recordings("-", labelled=False))
        (folder / "d.mp3").write_bytes(b"\0")
        with pytest.raises(UserError, match=r"d\.mp3, line 1: a NUL.*; expected \.wav, \.npy or a manifest"):
            list(read_recordings(folder / "d.mp3", labelled=False))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("b.wav\tx\nd.wav\ty\n", r"m\.tsv, line 2: there is no \S*d\.wav"),
            ("c.mp3\tx\n", r"line 1: expected a recording named \.wav, \.npy or \.txt, got 'c\.mp3'"),
            ("b.wav\n", "no column for the transcript"),
            (
                "b.wav\tx\t1\n",
                "which column is the path and which the transcript, got 'b.wav', 'x', '1'; give --path-col",
            ),
        ],
    )
    def test_mistakes(self, folder, content, message):
        with pytest.raises(UserError, match=message):
            list(read_recordings(file(folder / "m.tsv", content)))

    def test_transcripts_are_needed(self, folder, tmp_path):
        with pytest.raises(UserError, match="recordings without transcripts; give a table of lines"):
            list(read_recordings(folder))
        with pytest.raises(UserError, match=r"no \.wav or \.npy file there"):
            list(read_recordings(file(tmp_path / "empty" / "x", "").parent))
        with pytest.raises(UserError, match=r"d\.wav: no such file"):
            list(read_recordings(folder / "d.wav", labelled=False))


class TestHeldOut:
    examples = tuple(Pair(f"s{i // 2}", f"t{i}") for i in range(4000))

    def test_about_the_fraction_and_each_key_on_one_side(self):
        kept, held = held_out(self.examples, 0.1, lambda pair: pair.source)
        assert abs(len(held) - 400) < 80
        assert not {pair.source for pair in kept} & {pair.source for pair in held}
        assert sorted(kept + held, key=self.examples.index) == list(self.examples)
        assert kept == [pair for pair in self.examples if pair not in set(held)]  # in their order

    def test_depends_on_the_key_alone(self):
        _, held = held_out(self.examples, 0.1, lambda pair: pair.source)
        _, again = held_out(reversed(self.examples[1000:]), 0.1, lambda pair: pair.source)
        assert again == [pair for pair in reversed(self.examples) if pair in held and pair in self.examples[1000:]]
        _, more = held_out(self.examples, 0.2, lambda pair: pair.source)
        assert set(held) < set(more)

    def test_the_same_on_every_machine(self):
        # printf 'test\0a' | b2sum -l 64 begins with 4; those of b to f with 7, f, 5, c and 9: below 8 is held out
        kept, held = held_out(["a", "b", "c", "d", "e", "f"], 0.5, str)
        assert (kept, held) == (["c", "e", "f"], ["a", "b", "d"])

    def test_parts_are_independent(self):
        kept, test = held_out(self.examples, 0.1, lambda pair: pair.source)
        _, valid = held_out(kept, 0.1, lambda pair: pair.source, part="valid")
        assert abs(len(valid) - 360) < 80
        assert not set(test) & set(valid)

    def test_all_or_nothing(self):
        assert held_out(["a"], 0, str) == (["a"], [])
        assert held_out(["a"], 1, str) == ([], ["a"])
        with pytest.raises(UserError, match=r"too few examples \(1\) to set aside 0.5 of them as test"):
            held_out(["a"], 0.5, str)
        with pytest.raises(UserError) as error:
            held_out(["a"] * 20, 0.1, str)
        assert str(error.value) == (
            "too few examples (20, 1 different: those that belong together are in one part) to set aside 0.1 of them as"
            " test; give --test FILE or --test-fraction 0, and --valid FILE or --valid-fraction 0"
        )
        with pytest.raises(UserError, match=r"of them as valid; give --valid FILE or --valid-fraction 0$"):
            held_out(["a"], 0.1, str, part="valid")
        with pytest.raises(ValueError, match="from 0 to 1"):
            held_out(["a"], 5, str)


@needs_data
def test_real_files():
    folder = Path(os.environ["RECURRA_DATA"])
    polarity, pairs = folder / "sentence-polarity", folder / "tatoeba-eng-fra" / "fra.txt"
    if not polarity.exists() or not pairs.exists():
        pytest.skip("sentence-polarity and tatoeba-eng-fra are not there")
    labels = Counter(one.label for one in read_labelled(str(polarity / "rt-polarity.*"), encoding="latin-1"))
    assert labels == {"neg": 5331, "pos": 5331}
    assert sum(1 for _ in read_pairs(pairs)) == 167_130  # three columns, no header
