"""`report.md` and the final model's card, for people."""

from __future__ import annotations

from mergetomix.quoting import code, front_matter, plain
from mergetomix.recipe.recipe import Recipe
from mergetomix.report import decision, sentences, tables
from mergetomix.report.target_gains import front_of, given_up
from mergetomix.results import Result, Verification
from mergetomix.stages.ways import way_of


def render(result: Result, recipe: Recipe) -> str:
    """Returns the report: what was chosen, the evidence, the ranking, and what it cost."""
    selection = result.selection
    parts = [
        "# Merge to Mix: report",
        _summary(result, recipe),
    ]
    if result.portions:
        unit = "examples" if recipe.train.max_steps is not None else "tokens"
        text = f"Shares are of {unit}; whole passes over a dataset first, then a part of it, drawn"
        parts += ["## The mixture's rows", f"{text} by `train.seed`."]
        parts += [table(tables.portions(result.portions))]
    parts += [
        "## Final table",
        "Scored on the report part of each target, which the search never saw."
        f" {sentences.legend(recipe, selection)}",
        table(tables.final(result.table, recipe)),
        *_effects(result, recipe),
        "## Ranking",
        f"The best {min(tables.NUM_RANKED, len(selection.trials))} of"
        f" {sentences.num_proxies(selection)} ({selection.strategy} search), on the select part.",
        table(tables.ranking(selection, recipe)),
        *_targets(result),
    ]
    if selection.stopped:
        shown = tables.stopped(selection)
        best = f"The best {len(shown) - 1} of these {len(selection.stopped)}"
        parts += [f"{sentences.racing(selection)}. {best}:", table(shown)]
    if result.verification is not None:
        parts += _verification(result.verification, result)
    parts += ["## Experts", table(tables.experts(result.experts))]
    parts += ["## Cost", table(tables.costs(result.cost))]
    if result.warnings:
        parts += ["## Warnings", "\n".join(f"- {plain(text)}" for text in result.warnings)]
    lines = [["what", "value"]]
    for key, value in result.environment.items():
        inner = value.items() if isinstance(value, dict) else ()
        lines.append([key, ", ".join(f"{name} {each}" for name, each in inner) or str(value)])
    parts += ["## Environment", table(lines)]
    return "\n\n".join(parts) + "\n"


def model_card(result: Result, recipe: Recipe) -> str:
    """Returns the card of the final model: where it comes from and how good it is."""
    base = recipe.base.path
    values = {"base_model": base, "library_name": "transformers", "tags": ["merge-to-mix"]}
    parts = [
        front_matter(values),
        f"# Fine-tuned on {plain(str(result.selected))}",
        f"Base: {code(base)}. Chosen by Merge to Mix (arXiv 2505.16066).",
    ]
    if result.row("final") is not None:
        rows = [row for row in result.table if row.kind in ("base", "final", "all")]
        parts += [sentences.legend(recipe, result.selection), table(tables.final(rows, recipe))]
    return "\n\n".join(parts) + "\n"


def table(lines: tables.Table) -> str:
    r"""Returns a table in Markdown.

    >>> print(table([["a", "b"], ["1", "2|3"]]))
    | a | b |
    | --- | --- |
    | 1 | 2\|3 |
    """
    header, *rows = lines
    return "\n".join(
        f"| {' | '.join(line)} |"
        for line in (map(plain, header), ["---"] * len(header), *(map(plain, row) for row in rows))
    )


def _summary(result: Result, recipe: Recipe) -> str:
    checked = result.verification
    merging = way_of(recipe) if checked is None else checked.merging
    how = "drawn by these weights" if result.portions else "all of their data together"
    lines = [f"**{plain(result.decision.headline)}**\n"]
    lines += [f"- {plain(text)}" for text in decision.lines(result)]
    picked = plain(str(result.selected))
    lines.append(f"\nBase: {code(recipe.base.path)}. The checks picked {picked}, {how}.")
    if merging != way_of(recipe):
        lines.append(
            f"The search merged with {way_of(recipe)}, and so does the ranking below; the checks"
            f" showed that merges with {merging} rank better, and they use those."
        )
    else:
        lines.append(f"Merges are with {merging}.")
    return "\n".join(lines)


def _effects(result: Result, recipe: Recipe) -> list[str]:
    """Returns what each dataset adds; nothing where checks are off."""
    found = None if result.verification is None else result.verification.effects
    if found is None:
        return []
    text = "\n".join(f"- {plain(line)}" for line in sentences.effects(found))
    return ["## What each dataset adds", text, table(tables.effects(found, recipe))]


def _targets(result: Result) -> list[str]:
    """Returns what the targets give up for each other; nothing if there is one."""
    selection, parts = result.selection, []
    if selection.objective is not None and selection.objective.aim == "pareto":
        front = front_of(selection)
        members = tables.front(front, selection, result.selected)
        parts += ["## Front", sentences.front_size(front), table(members)]
    if lines := given_up(selection, result.verification):
        text = "Gains of proxies over the base, on the select part."
        if units := sentences.units(selection):
            text += f" {units}"
        parts += ["## What each target gives up", text, table(tables.given_up(lines))]
    return parts


def _verification(verification: Verification, result: Result) -> list[str]:
    blunt = result.selection.blunt
    found = sentences.verification_lines(verification, result.decision, blunt)
    lines = "\n".join(f"- {text}" for text in found)
    parts = ["## Checks", table(tables.checks(verification)), lines]
    measured = tables.agreement(verification)
    if len(measured) > 1:
        num = verification.num_repeats
        repeats = f"{num} repeat{'s' * (num > 1)} of this run and what studies show"
        seeds = f"from {repeats}" if num else "as studies show it, as nothing was repeated"
        text = (
            "How well proxies rank what real fine-tunes give, over the checks of several datasets,"
            f" with {verification.confidence:.0%} intervals. Regret at k: the best real gain minus"
            " the best among the k best proxies. Noise: standard deviation of the gain between"
            f" seeds, {seeds}. Possible: the Spearman correlation that a perfect proxy would reach,"
            " given that noise and the examples'."
        )
        parts += [text, table(measured)]
    return parts
