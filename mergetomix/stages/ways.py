"""The ways to merge that checks may ask for: weights of the experts, and the scale's exponent."""

from __future__ import annotations

from dataclasses import replace

from mergetomix.recipe.recipe import Recipe
from mergetomix.records import Merging, Mixture
from mergetomix.session.session import Session

EXPONENT_SD = 0.25
"""Standard deviation of the best exponent around the recipe's before any check (normal prior)."""
WEIGHTING_COST = 1.0
"""By how many nats the checks must be likelier under other weights than under the recipe's."""
ALIKE = 0.01
"""By how much the weights of all datasets together must differ for a weighting to be another."""


def own_way(session: Session) -> Merging:
    """Returns the way that the recipe merges in, and the search with it."""
    return way_of(session.recipe)


def way_of(recipe: Recipe) -> Merging:
    """Returns the way that a recipe merges in."""
    weighting = None if recipe.search.draws_rows else recipe.merge.weighting
    return Merging(weighting, recipe.merge.scale.exponent)


def ways(session: Session) -> dict[Merging, float]:
    """Returns the ways to merge that checks may ask for, by log prior; the recipe's own first.

    One thing is changed at a time. Weights that are nearly the recipe's are no other way.
    """
    own, options = own_way(session), session.recipe.verify
    found = [own, *(replace(own, exponent=exponent) for exponent in options.exponents)]
    if not session.recipe.search.draws_rows:
        names = session.spaces.searched.allowed
        weights = session.spaces.union(names).as_dict()
        for weighting in options.weightings:
            other = session.spaces.union(names, weighting).as_dict()
            if sum(abs(other[name] - weights[name]) for name in names) > ALIKE:
                found.append(replace(own, weighting=weighting))
    return {way: log_prior(own, way) for way in found}


def log_prior(own: Merging, way: Merging) -> float:
    """Returns the log prior of a way to merge beside the recipe's own, which has zero."""
    away = (way.exponent - own.exponent) / EXPONENT_SD
    return -(away**2) / 2 - (0.0 if way.weighting == own.weighting else WEIGHTING_COST)


def merged_in(session: Session, mixture: Mixture, way: Merging) -> str:
    """Returns the address of a mixture's proxy, merged in some way."""
    merged = session.spaces.merged(mixture, way.weighting)
    return session.addresses.proxy(merged, way.exponent)
