"""A store on shared storage (`s3://bucket/prefix`, `gs://...`), by fsspec, beside a local copy.

    PREFIX/journal/0000000001.json   what was committed to the ledger, one object a transaction
    PREFIX/artifacts/<key>/<token>/  a folder as it was put; the ledger knows the token
    PREFIX/lock.json                 who writes just now, renewed while it does

SQLite needs a local disk, so the ledger lies in the cache of this machine, and so do artifacts once
they were needed. The journal is what counts: an object is put there before the local commit, and
a ledger that lacks some is brought up to date from it. An object of the journal is created, never
replaced, so that two writers cannot both commit their next transaction, whatever they hold of the
lock. What cannot be reached is tried again for a while.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from mergetomix.errors import Fault, StoreError
from mergetomix.store.address import digest

PATIENCE_S = 300.0
"""Storage that cannot be reached is waited for so long."""
RENEW_S, STALE_S = 10.0, 45.0
"""The lock is renewed so often; one that has not changed for so long is nobody's."""
Statement = tuple[str, Any]
"""An SQL statement that writes, with its parameters."""
T = TypeVar("T")


def is_remote(path: str) -> bool:
    """Returns whether a store's place is an address such as `s3://bucket/prefix`.

    >>> is_remote("s3://bucket/prefix"), is_remote("/data/store")
    (True, False)
    """
    return "://" in str(path)


