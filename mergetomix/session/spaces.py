"""The mixtures that an open recipe allows."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from mergetomix.errors import RecipeError
from mergetomix.mixtures.rows import Length
from mergetomix.mixtures.spaces import Simplex, Space, Subsets
from mergetomix.recipe.recipe import Recipe
from mergetomix.records import Mixture, Weighting
from mergetomix.session.inputs import Inputs


class Spaces:
    """The spaces of a recipe: what is searched, and its subsets alone."""

    def __init__(self, recipe: Recipe, inputs: Inputs) -> None:
        self._recipe, self._inputs = recipe, inputs

    @cached_property
    def searched(self) -> Space:
        """The mixtures that the recipe allows.

        Raises RecipeError where its constraints allow none.
        """
        try:
            # whose constraints hold for weights, too
            subsets, options = self.subsets, self._recipe.search
            if not options.draws_rows:
                return subsets
            return Simplex(*self._bounds(), options.min_share, self._caps())
        except ValueError as error:
            raise RecipeError("search", str(error)) from None

    @cached_property
    def subsets(self) -> Subsets:
        """The subsets that the recipe allows, the weights of their datasets left aside.

        Raises RecipeError where its constraints allow none.
        """
        groups = tuple(frozenset(group) for group in self._recipe.search.groups)
        try:
            return Subsets(*self._bounds(), self.sizes(self._recipe.merge.weighting), groups)
        except ValueError as error:
            raise RecipeError("search", str(error)) from None

    def union(self, datasets: Iterable[str], weighting: Weighting | None = None) -> Mixture:
        """Returns the mixture of some datasets, weighted as the recipe says, or in another way.

        It need not be one that is searched: a user may ask for any.
        """
        return Mixture.union(datasets, self.sizes(weighting or self._recipe.merge.weighting))

    def merged(self, mixture: Mixture, weighting: Weighting | None) -> Mixture:
        """Returns a mixture's datasets with the weights that their experts are merged by.

        They are its own where weights are searched: None.
        """
        if weighting in (None, self._recipe.merge.weighting):
            return mixture
        return self.union(mixture.members, weighting)

    def sizes(self, weighting: Weighting) -> dict[str, float] | None:
        """Returns what the datasets' weights are proportional to; None if all weigh the same.

        They do where weights are shares of the rows: a subset is then of equal shares.
        """
        if weighting == "equal" or self._recipe.search.draws_rows:
            return None
        if weighting == "size":
            return self._inputs.sizes
        power = 0.5 if weighting == "sqrt_tokens" else 1.0
        return {name: num**power for name, num in self._inputs.scored_tokens.items()}

    @property
    def length(self) -> Length:
        """How much a drawn mixture's fine-tune takes of the datasets, general data left aside."""
        settings = self._recipe.train
        own = 1.0 if settings.anchor is None else 1 - settings.anchor.share
        if settings.max_steps is not None:
            num = settings.max_steps * settings.batch_size * settings.gradient_accumulation
            return Length(own * num, "examples")
        if settings.max_tokens is None:
            message = "a weighted mixture needs max_tokens or max_steps: how much it is trained on"
            raise RecipeError("train.max_tokens", message)
        return Length(own * settings.max_tokens, "tokens")

    def _bounds(self) -> tuple[tuple[str, ...], int, int | None, frozenset[str], frozenset[str]]:
        """Names, fewest and most datasets, those required and forbidden."""
        names, options = tuple(sorted(self._recipe.datasets)), self._recipe.search
        fates = frozenset(options.require), frozenset(options.forbid)
        return names, options.min_datasets, options.max_datasets, *fates

    def _caps(self) -> dict[str, float] | None:
        """The largest weight of each dataset, from how often it may be repeated."""
        most = self._recipe.search.max_repeats
        if most is None:
            return None
        return self.length.caps(self._inputs.sizes, self._inputs.tokens, most)
