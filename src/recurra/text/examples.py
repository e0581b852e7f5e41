"""Examples of different lengths side by side: what taggers, translators and the like are trained on.

An example is a few arrays of its own. In a batch, those that go over time are padded to the longest, ``[time, batch,
...]``, and go with their lengths; numbers stand side by side, ``[batch]``. Nothing may read the padding: it is what
makes a result depend on its neighbours.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recurra.text.batches import MadeBatches, cuts

__all__ = ["Encoded", "ExampleBatch", "ExampleBatches", "collate"]

Arrays: TypeAlias = Mapping[str, NDArray[Any]]


class Encoded(NamedTuple):
    """An example as numbers.

    Attributes:
        arrays: by name; those with time have it as their first dimension, ``[time, ...]``.
        length: time steps that it counts for in a batch: those of its longest array.
        targets: how many things are to be predicted; the loss is a mean over them.
    """

    arrays: Arrays
    length: int
    targets: int


class ExampleBatch(NamedTuple):
    """Examples side by side.

    Attributes:
        arrays: ``[time, batch, ...]`` for what goes over time, ``[batch]`` for numbers.
        lengths: by the same names, valid steps of each column, int64 ``[batch]``, on the CPU.
        size: examples in the batch.
        tokens: things to be predicted in it.
    """

    arrays: dict[str, Tensor]
    lengths: dict[str, Tensor]
    size: int
    tokens: int

    def to(self, device: torch.device | str) -> ExampleBatch:
        """Return the batch on a device; lengths stay on the CPU, where packing needs them."""
        return self._replace(arrays={name: array.to(device) for name, array in self.arrays.items()})


def collate(examples: Sequence[Encoded]) -> ExampleBatch:
    """Put examples with arrays of the same names side by side, in their order. Padding is zeros."""
    arrays: dict[str, Tensor] = {}
    lengths: dict[str, Tensor] = {}
    for name, first in examples[0].arrays.items() if examples else ():
        parts = [example.arrays[name] for example in examples]
        if first.ndim == 0:
            arrays[name] = torch.from_numpy(np.stack(parts))
            continue
        sizes = np.array([len(part) for part in parts], np.int64)
        padded = np.zeros((sizes.max(), len(parts), *first.shape[1:]), first.dtype)
        for column, part in enumerate(parts):
            padded[: len(part), column] = part
        arrays[name], lengths[name] = torch.from_numpy(padded), torch.from_numpy(sizes)
    return ExampleBatch(arrays, lengths, len(examples), sum(example.targets for example in examples))


class ExampleBatches(MadeBatches[ExampleBatch]):
    """Batches of examples of about the same length, so that little of them is padding.

    Examples are shuffled, sorted by length (so equal lengths stay shuffled), cut into batches, and the batches
    shuffled: all by ``seed`` and ``epoch`` alone. With ``shuffled=False`` batches come in falling length: for
    evaluation, where memory that does not suffice is noticed at once. :attr:`order` says which example is where.

    Args:
        examples: all of them.
        batch_size: examples in a batch, at most.
        batch_tokens: time steps in a batch, padding among them, at most; a longer example has a batch of its own.
        shuffled: whether the order is one of chance.
        seed: of the run's random choices.
        epoch: how many passes came before.
        rank: which share of each batch to give; every rank has as many batches, the last of them may be empty.
        ranks: how many shares there are.
    """

    def __init__(
        self,
        examples: Sequence[Encoded],
        *,
        batch_size: int,
        batch_tokens: int | None = None,
        shuffled: bool = True,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self._examples, self._rank, self._ranks = examples, rank, ranks
        lengths = np.array([example.length for example in examples], np.int64)
        random = np.random.default_rng((seed, epoch))
        chosen = random.permutation(len(lengths)) if shuffled else np.arange(len(lengths))
        chosen = chosen[np.argsort(lengths[chosen], kind="stable")]
        firsts = cuts(np.maximum(lengths[chosen], 1), batch_tokens, batch_size)
        bounds = [slice(*pair) for pair in itertools.pairwise([*firsts, len(chosen)])]
        self.order: list[NDArray[np.int64]] = [chosen[part][::-1] for part in bounds][::-1]
        if shuffled:
            self.order = [self.order[place] for place in random.permutation(len(self.order))]

    def __len__(self) -> int:
        return len(self.order)

    def _make(self, number: int) -> ExampleBatch:
        return collate([self._examples[place] for place in self.order[number][self._rank :: self._ranks]])
