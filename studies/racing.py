"""How many example evaluations a race saves, and how often it picks what all of them pick.

python studies/racing.py table RECIPE WORK/NAME.npz [--set key=value ...]
    every mixture's score of every example
python studies/racing.py race WORK/NAME.npz ... [--repetitions 200] [--optuna 200]
    the bootstrap over tables, printed

A repetition draws each target's select examples anew, with replacement, and in that order all
mixtures race: in the order of an exhaustive search, or at random. Ways to stop a mixture, all at
the looks of `mergetomix.race` but the last:

race         the test of `mergetomix.race`, as a search with `search.racing` has it
blind        the same with nothing foreseen: a t test of the paired differences
wilcoxon     the signed-rank test of the examples' weighted contributions
bernstein    an empirical Bernstein bound (Maurer and Pontil 2009) whose range is twice the largest
             difference seen
optuna       Optuna's WilcoxonPruner as its documentation says: after every example, in an order of
             its own for each mixture; a mixture that is stopped counts with its mean so far. Its
             p_threshold stands in the column of alpha. Its test is computed here, faster, and one
             race in each table is compared with the pruner itself

The first four begin with the experts, on all examples, and count them; Optuna's begins with the
first mixture. A ratio is evaluations without a race over those made, `same` the share of
repetitions with the same pick, `lost` the mean objective lost by the pick, in standard deviations
of the objective over mixtures.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from mergetomix.progress import Silent
from mergetomix.recipe.recipe import load
from mergetomix.records import Mixture, Scores
from mergetomix.session.session import open_session
from mergetomix.stages import pipeline
from mergetomix.statistics import early_stopping as race
from mergetomix.statistics import opinion_pool
from mergetomix.statistics.early_stopping import Array, Paired

ALPHAS = (0.01, 0.05, 0.1)
EXACT, EXACT_WITH_TIES = 50, 13
"""Sizes up to which SciPy's signed-rank test is exact."""
Test = Callable[[Sequence[Paired], float], bool]
"""Whether the changes seen show a mixture to be beaten, at the level of one look."""


# --- the table


def record(recipe: str, out: Path, overrides: Sequence[str]) -> None:
    """Scores every mixture of a recipe, in the order of an exhaustive search, once."""
    with open_session(load(recipe, [*overrides, "search.racing=null"]), Silent()) as session:
        pipeline.train_experts(session)
        base, mixtures = session.evaluations.base("select"), list(session.spaces.searched)
        trials = [session.evaluations.proxy(mixture, "select") for mixture in mixtures]
        names = session.spaces.searched.allowed
        found: dict[str, Any] = {"datasets": np.array(names)}
        found["points"] = np.array(
            [[mixture.as_dict().get(name, 0.0) for name in names] for mixture in mixtures]
        )
        for name, spec in session.recipe.targets.items():
            found[f"{name}/values"] = np.array([trial[name].values for trial in trials])
            found[f"{name}/base"] = np.array(base[name].values)
            found[f"{name}/weights"] = np.array(base[name].weights)
            found[f"{name}/about"] = np.array([spec.weight, base[name].kind == "loss"])
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, **found)


@dataclass(frozen=True)
class Target:
    """Values of M mixtures, and pooled ones, on E examples, in units of the gain; `base_E` not."""

    values_ME: Array
    pooled_ME: Array
    base_E: Array
    weights_E: Array
    share: float
    is_loss: bool

    def drawn(self, rng: np.random.Generator) -> Target:
        """The same with examples, those of the base too, drawn with replacement."""
        rows_E = rng.integers(len(self.weights_E), size=len(self.weights_E))
        base_E, weights_E = self.base_E[rows_E], self.weights_E[rows_E]
        unit = -1 / np.average(base_E, weights=weights_E) if self.is_loss else 1.0
        values_ME, pooled_ME = unit * self.values_ME[:, rows_E], unit * self.pooled_ME[:, rows_E]
        return Target(values_ME, pooled_ME, base_E, weights_E, self.share, self.is_loss)


