"""What goes on inside, with numbers of one's own.

A subject is one function, from parsed arguments to an :class:`Explanation`; flags are added by another.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from recurra.commands.command import Command, numbers, positive, print_json
from recurra.config import ArgumentParser, UserError

if TYPE_CHECKING:
    from recurra.explaining import Clipped, ClippedBothWays, Situation
    from recurra.gradients import Clipping

__all__ = ["COMMANDS"]

LONGEST = 10_000  # steps or sequences; beyond it is no explanation any more
WIDEST = 40  # steps of a picture that fits a terminal; and of a list of numbers
LOGGED = 10  # lines of a log that are shown
WHOLE = 256  # numbers of a gradient that are given one by one
TITLES = {"lstm": "LSTM", "gru": "GRU", "rnn": "simple RNN"}
STEPS = "Steps count from 0, which reads the line end before the text; step t predicts token t."
LETTERS = "abcdefghijklmnopqrstuvwxyz"  # name the sequences of a picture


class Explanation(NamedTuple):
    """An explanation, for programs (``--json``) and for people."""

    result: dict[str, Any]
    text: str


def _packing_flags(parser: ArgumentParser) -> None:
    parser.add_argument("lengths", nargs="+", type=positive, metavar="LENGTH", help="of each sequence, in steps")


def _packing(arguments: argparse.Namespace) -> Explanation:
    from recurra.packing import packing

    if max(len(arguments.lengths), *arguments.lengths) > LONGEST:
        raise UserError(f"explain packing: expected at most {LONGEST:,} sequences of at most {LONGEST:,} steps")
    batch = packing(arguments.lengths)
    rows, steps = len(batch.lengths), len(batch.batch_sizes)
    padded, packed = batch.padded, batch.packed
    result = {
        "lengths": batch.lengths,
        "order": batch.order,
        "was_sorted": batch.was_sorted,
        "sequences": rows,
        "steps": steps,
        "batch_sizes": batch.batch_sizes,
        "padded": vars(padded),
        "packed": vars(packed),
        "saved": {"multiplications": batch.saved_multiplications, "additions": batch.saved_additions},
    }
    lines = []
    if not batch.was_sorted:
        lines += [f"Sorted, long ones first: {_listed(batch.lengths)} (given: {_listed(arguments.lengths)})", ""]
    drawn = rows <= len(LETTERS) and steps <= WIDEST
    lines.append(f"Padded: {rows} sequences filled up to {steps} steps, {rows * steps} cells")
    if drawn:
        names = [LETTERS[place] for place in batch.order]
        width = len(str(rows)) + 1  # of a column: what stands under it is a batch size
        for name, length in zip(names, batch.lengths, strict=True):
            cells = [name] * length + ["."] * (steps - length)
            lines.append("  " + "".join(f"{cell:>{width}}" for cell in cells) + f"   {length}")
        lines += ["  " + "".join(f"{size:>{width}}" for size in batch.batch_sizes) + "   <- batch_sizes", ""]
    else:
        lines += [f"  (too large to draw: at most {len(LETTERS)} sequences of {WIDEST} steps)", ""]
    lines.append(f"Packed: step after step only what is there, {sum(batch.lengths)} cells")
    if drawn:
        lines.append("   " + " ".join("".join(names[:size]) for size in batch.batch_sizes))
    lines += [f"   batch_sizes: {_listed(batch.batch_sizes)}", ""]
    lines.append(f"{'One weighted sum':<18}{'padded':>12}{'packed':>12}{'saved':>9}")
    for name, before, after, share in (
        ("multiplications", padded.multiplications, packed.multiplications, batch.saved_multiplications),
        ("additions", padded.additions, packed.additions, batch.saved_additions),
    ):
        lines.append(f"  {name:<16}{before:>12,}{after:>12,}{100 * share:>7.1f} %")
    lines += [
        "",
        "Counted is one weighted sum along each row: a multiplication for every cell, and an addition",
        "for every cell but the first, which has nothing before it to be added to.",
        f"  padded: {rows} x {steps} = {padded.multiplications:,} multiplications, "
        f"{rows} x ({steps} - 1) = {padded.additions:,} additions",
        f"  packed: {sum(batch.lengths):,} cells = {packed.multiplications:,} multiplications, "
        f"{sum(batch.lengths):,} - {rows} = {packed.additions:,} additions",
        "A recurrent layer does as much work at one cell as at another, so it is spared "
        f"{100 * batch.saved_multiplications:.1f} %.",
    ]
    return Explanation(result, "\n".join(lines))


def _model_flags(parser: ArgumentParser, *, unit: str) -> None:
    """Flags of what is looked at: a model over a text, or a small layer of random numbers."""
    parser.add_argument(
        "directory",
        nargs="?",
        metavar="DIR",
        help="folder of a recurrent language model (default: a small fresh layer)",
    )
    parser.add_argument("--text", metavar="TEXT", help="what the model reads")
    parser.add_argument("--layer", type=positive, metavar="N", help="from 1, which reads the words (default: the last)")
    parser.add_argument("--unit", type=_whole, default=0, metavar="N", help=f"{unit}, from 0 (default: 0)")
    parser.add_argument("--seed", type=_whole, metavar="N", help="of the fresh layer (default: 1)")


def _whole(text: str) -> int:
    """A whole number of at least 0, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text!r}")
    return int(text)


