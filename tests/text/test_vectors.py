import gzip
import struct

import numpy as np
import pytest

from recurra.config import UserError
from recurra.text import vectors
from recurra.text.vectors import listed_words, read_vectors

TABLE = {"the": (1.0, -0.5, 2.0), "cat": (0.25, 3.0, 1e-3), "Paris": (4.0, 5.0, 6.0), "été": (7.0, 8.0, 9.0)}


def text(header: bool = False, end: str = "\n") -> bytes:
    lines = [" ".join([word, *map(repr, values)]) + end for word, values in TABLE.items()]
    return "".join([f"{len(TABLE)} 3\n"] * header + lines).encode()


def binary(newlines: bool = True, count: int = len(TABLE)) -> bytes:
    end = b"\n" if newlines else b""
    words = [word.encode() + b" " + struct.pack("<3f", *values) + end for word, values in TABLE.items()]
    return b"%d 3\n" % count + b"".join(words)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "content",
    [text(), text(header=True), text(header=True, end=" \n"), text(end="\r\n"), binary(), binary(newlines=False)],
    ids=["glove", "word2vec", "fasttext", "crlf", "binary", "binary without line ends"],
)
@pytest.mark.parametrize("block_bytes", [40, 1 << 20])
def test_every_format(tmp_path, monkeypatch, content, compressed, block_bytes):
    monkeypatch.setattr(vectors, "BLOCK_BYTES", block_bytes)
    path = tmp_path / ("v.gz" if compressed else "v")
    path.write_bytes(gzip.compress(content) if compressed else content)
    found = read_vectors(path, ["<unk>", "été", "cat", "The", "paris"], features=3)
    nothing = (0.0, 0.0, 0.0)
    wanted = [nothing, TABLE["été"], TABLE["cat"], TABLE["the"], nothing]
    assert found.matrix.dtype == np.float32
    np.testing.assert_array_equal(found.matrix, np.array(wanted, np.float32))
    assert found.covered.tolist() == [False, True, True, True, False]
    assert found.share == 0.6
    assert list(listed_words(path)) == list(TABLE)


def test_lower_case_is_a_last_resort(tmp_path):
    path = tmp_path / "v"
    path.write_text("may 1 0\nMay 2 0\n")
    assert read_vectors(path, ["May", "MAY", "may"]).matrix[:, 0].tolist() == [2, 1, 1]
    assert read_vectors(path, ["May", "MAY"], lowercase=False).covered.tolist() == [True, False]


def test_words_with_spaces_and_words_that_come_twice(tmp_path):
    path = tmp_path / "v"
    path.write_text("a 1 0\n. . 2 0\na 3 0\n. 4 0\n10\xa0000 5 0\n\u2028 6 0\n")
    found = read_vectors(path, ["a", ".", ". .", "10\xa0000", "\u2028"])
    assert found.matrix[:, 0].tolist() == [1, 4, 2, 5, 6]


def test_bytes_in_no_encoding(tmp_path):
    path = tmp_path / "v"
    path.write_bytes(binary().replace("été".encode(), b"\xff\xfe\xff"))
    assert read_vectors(path, ["cat"]).covered.all()
    path.write_bytes(text().replace("été".encode(), b"\xff\xfe\xff"))
    with pytest.raises(UserError, match="line 4, byte offset"):
        read_vectors(path, ["cat"])
    assert read_vectors(path, ["cat"], errors="replace").covered.all()
    assert list(listed_words(path, errors="replace")) == ["the", "cat", "Paris", "���"]


def test_words_are_listed_as_far_as_asked_for(tmp_path):
    path = tmp_path / "v"
    path.write_text("4 2\na 1 0\n. . 2 0\nbroken\n")
    words = listed_words(path)
    assert [next(words), next(words)] == ["a", ". ."]
    with pytest.raises(UserError, match="v, line 4: expected a word and 2 numbers"):
        next(words)


def test_no_words(tmp_path):
    path = tmp_path / "v"
    path.write_bytes(text())
    found = read_vectors(path, [])
    assert (found.matrix.shape, found.share) == ((0, 3), 0.0)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"a 1 2\nb 1\n", {}, "v, line 2: expected a word and 2 numbers, got 2 fields"),
        (b"1 2\na 1 2\n\n", {}, "v, line 3: expected a word and 2 numbers, got 1 fields"),
        (b"a 1 2\nb 1 x\n", {}, "v, line 2: not a number in the vector of 'b'"),
        (b"a 1 2\nb 1 nan\n", {}, "v, line 2: expected finite numbers in the vector of 'b', got nan"),
        (b"a 1 2\nb 1 1e99\n", {}, "v, line 2: expected finite numbers in the vector of 'b', got inf"),
        (b"a 1 2\n", {"features": 3}, "v, line 1: expected vectors of 3 features, got 2"),
        (b"1 2\na 1 2\n", {"features": 3}, "v, line 1: expected vectors of 3 features, got 2"),
        (binary(), {"features": 4}, "v, line 1: expected vectors of 4 features, got 3"),
        (b"3 2\na 1 2\nb 1 2\n", {}, "v: cut off: its first line promises 3 words, there are 2"),
        (b"3 2\n", {}, "v: cut off: its first line promises 3 words, there are 0"),
        (b"a\nb\n", {}, "v, line 1: expected a word and its numbers, got a line without spaces"),
        (b"", {}, "v: empty, there are no word vectors in it"),
        (binary()[:-3], {}, "v: cut off or damaged: expected 3 numbers in vector 4 of 4"),
        (binary(count=5), {}, "v: cut off or damaged: expected a space after the word in vector 5 of 5"),
        (b"3 2\n" + b"\0" * 200_000, {"format": "binary"}, "v: cut off or damaged: expected a space"),
        (
            b"a 1 2\n",
            {"format": "binary"},
            "expected the numbers of words and features in the first line, got b'a 1 2'",
        ),
        (b"1 1\nb " + struct.pack("<f", np.inf), {"format": "binary"}, "vector 1: expected finite numbers"),
        (b"a 1\n", {"format": "bin"}, "out of text, binary, got 'bin'"),
    ],
)
def test_mistakes(tmp_path, content, options, message):
    (tmp_path / "v").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_vectors(tmp_path / "v", ["b", "cat"], **options)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="nothing: cannot be read: No such file"):
        read_vectors(tmp_path / "nothing", ["a"])
    (tmp_path / "v.gz").write_bytes(gzip.compress(binary())[:-12])
    with pytest.raises(UserError, match="not a whole gzip file"):
        read_vectors(tmp_path / "v.gz", ["a"])
