"""A store's local side of shared storage: a ledger brought up to date, and folders when needed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from filelock import FileLock, Timeout

from mergetomix.errors import StoreError
from mergetomix.store.artifacts import Artifacts
from mergetomix.store.ledger import WRITES, Ledger
from mergetomix.store.mirror import Mirror, parameters_of

LEDGER = "ledger.sqlite"
HANDED_OVER = "shared:"
"""How the name of a folder begins that lies on shared storage, where another machine put it."""


class Mirroring:
    """What this machine holds of a store on shared storage.

    One process of one machine writes. It holds the lock of the storage, and one on this machine, by
    which processes that read here know that the ledger is up to date. Others bring their machine's
    ledger up to date when they open the store, and when they miss something.
    """

    def __init__(self, mirror: Mirror, read_only: bool) -> None:
        self.mirror, self._read_only = mirror, read_only
        self.folder = mirror.cache
        self._holding = ExitStack()
        self.number = 0
        self._ledger: Ledger | None = None
        self._artifacts: Artifacts | None = None

    def begin(self) -> None:
        """Takes the locks and brings the ledger up to date, before it is opened.

        Raises StoreError if another process writes, or there is nothing to read.
        """
        (self.folder / "locks").mkdir(parents=True, exist_ok=True)
        if self._read_only:
            self.catch_up()
            return
        lock = FileLock(self.folder / "locks" / ".writer.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            message = f"the store {self.mirror.url} is in use by another process of this machine"
            raise StoreError(message, hint="wait until it is done") from None
        self._holding.callback(lock.release)
        self._holding.enter_context(self.mirror.held())
        self._bring_up(then=self._sweep)

    def catch_up(self) -> None:
        """Brings the ledger up to date, unless a process that writes here does."""
        lock = FileLock(self.folder / "locks" / ".writer.lock")
        with suppress(Timeout), lock.acquire(timeout=0):
            self._bring_up()

    def attach(self, ledger: Ledger, artifacts: Artifacts) -> None:
        """Has what is committed go to the journal, and what is missing come from the storage."""
        self._ledger, self._artifacts = ledger, artifacts
        artifacts.fetch = self._fetch
        if not self._read_only:
            ledger.journal = self._commit

    def end(self) -> None:
        """Lets go of the locks."""
        self._holding.close()

    def put(self, key: str, folder: Path) -> None:
        """Copies an artifact to the storage and notes where, within a transaction of its row."""
        assert self._ledger is not None
        self._ledger.insert("places", key, self.mirror.put(key, folder), replace=True)

    # --- folders from other machines

    def hand_over(self, key: str, folder: Path) -> str:
        """Copies a folder to the storage for the process that writes; returns what it is called."""
        return HANDED_OVER + self.mirror.put(f"incoming-{key}", folder)

    def take_over(self, key: str, name: str, into: Path) -> None:
        """Moves a folder that was handed over into an empty one."""
        token = name.removeprefix(HANDED_OVER)
        names = self.mirror.names(f"incoming-{key}", token)
        self.mirror.get(f"incoming-{key}", token, names, into)
        self.mirror.remove(f"incoming-{key}", token)

    # --- the ledger

    def _bring_up(self, then: Callable[[Ledger], None] = lambda _: None) -> None:
        first = self.mirror.first()
        if first is None:
            if self._read_only:
                message = f"there is no store at {self.mirror.url}"
                raise StoreError(message, hint="name the store that a run has written")
            self.mirror.commit(1, [])
            first = self.mirror.first()
        assert first is not None
        store = str(first["by"])
        ledger = self._of(store)
        try:
            ((self.number,),) = ledger.execute("SELECT number FROM mirrored")
            for number, entry in self.mirror.entries(self.number):
                self._apply(ledger, number, entry)
            then(ledger)
        finally:
            ledger.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            ledger.close()

    def _sweep(self, ledger: Ledger) -> None:
        """Removes folders that no row names: put or handed over for one that never came.

        Those of this machine go too: another one has removed what they are copies of.
        """
        named = set(ledger.execute("SELECT key, token FROM places"))
        for key, token in sorted(self.mirror.folders() - named):
            self.mirror.remove(key, token)
        copies, known = self.folder / "artifacts", {key for key, _ in named}
        for folder in list(copies.iterdir()) if copies.is_dir() else ():
            if folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)

    def _of(self, store: str) -> Ledger:
        """The ledger of this machine, a new one if it is of another store."""
        ledger = Ledger(self.folder / LEDGER)
        if [row[0] for row in ledger.execute("SELECT store FROM mirrored")] == [store]:
            return ledger
        ledger.close()
        for file in self.folder.glob(f"{LEDGER}*"):
            file.unlink()
        shutil.rmtree(self.folder / "artifacts", ignore_errors=True)
        ledger = Ledger(self.folder / LEDGER)
        ledger.insert("mirrored", store, 1)
        return ledger

    def _apply(self, ledger: Ledger, number: int, entry: Any) -> None:
        with ledger.transaction():
            for sql, parameters in entry["statements"]:
                if WRITES.match(sql) is None:  # whoever may write there may have put anything
                    message = f"object {number} of the journal of {self.mirror.url} is none of ours"
                    raise StoreError(message, hint="look who may write there")
                ledger.execute(sql, parameters_of(parameters))
            ledger.execute("UPDATE mirrored SET number = ?", (number,))
        self.number = number

    def _commit(self, statements: list[tuple[str, Any]]) -> None:
        assert self._ledger is not None
        self.mirror.commit(self.number + 1, statements)
        self.number += 1
        self._ledger.execute("UPDATE mirrored SET number = ?", (self.number,))

    # --- artifacts

    def _fetch(self, key: str) -> None:
        """Brings a folder that the ledger knows from the storage, if it is there."""
        assert self._ledger is not None
        (self.folder / "tmp").mkdir(exist_ok=True)
        (self.folder / "artifacts").mkdir(exist_ok=True)
        final = self.folder / "artifacts" / key
        with FileLock(self.folder / "locks" / f"{key}.fetch.lock"):
            if final.is_dir():
                return
            for (token,) in self._ledger.execute("SELECT token FROM places WHERE key = ?", (key,)):
                draft = Path(mkdtemp(prefix="fetch-", dir=self.folder / "tmp"))
                with suppress(FileNotFoundError):
                    self.mirror.get(key, token, self.mirror.names(key, token), draft)
                    draft.chmod(0o755)
                    draft.rename(final)
                shutil.rmtree(draft, ignore_errors=True)
