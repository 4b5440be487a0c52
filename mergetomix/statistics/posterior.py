"""What a few real fine-tunes say of all others, by a Gaussian process over mixtures.

    real(w) = proxy(w) + h(w) * (a + b z(w) + c d(w) + u v(w) + (l + o z(w)) t(w)
                                 + k(w) sum_i w_i m_i + e_w)
              + sum over i < j of w_i w_j q_ij
    h(w) = (1 - sum_i w_i^2)^(1/2)        k(w) = 1 / sum_i w_i^2
    z(w) = (proxy(w) - mean) / sd         d(w) = (pooled(w) - proxy(w)) / sd
    v(w) = (strongest(w) - proxy(w)) / sd
    strongest(w): the experts' own, of which the strongest count most (`with_strongest`)
    t(w) = how much longer than its experts the fine-tune is trained (`how_much_longer`)

`a` and `b` correct the proxies' level and slope, `c` is how far the experts pooled by their
probabilities are to be believed beside their merge, `u` how far the strongest of them are: a merge
averages what its experts do, while a union often keeps most of what one dataset does, for better or
worse, however many others there are. `l` and `o` are for unions that are trained for longer than
their experts were, as with one pass over all data: they gain by it, and most where the merge says
least; t is zero where every fine-tune has as many tokens. `m_i` is what a dataset does to every
mixture that it is part of beyond what a merge shows (k(w) w_i is one for each of k equal parts),
`q_ij` what two datasets do to each other, `e_w` is a mixture's own. Every term is zero if a single
dataset has all the weight, as it must be: there proxy and real are one model. All coefficients are
normal, b, c, u, l and o around what the studies show, the others around zero; the common variance
is unknown with an inverse gamma prior, so that predictions follow Student's t (Gelman et al.,
Bayesian Data Analysis, 3rd ed., section 14.2; Rasmussen and Williams, Gaussian Processes, algorithm
2.1). How large e_w is beside the other terms is the likeliest of OWN_FACTORS, given the checks.

Array names end in their shape: M mixtures, N datasets, F features, U checks used, C checks.
Objectives are better when higher.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, stats

from mergetomix.statistics.noise import Noise

Array = NDArray[np.float64]
K = TypeVar("K")
NUM_DRAWS = 4000
"""Draws from the posterior behind every probability."""
OWN_FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Factors on `Prior.own`, log-normal with sd 1: residuals without any pattern must not show one."""
HALF_STRONG = 0.1
"""The gain of the strongest expert at which unions are half as merges are, half as it is."""
JITTER = 1e-9
"""What is so small beside the rest is rounding."""


