"""The conditional random field over a chain of tags: which tag follows which (Lafferty et al. 2001).

A tagger scores every tag at every step (``emissions``); the field adds scores of a tag following another, beginning
and ending a sequence, and normalises over whole sequences (Lample et al. 2016, equation 1):

    score(y) = start[y_1] + sum_t emission_t[y_t] + sum_t transition[y_t, y_(t+1)] + end[y_T]
    -log p(y) = log sum_y' exp score(y') - score(y)

Letters in shapes: T time steps, N sequences, C tags.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from recurra.config import UserError

from .pooling import checked_lengths, valid_steps

__all__ = ["SCHEMES", "Allowed", "LinearChainCRF", "bio_constraints"]

SCHEMES = ("bio", "iob1", "bioes")

# The score of what is forbidden. Beside any score that can come up its exponential is exactly 0; unlike -inf it can be
# subtracted from itself.
FORBIDDEN = -1e30
# Steps between two rescalings of the forward sums. In float64 they may shrink by e**-80 a step in the meantime.
RESCALED_EVERY = 8


class Allowed(NamedTuple):
    """What sequences of tags are made of, as truth values."""

    transitions: Tensor  # [C, C], from row to column
    starts: Tensor  # [C]
    ends: Tensor  # [C]


def bio_constraints(tags: Sequence[tuple[str, str]], scheme: str) -> Allowed:
    """Say which tags may follow which where tags mark chunks, such as ``B-PER``, ``I-PER`` and ``O``.

    ``'bio'`` (IOB2): a chunk begins with B; ``I-X`` follows ``B-X`` or ``I-X`` only. ``'iob1'`` (Ramshaw and Marcus
    1995): a chunk begins with I, and with B only right after a chunk of the same kind; so ``B-X`` follows ``B-X`` or
    ``I-X`` only. ``'bioes'``: a chunk is ``S-X`` alone, or runs from ``B-X`` over any number of ``I-X`` to ``E-X``.

    Args:
        tags: letter and kind of each, in the order of their numbers, as from
            :func:`recurra.text.tag_schemes.parse_tag`. The kind may be empty; that of O is.
        scheme: one of ``SCHEMES``, in whatever case.

    Raises:
        UserError: another scheme, or a tag that it does not have.
    """
    name = scheme.lower()
    if name not in SCHEMES:
        raise UserError(f"scheme: expected one of {', '.join(SCHEMES)}, got {scheme!r}")
    letters = "BIOES" if name == "bioes" else "BIO"
    places = list(tags)
    for letter, kind in places:
        if letter not in tuple(letters) or (letter == "O" and kind):
            expected = ", ".join("O" if each == "O" else f"{each}-..." for each in letters)
            tag = f"{letter}-{kind}" if kind else letter
            raise UserError(f"tag {tag!r} is not of scheme {name}: expected {expected}; choose another scheme")

    outside = ("O", "")  # a sequence begins and ends as if O stood around it
    return Allowed(
        torch.tensor([[_follows(name, one, other) for other in places] for one in places], dtype=torch.bool).view(
            len(places), len(places)
        ),
        torch.tensor([_follows(name, outside, place) for place in places], dtype=torch.bool),
        torch.tensor([_follows(name, place, outside) for place in places], dtype=torch.bool),
    )


def _follows(scheme: str, one: tuple[str, str], other: tuple[str, str]) -> bool:
    """Whether the second of two tags, letter and kind, may follow the first."""
    (before, kind), (after, next_kind) = one, other
    if scheme == "bioes":
        inside = before in "BI"
        return after in "IE" and kind == next_kind if inside else after in "OBS"
    bound = "I" if scheme == "bio" else "B"  # the letter that needs a chunk of its kind before it
    return after != bound or (before in "BI" and kind == next_kind)


class LinearChainCRF(nn.Module):
    """A linear-chain conditional random field on top of a tagger's scores.

    All scores of its own begin at 0, where it is a softmax at each step. What is not allowed has probability exactly 0,
    in training as in decoding: all sequences that are allowed share the whole probability, and training needs gold
    sequences that are. Sums are taken in float64, whatever the scores come in; autocast has nothing to say.

    Args:
        tags: C.
        allowed: which transitions, starts and ends there are, as from :func:`bio_constraints`; None for all. It is not
            in the state dictionary.
        labels: names of the tags, for messages.

    Raises:
        ValueError: ``allowed`` or ``labels`` not of C tags.

    Attributes:
        transitions: score of a tag (column) right after another (row), ``[C, C]``.
        starts: score of the first tag, ``[C]``.
        ends: score of the last tag, ``[C]``.
    """

    allowed_transitions: Tensor
    allowed_starts: Tensor
    allowed_ends: Tensor

    def __init__(self, tags: int, *, allowed: Allowed | None = None, labels: Sequence[str] | None = None) -> None:
        super().__init__()
        if tags < 1:
            raise ValueError(f"tags: expected at least 1, got {tags}")
        if labels is not None and len(labels) != tags:
            raise ValueError(f"labels: expected {tags}, one per tag, got {len(labels)}")
        self.tags = tags
        self.labels = None if labels is None else tuple(labels)
        self.transitions = nn.Parameter(torch.zeros(tags, tags))
        self.starts = nn.Parameter(torch.zeros(tags))
        self.ends = nn.Parameter(torch.zeros(tags))
        shapes = {"transitions": (tags, tags), "starts": (tags,), "ends": (tags,)}
        for name, shape in shapes.items():
            mask = torch.ones(shape, dtype=torch.bool) if allowed is None else torch.as_tensor(getattr(allowed, name))
            if mask.shape != shape or mask.dtype != torch.bool:
                raise ValueError(f"allowed {name}: expected bool {shape}, got {mask.dtype} {tuple(mask.shape)}")
            self.register_buffer(f"allowed_{name}", mask.clone(), persistent=False)

    def loss(self, emissions: Tensor, targets: Tensor, lengths: Tensor | Sequence[int] | None = None) -> Tensor:
        """Return -log p of the target sequences, summed over the batch, in nats; a sequence of length 0 adds nothing.

        Args:
            emissions: ``[T, N, C]``.
            targets: the right tags, ``[T, N]``; what lies beyond an end is not read, here and in `emissions`.
            lengths: of the sequences ``[N]``, from 0 to T, in any order; None if all have T steps.

        Raises:
            UserError: a target sequence that is not allowed.
            ValueError: shapes or numbers that do not fit.
        """
        emissions, ends = self._checked(emissions, lengths)
        if targets.shape != emissions.shape[:2]:
            raise ValueError(
                f"targets: expected {tuple(emissions.shape[:2])}, as emissions, got {tuple(targets.shape)}"
            )
        with torch.autocast(emissions.device.type, enabled=False):
            nats = self._log_partition(emissions, ends).sum() - self._score(emissions, targets, ends)
            return nats.to(emissions.dtype)

    @torch.no_grad()
    def decode(self, emissions: Tensor, lengths: Tensor | Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Return the best sequences of tags, int64 ``[T, N]`` with 0 in padding, and their scores, ``[N]``.

        For the arguments see :meth:`loss`. The Viterbi algorithm; of the way back only what is gone is worked out. The
        score, less the log-partition, is the sequence's log-probability; it is 0 at length 0.

        Raises:
            UserError: no sequence of such a length is allowed.
            ValueError: shapes or numbers that do not fit.
        """
        emissions, ends = self._checked(emissions, lengths)
        time, batch, _ = emissions.shape
        found = torch.zeros(time, batch, dtype=torch.long, device=emissions.device)
        best = emissions.new_zeros(batch)
        order, running = _sorted(ends)
        if not running:
            return found, best
        rows = order[: running[0]].to(emissions.device)
        with torch.autocast(emissions.device.type, enabled=False):
            transitions, starts, last = self._scores()
            arriving = transitions.t().contiguous()  # [to, from]
            # [steps, sequences, C]; turned into best sums
            scores = emissions[: len(running)].index_select(1, rows).to(transitions.dtype)
            steps = scores.unbind(0)
            steps[0].add_(starts)
            for before, here, count in zip(steps, steps[1:], running[1:], strict=False):
                here[:count] += (before[:count, None] + arriving).amax(-1)
            lasts = ends[order[: len(rows)]].to(rows.device) - 1
            highest, tag = (scores[lasts, torch.arange(len(rows), device=rows.device)] + last).max(-1)
            self._check_possible(highest, order)
            path = scores.new_zeros(len(running), len(rows), dtype=torch.long)
            for step in range(len(running) - 1, -1, -1):
                if step + 1 < len(running):
                    count = running[step + 1]  # those that go on: where each came from
                    came = (steps[step][:count] + arriving[tag[:count]]).argmax(-1)
                    tag = torch.cat((came, tag[count:])) if count < len(tag) else came
                path[step] = tag
        path.masked_fill_(~valid_steps(lasts + 1, len(running)), 0)
        found[: len(running), rows] = path
        best[rows] = highest.to(best.dtype)
        return found, best

    def marginals(self, emissions: Tensor, lengths: Tensor | Sequence[int] | None = None) -> Tensor:
        """Return the probability of each tag at each step given the whole sequence, ``[T, N, C]``; 0 in padding.

        For the arguments see :meth:`loss`. They are the gradient of the log-partition by the emissions, and are not to
        be differentiated themselves.
        """
        with torch.inference_mode(False), torch.enable_grad():
            checked, ends = self._checked(emissions.detach().clone(), lengths)
            checked.requires_grad_()
            with torch.autocast(emissions.device.type, enabled=False):
                total = self._log_partition(checked, ends).sum()
            (found,) = torch.autograd.grad(total, checked)
        return found.detach()

    def log_partition(self, emissions: Tensor, lengths: Tensor | Sequence[int] | None = None) -> Tensor:
        """Return the logarithm of the sum over all allowed sequences of exp(score), ``[N]``; 0 at length 0."""
        emissions, ends = self._checked(emissions, lengths)
        with torch.autocast(emissions.device.type, enabled=False):
            found = self._log_partition(emissions, ends)
            rows = ends.argsort(descending=True, stable=True)[: len(found)].to(found.device)
            return found.new_zeros(len(ends)).index_put((rows,), found).to(emissions.dtype)

    def _checked(self, emissions: Tensor, lengths: Tensor | Sequence[int] | None) -> tuple[Tensor, Tensor]:
        """Return emissions in float32 or better, and lengths on the CPU."""
        if emissions.dim() != 3 or emissions.shape[2] != self.tags:
            raise ValueError(f"emissions: expected [T, N, {self.tags}], got {tuple(emissions.shape)}")
        ends = checked_lengths(lengths, emissions.shape[0], emissions.shape[1])
        return emissions.to(torch.promote_types(emissions.dtype, torch.float32)), ends

    def _scores(self) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of transitions, starts and ends, in the precision of sums, with what is not allowed forbidden."""
        names = ("transitions", "starts", "ends")
        precise = _precise(self.transitions)
        parts = [
            getattr(self, name).to(precise).masked_fill(~getattr(self, f"allowed_{name}"), FORBIDDEN) for name in names
        ]
        return parts[0], parts[1], parts[2]

    def _log_partition(self, emissions: Tensor, ends: Tensor) -> Tensor:
        """The log-partitions of the sequences that are not empty, long ones first."""
        order, running = _sorted(ends)
        scores = self._scores()
        if not running:
            nothing = emissions[:0].sum() + sum(part[:0].sum() for part in scores)
            return nothing.to(scores[0].dtype).expand(0)
        rows = order[: running[0]]
        part = emissions[: len(running)]
        if not torch.equal(rows, torch.arange(emissions.shape[1])):
            part = part.index_select(1, rows.to(part.device))
        found: Tensor = _LogPartition.apply(part, *scores, running)
        self._check_possible(found.detach(), order)
        return found

    def _score(self, emissions: Tensor, targets: Tensor, ends: Tensor) -> Tensor:
        """The summed score of the target sequences: how often each tag, transition, start and end is in them."""
        ends = ends.to(emissions.device)
        valid = valid_steps(ends, len(emissions))
        steps, rows = valid.nonzero(as_tuple=True)
        tags = targets[steps, rows]
        if len(tags) and not 0 <= int(tags.min()) <= int(tags.max()) < self.tags:
            raise ValueError(f"targets: expected tags from 0 to {self.tags - 1}, got {tags.min()} to {tags.max()}")
        there = (ends > 0).nonzero()[:, 0]
        firsts = targets[:1, there].view(-1) if len(targets) else targets.new_zeros(0)
        lasts = targets[ends[there] - 1, there]
        goes_on = valid[1:]
        pairs = targets[:-1][goes_on] * self.tags + targets[1:][goes_on]
        counts = (
            torch.bincount(pairs, minlength=self.tags**2).view(self.tags, self.tags),
            torch.bincount(firsts, minlength=self.tags),
            torch.bincount(lasts, minlength=self.tags),
        )
        total = emissions[steps, rows, tags].to(_precise(emissions)).sum()
        masks = (self.allowed_transitions, self.allowed_starts, self.allowed_ends)
        if any((count.bool() & ~mask).any() for count, mask in zip(counts, masks, strict=True)):
            self._refuse(targets, ends)
        for count, part in zip(counts, (self.transitions, self.starts, self.ends), strict=True):
            total = total + (count * part.to(total.dtype)).sum()
        return total

    def _refuse(self, targets: Tensor, ends: Tensor) -> None:
        """Name the first step of a target sequence that is not allowed."""
        advice = "; mend the data, choose the scheme that it is in, or train without constraints"
        for row, length in enumerate(ends.tolist()):
            tags = targets[:length, row].tolist()
            if tags and not self.allowed_starts[tags[0]]:
                raise UserError(f"sequence {row}: begins with tag {self._name(tags[0])}, which is not allowed{advice}")
            for step, (one, other) in enumerate(itertools.pairwise(tags), start=1):
                if not self.allowed_transitions[one, other]:
                    raise UserError(
                        f"sequence {row}: at step {step} tag {self._name(other)} follows {self._name(one)}, which is"
                        f" not allowed{advice}"
                    )
            if tags and not self.allowed_ends[tags[-1]]:
                raise UserError(f"sequence {row}: ends with tag {self._name(tags[-1])}, which is not allowed{advice}")

    def _name(self, tag: int) -> str:
        return str(tag) if self.labels is None else self.labels[tag]

    def _check_possible(self, scores: Tensor, order: Tensor) -> None:
        """Refuse sequences, long ones first, whose best or summed score is that of something forbidden."""
        impossible = (scores < FORBIDDEN / 2).nonzero()
        if len(impossible):
            row = int(order[int(impossible[0])])
            raise UserError(f"sequence {row}: no tags are allowed for its length; give constraints that leave some")

    def extra_repr(self) -> str:
        """Name the size, and how much is forbidden, for ``print(module)``."""
        forbidden = int((~self.allowed_transitions).sum())
        return f"{self.tags}" + (f", forbidden transitions={forbidden}" if forbidden else "")


def _precise(like: Tensor) -> torch.dtype:
    """What sums are taken in: float64 where the device has it."""
    return torch.float32 if like.device.type == "mps" else torch.float64


def _sorted(ends: Tensor) -> tuple[Tensor, list[int]]:
    """Return the order of sequences, long ones first, and how many are still running at each step."""
    order = ends.argsort(descending=True, stable=True)
    longest = int(ends.max()) if len(ends) else 0
    return order, (ends > torch.arange(longest)[:, None]).sum(1).tolist()


class _LogPartition(torch.autograd.Function):
    """The forward algorithm, and as its gradient the backward algorithm, on sums instead of their logarithms.

    A step of the loop is a product with exp(transitions), and a scaling now and then (Rabiner 1989, section V.A); the
    gradient of the transitions is one matrix product over all steps. Where a sum is so small that others may have
    been lost, and for gradients of gradients, ``_readable`` does the same in logarithms.

    Sequences are sorted, long ones first, and none is empty: at step t the first ``running[t]`` are still there.
    """

    @staticmethod
    def forward(
        ctx: Any, emissions: Tensor, transitions: Tensor, starts: Tensor, ends: Tensor, running: list[int]
    ) -> Tensor:
        time, batch, tags = emissions.shape
        precise = transitions.dtype
        lasts = _last_steps(running, emissions.device)
        sequences = torch.arange(batch, device=emissions.device)
        weights = emissions.to(precise)
        highest = weights.amax(-1, keepdim=True)
        weights = (weights - highest).exp_()
        bounds = transitions.max(), starts.max(), ends.max()
        pairs, first, last = (
            (part - bound).exp() for part, bound in zip((transitions, starts, ends), bounds, strict=True)
        )
        # Of each tag the sum over what may stand before it: infinite, so that its inverse is 0, where no step is.
        arrived = torch.full_like(weights, torch.inf)
        states = torch.zeros_like(weights)  # that sum times the tag's own weight
        totals = weights.new_ones(time, batch, 1)
        torch.mul(first, weights[0], out=states[0])
        _go_forward(running, *_quick(pairs, weights, arrived, states, totals))
        end = states[lasts, sequences] * last
        sums = end.sum(1)
        valid = valid_steps(lasts + 1, time)
        found = sums.log() + totals.log_().sum(0)[:, 0] + highest[..., 0].masked_fill_(~valid, 0.0).sum(0)
        found = found + bounds[0] * lasts + bounds[1] + bounds[2]
        kept = (weights.new_empty(0),) * 5
        about = torch.finfo(precise)
        least = tags * about.tiny / about.eps  # anything lost beside such a sum is below its precision
        ctx.safe = _all_at_least(least, arrived, sums, transitions, starts)
        if ctx.safe:
            kept = (pairs, states, arrived, end / sums[:, None], lasts)
        else:
            found = _readable(emissions, transitions, starts, ends, running)
        ctx.running = running
        ctx.save_for_backward(emissions, transitions, starts, ends, *kept)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        given = ctx.saved_tensors[:4]
        if torch.is_grad_enabled() or not ctx.safe:
            again = torch.is_grad_enabled()
            with torch.enable_grad():
                # Views stand for the inputs, so that only this function's share of their gradients is found.
                inputs = [part.view_as(part) if again and part.requires_grad else part.detach() for part in given]
                inputs = [part if part.requires_grad else part.requires_grad_() for part in inputs]
                emissions, transitions, starts, ends = inputs
                total = _readable(emissions, transitions, starts, ends, ctx.running)
                return (*torch.autograd.grad(total, inputs, grad, create_graph=again), None)
        emissions = given[0]
        pairs, states, arrived, end, lasts = ctx.saved_tensors[4:]
        _, batch, tags = states.shape
        flows = torch.zeros_like(states)  # the probability of each tag at each step, times the gradient
        end = end * grad[:, None]
        flows[lasts, torch.arange(batch, device=lasts.device)] = end
        # What cannot be reached has a sum of 0, and a flow of 0 to be divided by it.
        shares = arrived.clamp(min=torch.finfo(arrived.dtype).tiny).reciprocal_()
        _go_backward(ctx.running, *_quick(pairs.t().contiguous(), shares, flows, states))
        joint = states[:-1].reshape(-1, tags).t() @ shares[1:].reshape(-1, tags)
        return flows.to(emissions.dtype), joint.mul_(pairs), flows[0].sum(0), end.sum(0), None


def _quick(*parts: Tensor) -> list[Any]:
    """Return tensors as they are, on the CPU as NumPy's arrays of the same memory: small steps cost a third there."""
    return [part.numpy() if part.device.type == "cpu" else part for part in parts]


