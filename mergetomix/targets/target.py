"""A target: examples and a way to score a model on them, one number an example."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from mergetomix.data.examples import Example
from mergetomix.errors import RecipeError
from mergetomix.models.family import Family
from mergetomix.records import Scores
from mergetomix.sections.target import TargetSection

if TYPE_CHECKING:
    from torch import Tensor


class Target(Protocol):
    """Examples and a way to score a model on them. Built once, used for every model.

    `num_cut` prompts lost their beginning to leave room for the answer. `num_tokens` are read in
    one evaluation; zero if that is not known, as for a function.
    """

    num_cut: int
    num_tokens: int

    def score(self, model: Any) -> Scores:
        """Returns one value for every example, in their order.

        The model is in evaluation mode and stays as it is.
        """
        ...

    def address(self) -> str:
        """Returns the address of what scores depend on: examples and settings, never the name."""
        ...


@runtime_checkable
class Remarks(Protocol):
    """A target that has something to say of the answers that it scored last; empty if not."""

    remark: str


@runtime_checkable
class Differentiable(Protocol):
    """A target whose value is a mean of losses, and so has a derivative."""

    def parts(self, model: Any) -> Iterator[Tensor]:
        """Yields scalars with their graphs that add up to the mean, one after the other."""
        ...


@dataclass(frozen=True)
class TargetSetting:
    """What a target needs beside its section and examples; `where` is its place in the recipe."""

    family: Family
    where: str
    batch_tokens: int

    def unable(self, score: str) -> RecipeError:
        """Returns the error of a family of models that cannot be scored so."""
        message = f"family {self.family.name} cannot do score: {score}"
        return RecipeError(f"{self.where}.score", message)


class TargetKind(TargetSection, abc.ABC):
    """The section of one kind of target, which builds the targets of that kind.

    `needs` is the protocol that a family of models must have for it.
    """

    needs: ClassVar[type[Any]]

    @abc.abstractmethod
    def build(self, examples: Sequence[Example], setting: TargetSetting) -> Target:
        """Returns the target over some of its examples.

        Raises:
            DataError: an example cannot be scored.
            RecipeError: the family of models cannot be scored so.
        """


def equal_scores(values: Sequence[float]) -> Scores:
    """Returns scores of examples that all weigh the same."""
    return Scores("score", tuple(values), (1.0,) * len(values))
