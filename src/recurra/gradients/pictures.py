"""Pictures of gradients. They need matplotlib: the extra ``recurra[plot]``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.config import UserError
from recurra.gradients.clipping import Clipping
from recurra.gradients.contributions import Contributions
from recurra.gradients.pairs import Decay, GradientMap, in_words
from recurra.plotting import figure_of, label_axes, save

__all__ = ["draw_clipping", "draw_contributions", "draw_decay", "draw_jacobians", "draw_map"]

Floats = NDArray[np.floating[Any]]
DECADES = 12  # that a heat map shows below what is usual at i = t
LARGEST, SMALLEST = 1e250, 1e-250  # that are drawn: ticks go a step beyond
SINGULAR_DECADES = 6  # of singular values, from the largest down
LETTERS = {"hidden": "h", "cell": "c"}


def draw_map(map: GradientMap, layer: int, path: str | Path, *, state: str = "hidden", title: str = "") -> None:
    """Draw the norms of all pairs as a heat map on a logarithmic scale of greys: black is large.

    What lies more than twelve decades below the median of i = t, zeros too, has the palest grey. Only where there is no
    gradient, for i > t or before a start, nothing is drawn.

    Args:
        map: the norms.
        layer: whose.
        path: the picture; its suffix names the format.
        state: ``hidden`` or ``cell``.
        title: what stands above it.

    Raises:
        UserError: matplotlib is missing, or all gradients are 0.
    """
    found, steps = map.of(state)[layer], map.steps
    places = np.arange(found.shape[1])
    absent = (places > steps[:, None]) | (places < map.begun[:, None])
    if not found.max() > 0:
        raise UserError("all gradients are 0: there is nothing to draw")
    figure = figure_of(6.0, 5.0)
    from matplotlib.ticker import MaxNLocator

    axes = figure.add_subplot()
    norms = np.ma.masked_array(np.minimum(found, LARGEST), absent)
    largest = float(norms.max())
    usual = float(np.median(found[np.arange(len(steps)), steps]))
    lowest = max(SMALLEST, min(usual or largest, largest) * 10.0**-DECADES)
    positive = norms[norms > 0]
    smallest = max(float(positive.min()), lowest)
    palest = smallest if smallest < largest else largest / 10
    half = (steps[1] - steps[0]) / 2 if len(steps) > 1 else 0.5
    extent = (-0.5, len(places) - 0.5, steps[-1] + half, steps[0] - half)
    picture = axes.imshow(
        np.log10(np.ma.maximum(norms, palest)),  # matplotlib's own logarithmic colours overflow before floats do
        cmap=_greys(),
        vmin=math.log10(palest),
        vmax=math.log10(largest),
        extent=extent,
        aspect="auto",
        interpolation="nearest",
        origin="upper",
    )
    letter = LETTERS[state if map.of(state) is map.cell else "hidden"]
    label_axes(axes, x=f"i, step of the state {letter}(i) (tokens)", y="t, step of the loss J(t) (tokens)", title=title)
    beyond = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
    below, above = float(norms.min()) < smallest, bool(np.isinf(found).any())
    whole = MaxNLocator("auto", integer=True) if largest / palest >= 100 else None
    bar = figure.colorbar(picture, ax=axes, extend=beyond[below, above], ticks=whole, format=_power)
    bar.set_label(f"‖∂J(t)/∂{letter}(i)‖ (nats per unit of {letter})")
    bar.outline.set_visible(False)
    save(figure, Path(path))


def _power(exponent: float, _: int | None = None) -> str:
    """A power of 10 at a colour bar: as a number where that is short."""
    return f"{10**exponent:.3g}" if abs(exponent) < 3 else f"$10^{{{exponent:g}}}$"


def _greys() -> Any:
    """From light grey to black, so that the smallest value differs from where there is none."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("greys", ["0.93", "0.0"])


def draw_decay(
    curves: Mapping[str, Decay],
    path: str | Path,
    *,
    state: str = "hidden",
    chunk_lengths: Sequence[int] = (),
    title: str = "",
) -> None:
    """Draw how gradients fall with distance, a curve for each name, on a logarithmic scale.

    A thin line is the fit that the half-life is of, as far as it goes; a thin dotted one stands where truncated
    backpropagation ended in training.

    Args:
        curves: by name.
        path: the picture; its suffix names the format.
        state: what they are of: ``hidden``, or ``cell`` for c where there is one and h elsewhere.
        chunk_lengths: of the truncated backpropagation.
        title: what stands above it.

    Raises:
        UserError: matplotlib is missing.
    """
    figure = figure_of(6.4, 4.0)
    axes = figure.add_subplot()
    styles = ("-", "--", ":", "-.")
    for number, (name, curve) in enumerate(curves.items()):
        shown = (curve.relative >= SMALLEST) & (curve.relative <= LARGEST)
        colour = str(0.0 if len(curves) == 1 else 0.6 * number / (len(curves) - 1))
        fitted = curve.distances[1 : curve.fitted + 1]
        fitted = fitted[shown[fitted]]
        if math.isfinite(curve.rate) and len(fitted):
            middle = np.median(np.log2(curve.relative[fitted]) - fitted * curve.rate)
            line = np.exp2(np.clip(middle + fitted * curve.rate, math.log2(SMALLEST), math.log2(LARGEST)))
            axes.plot(fitted, line, color=colour, linewidth=0.5)
        words = in_words(curve)
        beyond = curve.distances[curve.relative > LARGEST]
        if len(beyond):
            words += f", too large to draw from k = {beyond[0]}"
        axes.plot(
            curve.distances[shown],
            curve.relative[shown],
            color=colour,
            linestyle=styles[number % len(styles)],
            linewidth=1.4,
            label=f"{name}: {words}",
        )
    longest = max(int(curve.distances[-1]) for curve in curves.values())
    for number, length in enumerate(sorted({each for each in chunk_lengths if each <= longest})):
        label = "length of truncated backpropagation" if number == 0 else None
        axes.axvline(length, color="black", linewidth=0.6, linestyle=":", label=label)
    axes.set_yscale("log")
    letter = LETTERS[state]
    label_axes(axes, x="distance k (tokens)", y=f"‖∂J(t)/∂{letter}(t−k)‖ relative to k = 0", title=title)
    axes.legend(frameon=False, fontsize="small")
    save(figure, Path(path))


