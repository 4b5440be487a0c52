"""Evaluations of an open recipe: models scored on one part of the targets, each score kept.

Where mixtures race, a target's examples are scored in blocks, each kept by itself; they are put
together where all of them are there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from mergetomix.errors import Fault, TrainingError
from mergetomix.executors.work import ModelReference, ScoringResult, ScoringWork
from mergetomix.objectives.objective import Objective
from mergetomix.records import Finetune, Mixture, Part, Scores, Trial
from mergetomix.session.addresses import Addresses
from mergetomix.session.inputs import Scorer
from mergetomix.session.memory import enough_memory
from mergetomix.session.open_recipe import OpenRecipe
from mergetomix.session.proxies import Proxies
from mergetomix.store.store import Store
from mergetomix.targets.target import Remarks

ByTarget = dict[str, Scores]


class Evaluations:
    """The scores of one recipe's models: taken from the store, or computed now and kept there."""

    def __init__(self, opened: OpenRecipe, addresses: Addresses, proxies: Proxies) -> None:
        self._open, self._addresses, self._proxies = opened, addresses, proxies
        self._inputs, self._store = opened.inputs, opened.store

    # --- which model

    def proxy_reference(self, mixture: Mixture, exponent: float | None = None) -> ModelReference:
        """Returns the proxy of a mixture as a model to score; None is the recipe's exponent."""
        own = self._open.recipe.merge.scale.exponent
        exponent = own if exponent is None else exponent
        return ModelReference("proxy", self._addresses.proxy(mixture, exponent), mixture, exponent)

    def base_reference(self) -> ModelReference:
        """Returns the base as a model to score."""
        return ModelReference("base", self._addresses.base)

    # --- scores on every target

    def base(self, part: Part) -> ByTarget:
        """Returns the base's scores on every target."""
        return self._one(self.base_reference(), part)

    def proxy(self, mixture: Mixture, part: Part, exponent: float | None = None) -> ByTarget:
        """Returns the scores of a mixture's proxy on every target.

        Args:
            exponent: of the scale, where it is not the recipe's.
        """
        ((_, found),) = self.proxies([mixture], part, exponent)
        return found

    def proxies(
        self, mixtures: Iterable[Mixture], part: Part, exponent: float | None = None
    ) -> Iterator[tuple[Mixture, ByTarget]]:
        """Yields the scores of the proxies of some mixtures on every target, in any order."""

        def models() -> Iterator[ModelReference]:
            for mixture in mixtures:
                model = self.proxy_reference(mixture, exponent)
                if part == "select":
                    self._open.count("trials", model.key, not self.lacking(model.key, part))
                yield model

        for model, found in self.scores(models(), part):
            assert model.mixture is not None
            yield model.mixture, found

    def real(self, record: Finetune, part: Part) -> ByTarget:
        """Returns the scores of a real fine-tune, loaded from its folder as a user would."""
        missing = self.lacking(record.key, part)
        model = ModelReference("real", record.key, record.mixture, path=record.path)
        if not missing:
            return self._one(model, part)
        text = f"scoring the fine-tune on {record.mixture}"
        with self._open.listener.task("final", text, len(missing)) as advance:
            found = self._one(model, part)
            advance(len(missing))
        return found

    def _one(self, model: ModelReference, part: Part) -> ByTarget:
        ((_, found),) = self.scores([model], part)
        return found

    def scores(
        self, models: Iterable[ModelReference], part: Part
    ) -> Iterator[tuple[ModelReference, ByTarget]]:
        """Yields the scores of some models on every target, in any order; each is kept at once."""
        ready: list[ModelReference] = []
        scorers = self._inputs.targets(part)

        def lacking() -> Iterator[ScoringWork]:
            for model in models:
                pieces = tuple(
                    (name, piece.address)
                    for name in self.lacking(model.key, part)
                    for piece in scorers[name].blocks or (scorers[name],)
                    if self._store.scores(model.key, piece.address, part) is None
                )
                if not pieces:
                    ready.append(model)
                    continue
                if model.kind == "proxy" and model.mixture is not None:
                    self._proxies.measure(model.mixture.members)
                yield ScoringWork(model, part, pieces)

        for work in self.carry_out(lacking()):
            yield from (self._told(each, part) for each in _emptied(ready))
            yield self._told(work.model, part)
        yield from (self._told(each, part) for each in _emptied(ready))

    def _told(self, model: ModelReference, part: Part) -> tuple[ModelReference, ByTarget]:
        """A model and its scores, once it is said what is odd about its answers.

        Of proxies nothing is said: there are hundreds, and they are between the others.
        """
        for name, scorer in self._inputs.targets(part).items() if model.kind != "proxy" else ():
            for piece in scorer.blocks or (scorer,):
                remark = self._store.remark(model.key, piece.address, part)
                what = f"fine-tune on {model.mixture}" if model.kind == "real" else "base"
                if remark:
                    self._open.warn(f"targets.{name}: {remark} ({what})")
        return model, self.known(model.key, part)

    # --- what is there, what is not

    def known(self, key: str, part: Part) -> ByTarget:
        """Returns what the store holds of a model's scores, by target."""
        found = {}
        for name, scorer in self._inputs.targets(part).items():
            scores = kept_scores(self._store, key, scorer, part)
            if scores is not None:
                found[name] = scores
        return found

    def lacking(self, key: str, part: Part) -> list[str]:
        """Returns the targets on which the store has no score of a model."""
        known = self.known(key, part)
        return [name for name in self._open.recipe.targets if name not in known]

    # --- the work

    def carry_out(self, work: Iterable[ScoringWork]) -> Iterator[ScoringWork]:
        """Hands work out and keeps what comes back; yields the work that is done, in any order."""
        for done in self._open.executor.run(work):
            found, own = done.result(), done.work
            assert isinstance(found, ScoringResult)
            assert isinstance(own, ScoringWork)
            model = own.model
            with self._store.transaction():
                made_from = self._sources(model)
                self._store.add_model(
                    model.key, model.kind, model.mixture, found.merge_s, made_from
                )
                for address, scores, seconds in found.pieces:
                    self._store.add_scores(model.key, address, own.part, scores, seconds)
                for address, remark in found.remarks:
                    self._store.add_remark(model.key, address, own.part, remark)
            yield own

    def _sources(self, model: ModelReference) -> tuple[str, ...]:
        """The addresses of the experts that a proxy is merged from."""
        if model.kind != "proxy" or model.mixture is None:
            return ()
        return tuple(self._addresses.expert(name) for name in model.mixture.members)

    def take(self, work: ScoringWork) -> ScoringResult:
        """Carries out the work: scores a model on some targets or blocks of their examples."""
        model, merge_s = self._loaded(work.model)
        found, remarks = [], []
        for name, address in work.pieces:
            scorer = self._inputs.scorer(name, work.part, address)
            started = time.monotonic()
            scores = scored_within_memory(scorer, model, name)
            found.append((address, scores, time.monotonic() - started))
            check_finite(scores, work.model, name, scorer.places)
            if isinstance(scorer.target, Remarks) and scorer.target.remark:
                remarks.append((address, scorer.target.remark))
        return ScoringResult(merge_s, tuple(found), tuple(remarks))

    def _loaded(self, model: ModelReference) -> tuple[Any, float]:
        """A model, and the seconds that merging it took."""
        if model.kind == "real":
            return self._inputs.family.load_finetune(model.path), 0.0
        if model.kind == "base":
            return self._proxies.base(), 0.0
        assert model.mixture is not None
        self._proxies.read()
        started = time.monotonic()
        live = self._proxies.live(model.mixture, model.exponent)
        return live, time.monotonic() - started


