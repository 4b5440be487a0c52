"""Ratios of two things measured in turn, and what a process holds of memory."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def ratios(one: Callable[[], Any], other: Callable[[], Any], num_runs: int) -> list[float]:
    """Seconds of `one` over seconds of `other`, measured one after the other; the first of each is not counted."""
    one(), other()
    return [seconds(one) / seconds(other) for _ in range(num_runs)]


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "runs": len(values)}


def show(**fields: Any) -> None:
    """One line of JSON, numbers to four digits."""
    print(json.dumps({key: _short(value) for key, value in fields.items()}), flush=True)


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _short(each) for key, each in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def anonymous_mib() -> float:
    """MiB of this process's memory that are no pages of a file (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024
