"""Removal from a store of what nobody needs, such that a kill at any instant leaves it sound.

What was computed from other things goes before them. Of each artifact first the rows go, in one
commit, then its folder by one rename, to where what a dead process leaves is swept up: a folder
without rows is no damage, and rows without their folder never come about.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mergetomix.errors import StoreError
from mergetomix.store.contents import Aside, KeptArtifact, KeptFinetune
from mergetomix.store.disk import fsync
from mergetomix.store.store import Store

RECENT = timedelta(hours=1)
"""A run of another host that has said something since is taken for one that is under way."""
_OWN_LOCKS = (".open.lock", ".writer.lock")
_OF_A_KEY = ("finetunes", "artifacts", "sources", "places")
_OF_A_MODEL = {"scores": "model", "remarks": "model", "models": "key", "sources": "key"}


@dataclass(frozen=True)
class Unreached:
    """What of a store no recipe reaches, and so may go.

    `models` are the keys of models whose scores go with them, `num_scores` of them, one for each
    target and part. `last_run` is the number of the store's last run when this was found.
    """

    place: str
    finetunes: tuple[KeptFinetune, ...] = ()
    artifacts: tuple[KeptArtifact, ...] = ()
    models: tuple[str, ...] = ()
    num_scores: int = 0
    damaged: tuple[Aside, ...] = ()
    leftovers: tuple[Aside, ...] = ()
    last_run: int = 0

    @property
    def num_bytes(self) -> int:
        """The bytes of all folders that go; rows of the ledger are not counted."""
        kept: list[KeptFinetune | KeptArtifact] = [*self.artifacts, *self.finetunes]
        beside = (*self.damaged, *self.leftovers)
        return sum(each.num_bytes for each in kept) + sum(each.num_bytes for each in beside)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to remove."""
        return not (
            self.finetunes or self.artifacts or self.models or self.damaged or self.leftovers
        )


def remove(found: Unreached) -> None:
    """Removes what was found, with nobody else in the store.

    Raises:
        StoreError: another process uses the store, or a run began since.
    """
    with Store(found.place) as store, _alone(store):
        if last_run(store) != found.last_run:
            message = f"a run began in the store {found.place} since it was looked through"
            raise StoreError(message, hint="run the same command again")
        _remove_models(store, found.models)
        with store.scratch() as aside:
            # what was computed from fine-tunes before them
            keys = [each.key for each in found.artifacts] + [each.key for each in found.finetunes]
            for key in keys:
                _remove_artifact(store, key, aside)
        for name in (each.name for each in found.damaged):
            _remove_path(store.path / "damaged" / name)
        if found.models:
            with suppress(StoreError):  # without it, the room in the file is used again
                store.ledger.execute("VACUUM")


def check_unused(place: str) -> None:
    """Raises StoreError if another process uses a store."""
    with Store.peek(place) as store:
        _refuse(store, _runs_under_way(store))


def last_run(store: Store) -> int:
    """Returns the number of the last run of a store, 0 if there was none."""
    return max((int(run["id"]) for run in store.runs()), default=0)


# --- nobody else


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    """Keeps other processes out of a store. Raises StoreError if one is in it.

    Whoever opens the store meanwhile waits until this is over.
    """
    with ExitStack() as held:
        held.enter_context(FileLock(store.path / "locks" / ".open.lock"))
        _refuse(store, _runs_under_way(store))
        for file in sorted((store.path / "locks").glob("*.lock")):
            if file.name in _OWN_LOCKS:
                continue
            try:
                held.enter_context(FileLock(file).acquire(timeout=0))
            except Timeout:
                _refuse(store, [f"the process that holds {file.name}"])
        yield


def _runs_under_way(store: Store) -> list[str]:
    """Says of every run that is under way, or may be, where it is."""
    now = datetime.now(UTC)
    return [
        f"the run in {run['run_dir']} (process {run['pid']} on {run['host']})"
        for run in store.runs()
        if run["alive"] or _may_be_alive(store, run, now)
    ]


def _may_be_alive(store: Store, run: dict[str, Any], now: datetime) -> bool:
    """Whether a run of another host may be under way. Shared storage has a lock that tells."""
    import socket

    is_elsewhere = run["host"] != socket.gethostname() and store.shared is None
    is_recent = now - datetime.fromisoformat(run["updated"]) < RECENT
    return is_elsewhere and run["outcome"] is None and is_recent


def _refuse(store: Store, users: list[str]) -> None:
    if users:
        message = f"the store {store.path} is in use by {'; '.join(users)}"
        raise StoreError(message, hint="wait until it is done; nothing was removed")


# --- steps


def _remove_models(store: Store, keys: Iterable[str]) -> None:
    """Removes models and their scores in one commit."""
    _delete(store, _OF_A_MODEL, list(keys))


def _remove_artifact(store: Store, key: str, aside: Path) -> None:
    """Removes the rows of an artifact, then its folder, by way of an empty folder aside."""
    sql = "SELECT token FROM places WHERE key = ?"
    tokens = [str(token) for (token,) in store.ledger.execute(sql, (key,))]
    _delete(store, dict.fromkeys(_OF_A_KEY, "key"), [key])
    folder = store.path / "artifacts" / key
    if folder.exists():
        folder.rename(aside / key)
        fsync(folder.parent)
        shutil.rmtree(aside / key)
    for token in tokens if store.shared is not None else ():
        assert store.shared is not None
        store.shared.mirror.remove(key, token)


def _delete(store: Store, columns: dict[str, str], keys: list[str]) -> None:
    """Deletes the rows of some keys from tables, each with its column, in one commit."""
    if not keys:
        return
    # one parameter, as a list of parameters is limited in length
    listed = (json.dumps(keys),)
    with store.transaction():
        for table, column in columns.items():
            sql = f"DELETE FROM {table} WHERE {column} IN (SELECT value FROM json_each(?))"
            store.ledger.execute(sql, listed)


def _remove_path(path: Path) -> None:
    remove_one: Callable[[Path], None] = Path.unlink
    if path.is_dir() and not path.is_symlink():
        remove_one = shutil.rmtree
    with suppress(FileNotFoundError):
        remove_one(path)
