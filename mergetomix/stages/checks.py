"""Checks: a few mixtures fine-tuned for real, the choice that they lead to, and how far it can be trusted.

The best mixture by proxy is checked first, then the one whose check is expected to improve the choice most. After every check
the exponent of the scale and the model of `calibrate` are fitted again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from mergetomix.errors import TrainingError
from mergetomix.mixtures.spaces import holds
from mergetomix.objectives.objective import Objective, gains
from mergetomix.records import Mixture, Scores, Trial, gain
from mergetomix.results import Agreement, Alternative, Check, Prediction, Selection, Verification
from mergetomix.session.evaluations import trial_of
from mergetomix.session.memory import free_memory
from mergetomix.session.session import Session
from mergetomix.statistics import agreement as rank_agreement
from mergetomix.statistics import drawn_posterior, opinion_pool
from mergetomix.statistics.posterior import (
    Array,
    Posterior,
    Unit,
    Views,
    likeliest_exponent,
    posterior_of,
)
from mergetomix.statistics.posterior import next_check as best_next_check
from mergetomix.store.address import digest

Origin = Literal["verify", "baseline", "store"]


@dataclass
class State:
    """What is known while checks are made: the search's trials, those at the exponent in force, the checks, and what failed.

    A mixture whose check failed is no candidate any more and leaves the trials.
    """

    session: Session
    objective: Objective
    base: Mapping[str, Scores]
    experts: Mapping[str, Mapping[str, Scores]]
    searched: list[Trial]
    trials: list[Trial]
    exponent: float
    unit: Unit
    units: dict[str, Unit] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)
    failures: list[tuple[Mixture, str]] = field(default_factory=list)
    _pooled: dict[Mixture, dict[str, float]] = field(default_factory=dict)

    @property
    def weights(self) -> Mapping[str, float]:
        """Each target's weight in the objective."""
        return self.objective.weights

    @property
    def places(self) -> dict[Mixture, int]:
        """Each trial's row."""
        return {trial.mixture: i for i, trial in enumerate(self.trials)}

    def trial(self, mixture: Mixture, exponent: float | None) -> Trial:
        """A mixture's trial at an exponent of the scale; None is the recipe's."""
        scores = self.session.evaluations.proxy(mixture, "select", exponent)
        return trial_of(mixture, scores, self.base, self.objective)

    def posterior(self) -> Posterior:
        """All trials' real objectives, given the checks."""
        places = self.places
        checks = {places[check.mixture]: check for check in self.checks if check.mixture in places}
        if self.objective.is_linear:
            known = {row: check.real for row, check in checks.items()}
            return posterior_of(self.views(self.trials), known, unit=self.unit)
        views = {name: self.views(self.trials, name) for name in self.weights}
        reals = {row: gains(check.scores, self.base) for row, check in checks.items()}
        by_target = {
            name: {row: real[name] for row, real in reals.items()} for name in self.weights
        }
        return drawn_posterior.posterior_of(self.objective, views, by_target, self.units)

    def likeliest_exponent(self, at: Mapping[float, Sequence[Trial]]) -> float:
        """By the checks, given their proxies at several exponents."""
        if self.objective.is_linear:
            views = {exponent: self.views(trials) for exponent, trials in at.items()}
            reals = np.array([check.real for check in self.checks])
            return likeliest_exponent(
                views, reals, self.unit, self.session.recipe.merge.scale.exponent
            )
        by_target = {
            name: {each: self.views(trials, name) for each, trials in at.items()}
            for name in self.weights
        }
        found = [gains(check.scores, self.base) for check in self.checks]
        real = {name: np.array([each[name] for each in found]) for name in self.weights}
        return drawn_posterior.likeliest_exponent(
            by_target, real, self.units, self.session.recipe.merge.scale.exponent
        )

    def views(self, trials: Sequence[Trial], target: str | None = None) -> Views:
        """What is known of some trials' mixtures before any real fine-tune: of their objectives, or of one target's gains."""
        pooled = [self.pooled(trial.mixture) for trial in trials]
        if target is None:
            combine = self.objective.combine
            return Views(
                weights_of(trials), proxies_of(trials), np.array([combine(each) for each in pooled])
            )
        return Views(
            weights_of(trials),
            gains_on(trials, target, self.base),
            np.array([each[target] for each in pooled]),
        )

    def drop(self, mixture: Mixture, why: str) -> None:
        """Takes a mixture whose training failed out of the choice. Raises TrainingError where none is left."""
        self.failures.append((mixture, why))
        self.session.opened.warn(f"the check of {mixture} is left out: {why}")
        self.searched = [trial for trial in self.searched if trial.mixture != mixture]
        self.trials = [trial for trial in self.trials if trial.mixture != mixture]
        if not self.trials:
            hint = "lower train.learning_rate, or look for odd rows in the data"
            raise TrainingError(f"no mixture is left to choose from: {why}", hint=hint)

    def pooled(self, mixture: Mixture) -> dict[str, float]:
        """The gains of a mixture's experts pooled, by target."""
        if mixture not in self._pooled:
            by_target = {
                name: {each: self.experts[each][name] for each in mixture.datasets}
                for name in self.weights
            }
            scores = {
                name: opinion_pool.pooled(mixture, experts) for name, experts in by_target.items()
            }
            self._pooled[mixture] = gains(scores, self.base)
        return self._pooled[mixture]


