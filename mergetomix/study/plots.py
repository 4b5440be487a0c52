"""The pictures of a study, as SVG files: proxy against real for every target, and regret against compute."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mergetomix.errors import UserError
from mergetomix.statistics.posterior import Array
from mergetomix.study.rivals import checked
from mergetomix.study.truth import World

COLUMNS = 3


def proxy_against_real(worlds: Sequence[World], path: Path) -> None:
    """One panel for each target: every mixture of every seed, its proxy against its real fine-tune on the select part, with the
    pick of the first seed marked."""
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
    for number, world in enumerate(worlds):
        sizes_M = [len(mixture) for mixture in world.mixtures]
        dots = axis.scatter(
            world.proxy_M, world.real_select_M, c=sizes_M, s=10, cmap="viridis", alpha=0.7
        )
        pick = checked(world, 3)[-1].pick
        if number == 0:
            axis.scatter(
                [world.proxy_M[pick]],
                [world.real_select_M[pick]],
                s=110,
                marker="*",
                c="crimson",
                label="pick",
            )
    axis.figure.colorbar(dots, ax=axis, label="datasets in the mixture")
    unit = f"- loss, {worlds[0].unit}" if worlds[0].kind == "loss" else "score"
    axis.set_title(worlds[0].target)
    axis.set_xlabel(f"proxy ({unit})")
    axis.set_ylabel(f"real ({unit})")
    axis.legend(loc="lower right")


def regret_against_compute(curves: Mapping[str, tuple[Array, Array]], path: Path) -> None:
    """The mean normalised regret of every rival; compute as a share of our method's with three checks. A point is a rival that
    spends one fixed amount."""
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(9, 5.5))
    colours = plt.get_cmap("tab20").colors
    for number, (name, (compute_G, regret_G)) in enumerate(curves.items()):
        ours = name.startswith("Merge to Mix")
        shown = np.isfinite(regret_G)
        if not shown.any():
            continue
        axis.plot(
            compute_G,
            regret_G,
            label=name,
            color=colours[number % 20],
            linewidth=2.5 if ours else 1.2,
        )
        start = int(np.argmax(shown))
        axis.plot(
            [compute_G[start]],
            [regret_G[start]],
            marker="o",
            markersize=4,
            color=colours[number % 20],
        )
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