def trial_of(
    mixture: Mixture, scores: Mapping[str, Scores], base: Mapping[str, Scores], objective: Objective
) -> Trial:
    """Returns the trial of a proxy from its scores and those of the base on the select part."""
    return Trial(mixture, scores, objective.of(scores, base))


def scored_within_memory(scorer: Scorer, model: Any, name: str) -> Scores:
    """Returns the scores of a model. Raises Fault where the device's memory is too small."""
    with enough_memory(f"scoring target {name}", "lower batch_tokens"):
        return scorer.score(model)


def check_finite(
    scores: Scores, model: ModelReference, target: str, places: Sequence[int] = ()
) -> None:
    """Raises Fault (TrainingError for a real fine-tune) where a score is not finite.

    Ranks of such numbers mean nothing.

    Args:
        places: of the examples among all, where these are some of them.
    """
    bad = next((i for i, value in enumerate(scores.values) if value - value != 0), None)
    if bad is None:
        return
    what = f"{model.kind} {model.mixture or model.kind}"
    place, value = places[bad] if places else bad, scores.values[bad]
    message = f"the {scores.kind} of example {place} of target {target} is {value} for {what}"
    hint = "lower train.learning_rate or merge.scale, or set base.dtype: float32"
    error: Callable[..., Exception] = TrainingError if model.kind == "real" else Fault
    raise error(message, hint=hint)


def _emptied(ready: list[ModelReference]) -> Iterator[ModelReference]:
    while ready:
        yield ready.pop(0)


# --- blocks of a target's examples


def kept_scores(store: Store, key: str, scorer: Scorer, part: Part) -> Scores | None:
    """Returns what the store holds of a model's scores on a target, whole or in blocks.

    None if any block is lacking.
    """
    whole = store.scores(key, scorer.address, part)
    if whole is not None or not scorer.blocks:
        return whole
    found = [store.scores(key, block.address, part) for block in scorer.blocks]
    known = [scores for scores in found if scores is not None]
    return put_together(scorer.blocks, known) if len(known) == len(found) else None


def put_together(blocks: Sequence[Scorer], scores: Sequence[Scores]) -> Scores:
    """Returns the scores of blocks as those of one target, in the order of the examples."""
    found = sorted(
        (place, value, weight)
        for block, each in zip(blocks, scores, strict=True)
        for place, value, weight in zip(block.places, each.values, each.weights, strict=True)
    )
    values, weights = (tuple(row[i] for row in found) for i in (1, 2))
    return Scores(scores[0].kind, values, weights)


def cut_block(block: Scorer, whole: Scores) -> Scores:
    """Returns a block's share of a target's scores."""
    kept = (tuple(each[place] for place in block.places) for each in (whole.values, whole.weights))
    return Scores(whole.kind, *kept)
