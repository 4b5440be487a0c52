"""Races between mixtures: trials that start on a few examples and go on only while they may still be the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mergetomix.executors.work import ScoringWork
from mergetomix.mixtures.spaces import Subsets
from mergetomix.objectives.objective import Objective
from mergetomix.records import Mixture, Scores, Trial, gain
from mergetomix.search.strategy import Ask
from mergetomix.session.evaluations import cut_block, trial_of
from mergetomix.session.inputs import Scorer
from mergetomix.session.session import Session
from mergetomix.statistics import opinion_pool, race
from mergetomix.statistics.race import Array

MOST_GUESSED = 1023
"""Most mixtures to choose the first incumbent among."""


@dataclass
class Race:
    """A race: its complete trials, and the incumbent, which is the best of those that the search asks for.

    `alpha` is the probability that the mixture that would have been the best is stopped.
    """

    session: Session
    base: Mapping[str, Scores]
    objective: Objective
    alpha: float
    incumbent: Trial | None = None
    _values: dict[Mixture, dict[str, Array]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        weights = self.objective.weights
        self.scorers = self.session.inputs.targets("select")
        self.orders = {
            name: [i for block in each.blocks for i in block.places]
            for name, each in self.scorers.items()
        }
        self.weights_E = {
            name: np.array(scores.weights)[self.orders[name]] for name, scores in self.base.items()
        }
        self.units = {name: unit(scores) for name, scores in self.base.items()}
        self.shares = {name: weight / sum(weights.values()) for name, weight in weights.items()}
        self.level = self.alpha / race.num_looks([len(order) for order in self.orders.values()])

    def start(self, all_asked: bool) -> None:
        """Evaluates the experts on all examples: checks and report need them, and they foresee the others.

        A search that asks for every mixture may begin with any: with the one that pooled experts hold to be the best.
        """
        space = self.session.spaces.searched
        experts = [self._complete(Mixture((name,), (1.0,))) for name in space.allowed]
        if not all_asked or not isinstance(space, Subsets):
            return
        guessed = (
            [self._complete(self._guessed(space, experts))] if space.size <= MOST_GUESSED else []
        )
        for trial in experts + guessed:
            if frozenset(trial.mixture.datasets) in space:
                self._challenge(trial)

    def trial(self, asked: Ask) -> Trial:
        """A mixture's trial: complete, or stopped where it cannot be the best."""
        key, mixture = self.session.addresses.proxy(asked.mixture), asked.mixture
        whole = all(
            self.session.store.scores(key, each.address, "select") for each in self.scorers.values()
        )
        if self.incumbent is None or asked.gradient or whole or mixture in self._values:
            return self._challenge(self._complete(mixture))
        runner = Runner(self.session, mixture)
        beaten = self._run(runner, self.incumbent)
        self.session.opened.count("trials", key, not runner.num_scored)
        return beaten or self._challenge(self._complete(mixture))

    def _run(self, runner: Runner, incumbent: Trial) -> Trial | None:
        """Stage after stage until the mixture is beaten; None where it saw every example."""
        foreseen = self._foreseen(runner.mixture)
        for stage in range(len(race.FRACTIONS)):
            is_new = runner.see(stage)
            if is_new and stage < len(race.FRACTIONS) - 1:
                found = race.difference(
                    [
                        self._paired(name, runner.values(name), foreseen[name])
                        for name in self.shares
                    ]
                )
                if race.is_beaten(found, self.level):
                    return self._stopped(runner, incumbent, found)
        return None

    def _paired(self, name: str, values_S: Array, foreseen_E: Array) -> race.Paired:
        """A target's changes from the incumbent."""
        now_E = self._incumbent(name)
        change_S = self.units[name] * (values_S - now_E[: len(values_S)])
        return race.Paired(
            change_S,
            self.units[name] * (foreseen_E - now_E),
            self.weights_E[name],
            self.shares[name],
        )

    def _incumbent(self, name: str) -> Array:
        assert self.incumbent is not None
        return self._values[self.incumbent.mixture][name]

    def _foreseen(self, mixture: Mixture) -> dict[str, Array]:
        """The values of every example that the complete trials foresee."""
        names = self.session.spaces.searched.allowed
        known = list(self._values)
        weights_KN = np.array([weights_of(each, names) for each in known])
        weights_N = np.array(weights_of(mixture, names))
        rows = race.nearest(weights_KN, weights_N)
        factors_K = race.combination(weights_KN[rows], weights_N)
        return {
            name: factors_K @ np.array([self._values[known[row]][name] for row in rows])
            for name in self.shares
        }

    def _guessed(self, space: Subsets, experts: Sequence[Trial]) -> Mixture:
        """The best mixture by its experts' pooled probabilities."""
        alone = {trial.mixture.datasets[0]: trial.scores for trial in experts}

        def worth(mixture: Mixture) -> float:
            parts = {
                name: {each: alone[each][name] for each in mixture.datasets} for name in self.shares
            }
            gains = {
                name: gain(opinion_pool.pooled(mixture, each), self.base[name])
                for name, each in parts.items()
            }
            return sum(self.shares[name] * gains[name] for name in gains)

        return max(space, key=worth)

    def _complete(self, mixture: Mixture) -> Trial:
        """A trial on all examples."""
        scores = self.session.evaluations.proxy(mixture, "select")
        trial = trial_of(mixture, scores, self.base, self.objective)
        self._values[mixture] = {
            name: np.array(each.values)[self.orders[name]] for name, each in trial.scores.items()
        }
        return trial

    def _challenge(self, trial: Trial) -> Trial:
        """Makes a complete trial the incumbent where it is better."""
        if self.incumbent is None or trial.objective > self.incumbent.objective:
            self.incumbent = trial
        return trial

    def _stopped(self, runner: Runner, incumbent: Trial, found: race.Difference) -> Trial:
        gains = incumbent.gains(self.base)
        estimates = {
            name: gains[name] + mean for name, mean in zip(self.shares, found.means, strict=True)
        }
        return Trial(runner.mixture, runner.scores(), incumbent.objective + found.mean, estimates)


