"""What exhaustive and greedy search promise, each alone."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

from drawn_spaces import law, subsets
from hypothesis import example, given
from hypothesis import strategies as st
from worlds import SPACES, Worth, plain, search_through, setting_of, tried
from worlds import best as best_mixture

from mergetomix.mixtures.spaces import Subsets
from mergetomix.search.strategies import build as build_strategy
from mergetomix.search.strategy import Strategy, Told

MANY = Subsets(tuple(f"d{i:02}" for i in range(13)))
SEEDS = st.integers(0, 10**6)
BOTH = st.sampled_from(["exhaustive", "greedy"])


def build(name: str, space: Subsets) -> Strategy:
    return build_strategy(name, setting_of(space))


def run(strategy: Strategy, worth: Worth) -> list[Told]:
    return search_through(strategy, plain(worth))


def best(state: list[Told]) -> frozenset[str]:
    return frozenset(best_mixture(state).datasets)


def rugged(seed: int) -> Worth:
    """An objective without any structure, the same for the same set."""
    return lambda datasets: random.Random(f"{seed}{sorted(datasets)}").gauss(0, 1)


def additive(values: Mapping[str, float]) -> Worth:
    return lambda datasets: math.fsum(values[name] for name in datasets)


def table(values: Mapping[str, float], otherwise: float = -100.0) -> Worth:
    """An objective written down by hand, a set being the string of its names."""
    return lambda datasets: values.get("".join(sorted(datasets)), otherwise)


# --- both


@law(60)
@given(BOTH, subsets(), SEEDS)
@example("greedy", MANY, 0)
@example("greedy", SPACES["in groups"], 1)
def test_it_ends_where_no_neighbour_is_better(name: str, space: Subsets, seed: int) -> None:
    state = run(build(name, space), rugged(seed))
    values = {frozenset(told.mixture.datasets): told.objective for told in state}
    found = best(state)
    neighbours = [*space.larger(found), *space.smaller(found)]
    assert set(neighbours) <= set(values)
    assert all(values[neighbour] <= values[found] for neighbour in neighbours)


@law(40)
@given(BOTH, subsets(), SEEDS)
def test_what_is_found_does_not_depend_on_the_scale_of_the_objective(
    name: str, space: Subsets, seed: int
) -> None:
    worth = rugged(seed)
    other = run(build(name, space), lambda datasets: 1e-6 * worth(datasets) - 3)
    assert tried(run(build(name, space), worth)) == tried(other)


@law(40)
@given(BOTH, subsets(), SEEDS)
def test_an_objective_that_is_no_number_is_never_gone_to(
    name: str, space: Subsets, seed: int
) -> None:
    worth = rugged(seed)
    holed = run(build(name, space), lambda s: math.nan if "b" in s else worth(s))
    low = run(build(name, space), lambda s: -1e9 if "b" in s else worth(s))
    assert tried(holed) == tried(low)


# --- exhaustive


@law(40)
@given(subsets(), SEEDS)
def test_exhaustive_tries_all_and_so_finds_the_best(space: Subsets, seed: int) -> None:
    worth = rugged(seed)
    state = run(build("exhaustive", space), worth)
    assert tried(state) == list(space)
    assert all(worth(best(state)) >= worth(frozenset(mixture.datasets)) for mixture in space)


# --- greedy


def reference(names: str, worth: Worth) -> frozenset[str]:
    """Floating forward selection over all subsets, in ten lines: where it ends."""
    current = max((frozenset(name) for name in names), key=worth)
    while True:
        larger = [current | {name} for name in names if name not in current]
        more = max(larger, key=worth, default=current)
        if worth(more) <= worth(current):
            return current
        current = more
        while len(current) > 1:
            less = max((current - {name} for name in current), key=worth)
            if worth(less) <= worth(current):
                break
            current = less


@law(40)
@given(SEEDS, st.booleans())
def test_greedy_ends_where_the_reference_does(seed: int, like_real_ones: bool) -> None:
    worth, noise = rugged(seed), rugged(seed)
    if like_real_ones:  # adding helps at first and hurts later
        values = {name: random.Random(f"{seed}{name}").gauss(0, 1) for name in "abcdefg"}
        worth = lambda s: math.fsum(values[x] for x in s) / len(s) ** 0.7 + 0.3 * noise(s)  # noqa: E731
    found = best(run(build("greedy", Subsets(tuple("abcdefg"))), worth))
    assert found == reference("abcdefg", worth)


@law(40)
@given(subsets().filter(lambda space: not space.groups), SEEDS)
@example(MANY, 0)
@example(SPACES["in groups"], 1)
def test_greedy_finds_the_best_of_a_sum(space: Subsets, seed: int) -> None:
    worth = additive({name: random.Random(f"{seed}{name}").gauss(0, 1) for name in space.names})
    state = run(build("greedy", space), worth)
    assert worth(best(state)) == max(worth(frozenset(mixture.datasets)) for mixture in space)


def test_greedy_drops_a_dataset_that_has_come_to_hurt() -> None:
    # a is the best alone, ab and then abc are better, bc, which no forward step reaches, is best
    worth = table({"a": 3, "b": 2, "c": 1, "ab": 4, "ac": 3.5, "abc": 5, "bc": 6})
    space = Subsets(tuple("abc"))
    assert ["".join(told.mixture.datasets) for told in run(build("greedy", space), worth)] == [
        "a", "b", "c", "ab", "ac", "abc", "bc"
    ]  # fmt: skip
    assert best(run(build("greedy", space), worth)) == frozenset("bc")


def test_greedy_goes_on_forwards_after_a_step_backwards() -> None:
    worth = table({"a": 3, "b": 2, "ab": 4, "abc": 5, "bc": 6, "bcd": 7})
    assert best(run(build("greedy", Subsets(tuple("abcd"))), worth)) == frozenset("bcd")


def test_greedy_exchanges_datasets_where_one_alone_is_not_allowed() -> None:
    worth = table({"ab": 1, "ac": 2, "cd": 3})
    assert best(run(build("greedy", Subsets(tuple("abcd"), 2, 2)), worth)) == frozenset("cd")


def test_greedy_never_drops_below_the_fewest_allowed() -> None:
    worth = additive(dict.fromkeys("abcd", -1.0))
    sizes = {len(told.mixture) for told in run(build("greedy", Subsets(tuple("abcd"), 2)), worth)}
    assert sizes == {2, 3}


def test_greedy_prefers_fewer_datasets_and_then_the_first_by_name() -> None:
    state = run(build("greedy", Subsets(tuple("cab"))), lambda datasets: 1.0)
    assert [told.mixture.datasets for told in state] == [
        ("a",),
        ("b",),
        ("c",),
        ("a", "b"),
        ("a", "c"),
    ]


def test_greedy_takes_the_first_by_name_of_the_best() -> None:
    state = run(
        build("greedy", Subsets(tuple("abcd"))),
        table({"a": 1, "b": 2, "c": 2, "d": 1, "bd": 3, "ab": 3}),
    )
    assert [told.mixture.datasets for told in state[4:8]] == [
        ("a", "b"),
        ("b", "c"),
        ("b", "d"),
        ("a", "b", "c"),
    ]


def test_greedy_tries_a_small_part_of_a_large_space() -> None:
    space = Subsets(tuple(f"d{i:02}" for i in range(40)))
    strategy = build("greedy", space)
    expected = strategy.expected()
    worth = additive({name: 1.0 + 0.1 * i for i, name in enumerate(space.names)})
    assert len(run(strategy, worth)) <= 2 * expected
    assert expected == 40 * 41 // 2
