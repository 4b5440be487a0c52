"""Who chooses best for the same compute, how well proxies rank, and whether intervals are honest.

Array names end in their shape: M mixtures, S seeds, G points of a grid, K steps, T targets, R
resamples, U mixtures that are unknown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from scipy.stats import spearmanr

from mergetomix.records import Estimate
from mergetomix.statistics import agreement
from mergetomix.statistics.posterior import Array
from mergetomix.study.rivals import RIVALS, Curve, Rival, checked
from mergetomix.study.truth import World

NUM_CHECKS = 3
"""Checks of our own method whose compute every rival may spend."""
COVERED_CHECKS = 5
"""Checks up to which the coverage of intervals is told."""
GRID = 40
"""Points of the curves of regret against compute."""
_ROUNDING = 1e-9


# --- who chooses best


@dataclass(frozen=True)
class Contest:
    """One world with every rival's curves, by the rival's name; empty if a rival has no answer.

    `budget` is the compute of our method with NUM_CHECKS checks, `random_regret` the mean mixture's
    regret, which a random pick loses; one if all mixtures are equal.
    """

    world: World
    budget: float
    random_regret: float
    curves: Mapping[str, Sequence[Curve]]

    def scores_of(self, rival: Rival) -> Array:
        """Returns what each mixture, if a rival picks it, scores on the report part."""
        return self.world.proxy_report_M if rival.merged else self.world.real_report_M


@dataclass(frozen=True)
class RivalOutcome:
    """What a rival picked in one world, mean over its draws.

    `regret` is the best real score minus the pick's, on the report part (nats per token for a
    loss); `normalised` is that over the mean mixture's regret: 0 is the best mixture, 1 a random
    pick. `rank` is 1 for the best. `compute` is what was spent, as a share of what our method with
    NUM_CHECKS checks spends.
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
    outcomes: tuple[RivalOutcome, ...]


def contest(world: World, num_draws: int) -> Contest:
    """Lets every rival choose; chance is drawn `num_draws` times."""
    budget = checked(world, NUM_CHECKS)[-1].compute
    regret = float(world.real_report_M.max() - world.real_report_M.mean())
    curves = {rival.name: list(rival.curves(world, num_draws, budget)) for rival in RIVALS}
    return Contest(world, budget, regret if regret > 0 else 1.0, curves)


def standings(contests: Sequence[Contest], confidence: float) -> list[Standing]:
    """Returns every rival that has an answer everywhere, at the compute of the budget."""
    missing, found = absent(contests), []
    for rival in RIVALS:
        if rival.name in missing:
            continue
        outcomes = tuple(_outcome(rival, each) for each in contests)
        targets = [each.target for each in outcomes]
        numbers = {
            key: estimate([getattr(each, key) for each in outcomes], targets, confidence)
            for key in ("regret", "normalised", "rank")
        }
        compute = fmean(each.compute for each in outcomes)
        found.append(Standing(rival.name, **numbers, compute=compute, outcomes=outcomes))
    return found


def absent(contests: Sequence[Contest]) -> dict[str, int]:
    """Returns the rivals that lack an answer in some worlds, and in how many; no table has them."""
    missing = {rival.name: sum(not c.curves[rival.name] for c in contests) for rival in RIVALS}
    return {name: num for name, num in missing.items() if num}


def _outcome(rival: Rival, contest: Contest) -> RivalOutcome:
    world, ends = contest.world, [_at(c, contest.budget) for c in contest.curves[rival.name]]
    scores = contest.scores_of(rival)[[row for _, row in ends]]
    regret = fmean(world.real_report_M.max() - scores)
    return RivalOutcome(
        world.seed,
        world.target,
        regret=regret,
        normalised=regret / contest.random_regret,
        rank=fmean(1 + int(np.sum(world.real_report_M > score)) for score in scores),
        compute=fmean(compute for compute, _ in ends) / contest.budget,
        picks=tuple(str(world.mixtures[row]) for _, row in ends),
    )


