"""Spaces of mixtures: which there are, in which order, how to draw from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from mergetomix.records import Mixture

Array = NDArray[np.float64]
LEAST_SHARE = 1e-3
"""The smallest weight that a mixture is given: a dataset with less might as well be left out."""
ROUNDING = 1e-9
MAX_TRIES = 100


@dataclass(frozen=True)
class Subsets:
    """Subsets of `names` with equal weights, or with weights proportional to `sizes`.

    They have `least` to `most` datasets, all of `require` and none of `forbid`, and of each of
    `groups` either all datasets or none. Raises ValueError if these contradict each other.

    >>> [str(mixture) for mixture in Subsets(("a", "b", "c"), most=2)]
    ['a', 'a + b', 'b', 'b + c', 'a + c', 'c']
    """

    names: tuple[str, ...]
    least: int = 1
    most: int | None = None
    require: frozenset[str] = frozenset()
    forbid: frozenset[str] = frozenset()
    sizes: Mapping[str, float] | None = field(default=None, compare=False)
    groups: tuple[frozenset[str], ...] = ()

    def __post_init__(self) -> None:
        _check(self, {"groups": frozenset().union(*self.groups)})
        _check_groups(self.groups, self.require, self.forbid)
        if self.sizes is not None:
            _check_positive("sizes", self.sizes, self.allowed)
        if not self.num_by_size:
            fates = [("all of", self.fixed), ("none of", self.forbid)]
            fates += [("all or none of", group) for group in self.groups]
            said = ", ".join(f"{text} {sorted(names)}" for text, names in fates if names)
            bounds = f"at least {self.least} and at most {self._most} datasets"
            raise ValueError(f"no mixture has {bounds}{said and f' with {said}'}")

    @property
    def _most(self) -> int:
        return len(self.names) if self.most is None else self.most

    @property
    def allowed(self) -> tuple[str, ...]:
        """Names that may stand in a mixture, in order."""
        return tuple(name for name in sorted(self.names) if name not in self.forbid)

    @cached_property
    def fixed(self) -> frozenset[str]:
        """Names that stand in every mixture: those required, with their groups."""
        return self.require.union(*(group for group in self.groups if group & self.require))

    @cached_property
    def units(self) -> tuple[frozenset[str], ...]:
        """What may be in or out as a whole, by first names: groups, and datasets of none."""
        together = {name: group for group in self.groups for name in group}
        free = [name for name in self.allowed if name not in self.fixed]
        return tuple(dict.fromkeys(together.get(name, frozenset([name])) for name in free))

    @property
    def bounds(self) -> tuple[int, int]:
        """Fewest and most datasets of a mixture, all constraints counted."""
        return min(self.num_by_size), max(self.num_by_size)

    @cached_property
    def num_by_size(self) -> dict[int, int]:
        """How many mixtures there are of each number of datasets that some mixture has."""
        ways, num = _ways(self.units)[0], len(self.fixed)
        sizes = range(max(self.least, 1), self._most + 1)
        return {size: ways[size - num] for size in sizes if ways.get(size - num)}

    @property
    def size(self) -> int:
        """How many mixtures there are; from 63 datasets on it may be too many for `len`."""
        return sum(self.num_by_size.values())

    @property
    def num_plural(self) -> int:
        """How many of the mixtures have several datasets."""
        return self.size - self.num_by_size.get(1, 0)

    def __len__(self) -> int:
        return self.size

    def __contains__(self, datasets: object) -> bool:
        if not isinstance(datasets, frozenset) or len(datasets) not in self.num_by_size:
            return False
        whole = all(group <= datasets or not group & datasets for group in self.groups)
        return whole and self.require <= datasets <= set(self.allowed)

    def __iter__(self) -> Iterator[Mixture]:
        """Every mixture once, in Gray order: if all sizes are allowed, by one unit each time."""
        (least, most), num = self.bounds, len(self.fixed)
        for chosen in _gray(self.units, least - num, most - num):
            yield self.mixture(self.fixed | chosen)

    def mixture(self, datasets: Iterable[str]) -> Mixture:
        """Returns the mixture of some datasets with this space's weights."""
        return Mixture.union(datasets, self.sizes)

    def smallest(self) -> frozenset[str]:
        """Returns a subset with the fewest datasets, with early names if there is a choice."""
        return self._chosen(self.bounds[0], lambda: 0.0)

    def larger(self, datasets: frozenset[str]) -> list[frozenset[str]]:
        """Returns the subsets with one unit more."""
        return self._held(datasets | unit for unit in self.units if not unit & datasets)

    def smaller(self, datasets: frozenset[str]) -> list[frozenset[str]]:
        """Returns the subsets with one unit less."""
        return self._held(datasets - unit for unit in self.units if unit & datasets)

    def exchanged(self, datasets: frozenset[str]) -> list[frozenset[str]]:
        """Returns the subsets with another unit in the place of one."""
        leave = [unit for unit in self.units if unit & datasets]
        enter = [unit for unit in self.units if not unit & datasets]
        return self._held(datasets - old | new for old in leave for new in enter)

    def _held(self, subsets: Iterable[frozenset[str]]) -> list[frozenset[str]]:
        return [subset for subset in subsets if subset in self]

    def sample(self, num: int, seed: int) -> list[Mixture]:
        """Returns `num` distinct mixtures (or all, if fewer), each subset equally likely."""
        rng = np.random.default_rng(seed)
        sizes = np.array(list(self.num_by_size))
        share = np.array([float(count) for count in self.num_by_size.values()])
        drawn: dict[frozenset[str], None] = {}
        while len(drawn) < min(num, self.size):
            size = int(rng.choice(sizes, p=share / share.sum()))
            if any(len(unit) > 1 for unit in self.units):
                subset = self._chosen(size, rng.random)
            else:
                places = rng.choice(len(self.units), size=size - len(self.fixed), replace=False)
                subset = self.fixed.union(*(self.units[i] for i in places))
            drawn[subset] = None
        return [self.mixture(datasets) for datasets in drawn]

    def _chosen(self, size: int, draw: Callable[[], float]) -> frozenset[str]:
        """Returns a subset of `size` datasets: a unit is in if `draw()` is below its chance."""
        ways, chosen = _ways(self.units), self.fixed
        for i, unit in enumerate(self.units):
            left = size - len(chosen)
            if draw() * ways[i][left] < ways[i + 1].get(left - len(unit), 0):
                chosen |= unit
        return chosen