class Mirror:
    """The shared side of a store.

    Args:
        url: where it lies.
        hear: is called with a sentence when the storage has to be waited for.

    Raises:
        StoreError: there is no such storage, or the package that reaches it is not installed.
    """

    def __init__(self, url: str, hear: Callable[[str], None] = lambda _: None) -> None:
        import fsspec

        self.url, self.hear = url.rstrip("/"), hear
        self._is_local = self.url.startswith(("file://", "local://"))
        options = {"auto_mkdir": True} if self._is_local else {}
        try:
            self._fs, root = fsspec.url_to_fs(self.url, use_listings_cache=False, **options)
        except (ImportError, ValueError) as error:
            hint = "S3 takes `pip install s3fs`, Google Cloud Storage `pip install gcsfs`"
            raise StoreError(f"the store {url} cannot be opened: {error}", hint=hint) from error
        self._root = str(root).rstrip("/")
        self._token = secrets.token_hex(8)
        self._stop = threading.Event()
        self.beat: Mapping[str, Any] = {}
        """What the process that writes does just now, for others to see."""

    @property
    def cache(self) -> Path:
        """The folder of this machine that holds the ledger, and artifacts that were needed."""
        base = os.environ.get("MERGETOMIX_CACHE") or "~/.cache/mergetomix"
        return Path(base).expanduser() / "stores" / digest("store", self.url)[:24]

    # --- the journal

    def entries(self, after: int) -> Iterator[tuple[int, Any]]:
        """Yields the journal's objects behind a number, in order."""
        folder = f"{self._root}/journal"
        names = self._patiently(lambda: self._names(folder))
        for number in sorted(int(Path(name).stem) for name in names):
            if number > after:
                yield number, json.loads(self._read(self._entry(number)))

    def has_entry(self, number: int) -> bool:
        """Returns whether there is an object of a number."""
        return bool(self._patiently(lambda: self._fs.exists(self._entry(number))))

    def first(self) -> Any | None:
        """Returns the first object, which says which store this is; None of an empty one."""
        if not self.has_entry(1):
            return None
        return json.loads(self._read(self._entry(1)))

    def _read(self, path: str) -> bytes:
        return bytes(self._patiently(lambda: self._fs.cat_file(path)))

    def commit(self, number: int, statements: Sequence[Statement]) -> None:
        """Puts a transaction into the journal. Raises StoreError if another process has."""
        kept = [[sql, _plain(parameters)] for sql, parameters in statements]
        entry = {"by": self._token, "statements": kept}
        self._create(self._entry(number), json.dumps(entry).encode())

    def _create(self, path: str, data: bytes) -> None:
        def put() -> None:
            try:
                self._put_new(path, data)
            except FileExistsError:
                # an answer that was lost on the way back is no other process's work
                if self._fs.cat_file(path) == data:
                    return
                raise self._displaced() from None

        self._patiently(put)

    def _displaced(self) -> StoreError:
        message = f"another process writes to the store {self.url}"
        hint = "one process writes it at a time; what was computed is in the store"
        return StoreError(message, hint=hint)

    def _put_new(self, path: str, data: bytes) -> None:
        """Puts an object whole. Raises FileExistsError if there is one, which stays."""
        if not self._is_local:
            self._fs.pipe_file(path, data, mode="create")
            return
        # fsspec looks first and writes then: two processes could both find nothing
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = place.with_name(f".{self._token}.{place.name}")
        draft.write_bytes(data)
        try:
            os.link(draft, place)
        finally:
            draft.unlink()

    def _entry(self, number: int) -> str:
        return f"{self._root}/journal/{number:010d}.json"

    def _names(self, folder: str) -> list[str]:
        self._fs.invalidate_cache()
        try:
            return [str(each) for each in self._fs.ls(folder, detail=False)]
        except FileNotFoundError:
            return []

    # --- folders

    def put(self, key: str, folder: Path) -> str:
        """Copies a folder to the storage; returns the token that it is found by."""
        token = secrets.token_hex(8)
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                name = file.relative_to(folder).as_posix()
                path = f"{self._root}/artifacts/{key}/{token}/{name}"
                self._patiently(partial(self._fs.put_file, str(file), path))
        return token

    def get(self, key: str, token: str, names: Sequence[str], into: Path) -> None:
        """Copies files of a folder from the storage into an empty folder of this machine."""
        for name in names:
            if Path(name).is_absolute() or ".." in Path(name).parts:
                message = f"{self.url} holds a file elsewhere: {name}"
                raise StoreError(message, hint="look who may write there")
            path, file = f"{self._root}/artifacts/{key}/{token}/{name}", into / name
            file.parent.mkdir(parents=True, exist_ok=True)
            self._patiently(partial(self._fs.get_file, path, str(file)))

    def names(self, key: str, token: str) -> list[str]:
        """Returns the names of a folder's files."""
        folder = f"{self._root}/artifacts/{key}/{token}"
        found = self._patiently(lambda: self._fs.find(folder))
        return [str(each).removeprefix(f"{folder}/") for each in found]

    def folders(self) -> set[tuple[str, str]]:
        """Returns the key and token of every folder, whole or not."""
        root = f"{self._root}/artifacts"
        found = self._patiently(lambda: self._fs.find(root))
        parts = (str(each).removeprefix(f"{root}/").split("/") for each in found)
        return {(each[0], each[1]) for each in parts if len(each) > 2}

    def remove(self, key: str, token: str) -> None:
        """Removes a folder. Raises StoreError if this process may not write any more."""
        if self.holder().get("token") != self._token:
            raise self._displaced()
        folder = f"{self._root}/artifacts/{key}/{token}"
        with suppress(FileNotFoundError):
            self._patiently(lambda: self._fs.rm(folder, recursive=True))

    # --- the lock

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds the lock against processes of this and other machines.

        A lock that nobody renews is taken over. Raises StoreError if somebody holds it.
        """
        path = f"{self._root}/lock.json"
        self._patiently(lambda: self._take(path))
        thread = threading.Thread(target=self._renew, args=(path,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
            with suppress(Exception):
                if self._holder(path).get("token") == self._token:
                    self._fs.rm_file(path)

    def _take(self, path: str) -> None:
        while True:
            try:
                self._put_new(path, self._own(0))
                return
            except FileExistsError:
                holder = self._holder(path)
            if holder.get("token") == self._token:
                return
            if not self._is_left(path, holder):
                where = f"process {holder.get('pid')} on {holder.get('host')}"
                message = f"the store {self.url} is in use by {where}"
                raise StoreError(message, hint="wait until it is done, or name another prefix")
            with suppress(FileNotFoundError):
                self._fs.rm_file(path)

    def holder(self) -> dict[str, Any]:
        """Returns what is known of the process that writes; empty if none does."""
        return self._patiently(lambda: self._holder(f"{self._root}/lock.json"))

    def _is_left(self, path: str, holder: Mapping[str, Any]) -> bool:
        """Whether the process that holds the lock is gone."""
        import psutil

        if not holder:
            return True
        if holder.get("host") == socket.gethostname() and not psutil.pid_exists(holder["pid"]):
            return True
        self.hear(f"the store {self.url} has a lock: waiting whether its holder is there")
        end = time.monotonic() + STALE_S
        while time.monotonic() < end:
            time.sleep(1.0)
            if self._holder(path) != holder:
                return not self._holder(path)
        return True

    def _holder(self, path: str) -> dict[str, Any]:
        try:
            return dict(json.loads(self._fs.cat_file(path)))
        except (FileNotFoundError, ValueError):
            return {}

    def _own(self, count: int) -> bytes:
        known = {"token": self._token, "host": socket.gethostname(), "pid": os.getpid()}
        return json.dumps({**known, "count": count, **self.beat}).encode()

    def _renew(self, path: str) -> None:
        count = 0
        while not self._stop.wait(RENEW_S):
            count += 1
            # what fails now is tried again next time; the journal keeps other writers out
            with suppress(Exception):
                self._fs.pipe_file(path, self._own(count))

    # --- waiting

    def _patiently(self, action: Callable[[], T]) -> T:
        """Returns what an action gives; one that cannot reach the storage is tried again.

        Raises:
            StoreError: the storage does not let it be done.
            Fault: it cannot be reached for PATIENCE_S.
        """
        end, pause, is_said = time.monotonic() + PATIENCE_S, 0.5, False
        while True:
            try:
                return action()
            except (StoreError, FileNotFoundError):
                raise
            except PermissionError as error:
                message = f"the store {self.url} cannot be used: {error}"
                raise StoreError(message, hint="check its name and your credentials") from error
            except Exception as error:  # its packages raise errors of many kinds
                why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                if time.monotonic() > end:
                    hint = "what was committed is in the store: the same command goes on from there"
                    raise Fault(
                        f"the store {self.url} is out of reach: {why}", hint=hint
                    ) from error
                if not is_said:
                    self.hear(f"the store {self.url} is out of reach ({why}): trying again")
                    is_said = True
                time.sleep(pause)
                pause = min(2 * pause, 10.0)


def _plain(parameters: Any) -> Any:
    if isinstance(parameters, Mapping):
        return {key: _plain_value(value) for key, value in parameters.items()}
    return [_plain_value(value) for value in parameters]


def _plain_value(value: Any) -> Any:
    return {"bytes": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def parameters_of(kept: Any) -> Any:
    """Returns the parameters of a statement as they were committed."""
    if isinstance(kept, dict):
        return {key: _value_of(value) for key, value in kept.items()}
    return [_value_of(value) for value in kept]


def _value_of(value: Any) -> Any:
    return base64.b64decode(value["bytes"]) if isinstance(value, dict) else value
