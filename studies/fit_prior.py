"""The prior of `mergetomix.calibrate` from the reals of studies: the maximum of their evidence.

python studies/fit_prior.py studies/code/seed0.json studies/text/seed0.json

Every real fine-tune of every target is taken as a check. The standard deviations are found on a
logarithmic scale, each with a weak normal prior (standard deviation 2) around the values that the
search starts from: some studies say little of some terms.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from mergetomix.statistics.posterior import Prior, posterior_of
from mergetomix.study.document import read_worlds
from mergetomix.study.truth import World

SPREADS = ("level", "slope", "pool", "main", "pair", "own")
START = (0.7, 0.8, 0.5, 0.5, 1.0, 0.35)
MEANS = ("expected_slope", "expected_pool")
START_MEANS = (0.5, 0.5)


def main(files: Sequence[str]) -> None:
    """Read the studies, search, and print the prior."""
    worlds = [world for file in files for world in read_worlds(Path(file))]
    start = np.array([*np.log(START), *START_MEANS])
    found = minimize(
        lambda x: cost(x, worlds), start, method="Powell", options={"maxiter": 8, "ftol": 1e-3}
    )
    print(f"{len(worlds)} targets, log evidence {-cost(start, worlds):.1f} to {-found.fun:.1f}")
    print(prior_of(found.x))


def prior_of(x: NDArray[np.float64]) -> Prior:
    """The prior of a point of the search."""
    spreads = {name: float(np.exp(value)) for name, value in zip(SPREADS, x, strict=False)}
    means = {name: float(value) for name, value in zip(MEANS, x[len(SPREADS) :], strict=True)}
    return Prior(**spreads, **means)


def cost(x: NDArray[np.float64], worlds: Sequence[World]) -> float:
    """Minus the log evidence of all reals, at exponent 1, and minus the log prior."""
    away = (x[: len(SPREADS)] - np.log(START)) / 2
    return 0.5 * float(away @ away) - sum(evidence(world, prior_of(x)) for world in worlds)


def evidence(world: World, prior: Prior) -> float:
    """log p(reals of several datasets) of one target."""
    known = {
        row: float(world.real_select_M[row])
        for row, mixture in enumerate(world.mixtures)
        if len(mixture) > 1
    }
    return posterior_of(world.views(1.0), known, prior).log_evidence


if __name__ == "__main__":
    main(sys.argv[1:])
