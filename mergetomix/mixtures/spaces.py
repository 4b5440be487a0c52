"""Spaces of mixtures: which subsets of the datasets may be chosen, in which order, how to draw from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mergetomix.records import Mixture

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Subsets:
    """Subsets of `names` of `least` to `most` datasets that hold all of `require`, none of `forbid`, and of each of `groups`
    either all datasets or none.

    `sizes`, where given, makes the weights of a subset proportional to them; else they are equal. Raises ValueError where these
    contradict each other, with what does.
    """

    names: tuple[str, ...]
    least: int = 1
    most: int | None = None
    require: frozenset[str] = frozenset()
    forbid: frozenset[str] = frozenset()
    sizes: Mapping[str, float] | None = field(default=None, compare=False)
    groups: tuple[frozenset[str], ...] = ()

    def __post_init__(self) -> None:
        check_names(
            self.names,
            {
                "require": self.require,
                "forbid": self.forbid,
                "groups": frozenset().union(*self.groups),
            },
        )
        check_fates(self.require, self.forbid)
        check_groups(self.groups, self.require, self.forbid)
        check_positive("sizes", self.sizes, self.allowed)
        if not self.num_by_size:
            most = len(self.names) if self.most is None else self.most
            raise ValueError(
                f"no mixture has at least {self.least} and at most {most} datasets{self._given()}"
            )

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
        """What may be in or out, each as a whole: groups, and datasets of none; in order of their first names."""
        together = {name: group for group in self.groups for name in group}
        found = (
            together.get(name, frozenset([name])) for name in self.allowed if name not in self.fixed
        )
        return tuple(dict.fromkeys(found))

    @property
    def free(self) -> tuple[str, ...]:
        """Names that may be in or out."""
        return tuple(name for name in self.allowed if name not in self.fixed)

    @property
    def bounds(self) -> tuple[int, int]:
        """Fewest and most datasets of a mixture, all constraints counted."""
        return min(self.num_by_size), max(self.num_by_size)

    @cached_property
    def num_by_size(self) -> dict[int, int]:
        """How many mixtures there are of each number of datasets, without those numbers that have none."""
        most = len(self.names) if self.most is None else self.most
        ways = _ways(self.units)[0]
        sizes = range(max(self.least, 1), most + 1)
        return {
            size: ways[size - len(self.fixed)] for size in sizes if ways.get(size - len(self.fixed))
        }

    @property
    def size(self) -> int:
        """How many mixtures there are; `len` fails where that is more than an index can be, from 63 datasets on."""
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
        """Every mixture once, in Gray order: without bounds on the size, neighbours differ by one unit."""
        (least, most), num = self.bounds, len(self.fixed)
        for chosen in _gray(self.units, least - num, most - num):
            yield self.mixture(self.fixed | chosen)

    def mixture(self, datasets: Iterable[str]) -> Mixture:
        """The mixture of some datasets with this space's weights."""
        return Mixture.union(datasets, self.sizes)

    def smallest(self) -> frozenset[str]:
        """Of the subsets with the fewest datasets one that holds early names."""
        return self.fixed.union(*_first(self.units, self.bounds[0] - len(self.fixed)))

    def larger(self, datasets: frozenset[str]) -> list[frozenset[str]]:
        """The subsets with one unit more."""
        return [
            more for unit in self.units if not unit & datasets and (more := datasets | unit) in self
        ]

    def smaller(self, datasets: frozenset[str]) -> list[frozenset[str]]:
        """The subsets with one unit less."""
        return [
            less for unit in self.units if unit & datasets and (less := datasets - unit) in self
        ]

    def exchanged(self, datasets: frozenset[str]) -> list[frozenset[str]]:
        """The subsets with another unit in the place of one."""
        leave = [unit for unit in self.units if unit & datasets]
        enter = [unit for unit in self.units if not unit & datasets]
        return [other for old in leave for new in enter if (other := datasets - old | new) in self]

    def sample(self, num: int, seed: int) -> list[Mixture]:
        """`num` distinct mixtures (or all, where there are fewer), each set equally likely, drawn by `seed`."""
        rng = np.random.default_rng(seed)
        sizes = np.array(list(self.num_by_size))
        share = np.array([float(count) for count in self.num_by_size.values()])
        drawn: dict[frozenset[str], None] = {}
        while len(drawn) < min(num, self.size):
            size = int(rng.choice(sizes, p=share / share.sum())) - len(self.fixed)
            drawn[self.fixed.union(*_draw(self.units, size, rng))] = None
        return [self.mixture(datasets) for datasets in drawn]

    def _given(self) -> str:
        """The constraints beside the bounds, for a message."""
        parts = [
            f"all of {sorted(self.fixed)}" if self.fixed else "",
            f"none of {sorted(self.forbid)}" if self.forbid else "",
        ]
        parts += [f"all or none of {sorted(group)}" for group in self.groups]
        said = [part for part in parts if part]
        return f" with {', '.join(said)}" if said else ""


