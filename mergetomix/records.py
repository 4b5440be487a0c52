"""The nouns of the method, as frozen dataclasses: what flows between the stages.

Words are those of the documentation: a *loss* is better if lower, a *score* if higher; *weights*
are the coefficients of a mixture, never tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["loss", "score"]
Part = Literal["select", "report"]
Weighting = Literal["equal", "sqrt_tokens", "tokens", "size"]
"""What the experts of a subset are weighed by in a merge."""


@dataclass(frozen=True, order=True)
class Mixture:
    """Some datasets and their weights: the shares of the data, which sum to one.

    Datasets stand in the order of their names, so that two mixtures of the same datasets are equal
    and every sum over them is taken in the same order. Raises `ValueError` for anything else.

    Of a union the weights are those of the experts in its merge, and are not printed.

    >>> print(Mixture(("code", "math"), (0.25, 0.75)))
    0.25 code + 0.75 math
    """

    datasets: tuple[str, ...]
    weights: tuple[float, ...]
    is_union: bool = field(default=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.datasets:
            raise ValueError("a mixture needs at least one dataset")
        if list(self.datasets) != sorted(set(self.datasets)):
            raise ValueError(f"datasets must be sorted and distinct: {self.datasets}")
        if len(self.weights) != len(self.datasets):
            raise ValueError(f"{len(self.datasets)} datasets but {len(self.weights)} weights")
        if any(weight < 0 for weight in self.weights) or not math.isclose(
            sum(self.weights), 1, rel_tol=1e-6
        ):
            raise ValueError(f"weights must be non-negative and sum to 1: {self.weights}")

    @classmethod
    def union(cls, datasets: Iterable[str], sizes: Mapping[str, float] | None = None) -> Mixture:
        """Returns the union of some datasets, with equal weights or weights by their `sizes`.

        >>> Mixture.union(["math", "code"])
        Mixture(datasets=('code', 'math'), weights=(0.5, 0.5))
        >>> Mixture.union(["math", "code"], {"code": 100, "math": 300}).weights
        (0.25, 0.75)
        """
        names = tuple(sorted(set(datasets)))
        shares = [1.0 if sizes is None else float(sizes[name]) for name in names]
        total = sum(shares)
        return cls(names, tuple(share / total for share in shares), is_union=True)

    def __len__(self) -> int:
        return len(self.datasets)

    def __str__(self) -> str:
        """Returns the datasets, with their weights if these are shares of the data, not equal."""
        if self.is_union or max(self.weights) - min(self.weights) < 1e-9:
            return " + ".join(self.datasets)
        return " + ".join(f"{weight:.2f} {name}" for name, weight in self.as_dict().items())

    def as_dict(self) -> dict[str, float]:
        """Returns the weights by the names of the datasets."""
        return dict(zip(self.datasets, self.weights, strict=True))

    @property
    def members(self) -> tuple[str, ...]:
        """The datasets whose weight is not zero."""
        return tuple(name for name, weight in self.as_dict().items() if weight > 0)


@dataclass(frozen=True)
class Scores:
    """What a target says of a model: one value for every example, and how much each counts.

    For `kind == "loss"` a value is in nats per token and its weight is the number of tokens, so
    that `mean` is the loss per token over all examples; for images it is in nats per image, each of
    weight one. For `kind == "score"` every weight is one.

    >>> Scores("loss", (2.0, 4.0), (30.0, 10.0)).mean
    2.5
    """

    kind: Kind
    values: tuple[float, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.values) != len(self.weights):
            counts = f"{len(self.values)} values, {len(self.weights)} weights"
            raise ValueError(f"every value needs a weight: {counts}")
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
        """Returns `{"loss" | "score": mean, "num_examples": n}`."""
        return {self.kind: self.mean, "num_examples": self.num_examples}


def gain(scores: Scores, base: Scores) -> float:
    """Returns how much better than the base a model is, without unit; higher is better.

    For a loss it is the fraction of the base's loss that is gone, for a score the difference. Both
    are fractions, so that targets of both kinds can be averaged.

    >>> gain(Scores("loss", (1.5,), (1.0,)), Scores("loss", (2.0,), (1.0,)))
    0.25
    """
    if scores.kind == "loss":
        return (base.mean - scores.mean) / base.mean if base.mean > 0 else base.mean - scores.mean
    return scores.mean - base.mean


@dataclass(frozen=True)
class Merging:
    """How experts are merged: what their weights are taken from, and how far a merge of k goes.

    `weighting` is None where the weights are a mixture's own, as in a search over weights.

    >>> str(Merging("equal", 0.75))
    'equal weights and exponent 0.75'
    """

    weighting: Weighting | None
    exponent: float

    def __str__(self) -> str:
        if self.weighting is None:
            return f"the weights of the mixture and exponent {self.exponent:g}"
        rule = {"sqrt_tokens": "sqrt(tokens)"}.get(self.weighting, self.weighting)
        by = rule if rule == "equal" else f"{rule}-proportional"
        return f"{by} weights and exponent {self.exponent:g}"


@dataclass(frozen=True)
class Finetune:
    """The base fine-tuned on a mixture's data: an expert if it has one dataset, else a real one.

    `num_examples` counts training sequences of one pass, `num_tokens` the tokens trained on over
    all passes.
    """

    mixture: Mixture
    key: str
    path: str
    num_examples: int
    num_tokens: int
    train_s: float

    @property
    def dataset(self) -> str:
        """The dataset of an expert. Raises `ValueError` for a mixture of several."""
        if len(self.mixture) != 1:
            raise ValueError(f"not an expert: {self.mixture}")
        return self.mixture.datasets[0]


@dataclass(frozen=True)
class Portion:
    """What a fine-tune on a weighted mixture takes of one dataset: sequences and their tokens.

    `num_passes` is how often it sees the dataset, below one if it sees a part.
    """

    dataset: str
    weight: float
    num_examples: int
    num_tokens: int
    num_passes: float


@dataclass(frozen=True)
class Trial:
    """A proxy evaluated on the select part of the targets.

    `estimates` is None for a trial that saw every example. A race may stop one early: `scores` are
    then of the examples that it saw, `estimates` the gains that all of them would be expected to
    give, by target, and `objective` is of these.
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
        """Returns the gain over the base on each target, estimated if it was stopped early."""
        known = self.estimates
        return {
            name: gain(scores, base[name]) if known is None else known[name]
            for name, scores in self.scores.items()
        }


@dataclass(frozen=True)
class Estimate:
    """A number with the ends of its interval."""

    value: float
    low: float
    high: float
