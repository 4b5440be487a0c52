"""Checks: a few mixtures fine-tuned for real, the choice that they lead to, and how sure it is.

The best mixture by proxy is checked first, then the one whose check is expected to improve the
choice most. After every check the exponent of the scale and the posterior are made again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from mergetomix.stages.ranking import ranked
from mergetomix.statistics import agreement, drawn_posterior, posterior
from mergetomix.statistics.knowledge_gradient import next_check
from mergetomix.statistics.opinion_pool import pooled
from mergetomix.statistics.posterior import Array, Posterior, Unit, Views
from mergetomix.store.address import digest

Origin = Literal["verify", "baseline", "store"]
NUM_RESAMPLES = 199


def verify(
    session: Session,
    selection: Selection,
    objective: Objective,
    budget: int,
    baselines: Sequence[Mixture] = (),
) -> Verification:
    """Checks the best mixtures of a search and chooses by what they show.

    A check whose training fails is named and left out. Run again, it makes the same checks: what
    the store held at its first start is remembered, so that its own fine-tunes are not taken for
    somebody else's.

    Args:
        objective: what mixtures are chosen by, settled after the search.
        budget: most fine-tunes to make for checks.
        baselines: mixtures whose fine-tunes are made anyway, for the final table; they count as
            checks that cost nothing.
    """
    state = Checks(session, selection, objective)
    with session.listener.task("verify", "checking mixtures", budget) as advance:
        for mixture, origin in state.known_at_start(baselines):
            state.add(mixture, origin)
        state.refit()
        stopped = "the budget is spent"
        for num_done in range(budget):
            chosen, reason = state.next_check()
            if chosen is None:
                stopped = reason
                break
            session.opened.beat(f"verify: {chosen}", num_done, budget)
            state.add(chosen, "verify")
            state.refit()
            advance(1)
    session.opened.tell_reused("real fine-tunes")
    return Conclusion(state).verification(stopped)


def repeated(checks: Sequence[Check], num: int) -> list[Check]:
    """Returns the best checks by their real objective, which are fine-tuned with another seed."""
    return sorted(checks, key=lambda check: -check.real)[:num]


class Checks:
    """What is known while checks are made.

    `searched` are the search's trials, `trials` those at the exponent in force. A mixture whose
    check failed is no candidate any more and leaves both.
    """

    def __init__(self, session: Session, selection: Selection, objective: Objective) -> None:
        self.session, self.objective, self.base = session, objective, selection.base
        self.options, self.weights = session.recipe.verify, objective.weights
        self.experts = {each.mixture.datasets[0]: each.scores for each in selection.singles}
        self.searched, self.trials = list(selection.trials), list(selection.trials)
        self.exponent = self._own_exponent = session.recipe.merge.scale.exponent
        self._unit = Unit.of(proxies_of(self.trials))
        self._units = {
            name: Unit.of(gains_on(self.trials, name, self.base)) for name in self.weights
        }
        self.checks: list[Check] = []
        self.failures: list[tuple[Mixture, str]] = []
        self._pooled: dict[Mixture, dict[str, float]] = {}

    # --- which mixture next

    def known_at_start(self, baselines: Sequence[Mixture]) -> list[tuple[Mixture, Origin]]:
        """Returns the mixtures of several datasets whose fine-tunes cost nothing, and why.

        Those that the final table needs, then those that the store held at the first start. A
        baseline that the search may not choose is no candidate, and no check.
        """
        session, space = self.session, self.session.spaces.searched
        allowed = [each for each in dict.fromkeys(baselines) if holds(space, each)]
        wanted: list[tuple[Mixture, Origin]] = [
            (each, "baseline") for each in allowed if len(each) > 1
        ]
        targets = session.inputs.targets("select").items()
        weights, aim = dict(self.weights), self.objective.aim
        key = digest(
            "verify",
            [session.addresses.expert(name) for name in space.allowed],
            {name: scorer.address for name, scorer in targets},
            weights if aim == "gain" else [aim, weights],
            session.recipe.merge.model_dump(),
            [self._listed(mixture) for mixture, _ in wanted],
        )
        file = session.store.artifact_path(key) / "known.json"
        with session.store.lock(key):
            if not file.exists():
                plural = [each.mixture for each in self.trials if len(each.mixture) > 1]
                held = [each for each in plural if session.finetunes.known(each)]
                with session.store.artifact(key) as folder:
                    text = json.dumps([self._listed(mixture) for mixture in held])
                    (folder / "known.json").write_text(text, encoding="utf-8")
        known = json.loads(file.read_text(encoding="utf-8"))
        held = [each.mixture for each in self.trials if self._listed(each.mixture) in known]
        return wanted + [(mixture, "store") for mixture in held if mixture not in dict(wanted)]

    def _listed(self, mixture: Mixture) -> list[Any]:
        """A mixture as JSON: its datasets, and its weights where a fine-tune depends on them."""
        if not self.session.recipe.search.draws_rows:
            return list(mixture.datasets)
        return [list(mixture.datasets), list(mixture.weights)]

    def next_check(self) -> tuple[Mixture | None, str]:
        """Returns the mixture to check next, or None and why there is none."""
        paid = any(check.origin == "verify" for check in self.checks)
        first_by = None if paid else proxies_of(self.trials)
        row, reason = next_check(self.posterior(), first_by, self.options.confidence)
        return (None if row is None else self.trials[row].mixture), reason

    # --- a check

    def add(self, mixture: Mixture, origin: Origin) -> None:
        """Fine-tunes on a mixture, or takes what the store holds, and scores the select part.

        Raises TrainingError where its training fails and no other mixture is left.
        """
        try:
            record, scores = self.real(mixture)
        except TrainingError as error:
            why = error.message
            self.failures.append((mixture, why))
            self.session.opened.warn(f"the check of {mixture} is left out: {why}")
            self.searched = [trial for trial in self.searched if trial.mixture != mixture]
            self.trials = [trial for trial in self.trials if trial.mixture != mixture]
            if not self.trials:
                hint = "lower train.learning_rate, or look for odd rows in the data"
                message = f"no mixture is left to choose from: {why}"
                raise TrainingError(message, hint=hint) from None
            return
        free_memory()
        if mixture not in self._places:
            self.searched.append(self._trial(mixture, self._own_exponent))
            self.trials.append(self._trial(mixture, self.exponent))
        trial = self.trials[self._places[mixture]]
        real = self.objective.of(scores, self.base)
        check = Check(mixture, trial.objective, real, scores, trial.scores, record, origin)
        self.checks.append(check)

    def real(self, mixture: Mixture, seed: int | None = None) -> tuple[str, Mapping[str, Scores]]:
        """Returns the address and the scores of a real fine-tune on a mixture."""
        self.session.proxies.release()
        record = self.session.finetunes.fit(mixture, "verify", seed)
        return record.key, self.session.evaluations.real(record, "select")

    def refit(self) -> None:
        """Takes the exponent under which the checks are likeliest, and scores what it changes.

        A proxy of one dataset has no exponent. Of the others the checked ones are scored at every
        exponent, and the best `verify.max_rescored` of the search at the new one; the rest leave
        the comparison until the search's own exponent is back.
        """
        candidates = sorted({*self.options.exponents, self._own_exponent})
        if len(candidates) < 2 or not self.checks:
            return
        checked = [check.mixture for check in self.checks]
        at = {each: [self._trial(mixture, each) for mixture in checked] for each in candidates}
        exponent = self._likeliest_exponent(at)
        if exponent == self.exponent:
            return
        listener, changed = self.session.listener, f"{exponent:g} instead of {self.exponent:g}"
        listener.note(f"the checks ask for merge.scale.exponent {changed}")
        self.exponent = exponent
        is_back = exponent == self._own_exponent
        most = len(self.searched) if is_back else self.options.max_rescored
        kept = [
            each.mixture
            for i, each in enumerate(self.searched)
            if i < most or len(each.mixture) == 1 or each.mixture in checked
        ]
        rescored, text = {}, f"scoring proxies with exponent {exponent:g}"
        with listener.task("verify", text, len(kept)) as advance:
            for mixture in kept:
                rescored[mixture] = self._trial(mixture, exponent)
                advance(1)
        self.trials = list(ranked(list(rescored.values())))
        again = ((check, rescored[check.mixture]) for check in self.checks)
        self.checks = [
            replace(check, proxy=trial.objective, proxy_scores=trial.scores)
            for check, trial in again
        ]

    def _trial(self, mixture: Mixture, exponent: float) -> Trial:
        scores = self.session.evaluations.proxy(mixture, "select", exponent)
        return trial_of(mixture, scores, self.base, self.objective)

    @property
    def _places(self) -> dict[Mixture, int]:
        """Each trial's row."""
        return {trial.mixture: i for i, trial in enumerate(self.trials)}

    # --- the posterior

    def posterior(self) -> Posterior:
        """Returns what is known of all trials' real objectives, given the checks."""
        places = self._places
        checks = {places[each.mixture]: each for each in self.checks if each.mixture in places}
        if self.objective.is_linear:
            known = {row: check.real for row, check in checks.items()}
            return posterior.posterior_of(self._views(self.trials), known, unit=self._unit)
        views = {name: self._views(self.trials, name) for name in self.weights}
        reals = {row: gains(check.scores, self.base) for row, check in checks.items()}
        by_target = {
            name: {row: real[name] for row, real in reals.items()} for name in self.weights
        }
        return drawn_posterior.posterior_of(self.objective, views, by_target, self._units)

    def _likeliest_exponent(self, at: Mapping[float, Sequence[Trial]]) -> float:
        """The exponent by the checks, given their proxies at several exponents."""
        own = self._own_exponent
        if self.objective.is_linear:
            views = {exponent: self._views(trials) for exponent, trials in at.items()}
            reals = np.array([check.real for check in self.checks])
            one = {"objective": reals}, {"objective": self._unit}
            return posterior.likeliest_exponent({"objective": views}, *one, own)
        by_target = {
            name: {each: self._views(trials, name) for each, trials in at.items()}
            for name in self.weights
        }
        found = [gains(check.scores, self.base) for check in self.checks]
        real = {name: np.array([each[name] for each in found]) for name in self.weights}
        return posterior.likeliest_exponent(by_target, real, self._units, own)

    def _views(self, trials: Sequence[Trial], target: str | None = None) -> Views:
        """What is known of mixtures before any real fine-tune: of objectives, or of one target."""
        pooled_gains = [self._pooled_gains(trial.mixture) for trial in trials]
        weights_MN = weights_of(trials)
        if target is None:
            pool_M = np.array([self.objective.combine(each) for each in pooled_gains])
            return Views(weights_MN, proxies_of(trials), pool_M)
        pool_M = np.array([each[target] for each in pooled_gains])
        return Views(weights_MN, gains_on(trials, target, self.base), pool_M)

    def _pooled_gains(self, mixture: Mixture) -> dict[str, float]:
        """The gains of a mixture's experts pooled, by target."""
        if mixture not in self._pooled:
            shares = self.session.finetunes.shares(mixture)
            scores = {
                name: pooled(shares, {each: self.experts[each][name] for each in shares.datasets})
                for name in self.weights
            }
            self._pooled[mixture] = gains(scores, self.base)
        return self._pooled[mixture]


