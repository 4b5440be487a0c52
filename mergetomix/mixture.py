"""Spaces of mixtures: which subsets of the datasets may be chosen, in which order, how to draw from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mergetomix.records import Mixture


@dataclass(frozen=True)
class Subsets:
    """Subsets of `names` of `least` to `most` datasets that hold all of `require` and none of `forbid`.

    `sizes`, where given, makes the weights of a subset proportional to them; else they are equal. Raises ValueError where
    a required or forbidden name is none of `names`, or one is both.
    """

    names: tuple[str, ...]
    least: int = 1
    most: int | None = None
    require: frozenset[str] = frozenset()
    forbid: frozenset[str] = frozenset()
    sizes: Mapping[str, float] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        unknown = (self.require | self.forbid) - set(self.names)
        if unknown or self.require & self.forbid:
            raise ValueError(f"unknown, or both required and forbidden: {sorted(unknown or self.require & self.forbid)}")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"names must be distinct: {self.names}")

    @property
    def allowed(self) -> tuple[str, ...]:
        """Names that may stand in a mixture, in order."""
        return tuple(name for name in sorted(self.names) if name not in self.forbid)

    @property
    def bounds(self) -> tuple[int, int]:
        """Fewest and most datasets of a mixture, once `require` and `forbid` are counted."""
        most = len(self.allowed) if self.most is None else min(self.most, len(self.allowed))
        return max(self.least, len(self.require), 1), most

    @property
    def free(self) -> tuple[str, ...]:
        """Names that may be in or out."""
        return tuple(name for name in self.allowed if name not in self.require)

    def __len__(self) -> int:
        least, most = self.bounds
        fixed = len(self.require)
        return sum(math.comb(len(self.free), k - fixed) for k in range(least, most + 1))

    def __contains__(self, datasets: object) -> bool:
        if not isinstance(datasets, frozenset):
            return False
        least, most = self.bounds
        return least <= len(datasets) <= most and self.require <= datasets <= set(self.allowed)

    def __iter__(self) -> Iterator[Mixture]:
        """Every mixture once, in Gray order: without bounds on the size, neighbours differ by one dataset."""
        (least, most), fixed = self.bounds, len(self.require)
        for chosen in _gray(self.free, least - fixed, most - fixed):
            yield self.mixture(self.require | chosen)

    def mixture(self, datasets: Sequence[str] | frozenset[str]) -> Mixture:
        """The mixture of some datasets with this space's weights."""
        return Mixture.union(datasets, self.sizes)

    def larger(self, datasets: frozenset[str]) -> list[frozenset[str]]:
        """The subsets with one dataset more."""
        if len(datasets) >= self.bounds[1]:
            return []
        return [datasets | {name} for name in self.allowed if name not in datasets]

    def smaller(self, datasets: frozenset[str]) -> list[frozenset[str]]:
        """The subsets with one dataset less."""
        candidates = (datasets - {name} for name in sorted(datasets - self.require))
        return [candidate for candidate in candidates if candidate in self]

    def sample(self, num: int, seed: int) -> list[Mixture]:
        """`num` distinct mixtures (or all, where there are fewer), each set equally likely, drawn by `seed`."""
        rng = np.random.default_rng(seed)
        least, most = self.bounds
        fixed, free = len(self.require), self.free
        sizes = np.arange(least - fixed, most - fixed + 1)
        counts = np.array([math.comb(len(free), int(k)) for k in sizes], dtype=float)
        drawn: dict[frozenset[str], None] = {}
        while len(drawn) < min(num, len(self)):
            size = int(rng.choice(sizes, p=counts / counts.sum()))
            chosen = rng.choice(len(free), size=size, replace=False)
            drawn[self.require | {free[i] for i in chosen}] = None
        return [self.mixture(datasets) for datasets in drawn]


def _gray(names: tuple[str, ...], least: int, most: int, backwards: bool = False) -> Iterator[frozenset[str]]:
    """Subsets of `least` to `most` of the names in the order of the reflected binary Gray code (Gray 1953).

    Those without the last name come first, those with it follow in reverse. Takes time by the number of subsets given,
    not by the 2^N that there are without bounds.
    """
    if least > min(most, len(names)) or most < 0:
        return
    if not names:
        yield frozenset()
        return
    *rest, last = names
    for with_last in (backwards, not backwards):
        taken = {last} if with_last else set()
        for subset in _gray(tuple(rest), least - with_last, most - with_last, with_last != backwards):
            yield subset | taken
