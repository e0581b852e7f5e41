"""Rows and fields: texts in columns (.tsv, .csv) or in JSON objects, one a line (.jsonl), read by name or number.

Fields are handed on as they are written: control characters, no-break spaces and, in .csv and .jsonl, line ends inside
a field are text like any other.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from recurra.config import UserError
from recurra.text.corpora import Sources, open_text
from recurra.text.documents import Document

Column: TypeAlias = int | str  # a number from 1, or from -1 backwards; or a name
Example = TypeVar("Example")

_ESCAPE = re.compile(r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|u([dD][89a-fA-F]..)|.)", re.DOTALL)

# What columns are usually called, upper case or lower; one that is called by the first name comes before the others.
USUAL = {
    "text": ("text", "sentence", "review", "content", "body", "tweet", "document", "message", "comment"),
    "label": ("label", "class", "category", "sentiment", "target", "mood", "intent"),
    "source": ("source", "src"),
    "target": ("target", "tgt"),
    "path": ("path", "file", "audio", "wav", "filename"),
    "transcript": ("transcript", "text", "sentence", "transcription"),
}
PAIR = ("source", "target")  # which languages may stand for
# A header of two languages: names of some that are often translated, and their codes but for those that are words.
_LANGUAGE = re.compile(
    r"(?:(?:ar|cs|da|de|el|en|es|fi|fr|hu|ja|ko|nl|pl|pt|ro|ru|sv|tr|uk|vi|zh)(?:[-_][a-z]{2,4})?|arabic|chinese|czech|danish|dutch|english|finnish|french|german|greek|hebrew|hindi|hungarian|"
    r"indonesian|italian|japanese|korean|latin|norwegian|persian|polish|portuguese|romanian|russian|"
    r"spanish|swedish|turkish|ukrainian|vietnamese)\Z",
    re.IGNORECASE,
)
SHOWN = 40  # characters of a field in a message

FORMATS = {".tsv": "tsv", ".tab": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


class Row:
    """Where a row stands, for messages, and its fields by the names asked for; None where it has no such field."""

    def __init__(self, document: str, line: int, fields: Mapping[str, Any]) -> None:
        self.document = document
        self.line = line
        self.fields = fields

    @property
    def where(self) -> str:
        """The file and line, as messages begin."""
        return f"{self.document}, line {self.line}"

    def text(self, name: str) -> str:
        """Return a field that has to be there and be text."""
        value = self.optional_text(name)
        if value is None:
            raise UserError(f"{self.where}: there is no {name}")
        return value

    def optional_text(self, name: str, *, numbers: bool = False) -> str | None:
        """Return a field that has to be text if it is there; `numbers` takes whole numbers for text as well."""
        value = self.fields.get(name)
        if numbers and isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value is not None and not isinstance(value, str):
            raise UserError(f"{self.where}: expected {name} to be text, got {json.dumps(value)[:40]}")
        return value


def open_documents(sources: Sources, encoding: str, errors: str) -> tuple[Document, ...]:
    """Open files, folders, globs, named corpora or standard input, one after the other.

    Raises:
        UserError: a source is not there, empty or not text.
    """
    return open_text(sources, encoding=encoding, errors=errors).documents


def table_format(document: Document) -> str | None:
    """Return ``tsv``, ``csv`` or ``jsonl`` as the file's suffix says, passing over .gz; else None."""
    return FORMATS.get(suffix(document.name))


def suffix(name: str) -> str:
    """Return the suffix of a file's name, in lower case; that before .gz where it is compressed."""
    path = Path(name)
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def rows(
    document: Document,
    kind: str,
    columns: Mapping[str, Column | None],
    *,
    needed: Sequence[str],
    header: bool | None = None,
    blanks: bool = False,
    first_ones: bool = False,
    note: Callable[[str], None] | None = None,
) -> Iterator[Row]:
    """Read a table's rows, whose fields are found under the names that `columns` gives them.

    A .tsv is cut at tabs and nothing else, quotes being text; a .csv follows RFC 4180. Rows whose fields are all empty
    and lines that are blank are passed over, unless `blanks` are wanted; before a header they always are.

    Args:
        document: What is read.
        kind: ``tsv``, ``csv`` or ``jsonl``.
        columns: For each name that fields are wanted under, the column's name, or its number from 1, or from -1
            backwards. None stands for the key of the very name in ``jsonl``; for the column of that name, or of another
            that is usual for it (:data:`USUAL`, of pairs also two languages); and without a header, in a table of
            up to two columns, for the first name's first column and the second name's second.
        needed: The names whose columns must be there; the others may be given and not be there.
        header: Whether the first row is one; None if it should be told from there being a needed column given by name,
            or one of several having a usual name.
        first_ones: Whether columns are taken by their place in wider tables without a header, too.
        note: Is called with the fields, as messages show them, of a first row that was taken for an example because
            none of them is a name that is known.

    Raises:
        UserError: while reading: not JSON, a ragged row, no such column, columns that nobody named, a field that is no
            text.
    """
    if kind == "jsonl":
        return _json_rows(document, columns, needed, blanks)
    return _table_rows(document, kind, columns, needed, header, blanks, first_ones, note)


