"""How else one could choose: each rival spends compute step by step and has, after every step, a mixture that it would pick.

A curve is a list of (compute, row): the compute spent so far in forward passes of one token, and the mixture picked then. The
final fine-tune on the pick is left out everywhere: it is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mergetomix.statistics import regression
from mergetomix.statistics.posterior import (
    Array,
    Posterior,
    Unit,
    likeliest_exponent,
    next_check,
    posterior_of,
)
from mergetomix.study.similarity import ranking
from mergetomix.study.truth import World

Curve = list[tuple[float, int]]
LEAST_RUNS = 2
"""Real runs before a regression says anything."""
SOME_RUNS = (2, 3, 4, 6, 9, 12, 15, 18, 21, 24, 27, 30)
"""Real runs at which trees are fitted, beside the last that the budget pays for."""
BEYOND = 1.5
"""How far past the budget a curve is followed."""
RANDOM_RUNS = 4
"""Real runs of random mixtures before a search by regression begins."""


@dataclass(frozen=True)
class Rival:
    """A way to choose. `curves` gives one curve, or several where chance has a hand in it, from a world, the number of draws
    and the compute that the comparison is made at.

    Where `merged` is true the merged model itself is used instead of a fine-tune.
    """

    name: str
    curves: Callable[[World, int, float], Iterator[Curve]]
    merged: bool = False


def best_of(world: World, rows: Sequence[int], spent: float = 0.0) -> Curve:
    """Fine-tunes on mixtures one after the other and picks the best so far by the select part; the first is picked unseen."""
    curve, best = [(spent, rows[0])], rows[0]
    for row in rows:
        spent += world.check_cost(row)
        best = max(best, row, key=lambda i: float(world.real_select_M[i]))
        curve.append((spent, best))
    return curve


def random_choice(world: World, num_draws: int, budget: float) -> Iterator[Curve]:
    """Mixtures in random order."""
    for draw in range(num_draws):
        order = np.random.default_rng([world.seed, draw]).permutation(len(world.mixtures))
        yield best_of(world, order.tolist())


def all_data(world: World, num_draws: int, budget: float) -> Iterator[Curve]:
    """The union of all datasets, in which each counts by its size; nothing is measured."""
    row = world.row(world.datasets)
    if row is not None:
        yield [(0.0, row)]


def best_single(world: World, num_draws: int, budget: float) -> Iterator[Curve]:
    """The dataset whose expert is best."""
    if world.singles:
        yield best_of(world, world.singles)[-1:]


def nearest(kind: str) -> Callable[[World, int, float], Iterator[Curve]]:
    """The nearest dataset, then also the two nearest, and so on, as far as the compute goes."""

    def curves(world: World, num_draws: int, budget: float) -> Iterator[Curve]:
        if kind not in world.similarities:
            return
        ranked = ranking(world.similarities[kind])
        rows = [world.row(ranked[:k]) for k in range(1, len(ranked) + 1)]
        spent = float(world.embed_tokens) if kind == "hidden state" else 0.0
        yield best_of(world, [row for row in rows if row is not None], spent)

    return curves


def regressed(kind: str) -> Callable[[World, int, float], Iterator[Curve]]:
    """Real runs of random mixtures, and the mixture that a regression on them predicts to be best."""

    def curves(world: World, num_draws: int, budget: float) -> Iterator[Curve]:
        for draw in range(num_draws):
            order = (
                np.random.default_rng([world.seed, draw]).permutation(len(world.mixtures)).tolist()
            )
            yield _regressed(
                world, order[: affordable(world, order, BEYOND * budget)], kind, draw, budget
            )

    return curves


def affordable(world: World, order: Sequence[int], budget: float) -> int:
    """How many of these real runs a budget pays for, LEAST_RUNS at least."""
    spent = np.cumsum([world.check_cost(row) for row in order])
    return max(LEAST_RUNS, int(np.sum(spent <= budget * (1 + 1e-9))))


def _regressed(world: World, order: list[int], kind: str, draw: int, budget: float) -> Curve:
    weights_MN, curve, spent = world.weights_MN, [(0.0, order[0])], 0.0
    last = affordable(world, order, budget)
    for num, row in enumerate(order, start=1):
        spent += world.check_cost(row)
        if num < LEAST_RUNS or (kind == "LightGBM" and num not in (*SOME_RUNS, last)):
            continue
        runs = order[:num]
        if kind == "linear":
            predicted_M = regression.linear(weights_MN[runs], world.real_select_M[runs], weights_MN)
        else:
            predicted_M = regression.boosted(
                weights_MN[runs], world.real_select_M[runs], weights_MN, draw
            )
        curve.append((spent, _first_best(predicted_M, draw)))
    return curve


def searched(world: World, num_draws: int, budget: float) -> Iterator[Curve]:
    """The strongest way without proxies that we know: a few random runs, then always the mixture that a linear regression on
    which datasets are present predicts to be best of those not yet run. The best run so far is picked."""
    present_MN = (world.weights_MN > 0) / world.weights_MN.shape[1]
    for draw in range(num_draws):
        order = np.random.default_rng([world.seed, draw]).permutation(len(world.mixtures)).tolist()
        runs = order[:RANDOM_RUNS]
        while len(runs) < len(order) and affordable(world, runs, BEYOND * budget) == len(runs):
            predicted_M = regression.linear(present_MN[runs], world.real_select_M[runs], present_MN)
            runs.append(
                max(
                    (row for row in order if row not in runs),
                    key=lambda row: float(predicted_M[row]),
                )
            )
        yield best_of(world, runs)


def _first_best(predicted_M: Array, draw: int) -> int:
    """The row with the highest prediction; of equals one drawn at random, since trees give many."""
    best = np.flatnonzero(predicted_M >= predicted_M.max() - 1e-12)
    return int(np.random.default_rng([draw, len(best)]).choice(best))


def by_proxy(exponent: float | None) -> Callable[[World, int, float], Iterator[Curve]]:
    """The best proxy, unchecked; None is the recipe's exponent of the scale."""

    def curves(world: World, num_draws: int, budget: float) -> Iterator[Curve]:
        proxy_M = world.proxy_M if exponent is None else world.proxies[exponent]
        yield [(world.proxies_cost, int(np.argmax(proxy_M)))]

    return curves


