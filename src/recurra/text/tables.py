"""Rows and fields: texts in columns (.tsv, .csv) or in JSON objects, one a line (.jsonl), read by name or number.

Fields are handed on as they are written: control characters, no-break spaces and, in .csv and .jsonl, line ends inside
a field are text like any other.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from recurra.config import UserError
from recurra.text.corpora import Sources, open_text
from recurra.text.documents import Document

Column: TypeAlias = int | str  # a number from 1, or from -1 backwards; or a name
Example = TypeVar("Example")

_ESCAPE = re.compile(r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|u([dD][89a-fA-F]..)|.)", re.DOTALL)

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
) -> Iterator[Row]:
    """Read a table's rows, whose fields are found under the names that `columns` gives them.

    A .tsv is cut at tabs and nothing else, quotes being text; a .csv follows RFC 4180. Rows whose fields are all empty
    and lines that are blank are passed over, unless `blanks` are wanted; before a header they always are.

    Args:
        document: What is read.
        kind: ``tsv``, ``csv`` or ``jsonl``.
        columns: For each name that fields are wanted under, the column's name, or its number from 1, or from -1
            backwards. None stands for the column of the very name, and in a table without a header for the first
            name's first column, the second name's second, and so on.
        needed: The names whose columns must be there; the others may be given and not be there.
        header: Whether the first row is one; None if it should be told from there being a needed column given by name,
            or one of several being called like one of `columns`.

    Raises:
        UserError: while reading: not JSON, a ragged row, no such column, a field that is no text.
    """
    if kind == "jsonl":
        return _json_rows(document, columns, needed, blanks)
    return _table_rows(document, kind, columns, needed, header, blanks)


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
                raise UserError(f"{where}: no key {keys[name]!r} for the {name}; there are {_listed(record)}")
        yield Row(document.name, number, {name: record.get(key) for name, key in keys.items()})


def _table_rows(
    document: Document,
    kind: str,
    columns: Mapping[str, Column | None],
    needed: Sequence[str],
    header: bool | None,
    blanks: bool,
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
            if header is None:
                header = _is_header(names, columns, needed)
            places = {
                name: _place(name, column, position, names if header else None, len(fields), where, name in needed)
                for position, (name, column) in enumerate(columns.items())
            }
            width = len(fields)
            if header:
                continue
            if blanks:
                yield from (Row(document.name, line, {next(iter(columns)): ""}) for line in leading)
        if len(fields) != width:
            raise UserError(f"{where}: expected {width} columns as in the first row, got {len(fields)}")
        yield Row(document.name, number, {name: None if at is None else fields[at] for name, at in places.items()})
    if places is None and blanks:
        yield from (Row(document.name, line, {next(iter(columns)): ""}) for line in leading)


def _is_header(names: Sequence[str], columns: Mapping[str, Column | None], needed: Sequence[str]) -> bool:
    """Return whether a first row names the columns: it has a name that was given, or needs to, or has a usual one."""
    there = {name.lower() for name in names}
    given = {name: column for name, column in columns.items() if isinstance(column, str)}
    by_name = any(name in needed or column.lower() in there for name, column in given.items())
    return by_name or (len(names) > 1 and any(name in there for name in columns))


def _place(
    name: str, column: Column | None, position: int, names: list[str] | None, width: int, where: str, needed: bool
) -> int | None:
    """Return the index of the column that `name` is in, or None if there is none and none is needed."""
    there = (
        f"there are {_listed(names)}" if names else f"there {'is 1' if width == 1 else f'are {width}'}, without names"
    )
    if isinstance(column, int):
        if column != 0 and -width <= column <= width:
            return column - 1 if column > 0 else width + column
        if needed:
            raise UserError(f"{where}: no column {column} for the {name}; there are {width}, counted from 1")
        return None
    if names is None:
        if column is not None and needed:
            raise UserError(f"{where}: no column {column!r} for the {name}, as there is no header")
        if column is None and position < width:
            return position
    else:
        wanted = column or name
        exact = [index for index, found in enumerate(names) if found == wanted]
        matches = exact or [index for index, found in enumerate(names) if found.lower() == wanted.lower()]
        if len(matches) > 1:
            raise UserError(f"{where}: two columns are called {wanted!r}; give the number of one")
        if matches:
            return matches[0]
    if needed:
        raise UserError(f"{where}: no column for the {name}; {there}; say which one it is")
    return None


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
    shown = [repr(name) for name in itertools.islice(names, 21)]
    return ", ".join(shown[:20]) + (" and more" if len(shown) > 20 else "") if shown else "none"
