"""What a few real fine-tunes say of all others, by a Gaussian process over mixtures.

    real(w) = proxy(w) + h(w) * (a + b z(w) + c d(w) + k(w) sum_i w_i m_i + e_w)
              + sum over i < j of w_i w_j q_ij
    h(w) = 1 - sum_i w_i^2        k(w) = 1 / sum_i w_i^2
    z(w) = (proxy(w) - mean) / sd        d(w) = (pooled(w) - proxy(w)) / sd

`a` and `b` correct the proxies' level and slope, `c` is how far the experts pooled by their
probabilities are to be believed beside their merge, `m_i` is what a dataset does to every mixture
that it is part of beyond what a merge shows (k(w) w_i is one for each of k equal parts), `q_ij`
what two datasets do to each other, `e_w` is a mixture's own. Every term is zero if a single dataset
has all the weight, as it must be: there proxy and real are one model. All coefficients are normal,
b and c around what the studies show, the others around zero; the common variance is unknown with an
inverse gamma prior, so that predictions follow Student's t (Gelman et al., Bayesian Data Analysis,
3rd ed., section 14.2; Rasmussen and Williams, Gaussian Processes, algorithm 2.1). How large e_w is
beside the other terms is the likeliest of OWN_FACTORS, given the checks.

Array names end in their shape: M mixtures, N datasets, F features, U checks used, C checks.
Objectives are better when higher.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, stats

Array = NDArray[np.float64]
NUM_DRAWS = 4000
"""Draws from the posterior behind every probability."""
EXPONENT_SD = 0.25
"""Standard deviation of the best exponent around the recipe's before any check (normal prior)."""
OWN_FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Factors on `Prior.own`, log-normal with sd 1: residuals without any pattern must not show one."""
JITTER = 1e-9
"""What is so small beside the rest is rounding."""


@dataclass(frozen=True)
class Prior:
    """How far reals lie from proxies before any check, in sds of the proxies over all mixtures.

    `level`, `slope`, `pool`, `main`, `pair` and `own` are the standard deviations of a, b, c, m_i,
    q_ij and e_w. The means of b and c are `expected_slope` (real fine-tunes spread further than the
    merges, which average) and `expected_pool`. `dof` says how sure the common variance is, in
    checks. Under all but `dof` the reals of seed 0 of the studies are likeliest
    (`studies/fit_prior.py`); the figures of the studies are of other seeds.
    """

    level: float = 0.48
    expected_slope: float = 0.37
    slope: float = 0.39
    expected_pool: float = 0.81
    pool: float = 0.61
    main: float = 0.20
    pair: float = 1.04
    own: float = 0.16
    dof: float = 6.0


@dataclass(frozen=True)
class Unit:
    """The mean and standard deviation of all mixtures' proxies, in which the prior counts."""

    mean: float
    sd: float

    @classmethod
    def of(cls, proxy_M: Array) -> Unit:
        """Returns the unit of these proxies; sd is one if all are equal but for rounding."""
        mean, sd = float(np.mean(proxy_M)), float(np.std(proxy_M))
        return cls(mean, sd if sd > JITTER * max(1.0, abs(mean)) else 1.0)


@dataclass(frozen=True)
class Views:
    """What is known of M mixtures of N datasets before any real fine-tune.

    `weights_MN` has a mixture's weights in every row, which sum to one; `proxy_M` are the proxies'
    objectives, `pooled_M` those of the experts pooled.
    """

    weights_MN: Array
    proxy_M: Array
    pooled_M: Array

    def __post_init__(self) -> None:
        arrays = (self.weights_MN, self.proxy_M, self.pooled_M)
        shapes = [array.shape for array in arrays]
        if self.weights_MN.ndim != 2 or not shapes[0][:1] == shapes[1] == shapes[2]:
            raise ValueError(f"weights, proxies and pooled objectives do not fit: {shapes}")
        if not all(np.isfinite(array).all() for array in arrays):
            raise ValueError("weights, proxies and pooled objectives must be finite")


@dataclass(frozen=True)
class Posterior:
    """The joint distribution of M mixtures' real objectives: Student's t.

    `mean_M` is its centre and `scale_MM` its scale matrix (the covariance is dof / (dof - 2) times
    that); both are exact for mixtures whose real objective is known.
    """

    mean_M: Array
    scale_MM: Array
    dof: float
    known: frozenset[int]
    log_evidence: float

    @property
    def sd_M(self) -> Array:
        """The scale of each mixture's marginal distribution."""
        return np.asarray(np.sqrt(np.clip(np.diag(self.scale_MM), 0, None)))

    def interval(self, confidence: float) -> tuple[Array, Array]:
        """Returns the lower and upper ends of each mixture's central interval, shapes (M,)."""
        half_M = stats.t.ppf(0.5 + confidence / 2, self.dof) * self.sd_M
        return self.mean_M - half_M, self.mean_M + half_M

    def draws(self, seed: int, num: int = NUM_DRAWS) -> Array:
        """Returns draws of all mixtures' real objectives together, shape (num, M)."""
        unknown = [i for i in range(len(self.mean_M)) if i not in self.known]
        drawn = np.tile(self.mean_M, (num, 1))
        if unknown:
            # scipy's multivariate_t takes eigenvalues: a minute for all subsets of 12 datasets
            rng = np.random.default_rng(seed)
            shape = self.scale_MM[np.ix_(unknown, unknown)]
            root = np.linalg.cholesky(shape + JITTER * np.trace(shape) * np.eye(len(unknown)))
            stretch = np.sqrt(self.dof / rng.chisquare(self.dof, size=(num, 1)))
            drawn[:, unknown] += rng.standard_normal((num, len(unknown))) @ root.T * stretch
        return drawn

    def best_probabilities(self, seed: int = 0) -> Array:
        """Returns each mixture's probability of having the best real objective, by draws: (M,)."""
        winners = np.argmax(self.draws(seed), axis=1)
        return np.asarray(np.bincount(winners, minlength=len(self.mean_M)) / NUM_DRAWS)


