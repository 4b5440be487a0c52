"""Addresses by content: two things have one address where they are the same, in every process and on every machine."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
"""Part of every address and of the ledger: a change means that what stores hold must be computed again."""


def digest(*parts: Any) -> str:
    """The address of a thing: 32 hex digits of the SHA-256 of its parts and of `SCHEMA_VERSION`, as canonical JSON.

    The order of a dict's keys does not matter, and a tuple is as good as a list; 1, 1.0 and True are three different
    things, and so are 0.0 and -0.0. Raises `TypeError` for anything but str, int, float, bool, None, list, tuple and
    dict with str keys, and `ValueError` for NaN and infinities.
    """
    _check_plain(parts)
    text = json.dumps(
        [*parts, SCHEMA_VERSION], sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:32]


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content in hex. Raises `OSError` where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_plain(value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            # JSON would turn 1 into "1", and two different dicts would share an address.
            if not isinstance(key, str):
                raise TypeError(
                    f"the keys of a digest's dict must be str, not {type(key).__name__}: {key!r}"
                )
            _check_plain(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_plain(item)
    elif not isinstance(value, str | int | float | None):
        raise TypeError(f"a digest takes plain values, not {type(value).__name__}: {value!r}")
