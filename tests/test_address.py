"""Addresses are the same for the same content, in every process, and different for different."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import mergetomix.store.address as address_module
import mergetomix.store.store as store_module
from mergetomix.store.address import SCHEMA_VERSION, digest
from mergetomix.store.store import Store, hash_files

PINNED = "f0d1ba73f447019d39ad78762b0f7cee"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as opened:
        yield opened


def set_mtime(path: Path, mtime_ns: int) -> None:
    os.utime(path, ns=(mtime_ns, mtime_ns))


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def rewritten(value: Any) -> Any:
    """The same value with every dict in another order and every list as a tuple."""
    if isinstance(value, dict):
        return {key: rewritten(each) for key, each in reversed(value.items())}
    return tuple(map(rewritten, value)) if isinstance(value, list) else value


@settings(derandomize=True, deadline=None)
@given(PLAIN)
@example({"a": 1, "b": [2, {"c": None, "d": 0.5}]})
def test_digest_does_not_depend_on_the_order_of_keys_nor_on_tuple_or_list(value):
    assert digest("x", value) == digest("x", rewritten(value))


def test_digest_tells_different_things_apart():
    things = [(1,), (1.0,), (True,), ("1",), (None,), (0,), (0.0,), (-0.0,), (False,), ("",), ()]
    things += [([],), ({},), ([1],), ("a", "b"), ("ab",), (["a", "b"],), ("b", "a"), ({"a": "b"},)]
    things += [(0.1,), (0.1 + 2**-56,), ("é",), ("e",)]
    assert len({digest(*thing) for thing in things}) == len(things)
    assert all(len(digest(*thing)) == 32 and int(digest(*thing), 16) >= 0 for thing in things)


def test_digest_is_the_same_in_every_process_and_changes_with_the_schema(monkeypatch):
    # Written down: a change here means that every store in the world must be computed again.
    assert digest("base", {"b": 1.5, "a": [True, None]}) == PINNED
    monkeypatch.setattr(address_module, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    assert digest("base", {"b": 1.5, "a": [True, None]}) != PINNED


@dataclass
class Plain:
    x: int = 1


@pytest.mark.parametrize(
    "bad", [Plain(), Path("a"), {1: "a"}, {"a": {None: 1}}, {1, 2}, b"a", [Plain()]]
)
def test_digest_refuses_what_is_not_plain(bad):
    with pytest.raises(TypeError):
        digest("a", bad)


@pytest.mark.parametrize("bad", [math.nan, math.inf, [{"a": -math.inf}]])
def test_digest_refuses_what_json_cannot_say(bad):
    with pytest.raises(ValueError):
        digest(bad)


def test_hash_files_knows_names_and_contents_but_not_order_nor_place(tmp_path):
    for folder, texts in {"m": "12", "n": "12", "o": "21"}.items():
        (tmp_path / folder).mkdir()
        for name, text in zip("ab", texts, strict=True):
            (tmp_path / folder / name).write_text(text)
    one, other, swapped = ([tmp_path / folder / "a", tmp_path / folder / "b"] for folder in "mno")
    assert hash_files(one) == hash_files(one[::-1]) == hash_files(other)
    assert len({hash_files(one), hash_files(swapped), hash_files(one[:1]), hash_files([])}) == 4


def test_hash_files_reads_an_unchanged_file_once(store, tmp_path, monkeypatch):
    reads, read = [], store_module.sha256_of
    monkeypatch.setattr(store_module, "sha256_of", lambda path: reads.append(path) or read(path))
    monkeypatch.setattr(store_module, "_SETTLED_NS", -(10**18))
    file = tmp_path / "model.bin"
    file.write_text("one")
    set_mtime(file, 10**18)
    first = hash_files([file], store)
    assert hash_files([file], store) == first == hash_files([file])
    assert len(reads) == 2, "once with the store, once without"
    with Store.peek(store.path) as peeked:
        assert hash_files([file], peeked) == first
    assert len(reads) == 2
    file.write_text("two")
    assert hash_files([file], store) == hash_files([file]) != first


def test_hash_files_sees_new_content_of_the_same_size_and_mtime(store, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "_SETTLED_NS", -(10**18))
    file = tmp_path / "model.bin"
    file.write_text("one")
    set_mtime(file, 10**18)
    first = hash_files([file], store)
    time.sleep(0.02)
    file.write_text("two")
    set_mtime(file, 10**18)
    assert hash_files([file], store) != first


def test_hash_files_does_not_trust_a_file_written_just_now(store, tmp_path):
    (tmp_path / "new").write_text("1")
    set_mtime(tmp_path / "new", time.time_ns() + 10**12)
    hash_files([tmp_path / "new"], store)
    assert store._ledger.execute("SELECT count(*) FROM files") == [(0,)]
