"""How a process ends: signals, closed and full streams, full disks, paths of no use."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from recipes import Heard, recipe_values, result_of, write_recipe
from said import small

import mergetomix as m2m
from mergetomix.errors import Fault, RecipeError
from mergetomix.recipe.recipe import parse
from mergetomix.records import Mixture
from mergetomix.report import files
from mergetomix.session.session import open_session
from mergetomix.store.disk import is_no_space

COMMAND = [sys.executable, "-m", "mergetomix"]
AGAIN = "what was computed is in the store"


def shell(line: str, *arguments: object, **how: Any) -> subprocess.CompletedProcess[str]:
    """Runs a line of bash in which "$@" is the command."""
    command = ["bash", "-o", "pipefail", "-c", line, "bash", *COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **how)


# --- streams


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('"$@" | head -1', 0),
        ('"$@" | true', 0),
        ('"$@" >&-', 0),
        ('"$@" 2>&-', 0),
        ('"$@" >&- 2>&-', 0),
        ('"$@" <&- >&- 2>&-', 0),
        ('"$@" 2>/dev/full', 0),
        ('"$@" >/dev/full', 1),
        ('"$@" >/dev/full 2>/dev/full', 1),
    ],
)
def test_streams_that_end_leave_no_traceback(line: str, code: int) -> None:
    done = shell(line, "schema")
    assert done.returncode == code, done.stderr
    said = [each for each in done.stderr.splitlines() if each]
    wanted = ["error: standard output cannot be written: No space left on device"]
    assert said == (wanted if code and "2>" not in line else [])


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", ['"$@" >/dev/full 2>/dev/full', '"$@" >&- 2>&-', '"$@" 2>&1 | true']
)
def test_a_run_whose_streams_end_goes_on(tmp_path: Path, line: str) -> None:
    path = write_recipe(tmp_path, recipe_values(tmp_path))
    shell(line, "run", path)
    for _ in range(600):
        if (tmp_path / "run" / "report.md").exists():
            break
        time.sleep(0.2)
    assert result_of(tmp_path)["selected"]["datasets"]


# --- signals


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_run_in_order(tmp_path: Path, name: str) -> None:
    values = recipe_values(tmp_path)
    values["train"]["max_steps"] = 5000
    path = write_recipe(tmp_path, values)
    number = getattr(signal, name)

    def hears() -> None:
        signal.signal(number, signal.SIG_DFL)  # whatever the tests' own process ignores

    with subprocess.Popen(
        [*COMMAND, "run", path], stderr=subprocess.PIPE, text=True, preexec_fn=hears
    ) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if line.startswith("experts: expert a"))
        process.send_signal(number)
        errors = process.stderr.read()
        process.wait(timeout=120)
    assert process.returncode == 1
    assert "error: interrupted" in errors and AGAIN in errors and "Traceback" not in errors
    shown = shell('"$@"', "status", path).stdout
    assert "interrupted" in shown


def test_what_ignores_hangups_goes_on(tmp_path: Path) -> None:
    """As `nohup` starts a process."""
    script = (
        "import signal, sys\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "sys.argv = ['mergetomix', '--version']\n"
        "from mergetomix.cli import main\n"
        "try: main.main()\n"
        "except SystemExit: pass\n"
        "print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == "True"


def test_where_nothing_was_computed_no_hint_says_so(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from mergetomix.cli import commands, main\n"
        "def broken(): raise {error}\n"
        "commands.mergetomix.Recipe.model_json_schema = staticmethod(broken)\n"
        "sys.argv = ['mergetomix', 'schema']\n"
        "main.main()\n"
    )
    for error in ("OSError(5, 'Input/output error')", "KeyError(1)", "main.Interrupted()"):
        text = script.format(error=error)
        done = subprocess.run(
            [sys.executable, "-c", text], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "error: " in done.stderr and AGAIN not in done.stderr


# --- disks


@pytest.mark.parametrize("number", [27, 28, 122])
def test_a_file_too_large_is_a_full_disk(number: int) -> None:
    assert is_no_space(OSError(number, os.strerror(number)))
    wrapped = RuntimeError(f"I/O error: {os.strerror(number)} (os error {number})")
    assert is_no_space(wrapped)
    assert not is_no_space(OSError(13, os.strerror(13)))


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))


@pytest.mark.slow
def test_a_limit_on_files_is_one_message(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, recipe_values(tmp_path))
    done = shell('"$@"', "run", path, preexec_fn=limit_files)
    assert done.returncode in (1, 2)
    assert "disk full while writing" in done.stderr and "Traceback" not in done.stderr
    assert shell('"$@"', "run", path).returncode == 0


def test_a_full_disk_of_the_runs_folder_names_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write: Callable[..., int] = Path.write_text

    def full(self: Path, *args: Any, **how: Any) -> int:
        if "report.md" in self.name:
            raise OSError(28, "No space left on device")
        return write(self, *args, **how)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(Fault) as caught:
        files.put(tmp_path / "report.md", "text")
    assert caught.value.message == (
        f"disk full: {tmp_path / 'report.md'} cannot be written: No space left on device"
    )
    assert "run_dir" in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_the_users(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    recipe = parse(small(run_dir=str(tmp_path / "file" / "run")))
    with pytest.raises(RecipeError, match=r"^run_dir: .*cannot be made: Not a directory"):
        files.begin(recipe)


def test_a_folder_that_cannot_be_written_is_the_users(tmp_path: Path) -> None:
    (tmp_path / "run" / "recipe.yaml").mkdir(parents=True)
    with pytest.raises(RecipeError, match=r"^run_dir: .*cannot be written"):
        files.begin(parse(small(run_dir=str(tmp_path / "run"))))


def test_what_a_dead_process_left_of_a_file_goes(tmp_path: Path) -> None:
    from mergetomix.store.store import host_tag

    dead = subprocess.Popen(["true"])
    dead.wait()
    left = [f".report.md.{host}.{dead.pid}.abc.partial" for host in (host_tag(), "otherhost")]
    for name in left:
        (tmp_path / name).write_text("half")
    files.put(tmp_path / "report.md", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", left[1]}


# --- paths


@pytest.mark.parametrize("bad", ["x" * 300, "a\0b"])
@pytest.mark.parametrize(
    "key", ["base", "store", "run_dir", "datasets.a.path", "datasets.a.expert", "targets.t.path"]
)
def test_a_path_of_no_use_names_its_key(tmp_path: Path, key: str, bad: str) -> None:
    values = recipe_values(tmp_path)
    place: Any = values
    *parents, last = key.split(".")
    for parent in parents:
        place = place[parent]
    place[last] = f"/{bad}" if key == "base" else str(tmp_path / bad)
    with pytest.raises(RecipeError) as caught:
        parse(values, tmp_path)
    assert caught.value.where == ("base.path" if key == "base" else key)
    assert len(caught.value.message) < 500


def test_links_in_a_circle_are_the_users(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    for key in ("store", "run_dir", "base"):
        with pytest.raises(RecipeError, match=f"^{key}.*symbolic links"):
            parse(small(**{key: str(tmp_path / "one")}), tmp_path)


# --- two processes


@pytest.mark.slow
def test_what_another_process_works_on_comes_last(tmp_path: Path) -> None:
    recipe = m2m.load_recipe(write_recipe(tmp_path, recipe_values(tmp_path)))
    heard = Heard()
    with open_session(recipe, heard) as session:
        key = session.addresses.finetune(Mixture.union(["a"]))
        # a lock of another process: file locks are of an open file, not of a process
        held = FileLock(tmp_path / "store" / "locks" / f"{key}.lock")
        held.acquire()
        assert session.store.is_busy(key)
        singles = [Mixture.union([name]) for name in "abc"]
        found = session.finetunes.fit_all(singles, "experts")
        first, second = (str(next(found)[0]) for _ in range(2))
        assert [first, second] == ["b", "c"]
        held.release()
        assert [str(mixture) for mixture, _ in found] == ["a"]
        assert not session.store.is_busy(key)
    assert [text.split()[-1] for text in heard.trained()] == ["b", "c", "a"]
