from pathlib import Path

import pytest

from recurra.config import UserError
from recurra.text.documents import file_document
from recurra.text.tables import parsed_json, rows, table_format

TEXT_AND_LABEL = {"text": None, "label": None}
SIDES = {"source": None, "target": None}


def fields(path: Path, content: str, kind: str = "tsv", columns=TEXT_AND_LABEL, needed=("text", "label"), **options):
    path.write_bytes(content.encode())
    return [tuple(row.fields.values()) for row in rows(file_document(path), kind, columns, needed=needed, **options)]


class TestColumns:
    def test_by_place_without_a_header(self, tmp_path):
        assert fields(tmp_path / "t", "a b\tx\nc\ty\n") == [("a b", "x"), ("c", "y")]

    def test_by_number_from_either_end(self, tmp_path):
        columns = {"text": -1, "label": 1}
        assert fields(tmp_path / "t", "x\t?\ta\ny\t?\tb\n", columns=columns) == [("a", "x"), ("b", "y")]

    @pytest.mark.parametrize("header", ["label\tid\ttext", "Label\tid\tTEXT"])
    def test_a_header_is_recognised_by_the_names(self, tmp_path, header):
        assert fields(tmp_path / "t", f"{header}\nx\t1\ta\n") == [("a", "x")]

    def test_by_other_names(self, tmp_path):
        columns = {"text": "review", "label": "stars"}
        assert fields(tmp_path / "t", "stars\treview\n5\tgood\n", columns=columns) == [("good", "5")]

    def test_header_said_to_be_there_or_not(self, tmp_path):
        columns = {"text": 1, "label": 2}
        assert fields(tmp_path / "t", "a\tb\nc\td\n", columns=columns, header=True) == [("c", "d")]
        assert fields(tmp_path / "t", "text\tlabel\nc\td\n", header=False) == [("text", "label"), ("c", "d")]

    @pytest.mark.parametrize(
        ("content", "columns", "message"),
        [
            ("id\ttext\n1\ta\n", TEXT_AND_LABEL, r"line 1: no column for the label; there are 'id', 'text'"),
            ("only\none\n", TEXT_AND_LABEL, r"line 1: no column for the label; there is 1, without names"),
            ("a\tb\n", {"text": 1, "label": 3}, r"no column 3 for the label; there are 2, counted from 1"),
            ("a\tb\n", {"text": 0, "label": 1}, r"no column 0 for the text"),
            (
                "a\tb\n",
                {"text": "words", "label": 1},
                r"no column 'words' for the text; the first row is 'a', 'b'; give --text-column NAME or NUMBER$",
            ),
            (
                "id\ttext\tlabel\n",
                {"text": "words", "label": None},
                r"no column 'words' for the text; there are 'id', 'text', 'label'; give --text-column NAME or NUMBER$",
            ),
            ("text\tmine\tmine\n", {"text": None, "label": "mine"}, r"called 'mine'; give --label-column NUMBER$"),
            (
                "review\tbody\tmood\n",
                TEXT_AND_LABEL,
                r"line 1: several columns may be the text: 'review', 'body'; give --text-column NAME or NUMBER, or",
            ),
            (
                "headline\tmood\n",
                TEXT_AND_LABEL,
                r"line 1: no column for the text; there are .*--no-header if this row",
            ),
            (
                "a\tb\n",
                {"text": 2, "label": None},
                r"no column for the label; there are 2, .*; give --label-column NAME",
            ),
            ("text\ttext\tlabel\n", TEXT_AND_LABEL, r"two columns are called 'text'"),
            ("a\tx\n\nb\tx\ty\n", TEXT_AND_LABEL, r"line 3: expected 2 columns as in the first row, got 3"),
        ],
    )
    def test_mistakes(self, tmp_path, content, columns, message):
        with pytest.raises(UserError, match=message):
            fields(tmp_path / "t", content, columns=columns)

    @pytest.mark.parametrize(
        ("header", "columns", "wanted"),
        [
            ("Tweet\tMood", TEXT_AND_LABEL, ("1", "2")),
            ("intent\tno\tmessage", TEXT_AND_LABEL, ("3", "1")),
            ("comment\ttext\tclass\tlabel", TEXT_AND_LABEL, ("2", "4")),  # the names themselves come first
            ("comment\tbody\tclass", {"text": None, "label": "body"}, ("1", "2")),  # not what was given otherwise
            ("tgt\tsrc", SIDES, ("2", "1")),
            ("English\tFrench", SIDES, ("1", "2")),
            ("English\tfrench\tGerman", {"source": "English", "target": None}, None),
            ("number\tFrench\tEnglish", SIDES, ("2", "3")),
            ("id\tfrench\tenglish\tnote", SIDES, ("2", "3")),
            ("pt-BR\tDE", SIDES, ("1", "2")),
            ("en\tfr", {"source": "fr", "target": None}, ("2", "1")),
            ("note\tsummary\tenglish", {"source": None, "target": "summary"}, ("3", "2")),
            ("client\tfile\tsentence", {"path": None, "transcript": None}, ("2", "3")),
        ],
    )
    def test_usual_names(self, tmp_path, header, columns, wanted):
        content = header + "\n" + "\t".join("1234"[: header.count("\t") + 1]) + "\n"
        if wanted:
            assert fields(tmp_path / "t", content, columns=columns, needed=list(columns)) == [wanted]
        else:
            with pytest.raises(
                UserError, match="several columns may be the target: 'french', 'German'; give --target-column"
            ):
                fields(tmp_path / "t", content, columns=columns, needed=list(columns))

    @pytest.mark.parametrize(
        "row", ["English\tanglais", "en\ten", "he\til", "hi\tit", "Go.\tVa !", "text\tlabel", "en\tfrx"]
    )
    def test_what_is_no_pair_of_languages_is_an_example(self, tmp_path, row):
        assert fields(tmp_path / "t", f"{row}\n", columns=SIDES, needed=["source", "target"]) == [
            tuple(row.split("\t"))
        ]

    def test_three_columns_have_to_be_named(self, tmp_path):
        content = "review_id\treview_body\trating\n1\tgood\tx\n"
        message = (
            "line 1: expected a row that says which column is the text and which the label, got 'review_id',"
            " 'review_body', 'rating'; give --text-column and --label-column by name or number, and by number also"
            " --header if this row names them"
        )
        for header in (None, False):
            with pytest.raises(UserError, match=message):
                fields(tmp_path / "t", content, header=header)
        with pytest.raises(
            UserError, match=r"no column for the text; there are 'review_id', .*; give --text-column NAME"
        ):
            fields(tmp_path / "t", content, header=True)
        with pytest.raises(UserError, match=r"which column is the label, got .*; give --label-column by name"):
            fields(tmp_path / "t", content, columns={"text": 2, "label": None})
        with pytest.raises(UserError, match=r"which column is the text, got .*; give --text-column by name"):
            fields(tmp_path / "t", content, needed=["text"])
        named = {"text": "review_body", "label": "rating"}
        assert fields(tmp_path / "t", content, columns=named) == [("good", "x")]
        assert fields(tmp_path / "t", content, columns={"text": 2, "label": 3}, header=True) == [("good", "x")]

    def test_or_are_the_first_ones_where_that_is_usual(self, tmp_path):
        how = {"columns": SIDES, "needed": ["source", "target"], "first_ones": True}
        assert fields(tmp_path / "t", "a\tx\tCC\n", **how) == [("a", "x")]
        with pytest.raises(
            UserError, match="no column for the target; there are 3, without names; give --target-column"
        ):
            fields(tmp_path / "t", "a\tx\tCC\n", **how | {"columns": {"source": 2, "target": None}})

    def test_a_first_row_that_is_taken_for_an_example_is_told(self, tmp_path):
        told = []
        fields(tmp_path / "t", "headline\trating\n" + "a" * 100 + "\tx\n", note=told.append)
        assert told == ["'headline', 'rating'"]
        fields(tmp_path / "t", "a" * 100 + "\tx\n", note=told.append)
        assert told[1:] == [f"'{'a' * 37}...', 'x'"]
        fields(tmp_path / "t", "text\tlabel\na\tx\n", note=told.append)
        fields(tmp_path / "t", "a\tx\n", header=False, note=told.append)
        assert len(told) == 2

    def test_blank_lines_are_rows_where_wanted(self, tmp_path):
        content = "a\tx\n\nb\ty\n"
        assert fields(tmp_path / "t", content) == [("a", "x"), ("b", "y")]
        found = fields(tmp_path / "t", content, needed=["text"], blanks=True)
        assert found == [("a", "x"), ("",), ("b", "y")]

    @pytest.mark.parametrize("blank", ["\n", " \n", "\t\n"])
    def test_a_blank_first_line_says_nothing_of_columns(self, tmp_path, blank):
        assert fields(tmp_path / "t", f"{blank}\na\tx\n") == [("a", "x")]
        assert fields(tmp_path / "t", f"{blank}label\ttext\nx\ta\n", blanks=True) == [("a", "x")]
        assert fields(tmp_path / "t", f"{blank}a\tx\n", blanks=True) == [("",), ("a", "x")]
        assert fields(tmp_path / "t", blank, needed=["text"], blanks=True) == [("",)]

    def test_what_is_not_needed_may_be_missing(self, tmp_path):
        for label in ("class", 3, -3):
            columns = {"text": 1, "label": label}
            assert fields(tmp_path / "t", "a\tb\n", columns=columns, needed=["text"]) == [("a", None)]
        columns = {"text": 2, "label": "class"}
        assert fields(tmp_path / "t", "class\tbody\nx\ta\n", columns=columns, needed=["text"]) == [("a", "x")]
        columns = {"text": "text", "label": 2}
        assert fields(tmp_path / "t", '{"text": "a"}\n', "jsonl", columns, needed=["text"]) == [("a", None)]


