"""Targets in units of their own: what the objective does about them, and what is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import Heard, recipe_values

import mergetomix as m2m
from mergetomix.objectives.objective import Objective
from mergetomix.recipe.recipe import Recipe, parse
from mergetomix.records import Scores
from mergetomix.stages import units


def scores(kind: Any, *values: float) -> Scores:
    return Scores(kind, values, (1.0,) * len(values))


LOSS, RIGHT, TOKENS = scores("loss", 2.0, 7.0), scores("score", 0.0, 1.0), scores("score", -37.0)


def recipe(**search: Any) -> Recipe:
    data = {"rows": [{"t": "a"}], "text": "t"}
    raw = {"base": "b", "datasets": {"x": data, "y": data}, "targets": {"t": data, "u": data}}
    return parse({**raw, "search": search})


@pytest.mark.parametrize(
    ("base", "search", "aim"),
    [
        ({"t": LOSS, "u": RIGHT}, {}, "gain"),
        ({"t": LOSS, "u": TOKENS}, {}, "standard_errors"),
        ({"t": TOKENS, "u": TOKENS}, {}, "standard_errors"),
        ({"t": TOKENS}, {}, "gain"),
        ({"t": LOSS, "u": TOKENS}, {"objective": "gain"}, "gain"),
        ({"t": LOSS, "u": TOKENS}, {"objective": "worst"}, "worst"),
        ({"t": LOSS, "u": TOKENS}, {"racing": 0.05}, "gain"),
    ],
)
def test_the_objective_goes_by_the_units(
    base: dict[str, Scores], search: dict[str, Any], aim: str
) -> None:
    assert units.aim_of(recipe(**search), base) == aim
    lines = units.about_units(recipe(**search), base)
    foreign = [name for name, each in base.items() if each is TOKENS]
    assert len(lines) == (len(foreign) if len(base) > 1 else 0)
    for line, name in zip(lines, foreign, strict=False):
        assert f"target {name}" in line and "-37" in line
        assert ("may decide alone" in line) == (aim != "standard_errors")


def test_one_target_that_decides_alone_is_said() -> None:
    objective = Objective({"t": 1, "u": 1})
    gains = [{"t": 0.1 * i, "u": 5.0 * i} for i in range(5)]
    (line,) = units.about_rulers(objective, gains, "5 mixtures")
    assert "target u decides nearly alone: it makes 100%" in line and "5 mixtures" in line
    scaled = Objective({"t": 1, "u": 1}, "standard_errors", {"t": 0.02, "u": 1.0})
    assert units.about_rulers(scaled, gains, "5 mixtures") == []
    assert units.about_rulers(Objective({"u": 1}), gains, "5 mixtures") == []
    assert units.about_rulers(objective, [{"t": 1.0, "u": 1.0}] * 3, "3 mixtures") == []
    alone = [{"t": 1.0, "u": 0.1 * i} for i in range(3)]
    assert units.about_rulers(objective, alone, "3 mixtures") == []


def length(model: Any, tokenizer: Any) -> list[float]:
    """A score in tens: no fraction, and beside a loss it would decide everything."""
    with torch.no_grad():
        logits = model(**tokenizer("what about a and red?", return_tensors="pt")).logits
    return [float(value) for value in 50 + 10 * logits[0, -1, :4]]


def test_a_score_in_tokens_beside_a_loss(tmp_path: Path) -> None:
    raw = recipe_values(tmp_path)
    raw["targets"]["length"] = {"score": "python", "function": length}
    raw["train"]["max_steps"] = 2
    heard = Heard()
    selection = m2m.search_mixtures(parse(raw, tmp_path), heard)
    assert selection.objective is not None and selection.objective.aim == "standard_errors"
    (line,) = [each for each in heard.warnings if "no fractions" in each]
    assert "target length" in line and "standard errors" in line
    # the experts are there now, and a plan tells from them what would rule
    raw["search"] = {"objective": "gain"}
    plan = m2m.check(parse(raw, tmp_path), Heard())
    assert any("length decides nearly alone" in each for each in plan.warnings)
    assert any("may decide alone" in each for each in plan.warnings)
