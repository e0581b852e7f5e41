"""One token at a time: a recurrent stack and its output layer, Recurra against torch.nn, in milliseconds.

    python benchmarks/generation.py [--seconds 3] [--plot generation.png]

Columns: torch.nn's layers; Recurra's in float32 and with int8 weights; how many times as fast as torch's the float32
step is, and as the float32 step the int8 one; the float32 step's time over that of reading as many bytes from memory,
at the rate at which a large array is read in the same run. The ways take turns of some tokens in a row, as text is
written: what fits a cache is then read from there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from side_by_side import machine, medians
from torch import nn

import recurra.nn
from recurra.nn import native
from recurra.nn.int8 import round_to_int8_
from recurra.nn.products import linear

TOKENS = 16  # in a row
SHAPES = [("LSTM", 512, 65), ("LSTM", 650, 10_000), ("LSTM", 650, 33_278), ("GRU", 650, 10_000)]  # 2 layers each


def rate() -> float:
    """Bytes read in a second: the faster of two ways to read 256 MB."""
    array = torch.randn(2**26)
    return 2**28 / min(medians({"sum": array.sum, "max": array.amax}).values())


def in_a_row(step: Callable[[], object]) -> None:
    for _ in range(TOKENS):
        step()


def plot(results: dict[str, dict[str, float]], path: Path) -> None:
    """Bars: of each model the time of a token."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for place, (way, colour) in enumerate(zip(("torch", "float32", "int8"), ("0.75", "0.5", "0.2"), strict=True)):
        at = [row + 0.27 * (place - 1) for row in range(len(results))]
        axes.barh(at, [1e3 * found[way] for found in results.values()], 0.25, color=colour, label=way)
    axes.set_yticks(range(len(results)), list(results))
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds a token")
    axes.legend(["torch.nn", "Recurra, float32", "Recurra, int8"], ncols=3, loc="lower center", bbox_to_anchor=(0.4, 1))
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3, help="for each row")
    parser.add_argument("--plot", type=Path, help="draw the times into this picture (needs matplotlib)")
    options = parser.parse_args()
    print(machine())
    print(f"compiled loops: {native.why_not() or 'yes'}\n")
    head = ("torch", "float32", "int8", "x torch", "x float32", "of reading")
    print(f"{'':34} " + " ".join(f"{name:>10}" for name in head))
    results: dict[str, dict[str, float]] = {}
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        bytes_per_second = rate()
        for kind, size, words in SHAPES:
            peer = getattr(nn, kind)(size, size, 2).eval()
            stacks = [getattr(recurra.nn, kind)(size, size, 2).eval() for _ in range(2)]
            tables = [nn.Parameter(torch.randn(words, size) / size**0.5) for _ in range(2)]
            for stack in stacks:
                stack.load_state_dict(peer.state_dict())
            for weight in (*stacks[1].parameters(), tables[1]):
                if weight.dim() == 2:
                    round_to_int8_(weight)
            bias, input, state = torch.zeros(words), torch.randn(1, 1, size), stacks[0].initial_state(1)
            ways = {
                "torch": lambda p=peer, x=input, s=state, w=tables[0], b=bias: F.linear(p(x, s)[0][0], w, b),
                "float32": lambda p=stacks[0], x=input, s=state, w=tables[0], b=bias: linear(p(x, s)[0][0], w, b),
                "int8": lambda p=stacks[1], x=input, s=state, w=tables[1], b=bias: linear(p(x, s)[0][0], w, b),
            }
            with torch.no_grad():
                runs = {name: partial(in_a_row, way) for name, way in ways.items()}
                found = {name: time / TOKENS for name, time in medians(runs, seconds=options.seconds).items()}
            results[f"2 x {kind} {size}, {words:,} words, {threads} thread{'s' * (threads > 1)}"] = found
            numbers = 4 * (sum(weight.numel() for weight in peer.parameters()) + words * (size + 1))
            values = [
                *(f"{found[name] * 1e3:10.2f}" for name in ways),
                f"{found['torch'] / found['float32']:10.2f}",
                f"{found['float32'] / found['int8']:10.2f}",
                f"{found['float32'] * bytes_per_second / numbers:10.2f}",
            ]
            print(f"2 x {kind:4} {size}, {words:6} words, {threads} threads " + " ".join(values), flush=True)
        print(f"read: {bytes_per_second / 1e9:.1f} GB/s on {threads} threads")
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
