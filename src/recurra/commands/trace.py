"""What every unit of a recurrent language model does over a text."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recurra.commands.command import Command, loading_flags, positive, print_json
from recurra.config import ArgumentParser, UserError

if TYPE_CHECKING:
    from recurra.language_model import LanguageModel
    from recurra.text.batches import TokenStream
    from recurra.tracing import Traced, Tracking

__all__ = ["COMMANDS"]

DRAWN, LISTED = 12, 6  # units of a picture and of a table where none were chosen


def _units(text: str) -> list[int]:
    """Numbers of units, for argparse."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"expected whole numbers such as 3,17, got {text!r}")
    return list(dict.fromkeys(int(part) for part in parts))


def _flags(parser: ArgumentParser) -> None:
    from recurra.tracing import GATES

    parser.add_argument("directory", metavar="DIR", help="folder of the model")
    parser.add_argument(
        "text", metavar="TEXT", help="a text as it stands; a file, or @ and what `recurra evaluate` reads"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="arrays of all layers: .npz, or for LSTMVis .h5 and .hdf5; a picture: .png, .svg or .pdf",
    )
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
    from recurra.language_model import load

    output = None if arguments.output is None else Path(arguments.output)
    drawn = output is not None and output.suffix in tracing.PICTURE_SUFFIXES
    arrays = (".npz", *tracing.HDF5_SUFFIXES)
    if output is not None and not drawn and output.suffix not in arrays:  # before anything is computed
        known = ", ".join((*arrays, *tracing.PICTURE_SUFFIXES))
        raise UserError(f"{output}: unknown format; end the name in one of {known}")
    lm = load(arguments.directory, device=arguments.device, precision=arguments.precision)
    traced = tracing.trace(lm, _text(arguments.text, lm), reset=arguments.reset)
    gate, layer = arguments.gate or traced.usual, arguments.layer or len(traced.layers)
    traced.values(gate, layer)  # a mistake is told before anything is written
    found, units = None, arguments.units
    if arguments.labels is not None:
        found = tracing.track(traced, tracing.read_labels(arguments.labels), count=arguments.best)
        units = units or found.units(layer, gate)
    units = traced.chosen(gate, layer, units, DRAWN if drawn else LISTED)
    written: list[Path] = []
    if output is not None and drawn:
        tracing.draw(traced, output, units=units, gate=gate, layer=layer)
        written = [output]
    elif output is not None:
        written = tracing.write_arrays(traced, output)
    if arguments.json:
        print_json(_mapping(traced, found, layer, gate, units, written))
        return 0
    if found is not None:
        print(_tracking(found))
    elif output is None:
        print(_listing(traced, layer, gate, units))
    for path in written:
        print(f"written: {path}")
    return 0


def _text(text: str, lm: LanguageModel) -> str | TokenStream:
    """A text as it was typed, or that of a file: then every line has an end, as in evaluation."""
    from recurra.text.batches import TokenStream
    from recurra.text.corpora import open_text

    try:
        is_file = Path(text).is_file()
    except (OSError, ValueError):  # too long for a name
        is_file = False
    if is_file:
        return TokenStream.from_text(open_text([text]), lm.tokenizer)
    if text.startswith("@") and len(text) > 1:
        return TokenStream.from_text(open_text([text[1:]]), lm.tokenizer)
    return text


def _mapping(
    traced: Traced, found: Tracking | None, layer: int, gate: str, units: list[int], written: list[Path]
) -> dict[str, Any]:
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
    if written:
        result["written"] = [str(path) for path in written]
    return result


def _listing(traced: Traced, layer: int, gate: str, units: list[int]) -> str:
    """A line for each token."""
    values = traced.values(gate, layer)
    shown = [json.dumps(token, ensure_ascii=False)[1:-1] for token in traced.tokens]
    width = max(5, *map(len, shown))
    lines = [
        f"{gate} of layer {layer}, {len(units)} of {values.shape[1]} units; surprisal of each token in bits",
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
