"""The trials of a search in a database of Optuna's, for others to look at: optuna-dashboard opens it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mergetomix.search.samplers.samplers import Sampled, quiet
from mergetomix.search.strategy import SettingError, Told

if TYPE_CHECKING:
    import optuna

STUDY = "mergetomix"
"""The study's name."""


class Kept:
    """Writes trials that the database lacks.

    A search that is resumed tells everything again: what stands there in the same place is left. Where something else does, the
    study belongs to another search, and is begun anew. Nothing is ever read from it for the search's sake.
    """

    def __init__(self, url: str, sampled: Sampled) -> None:
        self._url, self._sampled = url, sampled
        self._written: list[optuna.trial.FrozenTrial] = []
        with quiet():
            self._storage = self._opened()
            self._study = self._found()
            self._old = self._study.get_trials(deepcopy=False)

    def add(self, params: dict[str, Any], told: Told) -> None:
        """A trial, in the order of the search."""
        with quiet():
            trial = self._trial(params, told)
            place = len(self._written)
            self._written.append(trial)
            if place < len(self._old):
                if is_same(self._old[place], trial):
                    return
                self._begin()
                self._study.add_trials(self._written)
            else:
                self._study.add_trial(trial)

    def _opened(self) -> optuna.storages.BaseStorage:
        import optuna
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return optuna.storages.get_storage(self._url)
        except (ImportError, RuntimeError, SQLAlchemyError) as error:
            reason = str(error).partition("\n")[0]
            raise SettingError(
                "strategy", f"{self._url} cannot be opened as a storage of Optuna: {reason}"
            ) from None

    def _found(self) -> optuna.Study:
        import optuna

        names = optuna.study.get_all_study_names(self._storage)
        if STUDY in names:
            study = optuna.load_study(study_name=STUDY, storage=self._storage)
            if study.metric_names == list(self._sampled.metrics):
                return study
        return self._new()

    def _new(self) -> optuna.Study:
        import optuna

        if STUDY in optuna.study.get_all_study_names(self._storage):
            optuna.delete_study(study_name=STUDY, storage=self._storage)
        up = [optuna.study.StudyDirection.MAXIMIZE] * len(self._sampled.metrics)
        study = optuna.create_study(study_name=STUDY, storage=self._storage, directions=up)
        study.set_metric_names(list(self._sampled.metrics))
        return study

    def _begin(self) -> None:
        self._study, self._old = self._new(), []

    def _trial(self, params: dict[str, Any], told: Told) -> optuna.trial.FrozenTrial:
        from optuna.trial import TrialState, create_trial

        values = self._sampled.values(told)
        return create_trial(
            state=TrialState.COMPLETE if values else TrialState.FAIL,
            values=values,
            params=params,
            distributions=self._sampled.variables.distributions,
            user_attrs=attributes(told),
        )


def attributes(told: Told) -> dict[str, Any]:
    """What a trial is, beside its variables: the mixture's weights, its objective and its value on every target."""
    values = {
        target: value if math.isfinite(value) else None for target, value in told.values.items()
    }
    objective = told.objective if math.isfinite(told.objective) else None
    return {"weights": told.mixture.as_dict(), "objective": objective, "values": values}


def is_same(one: optuna.trial.FrozenTrial, other: optuna.trial.FrozenTrial) -> bool:
    """Whether two trials tried the same and were worth the same."""
    parts: Sequence[str] = ("state", "values", "params", "user_attrs")
    return all(getattr(one, part) == getattr(other, part) for part in parts)
