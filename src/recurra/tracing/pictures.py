"""A picture of a trace. It needs matplotlib: the extra ``recurra[plot]``."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recurra.config import UserError
from recurra.plotting import LONGEST_NAME, figure_of, label_axes, save
from recurra.text.tokenizer import JOINER
from recurra.text.vocabulary import LINE_END, SPECIAL
from recurra.tracing.reading import OPENED, Traced, Values

__all__ = ["draw"]

SYMBOLS = {"cell": "cell state c", "hidden": "hidden state h"}
DRAWN_JOINER = "‿"  # which more fonts have
COLUMNS = 72  # characters of a line of the picture
COLUMN, ROW = 0.08, 0.17  # inches of a character, and of a unit's row
MOST_UNITS, MOST_ROWS = 64, 640  # of a picture
TEXT_ROWS = 3  # of a line beside its units: tokens, surprisal, the gap below


def draw(
    traced: Traced, path: str | Path, *, units: Sequence[int], gate: str | None = None, layer: int | None = None
) -> None:
    """Draw a text, the surprisal of each token below it in bits, and below that a row of a heat map for each unit.

    Black is high: 1 for a gate; the largest absolute value drawn for what has both signs, whose opposite is white.

    Args:
        traced: what to draw.
        path: the picture; its suffix names the format.
        units: of that layer, from the top.
        gate: as in :meth:`Traced.values`.
        layer: likewise.

    Raises:
        UserError: no such layer, gate or unit; too much to draw; another suffix; matplotlib is missing.
    """
    values, name = traced.values(gate, layer), gate or traced.usual
    units = traced.chosen(gate, layer, units, 0)
    if not 1 <= len(units) <= MOST_UNITS:
        raise UserError(f"units: expected 1 to {MOST_UNITS} to draw, got {len(units)}")
    text = _Layout(traced.tokens, len(units))
    rows = len(units) + TEXT_ROWS
    figure = figure_of(1.7 + COLUMN * max(text.columns, COLUMNS // 2), 0.8 + ROW * rows * len(text.lines))
    axes = figure.add_subplot()
    limit = 1.0 if name in OPENED else float(np.abs(values[:, units]).max()) or 1.0
    most = max(float(traced.bits[np.isfinite(traced.bits)].max(initial=0.0)), 1e-9)
    ticks: dict[float, str] = {}
    for number, line in enumerate(text.lines):
        top = number * rows
        edges = np.concatenate(([0], np.cumsum(text.widths[line])))
        _draw_tokens(axes, edges, top, text.shown[line], text.gap)
        _draw_bits(axes, edges, top + 1, traced.bits[line], most, text.gap)
        drawn = _draw_values(axes, edges, top + 2, values[line][:, units], 0.0 if name in OPENED else -limit, limit)
        ticks |= {top + 1.5: "bits"} | {top + 2.5 + row: str(unit) for row, unit in enumerate(units)}
    axes.set(xlim=(-0.2, text.columns + 0.2), ylim=(len(text.lines) * rows - 0.9, 0), xticks=[])
    axes.set_yticks(list(ticks), list(ticks.values()))
    what = f"{name} gate" if name in OPENED else SYMBOLS.get(name, name)
    number = len(traced.layers) if layer is None else layer
    note = f"tokens of the text; bars: surprisal of each, up to {most:.1f} bits"
    label_axes(axes, x=note, y="unit", title=f"{what}, layer {number}, after each token")
    _finish(figure, axes, drawn, what)
    with warnings.catch_warnings():  # of letters that the font has not; boxes stand in their place
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        save(figure, Path(path))


def _draw_tokens(axes: Any, edges: Any, top: float, shown: Sequence[str], gap: int) -> None:
    """Write the tokens of a line: words from where they begin, characters in the middle of their columns."""
    for begin, end, token in zip(edges, edges[1:], shown, strict=False):
        place, side = (begin, "left") if gap else ((begin + end) / 2, "center")
        axes.text(place, top + 0.5, token, va="center", ha=side, fontsize=8, family="monospace", parse_math=False)


def _draw_bits(axes: Any, edges: Any, top: float, bits: Any, most: float, gap: int) -> None:
    """Draw the surprisal of the tokens of a line as bars, with the numbers where there is room."""
    heights = np.minimum(bits, most) / most  # one of probability 0 is as high as any
    axes.bar(edges[:-1], -0.9 * heights, np.diff(edges) - 0.15 * gap, top + 0.95, align="edge", color="0.82")
    for begin, end, number in zip(edges, edges[1:], bits, strict=False):
        if end - begin > 2:
            axes.text(begin + 0.1, top + 0.55, f"{number:.1f}", va="center", fontsize=5.5)


def _draw_values(axes: Any, edges: Any, top: float, values: Values, lowest: float, highest: float) -> Any:
    """Draw a heat map of the values of a line ``[T, units]``, in a frame, as white is a value too."""
    bottom = top + values.shape[1]
    rows = np.arange(top, bottom + 1)
    drawn = axes.pcolormesh(edges, rows, values.T, cmap="Greys", vmin=lowest, vmax=highest)
    right = edges[-1]
    axes.plot([0, right, right, 0, 0], [top, top, bottom, bottom, top], color="0.5", linewidth=0.5)
    return drawn


def _finish(figure: Any, axes: Any, drawn: Any, what: str) -> None:
    """Make what stands around the heat maps small, and add their scale."""
    axes.tick_params(length=0, labelsize=7)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_size(8)
    axes.spines[:].set_visible(False)
    shrink = min(1.0, 1.2 / figure.get_figheight())
    scale = figure.colorbar(drawn, ax=axes, fraction=0.05, pad=0.01, aspect=12, shrink=shrink, anchor=(0.0, 0.9))
    scale.set_label(what, fontsize=7)
    scale.ax.tick_params(labelsize=7)


# ---- the text in lines ----------------------------------------------------------------------------------------------


class _Layout:
    """A text cut into lines.

    Attributes:
        shown: tokens as they are drawn.
        gap: columns between them: words have one, characters stand close.
        widths: columns of each, with the gap.
        lines: which tokens each line has.
        columns: of the longest line.

    Raises:
        UserError: it is too long for a picture of so many units.
    """

    def __init__(self, tokens: Sequence[str], units: int) -> None:
        self.shown = [_shown(token) for token in tokens]
        self.gap = int(any(len(token) > 1 for token in self.shown))
        self.widths = [max(1, _width(token)) + self.gap for token in self.shown]
        ends = [_ends(*pair, self.gap) for pair in zip(self.shown, [*self.shown[1:], ""], strict=True)]
        lines, most = _wrapped(self.widths, ends, COLUMNS), MOST_ROWS // (units + TEXT_ROWS)
        if len(lines) > most:
            raise UserError(
                f"the text is too long to draw: {len(lines)} lines of {COLUMNS} characters, expected at most {most}"
                f" with {units} units; give a shorter text or fewer --units"
            )
        self.lines = _balanced(lines, self.widths, ends)
        self.columns = max(sum(self.widths[line]) for line in self.lines)


def _shown(token: str) -> str:
    """A token as it is drawn: a line end as an arrow, what cannot be seen by its number, a long one cut."""
    if token == SPECIAL[LINE_END]:
        return "↵"
    seen = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in token.replace(JOINER, DRAWN_JOINER)
    )
    return seen if len(seen) <= LONGEST_NAME else seen[: LONGEST_NAME - 1] + "…"


def _width(text: str) -> int:
    """Columns that a text takes in a font of one width: ideographs take two, accents that are combined none."""
    return sum(
        0 if unicodedata.combining(letter) else 1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text
    )


def _ends(token: str, after: str, gap: int) -> bool:
    """Whether a line may end between two tokens: words stay whole, and with what is joined to them."""
    if not gap:
        return token in (" ", "↵")
    return not (token.endswith(DRAWN_JOINER) or after.startswith(DRAWN_JOINER))


def _wrapped(widths: Sequence[int], ends: Sequence[bool], columns: int) -> list[slice]:
    """Cut tokens into lines of at most so many columns, or of one token; after one where a line may end, if it can."""
    lines, begin, filled, allowed = [], 0, 0, 0
    for place, width in enumerate(widths):
        while filled and filled + width > columns:
            cut = allowed if allowed > begin else place
            lines.append(slice(begin, cut))
            begin, filled = cut, sum(widths[cut:place])
        filled += width
        allowed = place + 1 if ends[place] else allowed
    return [*lines, slice(begin, len(widths))]


def _balanced(lines: list[slice], widths: Sequence[int], ends: Sequence[bool]) -> list[slice]:
    """As many lines, all about as long."""
    shortest = -(-sum(widths) // len(lines))
    tried = (_wrapped(widths, ends, columns) for columns in range(shortest, COLUMNS))
    return next((found for found in tried if len(found) <= len(lines)), lines)
