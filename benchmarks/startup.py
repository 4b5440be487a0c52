"""How long `mergetomix --help` takes beside an empty Python: medians of runs in turn."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

NUM_RUNS = 15
COMMANDS = {"python -c pass": ["-c", "pass"], "mergetomix --help": ["-m", "mergetomix", "--help"]}


def seconds(arguments: list[str]) -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def main() -> None:
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(NUM_RUNS):
        for name, arguments in COMMANDS.items():
            taken[name].append(seconds(arguments))
    medians = {name: statistics.median(values) for name, values in taken.items()}
    for name, values in taken.items():
        spread = f"{min(values):.3f} to {max(values):.3f}, {NUM_RUNS} runs"
        print(f"{name}: median {medians[name]:.3f} s, {spread}")
    empty, full = medians.values()
    print(f"ratio {full / empty:.1f}")


if __name__ == "__main__":
    main()
