"""Kills at every operation on a file or the ledger, and at random times; full disks; many at once.

After each the same command goes on to the end, and must come to the result of a run that nothing
disturbed.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from processes import (
    child,
    count_moments,
    done,
    import_what_was,
    killed_after,
    killed_at,
    outcome,
    wait,
)
from tiny_runs import WORLDS, World

from mergetomix.store import repair
from mergetomix.store.store import Store


@dataclass
class Counts:
    """How many things were tried, and which went wrong, each with how to see it again."""

    tried: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, what: str, problem: str | None) -> None:
        """Notes one thing that was tried."""
        self.tried += 1
        if problem is not None:
            self.wrong.append(f"{what}: {problem}")
            print(f"WRONG {what}: {problem}", flush=True)


class Undisturbed:
    """A world that was left alone: its result, how long it took, how many moments it has."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.world = name, WORLDS[name]
        self.folder = folder
        recipe = self.world.write(folder / "undisturbed")
        pid = child(recipe, self.world.does, lambda: count_moments(recipe.parent, 0))
        code = wait(pid)
        if code:
            log = (recipe.parent / "log.txt").read_text()
            raise RuntimeError(f"{name} ends with {code} when nothing disturbs it:\n{log}")
        self.result = outcome(recipe, self.world.does)
        self.num_moments = int((recipe.parent / "moments.txt").read_text())
        import_what_was(recipe)
        started = time.monotonic()
        if code := done(self.world.write(folder / "again"), self.world.does):
            raise RuntimeError(f"{name} ends with {code} the second time")
        self.seconds = time.monotonic() - started

    def fresh(self) -> Iterator[Path]:
        """Yields the recipe in a new folder, which goes."""
        folder = Path(tempfile.mkdtemp(dir=self.folder)) / "world"
        try:
            yield self.world.write(folder)
        finally:
            shutil.rmtree(folder.parent, ignore_errors=True)

    def problem(self, recipe: Path) -> str | None:
        """Goes on to the end, and returns what is not as it should be."""
        code = done(recipe, self.world.does)
        # a merge writes to no folder that is there: it was done before the kill
        is_there = self.world.does == "merge" and code == 2
        if code and not is_there:
            log = (recipe.parent / "log.txt").read_text().strip().splitlines()
            return f"going on ends with {code}: {' | '.join(log[-3:])}"
        if outcome(recipe, self.world.does) != self.result:
            return "another result than that of an undisturbed run"
        return untidy(recipe.parent, self.world)


def untidy(folder: Path, world: World) -> str | None:
    """Returns what a run left behind that it should not have."""
    if alive := workers_of(folder):
        return f"the processes {alive} are left"
    os.environ["MERGETOMIX_CACHE"] = str(folder / "cache")
    place = world.store(folder)
    with Store(place) as store:
        left = list((store.path / "tmp").iterdir())
        shared = store.shared
        if shared is not None:
            named = set(store._ledger.execute("SELECT key, token FROM places"))
            if others := shared.mirror.folders() - named:
                return f"{others} are left on the shared storage"
    if left:
        return f"{left[0].name} is left in the store's tmp"
    partial = [path for path in folder.rglob("*.partial") if path.name.startswith(".")]
    if partial:
        return f"{partial[0]} is left"
    damaged = repair.verify(place)
    return damaged[0] if damaged else None


def workers_of(folder: Path) -> list[int]:
    """Returns the processes that still work for a run in a folder, after a moment to end."""
    end = time.monotonic() + 10
    while True:
        found = []
        for process in psutil.process_iter(["cmdline", "cwd"]):
            said = " ".join(process.info["cmdline"] or [])
            if "mergetomix.executors" in said and process.info["cwd"] == str(folder):
                found.append(process.pid)
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.2)


def at_moments(undisturbed: Undisturbed, num: int, counts: Counts) -> None:
    """Kills at `num` of a run's moments, evenly spread, one run each."""
    last = undisturbed.num_moments
    moments = sorted({1 + round(i * (last - 1) / max(1, num - 1)) for i in range(num)})
    for moment in moments:
        for recipe in undisturbed.fresh():
            code = killed_at(recipe, undisturbed.world.does, moment)
            # threads of libraries may make the number of moments another
            problem = undisturbed.problem(recipe) if code in (-9, 0) else f"ends with {code}"
            counts.add(f"{undisturbed.name}, kill at moment {moment} of {last}", problem)


def at_times(undisturbed: Undisturbed, num: int, counts: Counts, draw: random.Random) -> None:
    """Kills after `num` random times, each of the same store several times over."""
    for attempt in range(num):
        for recipe in undisturbed.fresh():
            times = [draw.uniform(0, undisturbed.seconds) for _ in range(draw.randint(1, 3))]
            for seconds in times:
                killed_after(recipe, undisturbed.world.does, seconds)
            text = ", ".join(f"{seconds:.2f}" for seconds in times)
            what = f"{undisturbed.name}, killed {attempt} after {text} s"
            counts.add(what, undisturbed.problem(recipe))