@dataclass(frozen=True)
class Prior:
    """How far reals lie from proxies before any check, in sds of the proxies over all mixtures.

    `level`, `slope`, `pool`, `strong`, `longer`, `levelled`, `main`, `pair` and `own` are the
    standard deviations of a, b, c, u, l, o, m_i, q_ij and e_w; those with `expected` before their
    name are the means of b, c, u, l and o. `dof` says how sure the common variance is, in checks.
    They are near to those under which the reals of nine suites are likeliest
    (`studies/fit_prior.py`), the spreads a third wider, those of l and o of two more; the figures
    of the studies are of other seeds.
    """

    level: float = 0.22
    expected_slope: float = 0.13
    slope: float = 0.28
    expected_pool: float = 0.45
    pool: float = 0.3
    expected_strong: float = 0.5
    strong: float = 0.5
    expected_longer: float = 0.6
    longer: float = 0.3
    expected_levelled: float = -0.3
    levelled: float = 0.2
    main: float = 0.13
    pair: float = 0.5
    own: float = 0.07
    dof: float = 5.0


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
    objectives, `pooled_M` those of the experts pooled, `strongest_M` the experts' own, of which the
    strongest count most; None leaves that out. `longer_M` says for how much longer than its experts
    each mixture's fine-tune is trained (`how_much_longer`); None where all are for equally long.
    """

    weights_MN: Array
    proxy_M: Array
    pooled_M: Array
    strongest_M: Array | None = None
    longer_M: Array | None = None

    def __post_init__(self) -> None:
        given = (self.proxy_M, self.pooled_M, self.strongest_M, self.longer_M)
        arrays = [self.weights_MN, *(each for each in given if each is not None)]
        shapes = [array.shape for array in arrays]
        if self.weights_MN.ndim != 2 or {shapes[0][:1]} != set(shapes[1:]):
            raise ValueError(f"weights, proxies and pooled objectives do not fit: {shapes}")
        if not all(np.isfinite(array).all() for array in arrays):
            raise ValueError("weights, proxies and pooled objectives must be finite")


@dataclass(frozen=True)
class Posterior:
    """The joint distribution of what M mixtures are worth, and what their fine-tunes will score.

    A mixture's worth is the mean of its fine-tunes over all seeds and over all examples like the
    targets' own. It is the sum of a Student's t with centre `mean_M`, scale matrix `scale_MM` (the
    covariance is dof / (dof - 2) times that) and `dof` degrees of freedom, which is what is not
    known of the mixtures, and of a normal, which is what examples and seeds add to everything that
    was measured (`noise`). `tuned_mean_M` and `tuned_scale_M` are centre and scale of the fine-tune
    with this run's own seed, which for a mixture that was checked is there already. `known` are the
    mixtures that were measured: those checked, and single datasets.
    """

    mean_M: Array
    scale_MM: Array
    dof: float
    known: frozenset[int]
    log_evidence: float
    noise: Noise
    tuned_mean_M: Array
    tuned_scale_M: Array

    @property
    def sd_M(self) -> Array:
        """The scale of what is not known of each mixture, noise left aside."""
        return np.asarray(np.sqrt(np.clip(np.diag(self.scale_MM), 0, None)))

    @property
    def pick(self) -> int:
        """The mixture whose fine-tune is expected to be best: it is what is handed over."""
        return int(np.argmax(self.tuned_mean_M))

    @property
    def inflation(self) -> float:
        """The covariance of the t, over its scale; one if it has none."""
        return self.dof / (self.dof - 2) if self.dof > 2 else 1.0

    def interval(self, confidence: float) -> tuple[Array, Array]:
        """Returns the ends of each mixture's interval for its fine-tune's score, shapes (M,).

        It is the score on the report part with this run's seed, the noise of both parts' examples
        counted. The two parts of its width, t and normal, add as their squares do.
        """
        level = 0.5 + confidence / 2
        wide_M = stats.t.ppf(level, self.dof) * self.tuned_scale_M
        noise_M = self.noise.variance_M + self.noise.report_M
        half_M = np.sqrt(wide_M**2 + stats.norm.ppf(level) ** 2 * noise_M)
        return self.tuned_mean_M - half_M, self.tuned_mean_M + half_M

    def draws(self, seed: int, num: int = NUM_DRAWS) -> Array:
        """Returns draws of what all mixtures are worth, together, shape (num, M)."""
        rng = np.random.default_rng(seed)
        drawn_DM = np.tile(self.mean_M, (num, 1))
        unsure = np.flatnonzero(self.sd_M > 0)
        if unsure.size:
            # scipy's multivariate_t takes eigenvalues: a minute for all subsets of 12 datasets
            shape = self.scale_MM[np.ix_(unsure, unsure)]
            root = np.linalg.cholesky(shape + JITTER * np.trace(shape) * np.eye(len(unsure)))
            stretch = np.sqrt(self.dof / rng.chisquare(self.dof, size=(num, 1)))
            drawn_DM[:, unsure] += rng.standard_normal((num, len(unsure))) @ root.T * stretch
        root_MR = self.noise.examples_MR
        drawn_DM += rng.standard_normal((num, root_MR.shape[1])) @ root_MR.T
        return np.asarray(drawn_DM + rng.standard_normal(drawn_DM.shape) * self._seeds_M)

    def tuned_draws(self, seed: int, num: int = NUM_DRAWS) -> Array:
        """Returns draws of each fine-tune's score on the report part by itself, shape (num, M)."""
        rng, shape = np.random.default_rng(seed), (num, len(self.mean_M))
        t_DM = rng.standard_t(self.dof, size=shape) * self.tuned_scale_M
        sd_M = np.sqrt(self.noise.variance_M + self.noise.report_M)
        return np.asarray(self.tuned_mean_M + t_DM + rng.standard_normal(shape) * sd_M)

    def best_probabilities(self, seed: int = 0) -> Array:
        """Returns each mixture's probability of being worth most, by draws: (M,)."""
        winners = np.argmax(self.draws(seed), axis=1)
        return np.asarray(np.bincount(winners, minlength=len(self.mean_M)) / NUM_DRAWS)

    def difference(self, one: int, other: int) -> tuple[float, float]:
        """Returns by how much one mixture is worth more than another, and the sd of that."""
        scale, root_MR = self.scale_MM, self.noise.examples_MR
        shape = float(scale[one, one] + scale[other, other] - 2 * scale[one, other])
        examples = float(((root_MR[one] - root_MR[other]) ** 2).sum())
        seeds = float(self._seeds_M[one] ** 2 + self._seeds_M[other] ** 2)
        variance = self.inflation * max(0.0, shape) + examples + seeds
        return float(self.mean_M[one] - self.mean_M[other]), math.sqrt(variance)

    @property
    def _seeds_M(self) -> Array:
        """The sd over seeds of what was measured without a check: that of single datasets."""
        return np.where(self.sd_M > 0, 0.0, self.noise.seed_sd)


