"""Workers of a Ray cluster: real node processes, which die as real nodes do."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fake_work
import psutil
import pytest
from clusters import cluster, paths
from fake_work import begun, piece, training
from recipes import Heard, recipe_values, write_recipe

import mergetomix as m2m
from mergetomix.errors import DataError, RecipeError
from mergetomix.executors import on_node
from mergetomix.executors.ray_cluster import Need, RayWorkers, Site
from mergetomix.sections.executor import ExecutorSection

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install mergetomix[ray]")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    with cluster(num_nodes=2) as made:
        yield made


@contextmanager
def workers(
    seen: Path | None, opens: Any = fake_work.opened, heard: Heard | None = None, **said: Any
) -> Iterator[RayWorkers]:
    section = ExecutorSection(kind="ray", **said)
    site = Site(None if seen is None else str(seen))
    made = RayWorkers(section, lambda _: opens, site, heard or Heard(), lambda states: None)
    try:
        yield made
    finally:
        made.close()


def test_every_piece_is_done_once_by_evaluators_and_trainings(nodes: Any, tmp_path: Path) -> None:
    with workers(tmp_path) as executor:
        assert executor.num_workers == 2
        work = [
            training(i, tmp_path) if i % 3 == 0 else piece(i, "slow", tmp_path) for i in range(6)
        ]
        done = list(executor.run(work))
    assert {each.work for each in done} == set(work)
    assert {each.failure for each in done} == {None}
    assert all(len(begun(tmp_path, i)) == 1 for i in range(6))


def test_errors_are_values_and_killers_fail(nodes: Any, tmp_path: Path) -> None:
    heard = Heard()
    with workers(tmp_path, heard=heard) as executor:
        kinds = ["fails", "fails oddly", "dies once", "says"]
        work = [piece(i, what, tmp_path) for i, what in enumerate(kinds)]
        found = {each.work.key: each for each in executor.run(work)}
        with pytest.raises(DataError, match="is odd"):
            found["key0"].result()
        with pytest.raises(RuntimeError, match="Odd: odd"):
            found["key1"].result()
        assert found["key2"].failure is None and len(begun(tmp_path, 2)) == 2
        assert any("is lost while measuring" in text for text in heard.warnings)
        assert "a warning" in heard.warnings and "search: counting" in heard.tasks


def test_what_cannot_be_opened_is_said(nodes: Any, tmp_path: Path) -> None:
    with (
        workers(tmp_path, fake_work.broken) as executor,
        pytest.raises(DataError, match="is not there"),
    ):
        list(executor.run([piece(0, "quick", tmp_path)]))
    with (
        workers(tmp_path / "elsewhere") as executor,
        pytest.raises(RecipeError, match="does not see the run's store"),
    ):
        list(executor.run([training(0, tmp_path)]))


def test_other_versions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = on_node.versions()
    on_node.check_versions(wanted)
    with pytest.raises(RecipeError, match=r"has torch .* instead of 1\.0"):
        on_node.check_versions({**wanted, "torch": "1.0"})


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"cpus_per_training": 3}, "executor.cpus_per_training: a training takes 3 CPU cores, and"),
        ({"gpus_per_evaluator": 0.5}, "executor.gpus_per_evaluator: an evaluator takes"),
        ({"labels": {"kind": "large"}}, "executor.labels: none of the 2 nodes"),
    ],
)
def test_what_the_cluster_can_never_give_is_said_at_once(
    nodes: Any, said: Any, message: str
) -> None:
    with pytest.raises(RecipeError, match=message), workers(None, **said):
        pass


def test_what_fits_on_a_node() -> None:
    assert Need(2, 0).fits({"CPU": 5.0}) == 2
    assert Need(1, 0.5).fits({"CPU": 8.0, "GPU": 2.0}) == 4
    assert Need(1, 2).fits({"CPU": 8.0, "GPU": 3.0}) == 1
    assert Need(1, 1).fits({"CPU": 8.0}) == 0


def test_without_ray_it_is_said_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = recipe_values(tmp_path) | {"executor": {"kind": "ray", "address": "local"}}
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RecipeError, match=r"executor\.kind: .*pip install"):
        m2m.run(write_recipe(tmp_path, values))


def test_a_cluster_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def refused(*_: Any, **__: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", refused)
    with pytest.raises(RecipeError, match=r"executor\.address: auto: Could not find") as raised:
        m2m.run(write_recipe(tmp_path, recipe_values(tmp_path) | {"executor": {"kind": "ray"}}))
    assert "ray start --head" in str(raised.value.hint)


def processes_of(node: Any) -> list[psutil.Process]:
    found = [each.process.pid for each in node.all_processes.get("raylet", [])]
    raylets = [psutil.Process(pid) for pid in found if psutil.pid_exists(pid)]
    return [each for raylet in raylets for each in (raylet, *raylet.children(recursive=True))]


@pytest.mark.slow
def test_a_node_that_dies_takes_nothing_with_it(nodes: Any, tmp_path: Path) -> None:
    """Its evaluators' work is done elsewhere; a node that joins is used."""
    extra = nodes.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    with workers(tmp_path) as executor:
        assert executor.num_workers == 3

        def work() -> Iterator[Any]:
            for i in range(30):
                if i == 10:
                    for process in processes_of(extra):
                        process.kill()
                yield piece(i, "slow", tmp_path)

        done = list(executor.run(work()))
    assert sorted(each.work.key for each in done) == sorted(f"key{i}" for i in range(30))
    assert {each.failure for each in done} == {None}
    nodes.worker_nodes.discard(extra)