def _at(curve: Curve, budget: float) -> tuple[float, int]:
    """Returns the last step that the budget pays for; the first one if it pays for none."""
    affordable = [step for step in curve if step[0] <= budget * (1 + _ROUNDING)]
    return affordable[-1] if affordable else curve[0]


def estimate(
    values: Sequence[float], targets: Sequence[str], confidence: float, num_resamples: int = 2000
) -> Estimate:
    """Returns a mean and its percentile bootstrap interval over targets with all their seeds.

    Seeds of one target share data and examples, and are no independent draws. Of one target alone
    there is no interval: its ends are nan.
    """
    names = list(dict.fromkeys(targets))
    if len(names) == 1:
        return Estimate(float(np.mean(values)), math.nan, math.nan)
    places = [names.index(target) for target in targets]
    sums_T, counts_T = np.bincount(places, weights=values), np.bincount(places)
    drawn_RT = np.random.default_rng(0).integers(len(names), size=(num_resamples, len(names)))
    means_R = sums_T[drawn_RT].sum(axis=1) / counts_T[drawn_RT].sum(axis=1)
    low, high = np.quantile(means_R, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(np.mean(values)), float(low), float(high))


def mean_curves(contests: Sequence[Contest]) -> dict[str, tuple[Array, Array]]:
    """Returns every rival's compute, as a share of the budget, and mean normalised regret.

    Both have the shape (GRID,); regret is nan before the first pick.
    """
    grid_G = np.linspace(0, 1.5, GRID)
    found = {}
    for rival in RIVALS:
        lines = [
            _line(rival, each, curve, grid_G)
            for each in contests
            for curve in each.curves[rival.name]
        ]
        if lines:
            found[rival.name] = (grid_G, np.mean(np.array(lines), axis=0))
    return found


def _line(rival: Rival, contest: Contest, curve: Curve, grid_G: Array) -> Array:
    compute_K, row_K = map(np.array, zip(*curve, strict=True))
    regret_K = contest.world.real_report_M.max() - contest.scores_of(rival)[row_K]
    places_G = np.searchsorted(compute_K / contest.budget, grid_G + _ROUNDING, side="right") - 1
    line_G = regret_K[np.maximum(places_G, 0)] / contest.random_regret
    return np.where(places_G >= 0, line_G, np.nan)


# --- how well proxies rank


@dataclass(frozen=True)
class TargetRanks:
    """How well the proxies of one target rank its real fine-tunes, by exponent of the scale.

    All are means over seeds. Mixtures of one dataset count too: they are among what one chooses
    from. `mixed` leaves them out, and so does `weighted`, of proxies with other weights. `possible`
    is what a perfect proxy would reach given `noise_sd`,
    the standard deviation between seeds; None with one seed. `pooled` is the Spearman correlation
    of the experts pooled, `predicted` that of the calibrated predictions, by number of checks, over
    the mixtures that were not checked.
    """

    target: str
    pearson: Mapping[float, float]
    spearman: Mapping[float, float]
    kendall: Mapping[float, float]
    mixed: Mapping[float, float]
    weighted: Mapping[str, float]
    top_quarter: Mapping[float, float]
    pooled: float
    predicted: Mapping[int, float]
    noise_sd: float | None
    possible: float | None


def target_ranks(worlds: Sequence[World]) -> list[TargetRanks]:
    """Returns how well proxies rank, for each target."""
    names = dict.fromkeys(world.target for world in worlds)
    return [_ranks(name, [world for world in worlds if world.target == name]) for name in names]


