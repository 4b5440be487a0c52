"""Gradients of an open recipe: how the gain on a target changes with the weight of each expert.

A score that has no derivative, such as that of a generated answer, is stood for by its companion:
the loss of the right answers on the same examples. What is learnt from companions says which
mixtures to try; the scores decide.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from mergetomix.errors import Fault
from mergetomix.executors.work import (
    Derivatives,
    GradientResult,
    GradientWork,
    ModelReference,
    Piece,
)
from mergetomix.records import Mixture, Scores, Trial, gain
from mergetomix.session.addresses import Addresses
from mergetomix.session.evaluations import Evaluations
from mergetomix.session.inputs import Scorer
from mergetomix.session.memory import enough_memory
from mergetomix.session.open_recipe import OpenRecipe
from mergetomix.session.proxies import Proxies
from mergetomix.session.spaces import Spaces
from mergetomix.stretches import Stretch
from mergetomix.targets.target import Differentiable

FILE = "gradient.json"
LEAST_TRIALS, LEAST_AGREEMENT = 6, 0.3
MOST_CHUNKS, TOKENS_A_PRODUCT = 8, 1000
"""From LEAST_TRIALS trials on, a companion's ranking is compared with the score's; a Spearman
correlation under LEAST_AGREEMENT is said. For the others see `num_chunks`."""


class Gradients:
    """The derivatives of one recipe's targets: taken from the store, or computed and kept there."""

    def __init__(
        self,
        opened: OpenRecipe,
        addresses: Addresses,
        spaces: Spaces,
        proxies: Proxies,
        evaluations: Evaluations,
    ) -> None:
        self._open, self._addresses, self._spaces = opened, addresses, spaces
        self._proxies, self._evaluations = proxies, evaluations
        self._inputs, self._store = opened.inputs, opened.store

    # --- which targets have derivatives

    @property
    def are_there(self) -> bool:
        """Whether gains have derivatives: the merge is a weighted sum, and every target has some.

        A target has them where it is a mean of losses, or has a companion.
        """
        if self._open.recipe.merge.method != "linear":
            return False
        found = all(self.scorer(name) is not None for name in self._open.recipe.targets)
        for text in self._inputs.warnings:
            self._open.warn(text)  # of a companion that could not be made
        return found

    def scorer(self, target: str) -> Scorer | None:
        """Returns what is differentiated for a target: itself, its companion, or None."""
        own = self._inputs.targets("select")[target]
        return own if self._is_smooth(target) else self._inputs.companion(target)

    def companions(self) -> dict[str, Scorer]:
        """Returns the companions of the targets that have no derivative, by target."""
        targets = [name for name in self._open.recipe.targets if not self._is_smooth(name)]
        found = {name: self._inputs.companion(name) for name in targets}
        return {name: scorer for name, scorer in found.items() if scorer is not None}

    def _is_smooth(self, target: str) -> bool:
        return isinstance(self._inputs.targets("select")[target].target, Differentiable)

    # --- companions' gains

    def smooth(self, trial: Trial, base: Mapping[str, Scores]) -> dict[str, float] | None:
        """Returns the gains that a search by gradients learns from at a trial, by target.

        They are those of companions where there are such; None where every target has its own
        derivative.
        """
        beside = self.companions()
        if not beside:
            return None
        found = {name: each for name, each in trial.gains(base).items() if name not in beside}
        start = {name: self._losses(self._evaluations.base_reference(), name) for name in beside}
        model = self._evaluations.proxy_reference(trial.mixture)
        return found | {name: gain(self._losses(model, name), start[name]) for name in beside}

    def _losses(self, model: ModelReference, target: str) -> Scores:
        """A model's losses on a companion: from the store, or computed now and kept there."""
        scorer = self._inputs.companion(target)
        assert scorer is not None
        known = self._store.scores(model.key, scorer.address, "select")
        if known is None:
            self._evaluations.score(model, "select", [Piece(target, scorer.address)])
            known = self._store.scores(model.key, scorer.address, "select")
        assert known is not None
        return known

    def warn_of_companions(self, trials: Sequence[Trial]) -> None:
        """Says where a companion ranks the mixtures tried otherwise than the score."""
        for name in self.companions() if len(trials) >= LEAST_TRIALS else ():
            models = [self._evaluations.proxy_reference(trial.mixture) for trial in trials]
            losses = [-self._losses(model, name).mean for model in models]
            scores = [trial.scores[name].mean for trial in trials]
            if max(scores) == min(scores):
                continue  # a target without any difference is warned of elsewhere
            agreement = float(spearmanr(losses, scores).statistic)
            if not agreement >= LEAST_AGREEMENT:
                self._open.warn(
                    f"target {name}: the loss of its answers, which the search learnt from, ranks"
                    f" the {len(trials)} mixtures tried unlike its score"
                    f" (Spearman {agreement:.2f}); set search.strategy: regression, greedy or"
                    " exhaustive"
                )

    # --- derivatives

    def of(self, mixture: Mixture, base: Mapping[str, Scores]) -> dict[str, dict[str, float]]:
        """Returns d gain / d c_i of each target at a mixture's proxy, by target and dataset.

        A gain is (base - loss) / base, and d loss / d c_i = <d loss / d params, delta_i>: one
        backward pass a target, whatever the number of datasets. Of a target without derivatives it
        is the companion's gain. What the store holds is not computed again.

        Args:
            base: the base's scores on the select part.

        Raises:
            Fault: a derivative is not finite.
        """
        found = {}
        self._compute(mixture)
        for name in self._open.recipe.targets:
            smooth = self._is_smooth(name)
            own = base[name] if smooth else self._losses(self._evaluations.base_reference(), name)
            scale = own.mean if own.mean > 0 else 1.0
            by_expert = self._known(mixture, name)[1].by_expert
            found[name] = {
                each: -by_expert[self._addresses.expert(each)] / scale
                for each in self._spaces.searched.allowed
            }
        return found

    def seconds(self, mixtures: Iterable[Mixture]) -> float:
        """Returns what the derivatives at some mixtures took, whichever run computed them."""
        scorers = [self.scorer(name) for name in self._open.recipe.targets]
        keys = [
            self._key(self._evaluations.proxy_reference(mixture), scorer)
            for mixture in mixtures
            for scorer in scorers
            if scorer is not None
        ]
        return sum(kept(self._store.file(key, FILE)).seconds for key in keys)

    def _key(self, model: ModelReference, scorer: Scorer) -> str:
        return self._addresses.derivatives(model.key, scorer.address)

    def _known(self, mixture: Mixture, target: str) -> tuple[str, Kept]:
        """The address of a target's derivatives at a mixture's proxy, and what the store has."""
        scorer = self.scorer(target)
        assert scorer is not None
        key = self._key(self._evaluations.proxy_reference(mixture), scorer)
        return key, kept(self._store.file(key, FILE))

    def _compute(self, mixture: Mixture) -> None:
        """Computes the derivatives at a mixture's proxy that the store lacks, and keeps them.

        A target's batches are taken in chunks whose number depends on their tokens and the number
        of experts alone, and the chunks' derivatives are added up exactly: so the result is the
        same to the bit, however many workers share them.
        """
        experts = {self._addresses.expert(name) for name in self._spaces.searched.allowed}
        model = self._evaluations.proxy_reference(mixture)
        lacking: dict[str, tuple[str, Kept]] = {}
        pieces, costs = list[Piece](), list[float]()
        for target in self._open.recipe.targets:
            key, known = self._known(mixture, target)
            if experts <= set(known.by_expert):
                continue
            scorer = self.scorer(target)
            assert scorer is not None
            lacking[target] = key, known
            num = num_chunks(scorer.target.num_tokens, len(experts))
            chunks = [Stretch(i / num, (i + 1) / num) for i in range(num)]
            pieces += [Piece(target, scorer.address, each) for each in chunks]
            costs += [scorer.target.num_tokens / num] * num
        if not pieces:
            return
        found: dict[str, list[Derivatives]] = {target: [] for target in lacking}
        num = self._open.executor.num_workers
        lots = [Stretch(i / num, (i + 1) / num).of(costs) for i in range(num)]
        work = (GradientWork(model, tuple(pieces[i] for i in lot)) for lot in lots if lot)
        for done in self._open.executor.run(work):
            result = done.result()
            assert isinstance(result, GradientResult)
            for each in result.pieces:
                found[each.piece.target].append(each)
        for target, (key, known) in lacking.items():
            self._keep(key, known, found[target])

    def _keep(self, key: str, known: Kept, found: Sequence[Derivatives]) -> None:
        """Adds up the derivatives of a target's chunks, and keeps them beside those of before."""
        new = {
            name: math.fsum(each.by_expert[name] for each in found)
            for name in sorted(found[0].by_expert)
        }
        by_expert = {**known.by_expert, **new}
        seconds = known.seconds + sum(each.seconds for each in found)
        with self._store.artifact(key, sorted(by_expert)) as folder:
            text = json.dumps({"by_expert": by_expert, "seconds": seconds})
            (folder / FILE).write_text(text)

    def take(self, work: GradientWork) -> GradientResult:
        """Carries out the work: a forward and backward pass over the batches of every piece."""
        mixture = work.model.mixture
        assert mixture is not None
        model = self._proxies.live(mixture, work.model.exponent)
        return GradientResult(tuple(self._taken(model, mixture, piece) for piece in work.pieces))

    def _taken(self, model: Any, mixture: Mixture, piece: Piece) -> Derivatives:
        started = time.monotonic()
        scorer = self._inputs.scorer(piece.target, "select", piece.address)
        assert isinstance(scorer.target, Differentiable)
        hint = "lower batch_tokens, or set search.strategy: regression"
        with enough_memory(f"the gradient of target {piece.target}", hint):
            _, gradient = self._proxies.read().gradient(scorer.target.parts(model, piece.stretch))
        odd = next((name for name, value in gradient.items() if value - value != 0), None)
        if odd is not None:
            what = f"the derivative of target {piece.target} in the weight of {odd}"
            hint = "set search.strategy: greedy, or base.dtype: float32"
            raise Fault(f"{what} is {gradient[odd]} at {mixture}", hint=hint)
        by_expert = {self._addresses.expert(name): value for name, value in gradient.items()}
        return Derivatives(piece, by_expert, time.monotonic() - started)


@dataclass(frozen=True)
class Kept:
    """The derivatives of a target at a proxy, by the address of each expert, and their seconds."""

    by_expert: Mapping[str, float]
    seconds: float


def num_chunks(num_tokens: int, num_experts: int) -> int:
    """Returns in how many chunks a target's derivatives are taken, at most MOST_CHUNKS.

    Every chunk costs a product of the gradient with every expert's delta, which takes as long as
    reading some tokens: with TOKENS_A_PRODUCT for each expert it is small beside the chunk itself.

    >>> num_chunks(1000, 4), num_chunks(20_000, 4), num_chunks(10**6, 4)
    (1, 5, 8)
    """
    return max(1, min(MOST_CHUNKS, round(num_tokens / (TOKENS_A_PRODUCT * num_experts))))


def kept(file: Path | None) -> Kept:
    """Returns the derivatives in a file; none where there is no file."""
    if file is None:
        return Kept({}, 0.0)
    found = json.loads(file.read_text())
    return Kept(found["by_expert"], found["seconds"])
