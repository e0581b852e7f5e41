"""The matrix products of an output layer: torch's BLAS, oneDNN and the compiled product, in GFLOP/s.

    python benchmarks/products.py

Rows are tokens, columns words; the three products are those of forward, of the hidden vectors' gradient, and of the
table's gradient. `recurra.nn.softmax` takes the first two from oneDNN and the third from the compiled product, which
reads both matrices as they lie in memory. Without a compiler the last column is oneDNN too.
"""

from __future__ import annotations

import torch
from side_by_side import machine, medians

from recurra.nn.products import product as compiled

# The head and the clusters of an adaptive softmax on WikiText-2, a batch of 40 x 35 tokens; and a chunk of a full one.
SHAPES = {
    "head": (1392, 1783, 256),
    "cluster 1": (240, 8278, 128),
    "cluster 2": (112, 23219, 64),
    "full": (48, 33278, 256),
}


def main() -> None:
    print(machine())
    onednn = torch.ops.mkldnn._linear_pointwise
    print(f"{'':10} {'product':10} {'BLAS':>8} {'oneDNN':>8} {'compiled':>8}")
    for name, (rows, words, features) in SHAPES.items():
        hidden, weight = torch.randn(rows, features), torch.randn(words, features)
        bias, delta = torch.randn(words), torch.randn(rows, words)
        products = {
            "forward": (
                lambda h=hidden, w=weight, b=bias: torch.addmm(b, h, w.t()),
                lambda h=hidden, w=weight, b=bias: onednn(h, w, b, "none", [], ""),
                None,
            ),
            "hidden": (
                lambda d=delta, w=weight: torch.mm(d, w),
                lambda d=delta, w=weight: onednn(d, w.t(), None, "none", [], ""),
                lambda d=delta, w=weight: compiled(d, w),
            ),
            "table": (
                lambda d=delta, h=hidden: torch.mm(d.t(), h),
                lambda d=delta, h=hidden: onednn(d.t(), h.t(), None, "none", [], ""),
                lambda d=delta, h=hidden: compiled(d.t(), h),
            ),
        }
        for product, ways in products.items():
            seconds = medians({way: run for way, run in enumerate(ways) if run is not None})
            speeds = (
                f"{2e-9 * rows * words * features / seconds[way]:8.0f}" if way in seconds else "" for way in range(3)
            )
            print(f"{name:10} {product:10} " + " ".join(speeds))


if __name__ == "__main__":
    main()
