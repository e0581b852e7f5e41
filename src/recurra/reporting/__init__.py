"""One page about a trained model: how it learnt, what it knows, what goes on inside.

:func:`measure` finds the numbers; :func:`page` makes HTML of them and of nothing else. The page is one file: no script,
no font or picture from elsewhere. Whatever comes from the model or its data is escaped.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from recurra.config import UserError
from recurra.files import written_whole
from recurra.reporting.measuring import Numbers, ReportSettings, measure
from recurra.reporting.writing import page

__all__ = ["ReportSettings", "measure", "page", "report"]


def report(
    directory: str | Path,
    path: str | Path,
    settings: ReportSettings | None = None,
    *,
    device: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Numbers:
    """Write the page about a model, whole or not at all; returns the numbers on it.

    Args:
        directory: the model's folder.
        path: of the page; any name.
        settings: of the passages.
        device: ``cpu``, ``cuda`` or ``mps``; what there is if not given.
        say: is called with a line of text at each stage.

    Raises:
        UserError: as :func:`measure`; or the page cannot be put there.
    """
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        what = "expected a file for the page, found a folder" if path.is_dir() else "there is no such folder"
        raise UserError(f"{path if path.is_dir() else path.parent}: {what}; choose another with -o")
    numbers = measure(directory, settings, device=device, say=say)
    with written_whole(path) as file:
        file.write(page(numbers))
    return numbers
