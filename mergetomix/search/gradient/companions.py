"""Companion losses in units of the scores that they stand for, so that targets can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from mergetomix.search.gradient.surrogate import is_finite
from mergetomix.search.strategy import Told

BELIEF = 2.0
"""How many trials' worth of belief that a score rises as its companion does."""
LEAST_SLOPE = 0.1
"""A companion that seems to say nothing keeps a little say, or its target would be forgotten."""


@dataclass(frozen=True)
class ScoreLine:
    """score = offset + slope * companion."""

    offset: float
    slope: float

    def at(self, companion: float) -> float:
        """Returns the score expected."""
        return self.offset + self.slope * companion


def lines(told: Sequence[Told]) -> dict[str, ScoreLine]:
    """Returns by target how its companion's gain leads to the score's; empty without companions.

    A companion's gain is a share of a loss, a score's own a difference of scores, and a step of the
    one may be ten steps of the other. A target with a derivative of its own is its own companion.
    """
    with_companions = [each for each in told if each.smooth is not None and is_finite(each)]
    known = [(each.smooth or {}, each.values) for each in with_companions]
    names = known[0][1] if known else ()
    return {
        name: line([smooth[name] for smooth, _ in known], [values[name] for _, values in known])
        for name in names
    }


def line(companions: Sequence[float], scores: Sequence[float]) -> ScoreLine:
    """Returns the line by which a companion's gains lead to scores, from those of some trials.

    It is that of least squares, held to a slope of one by BELIEF trials of the spread seen.

    >>> line([0.0, 1.0], [0.0, 3.0])
    ScoreLine(offset=0.5, slope=2.0)
    """
    if all(one == other for one, other in zip(companions, scores, strict=True)):
        return ScoreLine(0.0, 1.0)
    centre, height = fmean(companions), fmean(scores)
    spread = sum((each - centre) ** 2 for each in companions)
    shared = sum((x - centre) * (y - height) for x, y in zip(companions, scores, strict=True))
    believed = BELIEF * spread / len(companions)
    slope = max(LEAST_SLOPE, (shared + believed) / (spread + believed)) if spread > 0 else 1.0
    return ScoreLine(height - slope * centre, slope)


def in_units_of_scores(told: Told, lines: Mapping[str, ScoreLine]) -> Told:
    """Returns the same with the companions' gains and derivatives as the scores' by some lines."""
    if not lines:
        return told
    smooth = told.smooth and {name: lines[name].at(value) for name, value in told.smooth.items()}
    slopes = told.gradients and {
        name: {dataset: lines[name].slope * value for dataset, value in each.items()}
        for name, each in told.gradients.items()
    }
    return replace(told, smooth=smooth, gradients=slopes)
