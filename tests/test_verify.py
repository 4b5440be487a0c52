"""Checks on a tiny real model: which mixtures, what a failure does, when they stop."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recipes import WORDS, Heard, recipe_values, write_recipe

import mergetomix as m2m
from mergetomix import training
from mergetomix.errors import RecipeError, TrainingError
from mergetomix.executors.work import FinetuneWork, ScoringWork
from mergetomix.records import Merging, Mixture, Scores, Trial
from mergetomix.report import tables
from mergetomix.results import Verification
from mergetomix.session.evaluations import Evaluations
from mergetomix.session.finetunes import Finetunes
from mergetomix.session.session import open_session
from mergetomix.stages import checks, conclusion, pipeline, requirements, search
from mergetomix.statistics import posterior
from mergetomix.statistics.noise import Noise

WAY = Merging("equal", 1.0)


def values_of(folder: Path, **checks: Any) -> dict[str, Any]:
    """A recipe of checks alone: no baselines, which would count as checks."""
    values = recipe_values(folder)
    values["train"]["max_steps"] = 1
    return values | {
        "verify": {"budget": 2, "repeats": 0, "exponents": [], **checks},
        "final": {"baselines": []},
    }


def test_the_best_mixed_proxy_is_checked_first_and_no_mixture_twice(tmp_path: Path) -> None:
    result = m2m.run(write_recipe(tmp_path, values_of(tmp_path, budget=4, confidence=0.9999)))
    assert result.verification is not None
    checks = [check.mixture for check in result.verification.checks]
    best = next(trial.mixture for trial in result.selection.trials if len(trial.mixture) > 1)
    assert checks[0] == best and len(set(checks)) == len(checks)
    assert all(len(mixture) > 1 for mixture in checks)


def test_every_mixture_has_an_interval_measured_or_not(tmp_path: Path) -> None:
    result = m2m.run(write_recipe(tmp_path, values_of(tmp_path, budget=1)))
    assert result.verification is not None
    checked = {check.mixture: check.real for check in result.verification.checks}
    for line in result.verification.predictions:
        assert line.measured == (line.mixture in checked or len(line.mixture) == 1)
        assert line.low < line.mean < line.high
    means = [line.mean for line in result.verification.predictions]
    assert result.verification.mixture == result.verification.predictions[
        0
    ].mixture and means == sorted(means, reverse=True)


def test_a_failed_check_is_named_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = values_of(tmp_path, budget=4, confidence=0.9999)
    values["final"]["train"] = False
    original = training.finetune

    def failing(family: Any, sequences: Any, *rest: Any) -> Any:
        if len(sequences) == 3 * len(WORDS):
            raise TrainingError("the loss is nan at step 1")
        return original(family, sequences, *rest)

    monkeypatch.setattr(training, "finetune", failing)
    result = m2m.run(write_recipe(tmp_path, values))
    found = result.verification
    assert found is not None
    ((mixture, message),) = found.failures
    assert str(mixture) == "a + b + c" and "nan" in message and found.mixture != mixture
    assert mixture not in [check.mixture for check in found.checks]
    assert any("the check of a + b + c is left out" in text for text in result.warnings)
    report = (tmp_path / "run" / "report.md").read_text()
    assert "a + b + c" in report and "the loss is nan" in report


def test_what_failed_is_no_candidate_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best proxy's fine-tune fails: the next best is checked, it is no candidate."""
    failed: list[Any] = []
    original = Finetunes.train

    def failing(self: Any, work: FinetuneWork) -> Any:
        if work.stage != "experts" and (not failed or work.mixture in failed):
            failed.append(work.mixture)
            raise TrainingError("the loss is nan at step 1")
        return original(self, work)

    monkeypatch.setattr(Finetunes, "train", failing)
    result = m2m.run(write_recipe(tmp_path, values_of(tmp_path, budget=3, confidence=0.9999)))
    found = result.verification
    assert found is not None
    ranked = [trial.mixture for trial in result.selection.trials if len(trial.mixture) > 1]
    assert [mixture for mixture, _ in found.failures] == ranked[:1] and found.checks[
        0
    ].mixture == ranked[1]
    assert ranked[0] not in [each.mixture for each in (*found.predictions, *found.alternatives)]
    assert sum(each.best_probability for each in found.predictions) == pytest.approx(1)


def test_where_every_mixture_fails_there_is_no_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Finetunes.train

    def failing(self: Any, work: FinetuneWork) -> Any:
        if work.stage != "experts":
            raise TrainingError("the loss is nan at step 1")
        return original(self, work)

    monkeypatch.setattr(Finetunes, "train", failing)
    values = values_of(tmp_path, budget=1) | {"search": {"min_datasets": 3}}
    with pytest.raises(TrainingError, match="no mixture is left to choose from"):
        m2m.run(write_recipe(tmp_path, values))


