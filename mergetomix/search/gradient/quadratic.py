"""A target as a quadratic in the experts' coefficients: what values and derivatives say of it.

f(c) = b . c + c . H c / 2, zero at the base, with normal priors on b and H. That is a Gaussian
process with the covariance of `TERMS`. Experts share much of their deltas' direction, which is why
the shared terms are there: without them twice as many points are needed.

Legend of shapes: K and M points, G of them with derivatives, N experts, S numbers observed (N for
every derivative, then the values).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular

from mergetomix.search.candidates import Array

TERMS = ("slope", "shared slope", "curvature", "shared curvature", "overall curvature")
"""Parts of the covariance: u, v, u^2, u v and v^2 with u = c . c' and v = (1 . c)(1 . c')."""


@dataclass(frozen=True)
class Observations:
    """Values at points, and derivatives at some; rows of `slopes_MN` that are unknown are NaN."""

    points_MN: Array
    values_M: Array
    slopes_MN: Array

    @cached_property
    def sloped(self) -> NDArray[np.intp]:
        """Rows whose derivative is known."""
        return np.flatnonzero(~np.isnan(self.slopes_MN).any(axis=1))

    @property
    def numbers_S(self) -> Array:
        """All that was observed: the derivatives row by row, then the values."""
        return np.concatenate([self.slopes_MN[self.sloped].ravel(), self.values_M])

    def picked(self, rows: NDArray[np.intp]) -> Observations:
        """Returns the observations at some of the points."""
        return Observations(self.points_MN[rows], self.values_M[rows], self.slopes_MN[rows])

    def extends(self, other: Observations) -> bool:
        """Whether these are the others with more values after them."""
        return np.array_equal(self.sloped, other.sloped) and np.array_equal(
            self.points_MN[: len(other.values_M)], other.points_MN
        )


def kernel(scales: Array, u: Array, v: Array) -> Array:
    """Returns the sum of the terms, each times its scale: the covariance of values."""
    a, b, c, d, e = scales
    return np.asarray(a * u + b * v + c * u**2 + d * u * v + e * v**2)


def products(left_KN: Array, right_MN: Array) -> tuple[Array, Array]:
    """Returns u and v of every pair of points, shapes (K, M)."""
    return left_KN @ right_MN.T, np.outer(left_KN.sum(axis=1), right_MN.sum(axis=1))


def values_with_slopes(scales: Array, left_KN: Array, right_MN: Array) -> Array:
    """Returns the covariance of values at the left with derivatives at the right, shape (K, M N).

    df / dx'_j = f_u x_j + f_v (1 . x)
    """
    (_, b, _, d, e), (u, v) = scales, products(left_KN, right_MN)
    sums_K1 = left_KN.sum(axis=1)[:, None]
    along_all_KM = (b + d * u + 2 * e * v) * sums_K1
    found_KMN = _in_u(scales, u, v)[:, :, None] * left_KN[:, None, :] + along_all_KM[:, :, None]
    return np.asarray(found_KMN.reshape(len(left_KN), right_MN.size))


def slopes_with_slopes(scales: Array, points_MN: Array) -> Array:
    """Returns the covariance of derivatives with derivatives, shape (M N, M N).

    d^2 f / dx_i dx'_j = f_u [i = j] + f_v + x_j (f_uu x'_i + f_uv p') + p (f_uv x'_i + f_vv p')
    with p = 1 . x and p' = 1 . x'
    """
    (_, b, c, d, e), (u, v) = scales, products(points_MN, points_MN)
    num, n = points_MN.shape
    sums_M = points_MN.sum(axis=1)
    found_MNMN = np.zeros((num, n, num, n))
    found_MNMN[:, np.arange(n), :, np.arange(n)] += _in_u(scales, u, v)
    found_MNMN += (b + d * u + 4 * e * v)[:, None, :, None]
    # x_j (2 c x'_i + d p') + d p x'_i, the rest of which is in the line above
    leaning_MN = 2 * c * points_MN + d * sums_M[:, None]
    found_MNMN += leaning_MN.T[None, :, :, None] * points_MN[:, None, None, :]
    found_MNMN += d * (sums_M[:, None, None] * points_MN.T[None])[..., None]
    return found_MNMN.reshape(num * n, num * n)


def covariance(scales: Array, seen: Observations) -> Array:
    """Returns the prior covariance of everything observed, shape (S, S)."""
    points_MN, some_MN = seen.points_MN, seen.points_MN[seen.sloped]
    cross = values_with_slopes(scales, points_MN, some_MN)
    values = kernel(scales, *products(points_MN, points_MN))
    return np.block([[slopes_with_slopes(scales, some_MN), cross.T], [cross, values]])


def _in_u(scales: Array, u: Array, v: Array) -> Array:
    """Returns the derivative f_u."""
    a, _, c, d, _ = scales
    return np.asarray(a + 2 * c * u + d * v)


@dataclass(frozen=True)
class QuadraticPrior:
    """The variance of each term, and those of the noise: how far the truth is from a quadratic."""

    scales: tuple[float, ...]
    noise_value: float
    noise_slope: float

    @property
    def logs(self) -> Array:
        """Logarithms of all variances."""
        return np.log([*self.scales, self.noise_value, self.noise_slope])

    @classmethod
    def of(cls, logs: Array) -> QuadraticPrior:
        """Returns the prior with these logarithms."""
        *scales, value, slope = np.exp(logs).tolist()
        return cls(tuple(scales), value, slope)

    def noises(self, seen: Observations) -> Array:
        """Returns the variance of the noise of each number observed, shape (S,)."""
        num = len(seen.sloped) * seen.points_MN.shape[1]
        return np.repeat([self.noise_slope, self.noise_value], [num, len(seen.values_M)])


class QuadraticPosterior:
    """The expected b and H of b . c + c . H c / 2, and how sure its values are, given a prior.

    Args:
        before: the posterior of a part of the observations; if they only add values to it, its
            work is used.
    """

    def __init__(
        self, seen: Observations, prior: QuadraticPrior, before: QuadraticPosterior | None = None
    ) -> None:
        self.seen, self.prior = seen, prior
        self._scales = np.array(prior.scales)
        if before is not None and before.prior == prior and seen.extends(before.seen):
            self._root = self._grown(before)
        else:
            matrix = covariance(self._scales, seen)
            matrix[np.diag_indices(len(matrix))] += prior.noises(seen)
            self._root = cholesky(matrix, lower=True, check_finite=False, overwrite_a=True)
        white_S = solve_triangular(self._root, seen.numbers_S, lower=True, check_finite=False)
        alpha_S = solve_triangular(self._root, white_S, lower=True, trans="T", check_finite=False)
        num = len(alpha_S) - len(seen.values_M)
        self._alpha_GN, self._alpha_M = alpha_S[:num].reshape(len(seen.sloped), -1), alpha_S[num:]

    def _grown(self, before: QuadraticPosterior) -> Array:
        """Returns the root with rows for the new values.

        It is [[L, 0], [B, C]] with B = K_new,old L^-T and C C' = K_new,new - B B'.
        """
        old = len(before._root)
        rows_KS = self._cross(self.seen.points_MN[len(before.seen.values_M) :])
        cross_SK = rows_KS[:, :old].T
        lower_KS = solve_triangular(before._root, cross_SK, lower=True, check_finite=False).T
        rest_KK = rows_KS[:, old:] - lower_KS @ lower_KS.T
        rest_KK[np.diag_indices(len(rest_KK))] += self.prior.noise_value
        corner_KK = cholesky(rest_KK, lower=True, check_finite=False)
        return np.block([[before._root, np.zeros((old, len(corner_KK)))], [lower_KS, corner_KK]])

    def _cross(self, points_KN: Array) -> Array:
        """Returns the covariance of values with everything observed, shape (K, S)."""
        seen_MN = self.seen.points_MN
        slopes = values_with_slopes(self._scales, points_KN, seen_MN[self.seen.sloped])
        return np.hstack([slopes, kernel(self._scales, *products(points_KN, seen_MN))])

    @cached_property
    def slope_N(self) -> Array:
        """The expected b: the derivative at c = 0."""
        own, shared = self._scales[:2]
        slopes_N, sums_M = self._alpha_GN.sum(axis=0), self.seen.points_MN.sum(axis=1)
        common = self._alpha_M @ sums_M + slopes_N.sum()
        return np.asarray(own * (self._alpha_M @ self.seen.points_MN + slopes_N) + shared * common)

    @cached_property
    def curvature_NN(self) -> Array:
        """The expected H."""
        _, _, own, shared, overall = self._scales
        x_MN, a_M, a_GN = self.seen.points_MN, self._alpha_M, self._alpha_GN
        x_GN = x_MN[self.seen.sloped]
        p_M, p_G, sum_G = x_MN.sum(axis=1), x_GN.sum(axis=1), a_GN.sum(axis=1)
        half_NN = own * ((x_MN.T * a_M) @ x_MN + 2 * x_GN.T @ a_GN)
        half_NN += shared * ((a_M * p_M) @ x_MN + p_G @ a_GN + sum_G @ x_GN)
        half_NN += overall * (a_M @ p_M**2 + 2 * p_G @ sum_G)
        return np.asarray(half_NN + half_NN.T)

    def mean(self, points_KN: Array) -> Array:
        """Returns the expected values, shape (K,)."""
        bent_K = ((points_KN @ self.curvature_NN) * points_KN).sum(axis=1) / 2
        return np.asarray(points_KN @ self.slope_N + bent_K)

    def sd(self, points_KN: Array) -> Array:
        """Returns the standard deviations of the values, without the noise, shape (K,)."""
        cross_SK = self._cross(points_KN).T
        white_SK = solve_triangular(self._root, cross_SK, lower=True, check_finite=False)
        square_K, sum_K = (points_KN**2).sum(axis=1), points_KN.sum(axis=1) ** 2
        left_K = kernel(self._scales, square_K, sum_K) - (white_SK**2).sum(axis=0)
        return np.asarray(np.sqrt(np.maximum(left_K, 0.0)))
