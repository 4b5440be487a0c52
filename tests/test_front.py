"""Fronts: who dominates whom, how much a front reaches, and what a search for one finds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from drawn_spaces import law
from hypothesis import given
from hypothesis import strategies as st
from worlds import ALL_SPACES, World, cost_of, is_in, search_through, setting_of, tried

from mergetomix.mixtures.spaces import Subsets
from mergetomix.objectives.pareto import hypervolume, is_front
from mergetomix.records import Mixture
from mergetomix.search.gradient.directions import Direction, Outlook
from mergetomix.search.strategies import build
from mergetomix.search.strategy import Ask, Told

FEW = st.tuples(st.integers(1, 12), st.integers(1, 4), st.integers(0, 99))
"""How many points, of how many targets, and the seed that draws them."""


def dominates(one: np.ndarray, other: np.ndarray) -> bool:
    return bool((one >= other).all() and (one > other).any())


def drawn(num: int, targets: int, seed: int) -> np.ndarray:
    """Points on a coarse grid, so that many are equal on a target, and some everywhere."""
    rng = np.random.default_rng([seed, num, targets])
    return rng.integers(0, 6, size=(num, targets)).astype(float)


@law(40)
@given(FEW)
def test_members_of_a_front_are_those_that_nobody_dominates(few: tuple[int, int, int]) -> None:
    points = drawn(*few)
    expected = [not any(dominates(other, point) for other in points) for point in points]
    assert is_front(points).tolist() == expected
    order = np.random.default_rng(few[2]).permutation(len(points))
    assert is_front(points[order]).tolist() == np.array(expected)[order].tolist()


def of_cells(points: np.ndarray, reference: np.ndarray) -> float:
    """The volume by cells, cut at every coordinate: one counts if a point is above all of it."""
    edges = [
        np.unique([reference[t], *points[:, t][points[:, t] > reference[t]]])
        for t in range(points.shape[1])
    ]
    total = 0.0
    for corner in itertools.product(*(range(1, len(edge)) for edge in edges)):
        upper = np.array([edge[i] for edge, i in zip(edges, corner, strict=True)])
        lower = np.array([edge[i - 1] for edge, i in zip(edges, corner, strict=True)])
        total += float(np.prod(upper - lower)) * bool((points >= upper).all(axis=1).any())
    return total


@law(30)
@given(FEW)
def test_the_hypervolume_is_that_of_all_cells_below(few: tuple[int, int, int]) -> None:
    num, targets, seed = few
    points = drawn(*few) + 0.01 * np.random.default_rng(seed).normal(size=(num, targets))
    reference = np.full(targets, 1.5)  # some points lie below it
    assert hypervolume(points, reference) == pytest.approx(of_cells(points, reference), abs=1e-9)


def test_the_hypervolume_of_one_point_is_its_box_and_more_points_never_take_away() -> None:
    assert hypervolume([[2.0, 3.0, 4.0]], [1.0, 1.0, 1.0]) == 6.0
    assert hypervolume([[2.0, 0.5]], [1.0, 1.0]) == 0.0 == hypervolume(np.zeros((0, 2)), [0.0, 0.0])
    points, reached = np.random.default_rng(0).random((20, 3)), 0.0
    for num in range(1, 21):
        more = hypervolume(points[:num], np.zeros(3))
        assert more >= reached - 1e-12
        grows = not any((other >= points[num - 1]).all() for other in points[: num - 1])
        assert (more > reached + 1e-12) == grows
        reached = more
    assert hypervolume(points[:, ::-1], np.zeros(3)) == pytest.approx(reached)


def test_points_must_be_numbers_in_rows() -> None:
    with pytest.raises(ValueError, match="must be finite"):
        is_front([[1.0, float("nan")]])
    with pytest.raises(ValueError, match="a row each"):
        hypervolume([1.0, 2.0], [0.0, 0.0])


# --- search


def values(told: list[Told]) -> np.ndarray:
    return np.array([[each.values[name] for name in sorted(each.values)] for each in told])


@pytest.mark.parametrize(
    ("targets", "budget", "share", "seed"), [(2, 40, 0.95, 0), (2, 40, 0.95, 1), (3, 60, 0.93, 0)]
)
def test_gradients_find_most_of_the_front_of_1023(
    targets: int, budget: int, share: float, seed: int
) -> None:
    space = Subsets(tuple("abcdefghij"))
    world = World(space.names, targets, seed, exponent=0.7)
    every = values([world.told(Ask(mixture)) for mixture in space])
    front = every[is_front(every)]
    reference = front.min(axis=0) - 0.1 * np.ptp(front, axis=0)
    setting = setting_of(space, seed, budget, world=world, front=True)
    state = search_through(build("gradient", setting), world.told)
    assert cost_of(state) <= budget
    whole = hypervolume(front, reference)
    reached = hypervolume(values(state), reference) / whole
    by_chance = []
    for draw in range(5):
        points = values([world.told(Ask(mixture)) for mixture in space.sample(budget, draw)])
        by_chance.append(hypervolume(points, reference) / whole)
    assert reached > share
    assert reached > max(by_chance)


@pytest.mark.parametrize("space", ["nine", "in groups", "capped weights", "one dataset"])
def test_a_search_for_a_front_stays_in_its_space_and_is_resumed(space: str) -> None:
    world = World(ALL_SPACES[space].names)
    setting = setting_of(ALL_SPACES[space], 3, budget=10, front=True)
    whole = search_through(build("gradient", setting), world.told)
    assert 0 < cost_of(whole) <= 10
    assert len(set(tried(whole))) == len(whole)
    assert all(is_in(setting.space, mixture) for mixture in tried(whole))
    resumed = build("gradient", setting)
    for told in whole[: len(whole) // 2]:
        resumed.tell(told)
    assert search_through(resumed, world.told) == whole


@pytest.mark.slow
def test_many_datasets_are_searched_for_a_front_by_climbs() -> None:
    space = Subsets(tuple(f"d{i:02}" for i in range(22)))
    world = World(space.names, 2, 1)
    state = search_through(build("gradient", setting_of(space, budget=20, front=True)), world.told)
    drawn = values([world.told(Ask(mixture)) for mixture in space.sample(200, 0)])
    reference = np.minimum(drawn.min(axis=0), values(state).min(axis=0))
    assert hypervolume(values(state), reference) > hypervolume(drawn, reference)


def test_what_is_no_number_hides_nothing_else() -> None:
    """A search goes on past it, and finds what it would have without."""
    world = World(tuple("abcdefghi"))

    def holed(asked: Ask) -> Told:
        told = world.told(asked)
        if len(asked.mixture) != 3:
            return told
        return Told(told.mixture, 0.0, dict.fromkeys(told.values, float("nan")), told.gradients)

    setting = setting_of(ALL_SPACES["nine"], budget=30, front=True)
    state = search_through(build("gradient", setting), holed)
    assert cost_of(state) == 30
    assert sum(np.isfinite(values(state)).all(axis=1)) > 10


def test_what_a_mixture_adds_is_the_volume_that_it_brings() -> None:
    rng = np.random.default_rng(0)
    rows = [dict(zip("abc", row, strict=True)) for row in rng.random((9, 3)).tolist()]
    told = [Told(Mixture.union([f"d{i}"]), 0.0, row) for i, row in enumerate(rows)]
    candidates = np.hstack([rng.random((3, 6)) * 1.3, values(told[:1]).T])
    outlook = Outlook(told, candidates)
    front, reference = outlook._front_KT, outlook._reference_T
    whole, width = hypervolume(front, reference), float(np.prod(outlook._range_T))
    brought = [hypervolume([*front, point], reference) - whole for point in candidates.T]
    assert outlook.added(candidates) * width == pytest.approx(brought)
    assert brought[-1] == 0 < max(brought)


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.2, 0.3, 0.5)])
def test_the_slope_of_a_direction_is_that_of_its_height(weights: tuple[float, ...]) -> None:
    direction = Direction(np.array(weights), np.array([0.1, 0.2, 0.3]), np.array([1.0, 2.0, 4.0]))
    points = np.random.default_rng(0).normal(size=(3, 6))
    for target, step in enumerate(np.eye(3) * 1e-6):
        above, below = (direction(points + sign * step[:, None]) for sign in (1, -1))
        assert direction.slopes(points)[target] == pytest.approx((above - below) / 2e-6, abs=1e-6)


def test_the_highest_point_of_a_direction_is_of_the_front_and_hollows_are_reached() -> None:
    points = np.random.default_rng(1).random((60, 2)) ** 3  # the front of such points is hollow
    front = np.flatnonzero(is_front(points))
    tops = set()
    for share in np.linspace(0.01, 0.99, 99):
        direction = Direction(np.array([share, 1 - share]), points.max(axis=0), np.ones(2))
        tops.add(int(direction(points.T).argmax()))
    assert tops <= set(front.tolist())
    linear = {int((points @ [share, 1 - share]).argmax()) for share in np.linspace(0.01, 0.99, 99)}
    assert len(tops) > len(linear)
