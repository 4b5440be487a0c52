"""What mixtures are worth, predicted from a few runs, as RegMix does (arXiv 2407.01492).

Shapes: X runs (real fine-tunes, or proxies), N datasets, M mixtures to predict. Weights are shares
of the data, each row summing to 1; `boosted` takes any numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# small beside the squared deviations of the runs' weights: decides only if the runs say nothing
RIDGE = 1e-3
# RegMix's own, of the authors' notebook (github.com/sail-sg/regmix), with LightGBM's default leaves
ROUNDS, LEARNING_RATE = 1000, 0.01
MAX_LEAVES, MAX_LEAF_RUNS = 31, 20


def linear(weights_XN: Array, objective_X: Array, weights_MN: Array) -> Array:
    """Returns a + weights_MN b_N, by least squares with the penalty 1e-3 |b|^2 (ridge regression).

    RegMix's linear regression with a small penalty: shares sum to 1, so that without one a and b
    would not be determined, and with fewer runs than datasets neither. Of all slopes that fit the
    runs, it takes the flattest: a dataset that no run used has the slope 0, and one run alone
    predicts its own objective everywhere. Raises ValueError for no run or a number that is missing.
    """
    from sklearn.linear_model import Ridge

    predicted_M = Ridge(alpha=RIDGE).fit(weights_XN, objective_X).predict(weights_MN)
    return np.asarray(predicted_M, dtype=np.float64)


def boosted(weights_XN: Array, objective_X: Array, weights_MN: Array, seed: int) -> Array:
    """Returns the predictions of gradient-boosted trees (LightGBM), 1000 rounds at a rate of 0.01.

    RegMix fits some 500 runs; its settings would split no tree on fewer than 40. So, with X runs:
    - a leaf holds at least X / 10 runs, within 2 and RegMix's 20;
    - a tree has at most X / 10 leaves, within 4 and RegMix's 31: few runs bear few interactions;
    - every distinct share may be split at (min_data_in_bin 1; LightGBM's 3 would join them);
    - a split looks at half of the datasets, drawn at random, so that no single one takes it all;
    - no early stopping, as there are no runs to spare for it;
    - the answer is the mean of 4 fits, two random orders of the datasets and their reverses: with
      few runs several datasets often split them alike, and LightGBM then takes the first.

    Under 4 runs no split is possible: the answer is their mean. Same arguments, same answer: `seed`
    is that of the orders and splits. Raises ValueError for no run or a number that is missing.
    """
    import lightgbm

    num = len(objective_X)
    if not num:
        raise ValueError("a regression needs at least one run")
    # LightGBM itself takes a missing number for information
    if not (np.isfinite(weights_XN).all() and np.isfinite(objective_X).all()):
        raise ValueError("weights and objectives must be finite")
    settings = {
        "objective": "regression",
        "learning_rate": LEARNING_RATE,
        "min_data_in_leaf": min(max(2, num // 10), MAX_LEAF_RUNS),
        "num_leaves": min(max(4, num // 10), MAX_LEAVES),
        "min_data_in_bin": 1,
        "feature_fraction_bynode": 0.5,
        "seed": seed,
        "deterministic": True,
        "force_col_wise": True,  # else LightGBM times both ways and takes the faster
        "num_threads": 1,
        "verbosity": -1,
    }
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(weights_XN.shape[1]) for _ in range(2)]
    fits_FM = []
    for order in (order for one in drawn for order in (one, one[::-1])):
        runs = lightgbm.Dataset(weights_XN[:, order], label=objective_X, params=settings)
        model = lightgbm.train(settings, runs, num_boost_round=ROUNDS)
        fits_FM.append(model.predict(weights_MN[:, order]))
    return np.asarray(np.mean(fits_FM, axis=0), dtype=np.float64)
