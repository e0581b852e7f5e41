"""How much of the gradient reaches the item that is to be recalled, while networks learn to recall it.

    python benchmarks/recall_gradient.py [--distance 100] [--updates 1000] [--seed 1]

The networks and texts of `recurra probe recall`: 64 units, 16 items, sentences. Before training hardly anything comes
back over a hundred tokens. This shows in which cells that changes, and that recall follows it.
"""

from __future__ import annotations

import argparse

import torch
from side_by_side import machine

from recurra.probing import RecallModel, gradient_left, task_of
from recurra.probing.made_up_recall import VALID
from recurra.probing.made_up_texts import Batches, RecallBatch, Task, draw_batch
from recurra.training import Trainer, TrainerSettings

ITEMS, UNITS, BATCH = 16, 64, 64
NETWORKS = (("rnn", None), ("gru", None), ("lstm", 0.0), ("lstm", 1.0), ("lstm", 3.0), ("lstm", 5.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--distance", type=int, default=100)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    task = task_of("sentence", arguments.distance, ITEMS)
    every = max(1, arguments.updates // 10)
    updates = 10 * every
    print(machine())
    print(f"distance {arguments.distance}, seed {arguments.seed}: gradient left at the item / accuracy, at update")
    print(f"{'':20}" + "".join(f"{update:>14,}" for update in range(0, updates + 1, every)))
    for cell, bias in NETWORKS:
        found = watch(cell, bias, task, arguments.seed, updates, every)
        name = cell if bias is None else f"{cell}, bias {bias:g}"
        columns = [f"{left:.0e} / {100 * accuracy:.0f}" for left, accuracy in found]
        print(f"{name:20}" + "".join(f"{column:>14}" for column in columns), flush=True)


def watch(cell: str, bias: float | None, task: Task, seed: int, updates: int, every: int) -> list[tuple[float, float]]:
    """Train a network; what reached the item, and how many items were recalled, from before the first update on."""
    torch.manual_seed(seed)
    model = RecallModel(cell, len(task.vocabulary), UNITS, bias)
    watched = draw_batch(task, 256, (seed, VALID))
    found = [reached(model, watched)]

    def score() -> tuple[str, float]:
        found.append(reached(model, watched))
        return "accuracy", found[-1][1]

    settings = TrainerSettings(
        max_steps=updates, learning_rate=3e-3, clip_norm=1.0, evaluate_every=every, precision="float32", seed=seed
    )
    Trainer(
        model,
        settings,
        lambda epoch: Batches([task], BATCH, (seed, epoch)),
        valid=[watched],
        score=score,
        carry_state=False,
    ).run()
    return found


def reached(model: RecallModel, texts: RecallBatch) -> tuple[float, float]:
    """What is left of the gradient at the item, and the part of items that are recalled."""
    with torch.enable_grad():
        left = gradient_left(model, texts)
    with torch.no_grad():
        accuracy = (model.scores(texts.inputs)[0].argmax(-1) == texts.targets[-1]).double().mean()
    return left, float(accuracy)


if __name__ == "__main__":
    main()