class TestKinds:
    def test_a_tsv_has_no_quotes_and_keeps_every_character(self, tmp_path):
        content = 'he said "no\tx\na\x0bb\u2028c\xa0d\x1c\ty\n'
        assert fields(tmp_path / "t", content) == [('he said "no', "x"), ("a\x0bb\u2028c\xa0d\x1c", "y")]

    def test_a_csv_has_quotes_and_fields_of_several_lines(self, tmp_path):
        content = 'text,label\r\n"a, ""b""\r\nc",x\r\n\r\nd,y\r\n'
        assert fields(tmp_path / "t", content, "csv") == [('a, "b"\nc', "x"), ("d", "y")]

    def test_a_csv_field_may_be_long(self, tmp_path):
        assert fields(tmp_path / "t", "a" * 200_000 + ",x\n", "csv") == [("a" * 200_000, "x")]

    def test_lines_of_a_csv_are_counted_where_rows_begin(self, tmp_path):
        with pytest.raises(UserError, match="line 4: expected 2 columns as in the first row, got 1"):
            fields(tmp_path / "t", '"a\nb\nc",x\nd\n', "csv")

    @pytest.mark.parametrize("content", ['a,x\n"b,y\nc,z\n', 'a,x\n"b"c,y\n'])
    def test_broken_quotes(self, tmp_path, content):
        with pytest.raises(UserError, match="line 2: not valid CSV"):
            fields(tmp_path / "t", content, "csv")

    def test_jsonl(self, tmp_path):
        content = '{"text": "a\\tb\\u0007", "label": "x", "more": [1]}\n\n{"label": 3, "text": "c"}\n'
        assert fields(tmp_path / "t", content, "jsonl") == [("a\tb\x07", "x"), ("c", 3)]
        columns = {"text": "t", "label": None}
        assert fields(tmp_path / "t", '{"t": "a"}', "jsonl", columns, needed=["text"]) == [("a", None)]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('{"text": "a"', r"line 2, column 13: not valid JSON"),
            ("[1]", r"line 2: expected a JSON object, got \[1\]"),
            ('{"text": "a", "class": "x"}', r"line 2: no key 'label' .* are 'text', 'class'; give --label-column KEY"),
            ('{"text": NaN, "label": "x"}', r"line 2: not valid JSON: NaN is no number"),
            ('{"text": "a", "text": "b"}', r"line 2: not valid JSON: 'text' comes twice"),
            ("[" * 100_000, r"line 2: not valid JSON"),
            ('{"text": "\\ud800", "label": "x"}', r"line 2, column 11: not valid JSON: \\ud800 is half a character"),
            ('{"text": "\\uDC00\\uD800", "label": "x"}', r"line 2, column 11: not valid JSON: \\uDC00 is half"),
            (r'{"text": "\\\uD83D\\uDE00", "label": "x"}', r"line 2, column 13: not valid JSON: \\uD83D is half"),
        ],
    )
    def test_bad_json(self, tmp_path, line, message):
        with pytest.raises(UserError, match=message):
            fields(tmp_path / "t", '{"text": "a", "label": "x"}\n' + line, "jsonl")

    def test_whole_characters_in_two_halves_and_what_only_looks_like_one(self, tmp_path):
        content = r'{"text": "\ud83d\ude00 \\ud83d \u00e9", "label": "x"}'
        assert fields(tmp_path / "t", content, "jsonl") == [("\U0001f600 \\ud83d é", "x")]

    def test_a_key_of_jsonl_is_no_number(self, tmp_path):
        with pytest.raises(UserError, match=r"expected the key of the text in a \.jsonl, got the number 1"):
            fields(tmp_path / "t", "{}", "jsonl", {"text": 1})


@pytest.mark.parametrize(
    ("name", "kind"), [("a.tsv", "tsv"), ("a.CSV", "csv"), ("a.jsonl.gz", "jsonl"), ("a.txt", None), ("tsv", None)]
)
def test_table_format(name, kind):
    assert table_format(file_document(Path(name))) == kind


def test_line_of_an_error_in_a_longer_text():
    with pytest.raises(UserError, match=r"^f, line 2, column 3: not valid JSON"):
        parsed_json('{"a":\n  oops}', "f")
