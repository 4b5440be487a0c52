"""The ledger: one SQLite file that several processes read and write at once, and how values are written in it."""

from __future__ import annotations

import json
import shutil
import sqlite3
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mergetomix.errors import StoreError
from mergetomix.records import Mixture
from mergetomix.store.address import SCHEMA_VERSION
from mergetomix.store.disk import is_on_network, no_space

_BUSY_S = 60.0
_TABLES = (
    "CREATE TABLE meta (schema INTEGER NOT NULL)",
    """CREATE TABLE finetunes (
        key TEXT PRIMARY KEY, kind TEXT NOT NULL, mixture TEXT NOT NULL, path TEXT NOT NULL,
        num_examples INTEGER NOT NULL, num_tokens INTEGER NOT NULL, train_s REAL NOT NULL,
        settings TEXT NOT NULL, environment TEXT NOT NULL, created TEXT NOT NULL)""",
    """CREATE TABLE models (
        key TEXT PRIMARY KEY, kind TEXT NOT NULL, mixture TEXT, merge_s REAL NOT NULL, created TEXT NOT NULL)""",
    """CREATE TABLE scores (
        model TEXT NOT NULL, target TEXT NOT NULL, part TEXT NOT NULL, kind TEXT NOT NULL,
        num_examples INTEGER NOT NULL, example_values BLOB NOT NULL, example_weights BLOB NOT NULL,
        seconds REAL NOT NULL, created TEXT NOT NULL, PRIMARY KEY (model, target, part)) WITHOUT ROWID""",
    """CREATE TABLE files (
        path TEXT PRIMARY KEY, num_bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL,
        sha256 TEXT NOT NULL)""",
    """CREATE TABLE runs (
        id INTEGER PRIMARY KEY AUTOINCREMENT, run_dir TEXT NOT NULL, pid INTEGER NOT NULL, host TEXT NOT NULL,
        stage TEXT NOT NULL, done INTEGER NOT NULL, total INTEGER NOT NULL, started TEXT NOT NULL,
        updated TEXT NOT NULL, outcome TEXT, plan TEXT NOT NULL)""",
    f"INSERT INTO meta VALUES ({SCHEMA_VERSION})",
)


