"""Pictures: the learning curve of a run, bars, swatches of colours. Needs matplotlib: the extra ``recurra[plot]``."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recurra.config import UserError
from recurra.files import written_whole

__all__ = ["attention", "bars", "figure_of", "label_axes", "learning_curve", "save", "swatches"]

LONGEST_NAME = 60  # characters of a label


def figure_of(width: float, height: float) -> Any:
    """A matplotlib figure that needs no display, of a size in inches.

    Raises:
        UserError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("pictures need matplotlib: pip install 'recurra[plot]'") from None
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def label_axes(axes: Any, *, x: str, y: str = "", title: str = "") -> None:
    """Say what axes show, with units, and take the lines away that say nothing."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize="medium", loc="left", parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Any, path: Path) -> None:
    """Write the picture in the format that the path's suffix names, whole or not at all."""
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: no such folder")
    content = io.BytesIO()
    form = path.suffix[1:] or "png"
    if form not in figure.canvas.get_supported_filetypes():
        raise UserError(f"{path}: unknown picture format; end the name in .png, .svg or .pdf")
    figure.savefig(content, format=form)
    with written_whole(path, "wb") as file:
        file.write(content.getvalue())


def learning_curve(lines: Sequence[Mapping[str, Any]], path: Path, *, title: str = "") -> None:
    """Draw training and validation loss against time.

    Args:
        lines: what :class:`recurra.training.Trainer` logged, as :func:`recurra.checkpoint.read_log` reads it.
        path: the picture; its suffix names the format.
        title: what stands above it.

    Raises:
        UserError: matplotlib is missing, or there are no lines.
    """
    if not lines:
        raise UserError("the log holds nothing to draw yet")
    figure = figure_of(6.4, 4.0)
    axes = figure.add_subplot()
    trained = [line for line in lines if "loss" in line]
    minutes = [line["seconds"] / 60 for line in trained]
    axes.plot(minutes, [line["loss"] for line in trained], color="0.65", linewidth=1, label="training")
    valid = [line for line in lines if "valid" in line]
    if valid:
        axes.plot(
            [line["seconds"] / 60 for line in valid],
            [line["valid"] for line in valid],
            color="black",
            linewidth=1.5,
            marker="o",
            markersize=4,
            label="validation",
        )
        last = valid[-1]
        scored = None
        if "score" in last:
            name = last["score_name"].removeprefix("-")
            scored = f"{name} {last['score'] if name == last['score_name'] else -last['score']:.3g}"
        axes.annotate(
            scored or f"perplexity {math.exp(min(50.0, last['valid'])):.1f}",
            (valid[-1]["seconds"] / 60, valid[-1]["valid"]),
            textcoords="offset points",
            xytext=(-4, 8),
            ha="right",
        )
    label_axes(axes, x="training time (minutes)", y="loss (nats per token)", title=title)
    axes.legend(frameon=False)
    save(figure, path)


def bars(values: Sequence[tuple[str, float]], path: Path, *, label: str) -> None:
    """Draw named numbers as horizontal bars, in their order from the top, each with its number beside it.

    Args:
        values: names and numbers above 0.
        path: the picture; its suffix names the format.
        label: of the axis.

    Raises:
        UserError: matplotlib is missing.
    """
    figure = figure_of(7.0, 0.8 + 0.32 * len(values))
    axes = figure.add_subplot()
    places = range(len(values))
    drawn = axes.barh(places, [value for _, value in values], color="0.6", height=0.62)
    axes.bar_label(drawn, labels=[f"{value:.1f}" for _, value in values], padding=3, fontsize=8)
    axes.set_yticks(places, [name for name, _ in values], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    label_axes(axes, x=label)
    save(figure, path)


def attention(weights: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], path: Path) -> None:
    """Draw where attention looked: the darker, the more.

    Args:
        weights: a row for each that looked, shares from 0 to 1.
        rows: what looked.
        columns: what there was to see.
        path: the picture; its suffix names the format.

    Raises:
        UserError: matplotlib is missing, or there is nothing to draw.
    """
    if not rows or not columns:
        raise UserError("there is no attention to draw: the text is empty")
    rows, names = (
        [name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…" for name in side]
        for side in (rows, columns)
    )
    figure = figure_of(
        max(3.0, 1.6 + min(0.32 * len(columns), 60)),
        0.7 + min(0.26 * len(rows), 60) + 0.08 * max(map(len, names)),
    )
    axes = figure.add_subplot()
    image = axes.imshow(weights, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    texts = {"fontsize": 8, "parse_math": False}
    axes.set_xticks(range(len(columns)), names, rotation=90, **texts)
    axes.set_yticks(range(len(rows)), rows, **texts)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="share of attention", fraction=0.05, pad=0.02)
    save(figure, path)


def swatches(colours: Sequence[tuple[str, tuple[int, int, int]]], path: Path, *, columns: int = 4) -> None:
    """Draw named colours as a table of swatches.

    Args:
        colours: names, and red, green and blue from 0 to 255.
        path: the picture; its suffix names the format.
        columns: swatches in a row.
    """
    if not colours:
        raise UserError("there are no colours to draw")
    rows = math.ceil(len(colours) / columns)
    figure = figure_of(2.2 * columns, 0.62 * rows)
    axes = figure.add_subplot()
    for index, (name, rgb) in enumerate(colours):
        row, column = divmod(index, columns)
        colour = tuple(part / 255 for part in rgb)
        axes.add_patch(_rectangle((column + 0.03, row + 0.08), 0.3, 0.84, colour))
        axes.text(column + 0.37, row + 0.5, name, va="center", fontsize=7, parse_math=False)
    axes.set(xlim=(0, columns), ylim=(rows, 0))
    axes.set_axis_off()
    save(figure, path)


def _rectangle(corner: tuple[float, float], width: float, height: float, colour: tuple[float, ...]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, width, height, facecolor=colour, edgecolor="0.5", linewidth=0.5)
