"""Runs a recipe and kills its own process, as `kill -9` would, at a given moment.

Usage: killed_run.py RECIPE MOMENT. A moment is a number of steps of work: an optimizer step, an
artifact begun, renamed or recorded, a trial before and after it is written, a file of the report.
Moment 0 never comes; the number of moments is then printed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import mergetomix
from mergetomix.report import files
from mergetomix.session.finetunes import Steps
from mergetomix.showing import Lines
from mergetomix.store.store import Store

moment = passed = 0


def tick() -> None:
    global passed
    passed += 1
    if passed == moment:
        os.kill(os.getpid(), signal.SIGKILL)


def around(owner: Any, name: str) -> None:
    original: Callable[..., Any] = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        tick()
        result = original(*args, **kwargs)
        tick()
        return result

    setattr(owner, name, wrapped)


if __name__ == "__main__":
    moment = int(sys.argv[2])
    around(Steps, "__call__")
    around(os, "rename")
    around(Store, "add_finetune")
    around(Store, "add_scores")
    around(files, "put")
    mergetomix.run(sys.argv[1], Lines())
    print(f"moments {passed}")
