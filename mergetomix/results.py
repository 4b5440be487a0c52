"""What the stages give: a selection, its verification, the final table and its cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mergetomix.records import Estimate, Finetune, Merging, Mixture, Portion, Scores, Trial

if TYPE_CHECKING:
    from mergetomix.objectives.objective import Objective


@dataclass(frozen=True)
class Selection:
    """The outcome of a search: the mixture chosen, every complete trial, and every single expert.

    Trials and experts are sorted, the best first; `objective` is what they are ranked by.
    `stopped` are the trials that a race stopped early, best estimate first: no candidates, as each
    was worse than a complete one beyond doubt.
    """

    mixture: Mixture
    trials: tuple[Trial, ...]
    strategy: str
    base: Mapping[str, Scores]
    singles: tuple[Trial, ...]
    objective: Objective | None = None
    stopped: tuple[Trial, ...] = ()

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
class Verification:
    """The outcome of the checks: the pick by the posterior, and how far it can be trusted.

    `agreement` maps every target, and `objective`, to how well its proxies rank. `merging` is the
    way to merge that the checks ask for. `confidence` is the level of all intervals, `num_repeats`
    counts the checks that were made again with another seed. `more_examples` is None if nothing may
    well be better than the pick, or for an objective that is no sum over targets. `failures` are
    (mixture, what went wrong) of checks whose training failed.
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

    @property
    def num_paid(self) -> int:
        """Fine-tunes that were made for these checks alone."""
        return sum(check.origin == "verify" for check in self.checks)


@dataclass(frozen=True)
class Row:
    """One line of the final table: a model and its scores on the report part of the targets."""

    name: str
    kind: Literal["base", "expert", "proxy", "final", "all", "random", "check"]
    mixture: Mixture | None
    scores: Mapping[str, Scores]
    gain: float
    path: str | None = None


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
    `inputs` are what was read, by its content.
    """

    selection: Selection
    verification: Verification | None
    experts: tuple[Finetune, ...]
    table: tuple[Row, ...]
    cost: Cost
    environment: Mapping[str, Any]
    run_dir: str
    warnings: tuple[str, ...] = ()
    portions: tuple[Portion, ...] = ()
    inputs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def selected(self) -> Mixture:
        """The mixture to fine-tune on."""
        return self.selection.mixture if self.verification is None else self.verification.mixture

    def row(self, kind: str) -> Row | None:
        """Returns the first line of a kind in the final table, or None."""
        return next((row for row in self.table if row.kind == kind), None)
