"""A user's own function: found by its name, called with care, and known by its code."""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib
import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mergetomix.errors import DataError, RecipeError


def names_a_function(value: Any) -> Any:
    """Validates the name of a function in a recipe. Raises ValueError where it is none."""
    if isinstance(value, str) and not re.fullmatch(r".+:\w+", value, re.DOTALL):
        raise ValueError(f"must be module:function or file.py:function, not {value!r}")
    return value


def call(
    function: Callable[..., Any],
    model: Any,
    processor: Any,
    rows: Sequence[Mapping[str, Any]] | None,
    where: str,
) -> tuple[float, ...]:
    """What the user's function says, checked; it gets copies of the rows, and torch draws the same numbers in every call.

    Raises:
        DataError: it raises, or returns no finite numbers.
    """
    arguments = (
        (model, processor) if rows is None else (model, processor, copy.deepcopy(list(rows)))
    )
    with as_it_was(model):
        return checked(asked(lambda: function(*arguments), where), None, where)


def asked(function: Callable[[], Any], where: str) -> Any:
    """What the user's code gives. Raises DataError with what it said where it raises."""
    try:
        return function()
    except (
        Exception
    ) as error:  # the user's code may raise anything; what it says must name the target
        raise DataError(f"{where}.function", f"raised {type(error).__name__}: {error}") from error


@contextmanager
def as_it_was(model: Any) -> Iterator[None]:
    """No gradients within; the random state of torch and the mode of every module are the same after as before."""
    import torch

    modes = {module: module.training for module in model.modules()}
    with torch.no_grad(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training


def checked(values: Any, num_wanted: int | None, where: str) -> tuple[float, ...]:
    """`values` as floats. Raises DataError where one is no finite number or the count is wrong."""
    try:
        given = list(values)
        numbers = tuple(float(value) for value in given)
    except (TypeError, ValueError, RuntimeError):  # a tensor of several elements raises the last
        raise DataError(f"{where}.function", "must return one number per example") from None
    if any(isinstance(value, str | bytes) for value in given):
        raise DataError(f"{where}.function", "must return one number per example, not text")
    if not numbers or (num_wanted is not None and len(numbers) != num_wanted):
        raise DataError(
            f"{where}.function",
            f"returned {len(numbers)} scores, not {num_wanted or 'one or more'}",
        )
    bad = next((i for i, value in enumerate(numbers) if not math.isfinite(value)), None)
    if bad is not None:
        raise DataError(f"{where}.function", f"the score of example {bad} is {numbers[bad]}")
    return numbers


def load_function(function: str | Callable[..., Any] | None, where: str) -> Callable[..., Any]:
    """The function that `module:function` or `file.py:function` names. Raises RecipeError where there is none."""
    if callable(function):
        return function
    module_name, colon, name = (function or "").rpartition(":")
    if not colon:
        raise RecipeError(
            f"{where}.function", f"must be module:function or file.py:function, not {function!r}"
        )
    try:
        found = getattr(_module(module_name), name)
    except Exception as error:  # the user's file runs here and may raise anything
        message = f"{function} cannot be loaded: {type(error).__name__}: {error}"
        raise RecipeError(f"{where}.function", message) from error
    if not callable(found):
        raise RecipeError(f"{where}.function", f"{function} is not a function")
    return found  # type: ignore[no-any-return]  # checked a line above


def _module(name: str) -> Any:
    if not name.endswith(".py"):
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(f"mergetomix_user_{Path(name).stem}", name)
    if spec is None or spec.loader is None or not Path(name).exists():
        raise FileNotFoundError(f"no file {name}")
    module = importlib.util.module_from_spec(spec)
    # dataclasses and pickle look a module up by its name, which must not hide an installed one's
    module.__name__ = spec.name
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def source_of(function: str | Callable[..., Any] | None) -> str | None:
    """A fingerprint of a function's code: changing the function makes its old scores unused."""
    if function is None:
        return None
    if isinstance(function, str):
        file = function.rpartition(":")[0]
        text = (
            Path(file).read_text()
            if file.endswith(".py") and Path(file).exists()
            else _module_source(file)
        )
        return hashlib.sha256(f"{text}:{function.rpartition(':')[2]}".encode()).hexdigest()
    return hashlib.sha256(repr(_parts(function)).encode()).hexdigest()


def _parts(value: Any, seen: tuple[int, ...] = ()) -> Any:
    """What a function's results depend on: its code, the functions of its module that it names, and the values bound to it
    by defaults, a closure or `partial`.

    A value without a repr of its own has an address in it, so that nothing of an earlier process is taken for the same.
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
    consts = (
        [_parts(const) for const in code.co_consts if not inspect.iscode(const)] if code else []
    )
    return _source(value), code and code.co_code, consts, bound


def _held(value: Any) -> dict[str, Any]:
    """The values that something callable was given beforehand, by a name for each."""
    if isinstance(value, functools.partial):
        return {
            "": value.func,
            **dict(zip(map(str, range(len(value.args))), value.args, strict=True)),
            **value.keywords,
        }
    if inspect.ismethod(value):
        return {"": value.__func__, "self": value.__self__}
    if not inspect.isfunction(value):
        return dict(getattr(value, "__dict__", {"": repr(value)}))
    names = inspect.getclosurevars(value)
    own = {
        k: v
        for k, v in names.globals.items()
        if getattr(v, "__module__", "") == value.__module__ or _is_plain(v)
    }
    bound = {**own, **names.nonlocals}
    defaults = dict(enumerate(value.__defaults__ or ()))
    return {
        **bound,
        **{f"default {i}": v for i, v in defaults.items()},
        **(value.__kwdefaults__ or {}),
    }


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | bytes | int | float | tuple | list | dict | set | frozenset)


def _source(value: Any) -> str:
    code = getattr(value, "__code__", None)
    try:
        return inspect.getsource(value if code else type(value))
    except (OSError, TypeError):
        name = getattr(value, "__qualname__", type(value).__qualname__)
        return f"{name} {code and (code.co_names, code.co_consts)}"


def _module_source(name: str) -> str:
    try:
        return inspect.getsource(importlib.import_module(name))
    except (ImportError, OSError, TypeError):
        return name
