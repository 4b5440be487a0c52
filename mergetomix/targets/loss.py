"""Score by the negative log-likelihood of completions, of texts, or of the classes of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mergetomix.data.examples import Example
from mergetomix.errors import DataError
from mergetomix.models.encoding import content
from mergetomix.models.family import TakesLosses
from mergetomix.records import Scores
from mergetomix.sections.target import WithHead
from mergetomix.store.address import digest
from mergetomix.targets.target import TargetKind, TargetSetting

if TYPE_CHECKING:
    from torch import Tensor

ROUNDING = 2
"""Raised when losses come to be computed in another order, so that scores whose last digits differ
are not compared."""


class LossTarget(WithHead, TargetKind):
    """The loss: nats per token of the completion or text, or nats per image."""

    needs: ClassVar[type[Any]] = TakesLosses

    score: Literal["loss"] = "loss"
    """`loss`: nats per token of the completion or text, or per image."""

    def build(self, examples: Sequence[Example], setting: TargetSetting) -> Loss:
        """Returns the target over some of its examples."""
        return Loss(examples, setting)


class Loss:
    """Nats per scored token of each example, over all its sequences, its end token included."""

    num_cut = 0

    def __init__(self, examples: Sequence[Example], setting: TargetSetting) -> None:
        self.family = setting.family
        self.sequences = self.family.encode(examples, setting.where).sequences
        self.num_scored = [0] * len(examples)
        for sequence in self.sequences:
            self.num_scored[sequence.example] += sequence.num_scored
        if 0 in self.num_scored:
            row = examples[self.num_scored.index(0)].row
            hint = "leave such rows out"
            raise DataError(setting.where, f"row {row} has no token to score", hint=hint)
        self.num_tokens = sum(sequence.num_tokens for sequence in self.sequences)
        self.batches = self.family.batches(self.sequences, setting.batch_tokens)

    def address(self) -> str:
        """Returns the address of tokens and labels."""
        return digest("loss", ROUNDING, content(self.sequences))

    def parts(self, model: Any) -> Iterator[Tensor]:
        """Yields what each batch adds to the mean over all tokens, in nats, with its graph."""
        total = sum(self.num_scored)
        for batch in self.batches:
            yield self.family.losses(model, batch).sum() / total

    def score(self, model: Any) -> Scores:
        """Returns values in nats per token; weights are the numbers of tokens."""
        sums = [0.0] * len(self.num_scored)
        losses = self.family.negative_log_likelihoods(model, self.batches)
        for sequence, nll in zip(self.sequences, losses, strict=True):
            sums[sequence.example] += nll
        values = tuple(total / count for total, count in zip(sums, self.num_scored, strict=True))
        return Scores("loss", values, tuple(map(float, self.num_scored)))
