"""The nouns of the method, as frozen dataclasses: what flows between the stages.

Words are those of the documentation: a *loss* is better when lower, a *score* when higher; *weights* are the
coefficients of a mixture, never tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from mergetomix.objective import Objective

Kind = Literal["loss", "score"]
Part = Literal["select", "report"]


@dataclass(frozen=True, order=True)
class Mixture:
    """Some datasets and their weights: the shares of the data, which sum to one.

    Datasets stand in the order of their names, so that two mixtures of the same datasets are equal and every sum over
    them is taken in the same order.
    """

    datasets: tuple[str, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.datasets:
            raise ValueError("a mixture needs at least one dataset")
        if list(self.datasets) != sorted(set(self.datasets)):
            raise ValueError(f"datasets must be sorted and distinct: {self.datasets}")
        if len(self.weights) != len(self.datasets):
            raise ValueError(f"{len(self.datasets)} datasets but {len(self.weights)} weights")
        if any(weight < 0 for weight in self.weights) or not math.isclose(sum(self.weights), 1, rel_tol=1e-6):
            raise ValueError(f"weights must be non-negative and sum to 1: {self.weights}")

    @classmethod
    def union(cls, datasets: Iterable[str], sizes: Mapping[str, float] | None = None) -> Mixture:
        """The union of some datasets: equal weights, or weights proportional to `sizes`."""
        names = tuple(sorted(set(datasets)))
        shares = [1.0 if sizes is None else float(sizes[name]) for name in names]
        total = sum(shares)
        return cls(names, tuple(share / total for share in shares))

    def __len__(self) -> int:
        return len(self.datasets)

    def __str__(self) -> str:
        """The datasets, with their weights where these are not equal."""
        if max(self.weights) - min(self.weights) < 1e-9:
            return " + ".join(self.datasets)
        return " + ".join(f"{weight:.2f} {name}" for name, weight in self.as_dict().items())

    def as_dict(self) -> dict[str, float]:
        """Dataset name to weight."""
        return dict(zip(self.datasets, self.weights, strict=True))

    @property
    def members(self) -> tuple[str, ...]:
        """The datasets whose weight is not zero."""
        return tuple(name for name, weight in self.as_dict().items() if weight > 0)


@dataclass(frozen=True)
class Scores:
    """What a target says of a model: one value for every example, and how much each counts.

    For `kind == "loss"` a value is in nats per token and its weight is the number of tokens, so that `mean` is the loss
    per token over all examples; for images it is in nats per image, each of weight one. For `kind == "score"` every weight
    is one.
    """

    kind: Kind
    values: tuple[float, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.values) != len(self.weights):
            raise ValueError(f"every value needs a weight: {len(self.values)} values, {len(self.weights)} weights")
        if not self.values:
            raise ValueError("scores need at least one example")

    @property
    def mean(self) -> float:
        """The weighted mean of the values."""
        total = math.fsum(self.weights)
        return math.fsum(v * w for v, w in zip(self.values, self.weights, strict=True)) / total

    @property
    def num_examples(self) -> int:
        """How many examples were scored."""
        return len(self.values)

    def as_dict(self) -> dict[str, float | int]:
        """`{"loss" | "score": mean, "num_examples": n}`."""
        return {self.kind: self.mean, "num_examples": self.num_examples}


def gain(scores: Scores, base: Scores) -> float:
    """How much better than the base, without unit; higher is better.

    For a loss the fraction of the base's loss that is gone; for a score the difference. Both are fractions, so that
    targets of both kinds can be averaged.
    """
    if scores.kind == "loss":
        return (base.mean - scores.mean) / base.mean if base.mean > 0 else base.mean - scores.mean
    return scores.mean - base.mean


@dataclass(frozen=True)
class Finetune:
    """The base fine-tuned on a mixture's data: an expert where the mixture has one dataset, else a real fine-tune.

    `num_examples` counts training sequences of one pass, `num_tokens` the tokens trained on over all passes.
    """

    mixture: Mixture
    key: str
    path: str
    num_examples: int
    num_tokens: int
    train_s: float

    @property
    def dataset(self) -> str:
        """The dataset of an expert."""
        if len(self.mixture) != 1:
            raise ValueError(f"not an expert: {self.mixture}")
        return self.mixture.datasets[0]


@dataclass(frozen=True)
class Portion:
    """What a fine-tune on a weighted mixture takes of one dataset: so many sequences, and the tokens in them.

    `num_passes` is how often it sees the dataset, below one where it sees a part.
    """

    dataset: str
    weight: float
    num_examples: int
    num_tokens: int
    num_passes: float


@dataclass(frozen=True)
class Trial:
    """A proxy evaluated on the select part of the targets.

    `estimates` is None for a trial that saw every example. A race may stop one early: `scores` are then of the examples that
    it saw, `estimates` the gains that all of them would be expected to give, by target, and `objective` is of these.
    """

    mixture: Mixture
    scores: Mapping[str, Scores]
    objective: float
    estimates: Mapping[str, float] | None = None

    @property
    def complete(self) -> bool:
        """Whether it saw every example."""
        return self.estimates is None

    @property
    def num_examples(self) -> int:
        """How many examples it saw, over all targets."""
        return sum(scores.num_examples for scores in self.scores.values())

    def gains(self, base: Mapping[str, Scores]) -> dict[str, float]:
        """The gain over the base on each target, estimated where it was stopped early."""
        known = self.estimates
        return {name: gain(scores, base[name]) if known is None else known[name] for name, scores in self.scores.items()}


@dataclass(frozen=True)
class Selection:
    """The outcome of a search: the mixture chosen, every complete trial, and every single expert as a trial, best first each;
    `objective` is what they are ranked by.

    `stopped` are the trials that a race stopped early, best estimate first: no candidates, as each was worse than a complete
    one beyond doubt.
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
        return (len(self.trials) + len(self.stopped)) * sum(scores.num_examples for scores in self.base.values())

    @property
    def best_expert(self) -> Trial:
        """The best single expert on the select part, whether or not the search may choose it."""
        return self.singles[0]


