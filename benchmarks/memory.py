"""Peak memory of a training step of a word-level language model: each in a process of its own.

    python benchmarks/memory.py [--words 33278] [--size 650] [--batch 20] [--chunk 35]

The steps are those of lm_step.py. The peak is that of the whole process; beside it, what it is above the peak of a
process that has only imported the libraries.
"""

from __future__ import annotations

import resource
import subprocess
import sys

from lm_step import arguments, steps
from side_by_side import machine

NOTHING = "nothing"


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--only", help="run this step in this process")
    options = parser.parse_args()
    if options.only:
        if options.only != NOTHING:
            step = steps(options.words, options.size, options.batch, options.chunk, only=options.only)[options.only]
            for _ in range(3):
                step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    print(machine())
    peaks = {}
    for name in (NOTHING, "PyTorch's example", "Recurra, full softmax", "Recurra, adaptive"):
        command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
        peaks[name] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1024
    peer = peaks["PyTorch's example"]
    for name, peak in peaks.items():
        above, ratio = peak - peaks[NOTHING], (peak - peaks[NOTHING]) / (peer - peaks[NOTHING])
        print(f"{name:24} {peak:8.0f} MiB {above:8.0f} MiB above {peak / peer:6.2f} {ratio:6.2f} x")


if __name__ == "__main__":
    main()
