"""Typed settings: defaults, then a file, then flags; strict about every name and value.

A settings class is a frozen, keyword-only dataclass whose fields are made by :func:`setting`. It is the only place a
setting is written down: its command-line flag, its key in a configuration file, its check and its help all follow from
the field.

    @dataclass(frozen=True, kw_only=True)
    class ModelSettings:
        hidden_size: int | tuple[int, ...] | None = setting(None, "units of each layer", minimum=1)

A field may be ``int``, ``float``, ``str``, ``bool``, ``tuple[int, ...]``, ``tuple[float, ...]``, and unions of these
with each other and with ``None``. ``None`` means "chosen automatically" and is written ``auto`` in files and flags.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import os
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Settings = TypeVar("Settings", bound=DataclassInstance)

Value = TypeVar("Value")

AUTO = "auto"
NOUNS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
PLURALS = {int: "whole numbers", float: "numbers"}
METAVARS = {int: "N", float: "X", str: "TEXT"}


class UserError(ValueError):
    """A mistake in what the user gave; its text, one line, is the whole message."""


def setting(
    default: Value,
    help: str,
    *,
    choices: Sequence[str] | None = None,
    flag: str | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Value:
    """Declare one field of a settings class.

    Args:
        default: The value where neither file nor flag gives one; ``None`` means "chosen automatically".
        help: What the setting does, in a few words: the flag's help.
        choices: The texts allowed, where not every text is.
        flag: The flag's name where it is not the field's own with dashes for underscores.
        minimum: Smallest number allowed; for a list, smallest element.
        maximum: Largest number allowed; for a list, largest element.
    """
    metadata = {"help": help, "choices": choices, "flag": flag, "minimum": minimum, "maximum": maximum}
    return dataclasses.field(default=default, metadata=metadata)


def from_mapping(cls: type[Settings], mapping: Mapping[str, object], where: str) -> Settings:
    """Make settings of class `cls` from names and values, as a file or a caller gives them.

    Raises:
        UserError: an unknown or missing name, a value of the wrong type or out of bounds; the text begins with `where`.
    """
    known = _fields(cls)
    for name in mapping:
        if name not in known:
            raise UserError(f"{where}: unknown setting `{name}`{_suggestion(name, known)}")
    for field in dataclasses.fields(cls):
        no_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if no_default and field.name not in mapping:
            raise UserError(f"{where}: setting `{field.name}` is missing")
    return cls(**{name: known[name].checked(value, f"{where}: `{name}`") for name, value in mapping.items()})


def to_mapping(settings: DataclassInstance) -> dict[str, Any]:
    """Return names and values as JSON holds them; :func:`from_mapping` turns them back into equal settings."""
    values = ((field.name, getattr(settings, field.name)) for field in dataclasses.fields(settings))
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values}


def add_flags(parser: argparse.ArgumentParser, cls: type[DataclassInstance], *, title: str) -> None:
    """Give `parser` one flag for every :func:`setting` of `cls`, in a group of their own.

    Only flags that were given appear in the parsed namespace, so that a file's values show through.
    """
    group = parser.add_argument_group(title)
    for field in _fields(cls).values():
        if field.flag is None:
            continue
        common: dict[str, Any] = {"dest": field.destination, "default": argparse.SUPPRESS, "help": field.help}
        if bool in field.kinds:
            group.add_argument(field.flag, action=argparse.BooleanOptionalAction, **common)
        else:
            group.add_argument(field.flag, type=field.parsed, metavar=field.metavar, **common)


def read_file(path: str | Path) -> dict[str, dict[str, Any]]:
    """Read sections of settings from a TOML or JSON file, told apart by its suffix.

    Raises:
        UserError: the file cannot be read, is neither, is not well formed, or holds a value outside any section.
    """
    path = Path(path)
    readers: dict[str, Callable[[str], Any]] = {".toml": tomllib.loads, ".json": json.loads}
    if path.suffix not in readers:
        raise UserError(f"{path}: expected a settings file named .toml or .json")
    try:
        content = readers[path.suffix](path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the settings file: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected sections such as [model], got {content!r}")
    for name, section in content.items():
        if not isinstance(section, dict):
            raise UserError(f"{path}: `{name}` stands outside any section; put it under one, such as [model]")
    return content


def resolve(
    sections: Mapping[str, type[DataclassInstance]],
    *,
    base: Mapping[str, object] | None = None,
    file: str | Path | None = None,
    flags: argparse.Namespace | Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """Settle every section's settings: defaults, overridden by `base`, by `file`, and last by `flags`.

    Args:
        sections: The settings class of each section, by the section's name in the file.
        base: A mapping from names to values, all of which must be known: what a preset says.
        file: A file for :func:`read_file`; all its sections and keys must be known.
        flags: What was parsed with :func:`add_flags` (a namespace's other attributes are passed over), or a mapping
            from names to values, all of which must be known.

    Returns:
        The settings of each section, by name.

    Raises:
        UserError: an unknown section or name (the nearest known one, or the section it belongs to, is named), a value
            of the wrong type or out of bounds.
    """
    known = {section: _fields(cls) for section, cls in sections.items()}
    values = _read_sections(file, known) if file is not None else {section: {} for section in sections}
    owners = {field.destination: (section, field) for section in known for field in known[section].values()}
    assert len(owners) == sum(map(len, known.values())), "two sections share a flag: give one of them `flag`"
    if isinstance(flags, argparse.Namespace):
        flags = {name: value for name, value in vars(flags).items() if name in owners}
    in_file = {(section, name) for section in values for name in values[section]}
    for given, wins in ((base, False), (flags, True)):
        for name, value in (given or {}).items():
            if name not in owners:
                raise UserError(f"unknown setting `{name}`{_suggestion(name, owners)}")
            section, field = owners[name]
            if wins or (section, field.name) not in in_file:
                values[section][field.name] = field.checked(value, f"`{name}`")
    return {section: cls(**values[section]) for section, cls in sections.items()}


def _read_sections(file: str | Path, known: Mapping[str, Mapping[str, _Field]]) -> dict[str, dict[str, object]]:
    """Return the checked values that `file` gives in each known section."""
    values: dict[str, dict[str, object]] = {section: {} for section in known}
    for section, content in read_file(file).items():
        if section not in known:
            raise UserError(f"{file}: unknown section [{section}]{_suggestion(section, known, '[{}]')}")
        for name, value in content.items():
            if name not in known[section]:
                homes = [f"[{other}]" for other in known if name in known[other]]
                advice = f"; it belongs to {homes[0]}" if homes else _suggestion(name, known[section])
                raise UserError(f"{file}: unknown setting `{name}` in [{section}]{advice}")
            values[section][name] = known[section][name].checked(value, f"{file}: `{name}` in [{section}]")
    return values


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser whose every complaint is one line that names the nearest flag; no abbreviations."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, refusing every unknown flag, and first of all: argparse would complain of missing arguments before."""
        args = sys.argv[1:] if args is None else list(args)
        for word in itertools.takewhile(lambda word: word != "--", args):
            flag = word.partition("=")[0]
            if flag.startswith("--") and " " not in flag and flag not in self._option_string_actions:
                self._refuse(flag)
        namespace, surplus = super().parse_known_args(self._flags_first(args), namespace)
        for word in surplus:
            self._refuse(word)
        return namespace, surplus

    def _flags_first(self, args: list[str]) -> list[str]:
        """The same words with the flags in front, as argparse wants arguments of any number to be side by side."""
        flags: list[str] = []
        others: list[str] = []
        words = iter(args)
        for word in words:
            if word == "--":
                others += words
            elif self._is_flag(word):
                flags.append(word)
                action = self._option_string_actions.get(word)
                if action is not None and action.nargs is None:
                    flags += itertools.islice(words, 1)
            else:
                others.append(word)
        return [*flags, *(["--", *others] if others else [])]

    def _is_flag(self, word: str) -> bool:
        """As argparse has it: no `-`, no negative number, nor a text with a space in it that begins with a dash."""
        if word[:1] != "-" or word == "-":
            return False
        known = word.partition("=")[0] in self._option_string_actions
        return known or not (" " in word or word[1:].replace(".", "", 1).isdecimal())

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line and leave with status 2."""
        advice = "" if message.endswith("?") else f"; see `{self.prog} --help`"
        self.exit(2, f"{self.prog.partition(' ')[0]}: {message}{advice}\n")

    def _refuse(self, word: str) -> NoReturn:
        if word.startswith("-"):
            self.error(f"unknown flag {word}{_suggestion(word, self._option_string_actions, '{}')}")
        self.error(f"unexpected argument {word!r}")


def _suggestion(name: str, known: Iterable[str], form: str = "`{}`") -> str:
    """Return ``; did you mean `x`?`` for the nearest known name, or nothing where none is near."""
    import difflib  # needed only once something is wrong

    nearest = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {form.format(nearest[0])}?" if nearest else ""


def _fields(cls: type[DataclassInstance]) -> dict[str, _Field]:
    """Return what is known of each field of a settings class, by its name."""
    hints = get_type_hints(cls)
    return {field.name: _Field.of(field, hints[field.name]) for field in dataclasses.fields(cls)}


@dataclasses.dataclass(frozen=True)
class _Field:
    """One setting: how its values are read from text, checked and described. `flag` is None for a plain field."""

    name: str
    kinds: tuple[Any, ...]
    flag: str | None
    help: str
    choices: tuple[str, ...]
    minimum: float | None
    maximum: float | None

    @classmethod
    def of(cls, field: dataclasses.Field[Any], hint: Any) -> _Field:
        about = field.metadata
        return cls(
            name=field.name,
            kinds=get_args(hint) if isinstance(hint, UnionType) else (hint,),
            flag=(about["flag"] or "--" + field.name.replace("_", "-")) if about else None,
            # argparse formats help with %, which a plain percent sign must survive
            help=f"{about['help']} (default: {_shown(field.default)})".replace("%", "%%") if about else "",
            choices=tuple(about.get("choices") or ()),
            minimum=about.get("minimum"),
            maximum=about.get("maximum"),
        )

    @property
    def destination(self) -> str:
        """The name of the flag's value in a namespace."""
        return self.flag.lstrip("-").replace("-", "_") if self.flag else self.name

    @property
    def metavar(self) -> str:
        if self.choices:
            return "|".join(self.choices)
        singles = [METAVARS[kind] for kind in self.kinds if kind in METAVARS]
        letters = [METAVARS[get_args(kind)[0]] for kind in self.kinds if get_origin(kind) is tuple]
        return "|".join(singles + [f"{letter},{letter},..." for letter in letters])

    @property
    def expected(self) -> str:
        """What a value should be, in words."""
        nouns = []
        for kind in self.kinds:
            if kind is str and self.choices:
                nouns.append(f"one of {', '.join(self.choices)}")
            elif get_origin(kind) is tuple:
                nouns.append(f"a list of {PLURALS[get_args(kind)[0]]}")
            elif kind is not NoneType:
                nouns.append(NOUNS[kind])
        if self.minimum is not None and self.maximum is not None:
            nouns[-1] += f" from {self.minimum} to {self.maximum}"
        elif self.minimum is not None:
            nouns[-1] += f" of at least {self.minimum}"
        elif self.maximum is not None:
            nouns[-1] += f" of at most {self.maximum}"
        return " or ".join([*nouns, AUTO] if self._has_auto else nouns)

    def parsed(self, text: str) -> object:
        """Return the value of a flag's text, for argparse."""
        for kind in self.kinds:
            try:
                return self.checked(_read(text, kind), "")
            except ValueError:
                continue
        raise argparse.ArgumentTypeError(f"expected {self.expected}, got {text!r}")

    def checked(self, value: object, where: str) -> object:
        """Return `value` as the first kind it fits, or raise a UserError that begins with `where`."""
        if value == AUTO and self._has_auto:
            return None
        for kind in self.kinds:
            fitting = _fit(value, kind)
            if fitting is not _MISFIT and self._allows(fitting):
                return fitting
        raise UserError(f"{where}: expected {self.expected}, got {value!r}")

    @property
    def _has_auto(self) -> bool:
        """Whether `auto` stands for None: not where it would be taken from an ordinary text."""
        return NoneType in self.kinds and (str not in self.kinds or bool(self.choices))

    def _allows(self, value: object) -> bool:
        if isinstance(value, str):
            return not self.choices or value in self.choices
        low = -math.inf if self.minimum is None else self.minimum
        high = math.inf if self.maximum is None else self.maximum
        items = value if isinstance(value, tuple) else (value,)
        return all(low <= item <= high for item in items if isinstance(item, int | float))


_MISFIT = object()  # what `_fit` returns where None would be a value


def _fit(value: object, kind: Any) -> object:
    """Return `value` as a `kind`, or `_MISFIT`: no text is taken for a number, and no truth value either."""
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        items = tuple(_fit(item, get_args(kind)[0]) for item in value)
        return _MISFIT if _MISFIT in items else items
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else _MISFIT
    if kind is int and isinstance(value, bool):
        return _MISFIT
    if kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    return value if isinstance(kind, type) and isinstance(value, kind) else _MISFIT


def _read(text: str, kind: Any) -> object:
    """Return a flag's text as a `kind`; ValueError where it is not one."""
    if get_origin(kind) is tuple:
        return tuple(_read(item, get_args(kind)[0]) for item in text.split(",")) if text else ()
    return kind(text) if kind in (int, float) else text


def _shown(default: object) -> str:
    """Return a default as its flag would be written."""
    if default is None:
        return "chosen automatically"
    if isinstance(default, bool):
        return "on" if default else "off"
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
