"""What a mixture gives up: its gain on each target beside the best gain of any, and the front of all trials."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mergetomix.objectives import pareto
from mergetomix.objectives.objective import gains
from mergetomix.records import Mixture, Scores, Trial
from mergetomix.results import Selection, Verification


@dataclass(frozen=True)
class GivenUp:
    """A target: the pick's gain, the best gain of any trial, by which mixture, and how much less the pick has. By proxies, on
    the select part."""

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
    """The trials that no other beats on every target, the best objective first, so that the knee leads; and the volume of the
    gains over the base that some trial reaches."""

    members: tuple[Trial, ...]
    hypervolume: float


def given_up(selection: Selection, verification: Verification | None = None) -> list[GivenUp]:
    """One line for each target, in the order of their names; none where there is one target only."""
    if len(selection.base) < 2:
        return []
    picked = selection.mixture if verification is None else verification.mixture
    own = proxy_scores(picked, selection, verification)
    known = [(gains(trial.scores, selection.base), trial.mixture) for trial in selection.trials]
    mine = gains(own, selection.base)
    lines = []
    for name in sorted(selection.base):
        values, by = max([(mine, picked), *known], key=lambda each, name=name: each[0][name])  # type: ignore[misc]
        lines.append(GivenUp(name, mine[name], values[name], by))
    return lines


def proxy_scores(
    mixture: Mixture, selection: Selection, verification: Verification | None
) -> Mapping[str, Scores]:
    """Of a trial, or of a check that was no trial."""
    found = (
        {}
        if verification is None
        else {check.mixture: check.proxy_scores for check in verification.checks}
    )
    return {**found, **{trial.mixture: trial.scores for trial in selection.trials}}[mixture]


def front_of(selection: Selection) -> Front:
    """All trials that no other dominates. The hypervolume's reference is the base, whose gains are zero."""
    names = sorted(selection.base)
    values = [gains(trial.scores, selection.base) for trial in selection.trials]
    points = np.array([[each[name] for name in names] for each in values])
    kept = pareto.is_front(points)
    members = tuple(trial for trial, keep in zip(selection.trials, kept, strict=True) if keep)
    return Front(members, pareto.hypervolume(points[kept], np.zeros(len(names))))