def posterior_of(
    views: Views,
    known: Mapping[int, float],
    prior: Prior | None = None,
    unit: Unit | None = None,
    noise: Noise | None = None,
    again: Mapping[int, float] | None = None,
) -> Posterior:
    """Returns what M mixtures are worth, given the measured real scores of some of them by row.

    Single datasets have their proxies' own and need not be given.

    Args:
        unit: that of the prior if the mixtures are not all there are; else of their proxies.
        noise: of what was measured; without it that is exact.
        again: what some of the known ones scored with another seed.

    Raises:
        ValueError: a number is not finite.
    """
    prior, unit = prior or Prior(), unit or Unit.of(views.proxy_M)
    noise = noise or Noise.none(len(views.proxy_M))
    if not np.isfinite([*known.values(), *(again or {}).values()]).all():
        raise ValueError("reals must be finite")
    terms = _terms(views, unit, prior)
    singles = np.flatnonzero(terms.own_M <= JITTER).tolist()
    first = sorted(set(known) - set(singles))
    second = sorted(set(again or {}) - set(singles))
    reals_U = np.array([known[i] for i in first] + [(again or {})[i] for i in second])
    seen = _Seen([*first, *second], len(first), reals_U, noise, unit.sd)
    fits = [_fitted(terms, seen, prior.dof, factor) for factor in OWN_FACTORS]
    plausible = np.array([fit.log_chance for fit in fits]) - np.log(OWN_FACTORS) ** 2 / 2
    fit = fits[int(np.argmax(plausible))]
    found = _conditioned(terms, seen, fit)
    dof = prior.dof + len(reals_U)
    amplitude = (prior.dof * unit.sd**2 + float(fit.white_U @ fit.white_U)) / dof
    exact = {i: float(views.proxy_M[i]) for i in singles}
    found.tuned_M[singles] = 0.0
    if not noise.seed_sd and not noise.check_M.any():
        exact |= dict(known)
        found.tuned_M[first] = 0.0
    for i, value in exact.items():
        found.mean_M[i] = found.tuned_mean_M[i] = value
        found.shape_MM[i, :] = found.shape_MM[:, i] = 0.0
    return Posterior(
        found.mean_M,
        amplitude * found.shape_MM,
        dof,
        frozenset([*singles, *known]),
        float(plausible.max()),
        noise,
        found.tuned_mean_M,
        np.sqrt(amplitude * np.clip(found.tuned_M, 0, None)),
    )


def likeliest(
    views: Mapping[str, Mapping[K, Views]],
    reals: Mapping[str, Array],
    units: Mapping[str, Unit],
    noise: Mapping[str, Noise],
    log_prior: Mapping[K, float],
) -> K:
    """Returns the way to merge under which the checks of all targets are likeliest.

    It has the highest log evidence, summed over targets, plus log prior; of equals the one that
    `log_prior` names first. By target there are the checked mixtures by way, their real objectives,
    shape (C,), the units of all mixtures' proxies, and the noise of the checked.
    """

    def plausibility(way: K) -> float:
        evidence = (
            posterior_of(
                each[way], dict(enumerate(reals[name])), unit=units[name], noise=noise[name]
            ).log_evidence
            for name, each in views.items()
        )
        return log_prior[way] + sum(evidence)

    return max(log_prior, key=plausibility)


