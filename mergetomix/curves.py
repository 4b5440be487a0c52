"""How a training went: the curve of its loss, and whether it learned its own rows.

How often `complaint` is right and wrong was measured: `python studies/learning.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

MOST_POINTS = 200
"""Of a curve that are kept; longer trainings are averaged over stretches of steps."""
STANDARD_ERRORS = 2.0
"""By so many the loss on own rows must have risen to say so."""
LEAST_CHANGE = 0.002
"""A loss that fell by a smaller part did not fall, and one that rose by a smaller did not rise."""
LARGE_CHANGE = 0.1
"""A loss that rose by a larger part went astray, however few the rows are."""


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
class OwnRows:
    """The loss on some rows of a training's own, before it and after it.

    `before` and `after` are means over what is scored, in the family's unit; `error` is the
    standard error of their difference, from one row to another, None of one row alone.
    """

    num: int
    before: float
    after: float
    error: float | None

    @classmethod
    def of(
        cls, before: Sequence[float], after: Sequence[float], num_scored: Sequence[int]
    ) -> OwnRows:
        """Returns the means of rows' losses, which are sums over `num_scored` tokens each.

        >>> OwnRows.of([4.0, 6.0], [2.0, 3.0], [2, 2])
        OwnRows(num=2, before=2.5, after=1.25, error=0.25)
        """
        num, total = len(before), sum(num_scored) or 1
        mean = (sum(after) - sum(before)) / total
        rows = zip(before, after, num_scored, strict=True)
        squares = sum((b - a + mean * each) ** 2 for b, a, each in rows)
        error = math.sqrt(squares * num / (num - 1)) / total if num > 1 else None
        return cls(num, sum(before) / total, sum(after) / total, error)


@dataclass(frozen=True)
class Curve:
    """How a training went, at `num_steps` or fewer points.

    Each point is the mean over the steps since the one before: `step` is the last of them. `own` is
    None where it was not measured.
    """

    step: tuple[int, ...] = ()
    loss: tuple[float, ...] = ()
    learning_rate: tuple[float, ...] = ()
    grad_norm: tuple[float, ...] = ()
    tokens_per_s: tuple[float, ...] = ()
    own: OwnRows | None = None

    @classmethod
    def of(cls, steps: Sequence[StepLog], own: OwnRows | None = None) -> Curve:
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
        columns: list[Any] = [tuple(column) for column in zip(*found, strict=True)] or [()] * 5
        step, loss, rate, norm, speed = columns
        return cls(step, loss, rate, norm, speed, own)

    @classmethod
    def read(cls, kept: Mapping[str, Any] | None) -> Curve:
        """Returns a curve of what `written` gave; an empty one of nothing."""
        found = dict(kept or {})
        own = found.pop("own", None)
        columns = {name: tuple(values) for name, values in found.items()}
        if own is not None:
            lost = {name: math.nan for name in ("before", "after") if own[name] is None}
            own = OwnRows(**{**own, **lost})
        return cls(**columns, own=own)

    def written(self) -> dict[str, Any]:
        """Returns the curve as plain lists and mappings, six digits of each number."""
        found = {name: [_short(each) for each in values] for name, values in self._columns()}
        kept = {} if self.own is None else asdict(self.own)
        own = {name: _short(each) for name, each in kept.items()} or None
        return {**found, "own": own}

    def _columns(self) -> list[tuple[str, tuple[Any, ...]]]:
        return [
            (each.name, getattr(self, each.name)) for each in fields(self) if each.name != "own"
        ]

    def to_frame(self) -> pd.DataFrame:
        """Returns a pandas table with a line for each point."""
        import pandas as pd

        return pd.DataFrame(dict(self._columns()))

    def points(self) -> list[tuple[float, float]]:
        """Returns (step, loss)."""
        return list(zip(map(float, self.step), self.loss, strict=True))


def complaint(own: OwnRows | None) -> str | None:
    """Returns what is wrong with a training by the loss on its own rows; None if nothing is known.

    >>> complaint(OwnRows(8, 3.0, 2.9, 0.01)) is None
    True
    >>> complaint(OwnRows(8, 3.0, 2.999, 0.01))
    'it did not learn: the loss on 8 of its own rows was 3 before and is 2.999 after'
    """
    if own is None:
        return None
    losses = f"was {own.before:.4g} before and is {own.after:.4g} after"
    told = f"the loss on {own.num} of its own rows {losses}"
    rise, least = own.after - own.before, LEAST_CHANGE * abs(own.before)
    is_sure = own.error is not None and rise > STANDARD_ERRORS * own.error
    is_large = rise > LARGE_CHANGE * abs(own.before)
    if not math.isfinite(rise) or is_large or (is_sure and rise > least):
        return f"it went astray: {told}"
    return f"it did not learn: {told}" if rise > -least else None


def _short(number: Any) -> Any:
    """Returns a number with six digits; None for what is none, which JSON does not know."""
    if not isinstance(number, float):
        return number
    return float(f"{number:.6g}") if math.isfinite(number) else None
