"""What a model is, which corpora there are, and colours drawn."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from recurra.commands.command import Command, positive
from recurra.config import ArgumentParser, UserError

__all__ = ["COMMANDS"]


def _info_flags(parser: ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="folder of the model")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _info(arguments: argparse.Namespace) -> int:
    from recurra.checkpoint import WEIGHTS, read_settings
    from recurra.opening import about

    directory = Path(arguments.directory)
    content = read_settings(directory)
    content = {"format": content.pop("format"), "kind": content.pop("kind"), "title": about(directory).title, **content}
    if "tokenizer" in content:
        tokenizer = content.pop("tokenizer")
        content["vocabulary"] = {"tokenizer": tokenizer["kind"], "size": len(tokenizer["vocabulary"]["tokens"])}
    content.pop("codec", None)  # vocabularies, as long as they are
    results = directory / "results.json"
    content["results"] = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    weights = directory / WEIGHTS
    content["weights_bytes"] = weights.stat().st_size if weights.exists() else None
    if arguments.json:
        print(json.dumps(content, indent=1, ensure_ascii=False))
        return 0
    for section, values in content.items():
        if not isinstance(values, dict):
            print(f"{section}: {values}")
            continue
        print(f"[{section}]")
        for name, value in values.items():
            parts = value if isinstance(value, list) and value and isinstance(value[0], dict) else [value]
            for part in parts:  # as the models of a mixture, a line each
                print(f"  {name:<20} {_in_a_line(part)}")
    return 0


def _in_a_line(value: Any) -> str:
    """A value as people read it: mappings as names and numbers."""
    if isinstance(value, dict):
        return "  ".join(f"{name} {_in_a_line(part)}" for name, part in value.items() if part is not None)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _data_flags(parser: ArgumentParser) -> None:
    parser.add_argument(
        "action", choices=("list", "fetch", "path"), help="list all corpora, download one, or say where it is"
    )
    parser.add_argument("names", nargs="*", metavar="CORPUS", help="names, as listed")


def _data(arguments: argparse.Namespace) -> int:
    from recurra.text import corpora

    if arguments.action == "list":
        for entry in corpora.corpora():
            state = "here" if entry.present else "not here yet"
            print(f"{entry.name:<18} {entry.size / 1e6:6.1f} MB  {state:<13} {entry.licence:<14} {entry.description}")
        return 0
    if not arguments.names:
        raise UserError(f"data {arguments.action}: name a corpus; `recurra data list` shows them")
    act = corpora.fetch if arguments.action == "fetch" else corpora.path
    for name in arguments.names:
        print(act(name))
    return 0


def _swatches_flags(parser: ArgumentParser) -> None:
    parser.add_argument(
        "file", nargs="?", default="-", metavar="FILE", help="lines `name R G B` (default: standard input)"
    )
    parser.add_argument("-o", "--output", required=True, metavar="PICTURE", help=".png, .svg or .pdf")
    parser.add_argument("--count", type=positive, default=48, metavar="N", help="swatches to draw (default: 48)")


def _swatches(arguments: argparse.Namespace) -> int:
    import re

    from recurra.plotting import swatches

    source = sys.stdin if arguments.file == "-" else open(arguments.file, encoding="utf-8")  # noqa: SIM115 - closed below
    try:
        with source:
            lines = [line.rstrip("\n") for line in source if line.strip("-\n ")]
    except UnicodeDecodeError as error:
        raise UserError(f"{arguments.file}: not UTF-8 at byte {error.start:,}; convert it first") from None
    colours = []
    for line in lines:
        match = re.fullmatch(r"(\S.*) (\d{1,3}) (\d{1,3}) (\d{1,3})", line)
        if match and all(int(part) <= 255 for part in match.groups()[1:]):
            red, green, blue = (int(part) for part in match.groups()[1:])
            colours.append((match[1], (red, green, blue)))
    if not colours:
        raise UserError(f"none of {len(lines)} lines is `name R G B` with numbers from 0 to 255")
    swatches(colours[: arguments.count], Path(arguments.output))
    print(
        f"{len(colours)} of {len(lines)} lines valid ({100 * len(colours) / len(lines):.1f} %); "
        f"drawn: {arguments.output}"
    )
    return 0


COMMANDS = {
    "info": Command("what a model is and what it was trained with", _info_flags, _info),
    "data": Command("corpora by name: list, fetch, path", _data_flags, _data),
    "swatches": Command("draw lines `name R G B` as paint colours", _swatches_flags, _swatches),
}
