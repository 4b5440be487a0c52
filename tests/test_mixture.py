"""The laws of mixtures, spaces and scores, against brute force and numpy."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest

from mergetomix.mixture import Subsets
from mergetomix.records import Cost, Finetune, Mixture, Result, Row, Scores, Selection, Trial, gain, objective

LETTERS = "abcdefgh"


def random_space(seed: int) -> Subsets:
    """A space with random bounds and random required and forbidden names; it may be empty."""
    rng = random.Random(seed)
    names = rng.sample(LETTERS, rng.randint(1, 7))
    fate = {name: rng.choice(["free", "free", "free", "require", "forbid"]) for name in names}
    chosen = {kind: frozenset(name for name in names if fate[name] == kind) for kind in ("require", "forbid")}
    most = rng.choice([None, rng.randint(1, 8)])
    return Subsets(tuple(names), rng.randint(1, 4), most, chosen["require"], chosen["forbid"])


SPACES = [random_space(seed) for seed in range(60)]


def brute_force(space: Subsets) -> set[frozenset[str]]:
    """Every subset that the constraints allow, by their definition."""
    most = len(space.names) if space.most is None else space.most
    sets = (frozenset(s) for k in range(1, len(space.names) + 1) for s in itertools.combinations(space.names, k))
    return {s for s in sets if space.least <= len(s) <= most and space.require <= s and not space.forbid & s}


def sets_of(mixtures: list[Mixture]) -> list[frozenset[str]]:
    return [frozenset(mixture.datasets) for mixture in mixtures]


# --- a mixture --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("datasets", "weights", "named"),
    [
        ((), (), "at least one"),
        (("b", "a"), (0.5, 0.5), "sorted"),
        (("a", "a"), (0.5, 0.5), "distinct"),
        (("a", "b"), (1.0,), "2 datasets but 1 weights"),
        (("a", "b"), (1.5, -0.5), "non-negative"),
        (("a", "b"), (0.5, 0.4), "sum to 1"),
        (("a",), (math.nan,), "sum to 1"),
        (("a",), (math.inf,), "sum to 1"),
    ],
)
def test_what_is_no_mixture(datasets: tuple[str, ...], weights: tuple[float, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Mixture(datasets, weights)


def test_a_mixture_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Mixture.union("ab").weights = (1.0, 0.0)  # type: ignore[misc]


@pytest.mark.parametrize("order", list(itertools.permutations("abc")))
def test_a_union_does_not_depend_on_order_nor_on_repetition(order: tuple[str, ...]) -> None:
    union = Mixture.union([*order, order[0]])
    assert union == Mixture.union("abc")
    assert union.as_dict() == dict.fromkeys("abc", 1 / 3)
    assert (len(union), str(union)) == (3, "a + b + c")


@pytest.mark.parametrize("seed", range(10))
def test_a_union_by_size_gives_each_dataset_its_share_of_the_data(seed: int) -> None:
    rng = random.Random(seed)
    sizes = {name: rng.uniform(0.1, 1000) for name in LETTERS}
    names = rng.sample(LETTERS, 4)
    shares = Mixture.union(names, sizes).as_dict()
    assert sum(shares.values()) == pytest.approx(1)
    for one, other in itertools.combinations(names, 2):
        assert shares[one] / shares[other] == pytest.approx(sizes[one] / sizes[other])
    assert Mixture.union(names, {name: 10 * size for name, size in sizes.items()}).as_dict() == pytest.approx(shares)
    assert Mixture.union(names, dict.fromkeys(names, 7)) == Mixture.union(names)


def test_a_union_needs_the_size_of_each() -> None:
    with pytest.raises(KeyError, match="b"):
        Mixture.union("ab", {"a": 1})
    with pytest.raises(ValueError, match="at least one"):
        Mixture.union([])


# --- a space ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_space_holds_what_its_constraints_allow_each_once(space: Subsets) -> None:
    expected, found = brute_force(space), sets_of(list(space))
    assert set(found) == expected
    assert len(found) == len(space) == len(expected)
    every = itertools.chain.from_iterable(itertools.combinations(LETTERS, k) for k in range(9))
    assert {frozenset(s) for s in every if frozenset(s) in space} == expected


def test_only_a_set_of_names_can_be_in_a_space() -> None:
    space = Subsets(("a", "b"))
    assert frozenset("a") in space
    assert all(thing not in space for thing in ("a", ("a",), {"a"}, Mixture.union("a"), frozenset(), frozenset("z")))


@pytest.mark.parametrize("num", range(1, 9))
def test_neighbours_in_gray_order_differ_by_one_dataset(num: int) -> None:
    sets = sets_of(list(Subsets(tuple(LETTERS[:num]))))
    assert all(len(one ^ other) == 1 for one, other in itertools.pairwise(sets))


@pytest.mark.parametrize("space", SPACES[:20], ids=str)
def test_the_order_is_that_of_the_binary_reflected_gray_code(space: Subsets) -> None:
    codes = (code ^ (code >> 1) for code in range(1 << len(space.free)))
    sets = [space.require | {name for bit, name in enumerate(space.free) if code >> bit & 1} for code in codes]
    assert sets_of(list(space)) == [s for s in sets if s in space]


def test_a_small_space_over_many_datasets_is_gone_through_at_once() -> None:
    space = Subsets(tuple(f"d{i:03}" for i in range(40)), 1, 3)
    assert sum(1 for _ in space) == len(space) == 40 + math.comb(40, 2) + math.comb(40, 3)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_one_more_and_one_less_are_neighbours_in_the_space(space: Subsets) -> None:
    members = brute_force(space)
    for member in members:
        near = {other for other in members if len(other ^ member) == 1}
        larger, smaller = space.larger(member), space.smaller(member)
        assert len(set(larger)) == len(larger)
        assert set(larger) == {other for other in near if other > member}
        assert set(smaller) == {other for other in near if other < member}
        assert len(set(smaller)) == len(smaller)


@pytest.mark.parametrize(
    "fields",
    [
        {"require": frozenset("z")},
        {"forbid": frozenset("z")},
        {"require": frozenset("a"), "forbid": frozenset("a")},
        {"names": ("a", "a")},
    ],
)
def test_a_space_that_contradicts_itself_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"names must be distinct|required and forbidden"):
        Subsets(**{"names": ("a", "b"), **fields})  # type: ignore[arg-type]


def test_the_sizes_of_the_datasets_weigh_every_mixture() -> None:
    space = Subsets(("b", "a"), sizes={"a": 1, "b": 3})
    assert {mixture.datasets: mixture.weights for mixture in space} == {
        ("a",): (1.0,),
        ("b",): (1.0,),
        ("a", "b"): (0.25, 0.75),
    }
    assert space.sample(3, 0)[-1] in list(space)


# --- draws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("num", [0, 1, 5, 500])
def test_a_draw_is_distinct_in_the_space_and_seeded(space: Subsets, num: int) -> None:
    drawn = space.sample(num, seed=3)
    assert len(drawn) == len(set(drawn)) == min(num, len(space))
    assert set(sets_of(drawn)) <= brute_force(space)
    assert space.sample(num, seed=3) == drawn


def test_seeds_differ_and_a_longer_draw_goes_on_from_a_shorter() -> None:
    space = Subsets(tuple(LETTERS))
    assert space.sample(5, 0) != space.sample(5, 1)
    assert space.sample(9, 0)[:5] == space.sample(5, 0)


@pytest.mark.parametrize(
    "space",
    [Subsets(tuple("abcd")), Subsets(tuple("abcde"), 2, 3), Subsets(tuple("abcde"), 1, 4, frozenset("b"), frozenset("c"))],
    ids=str,
)
def test_each_mixture_is_equally_likely(space: Subsets) -> None:
    num = 100 * len(space)
    counts = Counter(space.sample(1, seed)[0].datasets for seed in range(num))
    observed = np.array([counts[mixture.datasets] for mixture in space])
    chi_square = float(((observed - 100) ** 2 / 100).sum())
    freedom = len(space) - 1
    # five standard deviations; sizes drawn first and sets second, without weights, would give hundreds
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_the_mean_is_weighted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, weights = rng.normal(size=50), rng.integers(1, 100, size=50).astype(float)
    scores = Scores("loss", tuple(values), tuple(weights))
    assert scores.mean == pytest.approx(np.average(values, weights=weights), abs=1e-12)
    order = rng.permutation(50)
    assert Scores("loss", tuple(values[order]), tuple(weights[order])).mean == scores.mean
    assert scores.as_dict() == {"loss": scores.mean, "num_examples": 50}


def test_small_values_are_not_lost_beside_large_ones() -> None:
    assert Scores("score", (1e16, 1.0, -1e16, 1.0), (1.0,) * 4).mean == 0.5


@pytest.mark.parametrize(
    ("values", "weights", "named"),
    [((), (), "at least one"), ((1.0,), (), "1 values, 0 weights"), ((1.0, 0.0), (1.0,), "2 values, 1 weights")],
)
def test_what_are_no_scores(values: tuple[float, ...], weights: tuple[float, ...], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Scores("score", values, weights)


def loss(value: float) -> Scores:
    return Scores("loss", (value,), (1.0,))


def score(value: float) -> Scores:
    return Scores("score", (value,), (1.0,))


@pytest.mark.parametrize(("make", "sign"), [(loss, -1), (score, 1)])
def test_a_gain_is_positive_where_the_model_is_better(make: object, sign: int) -> None:
    assert callable(make)
    for better in (0.01, 0.3):
        assert gain(make(0.5 + sign * better), make(0.5)) > 0 > gain(make(0.5 - sign * better), make(0.5))
    assert gain(make(0.5), make(0.5)) == 0


def test_a_gain_is_a_fraction_of_the_loss_or_a_difference_of_scores() -> None:
    assert gain(loss(1.5), loss(2.0)) == 0.25
    assert gain(loss(3.0), loss(4.0)) == pytest.approx(gain(loss(0.3), loss(0.4))) == pytest.approx(0.25)
    assert gain(score(0.75), score(0.5)) == 0.25
    assert gain(loss(0.5), loss(0.0)) == -0.5


def test_the_objective_weighs_the_targets() -> None:
    base, model = {"l": loss(2.0), "s": score(0.5)}, {"l": loss(1.0), "s": score(0.4)}
    assert objective(model, base, {"l": 1, "s": 1}) == pytest.approx((0.5 - 0.1) / 2)
    assert objective(model, base, {"l": 3, "s": 1}) == pytest.approx((3 * 0.5 - 0.1) / 4)
    assert objective(model, base, {"l": 30, "s": 10}) == pytest.approx(objective(model, base, {"l": 3, "s": 1}))
    assert objective(base, base, {"l": 3, "s": 1}) == 0
    assert objective(model, base, {"s": 2}) == pytest.approx(-0.1)


def test_a_better_target_makes_the_objective_better() -> None:
    base, weights = {"l": loss(2.0), "s": score(0.5)}, {"l": 0.1, "s": 5.0}
    one = objective({"l": loss(1.0), "s": score(0.5)}, base, weights)
    assert objective({"l": loss(0.9), "s": score(0.5)}, base, weights) > one
    assert objective({"l": loss(1.0), "s": score(0.6)}, base, weights) > one


# --- what a run gives -------------------------------------------------------------------------------------------------


def test_an_expert_has_one_dataset() -> None:
    assert Finetune(Mixture.union("a"), "k", "p", 1, 1, 0.0).dataset == "a"
    with pytest.raises(ValueError, match=r"a \+ b"):
        _ = Finetune(Mixture.union("ab"), "k", "p", 1, 1, 0.0).dataset


def test_the_best_expert_is_known_whether_or_not_it_was_a_trial() -> None:
    trials = [Trial(Mixture.union(names), {}, value) for names, value in [("ab", 3.0), ("b", 2.0), ("a", 1.0)]]
    singles = tuple(trials[1:])
    assert Selection(trials[0].mixture, tuple(trials), "greedy", {}, singles).best_expert is trials[1]
    assert Selection(trials[0].mixture, tuple(trials[:1]), "greedy", {}, singles).best_expert is trials[1]


def test_a_result_finds_its_rows_and_adds_up_its_cost() -> None:
    mixture = Mixture.union("ab")
    rows = tuple(Row(f"{kind} {i}", kind, mixture, {}, 0.0) for i in range(2) for kind in ("base", "random"))
    cost = Cost(1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
    result = Result(Selection(mixture, (), "greedy", {}, ()), None, (), rows, cost, {}, "run")
    assert result.selected == mixture
    assert (result.row("random"), result.row("final")) == (rows[1], None)
    assert cost.total_s == 31.0
