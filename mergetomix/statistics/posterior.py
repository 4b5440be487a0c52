"""What a few real fine-tunes say of all others: real = proxy + residual, the residual a Gaussian process over mixtures.

    real(w) = proxy(w) + h(w) * (a + b z(w) + c d(w) + k(w) sum_i w_i m_i + e_w) + sum over i < j of w_i w_j q_ij
    h(w) = 1 - sum_i w_i^2        k(w) = 1 / sum_i w_i^2
    z(w) = (proxy(w) - mean) / sd        d(w) = (pooled(w) - proxy(w)) / sd

`a` and `b` correct the proxies' level and slope, `c` is how far the experts pooled by their probabilities (`pool`) are to be
believed beside their merge, `m_i` is what a dataset does to every mixture that it is part of beyond what
a merge shows (k(w) w_i is one for each of k equal parts), `q_ij` what two datasets do to each other, `e_w` is a mixture's own.
Every term is zero where a single dataset has all the weight, as it must be: there proxy and real are one model. All
coefficients are normal, b and c around what the studies show, the others around zero; the common variance is unknown with an
inverse gamma prior, so that predictions follow Student's t (Gelman et al., Bayesian Data Analysis, 3rd ed., section 14.2). How
large e_w is beside the other terms is the likeliest of OWN_FACTORS, given the checks. The regression itself is scikit-learn's
GaussianProcessRegressor over the features above. Objectives are better when higher.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
NUM_DRAWS = 4000
"""Draws from the posterior behind every probability."""
EXPONENT_SD = 0.25
"""How far the best exponent may lie from the recipe's before any check: the standard deviation of a normal prior."""
OWN_FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Factors on `Prior.own` to choose from by the checks: where residuals follow no pattern, intervals must not trust in one."""
OWN_SD = 1.0
"""Standard deviation of the factor's logarithm before any check; its mean is 0."""
_JITTER = 1e-9


@dataclass(frozen=True)
class Prior:
    """How far reals lie from proxies before any is known, in standard deviations of the proxies over all mixtures.

    `level`, `slope`, `pool`, `main`, `pair` and `own` are the standard deviations of a, b, c, m_i, q_ij and e_w. The means of b
    and c are `expected_slope` (real fine-tunes spread further than the merges, which average) and `expected_pool`. `dof` says
    how sure the common variance is, in checks. Under all but `dof` the reals of seed 0 of the studies are likeliest
    (`docs/studies/fit_prior.py`); the figures of the studies are of other seeds.
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
    """Mean and standard deviation of all mixtures' proxies, in which the prior counts; `sd` is one where all are equal but for
    rounding."""

    mean: float
    sd: float

    @classmethod
    def of(cls, proxy_M: Array) -> Unit:
        """The unit of these proxies."""
        mean, sd = float(np.mean(proxy_M)), float(np.std(proxy_M))
        return cls(mean, sd if sd > _JITTER * max(1.0, abs(mean)) else 1.0)


@dataclass(frozen=True)
class Views:
    """What is known of M mixtures of N datasets before any real fine-tune.

    `weights_MN` has a mixture's weights in every row, which sum to one; `proxy_M` are the proxies' objectives, `pooled_M` those
    of the experts pooled, None where there are none.
    """

    weights_MN: Array
    proxy_M: Array
    pooled_M: Array | None = None

    def __post_init__(self) -> None:
        shapes = {self.proxy_M.shape, self.weights_MN.shape[:1], self.pool_M.shape}
        if self.weights_MN.ndim != 2 or len(shapes) > 1:
            raise ValueError(
                f"{self.weights_MN.shape} weights do not fit {self.proxy_M.shape} proxies"
            )
        if not all(
            np.isfinite(array).all() for array in (self.weights_MN, self.proxy_M, self.pool_M)
        ):
            raise ValueError("weights, proxies and pooled objectives must be finite")

    @property
    def pool_M(self) -> Array:
        """The pooled objectives, or the proxies in their place."""
        return self.proxy_M if self.pooled_M is None else self.pooled_M


@dataclass(frozen=True)
class Posterior:
    """The joint distribution of M mixtures' real objectives: Student's t with `dof` degrees of freedom.

    `mean_M` is its centre and `scale_MM` its scale matrix (the covariance is dof / (dof - 2) times that); both are exact for
    mixtures whose real objective is known.
    """

    mean_M: Array
    scale_MM: Array
    dof: float
    known: frozenset[int]
    log_evidence: float

    @property
    def sd_M(self) -> Array:
        """Scale of each mixture's marginal distribution."""
        scale_M: Array = np.sqrt(np.clip(np.diag(self.scale_MM), 0, None))
        return scale_M

    def interval(self, confidence: float) -> tuple[Array, Array]:
        """Lower and upper ends of each mixture's central interval, shapes (M,)."""
        from scipy.stats import t

        half_M = t.ppf(0.5 + confidence / 2, self.dof) * self.sd_M
        return self.mean_M - half_M, self.mean_M + half_M

    def draws(self, seed: int, num: int = NUM_DRAWS) -> Array:
        """Draws of all mixtures' real objectives together, shape (num, M)."""
        unknown = [i for i in range(len(self.mean_M)) if i not in self.known]
        drawn = np.tile(self.mean_M, (num, 1))
        if unknown:
            # Cholesky, as scipy's multivariate_t takes eigenvalues: a minute for the 4,095 subsets of 12 datasets
            rng = np.random.default_rng(seed)
            shape = self.scale_MM[np.ix_(unknown, unknown)]
            root = np.linalg.cholesky(shape + _JITTER * np.trace(shape) * np.eye(len(unknown)))
            stretch = np.sqrt(self.dof / rng.chisquare(self.dof, size=(num, 1)))
            drawn[:, unknown] += rng.standard_normal((num, len(unknown))) @ root.T * stretch
        return drawn

    def best_probabilities(self, seed: int = 0) -> Array:
        """Each mixture's probability of having the best real objective, by draws; shape (M,), sums to one."""
        winners = np.argmax(self.draws(seed), axis=1)
        share_M: Array = np.bincount(winners, minlength=len(self.mean_M)) / NUM_DRAWS
        return share_M

    def value_of_check(self) -> Array:
        """How much better the choice is expected to be once a mixture's real objective is known, shape (M,).

        The knowledge gradient (Frazier, Powell and Dayanik 2009, eq. 14): E[max_i mean_i after the check] - max_i mean_i now,
        over one standard normal by Gauss-Hermite quadrature; zero for what is known.
        """
        nodes_Q, weights_Q = np.polynomial.hermite_e.hermegauss(31)
        sd_M = self.sd_M
        value_M = np.zeros(len(sd_M))
        inflated = math.sqrt(self.dof / (self.dof - 2)) if self.dof > 2 else 1.0
        for i in np.flatnonzero(sd_M > _JITTER * max(1.0, float(sd_M.max()))):
            shift_M = inflated * self.scale_MM[:, i] / sd_M[i]
            best_Q = np.max(self.mean_M[:, None] + shift_M[:, None] * nodes_Q[None, :], axis=0)
            value_M[i] = max(
                0.0, float(best_Q @ weights_Q) / math.sqrt(2 * math.pi) - float(self.mean_M.max())
            )
        return value_M