LEAST_SHARE = 1e-3
"""The smallest weight that a mixture is given here: a dataset with less might as well be left out."""
ROUNDING = 1e-9
MAX_TRIES = 100


@dataclass(frozen=True)
class Simplex:
    """Weights over `least` to `most` of `names`, among them all of `require` and none of `forbid`: each weight is zero, or at
    least `min_share` and at most its dataset's share of `caps`; together they are one.

    Raises ValueError where these contradict each other, with what does.
    """

    names: tuple[str, ...]
    least: int = 1
    most: int | None = None
    require: frozenset[str] = frozenset()
    forbid: frozenset[str] = frozenset()
    min_share: float = 0.0
    caps: Mapping[str, float] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_names(
            self.names, {"require": self.require, "forbid": self.forbid, "caps": self.caps or {}}
        )
        check_fates(self.require, self.forbid)
        check_positive("caps", self.caps, self.caps or {})
        if not 0 <= self.min_share <= 1:
            raise ValueError(f"min_share must be from 0 to 1, not {self.min_share}")
        for name in sorted(self.require):
            if self.cap(name) < self.min_share:
                raise ValueError(
                    f"{name} is required, but its cap of {self.cap(name):.4g} is below min_share, {self.min_share:.4g}"
                )
        if not self._numbers:
            raise ValueError(self._contradiction())

    @cached_property
    def allowed(self) -> tuple[str, ...]:
        """Names that may stand in a mixture, in order."""
        possible = set(self.names) - self.forbid
        return tuple(name for name in sorted(possible) if self.cap(name) >= self.min_share)

    def cap(self, name: str) -> float:
        """The largest weight of a dataset."""
        return self._caps.get(name, 1.0)

    @cached_property
    def _caps(self) -> dict[str, float]:
        return {name: min(1.0, cap) for name, cap in (self.caps or {}).items()}

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

    @cached_property
    def _numbers(self) -> tuple[int, ...]:
        """How many datasets a mixture may have."""
        others = sorted(
            (self.cap(name) for name in self.allowed if name not in self.require), reverse=True
        )
        needed = sum(self.cap(name) for name in self.require)
        most = len(self.allowed) if self.most is None else min(self.most, len(self.allowed))
        numbers = range(max(self.least, len(self.require), 1), most + 1)
        room = [needed + sum(others[: num - len(self.require)]) for num in numbers]
        return tuple(
            num
            for num, caps in zip(numbers, room, strict=True)
            if caps >= 1 - ROUNDING and num * self.min_share <= 1 + ROUNDING
        )

    def _contradiction(self) -> str:
        """Why there is no mixture."""
        most = len(self.allowed) if self.most is None else min(self.most, len(self.allowed))
        least = max(self.least, len(self.require), 1)
        if least > most:
            small = sorted(set(self.names) - self.forbid - set(self.allowed))
            capped = (
                f"; the caps of {', '.join(small)} are below min_share, {self.min_share:.4g}"
                if small
                else ""
            )
            possible = f"the {len(self.allowed)} datasets that may be in one{capped}"
            return f"no mixture has at least {least} and at most {most} of {possible}"
        if least * self.min_share > 1:
            return f"min_share: {least} datasets of at least {self.min_share:.4g} each would have more than one in all"
        return f"caps: no {most} datasets together may have a weight of one with min_share {self.min_share:.4g}"

    def __contains__(self, mixture: object) -> bool:
        if not isinstance(mixture, Mixture):
            return False
        weights = {name: weight for name, weight in mixture.as_dict().items() if weight > 0}
        fit = all(
            self.min_share - ROUNDING <= weight <= self.cap(name) + ROUNDING
            for name, weight in weights.items()
        )
        return (
            fit
            and len(weights) in self._numbers
            and self.require <= set(weights) <= set(self.allowed)
        )

    def holds(self, support: frozenset[str]) -> bool:
        """Whether some mixture has exactly these datasets."""
        caps = sum(self.cap(name) for name in support)
        return (
            len(support) in self._numbers
            and self.require <= support <= set(self.allowed)
            and caps >= 1 - ROUNDING
        )

    def project(self, weights: Mapping[str, float], support: frozenset[str]) -> Mixture:
        """The mixture of exactly `support` that is nearest to `weights` (Euclidean), each at least `floor` where that fits.

        w_i = min(max(x_i - tau, low), cap_i) with tau such that they sum to one; exact, as the sum is piecewise linear in tau.
        Raises ValueError where no mixture has this support.
        """
        if not self.holds(support):
            raise ValueError(f"no mixture has exactly the datasets {sorted(support)}")
        names = tuple(sorted(support))
        high_N = np.array([self.cap(name) for name in names])
        low_N = np.minimum(min(self.floor, 1 / len(names)), high_N)
        found_N = nearest_in_box(
            np.array([float(weights.get(name, 0.0)) for name in names]), low_N, high_N
        )
        return Mixture(names, tuple(found_N.tolist()))

    def nearest(self, weights: Mapping[str, float]) -> Mixture:
        """A mixture near to `weights`: as many of the heaviest as the constraints ask for, and those above half the floor."""
        least, most = self.bounds
        chosen = sorted(
            self.allowed, key=lambda name: (name not in self.require, -weights.get(name, 0.0), name)
        )[:most]
        heavy = sum(
            name in self.require or weights.get(name, 0.0) > self.floor / 2 for name in chosen
        )
        for num in range(max(least, heavy), most + 1):
            if self.holds(frozenset(chosen[:num])):
                return self.project(weights, frozenset(chosen[:num]))
        roomy = sorted(
            self.allowed, key=lambda name: (name not in self.require, -self.cap(name), name)
        )
        return self.project(
            weights, next(s for num in self._numbers if self.holds(s := frozenset(roomy[:num])))
        )

    def uniform(self) -> Mixture:
        """The mixture nearest to equal weights."""
        return self.nearest(dict.fromkeys(self.allowed, 1 / len(self.allowed)))

    def vertices(self) -> list[Mixture]:
        """For every dataset the mixture that is nearest to it alone, each once."""
        return list(dict.fromkeys(self.nearest({name: 1.0}) for name in self.allowed))

    def sample(self, num: int, seed: int) -> list[Mixture]:
        """`num` mixtures drawn by `seed`: how many datasets, then which, then their weights (Dirichlet, all parameters one),
        brought within the constraints where they are not."""
        rng = np.random.default_rng(seed)
        return [self._drawn(rng) for _ in range(num)]

    def _drawn(self, rng: np.random.Generator) -> Mixture:
        others = [name for name in self.allowed if name not in self.require]
        for _ in range(MAX_TRIES):
            num = int(rng.choice(self._numbers)) - len(self.require)
            support = self.require | {
                others[i] for i in rng.choice(len(others), size=num, replace=False)
            }
            if self.holds(support):
                names = sorted(support)
                return self.project(
                    dict(zip(names, rng.dirichlet(np.ones(len(names))).tolist(), strict=True)),
                    support,
                )
        return self.nearest(
            dict(zip(self.allowed, rng.dirichlet(np.ones(len(self.allowed))).tolist(), strict=True))
        )


