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
DECADES = 12  # that a heat map shows, from its largest value down
SINGULAR_DECADES = 6  # likewise, of singular values


def draw_map(map: GradientMap, layer: int, path: Path, *, title: str = "") -> None:
    """Draw the norms of all pairs as a heat map on a logarithmic scale of greys: black is large.

    Args:
        map: the norms.
        layer: whose.
        path: the picture; its suffix names the format.
        title: what stands above it.

    Raises:
        UserError: matplotlib is missing, or all gradients are 0.
    """
    norms = np.ma.masked_less_equal(map.hidden[layer].astype(np.float64), 0)
    if norms.count() == 0:
        raise UserError("all gradients are 0: there is nothing to draw")
    figure = figure_of(6.0, 5.0)
    from matplotlib.colors import LogNorm

    axes = figure.add_subplot()
    largest = float(norms.max())
    smallest = max(float(norms.min()), largest * 10.0**-DECADES)
    scale = LogNorm(smallest if smallest < largest else largest / 10, largest)
    steps, count = map.steps, norms.shape[1]
    half = (steps[1] - steps[0]) / 2 if len(steps) > 1 else 0.5
    extent = (-0.5, count - 0.5, steps[-1] + half, steps[0] - half)
    picture = axes.imshow(
        norms, cmap="gray_r", norm=scale, extent=extent, aspect="auto", interpolation="nearest", origin="upper"
    )
    label_axes(axes, x="i, step of the state h(i) (tokens)", y="t, step of the loss J(t) (tokens)", title=title)
    bar = figure.colorbar(picture, ax=axes, extend="min" if float(norms.min()) < smallest else "neither")
    bar.set_label("‖∂J(t)/∂h(i)‖ (nats per unit of h)")
    bar.outline.set_visible(False)
    save(figure, path)


def draw_decay(curves: Mapping[str, Decay], path: Path, *, title: str = "") -> None:
    """Draw how gradients fall with distance, a curve for each name, on a logarithmic scale.

    A thin line is the fit that the half-life is of, as far as it goes.

    Raises:
        UserError: matplotlib is missing.
    """
    figure = figure_of(6.4, 4.0)
    axes = figure.add_subplot()
    styles = ("-", "--", ":", "-.")
    for number, (name, curve) in enumerate(curves.items()):
        shown = curve.relative > 0
        colour = str(0.0 if len(curves) == 1 else 0.6 * number / (len(curves) - 1))
        if math.isfinite(curve.half_life):
            fitted = curve.distances[1 : curve.fitted + 1]
            logs = np.log2(curve.relative[fitted], where=shown[fitted], out=np.full(len(fitted), np.nan))
            middle = np.nanmedian(logs + fitted / curve.half_life)
            axes.plot(fitted, 2 ** (middle - fitted / curve.half_life), color=colour, linewidth=0.5)
        axes.plot(
            curve.distances[shown],
            curve.relative[shown],
            color=colour,
            linestyle=styles[number % len(styles)],
            linewidth=1.4,
            label=f"{name}: {in_words(curve.half_life)}",
        )
    axes.set_yscale("log")
    label_axes(axes, x="distance k (tokens)", y="‖∂J(t)/∂h(t−k)‖ relative to k = 0", title=title)
    axes.legend(frameon=False, fontsize="small")
    save(figure, path)


def draw_jacobians(
    singular_values: Sequence[Floats], path: Path, *, gate: str = "", opened: Sequence[Floats] = (), title: str = ""
) -> None:
    """Draw the singular values of Jacobians ∂h(t)/∂h(t−1), a line for each step: above 1 a direction is stretched.

    Args:
        singular_values: of each step, ``[H]``.
        path: the picture; its suffix names the format.
        gate: the gate that lets the state through as it is, if there is one.
        opened: its values at the same steps, ``[H]`` each.
        title: what stands above it.

    Raises:
        UserError: matplotlib is missing, or there are no Jacobians.
    """
    if not len(singular_values):
        raise UserError("there are no Jacobians to draw: give --jacobians 1 or more")
    figure = figure_of(6.4, 4.0)
    axes = figure.add_subplot()
    axes.axhline(1, color="black", linewidth=0.6, linestyle=":")
    for number, values in enumerate(singular_values):
        name = "singular values, a line a step" if number == 0 else None
        axes.plot(np.arange(1, len(values) + 1), np.sort(values)[::-1], color="black", linewidth=0.8, label=name)
    for number, values in enumerate(opened):
        name = f"{gate} gate at these steps, its units in order" if number == 0 else None
        places = np.arange(1, len(values) + 1)
        axes.plot(places, np.sort(values)[::-1], color="0.6", linewidth=0.8, linestyle="--", label=name)
    largest = max(1.0, *(float(values.max()) for values in singular_values))
    smallest = min(float(values.min()) for values in singular_values)
    axes.set_yscale("log")
    axes.set_ylim(max(smallest / 2, largest * 10.0**-SINGULAR_DECADES), largest * 2)
    label_axes(
        axes, x="directions of the state, the most stretched first", y="singular value of ∂h(t)/∂h(t−1)", title=title
    )
    axes.legend(frameon=False, fontsize="small")
    save(figure, path)


def draw_contributions(found: Contributions, path: Path, *, title: str = "") -> None:
    """Draw the norm of what each step contributes to the gradient of W_h.

    Raises:
        UserError: matplotlib is missing.
    """
    figure = figure_of(6.4, 3.4)
    axes = figure.add_subplot()
    axes.fill_between(np.arange(len(found.norms)), found.norms, step="mid", color="0.6", linewidth=0)
    axes.set_ylim(bottom=0)
    label_axes(
        axes,
        x="i, step at which W_h was used (tokens)",
        y="norm of ∂J/∂W_h at step i\n(nats per unit of W_h)",
        title=title,
    )
    save(figure, path)


def draw_clipping(found: Clipping, path: Path, *, title: str = "") -> None:
    """Draw the norms of gradients in training, before and after clipping.

    Raises:
        UserError: matplotlib is missing, or nothing was logged.
    """
    if not len(found.steps):
        raise UserError("the log has no norms of gradients: the run was shorter than --log-every steps")
    figure = figure_of(6.4, 4.0)
    from matplotlib.ticker import LogLocator, NullFormatter

    axes = figure.add_subplot()
    axes.plot(found.steps, found.before, color="0.6", linewidth=1, label="before clipping")
    axes.plot(found.steps, found.after, color="black", linewidth=1, label="after clipping")
    if found.clip_norm is not None:
        axes.axhline(found.clip_norm, color="black", linewidth=0.6, linestyle=":", label=f"limit {found.clip_norm:g}")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    label_axes(axes, x="training step", y="norm of the gradient (nats per token)", title=title)
    axes.legend(frameon=False, fontsize="small")
    save(figure, path)
