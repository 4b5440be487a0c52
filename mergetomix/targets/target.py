"""A target: examples and a way to score a model on them, one number an example."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from mergetomix.data.examples import Example, Examples
from mergetomix.errors import RecipeError
from mergetomix.models.family import Family
from mergetomix.records import Scores
from mergetomix.sections.target import TargetBase
from mergetomix.stretches import WHOLE, Stretch

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
class Spreads(Protocol):
    """A target whose batches several processes can read, each a stretch of them."""

    def read(self, model: Any, stretch: Stretch = WHOLE) -> Mapping[Any, Any]:
        """Returns what a model makes of the batches of a stretch: plain values by their places."""
        ...

    def scores_of(self, found: Mapping[Any, Any]) -> Scores:
        """Returns the scores of a model, given what it makes of all batches."""
        ...


@runtime_checkable
class Remarks(Protocol):
    """A target that has something to say of the answers that it scored last; empty if not."""

    remark: str


@runtime_checkable
class Differentiable(Protocol):
    """A target whose value is a mean of losses, and so has a derivative."""

    def parts(self, model: Any, stretch: Stretch = WHOLE) -> Iterator[Tensor]:
        """Yields scalars with their graphs, one for each batch of a stretch, one after the other.

        Those of all batches add up to the mean.
        """
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


class TargetKind(TargetBase, abc.ABC):
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


class OwnExamples(Protocol):
    """The examples that a target brings itself, instead of rows that a family reads.

    `has_texts` says whether what they ask can be compared with the datasets and other targets, and
    `whole_only` why they cannot be scored in blocks; empty if they can.
    """

    examples: Examples
    has_texts: bool
    whole_only: str

    def over(self, part: Sequence[Example], most_new_tokens: int | None = None) -> Target:
        """Returns the target over some of the examples, with answers of so many tokens at most."""
        ...

    def answered(self, part: Sequence[Example]) -> Sequence[Example]:
        """Returns these examples with their right answers, as a model reads them; none if unknown.

        Raises:
            DataError: they cannot be read.
        """
        ...


@runtime_checkable
class BringsExamples(Protocol):
    """The section of a target that brings its examples itself."""

    def open(self, setting: TargetSetting) -> OwnExamples:
        """Returns them. Raises UserError if they are not to be had."""
        ...


def about_answers(outputs: Sequence[str | None], bound: str) -> str:
    """Returns how many answers were empty, and how many came to their bound before they ended."""
    num = {
        "were empty": sum(output is not None and not output.strip() for output in outputs),
        f"came to {bound} before they ended": sum(
            getattr(output, "is_cut", False) for output in outputs
        ),
    }
    return ", ".join(
        f"{each} of {len(outputs)} answers {what}" for what, each in num.items() if each
    )


def equal_scores(values: Sequence[float]) -> Scores:
    """Returns scores of examples that all weigh the same."""
    return Scores("score", tuple(values), (1.0,) * len(values))
