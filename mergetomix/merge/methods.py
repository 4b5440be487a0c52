"""The table of methods, and of the hyper-parameters that they heed."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping

from mergetomix.merge.informed import fisher, regmean
from mergetomix.merge.parts import Method, Option
from mergetomix.merge.sphere import multislerp, slerp
from mergetomix.merge.task_vectors import (
    breadcrumbs,
    breadcrumbs_ties,
    dare_linear,
    dare_ties,
    della,
    della_linear,
    linear,
    task_arithmetic,
    ties,
)

OPTIONS: Mapping[str, Option] = {
    "density": Option(
        None,
        0.0,
        1.0,
        "The share of each delta's values that is kept: unless given, ties 0.2, dare and della 0.5, breadcrumbs 0.1.",
    ),
    "epsilon": Option(
        0.2,
        0.0,
        1.0,
        "How much likelier the largest value is kept than the smallest; density -+ epsilon/2 must lie in (0, 1].",
    ),
    "gamma": Option(0.01, 0.0, 1.0, "The share of each delta's largest values that is dropped."),
    "offdiagonal": Option(
        0.9, 0.0, 1.0, "The factor on Gram matrices off their diagonals, alpha in the paper."
    ),
    "strength": Option(1.0, 0.0, math.inf, "The factor on the merged delta, lambda in the papers."),
    "seed": Option(0, 0, 2**63 - 1, "What random methods draw from, a whole number."),
}
"""The hyper-parameters of all methods, by name. A density is more than 0."""

METHODS: Mapping[str, Method] = {
    "linear": Method(linear, (), "arXiv 2203.05482", "sum_i w_i d_i"),
    "task_arithmetic": Method(
        task_arithmetic,
        ("strength",),
        "arXiv 2212.04089",
        "strength * k * sum_i w_i d_i",
        scaled=False,
    ),
    "ties": Method(
        ties,
        ("density", "strength"),
        "arXiv 2306.01708",
        "strength * sum_A w_i t_i / sum_A w_i; t_i the largest of d_i, A where t_i has the sign of sum_i w_i t_i",
    ),
    "dare_linear": Method(
        dare_linear,
        ("density", "strength", "seed"),
        "arXiv 2311.03099",
        "strength * sum_i w_i m_i d_i / density; m_i is 1 with the probability density, else 0",
    ),
    "dare_ties": Method(
        dare_ties,
        ("density", "strength", "seed"),
        "arXiv 2311.03099",
        "as ties with t_i = m_i d_i / density; m_i is 1 with the probability density, else 0",
    ),
    "della_linear": Method(
        della_linear,
        ("density", "epsilon", "strength", "seed"),
        "arXiv 2406.11617",
        "strength * sum_i w_i m_i d_i / p_i; m_i is 1 with the probability p_i, which rises with the rank of |d_i| in its row",
    ),
    "della": Method(
        della,
        ("density", "epsilon", "strength", "seed"),
        "arXiv 2406.11617",
        "as ties with t_i = m_i d_i / p_i; m_i is 1 with the probability p_i, which rises with the rank of |d_i| in its row",
    ),
    "breadcrumbs": Method(
        breadcrumbs,
        ("density", "gamma", "strength"),
        "arXiv 2312.06795",
        "strength * sum_i w_i b_i; b_i is d_i without the share gamma that is largest and all but density of the rest",
    ),
    "breadcrumbs_ties": Method(
        breadcrumbs_ties,
        ("density", "gamma", "strength"),
        "arXiv 2312.06795",
        "as ties with t_i = b_i; b_i is d_i without the share gamma that is largest and all but density of the rest",
    ),
    "slerp": Method(
        slerp,
        (),
        "Shoemake 1985",
        "sin(w_0 a) / sin(a) p_0 + sin(w_1 a) / sin(a) p_1 - base; p_i = base + d_i, a their angle",
        max_experts=2,
    ),
    "multislerp": Method(
        multislerp,
        (),
        "Buss and Fillmore 2001",
        "(sum_i w_i |p_i|) m - base; p_i = base + d_i, m the mean on the sphere of p_i / |p_i| with the weights w_i",
    ),
    "fisher": Method(
        fisher,
        (),
        "arXiv 2111.09832",
        "sum_i w_i F_i d_i / sum_i w_i F_i, value by value",
        needs="fisher",
    ),
    "regmean": Method(
        regmean,
        ("offdiagonal",),
        "arXiv 2212.09849",
        "(sum_i w_i G_i)^-1 sum_i w_i G_i d_i; G_i the inputs' Gram matrix, off its diagonal times offdiagonal",
        needs="gram",
    ),
}
"""The methods of merging, by their names in a recipe. In the formulas d_i are deltas, w_i weights, k their effective number."""


def defaults(method: str) -> dict[str, float]:
    """The values that a method takes for the hyper-parameters it heeds where none are given."""
    parameters = inspect.signature(METHODS[method].combine).parameters
    return {name: parameters[name].default for name in METHODS[method].options}
