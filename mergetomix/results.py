"""What the stages give: a selection, its verification, the final table and its cost."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from mergetomix.curves import Curve
from mergetomix.records import Estimate, Finetune, Merging, Mixture, Portion, Scores, Trial

if TYPE_CHECKING:
    import pandas as pd

    from mergetomix.objectives.objective import Objective

Samples: TypeAlias = tuple[tuple[tuple[str, bool], ...], ...]
"""Rows in pieces of text, each with whether it is trained on, or scored."""


def frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Returns rows as a pandas table."""
    import pandas as pd

    return pd.DataFrame(list(rows))


@dataclass(frozen=True)
class Selection:
    """The outcome of a search: the mixture chosen, every complete trial, and every single expert.

    Trials and experts are sorted, the best first; `objective` is what they are ranked by.
    `stopped` are the trials that a race stopped early, best estimate first: no candidates, as each
    was worse than a complete one beyond doubt. `order` are the mixtures as they were tried, one
    after the other. `blunt` are the targets on which the mixtures differ by no more than chance.
    """

    mixture: Mixture
    trials: tuple[Trial, ...]
    strategy: str
    base: Mapping[str, Scores]
    singles: tuple[Trial, ...]
    objective: Objective | None = None
    stopped: tuple[Trial, ...] = ()
    order: tuple[Mixture, ...] = ()
    blunt: tuple[str, ...] = ()

    @property
    def num_evaluated(self) -> int:
        """Example evaluations behind the trials."""
        return sum(trial.num_examples for trial in (*self.trials, *self.stopped))

    @property
    def num_without_racing(self) -> int:
        """Example evaluations if every trial had seen every example."""
        return (len(self.trials) + len(self.stopped)) * sum(
            scores.num_examples for scores in self.base.values()
        )

    def to_frame(self) -> pd.DataFrame:
        """Returns a pandas table with a line for each trial, the best first."""
        return frame(
            {
                "datasets": str(trial.mixture),
                **{name: scores.mean for name, scores in trial.scores.items()},
                "objective": trial.objective,
            }
            for trial in self.trials
        )

    @property
    def best_expert(self) -> Trial:
        """The best single expert on the select part, whether or not the search may choose it."""
        return self.singles[0]


@dataclass(frozen=True)
class Check:
    """A mixture evaluated as proxy and as real fine-tune, on the select part.

    Objectives are gains over the base. `origin` says why the fine-tune exists: `verify` paid for
    it, it is a `baseline` of the final table, or the `store` held it.
    """

    mixture: Mixture
    proxy: float
    real: float
    scores: Mapping[str, Scores]
    proxy_scores: Mapping[str, Scores]
    key: str
    origin: Literal["verify", "baseline", "store"]


@dataclass(frozen=True)
class Prediction:
    """What the checks say of one mixture's real objective, and its chance of being the best.

    `mean`, `low` and `high` are the centre and the ends of the interval of what this run's
    fine-tune on it scores on the report part. `best_probability` is of the mixture, over all seeds
    and all examples like the targets'. `measured` is whether its real score on the select part is
    there: of a check, or of a single dataset's expert.
    """

    mixture: Mixture
    proxy: float
    mean: float
    low: float
    high: float
    best_probability: float
    measured: bool


@dataclass(frozen=True)
class Alternative:
    """A mixture that cannot be told apart from the pick, and its chance of being better.

    `difference` is by how much the pick is worth more, and `sd` that difference's standard
    deviation, the noise of examples and of seeds counted.
    """

    mixture: Mixture
    difference: float
    sd: float
    better_probability: float


@dataclass(frozen=True)
class MoreExamples:
    """What more select examples of a target would do to the decision.

    `sd` is the standard deviation of the pick's lead over the mixture `against`, which is the
    likeliest to be better; `sd_then` is what it would be with `num_more` examples beside the `num`
    that there are; of all targets it is the smallest.
    """

    target: str
    against: Mixture
    num: int
    num_more: int
    sd: float
    sd_then: float

    @property
    def share(self) -> float:
        """The part of the variance of the pick's lead that they would take away."""
        return max(0.0, 1 - (self.sd_then / self.sd) ** 2) if self.sd > 0 else 0.0


@dataclass(frozen=True)
class Agreement:
    """How well proxies rank what real fine-tunes give, over mixtures of several datasets.

    `statistics` is None with fewer than five checks. `noise_sd` is the standard deviation between
    seeds: what studies show, and repeats if there are any. `possible` is the Spearman correlation
    that a perfect proxy would reach, given that and the examples. Both are None for an objective
    that is no sum over targets.
    """

    num_checks: int
    statistics: Mapping[str, Estimate | None] | None
    noise_sd: float | None
    possible: float | None


