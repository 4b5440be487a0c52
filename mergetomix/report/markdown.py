"""`report.md` and the final model's card, for people."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from mergetomix.models.family import UNITS
from mergetomix.objectives.objective import gains
from mergetomix.recipe.recipe import Recipe
from mergetomix.records import Estimate, Mixture, Portion, Trial
from mergetomix.report.compromise import Front, GivenUp, front_of, given_up
from mergetomix.results import Result, Row, Selection, Verification

NUM_RANKED = 10
NUM_FRONT = 20
"""Members of a front that are shown."""


def render(result: Result, recipe: Recipe) -> str:
    """The report: what was chosen, the evidence on held-out examples, the ranking, and what it cost."""
    parts = [
        "# Merge to Mix: report",
        _summary(result, recipe),
        *_portion_parts(result, recipe),
        "## Final table",
        f"Scored on the report part of each target, which the search never saw. {legend(recipe)}",
        table(final_header(recipe), [final_cells(row, recipe) for row in result.table]),
        "## Ranking",
        f"The best {min(NUM_RANKED, len(result.selection.trials))} of {num_proxies(result.selection)}"
        f" ({result.selection.strategy} search), on the select part.",
        table(rank_header(recipe), ranking(result, recipe)),
        *_target_parts(result),
        *_stopped_parts(result),
        *_verification_parts(result),
        "## Experts",
        table(["dataset", "sequences", "tokens trained", "seconds"], expert_cells(result)),
        "## Cost",
        table(["what", "seconds"], cost_cells(result)),
    ]
    if result.warnings:
        parts += ["## Warnings", "\n".join(f"- {text}" for text in result.warnings)]
    parts += ["## Environment", table(["what", "value"], environment_cells(result))]
    return "\n\n".join(parts) + "\n"


def legend(recipe: Recipe) -> str:
    """What the numbers of the table are."""
    loss = f"a loss in {UNITS[recipe.family]} (lower is better)"
    kinds = [
        f"`{name}` is {loss if spec.score == 'loss' else 'a score (higher is better)'}"
        for name, spec in recipe.targets.items()
    ]
    return f"{'; '.join(kinds)}. Gain: {objective_text(recipe)}."


def objective_text(recipe: Recipe) -> str:
    """What the objective makes of the gains on the targets."""
    weights = ", ".join(f"{name} {spec.weight:g}" for name, spec in recipe.targets.items())
    one = "the fraction of the base's loss removed, or of the score added"
    return {
        "gain": f"mean over targets (weights {weights}) of {one}",
        "standard_errors": f"mean over targets (weights {weights}) of {one}, in standard errors of the target",
        "worst": f"the smallest over targets of {one}",
        "pareto": f"1 less the largest distance over targets (weights {weights}) to the front's best, in its widths, of {one}",
    }[recipe.search.objective]


def final_header(recipe: Recipe) -> list[str]:
    """Columns of the final table."""
    return ["model", "datasets", *recipe.targets, "gain"]


def final_cells(row: Row, recipe: Recipe) -> list[str]:
    """One line of the final table."""
    values = [f"{row.scores[name].mean:.4f}" for name in recipe.targets]
    return [row.name, mixture_text(row.mixture), *values, f"{row.gain:+.4f}"]


def mixture_text(mixture: Mixture | None) -> str:
    """Datasets, with their weights where these are not equal."""
    return "" if mixture is None else str(mixture)


def rank_header(recipe: Recipe) -> list[str]:
    """Columns of the ranking."""
    return ["rank", "datasets", *recipe.targets, "objective"]


def ranking(result: Result, recipe: Recipe) -> list[list[str]]:
    """The best trials."""
    return [
        rank_cells(i + 1, trial, recipe)
        for i, trial in enumerate(result.selection.trials[:NUM_RANKED])
    ]


def rank_cells(rank: int, trial: Trial, recipe: Recipe) -> list[str]:
    """One line of the ranking."""
    values = [f"{trial.scores[name].mean:.4f}" for name in recipe.targets]
    return [str(rank), mixture_text(trial.mixture), *values, f"{trial.objective:+.4f}"]


GIVEN_UP_HEADER = ["target", "gain of the pick", "best gain of a proxy", "by", "given up"]


def given_up_cells(lines: Sequence[GivenUp]) -> list[list[str]]:
    """What the pick gives up on every target."""
    return [
        [e.target, f"{e.gain:+.4f}", f"{e.best:+.4f}", mixture_text(e.by), f"{e.less:.4f}"]
        for e in lines
    ]


def units_text(selection: Selection) -> str:
    """The standard errors that gains are counted in, or nothing."""
    units = {} if selection.objective is None else selection.objective.units
    return "; ".join(
        f"one standard error of {name} is a gain of {unit:.4g}"
        for name, unit in sorted(units.items())
    )


def front_header(selection: Selection) -> list[str]:
    """Columns of the front."""
    return ["", "datasets", *(f"gain on {name}" for name in sorted(selection.base))]


def front_cells(
    front: Front, selection: Selection, picked: Mixture | None = None
) -> list[list[str]]:
    """The front's members, the knee first; what was picked after checks is marked too."""
    lines = []
    for place, trial in enumerate(front.members[:NUM_FRONT]):
        values = gains(trial.scores, selection.base)
        marks = ["knee"] * (place == 0) + ["pick"] * (trial.mixture == picked)
        lines.append(
            [
                ", ".join(marks),
                mixture_text(trial.mixture),
                *(f"{values[name]:+.4f}" for name in sorted(values)),
            ]
        )
    return lines


