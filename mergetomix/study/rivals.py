"""How else one could choose: each rival spends compute step by step and has a pick after each.

A curve is a list of (compute, row): the compute spent so far in forward passes of one token, and
the mixture picked then. The final fine-tune on the pick is left out everywhere: it is the same for
all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from mergetomix.stages.ways import log_prior
from mergetomix.statistics import regression
from mergetomix.statistics.next_check import next_check
from mergetomix.statistics.noise import seed_share
from mergetomix.statistics.posterior import (
    Posterior,
    Unit,
    likeliest,
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
MOST_CHECKS = 8
WITH_TEXTS = "datasets and targets of texts"


@dataclass(frozen=True)
class Rival:
    """A way to choose.

    `curves` gives one curve, or several if chance has a hand in it, from a world, the number of
    draws and the compute that the comparison is made at. If `merged` is true the merged model
    itself is used instead of a fine-tune. `needs` says what a way needs that a study may lack.
    """

    name: str
    curves: Callable[[World, int, float], Iterator[Curve]]
    merged: bool = False
    needs: str = ""


def best_of(world: World, rows: Sequence[int], spent: float = 0.0) -> Curve:
    """Fine-tunes on mixtures one after the other and picks the best so far by the select part.

    The first is picked unseen.
    """
    curve, best = [(spent, rows[0])], rows[0]
    for row in rows:
        spent += world.check_cost(row)
        best = max(best, row, key=lambda i: float(world.real_select_M[i]))
        curve.append((spent, best))
    return curve


def orders(world: World, num_draws: int) -> Iterator[list[int]]:
    """Yields random orders of the mixtures."""
    for draw in range(num_draws):
        rng = np.random.default_rng([world.seed, draw])
        yield rng.permutation(len(world.mixtures)).tolist()


def random_choice(world: World, num_draws: int, budget: float) -> Iterator[Curve]:
    """Takes mixtures in random order."""
    yield from (best_of(world, order) for order in orders(world, num_draws))


def all_data(world: World, num_draws: int, budget: float) -> Iterator[Curve]:
    """Takes the union of all datasets, in which each counts by its size; nothing is measured."""
    row = world.row(world.datasets)
    if row is not None:
        yield [(0.0, row)]


def best_single(world: World, num_draws: int, budget: float) -> Iterator[Curve]:
    """Takes the dataset whose expert is best."""
    if world.singles:
        yield best_of(world, world.singles)[-1:]


def nearest(kind: str, world: World, num_draws: int, budget: float) -> Iterator[Curve]:
    """Takes the nearest dataset, then also the two nearest, and so on, as far as compute goes."""
    if kind in world.similarities:
        ranked = ranking(world.similarities[kind])
        rows = [world.row(ranked[:k]) for k in range(1, len(ranked) + 1)]
        spent = float(world.embed_tokens) if kind == "hidden state" else 0.0
        yield best_of(world, [row for row in rows if row is not None], spent)


def regressed(kind: str, world: World, num_draws: int, budget: float) -> Iterator[Curve]:
    """Takes random mixtures, then the one that a regression on their real runs predicts best."""
    weights_MN = world.weights_MN
    for draw, order in enumerate(orders(world, num_draws)):
        curve, spent, last = [(0.0, order[0])], 0.0, affordable(world, order, budget)
        followed = order[: affordable(world, order, BEYOND * budget)]
        for num, row in enumerate(followed, start=1):
            spent += world.check_cost(row)
            if num < LEAST_RUNS or (kind == "LightGBM" and num not in (*SOME_RUNS, last)):
                continue
            runs = weights_MN[order[:num]], world.real_select_M[order[:num]], weights_MN
            if kind == "linear":
                predicted_M = regression.linear(*runs)
            else:
                predicted_M = regression.boosted(*runs, draw)
            # of equals one drawn at random, since trees give many
            best = np.flatnonzero(predicted_M >= predicted_M.max() - 1e-12)
            pick = int(np.random.default_rng([draw, len(best)]).choice(best))
            curve.append((spent, pick))
        yield curve


def affordable(world: World, order: Sequence[int], budget: float) -> int:
    """Returns how many of these real runs a budget pays for, LEAST_RUNS at least."""
    spent = np.cumsum([world.check_cost(row) for row in order])
    return max(LEAST_RUNS, int(np.sum(spent <= budget * (1 + 1e-9))))


def searched(world: World, num_draws: int, budget: float) -> Iterator[Curve]:
    """Searches by regression on real runs: the strongest way without proxies that we know.

    A few random runs, then always the mixture that a linear regression on which datasets are
    present predicts to be best of those not yet run. The best run so far is picked.
    """
    present_MN = (world.weights_MN > 0) / world.weights_MN.shape[1]
    for order in orders(world, num_draws):
        runs = order[:RANDOM_RUNS]
        while len(runs) < len(order) and affordable(world, runs, BEYOND * budget) == len(runs):
            predicted_M = regression.linear(present_MN[runs], world.real_select_M[runs], present_MN)
            left = [row for row in order if row not in runs]
            runs.append(left[int(np.argmax(predicted_M[left]))])
        yield best_of(world, runs)


def by_proxy(
    exponent: float | None, world: World, num_draws: int, budget: float
) -> Iterator[Curve]:
    """Takes the best proxy, unchecked; None is the recipe's exponent of the scale."""
    proxy_M = world.proxies[world.exponent if exponent is None else exponent]
    yield [(world.proxies_cost, int(np.argmax(proxy_M)))]