def posterior_of(
    views: Views, known: Mapping[int, float], prior: Prior | None = None, unit: Unit | None = None
) -> Posterior:
    """The real objectives of M mixtures, given some of them.

    Args:
        known: real objectives by row. Those of single datasets are their proxies' own, and need not be given.
        unit: of the prior, where the mixtures given are not all; else that of their proxies.

    Raises:
        ValueError: a number is not finite.
    """
    prior, unit, proxy_M = prior or Prior(), unit or Unit.of(views.proxy_M), views.proxy_M
    if not np.isfinite(list(known.values())).all():
        raise ValueError("reals must be finite")
    expected_M, features_MF, own_M = _terms(views, unit, prior)
    singles = {int(i): float(proxy_M[i]) for i in np.flatnonzero(own_M <= _JITTER)}
    given = {**singles, **known}
    used = sorted(i for i in known if own_M[i] > _JITTER)
    residual_U = np.array([known[i] - expected_M[i] for i in used])
    fits = [
        _fitted(features_MF[used], factor * own_M[used], residual_U, factor)
        for factor in OWN_FACTORS
    ]
    fit = max(fits, key=lambda each: each.plausibility(prior, unit.sd))
    centre_M, shape_MM = fit.predict(features_MF)
    dof, amplitude = fit.amplitude(prior, unit.sd)
    scale_MM = amplitude * (shape_MM + np.diag((fit.factor * own_M) ** 2))
    mean_M = expected_M + centre_M
    for i, value in given.items():
        mean_M[i], scale_MM[i, :], scale_MM[:, i] = value, 0.0, 0.0
    return Posterior(mean_M, scale_MM, dof, frozenset(given), fit.plausibility(prior, unit.sd))


def next_check(
    posterior: Posterior, first_by: Array | None, confidence: float
) -> tuple[int | None, str]:
    """The mixture to check next, or None and why there is none: the best by proxy, then the one whose check is worth most.

    Args:
        first_by: the proxies where no check was paid for yet, shape (M,), else None.
        confidence: the probability of being the best mixture at which the pick is safe.
    """
    left = [i for i in range(len(posterior.mean_M)) if i not in posterior.known]
    if not left:
        return None, "every mixture is known"
    if first_by is not None:
        return max(left, key=lambda i: (float(first_by[i]), -i)), ""
    safe = float(posterior.best_probabilities()[int(np.argmax(posterior.mean_M))])
    if safe >= confidence:
        return None, f"the pick is the best mixture with a probability of {safe:.2f}"
    value_M = posterior.value_of_check()
    return max(left, key=lambda i: (float(value_M[i]), float(posterior.mean_M[i]), -i)), ""


