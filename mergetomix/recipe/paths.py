"""The paths of a recipe: they start at its folder in the file, and are absolute once loaded."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any, TypeVar

from mergetomix.data.files import KINDS
from mergetomix.sections.base import Base
from mergetomix.sections.source import Dataset, Source

S = TypeVar("S", bound=Source)


def under(folder: Path, path: str) -> Path:
    """Returns a path that starts at a folder, unless it is absolute or begins with `~`."""
    # Path.expanduser raises for an unknown user; this leaves ~name as it stands
    return folder / os.path.expanduser(path)  # noqa: PTH111


def resolve_base(base: Base, folder: Path) -> Base:
    """Returns a base whose folder and template are absolute paths; a hub id stays as it is."""
    local = under(folder, base.path).resolve()
    is_local = local.exists() or _is_written_as_path(base.path)
    update = {"path": str(local)} if is_local else {}
    if base.chat_template is not None and "{" not in base.chat_template:
        update["chat_template"] = str(under(folder, base.chat_template).resolve())
    return base.model_copy(update=update)


def resolve_data_path(path: str, folder: Path) -> str:
    """Returns an absolute path or glob if one is there or meant, else the hub id as it is."""
    local = under(folder, path)
    has_suffix = path.removesuffix(".gz").lower().endswith(tuple(KINDS))
    is_pattern = glob.has_magic(path)
    try:
        is_there = local.exists()
    except OSError:  # from a name that is too long
        is_there = False
    if not (_is_written_as_path(path) or has_suffix or is_pattern or is_there):
        return path
    if is_there or Path(path).is_absolute() or path.startswith("~"):
        return str(local)
    if not glob.has_magic(str(folder)):
        return str(local)
    # the folder is meant as it is called, whatever brackets it has in its name
    return os.path.normpath(Path(glob.escape(str(folder)), path))


def _is_written_as_path(path: str) -> bool:
    return path.startswith((".", "/", "~")) or path.count("/") > 1


def resolve_source(source: S, folder: Path) -> S:
    """Returns a dataset or target whose data, expert and function are named by absolute paths."""
    update: dict[str, Any] = {}
    if source.path is not None:
        update["path"] = resolve_data_path(source.path, folder)
    if isinstance(source, Dataset) and source.expert is not None:
        update["expert"] = str(under(folder, source.expert).resolve())
    function = getattr(source, "function", None)
    if isinstance(function, str):
        file, _, name = function.rpartition(":")
        beside = file.replace(".", "/") + ".py"  # a module beside the recipe need not be installed
        if not file.endswith(".py") and under(folder, beside).is_file():
            file = beside
        if file.endswith(".py"):
            update["function"] = f"{under(folder, file).resolve()}:{name}"
    return source.model_copy(update=update)
