"""The table of methods, and of the hyper-parameters that they heed."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping

from mergetomix.merge import task_vectors
from mergetomix.merge.parts import Method, Option

OPTIONS: Mapping[str, Option] = {
    "strength": Option(1.0, 0.0, math.inf, "The factor on the merged delta, lambda in the papers."),
}
"""The hyper-parameters of all methods, by name."""

METHODS: Mapping[str, Method] = {
    "linear": Method(task_vectors.linear, (), "arXiv 2203.05482", "sum_i w_i d_i"),
    "task_arithmetic": Method(
        task_vectors.task_arithmetic, ("strength",), "arXiv 2212.04089", "strength * k * sum_i w_i d_i", scaled=False
    ),
}
"""The methods of merging, by their names in a recipe. In the formulas d_i are deltas, w_i weights, k their effective number."""


def defaults(method: str) -> dict[str, float]:
    """The values that a method takes for the hyper-parameters it heeds where none are given."""
    parameters = inspect.signature(METHODS[method].combine).parameters
    return {name: parameters[name].default for name in METHODS[method].options}
