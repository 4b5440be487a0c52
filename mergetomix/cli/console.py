"""Tables for the terminal, drawn with rich and plain if the output is no terminal."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mergetomix.cli.first_recipe import Look
from mergetomix.data.examples import Example
from mergetomix.progress import duration
from mergetomix.recipe.recipe import Recipe
from mergetomix.records import Estimate, Finetune
from mergetomix.report import decision, sentences, tables
from mergetomix.report.target_gains import front_of, given_up
from mergetomix.results import Decision, Effects, Prediction, Result, Selection, Verification
from mergetomix.search.strategies import counted
from mergetomix.stages import requirements
from mergetomix.stages.plan import Plan
from mergetomix.store.collect import Unreached
from mergetomix.store.contents import Aside, Contents, KeptArtifact, KeptFinetune, by_kind
from mergetomix.store.store import Store

SAMPLE_CHARS = 160


def show_result(result: Result, recipe: Recipe) -> None:
    """Prints the decision, then what it rests on: ranking, checks, final table and cost."""
    _line(f"\n{result.decision.headline}\n")
    for text in decision.lines(result):
        _line(f"  {text}")
    show_ranking(result.selection, recipe)
    if result.verification is not None:
        show_verification(result.verification, result.decision, result.selection.blunt)
    show_given_up(result.selection, result.verification)
    if result.verification is not None and result.verification.effects is not None:
        show_effects(result.verification.effects, recipe)
    title = "Final table: examples that the search never saw"
    _show(title, tables.final(result.table, recipe))
    _line(sentences.legend(recipe, result.selection))
    _show("Cost", tables.costs(result.cost))
    _line(f"report: {result.run_dir}/report.html, and report.md")
    if result.row("final") is not None:
        _line(f"model:  {result.run_dir}/final")


def show_ranking(selection: Selection, recipe: Recipe) -> None:
    """Prints the best trials, and the mixture chosen."""
    ranking = tables.ranking(selection, recipe)
    num = f"best {len(ranking) - 1} of {sentences.num_proxies(selection)}"
    _show(f"Ranking: {num} ({selection.strategy} search)", ranking)
    if selection.objective is not None and selection.objective.aim == "pareto":
        front = front_of(selection)
        _show(f"Front: {sentences.front_size(front)}", tables.front(front, selection))
    if selection.stopped:
        _line(sentences.racing(selection))
    _line(f"best by proxy: {selection.mixture}")


def show_verification(
    verification: Verification, decided: Decision | None = None, blunt: Sequence[str] = ()
) -> None:
    """Prints the checks, the pick, what cannot be told apart from it, and how well proxies rank."""
    _show("Checks: real fine-tunes on the select part", tables.checks(verification))
    for text in sentences.verification_lines(verification, decided, blunt):
        _line(text)


def show_given_up(selection: Selection, verification: Verification | None = None) -> None:
    """Prints what the pick gives up on every target; nothing if there is one."""
    if lines := given_up(selection, verification):
        title = "What each target gives up: gains of proxies on the select part"
        _show(title, tables.given_up(lines))
        if units := sentences.units(selection):
            _line(units)


def show_tables(found: Mapping[str, tables.Table]) -> None:
    """Prints tables by title."""
    for title, lines in found.items():
        _show(title, lines)


def show_effects(effects: Effects, recipe: Recipe) -> None:
    """Prints what each dataset adds, and what stands out."""
    _show("What each dataset adds", tables.effects(effects, recipe))
    for text in sentences.effects(effects):
        _line(text)


def show_prediction(prediction: Prediction) -> None:
    """Prints what a fine-tune on a mixture is expected to gain."""
    found = Estimate(prediction.mean, prediction.low, prediction.high)
    chance = f"{prediction.best_probability:.0%}"
    measured = "measured on the select part" if prediction.measured else "not fine-tuned"
    _line(f"{prediction.mixture}: a gain of {decision.interval(found)} over the base expected")
    _line(f"merge: {prediction.proxy:+.4f}; {measured}; the best mixture with a chance of {chance}")


def show_experts(experts: Sequence[Finetune]) -> None:
    """Prints what each expert took, and where it is."""
    header, *rows = tables.experts(experts)
    places = [[*row, each.path] for row, each in zip(rows, experts, strict=True)]
    _show("Experts", [[*header, "path"], *places])


def show_look(kind: str, name: str, look: Look) -> None:
    """Prints what a source was taken for, and its first rows as they will be used."""
    _line(f"{kind} {name}: {look.shape}")
    for item in look.items:
        _line(f"    {_shown_item(item)}")
    for note in look.notes:
        _line(f"    note: {note}")


def _shown_item(item: Example) -> str:
    """Returns an example on one line, what is trained on or scored in brackets."""
    if item.messages:
        turns = enumerate(item.messages)
        return " ".join(
            f"{role}: {_piece(text, role == 'assistant' and i >= item.trained_from)}"
            for i, (role, text) in turns
        )
    before = _shortened(item.prompt) if item.prompt else ""
    others = [each for each in (*item.options, *item.answers) if each != item.completion]
    more = "".join(f" | {_shortened(each)}" for each in dict.fromkeys(others))
    return f"{before}{_piece(item.text or item.completion, True)}{more}"


def show_plan(plan: Plan) -> None:
    """Prints datasets as training sees them, targets, and what the run will take."""
    for dataset in plan.datasets:
        columns = f" columns {', '.join(dataset.columns)}" if dataset.columns else ""
        _line(f"{dataset.name}:{columns}")
        for sample in dataset.samples:
            _line("    " + "".join(_piece(text, scored) for text, scored in sample))
    for target in plan.targets:
        _line(f"target {target.name}:" if target.samples else f"target {target.name}")
        for sample, others in target.samples:
            shown = "".join(_piece(text, scored) for text, scored in sample)
            _line(f"    {shown}{''.join(f' | {_shortened(each)}' for each in others)}")
    _line("(in [brackets]: what is trained on, or scored; behind |: other options and answers)")
    datasets = [["name", "rows", "examples taken", "sequences", "tokens"]] + [
        [d.name, str(d.num_rows), str(d.num_examples), str(d.num_sequences), str(d.num_tokens)]
        for d in plan.datasets
    ]
    _show("Datasets", datasets)
    targets = [["name", "score", "examples for the search", "for the final table"]] + [
        [t.name, t.score, str(t.num_select), str(t.num_report)] for t in plan.targets
    ]
    _show("Targets", targets)
    tried = f"{plan.num_mixtures} of {counted(plan.num_space)} ({plan.strategy} search)"
    total = duration(plan.train_s + plan.evaluate_s)
    time = f"{total}: {duration(plan.train_s)} training, {duration(plan.evaluate_s)} search"
    every = f"fine-tuning on every mixture{' tried' if math.isinf(plan.num_space) else ''}"
    values = {
        "fine-tunes": f"{plan.num_finetunes}, of which {plan.num_reused} are in the store",
        "mixtures tried": tried,
        "time expected": time,
        "disk expected": f"{plan.disk_bytes / 1e6:.0f} MB of {plan.free_bytes / 1e9:.0f} GB free",
        every: duration(plan.brute_force_s),
    }
    if plan.num_workers > 1:
        num = plan.num_workers
        values["workers"] = f"{num}: times are of one; all of it is shared but the checks"
    _show("Plan", [["what", "value"], *map(list, values.items())])
    if plan.checks_all:
        _line(
            "Fine-tuning on every mixture costs no more than what comparing a few would: all of"
            " them are fine-tuned (verify.budget sets another number of checks)"
        )


def show_status(store: Store) -> bool:
    """Prints what a store holds and how far its runs are; returns whether one is under way."""
    counts = [[name.replace("_", " "), str(n)] for name, n in store.counts().items()]
    _show(f"Store {store.path}", [["what", "count"], *counts])
    runs = [run for run in store.runs() if run["plan"].get("is_run", True)][-10:]
    lines = [
        [str(run["id"]), str(run["run_dir"]), _state_of(run), str(run["started"])] for run in runs
    ]
    _show("Runs", [["id", "folder", "state", "started"], *lines])
    for run in runs:
        workers = store.workers(run["id"]) if run["alive"] else []
        if workers:
            header = ["worker", "on", "does", "for", "left", "done before", "seconds each"]
            _show(f"Workers of run {run['id']}", [header, *map(_worker_row, workers)])
    return any(run["alive"] for run in runs)


def show_contents(contents: Contents) -> None:
    """Prints what a store keeps, and how large it is."""
    _line(f"\nStore {contents.place}")
    _show_kept(contents.finetunes, contents.artifacts)
    models = [[kind, str(num)] for kind, num in contents.num_models.items()]
    scores = [
        ["scores of a model on a target's part", str(contents.num_scores)],
        ["scores of single examples", str(contents.num_example_scores)],
    ]
    named = [[f"models scored: {kind}", num] for kind, num in models]
    _show("Models and scores", [["what", "count"], *named, *scores])
    _show_beside("Set aside as damaged", contents.damaged)
    _show_beside("Temporary folders", contents.temporary)
    sizes = {"ledger": contents.ledger_bytes, "everything": contents.total_bytes}
    if contents.cache_bytes is not None:
        sizes["of it, or of before, on this machine"] = contents.cache_bytes
    _show("Size", [["what", "size"], *([what, size(num)] for what, num in sizes.items())])


def show_unreached(found: Unreached) -> None:
    """Prints what of a store no recipe reaches."""
    if found.is_empty:
        _line(f"the store {found.place} keeps nothing that these recipes do not reach")
        return
    _line(f"\nOf the store {found.place} these recipes do not reach:")
    _show_kept(found.finetunes, found.artifacts)
    if found.models:
        rows = [["models", str(len(found.models))], ["their scores", str(found.num_scores)]]
        _show("Rows of the ledger", [["what", "count"], *rows])
    _show_beside("Set aside as damaged", found.damaged)
    _show_beside("Left by processes that died", found.leftovers)
    _line(f"{size(found.num_bytes)} in all")


def kept_name(each: KeptFinetune) -> str:
    """Returns what a kept fine-tune is called: its mixture, and its seed if that is not 0."""
    seed = each.settings.get("seed")
    return f"{each.mixture}, seed {seed}" if seed else str(each.mixture)


def _show_kept(finetunes: Sequence[KeptFinetune], artifacts: Sequence[KeptArtifact]) -> None:
    """Prints the fine-tunes of a store, and its other artifacts by kind; nothing if none."""
    lines = [
        [kept_name(each), str(each.num_tokens), size(each.num_bytes), made]
        for each in finetunes
        for made in [each.created[:16].replace("T", " ")]
    ]
    if lines:
        _show("Fine-tunes", [["datasets", "tokens", "size", "made (UTC)"], *lines])
    if artifacts:
        kinds = by_kind(artifacts).items()
        rows = [[what, str(num), size(num_bytes)] for what, (num, num_bytes) in kinds]
        _show("Other artifacts", [["what", "count", "size"], *rows])


def _show_beside(title: str, found: Sequence[Aside]) -> None:
    """Prints what lies beside the artifacts, if anything does."""
    if found:
        _show(title, [["name", "size"], *([each.name, size(each.num_bytes)] for each in found)])


def size(num_bytes: float) -> str:
    """Returns a number of bytes as a person reads it, small ones exactly.

    >>> size(812), size(46_000), size(3_200_000)
    ('812 B', '46 kB', '3 MB')
    """
    if num_bytes < 1000:
        return f"{num_bytes:.0f} B"
    return f"{num_bytes / 1000:.0f} kB" if num_bytes < 1e6 else requirements.size(num_bytes)


def clear() -> None:
    """Clears a terminal, so that what is shown next takes the place of what was."""
    _console().clear()


def _worker_row(worker: dict[str, Any]) -> list[str]:
    """Returns what a worker does and how fast, for a table."""
    done, total, for_s = worker["done"], worker["total"], worker["for_s"]
    doing = worker["doing"] or "waits"
    doing += f", {done} of {total}" if total else ""
    left = duration(for_s / done * (total - done)) if done else ""
    each = f"{worker['busy_s'] / worker['num_done']:.2g}" if worker["num_done"] else ""
    since = duration(for_s) if worker["doing"] else ""
    return [worker["name"], worker["place"], doing, since, left, str(worker["num_done"]), each]


def _state_of(run: dict[str, Any]) -> str:
    if run["outcome"]:
        return str(run["outcome"])
    place = f"{run['stage']}, {run['done']} of {run['total']}"
    return f"running: {place}" if run["alive"] else f"stopped at {place}; the same command goes on"


def _piece(text: str, scored: bool) -> str:
    shown = _shortened(text)
    return f"[{shown}]" if scored else shown


def _shortened(text: str) -> str:
    """Returns a text on one line, its middle left out if it is long: both its ends are seams."""
    if len(text) > SAMPLE_CHARS:
        text = f"{text[: SAMPLE_CHARS // 2]} ... {text[-SAMPLE_CHARS // 2 :]}"
    return repr(text)[1:-1]


def _show(title: str, lines: tables.Table) -> None:
    _line(f"\n{title}")
    header, *rows = lines
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