def with_strongest(weights_MN: Array, proxy_M: Array, gains_N: Array) -> Array:
    """Returns the gains of mixtures in which the strongest experts count most, shape (M,).

        strongest(w) = sum_i w_i g_i^3 / sum_i w_i g_i^2
        result       = proxy + s (strongest - proxy)        s = G / (G + HALF_STRONG), G = max |g_i|

    Effects that are small beside the base's loss add up as a merge averages them; the larger they
    are, the less room others leave them to grow, and the more of one is left in every union.

    Args:
        weights_MN: the mixtures' weights.
        proxy_M: the gains of their proxies.
        gains_N: the gains of the experts, as shares of the base's loss or of all right answers.
    """
    squares_MN = weights_MN * gains_N**2
    total_M = squares_MN.sum(axis=1)
    # of experts that change nothing the plain mean
    found_M = np.where(total_M > 0, squares_MN @ gains_N, weights_MN @ gains_N)
    found_M = found_M / np.where(total_M > 0, total_M, 1.0)
    largest = float(np.abs(gains_N).max())
    return np.asarray(proxy_M + largest / (largest + HALF_STRONG) * (found_M - proxy_M))


def how_much_longer(is_in_MN: Array, tokens_N: Array) -> Array:
    """Returns how much longer than its experts a union is trained where all rows are seen, (M,).

    It is the log of its tokens over the mean of its experts', each counted by its share of the
    union: log k for k datasets of equal size, and zero for one that nearly has all.

    Args:
        is_in_MN: one where a dataset is in the mixture, else zero.
        tokens_N: the datasets' training tokens.
    """
    shares_MN = is_in_MN * tokens_N
    shares_MN = shares_MN / shares_MN.sum(axis=1, keepdims=True)
    return np.asarray(-np.log((shares_MN**2).sum(axis=1)))


def expected_by_example(
    weights_MN: Array, proxy_ME: Array, pooled_ME: Array, prior: Prior | None = None
) -> Array:
    """Returns what each example is expected to add to every mixture's real score, (M, E).

    It is the expectation of the prior, taken example by example from what each adds to the proxy
    and to the experts pooled, and but for a constant that a mixture's examples share.
    """
    prior, mixed_M = prior or Prior(), _mixed(weights_MN)[:, None]
    beyond_ME = prior.expected_slope * proxy_ME + prior.expected_pool * (pooled_ME - proxy_ME)
    return np.asarray(proxy_ME + mixed_M * beyond_ME)


def _mixed(weights_MN: Array) -> Array:
    """Returns h(w): zero for a single dataset, the more the more datasets share the weight."""
    return np.asarray(np.sqrt(np.clip(1 - np.sum(weights_MN**2, axis=1), 0, None)))


@dataclass(frozen=True)
class _Terms:
    """The reals that are expected, features, and the scale of each mixture's own term.

    The inner products of the features are the prior covariance of the shared terms.
    """

    expected_M: Array
    features_MF: Array
    own_M: Array


@dataclass(frozen=True)
class _Seen:
    """The measurements: each one's row, the first `num_first` with this run's seed, the reals."""

    rows: list[int]
    num_first: int
    reals_U: Array
    noise: Noise
    unit: float

    @property
    def seed(self) -> float:
        """The variance over seeds, in the unit of the prior."""
        return self.noise.seed_sd**2 / self.unit**2

    @property
    def alone_UU(self) -> Array:
        """The covariance of what is no mixture's, in the unit of the prior.

        Seeds are each measurement's own; what the examples add to a check is the same for the same
        mixture with another seed.
        """
        is_same_UU = np.equal.outer(self.rows, self.rows)
        seeds_UU = (self.seed + JITTER) * np.eye(len(self.rows))
        return np.asarray(is_same_UU * self.noise.check_M[self.rows] / self.unit**2 + seeds_UU)


@dataclass(frozen=True)
class _Fit:
    """A fit with one scale of the mixtures' own terms.

    `log_chance` is log p(residuals), `root_UU` the Cholesky root of the measurements' shape matrix
    K, `white_U` root^-1 residuals; p is a multivariate t with the scale matrix unit^2 K.
    """

    own_M: Array
    log_chance: float
    root_UU: Array
    white_U: Array


