"""Checked models as anchors: the laws of the combination, and the real model where it is checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_run import Heard, recipe_values, write_recipe

import mergetomix as m2m
from mergetomix.records import Mixture
from mergetomix.session.job import evaluate_proxy, evaluate_real, fit, open_job
from mergetomix.stages import pipeline
from mergetomix.statistics.posterior import Array
from mergetomix.study import anchored

EXPERTS = np.eye(4)


def point(seed: int) -> Array:
    return np.random.default_rng(seed).dirichlet(np.ones(4))


@pytest.mark.parametrize("seed", range(5))
def test_the_experts_alone_give_the_weights_themselves(seed: int) -> None:
    shares, distance = anchored.around(point(seed), EXPERTS)
    np.testing.assert_allclose(shares, point(seed), atol=1e-9)
    assert distance == pytest.approx(1 - float(np.sum(point(seed) ** 2)))


@pytest.mark.parametrize("seed", range(5))
def test_more_anchors_give_the_same_point_from_nearer(seed: int) -> None:
    anchors = np.vstack([EXPERTS, np.full(4, 1 / 4), point(seed + 100)])
    shares, distance = anchored.around(point(seed), anchors)
    assert shares.min() >= 0 and shares.sum() == pytest.approx(1)
    np.testing.assert_allclose(shares @ anchors, point(seed), atol=1e-9)
    assert distance == pytest.approx(float(shares @ np.sum((anchors - point(seed)) ** 2, axis=1)))
    assert distance <= anchored.around(point(seed), EXPERTS)[1] + 1e-12


def test_an_anchor_stands_for_itself() -> None:
    anchors = np.vstack([EXPERTS, point(1)])
    shares, distance = anchored.around(point(1), anchors)
    assert shares[4] == pytest.approx(1) and distance == pytest.approx(0)


def test_a_point_outside_is_refused() -> None:
    with pytest.raises(ValueError, match="no convex combination"):
        anchored.around(np.array([1.0, 0.0, 0.0, 0.0]), EXPERTS[1:])


def test_the_proxy_of_a_checked_mixture_is_the_checked_model(tmp_path: Path) -> None:
    values = recipe_values(tmp_path)
    values["train"]["max_steps"] = 2
    with open_job(m2m.load_recipe(write_recipe(tmp_path, values)), Heard()) as job:
        pipeline.train_experts(job)
        mixtures = list(job.space())
        row = next(i for i, mixture in enumerate(mixtures) if mixture.datasets == ("a", "b"))
        real = evaluate_real(job, fit(job, Mixture.union("ab"), "test"), "select")
        found = anchored.evaluate(job, mixtures, [row])
        alone = evaluate_proxy(job, mixtures[row], "select", 1.0)
    np.testing.assert_allclose(found.scores[row]["t"].values, real["t"].values, atol=1e-5)
    assert not np.allclose(alone["t"].values, real["t"].values, atol=1e-5)
    assert found.distance_M[row] == pytest.approx(0)
    # what the checked model takes no part in is the experts' own
    assert all(
        (scores is None) == (not {"a", "b"} <= set(m.datasets)) for m, scores in zip(mixtures, found.scores, strict=True)
    )
