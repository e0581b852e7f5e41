import gzip
import io
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recurra.config import UserError
from recurra.text import documents
from recurra.text.documents import Text, open_source


def lines_of(source: Path | str, encoding: str = "utf-8", errors: str = "strict") -> list[str]:
    return [line for document in open_source(str(source), encoding, errors) for line in document.lines()]


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture(params=[1, 2, 3, 1 << 16])
def block_bytes(request, monkeypatch):
    """Blocks so small that every line end, character and bad byte falls on the edge of one."""
    monkeypatch.setattr(documents, "BLOCK_BYTES", request.param)
    return request.param


@pytest.mark.usefixtures("block_bytes")
class TestLines:
    def test_universal_newlines_and_nothing_else_end_a_line(self, tmp_path):
        text = "a\r\nb\rc\n\nd\x0be\x0cf\x1cg\x85h\u2028i\u2029j\r\r\nk"
        found = lines_of(write(tmp_path / "t", text.encode()))
        assert found == ["a", "b", "c", "", "d\x0be\x0cf\x1cg\x85h\u2028i\u2029j", "", "k"]

    @pytest.mark.parametrize("ending", ["", "\n", "\r\n", "\r"])
    def test_an_end_after_the_last_line_makes_no_difference(self, tmp_path, ending):
        assert lines_of(write(tmp_path / "t", ("a\nb" + ending).encode())) == ["a", "b"]

    @pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1"])
    def test_encodings_and_byte_order_marks(self, tmp_path, encoding):
        file = write(tmp_path / "t", "Zürich\ncafé".encode(encoding))
        assert lines_of(file, encoding.removesuffix("-sig")) == ["Zürich", "café"]

    def test_only_the_first_mark_is_one(self, tmp_path):
        assert lines_of(write(tmp_path / "t", "\ufeffa\ufeff".encode())) == ["a\ufeff"]

    @pytest.mark.parametrize(
        ("content", "line", "offset", "byte"),
        [
            (b"caf\xe9", 1, 3, "e9"),
            (b"\xff", 1, 0, "ff"),
            (b"a\r\nb\rc\nd\xc3(", 4, 8, "c3"),
            ("ü\nü\r".encode() + b"\x80", 3, 6, "80"),
            (b"\xef\xbb\xbfa\n\xe2\x82", 2, 5, "e2"),  # cut off at the end of the file, after a mark
            (b"ab\xf0\x9f\x98x", 1, 2, "f0"),
        ],
    )
    def test_bad_byte_names_line_offset_and_remedy(self, tmp_path, content, line, offset, byte):
        file = write(tmp_path / "t.txt", content)
        with pytest.raises(UserError) as caught:
            lines_of(file)
        assert str(caught.value) == (
            f"{file}, line {line}, byte offset {offset}: 0x{byte} is not utf-8;"
            " give --encoding, e.g. latin-1, or --errors replace"
        )

    def test_bad_byte_of_utf_16(self, tmp_path):
        file = write(tmp_path / "t", "a\nb".encode("utf-16-le") + b"\x00\xdc" + "c".encode("utf-16-le"))
        with pytest.raises(UserError, match="line 2, byte offset 6: 0x00 is not utf-16"):
            lines_of(file, "utf-16-le")

    def test_nul_makes_it_binary(self, tmp_path):
        with pytest.raises(UserError, match="line 2: a NUL: this is a binary file"):
            lines_of(write(tmp_path / "t", b"a\nb\0c"))

    def test_replace_and_ignore(self, tmp_path):
        file = write(tmp_path / "t", b"caf\xe9!\n")
        assert lines_of(file, errors="replace") == ["caf\ufffd!"]
        assert lines_of(file, errors="ignore") == ["caf!"]


def test_utf_16_taken_for_utf_8_is_recognised(tmp_path):
    with pytest.raises(UserError, match="give --encoding utf-16"):
        lines_of(write(tmp_path / "t", "abc".encode("utf-16")))