class Ledger:
    """A connection to the ledger at `path`, made where there is none; `read_only` makes no file and writes nothing.

    Raises `StoreError` where that file is no ledger, or one of another schema; so do its methods where it cannot be
    read or written. Making one is not safe against another process doing the same: hold a lock meanwhile.
    """

    path: Path

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._depth = 0
        self._db = self._connect(_read_only_address(path)) if read_only else self._created()

    def close(self) -> None:
        """Lets go of the file; again does nothing."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Groups what is added inside into one commit: all of it is kept, or none where an exception leaves it.

        Other writers wait meanwhile, so compute first. One inside another belongs to the outer.
        """
        level = f"level_{self._depth}"
        self.execute(f"SAVEPOINT {level}" if self._depth else "BEGIN IMMEDIATE")
        self._depth += 1
        try:
            yield
            self.execute(f"RELEASE {level}" if self._depth > 1 else "COMMIT")
        except BaseException:
            # A full disk makes SQLite roll back by itself.
            if self._db.in_transaction:
                self.execute(f"ROLLBACK TO {level}" if self._depth > 1 else "ROLLBACK")
            raise
        finally:
            self._depth -= 1

    def execute(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[Any]:
        """The rows that a statement gives. Raises `StoreError` for what the user can mend."""
        try:
            return self._db.execute(sql, parameters).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._explained(error) from error

    def _explained(self, error: sqlite3.DatabaseError) -> Exception:
        """What the user should hear of an error from SQLite; a mistake of this module stays a `RuntimeError`."""
        # Extended codes carry the primary one in the low byte.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return no_space(self.path, shutil.disk_usage(self.path.parent).free)
        if code == sqlite3.SQLITE_BUSY:
            hint = "another process holds it; see which runs use this store"
            return StoreError(
                f"the ledger {self.path} must come free within {_BUSY_S:.0f} s: {error}", hint=hint
            )
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return self._not_sqlite(error)
        if code in (
            sqlite3.SQLITE_READONLY,
            sqlite3.SQLITE_CANTOPEN,
            sqlite3.SQLITE_IOERR,
            sqlite3.SQLITE_PERM,
        ):
            return StoreError(
                f"the ledger {self.path} cannot be used: {error}", hint="check rights and disk"
            )
        return RuntimeError(f"the ledger {self.path} refused a statement: {error}")

    def _not_sqlite(self, why: object) -> StoreError:
        return StoreError(
            f"{self.path} must be a sound SQLite file: {why}", hint="name another store"
        )

    def _created(self) -> sqlite3.Connection:
        # The schema first: a ledger of another version must not be changed, not even in its journal mode.
        db = self._connect(f"{self.path.as_uri()}?mode=rwc", empty_is_fine=True)
        try:
            _choose_journal(db, self.path.parent)
            _create_tables(db)
        except sqlite3.DatabaseError as error:
            db.close()
            raise self._explained(error) from error
        return db

    def _connect(self, address: str, *, empty_is_fine: bool = False) -> sqlite3.Connection:
        """A connection to a ledger of this version's schema; any other raises."""
        # SQLite takes a file shorter than its own header for an empty ledger, and would write over it.
        if _head(self.path)[:16] not in (b"", b"SQLite format 3\0"):
            raise self._not_sqlite("file is not a database")
        db = None
        try:
            db = _connected(address)
            schema = _schema(db)
        except sqlite3.DatabaseError as error:
            if db is not None:
                db.close()
            raise self._explained(error) from error
        if schema == SCHEMA_VERSION or (schema == 0 and empty_is_fine):
            return db
        db.close()
        raise _wrong_schema(self.path.parent, schema)


# --- the file ---------------------------------------------------------------------------------------------------------


def _connected(address: str) -> sqlite3.Connection:
    db = sqlite3.connect(address, uri=True, timeout=_BUSY_S, isolation_level=None)
    # FULL, not NORMAL: NORMAL may lose the last commits when the power goes, and a lost row is an expert trained again.
    # A commit comes once per trial, so the flush that FULL costs does not show. Without WAL, FULL is the safe one too.
    db.execute("PRAGMA synchronous=FULL")
    return db


def _choose_journal(db: sqlite3.Connection, path: Path) -> None:
    wanted = "delete" if is_on_network(path) else "wal"
    if db.execute("PRAGMA journal_mode").fetchone()[0] != wanted:
        # Where WAL is not to be had, SQLite stays with DELETE, which is the fallback.
        db.execute(f"PRAGMA journal_mode={wanted}").fetchall()


def _create_tables(db: sqlite3.Connection) -> None:
    # Asked first, so that a store opens while another process is inside a transaction.
    if _schema(db) == SCHEMA_VERSION:
        return
    db.execute("BEGIN IMMEDIATE")
    for statement in _TABLES:
        db.execute(statement)
    db.execute("COMMIT")


def _schema(db: sqlite3.Connection) -> int:
    """The schema of a ledger; 0 of an empty file, -1 of an SQLite file that is no ledger."""
    if "schema" not in {column[1] for column in db.execute("PRAGMA table_info(meta)")}:
        return -1 if db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() else 0
    row = db.execute("SELECT max(schema) FROM meta").fetchone()
    return -1 if row[0] is None else int(row[0])


def _wrong_schema(path: Path, schema: int) -> StoreError:
    if schema < 1:
        return StoreError(f"{path} holds no ledger of mergetomix", hint="name another store")
    newer = schema > SCHEMA_VERSION
    return StoreError(
        f"the store {path} has schema {schema}, and this version of mergetomix uses schema {SCHEMA_VERSION}",
        hint="upgrade mergetomix or name another store" if newer else "name another store",
    )


def _head(ledger: Path) -> bytes:
    if not ledger.exists():
        return b""
    with ledger.open("rb") as file:
        return file.read(20)


def _read_only_address(ledger: Path) -> str:
    """How to open a ledger without leaving a file beside it.

    SQLite creates the side files of WAL even to read, and leaves them; a reader with another owner would so lock the
    writer out. Without a -wal file nobody writes, and the ledger can be read as it lies.
    """
    uses_wal = _head(ledger)[18:20] == b"\x02\x02"
    alone = uses_wal and not ledger.with_name(f"{ledger.name}-wal").exists()
    return f"{ledger.as_uri()}?{'immutable=1' if alone else 'mode=ro'}"


# --- values -----------------------------------------------------------------------------------------------------------


def pack(values: Sequence[float]) -> bytes:
    """Numbers as the ledger keeps them: float64, little-endian."""
    return struct.pack(f"<{len(values)}d", *values)


def unpack(packed: bytes) -> tuple[float, ...]:
    """The numbers that were packed, to the bit."""
    return struct.unpack(f"<{len(packed) // 8}d", packed)


def mixture_text(mixture: Mixture) -> str:
    """A mixture as the ledger keeps it."""
    # JSON keeps a float64: repr gives the shortest text that reads back to the same bits.
    return json.dumps([mixture.datasets, mixture.weights])


def mixture_of(text: str) -> Mixture:
    """The mixture of a text of `mixture_text`."""
    datasets, weights = json.loads(text)
    return Mixture(tuple(datasets), tuple(weights))


def notes_text(notes: Mapping[str, Any]) -> str:
    """Notes as JSON; what JSON does not know is kept as text."""
    # Hours of training must not be lost to a Path among the notes.
    return json.dumps(dict(notes), default=str)


def now() -> str:
    """The time in UTC, such that the order of texts is that of times."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
