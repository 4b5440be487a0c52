"""Posteriors by draws, and errors over examples: beside plain resampling, one sample at a time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from mergetomix.objectives.objective import Objective
from mergetomix.records import Kind, Scores, gain
from mergetomix.statistics import drawn_posterior
from mergetomix.statistics.agreement import paired_difference
from mergetomix.statistics.posterior import Unit, Views
from mergetomix.statistics.standard_errors import standard_error, standard_errors

ByTarget = Mapping[str, Scores]


def scores(kind: Kind, seed: int, num: int = 12) -> Scores:
    """Scores of examples of unequal weights, two of them none."""
    values = np.random.default_rng(seed).uniform(0.1, 2, num)
    return Scores(kind, tuple(values.tolist()), tuple(float(i % 6) for i in range(num)))


def resampled(given: Scores, times: np.ndarray) -> Scores:
    rows = np.repeat(np.arange(len(times)), times)
    return Scores(
        given.kind,
        tuple(given.values[i] for i in rows),
        tuple(given.weights[i] for i in rows),
    )


def test_the_noise_of_the_examples_is_that_of_resampling_them_all_alike() -> None:
    kinds: dict[str, Kind] = {"l": "loss", "m": "loss", "s": "score"}
    base, one, other = (
        {name: scores(kind, 10 * i + k) for i, (name, kind) in enumerate(kinds.items())}
        for k in range(3)
    )
    objective = Objective({"l": 1.0, "m": 2.0, "s": 1.0}, "worst")
    draws = np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12), size=199)

    def combined(model: ByTarget, times: np.ndarray) -> float:
        gains = {
            name: gain(resampled(each, times), resampled(base[name], times))
            for name, each in model.items()
        }
        return objective.combine(gains)

    differences = [combined(one, times) - combined(other, times) for times in draws]
    found = drawn_posterior.example_sd(objective, one, other, base)
    assert found == pytest.approx(np.std(differences, ddof=1), rel=1e-9)


def test_a_resample_without_weight_is_the_sample_itself() -> None:
    objective = Objective({"t": 1.0}, "worst")
    base, one, other = (
        {"t": Scores("score", values, (0.0, 0.0, 1.0))}
        for values in ((0.0, 0.0, 0.0), (5.0, 5.0, 2.0), (9.0, 9.0, 1.0))
    )
    assert drawn_posterior.example_sd(objective, one, other, base) == 0


def test_the_scale_is_that_of_a_t_with_the_covariance_of_the_draws() -> None:
    rng = np.random.default_rng(0)
    weights = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.25, 0.75]])
    views = {name: Views(weights, *rng.normal(size=(2, 4))) for name in "ab"}
    units = {name: Unit.of(each.proxy_M) for name, each in views.items()}
    found = drawn_posterior.posterior_of(
        Objective({"a": 1.0, "b": 1.0}, "worst"), views, {"a": {2: 0.1}, "b": {2: 0.2}}, units
    )
    covariance = np.cov(found.drawn_DM.T, bias=True)
    np.testing.assert_allclose(found.scale_MM, (found.dof - 2) / found.dof * covariance, atol=1e-12)
    np.testing.assert_allclose(found.mean_M, found.drawn_DM.mean(axis=0))
    assert found.dof == 7 and found.known == {0, 1, 2}
    low_M, high_M = found.interval(0.8)
    held = (low_M <= found.drawn_DM) & (found.drawn_DM <= high_M)
    assert held[:, 3].mean() == pytest.approx(0.8, abs=1e-3)
    assert len(found.draws(seed=3, num=7)) == 7


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