@pytest.mark.slow
def test_workers_killed_at_random_lose_nothing(nodes: Any, tmp_path: Path) -> None:
    stop, killed, rng = threading.Event(), list[int](), random.Random(0)

    def kill() -> None:
        while not stop.wait(0.7) and len(killed) < 4:
            there = []
            with suppress(psutil.Error):
                there = [
                    each.pid
                    for node in nodes.list_all_nodes()
                    for each in processes_of(node)
                    if "ray::Opened" in each.name() + " ".join(each.cmdline())
                ]
            if there:
                killed.append(rng.choice(there))
                os.kill(killed[-1], signal.SIGKILL)

    with workers(tmp_path) as executor:
        thread = threading.Thread(target=kill)
        thread.start()
        done = list(executor.run(piece(i, "slow", tmp_path) for i in range(12)))
        stop.set()
        thread.join()
    assert sorted(each.work.key for each in done) == sorted(f"key{i}" for i in range(12))
    assert {each.failure for each in done} == {None} and killed


LEADER = """
import signal, sys
sys.path[:0] = {paths!r}
from pathlib import Path
import fake_work
from recipes import Heard
from mergetomix.cli import main
from mergetomix.executors.ray_cluster import RayWorkers, Site
from mergetomix.sections.executor import ExecutorSection
folder = Path({folder!r})
env = {{"env_vars": {{"PYTHONPATH": {path!r}}}}}
section = ExecutorSection(kind="ray", address={address!r}, runtime_env=env)
signal.signal(signal.SIGINT, main._interrupt)
made = RayWorkers(
    section, lambda _: fake_work.opened, Site(), Heard(), lambda states: None
)
try:
    list(made.run([fake_work.piece(i, "forever", folder) for i in range(2)]))
finally:
    made.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda each: each.name)
def test_workers_end_with_the_process_that_leads(
    nodes: Any, tmp_path: Path, number: signal.Signals
) -> None:
    path = os.pathsep.join(paths())
    code = LEADER.format(paths=paths(), path=path, folder=str(tmp_path), address=nodes.address)
    leader = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    pids: list[int] = []
    while len(pids) < 2:
        pids = [pid for i in range(2) for pid in begun(tmp_path, i)]
        time.sleep(0.1)
        assert leader.poll() is None
    os.kill(leader.pid, number)
    leader.communicate(timeout=30)
    end = time.monotonic() + 30
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.1)
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
