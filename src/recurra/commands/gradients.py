"""How far back gradients reach: in trained models, and in fresh layers."""

from __future__ import annotations

import argparse
import bisect
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recurra.commands.command import Command, positive, print_json
from recurra.commands.predict import is_predictor, refuse
from recurra.config import ArgumentParser, UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from recurra.gradients import Bound, Clipping, Contributions, Decay, GradientMap, Unrolled
    from recurra.language_model import LanguageModel
    from recurra.text.batches import TokenStream

__all__ = ["COMMANDS"]

LENGTH = 200
JACOBIANS = 8  # steps whose Jacobians are taken apart: singular values take their time
DISTANCES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # that are listed
SHARE = 0.9  # of what is said to come from the last steps
PICTURES = ("map", "decay", "jacobians", "weights", "clipping")
SAID = ("vanish", "explode")  # verdicts that pictures repeat
FRESH = ("hidden_size", "layers", "seed", "nonlinearity", "recurrent_scale")  # flags for fresh layers alone
READ = ("encoding", "errors")  # flags for texts alone


def _flags(parser: ArgumentParser) -> None:
    parser.add_argument("directory", nargs="?", metavar="DIR", help="folder of a recurrent language model")
    parser.add_argument(
        "text",
        nargs="*",
        metavar="TEXT",
        help="file, folder, glob, .gz, - or CORPUS:SPLIT (default: what the model was validated on)",
    )
    parser.add_argument("--compare", action="append", metavar="DIR", help="another model beside it; may be repeated")
    parser.add_argument("--length", type=positive, metavar="N", help=f"tokens from the beginning (default: {LENGTH})")
    parser.add_argument("--layer", type=positive, metavar="N", help="from 1, which reads the words (default: the last)")
    parser.add_argument("--stride", type=positive, default=1, metavar="N", help="follow every Nth loss only")
    parser.add_argument(
        "--target", type=int, metavar="T", help="split ∂J(T)/∂W_h by step, from 0 (default: of the sum of all losses)"
    )
    parser.add_argument(
        "--jacobians",
        type=int,
        default=JACOBIANS,
        metavar="N",
        help=f"steps whose Jacobians are taken apart (default: {JACOBIANS}; 0 for none)",
    )
    parser.add_argument(
        "--precision",
        choices=("float64", "float32"),
        default="float64",
        help="float32 is faster, and is 0 where gradients have all but vanished (default: float64)",
    )
    parser.add_argument("--encoding", metavar="TEXT", help="of the text (default: utf-8)")
    parser.add_argument(
        "--errors", choices=("strict", "replace", "ignore"), help="what is done about bytes that are no text"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="draw a picture: .png, .svg or .pdf")
    parser.add_argument(
        "--picture", choices=PICTURES, help="which one (default: map; decay where there are several models)"
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    group = parser.add_argument_group("fresh layers that read noise, in place of DIR")
    group.add_argument("--cell", metavar="A,B,...", help="some of rnn, lstm and gru")
    group.add_argument("--hidden-size", type=positive, metavar="N", help="units of a layer (default: 128)")
    group.add_argument("--layers", type=positive, metavar="N", help="of the stack (default: 1)")
    group.add_argument("--seed", type=int, metavar="N", help="of weights and noise (default: 1)")
    group.add_argument("--nonlinearity", choices=("tanh", "relu", "sigmoid"), help="of the rnn (default: tanh)")
    group.add_argument("--recurrent-scale", type=float, metavar="X", help="multiply W_h by it (default: 1)")


def _run(arguments: argparse.Namespace) -> int:
    from recurra.gradients import find_layer

    _check(arguments)
    subjects = list(_fresh(arguments) if arguments.cell else _trained(arguments))
    for _, unrolled, _ in subjects:
        find_layer(unrolled, arguments.layer)  # a mistake is told before anything takes time
    found = [_Found(name, unrolled, folder, arguments) for name, unrolled, folder in subjects]
    if arguments.output:
        _draw(found, arguments)
    if arguments.json:
        print_json([each.to_mapping() for each in found])
    else:
        print("\n\n".join("\n".join(each.lines()) for each in found))
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse flags that do not go together."""
    if not (arguments.directory or arguments.cell):
        raise UserError("expected the folder of a recurrent language model, or --cell for fresh layers")
    if arguments.directory and arguments.cell:
        raise UserError("give either the folder of a model or --cell for fresh layers, not both")
    if arguments.cell:
        refuse(arguments, ("compare", *READ), "fresh layer")
    else:
        refuse(arguments, FRESH, "trained model")
    if arguments.picture and not arguments.output:
        raise UserError(f"--picture {arguments.picture}: give -o FILE too, where it is to go")
    many = len(arguments.cell.split(",")) if arguments.cell else 1 + len(arguments.compare or ())
    if many > 1 and arguments.picture not in (None, "decay"):
        raise UserError(f"--picture {arguments.picture}: shows one model, got {many}; give one, or draw decay")
    if arguments.jacobians < 0:
        raise UserError(f"--jacobians: expected 0 or more steps, got {arguments.jacobians}")


def _check_size(layers: int, steps: int, is_lstm: bool, arguments: argparse.Namespace) -> None:
    """Refuse more pairs of steps than there is memory for."""
    from recurra.gradients import check_size
    from recurra.planning import available_memory

    itemsize = 8 if arguments.precision == "float64" else 4
    check_size(layers, steps, arguments.stride, available_memory(), itemsize=itemsize, parts=1 + is_lstm)


def _fresh(arguments: argparse.Namespace) -> Iterator[tuple[str, Unrolled, Path | None]]:
    import torch

    from recurra.gradients import fresh

    given = {name: value for name in FRESH if (value := getattr(arguments, name)) is not None}
    for cell in arguments.cell.split(","):
        dtype, length = getattr(torch, arguments.precision), arguments.length or LENGTH
        _check_size(arguments.layers or 1, length, cell == "lstm", arguments)
        yield cell, fresh(cell, length=length, dtype=dtype, **given), None


def _trained(arguments: argparse.Namespace) -> Iterator[tuple[str, Unrolled, Path | None]]:
    from recurra.evaluation import row_starts
    from recurra.gradients import unroll_model
    from recurra.language_model import load
    from recurra.models.recurrent_lm import RecurrentLM

    for directory in (arguments.directory, *(arguments.compare or ())):
        if is_predictor(directory):
            raise UserError(f"{directory}: gradients through time are of recurrent language models (train lm)")
        lm = load(directory, device="cpu")
        length = arguments.length or LENGTH
        model = lm.model
        if not isinstance(model, RecurrentLM):
            raise UserError(
                f"{directory}: a model of kind {lm.kind!r} has no gradients through time: give a recurrent language"
                " model (train lm)"
            )
        if arguments.precision == "float64":
            model.double()
        stream = _stream(lm, directory, arguments, length)
        starts = row_starts(model.settings.reset, stream.document_starts, stream.line_starts)
        tokens = stream.tokens[:length]
        _check_size(model.recurrent.num_layers, len(tokens), model.settings.cell == "lstm", arguments)
        begun = starts[: bisect.bisect_left(starts, len(tokens))]
        yield directory, unroll_model(model, tokens, starts=map(int, begun)), Path(directory)


def _stream(lm: LanguageModel, directory: str, arguments: argparse.Namespace, length: int) -> TokenStream:
    """The first tokens of the text, or of the one that stayed in the model's folder."""
    from recurra.text.batches import TokenStream
    from recurra.text.corpora import open_text
    from recurra.text.documents import Document, Text

    if arguments.text:
        text = open_text(arguments.text, encoding=arguments.encoding or "utf-8", errors=arguments.errors or "strict")

        def beginning(document: Document) -> Document:
            # Every line is a token at least, so that no more of them are needed.
            return Document(document.name, lambda: itertools.islice(document.lines(), length))

        return TokenStream.from_text(Text(tuple(map(beginning, text.documents))), lm.tokenizer)
    path = Path(directory) / "training" / "valid"
    if not path.exists():
        raise UserError(f"{directory}: the text it was validated on is not there any more: give a TEXT")
    return TokenStream.open(path)


class _Found:
    """What there is to say of one model."""

    def __init__(self, name: str, unrolled: Unrolled, folder: Path | None, arguments: argparse.Namespace) -> None:
        from recurra.gradients import decay, find_layer, gradient_map, recurrent_bounds, verdict, weight_contributions

        self.name, self.unrolled = name, unrolled
        self.short = name if folder is None else folder.resolve().name
        self.gate = {1: "", 3: "update", 4: "forget"}[unrolled.stack.gate_count]
        self.layer = find_layer(unrolled, arguments.layer)
        self.target: int | None = arguments.target
        self.contributions: Contributions = weight_contributions(unrolled, target=self.target)[self.layer]
        self.map: GradientMap = gradient_map(unrolled, stride=arguments.stride)
        self.decay: Decay = decay(self.map, self.layer)
        self.bounds: list[Bound] = recurrent_bounds(unrolled.stack, self.layer)
        self.jacobians, whole = self._jacobians(arguments.jacobians)
        self.verdict = verdict(self.bounds, whole)
        self.clipping: Clipping | None = None if folder is None else _clipping(folder)

    def _jacobians(self, count: int) -> tuple[list[dict[str, Any]], list[NDArray[np.floating[Any]]]]:
        """Of some steps the singular values, and those of the whole state's Jacobian, which in an LSTM has c too."""
        import numpy as np
        import torch

        from recurra.gradients import split, state_jacobian

        first = 1 if len(self.unrolled) > 1 else 0  # what is before the first step is no state of the text
        steps = np.unique(np.linspace(first, len(self.unrolled) - 1, count).round().astype(int))
        stack = self.unrolled.stack
        width = stack.hidden_widths[self.layer]
        found, whole = [], []
        for step in steps.tolist():
            jacobian = state_jacobian(self.unrolled, step, self.layer)
            values = torch.linalg.svdvals(jacobian[:width, :width]).cpu().numpy()
            entry: dict[str, Any] = {"step": step, "singular_values": values.tolist()}
            whole.append(values if len(jacobian) == width else torch.linalg.svdvals(jacobian).cpu().numpy())
            of_lstm = len(stack.state_type._fields) == 2
            if stack.gate_count > 1 and not any(stack._zoneouts) and not (of_lstm and step in self.unrolled.starts):
                parts = split(self.unrolled, step, self.layer)
                entry["split"] = {
                    "gate": parts.gate.tolist(),
                    "rest_norm": float(torch.linalg.matrix_norm(parts.rest, 2)),
                    "total_norm": float(torch.linalg.matrix_norm(parts.total, 2)),
                }
            found.append(entry)
        return found, whole

    def to_mapping(self) -> dict[str, Any]:
        """All numbers, as JSON has them."""
        layer, decay, stack = self.layer, self.decay, self.unrolled.stack
        clipping = self.clipping
        return {
            "name": self.name,
            "cell": type(stack).__name__.lower(),
            "hidden_sizes": list(stack.hidden_sizes),
            "layer": layer + 1,
            "losses": self.unrolled.losses.tolist(),
            "starts": list(self.map.starts),
            "pairs": {
                "t": self.map.steps.tolist(),
                "hidden": self.map.hidden[layer].tolist(),
                "cell": None if self.map.cell is None else self.map.cell[layer].tolist(),
            },
            "decay": {
                "distances": decay.distances.tolist(),
                "relative": decay.relative.tolist(),
                "counts": decay.counts.tolist(),
                "half_life": decay.half_life,
                "fitted": decay.fitted,
            },
            "recurrent_weights": [each._asdict() for each in self.bounds],
            "jacobians": self.jacobians,
            "verdict": self.verdict,
            "weight_gradient": {
                "target": self.target,
                "norm": float(self.contributions.total.norm()),
                "norms": self.contributions.norms.tolist(),
                "shares": self.contributions.shares.tolist(),
            },
            "clipping": None if clipping is None else _clipping_mapping(clipping),
        }

    def lines(self) -> Iterator[str]:
        """What there is to say, for people."""
        import numpy as np

        from recurra.gradients import in_words

        stack, decay = self.unrolled.stack, self.decay
        sizes = sorted(set(stack.hidden_sizes))
        size = str(sizes[0]) if len(sizes) == 1 else " ".join(map(str, stack.hidden_sizes))
        many = f"{stack.num_layers} layers" if stack.num_layers > 1 else "1 layer"
        losses = self.unrolled.losses
        yield f"{self.name}: {type(stack).__name__}, {many} of {size} units, {len(losses)} tokens"
        yield f"  loss {float(losses.mean()):.3f} nats per token; what follows is of layer {self.layer + 1}"
        yield ""
        yield "‖∂J(t)/∂h(t−k)‖ relative to k = 0, mean over t"
        shown = [k for k in DISTANCES if k < len(decay.distances)]
        yield "  k        " + "".join(f"{k:>10}" for k in shown)
        yield "  relative " + "".join(f"{decay.relative[k]:>10.2g}" for k in shown)
        yield f"  {in_words(decay.half_life)} (k from 1 to {decay.fitted})"
        yield ""
        yield "W_h"
        for bound in self.bounds:
            text = f"  {bound.gate + ': ' if bound.gate else ''}largest singular value {bound.largest_singular:.4g}"
            if bound.spectral_radius is not None:
                text += f", spectral radius {bound.spectral_radius:.4g}"
            if bound.gamma is not None:
                relation = "below" if bound.must_vanish else "not below"
                means = "enough for gradients to vanish" if bound.must_vanish else "so this does not tell"
                text += f"; {relation} 1/gamma = {1 / bound.gamma:g}, {means} (Pascanu et al. 2013)"
            yield text
        if self.jacobians:
            yield ""
            yield f"∂h(t)/∂h(t−1), at {len(self.jacobians)} of {len(losses)} steps"
            values = np.array([each["singular_values"] for each in self.jacobians])
            yield f"  largest singular value {values[:, 0].min():.3g} to {values[:, 0].max():.3g}"
            yield f"  smallest singular value {values[:, -1].min():.3g} to {values[:, -1].max():.3g}"
        parts = [each["split"] for each in self.jacobians if "split" in each]
        if parts:
            gate, state = self.gate, "c" if self.gate == "forget" else "h"
            gates = np.array([each["gate"] for each in parts])
            rest = np.array([each["rest_norm"] for each in parts])
            yield f"∂{state}(t)/∂{state}(t−1) = diag({gate}) + rest"
            yield f"  {gate} gate {gates.mean():.3g} on average; largest singular value {gates.max(1).mean():.3g}"
            yield f"  rest: largest singular value {rest.mean():.3g}, means over the steps"
        yield f"  verdict: {self.verdict}{self._grounds()}"
        yield ""
        yield from self._weights()
        if self.clipping is not None:
            yield ""
            yield from _clipping_lines(self.clipping)

    def _grounds(self) -> str:
        """What a verdict rests on."""
        if self.verdict not in SAID:
            return ""
        return ", whatever the text" if any(bound.must_vanish for bound in self.bounds) else ", by each of these steps"

    def _weights(self) -> Iterator[str]:
        import numpy as np

        norms = self.contributions.norms
        last = len(norms) - 1 if self.target is None else self.target
        what = "the sum of all losses" if self.target is None else f"J({self.target})"
        yield f"∂J/∂W_h of {what}: norm {float(self.contributions.total.norm()):.4g}, by the step at which W_h was used"
        total = norms.sum()
        if not total:
            yield "  nothing comes from any step"
            return
        back = int(np.argmax(np.cumsum(norms[last::-1]) >= SHARE * total)) + 1
        if self.target is None:
            step = int(norms.argmax())
            yield f"  the largest part, norm {norms[step]:.3g}, is of step {step}"
        else:
            yield f"  the last {back} steps have {100 * SHARE:.0f} % of the sum of norms"


def _clipping(folder: Path) -> Clipping | None:
    """What the log of a training run says; None where there is none, since the model was not trained there."""
    from recurra.gradients import read_clipping

    return read_clipping(folder) if (folder / "log.jsonl").exists() else None


def _clipping_mapping(found: Clipping) -> dict[str, Any]:
    return {
        "clip_norm": found.clip_norm,
        "clip_value": found.clip_value,
        "steps": found.steps.tolist(),
        "before": found.before.tolist(),
        "after": found.after.tolist(),
    }


def _clipping_lines(found: Clipping) -> Iterator[str]:
    import numpy as np

    acted, many = found.acted, len(found.steps)
    if not many:
        yield "Gradients in training: the log has no norms; the run was shorter than --log-every steps"
        return
    limit = "no limit" if found.clip_norm is None else f"limit {found.clip_norm:g}"
    yield f"Gradients in training, at the {many:,} steps in the log: {limit}"
    yield f"  norm before clipping: median {np.median(found.before):.3g}, largest {found.before.max():.3g}"
    if found.clip_value is not None:
        yield f"  entries were cut off at {found.clip_value:g} first; the log does not tell what that left"
    if found.clip_norm is None:
        return
    yield f"  clipping acted at {int(acted.sum()):,} of them, {100 * acted.mean():.1f} %"
    if acted.any():
        factors = found.before[acted] / found.after[acted]
        yield f"  there it made gradients {np.median(factors):.3g} times shorter (median), {factors.max():.3g} at most"


def _draw(found: list[_Found], arguments: argparse.Namespace) -> None:
    import numpy as np

    from recurra.gradients import draw_clipping, draw_contributions, draw_decay, draw_jacobians, draw_map

    path = Path(arguments.output)
    picture = arguments.picture or ("map" if len(found) == 1 else "decay")
    first = found[0]
    title = f"{first.short}, layer {first.layer + 1}"
    whole = title + (f": gradients {first.verdict}" if first.verdict in SAID else "")
    if picture == "decay":
        draw_decay(_labelled(found), path)
    elif picture == "map":
        draw_map(first.map, first.layer, path, title=whole)
    elif picture == "jacobians":
        draw_jacobians(
            [np.array(each["singular_values"]) for each in first.jacobians],
            path,
            gate=first.gate,
            opened=[np.array(each["split"]["gate"]) for each in first.jacobians if "split" in each],
            title=whole,
        )
    elif picture == "weights":
        what = "all losses" if first.target is None else f"J({first.target})"
        draw_contributions(first.contributions, path, title=f"{title}: gradient of {what}")
    elif first.clipping is None:
        raise UserError(f"{first.name}: has no log of training, so no clipping to draw")
    else:
        draw_clipping(first.clipping, path, title=first.short)


def _labelled(found: list[_Found]) -> dict[str, Decay]:
    """Curves by name: by folders' names where these differ, and two of one name are told apart by their number."""
    short = len({each.short for each in found}) == len(found)
    labels: dict[str, Decay] = {}
    for each in found:
        name = (each.short if short else each.name) + (f" (they {each.verdict})" if each.verdict in SAID else "")
        label = name
        for number in itertools.count(2):
            if label not in labels:
                break
            label = f"{name} ({number})"
        labels[label] = each.decay
    return labels


COMMANDS = {
    "gradients": Command("how far back gradients reach, and why", _flags, _run),
}
