"""Taggers, classifiers, translators, readers, transcribers: training, predicting, and how well they do."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recurra.commands.command import Command, draw_learning_curve, positive, stopped
from recurra.commands.reporter import Reporter
from recurra.config import ArgumentParser, UserError, add_flags

if TYPE_CHECKING:
    from recurra.predictor import Predictor

__all__ = ["COMMANDS", "decoding_flags", "evaluate_predictor", "is_predictor", "reading_flags", "refuse"]

TRAINED = {
    "tagger": "train a tagger: parts of speech, names, any label a word",
    "classifier": "train a classifier of texts",
    "translator": "train a translator, or a summariser: text to text",
    "reader": "train a reader that answers questions on texts",
    "transcriber": "train a transcriber: speech or handwriting to text",
}
DECODING = ("beam", "n_best", "length_penalty", "max_length", "language_model", "lm_weight", "word_bonus")
ERRORS = ("strict", "replace", "ignore")
READING = {
    "encoding": "of the files",
    "errors": f"what to do with bytes that are not in it: {', '.join(ERRORS)}",
    "format": "of the data, as `recurra train KIND --help` lists them",
    "header": "whether the first row of a table names the columns",
    "word_column": "column of the words, of taggers",
    "tag_column": "column of the tags",
    "text_column": "column or key of the text, of classifiers",
    "label_column": "column or key of the class",
    "source_column": "column or key of the source, of translators",
    "target_column": "column or key of the target",
    "path_column": "column or key of a recording's path, of transcribers",
    "transcript_column": "column or key of the transcript",
    "resample": "convert recordings of another rate than in training",
    "mix_down": "take the mean of several channels",
}
SWITCHES = ("header", "resample", "mix_down")


def _train_flags(kind: str, parser: ArgumentParser) -> None:
    from recurra.supervised import sections

    parser.add_argument("data", nargs="*", metavar="DATA", help="files, folders or globs that hold the examples")
    parser.add_argument("-o", "--directory", required=True, metavar="DIR", help="folder that the model goes to")
    parser.add_argument(
        "--config", metavar="FILE", help="settings in TOML or JSON, in sections like those below; flags win"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run that was stopped in DIR")
    parser.add_argument("--overwrite", action="store_true", help="replace the model in DIR")
    parser.add_argument("--quiet", action="store_true", help="say nothing but the result")
    for title, cls in sections(kind).items():
        add_flags(parser, cls, title=title)


def _train(kind: str, arguments: argparse.Namespace) -> int:
    from recurra import distributed
    from recurra.supervised import train_task
    from recurra.tasks import TASKS

    own = ("data", "directory", "config", "resume", "overwrite", "quiet")
    flags = {name: value for name, value in vars(arguments).items() if name not in own}
    directory = Path(arguments.directory)
    quiet = arguments.quiet or not distributed.is_writer()
    with Reporter(quiet, unit=TASKS[kind].unit, perplexity=False) as reporter:
        outcome = train_task(
            kind,
            arguments.data,
            directory,
            config=arguments.config,
            overwrite=arguments.overwrite,
            resume=arguments.resume,
            watch=reporter.watch,
            say=reporter.say,
            **flags,
        )
    if not distributed.is_writer():
        return 0
    if outcome.stopped:
        return stopped(kind, directory, outcome.stopped)
    for split, scores in outcome.scores.items():
        print(f"{split:<6}{_summary(scores)}")
    draw_learning_curve(directory)
    print(f"model in {directory}: try `recurra predict {directory}`")
    return 0


def decoding_flags(parser: ArgumentParser) -> None:
    """Flags of how translators and transcribers search."""
    decoding = parser.add_argument_group("decoding, of translators and transcribers")
    decoding.add_argument("--beam", type=positive, metavar="N", help="hypotheses that are followed at a time")
    decoding.add_argument("--n-best", type=positive, metavar="N", help="translations or transcripts to give")
    decoding.add_argument("--length-penalty", type=float, metavar="X", help="how much longer translations are favoured")
    decoding.add_argument("--max-length", type=positive, metavar="N", help="tokens of a translation, at most")
    decoding.add_argument("--lm", dest="language_model", metavar="DIR", help="a language model to transcribe with")
    decoding.add_argument("--lm-weight", type=float, metavar="X", help="how much it counts")
    decoding.add_argument("--word-bonus", type=float, metavar="X", help="what a word is worth beside it")


def reading_flags(parser: ArgumentParser) -> None:
    """Flags of how examples are read."""
    group = parser.add_argument_group("how examples are read, where it is not as in training")
    for name, help in READING.items():
        if name in SWITCHES:
            group.add_argument(_flag(name), action=argparse.BooleanOptionalAction, default=None, help=help)
        else:
            choices = ERRORS if name == "errors" else None
            group.add_argument(_flag(name), metavar="TEXT", choices=choices, help=help)


def refuse(arguments: argparse.Namespace, names: Iterable[str], kind: str) -> None:
    """Refuse flags that were given and that the kind of model has no use for."""
    for name in names:
        if getattr(arguments, name) is not None:
            raise UserError(f"{_flag(name)}: means nothing to a {kind}; leave it out")


def _flag(name: str) -> str:
    return "--lm" if name == "language_model" else "--" + name.replace("_", "-")


def _given(arguments: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def _reading(arguments: argparse.Namespace, predictor: Predictor) -> dict[str, Any]:
    """The settings of reading that were given."""
    from recurra.predictor import HEARING

    known = {*vars(predictor.data_settings), *(HEARING if predictor.hears else ())}
    refuse(arguments, READING.keys() - known, predictor.kind)
    return _given(arguments, READING)


def _decoding(arguments: argparse.Namespace, kind: str) -> dict[str, Any]:
    """The options of decoding that were given."""
    from recurra.tasks import TASKS

    refuse(arguments, (name for name in DECODING if name not in TASKS[kind].decoding), kind)
    given = _given(arguments, DECODING)
    if "language_model" in given:
        from recurra.language_model import load

        given["language_model"] = load(given["language_model"], device=arguments.device)
    elif "lm_weight" in given:
        raise UserError("--lm-weight is that of a language model: name one with --lm")
    return given


def _predict_flags(parser: ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="folder of the model")
    parser.add_argument("data", nargs="*", default=["-"], metavar="FILE", help="what to read; - or nothing: stdin")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each prediction")
    parser.add_argument("--stream", action="store_true", help="answer as input arrives, word by word or frame by frame")
    parser.add_argument("--device", help="cpu, cuda or mps (default: what there is)")
    decoding_flags(parser)
    reading_flags(parser)


def _predict(arguments: argparse.Namespace) -> int:
    from recurra.predictor import Predictor
    from recurra.streaming import follow

    predictor = Predictor.load(arguments.directory, device=arguments.device)
    options, reading = _decoding(arguments, predictor.kind), _reading(arguments, predictor)
    if arguments.stream:
        if arguments.data != ["-"]:
            raise UserError("--stream reads standard input: leave the files out, or --stream")
        if options or arguments.json or reading.keys() - {"encoding", "errors"}:
            raise UserError("--stream goes with no other option than --device, --encoding and --errors")
        data = predictor.data_settings
        how = {"encoding": data.encoding, "errors": data.errors, **reading}
        for piece in follow(predictor.model, sys.stdin.buffer, **how):
            print(piece, flush=True)
        return 0
    examples = predictor.read(arguments.data, say=_note, **reading)
    write = predictor.task.write_json if arguments.json else predictor.task.write
    write(predictor.stream(examples, **options), sys.stdout, options.get("n_best", 1))
    return 0


def is_predictor(directory: str) -> bool:
    """Whether a folder holds a model that predicts, and is no language model.

    Raises:
        UserError: it holds no model.
    """
    from recurra.opening import about

    return about(directory).predicts


def evaluate_predictor(arguments: argparse.Namespace) -> int:
    """The scores of a model on examples."""
    from recurra.predictor import Predictor

    predictor = Predictor.load(arguments.directory, device=arguments.device)
    options, reading = _decoding(arguments, predictor.kind), _reading(arguments, predictor)
    scores = predictor.evaluate(predictor.read(arguments.text, labelled=True, say=_note, **reading), **options)
    print(json.dumps(scores, indent=1, ensure_ascii=False) if arguments.json else _summary(scores))
    return 0


def _note(text: str) -> None:
    print(text, file=sys.stderr)


def _summary(scores: dict[str, Any]) -> str:
    """The single numbers of an evaluation in one line."""
    shown = {name: value for name, value in scores.items() if isinstance(value, int | float | str)}
    return "  ".join(
        f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}" for name, value in shown.items()
    )


COMMANDS = {
    **{
        f"train {kind}": Command(help, partial(_train_flags, kind), partial(_train, kind))
        for kind, help in TRAINED.items()
    },
    "predict": Command("tag, classify, translate, answer, transcribe", _predict_flags, _predict),
}
