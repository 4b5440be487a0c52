"""Evaluations of an open recipe: models scored on one part of the targets, each score kept.

Where mixtures race, a target's examples are scored in blocks, each kept by itself; they are put
together where all of them are there.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

from mergetomix import stretches
from mergetomix.errors import Fault, TrainingError
from mergetomix.executors.work import (
    ModelReference,
    Piece,
    ScoredPiece,
    ScoringResult,
    ScoringWork,
)
from mergetomix.objectives.objective import Objective
from mergetomix.records import Finetune, Mixture, Part, Scores, Trial
from mergetomix.session.addresses import Addresses
from mergetomix.session.inputs import Scorer
from mergetomix.session.memory import enough_memory
from mergetomix.session.open_recipe import OpenRecipe
from mergetomix.session.proxies import Proxies
from mergetomix.store.store import Store
from mergetomix.stretches import WHOLE
from mergetomix.targets.target import Remarks, Spreads

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
        """Returns the scores of a real fine-tune, loaded from its folder as a user would.

        Raises TrainingError if one is not finite.
        """
        found = self._reals([record], part)[record.key]
        if isinstance(found, TrainingError):
            raise found
        return found

    def scored(
        self, fits: Mapping[Mixture, Finetune | TrainingError], part: Part
    ) -> dict[Mixture, Finetune | TrainingError]:
        """Scores real fine-tunes; returns an error in the place of those whose scores are lost.

        All workers share the work.
        """
        made = [each for each in fits.values() if isinstance(each, Finetune)]
        found = self._reals(made, part)
        lost = {key: each for key, each in found.items() if isinstance(each, TrainingError)}
        return {
            mixture: lost.get(fit.key, fit) if isinstance(fit, Finetune) else fit
            for mixture, fit in fits.items()
        }

    def _reals(
        self, records: Iterable[Finetune], part: Part
    ) -> dict[str, ByTarget | TrainingError]:
        """The scores of some real fine-tunes, or why there are none, by their addresses."""
        models = {
            each.key: ModelReference("real", each.key, each.mixture, path=each.path)
            for each in records
        }
        missing = {key: len(self.lacking(key, part)) for key in models}
        mixtures = [str(models[key].mixture) for key, num in missing.items() if num]
        if not mixtures:
            return {model.key: found for model, found in self._scores(models.values(), part)}
        more = f" and {len(mixtures) - 1} more" if len(mixtures) > 1 else ""
        text = f"scoring the fine-tune on {mixtures[0]}{more}"
        scored: dict[str, ByTarget | TrainingError] = {}
        with self._open.listener.task("final", text, sum(missing.values())) as advance:
            for model, found in self._scores(models.values(), part):
                scored[model.key] = found
                advance(missing[model.key])
        return scored

    def _one(self, model: ModelReference, part: Part) -> ByTarget:
        ((_, found),) = self.scores([model], part)
        return found

    def scores(
        self, models: Iterable[ModelReference], part: Part
    ) -> Iterator[tuple[ModelReference, ByTarget]]:
        """Yields the scores of some models on every target, in any order; each is kept at once.

        Where there are more workers than models left, several share the examples of one.
        """
        for model, found in self._scores(models, part):
            if isinstance(found, TrainingError):
                raise found
            yield model, found

    def _scores(
        self, models: Iterable[ModelReference], part: Part
    ) -> Iterator[tuple[ModelReference, ByTarget | TrainingError]]:
        """Yields what `scores` does, or why the scores of a real fine-tune are lost."""
        ready: list[ModelReference] = []
        under_way: dict[str, list[ModelReference]] = {}

        def lacking() -> Iterator[tuple[ModelReference, list[Piece]]]:
            for model in models:
                if model.key in under_way:  # of datasets of the same content, merges are the same
                    under_way[model.key].append(model)
                    continue
                pieces = self._lacking_pieces(model, part)
                if pieces:
                    under_way[model.key] = [model]
                    yield model, pieces
                else:
                    ready.append(model)

        def lots() -> Iterator[list[ScoringWork]]:
            for (model, pieces), num in rationed(lacking(), self._open.executor.num_workers):
                if model.kind == "proxy" and model.mixture is not None:
                    self._proxies.measure(model.mixture.members)
                yield self._cut(model, part, pieces, num)

        for key, error in self._carry_out(lots()):
            yield from (self._told(each, part) for each in _emptied(ready))
            for model in under_way.pop(key):
                yield self._told(model, part) if error is None else (model, error)
        yield from (self._told(each, part) for each in _emptied(ready))

    def _lacking_pieces(self, model: ModelReference, part: Part) -> list[Piece]:
        """What of the targets the store has no score of a model on."""
        scorers = self._inputs.targets(part)
        return [
            Piece(name, piece.address)
            for name in self.lacking(model.key, part)
            for piece in scorers[name].blocks or (scorers[name],)
            if self._store.scores(model.key, piece.address, part) is None
        ]

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

    def score(self, model: ModelReference, part: Part, pieces: Sequence[Piece]) -> None:
        """Scores a model on some pieces and keeps the scores; all workers share them."""
        lots = [self._cut(model, part, pieces, self._open.executor.num_workers)]
        for _, error in self._carry_out(lots):
            if error is not None:
                raise error

    def _cut(
        self, model: ModelReference, part: Part, pieces: Sequence[Piece], num: int
    ) -> list[ScoringWork]:
        """Cuts the work on a model into at most `num` lots of about as many tokens."""
        scorers = [self._inputs.scorer(each.target, part, each.address) for each in pieces]
        targets = [each.target for each in scorers]
        costs = [each.num_tokens if isinstance(each, Spreads) else 0 for each in targets]
        lots = stretches.cut(costs, num) if num > 1 else [[(i, WHOLE) for i in range(len(costs))]]
        return [
            ScoringWork(model, part, tuple(replace(pieces[i], stretch=each) for i, each in lot))
            for lot in lots
        ]

    def _carry_out(
        self, lots: Iterable[Sequence[ScoringWork]]
    ) -> Iterator[tuple[str, TrainingError | None]]:
        """Hands out the work on some models and keeps what comes back.

        Yields the addresses of models that are done, in any order, and why there are no scores of a
        real fine-tune, if that is so.
        """
        waiting: dict[str, list[ScoringResult]] = {}
        nums: dict[str, int] = {}
        errors: dict[str, TrainingError] = {}

        def handed_out() -> Iterator[ScoringWork]:
            for lot in lots:
                nums[lot[0].key] = len(lot)
                yield from lot

        for done in self._open.executor.run(handed_out()):
            own = done.work
            assert isinstance(own, ScoringWork)
            results = waiting.setdefault(own.key, [])
            if done.failure is not None and isinstance(done.failure.error, TrainingError):
                errors[own.key] = done.failure.error
                results.append(ScoringResult(0.0, ()))
            else:
                found = done.result()
                assert isinstance(found, ScoringResult)
                results.append(found)
            if len(results) < nums[own.key]:
                continue
            del waiting[own.key]
            if own.key not in errors:
                try:
                    self._keep(own.model, own.part, results)
                except TrainingError as error:
                    errors[own.key] = error
            yield own.key, errors.get(own.key)

    def _keep(self, model: ModelReference, part: Part, results: Sequence[ScoringResult]) -> None:
        """Keeps a model's scores, put together where several workers shared the examples."""
        pieces = [each for result in results for each in result.pieces]
        several: dict[tuple[str, str], list[ScoredPiece]] = {}
        for each in pieces:
            several.setdefault((each.piece.target, each.piece.address), []).append(each)
        whole = [self._joined(model, part, own) for own in several.values()]
        merge_s = max(result.merge_s for result in results)
        with self._store.transaction():
            made_from = self._sources(model)
            self._store.add_model(model.key, model.kind, model.mixture, merge_s, made_from)
            for each in whole:
                address, scores = each.piece.address, each.scores
                assert scores is not None
                self._store.add_scores(model.key, address, part, scores, each.seconds)
                if each.remark:
                    self._store.add_remark(model.key, address, part, each.remark)

    def _joined(self, model: ModelReference, part: Part, own: Sequence[ScoredPiece]) -> ScoredPiece:
        """The whole of a piece of which several workers read a stretch each."""
        if own[0].scores is not None:
            return own[0]
        piece = replace(own[0].piece, stretch=WHOLE)
        scorer = self._inputs.scorer(piece.target, part, piece.address)
        assert isinstance(scorer.target, Spreads)
        read = {place: value for each in own for place, value in (each.read or {}).items()}
        scores = scorer.target.scores_of(read)
        check_finite(scores, model, piece.target, scorer.places)
        seconds = sum(each.seconds for each in own)
        return ScoredPiece(piece, seconds, scores, remark=remark_of(scorer))

    def _sources(self, model: ModelReference) -> tuple[str, ...]:
        """The addresses of the experts that a proxy is merged from."""
        if model.kind != "proxy" or model.mixture is None:
            return ()
        return tuple(self._addresses.expert(name) for name in model.mixture.members)

    def take(self, work: ScoringWork) -> ScoringResult:
        """Carries out the work: scores a model on some targets or blocks of their examples."""
        model, merge_s = self._loaded(work.model)
        found = [self._scored(work, model, piece) for piece in work.pieces]
        return ScoringResult(merge_s, tuple(found))

    def _scored(self, work: ScoringWork, model: Any, piece: Piece) -> ScoredPiece:
        """What a model is worth on a piece, or what it makes of a stretch of it."""
        scorer = self._inputs.scorer(piece.target, work.part, piece.address)
        started = time.monotonic()
        with enough_memory(f"scoring target {piece.target}", "lower batch_tokens"):
            if not piece.stretch.is_whole:
                assert isinstance(scorer.target, Spreads)
                read = scorer.target.read(model, piece.stretch)
                return ScoredPiece(piece, time.monotonic() - started, read=read)
            scores = scorer.score(model)
        seconds = time.monotonic() - started
        check_finite(scores, work.model, piece.target, scorer.places)
        return ScoredPiece(piece, seconds, scores, remark=remark_of(scorer))

    def _loaded(self, model: ModelReference) -> tuple[Any, float]:
        """A model, and the seconds that merging it took."""
        if model.kind == "real":
            self._proxies.release()  # both may not fit
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


def remark_of(scorer: Scorer) -> str:
    """Returns what is odd about the answers that were scored last; empty if nothing is."""
    return scorer.target.remark if isinstance(scorer.target, Remarks) else ""


T = TypeVar("T")


def rationed(pieces: Iterable[T], num_workers: int) -> Iterator[tuple[T, int]]:
    """Yields pieces of work, each with the number of workers to share it.

    They are handed out whole, a worker each, but for the last ones if these are fewer than the
    workers.

    >>> list(rationed("abc", 2)), list(rationed("abcde", 8))
    ([('a', 1), ('b', 1), ('c', 2)], [('a', 1), ('b', 1), ('c', 1), ('d', 1), ('e', 1)])
    """
    left, ahead, num = iter(pieces), deque[T](), 0
    while ahead or not num:
        ahead.extend(islice(left, num_workers + 1 - len(ahead)))
        if len(ahead) <= num_workers:
            break
        yield ahead.popleft(), 1
        num += 1
    num_last = (num + len(ahead)) % num_workers
    while ahead:
        yield ahead.popleft(), num_workers // num_last if len(ahead) < num_last else 1


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
