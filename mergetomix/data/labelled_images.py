"""Read labelled images: where they lie, whether they decode, and what their classes are called.

Everything that is wrong with an image is found when its source is read, before any training.
"""

from __future__ import annotations

import numbers
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mergetomix.data.errors import Place, missing_column, no_data
from mergetomix.data.examples import Example, Examples
from mergetomix.data.image import LabelSpace, Picture
from mergetomix.data.reading import bad_rows
from mergetomix.data.selected import selected
from mergetomix.data.splits import draw
from mergetomix.data.tables import Table, open_table
from mergetomix.errors import DataError
from mergetomix.sections.source import Source
from mergetomix.sections.target import WithHead

MOST_THREADS = 8


def read(source: Source, where: str, skip_broken: bool) -> Examples:
    """Returns the examples of one source of labelled images; `where` is its place in the recipe.

    Args:
        skip_broken: pass over images that do not decode, and say how many; else the first one is an
            error.

    Raises:
        DataError: the source cannot be read, is empty, an image does not decode, or a label is not
            in the list of classes.
    """
    table = selected(open_table(source, where), source, where)
    image, label = source.image or "image", source.label or "label"
    for key, column in (("image", image), ("label", label)):
        if column not in table.columns:
            raise missing_column(f"{where}.{key}", column, table.columns)
    indices = draw(table.kept(), source)
    space = _space(source, table, label, where)
    rows = list(zip(indices, table.take(indices), strict=True))
    is_list = bool(source.classes) or label in table.names
    counts = is_list and _count_classes([row[label] for _, row in rows], space)
    pictures = [_picture(row[image], table, Place(f"{where}.image", i)) for i, row in rows]
    # Pillow lets go of the interpreter while it decodes
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as threads:
        looked = list(threads.map(_look, pictures))
    broken = [each for each in looked if isinstance(each, str)]
    if broken and not skip_broken:
        hint = "mend or remove it, or set images.broken: skip"
        problem = f"an image does not decode ({len(broken)} in all): {broken[0]}"
        raise no_data(where, problem, hint)
    items = []
    for (i, row), picture in zip(rows, looked, strict=True):
        if isinstance(picture, Picture):
            name = _class_of(row[label], space, is_list, counts, Place(f"{where}.label", i))
            items.append(Example(i, label=name, picture=picture, space=space))
    if not items:
        problem = f"none of {len(pictures)} images decodes; the first is {broken[0]}"
        raise no_data(where, problem)
    note = f"{where}: passed over {len(broken)} images that do not decode"
    notes = [f"{where}: {each}" for each in table.notes] + bad_rows(source, where, table)
    notes += [f"{note}, the first {broken[0]}"] if broken else []
    return Examples(where, tuple(items), len(table.rows), table.columns, tuple(notes))


def _look(picture: Picture) -> Picture | str:
    """Returns a picture decoded once, or why it does not decode."""
    try:
        return picture.looked_at()
    except ValueError as error:
        return f"{picture.name}: {error}"


def _picture(value: Any, table: Table, place: Place) -> Picture:
    """Returns the picture in a cell.

    That is a file's name, encoded bytes, an array, or what `datasets` keeps of an image.
    """
    name = f"row {place.row} (counting from 0)"
    if isinstance(value, Mapping) and {"bytes", "path"} & set(value):
        file, encoded = value.get("path"), value.get("bytes")
        if encoded is not None:
            return Picture(bytes(encoded), f"{name} of {file}" if file else name)
        value = file
    if isinstance(value, str):
        whole = str(Path(table.folder or "", value))
        return Picture(whole, whole)
    if isinstance(value, list | tuple):
        try:
            value = np.asarray(value)
        except ValueError:
            rule = "must be an image, and a list of lists must have rows of one length"
            raise place.error(rule) from None
    if isinstance(value, np.ndarray):
        return Picture(_pixels(value, place), name)
    if isinstance(value, bytes) or hasattr(value, "convert"):
        return Picture(value, name)
    known = "a file's name, bytes, an array or an Image of datasets"
    raise place.error(f"must be an image: {known}, not {type(value).__name__}")


def _pixels(array: np.ndarray[Any, Any], place: Place) -> np.ndarray[Any, Any]:
    """Returns pixels as bytes of shape (height, width) or (height, width, 3).

    Raises:
        DataError: the array has another shape, or values that are no bytes.
    """
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)) or 0 in array.shape:
        rule = "an array must be (height, width) or (height, width, 3)"
        raise place.error(f"{rule}, not {array.shape}")
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.integer) or array.min() < 0 or array.max() > 255:
        found = f"{array.dtype} up to {array.max()}"
        raise place.error(f"pixels must be whole numbers from 0 to 255, not {found}")
    return array.astype(np.uint8)


# --- classes


def _space(source: Source, table: Table, label: str, where: str) -> LabelSpace:
    """Returns the classes that the recipe lists, those that the source knows, or all labels."""
    head = source.head if isinstance(source, WithHead) else None
    names = tuple(source.classes or ()) or table.names.get(label)
    is_named = names is not None
    if names is None:
        column = zip(table.kept(), table.take_column(label), strict=True)
        values = {_plain(value, Place(f"{where}.label", index)) for index, value in column}
        is_named = not all(isinstance(value, int) for value in values)
        names = tuple(map(str, sorted(values, key=lambda each: (isinstance(each, str), each))))
    if len(names) < 2 or len(set(names)) < len(names):
        rule = "classes must be at least 2 and distinct"
        raise DataError(f"{where}.classes", f"{rule}, not {list(names)[:10]}")
    return LabelSpace(names, tuple(source.templates), is_named, head)


def _count_classes(values: Sequence[Any], space: LabelSpace) -> bool:
    """Returns whether texts of digits count the classes from 0, as numbers do.

    Tables keep numbers as texts, and names may be digits too: `0` to `4` beside names from `1` to
    `5` count, as `0` is no name.
    """
    texts = {value for value in values if isinstance(value, str)} - set(space.classes)
    return any(text.strip().isascii() and text.strip().isdigit() for text in texts)


def _class_of(value: Any, space: LabelSpace, is_list: bool, counts: bool, place: Place) -> str:
    """Returns a label's class by name; a number counts the classes from 0, if they are a list.

    `counts` says that texts of digits are numbers, even if a class has that name.
    """
    plain, classes = _plain(value, place), space.classes
    is_name = isinstance(value, str) and value in classes and not counts
    if isinstance(plain, int) and is_list and not is_name:
        if 0 <= plain < len(classes):
            return classes[plain]
    elif str(value) in classes:
        return str(value)
    elif str(plain) in classes:
        return str(plain)
    listed = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    problem = f"the label {value!r} is not among the {len(classes)} classes ({listed})"
    raise place.error(problem, hint="numbers count the list of classes from 0")


def _plain(value: Any, place: Place) -> int | str:
    """Returns a label as a whole number or a text.

    A text of digits is a number, as tables keep numbers so. Raises DataError for another value.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if is_number and float(value).is_integer():
        return int(float(value))
    if isinstance(value, str) and value.strip():
        return int(value) if value.strip().isascii() and value.strip().isdigit() else value
    raise place.error(f"a label must be a class's name or its number, not {value!r:.80}")
