"""Open a recipe's dataset or target, from files, the hub or Python, as a table of rows."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mergetomix.data import files, formats
from mergetomix.data.errors import Place, no_data, one_line
from mergetomix.data.split_spec import Part, parts_of
from mergetomix.errors import DataError
from mergetomix.sections.source import Source

Row = Mapping[str, Any]
SAVED = ({"dataset_dict.json"}, {"dataset_info.json", "state.json"})
"""What `save_to_disk` writes into a folder, for a DatasetDict and for a Dataset."""


@dataclass(frozen=True)
class Table:
    """Rows by index: a list of mappings, or a `datasets.Dataset`. `empty` are indices to pass over.

    `num_binary` files held no text. `names` are the classes of columns that hold labels, as far as
    the source knows them; file names in a column are relative to `folder`. `notes` say what of a
    file or folder is odd or was passed over, `refused` what a function of the user's was. `chosen`
    are the indices of the rows that the recipe takes, None for all.
    """

    columns: tuple[str, ...]
    rows: Any
    empty: frozenset[int] = frozenset()
    num_binary: int = 0
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    folder: Path | None = None
    notes: tuple[str, ...] = ()
    refused: tuple[DataError, ...] = ()
    chosen: Sequence[int] | None = None

    def kept(self) -> list[int]:
        """Returns the indices of the rows that are taken and not empty, in order."""
        chosen = range(len(self.rows)) if self.chosen is None else self.chosen
        return [index for index in chosen if index not in self.empty]

    def with_rows(self, indices: Sequence[int]) -> Table:
        """Returns the same table with no more than these rows taken; they keep their indices."""
        return replace(self, chosen=indices)

    def take(self, indices: Sequence[int]) -> list[Row]:
        """Returns the rows at these indices, with every column; None is what is missing."""
        if hasattr(self.rows, "with_format"):
            # a format such as "torch" would give tensors
            rows: Iterable[Row] = self.rows.with_format(None).select(indices)
        else:
            rows = (self.rows[index] for index in indices)
        return [{column: row.get(column) for column in self.columns} for row in rows]

    def take_column(self, column: str) -> list[Any]:
        """Returns one column of all rows that are not empty."""
        if hasattr(self.rows, "select_columns"):
            some = self.rows.select_columns([column]).with_format(None).select(self.kept())
            return [row[column] for row in some]
        return [self.rows[index].get(column) for index in self.kept()]


def open_table(source: Source, where: str) -> Table:
    """Returns the rows of one source; `where` is its place in the recipe, such as `datasets.math`.

    Raises:
        DataError: the source cannot be read, or no row is left without the empty ones.
    """
    if source.rows is not None and not source.files:
        given = _given(source.rows, f"{where}.rows")
        parts = parts_of(source.split, where) if source.split is not None else [Part("")]
        for part in parts:
            if part.name not in ("", "train", source.default_split):
                raise DataError(f"{where}.split", f"no split {part.name!r} in the rows given")
        table = _together([_parts(given, [part]) for part in parts])
    else:
        image = source.image or "image" if source.label else None
        table = _together([_at(path, source, where) for path in source.paths or [""]], image)
    if not table.kept():
        counts = {"are empty": len(table.empty), "hold no text": table.num_binary}
        reasons = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        key, origin = ("path", source.path) if source.rows is None else ("rows", "the rows given")
        why = f" ({reasons})" if reasons else ""
        if table.rows and table.chosen is not None and not len(table.chosen):
            key, why = "split", f": {source.split} of {len(table.rows)} rows"
        raise DataError(f"{where}.{key}", f"no rows in {origin}{why}")
    return table


def _at(path: str, source: Source, where: str) -> Table:
    """Returns the table of one path, of the split that the source means."""
    source = source.model_copy(update={"path": path})
    if not source.files and not Path(path).is_absolute():
        return _of_dataset(_from_hub(source, where))
    parts = [] if source.split is None else parts_of(source.split, where)
    tables: dict[str, Table] = {}
    for part in parts or [Part("")]:
        own = source.model_copy(update={"split": part.name or None})
        if part.name not in tables:
            tables[part.name] = _documents(own, where) if source.files else _named(path, own, where)
    return _together([_parts(tables[part.name], [part]) for part in parts or [Part("")]])


def _parts(table: Table, parts: Sequence[Part]) -> Table:
    """Returns the rows that one part of a split takes of its table."""
    if not parts or not (parts[0].start or parts[0].stop):
        return table
    return table.with_rows(parts[0].rows(len(table.rows)))


def _together(tables: Sequence[Table], image: str | None = None) -> Table:
    """Returns the rows of some tables as one, in their order.

    Labels that are numbers of other names in another table become the names, and the files that
    `image` names relative to different folders absolute paths.
    """
    if len(tables) == 1:
        return tables[0]
    columns = tuple(dict.fromkeys(column for table in tables for column in table.columns))
    names = {column: own for table in tables for column, own in table.names.items()}
    mixed = [each for each in names if len({table.names.get(each) for table in tables}) > 1]
    folders = {table.folder for table in tables}
    rows: list[Row] = []
    chosen, empty = [], set()
    for table in tables:
        chosen += [len(rows) + index for index in table.kept()]
        empty |= {len(rows) + index for index in table.empty}
        for row in table.take(range(len(table.rows))):
            found = dict(row) | {each: _name_of(row.get(each), table, each) for each in mixed}
            is_beside = image is not None and len(folders) > 1
            rows.append(_beside(found, str(image), table.folder) if is_beside else found)
    for each in mixed:
        names[each] = tuple(
            sorted({name for table in tables for name in table.names.get(each, ())})
        )
    return Table(
        columns,
        rows,
        frozenset(empty),
        sum(table.num_binary for table in tables),
        names,
        folders.pop() if len(folders) == 1 else None,
        tuple(dict.fromkeys(note for table in tables for note in table.notes)),
        chosen=chosen,
    )


def _beside(row: Row, image: str, folder: Path | None) -> dict[str, Any]:
    """Returns a row whose image's file name is an absolute path."""
    name = row.get(image)
    return {**row, image: str(Path(folder or "", name))} if isinstance(name, str) else dict(row)