def weights_of(trials: Sequence[Trial]) -> Array:
    """Returns the trials' weights, shape (M, N); datasets in the order of their names."""
    names = sorted({name for trial in trials for name in trial.mixture.datasets})
    return np.array([[t.mixture.as_dict().get(name, 0.0) for name in names] for t in trials])


def proxies_of(trials: Sequence[Trial]) -> Array:
    """Returns the trials' objectives, shape (M,)."""
    return np.array([trial.objective for trial in trials])


def gains_on(trials: Sequence[Trial], target: str, base: Mapping[str, Scores]) -> Array:
    """Returns the trials' gains on one target, shape (M,)."""
    return np.array([gain(trial.scores[target], base[target]) for trial in trials])


# --- what the checks show


class Conclusion:
    """What the checks show: the pick by the posterior, and what cannot be told apart from it."""

    def __init__(self, state: Checks) -> None:
        self._state, self._options = state, state.options
        self._posterior = state.posterior()
        self._best = int(np.argmax(self._posterior.mean_M))
        self._noise = self._seed_noise()

    def verification(self, stopped: str) -> Verification:
        """Returns everything that the checks show; `stopped` says why they ended."""
        state = self._state
        return Verification(
            mixture=state.trials[self._best].mixture,
            checks=tuple(state.checks),
            predictions=self._predictions(),
            alternatives=self._alternatives(),
            agreement=self._agreement(),
            exponent=state.exponent,
            confidence=self._options.interval,
            stopped=stopped,
            failures=tuple(state.failures),
        )

    def _predictions(self) -> tuple[Prediction, ...]:
        """What is expected of every mixture, the best first."""
        found, trials = self._posterior, self._state.trials
        low_M, high_M = found.interval(self._options.interval)
        best_M = found.best_probabilities()
        predictions = [
            Prediction(
                trial.mixture,
                trial.objective,
                float(found.mean_M[i]),
                float(low_M[i]),
                float(high_M[i]),
                float(best_M[i]),
                i in found.known,
            )
            for i, trial in enumerate(trials)
        ]
        return tuple(sorted(predictions, key=lambda each: -each.mean))

    def _seed_noise(self) -> dict[str, float]:
        """Standard deviation between seeds of every target's gain and of the objective.

        From fine-tunes of the best `verify.repeats` checked mixtures with the seed after
        train.seed; empty without any.
        """
        state, seed = self._state, self._state.session.recipe.train.seed + 1
        pairs: list[tuple[dict[str, float], dict[str, float]]] = []
        for check in repeated(state.checks, self._options.repeats):
            try:
                _, scores = state.real(check.mixture, seed)
            except TrainingError as error:
                what = f"the repeat of {check.mixture} with another seed"
                state.session.opened.warn(f"{what} is left out: {error.message}")
                continue
            pairs.append((self._gains_of(check.scores), self._gains_of(scores)))
        found = {}
        for name in [*state.weights, "objective"] if pairs else []:
            by_seed = np.array([[each[name] for each in pair] for pair in pairs]).T
            noise_sd = agreement.noise_sd(by_seed)
            if noise_sd is not None:
                found[name] = noise_sd
        return found

    def _gains_of(self, scores: Mapping[str, Scores]) -> dict[str, float]:
        """The gain on every target, and the objective."""
        state = self._state
        return {**gains(scores, state.base), "objective": state.objective.of(scores, state.base)}

    def _alternatives(self) -> tuple[Alternative, ...]:
        """Mixtures better than the pick with a probability over 1 - verify.confidence.

        The likeliest first. The variance of a difference is the posterior's, that of the examples
        (paired, by bootstrap; of the reals where both are checked, else of the proxies), and twice
        that between seeds.
        """
        found, best, scale_MM = [], self._best, self._posterior.scale_MM
        dof = self._posterior.dof
        inflated = dof / (dof - 2) if dof > 2 else 1.0
        between_seeds = 2 * self._noise.get("objective", 0.0) ** 2
        for i, trial in enumerate(self._state.trials):
            if i == best:
                continue
            difference = float(self._posterior.mean_M[best] - self._posterior.mean_M[i])
            shape = float(scale_MM[i, i] + scale_MM[best, best] - 2 * scale_MM[i, best])
            variance = inflated * shape + self._example_sd(i) ** 2 + between_seeds
            better = NormalDist().cdf(-difference / math.sqrt(variance)) if variance > 0 else 0.0
            if better > 1 - self._options.confidence:
                found.append(Alternative(trial.mixture, difference, math.sqrt(variance), better))
        return tuple(sorted(found, key=lambda each: -each.better_probability))

    def _example_sd(self, row: int) -> float:
        """Standard deviation of the difference to the pick's objective over draws of examples."""
        state = self._state
        pair = [self._scores_of(self._best), self._scores_of(row)]
        if pair[0][1] != pair[1][1]:
            pair = [(state.trials[each].scores, False) for each in (self._best, row)]
        (first, _), (second, _) = pair
        if not state.objective.is_linear:
            return drawn_posterior.example_sd(state.objective, first, second, state.base)
        variance = 0.0
        for name, base in state.base.items():
            one, other = first[name], second[name]
            _, sd = agreement.paired_difference(
                one.values, other.values, one.weights, num_resamples=NUM_RESAMPLES
            )
            unit = base.mean if one.kind == "loss" and base.mean > 0 else 1.0
            known = sd if math.isfinite(sd) else 0.0
            variance += (state.objective.slope(name) * known / unit) ** 2
        return math.sqrt(variance)

    def _scores_of(self, row: int) -> tuple[Mapping[str, Scores], bool]:
        """A mixture's scores, and whether they are of the real fine-tune."""
        trial = self._state.trials[row]
        if len(trial.mixture) == 1:
            return trial.scores, True
        checks = (each for each in self._state.checks if each.mixture == trial.mixture)
        real = next((check.scores for check in checks), None)
        return (trial.scores, False) if real is None else (real, True)

    def _agreement(self) -> dict[str, Agreement]:
        """How well proxies rank, for every target and the objective, over the checks."""
        checks, found = self._state.checks, {}
        proxies = [self._gains_of(check.proxy_scores) for check in checks]
        reals = [self._gains_of(check.scores) for check in checks]
        for name in [*self._state.weights, "objective"]:
            proxy_M, real_M = (np.array([x[name] for x in each]) for each in (proxies, reals))
            interval = self._options.interval
            found[name] = agreement_of(proxy_M, real_M, self._noise.get(name), interval)
        return found


def agreement_of(
    proxy_M: Array, real_M: Array, noise_sd: float | None, confidence: float
) -> Agreement:
    """Returns how well proxies rank reals, and what a perfect proxy would reach."""
    measured = agreement.fidelity(proxy_M, real_M, confidence=confidence)
    is_known = measured is not None and noise_sd is not None
    possible = agreement.ceiling(real_M, noise_sd or 0.0) if is_known else None
    return Agreement(len(real_M), measured, noise_sd, possible)
