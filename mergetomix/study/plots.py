"""The pictures of a study, as SVG files: proxy against real for every target, regret by compute."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mergetomix.errors import UserError
from mergetomix.statistics.posterior import Array
from mergetomix.study.compare import NUM_CHECKS
from mergetomix.study.rivals import checked
from mergetomix.study.truth import World

COLUMNS = 3


def proxy_against_real(worlds: Sequence[World], path: Path) -> None:
    """Draws every mixture's proxy against its real fine-tune, select part, a panel for each target.

    The panel has all seeds and marks the pick of the first.
    """
    plt = _pyplot()
    targets = list(dict.fromkeys(world.target for world in worlds))
    rows = math.ceil(len(targets) / COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(4 * COLUMNS, 3.6 * rows), squeeze=False)
    for axis in axes.flat[len(targets) :]:
        axis.set_visible(False)
    for axis, target in zip(axes.flat, targets, strict=False):
        _panel(axis, [world for world in worlds if world.target == target])
    _save(figure, path)


def _panel(axis: Any, worlds: Sequence[World]) -> None:
    dots = {"s": 10, "cmap": "viridis", "alpha": 0.7}
    star = {"s": 110, "marker": "*", "c": "crimson", "label": "pick"}
    for number, world in enumerate(worlds):
        sizes_M = [len(mixture) for mixture in world.mixtures]
        drawn = axis.scatter(world.proxy_M, world.real_select_M, c=sizes_M, **dots)
        if number == 0:
            pick = checked(world, NUM_CHECKS)[-1].pick
            axis.scatter(world.proxy_M[pick], world.real_select_M[pick], **star)
    axis.figure.colorbar(drawn, ax=axis, label="datasets in the mixture")
    unit = f"- loss, {worlds[0].unit}" if worlds[0].kind == "loss" else "score"
    axis.set(title=worlds[0].target, xlabel=f"proxy ({unit})", ylabel=f"real ({unit})")
    axis.legend(loc="lower right")


def regret_against_compute(curves: Mapping[str, tuple[Array, Array]], path: Path) -> None:
    """Draws the mean normalised regret of every rival by compute.

    Compute is a share of our method's with three checks; a point is a rival that spends one fixed
    amount.
    """
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(9, 5.5))
    colours = plt.get_cmap("tab20").colors
    for number, (name, (compute_G, regret_G)) in enumerate(curves.items()):
        shown = np.isfinite(regret_G)
        if not shown.any():
            continue
        start, width = int(np.argmax(shown)), 2.5 if name.startswith("Merge to Mix") else 1.2
        colour = colours[number % len(colours)]
        axis.plot(compute_G, regret_G, label=name, color=colour, linewidth=width)
        axis.plot(compute_G[start], regret_G[start], marker="o", markersize=4, color=colour)
    axis.set_xlabel("compute, as a share of Merge to Mix with three checks")
    axis.set_ylabel("mean normalised regret (0: the best mixture, 1: a random pick)")
    axis.axhline(0, color="grey", linewidth=0.5)
    axis.legend(fontsize=7, loc="upper right")
    _save(figure, path)


def _pyplot() -> Any:
    try:
        import matplotlib as mpl
    except ImportError:
        raise UserError("plots need matplotlib", hint='pip install "mergetomix[study]"') from None
    mpl.use("Agg")
    # no date and no random ids: the same study writes the same file
    mpl.rcParams["svg.hashsalt"] = "mergetomix"
    import matplotlib.pyplot as plt

    return plt


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    _pyplot().close(figure)
