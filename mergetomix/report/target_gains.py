"""Gains by target: what the pick gives up on each, and the front of all trials."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mergetomix.objectives import pareto
from mergetomix.objectives.objective import gains
from mergetomix.records import Mixture, Trial
from mergetomix.results import Selection, Verification


@dataclass(frozen=True)
class GivenUp:
    """A target's gain by the pick, and the best gain of any trial and its mixture.

    All are gains of proxies over the base, on the select part.
    """

    target: str
    gain: float
    best: float
    by: Mixture

    @property
    def less(self) -> float:
        """What the pick gives up."""
        return self.best - self.gain


@dataclass(frozen=True)
class Front:
    """The trials that no other beats on every target, the best objective first: the knee leads.

    `hypervolume` is the volume of the gains over the base that some trial reaches.
    """

    members: tuple[Trial, ...]
    hypervolume: float


def given_up(selection: Selection, verification: Verification | None = None) -> list[GivenUp]:
    """Returns one line for each target, by name; none if there is one target only."""
    if len(selection.base) < 2:
        return []
    picked = selection.mixture if verification is None else verification.mixture
    checks = () if verification is None else verification.checks  # which need not be trials
    known = {check.mixture: check.proxy_scores for check in checks}
    known |= {trial.mixture: trial.scores for trial in selection.trials}
    by_mixture = {mixture: gains(scores, selection.base) for mixture, scores in known.items()}
    trials = [picked, *(trial.mixture for trial in selection.trials)]
    lines = []
    for name in sorted(selection.base):
        best = max(trials, key=lambda mixture, name=name: by_mixture[mixture][name])  # type: ignore[misc]
        lines.append(GivenUp(name, by_mixture[picked][name], by_mixture[best][name], best))
    return lines


def front_of(selection: Selection) -> Front:
    """Returns all trials that no other dominates; the hypervolume's reference is a gain of zero."""
    names = sorted(selection.base)
    values = [gains(trial.scores, selection.base) for trial in selection.trials]
    points = np.array([[each[name] for name in names] for each in values])
    kept = pareto.is_front(points)
    members = tuple(trial for trial, keep in zip(selection.trials, kept, strict=True) if keep)
    return Front(members, pareto.hypervolume(points[kept], np.zeros(len(names))))
