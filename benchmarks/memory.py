"""Peak memory of a training step of a word-level language model: each in a process of its own.

    python benchmarks/memory.py [--words 33278] [--size 650] [--batch 20] [--chunk 35]

The steps are those of lm_step.py. Beside the peak of the whole process stands what the sizes add to it: the difference
from the same step of a tiny model, which loads the same libraries.
"""

from __future__ import annotations

import resource
import subprocess
import sys

from lm_step import arguments, steps
from side_by_side import machine

TINY = ["--words", "64", "--size", "16", "--batch", "1", "--chunk", "2"]


def peak_of(name: str, flags: list[str]) -> float:
    """MiB of a process that makes three such steps."""
    command = [sys.executable, __file__, *flags, "--only", name]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1024


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--only", help="run this step in this process")
    options = parser.parse_args()
    if options.only:
        step = steps(options.words, options.size, options.batch, options.chunk, only=options.only)[options.only]
        for _ in range(3):
            step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    print(machine())
    print(f"{'':24} {'peak':>12} {'of peer':>8} {'by sizes':>12} {'of peer':>8}")
    of_peer: list[float] = []
    for name in ("PyTorch's example", "Recurra, full softmax", "Recurra, adaptive"):
        peak = peak_of(name, sys.argv[1:])
        found = [peak, peak - peak_of(name, TINY)]
        of_peer = of_peer or found
        cells = (f"{value:8.0f} MiB {value / peer:8.2f}" for value, peer in zip(found, of_peer, strict=True))
        print(f"{name:24} " + " ".join(cells))


if __name__ == "__main__":
    main()
