"""The search: proxies on the select part of the targets until the strategy is done."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mergetomix.errors import RecipeError
from mergetomix.mixtures.spaces import Simplex, Space, Subsets, holds
from mergetomix.objectives.objective import Objective, gains
from mergetomix.records import Mixture, Scores, Trial
from mergetomix.results import Selection
from mergetomix.search.strategies import build, choose
from mergetomix.search.strategy import Ask, Options, Setting, SettingError, Strategy, Told
from mergetomix.session.evaluations import trial_of
from mergetomix.session.session import Session
from mergetomix.stages import units
from mergetomix.stages.expectations import deviations, gains_on
from mergetomix.stages.race import Race
from mergetomix.stages.ranking import ranked
from mergetomix.stages.stopping import Limit, Meter, limit_of, next_asked
from mergetomix.statistics import agreement, noise
from mergetomix.statistics.standard_errors import standard_errors

OF_SUBSETS = ("exhaustive", "greedy")
"""Strategies that know no weights."""
BY_THE_MEAN = ("greedy",)
"""Strategies that do not look for a front."""
SAYS_NOTHING = 0.05
"""The chance of equal mixtures to differ as much, above which a target says nothing."""

Base = Mapping[str, Scores]


@dataclass(frozen=True)
class Searched:
    """What a search over one space gave: its trials, and the name of its strategy."""

    trials: tuple[Trial, ...]
    strategy: str


def search_mixtures(session: Session) -> Selection:
    """Evaluates proxies on the select part of the targets until the strategy is done.

    Where the recipe chooses a subset and then its weights, half of the budget goes to each.
    """
    base = session.evaluations.base("select")
    objective = objective_before(session, base)
    searched = search_all(session, base, objective)
    session.opened.tell_reused("trials")
    complete = [trial for trial in searched.trials if trial.complete]
    stopped = [trial for trial in searched.trials if not trial.complete]
    blunt = warn_of_blunt_targets(session, complete, base)
    all_gains = [gains(trial.scores, base) for trial in complete]
    for line in units.about_rulers(objective, all_gains, f"{len(complete)} mixtures"):
        session.opened.warn(line)
    tried = {trial.mixture: trial for trial in complete}
    singles = [Mixture((name,), (1.0,)) for name in session.spaces.searched.allowed]
    lacking = [each for each in singles if each not in tried]
    scores = dict(session.evaluations.proxies(lacking, "select"))
    experts = [tried.get(each) or trial_of(each, scores[each], base, objective) for each in singles]
    candidates = [each for each in tried.values() if holds(session.spaces.searched, each.mixture)]
    objective = objective_after(objective, candidates, base)
    candidates, experts = (
        [replace(each, objective=objective.of(each.scores, base)) for each in trials]
        for trials in (candidates, experts)
    )
    best_first, others = ranked(candidates), (ranked(experts), objective, ranked(stopped))
    order = tuple(dict.fromkeys(trial.mixture for trial in searched.trials))
    best = best_first[0].mixture
    return Selection(best, best_first, searched.strategy, base, *others, order, blunt)


def search_all(session: Session, base: Base, objective: Objective) -> Searched:
    """Searches the recipe's space: at once, or the subsets first and then the weights."""
    limit = limit_of(session)
    if session.recipe.search.space != "both":
        return search_space(session, base, objective, session.spaces.searched, limit)
    first = search_space(session, base, objective, session.spaces.subsets, limit.half())
    weights = weights_of_best(session, first.trials)
    second = search_space(session, base, objective, weights, limit.half(up=True))
    names = f"{first.strategy}, then {second.strategy}"
    return Searched((*first.trials, *second.trials), names)


def search_space(
    session: Session, base: Base, objective: Objective, space: Space, limit: Limit
) -> Searched:
    """Searches one space, as long as its strategy asks and the limit allows."""
    strategy = strategy_of(session, objective, space, limit.num_passes)
    announce(session, strategy, space, limit, objective)
    trials: list[Trial] = []
    meter = Meter()
    by_gradients, listener = strategy.name == "gradient", session.listener
    text = f"trying mixtures ({strategy.name})"
    with listener.task("search", text, strategy.expected()) as advance:
        race = race_of(session, strategy, base, objective)
        while asked := next_asked(strategy, meter, limit):
            for ask, found in tried(session, asked, base, objective, race):
                trials.append(found)
                strategy.tell(told(session, ask, found, base, by_gradients))
                advance(1)
                tell_trackers(session, trials)
                meter.num_passes += ask.cost
                listener.state(meter.line(strategy, trials))
                session.opened.beat("search", len(trials), strategy.expected())
                if meter.is_out_of_time(limit):
                    break
    listener.note(f"search: {meter.line(strategy, trials)}")
    if by_gradients:
        session.gradients.warn_of_companions(trials)
    return Searched(tuple(trials), strategy.name)