@dataclass(frozen=True)
class Simplex:
    """Weights over `least` to `most` of `names`, all of `require` and none of `forbid`.

    Each weight is zero, or at least `min_share` and at most its dataset's share of `caps`; together
    they are one. Raises ValueError if these contradict each other.
    """

    names: tuple[str, ...]
    least: int = 1
    most: int | None = None
    require: frozenset[str] = frozenset()
    forbid: frozenset[str] = frozenset()
    min_share: float = 0.0
    caps: Mapping[str, float] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        caps = self.caps or {}
        _check(self, {"caps": caps})
        _check_positive("caps", caps, caps)
        share = f"min_share, {self.min_share:.4g}"
        if not 0 <= self.min_share <= 1:
            raise ValueError(f"min_share must be from 0 to 1, not {self.min_share}")
        for name in sorted(self.require):
            if (cap := self.cap(name)) < self.min_share:
                raise ValueError(f"{name} is required, but its cap of {cap:.4g} is below {share}")
        if not self._numbers:
            raise ValueError(self._contradiction())

    @cached_property
    def allowed(self) -> tuple[str, ...]:
        """Names that may stand in a mixture, in order."""
        possible = sorted(set(self.names) - self.forbid)
        return tuple(name for name in possible if self.cap(name) >= self.min_share)

    def cap(self, name: str) -> float:
        """Returns the largest weight of a dataset."""
        return min(1.0, (self.caps or {}).get(name, 1.0))

    @property
    def floor(self) -> float:
        """The least weight that is given to a member."""
        return max(self.min_share, LEAST_SHARE)

    @property
    def bounds(self) -> tuple[int, int]:
        """Fewest and most datasets of a mixture, all constraints counted."""
        return min(self._numbers), max(self._numbers)

    @property
    def size(self) -> float:
        """How many mixtures there are."""
        return math.inf if self.bounds[1] > 1 else float(len(self.vertices()))

    @property
    def num_plural(self) -> float:
        """How many of the mixtures have several datasets."""
        return math.inf if self.bounds[1] > 1 else 0.0

    @property
    def _asked(self) -> tuple[int, int]:
        """Fewest and most datasets of a mixture, caps and `min_share` left aside."""
        num = len(self.allowed)
        most = num if self.most is None else min(self.most, num)
        return max(self.least, len(self.require), 1), most

    @cached_property
    def _numbers(self) -> tuple[int, ...]:
        """How many datasets a mixture may have."""
        (least, most), caps = self._asked, [self.cap(name) for name in self._roomiest]
        return tuple(
            num
            for num in range(least, most + 1)
            if sum(caps[:num]) >= 1 - ROUNDING and num * self.min_share <= 1 + ROUNDING
        )

    def _contradiction(self) -> str:
        """Says why there is no mixture."""
        (least, most), share = self._asked, f"{self.min_share:.4g}"
        if least > most:
            small = ", ".join(sorted(set(self.names) - self.forbid - set(self.allowed)))
            capped = small and f"; the caps of {small} are below min_share, {share}"
            possible = f"the {len(self.allowed)} datasets that may be in one{capped}"
            return f"no mixture has at least {least} and at most {most} of {possible}"
        if least * self.min_share > 1:
            what = f"{least} datasets of at least {share} each"
            return f"min_share: {what} would have more than one in all"
        what = f"no {most} datasets together may have a weight of one"
        return f"caps: {what} with min_share {share}"

    def __contains__(self, mixture: object) -> bool:
        if not isinstance(mixture, Mixture):
            return False
        fit = all(
            self.min_share - ROUNDING <= weight <= self.cap(name) + ROUNDING
            for name, weight in mixture.as_dict().items()
            if weight > 0
        )
        return fit and self._may_have(frozenset(mixture.members))

    def _may_have(self, names: frozenset[str]) -> bool:
        """Returns whether a mixture may have exactly these datasets, caps left aside."""
        return len(names) in self._numbers and self.require <= names <= set(self.allowed)

    def holds(self, support: frozenset[str]) -> bool:
        """Returns whether some mixture has exactly these datasets."""
        return self._may_have(support) and sum(map(self.cap, support)) >= 1 - ROUNDING

    def project(self, weights: Mapping[str, float], support: frozenset[str]) -> Mixture:
        """Returns the mixture of exactly `support` that is nearest to `weights` (Euclidean).

        Each weight is at least `floor` if that fits. Raises ValueError if there is no such mixture.
        """
        if not self.holds(support):
            raise ValueError(f"no mixture has exactly the datasets {sorted(support)}")
        names = tuple(sorted(support))
        high_N = np.array([self.cap(name) for name in names])
        low_N = np.minimum(min(self.floor, 1 / len(names)), high_N)
        point_N = np.array([float(weights.get(name, 0.0)) for name in names])
        return Mixture(names, tuple(nearest_in_box(point_N, low_N, high_N).tolist()))

    def nearest(self, weights: Mapping[str, float]) -> Mixture:
        """Returns a mixture near to `weights`, of their heaviest datasets.

        They are as many as the constraints ask for, and those above half the floor.
        """
        least, most = self.bounds
        heaviest = self._in_order(lambda name: -weights.get(name, 0.0))[:most]
        heavy = sum(
            name in self.require or weights.get(name, 0.0) > self.floor / 2 for name in heaviest
        )
        supports = chain(
            (frozenset(heaviest[:num]) for num in range(max(least, heavy), most + 1)),
            (frozenset(self._roomiest[:num]) for num in self._numbers),
        )
        return self.project(weights, next(filter(self.holds, supports)))

    @cached_property
    def _roomiest(self) -> list[str]:
        return self._in_order(lambda name: -self.cap(name))

    def _in_order(self, key: Callable[[str], float]) -> list[str]:
        """Names that may stand in a mixture, those required first."""
        return sorted(self.allowed, key=lambda name: (name not in self.require, key(name), name))

    def uniform(self) -> Mixture:
        """Returns the mixture nearest to equal weights."""
        return self.nearest(dict.fromkeys(self.allowed, 1 / len(self.allowed)))

    def vertices(self) -> list[Mixture]:
        """Returns for every dataset the mixture that is nearest to it alone, each once."""
        return list(dict.fromkeys(self.nearest({name: 1.0}) for name in self.allowed))

    def sample(self, num: int, seed: int) -> list[Mixture]:
        """Returns `num` mixtures: how many datasets is drawn, then which, then their weights.

        Weights are Dirichlet, all parameters one, and brought within the constraints.
        """
        rng = np.random.default_rng(seed)
        return [self._drawn(rng) for _ in range(num)]

    def _drawn(self, rng: np.random.Generator) -> Mixture:
        others = [name for name in self.allowed if name not in self.require]
        for _ in range(MAX_TRIES):
            num = int(rng.choice(self._numbers)) - len(self.require)
            places = rng.choice(len(others), size=num, replace=False)
            support = self.require.union(others[i] for i in places)
            if self.holds(support):
                return self.project(_dirichlet(sorted(support), rng), support)
        return self.nearest(_dirichlet(self.allowed, rng))


