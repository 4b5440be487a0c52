"""The addresses of what an open recipe makes: fine-tunes, proxies, statistics, derivatives.

An address depends on content alone, never on names or paths, so that a renamed dataset trains
nothing anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from mergetomix import merge
from mergetomix.experts import fisher_and_gram
from mergetomix.recipe.recipe import Recipe
from mergetomix.records import Mixture
from mergetomix.session.inputs import Inputs
from mergetomix.store.address import digest
from mergetomix.store.store import Store


class Addresses:
    """The addresses of one recipe's models."""

    def __init__(self, recipe: Recipe, inputs: Inputs, store: Store) -> None:
        self._recipe, self._inputs, self._store = recipe, inputs, store
        self._known: dict[tuple[Any, ...], str] = {}

    @cached_property
    def base(self) -> str:
        """The address of the base."""
        return self._inputs.family.key(self._store)

    def settings(self, seed: int | None = None) -> dict[str, Any]:
        """Returns what a fine-tune depends on beside its data, with train.seed or another seed."""
        train, family = self._recipe.train, self._inputs.family
        values = train.model_dump(exclude_none=True, exclude={"anchor", "launch"})
        if train.anchor is not None:
            values["anchor"] = [self._inputs.anchor_content(), train.anchor.share]
        if values["method"] == "full":
            del values["lora"]
        if seed is not None:
            values["seed"] = seed
        return {**values, **family.settings()}

    def expert(self, name: str) -> str:
        """Returns the address of a dataset's expert."""
        return self.union([name])

    def union(self, datasets: Sequence[str], seed: int | None = None) -> str:
        """Returns the address of the base fine-tuned on the union of some datasets."""
        names, settings = tuple(sorted(datasets)), self.settings(seed)
        known = (settings["seed"], *names)
        if known not in self._known:
            contents = [self._inputs.content(name) for name in self.by_content(names)]
            given = (
                [self._inputs.expert_content(n, self._store) for n in names]
                if len(names) == 1
                else []
            )
            self._known[known] = digest("finetune", self.base, contents, settings, given)
        return self._known[known]

    def finetune(self, mixture: Mixture, seed: int | None = None) -> str:
        """Returns the address of the base fine-tuned on a mixture.

        The rows are drawn by the weights where the recipe searches weights; else the fine-tune is
        on the union of the datasets.
        """
        if not self._recipe.search.draws_rows or len(mixture.members) == 1:
            return self.union(mixture.members, seed)
        weights, names = mixture.as_dict(), self.by_content(mixture.members)
        parts = [[self._inputs.content(name), round(weights[name], 9)] for name in names]
        return digest("drawn", self.base, parts, self.settings(seed))

    def by_content(self, datasets: Sequence[str]) -> list[str]:
        """Returns datasets in the order of their content, in which a union is trained on.

        So a new name changes nothing.
        """
        return sorted(datasets, key=self._inputs.content)

    def proxy(self, mixture: Mixture, exponent: float | None = None) -> str:
        """Returns the address of a mixture's proxy: its experts and their factors.

        Args:
            exponent: of the scale; None is the recipe's.
        """
        section = self._recipe.merge
        exponent = section.scale.exponent if exponent is None else exponent
        if section.method == "linear":
            factors = merge.coefficients(mixture, exponent)
            own = sorted([self.expert(name), each] for name, each in factors.items())
            return digest("proxy", section.method, own)
        weights = {name: weight for name, weight in mixture.as_dict().items() if weight > 0}
        experts = sorted([self.expert(name), weight] for name, weight in weights.items())
        return digest(
            "proxy", section.method, section.options, experts, self.delta_factor(mixture, exponent)
        )

    def delta_factor(self, mixture: Mixture, exponent: float) -> float:
        """Returns the factor on a mixture's merged delta; 1 where the method is not scaled."""
        weights = [weight for weight in mixture.weights if weight > 0]
        scaled = merge.METHODS[self._recipe.merge.method].scaled
        return merge.delta_factor(weights, exponent) if scaled else 1.0

    def statistic(self, statistic: str, name: str) -> str:
        """Returns the address of a statistic of a dataset's expert."""
        content = self._inputs.content(name)
        return digest(
            "statistic", statistic, self.expert(name), content, fisher_and_gram.MAX_SEQUENCES
        )

    def derivatives(self, proxy: str, scored: str) -> str:
        """Returns the address of the derivatives at a proxy of what is scored."""
        return digest("derivatives", proxy, scored)