def posterior_of(
    views: Views, known: Mapping[int, float], prior: Prior | None = None, unit: Unit | None = None
) -> Posterior:
    """Returns the real objectives of M mixtures, given some of them by row.

    Single datasets have their proxies' own and need not be given. `unit` is that of the prior if
    the mixtures are not all there are; else it is that of their proxies. Raises ValueError for a
    number that is not finite.
    """
    prior, unit = prior or Prior(), unit or Unit.of(views.proxy_M)
    if not np.isfinite(list(known.values())).all():
        raise ValueError("reals must be finite")
    expected_M, features_MF, own_M = _terms(views, unit, prior)
    singles = np.flatnonzero(own_M <= JITTER).tolist()
    given = {i: float(views.proxy_M[i]) for i in singles} | dict(known)
    used = sorted(set(known) - set(singles))
    residual_U, features_UF = np.array([known[i] - expected_M[i] for i in used]), features_MF[used]
    fits = [
        _fitted(features_UF, factor * own_M[used], residual_U, prior.dof, unit.sd)
        for factor in OWN_FACTORS
    ]
    plausible = np.array([fit[0] for fit in fits]) - np.log(OWN_FACTORS) ** 2 / 2
    likeliest = int(np.argmax(plausible))
    factor, (_, root_UU, white_U) = OWN_FACTORS[likeliest], fits[likeliest]
    reduced_UM = linalg.solve_triangular(root_UU, features_UF @ features_MF.T, lower=True)
    shape_MM = features_MF @ features_MF.T - reduced_UM.T @ reduced_UM
    dof = prior.dof + len(used)
    amplitude = (prior.dof * unit.sd**2 + float(white_U @ white_U)) / dof
    mean_M = expected_M + reduced_UM.T @ white_U
    scale_MM = amplitude * (shape_MM + np.diag((factor * own_M) ** 2))
    for i, value in given.items():
        mean_M[i], scale_MM[i, :], scale_MM[:, i] = value, 0.0, 0.0
    return Posterior(mean_M, scale_MM, dof, frozenset(given), float(plausible[likeliest]))


def likeliest_exponent(
    views: Mapping[str, Mapping[float, Views]],
    reals: Mapping[str, Array],
    units: Mapping[str, Unit],
    default: float,
) -> float:
    """Returns the exponent of the scale under which the checks of all targets are likeliest.

    It has the highest log evidence, summed over targets, plus log prior: normal around `default`,
    which wins if nothing is better. By target there are the checked mixtures by exponent, their
    real objectives, shape (C,), and the units of all mixtures' proxies.
    """

    def plausibility(exponent: float) -> tuple[float, bool]:
        evidence = sum(
            posterior_of(
                each[exponent], dict(enumerate(reals[name])), unit=units[name]
            ).log_evidence
            for name, each in views.items()
        )
        return evidence - ((exponent - default) / EXPONENT_SD) ** 2 / 2, exponent == default

    return max(sorted(next(iter(views.values()))), key=plausibility)


def _terms(views: Views, unit: Unit, prior: Prior) -> tuple[Array, Array, Array]:
    """Returns the reals that are expected, features, and the scale of each mixture's own term.

    The inner products of the features are the prior covariance of the shared terms.
    """
    weights_MN = views.weights_MN
    squares_M = np.sum(weights_MN**2, axis=1)
    mixed_M = np.clip(1 - squares_M, 0, None)
    z_M = (views.proxy_M - unit.mean) / unit.sd
    d_M = (views.pooled_M - views.proxy_M) / unit.sd
    first, second = np.triu_indices(weights_MN.shape[1], k=1)
    features_MF = np.hstack(
        [
            prior.level * mixed_M[:, None],
            prior.slope * (mixed_M * z_M)[:, None],
            prior.pool * (mixed_M * d_M)[:, None],
            prior.main * (mixed_M / squares_M)[:, None] * weights_MN,
            prior.pair * weights_MN[:, first] * weights_MN[:, second],
        ]
    )
    shift_M = prior.expected_slope * z_M + prior.expected_pool * d_M
    return views.proxy_M + unit.sd * mixed_M * shift_M, features_MF, prior.own * mixed_M


def _fitted(
    features_UF: Array, own_U: Array, residual_U: Array, dof: float, spread: float
) -> tuple[float, Array, Array]:
    """Returns log p(residuals), the Cholesky root of K = F F' + own^2, and root^-1 residuals.

    p is a multivariate t with `dof` degrees of freedom and the scale matrix spread^2 K.
    """
    shape_UU = features_UF @ features_UF.T + np.diag(own_U**2 + JITTER)
    root_UU = linalg.cholesky(shape_UU, lower=True)
    white_U = linalg.solve_triangular(root_UU, residual_U, lower=True)
    half = (dof + len(white_U)) / 2
    constant = math.lgamma(half) - math.lgamma(dof / 2)
    constant -= len(white_U) / 2 * math.log(math.pi * dof * spread**2)
    tail = half * math.log1p(float(white_U @ white_U) / (dof * spread**2))
    return constant - float(np.log(np.diag(root_UU)).sum()) - tail, root_UU, white_U
