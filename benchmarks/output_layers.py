"""Output layers at growing vocabularies: time of a training step, and its peak memory.

    python benchmarks/output_layers.py [--seconds 20] [--words 10000 33278 100000 793471] [--full-up-to 1000000]
        [--samples 2000] [--batch 64] [--chunk 20]

The model reads 256 features a word by an LSTM of 512 units, projected to 256 again, and shares the words' vectors
between input and output. A step is forward and backward pass, clipping, and Adagrad. Words are drawn by Zipf's law, as
in a text. Layers take turns in a process for each vocabulary; peak memory is that of a process for each layer, beside
that of a tiny model's. The full softmax goes through the whole vocabulary, and takes its time and memory at the
largest: ``--full-up-to`` leaves it out beyond that many words.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import torch
from side_by_side import machine, medians
from torch import nn

from recurra.nn import LSTM
from recurra.nn.embedding import AdaptiveEmbedding, Embedding
from recurra.nn.sampled import NCE, BlackOut, SampledSoftmax
from recurra.nn.softmax import AdaptiveSoftmax, FullSoftmax
from recurra.optimization import build_optimizer, clip_gradients

FEATURES, UNITS = 256, 512
WORDS = (10_000, 33_278, 100_000, 793_471)
LAYERS = ("full", "adaptive", "sampled", "nce", "blackout")
SAMPLED = {"sampled": SampledSoftmax, "nce": NCE, "blackout": BlackOut}
TINY = 64  # words of the model whose memory is that of the libraries


def step_of(layer: str, words: int, samples: int, batch: int, chunk: int) -> Callable[[], float]:
    """A step of a model with this output layer."""
    torch.manual_seed(1)
    shares = 1 / np.arange(1, words + 1)
    counts = np.maximum(1e8 * shares / shares.sum(), 1).astype(int).tolist()
    draw = np.random.default_rng(1)
    tokens = torch.from_numpy(draw.choice(words, (chunk + 1, batch), p=shares / shares.sum()))
    embedding: nn.Module
    if layer == "adaptive":
        output = AdaptiveSoftmax(FEATURES, counts)
        embedding = AdaptiveEmbedding(output)
    else:
        embedding = Embedding(words, FEATURES)
        weight = embedding.weight
        output = (
            FullSoftmax(FEATURES, counts, weight=weight)
            if layer == "full"
            else SAMPLED[layer](FEATURES, counts, samples=min(samples, words), weight=weight)
        )
    recurrent = LSTM(FEATURES, UNITS, proj_size=FEATURES)
    model = nn.ModuleList([embedding, recurrent, output])
    parameters = list(model.parameters())
    optimizer = build_optimizer("adagrad", model, learning_rate=0.1)

    def step() -> float:
        optimizer.zero_grad()
        hidden, _ = recurrent(embedding(tokens[:-1]))
        loss = output.loss(hidden, tokens[1:]) / tokens[1:].numel()
        loss.backward()
        clip_gradients(parameters, norm=1.0, value=None)
        optimizer.step()
        return loss.item()

    return step


def in_a_process(flags: list[str], **options: object) -> str:
    """What this program prints with these flags and some more."""
    more = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, __file__, *flags, *more]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20, help="of timing at each vocabulary")
    parser.add_argument("--words", type=int, nargs="+", default=WORDS, help="vocabularies")
    parser.add_argument("--full-up-to", type=int, default=1_000_000, help="words of the largest full softmax")
    for name, default in (("samples", 2_000), ("batch", 64), ("chunk", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--time", type=int, help="time the steps at this vocabulary, in this process")
    parser.add_argument("--memory", type=int, help="make steps at this vocabulary, in this process")
    parser.add_argument("--layers", nargs="+", default=LAYERS, choices=LAYERS, help="which take part")
    options = parser.parse_args()
    sizes = options.samples, options.batch, options.chunk
    if options.time:
        steps = {layer: step_of(layer, options.time, *sizes) for layer in options.layers}
        print(json.dumps(medians(steps, seconds=options.seconds)))
        return
    if options.memory:
        step = step_of(options.layers[0], options.memory, *sizes)
        for _ in range(3):
            step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return

    flags = ["--seconds", str(options.seconds), "--samples", str(options.samples)]
    flags += ["--batch", str(options.batch), "--chunk", str(options.chunk)]
    print(machine())
    print(f"{options.chunk} x {options.batch} tokens, {options.samples} samples\n")
    print(f"{'words':>8}  {'layer':10} {'step':>9} {'tokens/s':>9} {'peak':>10} {'by sizes':>10}")
    for words in options.words:
        layers = [layer for layer in options.layers if layer != "full" or words <= options.full_up_to]
        times = json.loads(in_a_process([*flags, "--layers", *layers], time=words))
        for layer in layers:
            peak, libraries = (int(in_a_process(flags, layers=layer, memory=size)) / 1024 for size in (words, TINY))
            rate = options.batch * options.chunk / times[layer]
            print(
                f"{words:8}  {layer:10} {times[layer] * 1e3:6.0f} ms {rate:9.0f}"
                f" {peak:6.0f} MiB {peak - libraries:6.0f} MiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