def tell_trackers(session: Session, trials: Sequence[Trial]) -> None:
    """Tells trackers of the trial that came last, and of the best so far."""
    best = max((trial.objective for trial in trials if trial.complete), default=math.nan)
    session.opened.tracked.log({"search/objective": trials[-1].objective, "search/best": best})


def announce(
    session: Session, strategy: Strategy, space: Space, limit: Limit, objective: Objective
) -> None:
    """Says why a strategy was chosen, and what it does not do."""
    if objective.aim == "pareto" and strategy.name in BY_THE_MEAN:
        session.opened.warn(
            f"{strategy.name} search goes by the mean of the gains: the front is of the mixtures"
            " that it tries on its way"
        )
    if session.recipe.search.strategy == "auto":
        _, why = choose(space, limit.num_passes, session.gradients.are_there)
        session.listener.note(f"search: {strategy.name}, as {why}")
    if strategy.name == "optuna":
        Path(session.recipe.run_dir).mkdir(parents=True, exist_ok=True)


def race_of(session: Session, strategy: Strategy, base: Base, objective: Objective) -> Race | None:
    """The race between the mixtures of a search, where the recipe wants one."""
    alpha, size = session.recipe.search.racing, session.spaces.searched.size
    if alpha is None:
        return None
    race = Race(session, base, objective, alpha)
    race.start(all_asked=strategy.name == "exhaustive" and strategy.expected() >= size)
    return race


def tried(
    session: Session, asked: Sequence[Ask], base: Base, objective: Objective, race: Race | None
) -> Iterator[tuple[Ask, Trial]]:
    """Yields the trial of every mixture that is asked for, in that order.

    Trials whose gradient is asked for are never raced.
    """
    if race is not None:
        yield from ((ask, race.trial(ask)) for ask in asked)
        return
    found: dict[Mixture, Trial] = {}
    waiting = list(reversed(asked))
    for mixture, scores in session.evaluations.proxies((ask.mixture for ask in asked), "select"):
        found[mixture] = trial_of(mixture, scores, base, objective)
        while waiting and waiting[-1].mixture in found:
            ask = waiting.pop()
            yield ask, found.pop(ask.mixture)


def told(session: Session, ask: Ask, found: Trial, base: Base, by_gradients: bool) -> Told:
    """What a strategy is told of a trial."""
    gradients = session.gradients.of(ask.mixture, base) if ask.gradient else None
    beside = session.gradients.smooth(found, base) if by_gradients else None
    return Told(ask.mixture, found.objective, found.gains(base), gradients, beside)


def weights_of_best(session: Session, trials: Sequence[Trial]) -> Space:
    """Returns the weights of the best subset that may have some."""
    space = session.spaces.searched
    assert isinstance(space, Simplex)
    able = [frozenset(trial.mixture.members) for trial in ranked(trials)]
    chosen = next((datasets for datasets in able if space.holds(datasets)), None)
    if chosen is None:
        message = (
            f"none of the {len(trials)} subsets that were tried can have weights under its caps"
        )
        raise RecipeError("search.max_repeats", message, hint="raise it, or leave it out")
    return replace(space, least=len(chosen), most=len(chosen), require=chosen)


# --- the strategy


def first_strategy(session: Session) -> Strategy:
    """Returns the strategy of what is searched first, before anything is measured.

    Raises RecipeError where the recipe's strategy or budget cannot be.
    """
    limit, spaces = limit_of(session), session.spaces
    space: Space = spaces.searched
    if session.recipe.search.space == "both":
        space, limit = spaces.subsets, limit.half()
    return strategy_of(session, objective_of(session), space, limit.num_passes)


def strategy_of(
    session: Session, objective: Objective, space: Space, budget: int | None
) -> Strategy:
    """Returns the recipe's way to search a space.

    A strategy that tries subsets alone leaves their weights to another. Raises RecipeError where
    the budget is too small.
    """
    recipe, options = session.recipe, session.recipe.search
    setting = Setting(
        space,
        objective,
        recipe.merge.scale.exponent,
        recipe.train.seed,
        budget,
        session.gradients.are_there,
        Options(options.regressor, options.sampler, storage_of(session, space)),
    )
    leaves = isinstance(space, Simplex) and options.strategy in OF_SUBSETS
    name = "auto" if leaves else options.strategy
    if name == "gradient" and not setting.differentiable:
        blunt = next(each for each in recipe.targets if session.gradients.scorer(each) is None)
        message = (
            f"gradient needs derivatives, and target {blunt} has no right answers whose loss could"
            " stand for its score"
        )
        hint = "give it prompt and completion, or use regression or greedy"
        raise RecipeError("search.strategy", message, hint=hint)
    try:
        return build(name, setting)
    except SettingError as error:
        raise RecipeError(f"search.{error.key}", str(error)) from None
    except ValueError as error:
        raise RecipeError("search.budget", str(error)) from None


