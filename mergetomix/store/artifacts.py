"""Kept folders that the store vouches for: what lies there is what was put there, or it goes.

The ledger holds the SHA-256 of every file. A folder is compared with it before it is handed out;
files that have kept their size and time stamps since they were last hashed are not read again. A
damaged folder is set aside under `damaged/`, and its row goes, with all that was computed from it.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from stat import S_ISREG

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
        self.fetch: Callable[[str], None] | None = None
        """Brings a folder from shared storage, if the store has some."""

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
            self.note_sources(key, manifest.sources or ())

    def note_sources(self, key: str, sources: tuple[str, ...]) -> None:
        """Writes to the ledger from which fine-tunes a folder, or the model of a key, is made."""
        for source in sources:
            self._ledger.insert("sources", key, source)

    def note_row(self, key: str) -> None:
        """Writes a fine-tune's row of the ledger into its folder, if it has one in the store."""
        found = Manifest.read(self.folder(key))
        if found is not None:
            Manifest(key, found.files, found.sources, self._row(key)).write(self.folder(key))

    def every_key(self) -> list[str]:
        """Returns the keys of all folders that are there or should be."""
        there = {each.name for each in (self._store / "artifacts").iterdir() if each.is_dir()}
        known: set[str] = set()
        if self._ledger.has_table("artifacts"):
            known = {str(key) for (key,) in self._ledger.execute("SELECT key FROM artifacts")}
        return sorted(there | known)

    def is_sound(self, key: str) -> bool:
        """Returns whether the folder of a key is there, and holds what was put there.

        A folder that does not is set aside, and everything that was computed from it goes.
        """
        folder = self.folder(key)
        self._bring(key)
        try:
            stamps = _stamps(folder) if folder.is_dir() else ()
        except OSError:
            stamps = ()  # it changes meanwhile
        if stamps and self._sound.get(key) == stamps:
            return True
        if not folder.is_dir() and not self.sums(key):
            return False
        if self.damage(key) is not None:
            if self.fetch is not None:
                shutil.rmtree(folder, ignore_errors=True)
                self.fetch(key)
            if self.damage(key) is not None and self._set_aside(key):
                return False
        self._sound[key] = stamps
        return True

    def _bring(self, key: str) -> None:
        """Brings a folder that this machine lacks from shared storage, if the store has some."""
        if self.fetch is not None and not self.folder(key).is_dir() and self.sums(key):
            self.fetch(key)

    def look_at(self, key: str) -> str | None:
        """Returns what `damage` does, of a folder too that lies on shared storage alone."""
        self._bring(key)
        return self.damage(key)

    def damage(self, key: str) -> str | None:
        """Returns what is wrong with a folder, None if nothing is.

        Of a folder of an earlier release nothing is known: what it holds now is noted.
        """
        folder, sums = self.folder(key), self.sums(key)
        if not sums:
            return self._adopt(key)
        if not folder.is_dir():
            return "its folder is gone"
        return _difference(folder, sums, self._hash_one)

    def _adopt(self, key: str) -> str | None:
        """Notes what a folder holds that the ledger does not know; returns what is wrong with it.

        A process that was killed between the folder and its row left a manifest; an earlier release
        left none.
        """
        folder = self.folder(key)
        manifest = Manifest.read(folder)
        if manifest is not None and manifest.key == key:
            if (why := _difference(folder, manifest.files, self._hash_one)) is not None:
                return why
        elif self._read_only:
            return None
        else:
            found = Manifest.of(key, folder, None)
            manifest = Manifest(key, found.files, None, self._row(key))
            manifest.write(folder)
        if not self._read_only:
            self.note(manifest)
        return None

    def sums(self, key: str) -> dict[str, FileSum]:
        """Returns what the ledger knows of a folder's files, by their paths there."""
        if not self._ledger.has_table("artifacts"):
            return {}
        sql = "SELECT file, num_bytes, sha256 FROM artifacts WHERE key = ?"
        return {name: FileSum(*rest) for name, *rest in self._ledger.execute(sql, (key,))}

    def _row(self, key: str) -> dict[str, object] | None:
        sql = f"SELECT {', '.join(COLUMNS)} FROM finetunes WHERE key = ?"
        for row in self._ledger.execute(sql, (key,)):
            return dict(zip(COLUMNS, row, strict=True))
        return None

    def _set_aside(self, key: str) -> bool:
        """Sets a damaged folder aside, and drops its row and all that was computed from it.

        Returns whether that was done: another process may have done it, and made the folder again,
        since the damage was seen. Raises Fault in a store that is opened to read only.
        """
        what = self._called(key)
        if self._read_only:
            hint = "run the same command again: it is made again"
            raise Fault(f"{what} in the store is damaged: {self.damage(key)}", hint=hint)
        aside = self._store / "damaged" / f"{key}.{secrets.token_hex(4)}"
        aside.parent.mkdir(exist_ok=True)
        self._sound.pop(key, None)
        with self._ledger.transaction():
            if not self.sums(key) and not self.folder(key).is_dir():
                return True
            if (why := self.damage(key)) is None:
                return False
            # what was computed from it first, and the folder last: a kill in between leaves the
            # rows, and the next process begins again
            made_from = self._made_from(key)
            for each in made_from:
                shutil.rmtree(self.folder(each), ignore_errors=True)
            self._forget([key, *made_from])
            if self.folder(key).exists():
                self.folder(key).rename(aside)
                fsync(aside.parent)
        place = f" in {aside}" if aside.exists() else ""
        self.on_damage(
            f"{what} in the store is damaged: {why}; it is set aside{place} and made again, and"
            " so is all that was computed from it"
        )
        return True

    def _called(self, key: str) -> str:
        """Returns what a user would call a folder."""
        row = self._row(key)
        if row is None:
            return f"artifact {key}"
        datasets, _ = json.loads(str(row["mixture"]))
        return f"the fine-tune on {' + '.join(datasets)}"

    def _forget(self, keys: list[str]) -> None:
        """Deletes every row of some keys."""
        columns = {"finetunes": "key", "models": "key", "artifacts": "key", "sources": "key"}
        for key in keys:
            for table, column in {**columns, "scores": "model"}.items():
                self._ledger.execute(f"DELETE FROM {table} WHERE {column} = ?", (key,))

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
            manifest = Manifest.read(folder)
            if folder.name not in known and (manifest is None or manifest.sources is None):
                found.add(folder.name)
        return sorted(found - {key})


def _difference(
    folder: Path, sums: Mapping[str, FileSum], hash_one: Callable[[Path], str]
) -> str | None:
    """Returns how a folder's files differ from what was noted of them, None if they do not."""
    found = files_of(folder)
    for name in sorted({*found, *sums}):
        if name not in sums:
            return f"{name} was not there when it was written"
        if name not in found:
            return f"{name} is gone"
        file, wanted = folder / name, sums[name]
        try:
            stat = file.stat()
            if not S_ISREG(stat.st_mode):
                return f"{name} is no file"
            if stat.st_size != wanted.num_bytes:
                return f"{name} has {stat.st_size:,} bytes and had {wanted.num_bytes:,}"
            if hash_one(file) != wanted.sha256:
                return f"{name} holds other bytes than were written"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
    return None


def _stamps(folder: Path) -> Stamps:
    return tuple((name, stamp(folder / name)) for name in files_of(folder))