@dataclass(frozen=True)
class DatasetEffect:
    """What a dataset adds to mixtures: Shapley values by target, and of the `objective`.

    `around` is what the pick has more with it than without: of a dataset that it holds what leaving
    it out would lose, of another what adding it would gain.
    """

    dataset: str
    values: Mapping[str, Estimate]
    is_in_pick: bool
    around: Estimate

    @property
    def is_harmful(self) -> bool:
        """Whether it takes away from mixtures, its whole interval below zero."""
        return self.values["objective"].high < 0


@dataclass(frozen=True)
class PairEffect:
    """How much more two datasets add together than apart: their Shapley interaction.

    `beyond` is by how much a fine-tune on the two gains more than one on the better of them alone.
    """

    datasets: tuple[str, str]
    interaction: Estimate
    beyond: Estimate


@dataclass(frozen=True)
class Effects:
    """What the datasets add, the best first; pairs, those that add least beside each other first.

    `is_exact` says whether every subset was tried, and `num_known` how many mixtures were; values
    of others come from a regression.
    """

    datasets: tuple[DatasetEffect, ...]
    pairs: tuple[PairEffect, ...]
    confidence: float
    is_exact: bool
    num_known: int

    @property
    def harmful(self) -> tuple[str, ...]:
        """The datasets that take away from mixtures."""
        return tuple(each.dataset for each in self.datasets if each.is_harmful)

    def to_frame(self) -> pd.DataFrame:
        """Returns a pandas table with a line for each dataset and target: value, low and high."""
        return frame(
            {"dataset": each.dataset, "target": target, **vars(value)}
            for each in self.datasets
            for target, value in each.values.items()
        )

    @property
    def redundant(self) -> tuple[PairEffect, ...]:
        """Pairs of helpful datasets that add less together than apart, by their whole interval.

        Both together are not shown to be better than the better of them alone.
        """
        helps = {each.dataset for each in self.datasets if each.values["objective"].low > 0}
        return tuple(
            each
            for each in self.pairs
            if each.interaction.high < 0
            and each.beyond.low <= 0
            and helps.issuperset(each.datasets)
        )


@dataclass(frozen=True)
class Verification:
    """The outcome of the checks: the pick by the posterior, and how far it can be trusted.

    `agreement` maps every target, and `objective`, to how well its proxies rank. `merging` is the
    way to merge that the checks ask for. `confidence` is the level of all intervals, `num_repeats`
    counts the checks that were made again with another seed. `more_examples` is None if nothing may
    well be better than the pick, or for an objective that is no sum over targets. `failures` are
    (mixture, what went wrong) of checks whose training failed. `effects` say what each dataset
    adds.
    """

    mixture: Mixture
    checks: tuple[Check, ...]
    predictions: tuple[Prediction, ...]
    alternatives: tuple[Alternative, ...]
    agreement: Mapping[str, Agreement]
    merging: Merging
    confidence: float
    stopped: str
    num_repeats: int = 0
    more_examples: MoreExamples | None = None
    failures: tuple[tuple[Mixture, str], ...] = ()
    effects: Effects | None = None

    def to_frame(self) -> pd.DataFrame:
        """Returns a pandas table with a line for each mixture: what is expected of its fine-tune.

        The best comes first.
        """
        return frame({**vars(each), "mixture": str(each.mixture)} for each in self.predictions)

    @property
    def num_paid(self) -> int:
        """Fine-tunes that were made for these checks alone."""
        return sum(check.origin == "verify" for check in self.checks)


@dataclass(frozen=True)
class Row:
    """One line of the final table: a model and its scores on the report part of the targets.

    `again` are the scores of fine-tunes on the same mixture with other seeds. `interval` is that of
    the gain, over draws of the examples and of these seeds; the base has none.
    """

    name: str
    kind: Literal["base", "expert", "proxy", "final", "all", "random", "check"]
    mixture: Mixture | None
    scores: Mapping[str, Scores]
    gain: float
    path: str | None = None
    again: tuple[Mapping[str, Scores], ...] = ()
    interval: Estimate | None = None

    @property
    def runs(self) -> tuple[Mapping[str, Scores], ...]:
        """The scores with every seed, this run's first."""
        return self.scores, *self.again


Verdict = Literal["better than", "worse than", "cannot be told apart from"]


@dataclass(frozen=True)
class Comparison:
    """By how much the choice gains more than something else, on the report part.

    `verdict` follows from the interval of `lead`: it lies above zero, below, or holds it. `mixture`
    is what the other one was fine-tuned on; None of the base, and of a mean.
    """

    name: str
    lead: Estimate
    verdict: Verdict
    mixture: Mixture | None = None


