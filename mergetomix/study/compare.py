"""Who chooses best for the same compute, how well proxies rank, and whether the intervals hold what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from mergetomix.records import Estimate
from mergetomix.statistics import agreement, posterior
from mergetomix.statistics.posterior import Array
from mergetomix.study.rivals import RIVALS, Curve, Rival, checked
from mergetomix.study.truth import World

NUM_CHECKS = 3
"""Checks of our own method whose compute every rival may spend."""
GRID = 40
"""Points of the curves of regret against compute."""


@dataclass(frozen=True)
class Outcome:
    """What a rival picked in one world, mean over its draws.

    `regret` is the best real score minus the pick's, on the report part (nats per token for a loss); `normalised` is that over
    the mean mixture's regret: 0 is the best mixture, 1 a random pick. `rank` is 1 for the best. `compute` is what was spent, as
    a share of what our method with NUM_CHECKS checks spends.
    """

    seed: int
    target: str
    regret: float
    normalised: float
    rank: float
    compute: float
    picks: tuple[str, ...]


@dataclass(frozen=True)
class Standing:
    """A rival over all worlds: means with bootstrap intervals over targets."""

    name: str
    regret: Estimate
    normalised: Estimate
    rank: Estimate
    compute: float
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True)
class Contest:
    """One world with every rival's curves, by the rival's name; empty where a rival has no answer."""

    world: World
    budget: float
    curves: Mapping[str, Sequence[Curve]]


def race(world: World, num_draws: int) -> Contest:
    """Lets every rival choose; chance is drawn `num_draws` times."""
    budget = budget_of(world)
    return Contest(
        world,
        budget,
        {rival.name: list(rival.curves(world, num_draws, budget)) for rival in RIVALS},
    )


def standings(races: Sequence[Contest], confidence: float) -> list[Standing]:
    """Every rival that has an answer everywhere, at the compute of our method with NUM_CHECKS checks."""
    found = []
    for rival in RIVALS:
        outcomes = [_outcome(rival, each) for each in races if each.curves[rival.name]]
        if len(outcomes) == len(races):
            found.append(_standing(rival.name, outcomes, confidence))
    return found


def absent(races: Sequence[Contest]) -> dict[str, int]:
    """Rivals that lack an answer in some worlds, and in how many: they are in no table."""
    missing = {rival.name: sum(not each.curves[rival.name] for each in races) for rival in RIVALS}
    return {name: num for name, num in missing.items() if num}


def budget_of(world: World) -> float:
    """The compute of our method with NUM_CHECKS checks."""
    return checked(world, NUM_CHECKS)[-1].compute


def _outcome(rival: Rival, race: Contest) -> Outcome:
    world, budget = race.world, race.budget
    ends = [_at(curve, budget) for curve in race.curves[rival.name]]
    scores = [
        float((world.proxy_report_M if rival.merged else world.real_report_M)[row])
        for _, row in ends
    ]
    regrets = [float(world.real_report_M.max()) - score for score in scores]
    ranks = [1 + int(np.sum(world.real_report_M > score)) for score in scores]
    picks = tuple(str(world.mixtures[row]) for _, row in ends)
    spent = fmean(compute for compute, _ in ends) / budget
    regret = fmean(regrets)
    return Outcome(
        world.seed, world.target, regret, regret / mean_regret(world), fmean(ranks), spent, picks
    )


def _at(curve: Curve, budget: float) -> tuple[float, int]:
    """The last step that the budget pays for; the first one where it pays for none."""
    affordable = [step for step in curve if step[0] <= budget * (1 + 1e-9)]
    return affordable[-1] if affordable else curve[0]


def mean_regret(world: World) -> float:
    """The mean mixture's regret: what a random pick loses. One where all mixtures are equal."""
    regret = float(world.real_report_M.max() - world.real_report_M.mean())
    return regret if regret > 0 else 1.0


