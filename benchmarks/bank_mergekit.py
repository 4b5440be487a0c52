"""The next mixture's proxy beside mergekit 0.1.5: merging in memory, and `run_merge` to disk.

mergekit, in an environment of its own, merges the base's K experts with equal weights (`linear`),
their tensors in memory already, planning included, as its search for mixtures does for each
candidate; then from folder to folder. Ours goes on to a mixture that differs by one expert. Peer
and bank are measured in turn, ROUNDS times, on one thread and on as many as there are cores. A
ratio is one round's median by the other's.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import bank_switch
import environments
import models
import paired
import torch

ROUNDS, RUNS = 3, 5


def peer(base: Path, experts: list[Path], num_threads: int) -> dict[str, float]:
    """mergekit's median seconds."""
    script = Path(__file__).with_name("peer_mergekit.py")
    command: list[Any] = [
        environments.python_of("mergekit"),
        script,
        "time",
        base,
        *experts,
        "--runs",
        RUNS,
    ]
    command += ["--threads", num_threads]
    out = subprocess.run(
        [str(word) for word in command], check=True, capture_output=True, text=True
    ).stdout
    found = json.loads(out.splitlines()[-1])
    memory = [a + b for a, b in zip(found["memory_plan"], found["memory_execute"], strict=True)]
    return {"in memory": statistics.median(memory), "to disk": statistics.median(found["disk"])}


def ours(base: Path, experts: list[Path]) -> float:
    """The bank's median seconds."""
    move = bank_switch.moves(bank_switch.bank_of(base, experts, 64.0))
    for _ in range(2 * len(experts)):
        move()
    return statistics.median(paired.seconds(move) for _ in range(15))


def compare(size: str, base: Path, experts: list[Path], num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    rounds = [
        (peer(base, experts[: bank_switch.K], num_threads), ours(base, experts))
        for _ in range(ROUNDS)
    ]
    for way in ("in memory", "to disk"):
        ratios = [theirs[way] / mine for theirs, mine in rounds]
        seconds = {"mergekit_s": rounds[0][0][way], "ours_s": rounds[0][1], "threads": num_threads}
        what = f"mergekit {way} / next subset"
        paired.show(what=what, model=size, k=bank_switch.K, **seconds, **paired.spread(ratios))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        for size in models.SIZES:
            base, experts = models.write(Path(name), size, bank_switch.NUM_EXPERTS)
            for num_threads in (1, os.cpu_count() or 1):
                compare(size, base, experts, num_threads)


if __name__ == "__main__":
    main()
