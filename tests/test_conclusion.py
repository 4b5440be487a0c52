"""What checks show, from a posterior made by hand: pick, intervals, what is not told apart."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mergetomix.objectives.objective import Objective
from mergetomix.records import Merging, Mixture, Scores, Trial
from mergetomix.report.sentences import more_examples
from mergetomix.results import Alternative, Check
from mergetomix.sections.real_finetunes import Verify
from mergetomix.stages.conclusion import Conclusion, agreement_of
from mergetomix.statistics.noise import Noise
from mergetomix.statistics.posterior import Posterior

MIXTURES = [Mixture.union(names) for names in (("a", "b"), ("a", "c"), ("b", "c"), ("a",))]
MEAN_M = np.array([0.30, 0.29, 0.27, 0.24])
SCALE_MM = np.array([[4.0, 3, 0, 0], [3, 9, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]) * 1e-4
ROOT_MR = np.array([[2.0, 0], [1, 1], [0, 3], [2, 2]]) * 1e-2
BASE = {"t": Scores("score", (0.5,) * 30, (1.0,) * 30)}


def scores(seed: int) -> dict[str, Scores]:
    rng = np.random.default_rng(seed)
    return {"t": Scores("score", tuple(rng.random(30).tolist()), (1.0,) * 30)}


def noise(seed_sd: float = 0.01) -> Noise:
    report_M = np.array([1.0, 2.0, 3.0, 4.0]) * 1e-4
    return Noise(ROOT_MR, np.array([1.0, 4.0, 1.0, 0.0]) * 1e-4, report_M, seed_sd)


def state(dof: float, of: Noise | None = None, num_checks: int = 2, **options: Any) -> Any:
    """What `Checks` holds once checks are made."""
    trials = [Trial(each, scores(i), 0.0) for i, each in enumerate(MIXTURES)]
    checks = [
        Check(MIXTURES[i % 3], 0.0, float(i), scores(10 + i), scores(i), "", "verify")
        for i in range(num_checks)
    ]
    given = of or noise()
    posterior = Posterior(
        MEAN_M, SCALE_MM, dof, frozenset({0, 1, 3}), 0.0, given, MEAN_M, 2 * np.full(4, 0.01)
    )

    def with_more(times: dict[str, float] | None = None) -> Posterior:
        return replace(posterior, noise=given.with_examples((times or {}).get("t", 1.0)))

    return SimpleNamespace(
        options=Verify(**{"confidence": 1 - 1e-9, **options}),
        posterior=with_more,
        noise=lambda target: given,
        trials=trials,
        checks=checks,
        base=BASE,
        objective=Objective({"t": 1.0}),
        merging=Merging("equal", 1.0),
        num_repeats=0,
        failures=[],
        weights={"t": 1.0},
        posterior_on=lambda target: posterior,
    )


def conclude(of: Any) -> tuple[Alternative, ...]:
    return Conclusion(of).verification("").alternatives


@pytest.mark.parametrize("dof", [8.0, 1e9])
def test_a_difference_to_the_pick_has_all_that_the_two_do_not_share(dof: float) -> None:
    """What is not known of the mixtures, the examples, and for a single dataset its seed."""
    found = {each.mixture: each for each in conclude(state(dof))}
    assert set(found) == set(MIXTURES[1:])
    assert [each.better_probability for each in found.values()] == sorted(
        (each.better_probability for each in found.values()), reverse=True
    )
    covariance = SCALE_MM * dof / (dof - 2)
    for row, name in enumerate(MIXTURES[1:], start=1):
        variance = covariance[row, row] + covariance[0, 0] - 2 * covariance[row, 0]
        variance += ((ROOT_MR[0] - ROOT_MR[row]) ** 2).sum() + (1e-4 if row == 3 else 0)
        difference, sd = MEAN_M[0] - MEAN_M[row], math.sqrt(variance)
        assert found[name].difference == pytest.approx(difference)
        assert found[name].sd == pytest.approx(sd)
        chance = NormalDist().cdf(-difference / sd)
        # counted on 4,000 draws
        assert found[name].better_probability == pytest.approx(chance, abs=0.025)


def test_only_what_may_well_be_better_is_named() -> None:
    first, second, third = conclude(state(8.0))
    between = (second.better_probability + third.better_probability) / 2
    assert conclude(state(8.0, confidence=1 - between)) == (first, second)


def test_more_noise_leaves_more_in_doubt() -> None:
    calm, loud = (conclude(state(8.0, replace(noise(), examples_MR=k * ROOT_MR))) for k in (0, 5))
    by_name = {each.mixture: each for each in calm}
    assert all(each.better_probability > by_name[each.mixture].better_probability for each in loud)


def test_more_examples_narrow_what_examples_are_behind() -> None:
    found = Conclusion(state(8.0)).verification("")
    wanted, first = found.more_examples, found.alternatives[0]
    assert wanted is not None and (wanted.against, wanted.sd) == (first.mixture, first.sd)
    assert (wanted.target, wanted.num, wanted.num_more) == ("t", 30, 90)
    row = MIXTURES.index(first.mixture)
    behind = float(((ROOT_MR[0] - ROOT_MR[row]) ** 2).sum())
    assert wanted.share == pytest.approx(0.75 * behind / first.sd**2)
    assert wanted.sd_then**2 == pytest.approx(first.sd**2 - 0.75 * behind)
    assert "90 more select examples of t (there are 30)" in more_examples(wanted)
    none = state(8.0, replace(noise(), examples_MR=np.zeros((4, 1))))
    hardly = Conclusion(none).verification("").more_examples
    assert hardly is not None and hardly.sd_then == hardly.sd
    assert "more examples would hardly help" in more_examples(hardly)
    assert Conclusion(state(8.0, confidence=0.51)).verification("").more_examples is None


def test_an_interval_is_of_the_report_part() -> None:
    """Its own examples' noise and the select part's, and what is not known of the fine-tune."""
    given = state(1e9, interval=0.9)
    found = {each.mixture: each for each in Conclusion(given).verification("").predictions}
    for row, name in enumerate(MIXTURES):
        variance = 0.02**2 + float((ROOT_MR[row] ** 2).sum()) + (row + 1) * 1e-4
        half = 1.645 * math.sqrt(variance)
        assert found[name].high - MEAN_M[row] == pytest.approx(half, rel=1e-3)
        assert MEAN_M[row] - found[name].low == pytest.approx(half, rel=1e-3)
        assert found[name].measured == (row != 2)
    assert sum(each.best_probability for each in found.values()) == pytest.approx(1)
    assert all(each.best_probability < 1 for each in found.values())


def test_nothing_but_noise_is_told_apart() -> None:
    """Where all scores are equal and exact, every mixture is as good as the pick."""
    equal = replace(state(8.0).posterior(), mean_M=np.zeros(4), scale_MM=np.zeros((4, 4)))
    equal = replace(equal, noise=Noise.none(4))
    given = state(8.0, confidence=0.95)
    given.posterior = lambda times=None: equal
    assert [each.better_probability for each in conclude(given)] == [0.5] * 3


def test_a_perfect_proxy_does_not_know_what_seeds_and_a_checks_examples_add() -> None:
    real = np.arange(8.0)
    found = [
        agreement_of(
            real, real, replace(Noise.none(8), seed_sd=seed, check_M=np.full(8, check)), 0.9
        )
        for seed, check in ((0.0, 0.0), (2.0, 0.0), (0.0, 4.0))
    ]
    assert found[0].possible == pytest.approx(1) and found[1].noise_sd == 2.0
    assert found[1].possible == pytest.approx(found[2].possible) and found[1].possible < 0.8
    assert agreement_of(real, real, None, 0.9).possible is None
    assert agreement_of(real[:4], real[:4], noise(), 0.9).possible is None
