"""What a decision rests on, in words; its headline is its own."""

from __future__ import annotations

from mergetomix.curves import complaint
from mergetomix.progress import duration
from mergetomix.records import Estimate
from mergetomix.results import Comparison, Decision, Result
from mergetomix.stages.decision import MERGE

NUM_OTHERS = 3
"""How many mixtures that cannot be told apart from the choice are named."""


def lines(result: Result) -> list[str]:
    """Returns what the decision rests on, what it took and what to do next, a sentence each."""
    *reasons, last = because(result)
    return [*reasons, _cost(result), last]


def because(result: Result) -> list[str]:
    """Returns the same without what it took, which differs from one run to another."""
    decision = result.decision
    if decision.kind in ("base", "more"):
        return [_gain(result), *_best(decision), _next(result)]
    found = [_gain(result), *_sure(result), *_rests_on(result)]
    if decision.others:
        found.append(_others(decision))
    found += _cheaper(result)
    found += [_compared(each, decision) for each in decision.comparisons[1:]]
    return [*found, *_adds(result), *_trainings(result), _next(result)]


def interval(found: Estimate) -> str:
    """Returns a gain with its interval.

    >>> interval(Estimate(0.0326, 0.0195, 0.0457))
    '+0.0326 (90% interval +0.0195 to +0.0457)'
    """
    return f"{found.value:+.4f} (90% interval {found.low:+.4f} to {found.high:+.4f})"


def _gain(result: Result) -> str:
    decision = result.decision
    if decision.gain is None:
        return f"Nothing was fine-tuned on {decision.mixture}: this rests on merges alone."
    shown = interval(decision.gain)
    if not decision.is_measured:
        return (
            f"A fine-tune on {decision.mixture} is expected to gain {shown} over the base; none was"
            " scored on the report part."
        )
    num = sum(scores.num_examples for scores in result.table[0].scores.values())
    return (
        f"The model fine-tuned on {decision.mixture} gains {shown} over the base, on {num:,}"
        " examples that the search never saw."
    )


def _sure(result: Result) -> list[str]:
    checked, mixture = result.verification, result.decision.mixture
    if checked is None:
        return ["No check was made (verify.budget is 0): how sure this is cannot be said."]
    found = [each.best_probability for each in checked.predictions if each.mixture == mixture]
    num = f"the best of {len(checked.predictions):,} mixtures"
    return [f"The chance that {mixture} is {num} is {chance:.0%}." for chance in found]


def _others(decision: Decision) -> str:
    named = "; ".join(str(each) for each in decision.others[:NUM_OTHERS])
    num_more = len(decision.others) - NUM_OTHERS
    more = f"; and {num_more} more" if num_more > 0 else ""
    text = f"Cannot be told apart from {decision.mixture}: {named}{more}."
    return text if decision.cheapest != decision.mixture else f"{text} None of them is cheaper."


def _rests_on(result: Result) -> list[str]:
    """Returns which targets the choice rests on, where some tell no mixtures apart."""
    blunt = result.selection.blunt
    if not blunt:
        return []
    others = [name for name in result.selection.base if name not in blunt]
    tells = "tells" if len(blunt) == 1 else "tell"
    text = f"{', '.join(blunt)} {tells} no mixtures apart"
    return [f"This rests on {', '.join(others)} alone: {text}." if others else f"{text}."]


def _cheaper(result: Result) -> list[str]:
    """Returns what is known of the cheaper mixture that the headline names."""
    cheaper, checked = result.decision.cheapest, result.verification
    trained = {row.mixture for row in result.table if row.kind != "proxy"}
    if cheaper == result.decision.mixture or cheaper in trained or checked is None:
        return []
    choice = result.decision.mixture
    expected = {
        each.mixture: Estimate(each.mean, each.low, each.high) for each in checked.predictions
    }
    if cheaper not in expected or choice not in expected:
        return []
    return [
        f"{cheaper} was not fine-tuned: merges and checks alone expect"
        f" {interval(expected[cheaper])} of it, and {interval(expected[choice])} of {choice}."
    ]


