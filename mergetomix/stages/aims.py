"""A job's objective: what of it must be measured before a search, what is known once it is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

from mergetomix.errors import RecipeError
from mergetomix.objectives.objective import gains
from mergetomix.records import Mixture, Scores, Trial
from mergetomix.results import Selection
from mergetomix.session.job import Job, evaluate_proxy
from mergetomix.statistics import agreement

NUM_RESAMPLES = 199
ROUNDING = 1e-9
"""Share of a difference that is the same on all examples by which it may differ in their sums."""


BY_THE_MEAN = ("greedy",)
"""Strategies that do not look for a front."""


def begin(job: Job, base: Mapping[str, Scores]) -> None:
    """Makes the job's objective ready for a search. For standard errors the single experts are scored first.

    Raises RecipeError where a target has no standard error.
    """
    if job.objective.aim == "standard_errors":
        singles, scores = [Mixture((name,), (1.0,)) for name in job.space().allowed], []
        with job.listener.task("search", "scoring experts for their standard errors", len(singles)) as advance:
            for single in singles:
                scores.append(evaluate_proxy(job, single, "select"))
                advance(1)
        job.objective = replace(job.objective, units=standard_errors(scores, base))


def warn_of_strategy(job: Job, name: str) -> None:
    """Says where a strategy goes by the mean of the gains although a front is asked for."""
    if job.objective.aim == "pareto" and name in BY_THE_MEAN:
        job.warn(f"{name} search goes by the mean of the gains: the front is of the mixtures that it tries on its way")


def settle(job: Job, trials: Sequence[Trial], base: Mapping[str, Scores]) -> None:
    """Makes the job's objective ready for what comes after a search: of `pareto` the knee of the front is the best."""
    if job.objective.aim == "pareto":
        job.objective = job.objective.settled([gains(trial.scores, base) for trial in trials])


def resume(job: Job, selection: Selection) -> None:
    """Gives the job the objective of a selection, which another job may have made, or which may say nothing of it."""
    if selection.objective is not None:
        job.objective = selection.objective
        return
    if job.objective.aim == "standard_errors":
        units = standard_errors([trial.scores for trial in selection.singles], selection.base)
        job.objective = replace(job.objective, units=units)
    settle(job, selection.trials, selection.base)


def again(job: Job, trials: Sequence[Trial], base: Mapping[str, Scores]) -> list[Trial]:
    """Trials by the job's objective as it is now."""
    return [replace(trial, objective=job.objective.of(trial.scores, base)) for trial in trials]


def standard_errors(experts: Sequence[Mapping[str, Scores]], base: Mapping[str, Scores]) -> dict[str, float]:
    """One standard error of the gain by target: the median over the single experts of that of their paired difference to the
    base on the same examples.

    Experts without one, as they change nothing on the target, are left out. Raises RecipeError where all of them are.
    """
    found = {}
    for name, start in base.items():
        known = [sd for sd in (_standard_error(expert[name], start) for expert in experts) if sd > 0]
        if not known:
            message = (
                f"standard_errors: on target {name} ({start.num_examples} examples) no expert's difference to the base has one"
            )
            raise RecipeError("search.objective", message, hint="give the target more examples, or use search.objective: gain")
        found[name] = median(known)
    return found


def _standard_error(scores: Scores, base: Scores) -> float:
    """Of a gain."""
    mean, sd = agreement.paired_difference(scores.values, base.values, base.weights, num_resamples=NUM_RESAMPLES)
    sd = sd if sd > ROUNDING * abs(mean) else 0.0
    return sd / base.mean if base.kind == "loss" and base.mean > 0 else sd