def _ranks(target: str, worlds: Sequence[World]) -> TargetRanks:
    found: dict[str, dict[float, list[float]]] = {}
    for world in worlds:
        real_M, several = world.real_select_M, [len(mixture) > 1 for mixture in world.mixtures]
        for exponent, proxy_M in world.proxies.items():
            every = agreement.fidelity(proxy_M, real_M, num_resamples=1) or {}
            some = agreement.fidelity(proxy_M[several], real_M[several], num_resamples=1) or {}
            mixed = {"mixed": some["spearman"]} if some else {}
            for name, each in (every | mixed).items():
                value = float("nan") if each is None else each.value
                found.setdefault(name, {}).setdefault(exponent, []).append(value)
    means = {
        name: {exponent: fmean(values) for exponent, values in found.get(name, {}).items()}
        for name in ("pearson", "spearman", "kendall", "mixed", "top_quarter")
    }
    noise, possible = agreement.noise_sd(reals_by_seed(worlds)), None
    if noise is not None:
        possible = fmean(agreement.ceiling(world.real_select_M, noise) for world in worlds)
    predicted = {num: fmean(_predicted(world, num) for world in worlds) for num in (0, NUM_CHECKS)}
    pooled = fmean(_spearman(world.pooled_M, world.real_select_M) for world in worlds)
    return TargetRanks(
        target,
        **means,
        weighted=_weighted(worlds),
        pooled=pooled,
        predicted=predicted,
        noise_sd=noise,
        possible=possible,
    )


def _weighted(worlds: Sequence[World]) -> dict[str, float]:
    """Returns how proxies with other weights rank the mixtures of several datasets."""
    found: dict[str, list[float]] = {}
    for world in worlds:
        several = [len(mixture) > 1 for mixture in world.mixtures]
        for name, proxy_M in world.weighted.items():
            rank = _spearman(proxy_M[several], world.real_select_M[several])
            found.setdefault(name, []).append(rank)
    return {name: fmean(values) for name, values in found.items()}


def reals_by_seed(worlds: Sequence[World]) -> Array:
    """Returns real select scores of one target: (seeds, mixtures); nan if a fine-tune failed."""
    mixtures = list(dict.fromkeys(mixture for world in worlds for mixture in world.mixtures))
    real_SM = np.full((len(worlds), len(mixtures)), np.nan)
    for row, world in enumerate(worlds):
        real_SM[row, [mixtures.index(mixture) for mixture in world.mixtures]] = world.real_select_M
    return real_SM


def _predicted(world: World, num_checks: int) -> float:
    """Returns how predictions after some checks rank the reals of the mixtures not checked."""
    last = checked(world, num_checks)[-1]
    rows = [row for row in range(len(world.mixtures)) if row not in last.checked]
    return _spearman(last.posterior.mean_M[rows], world.real_select_M[rows])


def _spearman(one_M: Array, other_M: Array) -> float:
    return float(spearmanr(one_M, other_M).statistic)


# --- whether intervals are honest


@dataclass(frozen=True)
class Coverage:
    """How often intervals held the fine-tune's score on the report part, after some checks.

    Of all mixtures, the checked and the single ones too; where a world was recorded as means alone,
    whose examples' noise is not known, of the score on the select part, and of the mixtures not
    checked. `width` is the mean width of an interval over the standard deviation of the scores.
    """

    num_checks: int
    share: float
    num_intervals: int
    width: float


def coverage(worlds: Sequence[World], confidence: float) -> list[Coverage]:
    """Returns the coverage after each number of checks, over all worlds."""
    found = []
    for num in range(COVERED_CHECKS + 1):
        hits, widths = [], []
        for world in worlds:
            steps = checked(world, num)
            if len(steps) <= num:
                continue
            low_M, high_M = steps[num].posterior.interval(confidence)
            rows, truth_M = list(range(len(low_M))), world.report_as_select_M
            if world.examples is None:
                rows = [i for i in rows if i not in steps[num].posterior.known]
                truth_M = world.real_select_M
            hits += ((low_M <= truth_M) & (truth_M <= high_M))[rows].tolist()
            spread = max(1e-12, float(truth_M.std()))
            widths += ((high_M - low_M)[rows] / spread).tolist()
        if hits:
            found.append(Coverage(num, fmean(hits), len(hits), fmean(widths)))
    return found
