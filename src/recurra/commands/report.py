"""One page about a trained model."""

from __future__ import annotations

import argparse

from recurra.commands.command import Command, print_json
from recurra.commands.reporter import Reporter
from recurra.config import ArgumentParser, UserError, add_flags, resolve

__all__ = ["COMMANDS"]


def _report_flags(parser: ArgumentParser) -> None:
    from recurra.reporting import FORMS, ReportSettings

    parser.add_argument("directory", metavar="DIR", help="folder of the model")
    parser.add_argument(
        "-o",
        "--output",
        action="append",
        default=[],
        metavar="FILE",
        help=f"write it, in the form that the name ends in: {', '.join(FORMS)}; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print the numbers of the page as JSON")
    parser.add_argument("--device", help="cpu, cuda or mps (default: what there is)")
    add_flags(parser, ReportSettings, title="what the model writes")


def _report(arguments: argparse.Namespace) -> int:
    from recurra import __version__
    from recurra.reporting import ReportSettings, report

    if not (arguments.output or arguments.json):
        raise UserError("report: say where the page goes with -o report.html, or give --json for its numbers alone")
    settings = resolve({"report": ReportSettings}, flags=arguments)["report"]
    with Reporter(arguments.json) as reporter:
        numbers = report(
            arguments.directory,
            *arguments.output,
            settings=settings,
            device=arguments.device,
            version=__version__,
            say=reporter.say,
        )
    if arguments.json:
        print_json(numbers)
        return 0
    for path in arguments.output:
        print(f"{path}: open it in a browser" if path.endswith(".html") else path)
    return 0


COMMANDS = {
    "report": Command("a page about a model: curves, surprisal, gates, settings", _report_flags, _report),
}
