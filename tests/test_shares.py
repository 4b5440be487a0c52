"""Weighted mixtures: rows by largest remainder, and all the way from search to final model."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recipes import Heard, recipe_values, write_recipe

import mergetomix as m2m
from mergetomix.errors import RecipeError
from mergetomix.mixtures.rows import Length, counts, largest_remainder, rows
from mergetomix.mixtures.spaces import Simplex
from mergetomix.progress import Silent
from mergetomix.records import Mixture, gain
from mergetomix.session.inputs import read_inputs
from mergetomix.session.session import open_session
from mergetomix.stages import pipeline, search
from mergetomix.stages.checks import Checks
from mergetomix.stages.ways import WEIGHTING_COST, ways
from mergetomix.statistics.opinion_pool import pooled


@given(
    quotas=st.lists(st.floats(0, 10), min_size=1, max_size=9).filter(lambda all_: sum(all_) > 0.01),
    total=st.integers(0, 10_000),
)
@example(quotas=[0.0, 0.7, 0.3], total=10)
@settings(deadline=None, max_examples=100, derandomize=True)
def test_largest_remainder_is_exact_and_within_one_of_the_quota(
    quotas: list[float], total: int
) -> None:
    found = largest_remainder(quotas, total)
    assert sum(found) == total
    for num, quota in zip(found, quotas, strict=True):
        assert abs(num - quota * total / sum(quotas)) < 1 + 1e-6


def test_largest_remainder_gives_to_the_largest() -> None:
    # 1.38, 1.32 and 0.3: the one that is left goes to 1.38
    assert largest_remainder([0.46, 0.44, 0.1], 3) == [2, 1, 0]
    assert largest_remainder([0.1, 0.2, 0.7], 10) == [1, 2, 7]
    with pytest.raises(ValueError, match="not all zero"):
        largest_remainder([0.0, 0.0], 3)


def test_counts_make_the_weights_the_shares() -> None:
    weights = {"a": 0.5, "b": 0.3, "c": 0.2, "d": 0.0}
    mean_tokens = {"a": 10.0, "b": 40.0, "c": 5.0, "d": 1.0}
    of_tokens = counts(weights, mean_tokens, Length(100_000, "tokens"))
    assert of_tokens == {"a": 5000, "b": 750, "c": 4000}
    assert counts(weights, mean_tokens, Length(1000, "examples")) == {"a": 500, "b": 300, "c": 200}


def test_every_member_is_seen_and_too_short_a_training_is_refused() -> None:
    found = counts({"a": 0.998, "b": 0.001, "c": 0.001}, {}, Length(10, "examples"))
    assert found == {"a": 8, "b": 1, "c": 1}
    with pytest.raises(ValueError, match="takes 2 sequences, fewer than the 3 datasets"):
        counts({"a": 0.5, "b": 0.3, "c": 0.2}, {}, Length(2, "examples"))


@given(num=st.integers(0, 60), size=st.integers(1, 9), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50, derandomize=True)
def test_rows_are_whole_passes_and_a_part_without_repeats(num: int, size: int, seed: int) -> None:
    found = Counter(rows(num, size, np.random.default_rng(seed)).tolist())
    assert sum(found.values()) == num and set(found) <= set(range(size))
    assert all(found[i] - num // size in (0, 1) for i in range(size))


def test_rows_are_drawn_alike_by_a_seed_and_otherwise_by_another() -> None:
    draws = [tuple(rows(50, 100, np.random.default_rng(seed)).tolist()) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


# --- the whole way


def values_of(folder: Path, **search: Any) -> dict[str, Any]:
    values = recipe_values(folder)
    values["train"] |= {"max_tokens": 600, "learning_rate": 3e-3}
    values["search"] = {"space": "weights", "budget": 12, **search}
    return values


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, m2m.Result]:
    folder = tmp_path_factory.mktemp("weights")
    return folder, m2m.run(write_recipe(folder, values_of(folder)), listener=Heard())


def test_trials_are_weights_and_the_final_model_is_drawn_by_them(
    finished: tuple[Path, m2m.Result],
) -> None:
    folder, result = finished
    assert result.selection.strategy == "gradient"
    assert any(
        max(trial.mixture.weights) - min(trial.mixture.weights) > 0.01
        for trial in result.selection.trials
    )
    final = result.row("final")
    assert final is not None and final.mixture == result.selected
    with open_session(m2m.load_recipe(folder / "recipe.yaml")) as session:
        space = session.spaces.searched
        assert isinstance(space, Simplex) and all(
            trial.mixture in space for trial in result.selection.trials
        )
        weights = Mixture(("a", "b", "c"), (0.5, 0.3, 0.2))
        drawn = session.finetunes.sequences(weights)
        tokens = {name: set(map(id, session.inputs.sequences(name))) for name in "abc"}
        of_each = {
            name: sum(each.num_tokens for each in drawn if id(each) in tokens[name])
            for name in "abc"
        }
        assert sum(of_each.values()) == pytest.approx(600, rel=0.05)
        for name, weight in weights.as_dict().items():
            assert of_each[name] / sum(of_each.values()) == pytest.approx(weight, abs=0.03)
        portions = session.finetunes.portions(weights)
        assert {each.dataset: each.num_tokens for each in portions} == of_each
        assert [each.num_passes for each in portions] == [
            each.num_examples / 12 for each in portions
        ]


def test_the_address_of_a_fine_tune_knows_weights_seed_and_length(
    finished: tuple[Path, m2m.Result],
) -> None:
    folder, _ = finished
    one, other = Mixture(("a", "b"), (0.5, 0.5)), Mixture(("a", "b"), (0.25, 0.75))
    recipe = folder / "recipe.yaml"
    with open_session(m2m.load_recipe(recipe)) as session:
        keys = [
            session.addresses.finetune(one),
            session.addresses.finetune(other),
            session.addresses.finetune(one, 7),
        ]
        keys.append(session.addresses.union(("a", "b")))
        assert (
            session.addresses.finetune(Mixture(("a",), (1.0,)))
            == session.addresses.union(("a",))
            == session.addresses.finetune(Mixture(("a", "b"), (1.0, 0.0)))
        )
        assert (
            session.finetunes.sequences(one)
            == session.finetunes.sequences(one)
            != session.finetunes.sequences(one, 7)
        )
    with open_session(m2m.load_recipe(recipe, ["train.max_tokens=601"])) as session:
        keys.append(session.addresses.finetune(one))
    with open_session(
        m2m.load_recipe(recipe, ["search.space=subsets", "search.budget=null"])
    ) as session:
        assert session.addresses.finetune(one) == session.addresses.finetune(other) == keys[3]
    assert len(set(keys)) == 5


def test_the_report_says_what_is_taken_of_each_dataset(finished: tuple[Path, m2m.Result]) -> None:
    folder, result = finished
    found = json.loads((folder / "run" / "result.json").read_text())
    assert [each["dataset"] for each in found["portions"]] == (
        list(result.selected.members) if len(result.selected) > 1 else []
    )
    assert sum(found["final"]["shares"]) == pytest.approx(1)
    if result.portions:
        assert "## The mixture's rows" in (folder / "run" / "report.md").read_text()


def test_the_same_recipe_again_trains_and_tries_nothing(finished: tuple[Path, m2m.Result]) -> None:
    folder, result = finished
    again = m2m.run(folder / "recipe.yaml")
    assert again.selected == result.selected and again.table == result.table
    assert again.cost.reused["trials"] == len(result.selection.trials) + 3  # the experts too
    assert again.verification is not None and result.verification is not None
    assert [check.origin for check in again.verification.checks] == [
        check.origin for check in result.verification.checks
    ]


def test_both_chooses_a_subset_and_then_its_weights(tmp_path: Path) -> None:
    path = write_recipe(
        tmp_path,
        values_of(
            tmp_path, space="both", budget=20, groups=[["a", "b"]], min_datasets=2, min_share=0.1
        ),
    )
    with open_session(m2m.load_recipe(path)) as session:
        pipeline.train_experts(session)
        selection = search.search_mixtures(session)
        assert selection.strategy == "exhaustive, then gradient"
        supports = {trial.mixture.datasets for trial in selection.trials}
        assert supports == {("a", "b"), ("a", "b", "c")}
        uneven = {
            t.mixture.datasets
            for t in selection.trials
            if max(t.mixture.weights) - min(t.mixture.weights) > 1e-6
        }
        assert len(uneven) == 1  # of the best subset alone
        equal = [
            t for t in selection.trials if max(t.mixture.weights) - min(t.mixture.weights) <= 1e-6
        ]
        best = max(equal, key=lambda trial: trial.objective)
        assert uneven == {best.mixture.datasets} and selection.trials[0].objective >= best.objective
        assert min(min(trial.mixture.weights) for trial in selection.trials) >= 0.1 - 1e-9


def test_caps_follow_from_repeats_and_hold(tmp_path: Path) -> None:
    with open_session(
        m2m.load_recipe(write_recipe(tmp_path, values_of(tmp_path, max_repeats=1.5)))
    ) as session:
        space = session.spaces.searched
        assert isinstance(space, Simplex)
        size = sum(each.num_tokens for each in session.inputs.sequences("a"))
        assert space.cap("a") == pytest.approx(1.5 * size / 600) and space.cap("a") < 1
        for mixture in space.sample(20, 0):
            assert all(
                each.num_passes <= 1.5 + 1.5 / each.num_examples
                for each in session.finetunes.portions(mixture)
            )


BAD = [
    (
        {"max_repeats": 0.001},
        {},
        "search",
        "0 datasets that may be in one; the caps of a, b, c are below min_share, 0.01",
    ),
    ({"max_repeats": 0.1}, {}, "search", "caps: no 3 datasets together may have a weight of one"),
    (
        {"min_share": 0.4, "min_datasets": 3},
        {},
        "search",
        "min_share: 3 datasets of at least 0.4 each",
    ),
    (
        {"require": ["a"], "max_repeats": 0.5, "min_share": 0.9},
        {},
        "search",
        "a is required, but its cap",
    ),
    ({"groups": [["a", "b"]]}, {}, "search", "groups are of subsets"),
    ({"strategy": "greedy"}, {}, "search", "tries subsets, not weights"),
    ({"space": "subsets", "max_repeats": 2}, {}, "search", "max_repeats is of weights"),
    (
        {"space": "both", "groups": [["a", "zebra"]]},
        {},
        "search.groups",
        "no dataset is called 'zebra'",
    ),
    (
        {"space": "both", "groups": [["a", "b"], ["b", "c"]]},
        {},
        "search",
        "groups: b in two of them",
    ),
    ({"budget": 2, "strategy": "gradient"}, {}, "search.budget", "at least 7 forward passes"),
    ({}, {"train": {"max_tokens": None}}, "search.space", "say how much a mixture is trained on"),
    ({}, {"merge": {"weighting": "size"}}, "merge.weighting", "is for search.space: subsets"),
    ({}, {"train": {"max_tokens": 20}}, "train.max_tokens", "fewer than the"),
]


@pytest.mark.parametrize(("search", "changes", "key", "message"), BAD)
def test_what_cannot_be_is_named(
    tmp_path: Path, search: Any, changes: Any, key: str, message: str
) -> None:
    values = values_of(tmp_path, **search)
    for section, some in changes.items():
        values[section] = {**values.get(section, {}), **some}
    with (
        pytest.raises(RecipeError, match=message) as caught,
        open_session(m2m.load_recipe(write_recipe(tmp_path, values))) as session,
    ):
        pipeline.train_experts(session)
    assert str(caught.value).startswith(key) or caught.value.where == key
    assert not list(
        tmp_path.glob("store/artifacts/*/*.safetensors")
    )  # it is said before anything is trained


def test_a_space_of_weights_has_no_end() -> None:
    assert math.isinf(Simplex(("a", "b")).size) and Simplex(("a", "b")).num_plural == math.inf
    assert Simplex(("a", "b"), 1, 1).num_plural == 0


def test_experts_are_pooled_as_their_data_is_in_the_union(tmp_path: Path) -> None:
    """A dataset of four times the answers has four times the weight, whatever a merge gives it."""
    values = recipe_values(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    more = [{**row, "question": f"{i} {row['question']}"} for i in range(3) for row in rows]
    with (tmp_path / "a.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in more)
    recipe = m2m.load_recipe(write_recipe(tmp_path, values))
    with open_session(recipe) as session:
        scored = session.inputs.scored_tokens
        rooted = session.spaces.subsets.mixture(["a", "b"])
        shares = session.finetunes.shares(rooted).as_dict()
        assert rooted.as_dict() == pytest.approx({"a": 2 / 3, "b": 1 / 3})
        assert session.spaces.merged(rooted, "equal").as_dict() == {"a": 0.5, "b": 0.5}
        assert session.spaces.merged(rooted, "tokens").as_dict() == pytest.approx(shares)
        assert shares["a"] / shares["b"] == pytest.approx(scored["a"] / scored["b"])
        assert scored["a"] == 4 * scored["b"]
        pipeline.train_experts(session)
        selection = search.search_mixtures(session)
        assert selection.objective is not None
        state = Checks(session, selection, selection.objective)
        row = [trial.mixture for trial in state.trials].index(rooted)
        views = state.expectations.views(state.trials, "t")
        experts = {each.mixture.datasets[0]: each.scores["t"] for each in selection.singles}
        wanted = gain(pooled(session.finetunes.shares(rooted), experts), selection.base["t"])
        assert views.pooled_M[row] == pytest.approx(wanted)
        assert wanted != pytest.approx(gain(pooled(rooted, experts), selection.base["t"]), abs=1e-9)


def test_checks_choose_no_weights_where_weights_are_searched(tmp_path: Path) -> None:
    values = recipe_values(tmp_path) | {"search": {"space": "weights"}}
    values["train"] |= {"max_tokens": 400}
    values["verify"] = {"exponents": [0.5]}
    with open_session(m2m.load_recipe(write_recipe(tmp_path, values))) as session:
        found = list(ways(session))
        assert [(way.weighting, way.exponent) for way in found] == [(None, 1.0), (None, 0.5)]
        assert str(found[0]) == "the weights of the mixture and exponent 1"
        drawn = Mixture(("a", "b"), (0.25, 0.75))
        assert session.spaces.merged(drawn, None) == drawn


def test_checks_choose_among_weights_that_differ(tmp_path: Path) -> None:
    """Of datasets with as many tokens every rule gives the same weights."""
    values = recipe_values(tmp_path) | {"verify": {"exponents": []}}
    with open_session(m2m.load_recipe(write_recipe(tmp_path, values))) as session:
        assert [way.weighting for way in ways(session)] == ["sqrt_tokens"]
    rows = (tmp_path / "a.jsonl").read_text()
    more = "".join(rows.replace("what", f"{i} what") for i in range(4))
    (tmp_path / "a.jsonl").write_text(more)
    with open_session(m2m.load_recipe(tmp_path / "recipe.yaml")) as session:
        found = ways(session)
        assert [way.weighting for way in found] == ["sqrt_tokens", "equal", "tokens"]
        assert list(found.values()) == [0.0, -WEIGHTING_COST, -WEIGHTING_COST]


def test_rows_that_are_drawn_are_pooled_by_their_weights(tmp_path: Path) -> None:
    values = recipe_values(tmp_path) | {"search": {"space": "weights"}}
    values["train"] |= {"max_tokens": 400}
    with open_session(m2m.load_recipe(write_recipe(tmp_path, values))) as session:
        drawn = Mixture(("a", "b"), (0.25, 0.75))
        assert session.finetunes.shares(drawn) == drawn


@pytest.mark.parametrize(("times", "is_said"), [(1, False), (3, False), (12, True)])
def test_unequal_datasets_are_said_with_their_shares(
    tmp_path: Path, times: int, is_said: bool
) -> None:
    values = recipe_values(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    with (tmp_path / "a.jsonl").open("a") as file:
        for i in range(1, times):
            more = [{**row, "question": f"{i} {row['question']}"} for row in rows]
            file.writelines(json.dumps(row) + "\n" for row in more)
    recipe = m2m.load_recipe(write_recipe(tmp_path, values))
    lines = [line for line in read_inputs(recipe, Silent()).warnings if "unequal" in line]
    assert bool(lines) == is_said
    if lines:
        assert "a 86%, b 7%, c 7%" in lines[0]
        how = (
            "weigh the experts by the root of these shares, and checks may ask to weigh them alike"
        )
        assert f"{how} or by these shares; experts are pooled by these shares" in lines[0]
    overrides = ["merge.weighting=tokens", "verify.weightings=[]"]
    alone = m2m.load_recipe(tmp_path / "recipe.yaml", overrides)
    for line in read_inputs(alone, Silent()).warnings:
        assert "unequal" not in line or "by these shares; experts" in line
