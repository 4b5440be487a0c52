"""Finds tasks and groups of the harness by their names, and loads them with their data.

The index of the tasks that lm-eval brings takes seconds, and is made where a recipe names one of
them, once in a process. What the index and the factory of tasks are called is lm-eval's own
matter: these are read in the version that `library` asks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from mergetomix.errors import DataError, RecipeError
from mergetomix.targets.harness.library import (
    no_metrics_of_a_hub,
    own_folder,
    quiet,
    require,
)
from mergetomix.targets.harness.section import SUFFIXES, HarnessSection

Registry = dict[str, Any]
"""The entries of an index by the names of tasks, groups and tags."""
NEAREST = 5
PLACES = ("data_files", "data_dir")
"""What of a task's `dataset_kwargs` names files."""


@dataclass(frozen=True)
class Named:
    """What a section names: an entry of an index, and the index that it lies in."""

    entry: Any
    registry: Registry

    def entries(self) -> list[Any]:
        """Returns the tasks and groups that it is made of, itself among them."""
        found, _ = _members(self.entry, self.registry)
        return list(found.values())


@dataclass(frozen=True)
class LoadedTasks:
    """The tasks that a section names, in the harness's order, and the group that they are of.

    `notes` say what is otherwise than the section has it.
    """

    tasks: tuple[Any, ...]
    group: Any | None
    notes: tuple[str, ...] = ()


# --- by name


def find(section: HarnessSection, where: str) -> Named:
    """Returns the entry of a task or group.

    Raises:
        RecipeError: there is none of this name; or it may not be loaded as the section stands.
    """
    require(where)
    with quiet():
        found = _found(section, where)
    _check_code(section, found, where)
    return found


def names(section: HarnessSection, where: str) -> list[str]:
    """Returns the names of the tasks of a group, in its order.

    Raises:
        RecipeError: it is no group, or one of tasks that have no names of their own.
    """
    found = find(section, where)
    leaves = [each.name for each in found.entries() if _kind(each) in ("TASK", "PY_TASK")]
    if _kind(found.entry) in ("TASK", "PY_TASK"):
        raise RecipeError(f"{where}.each", f"{found.entry.name} is one task, and no group")
    if not leaves or _has_inline_tasks(found):
        message = f"the group {found.entry.name} describes tasks within itself"
        hint = "give each a file of its own, or leave each out"
        raise RecipeError(f"{where}.each", message, hint=hint)
    return list(dict.fromkeys(leaves))


def _found(section: HarnessSection, where: str) -> Named:
    from lm_eval.tasks._index import TaskIndex

    folders = tuple(section.folders)
    for folder in folders:
        if not Path(folder).is_dir():
            raise RecipeError(f"{where}.include_path", f"there is no folder {folder}")
    if section.is_file or Path(section.task).is_file():
        path = Path(section.task)
        try:
            entry = TaskIndex.entry_from_path(path)
            config = _config(path) if entry else {}
            # of a group, lm-eval takes the list of its tasks for the name
            name = config.get("group") or config.get("task")
            entry = entry and replace(entry, name=name, cfg=config)
        except Exception as error:
            message = f"{path} cannot be read as a task file: {_said(error)}"
            raise RecipeError(f"{where}.task", message) from error
        if entry is not None and not isinstance(entry.name, str):
            raise RecipeError(f"{where}.task", f"{path}: the name of its task must be a text")
        if entry is None:
            why = "names no task and no group" if path.is_file() else "is not there"
            raise RecipeError(f"{where}.task", f"{path} {why}")
        is_group = _kind(entry) == "GROUP"
        beside = folders or ((str(path.parent),) if is_group else ())
        return Named(entry, _registry_with(beside, entry))
    own = index(folders, builtin=False) if folders else {}
    if section.task in own:
        return Named(own[section.task], _registry_with(folders, own[section.task]))
    every = index(folders, builtin=True)
    if section.task not in every:
        raise _unknown(section, every, where)
    return Named(every[section.task], every)


