"""One standard error of the gain on each target: the unit of `objective: standard_errors`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from mergetomix.records import Scores
from mergetomix.statistics.agreement import paired_difference

NUM_RESAMPLES = 199
ROUNDING = 1e-9
"""Share of a difference that is the same on all examples by which it may differ in their sums."""


def standard_errors(
    experts: Sequence[Mapping[str, Scores]], base: Mapping[str, Scores]
) -> dict[str, float]:
    """Returns one standard error of the gain by target.

    It is the median over the single experts of the standard error of their paired difference to the
    base on the same examples. Experts that change nothing on the target have none. Raises
    ValueError, and names the target, if none has.
    """
    found = {}
    for name, start in base.items():
        known = [sd for sd in (standard_error(each[name], start) for each in experts) if sd > 0]
        if not known:
            what = f"on target {name} ({start.num_examples} examples)"
            raise ValueError(f"{what} no expert's difference to the base has one")
        found[name] = median(known)
    return found


def standard_error(scores: Scores, base: Scores) -> float:
    """Returns the standard error of a gain; zero if all examples differ alike."""
    values, start, weights = scores.values, base.values, base.weights
    mean, sd = paired_difference(values, start, weights, num_resamples=NUM_RESAMPLES)
    sd = sd if sd > ROUNDING * abs(mean) else 0.0
    return sd / base.mean if base.kind == "loss" and base.mean > 0 else sd
