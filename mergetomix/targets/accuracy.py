"""Score images by whether their own class is the likeliest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from mergetomix.data.examples import Example
from mergetomix.models.encoding import content
from mergetomix.models.family import ClassifiesImages
from mergetomix.records import Scores
from mergetomix.sections.target import WithHead
from mergetomix.store.address import digest
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

    def address(self) -> str:
        """Returns the address of images, labels and what is compared."""
        return digest("accuracy", content(self.sequences))

    def score(self, model: Any) -> Scores:
        """Returns 1.0 or 0.0 for each image, nan where the model's logits are not finite."""
        return equal_scores(self.family.right(model, self.batches))
