"""How well proxies rank what real fine-tunes give, how sure that is, and how well anything could.

Array names end in their shape: M mixtures, S seeds, E examples, R resamples, O observations, D
draws. Everything named real or proxy is an objective: without unit, better when higher.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from mergetomix.records import Estimate

MIN_CHECKS = 5
REGRET_AT = (1, 3, 5)
STANDARD_ERRORS = 1.645
"""The 95% point of the normal: 90% of it lies within so many standard errors on either side."""
_MIN_QUARTER, _BATCH = 3, 2**20

Array = NDArray[np.float64]


def fidelity(
    proxy_M: ArrayLike,
    real_M: ArrayLike,
    *,
    confidence: float = 0.9,
    num_resamples: int = 999,
    seed: int = 0,
) -> dict[str, Estimate | None] | None:
    """Returns how well proxies rank the real fine-tunes of the same M mixtures, by statistic.

    - `pearson`, `spearman` (ties have their mean rank) and `kendall` (tau-b);
    - `top_quarter`: the Spearman correlation over the floor(M / 4) mixtures with the best *real*
      objective and any that tie with the last of them; None for fewer than 12 mixtures;
    - `regret_1`, `regret_3`, `regret_5`: the best real objective of all minus the best among the k
      mixtures with the best proxy, which is what is lost by training only those k. Among equal
      proxies the worst real counts first: a proxy that cannot tell mixtures apart earns nothing.

    Fewer than MIN_CHECKS mixtures say nothing: None. A correlation with a constant is nan.

    Intervals are percentile bootstrap intervals over mixtures (Efron and Tibshirani 1993, chapter
    13), which hold the share `confidence` of the resampled values: they say how much hangs on which
    mixtures were checked, not on the seed of the fine-tunes, and do not depend on the order of the
    mixtures. In each resample the top quarter is taken anew, a mixture drawn twice is one mixture
    for the regrets, and a statistic that is undefined is left out of its interval.

    Raises ValueError for arrays that are not one-dimensional, finite and of one length, for a
    `confidence` that is not between 0 and 1, and for less than one resample.

    >>> found = fidelity([0.1, 0.2, 0.3, 0.4, 0.5], [1, 2, 3, 5, 4])
    >>> round(found["spearman"].value, 3), found["regret_1"].value
    (0.9, 1.0)
    """
    proxies_M, reals_M = _aligned(proxy_M=proxy_M, real_M=real_M)
    if not 0 < confidence < 1 or num_resamples < 1:
        given = f"{confidence} and {num_resamples}"
        raise ValueError(f"0 < confidence < 1 and num_resamples >= 1 must hold, not {given}")
    num = len(reals_M)
    if num < MIN_CHECKS:
        return None
    # one order, so that the same seed draws the same mixtures
    order_M = np.lexsort((proxies_M, reals_M))
    x_M, y_M = proxies_M[order_M], reals_M[order_M]
    rng = np.random.default_rng(seed)
    times_RM = rng.multinomial(num, np.full(num, 1 / num), size=num_resamples)
    # the sample itself first, then its resamples, each in the order of the reals
    rows_RM = np.stack([np.arange(num), *(np.repeat(np.arange(num), each) for each in times_RM)])
    x_RM, y_RM = x_M[rows_RM], y_M[rows_RM]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constants, whose correlations are undefined
        values = {
            "pearson": stats.pearsonr(x_RM, y_RM, axis=1).statistic,
            "spearman": _spearman(x_RM, y_RM),
            "kendall": _kendall(x_M, y_M, times_RM),
            "top_quarter": _top_quarter(x_RM, y_RM) if num >= 4 * _MIN_QUARTER else None,
            **{f"regret_{k}": _regret(x_M, y_M, rows_RM, k) for k in REGRET_AT},
        }
        return {
            name: None if value_R is None else _interval(value_R, confidence)
            for name, value_R in values.items()
        }


def noise_sd(real_SM: ArrayLike) -> float | None:
    """Returns the standard deviation of a real objective over seeds, as far as it changes ranks.

    `real_SM` has a row for each seed and a column for each mixture, nan for a fine-tune that was
    not made. Model: real[s, m] = f[m] + o[s] + e[s, m], and the result is an estimate of sd(e),
    None if no mixture has two seeds. The offset o[s] that a seed gives to every mixture alike (the
    order of batches, say) leaves ranks as they are, so it is fitted, with f, by least squares to
    the mixtures with two seeds or more, and

        noise_sd^2 = sum of squared residuals / (observations - rank of the design),

    which for a complete block is the two-way residual mean square (Searle, Linear Models 1971,
    chapter 7). Any two mixtures that were run with the same two seeds leave a degree of freedom. If
    none is left o cannot be told from e: it is left out of the fit, which gives the pooled variance
    within mixtures and is too large for mixtures that are compared at one seed. With few degrees of
    freedom the estimate is rough: with one, half of all estimates fall below 0.67 of the truth.

    Raises ValueError for an array that is not two-dimensional or holds an infinity.
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
    within_O = (reals_SM - np.nanmean(reals_SM, axis=0))[known_SM]
    seed_O, mixture_O = np.nonzero(known_SM)
    is_mixture_OM = np.eye(known_SM.shape[1])[mixture_O]
    is_seed_OS = np.eye(known_SM.shape[0])[seed_O]
    for design_OP in (np.hstack([is_mixture_OM, is_seed_OS]), is_mixture_OM):
        fitted_P, _, rank, _ = np.linalg.lstsq(design_OP, within_O, rcond=None)
        freedom = len(within_O) - int(rank)
        if freedom > 0:
            return math.sqrt(float(((within_O - design_OP @ fitted_P) ** 2).sum()) / freedom)
    return None