def _situation(arguments: argparse.Namespace, cell: str, *, steps: int, target: bool = False) -> Situation:
    """What the flags ask to look at."""
    from recurra import explaining

    if arguments.directory is None:
        if arguments.text is not None:
            raise UserError("--text: there is no model to read it; give the folder of one")
        return explaining.small_layer(cell, seed=_seed(arguments), steps=steps)
    if arguments.seed is not None:
        raise UserError("--seed: means nothing to a trained model; leave it out")
    from recurra.language_model import load

    return explaining.reading(load(arguments.directory, device="cpu"), arguments.text or "", target=target)


def _seed(arguments: argparse.Namespace) -> int:
    return 1 if arguments.seed is None else int(arguments.seed)


def _cell(cell: str, arguments: argparse.Namespace) -> Explanation:
    from recurra.explaining import step_lines

    situation = _situation(arguments, cell, steps=3)
    if situation.cell != cell:
        raise UserError(
            f"{arguments.directory}: expected a model of cell {cell}, got {situation.cell};"
            f" try `recurra explain {situation.cell} {arguments.directory}`"
        )
    stack, unit, time = situation.stack, arguments.unit, len(situation.reads) - 1
    layer = situation.layer(arguments.layer, unit)
    step = step_lines(situation, layer=layer, unit=unit)
    before = {f"{name}(t-1)": part[0].tolist() for name, part in zip("hc", step.before, strict=False)}
    notes = _notes(stack, layer, of_text=arguments.directory is not None)
    result = {
        "cell": cell,
        "layer": layer,
        "unit": unit,
        "units": stack.hidden_sizes[layer - 1],
        "reads": situation.reads,
        "step": time,
        "inputs": {"e(t)": step.reads[0].tolist(), **before},
        "lines": [{**line._asdict(), "numbers": line.with_numbers()} for line in step.lines],
        "notes": notes,
    }
    read = json.dumps(situation.reads[-1], ensure_ascii=False) if arguments.directory else situation.reads[-1]
    lines = [
        f"{TITLES[cell]}, layer {layer}, unit {unit} of {result['units']}, at t = {time}, reading {read}"
        + ("" if arguments.directory else f" (a fresh layer, seed {_seed(arguments)})"),
        "",
    ]
    width = max(len(line.name) for line in step.lines)
    for name, values in before.items():
        lines.append(f"  {name:<{width}} = {values[unit]:.4f}")
    for line in step.lines:
        lines += [
            f"  {line.name:<{width}} = {line.equation}",
            f"  {'':<{width}} = {line.with_numbers()}",
            f"  {'':<{width}} = {line.value:.4f}",
        ]
    return Explanation(result, "\n".join([*lines, "", *notes]))


