"""The laws of mixtures, spaces and scores, against brute force and numpy."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from mergetomix.mixtures.spaces import Simplex, Subsets, nearest_in_box
from mergetomix.objectives.objective import Objective
from mergetomix.records import Finetune, Mixture, Scores, Trial, gain
from mergetomix.results import Cost, Decision, Result, Row, Selection

LETTERS = "abcdefgh"


drawn = settings(deadline=None, max_examples=60, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def fields(draw: st.DrawFn) -> dict[str, Any]:
    """The fields of a space with any bounds, fates and groups; they may contradict each other."""
    names = draw(st.permutations(LETTERS))[: draw(st.integers(1, 7))]
    fates = {name: draw(st.sampled_from(["free", "free", "require", "forbid"])) for name in names}
    chosen = {
        kind: frozenset(name for name in names if fates[name] == kind)
        for kind in ("require", "forbid")
    }
    grouped = len(names) > 4 and draw(st.booleans())
    return {
        "names": tuple(names),
        "least": draw(st.integers(1, 4)),
        "most": draw(st.none() | st.integers(1, 8)),
        **chosen,
        "groups": (frozenset(names[:2]), frozenset(names[2:5])) if grouped else (),
    }


def brute_force(names: tuple[str, ...], **fields: Any) -> set[frozenset[str]]:
    """Every subset that the constraints allow, by their definition."""
    most = len(names) if fields["most"] is None else fields["most"]
    sets = (
        frozenset(s) for k in range(1, len(names) + 1) for s in itertools.combinations(names, k)
    )
    sized = (
        s
        for s in sets
        if fields["least"] <= len(s) <= most and fields["require"] <= s and not fields["forbid"] & s
    )
    return {s for s in sized if all(group <= s or not group & s for group in fields["groups"])}


def fields_of(space: Subsets) -> dict[str, Any]:
    return {
        field.name: getattr(space, field.name)
        for field in dataclasses.fields(space)
        if field.name != "sizes"
    }


def is_split(fields: dict[str, Any]) -> bool:
    return any(group & fields["forbid"] and group - fields["forbid"] for group in fields["groups"])


@st.composite
def spaces(draw: st.DrawFn) -> Subsets:
    """A space of subsets that has any."""
    found = draw(fields())
    assume(brute_force(**found) and not is_split(found))
    return Subsets(**found)


GROUPED = Subsets(tuple("abcdef"), 2, 4, groups=(frozenset("abc"), frozenset("de")))


def sets_of(mixtures: list[Mixture]) -> list[frozenset[str]]:
    return [frozenset(mixture.datasets) for mixture in mixtures]


# --- a mixture


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
def test_what_is_no_mixture(
    datasets: tuple[str, ...], weights: tuple[float, ...], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        Mixture(datasets, weights)


def test_a_mixture_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Mixture.union("ab").weights = (1.0, 0.0)  # type: ignore[misc]


def test_a_union_does_not_depend_on_order_nor_on_repetition() -> None:
    for order in itertools.permutations("abc"):
        union = Mixture.union([*order, order[0]])
        assert union == Mixture.union("abc")
        assert union.as_dict() == dict.fromkeys("abc", 1 / 3)
        assert (len(union), str(union)) == (3, "a + b + c")


@given(
    sizes=st.dictionaries(st.sampled_from(LETTERS), st.floats(0.1, 1000), min_size=2),
    factor=st.floats(0.01, 100),
)
@drawn
def test_a_union_by_size_gives_each_dataset_its_share_of_the_data(
    sizes: dict[str, float], factor: float
) -> None:
    shares = Mixture.union(sizes, sizes).as_dict()
    assert sum(shares.values()) == pytest.approx(1)
    for one, other in itertools.combinations(sizes, 2):
        assert shares[one] / shares[other] == pytest.approx(sizes[one] / sizes[other])
    scaled = {name: factor * size for name, size in sizes.items()}
    assert Mixture.union(sizes, scaled).as_dict() == pytest.approx(shares)
    assert Mixture.union(sizes, dict.fromkeys(sizes, 7)) == Mixture.union(sizes)


def test_the_weights_of_a_union_are_of_its_merge_and_not_said() -> None:
    union = Mixture.union("ab", {"a": 1, "b": 3})
    assert str(union) == "a + b" and union.weights == (0.25, 0.75)
    shares = Mixture(("a", "b"), (0.25, 0.75))
    assert str(shares) == "0.25 a + 0.75 b" and shares == union and hash(shares) == hash(union)


def test_a_union_needs_the_size_of_each() -> None:
    with pytest.raises(KeyError, match="b"):
        Mixture.union("ab", {"a": 1})
    with pytest.raises(ValueError, match="at least one"):
        Mixture.union([])


# --- a space


@given(space=spaces())
@example(space=GROUPED)
@drawn
def test_a_space_holds_what_its_constraints_allow_each_once(space: Subsets) -> None:
    expected, found = brute_force(**fields_of(space)), sets_of(list(space))
    assert set(found) == expected
    assert len(found) == len(space) == len(expected)
    every = itertools.chain.from_iterable(itertools.combinations(LETTERS, k) for k in range(9))
    assert {frozenset(s) for s in every if frozenset(s) in space} == expected


def test_only_a_set_of_names_can_be_in_a_space() -> None:
    space = Subsets(("a", "b"))
    assert frozenset("a") in space
    assert all(
        thing not in space
        for thing in ("a", ("a",), {"a"}, Mixture.union("a"), frozenset(), frozenset("z"))
    )


def test_neighbours_in_gray_order_differ_by_one_dataset() -> None:
    for num in range(1, 9):
        sets = sets_of(list(Subsets(tuple(LETTERS[:num]))))
        assert all(len(one ^ other) == 1 for one, other in itertools.pairwise(sets))


@given(space=spaces())
@example(space=GROUPED)
@drawn
def test_the_order_is_that_of_the_binary_reflected_gray_code(space: Subsets) -> None:
    codes = (code ^ (code >> 1) for code in range(1 << len(space.units)))
    sets = [
        space.fixed.union(*(unit for bit, unit in enumerate(space.units) if code >> bit & 1))
        for code in codes
    ]
    assert sets_of(list(space)) == [s for s in sets if s in space]


def test_a_small_space_over_many_datasets_is_gone_through_at_once() -> None:
    space = Subsets(tuple(f"d{i:03}" for i in range(40)), 1, 3)
    assert sum(1 for _ in space) == len(space) == 40 + math.comb(40, 2) + math.comb(40, 3)


@given(space=spaces())
@example(space=GROUPED)
@drawn
def test_neighbours_differ_by_a_unit_more_less_or_another(space: Subsets) -> None:
    members = brute_force(**fields_of(space))
    units = set(space.units)
    assert frozenset().union(*units, space.fixed) == set(space.allowed)
    for member in members:
        near = {
            "larger": {other for other in members if other > member and other - member in units},
            "smaller": {other for other in members if other < member and member - other in units},
            "exchanged": {
                other for other in members if other - member in units and member - other in units
            },
        }
        for name, expected in near.items():
            found = getattr(space, name)(member)
            assert len(set(found)) == len(found)
            assert set(found) == expected


@given(space=spaces())
@example(space=GROUPED)
@drawn
def test_the_smallest_has_the_fewest_datasets(space: Subsets) -> None:
    members = brute_force(**fields_of(space))
    assert space.smallest() in members
    assert len(space.smallest()) == space.bounds[0] == min(map(len, members))
    assert space.bounds[1] == max(map(len, members))
    assert space.num_by_size == Counter(map(len, members))


@given(found=fields())
@drawn
def test_a_space_is_refused_exactly_if_it_is_empty_or_splits_a_group(found: dict[str, Any]) -> None:
    if brute_force(**found) and not is_split(found):
        assert Subsets(**found).size == len(brute_force(**found))
        return
    with pytest.raises(ValueError, match=r"no mixture has|go together"):
        Subsets(**found)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"require": frozenset("z")}, "require: z unknown"),
        ({"forbid": frozenset("z")}, "forbid: z unknown"),
        ({"groups": (frozenset("az"),)}, "groups: z unknown"),
        ({"require": frozenset("ab"), "forbid": frozenset("a")}, "a both required and forbidden"),
        ({"names": ("a", "a", "b", "c")}, "distinct"),
        ({"groups": (frozenset("ab"), frozenset("bc"))}, "groups: b in two"),
        ({"groups": (frozenset("a"),)}, "at least two datasets, not 1"),
        (
            {"groups": (frozenset("ab"),), "forbid": frozenset("b")},
            r"a \+ b go together, but of them only b is forbidden",
        ),
        (
            {"groups": (frozenset("ab"),), "require": frozenset("a"), "forbid": frozenset("b")},
            "a is required, b forbidden",
        ),
        ({"least": 3, "most": 2}, "at least 3 and at most 2"),
        ({"most": 1, "require": frozenset("ab")}, r"at most 1 datasets with all of \['a', 'b'\]"),
        ({"least": 2, "forbid": frozenset("ab")}, r"none of \['a', 'b'\]"),
        (
            {"least": 2, "most": 2, "groups": (frozenset("abc"),)},
            r"all or none of \['a', 'b', 'c'\]",
        ),
        ({"sizes": {"a": 1.0, "b": 0.0, "c": 2.0}}, "sizes.b must be positive, not 0.0"),
    ],
)
def test_a_contradiction_is_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Subsets(**{"names": ("a", "b", "c"), **fields})


def test_a_space_of_a_hundred_datasets_can_be_counted_and_drawn_from() -> None:
    space = Subsets(tuple(f"d{i:03}" for i in range(100)))
    assert space.size == 2**100 - 1
    assert len(set(space.sample(50, 0))) == 50


def test_the_sizes_of_the_datasets_weigh_every_mixture() -> None:
    space = Subsets(("b", "a"), sizes={"a": 1, "b": 3})
    assert {mixture.datasets: mixture.weights for mixture in space} == {
        ("a",): (1.0,),
        ("b",): (1.0,),
        ("a", "b"): (0.25, 0.75),
    }
    assert space.sample(3, 0)[-1] in list(space)


# --- draws


@given(space=spaces(), num=st.integers(0, 200), seed=seeds)
@example(space=GROUPED, num=5, seed=3)
@drawn
def test_a_draw_is_distinct_in_the_space_and_seeded(space: Subsets, num: int, seed: int) -> None:
    found = space.sample(num, seed)
    assert len(found) == len(set(found)) == min(num, len(space))
    assert set(sets_of(found)) <= brute_force(**fields_of(space))
    assert space.sample(num, seed) == found


def test_seeds_differ_and_a_longer_draw_goes_on_from_a_shorter() -> None:
    space = Subsets(tuple(LETTERS))
    assert space.sample(5, 0) != space.sample(5, 1)
    assert space.sample(9, 0)[:5] == space.sample(5, 0)


@pytest.mark.parametrize(
    "space",
    [
        Subsets(tuple("abcd")),
        Subsets(tuple("abcde"), 1, 4, frozenset("b"), frozenset("c")),
        GROUPED,
    ],
    ids=["all", "fates", "groups"],
)
def test_each_mixture_is_equally_likely(space: Subsets) -> None:
    num = 100 * len(space)
    counts = Counter(space.sample(1, seed)[0].datasets for seed in range(num))
    observed = np.array([counts[mixture.datasets] for mixture in space])
    chi_square = float(((observed - 100) ** 2 / 100).sum())
    freedom = len(space) - 1
    # five standard deviations; sizes drawn first and sets second would give hundreds
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)


# --- weights


@st.composite
def simplexes(draw: st.DrawFn) -> Simplex:
    """A space of weights that has any."""
    found = draw(fields())
    shares = st.sampled_from([0.05, 0.1, 0.2, 0.3, 0.5, 0.9, 3.0])
    caps = draw(st.dictionaries(st.sampled_from(found["names"]), shares))
    del found["groups"]
    try:
        return Simplex(**found, min_share=draw(st.sampled_from([0, 0.05, 0.1, 0.25])), caps=caps)
    except ValueError:
        assume(False)
        raise


EXACT = Simplex(tuple("abcde"), caps=dict.fromkeys("abcde", 0.2))
"""Its caps leave one point."""


@given(space=simplexes(), seed=seeds)
@example(space=EXACT, seed=0)
@example(space=Simplex(("a",)), seed=0)
@example(space=Simplex(tuple("abcd"), min_share=0.25, least=4), seed=0)
@drawn
def test_what_a_simplex_gives_is_in_it(space: Simplex, seed: int) -> None:
    rng = np.random.default_rng(seed)
    wild = [
        space.nearest(dict(zip(space.names, row, strict=True)))
        for row in rng.normal(0, 2, (20, len(space.names)))
    ]
    sample = space.sample(20, seed)
    for mixture in [*sample, *wild, *space.vertices(), space.uniform()]:
        assert mixture in space
        assert all(
            space.min_share - 1e-9 <= weight <= space.cap(name) + 1e-9
            for name, weight in mixture.as_dict().items()
        )
        assert space.require <= set(mixture.datasets) <= set(space.allowed)
        assert space.bounds[0] <= len(mixture) <= space.bounds[1]
    assert sample == space.sample(20, seed)


@given(space=simplexes())
@drawn
def test_a_mixture_outside_is_not_in_a_simplex(space: Simplex) -> None:
    inside = space.uniform()
    assert inside in space
    assert Mixture.union(["another"]) not in space
    assert inside.as_dict() not in space
    for name in space.forbid:
        assert Mixture.union([*inside.datasets, name]) not in space


def test_bounds_caps_and_least_shares_are_heeded() -> None:
    space = Simplex(tuple("abc"), 2, 2, min_share=0.2, caps={"a": 0.6})
    of = lambda **shares: Mixture.union(shares, shares)  # noqa: E731
    assert of(a=0.6, b=0.4) in space
    assert of(a=0.7, b=0.3) not in space
    assert of(b=0.9, c=0.1) not in space
    assert of(b=1) not in space
    assert of(a=0.3, b=0.3, c=0.4) not in space


@given(seed=seeds, num=st.integers(1, 6))
@drawn
def test_a_projection_is_the_nearest_point(seed: int, num: int) -> None:
    rng = np.random.default_rng(seed)
    low, high = rng.uniform(0, 1 / num, num), rng.uniform(1 / num, 1, num)
    point = rng.normal(0, 1, num)
    found = nearest_in_box(point, low, high)
    assert found.sum() == pytest.approx(1)
    assert (found >= low - 1e-9).all() and (found <= high + 1e-9).all()
    # the nearest point of a convex set: no direction to another point of it leads towards `point`
    for _ in range(20):
        other = nearest_in_box(rng.normal(0, 1, num), low, high)
        assert (point - found) @ (other - found) <= 1e-7
    assert nearest_in_box(found, low, high) == pytest.approx(found)


def test_without_constraints_weights_are_drawn_from_a_dirichlet_given_their_number() -> None:
    space = Simplex(tuple("abc"), 3)
    weights = np.array([mixture.weights for mixture in space.sample(4000, 0)])
    # each weight is Beta(1, 2): mean 1/3, variance 1/18
    assert weights.mean(axis=0) == pytest.approx([1 / 3] * 3, abs=0.02)
    assert weights.var(axis=0) == pytest.approx([1 / 18] * 3, abs=0.005)


def test_vertices_are_datasets_alone_where_caps_let_them() -> None:
    assert {mixture.datasets for mixture in Simplex(tuple("abc")).vertices()} == {
        ("a",),
        ("b",),
        ("c",),
    }
    capped = Simplex(tuple("abc"), caps=dict.fromkeys("abc", 0.5)).vertices()
    assert all(max(mixture.weights) == pytest.approx(0.5) for mixture in capped)
    assert Simplex(tuple("abc")).uniform().weights == pytest.approx((1 / 3,) * 3)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"require": frozenset("z")}, "require: z unknown"),
        ({"caps": {"z": 0.5}}, "caps: z unknown"),
        ({"caps": {"a": 0.0}}, "caps.a must be positive"),
        ({"caps": dict.fromkeys("abc", 0.3)}, "caps: no 3 datasets together"),
        ({"most": 1, "caps": dict.fromkeys("abc", 0.5)}, "caps: no 1 datasets together"),
        ({"min_share": 0.5, "least": 3}, "min_share: 3 datasets of at least 0.5"),
        ({"min_share": 1.5}, "min_share must be from 0 to 1"),
        (
            {"min_share": 0.4, "caps": {"a": 0.3}, "require": frozenset("a")},
            "a is required, but its cap of 0.3",
        ),
        ({"least": 2, "forbid": frozenset("ab")}, "at least 2 and at most 1"),
        ({"require": frozenset("a"), "forbid": frozenset("a")}, "a both required and forbidden"),
    ],
)
def test_a_contradiction_of_weights_is_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Simplex(**{"names": ("a", "b", "c"), **fields})


def test_a_support_that_no_mixture_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"exactly the datasets \['a'\]"):
        Simplex(tuple("abc"), caps={"a": 0.5}).project({"a": 1.0}, frozenset("a"))


# --- scores


@given(seed=seeds, num=st.integers(1, 50))
@drawn
def test_the_mean_is_weighted(seed: int, num: int) -> None:
    rng = np.random.default_rng(seed)
    values, weights = rng.normal(size=num), rng.integers(1, 100, size=num).astype(float)
    scores = Scores("loss", tuple(values), tuple(weights))
    assert scores.mean == pytest.approx(np.average(values, weights=weights), abs=1e-12)
    order = rng.permutation(num)
    assert Scores("loss", tuple(values[order]), tuple(weights[order])).mean == scores.mean
    assert scores.as_dict() == {"loss": scores.mean, "num_examples": num}


def test_small_values_are_not_lost_beside_large_ones() -> None:
    assert Scores("score", (1e16, 1.0, -1e16, 1.0), (1.0,) * 4).mean == 0.5


@pytest.mark.parametrize(
    ("values", "weights", "named"),
    [
        ((), (), "at least one"),
        ((1.0,), (), "1 values, 0 weights"),
        ((1.0, 0.0), (1.0,), "2 values, 1 weights"),
    ],
)
def test_what_are_no_scores(
    values: tuple[float, ...], weights: tuple[float, ...], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        Scores("score", values, weights)


def loss(value: float) -> Scores:
    return Scores("loss", (value,), (1.0,))


def score(value: float) -> Scores:
    return Scores("score", (value,), (1.0,))


@pytest.mark.parametrize(("make", "sign"), [(loss, -1), (score, 1)])
def test_a_gain_is_positive_if_the_model_is_better(
    make: Callable[[float], Scores], sign: int
) -> None:
    for better in (0.01, 0.3):
        assert (
            gain(make(0.5 + sign * better), make(0.5))
            > 0
            > gain(make(0.5 - sign * better), make(0.5))
        )
    assert gain(make(0.5), make(0.5)) == 0


def test_a_gain_is_a_fraction_of_the_loss_or_a_difference_of_scores() -> None:
    assert gain(loss(1.5), loss(2.0)) == 0.25
    assert (
        gain(loss(3.0), loss(4.0))
        == pytest.approx(gain(loss(0.3), loss(0.4)))
        == pytest.approx(0.25)
    )
    assert gain(score(0.75), score(0.5)) == 0.25
    assert gain(loss(0.5), loss(0.0)) == -0.5


def weighted(model: dict[str, Scores], base: dict[str, Scores], weights: dict[str, float]) -> float:
    return Objective(weights).of(model, base)


def test_the_objective_weighs_the_targets() -> None:
    base, model = {"l": loss(2.0), "s": score(0.5)}, {"l": loss(1.0), "s": score(0.4)}
    assert weighted(model, base, {"l": 1, "s": 1}) == pytest.approx((0.5 - 0.1) / 2)
    assert weighted(model, base, {"l": 3, "s": 1}) == pytest.approx((3 * 0.5 - 0.1) / 4)
    assert weighted(model, base, {"l": 30, "s": 10}) == pytest.approx(
        weighted(model, base, {"l": 3, "s": 1})
    )
    assert weighted(base, base, {"l": 3, "s": 1}) == 0
    assert weighted(model, base, {"s": 2}) == pytest.approx(-0.1)


def test_a_better_target_makes_the_objective_better() -> None:
    base, weights = {"l": loss(2.0), "s": score(0.5)}, {"l": 0.1, "s": 5.0}
    one = weighted({"l": loss(1.0), "s": score(0.5)}, base, weights)
    assert weighted({"l": loss(0.9), "s": score(0.5)}, base, weights) > one
    assert weighted({"l": loss(1.0), "s": score(0.6)}, base, weights) > one


# --- what a run gives


def test_an_expert_has_one_dataset() -> None:
    assert Finetune(Mixture.union("a"), "k", "p", 1, 1, 0.0).dataset == "a"
    with pytest.raises(ValueError, match=r"a \+ b"):
        _ = Finetune(Mixture.union("ab"), "k", "p", 1, 1, 0.0).dataset


def test_the_best_expert_is_known_whether_or_not_it_was_a_trial() -> None:
    trials = [
        Trial(Mixture.union(names), {}, value)
        for names, value in [("ab", 3.0), ("b", 2.0), ("a", 1.0)]
    ]
    singles = tuple(trials[1:])
    assert (
        Selection(trials[0].mixture, tuple(trials), "greedy", {}, singles).best_expert is trials[1]
    )
    assert (
        Selection(trials[0].mixture, tuple(trials[:1]), "greedy", {}, singles).best_expert
        is trials[1]
    )


def test_a_result_finds_its_rows_and_adds_up_its_cost() -> None:
    mixture = Mixture.union("ab")
    rows = tuple(
        Row(f"{kind} {i}", kind, mixture, {}, 0.0) for i in range(2) for kind in ("base", "random")
    )
    cost = Cost(1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
    decision = Decision("mixture", mixture, (), mixture, None, is_measured=False)
    selection = Selection(mixture, (), "greedy", {}, ())
    result = Result(selection, None, (), rows, decision, cost, {}, "run")
    assert result.selected == mixture
    assert (result.row("random"), result.row("final")) == (rows[1], None)
    assert cost.total_s == 63.0
