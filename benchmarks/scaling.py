"""How cost grows: of a training step with length, batch, hidden size and vocabulary; of evaluation with the text.

    python benchmarks/scaling.py [--seconds 3] [--plot scaling.png]

Each table varies one size and keeps the others. Its exponent is the slope of log milliseconds against log size,
between a size and the one before it: 1 where cost is proportional to the size, 2 where it grows with its square.
Evaluation runs in a process of its own for each length, for its peak memory: one row of words, the state carried from
start to end.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from side_by_side import machine, medians

import recurra.nn
from recurra.evaluation import evaluate
from recurra.models.recurrent_lm import RecurrentLM, RecurrentLMSettings
from recurra.nn.softmax import AdaptiveSoftmax, FullSoftmax
from recurra.text.batches import Batch
from recurra.text.vocabulary import SPECIAL, Vocabulary

LENGTH, BATCH, SIZE, WORDS = 35, 20, 512, 33_278
SIZES = {
    "length": (35, 70, 140, 280, 560),
    "batch": (5, 10, 20, 40, 80),
    "hidden size": (128, 256, 512, 1024, 2048),
    "vocabulary": (4_000, 16_000, 64_000, 256_000),
}
TEXTS = (2_000, 20_000, 200_000)  # tokens


def recurrence(kind: str, length: int = LENGTH, batch: int = BATCH, size: int = SIZE) -> Callable[[], None]:
    """One layer, forward and backward."""
    layer = getattr(recurra.nn, kind)(size, size)
    input, gradient = torch.randn(length, batch, size, requires_grad=True), torch.randn(length, batch, size)

    def step() -> None:
        layer.zero_grad()
        layer(input)[0].backward(gradient)

    return step


def counts(words: int) -> list[int]:
    """Of words by Zipf's law, in a text of two million."""
    shares = 1 / np.arange(1, words + 1)
    return np.maximum(2e6 * shares / shares.sum(), 1).astype(int).tolist()


def drawn(words: int, count: int) -> torch.Tensor:
    return torch.multinomial(torch.tensor(counts(words), dtype=torch.float), count, replacement=True)


def output(kind: type[FullSoftmax | AdaptiveSoftmax], words: int) -> Callable[[], None]:
    """The loss and its gradients."""
    layer = kind(SIZE, counts(words))
    hidden, targets = torch.randn(LENGTH * BATCH, SIZE, requires_grad=True), drawn(words, LENGTH * BATCH)

    def step() -> None:
        layer.zero_grad()
        layer.loss(hidden, targets).backward()

    return step


def language_model() -> RecurrentLM:
    settings = RecurrentLMSettings(hidden_size=SIZE, layers=1, embedding_size=SIZE, output="adaptive", tied=True)
    vocabulary = Vocabulary([*SPECIAL, *map(str, range(WORDS - len(SPECIAL)))], counts(WORDS))
    return RecurrentLM(settings, vocabulary)


def evaluation(tokens: int) -> dict[str, float]:
    """Seconds and peak memory of evaluating a text of random words."""
    model, text = language_model(), drawn(WORDS, tokens).numpy()
    evaluate(model, text[:512], words=512, characters=512)
    seconds = evaluate(model, text, words=tokens, characters=tokens).seconds
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "peak": peak / 1024}


def training_rate() -> float:
    """Tokens that go forward in a second as in training, the loss included."""
    model = language_model()
    tokens = drawn(WORDS, (LENGTH + 1) * BATCH).view(LENGTH + 1, BATCH)
    batch = Batch(tokens[:-1], tokens[1:])
    with torch.no_grad():
        return LENGTH * BATCH / medians({"forward": lambda: model(batch)})["forward"]


def texts() -> None:
    """Print what evaluating texts costs. To be called first: a process inherits the peak memory of its parent."""
    print(f"\n{'text':>12} {'seconds':>9} {'x':>6} {'tokens/s':>9} {'peak memory':>12} {'x':>6}")
    before: dict[str, float] = {}
    for tokens in TEXTS:
        command = [sys.executable, __file__, "--text", str(tokens)]
        now = json.loads(subprocess.check_output(command, text=True))
        before = before or now
        seconds, peak = now["seconds"], now["peak"]
        print(
            f"{tokens:12,} {seconds:9.2f} {seconds / before['seconds']:6.2f} {tokens / seconds:9.0f}"
            f" {peak:8.0f} MiB {peak / before['peak']:6.2f}"
        )
        before = now
    print(f"forward as in training, {BATCH} rows side by side: {training_rate():.0f} tokens/s")


def table(name: str, sizes: tuple[int, ...], makers: dict[str, Callable[[int], Callable[[], None]]], seconds: float):
    """Print milliseconds of each way at each size, and return them."""
    found: dict[str, list[float]] = {way: [] for way in makers}
    print(f"\n{name:>12} " + " ".join(f"{way:>18} {'exponent':>9}" for way in makers))
    for place, size in enumerate(sizes):
        medians_here = medians({way: make(size) for way, make in makers.items()}, seconds=seconds)
        line = []
        for way, times in found.items():
            times.append(medians_here[way])
            slope = math.log(times[-1] / times[-2]) / math.log(size / sizes[place - 1]) if place else math.nan
            line.append(f"{times[-1] * 1e3:15.2f} ms {slope:9.2f}")
        print(f"{size:12,} " + " ".join(line).replace("nan", "   "), flush=True)
    return found


def plot(results: dict[str, dict[str, list[float]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), dpi=150, layout="constrained")
    for axes, (name, found) in zip(figure.subplots(2, 2).flat, results.items(), strict=True):
        for (way, times), marker in zip(found.items(), "os^", strict=False):
            axes.loglog(SIZES[name], [1e3 * t for t in times], marker=marker, label=way, linewidth=1)
        first = min(times[0] for times in found.values())
        line = [1e3 * first * size / SIZES[name][0] for size in SIZES[name]]
        axes.loglog(SIZES[name], line, color="0.7", linestyle=":", label="proportional")
        axes.set_xticks(SIZES[name], [f"{size:,}" for size in SIZES[name]])
        axes.minorticks_off()
        axes.set_xlabel(name)
        axes.set_ylabel("ms a training step")
        axes.legend(fontsize=7)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3, help="for each row")
    parser.add_argument("--plot", type=Path, help="draw the tables into this picture (needs matplotlib)")
    parser.add_argument("--text", type=int, help="evaluate a text of so many tokens, in this process")
    options = parser.parse_args()
    if options.text:
        print(json.dumps(evaluation(options.text)))
        return
    print(machine())
    print(f"unless varied: length {LENGTH}, batch {BATCH}, {SIZE} units")
    texts()
    kinds = ("RNN", "GRU", "LSTM")
    makers = {
        "length": {kind: lambda n, kind=kind: recurrence(kind, length=n) for kind in kinds},
        "batch": {kind: lambda n, kind=kind: recurrence(kind, batch=n) for kind in kinds},
        "hidden size": {kind: lambda n, kind=kind: recurrence(kind, size=n) for kind in kinds},
        "vocabulary": {
            "full softmax": lambda n: output(FullSoftmax, n),
            "adaptive softmax": lambda n: output(AdaptiveSoftmax, n),
        },
    }
    results = {name: table(name, SIZES[name], makers[name], options.seconds) for name in SIZES}
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
