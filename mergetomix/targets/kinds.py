"""The kinds of target."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mergetomix.data.examples import Example
from mergetomix.sections.target import TargetSection
from mergetomix.targets.target import Target, TargetSetting


def build(spec: TargetSection, examples: Sequence[Example], setting: TargetSetting) -> Target:
    """The target of a section, over one part of its examples. Raises DataError where an example cannot be scored.

    The family has the kind of score that the section asks for.
    """
    from mergetomix.targets.accuracy import Accuracy
    from mergetomix.targets.choice import Choice
    from mergetomix.targets.generate import Generate
    from mergetomix.targets.loss import Loss

    kinds: dict[str, Callable[[TargetSection, Sequence[Example], TargetSetting], Target]] = {
        "loss": lambda spec, examples, setting: Loss(examples, setting),
        "accuracy": lambda spec, examples, setting: Accuracy(examples, setting),
        "choice": Choice,
        "generate": Generate,
    }
    return kinds[spec.score](spec, examples, setting)
