"""What every unit of a recurrent language model does over a text."""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recurra.commands.command import (
    PICTURES,
    Command,
    check_outputs,
    how_read,
    loading_flags,
    output_flag,
    positive,
    print_json,
    reading_flags,
)
from recurra.config import ArgumentParser, UserError

if TYPE_CHECKING:
    from recurra.language_model import LanguageModel
    from recurra.text.batches import TokenStream
    from recurra.tracing import Traced, Tracking

__all__ = ["COMMANDS"]

DRAWN, LISTED = 12, 6  # units of a picture and of a table where none were chosen
# Endings of names of files of text. A word that has one, or a /, is taken for a file that is missing.
TEXTS = (
    ".txt",
    ".text",
    ".tokens",
    ".gz",
    ".md",
    ".rst",
    ".html",
    ".xml",
    ".csv",
    ".tsv",
    ".json",
    ".jsonl",
    ".conllu",
)


def _units(text: str) -> list[int]:
    """Numbers of units, for argparse."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"expected whole numbers such as 3,17, got {text!r}")
    return list(dict.fromkeys(int(part) for part in parts))


def _flags(parser: ArgumentParser) -> None:
    from recurra.tracing import ARRAY_SUFFIXES, GATES

    parser.add_argument("directory", metavar="DIR", help="folder of the model")
    parser.add_argument(
        "text", nargs="?", metavar="TEXT", help="what `recurra evaluate` reads, or else a text as it stands"
    )
    parser.add_argument(
        "--text", dest="words", metavar="TEXT", help="a text as it stands, even if a file has that name"
    )
    reading_flags(parser)
    output_flag(parser, *ARRAY_SUFFIXES, ".json")
    parser.add_argument("--layer", type=positive, metavar="N", help="from 1, which reads the words (default: the last)")
    parser.add_argument("--gate", choices=GATES, help="what to look at (default: cell; hidden where there is none)")
    parser.add_argument("--units", type=_units, metavar="N,N,...", help="from 0 (default: those that move most)")
    parser.add_argument(
        "--labels", metavar="FILE", help="a number or category for each token: which units track it? units are its best"
    )
    parser.add_argument("--best", type=positive, default=5, metavar="N", help="of each layer and gate (default: 5)")
    parser.add_argument(
        "--reset", choices=("none", "documents", "lines"), help="where the state starts anew (default: as trained)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    loading_flags(parser)


def _trace(arguments: argparse.Namespace) -> int:
    from recurra import tracing

    check_outputs(arguments.output, *tracing.ARRAY_SUFFIXES, ".json")
    for path in arguments.output:
        if path.suffix in tracing.ARRAY_SUFFIXES:
            tracing.check_arrays(path)
    traced = _read(arguments)
    gate, layer = arguments.gate or traced.usual, arguments.layer or len(traced.layers)
    traced.values(gate, layer)  # a mistake is told before anything is written
    found, units = None, arguments.units
    if arguments.labels is not None:
        found = tracing.track(traced, tracing.read_labels(arguments.labels), count=arguments.best)
        units = units or found.units(layer, gate)
    drawn = any(path.suffix in PICTURES for path in arguments.output)
    units = traced.chosen(gate, layer, units, DRAWN if drawn else LISTED)
    result = _mapping(traced, found, layer, gate, units)
    written = [file for path in arguments.output for file in _write(path, traced, result, layer, gate, units)]
    if arguments.json:
        print_json(result | ({"written": [str(path) for path in written]} if written else {}))
        return 0
    if found is not None:
        print(_tracking(found))
    elif not written:
        print(_listing(traced, layer, gate, units))
    for path in written:
        print(f"written: {path}")
    return 0


def _read(arguments: argparse.Namespace) -> Traced:
    from recurra.language_model import load
    from recurra.planning import available_memory
    from recurra.tracing import check_size, trace

    if (arguments.text is None) == (arguments.words is None):
        raise UserError("expected one text to read: a TEXT after the model, or --text and the very words")
    if arguments.text is not None and not _is_source(arguments.text):
        if _seems_file(arguments.text):
            raise UserError(f"{arguments.text}: no such file, folder or corpus; to trace these very words use --text")
        arguments.text, arguments.words = None, arguments.text
    lm = load(arguments.directory, device=arguments.device, precision=arguments.precision)
    with tempfile.TemporaryDirectory() as folder:
        stream = _stream(arguments, lm, Path(folder) / "text")
        check_size(lm, len(stream), available_memory())
        return trace(lm, stream, reset=arguments.reset)


def _stream(arguments: argparse.Namespace, lm: LanguageModel, path: Path) -> TokenStream:
    """A text as it was typed; or from where it lies, as evaluation reads it: with an end to every line."""
    from recurra.text.batches import TokenStream, write_tokens
    from recurra.text.corpora import open_text

    if arguments.text is not None:
        return write_tokens(open_text([arguments.text], **how_read(arguments)), lm.tokenizer, path)
    ids = lm.tokenizer.encode(arguments.words)
    return TokenStream.from_tokens(ids, vocabulary=lm.tokenizer.vocabulary.digest())


def _is_source(text: str) -> bool:
    """Whether a text is read from there: standard input, a corpus or a part of one, a file, a folder, a glob."""
    import glob
    import os

    from recurra.text.corpora import corpora

    if text == "-" or os.path.lexists(text):
        return True
    if text.partition(":")[0] in {corpus.name for corpus in corpora()} and not any(map(str.isspace, text)):
        return True
    return glob.has_magic(text) and next(glob.iglob(text, recursive=True), None) is not None


def _seems_file(text: str) -> bool:
    """Whether a text was meant as the name of a file, rather than as something to read."""
    return not any(map(str.isspace, text)) and ("/" in text or "\\" in text or text.endswith(TEXTS))


def _write(path: Path, traced: Traced, result: dict[str, Any], layer: int, gate: str, units: list[int]) -> list[Path]:
    """Write a trace in the form that the path ends in; returns the files."""
    from recurra import tracing
    from recurra.checkpoint import write_json
    from recurra.files import finite

    if path.suffix in tracing.ARRAY_SUFFIXES:
        return tracing.write_arrays(traced, path)
    if path.suffix == ".json":
        write_json(path, finite(result))
    else:
        tracing.draw(traced, path, units=units, gate=gate, layer=layer)
    return [path]


def _mapping(traced: Traced, found: Tracking | None, layer: int, gate: str, units: list[int]) -> dict[str, Any]:
    """What there is to tell."""
    result: dict[str, Any] = {
        "cell": traced.cell,
        "layers": [values["hidden"].shape[1] for values in traced.layers],
        "layer": layer,
        "gate": gate,
        "tokens": traced.tokens,
        "bits": traced.bits.tolist(),
        "values": {str(unit): traced.values(gate, layer)[:, unit].tolist() for unit in units},
    }
    if found is not None:
        result["labels"] = {
            "measure": found.measure,
            "categories": list(found.categories),
            "best": [each._asdict() for each in found.best],
            "chance": [{"layer": layer, "gate": gate, "score": score} for (layer, gate), score in found.chance.items()],
        }
    return result


def _listing(traced: Traced, layer: int, gate: str, units: list[int]) -> str:
    """A line for each token."""
    values = traced.values(gate, layer)
    shown = [json.dumps(token, ensure_ascii=False)[1:-1] for token in traced.tokens]
    width = max(5, *map(len, shown))
    lines = [
        f"{gate} of layer {layer}, {len(units)} of {values.shape[1]} units, after each token; its surprisal in bits",
        "",
        f"{'token':<{width}} {'bits':>7}" + "".join(f"{f'unit {unit}':>11}" for unit in units),
    ]
    for place, (token, bits) in enumerate(zip(shown, traced.bits, strict=True)):
        numbers = "".join(f"{values[place, unit]:>11.4f}" for unit in units)
        lines.append(f"{token:<{width}} {bits:>7.2f}{numbers}")
    return "\n".join(lines)


def _tracking(found: Tracking) -> str:
    """The best units of every layer and gate, a line each, the strongest line first."""
    best: dict[tuple[int, str], list[Any]] = {}
    for each in found.best:
        best.setdefault((each.layer, each.gate), []).append(each)
    lines = [
        f"{found.measure}" + (f" of {', '.join(found.categories)}" if found.categories else ""),
        f"{'layer':<7}{'gate':<11}{'by chance':>9}   best units, from 0",
    ]
    for (layer, gate), units in sorted(best.items(), key=lambda row: -abs(row[1][0].score)):
        chance = found.chance[layer, gate]
        shown = f"{chance:.3f}" if math.isfinite(chance) else "-"
        scores = "  ".join(f"{each.unit}: {each.score:.3f}" for each in units)
        lines.append(f"{layer:<7}{gate:<11}{shown:>9}   {scores}")
    lines.append("by chance: what the best unit reaches in 95 of 100 cases where labels are shifted along the text")
    return "\n".join(lines)


COMMANDS = {
    "trace": Command("every gate and state of a recurrent language model over a text", _flags, _trace),
}
