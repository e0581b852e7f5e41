"""What a model writes, and what it expects next."""

from __future__ import annotations

import argparse
import json
import sys

from recurra.commands.command import Command, loading_flags, positive
from recurra.config import ArgumentParser, add_flags, from_mapping

__all__ = ["COMMANDS"]


def _generate_flags(parser: ArgumentParser) -> None:
    from recurra.generation import GenerationSettings

    parser.add_argument("directory", metavar="DIR", help="folder of the model")
    parser.add_argument(
        "--prompt", default="", metavar="TEXT", help="what to go on from (default: the beginning of a line)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a text")
    loading_flags(parser)
    add_flags(parser, GenerationSettings, title="generation")


def _generate(arguments: argparse.Namespace) -> int:
    from recurra.generation import GenerationSettings
    from recurra.language_model import load

    own = ("directory", "prompt", "json", "device", "precision")
    flags = {name: value for name, value in vars(arguments).items() if name not in own}
    settings = from_mapping(GenerationSettings, flags, "generate")  # before the model: a mistake is told at once
    lm = load(arguments.directory, device=arguments.device, precision=arguments.precision)
    if arguments.json:
        for passage in lm.generate(arguments.prompt, **flags):
            print(json.dumps({"prompt": arguments.prompt, **vars(passage)}, ensure_ascii=False))
        return 0
    several = settings.count > 1
    waiting: dict[int, list[str]] = {}
    print(arguments.prompt, end="", flush=True)
    for piece in lm.stream(arguments.prompt, **flags):
        # One text streams to the terminal; those that grow beside it wait their turn.
        if piece.row == 0:
            print(piece.text, end="", flush=True)
        else:
            waiting.setdefault(piece.row, []).append(piece.text)
    for row in sorted(waiting):
        print(f"\n\n{'-' * 20}\n" if several else "\n", end="")
        print(arguments.prompt + "".join(waiting[row]), end="")
    print()
    return 0


def _next_flags(parser: ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="folder of the model")
    parser.add_argument("prompt", nargs="?", default="", metavar="TEXT", help="what was said so far")
    parser.add_argument("-k", type=positive, default=10, metavar="N", help="likeliest tokens to show (default: 10)")
    parser.add_argument("--words", default="", metavar="A,B,...", help="show these too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    loading_flags(parser)


def _next(arguments: argparse.Namespace) -> int:
    from recurra.language_model import load

    lm = load(arguments.directory, device=arguments.device, precision=arguments.precision)
    rows = lm.next_tokens(arguments.prompt, arguments.k)
    asked = [word for word in arguments.words.split(",") if word]
    for word in asked:
        if lm.tokenizer.id(word) == lm.tokenizer.unknown and word != "<unk>":
            print(f"recurra: {word!r} is not in the vocabulary: its probability is that of <unk>", file=sys.stderr)
        rows.append((word, lm.next_probability(arguments.prompt, word)))
    if arguments.json:
        print(json.dumps([{"token": token, "probability": p} for token, p in rows], indent=1, ensure_ascii=False))
        return 0
    width = max(len(token) for token, _ in rows)
    for index, (token, p) in enumerate(rows):
        if index == len(rows) - len(asked):
            print()
        print(f"{json.dumps(token, ensure_ascii=False)[1:-1]:<{width}}  {p:9.6f}  {'█' * round(40 * p)}".rstrip())
    return 0


COMMANDS = {
    "generate": Command("let a model write", _generate_flags, _generate),
    "next": Command("what a model expects next", _next_flags, _next),
}
