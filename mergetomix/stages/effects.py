"""What each dataset adds to each target, from what trials and checks say of all mixtures.

Mixtures that were not tried come from a regression on those that were (`statistics/untried.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mergetomix.records import Estimate, Mixture, Trial
from mergetomix.results import DatasetEffect, Effects, PairEffect
from mergetomix.stages.expectations import datasets_of, weights_of
from mergetomix.statistics import shapley
from mergetomix.statistics.bootstrap import interval
from mergetomix.statistics.posterior import Array, Posterior
from mergetomix.statistics.untried import Untried

NUM_DRAWS = 1000
MOST_PAIRED = 40
"""Datasets beyond which pairs are not looked at: there are too many of them to be told apart."""
OBJECTIVE = "objective"
"""What the whole objective is called beside the targets."""


class WithPosterior(Protocol):
    """What effects are taken from; `Checks` is one."""

    trials: list[Trial]
    weights: Mapping[str, float]

    def posterior_on(self, target: str | None) -> Posterior:
        """Returns what is known of all trials' gains on a target, or of the whole objective."""
        ...


class Known:
    """Draws of what subsets of N datasets are worth: those of their trials, or predicted ones.

    Args:
        weights_MN: the weights of the trials.
        known_DM: draws of what they are worth.
        are_subsets: whether a trial is the union of its datasets, whatever its weights.
    """

    def __init__(self, weights_MN: Array, known_DM: Array, are_subsets: bool) -> None:
        self._known_DM = known_DM
        shares_MN = shares(weights_MN > 0) if are_subsets else weights_MN
        self._rows: dict[bytes, int] = {}
        if are_subsets:
            self._rows = {row.tobytes(): i for i, row in enumerate(weights_MN > 0)}
        self.is_whole = len(self._rows) == 2 ** weights_MN.shape[1] - 1
        self._others = None if self.is_whole else Untried(shares_MN, known_DM)

    def __call__(self, is_in_SN: Array) -> Array:
        """Returns draws of the worth of subsets, shape (D, S)."""
        row_S = np.array([self._rows.get(row.tobytes(), -1) for row in is_in_SN > 0])
        found_DS = self._known_DM[:, row_S]
        lacks_S = row_S < 0
        if lacks_S.any() and self._others is not None:
            found_DS[:, lacks_S] = self._others(shares(is_in_SN[lacks_S] > 0))
        return found_DS


def shares(is_in_MN: NDArray[np.bool_]) -> Array:
    """Returns equal weights of the datasets that mixtures hold, shape (M, N)."""
    return np.asarray(is_in_MN / is_in_MN.sum(axis=1, keepdims=True))


def effects(state: WithPosterior, pick: Mixture, confidence: float) -> Effects:
    """Returns what each dataset adds to each target and to the objective, and what pairs do.

    Args:
        pick: the mixture around which datasets are added and left out.
        confidence: coverage of all intervals.
    """
    trials, names = state.trials, datasets_of(state.trials)
    are_subsets = all(each.mixture.is_union or len(each.mixture) == 1 for each in trials)
    weights_MN = weights_of(trials)
    worth = {
        name or OBJECTIVE: Known(
            weights_MN, state.posterior_on(name).draws(0, NUM_DRAWS), are_subsets
        )
        for name in [*state.weights, None]
    }
    values = {
        name: _estimates(shapley.values(each, len(names)), confidence)
        for name, each in worth.items()
    }
    around = _around(worth[OBJECTIVE], names, pick, confidence)
    found = tuple(
        DatasetEffect(
            name,
            {target: each[i] for target, each in values.items()},
            name in pick.members,
            around[i],
        )
        for i, name in enumerate(names)
    )
    return Effects(
        tuple(sorted(found, key=lambda each: -each.values[OBJECTIVE].value)),
        _pairs(worth[OBJECTIVE], names, confidence),
        confidence,
        worth[OBJECTIVE].is_whole,
        len(trials),
    )


def _estimates(draws_DN: Array, confidence: float) -> list[Estimate]:
    return [interval(each, float(each.mean()), confidence) for each in draws_DN.T]


def _around(worth: Known, names: Sequence[str], pick: Mixture, confidence: float) -> list[Estimate]:
    """Returns what the pick loses without each of its datasets, and gains with each other one.

    Both are the worth with the dataset less the worth without; that of nothing is zero.
    """
    is_in_N = np.array([float(name in pick.members) for name in names])
    rows_SN = np.array([is_in_N, *(np.abs(is_in_N - row) for row in np.eye(len(names)))])
    is_some_S = rows_SN.any(axis=1)
    found_DS = np.zeros((len(worth(rows_SN[:1])), len(rows_SN)))
    found_DS[:, is_some_S] = worth(rows_SN[is_some_S])
    sign_N = np.where(is_in_N > 0, 1.0, -1.0)
    return _estimates(sign_N * (found_DS[:, [0]] - found_DS[:, 1:]), confidence)


def _pairs(worth: Known, names: Sequence[str], confidence: float) -> tuple[PairEffect, ...]:
    if not 1 < len(names) <= MOST_PAIRED:
        return ()
    found_DNN = shapley.interactions(worth, len(names))
    single_DN = worth(np.eye(len(names)))
    pairs = list(itertools.combinations(range(len(names)), 2))
    both_DP = worth(np.array([np.isin(np.arange(len(names)), pair) for pair in pairs], float))
    found = []
    for place, (i, j) in enumerate(pairs):
        beyond_D = both_DP[:, place] - np.maximum(single_DN[:, i], single_DN[:, j])
        together, beyond = _estimates(np.column_stack([found_DNN[:, i, j], beyond_D]), confidence)
        found.append(PairEffect((names[i], names[j]), together, beyond))
    return tuple(sorted(found, key=lambda each: each.interaction.value))
