"""Time ways of doing the same thing side by side: taking turns in one process, medians, their ratio."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def machine() -> str:
    """One line for the head of a table: what ran, where, and what else was running."""
    model = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    load = next(iter(_lines("/proc/loadavg")), "unknown").split()[0]
    return (
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()},"
        f" {model}, Python {platform.python_version()}, load {load}"
    )


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []


def keep_memory() -> None:
    """Have the C library keep the memory that is freed, where it can be told so.

    Else it returns large blocks to the system and gets them back page by page, at the cost of a tenth and more of a
    layer's time, depending on what else lies in memory: on which side that falls is chance.
    """
    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        for parameter, value in ((M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, 2**31 - 1)):
            library.mallopt(parameter, value)


def medians(ways: Mapping[Any, Callable[[], object]], *, seconds: float = 1.0) -> dict[Any, float]:
    """Median seconds of one call of each way.

    The ways take turns, so that whatever else the machine does strikes all of them alike, in an order drawn anew for
    each round, so that none always finds the caches as the same other left them. They go on for about ``seconds`` in
    all, at least seven rounds.
    """
    order, draw = list(ways), random.Random(1)
    for way in ways.values():
        way()
    times: dict[Any, list[float]] = {name: [] for name in ways}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values())) < 7:
        draw.shuffle(order)
        for name in order:
            start = time.perf_counter()
            ways[name]()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def peak() -> float:
    """FLOP/s of a product of square matrices, by the faster of BLAS and oneDNN."""
    a = torch.randn(2048, 2048)
    ways = {"BLAS": lambda: a @ a, "oneDNN": lambda: torch.ops.mkldnn._linear_pointwise(a, a, None, "none", [], "")}
    return 2 * 2048**3 / min(medians(ways).values())