# The two loops use what is called the same in torch and in NumPy.


def _go_forward(running: list[int], pairs: Any, weights: Any, arrived: Any, states: Any, totals: Any) -> None:
    """Fill in sums and states from step 1 on, and what they were divided by."""
    over = np if isinstance(pairs, np.ndarray) else torch
    batch = running[0]
    for step in range(1, len(running)):
        count = running[step]
        before, sums, here, weight = states[step - 1], arrived[step], states[step], weights[step]
        if count < batch:
            before, sums, here, weight = before[:count], sums[:count], here[:count], weight[:count]
        over.matmul(before, pairs, out=sums)
        over.multiply(sums, weight, out=here)
        if step % RESCALED_EVERY == 0:
            total = here.sum(1)[:, None]
            total[total == 0] = 1.0  # all is lost, which will be found out
            here /= total
            totals[step][:count] = total


def _go_backward(running: list[int], back: Any, shares: Any, flows: Any, states: Any) -> None:
    """Fill in the flows through all steps but each sequence's last, and multiply the shares by them."""
    over = np if isinstance(back, np.ndarray) else torch
    batch = running[0]
    for step in range(len(running) - 1, 0, -1):
        count = running[step]
        share, flow, before, state = shares[step], flows[step], flows[step - 1], states[step - 1]
        if count < batch:
            share, flow, before, state = share[:count], flow[:count], before[:count], state[:count]
        share *= flow
        over.matmul(share, back, out=before)
        before *= state


