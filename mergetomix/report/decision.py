"""What a decision rests on, in words; its headline is its own."""

from __future__ import annotations

from mergetomix.records import Estimate
from mergetomix.results import Comparison, Decision, Result
from mergetomix.stages.decision import MERGE

NUM_OTHERS = 3
"""How many mixtures that cannot be told apart from the choice are named."""


def lines(result: Result) -> list[str]:
    """Returns what the decision rests on and what to do next, one sentence each."""
    decision = result.decision
    if decision.kind in ("base", "more"):
        return [_gain(result), *_best(decision), _next(result)]
    found = [_gain(result), *_sure(result)]
    if decision.others:
        found.append(_others(decision))
    found += [_compared(each, decision) for each in decision.comparisons[1:]]
    return [*found, _next(result)]


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
            f" the report part alone does not tell them apart: it gains {lead} more."
        )
    if each.verdict == "cannot be told apart from":
        return f"{mixture} cannot be told apart from {each.name}: it gains {lead} more."
    return f"{mixture} is {each.verdict} {each.name}: it gains {lead} more."


def _beside_merge(each: Comparison, lead: str) -> str:
    """Returns how the fine-tune does beside the merge, which costs no training."""
    if each.verdict == "better than":
        return f"Fine-tuned on it, the model gains {lead} more than {each.name}."
    told = "is worse than" if each.verdict == "worse than" else "cannot be told apart from"
    return (
        f"The fine-tuned model {told} {each.name}: it gains {lead} more. `mergetomix merge` writes"
        " that one without any training."
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
        if wanted.share >= 0.1:
            return (
                f"Next: use it; {model}. To tell more apart, give {wanted.target} about"
                f" {wanted.num_more:,} more examples."
            )
    return f"Next: use it; {model}."
