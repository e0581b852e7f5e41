"""How far back gradients reach in trained models: half-lives over many pieces of a held-out text.

    python benchmarks/half_life.py DIR [DIR ...] [--split valid] [--pieces 20] [--length 200]

`recurra gradients` shows one text; a half-life of one text depends on it, most of all in a simple RNN, whose gradients
may grow for a while. Here each model reads pieces from all over the text that it was validated on, each from its zero
state. The curve is the mean of theirs; beside its half-life stand the least and the greatest of single pieces, and what
is left of the gradient some tokens back.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import numpy as np
from side_by_side import machine

import recurra
from recurra import gradients
from recurra.evaluation import row_starts
from recurra.gradients import Decay

SHOWN = (1, 5, 20, 50, 100)  # tokens back


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+", metavar="DIR")
    parser.add_argument("--split", choices=("valid", "test"), default="valid")
    parser.add_argument("--pieces", type=int, default=20)
    parser.add_argument("--length", type=int, default=200, help="tokens of a piece")
    arguments = parser.parse_args()
    print(machine())
    print(f"{arguments.pieces} pieces of {arguments.length} tokens, {arguments.split}, last layer, float64")
    shown = [k for k in SHOWN if k < arguments.length]
    print(f"{'':34}  half-life (of pieces)   half at  R²    left after {', '.join(map(str, shown))}")
    for directory in arguments.directories:
        lm = recurra.load(directory, device="cpu")
        text = lm.held_out(arguments.split)
        if text is None or len(text) < arguments.length:
            raise SystemExit(f"{directory}: its {arguments.split} text is not there, or shorter than --length")
        model = copy.deepcopy(lm.model).double()
        begins = np.linspace(0, len(text) - arguments.length, arguments.pieces).astype(int)
        rows = row_starts(lm.model.settings.reset, text.document_starts, text.line_starts)
        maps = []
        for begin in begins:
            end = begin + arguments.length
            starts = [int(row) - begin for row in rows if begin < row < end]
            maps.append(gradients.gradient_map(gradients.unroll_model(model, text.tokens[begin:end], starts=starts)))
        for state in ("hidden",) if maps[0].cell is None else ("hidden", "cell"):
            pieces = [gradients.decay(each, state=state) for each in maps]
            mean = np.mean([each.relative for each in pieces], axis=0)
            fitted = pieces[0].fitted
            rate = gradients.fitted_rate(pieces[0].distances[1 : fitted + 1], mean[1 : fitted + 1])
            curve = Decay(pieces[0].distances, mean, pieces[0].counts, rate, fitted)
            least, most = (bound([each.half_life for each in pieces]) for bound in (np.nanmin, np.nanmax))
            name = f"{'/'.join(Path(directory).resolve().parts[-2:])}, {state}"
            left = ", ".join(f"{mean[k]:.2g}" for k in shown)
            print(
                f"{name:34}  {curve.half_life:7.3g} ({least:.3g} to {most:.3g})".ljust(62)
                + f"{curve.halved or '-':>5}  {curve.straightness:.2f}   {left}",
                flush=True,
            )


if __name__ == "__main__":
    main()
