"""Stretches of a target's batches: how several processes score one model on one target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Stretch:
    """The batches of a target whose middles lie in [begin, end) of its cost, from 0 to 1.

    Stretches that follow each other hold every batch once, whoever reads them, as a batch is never
    cut: its scores are the same to the bit in whichever stretch it lies.
    """

    begin: float = 0.0
    end: float = 1.0

    @property
    def is_whole(self) -> bool:
        """Whether it holds every batch."""
        return self.begin <= 0 and self.end >= 1

    def of(self, costs: Sequence[float]) -> list[int]:
        """Returns the places of its batches, given what each of a target's batches costs.

        >>> Stretch(0, 0.5).of([2, 1, 1]), Stretch(0.5, 1).of([2, 1, 1])
        ([0], [1, 2])
        """
        if self.is_whole:
            return list(range(len(costs)))
        total = sum(costs)
        starts = accumulate(costs, initial=0.0)
        middles = [(start + cost / 2) / total for start, cost in zip(starts, costs, strict=False)]
        return [i for i, middle in enumerate(middles) if self.begin <= middle < self.end]


WHOLE = Stretch()


def cut(costs: Sequence[float], num: int) -> list[list[tuple[int, Stretch]]]:
    """Returns `num` lots of about the same cost, each as stretches of some of the targets.

    Together they hold every target once. A target of cost zero cannot be cut, and is whole in the
    first lot.

    Args:
        costs: what each target costs.
        num: at most so many; lots that would be empty are left out.

    >>> [[place for place, _ in lot] for lot in cut([3, 1], 2)]
    [[0], [0, 1]]
    """
    total = sum(costs)
    lots: list[list[tuple[int, Stretch]]] = [[] for _ in range(num)]
    start = 0.0
    for place, cost in enumerate(costs):
        if not cost:
            lots[0].append((place, WHOLE))
            continue
        for k, lot in enumerate(lots):
            # ends are computed alike for neighbours, so that they meet
            begin, end = (min(max(total * i / num - start, 0) / cost, 1.0) for i in (k, k + 1))
            if end > begin:
                lot.append((place, Stretch(begin, end)))
        start += cost
    return [lot for lot in lots if lot]
