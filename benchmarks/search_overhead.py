"""How much of the demo's search is not the forward pass of the targets.

The rest is merging, the ledger, losses and everything else.

The experts are trained first, with few tokens: what they hold does not matter to the search's time.
Then every mixture is tried NUM_RUNS times, each time in a ledger without trials. Timed apart: the
model's forward, which ends at the logits, and the targets' forward pass, which ends at the losses.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from mergetomix.demo import text as demo
from mergetomix.recipe import recipe
from mergetomix.session.session import Session, open_session
from mergetomix.stages import pipeline, search

NUM_RUNS = 3


def timed(owner: Any, name: str) -> list[float]:
    """Seconds of every call of a method from now on."""
    taken: list[float] = []
    original = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        started = time.monotonic()
        result = original(*args, **kwargs)
        taken.append(time.monotonic() - started)
        return result

    setattr(owner, name, call)
    return taken


def measure(session: Session) -> dict[str, float]:
    """Seconds of the search, of forward passes to the logits and to the losses, and of merging."""
    logits = timed(session.proxies.bank().model, "forward")
    losses = timed(session.inputs.family, "negative_log_likelihoods")
    started = time.monotonic()
    selection = search.search_mixtures(session)
    total = time.monotonic() - started
    keys = [session.addresses.proxy(trial.mixture) for trial in selection.trials]
    return {
        "search": total,
        "logits": sum(logits),
        "losses": sum(losses),
        "merging": session.store.seconds(keys)[0],
    }


def main() -> None:
    overheads = []
    with tempfile.TemporaryDirectory() as folder:
        path = demo.write_recipe(Path(folder))
        for run in range(NUM_RUNS):
            # another share of select examples is another target: no earlier trial is reused
            overrides = ["train.max_steps=5", f"select_fraction={0.5 + run * 1e-3}"]
            overrides += [f"targets.{name}.seed={run}" for name in ("urllib", "concurrent")]
            loaded = recipe.load(path, [*overrides, f"run_dir=run{run}"])
            with open_session(loaded) as session:
                pipeline.train_experts(session)
                taken = measure(session)
            overheads.append(1 - taken["losses"] / taken["search"])
            shown = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in taken.items())
            print(f"{shown}; outside the losses {overheads[-1]:.1%}, outside the logits", end=" ")
            print(f"{1 - taken['logits'] / taken['search']:.1%}", flush=True)
    spread = f"{min(overheads):.1%} to {max(overheads):.1%}"
    print(f"outside the losses: median {statistics.median(overheads):.1%}, {spread}")


if __name__ == "__main__":
    main()
