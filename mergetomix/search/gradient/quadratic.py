"""A quadratic in the experts' coefficients, learnt from values and derivatives at a few points: numbers in, numbers out.

f(c) = b . c + c . H c / 2, with normal priors on b and H: equivalently a Gaussian process whose covariance is the sum of TERMS.
It is zero at c = 0, the base, where the gain is zero. Experts share much of their deltas' direction, which is why the shared
terms are there: without them twice as many points are needed.

Legend of shapes: M points observed, N experts, K points asked about, S numbers observed (values, and N for every derivative).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
EVERY = slice(None)

TERMS = ("slope", "shared slope", "curvature", "shared curvature", "overall curvature")
"""Parts of the prior covariance, each with its scale: u, v, u^2, u v, v^2 with u = c . c' and v = (1 . c)(1 . c')."""


@dataclass(frozen=True)
class Observations:
    """Values at points, and derivatives at some of them; rows of `slopes_MN` that are not known are NaN."""

    points_MN: Array
    values_M: Array
    slopes_MN: Array

    @cached_property
    def sloped(self) -> NDArray[np.intp]:
        """Rows whose derivative is known."""
        return np.flatnonzero(~np.isnan(self.slopes_MN).any(axis=1))

    @property
    def numbers_S(self) -> Array:
        """All that was observed: the derivatives row by row, then the values, so that a new value comes last."""
        return np.concatenate([self.slopes_MN[self.sloped].ravel(), self.values_M])

    def extends(self, other: Observations) -> bool:
        """Whether these are the others with more values after them."""
        return np.array_equal(self.sloped, other.sloped) and np.array_equal(
            self.points_MN[: len(other.values_M)], other.points_MN
        )


@dataclass(frozen=True)
class Partials:
    """A covariance f(u, v) of two sets of points and its partial derivatives in u and v, where they are not zero."""

    f: Array
    u: Array | None = None
    v: Array | None = None
    uu: Array | None = None
    uv: Array | None = None
    vv: Array | None = None

    def picked(self, rows: Any, columns: Any) -> Partials:
        """The same for some of the points."""
        parts = (self.f, self.u, self.v, self.uu, self.uv, self.vv)
        f, *others = (None if part is None else part[rows][:, columns] for part in parts)
        assert f is not None
        return Partials(f, *others)


def term(index: int, u: Array, v: Array) -> Partials:
    """One of TERMS."""
    one, two = np.ones_like(u), np.full_like(u, 2.0)
    return (
        lambda: Partials(u, u=one),
        lambda: Partials(v, v=one),
        lambda: Partials(u**2, u=2 * u, uu=two),
        lambda: Partials(u * v, u=v, v=u, uv=one),
        lambda: Partials(v**2, v=2 * v, vv=two),
    )[index]()


def mixed(scales: Array, u: Array, v: Array) -> Partials:
    """The sum of all terms, each times its scale."""
    a, b, c, d, e = scales
    return Partials(
        f=a * u + b * v + c * u**2 + d * u * v + e * v**2,
        u=a + 2 * c * u + d * v,
        v=b + d * u + 2 * e * v,
        uu=np.full_like(u, 2 * c),
        uv=np.full_like(u, d),
        vv=np.full_like(u, 2 * e),
    )


def products(left_KN: Array, right_MN: Array) -> tuple[Array, Array]:
    """u and v of every pair of points."""
    return left_KN @ right_MN.T, np.outer(left_KN.sum(axis=1), right_MN.sum(axis=1))


def along(partials: Partials, left_KN: Array, right_MN: Array) -> Array:
    """Covariance of values at the left with derivatives at the right: df/dx'_j = f_u x_j + f_v (1 . x). Shape (K, M N)."""
    out_KMN = np.zeros((*partials.f.shape, left_KN.shape[1]))
    if partials.u is not None:
        out_KMN += partials.u[:, :, None] * left_KN[:, None, :]
    if partials.v is not None:
        out_KMN += (partials.v * left_KN.sum(axis=1)[:, None])[:, :, None]
    return out_KMN.reshape(len(left_KN), right_MN.size)


