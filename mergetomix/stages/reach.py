"""What of a store some recipes reach: what a run of one of them would take from it.

Addresses are functions of the base, the data and the settings, so that opening a recipe tells which
are its own. What cannot be told is kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from typing import cast

from mergetomix.errors import ModelError, UserError
from mergetomix.executors.in_process import WithoutTraining
from mergetomix.models.family import Family
from mergetomix.models.pretrained import Pretrained
from mergetomix.progress import Listener
from mergetomix.recipe.recipe import Recipe
from mergetomix.records import Mixture
from mergetomix.session.addresses import Addresses
from mergetomix.session.inputs import Inputs, expert_files, read_inputs
from mergetomix.session.open_recipe import OpenRecipe
from mergetomix.session.session import Session
from mergetomix.store.collect import Unreached, last_run
from mergetomix.store.contents import NO_ROW, Contents, KeptArtifact, KeptFinetune, contents_of
from mergetomix.store.store import Store

MOST_TRIED = 10_000
"""Mixtures of a recipe's datasets whose addresses are compared with that of a fine-tune that has
other names; where there are more, it is kept."""

WEIGHTS = (".safetensors", ".bin", ".gguf")


@dataclass(frozen=True)
class Reached:
    """What recipes reach of a store, by address: bases, fine-tunes, derivatives of targets.

    The experts are among the fine-tunes, those too that the store lacks.
    """

    bases: frozenset[str] = frozenset()
    finetunes: frozenset[str] = frozenset()
    derivatives: frozenset[str] = frozenset()

    def __or__(self, other: Reached) -> Reached:
        """Returns what either reaches."""
        return Reached(
            self.bases | other.bases,
            self.finetunes | other.finetunes,
            self.derivatives | other.derivatives,
        )


@dataclass(frozen=True)
class Model:
    """A model of the ledger: its kind, and the fine-tunes that it is merged from, if known."""

    key: str
    kind: str
    sources: frozenset[str]


def unreached(recipes: Sequence[Recipe], listener: Listener) -> Unreached:
    """Returns what of a store none of some recipes reaches; changes nothing.

    Raises:
        UserError: there is no recipe, they name several stores, or one cannot be read.
        StoreError: there is no such store.
    """
    place = _place_of(recipes)
    with Store.peek(place) as store:
        kept, models = contents_of(store, place), models_of(store)
        last = last_run(store)
    reached = Reached()
    for recipe in recipes:
        with _looked_at(recipe, listener) as session:
            own = reached_by(session, kept.finetunes, models)
        if kept.finetunes and not any(each.key in own.finetunes for each in kept.finetunes):
            why = "its base, data or settings are not those of any run there"
            listener.warn(
                f"the recipe of {recipe.run_dir} reaches no fine-tune of the store: {why}"
            )
        reached |= own
    return _left(kept, models, reached, last)


def reached_by(
    session: Session, finetunes: Iterable[KeptFinetune], models: Iterable[Model]
) -> Reached:
    """Returns what a recipe reaches of some fine-tunes and models, on whatever hardware."""
    recipe, store = session.recipe, session.store
    each_way = [Addresses(recipe, inputs, store) for inputs in _on_each_hardware(session.inputs)]
    own = [OwnFinetunes(recipe, addresses) for addresses in each_way]
    found = {each.key for each in finetunes if any(some.holds(each) for some in own)}
    found |= {addresses.expert(name) for addresses in each_way for name in recipe.datasets}
    proxies = [each.key for each in models if each.sources and each.sources <= found]
    return Reached(
        frozenset(addresses.base for addresses in each_way),
        frozenset(found),
        frozenset(_derivatives(session, proxies)),
    )


def _on_each_hardware(inputs: Inputs) -> Iterator[Inputs]:
    """Yields what a recipe names as on this machine, and as on one with other number types.

    They are part of addresses, and a store that a machine with a GPU fills may be cleared out by
    one without.
    """
    yield inputs
    if isinstance(inputs.family, Pretrained):
        other = copy(inputs.family)
        other.assumed_bf16 = not other.bf16
        yield replace(inputs, family=cast(Family, other))


def models_of(store: Store) -> tuple[Model, ...]:
    """Returns the models of a store's ledger."""
    sources: dict[str, set[str]] = {}
    if store.ledger.has_table("sources"):  # earlier releases did not note them
        for key, source in store.ledger.execute("SELECT key, source FROM sources"):
            sources.setdefault(key, set()).add(source)
    rows = store.ledger.execute("SELECT key, kind FROM models ORDER BY key")
    return tuple(Model(key, kind, frozenset(sources.get(key, ()))) for key, kind in rows)


