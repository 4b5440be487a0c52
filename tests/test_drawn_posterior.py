"""Posteriors by draws, and the standard errors of gains."""

from __future__ import annotations

import numpy as np
import pytest

from mergetomix.objectives.objective import Objective
from mergetomix.records import Kind, Scores
from mergetomix.statistics import drawn_posterior
from mergetomix.statistics.agreement import paired_difference
from mergetomix.statistics.posterior import Unit, Views, posterior_of
from mergetomix.statistics.standard_errors import standard_error, standard_errors


def scores(kind: Kind, seed: int, num: int = 12) -> Scores:
    """Scores of examples of unequal weights, two of them none."""
    values = np.random.default_rng(seed).uniform(0.1, 2, num)
    return Scores(kind, tuple(values.tolist()), tuple(float(i % 6) for i in range(num)))


def test_the_scale_is_that_of_a_t_with_the_covariance_of_the_draws() -> None:
    rng = np.random.default_rng(0)
    weights = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.25, 0.75]])
    views = {name: Views(weights, *rng.normal(size=(2, 4))) for name in "ab"}
    units = {name: Unit.of(each.proxy_M) for name, each in views.items()}
    known = {"a": {2: 0.1}, "b": {2: 0.2}}
    each = {name: posterior_of(views[name], known[name], unit=units[name]) for name in "ab"}
    found = drawn_posterior.posterior_of(Objective({"a": 1.0, "b": 1.0}, "worst"), each)
    covariance = np.cov(found.drawn_DM.T, bias=True)
    np.testing.assert_allclose(found.scale_MM, (found.dof - 2) / found.dof * covariance, atol=1e-12)
    np.testing.assert_allclose(found.mean_M, found.drawn_DM.mean(axis=0))
    assert found.dof == 6 and found.known == {0, 1, 2}
    low_M, high_M = found.interval(0.8)
    held = (low_M <= found.tuned_DM) & (found.tuned_DM <= high_M)
    assert held[:, 3].mean() == pytest.approx(0.8, abs=1e-3)
    assert len(found.draws(seed=3, num=7)) == 7
    assert found.pick == int(np.argmax(found.mean_M))


@pytest.mark.parametrize("level", [0.0, 0.3, 4.0])
def test_a_standard_error_is_a_share_of_the_bases_loss_or_a_score_as_it_is(level: float) -> None:
    for kind in ("loss", "score"):
        base = Scores(kind, (level,) * 12, scores(kind, 0).weights)
        model = scores(kind, 1)
        _, sd = paired_difference(model.values, base.values, base.weights, num_resamples=199)
        unit = level if kind == "loss" and level > 0 else 1.0
        assert standard_error(model, base) == pytest.approx(sd / unit)
        assert standard_error(base, base) == 0


def test_the_unit_of_a_target_is_the_median_over_the_experts_that_change_something() -> None:
    base = {"t": Scores("score", (0.0,) * 12, (1.0,) * 12)}
    values = scores("score", 2).values
    experts = [
        {"t": Scores("score", tuple(k * value for value in values), (1.0,) * 12)}
        for k in (0.0, 1.0, 2.0, 9.0)
    ]
    found = standard_errors(experts, base)
    assert found == {"t": pytest.approx(2 * standard_error(experts[1]["t"], base["t"]))}
