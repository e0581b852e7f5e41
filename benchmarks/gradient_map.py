"""Norms of ∂J(t)/∂h(i) for all pairs of steps: recurra.gradients, in one pass, against T backward passes of autograd.

    python benchmarks/gradient_map.py [--hidden-size 650] [--layers 2] [--length 200] [--rounds 3] [--dtype float32]

All get the same numbers, which is checked, from the same LSTM, and all of them read the text too. The T
passes go over one graph that is kept, in two ways: ``J[t].backward()`` with ``retain_grad()`` of the states, as one
would write it, which makes gradients of the weights besides; and ``torch.autograd.grad`` with respect to the states
alone. The one pass is bound by its products: GFLOP/s are those of T²/2 vectors through every matrix.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from side_by_side import keep_memory, machine, peak

from recurra.gradients import Unrolled, gradient_map
from recurra.nn import LSTM

CLASSES = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden-size", type=int, default=650)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    arguments = parser.parse_args()
    keep_memory()
    torch.manual_seed(1)
    size, layers, length = arguments.hidden_size, arguments.layers, arguments.length
    dtype = getattr(torch, arguments.dtype)
    stack = LSTM(size, size, layers, dtype=dtype).eval()
    inputs, scores = torch.randn(length, size, dtype=dtype), torch.nn.Linear(size, CLASSES, dtype=dtype)
    targets = torch.randint(CLASSES, (length,))

    def loss(outputs: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(scores(outputs), targets, reduction="none")

    def one_pass() -> np.ndarray:
        return gradient_map(Unrolled(stack, inputs, loss)).hidden

    def passes(whole: bool) -> np.ndarray:
        outputs, _, trace = stack(inputs[:, None], trace=True)
        losses, norms = loss(outputs[:, 0]), np.zeros((layers, length, length))
        states = [layer[0]["hidden"] for layer in trace.layers]
        if whole:
            for each in states:
                for state in each:
                    state.retain_grad()
        for t in range(length):
            needed = [state for each in states for state in each[: t + 1]]  # all that J(t) depends on
            if whole:
                losses[t].backward(retain_graph=True)
                found = [state.grad for state in needed]
                stack.zero_grad()
                for state in needed:
                    state.grad = None
            else:
                found = torch.autograd.grad(losses[t], needed, retain_graph=True)
            norms[:, t, : t + 1] = torch.stack([gradient.norm() for gradient in found]).view(layers, t + 1)
        return norms

    ways: dict[str, Callable[[], np.ndarray]] = {
        "one pass": one_pass,
        "T times autograd.grad": lambda: passes(whole=False),
        "T times backward": lambda: passes(whole=True),
    }
    gradient_map(Unrolled(stack, inputs[:2], lambda outputs: outputs.sum(1)))  # torch loads what it needs for batches
    print(machine())
    print(f"LSTM, {layers} layers of {size} units, {length} steps, {arguments.dtype}")
    results, times = {}, {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, run in ways.items():
            start = time.perf_counter()
            results[name] = run()
            times[name].append(time.perf_counter() - start)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    own = seconds["one pass"]
    for name, value in seconds.items():
        print(f"  {name:22} {value:8.2f} s {value / own:8.1f}")
    products = length * (length + 1) / 2 * (2 * layers - 1) * 2 * 4 * size**2
    print(f"  one pass: {1e-9 * products / own:.0f} GFLOP/s, a large square product of float32 {1e-9 * peak():.0f}")
    for name, norms in results.items():
        np.testing.assert_allclose(norms, results["one pass"], rtol=1e-3, atol=1e-4 * norms.max(), err_msg=name)


if __name__ == "__main__":
    main()
