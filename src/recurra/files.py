"""Writing files so that a reader finds the old content or the new, never a part of it; and the JSON that is in them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal


@contextlib.contextmanager
def written_whole(path: str | Path, mode: Literal["w", "wb"] = "w", encoding: str = "utf-8") -> Iterator[IO[Any]]:
    """Open a file that takes the place of `path` when, and only when, the block ends without an error.

    The content goes to a temporary file beside `path`, reaches the disk, and is then renamed over it in one step, so
    that neither a full disk nor a loss of power nor a kill at any moment leaves `path` half-written. After an error the
    temporary file is removed and `path` is as it was; only a kill leaves one behind, for :func:`remove_leftovers`.
    `encoding` is for mode ``"w"``, which keeps line ends as written. A device or a pipe is simply written to.
    """
    path = Path(path).resolve()  # what a symbolic link points to is replaced, not the link
    text: dict[str, Any] = {"encoding": encoding, "newline": ""} if mode == "w" else {}
    if path.exists() and not path.is_file():
        with open(path, mode, **text) as file:
            yield file
        return
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
    try:
        with open(temporary, mode.replace("w", "x"), **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def remove_leftovers(folder: str | Path) -> None:
    """Remove the temporary files of writers that were killed; for a folder that nobody else is writing to."""
    for leftover in Path(folder).glob(".*.part"):
        leftover.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Make a rename in `folder` last through a loss of power; not every system lets a folder be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def finite(value: Any) -> Any:
    """A value as JSON takes it: None in the place of every number that is not finite."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_text(content: Any, indent: int = 0) -> str:
    """JSON of names, numbers, strings and lists, an entry a line; but a list of numbers is one line.

    Args:
        content: mappings have strings or whole numbers as keys.
        indent: of the lines after the first, in spaces.
    """
    if isinstance(content, dict):
        brackets = "{}"
        entries = [
            f"{json.dumps(str(name), ensure_ascii=False)}: {json_text(each, indent + 1)}"
            for name, each in content.items()
        ]
    elif isinstance(content, list | tuple) and not all(
        each is None or isinstance(each, int | float) for each in content
    ):
        brackets = "[]"
        entries = [json_text(each, indent + 1) for each in content]
    else:
        return json.dumps(content, ensure_ascii=False)
    if not entries:
        return brackets
    line = "\n" + " " * indent
    return f"{brackets[0]}{line} {f',{line} '.join(entries)}{line}{brackets[1]}"
