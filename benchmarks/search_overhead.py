"""How much of the demo's search is not the forward pass of the targets: merging, the ledger, losses, everything else.

The experts are trained first, with few tokens: what they hold does not matter to the search's time. Then every mixture is
tried NUM_RUNS times, each time in a ledger without trials, and the model's forward is timed apart.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from mergetomix import demo, pipeline, recipe
from mergetomix.pipeline import Job

NUM_RUNS = 3


def forward_timed(model: Any) -> list[float]:
    """Seconds of every forward pass of `model` from now on."""
    taken: list[float] = []
    original = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        started = time.monotonic()
        result = original(*args, **kwargs)
        taken.append(time.monotonic() - started)
        return result

    model.forward = forward
    return taken


def measure(job: Job) -> tuple[float, float, float]:
    """Seconds of the search, of forward passes, and of merging."""
    model = job.bank().model
    taken = forward_timed(model)
    started = time.monotonic()
    selection = pipeline.search_mixtures(job)
    total = time.monotonic() - started
    keys = [job.proxy_key(trial.mixture) for trial in selection.trials]
    return total, sum(taken), job.store.seconds(keys)[0]


def main() -> None:
    overheads = []
    with tempfile.TemporaryDirectory() as folder:
        path = demo.write_recipe(Path(folder))
        for run in range(NUM_RUNS):
            # another share of select examples is another target: no trial of an earlier round is reused
            overrides = ["train.max_steps=5", f"select_fraction={0.5 + run * 1e-3}", f"targets.urllib.seed={run}"]
            overrides.append(f"targets.concurrent.seed={run}")
            loaded = recipe.load(path, [*overrides, f"run_dir=run{run}"])
            with pipeline.open_job(loaded) as job:
                pipeline.train_experts(job)
                total, forward, merging = measure(job)
            overheads.append(1 - forward / total)
            print(f"search {total:.1f} s, forward {forward:.1f} s, merging {merging:.2f} s, overhead {overheads[-1]:.1%}")
    print(f"overhead: median {statistics.median(overheads):.1%}, {min(overheads):.1%} to {max(overheads):.1%}")


if __name__ == "__main__":
    main()