def _registry_with(folders: tuple[str, ...], entry: Any) -> Registry:
    """Returns the index of the user's folders if it holds all that an entry names, else of all."""
    own = index(folders, builtin=False)
    _, missing = _members(entry, own)
    return index(folders, builtin=True) if missing else own


def index(folders: tuple[str, ...], builtin: bool) -> Registry:
    """Returns the tasks of some folders, and, with `builtin`, those that lm-eval brings.

    Files of a user's may change while this process lives, and are read each time.
    """
    own = _index(folders, builtin=False) if folders else {}
    return {**_builtin(), **own} if builtin else own


@cache
def _builtin() -> Registry:
    return _index((), builtin=True)


def _index(folders: tuple[str, ...], builtin: bool) -> Registry:
    from lm_eval.tasks import TaskManager

    with quiet():
        found = TaskManager(include_path=list(folders), include_defaults=builtin)
    return dict(found.task_index)


def _unknown(section: HarnessSection, registry: Registry, where: str) -> RecipeError:
    close = get_close_matches(section.task, registry, n=NEAREST, cutoff=0.6)
    message = f"lm-eval has no task or group called {section.task!r}"
    hint = f"the nearest are {', '.join(close)}" if close else "lm_eval ls tasks lists them"
    bad = [line for folder in section.folders for line in _unreadable(Path(folder))]
    return RecipeError(f"{where}.task", "; ".join([message, *bad]), hint=hint)


def _unreadable(folder: Path) -> Iterator[str]:
    """Yields what is wrong with the task files of a folder, which the index passes over."""
    for path in sorted(each for suffix in SUFFIXES for each in folder.rglob(f"*{suffix}")):
        try:
            _config(path)
        except Exception as error:  # noqa: BLE001  # whatever is in it
            yield f"{path.name} cannot be read: {_said(error)}"


# --- what a group is made of


def _kind(entry: Any) -> str:
    return str(entry.kind.name)


class Code(str):
    """What a task file says of a function: a text that names code."""


class _Reader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads a task file as lm-eval does, with its functions as Code."""


_Reader.add_constructor("!function", lambda reader, node: Code(reader.construct_scalar(node)))


def _read(path: Path) -> dict[str, Any]:
    """Returns a task file as plain values. Raises ValueError or a YAML error for anything else."""
    found = yaml.load(path.read_bytes(), Loader=_Reader)  # noqa: S506  # a SafeLoader with one tag
    if not isinstance(found, dict):
        raise ValueError(f"expected a mapping, not {type(found).__name__}")
    return found


def _files(path: Path) -> dict[Path, dict[str, Any]]:
    """Returns what a task file and those that it includes say, but for those of lm-eval itself."""
    found: dict[Path, dict[str, Any]] = {}
    waiting = [path.expanduser().resolve()]
    while waiting:
        here = waiting.pop().resolve()
        if here in found or here.is_relative_to(own_folder()):
            continue
        found[here] = _read(here)
        given = found[here].get("include") or []
        several = given if isinstance(given, list) else [given]
        waiting += [here.parent / str(each) for each in several]
    return found


def _config(path: Path) -> dict[str, Any]:
    """Returns a task file with what it includes, as lm-eval puts them together."""
    from lm_eval.tasks._yaml_loader import load_yaml

    _read(path)  # lm-eval's own reader may take more for YAML
    return dict(load_yaml(path, resolve_func=False))


def _members(entry: Any, registry: Registry) -> tuple[dict[str, Any], list[str]]:
    """Returns an entry and those that it names, by name, and the names that are not there."""
    found: dict[str, Any] = {}
    missing: list[str] = []
    waiting = [entry]
    while waiting:
        here = waiting.pop(0)
        if here.name in found:
            continue
        found[here.name] = here
        named = sorted(here.tags) if _kind(here) == "TAG" else _named(here.cfg or {})
        missing += [name for name in named if name not in registry]
        waiting[:0] = [registry[name] for name in named if name in registry]
    return found, missing


def _named(config: Mapping[str, Any]) -> list[str]:
    """Returns the names that a group's file lists; tasks that it describes itself are left out."""
    given = config.get("task") if "group" in config else None
    members = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    found: list[str] = []
    for each in members:
        if isinstance(each, str):
            found.append(each)
        elif isinstance(each, Mapping) and isinstance(each.get("task"), list):
            found += _named({"group": "", **each})
        elif isinstance(each, Mapping) and not _is_inline(each):
            found.append(str(each.get("group", each.get("task"))))
    return found


