"""Targets: each scores a model on its examples, one number an example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mergetomix.data import Example
from mergetomix.families import Family
from mergetomix.recipe import Target as Spec
from mergetomix.records import Scores


class Target(Protocol):
    """Examples and a way to score a model on them. Built once, used for every model."""

    def score(self, model: Any) -> Scores:
        """One value for every example, in their order; the model is in evaluation mode and stays as it is."""
        ...

    def address(self) -> str:
        """The content that scores depend on: examples and settings, never the name."""
        ...


@dataclass(frozen=True)
class Setting:
    """What a target needs beside its section and examples."""

    family: Family
    where: str
    batch_tokens: int


def build(spec: Spec, examples: Sequence[Example], setting: Setting) -> Target:
    """The target of a section, over one part of its examples. Raises DataError where an example cannot be scored.

    The family has the kind of score that the section asks for.
    """
    from mergetomix.targets.accuracy import Accuracy
    from mergetomix.targets.choice import Choice
    from mergetomix.targets.generate import Generate
    from mergetomix.targets.loss import Loss

    kinds: dict[str, Callable[[Spec, Sequence[Example], Setting], Target]] = {
        "loss": lambda spec, examples, setting: Loss(examples, setting),
        "accuracy": lambda spec, examples, setting: Accuracy(examples, setting),
        "choice": Choice,
        "generate": Generate,
    }
    return kinds[spec.score](spec, examples, setting)
