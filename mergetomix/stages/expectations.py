"""What is expected of mixtures before any real fine-tune, and how noisy what is measured will be.

Array names end in their shape: M mixtures, N datasets, E examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from mergetomix.objectives.objective import Objective, gains
from mergetomix.records import Mixture, Scores, Trial, gain
from mergetomix.results import Check
from mergetomix.session.session import Session
from mergetomix.statistics import noise as noises
from mergetomix.statistics.bootstrap import resolution
from mergetomix.statistics.noise import Noise, OnExamples
from mergetomix.statistics.opinion_pool import pooled
from mergetomix.statistics.posterior import (
    Array,
    Unit,
    Views,
    expected_by_example,
    how_much_longer,
    with_strongest,
)


class Expectations:
    """What proxies and pooled experts say of mixtures, by target or of the whole objective."""

    def __init__(
        self,
        session: Session,
        objective: Objective,
        base: Mapping[str, Scores],
        singles: Sequence[Trial],
    ) -> None:
        self._session, self._objective, self._base = session, objective, base
        self._experts = {each.mixture.datasets[0]: each.scores for each in singles}
        self._pooled: dict[Mixture, dict[str, float]] = {}
        self._noisy: dict[str, tuple[list[Mixture], OnExamples]] = {}

    def views(self, trials: Sequence[Trial], target: str | None = None) -> Views:
        """Returns what is known of mixtures before any real fine-tune.

        It is of the objective, which must be linear, or of one target's gains.
        """
        pooled_gains = [self._pooled_gains(trial.mixture) for trial in trials]
        weights_MN, names = weights_of(trials), datasets_of(trials)
        longer_M = longer_of(self._session, [trial.mixture for trial in trials])
        alone = [gains(self._experts[name], self._base) for name in names]
        proxies = {
            each: gains_on(trials, each, self._base)
            for each in (self._objective.weights if target is None else [target])
        }
        strongest = {
            each: with_strongest(weights_MN, proxy_M, np.array([found[each] for found in alone]))
            for each, proxy_M in proxies.items()
        }
        if target is None:
            pooled_M = np.array([self._objective.combine(each) for each in pooled_gains])
            strongest_M = self._objective.over(strongest.items())
            return Views(weights_MN, proxies_of(trials), pooled_M, strongest_M, longer_M)
        pooled_M = np.array([each[target] for each in pooled_gains])
        return Views(weights_MN, proxies[target], pooled_M, strongest[target], longer_M)

    def noise(
        self,
        trials: Sequence[Trial],
        checks: Mapping[int, Check],
        seed_share: float,
        unit: Unit,
        target: str | None = None,
        times: Mapping[str, float] | None = None,
    ) -> Noise:
        """Returns the noise of the real scores of some mixtures, of the objective or of one target.

        Args:
            checks: those that were made, by row.
            seed_share: standard deviation over seeds, in standard deviations of the proxies.
            unit: the mean and standard deviation of the proxies.
            times: what the noise would be with so many times the select examples of some targets.
        """
        seed_sd = seed_share * unit.sd
        if target is not None:
            return self._on(target, trials, checks, seed_sd)
        parts = []
        for name in self._objective.weights:
            own = self._on(name, trials, checks, 0.0).with_examples((times or {}).get(name, 1.0))
            parts.append((self._objective.slope(name), own))
        return Noise.together(parts, seed_sd)

    def _on(
        self, target: str, trials: Sequence[Trial], checks: Mapping[int, Check], seed_sd: float
    ) -> Noise:
        base, weights_MN = self._base[target], weights_of(trials)
        found = self._on_examples(target, trials)
        variances = {
            row: example_variance(check.scores[target], check.proxy_scores[target], base)
            for row, check in checks.items()
        }
        return found.noise(variances, weights_MN.max(axis=1) < 1, seed_sd)

    def _on_examples(self, target: str, trials: Sequence[Trial]) -> OnExamples:
        """What the examples add to some trials' scores; kept while the trials are the same.

        They are the same mixtures in the same order: merged in another way they are off by as much.
        """
        mixtures = [trial.mixture for trial in trials]
        known = self._noisy.get(target)
        if known is not None and known[0] == mixtures:
            return known[1]
        proxies = [trial.scores[target] for trial in trials]
        pools = [self._pool(mixture, target) for mixture in mixtures]
        select, report = (
            self._session.inputs.targets(part)[target].num_examples for part in ("select", "report")
        )
        ratio = select / report
        found = on_examples(weights_of(trials), proxies, pools, self._base[target], ratio)
        self._noisy[target] = mixtures, found
        return found

    def _pool(self, mixture: Mixture, target: str) -> Scores:
        """The scores of a mixture's experts pooled, on one target."""
        shares, experts = self._session.finetunes.shares(mixture), self._experts
        return pooled(shares, {each: experts[each][target] for each in shares.datasets})

    def _pooled_gains(self, mixture: Mixture) -> dict[str, float]:
        """The gains of a mixture's experts pooled, by target."""
        if mixture not in self._pooled:
            scores = {name: self._pool(mixture, name) for name in self._objective.weights}
            self._pooled[mixture] = gains(scores, self._base)
        return self._pooled[mixture]