def _name_of(value: Any, table: Table, column: str) -> Any:
    """Returns the name of a class that a table counts; any other value as it stands."""
    names = table.names.get(column, ())
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return names[value] if is_number and 0 <= value < len(names) else value


def _given(rows: Any, where: str) -> Table:
    """Returns the table of rows that Python gives."""
    if isinstance(rows, list | tuple):
        for index, row in enumerate(rows):
            if not isinstance(row, Mapping) or not all(isinstance(column, str) for column in row):
                raise Place(where, index).error(f"must map column names to values, not {row!r:.80}")
        return _of_mappings(rows)
    names = getattr(rows, "column_names", None)
    if isinstance(names, dict):
        listed = ", ".join(names)
        raise DataError(where, f"these are several splits: {listed}", hint="give one of them")
    if names is None or not hasattr(rows, "__getitem__") or not hasattr(rows, "__len__"):
        known = "a list of mappings or a datasets.Dataset"
        raise DataError(where, f"must be {known}, not {type(rows).__name__}")
    return _of_dataset(rows)


def _of_mappings(rows: Sequence[Row]) -> Table:
    return Table(tuple(dict.fromkeys(column for row in rows for column in row)), rows)


def _of_dataset(rows: Any) -> Table:
    """Returns the table of a `datasets.Dataset`.

    Images stay encoded, as decoding all of them at once would fill the memory.
    """
    import datasets

    names = {}
    for column, feature in (getattr(rows, "features", None) or {}).items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(column, datasets.Image(decode=False))
        if isinstance(feature, datasets.ClassLabel):
            names[column] = tuple(feature.names)
    return Table(tuple(rows.column_names), rows, names=names)


