"""How well proxies rank what real fine-tunes give, how sure that is, and how well anything could.

Array names end in their shape: M mixtures, S seeds, E examples, R resamples, O observations. Everything named real or proxy
is an objective: without unit, better when higher.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mergetomix.records import Estimate

MIN_CHECKS = 5
REGRET_AT = (1, 3, 5)
STANDARD_ERRORS = 1.645  # the 95% point of the normal: 90% of it lies within so many standard errors on either side
_MIN_QUARTER = 3

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Fidelity:
    """How well proxies rank the real fine-tunes of the same mixtures.

    `kendall` is tau-b. `top_quarter` is the Spearman correlation over the quarter of the mixtures with the best *real*
    objective (see `fidelity`), None where that quarter has fewer than 3 members. `regrets[k]` is the best real objective of
    all minus the best real objective among the k mixtures with the best proxy: what is lost by training only those k.
    """

    num_checks: int
    pearson: Estimate
    spearman: Estimate
    kendall: Estimate
    top_quarter: Estimate | None
    regrets: Mapping[int, Estimate]

    @property
    def statistics(self) -> dict[str, Estimate | None]:
        """All of them by name; `regret_3` is `regrets[3]`."""
        named = {
            name: getattr(self, name) for name in ("pearson", "spearman", "kendall", "top_quarter")
        }
        return named | {f"regret_{k}": regret for k, regret in self.regrets.items()}


@dataclass(frozen=True)
class Ceiling:
    """The correlations that a perfect proxy would reach, given the standard deviation of real objectives over seeds."""

    pearson: float
    spearman: float
    noise_sd: float


def fidelity(
    proxy_M: ArrayLike,
    real_M: ArrayLike,
    *,
    confidence: float = 0.9,
    num_resamples: int = 999,
    seed: int = 0,
) -> Fidelity | None:
    """Correlations and regrets of the proxies of M mixtures; None for fewer than MIN_CHECKS mixtures.

    Intervals are percentile bootstrap intervals over mixtures (Efron and Tibshirani 1993, chapter 13): pairs of proxy and
    real are resampled, so they say how much hangs on which mixtures were checked, not on the seed of the fine-tunes. They
    are the same for the same `seed`, whatever the order of the mixtures.

    Ties: Spearman gives ties their mean rank; Kendall is tau-b. The top quarter is the floor(M / 4) mixtures with the best
    real objective and any that tie with the last of them; it is taken anew in each resample. Among equal proxies the
    one with the worse real objective counts as picked first, so that a proxy that cannot tell mixtures apart earns
    nothing. A mixture drawn twice in a resample is one mixture for the regrets.

    A correlation with a constant is undefined: value, low and high are then nan. Resamples in which a statistic is
    undefined are left out of its interval.

    Args:
        proxy_M: objectives of the proxies.
        real_M: objectives of the real fine-tunes of the same mixtures, in the same order.
        confidence: the share of the resampled values that an interval holds, between 0 and 1.
        num_resamples: resamples behind an interval, at least one.
        seed: of the resampling.

    Raises:
        ValueError: where the shapes differ or are not one-dimensional, a value is not finite, or `confidence` or
            `num_resamples` is out of range.
    """
    proxies_M, reals_M = _aligned(proxy_M=proxy_M, real_M=real_M)
    if not 0 < confidence < 1 or num_resamples < 1:
        raise ValueError(
            f"0 < confidence < 1 and num_resamples >= 1 must hold, not {confidence} and {num_resamples}"
        )
    if len(reals_M) < MIN_CHECKS:
        return None
    order_M = np.lexsort(
        (proxies_M, reals_M)
    )  # one order, so that the same seed draws the same mixtures
    x_M, y_M = proxies_M[order_M], reals_M[order_M]
    counts_RM = _draws(len(y_M), num_resamples, seed)
    top_RM = _top_quarter(y_M, counts_RM)
    return Fidelity(
        num_checks=len(y_M),
        pearson=_interval(_pearson(x_M, y_M, counts_RM), confidence),
        spearman=_interval(_spearman(x_M, y_M, counts_RM), confidence),
        kendall=_interval(_kendall(x_M, y_M, counts_RM), confidence),
        top_quarter=None if top_RM is None else _interval(_spearman(x_M, y_M, top_RM), confidence),
        regrets={k: _interval(_regret(x_M, y_M, counts_RM, k), confidence) for k in REGRET_AT},
    )


def noise_sd(real_SM: ArrayLike) -> float | None:
    """The standard deviation of a real objective over seeds, as far as it can change ranks; None where nothing tells it.

    Model: real[s, m] = f[m] + o[s] + e[s, m], and the result estimates sd(e). The offset o[s] that a seed gives to every
    mixture alike (the order of batches, say) leaves ranks as they are, so it is fitted and removed wherever the data can
    tell it from e. f and o are fitted by least squares to the mixtures with two seeds or more, and

        noise_sd^2 = sum of squared residuals / (observations - rank of the design),

    which for a complete block of S seeds and M mixtures is the two-way residual mean square, with (S - 1)(M - 1) degrees of
    freedom (Searle, Linear Models 1971, chapter 7). Any pattern with one 2 x 2 block, two mixtures that were both run with
    the same two seeds, leaves at least one degree of freedom. Where none is left, as with one repeated mixture or with
    seeds that no two mixtures share, o cannot be told from e: the plain pooled variance within mixtures is given,

        noise_sd^2 = sum over s, m of (real[s, m] - mean over s of real[s, m])^2 / sum over m of (seeds of m - 1),

    which holds the variance of o too, and so is too large for mixtures that are compared at one seed. With few degrees
    of freedom the estimate is rough: with one, half of all estimates fall below 0.67 of the truth.

    Args:
        real_SM: objectives, a row for each seed and a column for each mixture; nan where that fine-tune was not made.

    Returns:
        The standard deviation in units of the objective; None where no mixture has two seeds.

    Raises:
        ValueError: where the array is not two-dimensional or holds an infinity.
    """
    reals_SM = np.asarray(real_SM, dtype=float)
    if reals_SM.ndim != 2 or np.isinf(reals_SM).any():
        raise ValueError(
            f"real_SM must be two-dimensional and hold no infinity: shape {reals_SM.shape}"
        )
    reals_SM = reals_SM[:, np.isfinite(reals_SM).sum(axis=0) >= 2]
    if not reals_SM.size:
        return None
    known_SM = np.isfinite(reals_SM)
    within_SM = reals_SM - np.nanmean(reals_SM, axis=0)
    seed_O, mixture_O = np.nonzero(known_SM)
    is_mixture_OM = np.eye(known_SM.shape[1])[mixture_O]
    is_seed_OS = np.eye(known_SM.shape[0])[seed_O]
    two_way = _residual_variance(np.hstack([is_mixture_OM, is_seed_OS]), within_SM[known_SM])
    variance = (
        two_way if two_way is not None else _residual_variance(is_mixture_OM, within_SM[known_SM])
    )
    return None if variance is None else math.sqrt(variance)


def ceiling(real_M: ArrayLike, noise_sd: float, *, num_draws: int = 2000, seed: int = 0) -> Ceiling:
    """The correlations with these real objectives that a perfect proxy, which knows each mixture without noise, would reach.

    With real = f + e, var(real) = var(f) + noise_sd^2 and corr(f, real) = sd(f) / sd(real) (Spearman 1904, attenuation):

        pearson  = sqrt(max(0, 1 - noise_sd^2 / var(real)))                    var with M - 1 in the denominator
        f        = mean(real) + pearson * (real - mean(real))                  has the variance that is no noise
        spearman = mean over draws of Spearman(f, f + e),  e ~ Normal(0, noise_sd)

    f keeps the shape of the real objectives, so that `spearman` is right for normal ones and near enough for others. Both are
    estimates, and low on average where mixtures are few and the noise is large: by .02 for 30 mixtures and a ceiling of .78.
    Where noise explains all of the spread both are 0; where the real objectives are all equal both are nan.

    Args:
        real_M: real objectives, one fine-tune for each of at least 2 mixtures.
        noise_sd: their standard deviation over seeds, in the same unit (see the function of that name).
        num_draws: draws of e, at least one.
        seed: of the draws.

    Raises:
        ValueError: where fewer than 2 or not finite objectives are given, `noise_sd` is negative or not finite, or
            `num_draws` is below 1.
    """
    (reals_M,) = _aligned(real_M=real_M)
    if len(reals_M) < 2 or not 0 <= noise_sd < math.inf or num_draws < 1:
        given = f"{len(reals_M)}, {noise_sd} and {num_draws}"
        raise ValueError(
            f"objectives >= 2, finite noise_sd >= 0 and num_draws >= 1 must hold, not {given}"
        )
    if np.ptp(reals_M) == 0:
        return Ceiling(math.nan, math.nan, noise_sd)
    pearson = math.sqrt(max(0.0, 1 - noise_sd**2 / float(np.var(reals_M, ddof=1))))
    if pearson == 0:
        return Ceiling(0.0, 0.0, noise_sd)
    mean = reals_M.mean()
    true_M = mean + pearson * (reals_M - mean)
    noisy_DM = true_M + np.random.default_rng(seed).normal(0, noise_sd, (num_draws, len(true_M)))
    ranks_DM = np.apply_along_axis(_ranks, 1, noisy_DM)
    spearman_D = _correlation(_ranks(true_M), ranks_DM, np.ones(ranks_DM.shape))
    return Ceiling(pearson, float(spearman_D.mean()), noise_sd)


def paired_difference(
    values_a_E: ArrayLike,
    values_b_E: ArrayLike,
    weights_E: ArrayLike,
    *,
    num_resamples: int = 999,
    seed: int = 0,
) -> tuple[float, float]:
    """By how much a exceeds b on the same examples, and how sure that is: mean and its bootstrap standard deviation.

        mean = sum over e of weights[e] * (a[e] - b[e]) / sum over e of weights[e]

    The standard deviation is over resamples of examples, each with its weight (Efron and Tibshirani 1993, chapter 6). It is
    nan for a single example, which says nothing of the spread. Resamples without weight are left out.

    Args:
        values_a_E: one value for each example, in any unit.
        values_b_E: likewise, for the same examples in the same order.
        weights_E: how much each example counts; none negative, not all zero.
        num_resamples: at least 2.
        seed: of the resampling.

    Returns:
        Mean and standard deviation, in the unit of the values.

    Raises:
        ValueError: where shapes differ, there is no example, a value is not finite, or an argument is out of range.
    """
    a_E, b_E, w_E = _aligned(values_a_E=values_a_E, values_b_E=values_b_E, weights_E=weights_E)
    if (w_E < 0).any() or not w_E.sum() > 0 or num_resamples < 2:
        raise ValueError(
            f"weights >= 0, their sum > 0 and num_resamples >= 2 must hold: {w_E.sum()} and {num_resamples}"
        )
    weighted_E = w_E * (a_E - b_E)
    mean = float(weighted_E.sum() / w_E.sum())
    if len(w_E) == 1:
        return mean, math.nan
    rng = np.random.default_rng(seed)
    # one resample at a time: all at once would take num_resamples * E numbers
    drawn = (rng.integers(len(w_E), size=len(w_E)) for _ in range(num_resamples))
    sums_R2 = np.array([(weighted_E[index_E].sum(), w_E[index_E].sum()) for index_E in drawn])
    sums_R2 = sums_R2[sums_R2[:, 1] > 0]
    return mean, float(np.std(sums_R2[:, 0] / sums_R2[:, 1], ddof=1)) if len(
        sums_R2
    ) > 1 else math.nan


def examples_needed(sd_of_difference: float, num_examples: int, gap: float) -> int:
    """How many examples make a difference of `gap` 1.645 standard errors wide.

    A standard error falls with the root of the number of examples, so that

        needed = ceil(num_examples * (1.645 * sd_of_difference / gap)^2), at least 1.

    Args:
        sd_of_difference: the standard error of the difference, as `paired_difference` gives it, in the unit of `gap`.
        num_examples: how many examples it was found on.
        gap: the difference to be told from zero, positive.

    Raises:
        ValueError: where an argument is out of range or not finite.
    """
    if not (0 <= sd_of_difference < math.inf and num_examples >= 1 and 0 < gap < math.inf):
        given = f"{sd_of_difference}, {num_examples} and {gap}"
        raise ValueError(
            f"finite sd_of_difference >= 0, num_examples >= 1 and finite gap > 0 must hold, not {given}"
        )
    needed = num_examples * (STANDARD_ERRORS * sd_of_difference / gap) ** 2
    return max(
        1, math.ceil(needed * (1 - 1e-12))
    )  # rounding must not ask for one more than a whole number


def _aligned(**arrays: ArrayLike) -> list[Array]:
    """One-dimensional float arrays of one length, all finite, or ValueError by name."""
    floats = {name: np.asarray(array, dtype=float) for name, array in arrays.items()}
    shapes = {name: array.shape for name, array in floats.items()}
    if any(len(shape) != 1 for shape in shapes.values()) or len(set(shapes.values())) > 1:
        raise ValueError(f"arrays must be one-dimensional and of one length: {shapes}")
    for name, array in floats.items():
        wrong = np.flatnonzero(~np.isfinite(array))
        if wrong.size:
            raise ValueError(f"{name} must be finite: {array[wrong[0]]} at {wrong[0]}")
    return list(floats.values())


# --- statistics of resamples: a resample is how often each mixture was drawn ------------------------------------------


def _draws(num: int, num_resamples: int, seed: int) -> Array:
    """Counts (1 + num_resamples, num): the first row is the sample itself, the others are drawn with replacement."""
    drawn_RM = np.random.default_rng(seed).multinomial(
        num, np.full(num, 1 / num), size=num_resamples
    )
    return np.vstack([np.ones(num), drawn_RM])


def _interval(values_R: Array, confidence: float) -> Estimate:
    """The first value, and the percentiles of those of the others that are defined."""
    value, resampled_R = float(values_R[0]), values_R[1:]
    defined = resampled_R[~np.isnan(resampled_R)]
    if math.isnan(value) or not defined.size:
        return Estimate(value, math.nan, math.nan)
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high))


def _signs(x_M: Array) -> Array:
    """sign(x_i - x_j) at [j, i]: +1 where i is the better one."""
    return np.sign(x_M[None, :] - x_M[:, None])


def _correlation(x_RM: Array, y_RM: Array, counts_RM: Array) -> Array:
    """Pearson's correlation in each resample; nan where x or y is constant."""
    num_R1 = counts_RM.sum(axis=1, keepdims=True)
    dx_RM = x_RM - (counts_RM * x_RM).sum(axis=1, keepdims=True) / num_R1
    dy_RM = y_RM - (counts_RM * y_RM).sum(axis=1, keepdims=True) / num_R1
    top_R, xx_R, yy_R = (
        (counts_RM * p_RM).sum(axis=1) for p_RM in (dx_RM * dy_RM, dx_RM**2, dy_RM**2)
    )
    # a constant's deviations from its mean may be a rounding away from zero, so they cannot tell that it is one
    varies_R = _varies(x_RM, counts_RM) & _varies(y_RM, counts_RM)
    return np.clip(_ratio(top_R, np.where(varies_R, np.sqrt(xx_R * yy_R), 0)), -1, 1)