Space = Subsets | Simplex


def everything(space: Space) -> Mixture:
    """The mixture of all datasets that a space allows, with its weights or as near to equal ones as it allows."""
    return space.uniform() if isinstance(space, Simplex) else space.mixture(space.allowed)


def holds(space: Space, mixture: Mixture) -> bool:
    """Whether a mixture may be chosen; the weights of a subset are the space's own."""
    return mixture in space if isinstance(space, Simplex) else frozenset(mixture.members) in space


def nearest_in_box(point_N: Array, low_N: Array, high_N: Array) -> Array:
    """The point nearest to `point_N` with low <= w <= high that sums to one; sum(low) <= 1 <= sum(high) must hold."""
    breaks = np.sort(np.concatenate([point_N - high_N, point_N - low_N]))
    sums = np.clip(point_N - breaks[:, None], low_N, high_N).sum(
        axis=1
    )  # falls from sum(high) to sum(low)
    right = min(max(int(np.searchsorted(-sums, -1.0)), 1), len(breaks) - 1)
    above, below = sums[right - 1], sums[right]
    share = (above - 1.0) / (above - below) if above > below else 0.0
    tau = breaks[right - 1] + min(max(share, 0.0), 1.0) * (breaks[right] - breaks[right - 1])
    found_N = np.clip(point_N - tau, low_N, high_N)
    return np.asarray(found_N / found_N.sum())