class Runner:
    """A mixture in a race: what it has shown so far."""

    def __init__(self, session: Session, mixture: Mixture) -> None:
        self._session, self.mixture = session, mixture
        self._model = session.evaluations.proxy_reference(mixture)
        self._found: dict[str, list[Scores]] = {}
        self.num_scored = 0

    def see(self, stage: int) -> bool:
        """Looks at the examples of a stage. Returns False where it has none."""
        targets = self._session.inputs.targets("select")
        wanted = [
            (name, block)
            for name, each in targets.items()
            for block in each.blocks
            if block.stage == stage
        ]
        lacking = [(name, each) for name, each in wanted if self._held(targets[name], each) is None]
        if lacking:
            pieces = tuple((name, block.address) for name, block in lacking)
            work = ScoringWork(self._model, "select", pieces)
            list(self._session.evaluations.carry_out([work]))
            self.num_scored += sum(block.num_examples for _, block in lacking)
        for name, block in wanted:
            scores = self._held(targets[name], block)
            assert scores is not None
            self._found.setdefault(name, []).append(scores)
        return bool(wanted)

    def values(self, name: str) -> Array:
        """The values of the examples of a target that were seen, in that order."""
        return np.concatenate([scores.values for scores in self._found[name]])

    def scores(self) -> dict[str, Scores]:
        """What was seen of every target, in that order."""
        return {
            name: Scores(
                found[0].kind,
                tuple(value for each in found for value in each.values),
                tuple(weight for each in found for weight in each.weights),
            )
            for name, found in self._found.items()
        }

    def _held(self, target: Scorer, block: Scorer) -> Scores | None:
        store, key = self._session.store, self._model.key
        whole = store.scores(key, target.address, "select")
        if whole is not None:
            return cut_block(block, whole)
        return store.scores(key, block.address, "select")


def unit(base: Scores) -> float:
    """What one more of a value is in units of the gain (`records.gain`)."""
    if base.kind == "score":
        return 1.0
    return -1 / base.mean if base.mean > 0 else -1.0


def weights_of(mixture: Mixture, names: Sequence[str]) -> list[float]:
    """A mixture's weights as a point over all datasets."""
    known = mixture.as_dict()
    return [known.get(name, 0.0) for name in names]
