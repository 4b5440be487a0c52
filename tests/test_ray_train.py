"""Trainings of several processes on a Ray cluster: on several nodes, with the errors of each."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from clusters import cluster
from fake_work import begun, note, training
from recipes import Heard, recipe_values, write_recipe

import mergetomix as m2m
from mergetomix import launch
from mergetomix.errors import DataError, RecipeError
from mergetomix.executors.ray_cluster import RayWorkers, Site
from mergetomix.executors.work import CarryOut, Done, FinetuneResult, FinetuneWork, Work
from mergetomix.progress import Listener
from mergetomix.records import Mixture
from mergetomix.sections.executor import ExecutorSection
from mergetomix.sections.train import Launch
from mergetomix.session.session import open_session

pytest.importorskip("ray", reason="Ray is not installed: pip install mergetomix[ray]")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    with cluster(num_nodes=2) as made:
        yield made


@contextmanager
def opened(listener: Listener, what: str) -> Iterator[CarryOut]:
    """Opens nothing; a training adds up what its processes say, unless the second does `what`."""
    import ray
    import torch.distributed

    if what == "cannot open":
        raise DataError("datasets.a.path", "is not there")

    def carry_out(work: Work) -> FinetuneResult:
        assert isinstance(work, FinetuneWork)
        rank, node = torch.distributed.get_rank(), ray.get_runtime_context().get_node_id()
        times = note(Path(work.folder), f"{work.key}.{rank}")
        note(Path(work.folder), f"{work.key}.on.{node}")
        if rank == 1 and what == "fails":
            raise DataError("datasets.a", "is odd", hint="mend it")
        if rank == 1 and what == "dies once" and times == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        with listener.task("experts", f"training as {rank}", 1) as advance:
            advance(1)
        total = torch.tensor(float(rank + 1))
        torch.distributed.all_reduce(total)  # the others wait here for one that fails
        return FinetuneResult("", int(total), rank, 0.0)

    yield carry_out


def trained(folder: Path, what: str, num: int = 2, processes: int = 2) -> tuple[list[Done], Heard]:
    heard = Heard()
    joins = partial(launch.join, Launch(processes=processes), "cpu")
    site = Site(seen=str(folder), processes=processes, joins=joins)
    opens = partial(opened, what=what)
    section = ExecutorSection(kind="ray")
    made = RayWorkers(section, lambda _: opens, site, heard, lambda states: None)
    try:
        return list(made.run(training(i, folder) for i in range(num))), heard
    finally:
        made.close()


def test_the_processes_of_a_training_are_on_several_nodes(nodes: Any, tmp_path: Path) -> None:
    done, heard = trained(tmp_path, "well")
    assert {each.failure for each in done} == {None}
    assert [each.outcome for each in done] == [FinetuneResult("", 3, 0, 0.0)] * 2
    assert all(len(begun(tmp_path, f"{i}.{rank}")) == 1 for i in range(2) for rank in range(2))
    assert all(len(list(tmp_path.glob(f"key{i}.on.*"))) == 2 for i in range(2))
    assert heard.tasks == ["experts: training as 0"] * 2


def test_the_error_of_a_process_is_that_of_the_training(nodes: Any, tmp_path: Path) -> None:
    (done,), _ = trained(tmp_path, "fails", num=1)
    assert done.failure is not None
    assert "in carry_out" in done.failure.traceback and "process " in done.failure.worker
    with pytest.raises(DataError, match=r"datasets\.a: is odd") as raised:
        done.result()
    assert raised.value.hint == "mend it"


def test_what_a_process_cannot_open_is_said(nodes: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not there"):
        trained(tmp_path, "cannot open", num=1)


def test_a_training_that_loses_a_process_is_done_again(nodes: Any, tmp_path: Path) -> None:
    (done,), heard = trained(tmp_path, "dies once", num=1)
    assert done.failure is None and done.outcome == FinetuneResult("", 3, 0, 0.0)
    assert len(begun(tmp_path, "0.1")) == 2
    assert any("is done again" in text for text in heard.warnings)


def test_more_processes_than_the_cluster_has_room_for(nodes: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train\.launch\.processes: .* 3 processes with 1 CPU"):
        trained(tmp_path, "well", processes=3)


def test_a_recipe_is_trained_as_by_one_process(nodes: Any, tmp_path: Path) -> None:
    """By two processes on two nodes, with the model of one, up to rounding."""
    found = {}
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        values = recipe_values(folder)
        values["train"]["gradient_accumulation"] = 2
        if name == "two":
            values["executor"] = {"kind": "ray"}
            values["train"]["launch"] = {"processes": 2, "sharding": "fsdp2"}
        with open_session(m2m.load_recipe(write_recipe(folder, values))) as session:
            record = session.finetunes.fit(Mixture.union(["a", "b"]), "experts")
            model = session.inputs.family.load_finetune(record.path)
        found[name] = record, dict(model.named_parameters())
        left = [path.name for path in (folder / "store").rglob("*attempt*")]
        assert not left
    (record, wanted), (other, given) = found["one"], found["two"]
    assert (record.key, record.num_tokens) == (other.key, other.num_tokens)
    with open_session(m2m.load_recipe(folder / "recipe.yaml")) as session:
        base = dict(session.inputs.family.load().named_parameters())
    away = torch.cat([(given[key] - each).flatten() for key, each in wanted.items()])
    moved = torch.cat([(each - base[key]).flatten() for key, each in wanted.items()])
    # Adam makes much of single params whose gradient is next to nothing
    assert moved.norm() > 1e-2 and away.norm() < 1e-3 * moved.norm()
