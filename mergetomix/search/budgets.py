"""The forward passes that a search may spend where the recipe does not say, and the least.

Search by gradients may end before they are spent, if there is no hope left (`HOPE`).
"""

from __future__ import annotations

from mergetomix.search.strategy import GRADIENT_COST, Setting, SettingError

LEAST_BUDGET = {"gradient": 2 * GRADIENT_COST + 1, "regression": 4, "optuna": 0}
"""Forward passes of two gradients, or of three values to fit, and of one mixture predicted."""
HOPE = 3.0
"""There is hope if a mixture so many standard deviations above expectation would be the best."""


def default_budget(strategy: str, num_datasets: int, front: bool = False) -> int:
    """Returns the forward passes that suit so many datasets, or a front of them.

    >>> default_budget("gradient", 12), default_budget("gradient", 12, front=True)
    (40, 80)
    >>> default_budget("regression", 12), default_budget("optuna", 12)
    (56, 90)
    """
    if strategy == "gradient":
        return (28 + num_datasets) * (2 if front else 1)
    return 8 + 4 * num_datasets if strategy == "regression" else 30 + 5 * num_datasets


def budget_of(strategy: str, setting: Setting) -> int:
    """Returns the forward passes of a search, the setting's or the default.

    Raises SettingError if they are too few to learn from, and too few to try the whole space.
    """
    space, budget = setting.space, setting.budget
    if budget is None:
        budget = default_budget(strategy, len(space.allowed), setting.front)
    least = int(min(LEAST_BUDGET[strategy], space.size))
    if budget < least:
        by = "gradients" if strategy == "gradient" else strategy
        message = f"takes a budget of at least {least} forward passes, not {budget}"
        raise SettingError("budget", f"search by {by} {message}")
    return budget
