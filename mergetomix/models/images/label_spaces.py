"""The classes of several sources together: whether they have names, are the same, or whose head a target takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergetomix.data.examples import Examples
from mergetomix.data.image import LabelSpace
from mergetomix.errors import DataError, RecipeError


def space_of(examples: Examples) -> LabelSpace:
    """The classes of a source: all its examples have the same."""
    space = examples.items[0].space
    if space is None:
        raise DataError(examples.where, "the examples are no labelled images")
    return space


def check_names(sources: Sequence[Examples], tokenizer: Any, max_tokens: int | None) -> None:
    """Raises DataError where classes have no names for a text head to be made of, or the tokenizer does not tell two apart: it
    is another model's, has not their words, or the texts are cut before the name."""
    for examples in sources:
        space, where = space_of(examples), f"{examples.where}.classes"
        if not space.is_named:
            message = f"a text head needs the classes' names, but the labels are the numbers {', '.join(space.classes[:5])}..."
            raise DataError(
                where, message, hint="list them, such as classes: [cat, dog], in that order"
            )
        known: dict[tuple[Any, ...], str] = {}
        for name in space.classes:
            ids = tokenizer(space.texts(name), truncation=True, max_length=max_tokens)["input_ids"]
            other = known.setdefault(tuple(map(tuple, ids)), name)
            if other != name:
                message = f"the model's tokenizer gives {other!r} and {name!r} the same tokens"
                raise DataError(
                    where,
                    message,
                    hint="is it this model's own, and are the templates short enough?",
                )


def same_classes(sources: Sequence[Examples]) -> tuple[str, ...]:
    """The one list of classes of all sources. Raises DataError naming a class that only one has."""
    first = space_of(sources[0])
    for examples in sources[1:]:
        other = space_of(examples)
        odd = sorted(set(first.classes) ^ set(other.classes))
        if odd:
            has = sources[0].where if odd[0] in first.classes else examples.where
            message = f"the classes are not those of {sources[0].where}: only {has} has {odd[0]!r}"
            hint = "a shared head merges only where all have the same classes: give all the same list, or set images.head: own"
            raise DataError(f"{examples.where}.classes", message, hint=hint)
    return first.classes


def owner_of(owners: Mapping[str, Examples], space: LabelSpace, where: str) -> str:
    """The place of the dataset whose head serves a target: the one that it names, or the only one with its classes.

    Raises:
        RecipeError: there is none, or several.
    """
    same = [
        owner for owner, each in owners.items() if set(space_of(each).classes) == set(space.classes)
    ]
    named = f"datasets.{space.head}"
    if named in same:
        return named
    listed = "; ".join(
        f"{owner}: {', '.join(space_of(each).classes[:4])}" for owner, each in owners.items()
    )
    if space.head is not None:
        what = "has other classes" if named in owners else "is no dataset"
        raise RecipeError(f"{where}.head", f"{space.head!r} {what}", hint=listed)
    if len(same) == 1:
        return same[0]
    what = "no dataset has" if not same else f"{', '.join(same)} have"
    message = f"{what} this target's classes ({', '.join(space.classes[:4])}, ...), so whose head it takes is not known"
    raise RecipeError(f"{where}.head", message, hint=f"name one dataset. {listed}")
