"""The decision: what to train on, from the posterior and the report part's paired intervals.

The rule, in this order. "Shown" means: by the 90% interval of the paired bootstrap over the report
part's examples, one side of it shared among all mixtures that are compared where the best of
several is looked for.

1. The choice is the pick of the checks (without checks, of the search).
2. Another mixture that was fine-tuned takes its place if it is shown to be better; or if it is
   shown to be better than the base, and the pick is not. Of several it is the one that gains most.
3. If the choice is shown to be better than the base, train on it. If it gains nothing, do not
   fine-tune. Otherwise there are too few examples to say.
4. What cannot be told apart from the choice: what the posterior gives a probability over
   1 - verify.confidence of being better, and what is not shown to be worse where the posterior does
   not know the choice; but nothing that is shown to be worse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist, fmean
from typing import Literal

import numpy as np

from mergetomix.objectives.objective import Objective
from mergetomix.records import Estimate, Mixture, Scores
from mergetomix.results import Comparison, Decision, Row, Selection, Verdict, Verification
from mergetomix.statistics import bootstrap
from mergetomix.statistics.bootstrap import Array

CONFIDENCE = 0.9
"""Coverage of all intervals of the final table and of the decision."""
ERROR = (1 - CONFIDENCE) / 2
MERGE = "the merge of its experts"
CHEAPER = 0.9
"""What trains on at most so many times the tokens is said to be cheaper."""
MOST_TIMES = 100.0
"""With so many times the examples a gain that is not shown by then is as good as none."""


@dataclass(frozen=True)
class Evidence:
    """What a decision is made of.

    `objective` is what gains are counted in, `may_choose` says of a mixture whether the search may
    choose it, and `num_tokens` for how many tokens a fine-tune on it trains. `everything` is the
    mixture of all datasets.
    """

    selection: Selection
    verification: Verification | None
    table: Sequence[Row]
    objective: Objective
    may_choose: Callable[[Mixture], bool]
    num_tokens: Callable[[Mixture], int]
    everything: Mixture

    @property
    def pick(self) -> Mixture:
        """The mixture that the checks, or the search, chose."""
        checked = self.verification
        return self.selection.mixture if checked is None else checked.mixture

    @property
    def base(self) -> Mapping[str, Scores]:
        """The base's scores on the report part."""
        return next(row.scores for row in self.table if row.kind == "base")

    def trained(self) -> dict[Mixture, Row]:
        """Returns the real fine-tunes of the final table that the search may choose, each once."""
        found: dict[Mixture, Row] = {}
        for row in sorted(self.table, key=lambda row: row.kind != "final"):
            if row.mixture is not None and row.kind != "proxy" and self.may_choose(row.mixture):
                found.setdefault(row.mixture, row)
        return found


def decide(evidence: Evidence) -> Decision:
    """Returns what to train on, by the rule of this module."""
    trained = evidence.trained()
    draws = bootstrap.resampled(
        {mixture: row.runs for mixture, row in trained.items()}, evidence.base, evidence.objective
    )
    if evidence.pick not in trained:
        return _by_prediction(evidence)
    choice = _choice(evidence.pick, trained, draws)
    gain = bootstrap.interval(draws[choice], trained[choice].gain, CONFIDENCE)
    others = _others(evidence, choice, draws)
    times = _times_needed(draws[choice], gain.value)
    found = _decision(evidence, choice, gain, others, times, is_measured=True)
    return replace(found, comparisons=_comparisons(evidence, trained[choice]))


def _comparisons(evidence: Evidence, choice: Row) -> tuple[Comparison, ...]:
    """Returns the choice beside the base, all datasets, the best expert and random mixtures."""
    merge = [row for row in evidence.table if row.kind == "proxy" and row.mixture == choice.mixture]
    rows = [row for row in evidence.table if row.kind not in ("base", "proxy")] + merge
    draws = bootstrap.resampled(
        {_model(row): row.runs for row in rows}, evidence.base, evidence.objective
    )
    named = {row.name: row.gain for row in rows}
    experts = [row.name for row in rows if row.kind == "expert"]
    sides = {"the base": list[str]()}
    sides["a fine-tune on everything"] = [row.name for row in rows if row.kind == "all"]
    if best := max(experts, key=named.__getitem__, default=None):
        sides[f"the best single dataset, {best.removeprefix('expert ')}"] = [best]
    if random := [row.name for row in rows if row.kind == "random"]:
        sides[f"the mean of {len(random)} fine-tunes on random mixtures"] = random
    if merge and len(choice.mixture or ()) > 1:
        sides[MERGE] = [row.name for row in merge]
    found = []
    for name, others in sides.items():
        of_other = [row for row in rows if row.name in others]
        if (not others and name != "the base") or any(
            row.mixture == choice.mixture and row.kind != "proxy"
            for row in of_other
            if len(of_other) == 1
        ):
            continue
        other_D = np.mean([draws[_model(each)] for each in of_other], axis=0) if others else 0.0
        value = choice.gain - (fmean(named[each] for each in others) if others else 0.0)
        lead = bootstrap.interval(draws[_model(choice)] - other_D, value, CONFIDENCE)
        is_one = len(of_other) == 1 and name != MERGE
        mixture = of_other[0].mixture if is_one else None
        found.append(Comparison(name, lead, verdict_of(lead), mixture))
    return tuple(found)


