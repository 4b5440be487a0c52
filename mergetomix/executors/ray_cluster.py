"""The executor whose workers are a Ray cluster's: the only place that knows Ray.

Trainings are tasks. Models are scored by actors, which open the recipe once. What is lost with a
node is done again elsewhere: this executor makes actors anew itself and tells them what to open,
as the arguments that Ray would make one from again may be gone with the node (ray issue 53727).
What is passed are records and paths; tensors lie in files.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from mergetomix.devices import visible_gpus
from mergetomix.errors import Fault, RecipeError
from mergetomix.executors.messages import CannotOpen, Opens, Ready, given
from mergetomix.executors.on_node import Assignment, Board, Opened, train, versions
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
STORE_BYTES = 128 * 2**20
"""Ray's memory for objects on a cluster that is started here: only records are passed."""
PASSED_ON = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HOME", "GOMP_SPINCOUNT")
"""Variables of who leads the run that its workers get too."""


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
        seen: a folder that every worker must see; None if it need not.
        on_gpu: whether models are on GPUs.

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
        seen: str | None,
        on_gpu: bool,
        listener: Listener,
        busy: Busy,
    ) -> None:
        super().__init__(listener, busy)
        gpus = float(on_gpu)
        of_training, of_evaluator = section.gpus_per_training, section.gpus_per_evaluator
        self._section = section
        self._for_training = Need(
            section.cpus_per_training, gpus if of_training is None else of_training
        )
        self._for_evaluator = Need(
            section.cpus_per_evaluator, gpus if of_evaluator is None else of_evaluator
        )
        self._on_gpu, self._seen, self._opens = on_gpu, seen, opens
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
        num = [
            sum(need.fits(each) for each in resources)
            for need in (self._for_evaluator, self._for_training)
        ]
        most = self._section.max_evaluators, self._section.max_trainings
        evaluators, trainings = (
            many if bound is None else min(many, bound)
            for many, bound in zip(num, most, strict=True)
        )
        total = {kind: sum(each.get(kind, 0.0) for each in resources) for kind in ("CPU", "GPU")}
        on_a_node = max((self._for_evaluator.fits(each) for each in resources), default=1)
        most_on_a_node = 1 if self._on_gpu else max(1, min(on_a_node, evaluators))
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
        for kind, need in (("training", self._for_training), ("evaluator", self._for_evaluator)):
            if any(need.fits(node) for node in able):
                continue
            best = max(able, key=lambda node: (node.get("GPU", 0.0), node.get("CPU", 0.0)))
            has = f"{best.get('CPU', 0):g} CPU cores and {best.get('GPU', 0):g} GPUs"
            a_kind = f"an {kind}" if kind == "evaluator" else f"a {kind}"
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
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = ray.get_runtime_context().get_node_id()
        affinity = NodeAffinitySchedulingStrategy(here, soft=True)
        kind: Any = ray.remote(Board)
        return kind.options(num_cpus=0, scheduling_strategy=affinity).remote()

    def _made_assignments(self) -> dict[str, Any]:
        """Returns what evaluators and trainings are told first, as Ray's references."""
        import ray

        opens, own = given(self._opens(self._cluster.most_on_a_node)), versions()
        threads = {
            "evaluator": self._section.cpus_per_evaluator,
            "training": self._section.cpus_per_training,
        }
        return {
            kind: ray.put(Assignment(opens, own, self._seen, None if self._on_gpu else num))
            for kind, num in threads.items()
        }

    def _options(self, need: Need) -> dict[str, Any]:
        found: dict[str, Any] = {"num_cpus": need.cpus, "num_gpus": need.gpus}
        if self._section.labels:
            found["label_selector"] = dict(self._section.labels)
        return found

    def _has_room(self) -> bool:
        self._count()
        num_busy = sum(helper.work is not None for helper in self._evaluators)
        num_busy += len(self._trainings)
        most = max(self._cluster.evaluators, self._cluster.trainings, 1)
        return num_busy + len(self._pending) < most

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
        import ray

        if len(self._trainings) >= max(self._cluster.trainings, 1):
            return False
        while not self._is_left(self._for_training) and self._dismiss_idle():
            pass
        if not self._is_left(self._for_training):
            return False
        shown = self._shown("training")
        # a process keeps the GPU that it began on: each training has one of its own there
        kind = ray.remote(max_calls=1 if self._for_training.gpus else 0)(train)
        task = kind.options(max_retries=0, **self._options(self._for_training))
        put = Putting(self._board, shown.state.name)
        waiting = task.remote(self._assignments["training"], put, work)
        shown.state.begin(called(work))
        self._trainings.append(Helper(shown, None, waiting, time.monotonic(), work, batch))
        return True

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


def connect(section: ExecutorSection) -> bool:
    """Connects this process to the cluster of a recipe; returns whether it is to end it.

    Raises:
        RecipeError: Ray is not installed, there is no such cluster, or it is of another version.
    """
    try:
        import ray
    except ImportError:
        message = 'kind: ray takes the package ray: pip install "mergetomix[ray]"'
        raise RecipeError("executor.kind", message) from None
    if ray.is_initialized():
        return False
    # a job that was submitted may have set them for its workers, and Ray refuses to hear it twice
    of_job = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "")
    names = [name for name in PASSED_ON if name in os.environ and name not in of_job]
    variables = {name: os.environ[name] for name in names}
    given_variables = section.runtime_env.get("env_vars", {})
    environment = {**section.runtime_env, "env_vars": {**variables, **given_variables}}
    options: dict[str, Any] = {"runtime_env": environment, "log_to_driver": False}
    if section.address == "local":
        options |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    try:
        with own_signals(), all_gpus():
            ray.init(section.address, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        hint = "start it with `ray start --head`, or use executor.address: local"
        if "runtime" in str(error):
            hint = "the job's own runtime environment says the same: leave it out of one of them"
        elif "ersion" in str(error):
            hint = "install the same versions of Python and Ray as the cluster has"
        message = " ".join(str(error).split())
        raise RecipeError("executor.address", f"{section.address}: {message}", hint=hint) from None
    return True


@contextmanager
def all_gpus() -> Iterator[None]:
    """Shows all GPUs that there were for this process, of which it sees one for itself."""
    name, names = "CUDA_VISIBLE_DEVICES", visible_gpus()
    before = os.environ.get(name)
    if names:
        os.environ[name] = ",".join(names)
    try:
        yield
    finally:
        if names and before is not None:
            os.environ[name] = before
        elif names:
            os.environ.pop(name)


@contextmanager
def own_signals() -> Iterator[None]:
    """Keeps the handlers of signals that Ray would replace."""
    names = ("SIGINT", "SIGTERM")
    before = {name: signal.getsignal(getattr(signal, name)) for name in names}
    try:
        yield
    finally:
        with suppress(ValueError):  # not in the main thread
            for name, handler in before.items():
                signal.signal(getattr(signal, name), handler)