def _varies(x_RM: Array, counts_RM: Array) -> NDArray[np.bool_]:
    """Whether the drawn values differ in each resample."""
    drawn_RM = counts_RM > 0
    return np.asarray(
        np.where(drawn_RM, x_RM, -np.inf).max(axis=1) > np.where(drawn_RM, x_RM, np.inf).min(axis=1)
    )


def _ratio(top_R: Array, bottom_R: Array) -> Array:
    """top / bottom, nan where bottom is zero."""
    return np.asarray(
        np.divide(top_R, bottom_R, out=np.full(top_R.shape, np.nan), where=bottom_R > 0)
    )


def _pearson(x_M: Array, y_M: Array, counts_RM: Array) -> Array:
    return _correlation(x_M[None, :], y_M[None, :], counts_RM)


def _spearman(x_M: Array, y_M: Array, counts_RM: Array) -> Array:
    # counts @ signs / 2 is the mean rank of a value among the drawn ones, less (drawn + 1) / 2
    return _correlation(counts_RM @ _signs(x_M) / 2, counts_RM @ _signs(y_M) / 2, counts_RM)


def _kendall(x_M: Array, y_M: Array, counts_RM: Array) -> Array:
    """Tau-b: (concordant - discordant pairs) / sqrt(pairs untied in x * pairs untied in y) (Kendall 1945)."""
    x_MM, y_MM = _signs(x_M), _signs(y_M)
    top_R, xx_R, yy_R = (
        ((counts_RM @ p_MM) * counts_RM).sum(axis=1) for p_MM in (x_MM * y_MM, x_MM**2, y_MM**2)
    )
    return _ratio(top_R, np.sqrt(xx_R * yy_R))


