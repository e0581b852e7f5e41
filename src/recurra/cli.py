"""The command line: ``recurra COMMAND``.

Nothing here imports torch until a command that needs it runs, so that ``recurra --help`` answers at once.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from recurra import __version__
from recurra.config import ArgumentParser, UserError, add_flags, from_mapping

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from recurra.evaluation import Evaluation
    from recurra.training import Progress

__all__ = ["main"]


class Command(NamedTuple):
    """A command: its one-line help, the flags it adds to a parser, and what it does."""

    help: str
    flags: Callable[[ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0; 1 for a failed run; 2 for a mistake of the user; 128 + signal."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = " ".join(words[:2]) if words[:1] == ["train"] else "".join(words[:1])
    if name not in COMMANDS:
        return _no_command(words)
    command = COMMANDS[name]
    parser = ArgumentParser(prog=f"recurra {name}", description=command.help)
    command.flags(parser)
    try:
        return command.run(parser.parse_args(words[len(name.split()) :]))
    except UserError as error:
        return _complain(str(error), 2)
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does: nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        return _complain(f"{error.filename or 'input or output'}: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        return _complain("interrupted", 128 + signal.SIGINT)
    except RuntimeError as error:
        if type(error).__name__ != "Diverged":
            raise
        return _complain(str(error), 1)


def _complain(text: str, status: int) -> int:
    print(f"recurra: {' '.join(text.split())}", file=sys.stderr)
    return status


def _no_command(words: Sequence[str]) -> int:
    """Help, version, or a word that is no command."""
    listing = "\n".join(f"  {name:<12}{command.help}" for name, command in COMMANDS.items())
    parser = ArgumentParser(
        prog="recurra",
        usage="recurra COMMAND ...",
        description="Recurrent neural networks that read and write language.",
        epilog=f"commands:\n{listing}\n\n`recurra COMMAND --help` tells the rest.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"recurra {__version__}")
    parser.add_argument("command", nargs="*", help=argparse.SUPPRESS)
    given = parser.parse_args(words).command
    if not given:
        parser.print_help()
        return 0
    import difflib

    near = difflib.get_close_matches(" ".join(given[:2]), COMMANDS, n=1) or difflib.get_close_matches(
        given[0], COMMANDS, n=1
    )
    return parser.error(f"unknown command {given[0]!r}{f'; did you mean {near[0]!r}?' if near else ''}")


# ---- train --------------------------------------------------------------------------------------------------------


def _train_flags(parser: ArgumentParser) -> None:
    from recurra.recipes import LM_SECTIONS

    parser.add_argument(
        "source", nargs="*", metavar="CORPUS", help="file, folder, glob, .gz, - or a corpus of `recurra data list`"
    )
    parser.add_argument("-o", "--directory", required=True, metavar="DIR", help="folder that the model goes to")
    parser.add_argument(
        "--config", metavar="FILE", help="settings in TOML or JSON, in sections like those below; flags win"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run that was stopped in DIR")
    parser.add_argument("--overwrite", action="store_true", help="replace the model in DIR")
    parser.add_argument("--quiet", action="store_true", help="say nothing but the result")
    for title, cls in LM_SECTIONS.items():
        add_flags(parser, cls, title=title)


def _train(arguments: argparse.Namespace) -> int:
    from recurra import distributed
    from recurra.recipes import train_lm

    own = ("source", "directory", "config", "resume", "overwrite", "quiet")
    flags = {name: value for name, value in vars(arguments).items() if name not in own}
    quiet = arguments.quiet or not distributed.is_writer()
    directory = Path(arguments.directory)
    with _Reporter(quiet) as reporter:
        outcome = train_lm(
            arguments.source,
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
        return _complain(
            f"stopped; everything is saved in {directory}: go on with `recurra train lm -o {directory} --resume`",
            128 + outcome.stopped,
        )
    for split, evaluation in outcome.evaluations.items():
        print(f"{split:<6}{_summary(evaluation)}")
    with suppress(UserError):  # a picture too, where matplotlib is installed
        from recurra.plotting import learning_curve

        learning_curve(directory / "log.jsonl", directory / "learning_curve.png", title=str(directory.name))
    print(f"model in {directory}: try `recurra generate {directory}`")
    return 0


class _Reporter:
    """Progress in the terminal: a bar where there is a terminal, lines elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.bar: Bar | None = None
        self.last = 0.0

    def __enter__(self) -> _Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def watch(self, progress: Progress) -> None:
        """A line of the log: to the bar; a validation stays on the screen."""
        if self.quiet:
            return
        import math

        left = progress.seconds * (1 / progress.fraction - 1) if progress.fraction else math.inf
        text = f"step {progress.step:,}  epoch {progress.epoch}"
        if progress.loss is not None:
            text += f"  loss {progress.loss:.3f}  {progress.tokens_per_second:,.0f} tokens/s"
        if progress.valid is not None:
            self.say(f"{text}  validation perplexity {math.exp(min(progress.valid, 50)):.2f} (estimate)")
        if sys.stderr.isatty():
            self._bar().update(self._task, completed=progress.fraction, description=text)
        elif progress.seconds - self.last > 15 and progress.valid is None:
            self.last = progress.seconds
            self.say(f"{text}  {100 * progress.fraction:.0f} %  {_duration(left)} left")

    def _bar(self) -> Bar:
        if self.bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=Console(stderr=True))
            self._task = self.bar.add_task("", total=1.0)
            self.bar.start()
        return self.bar