# --- the hub, and what `save_to_disk` wrote


def _from_hub(source: Source, where: str) -> Any:
    import datasets
    from huggingface_hub.errors import HFValidationError

    try:
        with _without_progress_bars():
            return datasets.load_dataset(
                str(source.path),
                source.name,
                split=source.split or source.default_split,
                revision=source.revision,
            )
    except (OSError, HFValidationError) as error:
        problem = "neither a local file nor a hub dataset that can be reached"
        hint = (
            "write a local path with a suffix or a leading ./;"
            " for the hub check the id, the network and your login"
        )
        raise no_data(where, f"{source.path}: {problem} ({one_line(error)})", hint) from None
    except (ValueError, datasets.exceptions.DatasetsError, RuntimeError) as error:
        reason = one_line(error.__cause__ or error)
        # which key it is about, the library says in words alone
        about = {"split": "split", "builderconfig": "name", "config name": "name"}
        key = next((key for word, key in about.items() if word in reason.lower()), "path")
        raise DataError(f"{where}.{key}", f"{source.path}: {reason}") from None


def _from_disk(source: Source, where: str) -> Any:
    import datasets
    import pyarrow as pa

    try:
        with _without_progress_bars():
            loaded = datasets.load_from_disk(str(source.path))
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
        problem = f"was written by save_to_disk but cannot be read: {one_line(error)}"
        raise no_data(where, f"{source.path} {problem}") from None
    if not isinstance(loaded.column_names, dict):
        return loaded
    wanted = source.split or source.default_split
    if wanted not in loaded:
        raise files.no_split(source, where, loaded)
    return loaded[wanted]


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


# --- files


def _named(path: str, source: Source, where: str) -> Table:
    """Returns the table that a path means."""
    if not Path(path).is_absolute():
        return _of_dataset(_from_hub(source, where))
    found = files.all_files(path, where)
    table = _of_files(Path(path), found.files, source, where)
    return replace(table, notes=table.notes + found.notes)


def _of_files(root: Path, every: list[Path], source: Source, where: str) -> Table:
    """Returns the table of the files of a path."""
    names = {file.name for file in every if file.parent == root}
    if any(saved <= names for saved in SAVED):
        return _of_dataset(_from_disk(source, where))
    if source.label and root.is_dir():
        tables = [file for file in every if files.kind_of(file) not in (None, "text")]
        # a table among a class's images is none
        if not any(file.parent == root for file in tables) and len(tables) < len(every):
            return _image_folder(root, every, source, where)
    data = files.data_files(every, source, where)
    kinds = {files.kind_of(file): file for file in reversed(data)}
    if None in kinds:
        known = f"known suffixes are {', '.join(files.KINDS)}, each also with .gz"
        hint = "text: true reads any file as one document"
        raise no_data(where, f"{kinds[None]} is of no known kind; {known}", hint)
    if len(kinds) > 1:
        several = ", ".join(f"{kind} ({file})" for kind, file in sorted(kinds.items(), key=str))
        hint = "narrow it with a glob"
        raise no_data(where, f"the files must be of one kind, not {several}", hint)
    if "parquet" in kinds:
        return _parquet(data, where)
    rows: list[Row] = []
    notes: list[str] = []
    split = files.split_called(source.split or source.default_split)
    for file in data:
        with formats.reading(file, where):
            own = list(formats.rows_of(file, split, notes))
        if source.label and len({each.parent for each in data}) > 1 and not root.is_dir():
            own = [_beside(row, source.image or "image", file.parent) for row in own]
        rows += own
    folder = root if root.is_dir() else data[0].parent
    empty = _blank(rows) if "text" in kinds else frozenset()
    table = _of_mappings(rows)
    return replace(table, empty=empty, folder=folder, notes=tuple(notes))


def _blank(rows: Sequence[Row]) -> frozenset[int]:
    return frozenset(index for index, row in enumerate(rows) if not row["text"].strip())