def _top_quarter(sorted_M: Array, counts_RM: Array) -> Array | None:
    """The counts with those outside each resample's top quarter set to zero; None where the quarter is too small."""
    size = len(sorted_M) // 4
    if size < _MIN_QUARTER:
        return None
    as_good_RM = counts_RM[:, ::-1].cumsum(axis=1)[
        :, ::-1
    ]  # draws of this mixture and of those after it
    last_R = (as_good_RM >= size).sum(axis=1) - 1
    return np.asarray(counts_RM * (sorted_M[None, :] >= sorted_M[last_R][:, None]))


def _regret(x_M: Array, y_M: Array, counts_RM: Array, k: int) -> Array:
    """Best y drawn, less the best y among the k distinct mixtures drawn with the largest x."""
    order_M = np.lexsort((y_M, -x_M))  # among equal proxies the worst real first
    drawn_RM = counts_RM[:, order_M] > 0
    picked_RM = drawn_RM & (drawn_RM.cumsum(axis=1) <= k)
    best_R, found_R = (
        np.where(mask_RM, y_M[order_M], -np.inf).max(axis=1) for mask_RM in (drawn_RM, picked_RM)
    )
    return np.asarray(best_R - found_R)


def _ranks(x_M: Array) -> Array:
    """Ranks from 1 up; equal values share their mean rank."""
    _, inverse_M, counts_U = np.unique(x_M, return_inverse=True, return_counts=True)
    return np.asarray((counts_U.cumsum() - (counts_U - 1) / 2)[inverse_M])


def _residual_variance(design_OP: Array, values_O: Array) -> float | None:
    """Residual sum of squares of a least-squares fit over its degrees of freedom; None where there are none."""
    fitted_P, _, rank, _ = np.linalg.lstsq(design_OP, values_O, rcond=None)
    degrees = len(values_O) - int(rank)
    return float(((values_O - design_OP @ fitted_P) ** 2).sum()) / degrees if degrees > 0 else None
