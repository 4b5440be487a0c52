"""One contract for every strategy over several spaces, and what each alone promises."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping

import pytest

from mergetomix.mixture import Subsets
from mergetomix.records import Mixture
from mergetomix.search import EXHAUSTIVE_DATASETS, Strategy, build, restore

Worth = Callable[[frozenset[str]], float]

STRATEGIES = ["exhaustive", "greedy"]
SPACES = {
    "one dataset": Subsets(("a",)),
    "all": Subsets(tuple("edcba")),
    "at least two": Subsets(tuple("abcde"), 2),
    "two or three": Subsets(tuple("abcdef"), 2, 3),
    "exactly three": Subsets(tuple("abcdef"), 3, 3),
    "at most two": Subsets(tuple("abcdef"), 1, 2),
    "with c": Subsets(tuple("abcde"), require=frozenset("c")),
    "with c, without d": Subsets(tuple("abcde"), require=frozenset("c"), forbid=frozenset("d")),
    "with c and three more": Subsets(tuple("abcdef"), 4, 5, require=frozenset("c"), forbid=frozenset("d")),
    "nothing to choose": Subsets(tuple("abc"), 3),
    "all required": Subsets(tuple("abc"), require=frozenset("abc")),
    "empty": Subsets(tuple("ab"), 2, forbid=frozenset("a")),
    "by size": Subsets(tuple("abc"), sizes={"a": 1, "b": 2, "c": 5}),
    "many": Subsets(tuple(f"d{i:02}" for i in range(EXHAUSTIVE_DATASETS + 1))),
}


TRIED_WHOLE = {name: space for name, space in SPACES.items() if len(space) < 1000}
CASES = [(strategy, name) for strategy in STRATEGIES for name in (SPACES if strategy == "greedy" else TRIED_WHOLE)]


def rugged(seed: int) -> Worth:
    """An objective without any structure, the same for the same set."""
    return lambda datasets: random.Random(f"{seed}{sorted(datasets)}").gauss(0, 1)


def additive(values: Mapping[str, float]) -> Worth:
    return lambda datasets: math.fsum(values[name] for name in datasets)


def table(values: Mapping[str, float], otherwise: float = -100.0) -> Worth:
    """An objective written down by hand, a set being the string of its names."""
    return lambda datasets: values.get("".join(sorted(datasets)), otherwise)


def run(strategy: Strategy, worth: Worth, num: int | None = None) -> list[tuple[Mixture, float]]:
    """Goes on for `num` trials, or to the end; gives everything told."""
    while (num is None or len(strategy.state()) < num) and (mixture := strategy.ask()) is not None:
        strategy.tell(mixture, worth(frozenset(mixture.datasets)))
        assert len(strategy.state()) <= 2 * max(map(len, SPACES.values())), "it does not end"
    return list(strategy.state())


def best(state: list[tuple[Mixture, float]]) -> frozenset[str]:
    return frozenset(max(state, key=lambda told: told[1])[0].datasets)


# --- the contract -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=CASES, ids=" over ".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture
def name(case: tuple[str, str]) -> str:
    return case[0]


@pytest.fixture
def space(case: tuple[str, str]) -> Subsets:
    return SPACES[case[1]]


@pytest.fixture(params=[0, 1])
def worth(request: pytest.FixtureRequest) -> Worth:
    return rugged(request.param)


def test_it_stays_in_the_space_and_asks_nothing_twice(name: str, space: Subsets, worth: Worth) -> None:
    asked = [mixture for mixture, _ in run(build(name, space), worth)]
    assert all(frozenset(mixture.datasets) in space for mixture in asked)
    assert len(set(asked)) == len(asked)
    assert all(mixture == space.mixture(mixture.datasets) for mixture in asked)
    assert bool(asked) == bool(len(space))


def test_it_asks_the_same_until_it_is_told(name: str, space: Subsets, worth: Worth) -> None:
    strategy = build(name, space)
    while (mixture := strategy.ask()) is not None:
        assert strategy.ask() == mixture
        strategy.tell(mixture, worth(frozenset(mixture.datasets)))
        assert strategy.ask() != mixture
    assert strategy.ask() is None


def test_it_takes_no_answer_that_it_did_not_ask_for(name: str, space: Subsets, worth: Worth) -> None:
    strategy = build(name, space)
    other = Mixture.union(["another"])
    while (mixture := strategy.ask()) is not None:
        before = strategy.state()
        with pytest.raises(ValueError, match="another was not asked for"):
            strategy.tell(other, 1e9)
        assert (strategy.ask(), strategy.state()) == (mixture, before)
        strategy.tell(mixture, worth(frozenset(mixture.datasets)))
    for told, value in run(strategy, worth):
        with pytest.raises(ValueError, match="was not asked for"):
            strategy.tell(told, value)


def test_what_was_told_is_kept_in_order_and_never_more_than_expected(name: str, space: Subsets, worth: Worth) -> None:
    strategy, told = build(name, space), []
    while (mixture := strategy.ask()) is not None:
        assert list(strategy.state()) == told
        assert len(told) <= strategy.expected() <= len(space)
        told.append((mixture, worth(frozenset(mixture.datasets))))
        strategy.tell(*told[-1])
    assert list(strategy.state()) == told
    assert len(told) <= strategy.expected() <= len(space)


def test_restored_at_any_cut_it_goes_on_as_if_uninterrupted(name: str, space: Subsets, worth: Worth) -> None:
    whole = run(build(name, space), worth)
    for cut in range(len(whole) + 1):
        part = run(build(name, space), worth, cut)
        resumed = restore(build(name, space), part)
        assert resumed.state() == part == whole[:cut]
        assert run(resumed, worth) == whole


def test_the_state_of_another_search_is_refused(name: str, space: Subsets) -> None:
    with pytest.raises(ValueError, match="another search"):
        restore(build(name, space), [(Mixture.union(["another"]), 1.0)])


def test_it_ends_where_no_neighbour_is_better(name: str, space: Subsets, worth: Worth) -> None:
    state = run(build(name, space), worth)
    values = {frozenset(mixture.datasets): value for mixture, value in state}
    if values:
        found = best(state)
        neighbours = [*space.larger(found), *space.smaller(found)]
        assert set(neighbours) <= set(values)
        assert all(values[neighbour] <= values[found] for neighbour in neighbours)


def test_what_is_found_does_not_depend_on_the_scale_of_the_objective(name: str, space: Subsets, worth: Worth) -> None:
    asked = [mixture for mixture, _ in run(build(name, space), worth)]
    assert [mixture for mixture, _ in run(build(name, space), lambda s: 1e-6 * worth(s) - 3)] == asked


def test_an_objective_that_is_no_number_is_never_gone_to(name: str, space: Subsets, worth: Worth) -> None:
    holed = lambda datasets: math.nan if "b" in datasets else worth(datasets)  # noqa: E731
    low = lambda datasets: -1e9 if "b" in datasets else worth(datasets)  # noqa: E731
    asked = [mixture for mixture, _ in run(build(name, space), holed)]
    assert asked == [mixture for mixture, _ in run(build(name, space), low)]


# --- exhaustive -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space_name", TRIED_WHOLE)
@pytest.mark.parametrize("seed", range(5))
def test_exhaustive_tries_all_and_so_finds_the_best(space_name: str, seed: int) -> None:
    space, worth = SPACES[space_name], rugged(seed)
    state = run(build("exhaustive", space), worth)
    assert [mixture for mixture, _ in state] == list(space)
    assert all(worth(best(state)) >= worth(frozenset(mixture.datasets)) for mixture in space)


# --- greedy -----------------------------------------------------------------------------------------------------------


def reference(names: str, worth: Worth) -> frozenset[str]:
    """Floating forward selection over all subsets, in ten lines: where it ends."""
    current = max((frozenset(name) for name in names), key=worth)
    while True:
        more = max((current | {name} for name in names if name not in current), key=worth, default=current)
        if worth(more) <= worth(current):
            return current
        current = more
        while len(current) > 1 and worth(less := max((current - {name} for name in current), key=worth)) > worth(current):
            current = less


@pytest.mark.parametrize("seed", range(40))
def test_greedy_ends_where_the_reference_does(seed: int) -> None:
    # a mean of values with noise: where adding helps at first and hurts later, as with real mixtures
    values = {name: random.Random(f"{seed}{name}").gauss(0, 1) for name in "abcdefg"}
    for worth in (rugged(seed), lambda s: math.fsum(values[x] for x in s) / len(s) ** 0.7 + 0.3 * rugged(seed)(s)):
        assert best(run(build("greedy", Subsets(tuple("abcdefg"))), worth)) == reference("abcdefg", worth)


@pytest.mark.parametrize("space_name", [name for name, space in SPACES.items() if len(space)])
@pytest.mark.parametrize("seed", range(5))
def test_greedy_finds_the_best_of_a_sum(space_name: str, seed: int) -> None:
    space = SPACES[space_name]
    worth = additive({name: random.Random(f"{seed}{name}").gauss(0, 1) for name in space.names})
    state = run(build("greedy", space), worth)
    assert worth(best(state)) == max(worth(frozenset(mixture.datasets)) for mixture in space)


def test_greedy_drops_a_dataset_that_has_come_to_hurt() -> None:
    # a is the best alone, ab and then abc are better, and bc, which no forward step reaches, is the best
    worth = table({"a": 3, "b": 2, "c": 1, "ab": 4, "ac": 3.5, "abc": 5, "bc": 6})
    space = Subsets(tuple("abc"))
    assert [("".join(mixture.datasets)) for mixture, _ in run(build("greedy", space), worth)] == [
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
    sizes = {len(mixture) for mixture, _ in run(build("greedy", Subsets(tuple("abcd"), 2)), worth)}
    assert sizes == {2, 3}


def test_greedy_prefers_fewer_datasets_and_then_the_first_by_name() -> None:
    state = run(build("greedy", Subsets(tuple("cab"))), lambda datasets: 1.0)
    assert [mixture.datasets for mixture, _ in state] == [("a",), ("b",), ("c",), ("a", "b"), ("a", "c")]


def test_greedy_takes_the_first_by_name_of_the_best() -> None:
    state = run(build("greedy", Subsets(tuple("abcd"))), table({"a": 1, "b": 2, "c": 2, "d": 1, "bd": 3, "ab": 3}))
    assert [mixture.datasets for mixture, _ in state[4:8]] == [("a", "b"), ("b", "c"), ("b", "d"), ("a", "b", "c")]


def test_greedy_tries_a_small_part_of_a_large_space() -> None:
    space = Subsets(tuple(f"d{i:02}" for i in range(40)))
    strategy = build("greedy", space)
    expected = strategy.expected()
    worth = additive({name: 1.0 + 0.1 * i for i, name in enumerate(space.names)})
    assert len(run(strategy, worth)) <= 2 * expected
    assert expected == 40 * 41 // 2


# --- build ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_free", "expected"), [(1, "exhaustive"), (12, "exhaustive"), (13, "greedy"), (40, "greedy")])
@pytest.mark.parametrize(("num_required", "num_forbidden"), [(0, 0), (3, 0), (0, 3), (2, 2)])
def test_auto_counts_the_datasets_that_may_be_in_or_out(
    num_free: int, expected: str, num_required: int, num_forbidden: int
) -> None:
    names = [f"d{i}" for i in range(num_free + num_required + num_forbidden)]
    fixed, out = frozenset(names[:num_required]), frozenset(names[num_required : num_required + num_forbidden])
    assert build("auto", Subsets(tuple(names), require=fixed, forbid=out)).name == expected


@pytest.mark.parametrize("name_", ["exhaustive", "greedy"])
def test_a_strategy_has_its_name(name_: str) -> None:
    assert build(name_, SPACES["all"]).name == name_


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(ValueError, match="'exhuastive'"):
        build("exhuastive", SPACES["all"])