@pytest.mark.parametrize(
    ("search", "num"), [({"require": ["a"]}, 3), ({"min_datasets": 2}, 4), ({"forbid": ["a"]}, 1)]
)
def test_mixtures_of_several_datasets_are_counted(
    tmp_path: Path, search: dict[str, Any], num: int
) -> None:
    recipe = m2m.load_recipe(
        write_recipe(tmp_path, values_of(tmp_path, budget=None) | {"search": search})
    )
    with open_session(recipe, Heard()) as session:
        assert requirements.num_checks(session) == min(num, requirements.NUM_CHECKS)
    recipe = m2m.load_recipe(
        write_recipe(tmp_path, values_of(tmp_path, budget=num + 1) | {"search": search})
    )
    with (
        open_session(recipe, Heard()) as session,
        pytest.raises(RecipeError, match=f"may choose among {num} mixtures"),
    ):
        requirements.num_checks(session)


def test_repeats_show_the_noise_between_seeds(tmp_path: Path) -> None:
    result = m2m.run(
        write_recipe(tmp_path, values_of(tmp_path, budget=3, confidence=0.9999, repeats=2))
    )
    found = result.verification
    assert found is not None
    best = checks.repeated(found.checks, 2)
    assert [check.real for check in best] == sorted(
        (check.real for check in found.checks), reverse=True
    )[:2]
    with open_session(m2m.load_recipe(tmp_path / "recipe.yaml"), Heard()) as session:
        again = [
            session.store.finetune(session.addresses.finetune(check.mixture, 1)) for check in best
        ]
    assert all(again) and (found.agreement["objective"].noise_sd or 0) > 0


def test_it_stops_where_the_pick_is_safe(tmp_path: Path) -> None:
    result = m2m.run(write_recipe(tmp_path, values_of(tmp_path, budget=4, confidence=0.51)))
    assert result.verification is not None
    probabilities = [line.best_probability for line in result.verification.predictions]
    stopped = result.verification.stopped.startswith(
        "the pick is the best mixture with a probability"
    )
    assert stopped == (len(result.verification.checks) < 4)
    assert not stopped or max(probabilities) >= 0.51


def test_a_new_exponent_scores_only_the_best_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def always(views: Any, reals: Any, units: Any, noise: Any, ways: Any) -> Any:
        return next(way for way in ways if way.exponent == 0.5)

    monkeypatch.setattr(posterior, "likeliest", always)
    values = values_of(tmp_path, budget=1, exponents=[0.5], max_rescored=2)
    recipe = m2m.load_recipe(write_recipe(tmp_path, values))
    with open_session(recipe, Heard()) as session:
        pipeline.train_experts(session)
        selection = search.search_mixtures(session)
        before = session.store.counts()["trials"]
        found = pipeline.verify_mixtures(session, selection)
        after = session.store.counts()["trials"]
    assert found is not None and found.merging.exponent == 0.5
    # two are kept, and the check besides, and what has one dataset and needs no new score
    kept = {trial.mixture for trial in selection.trials[:2]} | {
        check.mixture for check in found.checks
    }
    kept |= {trial.mixture for trial in selection.trials if len(trial.mixture) == 1}
    assert {line.mixture for line in found.predictions} == kept
    assert after - before == sum(len(mixture) > 1 for mixture in kept)


def test_an_exponent_that_comes_back_brings_every_mixture_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first check the exponent is another one, after the second the search's own."""
    asked = iter((0.5, 1.0))

    def back(views: Any, reals: Any, units: Any, noise: Any, ways: Any) -> Any:
        exponent = next(asked)
        return next(way for way in ways if way.exponent == exponent)

    monkeypatch.setattr(posterior, "likeliest", back)
    values = values_of(tmp_path, budget=2, exponents=[0.5], max_rescored=3, confidence=0.9999)
    found = m2m.verify_mixtures(write_recipe(tmp_path, values))[1]
    assert found is not None and found.merging.exponent == 1.0
    assert len(found.predictions) == 7


def test_more_checks_than_mixtures_is_refused(tmp_path: Path) -> None:
    recipe = m2m.load_recipe(write_recipe(tmp_path, values_of(tmp_path, budget=5)))
    with (
        open_session(recipe, Heard()) as session,
        pytest.raises(RecipeError, match="5 checks, but the search may choose among 4 mix"),
    ):
        requirements.num_checks(session)


def scores(values: list[float]) -> Scores:
    return Scores("loss", tuple(values), (1.0,) * len(values))


