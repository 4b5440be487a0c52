"""The sentences of the report and of the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from mergetomix.models.family import UNITS
from mergetomix.recipe.recipe import Recipe
from mergetomix.records import Kind, Scores
from mergetomix.report.tables import NUM_FRONT
from mergetomix.report.target_gains import Front
from mergetomix.results import Decision, Effects, MoreExamples, Selection, Verification
from mergetomix.sections.target import TargetBase

NUM_PAIRS = 3
"""Pairs of datasets that overlap, of those that are named."""
LEAST_SHARE = 0.1
"""Part of a lead's variance that more examples must take away to be worth asking for."""


def legend(recipe: Recipe, selection: Selection | None = None) -> str:
    """Returns what the numbers of the final table are."""
    settled = None if selection is None else selection.objective
    aim = recipe.search.objective if settled is None else settled.aim
    base = {} if selection is None else selection.base
    kinds = [
        f"`{name}` is {spec.described(_kind(spec, base.get(name)), UNITS[recipe.family])}"
        for name, spec in recipe.targets.items()
    ]
    weights = ", ".join(f"{name} {spec.weight:g}" for name, spec in recipe.targets.items())
    mean = f"mean over targets (weights {weights}) of"
    one = "the fraction of the base's loss removed, or of the score added"
    objective = {
        "auto": f"{mean} {one}",
        "gain": f"{mean} {one}",
        "standard_errors": f"{mean} {one}, in standard errors of the target",
        "worst": f"the smallest over targets of {one}",
        "pareto": f"1 less the largest distance over targets (weights {weights}) to the front's"
        f" best, in its widths, of {one}",
    }[aim]
    return f"{'; '.join(kinds)}. Gain: {objective}."


def _kind(spec: TargetBase, scores: Scores | None) -> Kind:
    """The kind of a target's scores: that of the base's, or what its section says."""
    if scores is not None:
        return scores.kind
    return "loss" if spec.score == "loss" else "score"


def units(selection: Selection) -> str:
    """Returns the standard errors that gains are counted in, or nothing."""
    found = {} if selection.objective is None else selection.objective.units
    return "; ".join(
        f"one standard error of {name} is a gain of {unit:.4g}"
        for name, unit in sorted(found.items())
    )


def front_size(front: Front) -> str:
    """Returns how large a front is."""
    num = len(front.members)
    text = f"{num} mixtures that no other beats on every target"
    if num == 1:
        text = "1 mixture that no other beats"
    if num > NUM_FRONT:
        text += f"; the {NUM_FRONT} nearest to the best of each are shown"
    return f"{text}. Hypervolume over the base: {front.hypervolume:.4g}."


def num_proxies(selection: Selection) -> str:
    """Returns how many proxies were tried, and how many of them on all examples."""
    num, tried = len(selection.trials), len(selection.trials) + len(selection.stopped)
    if num == tried:
        return f"{num} proxies"
    return f"the {num} proxies of {tried} that saw every example"


def racing(selection: Selection) -> str:
    """Returns what racing saved, or nothing if no trial was stopped."""
    if not selection.stopped:
        return ""
    made, without = selection.num_evaluated, selection.num_without_racing
    num, tried = len(selection.stopped), len(selection.trials) + len(selection.stopped)
    return (
        f"racing: {num} of {tried} proxies were stopped early, as they could hardly be the best;"
        f" {made:,} example evaluations instead of {without:,}, {without / made:.1f} times fewer"
    )


def verification_lines(
    verification: Verification, decision: Decision | None = None, blunt: Sequence[str] = ()
) -> list[str]:
    """Returns the pick, what cannot be told apart from it, and how well the proxies rank.

    A decision rests on the report part too, and says itself what cannot be told apart. Of `blunt`
    targets, which tell no mixtures apart, more examples are not asked for.
    """
    pick = next(each for each in verification.predictions if each.mixture == verification.mixture)
    num = verification.num_paid
    paid = f"{num} extra fine-tune{'' if num == 1 else 's'}"
    interval = f"{verification.confidence:.0%} interval {pick.low:+.4f} to {pick.high:+.4f}"
    lines = [
        f"pick after {paid}: {pick.mixture}, which was then expected to gain {pick.mean:+.4f} on"
        f" the report part ({interval}); {pick.best_probability:.0%} chance of being the best"
        f" mixture; {verification.stopped}",
        f"merges with {verification.merging}",
    ]
    lines += [
        f"left out, its training failed: {mixture} ({why})"
        for mixture, why in verification.failures
    ]
    if verification.alternatives and decision is None:
        shown = "; ".join(str(each.mixture) for each in verification.alternatives[:5])
        num_more = len(verification.alternatives) - 5
        more = f" and {num_more} more" if num_more > 0 else ""
        lines.append(f"cannot be told apart from the pick: {shown}{more}")
    wanted = verification.more_examples
    is_open = wanted is not None and (decision is None or wanted.against in decision.others)
    if wanted is not None and is_open and wanted.target not in blunt:
        lines.append(more_examples(wanted))
    return [*lines, _agreement(verification)]


def effects(found: Effects) -> list[str]:
    """Returns what stands out of what the datasets add, and where the numbers come from."""
    known = f"{found.num_known:,} mixtures that were tried"
    source = (
        f"from all {known}"
        if found.is_exact
        else f"from {known}, and for all others from a regression on these"
    )
    lines = [
        "What a dataset adds to a fine-tune, averaged over all orders in which the datasets may be"
        f" put together (Shapley values of gains over the base), expected {source}."
    ]
    if found.harmful:
        lines.append(f"Harmful, by the whole interval: {', '.join(found.harmful)}.")
    for pair in found.redundant[:NUM_PAIRS]:
        one, other = pair.datasets
        lines.append(
            f"No gain is shown from having both {one} and {other}, beside the better of them alone."
        )
    return lines


def more_examples(wanted: MoreExamples) -> str:
    """Returns what more select examples would do to the decision."""
    lead = f"the standard deviation of the pick's lead over {wanted.against}"
    if wanted.share < LEAST_SHARE:
        return (
            f"more examples would hardly help: {wanted.num_more} more of {wanted.target} would take"
            f" away {wanted.share:.0%} of the variance of the pick's lead over {wanted.against};"
            " the rest is what other checks and seeds would show (verify.budget, verify.repeats)"
        )
    return (
        f"{wanted.num_more} more select examples of {wanted.target} (there are {wanted.num}) would"
        f" narrow {lead} from {wanted.sd:.2g} to {wanted.sd_then:.2g}; they may come from its own"
        " training rows, or in part from a larger select_fraction"
    )


def _agreement(verification: Verification) -> str:
    found = verification.agreement["objective"]
    if found.statistics is None:
        return (
            f"{found.num_checks} mixtures of several datasets were checked: fewer than five say"
            " nothing of proxies"
        )
    text = f"Spearman between proxies and real fine-tunes over {found.num_checks} checks: "
    if (spearman := found.statistics["spearman"]) is not None:
        text += f"{spearman.value:.2f} ({spearman.low:.2f} to {spearman.high:.2f})"
    if found.possible is not None:
        text += f"; a perfect proxy would reach {found.possible:.2f}, given seed noise"
    return text
