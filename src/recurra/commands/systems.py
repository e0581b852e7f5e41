"""Several models together, published systems, and n-gram models of others."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from recurra.commands.command import Command, complain, positive
from recurra.commands.reporter import Reporter
from recurra.config import ArgumentParser, UserError, add_flags

if TYPE_CHECKING:
    from recurra.planning import Plan

__all__ = ["COMMANDS"]


def _mix_flags(parser: ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="DIR", help="folders of models over one vocabulary")
    parser.add_argument("-o", "--directory", required=True, metavar="DIR", help="folder that the mixture goes to")
    parser.add_argument(
        "--valid", required=True, metavar="TEXT", help="text that weights are chosen on: a file or CORPUS:valid"
    )
    parser.add_argument(
        "--cache", type=positive, default=0, metavar="N", help="a neural cache of N words beside each recurrent model"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the model in -o")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _mix(arguments: argparse.Namespace) -> int:
    from recurra.language_model import MixtureSettings
    from recurra.mixing import mix

    with Reporter(arguments.json) as reporter:
        mixture = mix(
            arguments.models,
            arguments.directory,
            arguments.valid,
            cache=arguments.cache,
            overwrite=arguments.overwrite,
            say=reporter.say,
        )
    settings = mixture.model.settings
    assert isinstance(settings, MixtureSettings)
    if arguments.json:
        print(json.dumps(settings.to_mapping(Path(arguments.directory)), indent=1))
        return 0
    for path, component in zip(arguments.models, settings.components, strict=True):
        cache = component.cache
        beside = f"   cache of {cache.size:,}: theta {cache.theta:.4g}, weight {cache.weight:.4f}" if cache else ""
        print(f"{component.weight:.4f}  {path}{beside}")
    print(f"mixture in {arguments.directory}: try `recurra evaluate {arguments.directory} TEXT`")
    return 0


def _compare_flags(parser: ArgumentParser) -> None:
    from recurra.comparison import SYSTEMS
    from recurra.text.corpora import CorpusSettings
    from recurra.text.tokenizer import TokenizerSettings

    parser.add_argument("corpus", metavar="CORPUS", help="file, folder, glob, .gz or a corpus of `recurra data list`")
    parser.add_argument("-o", "--directory", required=True, metavar="DIR", help="folder for models, table and picture")
    parser.add_argument(
        "--minutes", type=float, default=10.0, metavar="X", help="training time of each system (default: 10)"
    )
    names = ", ".join(system.name for system in SYSTEMS)
    parser.add_argument("--systems", metavar="A,B,...", help=f"only these (default: all): {names}")
    parser.add_argument(
        "--scale",
        type=float,
        default=1.0,
        metavar="X",
        help="what the sizes of presets are multiplied by, beside a row's own scale",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of every random choice (default: 1)")
    parser.add_argument("--quiet", action="store_true", help="say nothing but the table")
    for title, cls in (("corpus", CorpusSettings), ("tokenizer", TokenizerSettings)):
        add_flags(parser, cls, title=title)


def _compare(arguments: argparse.Namespace) -> int:
    from recurra.comparison import compare, table

    own = ("corpus", "directory", "minutes", "systems", "scale", "quiet")
    flags = {name: value for name, value in vars(arguments).items() if name not in own}
    if not arguments.minutes > 0:
        raise UserError(f"--minutes: expected a number above 0, got {arguments.minutes}")
    with Reporter(arguments.quiet) as reporter:
        result = compare(
            arguments.corpus,
            arguments.directory,
            minutes=arguments.minutes,
            systems=arguments.systems.split(",") if arguments.systems else None,
            scale=arguments.scale,
            watch=reporter.watch,
            say=reporter.say,
            **flags,
        )
    if result.stopped:
        return complain(
            f"stopped; everything is saved in {arguments.directory}: go on with the same command", 128 + result.stopped
        )
    print(table(result.rows, arguments.corpus, result.tokenizer, arguments.minutes), end="")
    print(f"\ntable and models in {arguments.directory}")
    return 0


def _plan_flags(parser: ArgumentParser) -> None:
    from recurra.presets import PRESETS

    parser.add_argument("preset", metavar="PRESET", help=", ".join(PRESETS))
    parser.add_argument("--vocab", type=positive, required=True, metavar="N", help="words of the vocabulary")
    parser.add_argument("--tokens", type=positive, required=True, metavar="N", help="tokens of the training text")
    parser.add_argument(
        "--scale", type=float, default=1.0, metavar="X", help="what sizes are multiplied by (default: 1)"
    )
    parser.add_argument(
        "--steps", type=int, default=3, metavar="N", help="real training steps to measure; 0 for none (default: 3)"
    )
    parser.add_argument("--peak", type=float, metavar="TFLOPS", help="of other hardware: 10^12 operations a second")
    parser.add_argument("--bandwidth", type=float, metavar="GB/S", help="of other hardware: 10^9 bytes a second")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _plan(arguments: argparse.Namespace) -> int:
    from recurra.planning import plan

    found = plan(
        arguments.preset,
        vocabulary_size=arguments.vocab,
        tokens=arguments.tokens,
        scale=arguments.scale,
        steps=arguments.steps,
        peak=None if arguments.peak is None else arguments.peak * 1e12,
        bandwidth=None if arguments.bandwidth is None else arguments.bandwidth * 1e9,
    )
    print(json.dumps(found.to_mapping(), indent=1) if arguments.json else _planned(found))
    return 0


def _planned(found: Plan) -> str:
    lines = [("parameters", f"{sum(found.parameters.values()):,}")]
    lines += [(f"  {part}", f"{count:,}") for part, count in found.parameters.items()]
    lines += [("memory in training", f"{sum(found.memory.values()) / 1e9:.2f} GB")]
    lines += [(f"  {part}", f"{size / 1e9:.2f} GB") for part, size in found.memory.items()]
    lines += [("operations a token", f"{found.flops_per_token / 1e6:,.1f} million, forward and backward")]
    lines += [("tokens a step", f"{found.batch_tokens:,}")]
    if found.measured is None:
        lines += [("on this machine", "not measured")]
    else:
        assert found.pass_seconds is not None
        lines += [
            ("on this machine", f"{found.measured['tokens_per_second']:,.0f} tokens/s"),
            ("  a step", f"{found.measured['step_seconds']:.3f} s"),
            ("  most memory", f"{found.measured['peak_bytes'] / 1e9:.2f} GB"),
            (f"  a pass over {found.tokens:,} tokens", _long(found.pass_seconds)),
        ]
    if found.hardware_seconds is not None:
        lines += [("on the hardware described, a pass", f"{_long(found.hardware_seconds)} at the least")]
    return "\n".join(f"{name:<36}{value}" for name, value in lines)


def _long(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"


def _convert_flags(parser: ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="folder of an n-gram model, or an .arpa or .arpa.gz file")
    parser.add_argument("target", metavar="TARGET", help="an .arpa or .arpa.gz file, or a folder for the model")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def _convert(arguments: argparse.Namespace) -> int:
    from recurra.checkpoint import clear_directory, prepare_directory
    from recurra.language_model import load
    from recurra.models.arpa import write_arpa
    from recurra.models.kneser_ney import NgramLM

    target = Path(arguments.target)
    to_arpa = target.name.endswith((".arpa", ".arpa.gz"))
    if to_arpa and target.exists() and not arguments.overwrite:
        raise UserError(f"{target}: already there; give --overwrite to replace it")
    if not to_arpa and target.exists():
        prepare_directory(target, overwrite=arguments.overwrite)
    lm = load(arguments.source, device="cpu")
    if not isinstance(lm.model, NgramLM):
        raise UserError(f"{arguments.source}: only n-gram models are written as ARPA, this is of kind {lm.kind!r}")
    if to_arpa:
        write_arpa(lm.model, lm.tokenizer.vocabulary, target)
        if lm.tokenizer.kind != "whitespace":
            print(
                f"recurra: an ARPA file has words, and no way to make them of a text: whoever reads {target} has to"
                f" cut texts apart as this model's tokenizer does ({lm.tokenizer.kind}); --tokenizer whitespace avoids"
                " that",
                file=sys.stderr,
            )
    else:
        prepare_directory(target, overwrite=arguments.overwrite)
        clear_directory(target)
        lm.save(target)
    print(f"{lm.model.parameters_count:,} numbers of {lm.model.settings.order}-grams written to {target}")
    return 0


COMMANDS = {
    "mix": Command("interpolate saved models, with caches beside them", _mix_flags, _mix),
    "compare": Command("every published system on one corpus, in a table", _compare_flags, _compare),
    "plan": Command("what training a published system would take", _plan_flags, _plan),
    "convert": Command("n-gram models to ARPA files and back", _convert_flags, _convert),
}
