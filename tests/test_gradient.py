"""What search by gradients promises: the best of all subsets for few forward passes, and the tops of weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
import pytest
from worlds import SPACES, World, best, plain, search_through, setting_of

from mergetomix import merge
from mergetomix.mixtures.spaces import Simplex, Subsets
from mergetomix.records import Mixture
from mergetomix.search.gradient.local_search import Climber, Neighbours
from mergetomix.search.gradient.simplex import SimplexChoices
from mergetomix.search.gradient.strategy import Gradient, default_budget
from mergetomix.search.gradient.subsets import SubsetChoices
from mergetomix.search.gradient.surrogate import Learner
from mergetomix.search.gradient.tables import Frame, Tables, exponent_of
from mergetomix.search.strategies import build, restore
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


def scaled(mixture: Mixture) -> Mapping[str, float]:
    return merge.coefficients(mixture, 0.7)


def worst(values: Mapping[str, float]) -> float:
    return min(values.values())


# --- all subsets ------------------------------------------------------------------------------------------------------


def quadratic(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    h_NN = rng.normal(size=(num, num))
    return rng.normal(size=num), h_NN + h_NN.T


@pytest.mark.parametrize("space", [*SPACES.values(), GROUPED], ids=str)
@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.0])
def test_a_table_holds_the_quadratic_of_every_subset(space: Subsets, exponent: float) -> None:
    coefficients = lambda mixture: merge.coefficients(mixture, exponent)  # noqa: E731
    frame = Frame(space, exponent_of(coefficients, space))
    tables, (b_N, h_NN) = Tables(frame), quadratic(len(space.allowed), 1)
    values = tables.values(b_N, h_NN)
    assert tables.is_allowed.sum() == len(space)
    for mixture in space:
        bits_U = frame.bits(frozenset(mixture.datasets))
        c_N = np.array([coefficients(mixture).get(name, 0.0) for name in space.allowed])
        (code,) = frame.codes(bits_U[None])
        assert tables.is_allowed[code]
        assert values[code] == pytest.approx(b_N @ c_N + c_N @ h_NN @ c_N / 2)
        assert frame.coefficients(bits_U[None])[0] == pytest.approx(c_N)
        assert frame.unions(frame.decoded(np.array([code]))) == [frozenset(mixture.datasets)]


@pytest.mark.parametrize("exponent", [0.0, 0.5, 0.75, 1.0])
def test_the_exponent_is_found_from_the_coefficients(exponent: float) -> None:
    assert exponent_of(
        lambda m: merge.coefficients(m, exponent), Subsets(tuple("abc"))
    ) == pytest.approx(exponent)
    assert exponent_of(lambda m: merge.coefficients(m, exponent), Subsets(("a",))) == 1.0


def test_coefficients_of_another_form_are_refused() -> None:
    with pytest.raises(ValueError, match="proportional"):
        exponent_of(
            lambda m: {name: weight**2 for name, weight in m.as_dict().items()},
            Subsets(tuple("abc")),
        )
    with pytest.raises(ValueError, match="do not agree"):
        exponent_of(
            lambda m: {name: weight * (1 + max(m.weights)) for name, weight in m.as_dict().items()},
            Subsets(tuple("abc")),
        )


@pytest.mark.parametrize("space", [SPACES["nine"], SPACES["two or three"], GROUPED], ids=str)
def test_what_is_around_a_subset_is_what_the_table_says(space: Subsets) -> None:
    frame, (b_N, h_NN) = Frame(space, 0.7), quadratic(len(space.allowed), 2)
    climber = Climber(frame, [frame.pieces(b_N, h_NN)], lambda values_TK: values_TK[0])
    table = Tables(frame).values(b_N, h_NN)
    for mixture in space.sample(10, 0):
        datasets = frozenset(mixture.datasets)
        bits_U = frame.bits(datasets)
        assert climber.objectives(bits_U[None])[0] == pytest.approx(
            table[frame.codes(bits_U[None])[0]]
        )
        near, objective_K = climber.around(bits_U)
        rows = np.array([near.bits(bits_U, index) for index in range(len(objective_K))])
        inside = objective_K > -np.inf
        assert objective_K[inside] == pytest.approx(table[frame.codes(rows[inside])])
        expected = {*space.larger(datasets), *space.smaller(datasets), *space.exchanged(datasets)}
        assert set(frame.unions(rows[inside])) == expected
        assert len(expected) == inside.sum()


def test_a_climb_ends_where_no_neighbour_is_better_and_never_below_its_start() -> None:
    space = Subsets(tuple(f"d{i:02}" for i in range(30)), 2, 20)
    frame, (b_N, h_NN) = Frame(space, 0.7), quadratic(30, 3)
    climber = Climber(frame, [frame.pieces(b_N, h_NN)], lambda values_TK: values_TK[0])
    for mixture in space.sample(5, 1):
        start_U = frame.bits(frozenset(mixture.datasets))
        top_U, near, objective_K = climber.climb(start_U)
        height, low = (climber.objectives(bits[None])[0] for bits in (top_U, start_U))
        assert isinstance(near, Neighbours)
        assert height >= low
        assert height >= objective_K.max() - 1e-9
        assert frame.unions(top_U[None])[0] in space


@pytest.mark.parametrize(
    "combine", [None, worst, lambda values: values["t0"] + 0.1 * math.tanh(values["t1"])]
)
@pytest.mark.parametrize("units", [20, 0])
def test_the_best_by_a_model_are_the_best_in_order(
    monkeypatch: pytest.MonkeyPatch, combine: object, units: int
) -> None:
    from mergetomix.search.gradient import subsets

    monkeypatch.setattr(subsets, "TABLE_UNITS", units)
    space = SPACES["nine"]
    setting = setting_of(space, **({"combine": combine} if combine else {}))  # type: ignore[arg-type]
    world = World(space.names, combine=setting.combine)
    told = [world.told(Ask(mixture, gradient=True)) for mixture in space.sample(5, 0)]
    model = Learner(setting).fit(told, again=True)
    assert model is not None
    tried = [each.mixture for each in told]
    found = SubsetChoices(setting, space).best(model, tried, 10, np.random.default_rng(0))
    rest = [mixture for mixture in space if mixture not in set(tried)]
    learner = Learner(setting)
    expected = model.objectives(learner.points([world.told(Ask(mixture)) for mixture in rest]))
    heights = model.objectives(learner.points([world.told(Ask(mixture)) for mixture in found]))
    assert not set(found) & set(tried)
    assert heights[0] == pytest.approx(expected.max())
    if units:
        assert heights == pytest.approx(np.sort(expected)[::-1][:10])


# --- the search -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("combine", [None, worst])
def test_of_a_quadratic_it_finds_the_best_of_4095(seed: int, combine: object) -> None:
    space = Subsets(TWELVE)
    setting = setting_of(space, seed, **({"combine": combine} if combine else {}))  # type: ignore[arg-type]
    world = World(TWELVE, 3, seed, curved=False, combine=setting.combine)
    state = search_through(build("gradient", setting), world.told)
    assert sum(told.cost for told in state) <= 40
    assert world.worth(best(state)) == pytest.approx(max(world.worth(mixture) for mixture in space))


@pytest.mark.parametrize("seed", range(4))
def test_of_a_smooth_objective_it_comes_within_a_fiftieth_of_the_spread(seed: int) -> None:
    space, world = Subsets(TWELVE), World(TWELVE, 3, seed, coefficients=scaled)
    state = search_through(
        build("gradient", setting_of(space, seed, coefficients=scaled)), world.told
    )
    worths = [world.worth(mixture) for mixture in space]
    assert sum(told.cost for told in state) <= 40
    assert max(worths) - world.worth(best(state)) <= 0.02 * (
        max(worths) - sum(worths) / len(worths)
    )


def test_a_model_that_predicts_saves_gradients() -> None:
    space = Subsets(tuple("abcdefgh"))
    strategy = Gradient(setting_of(space, 0, budget=100))
    state = search_through(strategy, World(space.names, curved=False).told)
    num = sum(told.gradients is not None for told in state)
    assert num < strategy._num_gradients()
    assert max(map(abs, strategy.errors[num - 3 : num - 1])) < 0.02


def test_without_a_budget_it_ends_where_there_is_no_hope() -> None:
    space, world = Subsets(TWELVE), World(TWELVE, 1, 0, curved=False)
    free = search_through(build("gradient", setting_of(space)), world.told)
    bound = search_through(
        build("gradient", setting_of(space, budget=default_budget(12))), world.told
    )
    assert sum(told.cost for told in free) < sum(told.cost for told in bound) <= default_budget(12)
    assert world.worth(best(free)) == pytest.approx(world.worth(best(bound)))


def test_a_space_no_larger_than_the_budget_is_tried_whole() -> None:
    space = SPACES["at most two"]
    state = search_through(
        build("gradient", setting_of(space)), plain(lambda datasets: float(len(datasets)))
    )
    assert [told.mixture for told in state] == list(space)
    assert all(told.cost == 1 for told in state)


@pytest.mark.parametrize("budget", [1, 6])
def test_a_budget_too_small_is_refused_with_the_least(budget: int) -> None:
    with pytest.raises(ValueError, match=f"budget of at least 7 forward passes, not {budget}"):
        build("gradient", setting_of(SPACES["nine"], budget=budget))


def test_seeds_differ_and_the_same_seed_does_not() -> None:
    space, world = Simplex(tuple("abcd")), World(tuple("abcd"))
    asked = [
        [
            told.mixture
            for told in search_through(build("gradient", setting_of(space, seed)), world.told)
        ]
        for seed in (0, 0, 1)
    ]
    assert asked[0] == asked[1] != asked[2]


def test_constraints_are_heeded_and_the_best_under_them_is_found() -> None:
    names = tuple("abcdefghij")
    space = Subsets(names, 2, 5, frozenset("c"), frozenset("h"), groups=(frozenset("ab"),))
    world = World(names, 2, 5, curved=False)
    state = search_through(build("gradient", setting_of(space, budget=40)), world.told)
    assert all(frozenset(told.mixture.datasets) in space for told in state)
    assert world.worth(best(state)) == pytest.approx(max(world.worth(mixture) for mixture in space))


def test_many_datasets_are_searched_better_than_at_random() -> None:
    names = tuple(f"d{i:02}" for i in range(40))
    space, world = Subsets(names), World(names, 2, 0)
    state = search_through(build("gradient", setting_of(space, budget=60)), world.told)
    assert sum(told.cost for told in state) <= 60
    assert world.worth(best(state)) > max(world.worth(mixture) for mixture in space.sample(600, 0))


# --- weights ----------------------------------------------------------------------------------------------------------

WEIGHTS = [
    Simplex(tuple("abcdef")),
    Simplex(tuple("abcdef"), 2, 4, frozenset("c"), frozenset("d")),
    Simplex(tuple("abcdef"), min_share=0.1, caps={"a": 0.3, "b": 0.5}),
]


@pytest.mark.parametrize("space", WEIGHTS, ids=str)
@pytest.mark.parametrize("exponent", [0.7, 1.0])
def test_the_slope_in_the_weights_is_that_of_the_objective(space: Simplex, exponent: float) -> None:
    setting = setting_of(space, coefficients=lambda m: merge.coefficients(m, exponent))
    world = World(space.names, coefficients=setting.coefficients)
    model = Learner(setting).fit(
        [world.told(Ask(mixture, gradient=True)) for mixture in space.sample(4, 0)], again=True
    )
    assert model is not None
    choices = SimplexChoices(setting, space)
    weights_N = np.random.default_rng(0).dirichlet(np.ones(len(space.allowed)))
    slope_N = choices.slope(model, weights_N)
    for index, step_N in enumerate(np.eye(len(weights_N)) * 1e-6):
        ends = model.objectives(
            choices.coefficients(np.stack([weights_N + step_N, weights_N - step_N]))
        )
        assert slope_N[index] == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("space", WEIGHTS, ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_weights_are_better_than_the_best_of_thousands(space: Simplex, seed: int) -> None:
    world = World(space.names, 2, seed, coefficients=scaled)
    state = search_through(
        build("gradient", setting_of(space, seed, coefficients=scaled)), world.told
    )
    assert sum(told.cost for told in state) <= default_budget(len(space.allowed))
    assert all(told.mixture in space for told in state)
    worths = [world.worth(mixture) for mixture in space.sample(3000, 1)]
    assert world.worth(best(state)) > max(worths) - 0.01 * (max(worths) - sum(worths) / len(worths))


@pytest.mark.parametrize("space", WEIGHTS, ids=str)
def test_a_search_over_weights_is_resumed_and_tries_nothing_twice(space: Simplex) -> None:
    world = World(space.names)
    whole = search_through(build("gradient", setting_of(space, 3)), world.told)
    assert len({told.mixture for told in whole}) == len(whole)
    for one, other in itertools.pairwise(told.mixture for told in whole):
        assert one != other
    for cut in (1, 5, len(whole) - 1):
        resumed = restore(build("gradient", setting_of(space, 3)), whole[:cut])
        assert search_through(resumed, world.told) == whole


def test_on_weights_every_step_asks_for_the_gradient_that_the_next_one_needs() -> None:
    space = WEIGHTS[0]
    state = search_through(build("gradient", setting_of(space, budget=30)), World(space.names).told)
    spent = list(itertools.accumulate((told.cost for told in state), initial=0))
    assert all(
        told.gradients is not None
        for told, cost in zip(state, spent, strict=False)
        if 30 - cost >= GRADIENT_COST
    )


@pytest.mark.parametrize("name", ["exhaustive", "greedy"])
def test_strategies_over_subsets_refuse_weights(name: str) -> None:
    with pytest.raises(
        ValueError,
        match=f"{name} search tries subsets, not weights; gradient, regression and optuna",
    ):
        build(name, setting_of(WEIGHTS[0]))
