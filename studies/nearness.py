"""Does a dataset's nearness to the target tell what the proxies do not, as a third view would?

python studies/nearness.py studies/code/study.json studies/text/study.json

nearness(w) = sum_i w_i similarity_i. For every world, over the mixtures of several datasets that
were not checked: the Spearman correlation of nearness with the reals, and with what the calibrated
prediction leaves of them (real minus prediction) without checks and after three. A third view is
worth having where the latter are far from zero and of one sign.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from scipy.stats import spearmanr

from mergetomix.study.document import read_worlds
from mergetomix.study.rivals import checked
from mergetomix.study.truth import World

KINDS = ("hidden state", "TF-IDF", "n-grams")


def main(files: Sequence[str]) -> None:
    """Print a table for every study."""
    for file in files:
        worlds = read_worlds(Path(file))
        print(
            f"{file}: {len(worlds)} worlds\n"
            "| nearness by | reals | left, no check | left, 3 checks |\n|---|---|---|---|"
        )
        for kind in KINDS:
            found = np.array([correlations(world, kind) for world in worlds])
            print(
                f"| {kind} | "
                + " | ".join(f"{fmean(row):+.3f} (sd {stdev(row):.3f})" for row in found.T.tolist())
                + " |"
            )


def correlations(world: World, kind: str) -> tuple[float, float, float]:
    """Of nearness with the reals, and with what is left of them without checks and after three."""
    similarity_N = np.array([world.similarities[kind][name] for name in world.datasets])
    nearness_M = world.weights_MN @ similarity_N
    steps = checked(world, 3)
    rows = [
        row
        for row, mixture in enumerate(world.mixtures)
        if len(mixture) > 1 and row not in steps[-1].checked
    ]
    real_M = world.real_select_M
    left = [real_M - step.posterior.mean_M for step in (steps[0], steps[-1])]
    one, two, three = (
        float(spearmanr(nearness_M[rows], values[rows]).statistic) for values in (real_M, *left)
    )
    return one, two, three


if __name__ == "__main__":
    main(sys.argv[1:])
