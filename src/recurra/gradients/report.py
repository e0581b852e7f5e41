"""Everything that there is to say of one text and one layer: as numbers, and as a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from recurra.gradients.clipping import Clipping
from recurra.gradients.contributions import Contributions, weight_contributions
from recurra.gradients.jacobians import Bound, Growth, Verdict, growth, recurrent_bounds, split, state_jacobian, verdict
from recurra.gradients.pairs import Decay, GradientMap, decay, gradient_map, in_words
from recurra.gradients.unrolled import Unrolled, norm_of
from recurra.nn.cells import LSTMState

__all__ = ["JACOBIANS", "GradientReport", "StepJacobian", "measure"]

Floats = NDArray[np.floating[Any]]
JACOBIANS = 8  # steps whose Jacobians are taken apart: singular values take their time
GATES = {"rnn": "", "gru": "update", "lstm": "forget"}  # that the state passes
DISTANCES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # that are listed
SHARE = 0.9  # of what is said to come from the last steps
NAMES = {"hidden": "h", "cell": "c"}


class StepJacobian(NamedTuple):
    """The Jacobian of a layer's state at one step, and for gated cells how it is split: :func:`split`.

    Attributes:
        step: t.
        singular_values: of the whole state's, the largest first, ``[H]``, of an LSTM's (h, c) ``[H + C]``.
        gate: the forget gate of an LSTM, the update gate of a GRU, ``[C]`` or ``[H]``; None where there is no split.
        rest: the largest singular value of what goes through weights.
        remembered: the singular values of both together: ∂c(t)/∂c(t−1) of an LSTM, those of the whole in a GRU.
    """

    step: int
    singular_values: Floats
    gate: Floats | None = None
    rest: float | None = None
    remembered: Floats | None = None


@dataclass(frozen=True, kw_only=True)
class GradientReport:
    """What was found of one layer over one text.

    Attributes:
        name: of the model.
        cell: ``rnn``, ``lstm`` or ``gru``.
        hidden_sizes: H of every layer of the stack.
        layer: the layer that all below is of, an index from 0.
        losses: J(t) in nats, ``[T]``.
        map: all pairs; None where it was dropped (:meth:`without_map`).
        decays: of ``hidden``; in an LSTM without zoneout of ``cell`` too.
        bounds: of W_h.
        jacobians: of some steps.
        verdict: on the layer's own recurrence.
        growth: of the product of its Jacobians.
        target: t of the loss J(t) that ``contributions`` are of; None for the sum of all.
        contributions: the gradient of W_h by step.
        chunk_length: steps that gradients went back through in training, at most; None if they were not cut.
        clipping: from the log of the training run; None if there is none.
        log_error: why the log cannot be used.
    """

    name: str
    cell: str
    hidden_sizes: tuple[int, ...]
    layer: int
    losses: Floats
    map: GradientMap | None
    decays: dict[str, Decay]
    bounds: list[Bound]
    jacobians: list[StepJacobian]
    verdict: Verdict
    growth: Growth
    target: int | None
    contributions: Contributions
    chunk_length: int | None = None
    clipping: Clipping | None = None
    log_error: str = ""

    @property
    def is_highest(self) -> bool:
        """Whether no layer is above this one, so that its own recurrence is all that its gradient goes through."""
        return self.layer == len(self.hidden_sizes) - 1

    @property
    def state(self) -> str:
        """The whole state, as equations have it."""
        return "(h, c)" if self.cell == "lstm" else "h"

    @property
    def gate(self) -> str:
        """The gate that the state passes, if there is one."""
        return GATES[self.cell]

    def decay(self, state: str = "hidden") -> Decay:
        """How gradients fall for ``hidden`` or ``cell``; for ``hidden`` where there is no c."""
        return self.decays.get(state, self.decays["hidden"])

    def without_map(self) -> Self:
        """The same without all pairs, which take memory with the square of the length."""
        return replace(self, map=None)

    def to_mapping(self) -> dict[str, Any]:
        """All numbers, as JSON has them; layers count from 1."""
        found = self.map
        pairs = None
        if found is not None:
            pairs = {
                "t": found.steps.tolist(),
                "hidden": found.hidden[self.layer].tolist(),
                "cell": None if found.cell is None else found.cell[self.layer].tolist(),
                "starts": list(found.starts),
            }
        parts = self.contributions
        return {
            "name": self.name,
            "cell": self.cell,
            "hidden_sizes": list(self.hidden_sizes),
            "layer": self.layer + 1,
            "losses": self.losses.tolist(),
            "pairs": pairs,
            "decay": {state: _decay_mapping(curve) for state, curve in self.decays.items()},
            "recurrent_weights": [each._asdict() for each in self.bounds],
            "jacobians": [self._jacobian_mapping(each) for each in self.jacobians],
            "verdict": {"of": f"layer {self.layer + 1}'s own recurrence", **self.verdict._asdict()},
            "growth": {"log2_per_token": self.growth.rate, "steps": self.growth.steps},
            "weight_gradient": {
                "target": self.target,
                "norm": norm_of(parts.total),
                "steps": parts.steps.tolist(),
                "norms": parts.norms.tolist(),
                "shares": parts.shares.tolist(),
            },
            "chunk_length": self.chunk_length,
            "clipping": None if self.clipping is None else _clipping_mapping(self.clipping),
        }

    def _jacobian_mapping(self, found: StepJacobian) -> dict[str, Any]:
        mapping: dict[str, Any] = {
            "step": found.step,
            "of": self.state,
            "singular_values": found.singular_values.tolist(),
        }
        if found.gate is not None and found.remembered is not None:
            mapping["split"] = {
                "of": "c" if self.cell == "lstm" else "h",
                "gate": found.gate.tolist(),
                "rest_norm": found.rest,
                "singular_values": found.remembered.tolist(),
            }
        return mapping

    def text(self) -> str:
        """What there is to say, for people."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        layers, number = len(self.hidden_sizes), self.layer + 1
        sizes = sorted(set(self.hidden_sizes))
        size = str(sizes[0]) if len(sizes) == 1 else " ".join(map(str, self.hidden_sizes))
        many = f"{layers} layers" if layers > 1 else "1 layer"
        yield f"{self.name}: {self.cell.upper()}, {many} of {size} units, {len(self.losses)} tokens"
        loss = float(self.losses.mean())
        shown = f"{loss:.3f}" if abs(loss) < 1e6 else f"{loss:.4g}"  # layers that explode have losses of any length
        yield f"  loss {shown} nats per token; what follows is of layer {number}"
        yield ""
        yield from self._decay_lines()
        yield ""
        yield "W_h"
        for bound in self.bounds:
            yield f"  {_bound_text(bound)}"
        yield from self._jacobian_lines()
        yield f"layer {number}'s own recurrence"
        if not math.isnan(self.growth.rate):
            times = f"{2**self.growth.rate:.3g} times as long per token (log2 {self.growth.rate:.3g})"
            yield f"  gradients through it become {times}, the mean over {self.growth.steps} tokens"
        yield f"  verdict: {self.verdict.in_words()}"
        if not self.is_highest:
            yield "  gradients flow through the layers above as well, of which this says nothing"
        yield ""
        yield from self._weight_lines()
        if self.log_error:
            yield ""
            yield f"Gradients in training: {self.log_error}"
        if self.clipping is not None:
            yield ""
            yield from _clipping_lines(self.clipping)

    def _decay_lines(self) -> Iterator[str]:
        first = self.decays["hidden"]
        shown = [k for k in DISTANCES if k < len(first.distances)]
        for state, curve in self.decays.items():
            letter = NAMES[state]
            yield f"‖∂J(t)/∂{letter}(t−k)‖ relative to k = 0, mean over t"
            yield "  k        " + "".join(f"{k:>10}" for k in shown)
            yield "  relative " + "".join(f"{curve.relative[k]:>10.2g}" for k in shown)
            yield f"  {in_words(curve)} (of {letter}; k from 1 to {curve.fitted})"
            if curve.overflow is not None:
                yield f"  larger than floats can be from k = {curve.overflow} on"
        if self.chunk_length is not None:
            yield f"  in training, gradients went back fewer than {self.chunk_length} tokens (--chunk-length)"

    def _jacobian_lines(self) -> Iterator[str]:
        if not self.jacobians:
            return
        whole = np.array([each.singular_values for each in self.jacobians])
        yield f"∂{self.state}(t)/∂{self.state}(t−1), at {len(whole)} of {self.verdict.steps} steps"
        yield f"  largest singular value {whole[:, 0].min():.3g} to {whole[:, 0].max():.3g}"
        yield f"  smallest singular value {whole[:, -1].min():.3g} to {whole[:, -1].max():.3g}"
        gates = np.array([each.gate for each in self.jacobians if each.gate is not None])
        if not len(gates):
            return
        letter = "c" if self.cell == "lstm" else "h"
        rest = np.array([each.rest for each in self.jacobians])
        together = np.array([each.remembered for each in self.jacobians])
        yield f"∂{letter}(t)/∂{letter}(t−1) = diag({self.gate}) + rest, means over the same steps"
        yield f"  {self.gate} gate {gates.mean():.3g}; its largest unit {gates.max(1).mean():.3g}"
        yield f"  rest: largest singular value {rest.mean():.3g}; of both together {together[:, 0].mean():.3g}"

    def _weight_lines(self) -> Iterator[str]:
        found = self.contributions
        what = "the sum of all losses" if self.target is None else f"J({self.target})"
        total, norm = found.norms.sum(), norm_of(found.total)
        shown = f"norm {norm:.4g}" if math.isfinite(norm) else "larger than floats can be"
        yield f"∂J/∂W_h of {what}: {shown}, by the step at which W_h was used"
        if not total:
            yield "  nothing comes from any step"
        elif not math.isfinite(total):
            far = int(np.flatnonzero(~np.isfinite(found.norms))[-1])
            yield f"  what steps up to {found.steps[far]} contribute is larger than floats can be"
        elif self.target is None:
            largest = int(found.norms.argmax())
            yield f"  the largest part, norm {found.norms[largest]:.3g}, is of step {found.steps[largest]}"
        else:
            back = int(np.argmax(np.cumsum(found.norms[::-1]) >= SHARE * total)) + 1
            yield f"  the last {back} steps have {100 * SHARE:.0f} % of the sum of norms"