@dataclass(frozen=True)
class World:
    """A recorded table: the mixtures' weights, and every target."""

    points_MN: Array
    targets: tuple[Target, ...]

    @property
    def singles(self) -> list[int]:
        """Rows of the experts."""
        return [row for row, point_N in enumerate(self.points_MN) if (point_N > 0).sum() == 1]

    @property
    def num_examples(self) -> int:
        """Examples of all targets."""
        return sum(len(target.weights_E) for target in self.targets)

    def objectives(self, pooled: bool = False) -> Array:
        """Every mixture's objective, but for a constant."""
        values = [target.pooled_ME if pooled else target.values_ME for target in self.targets]
        parts = [
            t.share * np.average(v, axis=1, weights=t.weights_E)
            for t, v in zip(self.targets, values, strict=True)
        ]
        return np.asarray(np.sum(parts, axis=0))

    def drawn(self, rng: np.random.Generator) -> World:
        """The same over examples drawn with replacement."""
        return World(self.points_MN, tuple(target.drawn(rng) for target in self.targets))


def read(path: Path) -> World:
    """A table."""
    with np.load(path) as table:
        arrays, points_MN = dict(table), table["points"]
    names = [key.removesuffix("/about") for key in arrays if key.endswith("/about")]
    total = sum(arrays[f"{name}/about"][0] for name in names)
    found = []
    for name in names:
        values_ME, base_E, weights_E = (
            arrays[f"{name}/{key}"] for key in ("values", "base", "weights")
        )
        weight, is_loss = arrays[f"{name}/about"]
        pooled_ME = pooled(points_MN, values_ME, weights_E, bool(is_loss))
        found.append(
            Target(values_ME, pooled_ME, base_E, weights_E, float(weight / total), bool(is_loss))
        )
    return World(points_MN, tuple(found))


def pooled(points_MN: Array, values_ME: Array, weights_E: Array, is_loss: bool) -> Array:
    """What the experts' pooled probabilities say of every mixture's values."""
    names = [f"{i:09}" for i in range(points_MN.shape[1])]
    rows = {name: int(np.flatnonzero(points_MN[:, i] == 1)[0]) for i, name in enumerate(names)}
    weights = tuple(weights_E.tolist())
    experts = {
        name: Scores("loss" if is_loss else "score", tuple(values_ME[row]), weights)
        for name, row in rows.items()
    }
    found = []
    for point_N in points_MN:
        parts = {
            name: float(weight) for name, weight in zip(names, point_N, strict=True) if weight > 0
        }
        found.append(
            opinion_pool.pooled(Mixture(tuple(parts), tuple(parts.values())), experts).values
        )
    return np.array(found)


# --- tests


def by_race(targets: Sequence[Paired], level: float) -> bool:
    """As `mergetomix.race`."""
    return race.is_beaten(race.difference(targets), level)


def blind(targets: Sequence[Paired], level: float) -> bool:
    """Student's t test of the paired differences."""
    return by_race(
        [Paired(t.change_S, np.zeros_like(t.foreseen_E), t.weights_E, t.share) for t in targets],
        level,
    )


def contributions(targets: Sequence[Paired]) -> Array:
    """What every example seen adds to the mean difference of all."""
    seen = [(t.share, t.change_S, t.weights_E[: len(t.change_S)]) for t in targets]
    num = sum(len(change_S) for _, change_S, _ in seen)
    return np.concatenate(
        [share * num * change_S * w_S / w_S.sum() for share, change_S, w_S in seen]
    )


def wilcoxon(targets: Sequence[Paired], level: float) -> bool:
    """The signed-rank test, and as Optuna's only where the mean is below zero too."""
    found = contributions(targets)
    return bool(
        found.mean() < 0
        and stats.wilcoxon(found, alternative="less", zero_method="zsplit").pvalue < level
    )


def bernstein(targets: Sequence[Paired], level: float) -> bool:
    """Whether the empirical Bernstein bound of the mean, at this level, is below zero."""
    found = contributions(targets)
    num, log = len(found), math.log(2 / level)
    reach = 2 * float(np.abs(found).max())
    return (
        float(
            found.mean()
            + math.sqrt(2 * found.var(ddof=1) * log / num)
            + 7 * reach * log / (3 * (num - 1))
        )
        < 0
    )


TESTS: dict[str, Test] = {
    "race": by_race,
    "blind": blind,
    "wilcoxon": wilcoxon,
    "bernstein": bernstein,
}


# --- races


@dataclass(frozen=True)
class Outcome:
    """What a race picked, and how many examples it evaluated."""

    pick: int
    cost: int