def _model(row: Row) -> Hashable:
    """Returns what tells a row's model from others: the mixture, of a merge that it is one."""
    return ("merge", row.mixture) if row.kind == "proxy" else row.mixture


def verdict_of(lead: Estimate) -> Verdict:
    """Returns what the interval of a lead says."""
    if lead.low > 0:
        return "better than"
    return "worse than" if lead.high < 0 else "cannot be told apart from"


def with_intervals(table: Sequence[Row], objective: Objective) -> tuple[Row, ...]:
    """Returns the rows of a final table with the intervals of their gains."""
    base = next(row.scores for row in table if row.kind == "base")
    models = {_model(row): row.runs for row in table if row.kind != "base"}
    draws = bootstrap.resampled(models, base, objective)
    return tuple(
        replace(row, interval=bootstrap.interval(draws[_model(row)], row.gain, CONFIDENCE))
        if row.kind != "base"
        else row
        for row in table
    )


def _choice(
    pick: Mixture, trained: Mapping[Mixture, Row], draws: Mapping[Mixture, Array]
) -> Mixture:
    """Returns the pick, or what the report part shows to be better (steps 1 and 2)."""
    rivals = [each for each in trained if each != pick]
    error = ERROR / max(1, len(rivals))
    better = [each for each in rivals if bootstrap.is_above(draws[each] - draws[pick], error)]
    if not better and not bootstrap.is_above(draws[pick], ERROR):
        better = [each for each in rivals if bootstrap.is_above(draws[each], error)]
    return max(better, key=lambda each: trained[each].gain, default=pick)


def _others(
    evidence: Evidence, choice: Mixture, draws: Mapping[Mixture, Array]
) -> tuple[Mixture, ...]:
    """Returns what cannot be told apart from the choice, the likeliest first (step 4)."""
    checked = evidence.verification
    if checked is not None and choice == evidence.pick:
        found = [each.mixture for each in checked.alternatives]
    else:
        found = sorted(
            (each for each in draws if each != choice),
            key=lambda each: -float(np.mean(draws[each] > draws[choice])),
        )
    return tuple(
        each
        for each in found
        if each not in draws or not bootstrap.is_above(draws[choice] - draws[each], ERROR)
    )


def _by_prediction(evidence: Evidence) -> Decision:
    """Returns a decision where nothing was fine-tuned on the pick, by what is expected of it."""
    checked = evidence.verification
    if checked is None:
        return Decision("mixture", evidence.pick, (), evidence.pick, None, is_measured=False)
    expected = next(each for each in checked.predictions if each.mixture == evidence.pick)
    gain = Estimate(expected.mean, expected.low, expected.high)
    others = tuple(each.mixture for each in checked.alternatives)
    level = NormalDist().inv_cdf(0.5 + checked.confidence / 2)
    sd = (gain.high - gain.low) / 2 / level
    times = (level * sd / gain.value) ** 2 if gain.value > 0 else math.inf
    return _decision(evidence, evidence.pick, gain, others, times, is_measured=False)


def _decision(
    evidence: Evidence,
    choice: Mixture,
    gain: Estimate,
    others: tuple[Mixture, ...],
    times: float,
    is_measured: bool,
) -> Decision:
    """Returns a decision of one of the kinds (step 3)."""
    cheapest = min([choice, *others], key=evidence.num_tokens)
    if evidence.num_tokens(cheapest) > CHEAPER * evidence.num_tokens(choice):
        cheapest = choice
    kind: Literal["mixture", "everything", "either", "base", "more"] = "base"
    num_more = None
    if gain.low > 0:
        alone: Literal["mixture", "everything"] = "mixture"
        if choice == evidence.everything:
            alone = "everything"
        kind = "either" if others else alone
    elif times <= MOST_TIMES:
        num = sum(scores.num_examples for scores in evidence.base.values())
        kind, num_more = "more", max(1, math.ceil(num * (times - 1)))
    return Decision(kind, choice, others, cheapest, gain, is_measured, num_more)


def _times_needed(draws_D: Array, gain: float) -> float:
    """Returns with how many times the examples a gain would be shown, if it is what it seems."""
    if gain <= 0:
        return math.inf
    short = gain - float(np.quantile(draws_D, ERROR))
    return (short / gain) ** 2