def _adds(result: Result) -> list[str]:
    """Returns which datasets add most, and which take away."""
    found = None if result.verification is None else result.verification.effects
    if found is None:
        return []
    helpful = [each for each in found.datasets if each.values["objective"].low > 0]
    named = [f"{each.dataset} ({each.values['objective'].value:+.4f})" for each in helpful]
    most = f"Most is added to mixtures by {', '.join(named[:NUM_OTHERS])}" if named else ""
    harm = f"harmful: {', '.join(found.harmful) or 'none is shown to be'}"
    return [f"{most}; {harm}." if most else f"No dataset is shown to help; {harm}."]


def _trainings(result: Result) -> list[str]:
    """Returns whether the fine-tunes learned their own rows, of those that it is known of."""
    known = {name: each.own for name, each in result.curves.items() if each.own is not None}
    bad = [name for name, own in known.items() if complaint(own) is not None]
    if not known:
        return []
    if bad:
        return [f"Did not learn their training rows: {', '.join(bad)} (see the warnings)."]
    return [f"All {len(known)} fine-tunes lowered the loss on some of their training rows."]


def _cost(result: Result) -> str:
    """Returns what it took beside fine-tuning on every mixture."""
    cost, selection = result.cost, result.selection
    num = len(selection.trials) + len(selection.stopped)
    every, total = cost.brute_force_s_estimate, cost.total_s + cost.baselines_s
    beside = f" ({every / total:.0f} times as long)" if every > 2 * total > 0 else ""
    return (
        f"It took {duration(total)} of work, {len(result.curves) or len(result.experts)}"
        f" fine-tunes and {num:,} merges; a fine-tune on every mixture would take about"
        f" {duration(every)}{beside}."
    )


def _best(decision: Decision) -> list[str]:
    """Returns what can be said where nothing is shown to beat the base."""
    if decision.gain is None or decision.gain.high > 0:
        return ["Its interval does not lie above zero: chance alone may give such a gain."]
    return ["It is worse than the base, and no other fine-tune is shown to be better."]


def _compared(each: Comparison, decision: Decision) -> str:
    lead, mixture = interval(each.lead), decision.mixture
    if each.name == MERGE:
        return _beside_merge(each, lead)
    is_other = each.mixture is None or each.mixture in decision.others
    if each.verdict == "cannot be told apart from" and not is_other:
        return (
            f"{mixture} is expected to be better than {each.name}, by the search and its checks;"
            f" the report part alone does not tell them apart: the difference is {lead}."
        )
    if each.verdict == "cannot be told apart from":
        return f"{mixture} cannot be told apart from {each.name}: the difference is {lead}."
    return f"{mixture} is {each.verdict} {each.name}: the difference is {lead}."


def _beside_merge(each: Comparison, lead: str) -> str:
    """Returns how the fine-tune does beside the merge, which costs no training."""
    if each.verdict == "better than":
        return f"The fine-tuned model is better than {each.name}: the difference is {lead}."
    told = "is worse than" if each.verdict == "worse than" else "cannot be told apart from"
    return (
        f"The fine-tuned model {told} {each.name}: the difference is {lead}. `mergetomix merge`"
        " writes the merge without any training."
    )


def _next(result: Result) -> str:
    decision, checked = result.decision, result.verification
    if decision.kind == "more":
        return "Next: give the targets more examples, and run the same command again."
    if decision.kind == "base":
        return (
            "Next: look for other datasets, or train otherwise (train.learning_rate, train.epochs)."
        )
    if result.row("final") is None:
        return "Next: fine-tune on it, with the recipe's `final.train: true`."
    model = "the model is in the folder final beside this report"
    if decision.mixture != result.selected:
        return (
            f"Next: {model}, fine-tuned on {result.selected}, which the checks picked; for a model"
            f" on {decision.mixture} set search.require and search.max_datasets."
        )
    if decision.others and checked is not None and checked.more_examples is not None:
        wanted = checked.more_examples
        if wanted.target in result.selection.blunt:
            return (
                f"Next: use it; {model}. To tell more apart, have another target in the place of"
                f" {wanted.target}."
            )
        if wanted.share >= 0.1:
            return (
                f"Next: use it; {model}. To tell more apart, give {wanted.target} about"
                f" {wanted.num_more:,} more examples."
            )
    return f"Next: use it; {model}."