def _parquet(data: list[Path], where: str) -> Table:
    import datasets
    import pyarrow as pa

    tables = []
    for file in data:
        with formats.reading(file, where):
            tables.append(formats.parquet(file))
    try:
        together = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        problem = f"the files' columns do not fit together: {one_line(error)}"
        raise no_data(where, problem) from None
    # as a Dataset, so that columns come out as the library that wrote them means them
    return _of_dataset(datasets.Dataset(datasets.table.InMemoryTable(together)))


def _documents(source: Source, where: str) -> Table:
    """Returns the table of whole files, or their pieces, a row each."""
    path = str(source.path)
    if not Path(path).is_absolute():
        rule = "text: true reads local files, so path must be a file, a folder or a glob"
        raise DataError(f"{where}.text", rule)
    rows, num_binary = [], 0
    found = files.all_files(path, where)
    if source.split is not None:
        found = replace(found, files=files.documents_of(found.files, source, where))
    for file in found.files:
        with formats.reading(file, where):
            text = formats.document(file)
            if text is None and file == Path(path):
                raise formats.Malformed(" is not text: it holds zero bytes")
        if text is None:
            num_binary += 1
            continue
        pieces = formats.pieces(text, source.lines_per_example)
        rows += [{"file": str(file), "text": piece} for piece in pieces]
    return Table(("file", "text"), rows, _blank(rows), num_binary, notes=found.notes)


def _image_folder(root: Path, every: list[Path], source: Source, where: str) -> Table:
    """Returns the table of a folder for each class, within a folder for each split if it has some.

    A class of one split is a class of all.
    """
    images = [file for file in every if files.suffix_of(file) in files.IMAGE_SUFFIXES]
    if not images:
        known = ", ".join(files.IMAGE_SUFFIXES)
        raise no_data(where, f"no image in {root}; known suffixes are {known}")
    parts_of = {file: file.relative_to(root).parts for file in images}
    for file, parts in parts_of.items():
        if len(parts) == 1:
            hint = "make one folder for each class, or a table of names and labels"
            raise no_data(where, f"{file} lies in no class's folder", hint)
    split_of = {file: files.split_called(each[0]) for file, each in parts_of.items()}
    words = set(files.SPLIT_WORDS.values())
    splits = {each for file, each in split_of.items() if each in words and len(parts_of[file]) > 2}
    wanted = files.split_called(source.split or source.default_split)
    if splits and wanted not in splits:
        raise files.no_split(source, where, splits)
    names = tuple(sorted({file.parent.name for file in images}))
    kept = [file for file in images if not splits or split_of[file] == wanted]
    rows = [{"image": str(file), "label": file.parent.name} for file in kept]
    notes = tuple(_odd(root, every, images, kept))
    return Table(("image", "label"), rows, names={"label": names}, notes=notes)


def _odd(root: Path, every: list[Path], images: list[Path], kept: list[Path]) -> Iterator[str]:
    """Yields what a user may not know of a folder of images, a line each."""
    others = Counter(files.suffix_of(file) or file.name for file in set(every) - set(images))
    if others:
        listed = ", ".join(f"{suffix} {num}" for suffix, num in sorted(others.items()))
        yield f"passed over {others.total()} files that are no image by their suffix: {listed}"
    places: dict[str, set[Path]] = {}
    for file in kept:
        places.setdefault(file.parent.name, set()).add(file.parent)
    for name, folders in sorted(places.items()):
        if len(folders) > 1:
            listed = ", ".join(sorted(str(each.relative_to(root)) for each in folders))
            yield f"the class {name} is that of {len(folders)} folders: {listed}"
    # Path.walk is of Python 3.12
    leaves = {Path(place) for place, folders, _ in os.walk(root) if not folders}
    shown = {each for each in leaves if not any(part[0] in "._" for part in each.parts[1:])}
    for folder in sorted(shown - {file.parent for file in images}):
        yield f"the folder {folder.relative_to(root)} holds no image"