def best_merges(world: World, num_draws: int, budget: float) -> Iterator[Curve]:
    """Takes the best proxies in turn, fine-tuned for real: the best of them by their select scores.

    It is what one would do with checks and without a model of what they say.
    """
    best_first = np.argsort(-world.proxy_M, kind="stable").tolist()
    yield best_of(world, best_first[:MOST_CHECKS], world.proxies_cost)


def every_real(world: World, num_draws: int, budget: float) -> Iterator[Curve]:
    """Takes the best of all real fine-tunes by their select scores, whatever it costs.

    What this loses on the report part is the noise of examples and seeds: the floor of every way
    that goes by real scores alone.
    """
    rows = list(range(len(world.mixtures)))
    yield best_of(world, rows)[-1:]


def with_checks(world: World, num_draws: int, budget: float) -> Iterator[Curve]:
    """Takes the best proxy, then what checks make of it."""
    yield [(step.compute, step.pick) for step in checked(world)]


@dataclass(frozen=True)
class Step:
    """The state of `verify` after some checks: which rows were checked, the pick, predictions."""

    checked: tuple[int, ...]
    pick: int
    posterior: Posterior
    compute: float


def checked(world: World, num_checks: int = MOST_CHECKS) -> Sequence[Step]:
    """Returns what `verify` would do in this world, check by check; the first step has none."""
    return _all_checked(world)[: num_checks + 1]


@lru_cache(maxsize=256)
def _all_checked(world: World) -> list[Step]:
    """Returns the steps up to MOST_CHECKS.

    Scoring in another way costs compute as it does in a run: the checked mixtures in every way, all
    in a new one.
    """
    unit, real_M, ways = Unit.of(world.proxy_M), world.real_select_M, world.ways
    own = next(iter(ways))
    spent, way, scored = world.proxies_cost, own, {own}
    log_priors = {each: log_prior(own, each) for each in ways}
    seed_sd = seed_share([], [], []) * unit.sd
    rows: list[int] = []
    steps: list[Step] = []
    while True:
        known = {row: float(real_M[row]) for row in rows}
        noise = world.noise(rows, seed_sd)
        posterior = posterior_of(world.views(way), known, unit=unit, noise=noise)
        steps.append(Step(tuple(rows), posterior.pick, posterior, spent))
        chosen, _ = next_check(posterior, None if rows else ways[way], confidence=1.0)
        if chosen is None or len(rows) == MOST_CHECKS:
            return steps
        rows.append(chosen)
        num_new = len(set(ways) - scored)
        spent += world.check_cost(chosen) + world.eval_tokens * num_new
        views = {"": {each: world.views(each, rows) for each in ways}}
        noises = {"": world.noise(rows, seed_sd).rows(rows)}
        way = likeliest(views, {"": real_M[rows]}, {"": unit}, noises, log_priors)
        if way not in scored:
            scored.add(way)
            spent += world.eval_tokens * (len(world.mixtures) - len(world.singles) - len(rows))


RIVALS = (
    Rival("random choice", random_choice),
    Rival("all data, each dataset by its size", all_data, needs="the fine-tune on all datasets"),
    Rival("best single dataset", best_single, needs="mixtures of one dataset"),
    Rival(
        "nearest by hidden state of the base",
        partial(nearest, "hidden state"),
        needs="targets with examples of their own",
    ),
    Rival("nearest by TF-IDF", partial(nearest, "TF-IDF"), needs=WITH_TEXTS),
    Rival(
        "nearest by sentence embedding",
        partial(nearest, "sentence embedding"),
        needs=f"study.embedding_model, and {WITH_TEXTS}",
    ),
    Rival("importance of n-grams (DSIR)", partial(nearest, "n-grams"), needs=WITH_TEXTS),
    Rival("regression on real runs, linear", partial(regressed, "linear")),
    Rival("regression on real runs, LightGBM (RegMix)", partial(regressed, "LightGBM")),
    Rival("search by regression on real runs", searched),
    Rival("best of all real runs by their select scores, the floor", every_real),
    Rival("the best merges, fine-tuned, the best kept", best_merges),
    Rival("merged model used as final", partial(by_proxy, None), merged=True),
    Rival("Merge to Mix as in the paper", partial(by_proxy, 1.0)),
    Rival("Merge to Mix, unchecked", partial(by_proxy, None)),
    Rival("Merge to Mix with checks", with_checks),
)
