"""What checks show, on scores made by hand: which mixtures cannot be told apart from the pick."""

from __future__ import annotations

import math
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mergetomix.objectives.objective import Objective
from mergetomix.records import Mixture, Scores, Trial
from mergetomix.results import Alternative, Check
from mergetomix.sections.real_finetunes import Verify
from mergetomix.stages.checks import NUM_RESAMPLES, Conclusion
from mergetomix.statistics.agreement import paired_difference
from mergetomix.statistics.posterior import Posterior

MIXTURES = [Mixture.union(names) for names in (("a", "b"), ("a", "c"), ("b", "c"), ("a",))]
MEAN_M = np.array([0.30, 0.29, 0.27, 0.24])
SCALE_MM = np.array([[4.0, 3, 0, 0], [3, 9, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]) * 1e-4
WEIGHTS = {"loss": 1.0, "score": 3.0}
WEIGHTS_E = tuple(float(1 + 3 * i % 17) for i in range(30))
BASE = {
    "loss": Scores("loss", (4.0,) * 30, WEIGHTS_E),
    "score": Scores("score", (0.5,) * 30, (1.0,) * 30),
}


def scores(seed: int) -> dict[str, Scores]:
    rng = np.random.default_rng(seed)
    loss = Scores("loss", tuple(rng.normal(3, 0.2, 30).tolist()), WEIGHTS_E)
    return {"loss": loss, "score": Scores("score", tuple(rng.random(30).tolist()), (1.0,) * 30)}


def real(row: int) -> dict[str, Scores]:
    """Scores of the real fine-tune, on the same examples."""
    proxy, own = scores(row), scores(10 + row)
    return {name: Scores(each.kind, own[name].values, each.weights) for name, each in proxy.items()}


def state(dof: float, checked: tuple[int, ...], **options: Any) -> Any:
    """What `Checks` holds once checks are made; the checked mixtures' reals are other scores."""
    settings = Verify(budget=1, **{"repeats": 0, "confidence": 1 - 1e-9, **options})
    trials = [Trial(each, scores(i), 0.0) for i, each in enumerate(MIXTURES)]
    checks = [
        Check(MIXTURES[i], 0.0, float(MEAN_M[i]), real(i), trials[i].scores, "", "verify")
        for i in checked
    ]
    posterior = Posterior(MEAN_M, SCALE_MM, dof, frozenset({*checked, 3}), 0.0)
    return SimpleNamespace(
        options=settings,
        posterior=lambda: posterior,
        trials=trials,
        checks=checks,
        base=BASE,
        weights=WEIGHTS,
        objective=Objective(WEIGHTS),
        exponent=1.0,
        failures=[],
        session=SimpleNamespace(recipe=SimpleNamespace(train=SimpleNamespace(seed=0))),
    )


def conclude(of: Any) -> tuple[Alternative, ...]:
    return Conclusion(of).verification("").alternatives


def variance_of_examples(one: dict[str, Scores], other: dict[str, Scores]) -> float:
    """A loss counts by its share of the base's 4 nats, with a quarter of the weight."""
    slopes = {"loss": 1 / 4 / 4, "score": 3 / 4}
    found = 0.0
    for name, slope in slopes.items():
        a, b = one[name], other[name]
        _, sd = paired_difference(a.values, b.values, a.weights, num_resamples=NUM_RESAMPLES)
        found += (slope * sd) ** 2
    return found


@pytest.mark.parametrize("checked", [(0, 1), (0,), (1,), ()])
@pytest.mark.parametrize("dof", [8.0, 1e9])
def test_a_difference_to_the_pick_has_the_posteriors_variance_and_the_examples(
    checked: tuple[int, ...], dof: float
) -> None:
    """Of the real fine-tunes where both were made, or else of the proxies."""
    found = {each.mixture: each for each in conclude(state(dof, checked))}
    assert set(found) == set(MIXTURES[1:])
    assert [each.better_probability for each in found.values()] == sorted(
        (each.better_probability for each in found.values()), reverse=True
    )
    covariance = SCALE_MM * dof / (dof - 2)
    for row, name in enumerate(MIXTURES[1:], start=1):
        # one dataset's proxy is its fine-tune
        both_real = 0 in checked and (row in checked or row == 3)
        one = real(0) if both_real else scores(0)
        other = real(row) if both_real and row != 3 else scores(row)
        spread = covariance[row, row] + covariance[0, 0] - 2 * covariance[row, 0]
        sd = math.sqrt(spread + variance_of_examples(one, other))
        difference = MEAN_M[0] - MEAN_M[row]
        assert found[name].difference == pytest.approx(difference)
        assert found[name].sd == pytest.approx(sd)
        assert found[name].better_probability == pytest.approx(NormalDist().cdf(-difference / sd))


def test_only_what_may_well_be_better_is_named() -> None:
    first, second, third = conclude(state(8.0, (0, 1)))
    between = (second.better_probability + third.better_probability) / 2
    assert conclude(state(8.0, (0, 1), confidence=1 - between)) == (first, second)


def test_noise_between_seeds_counts_for_both() -> None:
    """Two checks, made again with another seed: what changes their difference is noise."""
    again = state(8.0, (0, 1), repeats=2)
    again.real = lambda mixture, seed: (None, real(MIXTURES.index(mixture) + 5 * seed))
    noise = Conclusion(again).verification("").agreement["objective"].noise_sd
    assert noise is not None and noise > 0
    for with_noise, without in zip(conclude(again), conclude(state(8.0, (0, 1))), strict=True):
        assert with_noise.sd**2 == pytest.approx(without.sd**2 + 2 * noise**2)