def measure(
    unrolled: Unrolled,
    layer: int = -1,
    *,
    name: str = "",
    stride: int = 1,
    target: int | None = None,
    jacobians: int = JACOBIANS,
    chunk_length: int | None = None,
    clipping: Clipping | None = None,
    log_error: str = "",
    progress: Callable[[str], None] | None = None,
) -> GradientReport:
    """Find all that there is to say of one layer over a text.

    Args:
        unrolled: the text that was read.
        layer: an index, from 0 or from the end.
        name: what the model is called.
        stride: see :func:`gradient_map`.
        target: see :func:`weight_contributions`.
        jacobians: steps whose Jacobians are taken, evenly over those that have a step before them; 0 for none.
        chunk_length: of the truncated backpropagation in training, to be told beside.
        clipping: from :func:`read_clipping`, likewise.
        log_error: why there is none.
        progress: told in words what is at hand.

    Raises:
        UserError: a stride longer than the text, or no such step.
    """
    stack, layer = unrolled.stack, range(unrolled.stack.num_layers)[layer]
    say = progress or (lambda _: None)
    # What can be refused is asked for first.
    say("gradient of W_h")
    contributions = weight_contributions(unrolled, layer, target=target)
    found = gradient_map(unrolled, stride=stride, progress=lambda done, all: say(f"pairs, {done} of {all} steps"))
    say("singular values of W_h")
    bounds = recurrent_bounds(stack, layer)
    steps, taken = unrolled.continued, []
    places = np.unique(np.linspace(0, len(steps) - 1, min(jacobians, len(steps))).round().astype(int))
    for number, place in enumerate(places.tolist(), 1):
        say(f"Jacobian {number} of {len(places)}")
        taken.append(_jacobian(unrolled, steps[place], layer))
    say("growth of the product of Jacobians")
    # With zoneout h(t) is not made of the c(t) that goes on: J(t) does not depend on it, and nothing is relative to 0.
    states = ("hidden",) if found.cell is None or stack.has_zoneout else ("hidden", "cell")
    return GradientReport(
        name=name,
        cell=type(stack).__name__.lower(),
        hidden_sizes=stack.hidden_sizes,
        layer=layer,
        losses=unrolled.losses.cpu().numpy(),
        map=found,
        decays={state: decay(found, layer, state) for state in states},
        bounds=bounds,
        jacobians=taken,
        verdict=verdict(bounds, [each.singular_values for each in taken], len(steps)),
        growth=growth(unrolled, layer),
        target=target,
        contributions=contributions,
        chunk_length=chunk_length,
        clipping=clipping,
        log_error=log_error,
    )