class OwnFinetunes:
    """Tells which fine-tunes of a store are of mixtures of a recipe's datasets, with any seed."""

    def __init__(self, recipe: Recipe, addresses: Addresses) -> None:
        self._recipe, self._addresses = recipe, addresses
        self._tried: dict[tuple[object, ...], set[str]] = {}

    def holds(self, kept: KeptFinetune) -> bool:
        """Returns whether the recipe reaches a fine-tune, True where that cannot be told.

        Its mixture is looked for by the names that it was made with, then, as a dataset may have
        been renamed since, among all mixtures of as many datasets.
        """
        seed, own = kept.settings.get("seed"), self._recipe.train.seed
        # a fine-tune of a release that did not note its seed
        seeds = [seed] if isinstance(seed, int) else [own, own + 1, *self._recipe.study.seeds]
        return any(self._holds(kept, each) for each in seeds)

    def _holds(self, kept: KeptFinetune, seed: int) -> bool:
        mixture, names = kept.mixture, sorted(self._recipe.datasets)
        if set(mixture.members) <= set(names) and kept.key in self._keys(mixture, seed):
            return True
        num = len(mixture.members)
        if num > len(names) or self._differs(kept, seed):
            return False
        is_drawn = self._recipe.search.draws_rows and num > 1
        count = math.perm if is_drawn else math.comb
        if count(len(names), num) > MOST_TRIED:
            return True
        weights = tuple(weight for weight in mixture.weights if weight > 0) if is_drawn else ()
        place = seed, num, weights
        if place not in self._tried:
            self._tried[place] = {
                key for each in _renamed(names, num, weights) for key in self._keys(each, seed)
            }
        return kept.key in self._tried[place]

    def _keys(self, mixture: Mixture, seed: int) -> set[str]:
        """The addresses that a fine-tune on a mixture has: by its weights, and as a union."""
        union = self._addresses.union(mixture.members, seed)
        return {union, self._addresses.finetune(mixture, seed)}

    def _differs(self, kept: KeptFinetune, seed: int) -> bool:
        """Whether a fine-tune was surely made with other settings, which are part of its address.

        Those with other keys are of another release, and tell nothing.
        """
        own = json.loads(json.dumps(self._addresses.settings(seed), default=str))
        return bool(own.keys() == kept.settings.keys() and own != kept.settings)


def _renamed(names: Sequence[str], num: int, weights: Sequence[float]) -> Iterator[Mixture]:
    """Yields the mixtures of `num` datasets: their unions, or all that have some weights."""
    if not weights:
        yield from (Mixture.union(each) for each in combinations(names, num))
        return
    for each in permutations(names, num):
        pairs = sorted(zip(each, weights, strict=True))
        yield Mixture(tuple(name for name, _ in pairs), tuple(weight for _, weight in pairs))


def _derivatives(session: Session, proxies: Collection[str]) -> Iterator[str]:
    """Yields the addresses of a recipe's derivatives at some proxies."""
    if not proxies or session.recipe.merge.method != "linear":
        return
    for name in session.recipe.targets:
        scorer = session.gradients.scorer(name)
        if scorer is not None:
            for proxy in proxies:
                yield session.addresses.derivatives(proxy, scorer.address)


def _left(kept: Contents, models: Sequence[Model], reached: Reached, last: int) -> Unreached:
    """Returns what is left of a store's contents without what is reached."""
    finetunes = tuple(each for each in kept.finetunes if each.key not in reached.finetunes)
    gone = {each.key for each in finetunes}
    going = tuple(each.key for each in models if _goes(each, gone, reached))
    return Unreached(
        kept.place,
        finetunes,
        tuple(each for each in kept.artifacts if _is_left(each, reached)),
        going,
        _num_scores(kept.place, going),
        kept.damaged,
        tuple(each for each in kept.temporary if each.is_leftover),
        last,
    )


def _goes(model: Model, gone: Collection[str], reached: Reached) -> bool:
    """Whether a model's scores go: the model, or something that it is merged from, goes."""
    if model.kind == "base":
        return model.key not in reached.bases
    return model.key in gone or not model.sources <= reached.finetunes


def _is_left(artifact: KeptArtifact, reached: Reached) -> bool:
    """Whether nothing reaches an artifact; False where it is not known what it was made from."""
    if artifact.key in reached.derivatives:
        return False
    if artifact.what == NO_ROW:  # a run replaces it, and nobody reads it
        return artifact.key not in reached.finetunes
    return not artifact.sources <= reached.finetunes


def _num_scores(place: str, models: Sequence[str]) -> int:
    sql = "SELECT count(*) FROM scores WHERE model IN (SELECT value FROM json_each(?))"
    with Store.peek(place) as store:
        return int(store.ledger.execute(sql, (json.dumps(list(models)),))[0][0])


@contextmanager
def _looked_at(recipe: Recipe, listener: Listener) -> Iterator[Session]:
    """Opens a recipe to work out addresses: its store is read, and no run is noted there."""
    with Store.peek(recipe.store) as store:
        opened = OpenRecipe(recipe, read_inputs(recipe, listener), store, listener)
        _check_weights(opened)
        session = Session(opened, WithoutTraining)
        try:
            yield session
        finally:
            opened.closing.close()


def _check_weights(opened: OpenRecipe) -> None:
    """Raises ModelError if a base or a given expert lacks its weights.

    They are part of every address: without them nobody knows what is the recipe's.
    """
    family, specs = opened.inputs.family, opened.recipe.datasets.items()
    files = {f"datasets.{n}.expert": expert_files(d.expert) for n, d in specs if d.expert}
    if base := family.files():  # of a hub id there are none, and its commit counts
        files["base.path"] = base
    for where, found in files.items():
        if not any(file.suffix in WEIGHTS for file in found):
            raise ModelError(where, "no file of weights is there", hint="nothing was removed")


def _place_of(recipes: Sequence[Recipe]) -> str:
    """Returns the store that all recipes name. Raises UserError for several."""
    places = sorted({recipe.store.rstrip("/") for recipe in recipes})
    if not places:
        raise UserError("name at least one recipe, whose work is to stay")
    if len(places) > 1:
        message = f"the recipes must name one store, and they name {', '.join(places)}"
        raise UserError(message, hint="do it for the recipes of each store alone")
    return places[0]
