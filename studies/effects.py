"""How well the values of datasets agree with those of real fine-tunes on every mixture.

Usage: python studies/effects.py

Of every recorded world (one target and seed) all mixtures were fine-tuned: their Shapley values are
those of the gains on the report part. Ours are of the posterior after some checks.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import numpy as np
from scipy import stats

from mergetomix.stages.effects import Known
from mergetomix.statistics import shapley
from mergetomix.statistics.posterior import Array
from mergetomix.study import document, rivals
from mergetomix.study.truth import World

HERE = Path(__file__).resolve().parent
FILES = ("code/study.json", "text/study.json", "text/study-36000.json", "images/study.json")
CHECKS = (0, 3)
NUM_DRAWS = 1000


def values_of(world: World, worth_DM: Array) -> Array:
    """Returns draws of the datasets' values, shape (D, N), of draws of all mixtures' gains."""
    names = sorted({name for mixture in world.mixtures for name in mixture.datasets})
    is_in_MN = np.array([[float(n in m.datasets) for n in names] for m in world.mixtures])
    return shapley.values(Known(is_in_MN, worth_DM, are_subsets=True), len(names))


def main() -> None:
    """Prints a line for each study and number of checks."""
    print("| study | worlds | checks | Spearman | lowest | 90% intervals hold | harmful, and are |")
    print("|---|---|---|---|---|---|---|")
    for file in FILES:
        worlds = document.read_worlds(HERE / file)
        for num in CHECKS:
            ranks, held, named, right = [], [], 0, 0
            for world in worlds:
                real_N = values_of(world, (world.real_report_M - world.base_report)[None])[0]
                found = rivals.checked(world, num)[-1].posterior
                ours_DN = values_of(world, found.draws(0, NUM_DRAWS) - world.base_select)
                ranks.append(float(stats.spearmanr(ours_DN.mean(axis=0), real_N).statistic))
                low_N, high_N = np.quantile(ours_DN, [0.05, 0.95], axis=0)
                held.append(float(((low_N <= real_N) & (real_N <= high_N)).mean()))
                named += int((high_N < 0).sum())
                right += int(((high_N < 0) & (real_N < 0)).sum())
            name = file.removesuffix(".json")
            print(
                f"| {name} | {len(worlds)} | {num} | {fmean(ranks):.3f} | {min(ranks):.2f} |"
                f" {fmean(held):.2f} | {named}, {right} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