@pytest.mark.parametrize(
    ("best", "worst", "said"),
    [
        (
            [1.0, 2.0, 3.0, 4.0],
            [2.0, 1.0, 4.0, 3.1],
            r"says nothing: on its 4 examples .* even the best from the worst .* about \d+ are",
        ),
        ([1.0, 2.0, 3.0, 4.0], [2.0, 3.1, 4.0, 5.1], None),
        ([1.0, 1.0], [1.0, 1.0], "all 2 mixtures score the same"),
        ([1.0], [2.0], "says nothing: on its 1 examples .* several are needed, or leave it out"),
    ],
)
def test_a_target_of_too_few_examples_is_named(
    tmp_path: Path, best: list[float], worst: list[float], said: str | None
) -> None:
    recipe = m2m.load_recipe(write_recipe(tmp_path, values_of(tmp_path)))
    with open_session(recipe, Heard()) as session:
        mixtures = list(session.spaces.searched)[:2]
        trials = [
            Trial(m, {"t": scores(v)}, 0.0) for m, v in zip(mixtures, (best, worst), strict=True)
        ]
        base = {"t": scores([6.0] * len(best))}
        search.warn_of_blunt_targets(session, trials, base)
        warned = [text for text in session.opened.warnings if text.startswith("target t")]
    assert (said is None) == (warned == [])
    assert said is None or re.search(said, warned[0])


def test_general_data_joins_every_fine_tune(tmp_path: Path) -> None:
    values = values_of(tmp_path)
    plain = m2m.load_recipe(write_recipe(tmp_path, values))
    source = values["datasets"]["c"]
    values["datasets"] = {name: values["datasets"][name] for name in "ab"}
    values["train"]["anchor"] = {"dataset": source, "share": 0.25}
    mixed = m2m.load_recipe(write_recipe(tmp_path, values, "mixed.yaml"))
    keys = []
    for recipe in (plain, mixed):
        with open_session(recipe, Heard()) as session:
            keys.append(session.addresses.union(["a"]))
            one, two = (
                session.finetunes.sequences(Mixture.union("a")),
                session.finetunes.sequences(Mixture.union("ab")),
            )
            anchors = 0 if recipe is plain else 1
            assert len(one) == 12 + 4 * anchors and len(two) == 24 + 8 * anchors
            if anchors:
                own = {tuple(sequence.ids) for sequence in session.inputs.sequences("a")}
                added = [tuple(sequence.ids) for sequence in one if tuple(sequence.ids) not in own]
                assert len(added) == 4 and added == [tuple(s.ids) for s in two[24:28]]
                changed = recipe.train.model_copy(
                    update={"anchor": recipe.train.anchor.model_copy(update={"share": 0.5})}
                )
    assert keys[0] != keys[1]
    with open_session(mixed.model_copy(update={"train": changed}), Heard()) as session:
        assert session.addresses.union(["a"]) not in keys


def test_the_report_shows_how_well_proxies_rank_every_target() -> None:
    noise = replace(Noise.none(6), seed_sd=0.1)
    few, many = (
        conclusion.agreement_of(np.arange(n) + 0.0, np.arange(n) ** 2.0, noise, 0.9) for n in (4, 6)
    )
    mixture = Mixture(("a",), (1.0,))
    found = Verification(mixture, (), (), (), {"t": many, "u": few}, WAY, 0.9, "")
    ((target, num, pearson, spearman, *_, noise, possible),) = tables.agreement(found)[1:]
    assert (target, num, spearman, noise) == ("t", "6", "1 (1 to 1)", "0.1000")
    assert float(pearson.split()[0]) < 1 and 0.9 < float(possible) <= 1


def test_the_plan_counts_repeats_and_is_made_at_once_for_many_datasets(tmp_path: Path) -> None:
    values = recipe_values(tmp_path, datasets=tuple(f"d{i:02}" for i in range(30)))
    values["search"] = {"strategy": "greedy"}
    planned = []
    for repeats in (0, 2):
        values["verify"] = {"budget": 2, "repeats": repeats}
        with open_session(m2m.load_recipe(write_recipe(tmp_path, values)), Heard()) as session:
            planned.append(requirements.finetunes(session))
    assert len(planned[0]) == 30 + 2 + 3  # experts, checks, all datasets and two random mixtures
    assert [seed for _, seed in planned[1]] == [None] * 35 + [1, 1]


