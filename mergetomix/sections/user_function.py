"""A function of the user's: how a recipe names it, and how it is found."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator

from mergetomix.errors import RecipeError


def _named(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(r".+:\w+", value, re.DOTALL):
        raise ValueError(f"must be module:function or file.py:function, not {value!r}")
    return value


UserFunction: TypeAlias = Annotated[str | Callable[..., Any] | None, AfterValidator(_named)]
"""A function in a recipe: its name, or the function itself from Python."""


def load_function(function: UserFunction, where: str, key: str = "function") -> Callable[..., Any]:
    """Returns the function that `module:function` or `file.py:function` names.

    `where` and `key` are its place in the recipe, for errors.

    Raises:
        RecipeError: there is none.
    """
    if callable(function):
        return function
    module, _, name = str(function).rpartition(":")
    try:
        found: object = getattr(_module(module), name)
    except Exception as error:  # the user's file runs here and may raise anything
        message = f"{function} cannot be loaded: {type(error).__name__}: {error}"
        raise RecipeError(f"{where}.{key}", message) from error
    if callable(found):
        return found
    raise RecipeError(f"{where}.{key}", f"{function} is not a function")


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
