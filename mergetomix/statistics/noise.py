"""How far a measured score may lie from what its mixture is worth: noise of examples and of seeds.

A score is a mean over some examples, of a model that was trained with one seed. Both are samples.

Array names end in their shape: M mixtures, E examples, R columns of a covariance's root, P pairs,
G points of a grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
SEED_SHARE = 0.1
"""The standard deviation over seeds that is expected before any repeat, in standard deviations of
the proxies over all mixtures: the median over the targets of the studies (.05 to .25)."""
SEED_SPREAD = 0.6
"""How far that share lies from one target to another: the sd of its logarithm (normal prior)."""
MOST_COLUMNS = 256
"""Columns of a covariance's root beyond which examples are put together."""
_LEVEL = 0.95
_GRID_G = np.linspace(-3.0, 3.0, 241)
"""Standard deviations of the prior from its centre at which shares of the seed noise are tried."""


@dataclass(frozen=True)
class Noise:
    """The noise of the real scores of M mixtures, all of them measured on the same examples.

    A check measures y = f + x + s + e. f is what a fine-tune on the mixture scores, over all
    examples like these and over all seeds. x is what the drawn examples add to every score, the
    proxies' too: its covariance over mixtures is `examples_MR` times its transpose. s is what the
    seed adds, with the standard deviation `seed_sd`. e, of variance `check_M`, is what the examples
    add to the check alone, and not to the proxy. `report_M` is the variance of what the examples of
    the report part add to a fine-tune's score there.
    """

    examples_MR: Array
    check_M: Array
    report_M: Array
    seed_sd: float

    @classmethod
    def none(cls, num: int) -> Noise:
        """Returns no noise at all for `num` mixtures: every measured score is exact."""
        return cls(np.zeros((num, 0)), np.zeros(num), np.zeros(num), 0.0)

    @classmethod
    def together(cls, parts: Sequence[tuple[float, Noise]], seed_sd: float) -> Noise:
        """Returns the noise of a weighted sum of scores on targets that share no example."""
        roots = [factor * noise.examples_MR for factor, noise in parts]
        return cls(
            thinned(np.hstack(roots)),
            np.sum([factor**2 * noise.check_M for factor, noise in parts], axis=0),
            np.sum([factor**2 * noise.report_M for factor, noise in parts], axis=0),
            seed_sd,
        )

    def rows(self, rows: Sequence[int]) -> Noise:
        """Returns the noise of some of the mixtures, in order."""
        chosen = list(rows)
        root_MR, check_M, report_M = self.examples_MR, self.check_M, self.report_M
        return Noise(root_MR[chosen], check_M[chosen], report_M[chosen], self.seed_sd)

    def with_examples(self, times: float) -> Noise:
        """Returns the noise if the select part had so many times the examples."""
        root_MR, check_M = self.examples_MR / math.sqrt(times), self.check_M / times
        return Noise(root_MR, check_M, self.report_M, self.seed_sd)

    @property
    def variance_M(self) -> Array:
        """The variance of what the examples add to every score."""
        return np.asarray((self.examples_MR**2).sum(axis=1))


@dataclass(frozen=True)
class OnExamples:
    """What the examples of one target add to the scores of M mixtures.

    `root_MR` times its transpose is the covariance of what they add to every score, `unchecked` the
    variance of what they add to a check alone, as it is expected before any, and `report_ratio` the
    number of the select part's examples over that of the report part's.
    """

    root_MR: Array
    unchecked: float
    report_ratio: float

    def noise(
        self, checks: Mapping[int, float], plural_M: NDArray[np.bool_], seed_sd: float
    ) -> Noise:
        """Returns the noise of the mixtures' scores.

        Args:
            checks: variance of the difference between real and proxy over draws of the examples, by
                row; mixtures without a check are taken to have the median of them.
            plural_M: whether a mixture has several datasets; else proxy and real are one model.
            seed_sd: standard deviation over seeds.
        """
        known = list(checks.values())
        check_M = np.where(plural_M, np.median(known) if known else self.unchecked, 0.0)
        check_M[list(checks)] = known
        report_M = self.report_ratio * ((self.root_MR**2).sum(axis=1) + check_M)
        return Noise(self.root_MR, check_M, report_M, seed_sd)