def test_accuracies_at_chance_say_nothing(tmp_path: Path) -> None:
    """Of many mixtures the best and the worst lie apart by chance; that is no difference."""
    rng = np.random.default_rng(0)
    recipe = m2m.load_recipe(write_recipe(tmp_path, values_of(tmp_path)))
    with open_session(recipe, Heard()) as session:
        answers = lambda share: Scores(  # noqa: E731
            "score", tuple((rng.random(60) < share).astype(float).tolist()), (1.0,) * 60
        )
        for share_of_best, is_said in ((0.5, True), (0.95, False)):
            mixtures = list(session.spaces.searched)
            scored = [answers(0.5) for _ in mixtures[1:]] + [answers(share_of_best)]
            trials = [Trial(m, {"t": s}, 0.0) for m, s in zip(mixtures, scored, strict=True)]
            best, worst = (pick(s.mean for s in scored) for pick in (max, min))
            assert best - worst > 0.03
            session.opened.warnings.clear()
            search.warn_of_blunt_targets(session, trials, {"t": answers(0.5)})
            warned = [text for text in session.opened.warnings if "says nothing" in text]
            assert bool(warned) == is_said


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_target_on_which_all_score_the_same_has_no_say(tmp_path: Path) -> None:
    (tmp_path / "same.py").write_text("def score(model, tokenizer):\n    return [1.0, 1.0, 1.0]\n")
    values = values_of(tmp_path, repeats=1)
    values["targets"] = {"same": {"score": "python", "function": "same.py:score"}}
    result = m2m.run(write_recipe(tmp_path, values))
    found = result.verification
    assert found is not None and any("all 7 mixtures score the same" in w for w in result.warnings)
    assert all(line.low <= line.mean <= line.high for line in found.predictions)
    assert max(line.best_probability for line in found.predictions) < 0.5


def test_a_target_of_two_examples_is_as_unsure_as_it_is(tmp_path: Path) -> None:
    few, many = tmp_path / "few", tmp_path / "many"
    widths = []
    for folder, num in ((few, 2), (many, len(WORDS))):
        folder.mkdir()
        values = values_of(folder)
        rows = (folder / "t.jsonl").read_text().splitlines()[:num]
        (folder / "t.jsonl").write_text("".join(f"{row}\n" for row in rows))
        result = m2m.run(write_recipe(folder, values))
        assert result.verification is not None
        pick = next(p for p in result.verification.predictions if p.mixture == result.selected)
        widths.append(pick.high - pick.low)
        assert pick.best_probability < 0.95 or num > 2
        assert any("says nothing" in text for text in result.warnings) or num > 2
    assert widths[0] > 3 * widths[1]


def test_a_dataset_of_three_rows_stands_beside_one_of_thousands(tmp_path: Path) -> None:
    values = values_of(tmp_path)
    rows = (tmp_path / "a.jsonl").read_text().splitlines()
    (tmp_path / "a.jsonl").write_text("".join(f"{row}\n" for row in rows[:3]))
    many = [row.replace("what", f"{i} what") for i in range(250) for row in rows]
    (tmp_path / "b.jsonl").write_text("".join(f"{row}\n" for row in many))
    result = m2m.run(write_recipe(tmp_path, values))
    assert result.verification is not None
    (line,) = (text for text in result.warnings if "the datasets are unequal" in text)
    assert "b 99%" in line or "b 100%" in line
    weights = Mixture(("a", "b"), (0.5, 0.5)).as_dict()
    trial = next(t for t in result.selection.trials if t.mixture.datasets == ("a", "b"))
    assert 0 < trial.mixture.as_dict()["a"] < 0.1 < weights["a"]


def test_a_repeat_that_fails_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Finetunes.train

    def failing(self: Any, work: FinetuneWork) -> Any:
        if work.seed is not None:
            raise TrainingError("the loss is nan at step 1")
        return original(self, work)

    monkeypatch.setattr(Finetunes, "train", failing)
    result = m2m.run(write_recipe(tmp_path, values_of(tmp_path, repeats=1)))
    assert result.verification is not None and result.verification.num_repeats == 0
    assert any("with another seed is left out: the loss is nan" in w for w in result.warnings)
    assert (result.verification.agreement["objective"].noise_sd or 0) > 0


@pytest.mark.parametrize("part", ["select", "report"])
def test_a_fine_tune_whose_scores_are_lost_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Its weights are finite, and its scores are not: it stops no other, and the run goes on."""
    original, lost = Evaluations.take, "a + b + c"

    def failing(self: Any, work: ScoringWork) -> Any:
        if work.model.kind == "real" and str(work.model.mixture) == lost and work.part == part:
            raise TrainingError("the loss of example 0 is nan")
        return original(self, work)

    monkeypatch.setattr(Evaluations, "take", failing)
    values = values_of(tmp_path, budget=3, confidence=0.9999, repeats=0)
    result = m2m.run(write_recipe(tmp_path, values | {"final": {"baselines": ["all"]}}))
    assert any("is left out: the loss of example 0 is nan" in text for text in result.warnings)
    assert "a + b + c" not in {str(row.mixture) for row in result.table if row.kind == "all"}