def _notes(stack: Any, layer: int, *, of_text: bool) -> list[str]:
    """What the letters stand for, for this stack."""
    weight = stack.weights(layer - 1).weight_hh
    sigma = "1 / (1 + exp(-x))" if stack.mode[:3] != "RNN" else stack.nonlinearity
    own_rows = "; every gate has rows of its own in W_h, W_e and b" if stack.gate_count > 1 else ""
    notes = [
        f"sigma is {sigma}; W_h h(t-1) is this unit's sum of {weight.shape[1]} products, W_e e(t) of"
        f" {stack.weights(layer - 1).weight_ih.shape[1]};",
        f"b is the sum of both biases{own_rows}.",
    ]
    if stack.layer_norm:
        notes.append("LN is layer normalisation, over all units, with its gain (of c(t) with its bias too).")
    if stack.mode == "LSTM" and stack.proj_size:
        notes.append("W_r mixes all units of the cell: the last line is no longer of one of them.")
    if stack.has_zoneout:
        notes.append("Zoneout then mixes the new state with the old one, which these lines leave out.")
    if of_text:
        notes.append(STEPS)
    return notes


def _bptt_flags(parser: ArgumentParser) -> None:
    _model_flags(parser, unit="row and column of the entry of W_h that is shown")
    parser.add_argument("--cell", choices=tuple(TITLES), help="of the fresh layer (default: rnn)")
    parser.add_argument("--steps", type=positive, default=5, metavar="N", help="to go back, at most (default: 5)")


def _bptt(arguments: argparse.Namespace) -> Explanation:
    from recurra.explaining import ROWS, gradient_by_autograd
    from recurra.gradients import weight_contributions

    if arguments.steps > LONGEST:
        raise UserError(f"--steps: expected at most {LONGEST:,}, got {arguments.steps:,}")
    if arguments.directory is not None and arguments.cell is not None:
        raise UserError("--cell: a model has its own; leave it out, or DIR")
    situation = _situation(arguments, arguments.cell or "rnn", steps=arguments.steps, target=True)
    unit = arguments.unit
    layer = situation.layer(arguments.layer, unit)
    last = len(situation.unrolled) - 1
    found = weight_contributions(situation.unrolled, layer - 1, target=last, steps=arguments.steps, keep=True)
    together = gradient_by_autograd(situation, layer=layer, steps=arguments.steps)
    assert found.parts is not None
    total, block, first = found.total, ROWS[situation.cell][0], int(found.steps[0])
    loss, difference = float(situation.unrolled.losses[last]), float((total - together).abs().max())
    steps = [
        {
            "step": step,
            "reads": situation.reads[step],
            "norm": float(part.norm()),
            "entry": float(part[unit, unit]) + 0.0,  # no -0.0
            **({"contribution": part.tolist()} if part.numel() <= WHOLE else {}),
        }
        for step, part in zip(found.steps.tolist(), found.parts, strict=True)
    ]
    result = {
        "cell": situation.cell,
        "layer": layer,
        "unit": unit,
        "loss": loss,
        "loss_is": situation.what,
        "steps": steps,
        "sum": {"norm": float(total.norm()), "entry": float(total[unit, unit])},
        "autograd": {"norm": float(together.norm()), "entry": float(together[unit, unit])},
        "largest_difference": difference,
    }
    names = [json.dumps(str(step["reads"]), ensure_ascii=False)[1:-1] for step in steps]
    width = max(12, *(len(name) + 7 for name in names))
    entry = f"W_h[{unit},{unit}]"
    lines = [
        f"J = {loss:.6f} at step {last}: {situation.what}",
        f"{TITLES[situation.cell]}, layer {layer}; W_h is {' x '.join(map(str, total.shape))}",
        "",
        "dJ/dW_h = sum over steps k of dJ/dW_h of step k alone, as if each step had a W_h of its own:",
        "",
        f"  {'step reads':<{width}}{'norm':>13}{entry:>15}",
    ]
    rows = [(f"{step['step']:>4} {name}", step) for step, name in zip(steps, names, strict=True)]
    rows += [(name, result[name]) for name in ("sum", "autograd")]
    for name, row in rows:
        lines.append(f"  {name:<{width}}{row['norm']:>13.4e}{row['entry']:>15.4e}")
    lines += ["", f"largest difference between sum and autograd, of any entry: {difference:.1e}"]
    if len(ROWS[situation.cell]) > 1:
        lines.append(f"{entry} is of the {block} gate's rows; norms are over all gates.")
    lines.append("Norms do not add up: the summands of different steps point in different directions.")
    if first == 0:
        lines.append("Step 0 adds nothing: before it h is 0.")
    else:
        lines.append(f"The state after step {first - 1} is taken as given: truncated backpropagation.")
    if arguments.directory is not None:
        lines.append(STEPS)
    return Explanation(result, "\n".join(lines))


