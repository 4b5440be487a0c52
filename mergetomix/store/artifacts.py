"""Kept folders that the store vouches for: what lies there is what was put there, or it goes.

The ledger holds the SHA-256 of every file. A folder is compared with it before it is handed out;
files that have kept their size and time stamps since they were last hashed are not read again. A
damaged folder is set aside under `damaged/`, and its row goes, with all that was computed from it.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from mergetomix.errors import Fault
from mergetomix.store.disk import fsync, stamp
from mergetomix.store.ledger import Ledger
from mergetomix.store.manifest import FileSum, Manifest, files_of

Stamps = tuple[tuple[str, tuple[int, int, int]], ...]
COLUMNS = (
    "key",
    "kind",
    "mixture",
    "path",
    "num_examples",
    "num_tokens",
    "train_s",
    "settings",
    "environment",
    "created",
)
"""Of a fine-tune's row in the ledger."""


class Artifacts:
    """The folders under `artifacts/` of a store, and what the ledger knows of their files.

    Args:
        hash_one: the SHA-256 of a file, read only where it may have changed.
        read_only: nothing is set aside; a damaged folder raises Fault.
    """

    def __init__(
        self, store: Path, ledger: Ledger, hash_one: Callable[[Path], str], read_only: bool
    ) -> None:
        self._store, self._ledger = store, ledger
        self._hash_one, self._read_only = hash_one, read_only
        self._sound: dict[str, Stamps] = {}
        self.on_damage: Callable[[str], None] = lambda _: None

    def folder(self, key: str) -> Path:
        """Returns where the folder of a key lies, or would lie."""
        return self._store / "artifacts" / key

    def note(self, manifest: Manifest) -> None:
        """Writes to the ledger what a folder holds; what was known of its key before goes."""
        key = manifest.key
        with self._ledger.transaction():
            for table in ("artifacts", "sources"):
                self._ledger.execute(f"DELETE FROM {table} WHERE key = ?", (key,))
            for name, each in manifest.files.items():
                self._ledger.insert("artifacts", key, name, each.num_bytes, each.sha256)
            self.note_sources(key, manifest.sources)

    def note_sources(self, key: str, sources: tuple[str, ...]) -> None:
        """Writes to the ledger from which fine-tunes a folder, or the model of a key, is made."""
        for source in sources:
            self._ledger.insert("sources", key, source)

    def note_row(self, key: str) -> None:
        """Writes a fine-tune's row of the ledger into its folder, if it has one in the store."""
        found = Manifest.read(self.folder(key))
        if found is not None:
            Manifest(key, found.files, found.sources, self._row(key)).write(self.folder(key))

    def is_sound(self, key: str) -> bool:
        """Returns whether the folder of a key is there, and holds what was put there.

        A folder that does not is set aside, and everything that was computed from it goes.
        """
        folder = self.folder(key)
        if not folder.is_dir():
            return False
        try:
            stamps = _stamps(folder)
        except OSError:
            stamps = ()  # it changes meanwhile
        if stamps and self._sound.get(key) == stamps:
            return True
        if (why := self.damage(key)) is None:
            self._sound[key] = stamps
            return True
        self._set_aside(key, why)
        return False

    def damage(self, key: str) -> str | None:
        """Returns what is wrong with a folder, None if nothing is.

        Of a folder of an earlier release nothing is known: what it holds now is noted.
        """
        folder, sums = self.folder(key), self.sums(key)
        if not sums:
            if not self._read_only:
                self._adopt(key)
            return None
        found = files_of(folder)
        for name in sorted({*found, *sums}):
            if name not in sums:
                return f"{name} was not there when it was written"
            if name not in found:
                return f"{name} is gone"
            try:
                num_bytes, sha256 = (folder / name).stat().st_size, self._hash_one(folder / name)
            except OSError as error:
                return f"{name} cannot be read: {error.strerror or error}"
            if num_bytes != sums[name].num_bytes:
                return f"{name} has {num_bytes:,} bytes and had {sums[name].num_bytes:,}"
            if sha256 != sums[name].sha256:
                return f"{name} holds other bytes than were written"
        return None

    def sums(self, key: str) -> dict[str, FileSum]:
        """Returns what the ledger knows of a folder's files, by their paths there."""
        if not self._ledger.has_table("artifacts"):
            return {}
        sql = "SELECT file, num_bytes, sha256 FROM artifacts WHERE key = ?"
        return {name: FileSum(*rest) for name, *rest in self._ledger.execute(sql, (key,))}

    def _adopt(self, key: str) -> None:
        """Notes what a folder of an earlier release holds now."""
        found = Manifest.of(key, self.folder(key))
        Manifest(key, found.files, found.sources, self._row(key)).write(self.folder(key))
        self.note(found)

    def _row(self, key: str) -> dict[str, object] | None:
        sql = f"SELECT {', '.join(COLUMNS)} FROM finetunes WHERE key = ?"
        for row in self._ledger.execute(sql, (key,)):
            return dict(zip(COLUMNS, row, strict=True))
        return None

    def _set_aside(self, key: str, why: str) -> None:
        row = self._row(key)
        what = f"artifact {key}"
        if row is not None:
            datasets, _ = json.loads(str(row["mixture"]))
            what = f"the fine-tune on {' + '.join(datasets)}"
        if self._read_only:
            hint = "run the same command again: it is made again"
            raise Fault(f"{what} in the store is damaged: {why}", hint=hint)
        aside = self._store / "damaged" / f"{key}.{secrets.token_hex(4)}"
        aside.parent.mkdir(exist_ok=True)
        with self._ledger.transaction():
            gone = [key, *self._made_from(key)]
            for each in gone:
                for table, column in (
                    ("finetunes", "key"),
                    ("models", "key"),
                    ("scores", "model"),
                    ("artifacts", "key"),
                    ("sources", "key"),
                ):
                    self._ledger.execute(f"DELETE FROM {table} WHERE {column} = ?", (each,))
            # what was computed from it first: a kill in between leaves none of it behind
            for each in gone[1:]:
                shutil.rmtree(self.folder(each), ignore_errors=True)
            self.folder(key).rename(aside)
            fsync(aside.parent)
        self._sound.pop(key, None)
        self.on_damage(
            f"{what} in the store is damaged: {why}; it is set aside in {aside} and made again, and"
            " so is all that was computed from it"
        )

    def _made_from(self, key: str) -> list[str]:
        """The keys of models and folders that were computed from a fine-tune's weights.

        Of what an earlier release computed that is not known: all of it that may be.
        """
        sql = """SELECT key FROM sources WHERE source = :key
            UNION SELECT key FROM models WHERE kind = 'proxy'
            AND key NOT IN (SELECT key FROM sources)"""
        found = {str(each) for (each,) in self._ledger.execute(sql, {"key": key})}
        known = {str(each) for (each,) in self._ledger.execute("SELECT key FROM finetunes")}
        for folder in (self._store / "artifacts").iterdir():
            if folder.name not in known and Manifest.read(folder) is None:
                found.add(folder.name)
        return sorted(found - {key})


def _stamps(folder: Path) -> Stamps:
    return tuple((name, stamp(folder / name)) for name in files_of(folder))
