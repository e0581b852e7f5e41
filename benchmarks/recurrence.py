"""Recurrent layers, forward and backward: Recurra against torch.nn, milliseconds of the median, side by side.

    python benchmarks/recurrence.py [--seconds 3] [--no-tensor] [--plot recurrence.png]

Columns: torch.nn's layer; Recurra's as it chooses by itself (auto) and each of its kernels; how many times as fast as
torch's auto is; GFLOP/s of auto, and its share of what the faster of two libraries reaches in a large square product.
The second table is of batches of sentences of different lengths: torch padded, torch packed, Recurra packed.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path
from pydoc_data import topics

import numpy as np
import torch
from side_by_side import keep_memory, machine, medians, peak
from torch.nn.utils.rnn import pack_padded_sequence

import recurra.nn
from recurra.nn import native
from recurra.nn.sequences import arrange

SHAPES = [(35, 20, 128), (35, 20, 256), (35, 20, 650), (64, 32, 1024), (100, 1, 512), (400, 16, 256)]  # T, B, H
PACKED = [(32, 200), (32, 512), (32, 650)]  # B, H
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def sentence_lengths(count: int) -> list[int]:
    """Words of some sentences of Python's own documentation, drawn at random, long ones first."""
    text = " ".join(topics.topics.values())
    lengths = [len(sentence.split()) for sentence in re.split(r"(?<=[.!?])\s+", text)]
    drawn = np.random.default_rng(1).choice([n for n in lengths if n], count)
    return sorted(drawn.tolist(), reverse=True)


def training(layer: torch.nn.Module, input: object, gradient: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        layer.zero_grad()
        output = layer(input)[0]
        data = output.data if hasattr(output, "batch_sizes") else output
        torch.autograd.backward(data, gradient)

    return run


def own(kind: str, peer: torch.nn.Module, implementation: str) -> torch.nn.Module:
    layer = getattr(recurra.nn, kind)(peer.input_size, peer.hidden_size, implementation=implementation)
    layer.load_state_dict(peer.state_dict())
    return layer


def plot(ratios: dict[str, dict[str, float]], path: Path) -> None:
    """Bars: for each shape how many times as fast as torch's a cell is."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for place, (kind, colour) in enumerate(zip(GATES, ("0.75", "0.5", "0.2"), strict=True)):
        found = {shape: values[kind] for shape, values in ratios.items()}
        at = [row + 0.27 * (place - 1) for row in range(len(found))]
        axes.barh(at, list(found.values()), 0.25, color=colour, label=kind)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(ratios)), list(ratios))
    axes.invert_yaxis()
    axes.set_xlabel("speed of training, torch.nn = 1")
    axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3, help="for each row")
    parser.add_argument("--no-tensor", action="store_true", help="leave out the kernels without compiled loops")
    parser.add_argument("--plot", type=Path, help="draw the ratios into this picture (needs matplotlib)")
    options = parser.parse_args()
    kernels = (["compiled"] if native.available() else []) + ([] if options.no_tensor else ["tensor"])
    keep_memory()
    best = peak()
    print(machine())
    print(f"compiled loops: {native.why_not() or 'yes'}; matrix products: {best / 1e9:.0f} GFLOP/s\n")
    head = " ".join(f"{name:>9}" for name in ("torch", "auto", *kernels))
    print(f"{'padded':24} {head} {'x torch':>8} {'GFLOP/s':>8} {'of peak':>8}")
    ratios: dict[str, list[float]] = {kind: [] for kind in GATES}
    bars: dict[str, dict[str, float]] = {}
    shares: list[float] = []
    for shape in SHAPES:
        steps, batch, size = shape
        input, gradient = torch.randn(shape, requires_grad=True), torch.randn(shape)
        ways, chosen = {}, {}
        for kind in GATES:
            peer = getattr(torch.nn, kind)(size, size)
            layers = {"torch": peer, **{name: own(kind, peer, name) for name in ("auto", *kernels)}}
            chosen[kind] = recurra.nn.implementation(layers["auto"], arrange(input))
            if chosen[kind] in kernels:
                del layers[chosen[kind]]
            ways |= {(kind, name): training(layer, input, gradient) for name, layer in layers.items()}
        found = medians(ways, seconds=len(GATES) * options.seconds)
        for kind, gates in GATES.items():
            found.setdefault((kind, chosen[kind]), found[kind, "auto"])
            speed = 12 * steps * batch * size * size * gates / found[kind, "auto"]
            ratio = found[kind, "torch"] / found[kind, "auto"]
            ratios[kind].append(ratio)
            bars.setdefault(f"T{steps} B{batch} H{size}", {})[kind] = ratio
            cells = " ".join(f"{found[kind, name] * 1e3:9.2f}" for name in ("torch", "auto", *kernels))
            name = f"{kind:5}T{steps} B{batch} H{size}"
            print(f"{name:24} {cells} {ratio:8.2f} {speed / 1e9:8.0f} {speed / best:8.0%}", flush=True)
        shares.append(found["GRU", "auto"] / found["LSTM", "auto"])
    for kind, values in ratios.items():
        mean = math.exp(sum(map(math.log, values)) / len(values))
        print(f"{kind}: geometric mean {mean:.2f} x torch.nn.{kind}, worst {min(values):.2f}")
    print("own GRU / own LSTM, shape by shape: " + ", ".join(f"{share:.2f}" for share in shares) + "\n")

    head = " ".join(f"{name:>9}" for name in ("padded", "packed", "auto", *kernels))
    print(f"{'sentences':24} {head} {'x better of torch':>18}")
    for batch, size in PACKED:
        lengths = sentence_lengths(batch)
        steps = lengths[0]
        for kind in GATES:
            peer = getattr(torch.nn, kind)(size, size)
            input = torch.randn(steps, batch, size)
            packed = pack_padded_sequence(input, lengths)
            packed = packed._replace(data=packed.data.detach().requires_grad_())
            gradient = torch.randn_like(packed.data)
            ways = {
                "padded": training(peer, input.requires_grad_(), torch.randn(steps, batch, size)),
                "packed": training(peer, packed, gradient),
            }
            ways |= {name: training(own(kind, peer, name), packed, gradient) for name in ("auto", *kernels)}
            found = medians(ways, seconds=options.seconds)
            ratio = min(found["padded"], found["packed"]) / found["auto"]
            bars.setdefault(f"packed B{batch} H{size}", {})[kind] = ratio
            cells = " ".join(f"{found[name] * 1e3:9.2f}" for name in ways)
            name = f"{kind:5}B{batch} H{size} {sum(lengths) / batch / steps:.0%} filled"
            print(f"{name:24} {cells} {ratio:18.2f}", flush=True)
    if options.plot:
        plot(bars, options.plot)


if __name__ == "__main__":
    main()
