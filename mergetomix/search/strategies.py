"""Which strategy suits a search, and why."""

from __future__ import annotations

import math

from mergetomix.mixtures.spaces import Simplex, Space
from mergetomix.search.gradient.strategy import LEAST_BUDGET, default_budget
from mergetomix.search.strategy import Setting, Strategy

FEW, FEW_ENOUGH = 255, 4095
"""Mixtures that are all tried without a budget: where gradients could be learnt from, and where they could not."""


def choose(space: Space, budget: int | None, differentiable: bool) -> tuple[str, str]:
    """The name of the strategy to use, and a sentence that says why.

    Args:
        budget: forward passes; None for as many as the strategy thinks right.
        differentiable: whether every target is the mean of a loss, which has a gradient.
    """
    payable = default_budget(len(space.allowed)) if budget is None else budget
    if not isinstance(space, Simplex) and space.size <= payable:
        return "exhaustive", f"all {space.size} mixtures cost no more than {payable} forward passes"
    few = FEW if differentiable else FEW_ENOUGH
    if not isinstance(space, Simplex) and budget is None and space.size <= few:
        return (
            "exhaustive",
            f"{counted(space.size)} mixtures are few, and checks choose best among mixtures that were all tried",
        )
    found = "weights" if isinstance(space, Simplex) else f"{counted(space.size)} mixtures"
    if differentiable and payable >= LEAST_BUDGET:
        return (
            "gradient",
            f"{found} to choose among, and every target has a gradient to learn from in {payable} forward passes",
        )
    lacking = (
        "not every target has a gradient"
        if not differentiable
        else f"{payable} forward passes are too few for gradients"
    )
    if isinstance(space, Simplex):
        return "regression", f"weights to choose, and {lacking}"
    return "greedy", f"{found} to choose among, and {lacking}"


def counted(num: float) -> str:
    """A whole number as a person reads it: 4,095 or 1.3e+30; how many weights there are is no number."""
    if math.isinf(num):
        return "infinitely many"
    return f"{num:,.0f}" if num < 1e6 else f"{num:.1e}"


def build(name: str, setting: Setting) -> Strategy:
    """The strategy of a name; `auto` is the one that `auto.choose` names.

    Raises ValueError for an unknown name, or where the strategy cannot do what the setting asks.
    """
    from mergetomix.search.exhaustive import Exhaustive
    from mergetomix.search.gradient.strategy import Gradient
    from mergetomix.search.greedy import Greedy
    from mergetomix.search.regression.strategy import Regression
    from mergetomix.search.samplers.strategy import Optuna
    from mergetomix.search.stepwise import Stepwise

    if name == "auto":
        name, _ = choose(setting.space, setting.budget, setting.differentiable)
    kinds: tuple[type[Stepwise], ...] = (Exhaustive, Gradient, Greedy, Optuna, Regression)
    for kind in kinds:
        if kind.name == name:
            return kind(setting)
    raise ValueError(f"no strategy is called {name!r}")