def _jacobian(unrolled: Unrolled, step: int, layer: int) -> StepJacobian:
    stack = unrolled.stack
    values = _singular_values(state_jacobian(unrolled, step, layer))
    if stack.gate_count == 1 or stack.has_zoneout:
        return StepJacobian(step, values)
    parts = split(unrolled, step, layer)
    together = _singular_values(parts.total) if stack.state_type is LSTMState else values
    rest = float(torch.linalg.matrix_norm(parts.rest.cpu(), 2))
    return StepJacobian(step, values, parts.gate.cpu().numpy(), rest, together)


def _singular_values(matrix: torch.Tensor) -> Floats:
    values: Floats = torch.linalg.svdvals(matrix.cpu()).numpy()
    return values


def _decay_mapping(curve: Decay) -> dict[str, Any]:
    return {
        "distances": curve.distances.tolist(),
        "relative": curve.relative.tolist(),
        "counts": curve.counts.tolist(),
        "rate": curve.rate,  # log2 per token
        "half_life": curve.half_life,
        "halved": curve.halved,
        "straightness": curve.straightness,
        "overflow": curve.overflow,
        "fitted": curve.fitted,
        "in_words": in_words(curve),
    }


def _bound_text(bound: Bound) -> str:
    text = f"{bound.gate + ': ' if bound.gate else ''}largest singular value {bound.largest_singular:.4g}"
    if bound.spectral_radius is not None:
        text += f", spectral radius {bound.spectral_radius:.4g}"
    if bound.gamma is not None:
        relation = "below" if bound.must_vanish else "not below"
        means = "enough for gradients to vanish" if bound.must_vanish else "so this does not tell"
        text += f"; {relation} 1/gamma = {1 / bound.gamma:g}, {means} (Pascanu et al. 2013)"
    return text


