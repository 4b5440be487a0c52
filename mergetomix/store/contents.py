"""What a store keeps, and how large it is; looking changes nothing."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergetomix.records import Mixture
from mergetomix.store.disk import size_bytes
from mergetomix.store.leftovers import is_leftover
from mergetomix.store.manifest import Manifest
from mergetomix.store.store import LEDGER, Store, absolute

if TYPE_CHECKING:
    import pandas as pd

KINDS = {
    "statistic.safetensors": "statistics of experts (Fisher, Gram)",
    "gradient.json": "derivatives of targets",
    "known.json": "what checks knew at their start",
    "passes.json": "budgets in passes",
    "answers.json": "answers in reports",
    "passed.json": "rehearsals that passed",
}
"""What an artifact that is no fine-tune is, by the file that it holds."""
NO_ROW = "models without a row, left by a process that died"
OTHERS = "others"


@dataclass(frozen=True)
class KeptFinetune:
    """A fine-tune as the ledger has it.

    `num_bytes` is the size of its folder in the store: an expert that a recipe gives lies
    elsewhere, and takes next to nothing. `settings` are those that it was made with, its seed among
    them; `created` is a time in UTC.
    """

    key: str
    mixture: Mixture
    num_tokens: int
    num_bytes: int
    created: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class KeptArtifact:
    """An artifact that is no fine-tune of the ledger: what it is, and from what it was made.

    `sources` are the keys of fine-tunes, empty where there are none or they are not known.
    """

    key: str
    what: str
    num_bytes: int
    sources: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Aside:
    """A folder or file beside the artifacts: set aside as damaged, or temporary."""

    name: str
    num_bytes: int
    is_leftover: bool = False


@dataclass(frozen=True)
class Contents:
    """What a store keeps.

    `num_models` are the models of the ledger by kind (base, proxy, expert, real), `num_scores`
    their scores, one for each target and part, and `num_example_scores` those of single examples.
    `temporary` folders that are left over belong to processes that are dead. `total_bytes` is
    everything; of shared storage what lies there, and `cache_bytes` what this machine holds of it.
    """

    place: str
    finetunes: tuple[KeptFinetune, ...]
    artifacts: tuple[KeptArtifact, ...]
    num_models: Mapping[str, int]
    num_scores: int
    num_example_scores: int
    ledger_bytes: int
    damaged: tuple[Aside, ...]
    temporary: tuple[Aside, ...]
    total_bytes: int
    cache_bytes: int | None = None

    def by_kind(self) -> dict[str, tuple[int, int]]:
        """Returns the number and the bytes of the artifacts of each kind."""
        return by_kind(self.artifacts)

    def to_frame(self) -> pd.DataFrame:
        """Returns a pandas table with a line for each fine-tune."""
        import pandas as pd

        rows = [
            {
                "datasets": str(each.mixture),
                "seed": each.settings.get("seed"),
                "num_tokens": each.num_tokens,
                "num_bytes": each.num_bytes,
                "created": each.created,
                "key": each.key,
            }
            for each in self.finetunes
        ]
        return pd.DataFrame(rows)


def by_kind(artifacts: Iterable[KeptArtifact]) -> dict[str, tuple[int, int]]:
    """Returns the number and the bytes of some artifacts by what they are, in order."""
    nums, sizes = Counter[str](), Counter[str]()
    for each in artifacts:
        nums[each.what] += 1
        sizes[each.what] += each.num_bytes
    return {what: (nums[what], sizes[what]) for what in sorted(nums)}


def survey(path: str | Path) -> Contents:
    """Returns what a store keeps.

    Raises:
        StoreError: there is no store.
    """
    with Store.peek(path) as store:
        return contents_of(store, str(path) if store.shared is not None else str(absolute(path)))


def contents_of(store: Store, place: str) -> Contents:
    """Returns what a store that is open keeps; `place` is what it is called."""
    size_of = _sizes(store)
    finetunes = finetunes_of(store, size_of)
    artifacts = _artifacts(store, {each.key for each in finetunes}, size_of)
    models = store.ledger.execute("SELECT kind, count(*) FROM models GROUP BY kind ORDER BY kind")
    sql = "SELECT count(*), coalesce(sum(num_examples), 0) FROM scores"
    ((num_scores, num_example_scores),) = store.ledger.execute(sql)
    own = size_bytes(store.path)
    kept: list[KeptFinetune | KeptArtifact] = [*finetunes, *artifacts]
    shared = sum(each.num_bytes for each in kept)
    return Contents(
        place,
        finetunes,
        artifacts,
        {str(kind): int(num) for kind, num in models},
        num_scores,
        num_example_scores,
        sum(file.stat().st_size for file in store.path.glob(f"{LEDGER}*")),
        _beside(store.path / "damaged"),
        _beside(store.path / "tmp"),
        own if store.shared is None else shared,
        None if store.shared is None else own,
    )


def finetunes_of(store: Store, size_of: Callable[[str], int]) -> tuple[KeptFinetune, ...]:
    """Returns the fine-tunes of the ledger, the oldest first."""
    columns = "key, mixture, num_tokens, created, settings"
    rows = store.ledger.execute(f"SELECT {columns} FROM finetunes ORDER BY created, key")
    return tuple(
        KeptFinetune(key, mixture_of(text), num, size_of(key), created, json.loads(settings))
        for key, text, num, created, settings in rows
    )


def mixture_of(text: str) -> Mixture:
    """Returns a mixture as the ledger notes it."""
    datasets, weights = map(tuple, json.loads(text))
    return Mixture(datasets, weights)


def _artifacts(
    store: Store, finetunes: set[str], size_of: Callable[[str], int]
) -> tuple[KeptArtifact, ...]:
    """The artifacts that are no fine-tunes of the ledger: those that it knows, and other folders.

    A folder without rows is that of a process that died, or was never the store's; what it was made
    from it says itself.
    """
    files, sources = _files(store), _sources(store)
    folders = store.path / "artifacts"
    there = (
        {each.name for each in folders.iterdir() if each.is_dir()} if folders.is_dir() else set()
    )
    found = []
    for key in sorted((there | set(files)) - finetunes):
        made_from, names = sources.get(key, []), files.get(key, [])
        if key not in files:
            names = [each.name for each in (folders / key).iterdir()]
            manifest = Manifest.read(folders / key)
            made_from = list((manifest and manifest.sources) or ())
        found.append(KeptArtifact(key, _what(names), size_of(key), frozenset(made_from)))
    return tuple(found)


def _what(names: Iterable[str]) -> str:
    """Returns what an artifact that is no fine-tune is, by the names of its files."""
    known = [KINDS[name] for name in names if name in KINDS]
    if known:
        return known[0]
    return NO_ROW if any(name.endswith(".safetensors") for name in names) else OTHERS


def _files(store: Store) -> dict[str, list[str]]:
    """The names of the files of every artifact that the ledger knows."""
    found = defaultdict[str, list[str]](list)
    if store.ledger.has_table("artifacts"):
        for key, name in store.ledger.execute("SELECT key, file FROM artifacts"):
            found[key].append(name)
    return dict(found)


def _sources(store: Store) -> dict[str, list[str]]:
    """The fine-tunes that models and artifacts were made from, as far as the ledger knows."""
    found = defaultdict[str, list[str]](list)
    if store.ledger.has_table("sources"):
        for key, source in store.ledger.execute("SELECT key, source FROM sources"):
            found[key].append(source)
    return dict(found)


def _sizes(store: Store) -> Callable[[str], int]:
    """Returns how to tell the bytes of an artifact: on the disk, or on shared storage."""
    if store.shared is None:
        return lambda key: size_bytes(store.path / "artifacts" / key)
    sql = "SELECT key, sum(num_bytes) FROM artifacts GROUP BY key"
    known = dict(store.ledger.execute(sql)) if store.ledger.has_table("artifacts") else {}
    return lambda key: int(known.get(key, 0))


def _beside(folder: Path) -> tuple[Aside, ...]:
    """Returns what lies in a folder of a store that holds no artifacts."""
    if not folder.is_dir():
        return ()
    found = []
    for each in sorted(folder.iterdir()):
        num_bytes = size_bytes(each) if each.is_dir() else each.stat().st_size
        left = folder.name == "tmp" and each.is_dir() and is_leftover(each)
        found.append(Aside(each.name, num_bytes, left))
    return tuple(found)
