"""The order of trials: the best first."""

from __future__ import annotations

from collections.abc import Sequence

from mergetomix.records import Trial


def ranked(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Returns trials, the best objective first; of equals the one with fewer datasets."""

    def place(trial: Trial) -> tuple[float, int, tuple[str, ...]]:
        return -trial.objective, len(trial.mixture), trial.mixture.datasets

    return tuple(sorted(trials, key=place))