Space = Subsets | Simplex


def everything(space: Space) -> Mixture:
    """Returns the mixture of all datasets that a space allows, in a simplex near to equal ones."""
    return space.uniform() if isinstance(space, Simplex) else space.mixture(space.allowed)


def holds(space: Space, mixture: Mixture) -> bool:
    """Returns whether a mixture may be chosen; the weights of a subset are the space's own."""
    return mixture in space if isinstance(space, Simplex) else frozenset(mixture.members) in space


def nearest_in_box(point_N: Array, low_N: Array, high_N: Array) -> Array:
    """Returns the point nearest to `point_N` with low <= w <= high that sums to one.

    w_i = min(max(x_i - tau, low_i), high_i) with tau such that they sum to one; exact, as the sum
    is piecewise linear in tau. sum(low) <= 1 <= sum(high) must hold.
    """
    breaks = np.sort(np.concatenate([point_N - high_N, point_N - low_N]))
    # falls from sum(high) to sum(low)
    sums = np.clip(point_N - breaks[:, None], low_N, high_N).sum(axis=1)
    right = min(max(int(np.searchsorted(-sums, -1.0)), 1), len(breaks) - 1)
    above, below = sums[right - 1], sums[right]
    share = (above - 1.0) / (above - below) if above > below else 0.0
    tau = breaks[right - 1] + min(max(share, 0.0), 1.0) * (breaks[right] - breaks[right - 1])
    found_N = np.clip(point_N - tau, low_N, high_N)
    return np.asarray(found_N / found_N.sum())