def run(test: Test, world: World, order: Sequence[int], alpha: float) -> Outcome:
    """One race over all mixtures, as a search has it that asks for all of them."""
    objective_M = world.objectives()
    ends = [race.stages(len(target.weights_E)) for target in world.targets]
    level = alpha / race.num_looks([each[-1] for each in ends])
    complete = list(dict.fromkeys([*world.singles, int(world.objectives(pooled=True).argmax())]))
    incumbent = max(complete, key=lambda row: objective_M[row])
    cost = len(complete) * world.num_examples
    for row in order:
        if row in complete:
            continue
        seen = look(partial(test, level=level), world, (row, incumbent), complete, ends)
        cost += seen
        if seen == world.num_examples:
            complete.append(row)
            incumbent = row if objective_M[row] > objective_M[incumbent] else incumbent
    return Outcome(incumbent, cost)


def look(
    is_beaten: Callable[[Sequence[Paired]], bool],
    world: World,
    pair: tuple[int, int],
    complete: Sequence[int],
    ends: Sequence[Sequence[int]],
) -> int:
    """How many examples a mixture sees against the incumbent."""
    row, incumbent = pair
    rows = [complete[i] for i in race.nearest(world.points_MN[complete], world.points_MN[row])]
    factors_K = race.combination(world.points_MN[rows], world.points_MN[row])
    for sizes in list(dict.fromkeys(zip(*ends, strict=True)))[:-1]:
        found = []
        for target, size in zip(world.targets, sizes, strict=True):
            now_E = target.values_ME[incumbent]
            change_S = (target.values_ME[row] - now_E)[:size]
            found.append(
                Paired(
                    change_S,
                    factors_K @ target.values_ME[rows] - now_E,
                    target.weights_E,
                    target.share,
                )
            )
        if is_beaten(found):
            return sum(sizes)
    return world.num_examples


def run_as_optuna(
    world: World, order: Sequence[int], threshold: float, rng: np.random.Generator
) -> Outcome:
    """One race by the rule of Optuna's pruner, computed faster; `report` compares the two."""
    num, cost = world.num_examples, 0
    values_ME = contributed(world)
    best, best_E, best_value = -1, np.zeros(0), -math.inf
    for row in order:
        shuffled_E = rng.permutation(num)
        seen_E, now_E = values_ME[row, shuffled_E], best_E[shuffled_E] if best >= 0 else best_E
        means_E = np.cumsum(seen_E) / np.arange(1, num + 1)
        stop = num if best < 0 else first_beaten(seen_E - now_E, means_E < best_value, threshold)
        cost += stop
        if means_E[stop - 1] > best_value:
            best, best_E, best_value = row, values_ME[row], float(means_E[stop - 1])
    return Outcome(best, cost)


def first_beaten(change_E: Array, below_E: NDArray[np.bool_], threshold: float) -> int:
    """After how many examples the pruner stops a trial whose mean is below the best."""
    for size in range(2, len(change_E) + 1):
        if below_E[size - 1] and signed_rank(change_E[:size]) < threshold:
            return size
    return len(change_E)


def signed_rank(change_S: Array) -> float:
    """The p-value of `scipy.stats.wilcoxon(change_S, alternative="less", zero_method="zsplit")`."""
    num, ranks_S = len(change_S), stats.rankdata(np.abs(change_S))
    plus = float(ranks_S[change_S > 0].sum() + ranks_S[change_S == 0].sum() / 2)
    _, sizes = np.unique(ranks_S, return_counts=True)
    is_plain = bool(sizes.max() == 1 and change_S.all())
    if num <= (EXACT if is_plain else EXACT_WITH_TIES):
        return exact(
            tuple((2 * ranks_S[change_S != 0]).astype(int).tolist()),
            round(2 * plus),
            float(ranks_S[change_S == 0].sum()),
        )
    spread = math.sqrt((num * (num + 1) * (2 * num + 1) - float((sizes**3 - sizes).sum()) / 2) / 24)
    return float(special.ndtr((plus - num * (num + 1) / 4) / spread))


def exact(doubled: tuple[int, ...], doubled_plus: int, of_zeros: float) -> float:
    """The share of all signs whose sum of positive ranks is at most this; all are doubled."""
    counts = sums(tuple(sorted(doubled)))
    return float(counts[: doubled_plus - round(of_zeros) + 1].sum() / counts.sum())


@lru_cache(maxsize=4096)
def sums(doubled: tuple[int, ...]) -> Array:
    """In how many ways subsets of some numbers have each sum."""
    counts = np.zeros(sum(doubled) + 1)
    counts[0] = 1
    for number in doubled:
        counts[number:] += counts[: len(counts) - number].copy()
    return counts


def contributed(world: World) -> Array:
    """What every example of every mixture adds to the mean of all, shape (M, E)."""
    num = world.num_examples
    return np.concatenate(
        [t.share * num * t.values_ME * t.weights_E / t.weights_E.sum() for t in world.targets],
        axis=1,
    )


