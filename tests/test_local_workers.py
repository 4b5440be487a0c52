"""Workers on this machine: what becomes of work, of errors, and of processes that die."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fake_work
import psutil
import pytest
from fake_work import begun, piece, training
from recipes import Heard

from mergetomix.errors import DataError, Fault, RecipeError
from mergetomix.executors import choose
from mergetomix.executors.choose import local_places
from mergetomix.executors.local import LocalWorkers, Slot
from mergetomix.executors.states import WorkerState
from mergetomix.executors.work import Done
from mergetomix.executors.workers import MOST_DEATHS
from mergetomix.sections.executor import ExecutorSection

States = list[list[WorkerState]]


@contextmanager
def workers(
    folder: Path, num: int, opens: Any = fake_work.opened, heard: Heard | None = None
) -> Iterator[LocalWorkers]:
    places = [Slot(f"place {i}", {"WHERE": str(i)}, None) for i in range(num)]
    made = LocalWorkers(opens, places, folder / "logs", heard or Heard(), lambda states: None)
    try:
        yield made
    finally:
        made.close()


def children() -> list[psutil.Process]:
    found = []
    for each in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "mergetomix.executors.worker" in " ".join(each.cmdline()):
                found.append(each)
    return found


def gone(pids: list[int], within_s: float = 10.0) -> bool:
    end = time.monotonic() + within_s
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(psutil.pid_exists, pids))


def test_every_piece_is_done_once_and_workers_work_at_the_same_time(tmp_path: Path) -> None:
    with workers(tmp_path, 3) as executor:
        work = [piece(i, "slow", tmp_path) for i in range(6)]
        done = list(executor.run(work))
    assert {each.work for each in done} == set(work)
    pids = [begun(tmp_path, i) for i in range(6)]
    assert all(len(each) == 1 for each in pids)
    assert len({each for (each,) in pids}) == 3
    assert not children()


def test_no_more_workers_start_than_there_is_work(tmp_path: Path) -> None:
    with workers(tmp_path, 4) as executor:
        list(executor.run([piece(0, "quick", tmp_path)]))
        assert len(children()) == 1
        list(executor.run([piece(1, "quick", tmp_path)]))
        assert begun(tmp_path, 0) == begun(tmp_path, 1)


def test_errors_are_values_with_their_place(tmp_path: Path) -> None:
    with workers(tmp_path, 2) as executor:
        work = [piece(0, "fails", tmp_path), piece(1, "fails oddly", tmp_path)]
        found = {each.work.key: each for each in executor.run(work)}
        (after,) = executor.run([piece(2, "quick", tmp_path)])
    assert after.failure is None
    with pytest.raises(DataError, match="is odd") as raised:
        found["key0"].result()
    assert raised.value.hint == "mend it" and raised.value.where == "datasets.a"
    with pytest.raises(RuntimeError, match="Odd: odd") as other:
        found["key1"].result()
    assert "fake_work.py" in "".join(other.value.__notes__)


def test_work_of_a_worker_that_dies_is_done_again(tmp_path: Path) -> None:
    heard = Heard()
    with workers(tmp_path, 2, heard=heard) as executor:
        work = [piece(i, "dies once" if i == 1 else "slow", tmp_path) for i in range(4)]
        done = list(executor.run(work))
    assert [each.failure for each in done] == [None] * 4
    assert len(begun(tmp_path, 1)) == 2 and len(begun(tmp_path, 0)) == 1
    (warning,) = heard.warnings
    assert "was ended by signal 9 while measuring the dies once of a" in warning


def test_work_that_kills_every_worker_fails_with_what_to_lower(tmp_path: Path) -> None:
    with workers(tmp_path, 2) as executor:
        work = [piece(0, "dies", tmp_path), piece(1, "quick", tmp_path)]
        found = {each.work.key: each for each in executor.run(work)}
    assert found["key1"].failure is None
    assert len(begun(tmp_path, 0)) == MOST_DEATHS
    with pytest.raises(Fault, match="signal 9") as raised:
        found["key0"].result()
    assert "batch_tokens" in str(raised.value.hint) and "memory" in str(raised.value.hint)


def test_what_cannot_be_opened_is_said_once(tmp_path: Path) -> None:
    with (
        workers(tmp_path, 2, fake_work.broken) as executor,
        pytest.raises(DataError, match="is not there"),
    ):
        list(executor.run([piece(0, "quick", tmp_path)]))
    assert not children()


def test_workers_that_die_before_they_are_ready_end_the_run(tmp_path: Path) -> None:
    with (
        workers(tmp_path, 1, fake_work.deadly) as executor,
        pytest.raises(Fault, match="before it was ready") as raised,
    ):
        list(executor.run([piece(0, "quick", tmp_path)]))
    assert "out of luck" in str(raised.value.hint)


def test_killed_at_random_every_piece_is_done(tmp_path: Path) -> None:
    rng, stop = random.Random(0), threading.Event()
    killed: list[int] = []

    def kill() -> None:
        while not stop.wait(0.15) and len(killed) < 20:
            there = children()
            if there:
                pid = rng.choice(there).pid
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    with workers(tmp_path, 3) as executor:
        thread = threading.Thread(target=kill)
        thread.start()
        done = list(executor.run(piece(i, "quick", tmp_path) for i in range(4000)))
        stop.set()
        thread.join()
    assert len(done) == 4000 and {each.failure for each in done} == {None}
    assert len(killed) >= 3


def test_a_run_within_a_run_gets_its_own_results(tmp_path: Path) -> None:
    inner: list[str] = []
    with workers(tmp_path, 2) as executor:

        def outer() -> Iterator[Any]:
            for i in range(4):
                inner.extend(
                    each.work.key for each in executor.run([piece(100 + i, "quick", tmp_path)])
                )
                yield piece(i, "slow", tmp_path)

        keys = [each.work.key for each in executor.run(outer())]
    assert sorted(keys) == [f"key{i}" for i in range(4)]
    assert inner == [f"key{100 + i}" for i in range(4)]


def test_what_nobody_waits_for_any_more_is_dropped(tmp_path: Path) -> None:
    with workers(tmp_path, 2) as executor:
        run = executor.run(piece(i, "slow", tmp_path) for i in range(10))
        next(run)
        run.close()
        (done,) = executor.run([piece(20, "quick", tmp_path)])
    assert done.work.key == "key20"
    assert sum(bool(begun(tmp_path, i)) for i in range(10)) <= 4


def test_what_is_done_is_handed_over_before_more_is_taken(tmp_path: Path) -> None:
    """Whoever asked keeps it first: of trainings strictly, else one piece of work is ahead."""
    order: list[str] = []

    def work(make: Any) -> Iterator[Any]:
        for i in range(4):
            order.append(f"taken {i}")
            yield make(i)

    with workers(tmp_path, 1) as executor:
        for done in executor.run(work(lambda i: training(i, tmp_path))):
            order.append(f"kept {done.work.key[-1]}")
        assert order == [f"{what} {i}" for i in range(4) for what in ("taken", "kept")]
        order.clear()
        for done in executor.run(work(lambda i: piece(i, "quick", tmp_path))):
            order.append(f"kept {done.work.key[-1]}")
    assert [each for each in order if "kept" in each] == [f"kept {i}" for i in range(4)]
    assert all(order.index(f"kept {i}") < order.index(f"taken {i + 2}") for i in range(2))


def test_progress_lines_and_states_come_through(tmp_path: Path) -> None:
    heard, states = Listening(), list[list[tuple[str, str, int]]]()
    places = [Slot("place 0", {}, None)]

    def busy(now: Any) -> None:
        states.append([(each.doing, each.place, each.num_done) for each in now])

    made = LocalWorkers(fake_work.opened, places, tmp_path, heard, busy)
    try:
        list(made.run([piece(0, "says", tmp_path)]))
    finally:
        made.close()
    assert heard.tasks == ["search: counting"] and heard.units == 3
    assert heard.lines == ["a line"] and heard.warnings == ["a warning"]
    assert [("measuring the says of a", "place 0", 0)] in states
    assert [("", "place 0", 1)] in states and states[-1] == []


class Listening(Heard):
    """Counts units and lines, too."""

    def __init__(self) -> None:
        super().__init__()
        self.units, self.lines = 0, list[str]()

    @contextmanager
    def task(self, stage: str, text: str, total: int) -> Iterator[Any]:
        def advance(units: int) -> None:
            self.units += units

        with super().task(stage, text, total):
            yield advance

    def note(self, text: str) -> None:
        self.lines.append(text)


# --- ends


LEADER = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
import fake_work
from recipes import Heard
from mergetomix.cli import main
from mergetomix.executors.local import LocalWorkers, Slot
folder = Path({folder!r})
places = [Slot(str(i), {{}}, None) for i in range(2)]
made = LocalWorkers(fake_work.opened, places, folder, Heard(), lambda states: None)
import signal
signal.signal(signal.SIGINT, main._interrupt)
try:
    list(made.run([fake_work.piece(i, "forever", folder) for i in range(2)]))
finally:
    made.close()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda each: each.name)
def test_workers_end_with_the_process_that_leads(tmp_path: Path, number: signal.Signals) -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    code = LEADER.format(paths=[os.path.dirname(here), here], folder=str(tmp_path))
    leader = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    pids: list[int] = []
    while len(pids) < 2:
        pids = [pid for i in range(2) for pid in begun(tmp_path, i)]
        time.sleep(0.05)
        assert leader.poll() is None
    os.kill(leader.pid, number)
    leader.communicate(timeout=20)
    assert gone(pids)


# --- places


def section(**values: Any) -> ExecutorSection:
    return ExecutorSection(**values)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def given(names: str) -> None:
        found = tuple(names.split(",")) if names else ()
        monkeypatch.setattr(choose, "visible_gpus", lambda: found)

    return given


@pytest.mark.parametrize(
    ("said", "visible", "wanted"),
    [
        ({}, "0", [{}]),
        ({}, "0,1,2,3", ["0", "1", "2", "3"]),
        ({"devices": [1, 3]}, "4,5,6,7", ["5", "7"]),
        ({"devices": [1]}, "4,5", ["5"]),
        ({"workers": 2}, "GPU-a,GPU-b,GPU-c", ["GPU-a", "GPU-b"]),
    ],
)
def test_a_process_for_each_gpu(said: Any, visible: str, wanted: list[Any], gpus: Any) -> None:
    gpus(visible)
    found = [
        each.environment.get("CUDA_VISIBLE_DEVICES")
        for each in local_places(section(**said), "cuda")
    ]
    assert found == [None if each == {} else each for each in wanted]


@pytest.mark.parametrize(
    ("said", "device", "key"),
    [
        ({"devices": [0, 5]}, "cuda", "executor.devices: there is no GPU 5"),
        ({"devices": [0]}, "cpu", "executor.devices: names GPUs"),
        ({"workers": 3}, "cuda", "executor.workers: 3 processes for 2 GPUs"),
    ],
)
def test_devices_that_are_not_there(said: Any, device: str, key: str, gpus: Any) -> None:
    gpus("0,1")
    with pytest.raises(RecipeError, match=key):
        local_places(section(**said), device)


def test_processes_on_a_cpu_share_its_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    assert [each.threads for each in local_places(section(workers=3), "cpu")] == [
        max(1, cores // 3)
    ] * 3
    assert [each.threads for each in local_places(section(workers=2, threads=1), "cpu")] == [1, 1]
    assert len(local_places(section(), "cpu")) == 1


def test_done_is_plain() -> None:
    assert Done(piece(0, "quick", Path("folder"))).result() is None