def _dirichlet(names: Sequence[str], rng: np.random.Generator) -> dict[str, float]:
    return dict(zip(names, rng.dirichlet(np.ones(len(names))).tolist(), strict=True))


def _check(space: Space, more: Mapping[str, Iterable[str]]) -> None:
    """Raises ValueError for a name that is unknown, stands twice, or is required and forbidden."""
    if len(set(space.names)) < len(space.names):
        raise ValueError(f"names must be distinct: {space.names}")
    for key, used in {"require": space.require, "forbid": space.forbid, **more}.items():
        if unknown := ", ".join(sorted(set(used) - set(space.names))):
            known = ", ".join(sorted(space.names))
            raise ValueError(f"{key}: {unknown} unknown; there are {known}")
    if both := ", ".join(sorted(space.require & space.forbid)):
        raise ValueError(f"{both} both required and forbidden")


def _check_groups(
    groups: Sequence[frozenset[str]], require: frozenset[str], forbid: frozenset[str]
) -> None:
    """Raises ValueError for groups that overlap, or are split by what is required or forbidden."""
    met: set[str] = set()
    for group in groups:
        text, out = " + ".join(sorted(group)), group & forbid
        if twice := ", ".join(sorted(group & met)):
            raise ValueError(f"groups: {twice} in two of them; join those to one")
        met |= group
        if len(group) < 2:
            what = f"not {len(group)} ({text})"
            raise ValueError(f"groups: a group has at least two datasets, {what}")
        if out and group & require:
            split = f"{min(group & require)} is required, {min(out)} forbidden"
            raise ValueError(f"groups: {text} go together, but {split}")
        if out and group - forbid:
            split = f"of them only {', '.join(sorted(out))} is forbidden"
            raise ValueError(f"groups: {text} go together, but {split}")


def _check_positive(key: str, values: Mapping[str, float], names: Iterable[str]) -> None:
    """Raises ValueError if a name lacks its value, or that is not positive."""
    for name in names:
        if not values.get(name, 0) > 0:
            raise ValueError(f"{key}.{name} must be positive, not {values.get(name)}")


def _ways(units: Sequence[frozenset[str]]) -> list[dict[int, int]]:
    """Returns for every i in how many ways some of units[i:] have so many datasets."""
    ways: list[dict[int, int]] = [{0: 1}]
    for unit in reversed(units):
        more = dict(ways[-1])
        for size, count in ways[-1].items():
            more[size + len(unit)] = more.get(size + len(unit), 0) + count
        ways.append(more)
    return ways[::-1]


def _gray(
    units: Sequence[frozenset[str]], least: int, most: int, backwards: bool = False
) -> Iterator[frozenset[str]]:
    """Yields unions of units, of `least` to `most` names, in reflected Gray code (Gray 1953).

    Those without the last unit come first, those with it follow in reverse. If every unit is one
    name it takes time by the number of subsets given, not by the 2^N that there are without bounds.
    """
    if least > min(most, sum(map(len, units))) or most < 0:
        return
    if not units:
        yield frozenset()
        return
    *rest, last = units
    for with_last in (backwards, not backwards):
        taken = last if with_last else frozenset()
        for subset in _gray(rest, least - len(taken), most - len(taken), with_last != backwards):
            yield subset | taken
