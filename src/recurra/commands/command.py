"""What all commands share."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from recurra.config import ArgumentParser, UserError
from recurra.files import finite, json_text

if TYPE_CHECKING:
    from recurra.evaluation import Evaluation

__all__ = [
    "PICTURES",
    "Command",
    "check_outputs",
    "complain",
    "draw_learning_curve",
    "how_read",
    "loading_flags",
    "numbers",
    "output_flag",
    "positive",
    "print_json",
    "reading_flags",
    "stopped",
    "summary",
]

PICTURES = (".png", ".svg", ".pdf")


class Command(NamedTuple):
    """A command: its one-line help, the flags it adds to a parser, and what it does."""

    help: str
    flags: Callable[[ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def complain(text: str, status: int) -> int:
    """Say in one line what is wrong; returns the exit status."""
    print(f"recurra: {' '.join(text.split())}", file=sys.stderr)
    return status


def print_json(content: Any) -> None:
    """Print what a command found as JSON, in which a number that is not finite is null."""
    print(json_text(finite(content)))


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def numbers(text: str) -> list[float]:
    """Numbers with commas between them, for argparse."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers such as 0,3, got {text!r}") from None


def output_flag(parser: ArgumentParser, *others: str) -> None:
    """The flag ``-o FILE`` of what is found: a picture, or another form that a file's name can end in."""
    forms = ", ".join((*PICTURES, *others))
    parser.add_argument(
        "-o",
        "--output",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help=f"write it, in the form that the name ends in: {forms}; may be repeated",
    )


def reading_flags(parser: ArgumentParser) -> None:
    """Flags of how texts are read; :func:`how_read` has what they say."""
    parser.add_argument("--encoding", metavar="TEXT", help="of the text (default: utf-8)")
    parser.add_argument(
        "--errors", choices=("strict", "replace", "ignore"), help="what is done about bytes that are no text"
    )


def how_read(arguments: argparse.Namespace) -> dict[str, str]:
    """What :func:`reading_flags` say, as keyword arguments."""
    return {"encoding": arguments.encoding or "utf-8", "errors": arguments.errors or "strict"}


def check_outputs(paths: Sequence[Path], *others: str) -> None:
    """Tell before the work what could not be written after it.

    Raises:
        UserError: a form that is neither a picture nor one of the others, a folder that is missing, no matplotlib.
    """
    for path in paths:
        if path.suffix not in (*PICTURES, *others):
            raise UserError(f"{path}: unknown form; end the name in one of {', '.join((*PICTURES, *others))}")
        if path.is_dir() and path.suffix in PICTURES:
            raise UserError(f"{path}: is a folder; name a file")
        if not path.absolute().parent.is_dir():
            raise UserError(f"{path.parent}: no such folder")
        if not os.access(path.absolute().parent, os.W_OK):
            raise UserError(f"{path.parent}: nothing can be written in this folder")
    if any(path.suffix in PICTURES for path in paths):
        from recurra.plotting import figure_of

        figure_of(1, 1)  # matplotlib is an extra


def loading_flags(parser: ArgumentParser) -> None:
    """Flags of how a model is loaded."""
    parser.add_argument("--device", help="cpu, cuda or mps (default: what there is)")
    parser.add_argument(
        "--precision", choices=("float32", "int8"), default="float32", help="of the weights; int8: faster one by one"
    )


def stopped(kind: str, directory: Path, by: int) -> int:
    """Say how a run that a signal stopped goes on; returns the exit status."""
    return complain(
        f"stopped; everything is saved in {directory}: go on with `recurra train {kind} -o {directory} --resume`",
        128 + by,
    )


def draw_learning_curve(directory: Path) -> None:
    """A picture of how training went beside the model, where there was a log and matplotlib is installed."""
    from recurra.checkpoint import read_log
    from recurra.plotting import learning_curve

    with suppress(UserError):
        if lines := read_log(directory / "log.jsonl"):
            learning_curve(lines, directory / "learning_curve.png", title=str(directory.name))


def summary(result: Evaluation) -> str:
    """An evaluation in one line."""
    return (
        f"perplexity {result.perplexity:.2f}  bits/token {result.bits_per_token:.3f}  "
        f"bits/character {result.bits_per_character:.3f}  ({result.tokens:,} tokens, {result.unknown_tokens:,} unknown)"
    )