def test_binary_file_with_a_bad_byte(tmp_path):
    with pytest.raises(UserError, match="a binary file, not text"):
        lines_of(write(tmp_path / "t.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"))


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=200))
def test_file_and_string_have_the_same_lines(tmp_path_factory, text):
    file = write(tmp_path_factory.mktemp("t") / "t", b"x" + text.encode())
    assert lines_of(file) == list(Text.from_string("x" + text).lines())


def test_document_parts_and_second_passes(tmp_path):
    (document,) = open_source(str(write(tmp_path / "t", b"0\n1\n2\n3\n4\n")), "utf-8", "strict")
    middle = document.part(1, 4)
    assert [list(middle.lines()), list(middle.lines())] == [["1", "2", "3"]] * 2
    assert list(middle.part(1, 2).lines()) == ["2"]


class TestSources:
    def test_folder_is_all_its_text_sorted_without_hidden_and_empty_files(self, tmp_path):
        write(tmp_path / "b.txt", b"b")
        write(tmp_path / "a" / "z.md", b"az")
        write(tmp_path / "a" / "c.txt.gz", gzip.compress(b"ac\n"))
        write(tmp_path / ".hidden", b"no")
        write(tmp_path / ".git" / "config", b"no")
        write(tmp_path / "empty", b"")
        found = open_source(str(tmp_path), "utf-8", "strict")
        assert [Path(document.name).name for document in found] == ["c.txt.gz", "z.md", "b.txt"]
        assert lines_of(tmp_path) == ["ac", "az", "b"]

    def test_glob_is_what_a_shell_would_make_of_it(self, tmp_path):
        write(tmp_path / "b.txt", b"b")
        write(tmp_path / "a.txt", b"a")
        write(tmp_path / ".c.txt", b"no")
        write(tmp_path / "d.txt" / "e", b"e")
        write(tmp_path / "f.md", b"no")
        assert lines_of(tmp_path / "*.txt") == ["a", "b", "e"]
        assert lines_of(tmp_path / "**" / "[e-f]*") == ["e", "no"]

    def test_a_file_whose_name_looks_like_a_glob(self, tmp_path):
        assert lines_of(write(tmp_path / "[1].txt", b"one")) == ["one"]

    def test_binary_file_in_a_folder_is_named(self, tmp_path):
        write(tmp_path / "a.txt", b"a")
        write(tmp_path / "picture.png", b"\x89PNG\0")
        with pytest.raises(UserError, match=r"picture\.png: a binary file"):
            lines_of(tmp_path)

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            lines_of(tmp_path / "nothing")

    @pytest.mark.parametrize("content", [b"", gzip.compress(b"")])
    def test_empty_file(self, tmp_path, content):
        file = write(tmp_path / ("t.gz" if content else "t"), content)
        with pytest.raises(UserError, match="empty, there is no text in it"):
            lines_of(file)

    def test_nothing_in_folder_or_glob(self, tmp_path):
        write(tmp_path / "folder" / "empty", b"")
        with pytest.raises(UserError, match="folder: no text in any file there"):
            lines_of(tmp_path / "folder")
        with pytest.raises(UserError, match="no file matches"):
            lines_of(tmp_path / "*.txt")

    @pytest.mark.parametrize("content", [b"not gzip at all", gzip.compress(b"word " * 1000)[:-20]])
    def test_broken_gzip(self, tmp_path, content):
        with pytest.raises(UserError, match=r"t\.gz: not a whole gzip file"):
            lines_of(write(tmp_path / "t.gz", content))

    @pytest.mark.parametrize("encoding", ["utf-99", "rot13", "hex"])
    def test_unknown_encoding(self, tmp_path, encoding):
        with pytest.raises(UserError, match=f"unknown encoding '{encoding}'"):
            lines_of(write(tmp_path / "t", b"a"), encoding)

    def test_standard_input_can_be_read_again(self, monkeypatch):
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"a\r\nb\n")))
        (document,) = open_source("-", "utf-8", "strict")
        assert [list(document.lines()), list(document.lines())] == [["a", "b"]] * 2

    def test_empty_standard_input(self, monkeypatch):
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"")))
        with pytest.raises(UserError, match="standard input: empty"):
            open_source("-", "utf-8", "strict")