def _duration(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


# ---- evaluate -----------------------------------------------------------------------------------------------------


def _loading_flags(parser: ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda or mps (default: what there is)")
    parser.add_argument(
        "--precision", choices=("float32", "int8"), default="float32", help="of the weights; int8: faster one by one"
    )


def _evaluate_flags(parser: ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="folder of the model")
    parser.add_argument("text", nargs="+", metavar="TEXT", help="file, folder, glob, .gz, - or CORPUS:SPLIT")
    parser.add_argument(
        "--reset", choices=("none", "documents", "lines"), help="where the state starts anew (default: as trained)"
    )
    parser.add_argument(
        "--batch-size", type=_positive, default=32, metavar="N", help="rows read side by side (default: 32)"
    )
    parser.add_argument(
        "--chunk-length", type=_positive, default=256, metavar="N", help="steps at a time (default: 256)"
    )
    parser.add_argument("--encoding", default="utf-8", help="of the text (default: utf-8)")
    parser.add_argument(
        "--errors", default="strict", choices=("strict", "replace", "ignore"), help="what a bad byte is"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--per-token", metavar="FILE", help="write the surprisal of every token as TSV")
    _loading_flags(parser)


def _evaluate(arguments: argparse.Namespace) -> int:
    import tempfile

    import numpy as np

    from recurra.evaluation import write_surprisals_tsv
    from recurra.files import written_whole
    from recurra.language_model import load
    from recurra.text.batches import write_tokens
    from recurra.text.corpora import open_text

    lm = load(arguments.directory, device=arguments.device, precision=arguments.precision)
    text = open_text(arguments.text, encoding=arguments.encoding, errors=arguments.errors)
    with tempfile.TemporaryDirectory() as folder:
        stream = write_tokens(text, lm.tokenizer, Path(folder) / "text")
        per_token = None
        if arguments.per_token:
            per_token = np.lib.format.open_memmap(Path(folder) / "nats.npy", "w+", np.float64, (len(stream.tokens),))
        result = lm.evaluate(
            stream,
            reset=arguments.reset,
            batch_size=arguments.batch_size,
            chunk_length=arguments.chunk_length,
            per_token=per_token,
        )
        if per_token is not None:
            with written_whole(arguments.per_token) as file:
                write_surprisals_tsv(
                    file, stream.tokens, per_token, token=lm.tokenizer.token, document_starts=stream.document_starts
                )
    if arguments.json:
        print(json.dumps(result.to_mapping(), indent=1))
    else:
        print(_table(result))
    return 0


def _summary(result: Evaluation) -> str:
    return (
        f"perplexity {result.perplexity:.2f}  bits/token {result.bits_per_token:.3f}  "
        f"bits/character {result.bits_per_character:.3f}  ({result.tokens:,} tokens, {result.unknown_tokens:,} unknown)"
    )


def _table(result: Evaluation) -> str:
    share = 100 * result.unknown_tokens / result.tokens
    words = {"none": "carried from start to end", "documents": "reset at each document", "lines": "reset at each line"}
    rows = {
        "perplexity": f"{result.perplexity:.4f}",
        "  without unknown tokens": f"{result.perplexity_without_unknown:.4f}",
        "  per word": f"{result.perplexity_per_word:.4f}",
        "nats per token": f"{result.nats_per_token:.4f}",
        "bits per token": f"{result.bits_per_token:.4f}",
        "bits per character": f"{result.bits_per_character:.4f}",
        "tokens": f"{result.tokens:,}",
        "unknown tokens": f"{result.unknown_tokens:,} ({share:.2f} %)",
        "words, with line ends": f"{result.words:,}",
        "characters": f"{result.characters:,}",
        "state": words[result.reset],
        "seconds": f"{result.seconds:.2f}",
    }
    return "\n".join(f"{name:<26}{value}" for name, value in rows.items())


# ---- generate, next -----------------------------------------------------------------------------------------------


def _generate_flags(parser: ArgumentParser) -> None:
    from recurra.generation import GenerationSettings

    parser.add_argument("directory", metavar="DIR", help="folder of the model")
    parser.add_argument(
        "--prompt", default="", metavar="TEXT", help="what to go on from (default: the beginning of a line)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a text")
    _loading_flags(parser)
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
    parser.add_argument("-k", type=_positive, default=10, metavar="N", help="likeliest tokens to show (default: 10)")
    parser.add_argument("--words", default="", metavar="A,B,...", help="show these too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    _loading_flags(parser)


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


# ---- info, data, swatches -----------------------------------------------------------------------------------------


def _info_flags(parser: ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="folder of the model")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _info(arguments: argparse.Namespace) -> int:
    from recurra.checkpoint import WEIGHTS, read_settings

    directory = Path(arguments.directory)
    content = read_settings(directory)
    tokenizer = content.pop("tokenizer")
    content["vocabulary"] = {"tokenizer": tokenizer["kind"], "size": len(tokenizer["vocabulary"]["tokens"])}
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
            shown = (
                "  ".join(f"{k} {v:.6g}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items())
                if isinstance(value, dict)
                else value
            )
            print(f"  {name:<20} {shown}")
    return 0


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
    parser.add_argument("--count", type=_positive, default=48, metavar="N", help="swatches to draw (default: 48)")


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


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


COMMANDS = {
    "train lm": Command("train a recurrent language model on a text", _train_flags, _train),
    "evaluate": Command("perplexity of a model on a text", _evaluate_flags, _evaluate),
    "generate": Command("let a model write", _generate_flags, _generate),
    "next": Command("what a model expects next", _next_flags, _next),
    "info": Command("what a model is and what it was trained with", _info_flags, _info),
    "data": Command("corpora by name: list, fetch, path", _data_flags, _data),
    "swatches": Command("draw lines `name R G B` as paint colours", _swatches_flags, _swatches),
}