def likeliest_exponent(
    views: Mapping[float, Views], real_C: Array, unit: Unit, default: float
) -> float:
    """The exponent of the scale under which C checks are likeliest: the maximum of log evidence plus log prior.

    Args:
        views: the checked mixtures by exponent.
        unit: of the proxies of all mixtures.
        default: the centre of the prior, normal with standard deviation EXPONENT_SD; it wins where nothing is better.
    """
    real = dict(enumerate(real_C.tolist()))
    return likeliest(
        {each: posterior_of(known, real, unit=unit).log_evidence for each, known in views.items()},
        default,
    )


def likeliest(evidence: Mapping[float, float], default: float) -> float:
    """The exponent of the highest log evidence plus log prior, see `likeliest_exponent`."""

    def plausibility(exponent: float) -> tuple[float, bool]:
        return evidence[exponent] - 0.5 * (
            (exponent - default) / EXPONENT_SD
        ) ** 2, exponent == default

    return max(sorted(evidence), key=plausibility)


def _terms(views: Views, unit: Unit, prior: Prior) -> tuple[Array, Array, Array]:
    """What reals are expected to be before any is known; features whose inner products are the prior covariance of the shared
    terms; and the scale of each mixture's own term."""
    weights_MN = views.weights_MN
    squares_M = np.sum(weights_MN**2, axis=1)
    mixed_M = np.clip(1 - squares_M, 0, None)
    z_M = (views.proxy_M - unit.mean) / unit.sd
    d_M = (views.pool_M - views.proxy_M) / unit.sd
    present_MN = weights_MN / squares_M[:, None]
    first, second = np.triu_indices(weights_MN.shape[1], k=1)
    columns = (
        prior.level * mixed_M[:, None],
        prior.slope * (mixed_M * z_M)[:, None],
        prior.pool * (mixed_M * d_M)[:, None],
        prior.main * mixed_M[:, None] * present_MN,
        prior.pair * weights_MN[:, first] * weights_MN[:, second],
    )
    expected_M = views.proxy_M + unit.sd * mixed_M * (
        prior.expected_slope * z_M + prior.expected_pool * d_M
    )
    return expected_M, np.concatenate(columns, axis=1), prior.own * mixed_M


@dataclass(frozen=True)
class _Fit:
    """The regression of `num` residuals r with the mixtures' own terms scaled by `factor`.

    `squares` is r' K^-1 r and `log_det` that of K, both at unit amplitude; `process` is None without residuals.
    """

    process: Any
    factor: float
    num: int
    squares: float
    log_det: float

    def predict(self, features_MF: Array) -> tuple[Array, Array]:
        """Centre and shape of the shared terms of M mixtures."""
        if self.process is None:
            return np.zeros(len(features_MF)), features_MF @ features_MF.T
        centre_M, shape_MM = self.process.predict(features_MF, return_cov=True)
        return centre_M, shape_MM

    def amplitude(self, prior: Prior, spread: float) -> tuple[float, float]:
        """Degrees of freedom and squared scale of the t distribution after the residuals."""
        dof = prior.dof + self.num
        return dof, (prior.dof * spread**2 + self.squares) / dof

    def plausibility(self, prior: Prior, spread: float) -> float:
        """log p(r), a multivariate t with prior.dof degrees of freedom and scale spread^2 K, plus the factor's log prior."""
        dof, half = prior.dof, (prior.dof + self.num) / 2
        constant = (
            math.lgamma(half)
            - math.lgamma(dof / 2)
            - self.num / 2 * math.log(math.pi * dof * spread**2)
        )
        evidence = constant - self.log_det / 2 - half * math.log1p(self.squares / (dof * spread**2))
        return evidence - 0.5 * (math.log(self.factor) / OWN_SD) ** 2


def _fitted(features_UF: Array, own_U: Array, residual_U: Array, factor: float) -> _Fit:
    """The regression of residuals; own_U are the standard deviations of the mixtures' own terms."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import DotProduct

    if not len(residual_U):
        return _Fit(None, factor, 0, 0.0, 0.0)
    kernel = DotProduct(sigma_0=0.0, sigma_0_bounds="fixed")
    process = GaussianProcessRegressor(kernel, alpha=own_U**2 + _JITTER, optimizer=None)
    process.fit(features_UF, residual_U)
    squares = float(residual_U @ np.ravel(process.alpha_))
    return _Fit(
        process, factor, len(residual_U), squares, 2 * float(np.sum(np.log(np.diag(process.L_))))
    )
