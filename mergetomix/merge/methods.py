"""The table of methods, and of the hyper-parameters that they heed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from mergetomix.merge.informed import fisher, regmean
from mergetomix.merge.parts import Method
from mergetomix.merge.sphere import multislerp, slerp
from mergetomix.merge.task_vectors import (
    breadcrumbs,
    dare,
    della,
    elected_mean,
    linear,
    plain_mean,
    task_arithmetic,
    ties,
)

METHODS: Mapping[str, Method] = {
    "linear": Method(linear),
    "task_arithmetic": Method(task_arithmetic, scaled=False),
    "ties": Method(ties),
    "dare_linear": Method(partial(dare, plain_mean)),
    "dare_ties": Method(partial(dare, elected_mean)),
    "della_linear": Method(partial(della, plain_mean)),
    "della": Method(partial(della, elected_mean)),
    "breadcrumbs": Method(partial(breadcrumbs, plain_mean)),
    "breadcrumbs_ties": Method(partial(breadcrumbs, elected_mean)),
    "slerp": Method(slerp, max_experts=2),
    "multislerp": Method(multislerp),
    "fisher": Method(fisher, needs="fisher"),
    "regmean": Method(regmean, needs="gram"),
}
"""The methods of merging, by their names in a recipe; docs/methods.md has their formulas."""

OPTIONS = ("density", "epsilon", "gamma", "offdiagonal", "strength", "seed")
"""The hyper-parameters of all methods."""
