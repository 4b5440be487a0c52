"""Whether checked models sharpen the proxies near them: a table over the store of a study that has run.

python docs/studies/anchored.py RECIPE [--seed 0] [--checks 3 6] [--draws 2]

For several random draws of checks: the Spearman correlation and the mean absolute error (in the target's unit) of four
predictions over the mixtures of several datasets that were not checked (see `mergetomix.study.anchored`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import fmean

import numpy as np
from scipy.stats import spearmanr

from mergetomix import load_recipe
from mergetomix.session.job import Job, open_job
from mergetomix.study import anchored
from mergetomix.study.truth import World, gather, mixtures_of

WAYS = ("experts", "anchored", "calibrated", "both")


def main() -> None:
    """Read the command line and print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checks", type=int, nargs="+", default=[3, 6])
    parser.add_argument("--draws", type=int, default=2)
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe, [f"train.seed={arguments.seed}"])
    with open_job(recipe) as job:
        worlds = gather(job, mixtures_of(job, None, seed=0), [*recipe.study.exponents, 1.0])
        for num in arguments.checks:
            draws = [drawn(worlds[0], num, draw) for draw in range(arguments.draws)]
            report(job, worlds, draws, num)


def drawn(world: World, num: int, draw: int) -> list[int]:
    """Rows of `num` random mixtures of several datasets."""
    mixed = [row for row, mixture in enumerate(world.mixtures) if len(mixture) > 1]
    return [int(row) for row in np.random.default_rng([num, draw]).permutation(mixed)[:num]]


def report(job: Job, worlds: Sequence[World], draws: Sequence[Sequence[int]], num: int) -> None:
    """Print one table: a line for each target, means over the draws."""
    found = [anchored.evaluate(job, worlds[0].mixtures, checked) for checked in draws]
    near = fmean(sum(scores is not None for scores in each.scores) / len(each.scores) for each in found)
    print(f"\n{num} checks, {len(draws)} draws; {near:.0%} of the mixtures have a checked model among their anchors\n")
    print("| target | " + " | ".join(f"{way}: Spearman, error" for way in WAYS) + " |\n|" + "---|" * (len(WAYS) + 1))
    for world in worlds:
        lines = [measured(world, each, checked) for each, checked in zip(found, draws, strict=True)]
        means = np.mean(np.array(lines), axis=0)
        print(f"| {world.target} | " + " | ".join(f"{rank:.3f}, {error:.4f}" for rank, error in means) + " |", flush=True)


def measured(world: World, found: anchored.Anchored, checked: Sequence[int]) -> list[tuple[float, float]]:
    """(Spearman, mean absolute error) of every way over the mixtures that were not checked."""
    left = [row for row, mixture in enumerate(world.mixtures) if len(mixture) > 1 and row not in checked]
    predicted = anchored.predictions(world, found, checked)
    real_U = world.real_select_M[left]
    return [
        (float(spearmanr(predicted[way][left], real_U).statistic), float(np.abs(predicted[way][left] - real_U).mean()))
        for way in WAYS
    ]


if __name__ == "__main__":
    main()
