"""The kinds of target, by their `score`. A new kind is a file of its own and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, Union

from pydantic import BeforeValidator, Discriminator, Tag

from mergetomix.errors import RecipeError
from mergetomix.models.family import Family
from mergetomix.targets.accuracy import AccuracyTarget
from mergetomix.targets.choice import ChoiceTarget
from mergetomix.targets.generate import GenerateTarget
from mergetomix.targets.loss import LossTarget
from mergetomix.targets.python import PythonTarget
from mergetomix.targets.target import TargetKind

KINDS: Mapping[str, type[TargetKind]] = {
    "loss": LossTarget,
    "accuracy": AccuracyTarget,
    "choice": ChoiceTarget,
    "generate": GenerateTarget,
    "python": PythonTarget,
}
DEFAULT = "loss"


def score_of(value: Any) -> Any:
    """Returns the kind of a target that is plain values or a section."""
    return value.get("score", DEFAULT) if isinstance(value, Mapping) else value.score


def without_others(value: Any) -> Any:
    """Returns a target's values without keys of other kinds that say nothing.

    Resolved recipes once held the keys of all kinds, those of the others at their defaults.
    """
    own = KINDS.get(score_of(value)) if isinstance(value, Mapping) else None
    if own is None:
        return value
    return {
        key: each
        for key, each in value.items()
        if key in own.model_fields or not _is_idle(key, each)
    }


def _is_idle(key: str, value: Any) -> bool:
    others = [kind.model_fields[key] for kind in KINDS.values() if key in kind.model_fields]
    return any(field.default == value for field in others)


def kinds_with(key: str) -> list[str]:
    """Returns the kinds whose section has a key."""
    return [score for score, kind in KINDS.items() if key in kind.model_fields]


def check_score(family: Family, section: TargetKind, where: str) -> None:
    """Raises RecipeError where a family of models cannot be scored so."""
    if not isinstance(family, section.needs):
        known = ", ".join(sorted(s for s, kind in KINDS.items() if isinstance(family, kind.needs)))
        message = f"family {family.name} has {known}, but not {section.score}"
        raise RecipeError(f"{where}.score", message)


if TYPE_CHECKING:
    AnyTarget: TypeAlias = TargetKind
else:
    AnyTarget = Annotated[
        Union[tuple(Annotated[kind, Tag(score)] for score, kind in KINDS.items())],  # noqa: UP007 (of a tuple that is computed)
        Discriminator(score_of),
        BeforeValidator(without_others),
    ]