def between(partials: Partials, left_KN: Array, right_MN: Array) -> Array:
    """Covariance of derivatives with derivatives, shape (K N, M N).

    d^2 f / dx_i dx'_j = f_u [i = j] + f_v + x_j (f_uu x'_i + f_uv p') + p (f_uv x'_i + f_vv p'), p = 1 . x, p' = 1 . x'.
    """
    (num_k, n), num_m = left_KN.shape, len(right_MN)
    p_K, p_M = left_KN.sum(axis=1), right_MN.sum(axis=1)
    out = np.zeros((num_k, n, num_m, n))
    if partials.u is not None:
        diagonal = np.arange(n)
        out[:, diagonal, :, diagonal] += partials.u
    if partials.v is not None:
        out += partials.v[:, None, :, None]
    if partials.uu is not None:
        out += np.einsum("km,mi,kj->kimj", partials.uu, right_MN, left_KN, optimize=True)
    if partials.uv is not None:
        out += np.einsum("km,m,kj->kmj", partials.uv, p_M, left_KN, optimize=True)[:, None]
        out += np.einsum("km,mi,k->kim", partials.uv, right_MN, p_K, optimize=True)[..., None]
    if partials.vv is not None:
        out += (partials.vv * np.outer(p_K, p_M))[:, None, :, None]
    return out.reshape(num_k * n, num_m * n)


def covariance(partials: Partials, seen: Observations) -> Array:
    """Prior covariance of everything observed, shape (S, S)."""
    rows = seen.sloped
    some_MN = seen.points_MN[rows]
    cross = along(partials.picked(EVERY, rows), seen.points_MN, some_MN)
    return np.block(
        [[between(partials.picked(rows, rows), some_MN, some_MN), cross.T], [cross, partials.f]]
    )


@dataclass(frozen=True)
class QuadraticPrior:
    """How large each term is, and how far values and derivatives are from any such polynomial; variances."""

    scales: tuple[float, ...]
    noise_value: float
    noise_slope: float

    @property
    def logs(self) -> Array:
        """Logarithms of all variances."""
        return np.log([*self.scales, self.noise_value, self.noise_slope])

    @classmethod
    def of(cls, logs: Array) -> QuadraticPrior:
        """The inverse of `logs`."""
        *scales, value, slope = np.exp(logs).tolist()
        return cls(tuple(scales), value, slope)


START = QuadraticPrior((1.0, 1.0, 0.5, 0.3, 0.3), 1e-4, 1e-3)
SPREAD = np.array([2.0] * 5 + [2.5, 2.5])
"""Where the search for a prior starts, and how far (in logarithms) it is at home: of data in units of their own slopes."""
LOWEST, HIGHEST = 1e-8, 1e4


def noises(prior: QuadraticPrior, seen: Observations) -> Array:
    """The variance of the noise of each number observed."""
    num = len(seen.sloped) * seen.points_MN.shape[1]
    return np.concatenate(
        [np.full(num, prior.noise_slope), np.full(len(seen.values_M), prior.noise_value)]
    )


def evidence(logs: Array, parts_TSS: Array, seen: Observations) -> tuple[float, Array]:
    """-log p(observed, prior) up to a constant, and its derivative in `logs`.

    log p(y) = -y' K^-1 y / 2 - log det K / 2 for K = sum_t s_t K_t + noise (Rasmussen and Williams 2006, eq. 5.8 and 5.9), with
    a normal prior on the logarithms around START.
    """
    from scipy.linalg import cho_factor, cho_solve

    prior, y_S = QuadraticPrior.of(logs), seen.numbers_S
    noise_S = noises(prior, seen)
    matrix = np.tensordot(np.array(prior.scales), parts_TSS, 1)
    matrix[np.diag_indices(len(y_S))] += noise_S
    factor = cho_factor(matrix, lower=True, check_finite=False)
    alpha_S = cho_solve(factor, y_S, check_finite=False)
    excess = cho_solve(factor, np.eye(len(y_S)), check_finite=False) - np.outer(alpha_S, alpha_S)
    diagonal_S, num = np.diag(excess) * noise_S, len(y_S) - len(seen.values_M)
    slopes = [
        scale * float(np.vdot(part, excess))
        for scale, part in zip(prior.scales, parts_TSS, strict=True)
    ]
    gradient = np.array([*slopes, float(diagonal_S[num:].sum()), float(diagonal_S[:num].sum())]) / 2
    away = (logs - START.logs) / SPREAD
    value = y_S @ alpha_S / 2 + np.log(np.diag(factor[0])).sum() + away @ away / 2
    return float(value), gradient + away / SPREAD


def fit_prior(
    seen: Observations, start: QuadraticPrior = START, max_steps: int = 40
) -> QuadraticPrior:
    """The prior under which what was observed, in units of its slopes, is likeliest."""
    from scipy.optimize import minimize

    u, v = products(seen.points_MN, seen.points_MN)
    parts_TSS = np.stack([covariance(term(index, u, v), seen) for index in range(len(TERMS))])
    bounds = [(np.log(LOWEST), np.log(HIGHEST))] * (len(TERMS) + 2)
    found = minimize(
        evidence,
        start.logs,
        (parts_TSS, seen),
        method="L-BFGS-B",
        jac=True,
        bounds=bounds,
        options={"maxiter": max_steps},
    )
    return QuadraticPrior.of(found.x)


