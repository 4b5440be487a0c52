"""The kind of target that is a task of the LM Evaluation Harness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from mergetomix.data.examples import Example
from mergetomix.models.family import AnswersRequests
from mergetomix.targets.harness.documents import Documents
from mergetomix.targets.harness.section import HarnessSection
from mergetomix.targets.target import OwnExamples, Target, TargetKind, TargetSetting


class HarnessTarget(HarnessSection, TargetKind):
    """A task of EleutherAI's LM Evaluation Harness, scored as its command `lm_eval` scores it."""

    needs: ClassVar[type[Any]] = AnswersRequests

    def open(self, setting: TargetSetting) -> OwnExamples:
        """Returns the documents of the task. Raises UserError if they are not to be had."""
        return Documents(self, setting)

    def build(self, examples: Sequence[Example], setting: TargetSetting) -> Target:
        """Returns the target over some documents, `row` being the place of each."""
        return self.open(setting).over(examples)
