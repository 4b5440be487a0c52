"""The ledger: one SQLite file that several processes read and write at once."""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mergetomix.errors import StoreError
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
        key TEXT PRIMARY KEY, kind TEXT NOT NULL, mixture TEXT, merge_s REAL NOT NULL,
        created TEXT NOT NULL)""",
    """CREATE TABLE scores (
        model TEXT NOT NULL, target TEXT NOT NULL, part TEXT NOT NULL, kind TEXT NOT NULL,
        num_examples INTEGER NOT NULL, example_values BLOB NOT NULL, example_weights BLOB NOT NULL,
        seconds REAL NOT NULL, created TEXT NOT NULL,
        PRIMARY KEY (model, target, part)) WITHOUT ROWID""",
    """CREATE TABLE files (
        path TEXT PRIMARY KEY, num_bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
        ctime_ns INTEGER NOT NULL, sha256 TEXT NOT NULL)""",
    """CREATE TABLE runs (
        id INTEGER PRIMARY KEY AUTOINCREMENT, run_dir TEXT NOT NULL, pid INTEGER NOT NULL,
        host TEXT NOT NULL, stage TEXT NOT NULL, done INTEGER NOT NULL, total INTEGER NOT NULL,
        started TEXT NOT NULL, updated TEXT NOT NULL, outcome TEXT, plan TEXT NOT NULL)""",
    f"INSERT INTO meta VALUES ({SCHEMA_VERSION})",
)
# Ledgers of earlier releases lack these, and get them when they are opened to write.
_LATER_TABLES = {
    "artifacts": """CREATE TABLE IF NOT EXISTS artifacts (
        key TEXT NOT NULL, file TEXT NOT NULL, num_bytes INTEGER NOT NULL, sha256 TEXT NOT NULL,
        PRIMARY KEY (key, file)) WITHOUT ROWID""",
    "sources": """CREATE TABLE IF NOT EXISTS sources (
        key TEXT NOT NULL, source TEXT NOT NULL, PRIMARY KEY (key, source)) WITHOUT ROWID""",
    "remarks": """CREATE TABLE IF NOT EXISTS remarks (
        model TEXT NOT NULL, target TEXT NOT NULL, part TEXT NOT NULL, text TEXT NOT NULL,
        PRIMARY KEY (model, target, part)) WITHOUT ROWID""",
    "workers": """CREATE TABLE IF NOT EXISTS workers (
        run INTEGER NOT NULL, name TEXT NOT NULL, place TEXT NOT NULL, doing TEXT NOT NULL,
        done INTEGER NOT NULL, total INTEGER NOT NULL, for_s REAL NOT NULL,
        num_done INTEGER NOT NULL, busy_s REAL NOT NULL, PRIMARY KEY (run, name)) WITHOUT ROWID""",
    "places": """CREATE TABLE IF NOT EXISTS places (
        key TEXT PRIMARY KEY, token TEXT NOT NULL) WITHOUT ROWID""",
    "mirrored": """CREATE TABLE IF NOT EXISTS mirrored (
        store TEXT NOT NULL, number INTEGER NOT NULL)""",
    "sources_by_source": "CREATE INDEX IF NOT EXISTS sources_by_source ON sources (source)",
}


_LOCAL = {"files", "workers", "mirrored"}
"""Tables that are of this machine alone."""
WRITES = re.compile(
    r"\s*(?:INSERT(?: OR \w+)? INTO|REPLACE INTO|DELETE FROM|UPDATE)\s+(\w+)", re.IGNORECASE
)


class Ledger:
    """A connection to the ledger at `path`, which is made if there is none.

    With `read_only`, no file is made and nothing is written. Making a ledger is not safe against
    another process that does the same: hold a lock meanwhile.

    Raises:
        StoreError: the file is no ledger or one of another schema, or cannot be read or written;
            the methods raise it too.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._depth = 0
        self._noted: list[tuple[str, Any]] = []
        self.journal: Callable[[list[tuple[str, Any]]], None] | None = None
        # The schema first: a ledger of another version must not be changed, not even its journal.
        address = _read_only_address(path) if read_only else f"{path.as_uri()}?mode=rwc"
        self._db = self._connected(address, empty_is_fine=not read_only)
        if not read_only:
            try:
                self._set_up()
            except sqlite3.DatabaseError as error:
                self._db.close()
                raise self._explained(error) from error

    def close(self) -> None:
        """Lets go of the file; doing so again does nothing."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Groups what is added inside into one commit.

        All of it is kept, or none if an exception leaves the block. Other writers wait meanwhile,
        so compute first. A transaction inside another belongs to the outer one.
        """
        level, num_noted = f"level_{self._depth}", len(self._noted)
        self.execute(f"SAVEPOINT {level}" if self._depth else "BEGIN IMMEDIATE")
        self._depth += 1
        try:
            yield
            if self._depth == 1 and self._noted and self.journal is not None:
                self.journal(self._noted)
                self._noted = []
            self.execute(f"RELEASE {level}" if self._depth > 1 else "COMMIT")
        except BaseException:
            # A full disk makes SQLite roll back by itself.
            del self._noted[num_noted:]
            if self._db.in_transaction:
                self.execute(f"ROLLBACK TO {level}" if self._depth > 1 else "ROLLBACK")
            raise
        finally:
            self._depth -= 1

    def execute(
        self,
        sql: str,
        parameters: Sequence[Any] | Mapping[str, Any] = (),
        *,
        is_local: bool = False,
    ) -> list[Any]:
        """Returns the rows of a statement. Raises `StoreError` for what the user can mend.

        Args:
            is_local: whether what it writes is of this machine alone, and not for the journal.
        """
        table = None if self.journal is None or is_local else WRITES.match(sql)
        if table is not None and table[1].lower() not in _LOCAL:
            if not self._depth:
                with self.transaction():
                    return self.execute(sql, parameters)
            self._noted.append((sql, parameters))
        try:
            return self._db.execute(sql, parameters).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._explained(error) from error

    def insert(self, table: str, *values: Any, replace: bool = False) -> None:
        """Adds a row; if there is one of the same key, it stays, unless `replace`."""
        how, marks = "REPLACE" if replace else "IGNORE", ", ".join("?" * len(values))
        self.execute(f"INSERT OR {how} INTO {table} VALUES ({marks})", values)

    def has_table(self, name: str) -> bool:
        """Returns whether there is a table or index of a name; earlier releases had fewer."""
        sql = "SELECT 1 FROM sqlite_master WHERE name = ?"
        return bool(self.execute(sql, (name,)))

    def check(self) -> str | None:
        """Returns what SQLite finds wrong with the file, None if nothing is."""
        found = [str(line) for (line,) in self.execute("PRAGMA integrity_check")]
        return None if found == ["ok"] else "; ".join(found[:3])

    def _explained(self, error: sqlite3.DatabaseError) -> Exception:
        """Returns what the user should hear; a mistake of this package stays a `RuntimeError`."""
        # Extended codes carry the primary one in the low byte.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return no_space(self.path, shutil.disk_usage(self.path.parent).free)
        if code == sqlite3.SQLITE_BUSY:
            return StoreError(
                f"the ledger {self.path} must come free within {_BUSY_S:.0f} s: {error}",
                hint="another process holds it; see which runs use this store",
            )
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return self._not_sqlite(error)
        if code in (
            sqlite3.SQLITE_READONLY,
            sqlite3.SQLITE_CANTOPEN,
            sqlite3.SQLITE_IOERR,
            sqlite3.SQLITE_PERM,
        ):
            hint = "check rights and disk"
            return StoreError(f"the ledger {self.path} cannot be used: {error}", hint=hint)
        return RuntimeError(f"the ledger {self.path} refused a statement: {error}")

    def _not_sqlite(self, why: object) -> StoreError:
        message = f"{self.path} must be a sound SQLite file: {why}"
        hint = f"mergetomix store rebuild {self.path.parent}, or name another store"
        return StoreError(message, hint=hint)

    def _connected(self, address: str, *, empty_is_fine: bool) -> sqlite3.Connection:
        """Returns a connection to a ledger of this version's schema; any other raises."""
        # SQLite takes a file shorter than its own header for an empty one, and would write over it.
        if _head(self.path)[:16] not in (b"", b"SQLite format 3\0"):
            raise self._not_sqlite("file is not a database")
        db = None
        try:
            db = sqlite3.connect(address, uri=True, timeout=_BUSY_S, isolation_level=None)
            # FULL, not NORMAL, which may lose the last commits when the power goes: a lost row is
            # an expert trained again. A commit comes once per trial, so the flush does not show.
            db.execute("PRAGMA synchronous=FULL")
            schema = _schema(db)
        except sqlite3.DatabaseError as error:
            if db is not None:
                db.close()
            raise self._explained(error) from error
        if schema == SCHEMA_VERSION or (schema == 0 and empty_is_fine):
            return db
        db.close()
        message, hint = f"{self.path.parent} holds no ledger of mergetomix", "name another store"
        if schema > 0:
            message = (
                f"the store {self.path.parent} has schema {schema}, and this version of mergetomix"
                f" uses schema {SCHEMA_VERSION}"
            )
        if schema > SCHEMA_VERSION:
            hint = "upgrade mergetomix or name another store"
        raise StoreError(message, hint=hint)

    def _set_up(self) -> None:
        db = self._db
        journal = "delete" if is_on_network(self.path.parent) else "wal"
        if db.execute("PRAGMA journal_mode").fetchone()[0] != journal:
            # If WAL is not to be had, SQLite stays with DELETE, which is the fallback.
            db.execute(f"PRAGMA journal_mode={journal}").fetchall()
        # Asked first, so that a store opens while another process is inside a transaction.
        if _schema(db) != SCHEMA_VERSION:
            db.execute("BEGIN IMMEDIATE")
            for statement in _TABLES:
                db.execute(statement)
            db.execute("COMMIT")
        for name, statement in _LATER_TABLES.items():
            if not self.has_table(name):
                db.execute(statement)


def _schema(db: sqlite3.Connection) -> int:
    """Returns a ledger's schema; 0 for an empty file, -1 for an SQLite file that is no ledger."""
    if "schema" not in {column[1] for column in db.execute("PRAGMA table_info(meta)")}:
        return -1 if db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() else 0
    (schema,) = db.execute("SELECT max(schema) FROM meta").fetchone()
    return -1 if schema is None else int(schema)


def _head(ledger: Path) -> bytes:
    if not ledger.exists():
        return b""
    with ledger.open("rb") as file:
        return file.read(20)


def _read_only_address(ledger: Path) -> str:
    """Returns how to open a ledger without leaving a file beside it.

    SQLite creates the side files of WAL even to read, and leaves them; a reader with another owner
    would so lock the writer out. Without a -wal file nobody writes, and it can be read as it lies.
    """
    uses_wal = _head(ledger)[18:20] == b"\x02\x02"
    alone = uses_wal and not ledger.with_name(f"{ledger.name}-wal").exists()
    return f"{ledger.as_uri()}?{'immutable=1' if alone else 'mode=ro'}"
