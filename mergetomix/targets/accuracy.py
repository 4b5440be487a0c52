"""Score images by whether their own class is the likeliest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from mergetomix.data.examples import Example
from mergetomix.models.encoding import content
from mergetomix.models.family import ClassifiesImages
from mergetomix.records import Scores
from mergetomix.sections.target import WithHead
from mergetomix.store.address import digest
from mergetomix.stretches import WHOLE, Stretch
from mergetomix.targets.target import TargetKind, TargetSetting, equal_scores


class AccuracyTarget(WithHead, TargetKind):
    """The accuracy of an image classifier."""

    needs: ClassVar[type[Any]] = ClassifiesImages

    score: Literal["accuracy"]
    """`accuracy`: whether an image's own class is the likeliest."""

    def build(self, examples: Sequence[Example], setting: TargetSetting) -> Accuracy:
        """Returns the target over some of its examples."""
        return Accuracy(examples, setting)


class Accuracy:
    """One for each image whose own class is the likeliest, else zero; the first of equals wins."""

    num_cut = 0

    def __init__(self, examples: Sequence[Example], setting: TargetSetting) -> None:
        if not isinstance(setting.family, ClassifiesImages):
            raise setting.unable("accuracy")
        self.family = setting.family
        self.sequences = self.family.encode(examples, setting.where).sequences
        self.num_tokens = sum(sequence.num_tokens for sequence in self.sequences)
        self.batches = self.family.batches(self.sequences, setting.batch_tokens)
        self.rows = self.family.rows_of(self.batches)

    def address(self) -> str:
        """Returns the address of images, labels and what is compared."""
        return digest("accuracy", content(self.sequences))

    def read(self, model: Any, stretch: Stretch = WHOLE) -> dict[int, float]:
        """Returns 1 for every image of a stretch of batches whose class is the likeliest, else 0.

        nan stands for an image whose logits are not finite.
        """
        costs = [sum(self.sequences[i].num_tokens for i in rows) for rows in self.rows]
        places = stretch.of(costs)
        rows = [row for place in places for row in self.rows[place]]
        right = self.family.right(model, [self.batches[place] for place in places])
        return dict(zip(rows, right, strict=True))

    def scores_of(self, found: Mapping[int, float]) -> Scores:
        """Returns 1.0 or 0.0 for each image, nan where the model's logits are not finite."""
        return equal_scores([found[row] for row in range(len(self.sequences))])

    def score(self, model: Any) -> Scores:
        """Returns 1.0 or 0.0 for each image, nan where the model's logits are not finite."""
        return self.scores_of(self.read(model))
