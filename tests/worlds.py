"""Objectives made by hand, for searches: what a mixture is worth, with derivatives, no model."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from mergetomix import merge
from mergetomix.mixtures.spaces import Simplex, Space, Subsets
from mergetomix.objectives.objective import Objective
from mergetomix.records import Mixture
from mergetomix.search.strategies import build
from mergetomix.search.strategy import Ask, Options, Setting, Strategy, Told

Worth = Callable[[frozenset[str]], float]
Answer = Callable[[Ask], Told]


def objective_of(num_targets: int = 2, aim: Any = "gain") -> Objective:
    """An objective of targets t0, t1, ... that weigh alike."""
    return Objective({f"t{i}": 1.0 for i in range(num_targets)}, aim)


def setting_of(
    space: Space,
    seed: int = 0,
    budget: int | None = None,
    *,
    front: bool = False,
    world: World | Rugged | None = None,
    differentiable: bool = False,
    options: Options | None = None,
) -> Setting:
    """A setting of a search in a world, of two targets unless it says otherwise."""
    objective = objective_of() if world is None else world.objective
    if front:
        objective = replace(objective, aim="pareto")
    exponent = 1.0 if world is None else world.exponent
    return Setting(space, objective, exponent, seed, budget, differentiable, options or Options())


@dataclass(frozen=True)
class World:
    """Targets t whose gain is V_t(0) - V_t(c), V_t(c) = sum_j a_tj log cosh(u_tj . c + s_tj).

    That is smooth, and no quadratic. With `curved` false it is the quadratic with the same slope
    and curvature at c = 0.
    """

    names: tuple[str, ...]
    num_targets: int = 2
    seed: int = 0
    curved: bool = True
    aim: str = "gain"
    exponent: float = 1.0

    @property
    def objective(self) -> Objective:
        """All targets alike."""
        return objective_of(self.num_targets, self.aim)

    def told(self, asked: Ask) -> Told:
        """The answer to what a strategy asks."""
        found = merge.coefficients(asked.mixture, self.exponent)
        c_N = np.array([found.get(name, 0.0) for name in self.names])
        values, gradients = {}, {}
        for target in range(self.num_targets):
            value, slope_N = self.gain(target, c_N)
            values[f"t{target}"] = value
            gradients[f"t{target}"] = dict(zip(self.names, slope_N.tolist(), strict=True))
        objective = self.objective.combine(values)
        return Told(asked.mixture, objective, values, gradients if asked.gradient else None)

    def gain(self, target: int, c_N: np.ndarray) -> tuple[float, np.ndarray]:
        """The gain of a target and its derivative."""
        rng = np.random.default_rng([self.seed, target])
        num, hidden = len(self.names), 4 * len(self.names)
        u_JN, s_J = rng.normal(size=(hidden, num)), rng.normal(size=hidden)
        a_J = rng.uniform(0, 1, hidden) / hidden
        h_J, tanh_J = u_JN @ c_N, np.tanh(s_J)
        change_J = tanh_J * h_J + (1 - tanh_J**2) * h_J**2 / 2
        slope_J = tanh_J + (1 - tanh_J**2) * h_J
        if self.curved:
            change_J = np.log(np.cosh(h_J + s_J) / np.cosh(s_J))
            slope_J = np.tanh(h_J + s_J)
        return -float(a_J @ change_J), -(a_J * slope_J) @ u_JN

    def worth(self, mixture: Mixture) -> float:
        """The objective of a mixture."""
        return self.told(Ask(mixture)).objective


@dataclass(frozen=True)
class Rugged:
    """One target without any structure, its derivative as arbitrary; the same for one mixture."""

    names: tuple[str, ...]
    seed: int = 0
    exponent: float = 1.0
    objective: Objective = field(default_factory=partial(objective_of, 1))

    def told(self, asked: Ask) -> Told:
        """The answer to what a strategy asks."""
        rng = random.Random(f"{self.seed}{asked.mixture}")
        value = rng.gauss(0, 1)
        gradients = {"t0": {name: rng.gauss(0, 1) for name in self.names}}
        return Told(asked.mixture, value, {"t0": value}, gradients if asked.gradient else None)


def plain(worth: Worth) -> Answer:
    """The answers of one target whose value is of the datasets alone and has no derivative."""

    def told(asked: Ask) -> Told:
        value = worth(frozenset(asked.mixture.datasets))
        return Told(asked.mixture, value, {"t0": value})

    return told


def search_through(strategy: Strategy, told: Answer, num: int | None = None) -> list[Told]:
    """Goes on for `num` trials, or to the end; gives everything told."""
    while (num is None or len(strategy.state()) < num) and (asked := strategy.ask()):
        strategy.tell(told(asked[0]))
        assert len(strategy.state()) < 20_000, "it does not end"
    return list(strategy.state())


def cost_of(state: list[Told]) -> int:
    """Forward passes that some trials took."""
    return sum(Ask(told.mixture, told.gradients is not None).cost for told in state)


def tried(state: list[Told]) -> list[Mixture]:
    """The mixtures of some trials."""
    return [told.mixture for told in state]


def best(state: list[Told]) -> Mixture:
    """The mixture of the highest objective."""
    return max(state, key=lambda told: told.objective).mixture


SPACES = {
    "one dataset": Subsets(("a",)),
    "all": Subsets(tuple("edcba")),
    "at least two": Subsets(tuple("abcde"), 2),
    "two or three": Subsets(tuple("abcdef"), 2, 3),
    "exactly three": Subsets(tuple("abcdef"), 3, 3),
    "at most two": Subsets(tuple("abcdef"), 1, 2),
    "with c": Subsets(tuple("abcde"), require=frozenset("c")),
    "with c, without d": Subsets(tuple("abcde"), require=frozenset("c"), forbid=frozenset("d")),
    "with c and three more": Subsets(tuple("abcdef"), 4, 5, frozenset("c"), frozenset("d")),
    "nothing to choose": Subsets(tuple("abc"), 3),
    "all required": Subsets(tuple("abc"), require=frozenset("abc")),
    "by size": Subsets(tuple("abc"), sizes={"a": 1, "b": 2, "c": 5}),
    "nine": Subsets(tuple("abcdefghi")),
    "in groups": Subsets(
        tuple("abcdefg"), 2, 6, frozenset("g"), groups=(frozenset("ab"), frozenset("def"))
    ),
}
CAPPED = Simplex(tuple("abcdef"), 2, 4, frozenset("c"), frozenset("d"), 0.05, {"a": 0.3, "b": 0.5})
WEIGHTS = {"weights": Simplex(tuple("abcd")), "capped weights": CAPPED}
ALL_SPACES: dict[str, Space] = {**SPACES, **WEIGHTS}


def is_in(space: Space, mixture: Mixture) -> bool:
    """Whether a search of a space may try a mixture, a subset with the space's own weights."""
    if isinstance(space, Simplex):
        return mixture in space
    datasets = frozenset(mixture.datasets)
    return datasets in space and mixture == space.mixture(datasets)


def searched(name: str, space: str) -> list[Told]:
    """A short search of a strategy over one of ALL_SPACES."""
    world = World(ALL_SPACES[space].names)
    setting = setting_of(ALL_SPACES[space], 3, 12, world=world)
    return search_through(build(name, setting), world.told)