def verify(
    session: Session,
    selection: Selection,
    objective: Objective,
    budget: int,
    baselines: Sequence[Mixture] = (),
) -> Verification:
    """Checks the best mixtures of a search and chooses by what they show.

    Args:
        budget: most fine-tunes to make for checks.
        baselines: mixtures whose fine-tunes are made anyway, for the final table; they count as checks that cost nothing.

    A check whose training fails is named and left out. Run again, it makes the same checks: what the store held at its first
    start is remembered, so that its own fine-tunes are not taken for somebody else's.
    """
    experts = {trial.mixture.datasets[0]: trial.scores for trial in selection.singles}
    trials = list(selection.trials)
    units = {name: Unit.of(gains_on(trials, name, selection.base)) for name in objective.weights}
    exponent = session.recipe.merge.scale.exponent
    state = State(
        session,
        objective,
        selection.base,
        experts,
        trials,
        list(trials),
        exponent,
        Unit.of(proxies_of(trials)),
        units,
    )
    with session.listener.task("verify", "checking mixtures", budget) as advance:
        for mixture, origin in known_at_start(state, baselines):
            add_check(state, mixture, origin)
        refit(state)
        stopped = "the budget is spent"
        for num_done in range(budget):
            chosen, reason = next_check(state)
            if chosen is None:
                stopped = reason
                break
            session.opened.beat(f"verify: {chosen}", num_done, budget)
            add_check(state, chosen, "verify")
            refit(state)
            advance(1)
    session.opened.tell_reused("real fine-tunes")
    return conclude(state, stopped)


