"""What mixtures are worth, predicted from a few runs whose worth is known, as RegMix does (arXiv 2407.01492).

Shapes: X runs (real fine-tunes, or proxies), N datasets, M mixtures to predict. Weights are shares of the data, each row
summing to 1; `boosted` takes any numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Small beside the squared deviations of some runs' weights, summed over runs: it decides only where the runs say nothing
RIDGE = 1e-3

# RegMix's own: the authors' notebook (github.com/sail-sg/regmix), with LightGBM's defaults for leaves and their size
ROUNDS, LEARNING_RATE = 1000, 0.01
MAX_LEAVES, MAX_LEAF_RUNS = 31, 20


def linear(weights_XN: Array, objective_X: Array, weights_MN: Array) -> Array:
    """objective_M = a + weights_MN b_N, with (a, b) at the least sum_x (objective_x - a - weights_x b)^2 + 1e-3 |b|^2.

    RegMix's linear regression with a small penalty (ridge; scikit-learn): shares sum to 1, so that without one a and b would
    not be determined, and with fewer runs than datasets neither. Of all slopes that fit the runs, it takes the flattest: a
    dataset that no run used has the slope 0, and one run alone predicts its own objective everywhere.

    Raises:
        ValueError: no run, or a value that is not finite.
    """
    from sklearn.linear_model import Ridge

    predicted_M = Ridge(alpha=RIDGE).fit(weights_XN, objective_X).predict(weights_MN)
    return np.asarray(predicted_M, dtype=np.float64)


def boosted(weights_XN: Array, objective_X: Array, weights_MN: Array, seed: int) -> Array:
    """Gradient-boosted regression trees (LightGBM), 1000 rounds at a learning rate of 0.01 as in RegMix.

    RegMix fits some 500 runs; its settings would split no tree on fewer than 40. So, with X runs:
    - a leaf holds at least X / 10 runs, within 2 and RegMix's 20;
    - a tree has at most X / 10 leaves, within 4 and RegMix's 31: few runs do not bear interactions of many datasets;
    - every distinct share may be split at (min_data_in_bin 1; LightGBM's 3 would join them);
    - a split looks at half of the datasets, drawn at random, so that no single one takes all of the effect;
    - no early stopping, as there are no runs to spare for it;
    - the answer is the mean of 4 fits, two random orders of the datasets and their reverses. With few runs several datasets
      often split them alike: LightGBM then takes the first, and it draws the first more often, too.

    Under 4 runs no split is possible: the answer is their mean. Same arguments, same answer: one thread, fixed seed.

    Args:
        seed: of the orders and of the datasets that splits look at.

    Raises:
        ValueError: no run, or a value that is not finite.
    """
    _check(weights_XN, objective_X)
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(weights_XN.shape[1]) for _ in range(2)]
    orders = [order for one in drawn for order in (one, one[::-1])]
    fits_FM = [
        _trees(weights_XN[:, order], objective_X, weights_MN[:, order], seed) for order in orders
    ]
    return np.asarray(np.mean(fits_FM, axis=0), dtype=np.float64)


def _trees(weights_XN: Array, objective_X: Array, weights_MN: Array, seed: int) -> Any:
    import lightgbm

    settings = _settings(len(objective_X), seed)
    runs = lightgbm.Dataset(weights_XN, label=objective_X, params=settings)
    return lightgbm.train(settings, runs, num_boost_round=ROUNDS).predict(weights_MN)


def _settings(num_runs: int, seed: int) -> dict[str, object]:
    return {
        "objective": "regression",
        "learning_rate": LEARNING_RATE,
        "min_data_in_leaf": min(max(2, num_runs // 10), MAX_LEAF_RUNS),
        "num_leaves": min(max(4, num_runs // 10), MAX_LEAVES),
        "min_data_in_bin": 1,
        "feature_fraction_bynode": 0.5,
        "seed": seed,
        "deterministic": True,
        # fixed, because else LightGBM times both ways and takes the faster
        "force_col_wise": True,
        "num_threads": 1,
        "verbosity": -1,
    }


def _check(weights_XN: Array, objective_X: Array) -> None:
    """LightGBM itself takes a missing number for information and a run without one for zero."""
    if not len(objective_X):
        raise ValueError("a regression needs at least one run")
    if not (np.isfinite(weights_XN).all() and np.isfinite(objective_X).all()):
        raise ValueError("weights and objectives must be finite")
