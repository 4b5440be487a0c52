"""The prior of what checks say, from worlds whose every mixture was fine-tuned for real.

python studies/fit_prior.py WORLDS.json.gz ...

Each file is a suite (`worlds.py` wrote it), and all suites count alike. Sought are the standard
deviations and expectations of `Prior` under which the reals that were not checked are likeliest,
given none, one and three checks: the best proxy first, or mixtures at random. Standard deviations
are found on a logarithmic scale, with a weak normal prior around the values that the search starts
from: some suites say little of some terms. The search is coarse, and what it finds is rounded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import recorded
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import minimize

from mergetomix.statistics.noise import seed_share
from mergetomix.statistics.posterior import Prior, Unit, posterior_of
from mergetomix.study.truth import World

SPREADS = ("level", "slope", "pool", "strong", "main", "pair", "own")
START = (0.3, 0.3, 0.4, 0.3, 0.3, 0.6, 0.15)
MEANS = ("expected_slope", "expected_pool", "expected_strong")
START_MEANS = (0.02, 0.6, 0.3)
CHECKS = (0, 1, 3)
WEAK = 0.002
"""Of the prior around START, beside the mean log density of one mixture."""
Suites = Sequence[Sequence[World]]


def main(files: Sequence[str]) -> None:
    """Reads the suites, searches, and prints the prior."""
    suites = [recorded.worlds(Path(file), recorded.weighting_of(Path(file))) for file in files]
    start = np.array([*np.log(START), *START_MEANS])
    found = minimize(
        lambda x: cost(x, suites), start, method="Powell", options={"maxiter": 3, "ftol": 1e-3}
    )
    for file, suite in zip(files, suites, strict=True):
        before, after = (mean_density(suite, prior_of(x)) for x in (start, found.x))
        print(f"{file}: {len(suite)} worlds, log density {before:.3f} to {after:.3f}")
    print(prior_of(found.x))


def prior_of(x: NDArray[np.float64]) -> Prior:
    """Returns the prior of a point of the search."""
    spreads = {name: float(np.exp(value)) for name, value in zip(SPREADS, x, strict=False)}
    means = {name: float(value) for name, value in zip(MEANS, x[len(SPREADS) :], strict=True)}
    return Prior(**spreads, **means)


def cost(x: NDArray[np.float64], suites: Suites) -> float:
    """Returns minus the mean log density over suites, and minus the log prior."""
    away = x[: len(SPREADS)] - np.log(START)
    prior = prior_of(x)
    densities = [mean_density(suite, prior) for suite in suites]
    return WEAK * float(away @ away) - float(np.mean(densities))


def mean_density(worlds: Sequence[World], prior: Prior) -> float:
    """Returns the mean over worlds of the log density of one real score not checked."""
    return float(np.mean([np.mean(list(densities(world, prior))) for world in worlds]))


def densities(world: World, prior: Prior) -> Iterator[float]:
    """Yields the mean log density of the reals not checked, in sds of the proxies."""
    unit, real_M = Unit.of(world.proxy_M), world.real_select_M
    plural = [row for row, mixture in enumerate(world.mixtures) if len(mixture) > 1]
    rng = np.random.default_rng(7)
    best_first = sorted(plural, key=lambda row: -world.proxy_M[row])[:1]
    best_first += [row for row in rng.permutation(plural).tolist() if row != best_first[0]]
    orders = [best_first, rng.permutation(plural).tolist()]
    for num in CHECKS:
        for order in orders if num else orders[:1]:
            rows, left = order[:num], order[num:]
            noise = world.noise(rows, seed_share([], [], []) * unit.sd)
            known = {row: float(real_M[row]) for row in rows}
            found = posterior_of(world.views(), known, prior, unit, noise)
            sd = np.sqrt(found.tuned_scale_M[left] ** 2 + noise.check_M[left])
            z = (real_M[left] - found.tuned_mean_M[left]) / sd
            yield float(np.mean(stats.t.logpdf(z, found.dof) - np.log(sd / unit.sd)))


if __name__ == "__main__":
    main(sys.argv[1:])