def _is_inline(member: Mapping[str, Any]) -> bool:
    return any(key in member for key in ("dataset_path", "custom_dataset", "doc_to_text"))


def _has_inline_tasks(found: Named) -> bool:
    configs = [each.cfg or {} for each in found.entries() if _kind(each) == "GROUP"]
    lists = [each.get("task") for each in configs]
    members = [each for some in lists if isinstance(some, list) for each in some]
    return any(isinstance(each, Mapping) and _is_inline(each) for each in members)


# --- code


def _check_code(section: HarnessSection, found: Named, where: str) -> None:
    """Raises RecipeError for code that the section does not allow, before any of it is imported."""
    key = f"{where}.task"
    for entry in found.entries():
        config = entry.cfg or {}
        if config.get("unsafe_code") and not section.confirm_run_unsafe_code:
            message = f"{entry.name} runs code that the model writes"
            hint = "confirm_run_unsafe_code: true allows it, on this machine"
            raise RecipeError(key, message, hint=hint)
        if not _is_of_the_user(entry) or section.trust_task_code:
            continue
        try:
            files = _files(Path(entry.yaml_path))
        except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
            message = f"{entry.yaml_path} cannot be read as a task file: {_said(error)}"
            raise RecipeError(key, message) from error
        calls = [f"{path}: {code}" for path, each in files.items() for code in _code(each)]
        if calls:
            hint = "trust_task_code: true allows it, if you know that file"
            raise RecipeError(key, f"{entry.name} calls code, in {calls[0]}", hint=hint)


def _is_of_the_user(entry: Any) -> bool:
    """Whether an entry is no task that lm-eval brings."""
    if entry.yaml_path is None:
        return False
    return not Path(entry.yaml_path).resolve().is_relative_to(own_folder())


