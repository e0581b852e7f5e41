"""Time two ways of doing the same thing side by side: alternating in one process, medians, their ratio."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


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


def medians(ways: Mapping[str, Callable[[], object]], *, seconds: float = 1.0) -> dict[str, float]:
    """Median seconds of one call of each way.

    The ways take turns, so that whatever else the machine does strikes all of them alike, and go on for about
    ``seconds`` in all, at least seven rounds.
    """
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times.values())) < 7:
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}
