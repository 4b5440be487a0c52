"""The paths of a recipe: they start at its folder in the file, and are absolute once loaded."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import Any, TypeVar

from mergetomix.data.files import KINDS, means_path
from mergetomix.sections.base import Base
from mergetomix.sections.source import Dataset, Source
from mergetomix.targets.harness.kind import HarnessTarget
from mergetomix.targets.target import TargetKind

S = TypeVar("S", bound=Source)


def under(folder: Path, path: str) -> Path:
    """Returns a path that starts at a folder, unless it is absolute or begins with `~`."""
    # Path.expanduser raises for an unknown user; this leaves ~name as it stands
    return folder / os.path.expanduser(path)  # noqa: PTH111


def real(path: Path) -> str:
    """Returns a path as the system has it, links followed; as it is where that cannot be told."""
    try:
        return str(path.resolve())
    except (OSError, RuntimeError, ValueError):  # too long, links in a circle, a zero byte
        return os.path.normpath(path)


def is_there(path: Path) -> bool:
    """Returns whether there is such a file or folder, as far as the system lets it be seen."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def unusable(path: str) -> str | None:
    """Returns why the system would not take a path, None if it would, there or not there."""
    try:
        Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        shown = path if len(path) <= 100 else f"{path[:97]}..."
        return f"{shown} cannot be used: {getattr(error, 'strerror', None) or error}"
    return None


def resolve_base(base: Base, folder: Path) -> Base:
    """Returns a base whose folder and template are absolute paths; a hub id stays as it is."""
    local = under(folder, base.path)
    is_local = is_there(local) or _is_written_as_path(base.path)
    update = {"path": real(local)} if is_local else {}
    if base.chat_template is not None and "{" not in base.chat_template:
        update["chat_template"] = real(under(folder, base.chat_template))
    return base.model_copy(update=update)


def resolve_data_path(path: str, folder: Path) -> str:
    """Returns an absolute path or glob if one is there or meant, else the hub id as it is."""
    local = under(folder, path)
    has_suffix = path.removesuffix(".gz").lower().endswith(tuple(KINDS))
    is_pattern = glob.has_magic(path)
    is_one = is_there(local)
    if not (_is_written_as_path(path) or has_suffix or is_pattern or is_one):
        return path
    if is_one or Path(path).is_absolute() or path.startswith("~"):
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
        found = [resolve_data_path(path, folder) for path in source.paths]
        update["path"] = found if isinstance(source.path, list) else found[0]
    if isinstance(source, Dataset) and source.expert is not None:
        update["expert"] = real(under(folder, source.expert))
    for key in ("function", "map"):
        function = getattr(source, key, None)
        if isinstance(function, str):
            update[key] = _resolve_function(function, folder)
    shown = getattr(source, "shots_from", None)
    if shown is not None and means_path(shown):
        update["shots_from"] = resolve_data_path(shown, folder)
    return source.model_copy(update=update)


def resolve_target(target: TargetKind, folder: Path) -> TargetKind:
    """Returns a target whose data, function, task files and their folders have absolute paths."""
    if isinstance(target, Source):
        return resolve_source(target, folder)
    if not isinstance(target, HarnessTarget):
        return target
    update: dict[str, Any] = {}
    if target.is_file or under(folder, target.task).is_file():
        update["task"] = real(under(folder, target.task))
    if target.include_path is not None:
        update["include_path"] = [real(under(folder, each)) for each in target.folders]
    return target.model_copy(update=update)


def _resolve_function(function: str, folder: Path) -> str:
    """Returns `file.py:function` with an absolute path; an installed module's as it is."""
    file, _, name = function.rpartition(":")
    beside = file.replace(".", "/") + ".py"  # a module beside the recipe need not be installed
    if not file.endswith(".py") and is_there(under(folder, beside)):
        file = beside
    return f"{real(under(folder, file))}:{name}" if file.endswith(".py") else function
