"""What search by gradients promises: the best of all subsets, and of weights, for few passes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from drawn_spaces import law, subsets
from hypothesis import example, given
from hypothesis import strategies as st
from worlds import SPACES, Rugged, World, best, cost_of, plain, search_through, setting_of, tried

from mergetomix import merge
from mergetomix.mixtures.spaces import Simplex, Subsets
from mergetomix.search.budgets import default_budget
from mergetomix.search.candidates import coefficients
from mergetomix.search.gradient import best_subsets
from mergetomix.search.gradient.best_subsets import Climber, SubsetFinder
from mergetomix.search.gradient.best_weights import WeightFinder
from mergetomix.search.gradient.strategy import Gradient
from mergetomix.search.gradient.subset_quadratics import SubsetFrame
from mergetomix.search.gradient.surrogate import Learner
from mergetomix.search.strategies import build
from mergetomix.search.strategy import GRADIENT_COST, Ask

TWELVE = tuple("abcdefghijkl")
GROUPED = Subsets(
    tuple("abcdefgh"),
    2,
    6,
    frozenset("c"),
    frozenset("h"),
    {x: i + 1.0 for i, x in enumerate("abcdefgh")},
    (frozenset("ab"),),
)


# --- all subsets


def quadratic(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    h_NN = rng.normal(size=(num, num))
    return rng.normal(size=num), h_NN + h_NN.T


def place(bits_U: np.ndarray) -> int:
    """Where a subset stands in a table."""
    return int(bits_U @ (1 << np.arange(len(bits_U))))


@law(40)
@given(subsets(), st.sampled_from([0.0, 0.7, 1.0]))
@example(GROUPED, 0.7)
@example(SPACES["nine"], 0.0)
def test_a_table_holds_the_quadratic_of_every_subset(space: Subsets, exponent: float) -> None:
    frame, (b_N, h_NN) = SubsetFrame(space, exponent), quadratic(len(space.allowed), 1)
    values, (is_allowed, _) = frame.table(b_N, h_NN), frame.choices
    assert is_allowed.sum() == len(space)
    for mixture in space:
        datasets = frozenset(mixture.datasets)
        bits_KU = frame.bits([datasets])
        found = merge.coefficients(mixture, exponent)
        c_N = np.array([found.get(name, 0.0) for name in space.allowed])
        assert is_allowed[place(bits_KU[0])]
        assert values[place(bits_KU[0])] == pytest.approx(b_N @ c_N + c_N @ h_NN @ c_N / 2)
        assert frame.unions(bits_KU) == [datasets]


@pytest.mark.parametrize("space", [SPACES["nine"], SPACES["two or three"], GROUPED], ids=len)
def test_what_is_around_a_subset_is_what_the_table_says(space: Subsets) -> None:
    frame, (b_N, h_NN) = SubsetFrame(space, 0.7), quadratic(len(space.allowed), 2)
    climber = Climber(frame, [frame.polynomials(b_N, h_NN)], lambda values_TK: values_TK[0])
    table = frame.table(b_N, h_NN)
    for mixture in space.sample(10, 0):
        datasets = frozenset(mixture.datasets)
        (bits_U,) = frame.bits([datasets])
        assert climber.objectives(bits_U[None])[0] == pytest.approx(table[place(bits_U)])
        around_KU, objective_K = climber.around(bits_U)
        inside = objective_K > -np.inf
        expected_K = [table[place(row_U)] for row_U in around_KU[inside]]
        assert objective_K[inside] == pytest.approx(expected_K)
        near = {*space.larger(datasets), *space.smaller(datasets), *space.exchanged(datasets)}
        assert set(frame.unions(around_KU[inside])) == near | {datasets}
        assert inside.sum() == len(near) + 1


def test_a_climb_ends_where_no_neighbour_is_better_and_never_below_its_start() -> None:
    space = Subsets(tuple(f"d{i:02}" for i in range(30)), 2, 20)
    frame, (b_N, h_NN) = SubsetFrame(space, 0.7), quadratic(30, 3)
    climber = Climber(frame, [frame.polynomials(b_N, h_NN)], lambda values_TK: values_TK[0])
    for mixture in space.sample(5, 1):
        start_KU = frame.bits([frozenset(mixture.datasets)])
        around_KU, objective_K = climber.climb(start_KU[0])
        top_KU = around_KU[:1]  # where it ends, and after that its neighbours
        height, low = (float(climber.objectives(bits)[0]) for bits in (top_KU, start_KU))
        assert height >= low
        assert height >= objective_K.max() - 1e-9
        assert frame.unions(top_KU)[0] in space


@pytest.mark.parametrize("aim", ["gain", "worst"])
@pytest.mark.parametrize("units", [20, 0])
def test_the_best_by_a_model_are_the_best_in_order(
    monkeypatch: pytest.MonkeyPatch, aim: str, units: int
) -> None:
    monkeypatch.setattr(best_subsets, "TABLE_UNITS", units)
    space = SPACES["nine"]
    world = World(space.names, aim=aim)
    learner = Learner(setting_of(space, world=world))
    told = [world.told(Ask(mixture, gradient=True)) for mixture in space.sample(5, 0)]
    model = learner.fit(told, again=True)
    assert model is not None
    found = SubsetFinder(space, 1.0).best(model, tried(told), 10, np.random.default_rng(0))
    rest = [mixture for mixture in space if mixture not in tried(told)]
    expected, heights = (model.objectives(learner.points(some)) for some in (rest, found))
    assert not set(found) & set(tried(told))
    assert heights[0] == pytest.approx(expected.max())
    assert heights.tolist() == pytest.approx(sorted(heights, reverse=True))
    if units:
        assert heights == pytest.approx(np.sort(expected)[::-1][:10])


# --- the search


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("aim", ["gain", "worst"])
def test_of_a_quadratic_it_finds_the_best_of_4095(seed: int, aim: str) -> None:
    space, world = Subsets(TWELVE), World(TWELVE, 3, seed, curved=False, aim=aim)
    state = search_through(build("gradient", setting_of(space, seed, world=world)), world.told)
    assert cost_of(state) <= 40
    assert world.worth(best(state)) == pytest.approx(max(map(world.worth, space)))


@pytest.mark.parametrize("seed", range(4))
def test_of_a_smooth_objective_it_comes_within_a_fiftieth_of_the_spread(seed: int) -> None:
    space, world = Subsets(TWELVE), World(TWELVE, 3, seed, exponent=0.7)
    state = search_through(build("gradient", setting_of(space, seed, world=world)), world.told)
    worths = [world.worth(mixture) for mixture in space]
    assert cost_of(state) <= 40
    spread = max(worths) - sum(worths) / len(worths)
    assert max(worths) - world.worth(best(state)) <= 0.02 * spread


def test_a_model_that_predicts_saves_gradients_and_one_that_does_not_spends_its_share() -> None:
    space = Subsets(tuple("abcdefgh"))
    nums = []
    for world in (World(space.names, curved=False), Rugged(space.names)):
        strategy = Gradient(setting_of(space, 0, budget=100, world=world))
        state = search_through(strategy, world.told)
        nums.append(sum(told.gradients is not None for told in state))
    assert nums[0] < nums[1] == 60 // GRADIENT_COST


def test_without_a_budget_it_ends_where_there_is_no_hope() -> None:
    space, world = Subsets(TWELVE), World(TWELVE, 1, 0, curved=False)
    budget = default_budget("gradient", 12)
    free = search_through(build("gradient", setting_of(space, world=world)), world.told)
    setting = setting_of(space, budget=budget, world=world)
    bound = search_through(build("gradient", setting), world.told)
    assert cost_of(free) < cost_of(bound) <= budget
    assert world.worth(best(free)) == pytest.approx(world.worth(best(bound)))


def test_a_space_no_larger_than_the_budget_is_tried_whole() -> None:
    space = SPACES["at most two"]
    answer = plain(lambda datasets: float(len(datasets)))
    state = search_through(build("gradient", setting_of(space)), answer)
    assert tried(state) == list(space)
    assert cost_of(state) == len(space)


@pytest.mark.parametrize("budget", [1, 6])
def test_a_budget_too_small_is_refused_with_the_least(budget: int) -> None:
    with pytest.raises(ValueError, match=f"budget of at least 7 forward passes, not {budget}"):
        build("gradient", setting_of(SPACES["nine"], budget=budget))


def test_seeds_differ_and_the_same_seed_does_not() -> None:
    space, world = Simplex(tuple("abcd")), World(tuple("abcd"))
    asked = []
    for seed in (0, 0, 1):
        setting = setting_of(space, seed, 16)
        asked.append(tried(search_through(build("gradient", setting), world.told)))
    assert asked[0] == asked[1] != asked[2]


def test_constraints_are_heeded_and_the_best_under_them_is_found() -> None:
    names = tuple("abcdefghij")
    space = Subsets(names, 2, 5, frozenset("c"), frozenset("h"), groups=(frozenset("ab"),))
    world = World(names, 2, 5, curved=False)
    state = search_through(build("gradient", setting_of(space, budget=40)), world.told)
    assert all(frozenset(mixture.datasets) in space for mixture in tried(state))
    assert world.worth(best(state)) == pytest.approx(max(map(world.worth, space)))


@pytest.mark.slow
def test_many_datasets_are_searched_better_than_at_random() -> None:
    names = tuple(f"d{i:02}" for i in range(40))
    space, world = Subsets(names), World(names, 2, 0)
    state = search_through(build("gradient", setting_of(space, budget=60)), world.told)
    assert cost_of(state) <= 60
    assert world.worth(best(state)) > max(map(world.worth, space.sample(600, 0)))


# --- weights

WEIGHTS = {
    "all": Simplex(tuple("abcdef")),
    "bound": Simplex(tuple("abcdef"), 2, 4, frozenset("c"), frozenset("d")),
    "capped": Simplex(tuple("abcdef"), min_share=0.1, caps={"a": 0.3, "b": 0.5}),
}


@pytest.mark.parametrize("space", WEIGHTS.values(), ids=list(WEIGHTS))
@pytest.mark.parametrize("exponent", [0.7, 1.0])
def test_the_slope_in_the_weights_is_that_of_the_objective(space: Simplex, exponent: float) -> None:
    world = World(space.names, exponent=exponent)
    told = [world.told(Ask(mixture, gradient=True)) for mixture in space.sample(4, 0)]
    model = Learner(setting_of(space, world=world)).fit(told, again=True)
    assert model is not None
    weights_N = np.random.default_rng(0).dirichlet(np.ones(len(space.allowed)))
    slope_N = WeightFinder(space, exponent).slope(model, weights_N)
    for index, step_N in enumerate(np.eye(len(weights_N)) * 1e-6):
        ends_KN = np.stack([weights_N + step_N, weights_N - step_N])
        above, below = model.objectives(coefficients(ends_KN, exponent))
        assert slope_N[index] == pytest.approx((above - below) / 2e-6, rel=1e-4, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("space", WEIGHTS.values(), ids=list(WEIGHTS))
@pytest.mark.parametrize("seed", range(2))
def test_weights_are_better_than_the_best_of_thousands(space: Simplex, seed: int) -> None:
    world = World(space.names, 2, seed, exponent=0.7)
    state = search_through(build("gradient", setting_of(space, seed, world=world)), world.told)
    assert cost_of(state) <= default_budget("gradient", len(space.allowed))
    assert all(mixture in space for mixture in tried(state))
    worths = [world.worth(mixture) for mixture in space.sample(3000, 1)]
    spread = max(worths) - sum(worths) / len(worths)
    assert world.worth(best(state)) > max(worths) - 0.01 * spread


def test_of_the_smallest_of_several_gains_weights_come_near_to_the_best() -> None:
    space, reached = Simplex(tuple("abcd")), []
    for seed in range(3):
        world = World(space.names, 3, seed, aim="worst")
        setting = setting_of(space, seed, 24, world=world)
        found = world.worth(best(search_through(build("gradient", setting), world.told)))
        worths = np.array([world.worth(mixture) for mixture in space.sample(1000, 1)])
        reached.append((found - worths.mean()) / (worths.max() - worths.mean()))
    assert min(reached) > 0.9


def test_on_weights_every_step_asks_for_the_gradient_that_the_next_one_needs() -> None:
    space = WEIGHTS["all"]
    state = search_through(build("gradient", setting_of(space, budget=22)), World(space.names).told)
    costs = [cost_of([told]) for told in state]
    spent = itertools.accumulate(costs[:-1], initial=0)
    for cost, before in zip(costs, spent, strict=True):
        assert cost == (GRADIENT_COST if 22 - before >= GRADIENT_COST else 1)


@pytest.mark.parametrize("name", ["exhaustive", "greedy"])
def test_strategies_over_subsets_refuse_weights(name: str) -> None:
    message = f"{name} search tries subsets, not weights; gradient, regression and optuna"
    with pytest.raises(ValueError, match=message):
        build(name, setting_of(WEIGHTS["all"]))