def draw_jacobians(
    singular_values: Sequence[Floats],
    path: str | Path,
    *,
    state: str = "h",
    remembered: Sequence[Floats] = (),
    gate: str = "",
    opened: Sequence[Floats] = (),
    title: str = "",
) -> None:
    """Draw the singular values of the Jacobians of a layer's state, a line a step: above 1 a direction is stretched.

    Args:
        singular_values: of the whole state's Jacobian at each step, ``[H]``, in an LSTM ``[H + C]``.
        path: the picture; its suffix names the format.
        state: what the whole state is: ``h``, or ``(h, c)``.
        remembered: the same of ∂c(t)/∂c(t−1) of an LSTM, ``[C]`` each.
        gate: the gate that lets the state through as it is, if there is one.
        opened: its values at the same steps, ``[H]`` each.
        title: what stands above it.

    Raises:
        UserError: matplotlib is missing, or there are no Jacobians.
    """
    if not len(singular_values):
        raise UserError("there are no Jacobians to draw: give --jacobians 1 or more, and a text of two tokens or more")
    figure = figure_of(6.4, 4.0)
    axes = figure.add_subplot()
    axes.axhline(1, color="black", linewidth=0.6, linestyle=":")

    def lines(rows: Sequence[Floats], label: str, **style: Any) -> None:
        for number, values in enumerate(rows):
            places = np.arange(1, len(values) + 1)
            label = label if number == 0 else "_"
            axes.plot(places, np.sort(values)[::-1], linewidth=0.8, label=label, **style)

    lines(singular_values, f"∂{state}(t)/∂{state}(t−1), a line a step", color="black")
    lines(remembered, "∂c(t)/∂c(t−1) at the same steps", color="0.45", linestyle="-.")
    lines(opened, f"{gate} gate at the same steps, its units in order", color="0.65", linestyle="--")
    everything = [*singular_values, *remembered]
    largest = max(1.0, *(float(values.max()) for values in everything))
    smallest = min(float(values.min()) for values in everything)
    axes.set_yscale("log")
    axes.set_ylim(max(smallest / 2, largest * 10.0**-SINGULAR_DECADES), largest * 2)
    label_axes(
        axes, x="directions of the state, the most stretched first", y="singular value of the Jacobian", title=title
    )
    axes.legend(frameon=False, fontsize="small")
    save(figure, Path(path))


def draw_contributions(found: Contributions, path: str | Path, *, title: str = "") -> None:
    """Draw the norm of what each step contributes to the gradient of W_h.

    Raises:
        UserError: matplotlib is missing.
    """
    figure = figure_of(6.4, 3.4)
    axes = figure.add_subplot()
    beyond = found.norms > LARGEST
    edges = np.append(found.steps, found.steps[-1] + 1) - 0.5
    axes.stairs(np.where(beyond, 0.0, found.norms), edges, fill=True, color="0.6")
    axes.set_ylim(bottom=0)
    if beyond.any():
        title += f"{', ' if title else ''}{int(beyond.sum())} steps too large to draw"
    label_axes(
        axes,
        x="i, step at which W_h was used (tokens)",
        y="norm of ∂J/∂W_h at step i\n(nats per unit of W_h)",
        title=title,
    )
    save(figure, Path(path))


def draw_clipping(found: Clipping, path: str | Path, *, title: str = "") -> None:
    """Draw the norms of gradients in training, before and after clipping by norm.

    Raises:
        UserError: matplotlib is missing, or nothing was logged.
    """
    if not len(found.steps):
        raise UserError("the log has no norms of gradients: the run was shorter than --log-every steps")
    figure = figure_of(6.4, 4.0)
    from matplotlib.ticker import LogLocator, NullFormatter

    axes = figure.add_subplot()
    axes.plot(found.steps, found.before, color="0.6", linewidth=1, label="before clipping")
    after = "after clipping" if found.clip_value is None else "after clipping by norm alone, at most"
    axes.plot(found.steps, found.after, color="black", linewidth=1, label=after)
    if found.clip_norm is not None:
        axes.axhline(found.clip_norm, color="black", linewidth=0.6, linestyle=":", label=f"limit {found.clip_norm:g}")
    axes.set_yscale("log")
    drawn = [*found.before, *found.after, *([] if found.clip_norm is None else [found.clip_norm])]
    tight = max(drawn) < 10 * min(drawn)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 4, 5, 6, 7, 8, 9) if tight else (1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    label_axes(axes, x="training step", y="norm of the gradient (nats per token)", title=title)
    axes.legend(frameon=False, fontsize="small")
    save(figure, Path(path))
