"""The trials of a search in a database that optuna-dashboard opens, for others to look at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from mergetomix.search.optuna.samplers import quiet
from mergetomix.search.strategy import SettingError

if TYPE_CHECKING:
    import optuna

FILE = "sqlite:///"

STUDY = "mergetomix"
"""The study's name."""
COMPARED = ("state", "values", "params", "user_attrs")


class TrialDatabase:
    """Writes the trials that the database lacks; a search reads nothing from it.

    A search that is resumed tells everything again: what stands in the same place is left. If
    something else stands there, the study belongs to another search, and is begun anew. Of several
    processes with one database in a file the first writes, and the others do not: they find the
    same. Raises SettingError if the database cannot be opened.
    """

    @quiet()
    def __init__(self, url: str, metrics: tuple[str, ...]) -> None:
        import optuna
        from sqlalchemy.exc import SQLAlchemyError

        self._is_mine = _is_first(url)
        if not self._is_mine:
            return
        try:
            self._storage = optuna.storages.get_storage(url)
        except (ImportError, RuntimeError, SQLAlchemyError) as error:
            reason = str(error).partition("\n")[0]
            message = f"{url} cannot be opened as a storage of Optuna: {reason}"
            raise SettingError("strategy", message) from None
        self._metrics = list(metrics)
        self._trials: list[optuna.trial.FrozenTrial] = []
        if STUDY in optuna.get_all_study_names(self._storage):
            self._study = optuna.load_study(study_name=STUDY, storage=self._storage)
            if self._study.metric_names != self._metrics:
                self._begin_anew()
        else:
            self._create()
        self._there = self._study.get_trials(deepcopy=False)

    @quiet()
    def add(self, trial: optuna.trial.FrozenTrial) -> None:
        """Adds a trial, in the order of the search, unless it is there."""
        if not self._is_mine:
            return
        trial.system_attrs = {}  # what a sampler remembers
        place = len(self._trials)
        self._trials.append(trial)
        if place >= len(self._there):
            self._study.add_trial(trial)
        elif any(getattr(trial, key) != getattr(self._there[place], key) for key in COMPARED):
            self._begin_anew()

    def _begin_anew(self) -> None:
        import optuna

        optuna.delete_study(study_name=STUDY, storage=self._storage)
        self._create()
        self._study.add_trials(self._trials)
        self._there = []

    def _create(self) -> None:
        import optuna

        up = [optuna.study.StudyDirection.MAXIMIZE] * len(self._metrics)
        self._study = optuna.create_study(study_name=STUDY, storage=self._storage, directions=up)
        self._study.set_metric_names(self._metrics)


def _is_first(url: str) -> bool:
    """Returns whether no other process writes to a database; what is in no file, nobody can tell.

    The lock is held until this process ends.
    """
    if not url.startswith(FILE):
        return True
    path = Path(url.removeprefix(FILE))
    if not path.parent.is_dir():
        return True  # which opening it will say
    lock = FileLock(path.with_name(f".{path.name}.lock"), is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    except OSError:
        return True  # as above
    _held.append(lock)
    return True


_held: list[FileLock] = []
