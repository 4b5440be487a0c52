"""`report.html`: everything a run found, in one file that opens without a network.

What comes from recipes and data is escaped by Jinja; charts and heat maps escape their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from mergetomix.curves import Curve
from mergetomix.objectives.objective import gains
from mergetomix.recipe.recipe import Recipe, dump
from mergetomix.records import Mixture
from mergetomix.report import charts, decision, sentences, tables
from mergetomix.report.target_gains import front_of, given_up
from mergetomix.results import Effects, Prediction, Result, Row, Selection, Verification
from mergetomix.stages.ways import way_of

MOST_SUBSETS = 4095
"""Subsets that the store is asked for one by one."""
MOST_ROWS = 300
"""Lines of the ranking that are written."""
LEAST_FITTED = 3
"""Mixtures that a line is drawn through."""
MOST_CHARACTERS = 600
"""Of a piece of a row that are shown."""
COLOURS = ("#0a7ea4", "#c2571a", "#6a51c8", "#2b8a3e", "#b02a6b", "#8a6d00", "#00796b", "#a33b3b")
"""Of curves; each can be told from both backgrounds."""


WORDS = (
    ("base", "the model that is fine-tuned"),
    (
        "mixture",
        "some of the datasets; a fine-tune on it has all of their rows, or weighted shares",
    ),
    (
        "merge",
        "the base with the mean change of fine-tunes on single datasets: it stands for a"
        " fine-tune on all of their data, which nobody has to make",
    ),
    ("gain", "by how much a model is better than the base, over all targets; also: objective"),
    ("select part", "the examples of each target that the search and the checks see"),
    ("report part", "the other examples, for the final table alone"),
    ("check", "a real fine-tune on a mixture, to see how far merges are to be believed"),
    (
        "90% interval",
        "where the number lies if the examples, and the seeds where a mixture was"
        " trained with two, are drawn again",
    ),
    ("cannot be told apart", "chance alone may well make the difference"),
)


@dataclass(frozen=True)
class PageTable:
    """A table of the page; `numeric` says of each column whether it holds numbers."""

    key: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[bool]

    @classmethod
    def of(cls, key: str, caption: str, found: tables.Table) -> PageTable:
        """Returns a table of lines of cells, the header first."""
        header, *rows = found
        numeric = [
            bool(rows) and all(_is_number(row[place]) for row in rows)
            for place in range(len(header))
        ]
        return cls(key, caption, header, rows, numeric)


@dataclass
class Block:
    """A part of the page."""

    key: str
    title: str
    text: list[str] = field(default_factory=list)
    charts: list[Any] = field(default_factory=list)
    keys: list[list[str]] = field(default_factory=list)
    tables: list[PageTable] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    summary: str = ""
    code: str = ""


def render(result: Result, recipe: Recipe) -> str:
    """Returns the page."""
    checked, selection = result.verification, result.selection
    sections = [_final(result, recipe)]
    if checked is not None:
        sections += [_effects(checked.effects, recipe)] if checked.effects is not None else []
        sections += [_checks(checked, result)]
    sections += [*_targets(selection, result), *_search(selection), *curves(result.curves)]
    sections += [*_answers(result), _ranking(result, recipe), *_rows(result), _cost(result)]
    if result.warnings:
        sections.insert(1, Block("warnings", "Warnings", list(result.warnings)))
    sections += [_recipe(recipe), _environment(result)]
    return page(
        title=f"Merge to Mix: {recipe.base.path}",
        headline=str(result.decision),
        because=decision.lines(result),
        sections=sections,
    )


def page(
    title: str, headline: str, because: Iterable[str], sections: Sequence[Block], **more: Any
) -> str:
    """Returns a page of some sections under a headline."""
    return str(
        _template().render(
            title=title,
            headline=headline,
            because=list(because),
            sections=sections,
            colours=COLOURS,
            words=WORDS,
            **{"partial": False, **more},
        )
    )


@cache
def _template() -> Any:
    import jinja2

    text = resources.files("mergetomix.report").joinpath("page.html.jinja").read_text("utf-8")
    return jinja2.Environment(autoescape=True, trim_blocks=False).from_string(text)


def safe(markup: str) -> Any:
    """Returns markup of our own, whose texts are escaped, as what Jinja leaves as it is."""
    from markupsafe import Markup

    return Markup(markup)  # noqa: S704  # charts escape every text that they are given


# --- sections


def _final(result: Result, recipe: Recipe) -> Block:
    choice = result.decision.mixture
    groups = tables.by_mixture(result.table)
    rows = [
        charts.Dot(
            _label(group[0]),
            group[0].gain,
            None if group[0].interval is None else group[0].interval.low,
            None if group[0].interval is None else group[0].interval.high,
            _mark(group[0], choice),
        )
        for group in groups
    ]
    axes = charts.Axes("Gains over the base, with 90% intervals", "gain over the base")
    caption = "Models on examples that the search never saw, the best first"
    return Block(
        "final",
        "Gains over the base",
        [sentences.legend(recipe, result.selection)],
        [safe(charts.dots(rows, axes))],
        tables=[PageTable.of("models", caption, tables.final(result.table, recipe))],
    )


def _label(row: Row) -> str:
    if row.mixture is None:
        return row.name
    return f"{row.mixture} (merge)" if row.kind == "proxy" else str(row.mixture)


def _mark(row: Row, choice: Mixture) -> str:
    if row.kind == "proxy":
        return "faint"
    return "choice" if row.mixture == choice else ""


def _effects(found: Effects, recipe: Recipe) -> Block:
    names = [*recipe.targets, "objective"] if len(recipe.targets) > 1 else ["objective"]
    cells = [
        [charts.Dot(f"{each.dataset} on {name}", *_ends(each.values[name])) for name in names]
        for each in found.datasets
    ]
    shown = charts.heat([each.dataset for each in found.datasets], names, cells)
    around = charts.dots(
        [
            charts.Dot(each.dataset, *_ends(each.around), mark="choice" if each.is_in_pick else "")
            for each in found.datasets
        ],
        charts.Axes(
            "Around the pick: the gain with each dataset, less the gain without it", "gain"
        ),
    )
    return Block(
        "effects",
        "What each dataset adds",
        sentences.effects(found),
        [safe(shown), safe(around)],
        tables=[
            PageTable.of("datasets", "With intervals, best first", tables.effects(found, recipe))
        ],
    )


def _ends(found: Any) -> tuple[float, float, float]:
    return found.value, found.low, found.high


def _checks(checked: Verification, result: Result) -> Block:
    measured = {each.mixture: each for each in checked.checks}
    points = [
        charts.Point(str(each.mixture), each.proxy, each.mean, each.low, each.high, "faint")
        for each in checked.predictions[:MOST_ROWS]
        if each.mixture not in measured
    ]
    points += [
        charts.Point(f"{each.mixture} (real)", each.proxy, each.real, mark="choice")
        for each in checked.checks
    ]
    ends = [each.proxy for each in checked.predictions]
    equal = [(min(ends), min(ends)), (max(ends), max(ends))] if ends else []
    title = (
        "Filled: mixtures that were fine-tuned; hollow: what is expected of others, with 90%"
        " intervals; line and band: straight lines through these and through their ends; dashed:"
        " merge and fine-tune gain the same"
    )
    line, band = calibration(checked.predictions)
    axes = charts.Axes(title, "gain of the merge", "gain of the fine-tune", line, equal, band)
    found = [PageTable.of("checked", "Real fine-tunes on the select part", tables.checks(checked))]
    if len(fidelity := tables.agreement(checked)) > 1:
        found.append(PageTable.of("fidelity", "How well merges rank real fine-tunes", fidelity))
    lines = sentences.verification_lines(checked, result.decision, result.selection.blunt)
    return Block(
        "checks",
        "Merges and real fine-tunes",
        lines,
        [safe(charts.scatter(points, axes))],
        tables=found,
    )


def calibration(
    predictions: Sequence[Prediction],
) -> tuple[list[tuple[float, float]], list[tuple[float, float, float]]]:
    """Returns what merges say of fine-tunes: a straight line, and one on either side of it.

    They are least squares through the expectations of mixtures that were not fine-tuned, and
    through the ends of their intervals; nothing where there are fewer than three.
    """
    others = [each for each in predictions if not each.measured]
    at_M = np.array([each.proxy for each in others])
    if len(others) < LEAST_FITTED or np.ptp(at_M) == 0:
        return [], []
    ends = [float(at_M.min()), float(at_M.max())]
    middle, low, high = (
        np.polyval(np.polyfit(at_M, [getattr(each, name) for each in others], 1), ends).tolist()
        for name in ("mean", "low", "high")
    )
    return list(zip(ends, middle, strict=True)), list(zip(ends, low, high, strict=True))


def _targets(selection: Selection, result: Result) -> list[Block]:
    lines = given_up(selection, result.verification)
    if not lines:
        return []
    text = ["Gains of merges over the base, on the select part."]
    section = Block("targets", "What each target gives up", text)
    names = sorted(selection.base)
    front = {trial.mixture for trial in front_of(selection).members}
    values = {t.mixture: gains(t.scores, selection.base) for t in selection.trials}
    points = [
        charts.Point(
            str(mixture),
            each[names[0]],
            each[names[1]],
            mark="choice" if mixture == result.selected else "" if mixture in front else "faint",
        )
        for mixture, each in values.items()
    ]
    title = f"Gains on {names[0]} and {names[1]}; darker is what no other beats on every target"
    axes = charts.Axes(title, f"gain on {names[0]}", f"gain on {names[1]}")
    section.charts.append(safe(charts.scatter(points, axes)))
    section.tables.append(PageTable.of("given-up", text[0], tables.given_up(lines)))
    return [section]


def _place(selection: Selection, result: Result, recipe: Recipe) -> list[str]:
    """Returns why the choice need not be the first, and why its gain need not be that elsewhere."""
    mixtures, choice = [trial.mixture for trial in selection.trials], result.decision.mixture
    found, checked = list[str](), result.verification
    if choice in mixtures[1:] and checked is not None:
        found.append(
            f"{choice} is number {mixtures.index(choice) + 1} here: the choice follows the real"
            " fine-tunes, and what they say of merges like these."
        )
    if checked is not None and checked.merging != way_of(recipe):
        found.append(
            f"These are merges with {way_of(recipe)}; the checks showed that {checked.merging}"
            " rank better, and all other numbers of merges are of those."
        )
    return found


def _ranking(result: Result, recipe: Recipe) -> Block:
    selection = result.selection
    num = sentences.num_proxies(selection)
    found = tables.ranking(selection, recipe, MOST_ROWS)
    text = [f"The best {len(found) - 1} of {num} ({selection.strategy} search)."]
    text += _place(selection, result, recipe)
    if racing := sentences.racing(selection):
        text.append(f"{racing}.")
    table = PageTable.of("ranking", "Merges on the select part, the best first", found)
    return Block("ranking-of-merges", "Ranking of merges", text, tables=[table])


def _search(selection: Selection) -> list[Block]:
    trials = {trial.mixture: trial for trial in (*selection.trials, *selection.stopped)}
    tried = [trials[mixture] for mixture in selection.order if mixture in trials]
    if len(tried) < 2 or selection.strategy == "exhaustive":
        return []  # all were tried anyway
    costs = list(accumulate(trial.num_examples for trial in tried))
    best = accumulate((t.objective if t.complete else -math.inf for t in tried), max)
    known = [each for each in zip(map(float, costs), best, strict=True) if each[1] > -math.inf]
    reached = [known[0]] if known else []
    for (_, before), (cost, after) in pairwise(known):
        reached += [(cost, before), (cost, after)]
    title = "The best merge so far, over the examples that were scored"
    axes = charts.Axes(title, "examples scored", "gain of the merge", line=reached)
    points = [
        charts.Point(str(trial.mixture), float(cost), trial.objective, mark="faint")
        for trial, cost in list(zip(tried, costs, strict=True))[:MOST_ROWS]
    ]
    text = [f"{title}; each point is a merge, on the select part."]
    return [Block("search", "Search", text, [safe(charts.scatter(points, axes))])]


def curves(found: Mapping[str, Curve]) -> list[Block]:
    """Returns the losses of fine-tunes, as many in a chart as there are colours."""
    if not found:
        return []
    axes = charts.Axes("Loss of each fine-tune", "step", "loss")
    shown, names = Block("losses", "Losses of the fine-tunes"), list(found)
    shown.text = ["Of their own training rows; a point is the mean over the steps before it."]
    for first in range(0, len(names), len(COLOURS)):
        part = {name: found[name].points() for name in names[first : first + len(COLOURS)]}
        shown.charts.append(safe(charts.lines(part, axes)))
        shown.keys.append(list(part))
    return [shown]


def _answers(result: Result) -> list[Block]:
    found = []
    for number, (target, answered) in enumerate(result.answers.items()):
        names = list(answered[0].by_model) if answered else []
        lines = [["prompt", "right answer", *names]]
        lines += [
            [_cut(each.prompt), each.right, *(_cut(each.by_model[name]) for name in names)]
            for each in answered
        ]
        caption = f"{target}: the first examples of the report part"
        found.append(PageTable.of(f"answers-{number}", caption, lines))
    if not found:
        return []
    return [Block("answers", "What the models answer", tables=found)]


def _rows(result: Result) -> list[Block]:
    if not result.samples:
        return []
    samples = [
        {"name": name, "rows": [[(_cut(text), scored) for text, scored in row] for row in rows]}
        for name, rows in result.samples.items()
    ]
    text = [
        "The first rows of each dataset as training sees them; what is trained on is marked, and of"
        " a long text both ends are shown."
    ]
    return [Block("rows", "Rows as trained", text, samples=samples)]


def _cut(text: str) -> str:
    """Returns a text, its middle left out if it is long."""
    if len(text) <= MOST_CHARACTERS:
        return text
    half = MOST_CHARACTERS // 2
    return f"{text[:half]}\n…\n{text[-half:]}"


def _cost(result: Result) -> Block:
    found = [
        PageTable.of("experts", "Fine-tunes on single datasets", tables.experts(result.experts)),
        PageTable.of("cost", "Seconds of work, whichever run did it", tables.costs(result.cost)),
    ]
    if result.portions:
        caption = "Rows of the weighted mixture"
        found.insert(0, PageTable.of("portions", caption, tables.portions(result.portions)))
    return Block("costs", "What it took", tables=found)


def _recipe(recipe: Recipe) -> Block:
    return Block("recipe", "Recipe", summary="The recipe with all its defaults", code=dump(recipe))


def _environment(result: Result) -> Block:
    lines = [["what", "value"]]
    for key, value in result.environment.items():
        inner = value.items() if isinstance(value, dict) else ()
        lines.append([key, ", ".join(f"{name} {each}" for name, each in inner) or str(value)])
    table = PageTable.of("environment-of-run", "Where it ran", lines)
    return Block("environment", "Environment", tables=[table])


def _is_number(cell: str) -> bool:
    first = cell.replace(",", "").split(" ")[0]
    try:
        float(first)
    except ValueError:
        return not cell
    return True