def check_names(names: Sequence[str], used: Mapping[str, Iterable[str]]) -> None:
    """Raises ValueError for a name that stands twice, or is used and is none of `names`."""
    if len(set(names)) < len(names):
        raise ValueError(f"names must be distinct: {tuple(names)}")
    for key, some in used.items():
        if unknown := sorted(set(some) - set(names)):
            raise ValueError(
                f"{key}: {', '.join(unknown)} unknown; there are {', '.join(sorted(names))}"
            )


def check_fates(require: frozenset[str], forbid: frozenset[str]) -> None:
    """Raises ValueError for a name that is both required and forbidden."""
    if both := sorted(require & forbid):
        raise ValueError(f"{', '.join(both)} both required and forbidden")


def check_groups(
    groups: Sequence[frozenset[str]], require: frozenset[str], forbid: frozenset[str]
) -> None:
    """Raises ValueError for groups that overlap, or are split by what is required and forbidden."""
    met: set[str] = set()
    for group in groups:
        text = " + ".join(sorted(group))
        if twice := sorted(group & met):
            raise ValueError(f"groups: {', '.join(twice)} in two of them; join those to one")
        met |= group
        if len(group) < 2:
            raise ValueError(
                f"groups: a group has at least two datasets, not {len(group)} ({text})"
            )
        if group & forbid and group & require:
            raise ValueError(
                f"groups: {text} go together, but {min(group & require)} is required, {min(group & forbid)} forbidden"
            )
        if group & forbid and group - forbid:
            raise ValueError(
                f"groups: {text} go together, but of them only {', '.join(sorted(group & forbid))} is forbidden"
            )


def check_positive(key: str, values: Mapping[str, float] | None, names: Iterable[str]) -> None:
    """Raises ValueError where a name lacks its value, or that is not positive."""
    if values is None:
        return
    for name in names:
        if not values.get(name, 0) > 0:
            raise ValueError(f"{key}.{name} must be positive, not {values.get(name)}")


Unit = frozenset[str]


def _ways(units: Sequence[Unit]) -> list[dict[int, int]]:
    """For every i, in how many ways some of units[i:] have so many datasets."""
    ways: list[dict[int, int]] = [{0: 1}]
    for unit in reversed(units):
        more = dict(ways[-1])
        for size, count in ways[-1].items():
            more[size + len(unit)] = more.get(size + len(unit), 0) + count
        ways.append(more)
    return ways[::-1]


def _first(units: Sequence[Unit], size: int) -> list[Unit]:
    """Some units of `size` datasets in all, the earlier ones where there is a choice."""
    ways, chosen = _ways(units), []
    for i, unit in enumerate(units):
        if ways[i + 1].get(size - len(unit)):
            chosen.append(unit)
            size -= len(unit)
    return chosen


def _draw(units: Sequence[Unit], size: int, rng: np.random.Generator) -> list[Unit]:
    """Some units of `size` datasets in all, every choice equally likely."""
    if all(len(unit) == 1 for unit in units):
        return [units[i] for i in rng.choice(len(units), size=size, replace=False)]
    ways, chosen = _ways(units), []
    for i, unit in enumerate(units):
        if rng.random() * ways[i][size] < ways[i + 1].get(size - len(unit), 0):
            chosen.append(unit)
            size -= len(unit)
    return chosen


def _gray(
    units: Sequence[Unit], least: int, most: int, backwards: bool = False
) -> Iterator[frozenset[str]]:
    """Unions of units, of `least` to `most` names, in the order of the reflected binary Gray code (Gray 1953).

    Those without the last unit come first, those with it follow in reverse. Where every unit is one name it takes time by the
    number of subsets given, not by the 2^N that there are without bounds.
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
