"""What a model has learnt: how far back it remembers, and whether its verbs agree with their subjects."""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recurra.commands.command import (
    Command,
    check_outputs,
    complain,
    how_read,
    loading_flags,
    output_flag,
    positive,
    print_json,
    reading_flags,
)
from recurra.commands.reporter import Reporter
from recurra.config import ArgumentParser, UserError, add_flags, resolve

if TYPE_CHECKING:
    from recurra.probing import RecallResult

__all__ = ["COMMANDS"]

TABLES = (".json", ".md")  # what is written beside pictures


def _recall_flags(parser: ArgumentParser) -> None:
    from recurra.probing import RecallSettings, RepeatedSettings

    parser.add_argument(
        "directory", nargs="?", metavar="DIR", help="folder of a model of words, to look at its memory of a real text"
    )
    parser.add_argument("text", nargs="*", metavar="TEXT", help="that text: file, folder, glob, .gz or CORPUS:SPLIT")
    reading_flags(parser)
    output_flag(parser, *TABLES)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quiet", action="store_true", help="say nothing but the table")
    add_flags(parser, RecallSettings, title="networks trained on made-up texts (without DIR)")
    add_flags(parser, RepeatedSettings, title="words that come again in a real text (with DIR and TEXT)")


def _recall(arguments: argparse.Namespace) -> int:
    from recurra.probing import RecallSettings, RepeatedSettings

    real = arguments.directory is not None
    if real and not arguments.text:
        raise UserError(
            f"expected a text that {arguments.directory} should read; without a model, networks are trained"
        )
    for field in dataclasses.fields(RecallSettings if real else RepeatedSettings):
        if hasattr(arguments, field.name) and not (real and field.name == "device"):
            flag = "--" + field.name.replace("_", "-")
            if real:
                raise UserError(f"{flag}: belongs to networks that are trained here; leave out {arguments.directory}")
            raise UserError(f"{flag}: belongs to a model that reads a real text; give its folder and the text")
    check_outputs(arguments.output, *TABLES)
    return _repeated(arguments) if real else _trained(arguments)


def _trained(arguments: argparse.Namespace) -> int:
    from recurra.probing import RecallSettings, draw_recall, recall, recall_table

    settings: RecallSettings = resolve({"recall": RecallSettings}, flags=arguments)["recall"]

    def keep(result: RecallResult) -> None:
        _write(arguments.output, result.to_mapping(), recall_table(result), partial(draw_recall, result))

    with Reporter(arguments.quiet or arguments.json) as reporter:
        result = recall(settings, say=reporter.say, watch=reporter.watch, finished=keep)
    if result.stopped and result.rows:
        keep(result)  # once more: as a table that is not complete
    if arguments.json:
        print_json(result.to_mapping())
    elif result.rows:
        print(recall_table(result), end="")
    if result.stopped:
        return complain(f"stopped after {len(result.rows)} runs", 128 + result.stopped)
    return 0


def _repeated(arguments: argparse.Namespace) -> int:
    import tempfile

    from recurra.language_model import load
    from recurra.probing import RepeatedSettings, draw_repeated, repeated_table, repeated_words
    from recurra.text.batches import write_tokens
    from recurra.text.corpora import open_text

    settings: RepeatedSettings = resolve({"repeated": RepeatedSettings}, flags=arguments)["repeated"]
    device = getattr(arguments, "device", "auto")
    lm = load(arguments.directory, device=None if device == "auto" else device)
    with tempfile.TemporaryDirectory() as folder, Reporter(arguments.quiet or arguments.json) as reporter:
        stream = write_tokens(open_text(arguments.text, **how_read(arguments)), lm.tokenizer, Path(folder) / "text")
        reporter.say(f"reading {len(stream):,} tokens")
        result = repeated_words(lm, stream, settings)
    _write(arguments.output, result.to_mapping(), repeated_table(result), partial(draw_repeated, result))
    if arguments.json:
        print_json(result.to_mapping())
    else:
        print(repeated_table(result), end="")
    return 0


def _agreement_flags(parser: ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="folder of any language model, or an .arpa file")
    parser.add_argument(
        "pairs",
        nargs="*",
        metavar="PAIRS",
        help="pairs of sentences: .tsv, .csv or .jsonl with sentence_good and sentence_bad, as BLiMP's; the sets of"
        " Linzen et al. and of Marvin and Linzen (default: some 350 of Recurra's own)",
    )
    output_flag(parser, *TABLES)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--per-pair", type=Path, metavar="FILE", help="write outcome and scores of every pair as TSV")
    reading_flags(parser)
    parser.add_argument("--lowercase", action="store_true", help="make all letters small first")
    parser.add_argument(
        "--split-punctuation",
        action=argparse.BooleanOptionalAction,
        help="put full stops and their like apart from words (default: where the model was trained on such text)",
    )
    parser.add_argument("--batch-size", type=positive, metavar="N", help="sentences read side by side")
    loading_flags(parser)


def _agreement(arguments: argparse.Namespace) -> int:
    from recurra.files import written_whole
    from recurra.language_model import load
    from recurra.probing.agreement import PAIRS, draw, measure, read_pairs, table, write_pairs_tsv

    check_outputs(arguments.output, *TABLES)
    if arguments.per_pair:
        _check_place(arguments.per_pair)
        given = [Path(each) for each in arguments.pairs] + arguments.output
        if arguments.per_pair.resolve() in [each.resolve() for each in given]:
            raise UserError(f"--per-pair {arguments.per_pair}: is read or written as something else; name another file")
    skipped: Counter[str] = Counter()
    pairs = list(read_pairs(arguments.pairs or [PAIRS], skipped=skipped, **how_read(arguments)))
    lm = load(arguments.directory, device=arguments.device, precision=arguments.precision)
    with Reporter(arguments.json) as reporter:

        def watch(done: int, total: int) -> None:
            if total > done:
                reporter.say(f"{done:,} of {total:,} pairs")

        result = measure(
            lm,
            pairs,
            lowercase=arguments.lowercase,
            split_punctuation=arguments.split_punctuation,
            batch_size=arguments.batch_size,
            progress=watch,
        )
    if arguments.per_pair:
        with written_whole(arguments.per_pair) as file:
            write_pairs_tsv(file, result)
    content, text = result.to_mapping() | {"skipped": dict(skipped.most_common())}, table(result)
    if skipped:
        verbs = ", ".join(f"{verb} ({count:,})" for verb, count in skipped.most_common(10))
        verbs += ", ..." * (len(skipped) > 10)
        text += f"\nNot read: {skipped.total():,} pairs whose verb has no other form: {verbs}.\n"
    _write(arguments.output, content, text, partial(draw, result, title=Path(arguments.directory).name))
    if arguments.json:
        print_json(content)
    else:
        print(text, end="")
    return 0


def _check_place(path: Path) -> None:
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UserError(f"{path}: expected the name of a file in a folder that is there")


def _write(paths: Sequence[Path], content: dict[str, Any], table: str, draw: Callable[[Path], None]) -> None:
    """Write what was found in the forms that names of files ask for."""
    from recurra.checkpoint import write_json
    from recurra.files import finite, written_whole

    for path in paths:
        if path.suffix == ".json":
            write_json(path, finite(content))
        elif path.suffix == ".md":
            with written_whole(path) as file:
                file.write(table)
        else:
            draw(path)


COMMANDS = {
    "probe recall": Command("how far back networks remember: made-up texts, or a model's own", _recall_flags, _recall),
    "probe agreement": Command("do a language model's verbs agree with their subjects?", _agreement_flags, _agreement),
}
