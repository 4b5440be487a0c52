"""The ledger opens what is its own, and refuses anything else without touching it."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import mergetomix.store.disk as disk_module
import mergetomix.store.ledger as ledger_module
from mergetomix.errors import StoreError
from mergetomix.store.address import SCHEMA_VERSION
from mergetomix.store.store import Store


def test_a_store_is_made_with_its_parents_and_survives_reopening(tmp_path):
    path = tmp_path / "a" / "b"
    with Store(path) as store:
        store.add_model("m", "proxy", None)
    with Store(str(path)) as store:
        assert store.counts()["trials"] == 1
        assert store._ledger.execute("PRAGMA journal_mode") == [("wal",)]
        assert store._ledger.execute("PRAGMA synchronous") == [(2,)]
        store.close()


@pytest.mark.parametrize(
    ("schema", "hint"),
    [(SCHEMA_VERSION + 1, "upgrade mergetomix or name another store"), (-7, "name another store")],
)
def test_a_ledger_of_another_schema_is_refused_and_left_alone(tmp_path, schema, hint):
    with Store(tmp_path) as store:
        store._ledger.execute("UPDATE meta SET schema = ?", (schema,))
    before = (tmp_path / "ledger.sqlite").read_bytes()
    for open_it in (Store, Store.peek):
        with pytest.raises(StoreError) as caught:
            open_it(tmp_path)
        assert caught.value.hint == hint
        if schema > 0:
            assert f"schema {schema}," in caught.value.message
            assert f"schema {SCHEMA_VERSION}" in caught.value.message
    assert (tmp_path / "ledger.sqlite").read_bytes() == before


def test_a_file_as_the_store_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="is a file"):
        Store(tmp_path / "file")
    with pytest.raises(StoreError, match="must be a folder"):
        Store(tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_place_where_nothing_can_be_written_is_refused(tmp_path, monkeypatch):
    with pytest.raises(StoreError, match="can be written"):
        Store("/proc/self/store")
    # The tests may run as root, to whom the rights on a folder mean nothing.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(StoreError, match="can be written"):
        Store(tmp_path / "store")


@pytest.mark.parametrize("content", [b"not a ledger at all" * 100, b"x"])
def test_a_ledger_that_is_not_sqlite_is_refused_and_left_alone(tmp_path, content):
    (tmp_path / "ledger.sqlite").write_bytes(content)
    for open_it in (Store, Store.peek):
        with pytest.raises(StoreError, match=r"ledger\.sqlite must be a sound SQLite file"):
            open_it(tmp_path)
    assert (tmp_path / "ledger.sqlite").read_bytes() == content


@pytest.mark.parametrize(
    "sql", ["CREATE TABLE notes (x)", "CREATE TABLE meta (x)", "CREATE TABLE meta (schema)"]
)
def test_an_sqlite_file_of_another_program_is_refused_and_left_alone(tmp_path, sql):
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as db:
        db.execute(sql)
    before = (tmp_path / "ledger.sqlite").read_bytes()
    with pytest.raises(StoreError, match="no ledger of mergetomix"):
        Store(tmp_path)
    assert (tmp_path / "ledger.sqlite").read_bytes() == before


def test_a_ledger_that_a_kill_left_empty_is_filled(tmp_path):
    (tmp_path / "ledger.sqlite").touch()
    with pytest.raises(StoreError):
        Store.peek(tmp_path)
    with Store(tmp_path) as store:
        assert store.counts()["trials"] == 0


def test_on_a_network_file_system_the_ledger_does_without_wal(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_module, "is_on_network", lambda path: True)
    with Store(tmp_path) as store:
        store.add_model("m", "proxy", None)
        assert store._ledger.execute("PRAGMA journal_mode") == [("delete",)]
        with Store(tmp_path) as other, Store.peek(tmp_path) as peeked:
            assert other.counts() == peeked.counts() == store.counts()
            assert store.counts()["trials"] == 1
    assert "ledger.sqlite-wal" not in os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("ext4", False), ("nfs4", True), ("fuse.sshfs", True), ("overlay", False), ("tmpfs", False)],
)
def test_the_file_system_is_that_of_the_innermost_mount(monkeypatch, kind, expected):
    other = "ext4" if expected else "nfs"
    table = [("/", other), ("/data/models", other), ("/data/model", other), ("/data/model", kind)]
    mounts = "".join(f"device {point} {name} rw 0 0\n" for point, name in table)
    monkeypatch.setattr(Path, "read_text", lambda self, **_: mounts)
    assert disk_module.is_on_network(Path("/data/model/store")) is expected
    assert disk_module.is_on_network(Path("/data/models/store")) is not expected


def test_a_busy_ledger_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_module, "_BUSY_S", 0.05)
    busy = pytest.raises(StoreError, match="must come free")
    with Store(tmp_path) as store, Store(tmp_path) as other, store.transaction(), busy:
        other.add_model("m", "proxy", None)
