"""Two ways to compute the same numbers, in turn: their times, their peak memory and how far their numbers lie apart."""

from __future__ import annotations

import gc
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
    """The most bytes that one way takes beyond what the process had when the model was loaded and everything was collated.

    In a process of its own. Sampled every two milliseconds, as the highest mark that the system keeps would be that of loading.
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
    """The second way's time over the first's, run by run in turn after one run of each to warm up."""
    ways = prepare()
    (first, ours), (second, plain) = ways.items()
    apart = max(abs(a - b) for a, b in zip(ours(), plain(), strict=True))
    ratios, seconds = [], []
    for _ in range(repetitions):
        taken = {name: timed(way) for name, way in ways.items()}
        ratios.append(taken[second] / taken[first])
        seconds.append(taken[first])
    return {
        "ratio": round(statistics.median(ratios), 2),
        "least": round(min(ratios), 2),
        "most": round(max(ratios), 2),
        "runs": repetitions,
        "median_s": round(statistics.median(seconds), 3),
        "difference": float(f"{apart:.1e}"),
        "peak_mib": {name: round(peak(prepare, name) / 2**20) for name in ways},
    }


def timed(way: Way) -> float:
    """Seconds of one run."""
    started = time.monotonic()
    way()
    return time.monotonic() - started