def front_text(front: Front) -> str:
    """How large a front is."""
    num = len(front.members)
    more = f"; the {NUM_FRONT} nearest to the best of each are shown" if num > NUM_FRONT else ""
    what = (
        "1 mixture that no other beats"
        if num == 1
        else f"{num} mixtures that no other beats on every target"
    )
    return f"{what}{more}. Hypervolume over the base: {front.hypervolume:.4g}."


def num_proxies(selection: Selection) -> str:
    """How many proxies were tried, and how many of them on all examples."""
    num, tried = len(selection.trials), len(selection.trials) + len(selection.stopped)
    return (
        f"{num} proxies" if num == tried else f"the {num} proxies of {tried} that saw every example"
    )


STOPPED_HEADER = ["datasets", "examples seen", "objective expected"]


def stopped_cells(selection: Selection) -> list[list[str]]:
    """The trials stopped early that came nearest to the best."""
    return [
        [mixture_text(each.mixture), str(each.num_examples), f"about {each.objective:+.4f}"]
        for each in selection.stopped[:NUM_RANKED]
    ]


def racing_text(selection: Selection) -> str:
    """What racing saved; empty where nothing was stopped."""
    if not selection.stopped:
        return ""
    made, without = selection.num_evaluated, selection.num_without_racing
    return (
        f"racing: {len(selection.stopped)} of {len(selection.trials) + len(selection.stopped)} proxies were stopped early, as"
        f" they could hardly be the best; {made:,} example evaluations instead of {without:,}, {without / made:.1f} times fewer"
    )


def _stopped_parts(result: Result) -> list[str]:
    if not result.selection.stopped:
        return []
    shown, num = stopped_cells(result.selection), len(result.selection.stopped)
    return [
        f"{racing_text(result.selection)}. The best {len(shown)} of these {num}:",
        table(STOPPED_HEADER, shown),
    ]


CHECK_HEADER = ["datasets", "proxy", "real", "difference", "why it was fine-tuned"]


def check_cells(verification: Verification) -> list[list[str]]:
    """Every check: the objective of the proxy and of the real fine-tune."""
    return [
        [
            mixture_text(c.mixture),
            f"{c.proxy:+.4f}",
            f"{c.real:+.4f}",
            f"{c.real - c.proxy:+.4f}",
            c.origin,
        ]
        for c in verification.checks
    ]


