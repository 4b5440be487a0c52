"""The curve of a training: how its loss went, and whether it learned.

Source of the rule in `complaint`: the difference of two means beside its standard error; how often
it is right and wrong was measured (docs/methods.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, variance
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

MOST_POINTS = 200
"""Of a curve that are kept; longer trainings are averaged over stretches of steps."""
LEAST_STEPS = 20
"""Of a training about which something can be said."""
SHARE = 0.25
"""Of the steps that are looked at, at either end."""
STANDARD_ERRORS = 2.0
"""By so many the loss must have risen to say so."""
LEAST_FALL = 0.005
"""By so small a part a loss may fall and still be called flat."""


@dataclass(frozen=True)
class StepLog:
    """What is known after one optimizer step.

    `loss` is the mean over the tokens of its batch, `grad_norm` the norm of the gradient before it
    was clipped, `num_tokens` the tokens seen so far, and `seconds` the time since training began.
    """

    number: int
    loss: float
    learning_rate: float
    grad_norm: float
    num_tokens: int
    seconds: float


@dataclass(frozen=True)
class Curve:
    """How a training went, at `num_steps` or fewer points.

    Each point is the mean over the steps since the one before: `step` is the last of them.
    """

    step: tuple[int, ...] = ()
    loss: tuple[float, ...] = ()
    learning_rate: tuple[float, ...] = ()
    grad_norm: tuple[float, ...] = ()
    tokens_per_s: tuple[float, ...] = ()

    @classmethod
    def of(cls, steps: Sequence[StepLog]) -> Curve:
        """Returns the curve of a training's steps, at most MOST_POINTS points of it.

        >>> steps = [StepLog(1, 3.0, 0.1, 1.0, 10, 1.0), StepLog(2, 2.0, 0.1, 1.0, 30, 2.0)]
        >>> Curve.of(steps).tokens_per_s
        (10.0, 20.0)
        """
        num = min(len(steps), MOST_POINTS)
        ends = [round((place + 1) * len(steps) / num) for place in range(num)]
        found: list[tuple[int, float, float, float, float]] = []
        first = 0
        for end in ends:
            part, before = steps[first:end], steps[first - 1] if first else None
            tokens = part[-1].num_tokens - (before.num_tokens if before else 0)
            seconds = part[-1].seconds - (before.seconds if before else 0.0)
            found.append(
                (
                    part[-1].number,
                    fmean(each.loss for each in part),
                    fmean(each.learning_rate for each in part),
                    fmean(each.grad_norm for each in part),
                    tokens / seconds if seconds > 0 else 0.0,
                )
            )
            first = end
        columns = [tuple(column) for column in zip(*found, strict=True)] or [()] * 5
        return cls(*columns)

    @classmethod
    def read(cls, kept: Mapping[str, Any] | None) -> Curve:
        """Returns a curve of what `written` gave; an empty one of nothing."""
        return cls(**{name: tuple(values) for name, values in (kept or {}).items()})

    def written(self) -> dict[str, list[float]]:
        """Returns the curve as plain lists, six digits of each number."""
        return {
            name: [float(f"{each:.6g}") if isinstance(each, float) else each for each in values]
            for name, values in asdict(self).items()
        }

    def to_frame(self) -> pd.DataFrame:
        """Returns a pandas table with a line for each point."""
        import pandas as pd

        return pd.DataFrame(asdict(self))

    def points(self) -> list[tuple[float, float]]:
        """Returns (step, loss)."""
        return list(zip(map(float, self.step), self.loss, strict=True))


def complaint(curve: Curve) -> str | None:
    """Returns what is wrong with how a loss went; None if nothing is, or too little is known.

    The mean over the last quarter of the points is held against that over the first quarter. A loss
    that rose by more than two standard errors went up; one that did not fall by half a percent did
    not fall.

    >>> complaint(Curve.of([StepLog(i, 3 - i / 20, 0.1, 1.0, i, float(i)) for i in range(1, 41)]))
    >>> complaint(Curve.of([StepLog(i, 3.0, 0.1, 1.0, i, float(i)) for i in range(1, 41)]))
    'the loss did not fall: 3 in the first quarter of its steps, 3 in the last'
    """
    if not curve.step or curve.step[-1] < LEAST_STEPS:
        return None
    num = max(2, round(len(curve.loss) * SHARE))
    first, last = curve.loss[:num], curve.loss[-num:]
    before, after = fmean(first), fmean(last)
    error = math.sqrt((variance(first) + variance(last)) / num)
    told = f"{before:.4g} in the first quarter of its steps, {after:.4g} in the last"
    if after - before > STANDARD_ERRORS * error and after > before * (1 + LEAST_FALL):
        return f"the loss rose: {told}"
    if after > before * (1 - LEAST_FALL):
        return f"the loss did not fall: {told}"
    return None
