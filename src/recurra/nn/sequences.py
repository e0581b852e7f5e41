"""How a batch of sequences lies in memory, and the way back to how the caller laid it out.

Letters as in torch.nn: L is the length in time steps, N the batch size. Inside, data is ``[L, N, features]``, or packed
where lengths differ, as in torch's PackedSequence: the sequences are sorted, long ones first, so that the N_t still
running at step t are the first N_t; the data is those rows, step after step, ``[N_0 + N_1 + ..., features]``. Padding
is never read, whatever is in it, and no work is done on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

__all__ = ["Sequences", "arrange"]


class Sequences(NamedTuple):
    """A batch of sequences as it is inside."""

    data: Tensor  # [L, N, features], or packed
    batch_size: int  # N
    restore: Callable[[Tensor], Tensor | PackedSequence]  # from such data, of any features, to how the input came
    batch_sizes: Tensor | None = None  # if packed: N_t [L], on the CPU
    order: Tensor | None = None  # if sorted: of each row, its place in the batch [N]

    @property
    def steps(self) -> int:
        """L, or the length of the longest sequence."""
        return len(self.data if self.batch_sizes is None else self.batch_sizes)

    def spread(self, values: Tensor) -> Tensor:
        """Return ``values [N, features]``, rows as in the data, in a form that broadcasts with the data."""
        if self.batch_sizes is None:
            return values
        _, rows = _running(self.batch_sizes)
        return values[rows.to(values.device)]


def arrange(
    input: Tensor | PackedSequence, lengths: Tensor | Sequence[int] | None = None, batch_first: bool = False
) -> Sequences:
    """Bring a batch to the form that is used inside.

    Args:
        input: ``[L, N, features]``, with ``batch_first`` ``[N, L, features]``; ``[L, features]`` for one sequence
            alone; or packed.
        lengths: of each sequence of a padded batch ``[N]``, from 0 to L, in any order, on any device.

    Raises:
        ValueError: input of another shape, or lengths that do not belong to it.
    """
    if lengths is not None and (isinstance(input, PackedSequence) or input.dim() != 3):
        raise ValueError("lengths: expected a padded batch, [L, N, features] or [N, L, features], to go with them")
    if isinstance(input, PackedSequence):
        data, batch_sizes, order, inverse = input

        def repack(output: Tensor) -> PackedSequence:
            return PackedSequence(output, batch_sizes, order, inverse)

        return Sequences(data, int(batch_sizes[0]), repack, batch_sizes, order)
    if input.dim() == 2:
        return Sequences(input.unsqueeze(1), 1, lambda output: output.squeeze(1))
    if input.dim() != 3:
        raise ValueError(f"expected input to be 2D or 3D, got {input.dim()}D instead")
    data = input.transpose(0, 1) if batch_first else input
    padded = Sequences(data, data.shape[1], lambda output: output.transpose(0, 1) if batch_first else output)
    return padded if lengths is None else _pack(padded, lengths)


def _pack(padded: Sequences, lengths: Tensor | Sequence[int]) -> Sequences:
    """Pack a batch ``[L, N, features]``, unless every sequence fills it."""
    time, batch, _ = padded.data.shape
    ends = torch.as_tensor(lengths if len(lengths) else torch.zeros(0, dtype=torch.long)).detach().cpu()
    if ends.shape != (batch,) or ends.is_floating_point() or ends.dtype == torch.bool:
        raise ValueError(f"lengths: expected {batch} integers, one per sequence; got {ends.dtype} {tuple(ends.shape)}")
    if ((ends < 0) | (ends > time)).any():
        raise ValueError(f"lengths: expected 0 to {time}, the length of the input; got {ends.min()} to {ends.max()}")
    if (ends == time).all():
        return padded
    order = ends.argsort(descending=True, stable=True)
    batch_sizes = (ends > torch.arange(int(ends.max()))[:, None]).sum(1)
    steps, rows = _running(batch_sizes)
    device = padded.data.device
    place = (steps.to(device), order[rows].to(device))

    def restore(output: Tensor) -> Tensor | PackedSequence:
        return padded.restore(output.new_zeros(time, batch, output.shape[-1]).index_put(place, output))

    return Sequences(padded.data[place], batch, restore, batch_sizes, order.to(device))


def _running(batch_sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of packed data, its step and its row in the sorted batch."""
    rows = torch.arange(int(batch_sizes[0]) if len(batch_sizes) else 0)
    steps, rows = (rows < batch_sizes[:, None]).nonzero(as_tuple=True)
    return steps, rows
