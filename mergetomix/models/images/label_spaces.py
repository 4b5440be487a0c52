"""The classes of several sources: their names, what they share, and whose head a target takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mergetomix.data.examples import Examples
from mergetomix.data.image import LabelSpace
from mergetomix.errors import DataError, RecipeError


def space_of(examples: Examples) -> LabelSpace:
    """Returns the classes of a source: all its examples have the same."""
    space = examples.items[0].space
    if space is None:
        raise DataError(examples.where, "the examples are no labelled images")
    return space


def check_names(sources: Sequence[Examples], tokenizer: Any, max_tokens: int | None) -> None:
    """Raises DataError if classes have no names for a text head, or the tokenizer mixes two up.

    A tokenizer does so if it is another model's, has not their words, or cuts the texts before the
    name.
    """
    for examples in sources:
        space, where = space_of(examples), f"{examples.where}.classes"
        if not space.is_named:
            numbers = f"the labels are the numbers {', '.join(space.classes[:5])}..."
            message = f"a text head needs the classes' names, but {numbers}"
            hint = "list them, such as classes: [cat, dog], in that order"
            raise DataError(where, message, hint=hint)
        known: dict[tuple[Any, ...], str] = {}
        for name in space.classes:
            ids = tokenizer(space.texts(name), truncation=True, max_length=max_tokens)["input_ids"]
            other = known.setdefault(tuple(map(tuple, ids)), name)
            if other != name:
                message = f"the model's tokenizer gives {other!r} and {name!r} the same tokens"
                hint = "is it this model's own, and are the templates short enough?"
                raise DataError(where, message, hint=hint)


def same_classes(sources: Sequence[Examples]) -> tuple[str, ...]:
    """Returns the one list of classes of all sources.

    Raises DataError naming a class that only one has.
    """
    first = space_of(sources[0])
    for examples in sources[1:]:
        odd = sorted(set(first.classes) ^ set(space_of(examples).classes))
        if odd:
            has = sources[0].where if odd[0] in first.classes else examples.where
            message = f"the classes are not those of {sources[0].where}: only {has} has {odd[0]!r}"
            merges = "a shared head merges only where all have the same classes"
            hint = f"{merges}: give all the same list, or set images.head: own"
            raise DataError(f"{examples.where}.classes", message, hint=hint)
    return first.classes


def owner_of(owners: Mapping[str, Examples], space: LabelSpace, where: str) -> str:
    """Returns the place of the dataset whose head serves a target.

    It is the one that the target names, or the only one with its classes. Raises RecipeError if
    there is none, or several.
    """
    classes = {owner: space_of(each).classes for owner, each in owners.items()}
    same = [owner for owner, own in classes.items() if set(own) == set(space.classes)]
    named = f"datasets.{space.head}"
    if named in same:
        return named
    listed = "; ".join(f"{owner}: {', '.join(own[:4])}" for owner, own in classes.items())
    if space.head is not None:
        what = "has other classes" if named in owners else "is no dataset"
        raise RecipeError(f"{where}.head", f"{space.head!r} {what}", hint=listed)
    if len(same) == 1:
        return same[0]
    what = f"{', '.join(same)} have" if same else "no dataset has"
    own = f"this target's classes ({', '.join(space.classes[:4])}, ...)"
    message = f"{what} {own}, so whose head it takes is not known"
    raise RecipeError(f"{where}.head", message, hint=f"name one dataset. {listed}")
