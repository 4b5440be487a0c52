"""Read labelled images: where they lie, whether they decode, and what their classes are called.

Everything that is wrong with an image is found when its source is read, before any training.
"""

from __future__ import annotations

import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mergetomix.data.examples import Example, Examples
from mergetomix.data.image import LabelSpace, Picture
from mergetomix.data.mapping import no_column
from mergetomix.data.splits import draw
from mergetomix.data.tables import Place, Table, open_table
from mergetomix.errors import DataError
from mergetomix.sections.source import Source
from mergetomix.sections.target import WithHead

MOST_THREADS = 8


def read(source: Source, where: str, skip_broken: bool) -> Examples:
    """The examples of one source of labelled images, `where` being its place in the recipe.

    Args:
        skip_broken: pass over images that do not decode, and say how many; else the first one is an error.

    Raises:
        DataError: the source cannot be read, is empty, an image does not decode, or a label is not in the list of classes.
    """
    table = open_table(source, where)
    image, label = source.image or "image", source.label or "label"
    for key, column in (("image", image), ("label", label)):
        if column not in table.columns:
            raise no_column(f"{where}.{key}", column, table.columns)
    rows = draw(table.kept(), source)
    space = _space(source, table, label, where)
    class_of = _class_of(source, table, label, where, space)
    places = [(index, row) for index, row in zip(rows, table.take(rows), strict=True)]
    pictures = [
        _picture(row[image], table, Place(f"{where}.image", index)) for index, row in places
    ]
    looked, broken = _looked_at(pictures, f"{where}.path", skip_broken)
    items = tuple(
        Example(index, label=class_of(index, row[label]), picture=picture, space=space)
        for (index, row), picture in zip(places, looked, strict=True)
        if picture is not None
    )
    if not items:
        raise DataError(
            f"{where}.path", f"none of {len(pictures)} images decodes; the first is {broken[0]}"
        )
    name = where.partition(".")[2] or where
    passed = (
        (f"{where}: passed over {len(broken)} images that do not decode, the first {broken[0]}",)
        if broken
        else ()
    )
    return Examples(name, where, items, len(table.rows), 0, table.columns, (), passed=passed)


def _looked_at(
    pictures: Sequence[Picture], where: str, skip: bool
) -> tuple[list[Picture | None], list[str]]:
    """Every picture decoded once, by threads: Pillow lets go of the interpreter while it decodes."""

    def look(picture: Picture) -> Picture | str:
        try:
            return picture.looked_at()
        except ValueError as error:
            return f"{picture.name}: {error}"

    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as threads:
        found = list(threads.map(look, pictures))
    broken = [each for each in found if isinstance(each, str)]
    if broken and not skip:
        hint = "mend or remove it, or set images.broken: skip"
        raise DataError(
            where, f"an image does not decode ({len(broken)} in all): {broken[0]}", hint=hint
        )
    return [None if isinstance(each, str) else each for each in found], broken


def _picture(value: Any, table: Table, place: Place) -> Picture:
    """The picture in a cell: a file's name, encoded bytes, an array, or what `datasets` keeps of an image."""
    name = f"row {place.row} (counting from 0)"
    if isinstance(value, Mapping) and {"bytes", "path"} & set(value):
        if value.get("bytes") is not None:
            return Picture(
                bytes(value["bytes"]),
                f"{name}{' of ' + str(value['path']) if value.get('path') else ''}",
            )
        value = value.get("path")
    if isinstance(value, str):
        return Picture(str(Path(table.folder or "", value)), str(Path(table.folder or "", value)))
    if isinstance(value, bytes):
        return Picture(value, name)
    if isinstance(value, list | tuple):
        try:
            value = np.asarray(value)
        except ValueError:
            raise place.error(
                "must be an image, and a list of lists must have rows of one length"
            ) from None
    if isinstance(value, np.ndarray):
        return Picture(_pixels(value, place), name)
    if hasattr(value, "convert"):
        return Picture(value, name)
    raise place.error(
        f"must be an image: a file's name, bytes, an array or an Image of datasets, not {type(value).__name__}"
    )


def _pixels(array: np.ndarray[Any, Any], place: Place) -> np.ndarray[Any, Any]:
    """An array of pixels, (height, width) or (height, width, 3). Raises DataError for another shape or values over 255."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)) or 0 in array.shape:
        raise place.error(
            f"an array must be (height, width) or (height, width, 3), not {array.shape}"
        )
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.integer) or array.min() < 0 or array.max() > 255:
        raise place.error(
            f"pixels must be whole numbers from 0 to 255, not {array.dtype} up to {array.max()}"
        )
    return array.astype(np.uint8)


# --- classes


def _space(source: Source, table: Table, label: str, where: str) -> LabelSpace:
    """The classes: those that the recipe lists, those that the source knows, or all labels there are."""
    head = source.head if isinstance(source, WithHead) else None
    names = tuple(source.classes or ()) or table.names.get(label)
    is_named = names is not None
    if names is None:
        column = zip(table.kept(), table.take_column(label), strict=True)
        values = {_plain(value, Place(f"{where}.label", index)) for index, value in column}
        is_named = not all(isinstance(value, int) for value in values)
        names = tuple(
            str(value)
            for value in sorted(values, key=lambda value: (isinstance(value, str), value))
        )
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(
            f"{where}.classes", f"classes must be at least 2 and distinct, not {list(names)[:10]}"
        )
    return LabelSpace(names, tuple(source.templates), is_named, head)


def _class_of(
    source: Source, table: Table, label: str, where: str, space: LabelSpace
) -> Callable[[int, Any], str]:
    """The function that gives a row's class by name: a number counts the list of classes from 0."""
    counts = bool(source.classes) or label in table.names
    known = set(space.classes)

    def class_of(index: int, value: Any) -> str:
        plain = _plain(value, Place(f"{where}.label", index))
        if str(value) in known:
            name: str | None = str(value)
        elif isinstance(plain, int) and counts:
            name = space.classes[plain] if 0 <= plain < len(space.classes) else None
        else:
            name = str(plain) if str(plain) in known else None
        if name is None:
            listed = ", ".join(space.classes[:10]) + (", ..." if len(space.classes) > 10 else "")
            message = (
                f"the label {value!r} is not among the {len(space.classes)} classes ({listed})"
            )
            raise Place(f"{where}.label", index).error(
                message, hint="numbers count the list of classes from 0"
            )
        return name

    return class_of


def _plain(value: Any, place: Place) -> int | str:
    """A label as a whole number or a text; a text of digits is a number, as tables keep them. Raises DataError for another."""
    if (
        isinstance(value, numbers.Real)
        and not isinstance(value, bool)
        and float(value).is_integer()
    ):
        return int(float(value))
    if isinstance(value, str) and value.strip():
        return int(value) if value.strip().isascii() and value.strip().isdigit() else value
    raise place.error(f"a label must be a class's name or its number, not {value!r:.80}")
