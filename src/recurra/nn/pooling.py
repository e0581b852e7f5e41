"""From the states of a sequence to one vector; and which steps of a padded batch are there at all.

Letters in shapes: T time steps of the padded batch, N sequences, F features of a state. What lies beyond a sequence's
end is never read, and a sequence without any step gives zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recurra.config import UserError

__all__ = ["POOLINGS", "Pooling", "checked_lengths", "valid_steps"]

POOLINGS = ("final", "max", "mean", "attention")


def checked_lengths(lengths: Tensor | Sequence[int] | None, time: int, batch: int) -> Tensor:
    """Return the lengths of a padded batch as int64 ``[N]`` on the CPU; None says that every sequence fills it.

    Raises:
        ValueError: not one whole number from 0 to ``time`` for each sequence.
    """
    if lengths is None:
        return torch.full((batch,), time, device="cpu")
    ends = torch.as_tensor(lengths if len(lengths) else torch.zeros(0, dtype=torch.long)).detach().cpu()
    if ends.shape != (batch,) or ends.is_floating_point() or ends.dtype == torch.bool:
        raise ValueError(f"lengths: expected {batch} integers, one per sequence; got {ends.dtype} {tuple(ends.shape)}")
    if ((ends < 0) | (ends > time)).any():
        raise ValueError(f"lengths: expected 0 to {time}, the steps of the batch; got {ends.min()} to {ends.max()}")
    return ends.long()


def valid_steps(lengths: Tensor, time: int) -> Tensor:
    """Say of each step of each sequence whether it is there, ``[T, N]``, from lengths ``[N]`` on the same device."""
    return torch.arange(time, device=lengths.device)[:, None] < lengths


class Pooling(nn.Module):
    r"""From states ``[T, N, F]`` to one vector a sequence, ``[N, F]``.

    ``'final'``: what each direction knows when it has read everything: the forward half of the last step, and the
    backward half of the first. ``'max'``, ``'mean'``: of each feature over the steps. ``'attention'`` (Yang et al.
    2016, "Hierarchical Attention Networks", equations 5 to 7), with a learned query :math:`u_w`:

    .. math:: u_t = \tanh(W h_t + b), \quad \alpha_t = \mathrm{softmax}_t(u_t^\top u_w), \quad v = \sum_t \alpha_t h_t

    Args:
        kind: one of ``POOLINGS``.
        features: F.
        directions: 2 if the states are those of both directions, concatenated; only ``'final'`` asks.

    Raises:
        UserError: another kind.
        ValueError: a state that cannot be halved.
    """

    def __init__(self, kind: str, features: int, *, directions: int = 1) -> None:
        super().__init__()
        if kind not in POOLINGS:
            raise UserError(f"pooling: expected one of {', '.join(POOLINGS)}, got {kind!r}")
        if directions not in (1, 2) or features % directions:
            raise ValueError(f"directions: expected 1, or 2 for an even number of features; got {directions}")
        self.kind = kind
        self.features = features
        self.directions = directions
        if kind == "attention":
            self.hidden = nn.Linear(features, features)
            self.query = nn.Parameter(torch.randn(features) * features**-0.5)

    @property
    def output_size(self) -> int:
        """Features of a pooled vector."""
        return self.features

    def forward(self, states: Tensor, lengths: Tensor | Sequence[int] | None = None) -> Tensor:
        """Return the pooled vectors, ``[N, F]``.

        Args:
            states: ``[T, N, F]``.
            lengths: of each sequence ``[N]``, from 0 to T; None if all have T steps.
        """
        states, valid, ends = self._checked(states, lengths)
        if not len(states):
            return states.new_zeros(states.shape[1:])
        if self.kind == "final":
            last = states[(ends - 1).clamp(min=0), torch.arange(len(ends), device=ends.device)]
            if self.directions == 2:
                half = self.features // 2
                last = torch.cat((last[:, :half], states[0, :, half:]), 1)
            return last  # of an empty sequence that is padding, which is 0 by now
        if self.kind == "max":
            highest = states.masked_fill(~valid[..., None], -torch.inf).amax(0)
            return highest.masked_fill((ends == 0)[:, None], 0.0)
        if self.kind == "mean":
            return states.sum(0) / ends.clamp(min=1)[:, None]
        return torch.einsum("tn,tnf->nf", self._weights(states, valid).to(states.dtype), states)

    def weights(self, states: Tensor, lengths: Tensor | Sequence[int] | None = None) -> Tensor:
        """Return how much of each step attention takes, ``[T, N]``: 0 in padding, each sequence's sum is 1.

        Raises:
            ValueError: the kind is not ``'attention'``.
        """
        if self.kind != "attention":
            raise ValueError(f"weights: only pooling by attention has them, not by {self.kind}")
        states, valid, _ = self._checked(states, lengths)
        return self._weights(states, valid)

    def _checked(self, states: Tensor, lengths: Tensor | Sequence[int] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the states with zeros in padding, which steps are there, and the lengths, all on one device."""
        if states.dim() != 3 or states.shape[2] != self.features:
            raise ValueError(f"Pooling: expected states [T, N, {self.features}], got {tuple(states.shape)}")
        ends = checked_lengths(lengths, states.shape[0], states.shape[1]).to(states.device)
        valid = valid_steps(ends, len(states))
        return states.masked_fill(~valid[..., None], 0.0), valid, ends

    def _weights(self, states: Tensor, valid: Tensor) -> Tensor:
        scores: Tensor = self.hidden(states).tanh() @ self.query
        # The least number rather than -inf: a sequence of length 0 then has finite weights, to be set to 0.
        scores = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
        scores = scores.masked_fill(~valid, torch.finfo(scores.dtype).min)
        return scores.softmax(0).masked_fill(~valid, 0.0)

    def extra_repr(self) -> str:
        """Name the kind for ``print(module)``."""
        return f"{self.kind!r}, {self.features}, directions={self.directions}"
