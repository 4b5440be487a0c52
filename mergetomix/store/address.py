"""Addresses by content: equal things have equal ones, in every process and on every machine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
"""Part of every address and of the ledger: if it changes, what stores hold is computed again."""


def digest(*parts: Any) -> str:
    """Returns the address of plain values: 32 hex digits of the SHA-256 of their canonical JSON.

    The order of a dict's keys does not matter, and a tuple is as good as a list; 1, 1.0 and True
    are three different things, and so are 0.0 and -0.0. `SCHEMA_VERSION` is always a part.

    >>> digest("base", {"a": 1, "b": (2, 3)}) == digest("base", {"b": [2, 3], "a": 1})
    True
    >>> digest(1) == digest(1.0)
    False

    Raises:
        TypeError: a part is no str, int, float, bool, None, list, tuple, or dict with str keys.
        ValueError: a number is NaN or infinite.
    """
    _check_plain(parts)
    text = json.dumps(
        [*parts, SCHEMA_VERSION], sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:32]


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file's content in hex. Raises `OSError` if it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_plain(value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            # JSON would turn 1 into "1", and two different dicts would share an address.
            if not isinstance(key, str):
                kind = type(key).__name__
                raise TypeError(f"the keys of a digest's dict must be str, not {kind}: {key!r}")
            _check_plain(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_plain(item)
    elif not isinstance(value, str | int | float | None):
        raise TypeError(f"a digest takes plain values, not {type(value).__name__}: {value!r}")
