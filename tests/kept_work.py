"""Work that a recipe's runs would keep in its store, put there without any training."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from recipes import recipe_values, write_recipe

import mergetomix as m2m
from mergetomix.executors.in_process import InProcess
from mergetomix.records import Finetune, Mixture, Scores
from mergetomix.session.session import Session, open_session
from mergetomix.store import contents
from mergetomix.store.store import Store

SCORES = Scores("loss", (1.0, 2.0), (1.0, 1.0))
DATASETS = ("a", "b", "c", "d", "e")


def write(folder: Path, name: str, datasets: str, **changes: Any) -> Path:
    """A recipe of some of the datasets, each a letter; all recipes of a folder share one store."""
    values = deepcopy(recipe_values(folder, DATASETS))
    kept = {key: each for key, each in values["datasets"].items() if key in datasets}
    return write_recipe(
        folder, values | {"datasets": kept, "run_dir": name} | changes, f"{name}.yaml"
    )


def keep(store: Store, key: str, mixture: Mixture, settings: dict[str, Any]) -> str:
    """Puts a fine-tune into a store, scored."""
    with store.artifact(key) as folder:
        (folder / "model.safetensors").write_text("weights of " + key)
    path = str(store.artifact_path(key))
    store.add_finetune(Finetune(mixture, key, path, 10, 100, 1.5), settings, {})
    store.add_model(key, "real", mixture)
    store.add_scores(key, "t", "select", SCORES, 0.1)
    store.add_remark(key, "t", "select", "odd")
    return key


def keep_proxy(session: Session, names: str) -> tuple[str, str]:
    """Puts a proxy's scores into a store, and derivatives at it; returns the keys of both."""
    mixture, store = session.spaces.union(names), session.store
    key = session.addresses.proxy(mixture)
    sources = [session.addresses.expert(name) for name in names]
    store.add_model(key, "proxy", mixture, 0.1, sources)
    store.add_scores(key, "t", "select", SCORES, 0.1)
    scorer = session.gradients.scorer("t")
    assert scorer is not None
    derivatives = session.addresses.derivatives(key, scorer.address)
    with store.artifact(derivatives, sources) as folder:
        (folder / "gradient.json").write_text("{}")
    return key, derivatives


class Filled:
    """What was put into the store for a recipe, by the letters of its datasets."""

    def __init__(self, path: Path, *others: tuple[str, int]) -> None:
        recipe = m2m.load_recipe(path)
        names = sorted(recipe.datasets)
        self.finetunes, self.statistics = {}, {}
        self.proxies, self.derivatives = {}, {}
        with open_session(recipe, executor=InProcess) as session:
            store, addresses = session.store, session.addresses
            store.add_model(addresses.base, "base", None)
            store.add_scores(addresses.base, "t", "select", SCORES, 0.1)
            singles = [(name, recipe.train.seed) for name in names]
            for letters, seed in (*singles, ("".join(names), recipe.train.seed), *others):
                mixture = session.spaces.union(letters)
                key = addresses.finetune(mixture, seed)
                settings = addresses.settings(seed)
                self.finetunes[letters, seed] = keep(store, key, mixture, settings)
            for letters in (names[0], "".join(names)):
                self.proxies[letters], self.derivatives[letters] = keep_proxy(session, letters)
            for name in names:
                key = addresses.statistic("fisher", name)
                self.statistics[name] = key
                with store.artifact(key, [addresses.expert(name)]) as folder:
                    (folder / "statistic.safetensors").write_text("a statistic")
            with store.artifact("note-" + path.stem) as folder:
                (folder / "known.json").write_text("[]")


def three(folder: Path) -> tuple[Path, Path, Path]:
    """Two recipes that share datasets, and a third one, whose work is in the same store."""
    return (
        write(folder, "first", "abc"),
        write(folder, "second", "bcd"),
        write(folder, "third", "ce"),
    )


def held(place: Path | str) -> tuple[set[str], set[str], set[str]]:
    """The keys of the fine-tunes, models with scores, and other artifacts of a store."""
    found = contents.survey(place)
    with Store.peek(place) as store:
        models = {key for (key,) in store.ledger.execute("SELECT key FROM models")}
        scored = {key for (key,) in store.ledger.execute("SELECT model FROM scores")}
        remarks = {key for (key,) in store.ledger.execute("SELECT model FROM remarks")}
    assert models == scored and remarks <= models
    return {each.key for each in found.finetunes}, models, {each.key for each in found.artifacts}


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(each.relative_to(folder)): each.read_bytes()
        for each in sorted(folder.rglob("*"))
        if each.is_file()
    }
