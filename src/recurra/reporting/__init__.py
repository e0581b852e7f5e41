"""One page about a trained model: how it learnt, what it knows, what goes on inside.

:func:`measure` finds the numbers; :func:`page` makes HTML of them and of nothing else. The page is one file: no script,
no font or picture from elsewhere. Whatever comes from the model or its data is escaped.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from recurra.checkpoint import write_json
from recurra.config import UserError
from recurra.files import written_whole
from recurra.reporting.measuring import Numbers, ReportSettings, measure
from recurra.reporting.writing import page

__all__ = ["FORMS", "ReportSettings", "measure", "page", "report"]

FORMS = (".html", ".json")  # what a report is written as: the page, and its numbers


def report(
    directory: str | Path,
    *paths: str | Path,
    settings: ReportSettings | None = None,
    device: str | None = None,
    version: str = "",
    say: Callable[[str], None] = lambda _: None,
) -> Numbers:
    """Write the page about a model, or its numbers, each file whole or not at all; returns the numbers.

    Args:
        directory: the model's folder.
        paths: of what is written, each in the form that its name ends in: ``.html`` or ``.json``.
        settings: of the passages.
        device: ``cpu``, ``cuda`` or ``mps``; what there is if not given.
        version: of Recurra, which the page says it was made by.
        say: is called with a line of text at each stage.

    Raises:
        UserError: as :func:`measure`; or a file cannot be put there, which is told before the work.
    """
    files = [Path(path) for path in paths]
    for path in files:
        if path.suffix not in FORMS:
            raise UserError(f"{path}: unknown form; end the name in one of {', '.join(FORMS)}")
        if path.is_dir():
            raise UserError(f"{path}: expected a file for the report, found a folder")
        if not path.absolute().parent.is_dir():
            raise UserError(f"{path.parent}: no such folder")
    numbers = measure(directory, settings, device=device, say=say)
    for path in files:
        if path.suffix == ".json":
            write_json(path, numbers)
            continue
        with written_whole(path) as file:
            file.write(page(numbers, version=version))
    return numbers
