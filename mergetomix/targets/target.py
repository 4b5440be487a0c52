"""Targets: each scores a model on its examples, one number an example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from mergetomix.models.family import Family
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
class TargetSetting:
    """What a target needs beside its section and examples."""

    family: Family
    where: str
    batch_tokens: int