def _code(value: Any) -> Iterator[str]:
    """Yields the code that a part of a task file calls."""
    for each in _mappings(value):
        for key, inner in each.items():
            if isinstance(inner, Code):
                yield f"{key}: !function {inner}"
            elif key == "class":
                yield f"class: {inner}"
            elif key == "hf_evaluate" and inner:
                yield f"hf_evaluate: {inner}"
            elif isinstance(inner, list):
                yield from (f"!function {one}" for one in inner if isinstance(one, Code))


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yields every mapping within a value, itself among them, each once."""
    waiting, seen = [value], set[int]()
    while waiting:
        here = waiting.pop(0)
        if not isinstance(here, Mapping | list) or id(here) in seen:
            continue
        seen.add(id(here))
        if isinstance(here, Mapping):
            yield here
        waiting += list(here.values()) if isinstance(here, Mapping) else here


# --- with their data


def load(section: HarnessSection, base: str, where: str) -> LoadedTasks:
    """Returns new objects of the tasks that a section names, with their data.

    They are changed as the command changes them: `gen_kwargs`, `num_fewshot`, seed.

    Args:
        base: the model's folder or hub id, which some tasks ask for the tokenizer.

    Raises:
        RecipeError: there is no such task; or it may not be loaded as the section stands.
        DataError: its data, or a package that it needs, is not to be had.
    """
    from lm_eval.api.group import Group
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._factory import TaskFactory

    found = find(section, where)
    for entry in found.entries():
        _check_metrics(entry, where)
        _check_files(entry, where)
    meta = {"pretrained": base, **section.metadata}
    is_closed = not section.trust_task_code and any(map(_is_of_the_user, found.entries()))
    try:
        with quiet(), no_metrics_of_a_hub() if is_closed else nullcontext():
            entries = {each.name: _beside_its_file(each) for each in found.entries()}
            registry = found.registry | entries
            built = TaskFactory(meta=meta).build(entries[found.entry.name], registry=registry)
            several = built if isinstance(built, list) else [built]
            # as the command has it: a task draws from Python's generator when it is asked its name
            loaded = TaskManager(include_defaults=False).load(several)
    except Exception as error:
        raise _unloadable(section.task, error, where) from error
    group = built if isinstance(built, Group) else None
    tasks = list(loaded["tasks"].values())
    notes: list[str] = []
    for task in tasks:
        _set_up(task, section, where)
        notes += _give_shots(task, section, len(tasks) > 1, where)
    if section.gen_kwargs and not any(_generates(task) for task in tasks):
        raise RecipeError(f"{where}.gen_kwargs", f"{section.task} generates nothing")
    return LoadedTasks(tuple(tasks), group, tuple(notes))


def _check_metrics(entry: Any, where: str) -> None:
    """Raises DataError for a metric that lm-eval does not know and would look for on a hub."""
    from lm_eval.api.registry import metric_registry

    if not _is_of_the_user(entry):
        return
    for each in (one for file in _files(Path(entry.yaml_path)).values() for one in _mappings(file)):
        given = each.get("metric_list")
        if not isinstance(given, list) or each.get("process_results") is not None:
            continue
        names = [one.get("metric") for one in given if isinstance(one, Mapping)]
        loaded = [
            one.get("metric")
            for one in given
            if isinstance(one, Mapping) and one.get("hf_evaluate")
        ]
        for name in names:
            if isinstance(name, Code) or name in loaded or str(name) in metric_registry:
                continue
            close = get_close_matches(str(name), metric_registry, n=NEAREST, cutoff=0.4)
            hint = f"the nearest are {', '.join(close)}" if close else None
            message = f"{entry.name}: lm-eval has no metric {name!r}"
            raise DataError(f"{where}.task", message, hint=hint)


def _check_files(entry: Any, where: str) -> None:
    """Raises DataError for a task over files that names none, or a folder in the place of one.

    `datasets` would look for them in everything below the working directory.
    """
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    config = entry.cfg or {}
    if str(config.get("dataset_path")) not in _PACKAGED_DATASETS_MODULES:
        return
    given = config.get("dataset_kwargs") or {}
    files = given.get("data_files") if isinstance(given, Mapping) else None
    names = list(_texts(files))
    key, path = f"{where}.task", config["dataset_path"]
    if not names:
        hint = "dataset_kwargs: {data_files: {test: questions.jsonl}}"
        raise DataError(key, f"{entry.name} has dataset_path: {path}, and no files", hint=hint)
    folder = next((name for name in names if _is_folder(name)), None)
    if folder is not None:
        raise DataError(key, f"{entry.name} names the folder {folder[:100]} among its files")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, str):
            yield each
        elif isinstance(each, list):
            yield from _texts(each)


def _is_folder(name: str) -> bool:
    try:
        return not name.strip() or Path(name).is_dir()
    except (OSError, ValueError):
        return False


def _beside_its_file(entry: Any) -> Any:
    """Returns an entry whose data files are found beside its own file.

    That is where they are not there as seen from the working directory, where lm-eval looks.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    given = (entry.cfg or {}).get("dataset_kwargs")
    if not isinstance(given, Mapping) or not _is_of_the_user(entry):
        return entry
    folder = Path(entry.yaml_path).parent
    moved = {key: _moved(given[key], folder) for key in PLACES if key in given}
    if all(given[key] == value for key, value in moved.items()):
        return entry
    config = load_yaml(entry.yaml_path, resolve_func=True)
    config["dataset_kwargs"] = {**given, **moved}
    return replace(entry, yaml_path=None, cfg=config)


def _moved(value: Any, folder: Path) -> Any:
    if isinstance(value, Mapping):
        return {key: _moved(each, folder) for key, each in value.items()}
    if isinstance(value, list):
        return [_moved(each, folder) for each in value]
    if not isinstance(value, str) or "://" in value or Path(value).exists():
        return value
    return str(folder / value) if (folder / value).exists() else value


