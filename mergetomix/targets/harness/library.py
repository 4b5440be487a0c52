"""The package lm-eval: imported only when a recipe asks for it, in the version that was tested."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from importlib import metadata, util
from pathlib import Path
from typing import Any

from mergetomix.errors import RecipeError

TESTED = "0.4.13"
"""The version whose scores ours are the same as, to the last document."""
MOST_TEMPLATES = 1024
"""Compiled templates that are kept."""
INSTALL = "pip install 'mergetomix[harness]'"
RANDOM_SEED, NUMPY_SEED = 0, 1234
"""What the command seeds Python's and numpy's generators with."""
NO_SYSTEM_TURN = "removing the system role"
"""What the harness logs when a chat template refuses a system turn, and it leaves that out."""


def require(where: str) -> None:
    """Imports lm-eval.

    Templates of task files are rendered in a sandbox from then on: they are texts, not programs.

    Raises:
        RecipeError: it is not installed, or in another version than the one that was tested.
    """
    try:
        found = metadata.version("lm_eval")
    except metadata.PackageNotFoundError:
        message = "score: harness needs the package lm-eval, which is not installed"
        raise RecipeError(f"{where}.score", message, hint=INSTALL) from None
    if found != TESTED:
        message = f"lm-eval {found} is installed, and {TESTED} is the version that was tested"
        raise RecipeError(f"{where}.score", message, hint=INSTALL)
    with quiet():
        _imported()


@cache
def _imported() -> None:
    import lm_eval.api.metrics
    import lm_eval.utils
    from jinja2.sandbox import SandboxedEnvironment

    open_one = lm_eval.utils.env
    sandbox = SandboxedEnvironment(undefined=open_one.undefined, keep_trailing_newline=True)
    sandbox.filters.update(open_one.filters)
    # lm-eval compiles a template anew for each document
    vars(sandbox)["from_string"] = lru_cache(MOST_TEMPLATES)(sandbox.from_string)
    lm_eval.utils.env = sandbox


@cache
def own_folder() -> Path:
    """Returns where the task files lie that lm-eval brings."""
    spec = util.find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).resolve().parent / "tasks"


class _Kept(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def quiet() -> Iterator[list[str]]:
    """Holds back progress bars and what lm-eval logs; gives the list of these lines."""
    import datasets
    import tqdm

    from mergetomix.models.pretrained import quiet as others

    logger, kept = logging.getLogger("lm_eval"), _Kept()
    before = logger.propagate, list(logger.handlers), logger.level
    had_bars = not datasets.are_progress_bars_disabled()
    logger.propagate, logger.handlers = False, [kept]
    logger.setLevel(logging.WARNING)
    datasets.disable_progress_bars()
    try:
        with others(), _without_bars(tqdm):
            yield kept.lines
    finally:
        logger.propagate, logger.handlers = before[:2]
        logger.setLevel(before[2])
        if had_bars:
            datasets.enable_progress_bars()


@contextmanager
def seeded() -> Iterator[None]:
    """Draws as the command does: some tasks shuffle options by the generators of all Python.

    These are as they were afterwards.
    """
    import random

    import numpy as np

    before, theirs = random.getstate(), np.random.get_state()
    random.seed(RANDOM_SEED)
    np.random.seed(NUMPY_SEED)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(theirs)


@contextmanager
def no_metrics_of_a_hub() -> Iterator[None]:
    """Keeps lm-eval from loading a metric that it does not know: it would be a program."""
    import evaluate

    def load(name: str, *_: object, **__: object) -> None:
        raise PermissionError(f"the metric {name} is code: trust_task_code: true allows it")

    before = evaluate.load
    evaluate.load = load
    try:
        yield
    finally:
        evaluate.load = before


@contextmanager
def _without_bars(tqdm: Any) -> Iterator[None]:
    """Turns the bars off that lm-eval draws while it makes requests."""
    import sys

    # the modules of lm-eval hold the function by its name
    holders = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("lm_eval.") and getattr(module, "tqdm", None) is tqdm.tqdm
    ]
    for module in holders:
        vars(module)["tqdm"] = partial(tqdm.tqdm, disable=True)
    try:
        yield
    finally:
        for module in holders:
            vars(module)["tqdm"] = tqdm.tqdm
