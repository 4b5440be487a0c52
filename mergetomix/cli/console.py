"""Tables for the terminal, drawn with rich and plain where the output is no terminal."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mergetomix.progress import duration
from mergetomix.recipe.recipe import Recipe
from mergetomix.records import Finetune
from mergetomix.report import markdown
from mergetomix.report.compromise import front_of, given_up
from mergetomix.results import Result, Selection, Verification
from mergetomix.search.strategies import counted
from mergetomix.stages.plan import Plan
from mergetomix.store.store import Store

SAMPLE_CHARS = 160


def show_result(result: Result, recipe: Recipe) -> None:
    """The ranking, the selection, the final table, what it cost, and where everything is."""
    show_ranking(result.selection, recipe)
    if result.verification is not None:
        show_verification(result.verification)
    show_given_up(result.selection, result.verification)
    title = "Final table: examples that the search never saw"
    _table(
        title,
        markdown.final_header(recipe),
        [markdown.final_cells(row, recipe) for row in result.table],
    )
    _line(markdown.legend(recipe))
    for text in markdown.verdict(result):
        _line(f"selected: {text}")
    _table("Cost", ["what", "seconds"], markdown.cost_cells(result))
    _line(f"report: {result.run_dir}/report.md")
    if result.row("final") is not None:
        _line(f"model:  {result.run_dir}/final")


def show_ranking(selection: Selection, recipe: Recipe) -> None:
    """The best trials, and the mixture chosen."""
    shown = selection.trials[: markdown.NUM_RANKED]
    title = f"Ranking: best {len(shown)} of {markdown.num_proxies(selection)} ({selection.strategy} search)"
    rows = [markdown.rank_cells(i + 1, trial, recipe) for i, trial in enumerate(shown)]
    _table(title, markdown.rank_header(recipe), rows)
    if selection.objective is not None and selection.objective.aim == "pareto":
        front = front_of(selection)
        _table(
            f"Front: {markdown.front_text(front)}",
            markdown.front_header(selection),
            markdown.front_cells(front, selection),
        )
    if selection.stopped:
        _line(markdown.racing_text(selection))
    _line(f"best by proxy: {markdown.mixture_text(selection.mixture)}")


def show_verification(verification: Verification) -> None:
    """The checks, the pick, what cannot be told apart from it, and how well proxies rank."""
    _table(
        "Checks: real fine-tunes on the select part",
        markdown.CHECK_HEADER,
        markdown.check_cells(verification),
    )
    for text in markdown.verification_lines(verification):
        _line(text)


def show_given_up(selection: Selection, verification: Verification | None = None) -> None:
    """What the pick gives up on every target; nothing where there is one."""
    lines = given_up(selection, verification)
    if lines:
        title = "What each target gives up: gains of proxies on the select part"
        _table(title, markdown.GIVEN_UP_HEADER, markdown.given_up_cells(lines))
        if units := markdown.units_text(selection):
            _line(units)


def show_experts(experts: Sequence[Finetune]) -> None:
    """What each expert took, and where it is."""
    rows = [
        [e.dataset, str(e.num_examples), str(e.num_tokens), f"{e.train_s:.1f}", e.path]
        for e in experts
    ]
    _table("Experts", ["dataset", "sequences", "tokens trained", "seconds", "path"], rows)


def show_plan(plan: Plan) -> None:
    """Datasets as training sees them, targets, and what the run will take."""
    for dataset in plan.datasets:
        _line(
            f"{dataset.name}: columns {', '.join(dataset.columns)}"
            if dataset.columns
            else f"{dataset.name}:"
        )
        for sample in dataset.samples:
            _line("    " + " ".join(_piece(text, scored) for text, scored in sample))
    _line("(in [brackets]: what is trained on)")
    rows = [
        [d.name, str(d.num_rows), str(d.num_examples), str(d.num_sequences), str(d.num_tokens)]
        for d in plan.datasets
    ]
    _table("Datasets", ["name", "rows", "examples taken", "sequences", "tokens"], rows)
    rows = [[t.name, t.score, str(t.num_select), str(t.num_report)] for t in plan.targets]
    _table("Targets", ["name", "score", "examples for the search", "for the final table"], rows)
    _table("Plan", ["what", "value"], plan_cells(plan))


def plan_cells(plan: Plan) -> list[list[str]]:
    """The plan's figures, the cost beside that of fine-tuning on every mixture."""
    total = plan.train_s + plan.evaluate_s
    return [
        ["fine-tunes", f"{plan.num_finetunes}, of which {plan.num_reused} are in the store"],
        [
            "mixtures tried",
            f"{plan.num_mixtures} of {counted(plan.num_space)} ({plan.strategy} search)",
        ],
        [
            "time expected",
            f"{duration(total)}: {duration(plan.train_s)} training, {duration(plan.evaluate_s)} search",
        ],
        ["disk expected", f"{plan.disk_bytes / 1e6:.0f} MB of {plan.free_bytes / 1e9:.0f} GB free"],
        [
            f"fine-tuning on every mixture{' tried' if math.isinf(plan.num_space) else ''}",
            duration(plan.brute_force_s),
        ],
    ]


def show_status(store: Store) -> None:
    """What a store holds and how far its runs are."""
    counts = store.counts()
    _table(
        f"Store {store.path}",
        ["what", "count"],
        [[name.replace("_", " "), str(n)] for name, n in counts.items()],
    )
    rows = [
        [str(run["id"]), str(run["run_dir"]), state_of(run), str(run["started"])]
        for run in store.runs()[-10:]
    ]
    _table("Runs", ["id", "folder", "state", "started"], rows)


def state_of(run: dict[str, Any]) -> str:
    """A run's state in a few words."""
    if run["outcome"]:
        return str(run["outcome"])
    if not run["alive"]:
        return (
            f"stopped at {run['stage']}, {run['done']} of {run['total']}; the same command goes on"
        )
    return f"running: {run['stage']}, {run['done']} of {run['total']}"


def _piece(text: str, scored: bool) -> str:
    short = text if len(text) <= SAMPLE_CHARS else text[:SAMPLE_CHARS] + "..."
    shown = repr(short)[1:-1]
    return f"[{shown}]" if scored else shown


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    _line(f"\n{title}")
    table = Table(box=box.SIMPLE_HEAD)
    for i, name in enumerate(header):
        numeric = bool(rows) and all(_is_number(row[i]) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*[cell.replace("[", "\\[") for cell in row])
    _console().print(table)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _line(text: str) -> None:
    _console().print(text, markup=False, highlight=False, soft_wrap=True)


def _console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=160)
