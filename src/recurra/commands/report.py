"""One page about a trained model."""

from __future__ import annotations

import argparse

from recurra.commands.command import Command, print_json
from recurra.commands.reporter import Reporter
from recurra.config import ArgumentParser, UserError, add_flags, from_mapping

__all__ = ["COMMANDS"]


def _report_flags(parser: ArgumentParser) -> None:
    from recurra.reporting import ReportSettings

    parser.add_argument("directory", metavar="DIR", help="folder of the model")
    parser.add_argument("-o", "--output", metavar="FILE", help="the page, such as report.html")
    parser.add_argument("--json", action="store_true", help="print the numbers of the page as JSON")
    parser.add_argument("--device", help="cpu, cuda or mps (default: what there is)")
    add_flags(parser, ReportSettings, title="what the model writes")


def _report(arguments: argparse.Namespace) -> int:
    from recurra.reporting import ReportSettings, measure, report

    own = ("directory", "output", "json", "device")
    flags = {name: value for name, value in vars(arguments).items() if name not in own}
    settings = from_mapping(ReportSettings, flags, "report")
    if arguments.output is None and not arguments.json:
        raise UserError("report: say where the page goes with -o report.html, or give --json for its numbers alone")
    with Reporter(arguments.json) as reporter:
        options = {"device": arguments.device, "say": reporter.say}
        if arguments.output is None:
            numbers = measure(arguments.directory, settings, **options)
        else:
            numbers = report(arguments.directory, arguments.output, settings, **options)
    if arguments.json:
        print_json(numbers)
    else:
        print(f"{arguments.output}: open it in a browser")
    return 0


COMMANDS = {
    "report": Command("a page about a model: curves, surprisal, gates, settings", _report_flags, _report),
}
