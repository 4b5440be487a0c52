"""Paired bootstrap of gains over the base: all models are scored on the same drawn examples.

Every draw takes as many of a target's examples as there are, with replacement, and of a mixture
that was fine-tuned with several seeds one of them; intervals are percentiles of the draws (Efron
and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).

Array names end in their shape: D draws, E examples, R models.
"""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from mergetomix.objectives.objective import Objective
from mergetomix.records import Estimate, Scores

Array = NDArray[np.float64]
K = TypeVar("K", bound=Hashable)
NUM_RESAMPLES = 2000
MOST_COUNTS = 4_000_000
"""Counts of drawn examples that are in memory at a time."""
RESOLUTION = 0.5
"""Answers of all by which a score of right answers may be off even if all of them agree."""


def resampled(
    models: Mapping[K, Sequence[Mapping[str, Scores]]],
    base: Mapping[str, Scores],
    objective: Objective,
    num: int = NUM_RESAMPLES,
) -> dict[K, Array]:
    """Returns draws of each model's objective, which are gains over the base, shapes (D,).

    Those of a model depend on its key and its scores alone, not on which others are drawn with it.

    Args:
        models: the scores by target of each model, one mapping for every seed.
        num: how many draws.
    """
    runs = {f"{key!r} {i}": run for key, each in models.items() for i, run in enumerate(each)}
    by_target = {
        name: _gains(place, {key: run[name] for key, run in runs.items()}, base[name], num)
        for place, name in enumerate(objective.weights)
    }
    whole_DR = objective.over((name, gains_DR) for name, gains_DR in by_target.items())
    found: dict[K, Array] = {}
    first = 0
    for key, each in models.items():
        column_D = first + _rng(repr(key)).integers(len(each), size=num)
        found[key] = whole_DR[np.arange(num), column_D]
        first += len(each)
    return found


def _rng(key: str, seed: int = 0) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(key.encode())])


def _gains(seed: int, runs: Mapping[str, Scores], base: Scores, num: int) -> Array:
    """Returns draws of the gains of R models on one target, shape (D, R)."""
    weights_E = np.array(base.weights)
    values_RE = np.array([base.values, *(run.values for run in runs.values())]) * weights_E
    rng, num_examples = np.random.default_rng(seed), len(weights_E)
    parts, step = [], max(1, MOST_COUNTS // num_examples)
    for start in range(0, num, step):
        size = min(step, num - start)
        share_E = np.full(num_examples, 1 / num_examples)
        counts_DE = rng.multinomial(num_examples, share_E, size=size).astype(np.float64)
        total_D = counts_DE @ weights_E
        # of a draw in which no example counts nothing is known: all of them stand for it
        counts_DE[total_D == 0] = 1.0
        parts.append((counts_DE @ values_RE.T) / (counts_DE @ weights_E)[:, None])
    mean_DR = np.vstack(parts)
    base_D1, mean_DR = mean_DR[:, :1], mean_DR[:, 1:]
    if base.kind == "loss":
        sizes_D1 = np.where(base_D1 > 0, base_D1, 1.0)
        return np.asarray((base_D1 - mean_DR) / sizes_D1)
    noise = resolution(base) ** 0.5
    noise_DR = np.stack([_rng(key, seed + 1).standard_normal(num) for key in runs], axis=1)
    return np.asarray(mean_DR - base_D1 + noise * noise_DR)


def resolution(base: Scores) -> float:
    """Returns the variance that a few right or wrong answers leave even if all of them agree.

    It is that of answers alone, which score one or zero.
    """
    is_of_answers = base.kind == "score" and set(base.values) <= {0.0, 1.0}
    return (RESOLUTION / base.num_examples) ** 2 if is_of_answers else 0.0


def interval(draws_D: Array, value: float, confidence: float) -> Estimate:
    """Returns a value with the ends of its percentile interval, which always hold it."""
    low, high = np.quantile(draws_D, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Estimate(value, min(float(low), value), max(float(high), value))


def is_above(draws_D: Array, error: float) -> bool:
    """Returns whether what was drawn is above zero, but for a probability of `error`."""
    return float(np.quantile(draws_D, error)) > 0