def _standing(name: str, outcomes: Sequence[Outcome], confidence: float) -> Standing:
    targets = [each.target for each in outcomes]
    columns = {
        key: [getattr(each, key) for each in outcomes] for key in ("regret", "normalised", "rank")
    }
    numbers = {key: estimate(values, targets, confidence) for key, values in columns.items()}
    return Standing(
        name, **numbers, compute=fmean(each.compute for each in outcomes), outcomes=tuple(outcomes)
    )


def estimate(
    values: Sequence[float], targets: Sequence[str], confidence: float, num_resamples: int = 2000
) -> Estimate:
    """A mean and its percentile bootstrap interval over draws of targets with all their seeds: seeds of one target share data
    and examples, and are no independent draws."""
    groups = [
        np.array([v for v, t in zip(values, targets, strict=True) if t == name])
        for name in dict.fromkeys(targets)
    ]
    sums_T, counts_T = (
        np.array([group.sum() for group in groups]),
        np.array([len(group) for group in groups]),
    )
    drawn_RT = np.random.default_rng(0).integers(len(groups), size=(num_resamples, len(groups)))
    means_R = sums_T[drawn_RT].sum(axis=1) / counts_T[drawn_RT].sum(axis=1)
    low, high = np.quantile(means_R, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(np.mean(values)), float(low), float(high))


def mean_curves(races: Sequence[Contest]) -> dict[str, tuple[Array, Array]]:
    """Mean normalised regret against compute for every rival: compute as a share of the budget, shape (GRID,), and regret."""
    grid_G = np.linspace(0, 1.5, GRID)
    found = {}
    for rival in RIVALS:
        lines = [line for race in races for line in _lines(rival, race, grid_G)]
        if lines:
            mean_G = np.mean(np.array(lines), axis=0)
            found[rival.name] = (grid_G, np.where(np.isfinite(mean_G), mean_G, np.nan))
    return found


def _lines(rival: Rival, race: Contest, grid_G: Array) -> list[Array]:
    """The normalised regret of each of a rival's curves on a grid of compute; nan before its first pick."""
    world, budget, unit = race.world, race.budget, mean_regret(race.world)
    scores_M = world.proxy_report_M if rival.merged else world.real_report_M
    lines = []
    for curve in race.curves[rival.name]:
        compute_K = np.array([compute / budget for compute, _ in curve])
        regret_K = np.array(
            [(world.real_report_M.max() - scores_M[row]) / unit for _, row in curve]
        )
        places_G = np.searchsorted(compute_K, grid_G + 1e-9, side="right") - 1
        lines.append(np.where(places_G >= 0, regret_K[np.maximum(places_G, 0)], np.nan))
    return lines


# --- how well proxies rank


@dataclass(frozen=True)
class Faith:
    """How well the proxies of one target rank its real fine-tunes, mean over seeds, by exponent of the scale.

    Mixtures of one dataset count too: they are among what one chooses from. `mixed` leaves them out. `possible` is what a
    perfect proxy would reach given `noise_sd`, the standard deviation between seeds; None with one seed. `pooled` is the
    Spearman correlation of the experts pooled, `predicted` that of the calibrated predictions, by number of checks, over the
    mixtures that were not checked.
    """

    target: str
    pearson: Mapping[float, float]
    spearman: Mapping[float, float]
    kendall: Mapping[float, float]
    mixed: Mapping[float, float]
    top_quarter: Mapping[float, float]
    pooled: float
    predicted: Mapping[int, float]
    noise_sd: float | None
    possible: float | None


def faith(worlds: Sequence[World]) -> list[Faith]:
    """One line for each target."""
    names = list(dict.fromkeys(world.target for world in worlds))
    return [_faith(name, [world for world in worlds if world.target == name]) for name in names]


