"""Deal with a user's own function: find it by its name, call it with care, know it by its code."""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mergetomix.errors import DataError
from mergetomix.sections.user_function import UserFunction

PLAIN = (str, bytes, int, float, tuple, list, dict, set, frozenset)


# --- called with care


def call(
    function: Callable[..., Any],
    model: Any,
    processor: Any,
    rows: Sequence[Mapping[str, Any]] | None,
    where: str,
) -> tuple[float, ...]:
    """Returns what the user's function says of a model.

    It gets copies of the rows, and torch draws the same numbers in every call.

    Raises:
        DataError: it raises, or returns no finite numbers.
    """
    given = () if rows is None else (copy.deepcopy(list(rows)),)
    with _as_it_was(model):
        with users_code(where):
            values = function(model, processor, *given)
        return checked(values, where)


@contextmanager
def users_code(where: str) -> Iterator[None]:
    """Turns whatever the user's code raises into a DataError that names the target."""
    try:
        yield
    except Exception as error:
        raise DataError(f"{where}.function", f"raised {type(error).__name__}: {error}") from error


@contextmanager
def _as_it_was(model: Any) -> Iterator[None]:
    """Turns gradients off; torch's random state and the modules' modes are the same afterwards."""
    import torch

    modes = {module: module.training for module in model.modules()}
    with torch.no_grad(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training


def checked(values: Any, where: str) -> tuple[float, ...]:
    """Returns values as floats. Raises DataError if there are none, or one is not finite."""
    key = f"{where}.function"
    try:
        given = list(values)
        numbers = tuple(map(float, given))
    except (TypeError, ValueError, RuntimeError):  # a tensor of several elements raises the last
        raise DataError(key, "must return one number per example") from None
    if any(isinstance(value, str | bytes) for value in given):
        raise DataError(key, "must return one number per example, not text")
    if not numbers:
        raise DataError(key, "returned 0 scores, not one or more")
    bad = next((i for i, value in enumerate(numbers) if not math.isfinite(value)), None)
    if bad is not None:
        raise DataError(key, f"the score of example {bad} is {numbers[bad]}")
    return numbers


# --- known by its code


def source_of(function: UserFunction) -> str | None:
    """Returns a fingerprint of a function's code: changing it makes its old scores unused."""
    if function is None:
        return None
    if isinstance(function, str):
        module, _, name = function.rpartition(":")
        return hashlib.sha256(f"{_text_of(module)}:{name}".encode()).hexdigest()
    return hashlib.sha256(repr(_parts(function)).encode()).hexdigest()


def _text_of(module: str) -> str:
    """Returns the source of a file or an installed module, or its name if there is none."""
    if module.endswith(".py") and Path(module).exists():
        return Path(module).read_text()
    try:
        return inspect.getsource(importlib.import_module(module))
    except (ImportError, OSError, TypeError):
        return module


def _parts(value: Any, seen: tuple[int, ...] = ()) -> Any:
    """Returns what a function's results depend on.

    That is its code, the functions of its module that it names, and the values bound to it by
    defaults, a closure or `partial`. A value without a repr of its own has an address in it, so
    that nothing of an earlier process is taken for the same.
    """
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))  # their order changes from process to process
    if not callable(value) or isinstance(value, type):
        return repr(value)
    if id(value) in seen:
        return "itself"
    seen = (*seen, id(value))
    bound = [(name, _parts(item, seen)) for name, item in sorted(_held(value).items())]
    code = getattr(value, "__code__", None)
    # two functions may stand on one line: constants tell them apart
    consts = [_parts(each) for each in code.co_consts if not inspect.iscode(each)] if code else []
    return _source(value), code and code.co_code, consts, bound


def _held(value: Any) -> dict[str, Any]:
    """Returns the values that something callable was given beforehand, by a name for each."""
    if isinstance(value, functools.partial):
        arguments = {str(place): each for place, each in enumerate(value.args)}
        return {"": value.func, **arguments, **value.keywords}
    if inspect.ismethod(value):
        return {"": value.__func__, "self": value.__self__}
    if not inspect.isfunction(value):
        return dict(getattr(value, "__dict__", {"": repr(value)}))
    names = inspect.getclosurevars(value)
    own = {
        name: each
        for name, each in names.globals.items()
        if getattr(each, "__module__", "") == value.__module__ or isinstance(each, PLAIN)
    }
    defaults = {f"default {i}": each for i, each in enumerate(value.__defaults__ or ())}
    return {**own, **names.nonlocals, **defaults, **(value.__kwdefaults__ or {})}


def _source(value: Any) -> str:
    code = getattr(value, "__code__", None)
    try:
        return inspect.getsource(value if code else type(value))
    except (OSError, TypeError):
        name = getattr(value, "__qualname__", type(value).__qualname__)
        return f"{name} {code and (code.co_names, code.co_consts)}"