def on_examples(
    weights_MN: Array,
    proxies: Sequence[Scores],
    pools: Sequence[Scores],
    base: Scores,
    report_ratio: float,
) -> OnExamples:
    """Returns what the examples of a target add to the gains of mixtures.

    Args:
        weights_MN: the mixtures' weights.
        proxies: the scores of their proxies.
        pools: the scores of their experts pooled.
        base: the scores of the base.
        report_ratio: number of the select part's examples over that of the report part's.
    """
    weights_E, plural_M = np.array(base.weights), weights_MN.max(axis=1) < 1
    proxy_ME, pool_ME = (deviations(each, base) for each in (proxies, pools))
    expected_ME = expected_by_example(weights_MN, proxy_ME, pool_ME)
    unchecked = 0.0
    if plural_M.any() and np.count_nonzero(base.weights) > 1:
        # experts pooled lie from their merge much as a fine-tune does
        root_ME = noises.mean_root((pool_ME - proxy_ME)[plural_M], weights_E)
        unchecked = float(np.median((root_ME**2).sum(axis=1))) + resolution(base)
    root_MR = noises.thinned(noises.mean_root(expected_ME, weights_E))
    # experts that change no answer here may change one elsewhere; between models this cancels
    alike_M1 = np.full((len(root_MR), 1), math.sqrt(resolution(base)))
    root_MR = np.hstack([root_MR, alike_M1]) if alike_M1.any() else root_MR
    return OnExamples(root_MR, unchecked, report_ratio)


def longer_of(session: Session, mixtures: Sequence[Mixture]) -> Array | None:
    """Returns how much longer than its experts each mixture's fine-tune is trained, shape (M,).

    None where the recipe says for how many steps or tokens every fine-tune is trained.
    """
    if session.recipe.train.is_of_fixed_length:
        return None
    tokens, names = session.inputs.tokens, sorted({n for m in mixtures for n in m.datasets})
    is_in_MN = np.array([[float(name in m.datasets) for name in names] for m in mixtures])
    return how_much_longer(is_in_MN, np.array([float(tokens[name]) for name in names]))


def weights_of(trials: Sequence[Trial]) -> Array:
    """Returns the trials' weights, shape (M, N); datasets in the order of their names."""
    names = datasets_of(trials)
    return np.array([[t.mixture.as_dict().get(name, 0.0) for name in names] for t in trials])


def datasets_of(trials: Sequence[Trial]) -> list[str]:
    """Returns the names of the trials' datasets, in order."""
    return sorted({name for trial in trials for name in trial.mixture.datasets})


def proxies_of(trials: Sequence[Trial]) -> Array:
    """Returns the trials' objectives, shape (M,)."""
    return np.array([trial.objective for trial in trials])


def gains_on(trials: Sequence[Trial], target: str, base: Mapping[str, Scores]) -> Array:
    """Returns the trials' gains on one target, shape (M,)."""
    return np.array([gain(trial.scores[target], base[target]) for trial in trials])


def deviations(scores: Sequence[Scores], base: Scores) -> Array:
    """Returns what each example adds to the gains of models over the base, shape (M, E).

    A score's gain is a mean over examples, and this its value on each. A loss's is a ratio of two
    means, one less L / B: an example adds (L / B b - l) / B, with b and l the losses of base and
    model on it (the linearised ratio, Cochran, Sampling Techniques 1977, section 2.11). Of one
    example alone, which says nothing of any spread, it is the gain.
    """
    values_ME, base_E = np.array([each.values for each in scores]), np.array(base.values)
    if base.kind != "loss" or base.mean <= 0:
        sign = -1.0 if base.kind == "loss" else 1.0
        return np.asarray(sign * (values_ME - base_E))
    left_M = np.array([each.mean for each in scores]) / base.mean
    if np.count_nonzero(base.weights) == 1:
        return np.asarray((1 - left_M[:, None]) * (np.array(base.weights) > 0))
    return np.asarray((left_M[:, None] * base_E - values_ME) / base.mean)


def example_variance(one: Scores, other: Scores, base: Scores) -> float:
    """Returns the variance, over draws of the examples, of the difference of two models' gains.

    Of one example alone, or one number for all of them, it is not known: zero, so that what was
    measured counts as it is.
    """
    if np.count_nonzero(base.weights) == 1:
        return 0.0
    first_E, second_E = deviations([one, other], base)
    return noises.mean_variance(first_E - second_E, np.array(base.weights)) + resolution(base)
