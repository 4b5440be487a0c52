"""Negative log-likelihood of completions or texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mergetomix.data.examples import Example
from mergetomix.errors import DataError
from mergetomix.models.encoding import content
from mergetomix.records import Scores
from mergetomix.store.address import digest
from mergetomix.targets.target import TargetSetting

if TYPE_CHECKING:
    from torch import Tensor

ROUNDING = 2
"""Raised when losses come to be computed in another order, so that scores whose last digits differ are not compared."""


class Loss:
    """Nats per scored token of each example, over all its sequences, its end token included."""

    def __init__(self, examples: Sequence[Example], setting: TargetSetting) -> None:
        self.family = setting.family
        self.sequences = self.family.encode(examples, setting.where).sequences
        self.num_scored = [0] * len(examples)
        for sequence in self.sequences:
            self.num_scored[sequence.example] += sequence.num_scored
        for example, count in zip(examples, self.num_scored, strict=True):
            if count == 0:
                raise DataError(setting.where, f"row {example.row} has no token to score", hint="leave such rows out")
        self.num_tokens = sum(sequence.num_tokens for sequence in self.sequences)
        self.batches = self.family.batches(self.sequences, setting.batch_tokens)

    def address(self) -> str:
        """Tokens and labels."""
        return digest("loss", ROUNDING, content(self.sequences))

    def parts(self, model: Any) -> Iterator[Tensor]:
        """What each batch adds to the mean over all tokens, in nats, scalars with their graphs, made one after the other."""
        total = sum(self.num_scored)
        for batch in self.batches:
            yield self.family.losses(model, batch).sum() / total

    def score(self, model: Any) -> Scores:
        """Values in nats per token; weights are the numbers of tokens."""
        sums = [0.0] * len(self.num_scored)
        for sequence, nll in zip(self.sequences, self.family.negative_log_likelihoods(model, self.batches), strict=True):
            sums[sequence.example] += nll
        values = tuple(total / count for total, count in zip(sums, self.num_scored, strict=True))
        return Scores("loss", values, tuple(float(count) for count in self.num_scored))