def ceiling(real_M: ArrayLike, noise_sd: float, *, num_draws: int = 2000, seed: int = 0) -> float:
    """Returns the Spearman correlation of a proxy that knows each mixture without noise.

    With real = f + e, var(real) = var(f) + noise_sd^2 and corr(f, real) = sd(f) / sd(real)
    (Spearman 1904, attenuation):

        pearson = sqrt(max(0, 1 - noise_sd^2 / var(real)))     var with M - 1 in the denominator
        f       = mean(real) + pearson * (real - mean(real))   has the variance that is no noise
        result  = mean over draws of Spearman(f, f + e),  e ~ Normal(0, noise_sd)

    f keeps the shape of the real objectives, so that the result is right for normal ones and near
    enough for others; it is low by .02 for 30 mixtures and a ceiling of .78. If noise explains all
    of the spread it is 0; if the real objectives are all equal it is nan. Raises ValueError for
    fewer than 2 or not finite objectives, for a `noise_sd`, their standard deviation over seeds,
    that is negative or not finite, and for less than one draw.
    """
    (reals_M,) = _aligned(real_M=real_M)
    if len(reals_M) < 2 or not 0 <= noise_sd < math.inf or num_draws < 1:
        given = f"{len(reals_M)}, {noise_sd} and {num_draws}"
        raise ValueError(
            f"objectives >= 2, finite noise_sd >= 0 and num_draws >= 1 must hold, not {given}"
        )
    if np.ptp(reals_M) == 0:
        return math.nan
    pearson = math.sqrt(max(0.0, 1 - noise_sd**2 / float(np.var(reals_M, ddof=1))))
    if pearson == 0:
        return 0.0
    true_M = pearson * reals_M  # but for a constant, which ranks do not see
    noise_DM = np.random.default_rng(seed).normal(0, noise_sd, (num_draws, len(true_M)))
    return float(_spearman(true_M[None], true_M + noise_DM).mean())


