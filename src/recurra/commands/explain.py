"""What goes on inside, with numbers of one's own.

A subject is one function, from parsed arguments to an :class:`Explanation`; flags are added by another.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from recurra.commands.command import Command, positive
from recurra.config import ArgumentParser, UserError

__all__ = ["COMMANDS"]

LONGEST = 10_000  # steps or sequences; beyond it is no explanation any more
WIDEST = 40  # steps of a picture that fits a terminal; and of a list of numbers
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
        print(json.dumps(explanation.result, indent=1) if arguments.json else explanation.text)
        return 0

    return Command(help, add_flags, run)


COMMANDS = {
    "explain packing": _subject("what packing sequences of these lengths saves", _packing_flags, _packing),
}