def _clipping_flags(parser: ArgumentParser) -> None:
    parser.add_argument("directory", nargs="?", metavar="DIR", help="folder of a trained model, whose log is told of")
    parser.add_argument("--text", metavar="TEXT", help="take the language model's gradient on this text")
    parser.add_argument(
        "--gradient",
        type=numbers,
        metavar="X,X,...",
        help="take this gradient (default: 3,-4); =-1,2 where - is first",
    )
    parser.add_argument("--norm", type=float, metavar="X", help="limit of the norm (default: as trained, or 1)")
    parser.add_argument("--value", type=float, metavar="X", help="limit of an entry (default: as trained, or 1)")


def _clipping(arguments: argparse.Namespace) -> Explanation:
    from recurra import explaining
    from recurra.gradients import read_clipping

    if arguments.text is not None and (arguments.directory is None or arguments.gradient is not None):
        raise UserError("--text: needs the folder of a model, and takes the place of --gradient")
    logged = None if arguments.directory is None else read_clipping(arguments.directory)
    norm = arguments.norm if arguments.norm is not None else (logged and logged.clip_norm) or 1.0
    value = arguments.value if arguments.value is not None else (logged and logged.clip_value) or 1.0
    gradient: Any = arguments.gradient or [3.0, -4.0]
    if arguments.text is not None:
        from recurra.language_model import load

        gradient = explaining.text_gradient(load(arguments.directory, device="cpu"), arguments.text)
    found = explaining.clip_both_ways(gradient, norm=norm, value=value)
    before = found.before
    result: dict[str, Any] = {
        "entries": len(before.gradient),
        "before": _clipped(before),
        "by_norm": {"limit": norm, "factor": found.factor, **_clipped(found.by_norm)},
        "by_value": {"limit": value, **_clipped(found.by_value)},
    }
    lines = [_clipped_text(found, norm, value)]
    if logged is not None:
        result["log"], text = _logged(logged)
        lines += ["", text]
    return Explanation(result, "\n".join(lines))


def _clipped(each: Clipped) -> dict[str, Any]:
    numbers = {"norm": each.norm, "largest": each.largest, "cosine": each.cosine}
    return numbers | ({"gradient": each.gradient.tolist()} if len(each.gradient) <= WHOLE else {})


def _clipped_text(found: ClippedBothWays, norm: float, value: float) -> str:
    before = found.before
    lines = []
    if len(before.gradient) <= LOGGED:
        lines.append(f"g = {_vector(before)}")
    else:
        lines.append(f"g: {len(before.gradient):,} numbers, the largest {before.largest:.4e}")
    lines += [
        f"norm of g = {before.norm:.6f}",
        "",
        f"by norm, limit {norm:g}: g * min(1, {norm:g} / (norm + 1e-6)) = g * {found.factor:.6f}",
        f"by value, limit {value:g}: every entry of g cut off at -{value:g} and {value:g}",
        "",
        f"{'':<10}{'norm':>14}{'largest':>14}{'cosine with g':>16}",
    ]
    rows = (("before", before), ("by norm", found.by_norm), ("by value", found.by_value))
    for name, each in rows:
        vector = f"   {_vector(each)}" if len(each.gradient) <= LOGGED else ""
        lines.append(f"{name:<10}{each.norm:>14.6f}{each.largest:>14.6f}{each.cosine:>16.6f}{vector}")
    lines += ["", "By norm g keeps its direction (cosine 1); by value it may turn."]
    return "\n".join(lines)


