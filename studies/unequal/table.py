"""How well proxies rank, what is lost, and whether intervals hold, in worlds kept by example.

python studies/unequal/table.py [--weighting sqrt_tokens] WORLD.json.gz ...

The first table has Spearman between predictors and real fine-tunes over the mixtures of several
datasets, mean over targets and seeds: merges by their weights at exponent 1, the experts pooled,
the strongest experts, the prediction before any check, and, where a file has two seeds, the real
fine-tunes of the other one, which no predictor can be expected to pass. The second has the
normalised regret on the report part (0 is the best mixture, 1 a random pick): the floor, which is
the best of all real fine-tunes by their select scores, the pick after 0 to 5 checks, and what the
other seed's real fine-tunes would pick, with no check and with its best three checked.
The third has the share of 90% intervals for the report part that hold. The last has how far the
select and the report part lie apart, in the standard deviations that the drawn examples give: the
mean of all mixtures for each target, and of those the root mean square. All intervals of a target
share that one draw.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1]))
import recorded

from mergetomix.records import Weighting
from mergetomix.statistics.posterior import Array
from mergetomix.study import compare, rivals
from mergetomix.study.truth import World

CHECKS = (0, 1, 2, 3, 5)


def main() -> None:
    """Prints the four tables, a column for each file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--weighting", default="sqrt_tokens", choices=list(recorded.POWERS))
    given = parser.parse_args()
    files = {f"{path.parent.name}/{path.name.split('.')[0]}": path for path in given.files}
    found = {name: recorded.worlds(path, given.weighting) for name, path in files.items()}
    worlds = {name: own for name, own in found.items() if own}
    show("Spearman", {name: ranks(files[name], own) for name, own in worlds.items()})
    show("regret", {name: regrets(own) for name, own in worlds.items()})
    show("coverage", {name: coverage(own) for name, own in worlds.items()})
    show("parts apart", {name: parts_apart(own) for name, own in worlds.items()})


def show(title: str, columns: dict[str, dict[str, float]]) -> None:
    """Prints a table of Markdown, with the mean of each line."""
    print(f"| {title} | {' | '.join(columns)} | mean |")
    print("|---" * (len(columns) + 2) + "|")
    for line in dict.fromkeys(line for own in columns.values() for line in own):
        values = [own.get(line, np.nan) for own in columns.values()]
        cells = " | ".join("" if np.isnan(value) else f"{value:.3f}" for value in values)
        print(f"| {line} | {cells} | {np.nanmean(values):.3f} |")
    print()


def ranks(path: Path, worlds: Sequence[World]) -> dict[str, float]:
    """Returns the mean rank correlation of every predictor."""
    found: dict[str, list[float]] = {}
    weightings: Sequence[Weighting] = list(recorded.POWERS)
    by = {each: recorded.worlds(path, each) for each in weightings}
    for place, world in enumerate(worlds):
        several = [row for row, mixture in enumerate(world.mixtures) if len(mixture) > 1]
        rank = ranking(world.real_select_M, several)
        for each in weightings:
            if 1.0 in by[each][place].proxies:
                found.setdefault(f"merges, {each}", []).append(rank(by[each][place].proxy_M))
        found.setdefault("pooled", []).append(rank(world.pooled_M))
        strongest_M = world.views().strongest_M
        assert strongest_M is not None
        found.setdefault("strongest", []).append(rank(strongest_M))
        first = rivals.checked(world, 0)[0].posterior
        found.setdefault("predicted", []).append(rank(first.mean_M))
        for other in of_other_seeds(world, worlds):
            found.setdefault("other seed", []).append(rank(other.real_select_M))
    return {name: fmean(values) for name, values in found.items()}


def ranking(real_M: Array, rows: Sequence[int]) -> Callable[[Array], float]:
    """Returns how well some scores rank the real ones of some mixtures."""
    chosen = list(rows)
    return lambda own_M: float(stats.spearmanr(own_M[chosen], real_M[chosen]).statistic)


def regrets(worlds: Sequence[World]) -> dict[str, float]:
    """Returns the floor, and the regret after some checks."""
    found = {
        "floor": fmean(recorded.regret(each, int(each.real_select_M.argmax())) for each in worlds)
    }
    for num in CHECKS:
        picks = [(each, rivals.checked(each, num)[-1].pick) for each in worlds]
        found[f"{num} checks"] = fmean(recorded.regret(world, pick) for world, pick in picks)
    for num in (0, 3):
        lost = [
            recorded.regret(world, picked_by(other, world, num))
            for world in worlds
            for other in of_other_seeds(world, worlds)
        ]
        if lost:
            found[f"other seed, {num} checks"] = fmean(lost)
    return found


def of_other_seeds(world: World, worlds: Sequence[World]) -> list[World]:
    """Returns the worlds of the same target whose fine-tunes had another seed."""
    return [other for other in worlds if other.target == world.target and other is not world]


def picked_by(other: World, world: World, num_checks: int) -> int:
    """Returns the pick of one who knows all real fine-tunes of another seed.

    That is the best of them, or of a few checks of the best and all single datasets, whose real
    scores with this world's seed are known.
    """
    if not num_checks:
        return int(other.real_select_M.argmax())
    alone = [row for row, mixture in enumerate(world.mixtures) if len(mixture) == 1]
    others = [int(row) for row in np.argsort(-other.real_select_M) if int(row) not in alone]
    return max([*alone, *others[:num_checks]], key=lambda row: float(world.real_select_M[row]))


def coverage(worlds: Sequence[World]) -> dict[str, float]:
    """Returns the share of intervals that hold after some checks."""
    found = compare.coverage(worlds, 0.9)
    return {f"{each.num_checks} checks": each.share for each in found}


def parts_apart(worlds: Sequence[World]) -> dict[str, float]:
    """Returns how far the parts of the targets lie apart, in what their examples' draw would give.

    Seeds of one target have one draw.
    """
    by_target: dict[str, list[float]] = {}
    for world in worlds:
        noise = world.noise([], 0.0)
        sd_M = np.sqrt(noise.variance_M + noise.report_M)
        apart_M = (world.report_as_select_M - world.real_select_M)[sd_M > 0] / sd_M[sd_M > 0]
        by_target.setdefault(world.target, []).append(float(apart_M.mean()))
    apart = np.array([fmean(values) for values in by_target.values()])
    return {"sds": float(np.sqrt((apart**2).mean())), "targets": len(apart)}


if __name__ == "__main__":
    main()
