"""Checks: a few mixtures fine-tuned for real, and the choice that they lead to.

The best mixture by proxy is checked first, then always the one that is likeliest to be the best.
After every check the way to merge and the posterior are made again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from mergetomix.errors import TrainingError
from mergetomix.mixtures.spaces import holds
from mergetomix.objectives.objective import Objective, gains
from mergetomix.records import Finetune, Merging, Mixture, Scores, Trial, gain
from mergetomix.results import Check, Selection, Verification
from mergetomix.session.evaluations import trial_of
from mergetomix.session.memory import free_memory
from mergetomix.session.session import Session
from mergetomix.stages.conclusion import Conclusion
from mergetomix.stages.expectations import (
    Expectations,
    example_variance,
    gains_on,
    proxies_of,
)
from mergetomix.stages.ranking import ranked
from mergetomix.stages.requirements import checks_all
from mergetomix.stages.ways import own_way, ways
from mergetomix.statistics import drawn_posterior, posterior
from mergetomix.statistics.next_check import next_check
from mergetomix.statistics.noise import Noise, seed_share
from mergetomix.statistics.posterior import Posterior, Unit, Views
from mergetomix.store.address import digest

Origin = Literal["verify", "baseline", "store"]
KNOWN = "known.json"


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
    state, stopped = checked(session, selection, objective, budget, baselines)
    session.opened.tell_reused("real fine-tunes")
    return Conclusion(state).verification(stopped)


def checked(
    session: Session,
    selection: Selection,
    objective: Objective,
    budget: int,
    baselines: Sequence[Mixture] = (),
    only_known: bool = False,
) -> tuple[Checks, str]:
    """Makes the checks as `verify` says; returns what is known then, and why there are no more.

    Args:
        only_known: to end where a check, or a repeat, is not in the store; nothing is trained.
    """
    state = Checks(session, selection, objective)
    state.is_of_all = checks_all(session)
    if only_known:
        baselines = [each for each in baselines if session.finetunes.known(each) is not None]
    with session.listener.task("verify", "checking mixtures", budget) as advance:
        known = state.known_at_start(baselines)
        state.fit([mixture for mixture, _ in known])
        for mixture, origin in known:
            state.add(mixture, origin)
        state.refit()
        stopped = "the budget is spent"
        for num_done in range(budget):
            chosen, reason = state.next_check()
            if chosen is None:
                stopped = reason
                break
            if only_known and session.finetunes.known(chosen) is None:
                return state, "the run was not finished"
            session.opened.beat(f"verify: {chosen}", num_done, budget)
            state.add(chosen, "verify")
            state.refit()
            advance(1)
        state.repeat(only_known)
    return state, stopped


class Checks:
    """What is known while checks are made.

    `searched` are the search's trials, `trials` those merged in the way in force. A mixture whose
    check failed is no candidate any more and leaves both. `repeats` are checks with their scores
    from another seed, `seed_share` is the standard deviation over seeds, in standard deviations of
    the proxies. `is_of_all` says that every mixture is to be checked, however sure the pick is.
    """

    def __init__(self, session: Session, selection: Selection, objective: Objective) -> None:
        self.session, self.objective, self.base = session, objective, selection.base
        self.options, self.weights = session.recipe.verify, objective.weights
        self.expectations = Expectations(session, objective, self.base, selection.singles)
        self.searched, self.trials = list(selection.trials), list(selection.trials)
        self.merging = self._own = own_way(session)
        self._ways = ways(session)
        self.unit = Unit.of(proxies_of(self.trials))
        self.units = {
            name: Unit.of(gains_on(self.trials, name, self.base)) for name in self.weights
        }
        self.seed_share = seed_share([], [], [])
        self.checks: list[Check] = []
        self.repeats: list[tuple[Check, Mapping[str, Scores]]] = []
        self.failures: list[tuple[Mixture, str]] = []
        self._fits: dict[Mixture, Finetune | TrainingError] = {}
        self.is_of_all = False

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
        with session.store.lock(key):
            if session.store.file(key, KNOWN) is None:
                plural = [each.mixture for each in self.trials if len(each.mixture) > 1]
                held = [each for each in plural if session.finetunes.known(each)]
                with session.store.artifact(key) as folder:
                    text = json.dumps([self._listed(mixture) for mixture in held])
                    (folder / KNOWN).write_text(text, encoding="utf-8")
        file = session.store.artifact_path(key) / KNOWN
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
        sure = math.inf if self.is_of_all else self.options.confidence
        row, reason = next_check(self.posterior(), first_by, sure)
        return (None if row is None else self.trials[row].mixture), reason

    # --- a check

    def fit(self, mixtures: Sequence[Mixture]) -> None:
        """Makes and scores the fine-tunes on mixtures that will all be added; workers share them.

        The numbers are those that they would have one after the other.
        """
        self._fits |= self._fitted(mixtures)

    def _fitted(
        self, mixtures: Iterable[Mixture], seed: int | None = None
    ) -> dict[Mixture, Finetune | TrainingError]:
        """Fine-tunes on some mixtures, all scored on the select part."""
        self.session.proxies.release()
        fits = self.session.finetunes.fit_each(mixtures, "verify", seed)
        return self.session.evaluations.scored(fits, "select")

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
        self.consider(mixture)
        trial = self.trials[self._places[mixture]]
        real = self.objective.of(scores, self.base)
        check = Check(mixture, trial.objective, real, scores, trial.scores, record, origin)
        self.checks.append(check)
        tracked = self.session.opened.tracked
        tracked.log({"checks/merge": check.proxy, "checks/real": check.real})

    def consider(self, mixture: Mixture) -> None:
        """Makes a mixture a candidate; if the search did not try it its proxy is scored now."""
        if mixture not in self._places:
            self.searched.append(self._trial(mixture, self._own))
            self.trials.append(self._trial(mixture, self.merging))

    def real(self, mixture: Mixture) -> tuple[str, Mapping[str, Scores]]:
        """Returns the address and the scores of a real fine-tune on a mixture."""
        if mixture not in self._fits:
            self.fit([mixture])
        return self._scored(self._fits[mixture])

    def _scored(self, fit: Finetune | TrainingError) -> tuple[str, Mapping[str, Scores]]:
        if isinstance(fit, TrainingError):
            raise fit
        return fit.key, self.session.evaluations.real(fit, "select")

    def repeat(self, only_known: bool = False) -> None:
        """Fine-tunes the best `verify.repeats` checked mixtures again, with the next seed.

        Args:
            only_known: to take those that the store holds, and train none.
        """
        seed, known = self.session.recipe.train.seed + 1, self.session.finetunes.known
        checks = repeated(self.checks, self.options.repeats)
        if only_known:
            checks = [check for check in checks if known(check.mixture, seed) is not None]
        fits = self._fitted([check.mixture for check in checks], seed) if checks else {}
        for check in checks:
            try:
                _, scores = self._scored(fits[check.mixture])
            except TrainingError as error:
                what = f"the repeat of {check.mixture} with another seed"
                self.session.opened.warn(f"{what} is left out: {error.message}")
                continue
            self.repeats.append((check, scores))
        pairs = [
            (
                gain(check.scores[name], base) - gain(scores[name], base),
                example_variance(check.scores[name], scores[name], base),
                self.units[name].sd,
            )
            for check, scores in self.repeats
            for name, base in self.base.items()
            # a target on which all proxies are equal has no unit, and says nothing of seeds
            if np.ptp(gains_on(self.trials, name, self.base)) > 0
        ]
        self.seed_share = seed_share(*zip(*pairs, strict=True)) if pairs else self.seed_share

    # --- the way to merge

    def refit(self) -> None:
        """Takes the way to merge under which the checks are likeliest, and scores what it changes.

        A proxy of one dataset has neither weights nor exponent. Of the others the checked ones are
        scored in every way, and the best `verify.max_rescored` of the search in the new one; the
        rest leave the comparison until the search's own way is back.
        """
        if len(self._ways) < 2 or not self.checks:
            return
        merging = self._likeliest()
        if merging == self.merging:
            return
        asked = f"{merging} instead of {self.merging}"
        self.session.listener.note(f"the checks ask for merges with {asked}")
        self.merging = merging
        checked = {check.mixture for check in self.checks}
        most = len(self.searched) if merging == self._own else self.options.max_rescored
        kept = [
            each.mixture
            for i, each in enumerate(self.searched)
            if i < most or len(each.mixture) == 1 or each.mixture in checked
        ]
        rescored, text = {}, f"scoring proxies with {merging}"
        with self.session.listener.task("verify", text, len(kept)) as advance:
            for mixture, trial in self._trials(kept, merging):
                rescored[mixture] = trial
                advance(1)
        self.trials = list(ranked([rescored[mixture] for mixture in kept]))
        again = ((check, rescored[check.mixture]) for check in self.checks)
        self.checks = [
            replace(check, proxy=trial.objective, proxy_scores=trial.scores)
            for check, trial in again
        ]

    def _likeliest(self) -> Merging:
        """The way to merge by the checks, from their proxies in every way."""
        checked = [check.mixture for check in self.checks]
        at: dict[Merging, list[Trial]] = {}
        for way in self._ways:
            trials = dict(self._trials(checked, way))
            at[way] = [trials[mixture] for mixture in checked]
        rows = [self._places[mixture] for mixture in checked]
        targets: dict[str, str | None] = {name: name for name in self.weights}
        if self.objective.is_linear:
            targets = {"objective": None}
        expected, found = self.expectations, [gains(each.scores, self.base) for each in self.checks]
        views = {
            key: {way: expected.views(trials, name) for way, trials in at.items()}
            for key, name in targets.items()
        }
        reals = {
            key: np.array(
                [check.real for check in self.checks]
                if name is None
                else [each[name] for each in found]
            )
            for key, name in targets.items()
        }
        units = {key: self._unit_of(name) for key, name in targets.items()}
        noise = {key: self._noise(name).rows(rows) for key, name in targets.items()}
        return posterior.likeliest(views, reals, units, noise, self._ways)

    def _trial(self, mixture: Mixture, merging: Merging) -> Trial:
        ((_, found),) = self._trials([mixture], merging)
        return found

    def _trials(
        self, mixtures: Sequence[Mixture], merging: Merging
    ) -> Iterator[tuple[Mixture, Trial]]:
        """Yields the trials of some mixtures merged in a way, in any order."""
        merged = {
            self.session.spaces.merged(mixture, merging.weighting): mixture for mixture in mixtures
        }
        found = self.session.evaluations.proxies(merged, "select", merging.exponent)
        for each, scores in found:
            yield merged[each], trial_of(merged[each], scores, self.base, self.objective)

    @property
    def _places(self) -> dict[Mixture, int]:
        """Each trial's row."""
        return {trial.mixture: i for i, trial in enumerate(self.trials)}

    # --- the posterior

    def posterior(self, times: Mapping[str, float] | None = None) -> Posterior:
        """Returns what is known of all trials' worth, given the checks.

        Args:
            times: as if there were so many times the select examples of some targets; for an
                objective that is linear.
        """
        if self.objective.is_linear:
            return self._posterior(None, times)
        each = {name: self._posterior(name) for name in sorted(self.weights)}
        return drawn_posterior.posterior_of(self.objective, each)

    def posterior_on(self, target: str | None) -> Posterior:
        """Returns what is known of all trials' gains on a target, or of the whole objective."""
        return self.posterior() if target is None else self._posterior(target)

    def _posterior(self, target: str | None, times: Mapping[str, float] | None = None) -> Posterior:
        """The posterior of one target's gain; None is the objective, which must be linear."""
        known = {row: self._real(check.scores, target) for row, check in self._by_row.items()}
        again = {
            self._places[check.mixture]: self._real(scores, target)
            for check, scores in self.repeats
            if check.mixture in self._places
        }
        views, unit = self._views(target), self._unit_of(target)
        noise = self._noise(target, times)
        return posterior.posterior_of(views, known, unit=unit, noise=noise, again=again)

    def _real(self, scores: Mapping[str, Scores], target: str | None) -> float:
        if target is None:
            return self.objective.of(scores, self.base)
        return gain(scores[target], self.base[target])

    def _unit_of(self, target: str | None) -> Unit:
        return self.unit if target is None else self.units[target]

    def _views(self, target: str | None) -> Views:
        return self.expectations.views(self.trials, target)

    def noise(self, target: str | None) -> Noise | None:
        """Returns the noise of one target's gains for all trials; None is the objective.

        An objective that is no sum over targets has none of its own.
        """
        return self._noise(target) if target or self.objective.is_linear else None

    @property
    def num_repeats(self) -> int:
        """Fine-tunes that were made again with another seed."""
        return len(self.repeats)

    def _noise(self, target: str | None, times: Mapping[str, float] | None = None) -> Noise:
        return self.expectations.noise(
            self.trials, self._by_row, self.seed_share, self._unit_of(target), target, times
        )

    @property
    def _by_row(self) -> dict[int, Check]:
        """The checks by their trials' rows."""
        places = self._places
        return {places[each.mixture]: each for each in self.checks if each.mixture in places}


def repeated(checks: Sequence[Check], num: int) -> list[Check]:
    """Returns the best checks by their real objective, which are fine-tuned with another seed."""
    return sorted(checks, key=lambda check: -check.real)[:num]
