"""Two things measured in turn: their times, their memory, how far their numbers lie apart."""

from __future__ import annotations

import gc
import json
import multiprocessing
import resource
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Way = Callable[[], Sequence[float]]
PERIOD_S = 0.002


def resident() -> int:
    """Bytes of this process that are in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak(prepare: Callable[[], Mapping[str, Way]], name: str) -> int:
    """The most bytes that one way takes beyond a loaded model and collated batches.

    In a process of its own. Sampled every two milliseconds, as the highest mark that the system
    keeps would be that of loading.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (prepare, name))


def _peak(prepare: Callable[[], Mapping[str, Way]], name: str) -> int:
    way = prepare()[name]
    gc.collect()
    before, most, ended = resident(), [0], threading.Event()

    def watch() -> None:
        while not ended.is_set():
            most[0] = max(most[0], resident())
            time.sleep(PERIOD_S)

    watcher = threading.Thread(target=watch)
    watcher.start()
    way()
    ended.set()
    watcher.join()
    return most[0] - before


def compare(prepare: Callable[[], Mapping[str, Way]], repetitions: int) -> dict[str, Any]:
    """The second way's time over the first's, in turn, after one run of each to warm up."""
    ways = prepare()
    (first, ours), (second, plain) = ways.items()
    apart = max(abs(a - b) for a, b in zip(ours(), plain(), strict=True))
    ratios, medians = [], []
    for _ in range(repetitions):
        taken = {name: seconds(way) for name, way in ways.items()}
        ratios.append(taken[second] / taken[first])
        medians.append(taken[first])
    return {
        "ratio": round(statistics.median(ratios), 2),
        "least": round(min(ratios), 2),
        "most": round(max(ratios), 2),
        "runs": repetitions,
        "median_s": round(statistics.median(medians), 3),
        "difference": float(f"{apart:.1e}"),
        "peak_mib": {name: round(peak(prepare, name) / 2**20) for name in ways},
    }


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def ratios(one: Callable[[], Any], other: Callable[[], Any], num_runs: int) -> list[float]:
    """Seconds of `one` over seconds of `other`, in turn; the first of each is not counted."""
    one(), other()
    return [seconds(one) / seconds(other) for _ in range(num_runs)]


def spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
        "runs": len(values),
    }


def show(**fields: Any) -> None:
    """One line of JSON, numbers to four digits."""
    print(json.dumps({key: _short(value) for key, value in fields.items()}), flush=True)


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _short(each) for key, each in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def anonymous_mib() -> float:
    """MiB of this process's memory that are no pages of a file (Linux)."""
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("RssAnon")
    )
    return int(line.split()[1]) / 1024
