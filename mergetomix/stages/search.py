"""A search over one space: which strategy, what it asks for, and what it was told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mergetomix import merge
from mergetomix.errors import RecipeError
from mergetomix.mixtures.spaces import Simplex, Space
from mergetomix.records import Scores, Trial
from mergetomix.search import strategies
from mergetomix.search.strategies import choose
from mergetomix.search.strategy import Options, Setting, SettingError, Strategy, Told
from mergetomix.session.gradients import has_slopes, slopes, smooth, smooth_scorer, warn_of_companions
from mergetomix.session.job import Job, beat
from mergetomix.stages import aims, race
from mergetomix.stages.budget import Limit, Meter, limit_of
from mergetomix.statistics import agreement

OF_SUBSETS = ("exhaustive", "greedy")
"""Strategies that know no weights."""


def explore(job: Job, base: Mapping[str, Scores], space: Space, limit: Limit) -> tuple[list[Trial], str]:
    """The trials of a search over a space, and the name of its strategy."""
    strategy = strategy_of(job, space, limit.num_passes)
    aims.warn_of_strategy(job, strategy.name)
    if job.recipe.search.strategy == "auto":
        _, why = choose(space, limit.num_passes, has_slopes(job))
        job.listener.note(f"search: {strategy.name}, as {why}")
    if strategy.name == "optuna":
        Path(job.recipe.run_dir).mkdir(parents=True, exist_ok=True)
    trials: list[Trial] = []
    meter = Meter()
    with job.listener.task("search", f"trying mixtures ({strategy.name})", strategy.expected()) as advance:
        try_out = race.begin(job, strategy, base)
        while (asked := strategy.ask()) is not None and not (trials and meter.is_over(limit)):
            trials.append(try_out(asked))
            values = trials[-1].gains(base)
            gradients = slopes(job, asked.mixture, base) if asked.gradient else None
            beside = smooth(job, trials[-1], base) if strategy.name == "gradient" else None
            strategy.tell(Told(asked.mixture, trials[-1].objective, values, gradients, beside))
            advance(1)
            meter.num_passes += asked.cost
            job.listener.state(meter.line(strategy, trials))
            beat(job, "search", len(trials), strategy.expected())
    job.listener.note(f"search: {meter.line(strategy, trials)}")
    if strategy.name == "gradient":
        warn_of_companions(job, trials)
    return trials, strategy.name


def weights_of_best(job: Job, trials: Sequence[Trial]) -> Space:
    """The weights of the best subset that may have some."""
    space = job.space()
    assert isinstance(space, Simplex)
    able = [frozenset(trial.mixture.members) for trial in ranked(trials)]
    chosen = next((datasets for datasets in able if space.holds(datasets)), None)
    if chosen is None:
        message = f"none of the {len(trials)} subsets that were tried can have weights under its caps"
        raise RecipeError("search.max_repeats", message, hint="raise it, or leave it out")
    return replace(space, least=len(chosen), most=len(chosen), require=chosen)


def strategy_of(job: Job, space: Space | None = None, budget: int | None = None) -> Strategy:
    """The recipe's way to search a space, by default what is searched first. Raises RecipeError where the budget is too small.

    A strategy that tries subsets alone leaves their weights to another.
    """
    options = job.recipe.search
    if space is None:
        limit = limit_of(job)
        space, limit = (job.subsets(), limit.half()) if options.space == "both" else (job.space(), limit)
        budget = limit.num_passes
    setting = Setting(
        space,
        job.recipe.train.seed,
        budget,
        job.objective.combine,
        lambda mixture: merge.coefficients(mixture, job.exponent),
        has_slopes(job),
        job.objective.aim == "pareto",
        Options(options.regressor, options.sampler, storage_of(job, space)),
    )
    name = "auto" if isinstance(space, Simplex) and options.strategy in OF_SUBSETS else options.strategy
    if name == "gradient" and not setting.differentiable:
        blunt = next(target for target in job.recipe.targets if smooth_scorer(job, target) is None)
        message = f"gradient needs derivatives, and target {blunt} has no right answers whose loss could stand for its score"
        raise RecipeError("search.strategy", message, hint="give it prompt and completion, or use regression or greedy")
    try:
        return strategies.build(name, setting)
    except SettingError as error:
        raise RecipeError(f"search.{error.key}", str(error)) from None
    except ValueError as error:
        raise RecipeError("search.budget", str(error)) from None


def storage_of(job: Job, space: Space) -> str | None:
    """Where Optuna keeps its trials for others to look at, such as optuna-dashboard: `optuna.db` in the run's folder, and
    beside it `optuna-weights.db` where the weights of the best subset are searched after the subsets."""
    if job.recipe.search.strategy != "optuna":
        return None
    is_second = job.recipe.search.space == "both" and isinstance(space, Simplex)
    return f"sqlite:///{Path(job.recipe.run_dir) / ('optuna-weights.db' if is_second else 'optuna.db')}"


def warn_of_blunt_targets(job: Job, trials: Sequence[Trial]) -> None:
    """Says of every target whose examples cannot tell even its best mixture from its worst how many would."""
    for name in job.recipe.targets if len(trials) > 1 else ():
        scores = [trial.scores[name] for trial in trials]
        best, worst = max(scores, key=lambda each: each.mean), min(scores, key=lambda each: each.mean)
        num = len(best.values)
        gap, sd = agreement.paired_difference(best.values, worst.values, best.weights)
        if gap <= 0:
            job.warn(f"target {name}: all {len(trials)} mixtures score the same, {best.mean:.4g}; it has no say in the choice")
        elif not sd * agreement.STANDARD_ERRORS < gap:
            needed = f"about {agreement.examples_needed(sd, num, gap)} are needed" if math.isfinite(sd) else "several are needed"
            spread = f"{gap:.3g}, standard error {sd:.3g}" if math.isfinite(sd) else f"{gap:.3g}"
            job.warn(f"target {name}: {num} examples cannot tell even its best mixture from its worst ({spread}); {needed}")


def ranked(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Trials, the best objective first; of equals the one with fewer datasets, then by name."""
    return tuple(sorted(trials, key=lambda trial: (-trial.objective, len(trial.mixture), trial.mixture.datasets)))
