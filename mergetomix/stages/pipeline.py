"""The stages and `run`: experts, search, final. It reads as the method's algorithm.

What the store holds is not done twice, so every stage can be run alone, and again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergetomix.errors import TrainingError, UserError
from mergetomix.mixtures.spaces import holds
from mergetomix.progress import Listener
from mergetomix.recipe.recipe import Recipe
from mergetomix.records import Finetune, Mixture, Scores
from mergetomix.results import Result, Row, Selection, Verification
from mergetomix.session.job import (
    Job,
    beat,
    environment,
    evaluate_base,
    evaluate_proxy,
    evaluate_real,
    fit,
    free_memory,
    open_job,
    trial_of,
)
from mergetomix.stages import aims, checks
from mergetomix.stages.budget import limit_of
from mergetomix.stages.costs import cost_of
from mergetomix.stages.requirements import baselines, check_length, check_space, finetunes, num_checks
from mergetomix.stages.search import explore, ranked, strategy_of, warn_of_blunt_targets, weights_of_best


def run(recipe: Recipe, listener: Listener | None = None) -> Result:
    """The whole method: one expert for each dataset, the best mixture by proxy, a real fine-tune on it, and the evidence."""
    with open_job(recipe, listener) as job:
        experts = train_experts(job)
        selection = search_mixtures(job)
        verification = verify_mixtures(job, selection)
        table = finalize(job, selection, verification)
        return result_of(job, experts, selection, verification, table)


def train_experts(job: Job) -> tuple[Finetune, ...]:
    """One expert for each dataset that a mixture may hold, in order of their names; raises as `experts_of`."""
    num_checks(job)  # a budget that cannot be spent is said before anything is trained
    strategy_of(job)
    check_length(job)
    check_space(job, finetunes(job))
    return experts_of(job, job.space().allowed)


def experts_of(job: Job, names: Sequence[str]) -> tuple[Finetune, ...]:
    """The experts of some datasets, trained where the store lacks them.

    One that fails does not stop the others. Raises TrainingError at the end, naming each that failed.
    """
    experts, failures = [], []
    for name in names:
        try:
            experts.append(fit(job, Mixture.union([name]), "experts"))
        except TrainingError as error:
            failures.append(f"expert {name}: {error.message}")
            job.listener.warn(failures[-1])
    if failures:
        hint = "the other experts are in the store; lower train.learning_rate or look for odd rows in these datasets"
        raise TrainingError("; ".join(failures), hint=hint)
    job.tell_reused("experts")
    return tuple(experts)


def search_mixtures(job: Job) -> Selection:
    """Evaluate proxies on the select part of the targets until the strategy is done; the best first.

    Where the recipe chooses a subset and then its weights, half of the budget goes to each.
    """
    base = evaluate_base(job, "select")
    aims.begin(job, base)
    space, options, limit = job.space(), job.recipe.search, limit_of(job)
    if options.space == "both":
        trials, name = explore(job, base, job.subsets(), limit.half())
        more, second = explore(job, base, weights_of_best(job, trials), limit.half(up=True))
        trials, name = [*trials, *more], f"{name}, then {second}"
    else:
        trials, name = explore(job, base, space, limit)
    job.tell_reused("trials")
    trials, stopped = [each for each in trials if each.complete], [each for each in trials if not each.complete]
    warn_of_blunt_targets(job, trials)
    tried = {trial.mixture: trial for trial in trials}
    singles = [Mixture((name,), (1.0,)) for name in space.allowed]
    experts = [tried.get(single) or trial_of(job, single, base) for single in singles]
    candidates = [trial for trial in tried.values() if holds(space, trial.mixture)]
    aims.settle(job, candidates, base)
    best_first, experts_first = (ranked(aims.again(job, each, base)) for each in (candidates, experts))
    return Selection(best_first[0].mixture, best_first, name, base, experts_first, job.objective, ranked(stopped))


def verify_mixtures(job: Job, selection: Selection) -> Verification | None:
    """A few real fine-tunes that prove the pick, or another; None where the recipe turns checks off."""
    budget = num_checks(job)
    aims.resume(job, selection)
    return checks.verify(job, selection, budget, list(baselines(job).values())) if budget else None


def finalize(job: Job, selection: Selection, verification: Verification | None = None) -> tuple[Row, ...]:
    """The final table, on the report part that the search never saw: base, experts, proxy, the selected mixture fine-tuned
    for real, the other mixtures checked, and the baselines that the recipe asks for."""
    aims.resume(job, selection)
    picked = selection.mixture if verification is None else verification.mixture
    rows = merged_rows(job, picked, job.exponent if verification is None else verification.exponent)
    base = rows[0].scores
    job.release()
    if job.recipe.final.train:
        rows.append(real_row(job, "selected", "final", picked, base))
    paid = () if verification is None else [check.mixture for check in verification.checks if check.origin == "verify"]
    for mixture in paid:
        if mixture != picked:
            rows.append(real_row(job, f"check {mixture}", "check", mixture, base))
    failed = set() if verification is None else {mixture for mixture, _ in verification.failures}
    for name, mixture in baselines(job).items():
        if mixture in failed:
            continue  # verify has said so, and would only fail again
        rows += baseline_row(job, name, "all" if name == "all datasets" else "random", mixture, base)
    job.tell_reused("real fine-tunes")
    return tuple(rows)


def merged_rows(job: Job, picked: Mixture, exponent: float) -> list[Row]:
    """The lines of the final table that need no fine-tune: base, experts, and the picked mixture's proxy."""
    singles = [Mixture((name,), (1.0,)) for name in job.space().allowed]
    with job.listener.task("final", "scoring base, experts and proxy on the report part", len(singles) + 2) as advance:
        base = evaluate_base(job, "report")
        rows = [row(job, "base", "base", None, base, base)]
        for single in singles:
            advance(1)
            beat(job, "final: scoring experts", len(rows), len(singles) + 2)
            scores = evaluate_proxy(job, single, "report")
            rows.append(row(job, f"expert {single}", "expert", single, scores, base))
        advance(1)
        scores = evaluate_proxy(job, picked, "report", exponent)
        rows.append(row(job, "proxy", "proxy", picked, scores, base))
        advance(1)
    return rows


