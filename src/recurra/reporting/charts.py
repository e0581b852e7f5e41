"""Charts as SVG, in the colours of the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from recurra.reporting.markup import escape, number

__all__ = ["Curve", "bar_chart", "heat_map", "line_chart"]

WIDTH, LEFT, RIGHT = 600, 72, 12  # of a picture, and of its margins


class Curve(NamedTuple):
    """A line of a chart: its name, its points, its class in the style sheet, whether each point has a mark."""

    name: str
    points: Sequence[tuple[float, float]]
    css: str
    marks: bool = False


def line_chart(
    curves: Sequence[Curve],
    *,
    x: str,
    y: str,
    label: str,
    log: bool = False,
    end: float = 0.0,
    height: int = 280,
) -> str:
    """A chart of lines as SVG, in the page's colours.

    Args:
        curves: those without points are left out.
        x: label of the axis, with its unit; it begins at 0.
        y: likewise, but from the least number.
        label: what is seen, for those who do not see it.
        log: whether the axis of ``y`` is logarithmic; points that are not above 0 are left out.
        end: where the axis of ``x`` ends at the earliest.
        height: of the picture; it is 600 wide.

    Returns:
        An ``svg`` element; nothing where there are no points.
    """
    curves = [curve._replace(points=[p for p in curve.points if p[1] > 0 or not log]) for curve in curves]
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return ""
    room = (WIDTH - RIGHT - LEFT) / max(64 + 7 * len(curve.name) for curve in curves)  # legends in a row
    beside = max(1, int(room))
    top, bottom = 14 + (20 * math.ceil(len(curves) / beside) if len(curves) > 1 else 0), 44
    # Times and distances begin at 0.
    across = _Axis([0.0, end, *(p[0] for c in curves for p in c.points)], LEFT, WIDTH - RIGHT, log=False)
    up = _Axis([p[1] for c in curves for p in c.points], height - bottom - 8, top, log=log)
    parts = []
    for value in up.ticks():
        at = up.place(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(_text(LEFT - 6, at + 4, _tick(value), anchor="end"))
    parts += [_text(across.place(v), height - bottom + 16, _tick(v), anchor="middle") for v in across.ticks()]
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height - bottom}" y2="{height - bottom}"/>')
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, height - 8, x, anchor="middle"))
    middle = (top + height - bottom) / 2
    parts.append(_text(13, middle, y, anchor="middle", turn=-90))
    for place, curve in enumerate(curves):
        places = [(across.place(a), up.place(b)) for a, b in curve.points]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        parts.append(f'<polyline class="curve {curve.css}" points="{path}"/>')
        if curve.marks or len(places) == 1:  # one point makes no line
            parts += [f'<circle class="mark" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in places]
        if len(curves) > 1:
            at, line = LEFT + place % beside * (WIDTH - RIGHT - LEFT) / room, 14 + 20 * (place // beside)
            parts.append(f'<line class="curve {curve.css}" x1="{at:.1f}" x2="{at + 26:.1f}" y1="{line}" y2="{line}"/>')
            parts.append(_text(at + 32, line + 4, curve.name))
    return _svg(height, label, parts)


def bar_chart(bars: Sequence[tuple[str, float | None]], *, x: str, y: str, label: str) -> str:
    """Bars as SVG, from the top in their order, on a logarithmic axis that begins at 1.

    Args:
        bars: names, and numbers of 1 or more; None for infinity, which is as long as the longest.
        x: label of the numbers.
        y: label of the names.
        label: what is seen, for those who do not see it.
    """
    left, right, step = 132, 70, 24
    height = 62 + step * len(bars)
    largest = max((value for _, value in bars if value is not None), default=10.0)
    axis = _Axis([1.0, max(largest, 2.0)], left, WIDTH - right, log=True)
    bottom = 18 + step * len(bars)
    parts = [_text(0, 12, y)]
    for tick in axis.ticks():
        at = axis.place(tick)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="20" y2="{bottom}"/>')
        parts.append(_text(at, bottom + 15, _tick(tick), anchor="middle"))
    for place, (name, value) in enumerate(bars):
        top = 22 + step * place
        end = WIDTH - right if value is None else axis.place(max(1.0, value))
        parts.append(_text(left - 8, top + 13, name, anchor="end"))
        parts.append(f'<rect class="bar" x="{left}" y="{top}" width="{end - left:.1f}" height="{step - 7}"/>')
        parts.append(_text(end + 6, top + 13, "∞" if value is None else number(value)))
    parts.append(f'<line class="axis" x1="{left}" x2="{left}" y1="20" y2="{bottom}"/>')
    parts.append(_text((left + WIDTH - right) / 2, height - 6, x, anchor="middle"))
    return _svg(height, label, parts)


def heat_map(
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    low: float,
    high: float,
    label: str,
    what: str,
) -> str:
    """Numbers as the darkness of cells, as SVG.

    Args:
        values: ``[rows][columns]``.
        rows: names of the rows.
        columns: names of the columns, above them.
        low: the number of an empty cell.
        high: that of a full one.
        label: what is seen, for those who do not see it.
        what: the numbers are.
    """
    names = [_shortened(name) for name in columns]
    longest = max(map(len, names), default=1)
    top, step, turn = (24, 18, 0) if longest == 1 else (20 + 6 * longest, 18, -60)
    width = (WIDTH - LEFT - 44) / max(1, len(columns))
    height = top + step * len(rows) + 34
    parts = []
    for column, name in enumerate(names):
        at = LEFT + (column + 0.6) * width
        parts.append(_text(at, top - 6, name, anchor="start" if turn else "middle", turn=turn))
    for row, (name, numbers) in enumerate(zip(rows, values, strict=True)):
        parts.append(_text(LEFT - 6, top + step * row + 13, name, anchor="end"))
        for column, value in enumerate(numbers):
            share = min(1.0, max(0.0, (value - low) / (high - low)))
            parts.append(
                f'<rect class="cell" x="{LEFT + column * width:.1f}" y="{top + step * row}" width="{width:.1f}"'
                f' height="{step}" fill-opacity="{share:.3f}"><title>{escape(name)} at {escape(columns[column])}:'
                f" {number(value)}</title></rect>"
            )
    below = top + step * len(rows) + 12
    parts.append(_text(LEFT, below + 12, what))
    begin = LEFT + 12 + 7 * len(what)
    for place in range(5):
        share = place / 4
        parts.append(
            f'<rect class="cell" x="{begin + 64 * place}" y="{below}" width="16" height="14" fill-opacity="{share}"/>'
        )
        parts.append(_text(begin + 64 * place + 21, below + 12, number(low + share * (high - low))))
    return _svg(height, label, parts)


class _Axis:
    """From numbers to places between two ends of an axis."""

    def __init__(self, values: Sequence[float], begin: float, end: float, *, log: bool) -> None:
        self.begin, self.end, self.log = begin, end, log
        low, high = min(values), max(values)
        if low == high:
            low, high = (low / 2, high * 2) if log else (min(0.0, 2 * low), max(0.0, 2 * high) or 1.0)
        self.low, self.high = low, high

    def place(self, value: float) -> float:
        """Where a number is."""
        low, high, value = (math.log(each) if self.log else each for each in (self.low, self.high, value))
        return self.begin + (value - low) / (high - low) * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """A few round numbers."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            every = math.ceil((last - first) / 6)
            digits = (1, 2, 5) if last - first <= 2 else (1,)
            found = [digit * 10.0**power for power in range(first, last + 1, every) for digit in digits]
            found = [value for value in found if self.low * 0.999 <= value <= self.high * 1.001]
            if len(found) > 1:
                return found
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.7 * rough)
        count = range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)
        return [round(number * step, 12) for number in count]


def _tick(value: float) -> str:
    """A number beside an axis, where there is little room."""
    return number(float(f"{value:.0e}")) if 0 < abs(value) < 1e-3 else number(value)


def _svg(height: float, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">\n'
        + "\n".join(parts)
        + "\n</svg>"
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", turn: int = 0) -> str:
    turned = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turned}>{escape(text)}</text>'


def _shortened(name: str, most: int = 11) -> str:
    name = {"<eos>": "⏎", " ": "␣"}.get(name, name)
    return name if len(name) <= most else name[: most - 1] + "…"
