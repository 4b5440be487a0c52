"""May a mixture still be the best, judged by some of a target's examples? Values in, decision out.

Examples have one order for all mixtures and are seen in stages. After each the objective's
difference to the best complete trial so far, the *incumbent*, is estimated from the examples seen,
and a mixture that is worse beyond doubt is stopped.

The estimate is the regression estimator of survey sampling (Cochran, Sampling Techniques, 3rd ed.
1977, chapter 7): the population is the select part, the sample is what was seen. What complete
trials foresee of each example (`combination`) is known for all examples; only what is left beside
it is taken from the sample. With d the change from the incumbent and z the change foreseen, both in
units of the gain, w the examples' weights, S of E examples seen and bars for weighted means:

    v = w / wbar_S        r = d - dbar_S - b (z - zbar_S)
    B = BELIEF * weighted variance of z over E: b is near 1 unless the sample says else
    Z = sum_S v (z - zbar_S)^2 + B        b = (sum_S v (z - zbar_S) d + B) / Z
    mean = dbar_S + b (zbar_E - zbar_S)
    variance = ((1 - S / E) / S * sum_S (v r)^2 + sum_S v r^2 * (zbar_E - zbar_S)^2 / Z) / (S - 2)

A loss is a ratio of sums over tokens, hence the weights (the same book, chapter 6). Targets add up
by their shares of the objective, and degrees of freedom by Welch and Satterthwaite. A mixture is
beaten if Student's t puts less than `alpha / looks` on a difference of zero or more. So a mixture
that would have been the best is stopped with a probability of at most alpha, over draws of the
order of the examples: it is compared with one incumbent at each look, and after its last with none.
How near that is with few and skewed examples: docs/log.md.

Array names end in their shape: S examples seen, E examples in all, K complete trials, N datasets.

How sure one must be is `search.racing` of the recipe (`sections/search.py`), shared among all looks
(`stages/race.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
FRACTIONS = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Shares of a target's examples that are seen at the end of each stage."""
LEAST = 6
"""Fewest examples of a target in a block: two are taken by the regression."""
MIN_EXAMPLES = 4 * LEAST
"""Fewest select examples of a target that is raced."""
BELIEF = 4.0
"""Belief that changes are as foreseen, in examples: few may hold none of those that change most."""
LENGTH, NUGGET = 1.0, 1e-3
"""Covariance exp(-|v - w|^2 / (2 LENGTH^2)) of two mixtures' values; share that is a mixture's."""
NEAREST = 64
"""Most complete trials to foresee a mixture by."""
ROUNDING = 1e-6
"""A difference of gains under this may be rounding."""


@dataclass(frozen=True)
class Paired:
    """A target's changes from the incumbent to the challenger, in units of the gain.

    Better is higher. `change_S` has the examples seen, which are the first ones; `foreseen_E` and
    `weights_E` have all. `share` is the target's weight in the objective; shares sum to one.
    """

    change_S: Array
    foreseen_E: Array
    weights_E: Array
    share: float = 1.0


@dataclass(frozen=True)
class Difference:
    """The objective's estimated difference to the incumbent, with its sd and degrees of freedom.

    `means` are the differences of each target's gain.
    """

    mean: float
    sd: float
    dof: float
    means: tuple[float, ...]


def stages(num_examples: int) -> tuple[int, ...]:
    """Returns how many of a target's examples are seen at the end of each stage of FRACTIONS.

    No block has fewer than LEAST examples: a stage may add none. Raises ValueError for fewer than
    MIN_EXAMPLES.

    >>> stages(100)
    (6, 6, 6, 12, 25, 50, 100)
    """
    if num_examples < MIN_EXAMPLES:
        raise ValueError(f"racing needs at least {MIN_EXAMPLES} examples, not {num_examples}")
    ends, last = [], 0
    for fraction in FRACTIONS[:-1]:
        end = max(LEAST, round(fraction * num_examples))
        last = end if end - last >= LEAST else last
        ends.append(last)
    return (*ends, num_examples)