def _unloadable(task: str, error: Exception, where: str) -> DataError:
    """Returns what kept a task from being loaded, and what to do about it."""
    said, key = _said(error), f"{where}.task"
    missing = next((each for each in _causes(error) if isinstance(each, ImportError)), None)
    if missing is not None:
        hint = "lm-eval lists such packages as extras: pip install 'lm-eval[ifeval,math]'"
        return DataError(key, f"{task} needs a package that is not there: {missing}", hint=hint)
    if isinstance(error, IndexError):
        return DataError(key, f"{task} has no documents ({said})")
    lacking = (OSError, ConnectionError, EOFError)
    is_data = any(isinstance(each, lacking) for each in _causes(error)) or "dataset" in said.lower()
    if is_data:
        hint = "a dataset of a hub must be in the cache, or HF_HUB_OFFLINE unset; files of a task"
        hint += " lie where its dataset_kwargs say, or beside the task file"
        return DataError(key, f"the data of {task} is not to be had: {said}", hint=hint)
    return DataError(key, f"{task} cannot be loaded: {said}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


# --- as the section wants them


def _set_up(task: Any, section: HarnessSection, where: str) -> None:
    name = name_of(task)
    if getattr(task, "UNSAFE_CODE", False) and not section.confirm_run_unsafe_code:
        hint = "confirm_run_unsafe_code: true allows it, on this machine"
        raise RecipeError(f"{where}.task", f"{name} runs code that the model writes", hint=hint)
    if getattr(task, "MULTIMODAL", False):
        raise RecipeError(
            f"{where}.task", f"{name} shows images or sounds, and the base reads text"
        )
    if section.gen_kwargs and _generates(task):
        task.set_config(key="generation_kwargs", value=dict(section.gen_kwargs), update=True)
    _choose_split(task, section, where)


def _generates(task: Any) -> bool:
    return bool(task.get_config("output_type") == "generate_until")


def _give_shots(task: Any, section: HarnessSection, is_of_several: bool, where: str) -> list[str]:
    """Sets how many examples a task shows; returns a line if that is not what the section says.

    Raises RecipeError for a single task that fixes their number at zero.
    """
    name, own, wanted = name_of(task), task.get_config("num_fewshot"), section.num_fewshot
    lines = []
    if wanted and own == 0:
        says = f"{name} is a task of num_fewshot: 0, which lm-eval lets nobody change"
        if not is_of_several:
            raise RecipeError(f"{where}.num_fewshot", says, hint="leave num_fewshot out")
        lines.append(f"{where}: {says}: it shows none")
        wanted = 0
    task.set_config(key="num_fewshot", value=wanted if wanted is not None else own or 0)
    task.set_fewshot_seed(seed=section.fewshot_seed)
    return lines


def _choose_split(task: Any, section: HarnessSection, where: str) -> None:
    """Makes a task give the documents of the split that is meant.

    Raises RecipeError where the section does not say which one that is, or may not use it.
    """
    has = {"validation": task.has_validation_docs(), "test": task.has_test_docs()}
    there = [split for split, is_there in has.items() if is_there]
    name, key = name_of(task), f"{where}.split"
    if section.split is not None and section.split not in there:
        listed = f"{there[0]} alone" if there else "no split to evaluate on"
        raise RecipeError(key, f"{name} has {listed}, not {section.split}")
    if section.split is None and len(there) > 1:
        hint = "split: validation chooses on the one, and leaves the test split untouched"
        raise RecipeError(key, f"{name} has a validation and a test split: say which", hint=hint)
    chosen = section.split or (there[0] if there else "test")
    if chosen == "test" and not section.allow_test_split:
        only = "" if section.split else f", and {name} has no other"
        message = f"mixtures would be chosen on the test split{only}"
        hint = "allow_test_split: true says that this is meant"
        raise RecipeError(f"{where}.allow_test_split", message, hint=hint)
    if chosen == "validation":
        task.has_test_docs = lambda: False


def name_of(task: Any) -> str:
    """Returns the name of a task, without its drawing one, as its own `task_name` does."""
    return str(task.get_config("task") or type(task).__name__)


def uses_test_split(tasks: Sequence[Any]) -> bool:
    """Returns whether documents of tasks are those of a test split."""
    return any(task.has_test_docs() for task in tasks)