def on_short_files(undisturbed: Undisturbed, num: int, counts: Counts) -> None:
    """Lets no file grow beyond a limit, another each time; then there is room again."""
    largest = max(file.stat().st_size for file in undisturbed.folder.rglob("*") if file.is_file())
    for step in range(num):
        limit = int(largest * (step + 1) / (num + 1))

        def narrow(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

        for recipe in undisturbed.fresh():
            code = wait(child(recipe, undisturbed.world.does, narrow))
            log = (recipe.parent / "log.txt").read_text()
            what = f"{undisturbed.name}, files of at most {limit} bytes"
            if code not in (0, 1, 2) or "Traceback" in log:
                counts.add(what, f"ends with {code}: {log.strip().splitlines()[-1:]}")
            else:
                counts.add(what, undisturbed.problem(recipe))


def on_full_disks(undisturbed: Undisturbed, num: int, counts: Counts) -> None:
    """Fills the disk of the store while a run writes to it, another time each; then it has room.

    The disk is one in memory, which root alone may mount, on Linux; else nothing is tried. One that
    is too small from the start is refused before anything is trained.
    """
    for step in range(num if os.geteuid() == 0 and shutil.which("mount") else 0):
        seconds = undisturbed.seconds * (step + 1) / (num + 1)
        for recipe in undisturbed.fresh():
            store = recipe.parent / "store"
            store.mkdir()
            if mount("-t", "tmpfs", "-o", "size=2G", "tmpfs", store):
                return
            try:
                pid = child(recipe, undisturbed.world.does)
                time.sleep(seconds)
                disk = os.statvfs(store)
                used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
                mount("-o", f"remount,size={used + disk.f_frsize}", store)
                code = wait(pid)
                log = (recipe.parent / "log.txt").read_text()
                mount("-o", "remount,size=2G", store)
                problem = undisturbed.problem(recipe)
                if code not in (0, 1, 2) or "Traceback" in log:
                    problem = f"ends with {code}: {log.strip().splitlines()[-1:]}"
                elif code and str(store) not in log:
                    problem = f"does not name the disk: {log.strip().splitlines()[-1:]}"
            finally:
                mount("-o", "remount,size=2G", store)
                subprocess.run(["umount", "--lazy", store], check=False)
            what = f"{undisturbed.name}, a disk that is full after {seconds:.2f} s"
            counts.add(what, problem)


def mount(*arguments: str | Path) -> int:
    """Runs the system's mount, and returns its exit code."""
    return subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode


def at_once(undisturbed: Undisturbed, num: int, counts: Counts) -> None:
    """Runs 2 to 4 processes on one store; some of them are killed, and all end alike."""
    draw = random.Random(num)
    for attempt in range(num):
        for recipe in undisturbed.fresh():
            pids = [child(recipe, undisturbed.world.does) for _ in range(2 + attempt % 3)]
            if attempt % 2:
                time.sleep(draw.uniform(0, undisturbed.seconds))
                os.kill(pids[0], 9)
            codes = [wait(pid) for pid in pids]
            bad = [code for code in codes[attempt % 2 :] if code]
            log = (recipe.parent / "log.txt").read_text().strip().splitlines()
            said = f"ends with {bad[:1]}: {' | '.join(log[-12:])}"
            problem = said if bad else undisturbed.problem(recipe)
            counts.add(f"{undisturbed.name}, {len(pids)} at once, {attempt}", problem)


def all_of(names: list[str], num_kills: int, folder: Path, seed: int) -> dict[str, Counts]:
    """Disturbs some worlds, with `num_kills` kills in all; returns the counts by kind."""
    found: dict[str, Any] = {
        kind: Counts()
        for kind in ("at a moment", "at a time", "files cut short", "full disk", "at once")
    }
    draw = random.Random(seed)
    each = max(1, num_kills // len(names))
    for name in names:
        undisturbed = Undisturbed(name, folder / name)
        print(f"{name}: {undisturbed.num_moments} moments, {undisturbed.seconds:.1f} s", flush=True)
        at_moments(undisturbed, max(1, 3 * each // 4), found["at a moment"])
        at_times(undisturbed, each // 4, found["at a time"], draw)
        if not undisturbed.world.is_shared:
            on_short_files(undisturbed, max(1, each // 20), found["files cut short"])
            on_full_disks(undisturbed, max(1, each // 20), found["full disk"])
        # of two merges one finds its folder taken, as it should, and one process writes to storage
        if undisturbed.world.does != "merge" and not undisturbed.world.is_shared:
            at_once(undisturbed, max(1, each // 20), found["at once"])
        print({kind: f"{each.tried}, {len(each.wrong)} wrong" for kind, each in found.items()})
        shutil.rmtree(folder / name, ignore_errors=True)
    return found


__all__ = ["WORLDS", "World", "all_of"]
