"""The tables of the report and of the terminal, as lines of cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mergetomix.objectives.objective import gains
from mergetomix.recipe.recipe import Recipe
from mergetomix.records import Estimate, Finetune, Mixture, Portion, Scores
from mergetomix.report.target_gains import Front, GivenUp
from mergetomix.results import Cost, Effects, Row, Selection, Verification

NUM_RANKED = 10
NUM_FRONT = 20
"""Members of a front that are shown."""
STATISTICS = {
    "pearson": "Pearson",
    "spearman": "Spearman",
    "kendall": "Kendall",
    "top_quarter": "Spearman of the top quarter",
    "regret_1": "regret at 1",
    "regret_3": "regret at 3",
    "regret_5": "regret at 5",
}


Table = list[list[str]]
"""Lines of as many cells each, the header first."""


def final(models: Iterable[Row], recipe: Recipe) -> Table:
    """Returns models with their scores on the report part and their gains, the best first.

    What was fine-tuned on one mixture has one line, whatever it was made for.
    """
    header = ["model", "datasets", *recipe.targets, "gain", "90% interval"]
    return [header] + [
        [
            ", ".join(dict.fromkeys(called(row) for row in rows)),
            str(rows[0].mixture or ""),
            *_means(rows[0].scores, recipe),
            f"{rows[0].gain:+.4f}",
            _ends(rows[0].interval),
        ]
        for rows in by_mixture(models)
    ]


def by_mixture(models: Iterable[Row]) -> list[list[Row]]:
    """Returns the rows of a final table in groups, the best first.

    A group is what was fine-tuned on one mixture; a merge is a group of its own.
    """
    groups: dict[tuple[bool, Mixture | None], list[Row]] = {}
    for row in models:
        groups.setdefault((row.kind == "proxy", row.mixture), []).append(row)
    return sorted(groups.values(), key=lambda rows: -rows[0].gain)


def called(row: Row) -> str:
    """Returns what a model of the final table is called; its datasets are told beside it."""
    return {"expert": "single dataset", "check": "check", "proxy": "merge"}.get(row.kind, row.name)


def _ends(found: Estimate | None) -> str:
    return "" if found is None else f"{found.low:+.4f} to {found.high:+.4f}"


def ranking(selection: Selection, recipe: Recipe, most: int = NUM_RANKED) -> Table:
    """Returns the best trials, `most` of them at most."""
    header = ["rank", "datasets", *recipe.targets, "objective"]
    return [header] + [
        [str(i), str(each.mixture), *_means(each.scores, recipe), f"{each.objective:+.4f}"]
        for i, each in enumerate(selection.trials[:most], 1)
    ]


def given_up(lines: Iterable[GivenUp]) -> Table:
    """Returns what the pick gives up on every target."""
    header = ["target", "gain of the pick", "best gain of a merge", "by", "given up"]
    return [header] + [
        [each.target, f"{each.gain:+.4f}", f"{each.best:+.4f}", str(each.by), f"{each.less:.4f}"]
        for each in lines
    ]


def front(found: Front, selection: Selection, picked: Mixture | None = None) -> Table:
    """Returns the front's members, the knee first; what was picked after checks is marked too."""
    names = sorted(selection.base)
    lines = [["", "datasets", *(f"gain on {name}" for name in names)]]
    for place, trial in enumerate(found.members[:NUM_FRONT]):
        values = gains(trial.scores, selection.base)
        marks = ["knee"] * (place == 0) + ["pick"] * (trial.mixture == picked)
        shown = [f"{values[name]:+.4f}" for name in names]
        lines.append([", ".join(marks), str(trial.mixture), *shown])
    return lines


def stopped(selection: Selection) -> Table:
    """Returns the trials stopped early that came nearest to the best."""
    return [["datasets", "examples seen", "objective expected"]] + [
        [str(each.mixture), str(each.num_examples), f"about {each.objective:+.4f}"]
        for each in selection.stopped[:NUM_RANKED]
    ]


def checks(verification: Verification) -> Table:
    """Returns every check: the objective of the proxy and of the real fine-tune."""
    return [["datasets", "merge", "fine-tune", "difference", "why it was fine-tuned"]] + [
        [str(c.mixture), *(f"{x:+.4f}" for x in (c.proxy, c.real, c.real - c.proxy)), c.origin]
        for c in verification.checks
    ]


def agreement(verification: Verification) -> Table:
    """Returns how well proxies rank, by target, without those of fewer than five checks."""
    lines = [["target", "checks", *STATISTICS.values(), "noise", "possible"]]
    for name, found in verification.agreement.items():
        if found.statistics is not None:
            values = [_estimate(found.statistics.get(key)) for key in STATISTICS]
            noise = "" if found.noise_sd is None else f"{found.noise_sd:.4f}"
            possible = "" if found.possible is None else f"{found.possible:.2f}"
            lines.append([name, str(found.num_checks), *values, noise, possible])
    return lines


def effects(found: Effects, recipe: Recipe) -> Table:
    """Returns what each dataset adds to every target and to the objective, the best first."""
    header = ["dataset", *recipe.targets, "together", "90% interval", "with it, the pick has more"]
    return [header] + [
        [
            each.dataset,
            *(f"{each.values[name].value:+.4f}" for name in recipe.targets),
            f"{each.values['objective'].value:+.4f}",
            _ends(each.values["objective"]),
            f"{each.around.value:+.4f} ({_ends(each.around)})",
        ]
        for each in found.datasets
    ]


def portions(taken: Iterable[Portion]) -> Table:
    """Returns what a weighted mixture's fine-tune takes of each dataset."""
    return [["dataset", "share", "sequences", "tokens", "passes over it"]] + [
        [
            p.dataset,
            f"{p.weight:.4f}",
            str(p.num_examples),
            str(p.num_tokens),
            f"{p.num_passes:.2f}",
        ]
        for p in taken
    ]


def experts(made: Iterable[Finetune]) -> Table:
    """Returns what each expert took."""
    return [["dataset", "sequences", "tokens trained", "seconds"]] + [
        [each.dataset, str(each.num_examples), str(each.num_tokens), f"{each.train_s:.1f}"]
        for each in made
    ]


def costs(cost: Cost) -> Table:
    """Returns seconds of work, whichever run did it."""
    seconds = {
        "fine-tunes on single datasets": cost.experts_s,
        "merging": cost.merge_s,
        "scoring merges": cost.evaluate_s,
        **({"gradients in the weights": cost.gradients_s} if cost.gradients_s > 0 else {}),
        "fine-tunes that check": cost.checks_s,
        "final fine-tune": cost.final_s,
        "all of these": cost.total_s,
        "beside them, baselines for the final table": cost.baselines_s,
        "instead of them, a fine-tune on every mixture, estimated": cost.brute_force_s_estimate,
        "this run by the clock, which reuses what the store holds": cost.wall_s,
    }
    return [["what", "seconds"]] + [[name, f"{each:.1f}"] for name, each in seconds.items()]


def _means(scores: Mapping[str, Scores], recipe: Recipe) -> list[str]:
    return [f"{scores[name].mean:.4f}" for name in recipe.targets]


def _estimate(found: Estimate | None) -> str:
    return "" if found is None else f"{found.value:.3g} ({found.low:.3g} to {found.high:.3g})"
