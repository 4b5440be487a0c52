"""Which strategy suits a search and why, and every strategy by its name."""

from __future__ import annotations

import math

from mergetomix.mixtures.spaces import Simplex, Space
from mergetomix.search.budgets import LEAST_BUDGET, default_budget
from mergetomix.search.strategy import Setting, Strategy

FEW, FEW_ENOUGH = 255, 4095
"""Mixtures that are all tried without a budget: if there are gradients to learn from, if not."""


def choose(space: Space, budget: int | None, differentiable: bool) -> tuple[str, str]:
    """Returns the name of the strategy to use, and a sentence that says why.

    Args:
        budget: forward passes; None for as many as the strategy thinks right.
        differentiable: whether every target is the mean of a loss, which has a gradient.

    >>> from mergetomix.mixtures.spaces import Subsets
    >>> choose(Subsets(("code", "maths", "chat")), None, differentiable=True)
    ('exhaustive', 'all 7 mixtures cost no more than 31 forward passes')
    """
    is_subsets, num = not isinstance(space, Simplex), counted(space.size)
    payable = default_budget("gradient", len(space.allowed)) if budget is None else budget
    if is_subsets and space.size <= payable:
        return "exhaustive", f"all {space.size} mixtures cost no more than {payable} forward passes"
    if is_subsets and budget is None and space.size <= (FEW if differentiable else FEW_ENOUGH):
        why = "checks choose best among mixtures that were all tried"
        return "exhaustive", f"{num} mixtures are few, and {why}"
    found = f"{num} mixtures" if is_subsets else "weights"
    if differentiable and payable >= LEAST_BUDGET["gradient"]:
        why = f"every target has a gradient to learn from in {payable} forward passes"
        return "gradient", f"{found} to choose among, and {why}"
    lacking = "not every target has a gradient"
    if differentiable:
        lacking = f"{payable} forward passes are too few for gradients"
    if is_subsets:
        return "greedy", f"{found} to choose among, and {lacking}"
    return "regression", f"weights to choose, and {lacking}"


def counted(num: float) -> str:
    """Returns a whole number as a person reads it.

    >>> counted(4095), counted(2**100), counted(math.inf)
    ('4,095', '1.3e+30', 'infinitely many')
    """
    if math.isinf(num):
        return "infinitely many"
    return f"{num:,.0f}" if num < 1e6 else f"{num:.1e}"


def build(name: str, setting: Setting) -> Strategy:
    """Returns the strategy of a name; `auto` is the one that `choose` names.

    Raises ValueError for an unknown name, or if the strategy cannot do what the setting asks.
    """
    from mergetomix.search.exhaustive import Exhaustive
    from mergetomix.search.gradient.strategy import Gradient
    from mergetomix.search.greedy import Greedy
    from mergetomix.search.optuna.strategy import Optuna
    from mergetomix.search.regression.strategy import Regression

    if name == "auto":
        name, _ = choose(setting.space, setting.budget, setting.differentiable)
    kinds: tuple[type[Strategy], ...] = (Exhaustive, Gradient, Greedy, Optuna, Regression)
    for kind in kinds:
        if kind.name == name:
            return kind(setting)
    raise ValueError(f"no strategy is called {name!r}")
