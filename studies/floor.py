"""What a choice with three checks loses, beside the floor that the noise leaves, over many worlds.

python studies/floor.py FILE ...

A file is a study (`study.json`) or worlds by example (`worlds.py`). The floor is the best of all
real fine-tunes by their select scores. Printed are the normalised regrets on the report part by
file, and over all worlds, and their difference with a 90% interval over the targets: worlds of one
target that differ in the seed alone stand or fall together.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import recorded

from mergetomix.study import document, rivals
from mergetomix.study.truth import World

NUM_CHECKS = 3
NUM_BOOTSTRAPS = 10_000


def main(paths: Sequence[Path]) -> None:
    """Prints a line for each file, and one for all."""
    print("| worlds | number | 3 checks | floor | difference |\n|---|---|---|---|---|")
    by_target: dict[str, list[tuple[float, float]]] = {}
    for path in paths:
        name = f"{path.parent.name}/{path.name.split('.')[0]}"
        found = []
        for world in worlds_of(path):
            pick = rivals.checked(world, NUM_CHECKS)[-1].pick
            both = (
                recorded.regret(world, pick),
                recorded.regret(world, int(world.real_select_M.argmax())),
            )
            found.append(both)
            # the unequal worlds have the same targets, and other suites targets of their own
            by_target.setdefault(f"{path.parent.name} {world.target}", []).append(both)
        line(name, found)
    groups = list(by_target.values())
    line(f"all, {len(groups)} targets", [each for own in groups for each in own], interval(groups))


def worlds_of(path: Path) -> list[World]:
    """Returns the worlds of a file, merged as the study's recipe says."""
    if path.suffix == ".json":
        return document.read_worlds(path)
    return recorded.worlds(path, recorded.weighting_of(path))


def interval(groups: Sequence[Sequence[tuple[float, float]]]) -> str:
    """Returns the 90% interval of the mean difference, by a bootstrap over groups of worlds."""
    sums = np.array([sum(own - floor for own, floor in group) for group in groups])
    sizes = np.array([len(group) for group in groups])
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(sums), size=(NUM_BOOTSTRAPS, len(sums)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.05, 0.95])
    return f" [{low:+.3f}, {high:+.3f}]"


def line(name: str, found: Sequence[tuple[float, float]], ends: str = "") -> None:
    """Prints the means of some worlds."""
    own, floor = np.mean(found, axis=0)
    print(f"| {name} | {len(found)} | {own:.3f} | {floor:.3f} | {own - floor:+.3f}{ends} |")


if __name__ == "__main__":
    main([Path(each) for each in sys.argv[1:]])
