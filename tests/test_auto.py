"""Which strategy `auto` takes, and what it says of it."""

from __future__ import annotations

import pytest
from worlds import setting_of

from mergetomix.mixtures.spaces import Simplex, Space, Subsets
from mergetomix.search.strategies import build, choose

NAMES = {num: tuple(f"d{i:03}" for i in range(num)) for num in (2, 5, 6, 12, 13, 100)}
FEW = Subsets(NAMES[100], 2, 2, groups=(frozenset(NAMES[100][2:]),))


@pytest.mark.parametrize(
    ("space", "budget", "differentiable", "name", "why"),
    [
        (Subsets(NAMES[5]), None, True, "exhaustive", "all 31 mixtures cost no more than 33"),
        (Subsets(NAMES[6]), None, True, "exhaustive", "63 mixtures are few"),
        (Subsets(NAMES[6]), 63, True, "exhaustive", "all 63 mixtures cost no more than 63"),
        (Subsets(NAMES[6]), 62, True, "gradient", "in 62 forward passes"),
        (Subsets(NAMES[12]), None, True, "gradient", "4,095 mixtures"),
        (Subsets(NAMES[12]), 5000, True, "exhaustive", "all 4095"),
        (Subsets(NAMES[12]), 6, True, "greedy", "6 forward passes are too few for gradients"),
        (Subsets(NAMES[12]), None, False, "exhaustive", "4,095 mixtures are few"),
        (Subsets(NAMES[13]), None, False, "greedy", "not every target has a gradient"),
        (Subsets(NAMES[100]), None, True, "gradient", r"1\.3e\+30 mixtures"),
        (FEW, None, False, "exhaustive", "all 1 mixtures"),
        (Simplex(NAMES[2]), None, True, "gradient", "weights to choose among"),
        (Simplex(NAMES[2]), None, False, "regression", "not every target has a gradient"),
        (Simplex(NAMES[2]), 5, True, "regression", "5 forward passes are too few"),
    ],
)
def test_what_it_takes_and_why(
    space: Space, budget: int | None, differentiable: bool, name: str, why: str
) -> None:
    import re

    chosen, said = choose(space, budget, differentiable)
    assert chosen == name
    assert re.search(why, said)
    assert (
        build("auto", setting_of(space, budget=budget, differentiable=differentiable)).name == name
    )