@dataclass(frozen=True)
class _Conditioned:
    """Means and shapes given the measurements, of all mixtures and of their fine-tunes."""

    mean_M: Array
    shape_MM: Array
    tuned_mean_M: Array
    tuned_M: Array


def _terms(views: Views, unit: Unit, prior: Prior) -> _Terms:
    weights_MN = views.weights_MN
    squares_M, mixed_M = np.sum(weights_MN**2, axis=1), _mixed(weights_MN)
    z_M = (views.proxy_M - unit.mean) / unit.sd
    d_M = (views.pooled_M - views.proxy_M) / unit.sd
    strongest_M = views.proxy_M if views.strongest_M is None else views.strongest_M
    v_M = (strongest_M - views.proxy_M) / unit.sd
    t_M = np.zeros_like(z_M) if views.longer_M is None else views.longer_M
    first, second = np.triu_indices(weights_MN.shape[1], k=1)
    features_MF = np.hstack(
        [
            prior.level * mixed_M[:, None],
            prior.slope * (mixed_M * z_M)[:, None],
            prior.pool * (mixed_M * d_M)[:, None],
            prior.strong * (mixed_M * v_M)[:, None],
            prior.longer * (mixed_M * t_M)[:, None],
            prior.levelled * (mixed_M * t_M * z_M)[:, None],
            prior.main * (mixed_M / squares_M)[:, None] * weights_MN,
            prior.pair * weights_MN[:, first] * weights_MN[:, second],
        ]
    )
    shift_M = prior.expected_slope * z_M + prior.expected_pool * d_M
    shift_M += prior.expected_strong * v_M
    shift_M += (prior.expected_longer + prior.expected_levelled * z_M) * t_M
    expected_M = views.proxy_M + unit.sd * mixed_M * shift_M
    return _Terms(expected_M, features_MF, prior.own * mixed_M)


def _fitted(terms: _Terms, seen: _Seen, dof: float, factor: float) -> _Fit:
    own_M, features_UF = factor * terms.own_M, terms.features_MF[seen.rows]
    is_same_UU = np.equal.outer(seen.rows, seen.rows)
    shape_UU = features_UF @ features_UF.T + seen.alone_UU + is_same_UU * own_M[seen.rows] ** 2
    root_UU = linalg.cholesky(shape_UU, lower=True)
    residual_U = seen.reals_U - terms.expected_M[seen.rows]
    white_U = linalg.solve_triangular(root_UU, residual_U, lower=True)
    half = (dof + len(white_U)) / 2
    constant = math.lgamma(half) - math.lgamma(dof / 2)
    constant -= len(white_U) / 2 * math.log(math.pi * dof * seen.unit**2)
    tail = half * math.log1p(float(white_U @ white_U) / (dof * seen.unit**2))
    log_chance = constant - float(np.log(np.diag(root_UU)).sum()) - tail
    return _Fit(own_M, log_chance, root_UU, white_U)


def _conditioned(terms: _Terms, seen: _Seen, fit: _Fit) -> _Conditioned:
    """Returns the conditional normal (Rasmussen and Williams, eq. 2.25 and 2.26)."""
    features_MF, num, first = terms.features_MF, len(seen.rows), seen.rows[: seen.num_first]
    shared_UM = features_MF[seen.rows] @ features_MF.T
    shared_UM[np.arange(num), seen.rows] += fit.own_M[seen.rows] ** 2
    reduced_UM = linalg.solve_triangular(fit.root_UU, shared_UM, lower=True)
    shape_MM = features_MF @ features_MF.T - reduced_UM.T @ reduced_UM
    shape_MM[np.diag_indices_from(shape_MM)] += fit.own_M**2
    mean_M = terms.expected_M + reduced_UM.T @ fit.white_U
    tuned_mean_M, tuned_M = mean_M.copy(), np.diag(shape_MM) + seen.seed
    # of the fine-tunes that were measured, what their seed gave them is known in part
    seeds_UC = seen.seed * np.eye(num, seen.num_first)
    seeded_UC = linalg.solve_triangular(fit.root_UU, seeds_UC, lower=True)
    tuned_mean_M[first] += seeded_UC.T @ fit.white_U
    tuned_M[first] -= (2 * reduced_UM[:, first] * seeded_UC + seeded_UC**2).sum(axis=0)
    return _Conditioned(mean_M, shape_MM, tuned_mean_M, tuned_M)
