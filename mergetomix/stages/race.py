"""Races between mixtures: trials that start on a few examples of each target.

A trial goes on only while its mixture may still be the best, by `statistics/early_stopping.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mergetomix.executors.work import Piece
from mergetomix.mixtures.spaces import Subsets
from mergetomix.objectives.objective import Objective, gains
from mergetomix.records import Mixture, Scores, Trial
from mergetomix.search.strategy import Ask
from mergetomix.session.evaluations import cut_block, trial_of
from mergetomix.session.inputs import Scorer
from mergetomix.session.session import Session
from mergetomix.statistics import early_stopping
from mergetomix.statistics.early_stopping import Array
from mergetomix.statistics.opinion_pool import pooled

MOST_GUESSED = 1023
"""Most mixtures to choose the first incumbent among."""


class Race:
    """A race: its complete trials, and the incumbent, which is the best that the search asked for.

    `alpha` is the probability that the mixture that would have been the best is stopped. Array
    names end in their shape: S examples seen, E examples in all, K complete trials, N datasets.
    """

    def __init__(
        self, session: Session, base: Mapping[str, Scores], objective: Objective, alpha: float
    ) -> None:
        self._session, self._base, self._objective = session, base, objective
        self._space, weights = session.spaces.searched, objective.weights
        self._scorers = session.inputs.targets("select")
        self._orders = {
            name: [place for block in each.blocks for place in block.places]
            for name, each in self._scorers.items()
        }
        self._weights_E = {
            name: np.array(each.weights)[self._orders[name]] for name, each in base.items()
        }
        self._units = {name: unit(scores) for name, scores in base.items()}
        self._shares = {name: weight / sum(weights.values()) for name, weight in weights.items()}
        self._level = alpha / early_stopping.num_looks(
            [len(order) for order in self._orders.values()]
        )
        self._values: dict[Mixture, dict[str, Array]] = {}
        self.incumbent: Trial | None = None

    def start(self, all_asked: bool) -> None:
        """Evaluates the experts on all examples: checks and report need them.

        They foresee the others, too. A search that asks for every mixture may begin with any: with
        the one that pooled experts hold to be the best.
        """
        space = self._space
        singles = [Mixture((name,), (1.0,)) for name in space.allowed]
        list(self._session.evaluations.proxies(singles, "select"))  # workers share all of them
        trials = [self._complete(each) for each in singles]
        if not all_asked or not isinstance(space, Subsets):
            return
        if space.size <= MOST_GUESSED:
            trials.append(self._complete(self._guessed(space, trials)))
        for trial in trials:
            if frozenset(trial.mixture.datasets) in space:
                self._challenge(trial)

    def _guessed(self, space: Subsets, experts: Sequence[Trial]) -> Mixture:
        """The best mixture by its experts' pooled probabilities."""
        alone = {trial.mixture.datasets[0]: trial.scores for trial in experts}

        def worth(mixture: Mixture) -> float:
            scores = {
                name: pooled(mixture, {each: alone[each][name] for each in mixture.datasets})
                for name in self._shares
            }
            found = gains(scores, self._base)
            return sum(self._shares[name] * found[name] for name in found)

        return max(space, key=worth)

    def trial(self, asked: Ask) -> Trial:
        """Returns a mixture's trial: complete, or stopped if it cannot be the best."""
        mixture, runner = asked.mixture, Runner(self._session, asked.mixture)
        is_known = runner.is_known or mixture in self._values
        if self.incumbent is None or asked.gradient or is_known:
            return self._challenge(self._complete(mixture))
        beaten = self._run(runner, self.incumbent)
        self._session.opened.count("trials", runner.key, not runner.num_scored)
        return beaten or self._challenge(self._complete(mixture))

    def _run(self, runner: Runner, incumbent: Trial) -> Trial | None:
        """Stage after stage until the mixture is beaten; None if it saw every example."""
        foreseen = self._foreseen(runner.mixture)
        for stage in range(len(early_stopping.FRACTIONS)):
            if not runner.see(stage) or stage == len(early_stopping.FRACTIONS) - 1:
                continue
            found = early_stopping.difference(
                [
                    self._paired(name, runner.values(name), foreseen[name], incumbent)
                    for name in self._shares
                ]
            )
            if early_stopping.is_beaten(found, self._level):
                means = zip(self._shares, found.means, strict=True)
                known = incumbent.gains(self._base)
                estimates = {name: known[name] + mean for name, mean in means}
                objective = incumbent.objective + found.mean
                return Trial(runner.mixture, runner.scores(), objective, estimates)
        return None

    def _paired(
        self, name: str, values_S: Array, foreseen_E: Array, incumbent: Trial
    ) -> early_stopping.Paired:
        """A target's changes from the incumbent."""
        now_E, unit = self._values[incumbent.mixture][name], self._units[name]
        change_S, change_E = unit * (values_S - now_E[: len(values_S)]), unit * (foreseen_E - now_E)
        return early_stopping.Paired(change_S, change_E, self._weights_E[name], self._shares[name])

    def _foreseen(self, mixture: Mixture) -> dict[str, Array]:
        """The values of every example that the complete trials foresee."""
        names, known = self._space.allowed, list(self._values)
        weights_KN = np.array([weights_of(each, names) for each in known])
        weights_N = np.array(weights_of(mixture, names))
        rows = early_stopping.nearest(weights_KN, weights_N)
        factors_K = early_stopping.combination(weights_KN[rows], weights_N)
        return {
            name: factors_K @ np.array([self._values[known[row]][name] for row in rows])
            for name in self._shares
        }

    def _complete(self, mixture: Mixture) -> Trial:
        """A trial on all examples."""
        scores = self._session.evaluations.proxy(mixture, "select")
        self._values[mixture] = {
            name: np.array(each.values)[self._orders[name]] for name, each in scores.items()
        }
        return trial_of(mixture, scores, self._base, self._objective)

    def _challenge(self, trial: Trial) -> Trial:
        """Makes a complete trial the incumbent if it is better."""
        if self.incumbent is None or trial.objective > self.incumbent.objective:
            self.incumbent = trial
        return trial