def with_checks(world: World, num_draws: int, budget: float) -> Iterator[Curve]:
    """The best proxy, then what checks make of it."""
    yield [(step.compute, step.pick) for step in checked(world)]


@dataclass(frozen=True)
class Step:
    """The state of `verify` after some checks: which rows were checked, the pick, and all predictions."""

    checked: tuple[int, ...]
    pick: int
    posterior: Posterior
    exponent: float
    compute: float


def checked(
    world: World,
    num_checks: int = 8,
    confidence: float = 1.0,
    exponents: Sequence[float] | None = None,
) -> list[Step]:
    """What `verify` would do in this world at some exponents (those of the study), check by check; the first step has none.

    Scoring at another exponent costs compute as it does in a run: the checked mixtures at every exponent, all at a new one.
    """
    candidates = sorted(exponents if exponents is not None else world.proxies)
    unit = Unit.of(world.proxy_M)
    spent, exponent, scored = world.proxies_cost, world.exponent, {world.exponent}
    rows: list[int] = []
    steps: list[Step] = []
    while True:
        known = {row: float(world.real_select_M[row]) for row in rows}
        posterior = posterior_of(world.views(exponent), known, unit=unit)
        steps.append(
            Step(tuple(rows), int(np.argmax(posterior.mean_M)), posterior, exponent, spent)
        )
        chosen, _ = next_check(posterior, None if rows else world.proxies[exponent], confidence)
        if chosen is None or len(rows) == num_checks:
            return steps
        rows.append(chosen)
        spent += world.check_cost(chosen) + world.eval_tokens * len(
            [each for each in candidates if each not in scored]
        )
        views = {each: world.views(each, rows) for each in candidates}
        real_C = world.real_select_M[rows]
        exponent = likeliest_exponent(views, real_C, unit, world.exponent)
        if exponent not in scored:
            scored.add(exponent)
            spent += world.eval_tokens * (len(world.mixtures) - len(world.singles) - len(rows))


RIVALS = (
    Rival("random choice", random_choice),
    Rival("all data, each dataset by its size", all_data),
    Rival("best single dataset", best_single),
    Rival("nearest by hidden state of the base", nearest("hidden state")),
    Rival("nearest by TF-IDF", nearest("TF-IDF")),
    Rival("nearest by sentence embedding", nearest("sentence embedding")),
    Rival("importance of n-grams (DSIR)", nearest("n-grams")),
    Rival("regression on real runs, linear", regressed("linear")),
    Rival("regression on real runs, LightGBM (RegMix)", regressed("LightGBM")),
    Rival("search by regression on real runs", searched),
    Rival("merged model used as final", by_proxy(None), merged=True),
    Rival("Merge to Mix as in the paper", by_proxy(1.0)),
    Rival("Merge to Mix, unchecked", by_proxy(None)),
    Rival("Merge to Mix with checks", with_checks),
)
