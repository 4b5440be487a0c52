"""Derivatives of gains through the pipeline, and a search that learns from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import recipe_values, write_recipe

import mergetomix as m2m
from mergetomix import merge
from mergetomix.errors import Fault, RecipeError
from mergetomix.experts.bank import Bank
from mergetomix.records import Mixture, gain
from mergetomix.session.session import Session, open_session
from mergetomix.stages import pipeline, search
from mergetomix.targets.loss import Loss

DATASETS = ("a", "b", "c", "d")


def recipe_of(folder: Path, **sections: Any) -> m2m.Recipe:
    values = recipe_values(folder, DATASETS, ("t", "u")) | sections
    return m2m.load_recipe(write_recipe(folder, values))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store, so that experts are trained once."""
    return tmp_path_factory.mktemp("slopes")


def gains(session: Session, coefficients: dict[str, float], base: Any) -> dict[str, float]:
    """Gains of base + sum_i c_i delta_i, past the store."""
    bank = session.proxies.bank()
    bank.set(coefficients)
    return {
        name: gain(each.score(bank.model), base[name])
        for name, each in session.inputs.targets("select").items()
    }


@pytest.mark.parametrize("exponent", [1.0, 0.5])
def test_slopes_are_those_of_finite_differences(folder: Path, exponent: float) -> None:
    mixture = Mixture(("a", "c"), (0.7, 0.3))
    with open_session(recipe_of(folder, merge={"scale": {"exponent": exponent}})) as session:
        pipeline.train_experts(session)
        base = session.evaluations.base("select")
        found = session.gradients.of(mixture, base)
        point = dict.fromkeys(DATASETS, 0.0) | merge.coefficients(mixture, exponent)
        for name in DATASETS:
            ends = [
                gains(session, point | {name: point[name] + step}, base) for step in (0.02, -0.02)
            ]
            for target in ("t", "u"):
                wanted = (ends[0][target] - ends[1][target]) / 0.04
                assert found[target][name] == pytest.approx(wanted, rel=0.02, abs=2e-4), (
                    target,
                    name,
                )


def test_slopes_are_kept(folder: Path) -> None:
    mixture = Mixture.union(["a", "b"])
    found = []
    for _ in range(2):
        with open_session(recipe_of(folder)) as session:
            pipeline.train_experts(session)
            found.append(
                (
                    session.gradients.of(mixture, session.evaluations.base("select")),
                    not session.proxies.are_read,
                    session.gradients.seconds([mixture]),
                )
            )
            assert session.gradients.seconds([Mixture.union(["c", "d"])]) == 0
    assert found[0][0] == found[1][0] and [fresh for _, fresh, _ in found] == [False, True]
    assert found[0][2] == found[1][2] > 0


def test_too_little_memory_says_what_to_lower(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: Any) -> Any:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    # another split of the target: no other test has scored these examples
    with open_session(recipe_of(folder, select_fraction=0.4)) as session:
        pipeline.train_experts(session)
        base = session.evaluations.base("select")
        monkeypatch.setattr(Bank, "gradient", exhausted)
        with pytest.raises(
            Fault, match=r"the gradient of target t needs more memory .*: tried to allocate 2 GiB"
        ) as caught:
            session.gradients.of(Mixture.union(["b", "c"]), base)
        assert "batch_tokens" in str(caught.value.hint)
        monkeypatch.setattr(Loss, "score", exhausted)
        with pytest.raises(Fault, match="scoring target t needs more memory"):
            session.evaluations.proxy(Mixture.union(["a", "b", "c", "d"]), "report")


def test_a_search_by_gradients_finds_the_best_of_all(folder: Path) -> None:
    selections = []
    for section in (
        {"strategy": "exhaustive"},
        {"strategy": "gradient", "budget": 12},
        {"strategy": "gradient", "budget": 12},
    ):
        with open_session(recipe_of(folder, search=section)) as session:
            pipeline.train_experts(session)
            selections.append(search.search_mixtures(session))
    every, some, again = selections
    assert (every.strategy, some.strategy) == ("exhaustive", "gradient")
    assert len(every.trials) == 15 and 4 <= len(some.trials) < 12
    objectives = sorted(trial.objective for trial in every.trials)
    assert some.trials[0].objective >= objectives[-3]
    assert some == again


def test_a_run_searches_by_gradients(folder: Path) -> None:
    recipe = recipe_of(folder, search={"strategy": "gradient", "budget": 9}, run_dir="by-gradients")
    plan = m2m.check(recipe)
    result = m2m.run(recipe)
    again = m2m.run(recipe)
    assert again.cost.gradients_s == result.cost.gradients_s > 0
    assert (
        f"| gradients in the weights | {result.cost.gradients_s:.1f} |"
        in (folder / "by-gradients" / "report.md").read_text()
    )
    plain = m2m.run(recipe_of(folder, search={"strategy": "greedy"}, run_dir="by-values"))
    assert (
        plain.cost.gradients_s == 0
        and "gradients in" not in (folder / "by-values" / "report.md").read_text()
    )
    assert plan.strategy == result.selection.strategy == "gradient"
    assert (folder / "by-gradients" / "report.md").exists()


def test_a_search_without_gradients_is_refused(folder: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"gradient needs merge\.method: linear, not ties; use greedy"
    ):
        recipe_of(folder, search={"strategy": "gradient"}, merge={"method": "ties"})


def test_a_budget_too_small_says_the_least(folder: Path) -> None:
    recipe = recipe_of(folder, search={"strategy": "gradient", "budget": 3})
    with pytest.raises(RecipeError, match=r"search.budget: .* at least 7 forward passes, not 3"):
        m2m.search_mixtures(recipe)