def known_at_start(state: State, baselines: Sequence[Mixture]) -> list[tuple[Mixture, Origin]]:
    """Mixtures of several datasets whose fine-tunes the final table needs, then those that the store held at the first start.

    A baseline that the search may not choose is no candidate, and no check.
    """
    session, space = state.session, state.session.spaces.searched
    allowed = [mixture for mixture in dict.fromkeys(baselines) if holds(space, mixture)]
    wanted: list[tuple[Mixture, Origin]] = [
        (mixture, "baseline") for mixture in allowed if len(mixture) > 1
    ]
    targets = {name: scorer.address for name, scorer in session.inputs.targets("select").items()}
    experts = [session.addresses.expert(name) for name in space.allowed]
    names = [listed(session, mixture) for mixture, _ in wanted]
    weights, aim = dict(state.weights), state.objective.aim
    chosen_by = weights if aim == "gain" else [aim, weights]
    key = digest("verify", experts, targets, chosen_by, session.recipe.merge.model_dump(), names)
    file = session.store.artifact_path(key) / "known.json"
    with session.store.lock(key):
        if not file.exists():
            held = [
                t.mixture
                for t in state.trials
                if len(t.mixture) > 1 and session.finetunes.known(t.mixture)
            ]
            with session.store.artifact(key) as folder:
                (folder / "known.json").write_text(
                    json.dumps([listed(session, mixture) for mixture in held]), encoding="utf-8"
                )
    known = json.loads(file.read_text(encoding="utf-8"))
    held_mixtures = [
        trial.mixture for trial in state.trials if listed(session, trial.mixture) in known
    ]
    return wanted + [(mixture, "store") for mixture in held_mixtures if mixture not in dict(wanted)]


def listed(session: Session, mixture: Mixture) -> list[Any]:
    """A mixture as JSON has it: its datasets, and its weights where a fine-tune depends on them."""
    return (
        [list(mixture.datasets), list(mixture.weights)]
        if session.recipe.search.draws_rows
        else list(mixture.datasets)
    )


def add_check(state: State, mixture: Mixture, origin: Origin) -> None:
    """Fine-tunes on a mixture, or takes the fine-tune that the store holds, and scores it on the select part."""
    session = state.session
    try:
        session.proxies.release()
        record = session.finetunes.fit(mixture, "verify")
        scores = session.evaluations.real(record, "select")
    except TrainingError as error:
        state.drop(mixture, error.message)
        return
    free_memory()
    if mixture not in state.places:
        state.searched.append(state.trial(mixture, None))
        state.trials.append(state.trial(mixture, state.exponent))
    trial = state.trials[state.places[mixture]]
    real = state.objective.of(scores, state.base)
    state.checks.append(
        Check(mixture, trial.objective, real, scores, trial.scores, record.key, origin)
    )


def next_check(state: State) -> tuple[Mixture | None, str]:
    """The mixture to check next, or None and why there is none."""
    paid = any(check.origin == "verify" for check in state.checks)
    first_by = None if paid else proxies_of(state.trials)
    row, reason = best_next_check(
        state.posterior(), first_by, state.session.recipe.verify.confidence
    )
    return (None if row is None else state.trials[row].mixture), reason


# --- calibration


def refit(state: State) -> None:
    """Takes the exponent under which the checks are likeliest, and scores what it changes again.

    A proxy of one dataset has no exponent. Of the others the checked ones are scored at every exponent, and the best
    `verify.max_rescored` of the search at the new one; the rest leave the comparison until the search's own exponent is back.
    """
    session, options = state.session, state.session.recipe.verify
    own = session.recipe.merge.scale.exponent
    candidates = sorted({*options.exponents, own})
    if len(candidates) < 2 or not state.checks:
        return
    at = {each: [state.trial(check.mixture, each) for check in state.checks] for each in candidates}
    exponent = state.likeliest_exponent(at)
    if exponent == state.exponent:
        return
    session.listener.note(
        f"the checks ask for merge.scale.exponent {exponent:g} instead of {state.exponent:g}"
    )
    state.exponent = exponent
    must = {check.mixture for check in state.checks}
    most = len(state.searched) if exponent == own else options.max_rescored
    kept = [
        t
        for i, t in enumerate(state.searched)
        if i < most or len(t.mixture) == 1 or t.mixture in must
    ]
    with session.listener.task(
        "verify", f"scoring proxies with exponent {exponent:g}", len(kept)
    ) as advance:
        rescored = []
        for trial in kept:
            rescored.append(state.trial(trial.mixture, exponent))
            advance(1)
    state.trials = sorted(
        rescored, key=lambda trial: (-trial.objective, len(trial.mixture), trial.mixture.datasets)
    )
    state.checks = [with_proxy(check, rescored) for check in state.checks]