def paired_difference(
    values_a_E: ArrayLike,
    values_b_E: ArrayLike,
    weights_E: ArrayLike,
    *,
    num_resamples: int = 999,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns by how much a exceeds b on the same examples, and the standard deviation of that.

        mean = sum over e of weights[e] * (a[e] - b[e]) / sum over e of weights[e]

    The standard deviation is over resamples of examples, each with its weight (Efron and Tibshirani
    1993, chapter 6). It is nan for a single example, which says nothing of the spread. Resamples
    without weight are left out. Raises ValueError for arrays that are not one-dimensional, finite
    and of one length, for weights that are negative or all zero, and for less than two resamples.

    >>> paired_difference([3.0, 5.0], [1.0, 2.0], [1, 3])[0]
    2.75
    """
    a_E, b_E, w_E = _aligned(values_a_E=values_a_E, values_b_E=values_b_E, weights_E=weights_E)
    if (w_E < 0).any() or not w_E.sum() > 0 or num_resamples < 2:
        raise ValueError(
            "weights >= 0, their sum > 0 and num_resamples >= 2 must hold:"
            f" {w_E.sum()} and {num_resamples}"
        )
    weighted_E = w_E * (a_E - b_E)
    mean = float(weighted_E.sum() / w_E.sum())
    if len(w_E) == 1:
        return mean, math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of resamples without weight
        found = stats.bootstrap(
            (weighted_E, w_E),
            lambda a_RE, w_RE, axis: a_RE.sum(axis=axis) / w_RE.sum(axis=axis),
            paired=True,
            n_resamples=num_resamples,
            batch=max(1, _BATCH // len(w_E)),
            method="percentile",
            rng=np.random.default_rng(seed),
        )
        return mean, float(np.nanstd(found.bootstrap_distribution, ddof=1))


def examples_needed(sd_of_difference: float, num_examples: int, gap: float) -> int:
    """Returns how many examples make a difference of `gap` 1.645 standard errors wide.

    A standard error, here `sd_of_difference` on `num_examples`, falls with the root of their
    number: ceil(num_examples * (1.645 * sd_of_difference / gap)^2), at least 1. Raises ValueError
    for an argument that is out of range or not finite.

    >>> examples_needed(0.02, 100, gap=1.645 * 0.01)
    400
    """
    if not (0 <= sd_of_difference < math.inf and num_examples >= 1 and 0 < gap < math.inf):
        raise ValueError(
            "finite sd_of_difference >= 0, num_examples >= 1 and finite gap > 0 must hold,"
            f" not {sd_of_difference}, {num_examples} and {gap}"
        )
    needed = num_examples * (STANDARD_ERRORS * sd_of_difference / gap) ** 2
    # rounding must not ask for one more than a whole number
    return max(1, math.ceil(needed * (1 - 1e-12)))


def _aligned(**arrays: ArrayLike) -> list[Array]:
    """Returns finite, one-dimensional float arrays of one length; ValueError names what is not."""
    floats = {name: np.asarray(array, dtype=float) for name, array in arrays.items()}
    shapes = {name: array.shape for name, array in floats.items()}
    if any(len(shape) != 1 for shape in shapes.values()) or len(set(shapes.values())) > 1:
        raise ValueError(f"arrays must be one-dimensional and of one length: {shapes}")
    for name, array in floats.items():
        wrong = np.flatnonzero(~np.isfinite(array))
        if wrong.size:
            raise ValueError(f"{name} must be finite: {array[wrong[0]]} at {wrong[0]}")
    return list(floats.values())


# --- statistics of resamples, the sample itself first


def _interval(values_R: Array, confidence: float) -> Estimate:
    """Returns the first value, and the percentiles of those of the others that are defined."""
    value, ends = float(values_R[0]), [(1 - confidence) / 2, (1 + confidence) / 2]
    if math.isnan(value):
        return Estimate(value, value, value)
    low, high = np.nanquantile(values_R[1:], ends)
    return Estimate(value, float(low), float(high))


def _spearman(x_RM: Array, y_RM: Array) -> Array:
    ranks = stats.rankdata(x_RM, axis=1), stats.rankdata(y_RM, axis=1)
    return np.asarray(stats.pearsonr(*ranks, axis=1).statistic)


def _kendall(x_M: Array, y_M: Array, times_RM: NDArray[np.int64]) -> Array:
    """Returns tau-b: concordant less discordant pairs over the root of those untied in x and in y.

    `scipy.stats.kendalltau` takes one resample at a time: half a second where this takes 4 ms.
    """
    counts_RM = np.vstack([np.ones(len(x_M)), times_RM])
    x_MM, y_MM = (np.sign(each_M[:, None] - each_M) for each_M in (x_M, y_M))
    top_R, x_R, y_R = (
        ((counts_RM @ signs_MM) * counts_RM).sum(axis=1)
        for signs_MM in (x_MM * y_MM, x_MM**2, y_MM**2)
    )
    return np.asarray(top_R / np.sqrt(x_R * y_R))


def _top_quarter(x_RM: Array, y_RM: Array) -> Array:
    """Returns Spearman's correlation over each resample's top quarter, which ties may enlarge."""
    last_R = y_RM[:, -(y_RM.shape[1] // 4)]
    size_R = (y_RM >= last_R[:, None]).sum(axis=1)
    found_R = np.empty(len(size_R))
    for size in np.unique(size_R):
        rows = size_R == size
        found_R[rows] = _spearman(x_RM[rows, -size:], y_RM[rows, -size:])
    return found_R


def _regret(x_M: Array, y_M: Array, rows_RM: NDArray[np.intp], k: int) -> Array:
    order_M = np.lexsort((y_M, -x_M))  # among equal proxies the worst real first
    places_RM = np.sort(np.argsort(order_M)[rows_RM], axis=1)
    num_distinct_RM = (np.diff(places_RM, prepend=-1) > 0).cumsum(axis=1)
    reals_RM = y_M[order_M][places_RM]
    picked_RM = np.where(num_distinct_RM <= k, reals_RM, -np.inf)
    return np.asarray(reals_RM.max(axis=1) - picked_RM.max(axis=1))