def nonempty(examples: Iterable[Example], sources: Sources, what: str) -> Iterator[Example]:
    """Hand on `examples`, and raise a UserError at the end if there was none."""
    count = 0
    for count, example in enumerate(examples, start=1):  # noqa: B007
        yield example
    if not count:
        names = [sources] if isinstance(sources, str | Path) else sources
        raise UserError(f"{', '.join(map(str, names))}: there is no {what} in it")


def parsed_json(text: str, where: str) -> Any:
    """Parse JSON, refusing what two readers would understand differently: names given twice, NaN, half a character."""
    try:
        value = json.loads(text, parse_constant=_no_number, object_pairs_hook=_object)
        if "\\ud" in text or "\\uD" in text:
            half = next((escape for escape in _ESCAPE.finditer(text) if escape[1]), None)
            if half:
                raise json.JSONDecodeError(f"{half[0]} is half a character, without the other", text, half.start())
    except json.JSONDecodeError as error:
        at = f", column {error.colno}" if error.lineno == 1 else f", line {error.lineno}, column {error.colno}"
        raise UserError(f"{where}{at}: not valid JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON: {error}") from None
    return value


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} comes twice in one object")
    return found


def _json_rows(
    document: Document, columns: Mapping[str, Column | None], needed: Sequence[str], blanks: bool
) -> Iterator[Row]:
    keys = {name: name if column is None else column for name, column in columns.items()}
    for name, key in keys.items():
        if isinstance(key, int) and name in needed:
            raise UserError(f"{document.name}: expected the key of the {name} in a .jsonl, got the number {key}")
    for number, line in enumerate(document.lines(), start=1):
        where = f"{document.name}, line {number}"
        if not line.strip():
            if blanks:
                yield Row(document.name, number, {next(iter(columns)): ""})
            continue
        record = parsed_json(line, where)
        if not isinstance(record, dict):
            raise UserError(f"{where}: expected a JSON object, got {line[:40]}")
        for name in needed:
            if keys[name] not in record:
                advice = f"; give --{name}-column KEY" if name in USUAL else ""
                raise UserError(f"{where}: no key {keys[name]!r} for the {name}; there are {_listed(record)}{advice}")
        yield Row(document.name, number, {name: record.get(key) for name, key in keys.items()})


def _table_rows(
    document: Document,
    kind: str,
    columns: Mapping[str, Column | None],
    needed: Sequence[str],
    header: bool | None,
    blanks: bool,
    first_ones: bool,
    note: Callable[[str], None] | None,
) -> Iterator[Row]:
    split = _split_csv if kind == "csv" else _split_tsv
    lines = split(document)
    places: dict[str, int | None] | None = None
    width = 0
    leading = []  # numbers of blank lines before the first row: they are rows where that is no header
    for number, fields in lines:
        where = f"{document.name}, line {number}"
        if not any(fields) or (len(fields) == 1 and not fields[0].strip()):
            if places is None:
                leading.append(number)
            elif blanks:
                yield Row(document.name, number, {next(iter(columns)): ""})
            continue
        if places is None:
            names = [field.strip() for field in fields]
            told = header is not None
            if header is None:
                header = _is_header(names, columns, needed)
            if header:
                places = _named(names, columns, needed, where, told)
            else:
                places = _by_place(names, columns, needed, where, first_ones)
            width = len(fields)
            if header:
                continue
            if note and not told:
                note(_listed(names))
            if blanks:
                yield from (Row(document.name, line, {next(iter(columns)): ""}) for line in leading)
        if len(fields) != width:
            raise UserError(f"{where}: expected {width} columns as in the first row, got {len(fields)}")
        yield Row(document.name, number, {name: None if at is None else fields[at] for name, at in places.items()})
    if places is None and blanks:
        yield from (Row(document.name, line, {next(iter(columns)): ""}) for line in leading)


def _is_header(names: Sequence[str], columns: Mapping[str, Column | None], needed: Sequence[str]) -> bool:
    """Return whether a first row names the columns: it has a name that was given, or needs to, or has a usual one."""
    given = {name: column for name, column in columns.items() if isinstance(column, str)}
    return any(name in needed for name in given) or _has_names(names, columns)


def _has_names(names: Sequence[str], columns: Mapping[str, Column | None]) -> bool:
    """Return whether a row has a name that was given, or, where it has several fields, a usual one or two languages."""
    there = {name.lower() for name in names}
    if any(isinstance(column, str) and column.lower() in there for column in columns.values()):
        return True
    usual = any(not there.isdisjoint(USUAL.get(name, (name,))) for name in columns)
    return len(names) > 1 and (usual or (tuple(columns) == PAIR and len({names[at] for at in _languages(names)}) > 1))


def _languages(names: Sequence[str]) -> list[int]:
    """Return the indices of the fields that are languages' names."""
    return [at for at, name in enumerate(names) if _LANGUAGE.match(name)]


