"""A store looked through from end to end, and a ledger written anew from what the folders say."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from mergetomix.errors import StoreError
from mergetomix.store.artifacts import COLUMNS, Artifacts
from mergetomix.store.disk import fsync
from mergetomix.store.ledger import Ledger
from mergetomix.store.manifest import Manifest
from mergetomix.store.mirror import is_remote
from mergetomix.store.store import LEDGER, Store, absolute


@dataclass(frozen=True)
class Rebuilt:
    """What a ledger was written from.

    `finetunes` and `others` count the folders that are in it now; `damaged` says of each folder
    that was set aside why, `unknown` names those that do not say what they are.
    """

    finetunes: int
    others: int
    damaged: tuple[str, ...]
    unknown: tuple[str, ...]


def verify(path: str | Path) -> list[str]:
    """Returns what is damaged in a store, one sentence each; every byte is read.

    Nothing is set aside: the next run does that, and makes it again.

    Raises:
        StoreError: there is no store, or it cannot be written.
    """
    Store.peek(path).close()  # makes no store of a folder that is none
    with Store(path) as store:
        return store.look_through()


def rebuild(path: str | Path) -> Rebuilt:
    """Writes a store's ledger anew from what its folders say; the old one goes to `damaged/`.

    Fine-tunes are kept, and scores are not: they are in the ledger alone. No run may use the store
    meanwhile.

    Raises:
        StoreError: there are no kept folders, or the disk does not take it.
    """
    if is_remote(str(path)):
        message = f"the ledger of {path} is its journal, which is read anew by every machine"
        raise StoreError(message, hint="a folder's ledger can be written anew")
    path = absolute(path)
    if not (path / "artifacts").is_dir():
        message = f"there is no store at {path}"
        raise StoreError(message, hint="name the folder that has artifacts/ in it")
    aside = path / "damaged"
    try:
        (path / "locks").mkdir(exist_ok=True)
        with FileLock(path / "locks" / ".open.lock"):
            aside.mkdir(exist_ok=True)
            return _rebuilt(path, aside / secrets.token_hex(4))
    except OSError as error:
        message = f"the store {path} cannot be written: {error}"
        raise StoreError(message, hint="check its rights and the room on its disk") from error


def _rebuilt(path: Path, aside: Path) -> Rebuilt:
    ledger, draft = path / LEDGER, path / f".{LEDGER}.{aside.name}"
    new = Ledger(draft)
    artifacts = Artifacts(path, new, lambda _: "", read_only=True)
    finetunes, others, damaged, unknown = 0, 0, [], []
    for folder in sorted((path / "artifacts").iterdir()):
        manifest = Manifest.read(folder)
        if manifest is None or manifest.key != folder.name:
            unknown.append(folder.name)
            continue
        if (why := _wrong(folder, manifest)) is not None:
            damaged.append(f"{folder.name}: {why}")
            folder.rename(aside.with_name(f"{folder.name}.{aside.name}"))
            continue
        artifacts.note(manifest)
        if manifest.row is None:
            others += 1
        else:
            new.insert("finetunes", *(manifest.row[name] for name in COLUMNS))
            finetunes += 1
    new.execute("PRAGMA journal_mode=delete")  # all in one file, which is moved
    new.close()
    fsync(draft)
    for name in (LEDGER, f"{LEDGER}-wal", f"{LEDGER}-shm"):
        if (path / name).exists():
            (path / name).rename(aside.with_name(f"{aside.name}.{name}"))
    draft.rename(ledger)
    fsync(path)
    return Rebuilt(finetunes, others, tuple(damaged), tuple(unknown))


def _wrong(folder: Path, manifest: Manifest) -> str | None:
    """Returns what is wrong with a folder by what it says of itself, None if nothing is."""
    try:
        found = Manifest.of(manifest.key, folder).files
    except OSError as error:
        return f"it cannot be read: {error}"
    for name in sorted({*found, *manifest.files}):
        if found.get(name) != manifest.files.get(name):
            return f"{name} is not what was written"
    if manifest.row is not None and not _is_row(manifest.row):
        return "its row is not whole"
    return None


def _is_row(row: Mapping[str, Any]) -> bool:
    kinds = {"num_examples": int, "num_tokens": int, "train_s": int | float}
    return set(row) == set(COLUMNS) and all(
        isinstance(row[name], kinds.get(name, str)) for name in COLUMNS
    )