class Runner:
    """A mixture in a race: what it has shown so far."""

    def __init__(self, session: Session, mixture: Mixture) -> None:
        self._session, self.mixture = session, mixture
        self._model = session.evaluations.proxy_reference(mixture)
        self._targets = session.inputs.targets("select")
        self._found: dict[str, list[Scores]] = {}
        self.key, self.num_scored = self._model.key, 0

    @property
    def is_known(self) -> bool:
        """Whether the store has its scores on all examples of every target."""
        found = (self._scores(each.address) for each in self._targets.values())
        return all(scores is not None for scores in found)

    def see(self, stage: int) -> bool:
        """Looks at the examples of a stage. Returns False if it has none."""
        every = [(name, block) for name, each in self._targets.items() for block in each.blocks]
        wanted = [(name, block) for name, block in every if block.stage == stage]
        lacking = [(name, block) for name, block in wanted if self._held(name, block) is None]
        if lacking:
            pieces = [Piece(name, block.address) for name, block in lacking]
            self._session.evaluations.score(self._model, "select", pieces)
            self.num_scored += sum(block.num_examples for _, block in lacking)
        for name, block in wanted:
            scores = self._held(name, block)
            assert scores is not None
            self._found.setdefault(name, []).append(scores)
        return bool(wanted)

    def values(self, name: str) -> Array:
        """Returns the values of the examples of a target that were seen, in that order."""
        return np.concatenate([scores.values for scores in self._found[name]])

    def scores(self) -> dict[str, Scores]:
        """Returns what was seen of every target, in that order."""
        return {
            name: Scores(
                found[0].kind,
                tuple(value for each in found for value in each.values),
                tuple(weight for each in found for weight in each.weights),
            )
            for name, found in self._found.items()
        }

    def _held(self, name: str, block: Scorer) -> Scores | None:
        """What the store has of a block, which may have been scored with the whole target."""
        whole = self._scores(self._targets[name].address)
        return self._scores(block.address) if whole is None else cut_block(block, whole)

    def _scores(self, address: str) -> Scores | None:
        return self._session.store.scores(self.key, address, "select")


def unit(base: Scores) -> float:
    """Returns what one more of a value is in units of the gain (`records.gain`)."""
    if base.kind == "score":
        return 1.0
    return -1 / base.mean if base.mean > 0 else -1.0


def weights_of(mixture: Mixture, names: Sequence[str]) -> list[float]:
    """Returns a mixture's weights as a point over all datasets."""
    known = mixture.as_dict()
    return [known.get(name, 0.0) for name in names]