def num_looks(sizes: Sequence[int]) -> int:
    """Returns how often a mixture may be stopped, for targets of these sizes."""
    return len(set(zip(*(stages(size) for size in sizes), strict=True))) - 1


def difference(targets: Sequence[Paired]) -> Difference:
    """Returns the difference to the incumbent by the examples seen.

    It is a weighted mean over targets, which are independent samples. If no example's change is
    over rounding the two are one mixture by all that was seen, whatever was foreseen.
    """
    if all(np.abs(target.change_S).max() <= ROUNDING for target in targets):
        return Difference(0.0, 0.0, math.inf, (0.0,) * len(targets))
    means, variances, dofs = zip(*map(_estimate, targets), strict=True)
    shares = [target.share for target in targets]
    weighted = [share**2 * each for share, each in zip(shares, variances, strict=True)]
    total = math.fsum(weighted)
    squares = math.fsum(each**2 / dof for each, dof in zip(weighted, dofs, strict=True))
    dof = total**2 / squares if squares > 0 else math.inf
    mean = math.fsum(share * each for share, each in zip(shares, means, strict=True))
    return Difference(mean, math.sqrt(total), dof, means)


def _estimate(target: Paired) -> tuple[float, float, int]:
    """Returns mean, its variance and degrees of freedom of one target, by the module's formula."""
    num, num_all = len(target.change_S), len(target.weights_E)
    weights_S = target.weights_E[:num] / target.weights_E[:num].mean()
    change_S, foreseen_S = target.change_S, target.foreseen_E[:num]
    mean, foreseen = (
        float(np.average(each_S, weights=weights_S)) for each_S in (change_S, foreseen_S)
    )
    expected = float(np.average(target.foreseen_E, weights=target.weights_E))
    spread_E = (target.foreseen_E - expected) ** 2
    believed = BELIEF * float(np.average(spread_E, weights=target.weights_E))
    centred_S = foreseen_S - foreseen
    spread = float(weights_S @ centred_S**2) + believed
    slope = (float((weights_S * centred_S) @ change_S) + believed) / spread if spread > 0 else 0.0
    rest_S, away = change_S - mean - slope * centred_S, expected - foreseen
    variance = (1 - num / num_all) / num * float(((weights_S * rest_S) ** 2).sum()) / (num - 2)
    if spread > 0:
        variance += float(weights_S @ rest_S**2) / (num - 2) * away**2 / spread
    return mean + slope * away, variance, num - 2


def is_beaten(found: Difference, level: float) -> bool:
    """Returns whether the difference is below zero at this level, and by more than rounding."""
    if found.mean > -ROUNDING:
        return False
    return found.sd <= ROUNDING or float(stats.t.cdf(found.mean / found.sd, found.dof)) < level


def combination(weights_KN: Array, weights_N: Array) -> Array:
    """Returns the combination of K mixtures' values that foresees another's, on every example.

    Universal kriging with a linear drift (Cressie, Statistics for Spatial Data, 1993, section 3.4):
    the covariance is a Gaussian of the distance of weights, and a value that is linear in them is
    foreseen exactly if the mixtures span it.
    """
    squares_KK = ((weights_KN[:, None] - weights_KN[None]) ** 2).sum(axis=-1)
    squares_K = ((weights_KN - weights_N) ** 2).sum(axis=-1)
    num, num_drift = weights_KN.shape
    system = np.zeros((num + num_drift, num + num_drift))
    system[:num, :num] = np.exp(-squares_KK / (2 * LENGTH**2)) + NUGGET * np.eye(num)
    system[:num, num:], system[num:, :num] = weights_KN, weights_KN.T
    wanted = np.concatenate([np.exp(-squares_K / (2 * LENGTH**2)), weights_N])
    return np.asarray(np.linalg.lstsq(system, wanted, rcond=None)[0][:num])


def nearest(weights_KN: Array, weights_N: Array, most: int = NEAREST) -> list[int]:
    """Returns the rows of the `most` mixtures that are nearest to another, in their order."""
    order = np.argsort(((weights_KN - weights_N) ** 2).sum(axis=-1), kind="stable")
    return sorted(order[:most].tolist())