def mean_root(values_ME: Array, weights_E: Array) -> Array:
    """Returns a root of the covariance of weighted means over draws of the examples.

    The means are sum_e w_e v_me / sum_e w_e; R such that R R' is their covariance has the columns

        R_me = c w_e (v_me - mean_m) / (mean of w * sqrt(E (E - 1)))

    (the linearised ratio, Efron and Tibshirani 1993, chapter 6). c makes 90% intervals of a normal
    distribution as wide as those of Student's t with E - 1 degrees of freedom: the spread of few
    examples is known badly. Examples without weight are none. One example alone is taken to lie as
    far from zero as it may well lie from the truth. Raises ValueError for weights that are all
    zero.
    """
    if not weights_E.sum() > 0:
        raise ValueError("the examples' weights must not all be zero")
    values_ME, weights_E = values_ME[:, weights_E > 0], weights_E[weights_E > 0]
    num = len(weights_E)
    means_M = values_ME @ weights_E / weights_E.sum()
    away_ME = values_ME - (means_M[:, None] if num > 1 else 0.0)
    wide = stats.t.ppf(_LEVEL, max(1, num - 1)) / stats.norm.ppf(_LEVEL)
    return np.asarray(
        wide * away_ME * weights_E / (weights_E.mean() * math.sqrt(num * max(1, num - 1)))
    )


def mean_variance(values_E: Array, weights_E: Array) -> float:
    """Returns the variance of a weighted mean over draws of the examples, as `mean_root` has it."""
    return float((mean_root(values_E[None], weights_E) ** 2).sum())


def chance_of_spread(means_M: Array, root_MR: Array) -> float:
    """Returns the chance that means which are all equal in truth would lie so far apart.

    Their sum of squares around their mean is compared with its distribution if nothing but the
    drawn examples made them differ: a weighted sum of chi-squares, taken for a scaled one with the
    same two moments (Satterthwaite 1946; Box 1954). `root_MR` is as `mean_root` gives it.
    """
    away_MR = root_MR - root_MR.mean(axis=0)
    inner = away_MR.T @ away_MR if away_MR.shape[1] < len(away_MR) else away_MR @ away_MR.T
    first, second = float(np.trace(inner)), float((inner**2).sum())
    squares = float(((means_M - means_M.mean()) ** 2).sum())
    if not second > 0:
        return 1.0 if squares == 0 else 0.0
    return float(stats.chi2.sf(squares * first / second, first**2 / second))


def thinned(root_MR: Array, num: int = MOST_COLUMNS) -> Array:
    """Returns a root of nearly the same covariance with at most `num` columns.

    Columns are put together in groups, each with a random sign: what differs is as likely above the
    truth as below it.
    """
    if root_MR.shape[1] <= num:
        return root_MR
    rng = np.random.default_rng(0)
    signed_MR = root_MR * rng.choice([-1.0, 1.0], size=root_MR.shape[1])
    order_R, places = rng.permutation(root_MR.shape[1]), np.arange(root_MR.shape[1]) % num
    groups_RR = np.zeros((root_MR.shape[1], num))
    groups_RR[order_R, places] = 1.0
    return np.asarray(signed_MR @ groups_RR)


def seed_share(
    differences_P: Sequence[float], examples_P: Sequence[float], units_P: Sequence[float]
) -> float:
    """Returns the standard deviation over seeds, in standard deviations of the proxies.

    One pair is a mixture fine-tuned twice, with two seeds, and scored on one target. A difference
    is normal with the variance 2 (share * unit)^2 + examples; the share is log-normal around
    SEED_SHARE, and the result the root of its square's posterior mean: two pairs that happen to
    agree do not make the noise vanish. All targets count alike.

    Args:
        differences_P: of the two scores.
        examples_P: variance of each difference over draws of the examples.
        units_P: sd of the target's proxies over all mixtures.

    >>> round(seed_share([], [], []), 2)
    0.14
    >>> seed_share([0.5] * 4, [0.0] * 4, [1.0] * 4) > 0.25
    True
    """
    share_G = SEED_SHARE * np.exp(SEED_SPREAD * _GRID_G)
    log_G = -(_GRID_G**2) / 2
    for difference, examples, unit in zip(differences_P, examples_P, units_P, strict=True):
        variance_G = 2 * (share_G * unit) ** 2 + examples
        log_G = log_G - np.log(variance_G) / 2 - difference**2 / (2 * variance_G)
    chance_G = np.exp(log_G - log_G.max())
    return math.sqrt(float(chance_G @ share_G**2 / chance_G.sum()))
