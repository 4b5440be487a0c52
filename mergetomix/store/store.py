"""The store: a folder that keeps fine-tunes, models and their scores, addressed by content.

    STORE/ledger.sqlite      what is known: fine-tunes, models, scores, file hashes, runs
    STORE/artifacts/<key>/   what is too large for a row; a folder is there whole or not at all
    STORE/tmp/               artifacts being written: <key>.<pid>.<host>-<random>
    STORE/damaged/           what was found damaged, and set aside
    STORE/locks/<key>.lock   one process at a time works on a key

Order of events, so that a kill at any instant costs only the work in hand: an artifact is written
under tmp, flushed to the disk and renamed; then its row is committed. A folder without a row is
therefore left over by a crash and is replaced; a row without its folder counts as absent. The
ledger holds the SHA-256 of every file of a folder, and a folder that holds other bytes is not
handed out (`artifacts.py`).
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mergetomix.errors import StoreError
from mergetomix.records import Finetune, Mixture, Scores
from mergetomix.store.address import digest, sha256_of
from mergetomix.store.artifacts import Artifacts
from mergetomix.store.disk import fsync, is_no_space, no_space, settle, size_bytes, stamp
from mergetomix.store.ledger import Ledger
from mergetomix.store.leftovers import host_tag as host_tag
from mergetomix.store.leftovers import is_leftover, writing
from mergetomix.store.manifest import MANIFEST, Manifest
from mergetomix.store.mirror import Mirror, is_remote
from mergetomix.store.mirroring import Mirroring

LEDGER = "ledger.sqlite"
WORKER_KEYS = ("name", "place", "doing", "done", "total", "for_s", "num_done", "busy_s")
"""What is known of a worker: what it computes on, what it does, `done` of `total` units of it in
`for_s` seconds, and the `num_done` pieces of work before it, which took `busy_s` seconds."""
MODEL_KINDS = ("base", "proxy", "expert", "real")

_BEAT_S = 0.5
# A file changed so recently could change again within one tick of its clock, unseen by (size,
# mtime, ctime).
_SETTLED_NS = 100_000_000
_kept: set[str] = set()


def has_kept() -> bool:
    """Returns whether this process has put anything into a store that is worth going on from."""
    return bool(_kept)


def hash_files(paths: Sequence[Path], store: Store | None = None) -> str:
    """Returns the address of some files: the digest of all (name, SHA-256 of the content), sorted.

    Folders do not count, so that a model keeps its address when it moves. With a store, a file that
    has not changed since it was last hashed is not read again. Raises `OSError` for a file that
    cannot be read.
    """
    hash_one = sha256_of if store is None else store.file_hash
    return digest("files", sorted((Path(path).name, hash_one(Path(path))) for path in paths))


class Store:
    """One process's hold on the store: opens or creates it. For one thread; open it after a fork.

    Raises:
        StoreError: it is not a folder, cannot be written, has no space, or holds no ledger or one
            of another schema; the methods raise it if the ledger cannot be read or written.
    """

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        remote = is_remote(str(path))
        self.shared = Mirroring(Mirror(str(path)), read_only) if remote else None
        self.path = absolute(path) if self.shared is None else self.shared.folder
        self._read_only = read_only
        self._locks: dict[str, FileLock] = {}
        self._beats: dict[int, tuple[float, str | None]] = {}
        try:
            if self.shared is not None:
                self.shared.begin()
            self._open()
        except BaseException:
            if self.shared is not None:
                self.shared.end()
            raise

    def _open(self) -> None:
        self._ledger = self._looked_at() if self._read_only else self._opened()
        self._artifacts = Artifacts(self.path, self._ledger, self.file_hash, self._read_only)
        if self.shared is not None:
            self.shared.attach(self._ledger, self._artifacts)

    @classmethod
    def peek(cls, path: str | Path) -> Store:
        """Returns the store as it is now, to read only; creates no file.

        Peek again to see what was written since. Raises `StoreError` if there is no store.
        """
        return cls(path, read_only=True)

    def _looked_at(self) -> Ledger:
        if not (self.path / LEDGER).is_file():
            message = f"there is no store at {self.path}"
            raise StoreError(message, hint="name the store that a run has written")
        try:
            return Ledger(self.path / LEDGER, read_only=True)
        except OSError as error:
            message = f"the store {self.path} cannot be read: {error}"
            raise StoreError(message, hint="check its rights") from error

    def _opened(self) -> Ledger:
        if self.path.exists() and not self.path.is_dir():
            message = f"the store must be a folder, and {self.path} is a file"
            raise StoreError(message, hint="name another store")
        try:
            for folder in (self.path / name for name in ("artifacts", "tmp", "locks")):
                folder.mkdir(parents=True, exist_ok=True)
                if not os.access(folder, os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
            # Making a ledger is not safe against another process doing the same.
            with FileLock(self.path / "locks" / ".open.lock"):
                self._must_not_have_lost_its_ledger()
                ledger = Ledger(self.path / LEDGER)
                for folder in list((self.path / "tmp").iterdir()):
                    # A live process may take its own away meanwhile.
                    with suppress(FileNotFoundError):
                        if is_leftover(folder):
                            shutil.rmtree(folder, ignore_errors=True)
                return ledger
        except OSError as error:
            if is_no_space(error):
                message = f"disk full: the store {self.path} cannot be opened"
                raise StoreError(message, hint="make space, or name another store") from error
            message = f"the store must be a folder that can be written: {error}"
            raise StoreError(message, hint="name another store") from error

    def _must_not_have_lost_its_ledger(self) -> None:
        """Raises StoreError where folders are kept, and nothing says what they are."""
        ledger, kept = self.path / LEDGER, self.path / "artifacts"
        if (ledger.exists() and ledger.stat().st_size) or not any(kept.iterdir()):
            return
        lost = "has no bytes" if ledger.exists() else "is gone"
        message = f"the ledger {ledger} {lost}, and {kept} holds what it knew of"
        raise StoreError(message, hint=f"mergetomix store rebuild {self.path}")

    @property
    def ledger(self) -> Ledger:
        """The ledger, for what looks a store through or clears it out."""
        return self._ledger

    def look_through(self) -> list[str]:
        """Returns what is damaged, one sentence each, by reading every byte of every artifact."""
        wrong = self._ledger.check()
        # what is cached by time stamps is what is in question
        self._ledger.execute("DELETE FROM files")
        found = [] if wrong is None else [f"the ledger: {wrong}"]
        for key in self._artifacts.every_key():
            if (why := self._artifacts.look_at(key)) is not None:
                found.append(f"artifact {key}: {why}")
        return found

    def on_damage(self, hear: Callable[[str], None]) -> None:
        """Has `hear` called with a sentence for every artifact that is found damaged.

        It hears of shared storage that has to be waited for, too.
        """
        self._artifacts.on_damage = hear
        if self.shared is not None:
            self.shared.mirror.hear = hear

    def close(self) -> None:
        """Lets go of the ledger and of shared storage; doing so again does nothing."""
        self._ledger.close()
        if self.shared is not None:
            self.shared.end()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def transaction(self) -> AbstractContextManager[None]:
        """Groups what is added inside into one commit, see `Ledger.transaction`."""
        return self._ledger.transaction()

    def finetune(self, key: str) -> Finetune | None:
        """Returns the fine-tune of a key; None if its row or its folder is missing, or damaged.

        A damaged folder is set aside, with all that was computed from it. Raises Fault where one is
        found by a store that is opened to read only.
        """
        columns = "mixture, path, num_examples, num_tokens, train_s"
        rows = self._ledger.execute(f"SELECT {columns} FROM finetunes WHERE key = ?", (key,))
        if not rows and self._missed():
            return self.finetune(key)
        for text, path, *cost in rows:
            folder = self.path / path  # an absolute path stays itself
            is_own = folder == self.artifact_path(key)
            if self._artifacts.is_sound(key) if is_own else folder.is_dir():
                datasets, weights = map(tuple, json.loads(text))
                mixture = Mixture(datasets, weights)
                return Finetune(mixture, key, str(folder), *cost)
        return None

    def _missed(self) -> bool:
        """Brings a store on shared storage up to date; returns whether there was anything new."""
        if self.shared is None or not self._read_only:
            return False
        before = self.shared.number
        self.shared.catch_up()
        if self.shared.number == before:
            return False
        self._ledger.close()
        self._open()
        return True

    def add_finetune(
        self, record: Finetune, settings: Mapping[str, Any], environment: Mapping[str, Any]
    ) -> None:
        """Notes a fine-tune whose folder is in place; one noted before under its key is replaced.

        `settings` and `environment` say how it came about, for whoever reads the ledger; what JSON
        does not know is kept as text.
        """
        folder = absolute(record.path)
        # A path inside the store goes without the store's own, so that the store can be moved.
        path = folder.relative_to(self.path) if folder.is_relative_to(self.path) else folder
        kind = "expert" if len(record.mixture) == 1 else "real"
        about = (record.key, kind, _mixture_text(record.mixture), str(path))
        cost = (record.num_examples, record.num_tokens, record.train_s)
        # Hours of training must not be lost to a Path among the notes.
        notes = [json.dumps(dict(each), default=str) for each in (settings, environment)]
        with self.transaction():
            self._ledger.insert("finetunes", *about, *cost, *notes, _now(), replace=True)
            self._artifacts.note_row(record.key)
        _kept.add(kind)

    def environment(self, key: str) -> dict[str, Any]:
        """Returns what was noted of how a fine-tune came about; empty if it is not there."""
        sql = "SELECT environment FROM finetunes WHERE key = ?"
        return {
            k: v
            for (text,) in self._ledger.execute(sql, (key,))
            for k, v in json.loads(text).items()
        }

    def add_model(
        self,
        key: str,
        kind: str,
        mixture: Mixture | None,
        merge_s: float = 0.0,
        sources: Sequence[str] = (),
    ) -> None:
        """Notes a model that is evaluated; the first to note a key stands.

        Args:
            key: the model's address.
            kind: one of MODEL_KINDS.
            mixture: None for the base.
            merge_s: seconds that merging it took.
            sources: the keys of the fine-tunes whose weights are in it.

        Raises:
            ValueError: the kind is unknown.
        """
        if kind not in MODEL_KINDS:
            kinds = ", ".join(MODEL_KINDS)
            raise ValueError(f"the kind of a model must be one of {kinds}, not {kind!r}")
        text = None if mixture is None else _mixture_text(mixture)
        _kept.add(kind)
        self._ledger.insert("models", key, kind, text, merge_s, _now())
        self._artifacts.note_sources(key, tuple(sources))

    def scores(self, model: str, target: str, part: str) -> Scores | None:
        """Returns what a target says of a model on one part of its examples, or None.

        The numbers are to the bit those that were added.
        """
        sql = """SELECT kind, example_values, example_weights FROM scores
            WHERE model = ? AND target = ? AND part = ?"""
        for kind, values, weights in self._ledger.execute(sql, (model, target, part)):
            return Scores(kind, _unpacked(values), _unpacked(weights))
        return None

    def add_scores(
        self, model: str, target: str, part: str, scores: Scores, seconds: float
    ) -> None:
        """Notes every example's score and the seconds they took; the first to note them stands."""
        examples = (scores.num_examples, _packed(scores.values), _packed(scores.weights))
        self._ledger.insert("scores", model, target, part, scores.kind, *examples, seconds, _now())

    def add_remark(self, model: str, target: str, part: str, text: str) -> None:
        """Notes what is odd about a model's answers beside their scores."""
        self._ledger.insert("remarks", model, target, part, text)

    def remark(self, model: str, target: str, part: str) -> str:
        """Returns what is odd about a model's answers; empty if nothing is known to be."""
        if not self._ledger.has_table("remarks"):  # a store of an earlier release, opened to read
            return ""
        sql = "SELECT text FROM remarks WHERE model = ? AND target = ? AND part = ?"
        found = self._ledger.execute(sql, (model, target, part))
        return str(found[0][0]) if found else ""

    def seconds(
        self, models: Iterable[str], targets: Iterable[str] | None = None, part: str | None = None
    ) -> tuple[float, float]:
        """Returns `(merge_s, evaluate_s)` summed over some models.

        None for `targets` or `part` means all of them.
        """
        # One JSON parameter each: a list of parameters is limited in length, and there are 2^N - 1
        # mixtures.
        sql = """SELECT
            (SELECT total(merge_s) FROM models WHERE key IN (SELECT value FROM json_each(:models))),
            (SELECT total(seconds) FROM scores
            WHERE model IN (SELECT value FROM json_each(:models))
            AND (:targets IS NULL OR target IN (SELECT value FROM json_each(:targets)))
            AND (:part IS NULL OR part = :part))"""
        names = None if targets is None else json.dumps(list(targets))
        chosen = {"models": json.dumps(sorted(set(models))), "targets": names, "part": part}
        ((merge_s, evaluate_s),) = self._ledger.execute(sql, chosen)
        return merge_s, evaluate_s

    def counts(self) -> dict[str, int]:
        """Returns `experts`, `reals`, `trials`, `example_scores` and `artifact_bytes`."""
        sql = """SELECT (SELECT count(*) FROM finetunes WHERE kind = 'expert'),
            (SELECT count(*) FROM finetunes WHERE kind = 'real'),
            (SELECT count(*) FROM models WHERE kind = 'proxy'),
            (SELECT coalesce(sum(num_examples), 0) FROM scores)"""
        names = ("experts", "reals", "trials", "example_scores")
        counted = dict(zip(names, self._ledger.execute(sql)[0], strict=True))
        return counted | {"artifact_bytes": size_bytes(self.path / "artifacts", MANIFEST)}

    def file_hash(self, path: Path) -> str:
        """Returns the SHA-256 of a file in hex, read once until its size or a time stamp changes.

        The time of the last change of the inode counts too: unpacking an archive can bring back an
        old mtime.
        """
        name, before = str(absolute(path)), stamp(path)
        sql = """SELECT sha256 FROM files
            WHERE path = ? AND num_bytes = ? AND mtime_ns = ? AND ctime_ns = ?"""
        for (known,) in self._ledger.execute(sql, (name, *before)):
            return str(known)
        found = sha256_of(path)
        settled = time.time_ns() - max(before[1:]) > _SETTLED_NS and stamp(path) == before
        if settled and not self._read_only:
            self._ledger.insert("files", name, *before, found, replace=True)
        return found

    def artifact_path(self, key: str) -> Path:
        """Returns where the artifact of a key lies, or would lie."""
        return self.path / "artifacts" / _checked(key)

    def sums(self, key: str) -> dict[str, str]:
        """Returns the SHA-256 of each file of an artifact, by its path there; empty without it."""
        return {name: each.sha256 for name, each in self._artifacts.sums(key).items()}

    def file(self, key: str, name: str) -> Path | None:
        """Returns a file of an artifact; None if it is not there, or the artifact is damaged."""
        path = self.artifact_path(key) / name
        return path if self._artifacts.is_sound(key) and path.is_file() else None

    @contextmanager
    def artifact(self, key: str, sources: Sequence[str] = ()) -> Iterator[Path]:
        """Yields an empty folder, which becomes the artifact on a clean exit; else it goes.

        Nothing is at `artifact_path(key)` until all of it is on the disk. An artifact there already
        stays if the ledger has its fine-tune, and is replaced if not: hold `lock(key)` from before
        this until after `add_finetune`.

        Args:
            key: of the artifact.
            sources: the keys of the fine-tunes whose weights it is computed from.

        Raises:
            StoreError: the disk is full.
        """
        final = self.artifact_path(key)
        try:
            with self._draft(key) as draft:
                yield draft
                manifest = Manifest.of(key, draft, tuple(sources))
                manifest.write(draft)
                settle(draft)
                self._place(draft, final, manifest)
        except Exception as error:
            if not is_no_space(error):
                raise
            raise no_space(final, self.free_bytes()) from error

    def scratch(self) -> AbstractContextManager[Path]:
        """Gives an empty folder for a while; after a kill it goes with the next process's start."""
        return self._draft("scratch")

    @contextmanager
    def _draft(self, key: str) -> Iterator[Path]:
        """Yields a new folder under tmp whose name says whose it is; it goes at the end."""
        self._must_be_writable()
        name = f"{key}.{os.getpid()}.{host_tag()}-{secrets.token_hex(4)}"
        folder = self.path / "tmp" / name
        writing.add(name)
        try:
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            writing.discard(name)

    def _place(self, draft: Path, final: Path, manifest: Manifest) -> None:
        # The ledger's write lock keeps two processes from placing the same artifact at once.
        if self.shared is not None:
            self.shared.put(final.name, draft)
        with self._draft(final.name) as old, self.transaction():
            if final.exists():
                if self._ledger.execute("SELECT 1 FROM finetunes WHERE key = ?", (final.name,)):
                    return
                final.rename(old)
            draft.rename(final)
            fsync(final.parent)
            self._artifacts.note(manifest)

    def is_busy(self, key: str) -> bool:
        """Returns whether another process holds a key just now."""
        self._must_be_writable()
        lock = self._lock_of(key)
        try:
            with lock.acquire(timeout=0):
                return False
        except Timeout:
            return True

    def _lock_of(self, key: str) -> FileLock:
        path = self.path / "locks" / f"{_checked(key)}.lock"
        return self._locks.setdefault(key, FileLock(path))

    @contextmanager
    def lock(self, key: str, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Holds a key against every other process; the system lets go of it if this process dies.

        `on_wait` is called once if another holds it. May be taken again inside itself.
        """
        self._must_be_writable()
        lock = self._lock_of(key)
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
        """Returns the bytes that can still be written in the store's place."""
        return shutil.disk_usage(self.path).free

    def begin_run(self, run_dir: str, plan: Mapping[str, Any]) -> int:
        """Notes that this process starts a run; returns its number for the next two methods."""
        started = _now()
        sql = """INSERT INTO runs (run_dir, pid, host, stage, done, total, started, updated, plan)
            VALUES (?, ?, ?, '', 0, 0, ?, ?, ?) RETURNING id"""
        values = (run_dir, os.getpid(), socket.gethostname(), started, started)
        noted = (*values, json.dumps(dict(plan), default=str))
        with FileLock(self.path / "locks" / ".open.lock"):  # waits for who removes things just now
            return int(self._ledger.execute(sql, noted)[0][0])

    def heartbeat(self, run: int, stage: str, done: int, total: int) -> None:
        """Notes how far a run is: at most every 0.5 s, except for a stage's start and end."""
        last_s, last_stage = self._beats.get(run, (0.0, None))
        if stage == last_stage and done != total and time.monotonic() - last_s < _BEAT_S:
            return
        sql = "UPDATE runs SET stage = ?, done = ?, total = ?, updated = ? WHERE id = ?"
        self._ledger.execute(sql, (stage, done, total, _now(), run), is_local=True)
        if self.shared is not None:
            self.shared.mirror.beat = {"run": run, "stage": stage, "done": done, "total": total}
        self._beats[run] = (time.monotonic(), stage)

    def note_workers(self, run: int, workers: Sequence[Mapping[str, Any]]) -> None:
        """Notes what a run's workers do, at most every 0.5 s but for the last of them.

        Each is a mapping with the keys of WORKER_KEYS.
        """
        last_s, _ = self._beats.get(-run, (0.0, None))
        if workers and time.monotonic() - last_s < _BEAT_S:
            return
        with self.transaction():
            self._ledger.execute("DELETE FROM workers WHERE run = ?", (run,))
            for each in workers:
                self._ledger.insert("workers", run, *(each[key] for key in WORKER_KEYS))
        self._beats[-run] = (time.monotonic(), None)

    def workers(self, run: int) -> list[dict[str, Any]]:
        """Returns what the workers of a run do, each with the keys of WORKER_KEYS, by their names.

        There are none if the run does the work itself, or is over.
        """
        if not self._ledger.has_table("workers"):
            return []
        sql = f"SELECT {', '.join(WORKER_KEYS)} FROM workers WHERE run = ? ORDER BY name"
        return [
            dict(zip(WORKER_KEYS, row, strict=True)) for row in self._ledger.execute(sql, (run,))
        ]

    def end_run(self, run: int, outcome: str) -> None:
        """Notes how a run ended: `finished`, `failed: ...` or `interrupted`."""
        sql = "UPDATE runs SET outcome = ?, updated = ? WHERE id = ?"
        self._ledger.execute(sql, (outcome, _now(), run))

    def runs(self) -> list[dict[str, Any]]:
        """Returns every run, newest last, by the names of the ledger's columns, and `alive`.

        A run is alive if it has no outcome and its process lives on this host; a run of another
        host is never alive.
        """
        import psutil

        names = "id, run_dir, pid, host, stage, done, total, started, updated, outcome, plan"
        rows = self._ledger.execute(f"SELECT {names} FROM runs ORDER BY id")
        found = [dict(zip(names.split(", "), row, strict=True)) for row in rows]
        for run in found:
            may_live = run["outcome"] is None and run["host"] == socket.gethostname()
            run["plan"] = json.loads(run["plan"])
            run["alive"] = may_live and psutil.pid_exists(run["pid"])
        writer = self.shared.mirror.holder() if self.shared is not None else {}
        for run in found:
            if run["id"] == writer.get("run") and run["outcome"] is None:
                run |= {key: writer[key] for key in ("stage", "done", "total")} | {"alive": True}
        return found

    def _must_be_writable(self) -> None:
        if self._read_only:
            message = f"{self.path} was opened to read only"
            raise StoreError(message, hint="open it with Store(path)")


def absolute(path: str | Path) -> Path:
    """Returns an absolute path; links stay, so that a store keeps the name that the user gave."""
    return Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100


def _checked(key: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", key, re.ASCII):
        raise ValueError(f"a key must be a plain file name, not {key!r}")
    return key


def _mixture_text(mixture: Mixture) -> str:
    # JSON keeps a float64: repr gives the shortest text that reads back to the same bits.
    return json.dumps([mixture.datasets, mixture.weights])


def _packed(values: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(values)}d", *values)


def _unpacked(packed: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(packed) // 8}d", packed)


def _now() -> str:
    # In UTC, and written such that the order of texts is that of times.
    return datetime.now(UTC).isoformat(timespec="microseconds")
