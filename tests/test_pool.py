"""Experts pooled by their probabilities, against probabilities themselves; the laws of a pool."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mergetomix.records import Mixture, Scores
from mergetomix.statistics.opinion_pool import pooled

RNG = np.random.default_rng(0)


def losses(num: int = 6) -> Scores:
    return Scores(
        "loss", tuple(RNG.uniform(0.1, 3, num).tolist()), (1.0, 2.0, 5.0, 1.0, 3.0, 400.0)[:num]
    )


EXPERTS = {name: losses() for name in "abc"}


def test_one_expert_is_itself() -> None:
    assert np.allclose(pooled(Mixture.union(["b"]), EXPERTS).values, EXPERTS["b"].values)


def test_an_answer_is_as_likely_as_the_weighted_mean_makes_it() -> None:
    mixture = Mixture(("a", "b", "c"), (0.5, 0.2, 0.3))
    found = pooled(mixture, EXPERTS)
    for e in range(5):  # the last example's probabilities are too small for a plain exp
        tokens = found.weights[e]
        likely = sum(
            w * math.exp(-tokens * EXPERTS[n].values[e]) for n, w in mixture.as_dict().items()
        )
        assert found.values[e] == pytest.approx(-math.log(likely) / tokens)


def test_it_lies_between_the_best_expert_and_the_mean() -> None:
    mixture = Mixture.union(["a", "b", "c"])
    values = np.array([EXPERTS[name].values for name in "abc"])
    found = np.array(pooled(mixture, EXPERTS).values)
    assert (found >= values.min(axis=0) - 1e-12).all() and (
        found <= values.mean(axis=0) + 1e-12
    ).all()
    assert np.isfinite(found).all()


def test_scores_are_averaged() -> None:
    experts = {
        "a": Scores("score", (1.0, 0.0), (1.0, 1.0)),
        "b": Scores("score", (0.0, 0.0), (1.0, 1.0)),
    }
    assert pooled(Mixture(("a", "b"), (0.25, 0.75)), experts) == Scores(
        "score", (0.25, 0.0), (1.0, 1.0)
    )


def test_experts_without_weight_have_no_say() -> None:
    with_zero = pooled(Mixture(("a", "b"), (1.0, 0.0)), EXPERTS)
    assert np.allclose(with_zero.values, EXPERTS["a"].values)
