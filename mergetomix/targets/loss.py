"""Score by the negative log-likelihood of completions, of texts, or of the classes of images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mergetomix.data.examples import Example
from mergetomix.errors import DataError
from mergetomix.models.encoding import content
from mergetomix.models.family import TakesLosses
from mergetomix.records import Scores
from mergetomix.sections.target import WithHead
from mergetomix.store.address import digest
from mergetomix.stretches import WHOLE, Stretch
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
        self.rows = self.family.rows_of(self.batches)

    def address(self) -> str:
        """Returns the address of tokens and labels."""
        return digest("loss", ROUNDING, content(self.sequences))

    def parts(self, model: Any, stretch: Stretch = WHOLE) -> Iterator[Tensor]:
        """Yields what each batch adds to the mean over all tokens, in nats, with its graph."""
        total = sum(self.num_scored)
        for place in self._batches_of(stretch):
            yield self.family.losses(model, self.batches[place]).sum() / total

    def read(self, model: Any, stretch: Stretch = WHOLE) -> dict[int, float]:
        """Returns the loss of every sequence of a stretch of batches, summed over its tokens."""
        places = self._batches_of(stretch)
        batches = [self.batches[place] for place in places]
        rows = sorted(row for place in places for row in self.rows[place])
        losses = self.family.negative_log_likelihoods(model, batches) if batches else []
        return dict(zip(rows, losses, strict=True))

    def _batches_of(self, stretch: Stretch) -> list[int]:
        return stretch.of([sum(self.sequences[i].num_tokens for i in rows) for rows in self.rows])

    def scores_of(self, found: Mapping[int, float]) -> Scores:
        """Returns values in nats per token; weights are the numbers of tokens."""
        sums = [0.0] * len(self.num_scored)
        for row, sequence in enumerate(self.sequences):
            sums[sequence.example] += found[row]
        values = tuple(total / count for total, count in zip(sums, self.num_scored, strict=True))
        return Scores("loss", values, tuple(map(float, self.num_scored)))

    def score(self, model: Any) -> Scores:
        """Returns values in nats per token; weights are the numbers of tokens."""
        return self.scores_of(self.read(model))
