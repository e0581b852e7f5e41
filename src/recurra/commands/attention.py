"""Where a translator or a reader looks: a picture of it, and the numbers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from recurra.commands.command import Command
from recurra.config import ArgumentParser

__all__ = ["COMMANDS"]


def _flags(parser: ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="folder of a translator or reader")
    parser.add_argument("text", metavar="TEXT", help="what is translated; the question, to a reader")
    parser.add_argument(
        "other",
        nargs="?",
        metavar="TEXT",
        help="its translation, by default the one that the model writes; the context, to a reader",
    )
    parser.add_argument("-o", "--output", metavar="FILE", help=".png, .svg or .pdf (default: attention.png)")
    parser.add_argument("--json", action="store_true", help="print rows, columns and weights; draw only with -o")
    parser.add_argument("--device", help="cpu, cuda or mps (default: what there is)")


def _attention(arguments: argparse.Namespace) -> int:
    from recurra.predictor import Predictor

    predictor = Predictor.load(arguments.directory, device=arguments.device)
    look = predictor.look(arguments.text if arguments.other is None else (arguments.text, arguments.other))
    if arguments.json:
        print(json.dumps(look._asdict(), ensure_ascii=False))
    if arguments.output or not arguments.json:
        from recurra.plotting import attention

        path = Path(arguments.output or "attention.png")
        attention(look.weights, look.rows, look.columns, path)
        if not arguments.json:
            print(f"{path}: {len(look.rows)} rows that look at {len(look.columns)} columns")
    return 0


COMMANDS = {"attention": Command("a picture of where a translator or a reader looks", _flags, _attention)}