def storage_of(session: Session, space: Space) -> str | None:
    """Returns the database of Optuna's trials, for optuna-dashboard to look at.

    `optuna.db` in the run's folder, and beside it `optuna-weights.db` where the weights of the
    best subset are searched after the subsets.
    """
    options = session.recipe.search
    if options.strategy != "optuna":
        return None
    is_second = options.space == "both" and not isinstance(space, Subsets)
    name = "optuna-weights.db" if is_second else "optuna.db"
    return f"sqlite:///{Path(session.recipe.run_dir) / name}"


# --- the objective


def objective_of(session: Session) -> Objective:
    """Returns the recipe's objective, as far as it is known before anything is measured."""
    weights = {name: spec.weight for name, spec in session.recipe.targets.items()}
    aim = session.recipe.search.objective
    return Objective(weights, "gain" if aim == "auto" else aim)


def objective_before(session: Session, base: Base) -> Objective:
    """Returns the objective of a search. For standard errors the experts are scored first.

    Raises RecipeError where a target has no standard error.
    """
    objective = replace(objective_of(session), aim=units.aim_of(session.recipe, base))
    for line in units.about_units(session.recipe, base):
        session.opened.warn(line)
    if objective.aim != "standard_errors":
        return objective
    singles = [Mixture((name,), (1.0,)) for name in session.spaces.searched.allowed]
    scores = []
    text = "scoring experts for their standard errors"
    with session.listener.task("search", text, len(singles)) as advance:
        for _, found in session.evaluations.proxies(singles, "select"):
            scores.append(found)
            advance(1)
    return in_standard_errors(session, objective, scores, base)


def in_standard_errors(
    session: Session, objective: Objective, experts: Sequence[Mapping[str, Scores]], base: Base
) -> Objective:
    """Returns the objective with each target's standard error as its unit.

    Raises RecipeError where a target has none, if the recipe asks for them.
    """
    try:
        return replace(objective, units=standard_errors(experts, base))
    except ValueError as error:
        if session.recipe.search.objective == "auto":
            session.opened.warn(f"search.objective: {error}, so gains are added up as they are")
            return replace(objective, aim="gain")
        hint = "give the target more examples, or use search.objective: gain"
        raise RecipeError("search.objective", f"standard_errors: {error}", hint=hint) from None


def objective_after(objective: Objective, trials: Sequence[Trial], base: Base) -> Objective:
    """Returns the objective of all that comes after a search.

    Of `pareto` the knee of the front of the trials is the best.
    """
    if objective.aim != "pareto":
        return objective
    return objective.settled([gains(trial.scores, base) for trial in trials])


def objective_of_selection(session: Session, selection: Selection) -> Objective:
    """Returns the objective of a selection, which may say nothing of it."""
    if selection.objective is not None:
        return selection.objective
    aim = units.aim_of(session.recipe, selection.base)
    objective = replace(objective_of(session), aim=aim)
    if objective.aim == "standard_errors":
        experts = [trial.scores for trial in selection.singles]
        objective = in_standard_errors(session, objective, experts, selection.base)
    return objective_after(objective, selection.trials, selection.base)


def warn_of_blunt_targets(
    session: Session, trials: Sequence[Trial], base: Mapping[str, Scores]
) -> tuple[str, ...]:
    """Names targets on which the mixtures differ by no more than chance would make them.

    Of many mixtures the best and the worst lie apart by chance alone, so that all are looked at.
    """
    blunt: list[str] = []
    for name in session.recipe.targets if len(trials) > 1 else ():
        scores = [trial.scores[name] for trial in trials]
        best, worst = (pick(scores, key=lambda each: each.mean) for pick in (max, min))
        num = len(best.values)
        gap, sd = agreement.paired_difference(best.values, worst.values, best.weights)
        if gap <= 0:
            blunt.append(name)
            session.opened.warn(
                f"target {name}: all {len(trials)} mixtures score the same, {best.mean:.4g};"
                " it has no say in the choice"
            )
            continue
        means_M = gains_on(trials, name, base)
        root_ME = noise.mean_root(deviations(scores, base[name]), np.array(best.weights))
        chance = noise.chance_of_spread(means_M, root_ME)
        if chance > SAYS_NOTHING or not sd * agreement.STANDARD_ERRORS < gap:
            blunt.append(name)
            needed, spread = "several are needed", f"{gap:.3g}"
            if math.isfinite(sd):
                needed = f"about {agreement.examples_needed(sd, num, gap)} are needed"
                spread = f"{gap:.3g}, standard error {sd:.3g}"
            session.opened.warn(
                f"target {name} says nothing: on its {num} examples the mixtures differ by no more"
                f" than chance would make equal ones differ (p = {chance:.2g}), even the best from"
                f" the worst ({spread}); {needed}, or leave it out"
            )
    return tuple(blunt)