@dataclass(frozen=True)
class Decision:
    """What to train on, and what that rests on; `stages/decision.py` has the rule.

    `kind` is `mixture` (train on it), `everything` (the same, and it is all datasets), `either`
    (some others cannot be told apart from it), `base` (do not fine-tune), or `more` (too few
    examples to say; `num_more` would do if the gain is what it seems). `others` cannot be told
    apart from `mixture`, the likeliest to be better first; `cheapest` of all of these trains on the
    fewest tokens. `gain` is that of the model fine-tuned on `mixture` on the report part, or the
    one that is expected if `is_measured` is false; None if nothing is known of it.
    """

    kind: Literal["mixture", "everything", "either", "base", "more"]
    mixture: Mixture
    others: tuple[Mixture, ...]
    cheapest: Mixture
    gain: Estimate | None
    is_measured: bool
    num_more: int | None = None
    comparisons: tuple[Comparison, ...] = ()

    @property
    def headline(self) -> str:
        """What to do, in one sentence."""
        if self.kind == "base":
            return "Do not fine-tune on these datasets: nothing is shown to beat the base."
        if self.kind == "more":
            return (
                "There are too few examples to say whether fine-tuning on these datasets helps:"
                f" about {self.num_more:,} more would, if the gain is what it seems."
            )
        if self.kind == "everything":
            return f"Train on everything: {self.mixture}."
        if self.cheapest != self.mixture:
            return (
                f"Train on {self.mixture} or on {self.cheapest}: they cannot be told apart, and the"
                " second is cheaper."
            )
        return f"Train on {self.mixture}."

    def __str__(self) -> str:
        return self.headline


@dataclass(frozen=True)
class Answered:
    """A prompt of the report part, its right answer, and what models answer, by their names."""

    prompt: str
    right: str
    by_model: Mapping[str, str]


@dataclass(frozen=True)
class Cost:
    """Seconds of work behind a result, whichever run did it; `wall_s` is this run's own."""

    experts_s: float
    merge_s: float
    evaluate_s: float
    gradients_s: float
    checks_s: float
    final_s: float
    baselines_s: float
    brute_force_s_estimate: float
    wall_s: float
    reused: Mapping[str, int] = field(default_factory=dict)

    @property
    def total_s(self) -> float:
        """Everything up to the final model; baselines are left out."""
        return (
            self.experts_s
            + self.merge_s
            + self.evaluate_s
            + self.gradients_s
            + self.checks_s
            + self.final_s
        )


@dataclass(frozen=True)
class Result:
    """What a run gives: the selection, its verification, the final table, and what all of it cost.

    `portions` are what the selected mixture takes of each dataset, if it is drawn by its weights.
    `inputs` are what was read, by its content. `samples` are the first rows of each dataset as
    training sees them, in pieces with whether they are trained on. `answers` are what models answer
    to the first examples of each target that generates. `curves` are how the fine-tunes went, by
    what they are called.
    """

    selection: Selection
    verification: Verification | None
    experts: tuple[Finetune, ...]
    table: tuple[Row, ...]
    decision: Decision
    cost: Cost
    environment: Mapping[str, Any]
    run_dir: str
    warnings: tuple[str, ...] = ()
    portions: tuple[Portion, ...] = ()
    inputs: Mapping[str, Any] = field(default_factory=dict)
    samples: Mapping[str, Samples] = field(default_factory=dict)
    answers: Mapping[str, tuple[Answered, ...]] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)

    @property
    def selected(self) -> Mixture:
        """The mixture to fine-tune on."""
        return self.selection.mixture if self.verification is None else self.verification.mixture

    def row(self, kind: str) -> Row | None:
        """Returns the first line of a kind in the final table, or None."""
        return next((row for row in self.table if row.kind == kind), None)

    def to_frame(self) -> pd.DataFrame:
        """Returns the final table as a pandas table, a line for each model, the best first."""
        return frame(
            {
                "model": row.name,
                "datasets": str(row.mixture or ""),
                **{name: scores.mean for name, scores in row.scores.items()},
                "gain": row.gain,
                "low": None if row.interval is None else row.interval.low,
                "high": None if row.interval is None else row.interval.high,
            }
            for row in sorted(self.table, key=lambda row: -row.gain)
        )

    def __str__(self) -> str:
        return f"{self.decision}\n\n{self.to_frame().to_string(index=False)}"

    def _repr_html_(self) -> str:
        text = html.escape(str(self.decision))
        return f"<p><b>{text}</b></p>{self.to_frame().to_html(index=False, escape=True)}"
