"""What clipping did to gradients in training, from the log of the run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra.checkpoint import SETTINGS, read_log, read_settings
from recurra.config import UserError
from recurra.optimization import norm_limit

__all__ = ["Clipping", "read_clipping"]

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Clipping:
    """The joint norm of all gradients at the training steps that the log has (Pascanu et al. 2013, algorithm 1).

    Attributes:
        clip_norm: the largest norm that is let through; None for no clipping by norm.
        clip_value: the largest entry; None for no clipping by value. Entries are cut off before the norm is clipped,
            and the log does not say what that left: ``factors`` and ``after`` are then those of clipping by norm alone.
        steps: ``[S]``.
        before: norms before clipping, ``[S]``, in nats per token and unit of the weights.
    """

    clip_norm: float | None
    clip_value: float | None
    steps: NDArray[np.int64]
    before: Floats

    @property
    def factors(self) -> Floats:
        """What clipping by norm multiplied each gradient by, ``[S]``: as :func:`clip_gradients` has it."""
        limit = math.inf if self.clip_norm is None else self.clip_norm
        factors: Floats = np.minimum(1.0, limit / (self.before + 1e-6))
        return factors

    @property
    def after(self) -> Floats:
        """Norms after clipping by norm, ``[S]``."""
        return self.before * self.factors

    @property
    def acted(self) -> NDArray[np.bool_]:
        """At which of the steps the norm was above the limit, ``[S]``; with ``clip_value`` it acted at no others."""
        return self.before > (math.inf if self.clip_norm is None else self.clip_norm)


def read_clipping(directory: str | Path) -> Clipping:
    """Read what the training of a model of any kind logged of its gradients.

    Returns:
        The steps that were logged with a norm: none where a run was shorter than ``log_every`` steps, or logged none.

    Raises:
        UserError: no model, one that was not trained by gradient, or a log that is missing or damaged.
    """
    directory = Path(directory)
    training = read_settings(directory).get("training")
    if training is None:
        raise UserError(f"{directory}: was not trained by gradient: there is nothing to clip")
    log = directory / "log.jsonl"
    lines = read_log(log)
    if lines is None:
        raise UserError(f"{log}: missing; it is written by training")
    try:
        normed = [line for line in lines if line.get("gradient_norm") is not None]
        found = [(int(line["step"]), float(line["gradient_norm"])) for line in normed]
        limits = norm_limit(training["clip_norm"], training["optimizer"]), float(training["clip_value"]) or None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{log}: damaged, or {SETTINGS} is ({error}); train again") from error
    steps, norms = np.array([step for step, _ in found], np.int64), np.array([norm for _, norm in found], float)
    return Clipping(*limits, steps, norms)