def _vector(each: Clipped) -> str:
    return "(" + ", ".join(f"{number:.4f}" for number in each.gradient.tolist()) + ")"


def _logged(logged: Clipping) -> tuple[dict[str, Any], str]:
    """What a training run logged of its gradients."""
    norms, count = logged.before.tolist(), len(logged.before)
    result: dict[str, Any] = {"clip_norm": logged.clip_norm, "clip_value": logged.clip_value, "logged": count}
    if not norms:
        return result, "The log has no norms: the run was shorter than --log-every steps."
    clipped = int(logged.acted.sum())
    rows = zip(logged.steps.tolist(), norms, logged.factors.tolist(), logged.after.tolist(), strict=True)
    result |= {
        "smallest": min(norms),
        "median": statistics.median(norms),
        "largest": max(norms),
        "longer_than_limit": clipped,
        "steps": [dict(zip(("step", "norm", "factor", "after"), row, strict=True)) for row in rows],
    }
    limit = "none" if logged.clip_norm is None else f"{logged.clip_norm:g}"
    lines = [
        f"In training, limit of the norm {limit}: of {count:,} steps in the log, {clipped:,} were longer",
        f"({100 * clipped / count:.1f} %). Norms before clipping: smallest {result['smallest']:.4f}, median"
        f" {result['median']:.4f}, largest {result['largest']:.4f}.",
        "",
        f"{'step':>10}{'norm':>14}{'factor':>12}{'after':>14}",
    ]
    every = math.ceil(count / LOGGED)
    lines += [
        f"{row['step']:>10}{row['norm']:>14.6f}{row['factor']:>12.6f}{row['after']:>14.6f}"
        for row in result["steps"][::every]
    ]
    if every > 1:
        lines.append(f"(1 of {every} is shown)")
    if logged.clip_value is not None:
        lines.append(
            f"Entries were cut off at {logged.clip_value:g} before, of which the log does not tell: at most so long."
        )
    return result, "\n".join(lines)


def _listed(numbers: tuple[int, ...] | list[int]) -> str:
    """Numbers in a line, the middle left out where there are many."""
    if len(numbers) <= WIDEST:
        return " ".join(map(str, numbers))
    half = WIDEST // 2
    return " ".join(
        [*map(str, numbers[:half]), f"... ({len(numbers) - 2 * half} more) ...", *map(str, numbers[-half:])]
    )


def _subject(
    help: str, flags: Callable[[ArgumentParser], None], explain: Callable[[argparse.Namespace], Explanation]
) -> Command:
    """The command that explains a subject."""

    def add_flags(parser: ArgumentParser) -> None:
        flags(parser)
        parser.add_argument("--json", action="store_true", help="print JSON")

    def run(arguments: argparse.Namespace) -> int:
        explanation = explain(arguments)
        if arguments.json:
            print_json(explanation.result)
        else:
            print(explanation.text)
        return 0

    return Command(help, add_flags, run)


COMMANDS = {
    "explain packing": _subject("what packing sequences of these lengths saves", _packing_flags, _packing),
    **{
        f"explain {cell}": _subject(
            f"one step of {article} {TITLES[cell]}: its equations with numbers",
            partial(_model_flags, unit="whose numbers"),
            partial(_cell, cell),
        )
        for cell, article in (("lstm", "an"), ("gru", "a"), ("rnn", "a"))
    },
    "explain bptt": _subject("a gradient through time as a sum over steps", _bptt_flags, _bptt),
    "explain clipping": _subject("what clipping does to a gradient", _clipping_flags, _clipping),
}