def run_optuna(
    world: World, order: Sequence[int], threshold: float, rng: np.random.Generator
) -> Outcome:
    """One race with Optuna's pruner itself: studies and trials hold no more than what it reads."""
    from optuna.pruners import WilcoxonPruner
    from optuna.study import StudyDirection

    pruner, num = WilcoxonPruner(p_threshold=threshold), world.num_examples
    values_ME, trials, cost = contributed(world), [], 0
    for row in order:
        seen: dict[int, float] = {}
        trial: Any = SimpleNamespace(number=row, intermediate_values=seen)
        study: Any = SimpleNamespace(direction=StudyDirection.MAXIMIZE)
        if trials:
            study.best_trial = max(trials, key=lambda each: float(each.value))
        for example in rng.permutation(num).tolist():
            seen[example] = float(values_ME[row, example])
            if trials and pruner.prune(study, trial):
                break
        trial.value = sum(seen.values()) / len(seen)
        trials.append(trial)
        cost += len(seen)
    return Outcome(max(trials, key=lambda each: float(each.value)).number, cost)


# --- the bootstrap


def bootstrap(
    world: World,
    way: Callable[[World, list[int], np.random.Generator], Outcome],
    num: int,
    shuffled: bool,
) -> str:
    """Ratio, share of the same picks, and what was lost, over repetitions."""
    same, cost, lost = 0, 0, 0.0
    for repetition in range(num):
        rng = np.random.default_rng([repetition, shuffled])
        drawn = world.drawn(rng)
        order = list(range(len(world.points_MN)))
        found = way(drawn, rng.permutation(order).tolist() if shuffled else order, rng)
        objective_M = drawn.objectives()
        short = float(objective_M.max() - objective_M[found.pick])
        same, cost, lost = (
            same + (short <= race.ROUNDING),
            cost + found.cost,
            lost + short / float(objective_M.std()),
        )
    ratio = num * len(world.points_MN) * world.num_examples / cost
    return f"{ratio:.2f} | {same / num:.3f} | {lost / num:.4f}"


def compare_with_optuna(world: World, threshold: float) -> None:
    """Raises AssertionError where the fast race is not that of Optuna's own pruner."""
    rng = np.random.default_rng(0)
    drawn, order = world.drawn(rng), rng.permutation(len(world.points_MN)).tolist()
    ours, theirs = (
        way(drawn, order, threshold, np.random.default_rng(1))
        for way in (run_as_optuna, run_optuna)
    )
    assert ours == theirs, (ours, theirs)


def raced(
    name: str, alpha: float, world: World, order: list[int], rng: np.random.Generator
) -> Outcome:
    """One race in a way of the table."""
    if name == "optuna":
        return run_as_optuna(world, order, alpha, rng)
    return run(TESTS[name], world, order, alpha)


def report(path: Path, num: int, num_optuna: int) -> None:
    """Prints one table's figures."""
    world = read(path)
    sizes = ", ".join(str(len(target.weights_E)) for target in world.targets)
    print(
        f"\n{path.stem}: {len(world.points_MN)} mixtures, {sizes} examples;"
        f" {num} repetitions, of Optuna's {num_optuna}\n"
    )
    print(
        "| way | alpha | search order: ratio | same | lost | random order: ratio | same | lost |\n"
        + "|---" * 8
        + "|"
    )
    for name in [*TESTS, "optuna"]:
        for alpha in ALPHAS:
            times = num_optuna if name == "optuna" else num
            if not times:
                continue
            if name == "optuna":
                compare_with_optuna(world, alpha)
            way = partial(raced, name, alpha)
            found = " | ".join(bootstrap(world, way, times, shuffled) for shuffled in (False, True))
            print(f"| {name} | {alpha:g} | {found} |", flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    table = commands.add_parser("table")
    table.add_argument("recipe")
    table.add_argument("out", type=Path)
    table.add_argument("--set", nargs="+", default=[])
    races = commands.add_parser("race")
    races.add_argument("tables", type=Path, nargs="+")
    races.add_argument("--repetitions", type=int, default=200)
    races.add_argument("--optuna", type=int, default=200)
    given = parser.parse_args()
    if given.command == "table":
        record(given.recipe, given.out, given.set)
        return
    warnings.filterwarnings("ignore", message=".*WilcoxonPruner.*")
    for path in given.tables:
        report(path, given.repetitions, given.optuna)


if __name__ == "__main__":
    main()
