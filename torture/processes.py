"""Children of this process that work on a recipe and die at a moment: forks, so that they start
at once with everything imported.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import recipes

import mergetomix as m2m
from mergetomix.errors import MergeToMixError
from mergetomix.store.ledger import Ledger
from mergetomix.study import document, study

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
EVENTS = (
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.chmod",
    "os.link",
    "os.symlink",
    "os.truncate",
    "shutil.copyfile",
    "shutil.rmtree",
    "shutil.move",
)


def work(recipe: Path, does: str) -> None:
    """Does what a world is about, in this process."""
    if does == "run":
        m2m.run(recipe)
    elif does == "merge":
        m2m.write_proxy(recipe, ["a", "c"], recipe.parent / "run" / "merged")
    elif does == "study":
        found = study.run(m2m.load_recipe(recipe))
        document.write(found, recipe.parent / "run" / "study")


def outcome(recipe: Path, does: str) -> Any:
    """Returns what came out, but for times: equal things were done to equal ends."""
    folder = recipe.parent
    if does == "run":
        return recipes.without_times(recipes.result_of(folder), folder)
    if does == "merge":
        files = sorted((folder / "run" / "merged").glob("*.safetensors"))
        return [(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]
    text = next((folder / "run").rglob("study.json")).read_text()
    return json.loads(text)["worlds"]


def child(recipe: Path, does: str, prepare: Callable[[], None] = lambda: None) -> int:
    """Starts a child that works on a recipe, and returns its number; its log lies beside it."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        log = os.open(recipe.parent / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(recipe.parent)
        os.environ["MERGETOMIX_CACHE"] = str(recipe.parent / "cache")
        prepare()
        work(recipe, does)
        (recipe.parent / "modules.json").write_text(json.dumps(sorted(sys.modules)))
        code = 0
    except MergeToMixError as error:
        print(f"error: {error}", flush=True)
        code = error.exit_code
    except BaseException:  # noqa: BLE001  # whatever it is, the parent is told
        traceback.print_exc()
        code = 70
    finally:
        os._exit(code)


def import_what_was(recipe: Path) -> None:
    """Imports in this process what a child has imported, so that the next ones need not."""
    for name in json.loads((recipe.parent / "modules.json").read_text()):
        with suppress(Exception):  # of some other system, or of the child alone
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what a child's collector touches is copied


def wait(pid: int) -> int:
    """Returns how a child ended: its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def done(recipe: Path, does: str) -> int:
    """Works on a recipe in a child, to its end."""
    return wait(child(recipe, does))


def killed_at(recipe: Path, does: str, moment: int) -> int:
    """Works in a child that dies at its `moment`-th operation on a file or the ledger."""
    return wait(child(recipe, does, lambda: count_moments(recipe.parent, moment)))


def killed_after(recipe: Path, does: str, seconds: float) -> int:
    """Works in a child that is killed after some seconds."""
    pid = child(recipe, does)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return wait(pid)


def count_moments(folder: Path, last: int) -> None:
    """Kills this process at a moment: a change to a file below a folder, a statement's both ends.

    Moment 0 never comes; how many have passed then stands in `moments.txt` in the folder.
    """
    passed, inside = 0, str(folder)
    # os._exit runs no exit functions: the count is written as it grows
    counter = os.open(folder / "moments.txt", os.O_WRONLY | os.O_CREAT) if not last else -1

    def tick() -> None:
        nonlocal passed
        passed += 1
        if passed == last:
            os.kill(os.getpid(), signal.SIGKILL)
        if not last:
            os.pwrite(counter, b"%d" % passed, 0)

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & WRITES
            if writes and inside in str(path):
                tick()
        elif event in EVENTS and any(inside in str(each) for each in arguments):
            tick()

    execute = Ledger.execute

    def counted(self: Ledger, sql: str, parameters: Any = (), **options: Any) -> list[Any]:
        if not sql.lstrip().upper().startswith(("SELECT", "PRAGMA")):
            tick()
            found = execute(self, sql, parameters, **options)
            tick()
            return found
        return execute(self, sql, parameters, **options)

    Ledger.execute = counted  # type: ignore[method-assign]  # this process ends soon
    sys.addaudithook(hear)