def baseline_row(job: Job, name: str, kind: Any, mixture: Mixture, base: Mapping[str, Scores]) -> list[Row]:
    """A baseline's line, or none where its training failed: a comparison less, but the result stands."""
    try:
        return [real_row(job, name, kind, mixture, base)]
    except TrainingError as error:
        job.warn(f"the baseline {name!r} is left out: {error.message}")
        return []


def row(job: Job, name: str, kind: Any, mixture: Mixture | None, scores: Any, base: Mapping[str, Scores]) -> Row:
    """One line of the final table."""
    return Row(name, kind, mixture, scores, job.objective.of(scores, base))


def real_row(job: Job, name: str, kind: Any, mixture: Mixture, base: Mapping[str, Scores]) -> Row:
    """Fine-tune on a mixture for real and score it."""
    record = fit(job, mixture, "final")
    line = row(job, name, kind, mixture, evaluate_real(job, record, "report"), base)
    free_memory()
    return Row(line.name, line.kind, line.mixture, line.scores, line.gain, record.path)


def result_of(
    job: Job, experts: Sequence[Finetune], selection: Selection, verification: Verification | None, table: Sequence[Row]
) -> Result:
    """Everything that a run found, with what it cost and where it ran."""
    path = str(Path(job.recipe.run_dir))
    cost = cost_of(job, experts, selection, verification, table)
    portions = job.portions(selection.mixture if verification is None else verification.mixture)
    about, warnings = environment(job), tuple(job.warnings)
    return Result(selection, verification, tuple(experts), tuple(table), cost, about, path, warnings, portions)


def mixture_of(job: Job, datasets: Sequence[str], weights: Sequence[float] | None) -> Mixture:
    """The mixture that a user names. Raises UserError for an unknown dataset or weights that make none."""
    unknown = sorted(set(datasets) - set(job.recipe.datasets))
    if unknown or not datasets:
        known = ", ".join(job.recipe.datasets)
        raise UserError(f"no dataset is called {unknown[0]!r}" if unknown else "name at least one dataset", hint=known)
    forbidden = sorted(set(datasets) & set(job.recipe.search.forbid))
    if forbidden:
        raise UserError(f"the recipe forbids {forbidden[0]!r}", hint="take it out of search.forbid")
    if weights is None:
        return job.subsets().mixture(frozenset(datasets))
    finite = all(math.isfinite(weight) and weight >= 0 for weight in weights)
    if len(weights) != len(datasets) or not finite or sum(weights) <= 0:
        raise UserError(f"{len(datasets)} datasets need as many weights, none negative, not all zero; got {list(weights)}")
    return Mixture.union(datasets, dict(zip(datasets, weights, strict=True)))
