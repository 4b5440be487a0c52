"""Targets without derivatives: the loss of their answers stands for the score in a search."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recipes import WORDS, recipe_values, write_recipe

import mergetomix as m2m
from mergetomix import merge
from mergetomix.errors import RecipeError
from mergetomix.records import Mixture, Scores, gain
from mergetomix.session.evaluations import trial_of
from mergetomix.session.session import Session, open_session
from mergetomix.stages import pipeline, search
from mergetomix.stages.search import objective_of

DATASETS = ("a", "b", "c", "d")
KINDS = {
    "choice": {"score": "choice", "options": [f" {word}" for word in WORDS]},
    "generate": {"score": "generate", "max_new_tokens": 4},
    "python": {"score": "python", "function": "scoring.py:lengths"},
}


def recipe_of(folder: Path, kind: str, **search: Any) -> m2m.Recipe:
    values = recipe_values(folder, DATASETS, ("t", "u"))
    values["targets"]["u"] |= KINDS[kind]
    values |= {
        "search": search,
        "verify": {"budget": 0},
        "final": {"train": False, "baselines": []},
    }
    (folder / "scoring.py").write_text(
        "def lengths(model, tokenizer, rows):\n"
        "    norm = float(next(model.parameters()).norm())\n"
        "    return [norm + len(row['question']) for row in rows]\n"
    )
    return m2m.load_recipe(write_recipe(folder, values))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store, so that experts are trained once."""
    return tmp_path_factory.mktemp("companions")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_learnt_is_the_loss_of_the_answers_on_the_select_examples(
    folder: Path, kind: str
) -> None:
    mixture = Mixture(("a", "c"), (0.7, 0.3))
    with open_session(recipe_of(folder, kind)) as session:
        pipeline.train_experts(session)
        base = session.evaluations.base("select")
        assert session.gradients.are_there and list(session.gradients.companions()) == ["u"]
        scorer = session.gradients.companions()["u"]
        assert scorer.num_examples == session.inputs.targets("select")["u"].num_examples
        found, by_target = (
            session.gradients.smooth(
                trial_of(
                    mixture,
                    session.evaluations.proxy(mixture, "select"),
                    base,
                    objective_of(session),
                ),
                base,
            ),
            session.gradients.of(mixture, base),
        )
        assert found is not None and set(found) == {"t", "u"}
        bank, step = session.proxies.bank(), 0.02
        bank.reset()
        start = scorer.score(bank.model)

        def at(**more: float) -> float:
            point = dict.fromkeys(DATASETS, 0.0) | merge.coefficients(
                mixture, session.recipe.merge.scale.exponent
            )
            bank.set({name: point[name] + more.get(name, 0.0) for name in DATASETS})
            return gain(scorer.score(bank.model), start)

        assert found["u"] == pytest.approx(at(), abs=1e-6)
        for name in DATASETS:
            wanted = (at(**{name: step}) - at(**{name: -step})) / (2 * step)
            assert by_target["u"][name] == pytest.approx(wanted, rel=0.03, abs=1e-3)


def test_a_trial_that_a_race_stopped_is_learnt_from_by_its_estimates(folder: Path) -> None:
    with open_session(recipe_of(folder, "choice")) as session:
        pipeline.train_experts(session)
        base, mixture = session.evaluations.base("select"), Mixture.union(["a", "c"])
        whole = trial_of(
            mixture, session.evaluations.proxy(mixture, "select"), base, objective_of(session)
        )
        first = {
            name: Scores(each.kind, each.values[:2], each.weights[:2])
            for name, each in whole.scores.items()
        }
        stopped = replace(whole, scores=first, estimates={"t": 0.25, "u": 0.5})
        before, after = (
            session.gradients.smooth(whole, base),
            session.gradients.smooth(stopped, base),
        )
        assert before is not None and after is not None
        assert after["t"] == 0.25 and after["u"] == before["u"]


def test_the_companion_of_a_choice_scores_the_right_option_behind_its_prompt(folder: Path) -> None:
    with open_session(recipe_of(folder, "choice")) as session:
        loss = session.gradients.companions()["u"].target
        texts = [session.inputs.family.processor.decode(each.ids) for each in loss.sequences]
        examples = session.inputs.select_examples("u")
        assert len(texts) == len(examples)
        for text, example in zip(texts, examples, strict=True):
            assert (
                example.prompt + example.completion in text
                and example.completion in example.options
            )


@pytest.mark.parametrize("kind", ["choice", "generate"])
def test_a_search_learns_from_companions_and_ranks_by_scores(folder: Path, kind: str) -> None:
    with open_session(recipe_of(folder, kind, strategy="gradient", budget=10)) as session:
        pipeline.train_experts(session)
        selection = search.search_mixtures(session)
        assert selection.strategy == "gradient"
        base, weights = selection.base, {"t": 1.0, "u": 1.0}
        for trial in selection.trials:
            mean = sum(gain(trial.scores[name], base[name]) for name in weights) / 2
            assert trial.scores["u"].kind == "score" and trial.objective == pytest.approx(mean)
    with open_session(recipe_of(folder, kind, strategy="gradient", budget=10)) as session:
        assert search.search_mixtures(session) == selection
        assert not session.proxies.are_read  # all of it was in the store


def test_where_every_target_is_a_loss_there_is_nothing_beside(folder: Path) -> None:
    with open_session(
        m2m.load_recipe(write_recipe(folder, recipe_values(folder, DATASETS, ("t", "u"))))
    ) as session:
        assert session.gradients.are_there and not session.gradients.companions()


def test_a_target_without_answers_is_named(tmp_path: Path) -> None:
    values = recipe_values(tmp_path, DATASETS, ("t", "u"))
    (tmp_path / "scoring.py").write_text(
        "def twos(model, tokenizer, rows):\n    return [2.0 for _ in rows]\n"
    )
    values["targets"]["u"] = {"path": "u.jsonl", "score": "python", "function": "scoring.py:twos"}
    with open_session(m2m.load_recipe(write_recipe(tmp_path, values))) as session:
        assert not session.gradients.are_there
    values["search"] = {"strategy": "gradient"}
    with (
        open_session(m2m.load_recipe(write_recipe(tmp_path, values))) as session,
        pytest.raises(RecipeError, match="target u has no"),
    ):
        search.first_strategy(session)


def turned(session: Session, trials: list[m2m.Trial], sign: float) -> list[m2m.Trial]:
    """Trials whose scores rank as their companions' losses do, or the other way round."""
    found = []
    for trial in trials:
        value = (
            sign * (session.gradients.smooth(trial, session.evaluations.base("select")) or {})["u"]
        )
        found.append(
            replace(
                trial, scores={**trial.scores, "u": Scores("score", (value, value), (1.0, 1.0))}
            )
        )
    return found


def test_a_companion_that_ranks_unlike_its_score_is_warned_of(folder: Path) -> None:
    with open_session(recipe_of(folder, "choice")) as session:
        pipeline.train_experts(session)
        base = session.evaluations.base("select")
        trials = [
            trial_of(
                mixture, session.evaluations.proxy(mixture, "select"), base, objective_of(session)
            )
            for mixture in session.spaces.searched.sample(7, 0)
        ]
        for num, sign, said in ((7, 1.0, False), (5, -1.0, False), (7, -1.0, True)):
            session.opened.warnings.clear()
            session.gradients.warn_of_companions(turned(session, trials, sign)[:num])
            assert (
                any(
                    "ranks the 7 mixtures tried unlike its score (Spearman -1.00)" in text
                    for text in session.opened.warnings
                )
                == said
            )
