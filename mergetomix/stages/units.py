"""Whether targets can be added up: in what units they count, and whether one decides alone.

Gains of losses are fractions of a loss, those of right answers fractions of all answers. A score of
the user's may be anything, such as a number of tokens: beside these it would decide everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mergetomix.objectives.objective import Aim, Objective
from mergetomix.recipe.recipe import Recipe
from mergetomix.records import Scores

RULES = 0.9
"""The share of an objective's variance over mixtures with which one target decides alone."""

Gains = Mapping[str, float]


def foreign(base: Mapping[str, Scores]) -> list[str]:
    """Returns the targets whose scores of the base are no fractions, and so have a unit."""
    return [
        name
        for name, scores in base.items()
        if scores.kind == "score" and any(abs(value) > 1 for value in scores.values)
    ]


def aim_of(recipe: Recipe, base: Mapping[str, Scores]) -> Aim:
    """Returns what the recipe's objective is; of `auto`, by the units of the base's scores."""
    aim = recipe.search.objective
    if aim != "auto":
        return aim
    # a race decides by the mean of gains
    others = set(base) - set(foreign(base))
    is_mixed = len(base) > 1 and len(others) < len(base) and recipe.search.racing is None
    return "standard_errors" if is_mixed else "gain"


def about_units(recipe: Recipe, base: Mapping[str, Scores]) -> list[str]:
    """Returns a line for each target with a unit of its own beside others, and what is done."""
    if len(base) < 2 or recipe.search.objective in ("pareto", "standard_errors"):
        return []
    counted = "every target counts in its own standard errors, as search.objective: auto has it"
    if aim_of(recipe, base) != "standard_errors":
        own = recipe.search.objective
        where = "search.racing" if own == "auto" else f"search.objective: {own}"
        counted = f"with {where} it may decide alone; search.objective: standard_errors weighs it"
    return [
        f"target {name}: its scores are no fractions (the base has {base[name].mean:.4g}), unlike"
        f" gains of losses and of right answers: {counted}"
        for name in foreign(base)
    ]


def about_rulers(objective: Objective, gains: Sequence[Gains], what: str) -> list[str]:
    """Returns a line if one of several targets makes nearly all of an objective's differences.

    Args:
        gains: of some models by target.
        what: those models, as the line calls them.
    """
    names = list(objective.weights)
    if len(names) < 2 or len(gains) < 2 or objective.aim not in ("gain", "standard_errors"):
        return []
    variances = np.array(
        [objective.slope(name) ** 2 * np.var([each[name] for each in gains]) for name in names]
    )
    if np.count_nonzero(variances > 0) < 2:  # one that never differs is said for itself
        return []
    share, place = float(variances.max() / variances.sum()), int(variances.argmax())
    if share < RULES:
        return []
    return [
        f"target {names[place]} decides nearly alone: it makes {share:.0%} of what the objective"
        f" varies by over {what}; a weight, or search.objective: standard_errors, lets the others"
        " count"
    ]
