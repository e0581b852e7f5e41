"""Pieces of HTML, and numbers as people read them. Whatever goes into a piece as text is escaped."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["details", "escape", "figure", "number", "paragraph", "percent", "plain", "table", "whole"]

# What HTML does not allow: control characters, but for tab and line feed.
CONTROL = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)), "\ufffd")


def escape(text: str) -> str:
    """Text as HTML shows it, whatever is in it; half of a surrogate pair, which no file can hold, is ``?``."""
    return html.escape(text.translate(CONTROL).encode("utf-8", "replace").decode("utf-8"))


def paragraph(text: str, css: str = "") -> str:
    """A paragraph, of a class of the style sheet."""
    return f'<p class="{css}">{escape(text)}</p>' if css else f"<p>{escape(text)}</p>"


def figure(picture: str, caption: str = "") -> str:
    """A picture (HTML) with its caption (text); nothing for no picture."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure><div class="scroll" tabindex="0" role="group" aria-label="picture">{picture}</div>{below}</figure>'
        if picture
        else ""
    )


def details(summary: str, content: str) -> str:
    """Content (HTML) that is folded away under a summary (text)."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table: numbers to the right, the rest to the left; the first cell of a row names it."""
    rows = list(rows)
    right = {column for row in rows for column, value in enumerate(row) if column and not isinstance(value, str)}
    lines = ['<div class="scroll" tabindex="0" role="group" aria-label="table"><table>', "<thead><tr>"]
    for column, name in enumerate(header):
        css = ' class="n"' if column in right else ""
        lines.append(f'<th scope="col"{css}>{escape(name)}</th>' if name else "<td></td>")
    lines.append("</tr></thead><tbody>")
    for row in rows:
        cells = []
        for column, value in enumerate(row):
            text = escape(value if isinstance(value, str) else number(value))
            css = ' class="n"' if column in right else ""
            cells.append(f'<th scope="row">{text}</th>' if column == 0 else f"<td{css}>{text}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    lines.append("</tbody></table></div>")
    return "\n".join(lines)


def number(value: Any) -> str:
    """A number as people read it: integers in full, others to four digits and more, from 10 million on as powers.

    What is no number is as JSON has it.
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return json.dumps(value, ensure_ascii=False)
    if not math.isfinite(value):
        return "∞" if value > 0 else "–"
    if 1000 <= abs(value) < 1e7:
        return f"{value:,.0f}" if value.is_integer() or abs(value) >= 10_000 else f"{value:,.1f}"
    return re.sub(r"e([+-])0*", lambda sign: "e-" if sign[1] == "-" else "e", f"{value:.4g}")  # 2.7e43, 5e-7


def percent(share: float | None) -> float | None:
    """A part of 1 in per cent."""
    return None if share is None else 100 * share


def whole(value: float | None) -> float | int | None:
    """Numbers of steps and the like, which the log is read as floats of, as whole numbers."""
    return int(value) if value is not None and value.is_integer() else value


def plain(value: Any) -> str:
    """A setting as a file has it."""
    if value is None:
        return "auto"
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(map(plain, value))
    if isinstance(value, dict):
        known = {name: each for name, each in value.items() if each is not None}
        return ", ".join(f"{n} {number(each) if isinstance(each, float) else plain(each)}" for n, each in known.items())
    return json.dumps(value, ensure_ascii=False)
