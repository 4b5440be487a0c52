"""What a kept folder says of itself: the SHA-256 of each file, what it was made from, its row.

With it a damaged folder is found, and a ledger that is lost is written anew.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mergetomix.store.address import sha256_of
from mergetomix.store.disk import fsync

MANIFEST = "artifact.json"


@dataclass(frozen=True)
class FileSum:
    """What one file held when it was written."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a folder held when it was written.

    `files` are by their paths inside the folder, with slashes. `sources` are the keys of the
    fine-tunes whose weights it was computed from, None where that is not known. `row` is the
    ledger's row of a fine-tune, by its columns; None for what is none.
    """

    key: str
    files: Mapping[str, FileSum]
    sources: tuple[str, ...] | None = ()
    row: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, key: str, folder: Path, sources: tuple[str, ...] | None = ()) -> Manifest:
        """Reads every file of a folder. Raises OSError where one cannot be read."""
        found = {
            name: FileSum((folder / name).stat().st_size, sha256_of(folder / name))
            for name in files_of(folder)
        }
        return cls(key, found, sources)

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """Returns the manifest that lies in a folder; None where there is none, or no whole one."""
        try:
            found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            files = {name: FileSum(**each) for name, each in found["files"].items()}
            sources = None if found["sources"] is None else tuple(found["sources"])
            return cls(found["key"], files, sources, found["row"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, folder: Path) -> None:
        """Writes it into a folder, whole or not at all."""
        partial = folder / f".{MANIFEST}.{os.getpid()}.{secrets.token_hex(4)}.partial"
        partial.write_text(json.dumps(asdict(self), indent=1, sort_keys=True), encoding="utf-8")
        fsync(partial)
        partial.replace(folder / MANIFEST)
        fsync(folder)


def files_of(folder: Path) -> list[str]:
    """Returns the paths of a folder's files inside it, but for its manifest and hidden files.

    The system leaves hidden ones behind: a file browser's notes, or a file removed while it is read
    over a network.
    """
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(root).relative_to(folder)
        found += [(inside / name).as_posix() for name in names if not name.startswith(".")]
    return sorted(name for name in found if name != MANIFEST)