def with_proxy(check: Check, trials: Sequence[Trial]) -> Check:
    """The check beside its proxy of other trials."""
    trial = next(trial for trial in trials if trial.mixture == check.mixture)
    return Check(
        check.mixture,
        trial.objective,
        check.real,
        check.scores,
        trial.scores,
        check.key,
        check.origin,
    )


def weights_of(trials: Sequence[Trial]) -> Array:
    """The trials' weights, shape (M, N); datasets in the order of their names."""
    names = sorted({name for trial in trials for name in trial.mixture.datasets})
    return np.array(
        [[trial.mixture.as_dict().get(name, 0.0) for name in names] for trial in trials]
    )


def proxies_of(trials: Sequence[Trial]) -> Array:
    """The trials' objectives, shape (M,)."""
    return np.array([trial.objective for trial in trials])


def gains_on(trials: Sequence[Trial], target: str, base: Mapping[str, Scores]) -> Array:
    """The trials' gains on one target, shape (M,)."""
    return np.array([gain(trial.scores[target], base[target]) for trial in trials])


# --- what the checks show


def conclude(state: State, stopped: str) -> Verification:
    """The pick by the posterior, with everything that cannot be told apart from it."""
    options = state.session.recipe.verify
    posterior = state.posterior()
    best = int(np.argmax(posterior.mean_M))
    pick = state.trials[best].mixture
    noise = seed_noise(state)
    return Verification(
        mixture=pick,
        checks=tuple(state.checks),
        predictions=predictions(state, posterior, options.interval),
        alternatives=alternatives(state, posterior, best, noise.get("objective")),
        agreement=agreement(state, noise),
        exponent=state.exponent,
        confidence=options.interval,
        stopped=stopped,
        failures=tuple(state.failures),
    )


def predictions(state: State, posterior: Posterior, confidence: float) -> tuple[Prediction, ...]:
    """What is expected of every mixture, the best first."""
    low_M, high_M = posterior.interval(confidence)
    best_M = posterior.best_probabilities()
    order = sorted(range(len(state.trials)), key=lambda i: (-posterior.mean_M[i], i))
    found = []
    for i in order:
        trial, known = state.trials[i], i in posterior.known
        mean, low, high = float(posterior.mean_M[i]), float(low_M[i]), float(high_M[i])
        found.append(
            Prediction(trial.mixture, trial.objective, mean, low, high, float(best_M[i]), known)
        )
    return tuple(found)


def repeated(checks: Sequence[Check], num: int) -> list[Check]:
    """The best checks by their real objective: those that are fine-tuned again with another seed."""
    return sorted(checks, key=lambda check: -check.real)[:num]


def seed_noise(state: State) -> dict[str, float]:
    """Standard deviation between seeds of every target's gain and of the objective, from fine-tunes of the best
    `verify.repeats` checked mixtures with the seed after train.seed; empty without any."""
    session = state.session
    pairs: list[tuple[dict[str, float], dict[str, float]]] = []
    for check in repeated(state.checks, session.recipe.verify.repeats):
        try:
            session.proxies.release()
            seed = session.recipe.train.seed + 1
            record = session.finetunes.fit(check.mixture, "verify", seed)
            scores = session.evaluations.real(record, "select")
        except TrainingError as error:
            session.opened.warn(
                f"the repeat of {check.mixture} with another seed is left out: {error.message}"
            )
            continue
        pairs.append((gains_of(state, check.scores), gains_of(state, scores)))
    found = {}
    for name in [*state.weights, "objective"] if pairs else []:
        noise_sd = rank_agreement.noise_sd(
            np.array([[gains[name] for gains in pair] for pair in pairs]).T
        )
        if noise_sd is not None:
            found[name] = noise_sd
    return found


def gains_of(state: State, scores: Mapping[str, Scores]) -> dict[str, float]:
    """The gain on every target, and the objective."""
    return {**gains(scores, state.base), "objective": state.objective.of(scores, state.base)}


