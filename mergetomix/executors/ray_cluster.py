"""The executor whose workers are a Ray cluster's.

Trainings are tasks, which may lead several processes (`ray_train.py`). Models are scored by actors,
which open the recipe once. What is lost with a node is done again elsewhere: this executor makes
actors anew itself and tells them what to open, as the arguments that Ray would make one from again
may be gone with the node (ray issue 53727). What is passed are records and paths; tensors lie in
files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from mergetomix.errors import Fault, RecipeError
from mergetomix.executors.messages import CannotOpen, Opens, Ready, given
from mergetomix.executors.on_node import Assignment, Board, Lost, Opened, train, versions
from mergetomix.executors.ray_connection import connect
from mergetomix.executors.ray_train import Processes, train_together
from mergetomix.executors.states import Busy, WorkerState, called
from mergetomix.executors.work import FinetuneWork, Work
from mergetomix.executors.workers import MOST_KILLED_UNREADY, Batch, Shown, Workers
from mergetomix.progress import Listener
from mergetomix.sections.executor import ExecutorSection

LOOK_EVERY_S = 0.3
"""How long one look at the cluster waits for news."""
COUNT_EVERY_S = 5.0
"""How often the nodes are counted: they may come and go."""
STARVED_S = 15.0
"""A training that has not begun after so long may lack what idle evaluators hold."""
LATE_S = 5.0
"""What a worker said of its work is waited for no longer than this once the work is done."""
SLOW_START_S = 60.0
"""Evaluators that take longer to start are said."""


@dataclass(frozen=True)
class Need:
    """What one worker takes of a node."""

    cpus: float
    gpus: float

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPUs" if self.gpus else ""
        return f"{self.cpus:g} CPU cores{gpus}"

    def fits(self, node: Mapping[str, float]) -> int:
        """Returns how often it fits on a node with so much of everything."""
        often = node.get("CPU", 0.0) // self.cpus
        if self.gpus:
            of_gpus = node.get("GPU", 0.0)
            whole = of_gpus // self.gpus if self.gpus >= 1 else of_gpus * (1 // self.gpus)
            often = min(often, whole)
        return int(often)


@dataclass(frozen=True)
class Site:
    """What the workers of a run have in common.

    `seen` is a folder that every worker must see, None if it need not; `on_gpu` says whether models
    are on GPUs. A training is of `processes`, which call `joins` first if they are several.
    """

    seen: str | None = None
    on_gpu: bool = False
    processes: int = 1
    joins: Callable[[], None] | None = None


@dataclass
class Helper:
    """A worker of the cluster: an actor that scores, or a task that trains.

    `waiting` is Ray's reference to what it does now: opening, or a piece of work. It was heard
    `num_heard` times since that began.
    """

    shown: Shown
    actor: Any
    waiting: Any
    since: float
    work: Work | None = None
    batch: Batch | None = None
    is_ready: bool = False
    num_heard: int = 0

    def __str__(self) -> str:
        return f"{self.shown.state.name} on {self.shown.state.place}"

    def hear(self, messages: list[Any]) -> None:
        """Shows what the worker says; that it is ready is no message of its work."""
        if isinstance(messages[0], Ready):
            self.is_ready, self.shown.state.place = True, messages[0].about
            return
        self.num_heard += 1
        for message in messages:
            self.shown.hear(message)


@dataclass
class Cluster:
    """What there is on the nodes that may work: how many workers of each kind fit, and in all.

    At most `most_on_a_node` evaluators share the memory of one node for their models.
    """

    evaluators: int = 0
    trainings: int = 0
    most_on_a_node: int = 1
    total: dict[str, float] = field(default_factory=dict)


class RayWorkers(Workers):
    """Hands trainings to tasks, and everything else to actors of a Ray cluster.

    Args:
        section: what the recipe says.
        opens: gives what each worker opens, if so many are on a node; cloudpickle must take it.
        site: what they have in common.

    Raises:
        RecipeError: there is no such cluster, or it can never give what a worker takes.
    """

    advice = (
        "lower executor.max_evaluators, train.batch_size or batch_tokens, or give a worker more"
    )

    def __init__(
        self,
        section: ExecutorSection,
        opens: Callable[[int], Opens],
        site: Site,
        listener: Listener,
        busy: Busy,
    ) -> None:
        super().__init__(listener, busy)
        gpus, num = float(site.on_gpu), site.processes
        of_training, of_evaluator = section.gpus_per_training, section.gpus_per_evaluator
        self._section, self._site = section, site
        self._for_process = Need(
            section.cpus_per_training, gpus if of_training is None else of_training / num
        )
        self._for_training = Need(self._for_process.cpus * num, self._for_process.gpus * num)
        self._for_evaluator = Need(
            section.cpus_per_evaluator, gpus if of_evaluator is None else of_evaluator
        )
        self._opens = opens
        self._evaluators: list[Helper] = []
        self._trainings: list[Helper] = []
        self._num_made = self._num_unready = self._num_waiting = 0
        self._taking: Any = None
        self._counted_s, self._cluster = 0.0, Cluster()
        self._is_slow_said = False
        self._is_mine = connect(section)
        try:
            self._count()
            self._check_room()
            self._board = self._made_board()
            self._assignments = self._made_assignments()
        except BaseException:
            self.close()
            raise

    @property
    def num_workers(self) -> int:
        """How many evaluators fit into the cluster as it is."""
        return max(1, self._cluster.evaluators)

    def close(self) -> None:
        """Ends all workers, and the cluster if it was started here."""
        import ray

        for helper in [*self._evaluators, *self._trainings]:
            helper.shown.close()
            with suppress(Exception):
                if helper.actor is None:
                    ray.cancel(helper.waiting, force=True)
                else:
                    ray.kill(helper.actor)
        self._evaluators.clear()
        self._trainings.clear()
        self._tell()
        if self._is_mine:
            ray.shutdown()

    def _states(self) -> list[WorkerState]:
        return [each.shown.state for each in (*self._evaluators, *self._trainings)]

    def _drop(self, batch: Batch) -> None:
        for helper in (*self._evaluators, *self._trainings):
            if helper.batch is batch:
                helper.batch = None

    # --- what there is

    def _count(self) -> None:
        """Counts what the nodes that may work have."""
        import ray

        if time.monotonic() - self._counted_s < COUNT_EVERY_S:
            return
        nodes = [node for node in ray.nodes() if node["Alive"] and self._may_work(node)]
        resources = [node["Resources"] for node in nodes]
        evaluators = sum(self._for_evaluator.fits(each) for each in resources)
        trainings = sum(self._for_process.fits(each) for each in resources) // self._site.processes
        section = self._section
        evaluators = min(evaluators, section.max_evaluators or evaluators)
        trainings = min(trainings, section.max_trainings or trainings)
        total = {kind: sum(each.get(kind, 0.0) for each in resources) for kind in ("CPU", "GPU")}
        on_a_node = max((self._for_evaluator.fits(each) for each in resources), default=1)
        most_on_a_node = 1 if self._site.on_gpu else max(1, min(on_a_node, evaluators))
        self._cluster = Cluster(evaluators, trainings, most_on_a_node, total)
        self._counted_s = time.monotonic()

    def _may_work(self, node: Mapping[str, Any]) -> bool:
        known = node.get("Labels", {})
        return all(known.get(key) == value for key, value in self._section.labels.items())

    def _check_room(self) -> None:
        """Raises RecipeError if no node can ever hold a worker, so that nobody waits for it."""
        import ray

        nodes = [node for node in ray.nodes() if node["Alive"]]
        able = [node["Resources"] for node in nodes if self._may_work(node)]
        if not able:
            labels = ", ".join(f"{key}: {value}" for key, value in self._section.labels.items())
            message = f"none of the {len(nodes)} nodes of the cluster has the labels {labels}"
            raise RecipeError("executor.labels", message, hint="see `ray list nodes --detail`")
        num = self._site.processes
        for kind, need, wanted in (
            ("training", self._for_process, num),
            ("evaluator", self._for_evaluator, 1),
        ):
            room = sum(need.fits(node) for node in able)
            if room >= wanted:
                continue
            if room:
                message = f"a training is of {num} processes with {need} each, and the cluster"
                message += f" has room for {room} of them"
                hint = "lower it, or start more nodes before the run"
                raise RecipeError("train.launch.processes", message, hint=hint)
            best = max(able, key=lambda node: (node.get("GPU", 0.0), node.get("CPU", 0.0)))
            has = f"{best.get('CPU', 0):g} CPU cores and {best.get('GPU', 0):g} GPUs"
            a_kind = f"an {kind}" if kind == "evaluator" else f"a {kind}"
            if wanted > 1:
                a_kind = "a process of a training"
            message = f"{a_kind} takes {need}, and the largest of {len(able)} nodes has {has}"
            key = "gpus" if best.get("GPU", 0.0) < need.gpus else "cpus"
            hint = "lower it, or start such a node before the run"
            raise RecipeError(f"executor.{key}_per_{kind}", message, hint=hint)

    def _is_left(self, need: Need) -> bool:
        """Whether the cluster has room for one more worker, by what this run has taken of it."""
        taken = [self._for_evaluator] * len(self._evaluators)
        taken += [self._for_training] * len(self._trainings)
        total = self._cluster.total
        cpus = total.get("CPU", 0.0) - sum(each.cpus for each in taken)
        gpus = total.get("GPU", 0.0) - sum(each.gpus for each in taken)
        return cpus >= need.cpus and gpus >= need.gpus

    # --- giving work

    def _made_board(self) -> Any:
        """Returns the actor on this node that messages go to."""
        import ray

        kind: Any = ray.remote(Board)
        return kind.options(**self._beside_this()).remote()

    def _beside_this(self) -> dict[str, Any]:
        """Options of what takes nothing of a node, and is best on that of who leads the run."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = ray.get_runtime_context().get_node_id()
        affinity = NodeAffinitySchedulingStrategy(here, soft=True)
        return {"num_cpus": 0, "scheduling_strategy": affinity}

    def _made_assignments(self) -> dict[str, Any]:
        """Returns what evaluators and trainings are told first, as Ray's references."""
        import ray

        opens, own = given(self._opens(self._cluster.most_on_a_node)), versions()
        threads = {
            "evaluator": self._section.cpus_per_evaluator,
            "training": self._section.cpus_per_training,
        }
        return {
            kind: ray.put(
                Assignment(opens, own, self._site.seen, None if self._site.on_gpu else num)
            )
            for kind, num in threads.items()
        }

    def _options(self, need: Need) -> dict[str, Any]:
        found: dict[str, Any] = {"num_cpus": need.cpus, "num_gpus": need.gpus}
        if self._section.labels:
            found["label_selector"] = dict(self._section.labels)
        return found

    def _has_room(self, num_ahead: int) -> bool:
        self._count()
        num_busy = sum(helper.work is not None for helper in self._evaluators)
        num_busy += len(self._trainings)
        most = max(self._cluster.evaluators, self._cluster.trainings, 1)
        return num_busy + len(self._pending) < most + num_ahead

    def _hand_out(self) -> None:
        self._count()
        waiting, self._pending = list(self._pending), type(self._pending)()
        self._num_waiting = sum(not isinstance(work, FinetuneWork) for work, _ in waiting)
        for work, batch in waiting:
            is_training = isinstance(work, FinetuneWork)
            taken = self._trained(work, batch) if is_training else self._evaluated(work, batch)
            if not taken:
                self._pending.append((work, batch))

    def _trained(self, work: Work, batch: Batch) -> bool:
        """Gives a training to a new task, if there is room or idle evaluators can make it."""
        if len(self._trainings) >= max(self._cluster.trainings, 1):
            return False
        while not self._is_left(self._for_training) and self._dismiss_idle():
            pass
        if not self._is_left(self._for_training):
            return False
        shown = self._shown("training")
        waiting = self._training(Putting(self._board, shown.state.name), work)
        shown.state.begin(called(work))
        self._trainings.append(Helper(shown, None, waiting, time.monotonic(), work, batch))
        return True

    def _training(self, put: Putting, work: Work) -> Any:
        """Starts a task that trains, or that leads several processes which do."""
        import ray

        assignment, need, joins = self._assignments["training"], self._for_process, self._site.joins
        if joins is None:
            # a process keeps the GPU that it began on: each training has one of its own there
            kind = ray.remote(max_calls=1 if need.gpus else 0)(train)
            alone = kind.options(max_retries=0, **self._options(need))
            return alone.remote(assignment, put, work)
        num, labels = self._site.processes, self._section.labels
        processes = Processes(num, need.cpus, need.gpus, labels, given(joins))
        task = ray.remote(train_together).options(max_retries=0, **self._beside_this())
        return task.remote(assignment, put, work, processes)

    def _evaluated(self, work: Work, batch: Batch) -> bool:
        """Gives work to an evaluator that waits; makes one more if there is room for it."""
        for helper in self._evaluators:
            if helper.is_ready and helper.work is None:
                helper.work, helper.batch = work, batch
                helper.waiting = helper.actor.carry_out.remote(work)
                helper.shown.state.begin(called(work))
                return True
        num_starting = sum(not helper.is_ready for helper in self._evaluators)
        has_room = len(self._evaluators) < self._cluster.evaluators
        if num_starting < self._num_waiting and has_room and self._is_left(self._for_evaluator):
            self._start()
        return False

    def _start(self) -> None:
        """Makes one more evaluator, which says when it is ready."""
        import ray

        kind: Any = ray.remote(Opened)
        kind = kind.options(max_restarts=0, **self._options(self._for_evaluator))
        actor, shown = kind.remote(), self._shown("evaluator")
        waiting = actor.open.remote(
            self._assignments["evaluator"], Putting(self._board, shown.state.name)
        )
        self._evaluators.append(Helper(shown, actor, waiting, time.monotonic()))

    def _shown(self, kind: str) -> Shown:
        self._num_made += 1
        return Shown(self._listener, WorkerState(f"{kind} {self._num_made}", "a node", 0))

    def _dismiss_idle(self) -> bool:
        """Ends an evaluator that does nothing, so that its place is free; False if none is idle."""
        idle = [each for each in self._evaluators if each.is_ready and each.work is None]
        if idle:
            self._end(idle[0])
        return bool(idle)

    def _end(self, helper: Helper) -> None:
        import ray

        helper.shown.close()
        group = self._trainings if helper.actor is None else self._evaluators
        group.remove(helper)
        with suppress(Exception):
            if helper.actor is None:
                ray.cancel(helper.waiting, force=True)
            else:
                ray.kill(helper.actor)

    # --- hearing of it

    def _hear(self) -> None:
        import ray

        self._read_board()
        by_reference = {
            helper.waiting: helper
            for helper in (*self._evaluators, *self._trainings)
            if helper.waiting is not None
        }
        if by_reference:
            ready, _ = ray.wait(list(by_reference), timeout=LOOK_EVERY_S)
            for reference in ready:
                self._came(by_reference[reference], reference)
        else:
            time.sleep(LOOK_EVERY_S)
        self._feed_the_starved()

    def _read_board(self) -> None:
        import ray

        with suppress(ray.exceptions.RayError):
            helpers = {
                helper.shown.state.name: helper for helper in (*self._evaluators, *self._trainings)
            }
            if self._taking is None:
                self._taking = self._board.take.remote()
            found = ray.get(self._taking, timeout=10)  # if that is not in time, it is next time
            self._taking = None
            for name, messages in found:
                if name in helpers:
                    helpers[name].hear(messages)

    def _came(self, helper: Helper, reference: Any) -> None:
        """Sees to what a worker answered, or to its end."""
        import ray

        try:
            found = ray.get(reference)
        except ray.exceptions.RuntimeEnvSetupError as error:
            raise RecipeError("executor.runtime_env", first_line(error)) from error
        except ray.exceptions.RayTaskError as error:
            # not of the work itself, whose errors are values: the node lacks what is needed for it
            hint = "install the same packages on every node, or with executor.runtime_env"
            message = f"a worker of the cluster cannot start: {first_line(error.cause or error)}"
            raise RecipeError("executor.address", message, hint=hint) from error
        except ray.exceptions.RayError as error:
            if getattr(error, "actor_init_failed", False):
                hint = "install the same packages on every node, or with executor.runtime_env"
                message = f"a worker of the cluster cannot start: {last_line(error)}"
                raise RecipeError("executor.address", message, hint=hint) from error
            self._lost(helper, first_line(error))
            return
        if isinstance(found, CannotOpen):
            raise found.error()
        if isinstance(found, Lost):
            self._lost(helper, found.why)
            return
        if isinstance(found, Ready):
            helper.is_ready, helper.waiting, self._num_unready = True, None, 0
            helper.shown.state.place = found.about
            return
        done, num_put = found
        self._read_all(helper, num_put)
        batch, helper.work, helper.batch, helper.waiting = helper.batch, None, None, None
        helper.shown.state.end()
        if helper.actor is None:
            helper.shown.close()
            self._trainings.remove(helper)
        self._ended(done, batch)

    def _read_all(self, helper: Helper, num_put: int) -> None:
        """Reads what a worker put up while it did its work; its answer may come before it."""
        end = time.monotonic() + LATE_S
        while helper.num_heard < num_put and time.monotonic() < end:
            self._read_board()
        helper.num_heard = 0

    def _lost(self, helper: Helper, why: str) -> None:
        """Takes the work of a worker back that is gone, alone or with its node."""
        self._read_board()  # of a training it says whether it began
        work, batch = helper.work, helper.batch
        self._counted_s = 0.0  # nodes may be gone
        self._end(helper)
        if not helper.is_ready:
            self._give_back(work, batch)
            self._num_unready += 1
            if self._num_unready >= MOST_KILLED_UNREADY:
                raise Fault(f"{helper} is lost before it was ready: {why}", hint=self.advice)
        elif work is not None:
            self._died(f"{helper} is lost", work, batch, why)

    def _feed_the_starved(self) -> None:
        """Ends an idle evaluator where trainings wait for a place, and says where all wait."""
        now = time.monotonic()
        starved = [
            each for each in self._trainings if not each.is_ready and now - each.since > STARVED_S
        ]
        if starved and self._dismiss_idle():
            for each in starved:
                each.since = now
        starting = [each for each in self._evaluators if not each.is_ready]
        is_slow = any(now - each.since > SLOW_START_S for each in (*starting, *starved))
        if is_slow and not self._is_slow_said:
            self._is_slow_said = True
            self._listener.warn(
                "some workers of the cluster have not started after a minute: it may be busy, or"
                " reading the data takes long; the run goes on with those that it has"
            )


class Putting:
    """Puts messages on the board, as the worker of a name; workers are given one."""

    def __init__(self, board: Any, name: str) -> None:
        self._board, self._name = board, name

    def __call__(self, messages: list[Any]) -> None:
        """Puts them up, and does not wait until they are."""
        self._board.put.remote(self._name, messages)


def first_line(error: BaseException) -> str:
    """Returns what an error says, in one line."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def last_line(error: BaseException) -> str:
    """Returns the last line of what an error says, where a traceback in it names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
