"""The store: a folder that keeps fine-tunes, models and their scores, addressed by content.

    STORE/ledger.sqlite      what is known: fine-tunes, models, scores, file hashes, runs
    STORE/artifacts/<key>/   what is too large for a row; a folder is there whole or not at all
    STORE/tmp/               artifacts being written: <key>.<pid>.<host>-<random>
    STORE/locks/<key>.lock   one process at a time works on a key

Order of events, so that a kill at any instant costs only the work in hand: an artifact is written under tmp, flushed to
the disk and renamed; then its row is committed. A folder without a row is therefore left over by a crash and is
replaced; a row without its folder counts as absent.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mergetomix.errors import StoreError
from mergetomix.records import Finetune, Mixture, Scores
from mergetomix.store.address import SCHEMA_VERSION, digest, sha256_of
from mergetomix.store.disk import (
    flush,
    from_os,
    fsync,
    is_no_space,
    no_space,
    size_bytes,
    stamp,
    stats,
)
from mergetomix.store.ledger import Ledger, mixture_of, mixture_text, notes_text, now, pack, unpack

__all__ = ["MODEL_KINDS", "SCHEMA_VERSION", "Store", "digest", "hash_files"]

LEDGER = "ledger.sqlite"
MODEL_KINDS = ("base", "proxy", "expert", "real")

_BEAT_S = 0.5
# A file changed so recently could change again within one tick of its clock, unseen by (size, mtime, ctime).
_SETTLED_NS = 100_000_000
# A folder of another host cannot be asked whether its writer lives; one untouched for so long is taken for dead.
_ABANDONED_S = 7 * 24 * 3600.0
# Names of the temporary folders that this process writes: its number may have been a dead process's before.
_writing: set[str] = set()


def hash_files(paths: Sequence[Path], store: Store | None = None) -> str:
    """The address of some files: the digest of every (file name, SHA-256 of the content), in sorted order.

    Folders do not count, so that a model keeps its address when it moves. With a store, a file that has not changed
    since it was last hashed is not read again. Raises `OSError` for a file that cannot be read.
    """
    hash_one = sha256_of if store is None else store.file_hash
    return digest("files", sorted((Path(path).name, hash_one(Path(path))) for path in paths))


class Store:
    """One process's hold on the store: opens or creates it. For one thread; open it again after a fork.

    Raises `StoreError` where that cannot be: not a folder, no right to write, no space, not a ledger, a ledger of
    another schema. So do its methods where the ledger cannot be read or written.
    """

    path: Path

    def __init__(self, path: str | Path) -> None:
        self._set_up(path, read_only=False)
        try:
            self._make_folders()
            # Creating tables and choosing the journal are not safe against another process doing the same.
            with FileLock(self.path / "locks" / ".open.lock"):
                self._ledger = Ledger(self.path / LEDGER)
                self._sweep()
        except OSError as error:
            raise from_os(error, self.path) from error

    @classmethod
    def peek(cls, path: str | Path) -> Store:
        """The store as it is now, to read only; creates no file. Peek again to see what was written since.

        Raises `StoreError` where there is no store.
        """
        store = cls.__new__(cls)
        store._set_up(path, read_only=True)
        if not (store.path / LEDGER).is_file():
            raise StoreError(
                f"there is no store at {store.path}", hint="name the store that a run has written"
            )
        try:
            store._ledger = Ledger(store.path / LEDGER, read_only=True)
        except OSError as error:
            raise StoreError(
                f"the store {store.path} cannot be read: {error}", hint="check its rights"
            ) from error
        return store

    def close(self) -> None:
        """Lets go of the ledger; again does nothing."""
        self._ledger.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- fine-tunes ---------------------------------------------------------------------------------------------------

    def finetune(self, key: str) -> Finetune | None:
        """The fine-tune of that key; None where its row or its folder is missing."""
        return next(iter(self._finetunes("WHERE key = ?", (key,))), None)

    def finetunes(self) -> list[Finetune]:
        """Every fine-tune that has its folder, oldest first."""
        return self._finetunes("ORDER BY created, key", ())

    def add_finetune(
        self, record: Finetune, settings: Mapping[str, Any], environment: Mapping[str, Any]
    ) -> None:
        """Notes a fine-tune whose folder is in place; one noted before under its key is replaced.

        `settings` and `environment` say how it came about (see `provenance`); what JSON does not know is kept as text.
        """
        kind = "expert" if len(record.mixture) == 1 else "real"
        path, mixture = self._relative(record.path), mixture_text(record.mixture)
        cost = (record.num_examples, record.num_tokens, record.train_s)
        notes = (notes_text(settings), notes_text(environment), now())
        sql = "INSERT OR REPLACE INTO finetunes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        self._ledger.execute(sql, (record.key, kind, mixture, path, *cost, *notes))

    def provenance(self, key: str) -> dict[str, Any] | None:
        """How a fine-tune came about: `settings`, `environment` and `created` (UTC); None where there is no row."""
        rows = self._ledger.execute(
            "SELECT settings, environment, created FROM finetunes WHERE key = ?", (key,)
        )
        for settings, environment, created in rows:
            return {
                "settings": json.loads(settings),
                "environment": json.loads(environment),
                "created": created,
            }
        return None

    def _finetunes(self, where: str, parameters: tuple[str, ...]) -> list[Finetune]:
        columns = "mixture, key, path, num_examples, num_tokens, train_s"
        rows = self._ledger.execute(f"SELECT {columns} FROM finetunes {where}", parameters)
        # An absolute path stays itself under `/`.
        records = [
            Finetune(mixture_of(text), key, str(self.path / path), *cost)
            for text, key, path, *cost in rows
        ]
        return [record for record in records if Path(record.path).is_dir()]

    def _relative(self, path: str) -> str:
        """A path inside the store without the store's own, so that the store can be moved."""
        full = _absolute(path)
        return str(full.relative_to(self.path)) if full.is_relative_to(self.path) else str(full)

    # --- models and scores --------------------------------------------------------------------------------------------

    def add_model(self, key: str, kind: str, mixture: Mixture | None, merge_s: float = 0.0) -> None:
        """Notes a model that is evaluated; the first to note a key stands. Raises `ValueError` for an unknown kind."""
        if kind not in MODEL_KINDS:
            raise ValueError(
                f"the kind of a model must be one of {', '.join(MODEL_KINDS)}, not {kind!r}"
            )
        text = None if mixture is None else mixture_text(mixture)
        self._ledger.execute(
            "INSERT OR IGNORE INTO models VALUES (?, ?, ?, ?, ?)", (key, kind, text, merge_s, now())
        )

    def scores(self, model: str, target: str, part: str) -> Scores | None:
        """What a target says of a model on one part of its examples, to the bit as it was added, or None."""
        sql = "SELECT kind, example_values, example_weights FROM scores WHERE model = ? AND target = ? AND part = ?"
        for kind, values, weights in self._ledger.execute(sql, (model, target, part)):
            return Scores(kind, unpack(values), unpack(weights))
        return None

    def add_scores(
        self, model: str, target: str, part: str, scores: Scores, seconds: float
    ) -> None:
        """Notes the score of every example and the seconds they took; the first to note them stands."""
        examples = (scores.num_examples, pack(scores.values), pack(scores.weights))
        sql = "INSERT OR IGNORE INTO scores VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
        self._ledger.execute(sql, (model, target, part, scores.kind, *examples, seconds, now()))

    def seconds(
        self, models: Iterable[str], targets: Iterable[str] | None = None, part: str | None = None
    ) -> tuple[float, float]:
        """`(merge_s, evaluate_s)` summed over some models; None for targets or part means all of them."""
        keys = json.dumps(sorted(set(models)))
        merge = "SELECT total(merge_s) FROM models WHERE key IN (SELECT value FROM json_each(?))"
        # One JSON parameter each: a list of parameters is limited in length, and there are 2^N - 1 mixtures.
        evaluate = """SELECT total(seconds) FROM scores WHERE model IN (SELECT value FROM json_each(:models))
            AND (:targets IS NULL OR target IN (SELECT value FROM json_each(:targets)))
            AND (:part IS NULL OR part = :part)"""
        names = None if targets is None else json.dumps(list(targets))
        chosen = {"models": keys, "targets": names, "part": part}
        return self._ledger.execute(merge, (keys,))[0][0], self._ledger.execute(evaluate, chosen)[
            0
        ][0]

    def file_hash(self, path: Path) -> str:
        """The SHA-256 of a file's content in hex, read once until its size or a time stamp changes.

        The time of the last change of the inode counts too: unpacking an archive can bring back an old mtime.
        """
        name, before = str(_absolute(path)), stamp(path)
        sql = "SELECT sha256 FROM files WHERE path = ? AND num_bytes = ? AND mtime_ns = ? AND ctime_ns = ?"
        for (known,) in self._ledger.execute(sql, (name, *before)):
            return str(known)
        found = sha256_of(path)
        settled = time.time_ns() - max(before[1:]) > _SETTLED_NS and stamp(path) == before
        if settled and not self._read_only:
            self._ledger.execute(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", (name, *before, found)
            )
        return found

    # --- artifacts ----------------------------------------------------------------------------------------------------

    def artifact_path(self, key: str) -> Path:
        """Where the artifact of a key lies, or would lie."""
        return self.path / "artifacts" / _checked(key)

    @contextmanager
    def artifact(self, key: str) -> Iterator[Path]:
        """An empty folder to write in; on a clean exit it becomes the artifact, on an exception it goes.

        Nothing is at `artifact_path(key)` until all of it is on the disk. An artifact there already stays if the ledger
        has its fine-tune, and is replaced if not: hold `lock(key)` from before this until after `add_finetune`. Raises
        `StoreError` where the disk is full.
        """
        final, draft = self.artifact_path(key), self._draft(key)
        try:
            draft.mkdir()
            yield draft
            flush(draft)
            self._place(draft, final)
        except Exception as error:
            if not is_no_space(error):
                raise
            raise no_space(final, self.free_bytes()) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            _writing.discard(draft.name)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder for what this process needs for a while; it goes at the end, or with the next process's start."""
        folder = self._draft("scratch")
        try:
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            _writing.discard(folder.name)

    def _draft(self, key: str) -> Path:
        """A new name under tmp that says whose it is."""
        self._must_be_writable()
        name = f"{key}.{os.getpid()}.{_host_tag()}-{secrets.token_hex(4)}"
        _writing.add(name)
        return self.path / "tmp" / name

    def _place(self, draft: Path, final: Path) -> None:
        old = None
        # The write lock of the ledger keeps two processes from placing the same artifact at once.
        with self.transaction():
            if final.exists():
                if self._ledger.execute("SELECT 1 FROM finetunes WHERE key = ?", (final.name,)):
                    return
                old = self._draft(final.name)
                final.rename(old)
            draft.rename(final)
            fsync(final.parent)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
            _writing.discard(old.name)

    @contextmanager
    def lock(self, key: str, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Holds a key against every other process; the system lets go of it when this process dies.

        `on_wait` is called once if another holds it. May be taken again inside itself.
        """
        self._must_be_writable()
        lock = self._locks.setdefault(key, FileLock(self.path / "locks" / f"{_checked(key)}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if on_wait is not None:
                on_wait()
            lock.acquire(poll_interval=0.1)
        try:
            yield
        finally:
            lock.release()

    def free_bytes(self) -> int:
        """Bytes that can still be written where the store lies."""
        return shutil.disk_usage(self.path).free

    # --- runs ---------------------------------------------------------------------------------------------------------

    def begin_run(self, run_dir: str, plan: Mapping[str, Any]) -> int:
        """Notes that this process starts a run; the number is for `heartbeat` and `end_run`."""
        started = now()
        sql = """INSERT INTO runs (run_dir, pid, host, stage, done, total, started, updated, plan)
            VALUES (?, ?, ?, '', 0, 0, ?, ?, ?) RETURNING id"""
        return int(
            self._ledger.execute(
                sql, (run_dir, os.getpid(), _host(), started, started, notes_text(plan))
            )[0][0]
        )

    def heartbeat(self, run: int, stage: str, done: int, total: int) -> None:
        """Notes how far a run is: at most every 0.5 s, except for a new stage and for the end of one."""
        last_s, last_stage = self._beats.get(run, (0.0, None))
        if stage == last_stage and done != total and time.monotonic() - last_s < _BEAT_S:
            return
        sql = "UPDATE runs SET stage = ?, done = ?, total = ?, updated = ? WHERE id = ?"
        self._ledger.execute(sql, (stage, done, total, now(), run))
        self._beats[run] = (time.monotonic(), stage)

    def end_run(self, run: int, outcome: str) -> None:
        """Notes how a run ended: `finished`, `failed: ...` or `interrupted`."""
        self._ledger.execute(
            "UPDATE runs SET outcome = ?, updated = ? WHERE id = ?", (outcome, now(), run)
        )

    def runs(self) -> list[dict[str, Any]]:
        """Every run, newest last: id, run_dir, pid, host, stage, done, total, started, updated, outcome, plan, alive.

        `alive` is whether it has no outcome and its process lives on this host; a run of another host is never alive.
        """
        columns = (
            "id",
            "run_dir",
            "pid",
            "host",
            "stage",
            "done",
            "total",
            "started",
            "updated",
            "outcome",
            "plan",
        )
        rows = self._ledger.execute(f"SELECT {', '.join(columns)} FROM runs ORDER BY id")
        found = [dict(zip(columns, row, strict=True)) for row in rows]
        for run in found:
            run["plan"] = json.loads(run["plan"])
            run["alive"] = (
                run["outcome"] is None and run["host"] == _host() and _is_alive(run["pid"])
            )
        return found

    def counts(self) -> dict[str, int]:
        """How much there is: `experts`, `reals`, `trials`, `example_scores`, `artifact_bytes`."""
        sql = """SELECT (SELECT count(*) FROM finetunes WHERE kind = 'expert'),
            (SELECT count(*) FROM finetunes WHERE kind = 'real'), (SELECT count(*) FROM models WHERE kind = 'proxy'),
            (SELECT coalesce(sum(num_examples), 0) FROM scores)"""
        counted = dict(
            zip(
                ("experts", "reals", "trials", "example_scores"),
                self._ledger.execute(sql)[0],
                strict=True,
            )
        )
        return counted | {"artifact_bytes": size_bytes(self.path / "artifacts")}

    def transaction(self) -> AbstractContextManager[None]:
        """Groups what is added inside into one commit: all of it is kept, or none where an exception leaves it.

        Other writers wait meanwhile, so compute first. One inside another belongs to the outer.
        """
        return self._ledger.transaction()

    # --- opening ------------------------------------------------------------------------------------------------------

    def _set_up(self, path: str | Path, *, read_only: bool) -> None:
        self.path = _absolute(Path(path).expanduser())
        self._read_only = read_only
        self._locks: dict[str, FileLock] = {}
        self._beats: dict[int, tuple[float, str | None]] = {}

    def _make_folders(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise StoreError(
                f"the store must be a folder, and {self.path} is a file", hint="name another store"
            )
        for name in ("artifacts", "tmp", "locks"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
            if not os.access(self.path / name, os.W_OK | os.X_OK):
                raise PermissionError(
                    errno.EACCES, os.strerror(errno.EACCES), str(self.path / name)
                )

    def _must_be_writable(self) -> None:
        if self._read_only:
            raise StoreError(
                f"{self.path} was opened to read only", hint="open it with Store(path)"
            )

    def _sweep(self) -> None:
        for folder in list((self.path / "tmp").iterdir()):
            # A live process may take its own away meanwhile.
            with suppress(FileNotFoundError):
                if _is_leftover(folder):
                    shutil.rmtree(folder, ignore_errors=True)


def _absolute(path: str | Path) -> Path:
    # Not resolved: a store behind a link keeps the name that the user gave it.
    return Path(os.path.abspath(path))  # noqa: PTH100


def _checked(key: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", key, re.ASCII):
        raise ValueError(f"a key must be a plain file name, not {key!r}")
    return key


# --- processes --------------------------------------------------------------------------------------------------------


def _host() -> str:
    return socket.gethostname()


def _host_tag() -> str:
    return hashlib.sha256(_host().encode()).hexdigest()[:8]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # It lives, and belongs to somebody else.
    return True


def _is_leftover(folder: Path) -> bool:
    """Whether a folder under tmp belongs to a process that is dead; False in doubt."""
    match = re.fullmatch(r".+\.([1-9]\d{0,8})\.([0-9a-f]{8})-[0-9a-f]{8}", folder.name)
    if match is None:
        return False
    pid, tag = int(match[1]), match[2]
    if tag != _host_tag():
        last_s = max(stat.st_mtime for stat in (folder.lstat(), *stats(folder)))
        return time.time() - last_s > _ABANDONED_S
    return folder.name not in _writing if pid == os.getpid() else not _is_alive(pid)
