"""The decision: which kind it is, and that nothing below it contradicts it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergetomix.mixtures.spaces import Subsets
from mergetomix.objectives.objective import Objective
from mergetomix.records import Estimate, Merging, Mixture, Scores
from mergetomix.report import decision as words
from mergetomix.results import (
    Alternative,
    Cost,
    Prediction,
    Result,
    Row,
    Selection,
    Verification,
)
from mergetomix.stages.decision import Evidence, decide, verdict_of, with_intervals
from mergetomix.statistics import bootstrap

NAMES = ("a", "b", "c")
SPACE = Subsets(NAMES, 1, 3)
A, B, AB, ABC = (Mixture.union(each) for each in ("a", "b", "ab", "abc"))
OBJECTIVE = Objective({"t": 1.0})
NUM = 200


def scores(gain: float, noise: float = 0.05, seed: int = 0, num: int = NUM) -> Scores:
    """Losses of a model that is better than a base of loss one by `gain`, exactly."""
    drawn = np.random.default_rng(seed).normal(0, noise, num)
    values = 1.0 - gain + drawn - drawn.mean()
    return Scores("loss", tuple(values.tolist()), (1.0,) * num)


BASE = {"t": Scores("loss", (1.0,) * NUM, (1.0,) * NUM)}


def row(name: str, kind: Any, mixture: Mixture | None, gain: float, **how: Any) -> Row:
    return Row(name, kind, mixture, {"t": scores(gain, seed=sum(name.encode()), **how)}, gain)


def table(*rows: Row) -> tuple[Row, ...]:
    return with_intervals([Row("base", "base", None, BASE, 0.0), *rows], OBJECTIVE)


def verification(pick: Mixture, *alternatives: Mixture) -> Verification:
    found = [Prediction(each, 0.1, 0.1, 0.05, 0.15, 0.4, True) for each in (pick, *alternatives)]
    others = tuple(Alternative(each, 0.01, 0.02, 0.3) for each in alternatives)
    merging = Merging("equal", 1.0)
    return Verification(pick, (), tuple(found), others, {}, merging, 0.9, "the budget is spent")


def evidence(
    rows: tuple[Row, ...], pick: Mixture, *alternatives: Mixture, checked: bool = True
) -> Evidence:
    selection = Selection(pick, (), "exhaustive", BASE, ())
    return Evidence(
        selection,
        verification(pick, *alternatives) if checked else None,
        rows,
        OBJECTIVE,
        lambda each: frozenset(each.members) in SPACE,
        lambda each: 100 * len(each),
        ABC,
    )


def test_a_pick_that_beats_everything_is_what_to_train_on() -> None:
    rows = table(row("selected", "final", AB, 0.1), row("all datasets", "all", ABC, 0.05))
    found = decide(evidence(rows, AB))
    assert (found.kind, found.mixture, found.others) == ("mixture", AB, ())
    assert found.headline == "Train on a + b."
    assert [each.verdict for each in found.comparisons] == ["better than"] * 2


def test_all_datasets_are_everything() -> None:
    found = decide(evidence(table(row("selected", "final", ABC, 0.1)), ABC))
    assert found.kind == "everything" and found.headline == "Train on everything: a + b + c."


def test_what_cannot_be_told_apart_is_named_and_the_cheaper_too() -> None:
    rows = table(row("selected", "final", AB, 0.1), row("expert a", "expert", A, 0.0998))
    found = decide(evidence(rows, AB, A, ABC))
    assert (found.kind, found.others, found.cheapest) == ("either", (A, ABC), A)
    assert "Train on a + b or on a: they cannot be told apart" in found.headline
    dearer = decide(evidence(table(row("selected", "final", AB, 0.1)), AB, ABC))
    assert dearer.cheapest == AB and dearer.headline == "Train on a + b."


def test_what_the_report_part_shows_to_be_worse_is_told_apart() -> None:
    rows = table(row("selected", "final", AB, 0.1), row("all datasets", "all", ABC, 0.02))
    assert decide(evidence(rows, AB, ABC)).others == ()


def test_a_base_that_nothing_beats_is_kept() -> None:
    rows = table(row("selected", "final", AB, -0.1), row("expert a", "expert", A, -0.05))
    found = decide(evidence(rows, AB))
    assert found.kind == "base" and found.headline.startswith("Do not fine-tune")
    # what harms least is no reason to train on it
    assert decide(evidence(table(row("selected", "final", AB, 0.0)), AB)).kind == "base"


def test_too_few_examples_say_how_many_more() -> None:
    base = {"t": Scores("loss", (1.0,) * 20, (1.0,) * 20)}
    one = Row("selected", "final", AB, {"t": scores(0.01, 0.05, num=20)}, 0.01)
    rows = with_intervals([Row("base", "base", None, base, 0.0), one], OBJECTIVE)
    found = decide(evidence(rows, AB))
    assert found.kind == "more" and found.num_more is not None
    # a gain of .01 with a standard deviation of .05 takes (1.645 * 5)^2 examples in all
    assert 15 < found.num_more < 75
    assert f"about {found.num_more} more would" in found.headline


def test_what_is_shown_to_be_better_than_the_pick_takes_its_place() -> None:
    rows = table(row("selected", "final", AB, 0.02), row("random 1", "random", ABC, 0.1))
    found = decide(evidence(rows, AB))
    assert (found.mixture, found.kind) == (ABC, "everything")
    # what the search may not choose does not
    narrow = Subsets(NAMES, 1, 2)
    kept = replace(evidence(rows, AB), may_choose=lambda each: frozenset(each.members) in narrow)
    assert decide(kept).mixture == AB


def test_what_alone_beats_the_base_takes_the_place_of_the_pick() -> None:
    noisy = row("selected", "final", AB, 0.004, noise=0.05)
    rows = table(noisy, row("expert a", "expert", A, 0.005, noise=0.005))
    found = decide(evidence(rows, AB))
    assert found.mixture == A and found.gain is not None and found.gain.low > 0
    assert AB in found.others


def test_without_a_fine_tune_it_rests_on_what_is_expected() -> None:
    rows = table(row("proxy", "proxy", AB, 0.1))
    found = decide(evidence(rows, AB))
    assert (found.kind, found.is_measured) == ("mixture", False)
    assert found.gain == Estimate(0.1, 0.05, 0.15)
    unknown = decide(evidence(rows, AB, checked=False))
    assert unknown.gain is None


@given(st.lists(st.floats(-0.03, 0.03), min_size=4, max_size=4), st.integers(0, 3))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_no_line_contradicts_the_decision(gains: list[float], place: int) -> None:
    mixtures = [A, B, AB, ABC]
    kinds = ["expert", "expert", "random", "all"]
    rows = [
        row(f"model {i}", kind, mixture, gain)
        for i, (kind, mixture, gain) in enumerate(zip(kinds, mixtures, gains, strict=True))
    ]
    rows[place] = replace(rows[place], kind="final", name="selected")
    known = table(*rows)
    found = decide(evidence(known, mixtures[place]))
    by_mixture = {each.mixture: each for each in known}
    gain = by_mixture[found.mixture].interval
    if found.kind in ("mixture", "everything", "either"):
        assert gain is not None and gain.low > 0
        assert found.comparisons[0].verdict == "better than"
    else:
        assert gain is not None and gain.low <= 0
    error = (1 - 0.9) / 2 / 3
    draws = bootstrap.resampled({m: by_mixture[m].runs for m in mixtures}, BASE, OBJECTIVE)
    for each in mixtures:
        if each != found.mixture and each not in found.others:
            # what is left out is not shown to be better than the choice
            assert not bootstrap.is_above(draws[each] - draws[found.mixture], error)
    for each in found.comparisons:
        assert each.verdict == verdict_of(each.lead)


def test_the_words_say_what_it_rests_on() -> None:
    rows = table(row("selected", "final", AB, 0.1), row("all datasets", "all", ABC, 0.0999))
    gathered = evidence(rows, AB, ABC)
    cost = Cost(1, 1, 1, 0, 1, 1, 1, 1, 1)
    result = Result(
        gathered.selection, gathered.verification, (), rows, decide(gathered), cost, {}, "run"
    )
    said = "\n".join(words.lines(result))
    assert "gains +0.1000 (90% interval" in said and "200 examples" in said
    assert "The chance that a + b is the best of 2 mixtures is 40%." in said
    assert "Cannot be told apart from a + b: a + b + c. None of them is cheaper." in said
    assert "a + b cannot be told apart from a fine-tune on everything" in said
    assert (
        said.splitlines()[-1]
        == "Next: use it; the model is in the folder final beside this report."
    )


def test_a_merge_that_is_as_good_is_said(gain: float = 0.1) -> None:
    for merged, told in ((0.05, "better than the merge"), (0.1, "told apart"), (0.15, "is worse")):
        proxy = row("proxy", "proxy", AB, merged)
        rows = table(row("selected", "final", AB, gain), proxy)
        found = decide(evidence(rows, AB))
        (beside,) = (each for each in found.comparisons if "merge" in each.name)
        assert beside.lead.value == pytest.approx(gain - merged)
        cost, gathered = Cost(1, 1, 1, 0, 1, 1, 1, 1, 1), evidence(rows, AB)
        result = Result(gathered.selection, gathered.verification, (), rows, found, cost, {}, "run")
        (line,) = (each for each in words.lines(result) if "the merge of" in each)
        assert told in line


def test_what_only_the_search_tells_apart_is_said_so() -> None:
    rows = table(row("selected", "final", AB, 0.1), row("all datasets", "all", ABC, 0.0999))
    gathered = evidence(rows, AB)  # all datasets are no alternative by the posterior
    cost = Cost(1, 1, 1, 0, 1, 1, 1, 1, 1)
    result = Result(
        gathered.selection, gathered.verification, (), rows, decide(gathered), cost, {}, "run"
    )
    said = "\n".join(words.lines(result))
    assert "a + b is expected to be better than a fine-tune on everything" in said
    assert "a + b cannot be told apart" not in said


@pytest.mark.parametrize("gain", [-0.1, -0.001, 0.001])
def test_nothing_praises_what_does_not_beat_the_base(gain: float) -> None:
    rows = table(row("selected", "final", AB, gain), row("all datasets", "all", ABC, gain - 0.2))
    gathered = evidence(rows, AB)
    cost = Cost(1, 1, 1, 0, 1, 1, 1, 1, 1)
    result = Result(
        gathered.selection, gathered.verification, (), rows, decide(gathered), cost, {}, "run"
    )
    assert result.decision.kind in ("base", "more")
    assert "better than" not in words.lines(result)[0] and len(words.lines(result)) == 4
    assert not any("is better than" in line for line in words.lines(result))


# --- intervals


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Over draws of the examples, for models whose errors are alike and for ones that are not."""
    rng, num, hits, narrow = np.random.default_rng(0), 60, 0, 0
    for _ in range(200):
        own = rng.normal(1.0, 0.3, num)
        base = {"t": Scores("loss", tuple(own), (1.0,) * num)}
        first = {"t": Scores("loss", tuple(own * 0.9 + rng.normal(0, 0.05, num)), (1.0,) * num)}
        draws = bootstrap.resampled({"m": [first]}, base, OBJECTIVE, 400)["m"]
        found = bootstrap.interval(draws, float(draws.mean()), 0.9)
        hits += found.low <= 0.1 <= found.high
        narrow += found.high - found.low < 0.06
    assert 168 <= hits <= 192  # 180 are expected, with a standard deviation of 4.2
    assert narrow == 200  # paired: the examples' own spread is not in it


def test_seeds_widen_an_interval() -> None:
    one, other = {"t": scores(0.1)}, {"t": scores(0.2)}
    alone = bootstrap.resampled({"m": [one]}, BASE, OBJECTIVE)["m"]
    both = bootstrap.resampled({"m": [one, other]}, BASE, OBJECTIVE)["m"]
    assert np.ptp(both) > np.ptp(alone) + 0.08


def test_answers_that_all_agree_are_not_certain() -> None:
    base = {"t": Scores("score", (0.0,) * 50, (1.0,) * 50)}
    draws = bootstrap.resampled({"m": [base]}, base, OBJECTIVE)["m"]
    found = bootstrap.interval(draws, 0.0, 0.9)
    assert found.low == pytest.approx(-0.0164, abs=0.003)


@pytest.mark.parametrize("num", [1, 3])
def test_one_example_says_what_it_says(num: int) -> None:
    base = {"t": Scores("loss", (1.0,) * num, (0.0,) * (num - 1) + (1.0,))}
    other = {"t": Scores("loss", (0.5,) * num, base["t"].weights)}
    draws = bootstrap.resampled({"m": [other]}, base, OBJECTIVE)["m"]
    assert np.allclose(draws, 0.5)
