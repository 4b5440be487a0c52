"""Writes what a run leaves in its folder: recipe, `result.json`, `report.md`, the final model."""

from __future__ import annotations

import errno
import glob
import json
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from mergetomix.errors import Fault, RecipeError
from mergetomix.recipe.recipe import Recipe, dump
from mergetomix.report import page
from mergetomix.report.markdown import model_card, render
from mergetomix.report.result_json import to_dict
from mergetomix.results import Result
from mergetomix.session.session import Session
from mergetomix.store.disk import is_no_space
from mergetomix.store.manifest import MANIFEST, Manifest
from mergetomix.store.store import host_tag


def write(result: Result, recipe: Recipe) -> Path:
    """Writes everything into the run's folder and returns the folder.

    Each file appears whole or not at all.
    """
    folder = begin(recipe)
    final = result.row("final")
    if final is not None and final.path is not None:
        hand_over(Path(final.path), folder / "final", model_card(result, recipe))
    put(folder / "result.json", json.dumps(to_dict(result), indent=2) + "\n")
    put(folder / "report.md", render(result, recipe))
    put(folder / "report.html", page.render(result, recipe))
    return folder


def publish(session: Session, result: Result) -> None:
    """Writes everything, and gives trackers the final table and the reports."""
    folder, tracked = write(result, session.recipe), session.opened.tracked
    if tracked.runs:
        tracked.table("final", result.to_frame().to_dict("records"))
        tracked.files([folder / name for name in ("report.md", "report.html", "result.json")])


def begin(recipe: Recipe) -> Path:
    """Makes the run's folder and writes the resolved recipe into it.

    By the recipe, `status` finds the store while the run goes on.
    """
    folder = Path(recipe.run_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"{folder} cannot be made: {error.strerror or error}"
        raise RecipeError("run_dir", why, hint="name another folder") from None
    try:
        put(folder / "recipe.yaml", dump(recipe))
    except Fault as error:
        if "disk full" in error.message:
            raise
        raise RecipeError("run_dir", error.message, hint="name another folder") from None
    return folder


def hand_over(source: Path, to: Path, card: str) -> None:
    """Makes the fine-tune in folder `source` a folder of the user's own, with a model card.

    It is a copy: what is done to it does nothing to the store. Raises `Fault` if the disk does not
    take it, or if it is not what was trained.
    """
    partial = _partial(to)
    try:
        shutil.copytree(source, partial, ignore=shutil.ignore_patterns(MANIFEST))
    except shutil.Error as error:  # it holds a line for every file
        shutil.rmtree(partial, ignore_errors=True)
        reason = str(error.args[0][0][2]).partition(": ")[0]
        raise Fault(
            f"the final model cannot be written to {to}: {reason}",
            hint=f"it is in {source}; make room, or set another run_dir, and run the same command"
            " again",
        ) from None
    if (kept := Manifest.read(source)) is not None:
        found = Manifest.of(kept.key, partial).files
        bad = sorted(name for name, each in kept.files.items() if found.get(name) != each)
        if bad:
            shutil.rmtree(partial, ignore_errors=True)
            what = f"{bad[0]} of the final model in {source} holds other bytes than were trained"
            hint = f"mergetomix store verify {source.parents[1]}, and run the same command again"
            raise Fault(what, hint=hint)
    (partial / "README.md").unlink(missing_ok=True)
    put(partial / "README.md", card)
    _place(partial, to)


def _place(partial: Path, to: Path) -> None:
    """Puts a folder where another may be; of two processes that do so the later's stays."""
    for _ in range(100):
        try:
            partial.rename(to)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            old = _partial(to)
            with suppress(FileNotFoundError):
                to.rename(old)
            shutil.rmtree(old, ignore_errors=True)
        else:
            return
    raise Fault(f"{to} cannot be written: others write to it all the time")


def _partial(path: Path) -> Path:
    """Returns a new place beside a path to write to; what dead processes left there goes."""
    import psutil

    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        host, pid = left.name.split(".")[-4:-2]
        if host == host_tag() and pid.isdigit() and not psutil.pid_exists(int(pid)):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
    mine = f"{host_tag()}.{os.getpid()}.{secrets.token_hex(4)}"
    return path.with_name(f".{path.name}.{mine}.partial")


def put(path: Path, text: str) -> None:
    """Writes a file whole or not at all. Raises Fault if the disk does not take it."""
    partial = _partial(path)
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        what = "disk full: " if is_no_space(error) else ""
        message = f"{what}{path} cannot be written: {error.strerror or error}"
        hint = "make room, or set another run_dir, and run the same command again"
        raise Fault(message, hint=hint) from None
