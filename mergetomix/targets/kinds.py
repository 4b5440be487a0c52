"""The kinds of target, by their `score`. A new kind is a file of its own and a line here."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import GetCoreSchemaHandler, GetPydanticSchema
from pydantic_core import CoreSchema, core_schema

from mergetomix.errors import RecipeError
from mergetomix.models.family import Family
from mergetomix.targets.accuracy import AccuracyTarget
from mergetomix.targets.choice import ChoiceTarget
from mergetomix.targets.generate import GenerateTarget
from mergetomix.targets.harness.kind import HarnessTarget
from mergetomix.targets.loss import LossTarget
from mergetomix.targets.python import PythonTarget
from mergetomix.targets.target import TargetKind

KINDS: dict[str, type[TargetKind]] = {
    "loss": LossTarget,
    "accuracy": AccuracyTarget,
    "choice": ChoiceTarget,
    "generate": GenerateTarget,
    "python": PythonTarget,
    "harness": HarnessTarget,
}
DEFAULT = "loss"


def kinds_with(key: str) -> list[str]:
    """Returns the kinds whose section has a key.

    >>> kinds_with("function")
    ['generate', 'python']
    """
    return [score for score, kind in KINDS.items() if key in kind.model_fields]


def check_score(family: Family, section: TargetKind, where: str) -> None:
    """Raises RecipeError if a family of models cannot be scored as a section says."""
    if not isinstance(family, section.needs):
        known = ", ".join(sorted(s for s, kind in KINDS.items() if isinstance(family, kind.needs)))
        message = f"family {family.name} has {known}, but not {section.score}"
        raise RecipeError(f"{where}.score", message)


def _own_values(values: Any) -> Any:
    """Returns a target's values with its `score`, without keys of other kinds that say nothing.

    Resolved recipes of earlier releases hold the keys of all kinds, the others at their defaults.
    """
    if not isinstance(values, dict):
        return values
    values = {"score": DEFAULT, **values}
    own = KINDS.get(str(values["score"]))
    if own is None:
        return values
    return {
        key: value
        for key, value in values.items()
        if key in own.model_fields
        or all(KINDS[score].model_fields[key].default != value for score in kinds_with(key))
    }


def _union(source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
    """Returns pydantic's schema of a section of any kind, told apart by its `score`."""
    sections = {score: handler.generate_schema(kind) for score, kind in KINDS.items()}
    union = core_schema.tagged_union_schema(sections, "score")
    return core_schema.no_info_before_validator_function(_own_values, union)


AnyTarget: TypeAlias = Annotated[TargetKind, GetPydanticSchema(_union)]
"""A target of a recipe: pydantic makes of it the section of the kind that its `score` names."""