@dataclass(frozen=True)
class Check:
    """A mixture evaluated as proxy and as real fine-tune, on the select part; objectives are gains over the base.

    `origin` says why the fine-tune exists: `verify` paid for it, it is a `baseline` of the final table, or the `store` held it.
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
    """What the checks say of one mixture's real objective: centre, ends of the interval, chance of being the best.

    For a mixture that was checked, or has one dataset only, `known` is true and the three numbers are the objective itself.
    """

    mixture: Mixture
    proxy: float
    mean: float
    low: float
    high: float
    best_probability: float
    known: bool


@dataclass(frozen=True)
class Alternative:
    """A mixture that cannot be told apart from the pick: its chance of being better, all noise counted."""

    mixture: Mixture
    difference: float
    sd: float
    better_probability: float


@dataclass(frozen=True)
class Estimate:
    """A number with the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """How well proxies rank what real fine-tunes give, over `num_checks` mixtures of several datasets.

    `statistics` is None with fewer than five of them.
    `possible` is the Spearman correlation that a perfect proxy would reach given `noise_sd`, the standard deviation between
    seeds; both None where no fine-tune was repeated with another seed.
    """

    num_checks: int
    statistics: Mapping[str, Estimate | None] | None
    noise_sd: float | None
    possible: float | None


@dataclass(frozen=True)
class Verification:
    """The outcome of the checks: the pick by the posterior, and how far it can be trusted.

    `agreement` maps every target, and `objective`, to how well its proxies rank. `confidence` is the level of all intervals.
    `failures` are (mixture, what went wrong) of checks whose training failed.
    """

    mixture: Mixture
    checks: tuple[Check, ...]
    predictions: tuple[Prediction, ...]
    alternatives: tuple[Alternative, ...]
    agreement: Mapping[str, Agreement]
    exponent: float
    confidence: float
    stopped: str
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
        return self.experts_s + self.merge_s + self.evaluate_s + self.gradients_s + self.checks_s + self.final_s


@dataclass(frozen=True)
class Result:
    """What a run gives: the selection, its verification, the final table, and what all of it cost.

    `portions` are what the selected mixture takes of each dataset, where it is drawn by its weights.
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

    @property
    def selected(self) -> Mixture:
        """The mixture to fine-tune on."""
        return self.selection.mixture if self.verification is None else self.verification.mixture

    def row(self, kind: str) -> Row | None:
        """The first line of the final table of a kind, or None."""
        return next((row for row in self.table if row.kind == kind), None)
