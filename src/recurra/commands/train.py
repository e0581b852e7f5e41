"""Training a language model of any kind."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from recurra.commands.command import Command, draw_learning_curve, stopped, summary
from recurra.commands.reporter import Reporter
from recurra.config import ArgumentParser, add_flags

__all__ = ["COMMANDS"]

TRAINED = {
    "lm": "train a recurrent language model on a text",
    "window": "train a fixed-window neural language model",
    "maxent": "train a maximum-entropy model of hashed n-grams",
    "ngram": "estimate an interpolated Kneser-Ney n-gram model",
    "snm": "train a sparse non-negative matrix model of skip-grams",
}


def _train_flags(kind: str, parser: ArgumentParser) -> None:
    from recurra.models.kinds import KINDS
    from recurra.presets import PRESETS
    from recurra.recipes import sections

    parser.add_argument(
        "source", nargs="*", metavar="CORPUS", help="file, folder, glob, .gz, - or a corpus of `recurra data list`"
    )
    parser.add_argument("-o", "--directory", required=True, metavar="DIR", help="folder that the model goes to")
    parser.add_argument(
        "--config", metavar="FILE", help="settings in TOML or JSON, in sections like those below; flags win"
    )
    presets = [name for name, preset in PRESETS.items() if preset.kind == kind]
    if presets:
        parser.add_argument(
            "--preset", metavar="NAME", help=f"settings of a published system: {', '.join(presets)}; file and flags win"
        )
        parser.add_argument(
            "--scale", type=float, default=1.0, metavar="X", help="what the sizes of the preset are multiplied by"
        )
    if not KINDS[kind].counted:
        parser.add_argument("--resume", action="store_true", help="go on with the run that was stopped in DIR")
    parser.add_argument("--overwrite", action="store_true", help="replace the model in DIR")
    parser.add_argument("--quiet", action="store_true", help="say nothing but the result")
    for title, cls in sections(kind).items():
        add_flags(parser, cls, title=title)


def _train(kind: str, arguments: argparse.Namespace) -> int:
    from recurra import distributed
    from recurra.recipes import train_lm

    own = ("source", "directory", "config", "resume", "overwrite", "quiet", "preset", "scale")
    flags = {name: value for name, value in vars(arguments).items() if name not in own}
    quiet = arguments.quiet or not distributed.is_writer()
    directory = Path(arguments.directory)
    with Reporter(quiet) as reporter:
        outcome = train_lm(
            arguments.source,
            directory,
            kind=kind,
            preset=getattr(arguments, "preset", None),
            scale=getattr(arguments, "scale", 1.0),
            config=arguments.config,
            overwrite=arguments.overwrite,
            resume=getattr(arguments, "resume", False),
            watch=reporter.watch,
            say=reporter.say,
            **flags,
        )
    if not distributed.is_writer():
        return 0
    if outcome.stopped:
        return stopped(kind, directory, outcome.stopped)
    for split, evaluation in outcome.evaluations.items():
        print(f"{split:<6}{summary(evaluation)}")
    draw_learning_curve(directory)
    print(f"model in {directory}: try `recurra generate {directory}`")
    return 0


COMMANDS = {
    f"train {kind}": Command(help, partial(_train_flags, kind), partial(_train, kind)) for kind, help in TRAINED.items()
}