def alternatives(
    state: State, posterior: Posterior, best: int, noise_sd: float | None
) -> tuple[Alternative, ...]:
    """Mixtures that are better than the pick with a probability over 1 - verify.confidence, the likeliest first.

    The variance of a difference is the posterior's, that of the examples (paired, by bootstrap; of the reals where both are
    checked, else of the proxies), and twice that between seeds.
    """
    inflated = posterior.dof / (posterior.dof - 2) if posterior.dof > 2 else 1.0
    found = []
    for i in range(len(state.trials)):
        if i == best:
            continue
        difference = float(posterior.mean_M[best] - posterior.mean_M[i])
        scale_MM = posterior.scale_MM
        variance = inflated * float(scale_MM[i, i] + scale_MM[best, best] - 2 * scale_MM[i, best])
        variance += example_sd(state, best, i) ** 2 + 2 * (noise_sd or 0.0) ** 2
        better = NormalDist().cdf(-difference / math.sqrt(variance)) if variance > 0 else 0.0
        if better > 1 - state.session.recipe.verify.confidence:
            found.append(
                Alternative(state.trials[i].mixture, difference, math.sqrt(variance), better)
            )
    return tuple(sorted(found, key=lambda each: -each.better_probability))


def example_sd(state: State, a: int, b: int) -> float:
    """Standard deviation of the difference of two mixtures' objectives over draws of the examples."""
    first, second = scores_of(state, a), scores_of(state, b)
    if first[1] != second[1]:
        first, second = (state.trials[a].scores, False), (state.trials[b].scores, False)
    if not state.objective.is_linear:
        return drawn_posterior.example_sd(state.objective, first[0], second[0], state.base)
    variance = 0.0
    for name in state.weights:
        one, other = first[0][name], second[0][name]
        _, sd = paired(one, other)
        unit = state.base[name].mean if one.kind == "loss" and state.base[name].mean > 0 else 1.0
        variance += (state.objective.slope(name) * (sd if math.isfinite(sd) else 0.0) / unit) ** 2
    return math.sqrt(variance)


def paired(one: Scores, other: Scores) -> tuple[float, float]:
    """The difference of two models' means over the same examples, and its standard deviation over draws of the examples."""
    return rank_agreement.paired_difference(
        one.values, other.values, one.weights, num_resamples=199
    )


def scores_of(state: State, row: int) -> tuple[Mapping[str, Scores], bool]:
    """A mixture's scores, and whether they are of the real fine-tune."""
    trial = state.trials[row]
    if len(trial.mixture) == 1:
        return trial.scores, True
    real = next((check.scores for check in state.checks if check.mixture == trial.mixture), None)
    return (trial.scores, False) if real is None else (real, True)


def agreement(state: State, noise: Mapping[str, float]) -> dict[str, Agreement]:
    """How well proxies rank, for every target and the objective, over the checks of several datasets."""
    proxies = [gains_of(state, check.proxy_scores) for check in state.checks]
    reals = [gains_of(state, check.scores) for check in state.checks]
    found = {}
    for name in [*state.weights, "objective"]:
        proxy_M, real_M = (np.array([each[name] for each in gains]) for gains in (proxies, reals))
        found[name] = agreement_of(
            proxy_M, real_M, noise.get(name), state.session.recipe.verify.interval
        )
    return found


def agreement_of(
    proxy_M: Array, real_M: Array, noise_sd: float | None, confidence: float
) -> Agreement:
    """The statistics of one target, and what a perfect proxy would reach."""
    measured = rank_agreement.fidelity(proxy_M, real_M, confidence=confidence)
    if measured is None:
        return Agreement(len(real_M), None, noise_sd, None)
    possible = None if noise_sd is None else rank_agreement.ceiling(real_M, noise_sd).spearman
    return Agreement(len(real_M), measured.statistics, noise_sd, possible)