class QuadraticPosterior:
    """What the observations say of the quadratic, given a prior.

    Args:
        before: the posterior of a part of the observations; where they only add values to it, its work is used.
    """

    def __init__(
        self, seen: Observations, prior: QuadraticPrior, before: QuadraticPosterior | None = None
    ) -> None:
        from scipy.linalg import solve_triangular

        self.seen, self.prior = seen, prior
        self._scales = np.array(prior.scales)
        grows = before is not None and before.prior == prior and seen.extends(before.seen)
        self._root = self._grown(before) if before is not None and grows else self._fresh()
        white_S = solve_triangular(self._root, seen.numbers_S, lower=True, check_finite=False)
        alpha_S = solve_triangular(self._root, white_S, lower=True, trans="T", check_finite=False)
        num = len(alpha_S) - len(seen.values_M)
        self._alpha_GN, self._alpha_M = alpha_S[:num].reshape(len(seen.sloped), -1), alpha_S[num:]

    def _fresh(self) -> Array:
        """The Cholesky root of the covariance of everything observed."""
        from scipy.linalg import cholesky

        matrix = covariance(
            mixed(self._scales, *products(self.seen.points_MN, self.seen.points_MN)), self.seen
        )
        matrix[np.diag_indices(len(matrix))] += noises(self.prior, self.seen)
        return np.asarray(cholesky(matrix, lower=True, check_finite=False, overwrite_a=True))

    def _grown(self, before: QuadraticPosterior) -> Array:
        """The root with rows for the new values: [[L, 0], [B, C]], B = K_new,old L^-T, C C' = K_new,new - B B'."""
        from scipy.linalg import cholesky, solve_triangular

        old = len(before._root)
        rows_KS = self._cross(self.seen.points_MN[len(before.seen.values_M) :])
        lower_KS = solve_triangular(
            before._root, rows_KS[:, :old].T, lower=True, check_finite=False
        ).T
        rest_KK = rows_KS[:, old:] - lower_KS @ lower_KS.T
        rest_KK[np.diag_indices(len(rest_KK))] += self.prior.noise_value
        corner_KK = cholesky(rest_KK, lower=True, check_finite=False)
        return np.block([[before._root, np.zeros((old, len(corner_KK)))], [lower_KS, corner_KK]])

    def _cross(self, points_KN: Array) -> Array:
        """Prior covariance of values at some points with everything observed, shape (K, S)."""
        rows = self.seen.sloped
        partials = mixed(self._scales, *products(points_KN, self.seen.points_MN))
        return np.hstack(
            [along(partials.picked(EVERY, rows), points_KN, self.seen.points_MN[rows]), partials.f]
        )

    @cached_property
    def slope_N(self) -> Array:
        """The expected b: the derivative at c = 0."""
        own, shared = self._scales[0], self._scales[1]
        slopes_N, sums_M = self._alpha_GN.sum(axis=0), self.seen.points_MN.sum(axis=1)
        common = self._alpha_M @ sums_M + slopes_N.sum()
        return np.asarray(own * (self._alpha_M @ self.seen.points_MN + slopes_N) + shared * common)

    @cached_property
    def curvature_NN(self) -> Array:
        """The expected H."""
        _, _, own, shared, overall = self._scales
        x_MN, x_GN, a_M, a_GN = (
            self.seen.points_MN,
            self.seen.points_MN[self.seen.sloped],
            self._alpha_M,
            self._alpha_GN,
        )
        p_M, p_G, sum_G = x_MN.sum(axis=1), x_GN.sum(axis=1), a_GN.sum(axis=1)
        half_NN = own * ((x_MN.T * a_M) @ x_MN + 2 * x_GN.T @ a_GN)
        half_NN += shared * ((a_M * p_M) @ x_MN + p_G @ a_GN + sum_G @ x_GN)
        half_NN += overall * (a_M @ p_M**2 + 2 * p_G @ sum_G)
        return np.asarray(half_NN + half_NN.T)

    def mean(self, points_KN: Array) -> Array:
        """Expected values, shape (K,)."""
        return np.asarray(
            points_KN @ self.slope_N + ((points_KN @ self.curvature_NN) * points_KN).sum(axis=1) / 2
        )

    def sd(self, points_KN: Array) -> Array:
        """Standard deviations of the values, without the noise, shape (K,)."""
        from scipy.linalg import solve_triangular

        explained = (
            solve_triangular(self._root, self._cross(points_KN).T, lower=True, check_finite=False)
            ** 2
        ).sum(axis=0)
        square_K, sum_K = (points_KN**2).sum(axis=1), points_KN.sum(axis=1) ** 2
        prior_K = mixed(self._scales, square_K, sum_K).f
        return np.asarray(np.sqrt(np.maximum(prior_K - explained, 0.0)))