def _faith(target: str, worlds: Sequence[World]) -> Faith:
    measured: dict[float, list[agreement.Fidelity]] = {}
    mixed: dict[float, list[float]] = {}
    for world in worlds:
        several = np.array([len(mixture) > 1 for mixture in world.mixtures])
        for exponent, proxy_M in world.proxies.items():
            every = agreement.fidelity(proxy_M, world.real_select_M, num_resamples=1)
            some = agreement.fidelity(
                proxy_M[several], world.real_select_M[several], num_resamples=1
            )
            if every is not None:
                measured.setdefault(exponent, []).append(every)
            if some is not None:
                mixed.setdefault(exponent, []).append(some.spearman.value)
    means = {
        name: {
            exponent: fmean(_value(each, name) for each in list_)
            for exponent, list_ in measured.items()
        }
        for name in ("pearson", "spearman", "kendall", "top_quarter")
    }
    noise = agreement.noise_sd(reals_by_seed(worlds))
    possible = None
    if noise is not None:
        possible = fmean(agreement.ceiling(world.real_select_M, noise).spearman for world in worlds)
    return Faith(
        target,
        **means,
        mixed={e: fmean(v) for e, v in mixed.items()},
        pooled=fmean(_spearman(world.pooled_M, world.real_select_M) for world in worlds),
        predicted={
            num: fmean(_predicted(world, num) for world in worlds) for num in (0, NUM_CHECKS)
        },
        noise_sd=noise,
        possible=possible,
    )


def reals_by_seed(worlds: Sequence[World]) -> Array:
    """Real select scores of one target, shape (seeds, mixtures); nan where a fine-tune failed."""
    mixtures = list(dict.fromkeys(mixture for world in worlds for mixture in world.mixtures))
    real_SM = np.full((len(worlds), len(mixtures)), np.nan)
    for row, world in enumerate(worlds):
        real_SM[row, [mixtures.index(mixture) for mixture in world.mixtures]] = world.real_select_M
    return real_SM


def _predicted(world: World, num_checks: int) -> float:
    """Spearman correlation between the predictions after some checks and the reals, over the mixtures not checked."""
    last = checked(world, num_checks)[-1]
    rows = [row for row in range(len(world.mixtures)) if row not in last.checked]
    return _spearman(last.posterior.mean_M[rows], world.real_select_M[rows])


def _spearman(one_M: Array, other_M: Array) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(one_M, other_M).statistic)


def _value(measured: agreement.Fidelity, name: str) -> float:
    statistic = measured.statistics[name]
    return float("nan") if statistic is None else statistic.value


# --- whether intervals are honest


@dataclass(frozen=True)
class Coverage:
    """How often intervals of mixtures that were not checked held the real score, after `num_checks` checks.

    `width` is the mean width of an interval over the standard deviation of the real scores.
    """

    num_checks: int
    share: float
    num_intervals: int
    width: float


def coverage(worlds: Sequence[World], confidence: float, most: int = 5) -> list[Coverage]:
    """One line for each number of checks, over all worlds."""
    found = []
    for num in range(most + 1):
        hits, widths = [], []
        for world in worlds:
            steps = checked(world, num)
            if len(steps) == num + 1:
                hit_U, width_U = _held(world, steps[-1].posterior, confidence)
                hits += hit_U.tolist()
                widths += (width_U / max(1e-12, float(world.real_select_M.std()))).tolist()
        if hits:
            found.append(Coverage(num, fmean(hits), len(hits), fmean(widths)))
    return found


def _held(world: World, posterior: posterior.Posterior, confidence: float) -> tuple[Array, Array]:
    """Which intervals of unknown mixtures hold the truth, and their widths."""
    low_M, high_M = posterior.interval(confidence)
    unknown = [i for i in range(len(low_M)) if i not in posterior.known]
    truth_U = world.real_select_M[unknown]
    held_U = (low_M[unknown] <= truth_U) & (truth_U <= high_M[unknown])
    return held_U.astype(float), high_M[unknown] - low_M[unknown]