def verification_lines(verification: Verification) -> list[str]:
    """The pick, what cannot be told apart from it, and how well the proxies rank, in sentences."""
    pick = next(each for each in verification.predictions if each.mixture == verification.mixture)
    paid = f"{verification.num_paid} paid check{'' if verification.num_paid == 1 else 's'}"
    lines = [
        f"pick after {paid}: {mixture_text(pick.mixture)}, objective {pick.mean:+.4f}"
        f" ({'known' if pick.known else f'{verification.confidence:.0%} interval {pick.low:+.4f} to {pick.high:+.4f}'});"
        f" the best mixture with a probability of {pick.best_probability:.2f}; {verification.stopped}",
        f"exponent of the scale: {verification.exponent:g}",
    ]
    lines += [
        f"left out, its training failed: {mixture_text(mixture)} ({why})"
        for mixture, why in verification.failures
    ]
    if verification.alternatives:
        shown = "; ".join(mixture_text(each.mixture) for each in verification.alternatives[:5])
        more = len(verification.alternatives) - 5
        lines.append(
            f"cannot be told apart from the pick: {shown}"
            + (f" and {more} more" if more > 0 else "")
        )
    lines.append(agreement_text(verification))
    return lines


def agreement_text(verification: Verification) -> str:
    """Spearman between proxies and reals with its interval, or why there is none."""
    found = verification.agreement["objective"]
    if found.statistics is None:
        return f"{found.num_checks} mixtures of several datasets were checked: fewer than five say nothing of proxies"
    spearman = found.statistics["spearman"]
    shown = (
        ""
        if spearman is None
        else f"{spearman.value:.2f} ({spearman.low:.2f} to {spearman.high:.2f})"
    )
    possible = (
        ""
        if found.possible is None
        else f"; a perfect proxy would reach {found.possible:.2f}, given seed noise"
    )
    return f"Spearman between proxies and real fine-tunes over {found.num_checks} checks: {shown}{possible}"


def _target_parts(result: Result) -> list[str]:
    """What the targets give up for each other; nothing where there is one."""
    selection, parts = result.selection, []
    if selection.objective is not None and selection.objective.aim == "pareto":
        front = front_of(selection)
        rows = front_cells(front, selection, result.selected)
        parts += ["## Front", front_text(front), table(front_header(selection), rows)]
    lines = given_up(selection, result.verification)
    if lines:
        text = " ".join(
            [
                "Gains of proxies over the base, on the select part.",
                *filter(None, [units_text(selection)]),
            ]
        )
        parts += [
            "## What each target gives up",
            text,
            table(GIVEN_UP_HEADER, given_up_cells(lines)),
        ]
    return parts


def _verification_parts(result: Result) -> list[str]:
    if result.verification is None:
        return []
    lines = "\n".join(f"- {text}" for text in verification_lines(result.verification))
    parts = ["## Checks", table(CHECK_HEADER, check_cells(result.verification)), lines]
    measured = fidelity_cells(result.verification)
    if measured:
        level = f"{result.verification.confidence:.0%}"
        text = (
            f"How well proxies rank what real fine-tunes give, over the checks of several datasets, with {level} intervals."
            " Regret at k: the best real gain minus the best among the k best proxies. Noise: standard deviation of the gain"
            " between seeds. Possible: the Spearman correlation that a perfect proxy would reach, given that noise."
        )
        parts += [text, table(FIDELITY_HEADER, measured)]
    return parts


STATISTICS = {
    "pearson": "Pearson",
    "spearman": "Spearman",
    "kendall": "Kendall",
    "top_quarter": "Spearman of the top quarter",
    "regret_1": "regret at 1",
    "regret_3": "regret at 3",
    "regret_5": "regret at 5",
}
FIDELITY_HEADER = ["target", "checks", *STATISTICS.values(), "noise", "possible"]


def fidelity_cells(verification: Verification) -> list[list[str]]:
    """A line for each target and for the objective, without those of fewer than five checks."""
    lines = []
    for name, found in verification.agreement.items():
        if found.statistics is not None:
            values = [_estimate(found.statistics.get(key)) for key in STATISTICS]
            noise = "" if found.noise_sd is None else f"{found.noise_sd:.4f}"
            possible = "" if found.possible is None else f"{found.possible:.2f}"
            lines.append([name, str(found.num_checks), *values, noise, possible])
    return lines


def _estimate(found: Estimate | None) -> str:
    return "" if found is None else f"{found.value:.3g} ({found.low:.3g} to {found.high:.3g})"


def expert_cells(result: Result) -> list[list[str]]:
    """What each expert took."""
    return [
        [e.dataset, str(e.num_examples), str(e.num_tokens), f"{e.train_s:.1f}"]
        for e in result.experts
    ]


