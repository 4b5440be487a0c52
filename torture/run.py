"""Breaks the package on purpose, and says how often it held.

python torture/run.py [--kills 1000] [--fuzz 5000] [--worlds exhaustive lora ...] [--seed 0]

`make torture` runs it in full: about an hour on a core of its own, as estimated from four kinds of
run. It prints a table, and exits with 1 where anything went wrong; each line that begins with WRONG
says what to look at.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
HERE = Path(__file__).resolve().parent
PATHS = [HERE, HERE.parent / "tests", HERE.parent / "studies" / "demo_bases"]
sys.path[:0] = [str(path) for path in PATHS]


def main() -> None:
    """Reads the command line, breaks what it says, and prints the counts."""
    import fuzz
    import kills
    from tiny_runs import WORLDS

    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--fuzz", type=int, default=5000)
    parser.add_argument("--worlds", nargs="*", default=list(WORLDS), choices=list(WORLDS))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found: dict[str, kills.Counts] = {}
    with tempfile.TemporaryDirectory() as folder:
        if given.fuzz:
            found |= fuzz.all_of(given.fuzz, Path(folder) / "fuzz", given.seed)
        if given.kills:
            found |= kills.all_of(given.worlds, given.kills, Path(folder), given.seed)
    print("\n| what | tried | held |\n|---|---|---|")
    for kind, counts in found.items():
        print(f"| {kind} | {counts.tried:,} | {counts.tried - len(counts.wrong):,} |")
    sys.exit(any(counts.wrong for counts in found.values()))


if __name__ == "__main__":
    main()
