"""Ranks, and sums across them: the same program runs as one process or as several under torchrun.

torchrun tells each process its place through the environment. Where it has not, there is one process, and everything
here is free: nothing is sent, copied or waited for. The functions that send work inside :func:`process_group`.
"""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from recurra.config import UserError

if TYPE_CHECKING:
    import torch


def rank() -> int:
    """Return this process's number among all processes of all machines."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Return this process's number among the processes of its machine: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Return the number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_writer() -> bool:
    """Return whether this is the one process that writes files and speaks to the terminal."""
    return rank() == 0


def choose_device(name: str | None = None) -> torch.device:
    """Return the device of this process: ``cpu``, ``cuda`` or ``mps``; by default a GPU of its own, else the CPU.

    ``cuda:1`` is the second GPU; ``cuda`` that of this process's number.

    Raises:
        UserError: this machine has no such device, more processes than GPUs, or one GPU is given to several processes.
    """
    import torch

    available = ["cpu"]
    if torch.cuda.is_available():
        available.append("cuda")
    if torch.backends.mps.is_available():
        available.append("mps")
    name = name or ("cuda" if "cuda" in available else "cpu")
    kind, _, number = name.partition(":")
    if kind not in available or (":" in name and not (kind == "cuda" and number.isdecimal())):
        raise UserError(f"device: expected {' or '.join(available)} on this machine, got {name!r}")
    if kind != "cuda":
        return torch.device(kind)
    count = torch.cuda.device_count()
    if number and int(number) >= count:
        raise UserError(f"device: expected a GPU from cuda:0 to cuda:{count - 1}, got {name!r}")
    if number and world_size() > 1 and int(number) != local_rank():
        raise UserError(f"device: several processes need a GPU each, got {name!r} for all; give cuda")
    if not number and local_rank() >= count:
        raise UserError(f"expected one process for each of the {count} GPUs here, got process {local_rank() + 1}")
    return torch.device(kind, int(number) if number else local_rank())


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the other processes for the length of the block: what is on GPUs is sent over NCCL, the rest over Gloo."""
    if world_size() == 1:
        yield
        return
    import torch

    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield
        torch.distributed.barrier()  # nobody leaves while another is still sending
    finally:
        torch.distributed.destroy_process_group()


def all_succeeded(succeeded: bool) -> bool:
    """Wait for every process, and return whether all of them succeeded."""
    if world_size() == 1:
        return succeeded
    import torch

    return float(sum_over_ranks(torch.tensor(float(not succeeded)))) == 0


def raise_together(problem: Exception | None) -> None:
    """Wait for every process; if any has a problem, the first of those raises it, and the others leave without a word.

    Raises:
        Exception: this process's problem.
        SystemExit: another process says what is wrong.
    """
    if world_size() > 1:
        import torch

        flags = torch.zeros(world_size())
        flags[rank()] = problem is not None
        failed = sum_over_ranks(flags).nonzero().flatten().tolist()
        if failed and failed[0] != rank():
            raise SystemExit(2)
    if problem is not None:
        raise problem


def barrier() -> None:
    """Wait until every process has come here."""
    if world_size() > 1:
        import torch

        torch.distributed.barrier()


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Return the elementwise sum of every process's `tensor`, the same in each; `tensor` itself where there is one."""
    if world_size() == 1:
        return tensor
    import torch

    total = tensor.detach().clone()
    torch.distributed.all_reduce(total)
    return total


def own_rows(rows: int) -> slice:
    """Return which of a global batch's `rows`, a multiple of the world size, are this process's part."""
    assert rows % world_size() == 0
    share = rows // world_size()
    return slice(rank() * share, (rank() + 1) * share)


def gather_rows(tensor: torch.Tensor, *, dim: int) -> torch.Tensor:
    """Return the global batch in every process, its parts of equal shape put together along `dim`: undoes own_rows."""
    if world_size() == 1:
        return tensor
    import torch

    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())]
    torch.distributed.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts, dim)


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each dense gradient by its sum over all processes, which must name their parameters in the same order.

    All gradients of one dtype travel as one flat array. Behind them goes a flag for each parameter, so that one without
    a gradient counts as zero where another process has one, and stays without where none has: optimisers tell a zero
    gradient from none.
    """
    if world_size() == 1:
        return
    import torch

    groups: dict[torch.dtype, list[torch.nn.Parameter]] = defaultdict(list)
    for parameter in parameters:
        groups[parameter.dtype].append(parameter)
    for group in groups.values():
        present = torch.tensor([parameter.grad is not None for parameter in group]).to(group[0])
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in group]
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), present])
        torch.distributed.all_reduce(flat)
        *sums, counts = flat.split([*(gradient.numel() for gradient in gradients), len(group)])
        for parameter, gradient, total, count in zip(group, gradients, sums, counts.tolist(), strict=True):
            parameter.grad = gradient.copy_(total.view_as(gradient)) if count else None