def cost_cells(result: Result) -> list[list[str]]:
    """Seconds of work, whichever run did it."""
    cost = result.cost
    lines = [
        ("experts", cost.experts_s),
        ("merging", cost.merge_s),
        ("evaluating proxies", cost.evaluate_s),
        *([("gradients in the weights", cost.gradients_s)] if cost.gradients_s > 0 else []),
        ("checks", cost.checks_s),
        ("final fine-tune", cost.final_s),
        ("total", cost.total_s),
        ("baselines, for the table alone", cost.baselines_s),
        ("fine-tuning on every mixture instead, estimated", cost.brute_force_s_estimate),
        ("this run, reuse counted", cost.wall_s),
    ]
    return [[name, f"{seconds:.1f}"] for name, seconds in lines]


def environment_cells(result: Result) -> list[list[str]]:
    """Versions, device and seeds."""
    return [[str(key), _plain(value)] for key, value in result.environment.items()]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def verdict(result: Result) -> list[str]:
    """The final model beside each baseline that was run, in one line each."""
    final = result.row("final")
    if final is None:
        return []
    lines = []
    for kind, name in (("base", "the base"), ("all", "a fine-tune on all datasets")):
        row = result.row(kind)
        if row is not None:
            lines.append(_compared(final.gain, row.gain, name))
    drawn = [row.gain for row in result.table if row.kind == "random"]
    if drawn:
        lines.append(
            _compared(
                final.gain,
                fmean(drawn),
                f"the mean of {len(drawn)} real fine-tune{'s' * (len(drawn) > 1)} on random mixtures",
            )
        )
    return lines


def _compared(final: float, other: float, name: str) -> str:
    word = "better than" if final > other else "the same as" if final == other else "worse than"
    return f"gain {final:+.4f}: {word} {name} ({other:+.4f})"


def _summary(result: Result, recipe: Recipe) -> str:
    exponent = (
        recipe.merge.scale.exponent if result.verification is None else result.verification.exponent
    )
    how = "drawn by these weights" if result.portions else "all of their data together"
    lines = [
        f"Fine-tune `{recipe.base.path}` on **{mixture_text(result.selected)}**"
        f", {how}. (Proxies: {recipe.merge.weighting} weighting, scale exponent {exponent:g}.)"
    ]
    verdicts = verdict(result)
    if verdicts:
        lines.append("The model fine-tuned so, on examples the search never saw:\n")
        lines += [f"- {text}" for text in verdicts]
    return "\n".join(lines)


PORTION_HEADER = ["dataset", "share", "sequences", "tokens", "passes over it"]


def portion_cells(portions: Sequence[Portion]) -> list[list[str]]:
    """What a weighted mixture's fine-tune takes of each dataset."""
    return [
        [
            each.dataset,
            f"{each.weight:.4f}",
            str(each.num_examples),
            str(each.num_tokens),
            f"{each.num_passes:.2f}",
        ]
        for each in portions
    ]


def _portion_parts(result: Result, recipe: Recipe) -> list[str]:
    if not result.portions:
        return []
    unit = "examples" if recipe.train.max_steps is not None else "tokens"
    text = f"Shares are of {unit}; whole passes over a dataset first, then a part of it, drawn by `train.seed`."
    return ["## The mixture's rows", text, table(PORTION_HEADER, portion_cells(result.portions))]


def model_card(result: Result, recipe: Recipe) -> str:
    """The card of the final model: where it comes from and how good it is."""
    final = result.row("final")
    base = recipe.base.path
    front = f"---\nbase_model: {base}\nlibrary_name: transformers\ntags: [merge-to-mix]\n---\n"
    lines = [
        f"# Fine-tuned on {mixture_text(result.selected)}",
        f"Base: `{base}`. Chosen by Merge to Mix (arXiv 2505.16066).",
    ]
    if final is not None:
        rows = [row for row in result.table if row.kind in ("base", "final", "all")]
        lines += [
            legend(recipe),
            table(final_header(recipe), [final_cells(row, recipe) for row in rows]),
        ]
    return front + "\n" + "\n\n".join(lines) + "\n"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    return str(value)
