"""Which units track a property of the text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recurra.config import UserError
from recurra.text.corpora import open_text
from recurra.tracing.reading import Traced

__all__ = ["Association", "Tracking", "read_labels", "track"]

Numbers = NDArray[np.float64]

SHIFTS = 200  # of the labels, to see what chance finds
MOST_CATEGORIES = 100


class Association(NamedTuple):
    """How much a unit has to do with the labels."""

    layer: int
    gate: str
    unit: int
    score: float


@dataclass(frozen=True)
class Tracking:
    """The units that track a property best.

    Attributes:
        measure: ``correlation`` (Pearson's r) where labels are numbers; ``point-biserial`` where there are two
            categories: r with the second of them as 1 and the first as 0; ``eta squared``, the part of a unit's
            variance that lies between categories, where there are more.
        categories: in order; none where labels are numbers.
        best: of each layer and gate the best units, the best first; by the size of the score.
        chance: of each layer and gate, the score that the best unit has in 95 of 100 cases at most where labels are
            shifted along the text (around its end), so that they say nothing: anything near it means nothing either.
            Labels that come again at equal distances are shifted onto themselves: their chance is too high.
            NaN for a text of fewer than 20 tokens.
    """

    measure: str
    categories: tuple[str, ...]
    best: list[Association]
    chance: dict[tuple[int, str], float]

    def units(self, layer: int, gate: str) -> list[int]:
        """The best units of a layer and gate."""
        return [each.unit for each in self.best if (each.layer, each.gate) == (layer, gate)]


def read_labels(source: str) -> list[str]:
    """Labels of tokens, between white space of any kind, from whatever a text is read from.

    Raises:
        UserError: it is not there, or empty.
    """
    return [label for line in open_text([source]).lines() for label in line.split()]


def track(traced: Traced, labels: Sequence[str | float], *, count: int = 5) -> Tracking:
    """Find the units whose values go with labels, in every layer and gate.

    Where all labels are numbers they count as such, else as names of categories. A unit that never moves tracks
    nothing: its score is 0.

    Args:
        traced: of a text of T tokens.
        labels: T of them; label t goes with row t of the arrays, what the model has after token t.
        count: units to name, of each layer and gate.

    Raises:
        UserError: labels of another length than the text, all the same, not finite, or of too many categories.
    """
    if len(labels) != len(traced.ids):
        raise UserError(
            f"labels: expected one for each of the text's {len(traced.ids)} tokens, line ends included,"
            f" got {len(labels)}"
        )
    if len(set(labels)) < 2:
        raise UserError(f"labels: all {len(labels)} are {labels[0]!r}: there is nothing to track")
    categories, target = _target(labels)
    measure = "eta squared" if len(categories) > 2 else "point-biserial" if categories else "correlation"
    total = len(labels)
    shifts = sorted({round(total * k / (SHIFTS + 1)) for k in range(1, SHIFTS + 1)} - {0, total})
    best: list[Association] = []
    chance = {}
    for number, layer in enumerate(traced.layers, 1):
        for gate, values in layer.items():
            scaled = _scaled(values)
            scores = _scores(scaled, target)
            order = np.argsort(-np.abs(scores), kind="stable")[:count]
            best += [Association(number, gate, int(unit), float(scores[unit])) for unit in order]
            highest = [float(np.abs(_scores(scaled, np.roll(target, shift, 1))).max()) for shift in shifts]
            chance[number, gate] = float(np.quantile(highest, 0.95)) if total >= 20 else math.nan
    return Tracking(measure, categories, best, chance)


def _target(labels: Sequence[str | float]) -> tuple[tuple[str, ...], Numbers]:
    """The K categories, none of numbers; and labels as a row ``[1, T]``, or as ``[K, T]`` of 0 and 1 where K > 2."""
    try:
        numbers = np.array([[float(label) for label in labels]])
    except ValueError:
        names = [str(label) for label in labels if not _is_number(label)]
        if len(names) < len(labels) / 10:
            raise UserError(
                f"labels: expected numbers or names of categories, got {len(labels) - len(names)} numbers and"
                f" {len(names)} of another kind, such as {names[0]!r}"
            ) from None
        categories = tuple(sorted({str(label) for label in labels}))
        if len(categories) > MOST_CATEGORIES:
            raise UserError(
                f"labels: expected numbers, or names of at most {MOST_CATEGORIES} categories, got {len(categories)};"
                f" {names[0]!r} is a name"
            ) from None
        places = {name: place for place, name in enumerate(categories)}
        codes = np.array([places[str(label)] for label in labels])
        return categories, np.eye(len(categories))[:, codes] if len(categories) > 2 else codes[None].astype(np.float64)
    if not np.isfinite(numbers).all():
        wrong = labels[int(np.flatnonzero(~np.isfinite(numbers))[0])]
        raise UserError(f"labels: expected finite numbers or names of categories, got {wrong!r}")
    return (), numbers


def _is_number(label: str | float) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True


def _scaled(values: NDArray[Any]) -> Numbers:
    """Columns with mean 0 and mean square 1; zeros where nothing moves."""
    scaled: Numbers = values.astype(np.float64)
    scaled -= scaled.mean(0)
    deviation = np.sqrt(np.einsum("tu,tu->u", scaled, scaled) / len(scaled))
    # The mean of equal numbers may be off by their last digit.
    still = deviation <= 1e-12 * np.abs(values).max(0, initial=0)
    scaled /= np.where(still, np.inf, deviation)
    return scaled


def _scores(scaled: Numbers, target: Numbers) -> Numbers:
    """How columns of ``[T, units]`` go with a row of numbers ``[1, T]``, or with categories ``[K, T]`` of 0 and 1."""
    result: Numbers
    if len(target) == 1:
        result = (_scaled(target.T).T @ scaled)[0] / len(scaled)
    else:  # the variance of each column is 1
        result = ((target @ scaled) ** 2 / target.sum(1)[:, None]).sum(0) / len(scaled)
    return result
