"""May a mixture still be the best, judged by some of a target's examples? Values in, decision out.

Examples have one order for all mixtures and are seen in stages. After each the objective's difference to the best complete
trial so far, the *incumbent*, is estimated from the examples seen, and a mixture that is worse beyond doubt is stopped.

The estimate is the regression estimator of survey sampling (Cochran, Sampling Techniques, 3rd ed. 1977, chapter 7): the
population is the select part, the sample is what was seen. What complete trials foresee of each example (`combination`) is
known for all examples; only what is left beside it is taken from the sample. With d the change from the incumbent and z the
change foreseen, both in units of the gain, w the examples' weights, S of E examples seen and bars for weighted means:

    mean = dbar_S + b (zbar_E - zbar_S)        b = (sum_S v (z - zbar_S) d + B) / Z        v = w / wbar_S
    Z = sum_S v (z - zbar_S)^2 + B        B = BELIEF * weighted variance of z over E: b is near 1 unless the sample says else
    variance = (1 - S / E) / S * sum_S (v r)^2 / (S - 2) + sum_S v r^2 / (S - 2) * (zbar_E - zbar_S)^2 / Z
    r = d - dbar_S - b (z - zbar_S)

A loss is a ratio of sums over tokens, hence the weights (the same book, chapter 6). Targets add up by their shares of the
objective, and degrees of freedom by Welch and Satterthwaite. A mixture is beaten where Student's t puts less than
`alpha / looks` on a difference of zero or more. So a mixture that would have been the best is stopped with a probability of
at most alpha, over draws of the order of the examples: it is compared with one incumbent at each look, and after its last with
none. How near that is with few and skewed examples: docs/log.md.

Array names end in their shape: S examples seen, E examples in all, K complete trials, N datasets.
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
"""How many examples' worth of belief that changes are as foreseen: few examples may hold none of those that change most."""
LENGTH, NUGGET = 1.0, 1e-3
"""Of the covariance exp(-|v - w|^2 / (2 LENGTH^2)) of two mixtures' values, and the share of it that is a mixture's own."""
NEAREST = 64
"""Most complete trials to foresee a mixture by."""
ROUNDING = 1e-6
"""A difference of gains under this may be rounding."""


@dataclass(frozen=True)
class Paired:
    """A target in a race: the changes from the incumbent to the challenger in units of the gain, better when higher.

    `change_S` of the examples seen, which are the first ones; `foreseen_E` and `weights_E` of all. `share` is the target's
    weight in the objective; the shares of all targets sum to one.
    """

    change_S: Array
    foreseen_E: Array
    weights_E: Array
    share: float = 1.0


@dataclass(frozen=True)
class Difference:
    """The objective's estimated difference to the incumbent, its standard deviation with degrees of freedom, and the difference
    of each target's gain."""

    mean: float
    sd: float
    dof: float
    means: tuple[float, ...]


def stages(num_examples: int) -> tuple[int, ...]:
    """How many of a target's examples are seen at the end of each stage of FRACTIONS.

    No block has fewer than LEAST examples: a stage may add none. Raises ValueError for fewer than MIN_EXAMPLES.
    """
    if num_examples < MIN_EXAMPLES:
        raise ValueError(f"racing needs at least {MIN_EXAMPLES} examples, not {num_examples}")
    ends, last = [], 0
    for fraction in FRACTIONS[:-1]:
        end = max(LEAST, round(fraction * num_examples))
        last = end if end - last >= LEAST and num_examples - end >= LEAST else last
        ends.append(last)
    return (*ends, num_examples)


def num_looks(sizes: Sequence[int]) -> int:
    """How often a mixture may be stopped, for targets of these sizes."""
    seen = list(zip(*(stages(size) for size in sizes), strict=True))
    return len(set(seen)) - 1


def difference(targets: Sequence[Paired]) -> Difference:
    """The difference to the incumbent by the examples seen: a weighted mean over targets, which are independent samples.

    Where no example's change is over rounding the two are one mixture by all that was seen, whatever was foreseen.
    """
    if all(np.abs(target.change_S).max() <= ROUNDING for target in targets):
        return Difference(0.0, 0.0, math.inf, (0.0,) * len(targets))
    found = [_estimate(target) for target in targets]
    variances = [
        (target.share**2) * variance
        for target, (_, variance, _) in zip(targets, found, strict=True)
    ]
    total = math.fsum(variances)
    squares = math.fsum(
        variance**2 / dof for variance, (_, _, dof) in zip(variances, found, strict=True)
    )
    mean = math.fsum(
        target.share * each for target, (each, _, _) in zip(targets, found, strict=True)
    )
    return Difference(
        mean,
        math.sqrt(total),
        total**2 / squares if squares > 0 else math.inf,
        tuple(each for each, *_ in found),
    )


def _estimate(target: Paired) -> tuple[float, float, int]:
    """Mean, its variance and degrees of freedom of one target: see the module's formula."""
    num, num_all = len(target.change_S), len(target.weights_E)
    weights_S = target.weights_E[:num] / target.weights_E[:num].mean()
    change_S, foreseen_S = target.change_S, target.foreseen_E[:num]
    centred_S = foreseen_S - np.average(foreseen_S, weights=weights_S)
    around_E = target.foreseen_E - np.average(target.foreseen_E, weights=target.weights_E)
    believed = BELIEF * float(np.average(around_E**2, weights=target.weights_E))
    spread = float(weights_S @ centred_S**2) + believed
    slope = (float((weights_S * centred_S) @ change_S) + believed) / spread if spread > 0 else 0.0
    mean = float(np.average(change_S, weights=weights_S))
    rest_S = change_S - mean - slope * centred_S
    away = float(
        np.average(target.foreseen_E, weights=target.weights_E)
        - np.average(foreseen_S, weights=weights_S)
    )
    variance = (1 - num / num_all) / num * float(((weights_S * rest_S) ** 2).sum()) / (num - 2)
    if spread > 0:
        variance += float(weights_S @ rest_S**2) / (num - 2) * away**2 / spread
    return mean + slope * away, variance, num - 2


def is_beaten(found: Difference, level: float) -> bool:
    """Whether the difference is below zero at this level, and by more than rounding."""
    if found.mean > -ROUNDING:
        return False
    return found.sd <= ROUNDING or float(stats.t.cdf(found.mean / found.sd, found.dof)) < level


def combination(weights_KN: Array, weights_N: Array) -> Array:
    """The combination of K mixtures' values that foresees those of another, the same for every example.

    Universal kriging with a linear drift (Cressie, Statistics for Spatial Data, 1993, section 3.4): the covariance is a
    Gaussian of the distance of weights, and a value that is linear in them is foreseen exactly where the mixtures span it.
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
    """Rows of the `most` mixtures that are nearest to another, in their order."""
    order = np.argsort(((weights_KN - weights_N) ** 2).sum(axis=-1), kind="stable")
    return sorted(order[:most].tolist())