def _clipping_mapping(found: Clipping) -> dict[str, Any]:
    return {
        "clip_norm": found.clip_norm,
        "clip_value": found.clip_value,
        "steps": found.steps.tolist(),
        "before": found.before.tolist(),
        "after": found.after.tolist(),
    }


def _clipping_lines(found: Clipping) -> Iterator[str]:
    many = len(found.steps)
    if not many:
        yield "Gradients in training: the log has no norms; the run was shorter than --log-every steps"
        return
    limit = "no limit" if found.clip_norm is None else f"limit {found.clip_norm:g}"
    yield f"Gradients in training, at the {many:,} steps in the log: {limit}"
    yield f"  norm before clipping: median {np.median(found.before):.3g}, largest {found.before.max():.3g}"
    most = ""
    if found.clip_value is not None:
        yield f"  entries were cut off at {found.clip_value:g} first; the log does not tell what that left"
        most = " at most"
    if found.clip_norm is None:
        return
    acted = found.acted
    yield f"  clipping by norm acted at {int(acted.sum()):,} of them{most}, {100 * acted.mean():.1f} %"
    if acted.any():
        factors = found.before[acted] / found.after[acted]
        shorter = f"{np.median(factors):.3g} times shorter{most} (median), {factors.max():.3g} at most"
        yield f"  there it made gradients {shorter}"