def _all_at_least(least: float, arrived: Tensor, sums: Tensor, transitions: Tensor, starts: Tensor) -> bool:
    """Whether every sum that is not of nothing is at least ``least``."""
    if not bool((sums >= least).all()):
        return False
    large = arrived >= least
    if bool(large.all()):
        return True
    # Some tags may be out of reach at some steps, whatever the scores.
    allowed, reached, steps = transitions > FORBIDDEN / 2, starts > FORBIDDEN / 2, []
    for _ in range(len(arrived)):
        steps.append(reached)
        reached = allowed[reached].any(0)
    return bool((large | ~torch.stack(steps)[:, None]).all())


def _readable(emissions: Tensor, transitions: Tensor, starts: Tensor, ends: Tensor, running: list[int]) -> Tensor:
    """The forward algorithm in logarithms, made of operations that autograd can follow any number of times."""
    emissions = emissions.to(transitions.dtype)
    sums = starts + emissions[0]
    for emission, count in zip(emissions[1:], running[1:], strict=True):
        here = (sums[:count, :, None] + transitions).logsumexp(1) + emission[:count]
        sums = torch.cat((here, sums[count:]))
    return (sums + ends).logsumexp(1)


def _last_steps(running: list[int], device: torch.device) -> Tensor:
    """Of each sequence its last step, from how many run at each step."""
    counts = torch.tensor(running)
    return ((counts[:, None] > torch.arange(running[0])).sum(0) - 1).to(device)