def _named(
    names: list[str], columns: Mapping[str, Column | None], needed: Sequence[str], where: str, told: bool
) -> dict[str, int | None]:
    """Return the index of the column that each name is in, by a header; None if there is none and none is needed."""
    places = {
        name: _given(name, column, names, columns, needed, where)
        for name, column in columns.items()
        if column is not None
    }
    free = [at for at in range(len(names)) if at not in places.values()]
    found = {name: _usual(name, [(at, names[at]) for at in free]) for name in columns if name not in places}
    others = [name for name in PAIR if not found.get(name, True)]
    if others and tuple(columns) == PAIR:
        languages = [at for at in _languages(names) if at in free]
        exact = len(languages) == len(others)  # the first that is named is the source
        found |= {name: [languages[at]] if exact else languages for at, name in enumerate(others)}
    for name, matches in found.items():
        if len(matches) != 1 and name in needed:
            if len({names[at] for at in matches}) == 1:
                problem, advice = f"two columns are called {names[matches[0]]!r}", f"give --{name}-column NUMBER"
            else:
                several = f"several columns may be the {name}: {_listed(names[at] for at in matches)}"
                problem = several if matches else f"no column for the {name}; there are {_listed(names)}"
                advice = _advice(name)
                if not (told or any(isinstance(column, str) for column in columns.values())):
                    advice += ", or --no-header if this row is an example"
            raise UserError(f"{where}: {problem}; {advice}")
        places[name] = matches[0] if len(matches) == 1 else None
    return {name: places[name] for name in columns}


def _usual(name: str, fields: Sequence[tuple[int, str]]) -> list[int]:
    """Return the indices of the fields that are called `name`, or else something that is usual for it."""
    own = [at for at, field in fields if field == name] or [at for at, field in fields if field.lower() == name]
    return own or [at for at, field in fields if field.lower() in USUAL.get(name, ())]


def _by_place(
    names: list[str], columns: Mapping[str, Column | None], needed: Sequence[str], where: str, first_ones: bool
) -> dict[str, int | None]:
    """Return the index of the column that each name is in, without a header; None likewise."""
    width = len(names)
    open_ones = [name for name, column in columns.items() if column is None and name in needed]
    if width > 2 and open_ones and not first_ones:
        flags = " and ".join(f"--{name}-column" for name in open_ones)
        raise UserError(
            f"{where}: expected a row that says which column is the {' and which the '.join(open_ones)}, got"
            f" {_listed(names)}; give {flags} by name or number, and by number also --header if this row names them"
        )
    places: dict[str, int | None] = {}
    for name, column in columns.items():
        if isinstance(column, str) and name in needed:
            raise UserError(
                f"{where}: no column {column!r} for the {name}, as there is no header; give --{name}-column NUMBER"
            )
        places[name] = _given(name, column, names, columns, needed, where) if isinstance(column, int) else None
    taken = set(places.values())
    for position, (name, column) in enumerate(columns.items()):
        if column is not None:
            continue
        if position < width and position not in taken and (width <= 2 or first_ones):
            places[name] = position
        elif name in needed:
            there = "there is 1, without names" if width == 1 else f"there are {width}, without names; {_advice(name)}"
            raise UserError(f"{where}: no column for the {name}; {there}")
    return places


def _given(
    name: str,
    column: Column,
    names: list[str],
    columns: Mapping[str, Column | None],
    needed: Sequence[str],
    where: str,
) -> int | None:
    """Return the index of a column that was given by name or number; None likewise."""
    if isinstance(column, int):
        width = len(names)
        if column != 0 and -width <= column <= width:
            return column - 1 if column > 0 else width + column
        if name in needed:
            raise UserError(f"{where}: no column {column} for the {name}; there are {width}, counted from 1")
        return None
    exact = [at for at, found in enumerate(names) if found == column]
    matches = exact or [at for at, found in enumerate(names) if found.lower() == column.lower()]
    if len(matches) > 1:
        raise UserError(f"{where}: two columns are called {column!r}; give --{name}-column NUMBER")
    if not matches and name in needed:
        # a row without any name that is known may be an example: then what it holds are no columns
        there = f"there are {_listed(names)}" if _has_names(names, columns) else f"the first row is {_listed(names)}"
        raise UserError(f"{where}: no column {column!r} for the {name}; {there}; {_advice(name)}")
    return matches[0] if matches else None


def _advice(name: str) -> str:
    return f"give --{name}-column NAME or NUMBER" if name in USUAL else "say which one it is"


def _split_tsv(document: Document) -> Iterator[tuple[int, list[str]]]:
    return ((number, line.split("\t")) for number, line in enumerate(document.lines(), start=1))


def _split_csv(document: Document) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(1 << 30)  # a field is a text here: 131,072 characters are not many
    reader = csv.reader((line + "\n" for line in document.lines()), strict=True)
    number = 1
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{document.name}, line {number}: not valid CSV: {error}") from None
        if fields is None:
            return
        yield number, fields or [""]
        number = reader.line_num + 1


def _listed(names: Iterable[str]) -> str:
    shown = [repr(name if len(name) <= SHOWN else name[: SHOWN - 3] + "...") for name in itertools.islice(names, 21)]
    return ", ".join(shown[:20]) + (" and more" if len(shown) > 20 else "") if shown else "none"
