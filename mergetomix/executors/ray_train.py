"""One training on several processes of a Ray cluster, which may be on several nodes: Ray Train.

The task that leads such a training takes nothing of a node. It starts the processes, each of which
opens the recipe and trains its part; the first writes the model and answers for all.
"""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from mergetomix.errors import MergeToMixError
from mergetomix.executors.messages import CannotOpen, Message
from mergetomix.executors.on_node import Assignment, Board, Lost, Opened, failed_to_open
from mergetomix.executors.work import Done, Work

POLL_S = "0.5"
"""How often Ray Train looks whether the processes still work; by default every two seconds."""
PATIENCE_S = 3.0
"""So long a process waits to fail of what may come of another's end, which is then found first."""


@dataclass(frozen=True)
class Processes:
    """How a training is cut: into `num` processes, each with so many CPU cores and GPUs.

    `labels` are those of the nodes that may work. `joins` is what each process calls once all know
    one another, as bytes of cloudpickle.
    """

    num: int
    cpus: float
    gpus: float
    labels: Mapping[str, str]
    joins: bytes


@dataclass(frozen=True)
class Task:
    """What each process of a training is told: where to put up messages, and where answers go."""

    assignment: Assignment
    joins: bytes
    put: Callable[[list[Message]], Any]
    answers: Any
    work: Work


class PartFailedError(Exception):
    """A process of a training failed, and the others are to end; why is among the answers."""


def train_together(
    assignment: Assignment, put: Callable[[list[Message]], Any], work: Work, processes: Processes
) -> tuple[Done, int] | CannotOpen | Lost:
    """Carries out a training on several processes and returns what the first answers.

    If some fail, it is what the one that failed before the others says: those only miss it.
    """
    import ray

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL_S)
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import LoggingConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError

    board, trains = cast(Any, ray.remote(Board)), cast(Any, TorchTrainer)
    answers = board.options(num_cpus=0).remote()
    folder = tempfile.mkdtemp(prefix="mergetomix-ray-train-")
    try:
        trainer = trains(
            take_part,
            train_loop_config={"task": Task(assignment, processes.joins, put, answers, work)},
            scaling_config=ScalingConfig(
                num_workers=processes.num,
                use_gpu=processes.gpus > 0,
                resources_per_worker={"CPU": processes.cpus, **_gpus(processes.gpus)},
                label_selector=dict(processes.labels) or None,
            ),
            # nothing is kept there: the model goes where the work says
            run_config=RunConfig(
                storage_path=folder, logging_config=LoggingConfig(log_level="WARNING")
            ),
        )
        found: tuple[Done, int] | CannotOpen = trainer.fit().return_value
        return found
    except TrainingFailedError as error:
        failed = ray.get(answers.take.remote())
        silent = set(map(str, getattr(error, "worker_failures", ()))) - {rank for rank, _ in failed}
        if failed and not silent:
            first: tuple[Done, int] | CannotOpen = failed[0][1][0]
            return first
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return Lost(lines[-1] if lines else type(error).__name__)
    finally:
        ray.kill(answers)
        shutil.rmtree(folder, ignore_errors=True)


def _gpus(num: float) -> dict[str, float]:
    return {"GPU": num} if num else {}


def take_part(config: Mapping[str, Any]) -> tuple[Done, int] | CannotOpen:
    """Takes part in a training, as one of the processes that Ray Train has started.

    Raises:
        PartFailedError: it failed; what it has to say is among the answers.
    """
    import ray
    import ray.train

    task: Task = config["task"]
    rank = ray.train.get_context().get_world_rank()
    found = _taken(task, task.put if rank == 0 else _said_by_another)
    if isinstance(found, CannotOpen) or found[0].failure is not None:
        ray.get(task.answers.put.remote(str(rank), [found]))
        time.sleep(0.0 if _is_own(found) else PATIENCE_S)
        raise PartFailedError(f"process {rank} of a training failed")
    return found


def _is_own(found: tuple[Done, int] | CannotOpen) -> bool:
    """Whether an error is what a process found itself, and not that another is gone."""
    failure = found.failure if isinstance(found, CannotOpen) else found[0].failure
    return failure is not None and isinstance(failure.error, MergeToMixError)


def _said_by_another(_: list[Message]) -> None:
    """Says nothing: all processes of a training do the same, and the first tells of it."""


def _taken(task: Task, put: Callable[[list[Message]], Any]) -> tuple[Done, int] | CannotOpen:
    try:
        pickle.loads(task.joins)()  # noqa: S301  # from who leads the run
    except Exception as error:  # noqa: BLE001  # who leads the run hears of it
        return failed_to_open(error)
    opened = Opened()
    found = opened.open(task.assignment, put)
    if isinstance(found, CannotOpen):
        return found
    opened.say_where(put)
    return opened.carry_out(task.work)
