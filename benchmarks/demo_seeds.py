"""The demo over three seeds: the selection's real fine-tune against other models.

The others are the base and the fine-tunes on all datasets and on random mixtures. Prints gains on
the report part (the mean over targets of the fraction of the base's loss removed), the time and the
memory.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SEEDS = (0, 1, 2)


def run(folder: Path, seed: int) -> tuple[dict[str, Any], float]:
    """The demo's result with a seed, in a store of its own, and its seconds from start to end."""
    overrides = [f"train.seed={seed}", f"store=store{seed}", f"run_dir=run{seed}"]
    flags = [word for override in overrides for word in ("--set", override)]
    started = time.monotonic()
    command = [sys.executable, "-m", "mergetomix", "demo", str(folder), *flags]
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    return json.loads(
        (folder / f"run{seed}" / "result.json").read_text()
    ), time.monotonic() - started


def gains(result: dict[str, Any]) -> dict[str, float]:
    """Gains on the report part: of the selection, and of each line that the demo must beat."""
    baselines = result["baselines"]
    drawn = [line["gain"] for line in baselines["random"]]
    return {
        "selected": result["final"]["gain"],
        "base": baselines["base"]["gain"],
        "all": baselines["all"]["gain"],
        "mean random": statistics.fmean(drawn),
        "best expert": baselines["best_expert"]["gain"],
        "proxy": baselines["proxy"]["gain"],
    }


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            result, seconds = run(Path(folder), seed)
            rows.append(gains(result))
            shown = ", ".join(f"{name} {value:+.4f}" for name, value in rows[-1].items())
            picked = " + ".join(result["selected"]["datasets"])
            print(f"seed {seed}: {picked}: {shown}; {seconds:.0f} s", flush=True)
    for name in rows[0]:
        values = [row[name] for row in rows]
        mean, spread = statistics.fmean(values), f"{min(values):+.4f} to {max(values):+.4f}"
        print(f"{name}: mean {mean:+.4f}, {spread}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    main()
