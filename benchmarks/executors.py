"""Several workers beside one: the same results to the bit, the time, faults, and memory.

Usage: python benchmarks/executors.py [overhead | speed | memory | faults | same ...]

Every worker computes with one thread, so that two of them do what the machine's two cores can.
Ray's workers are on node processes of this machine. `speed` is beyond start-up: the workers have
opened the recipe and read the experts before the clock starts.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is there

from mergetomix.demo.text import BASE, sources
from mergetomix.executors.choose import Surroundings
from mergetomix.executors.local import LocalWorkers, Slot
from mergetomix.recipe.recipe import load
from mergetomix.records import Mixture
from mergetomix.session import session as sessions
from mergetomix.session.session import Session, open_session
from mergetomix.stages import pipeline
from mergetomix.stages.search import search_mixtures
from mergetomix.store.store import Store

TESTS = Path(__file__).parents[1] / "tests"
PACKAGES = ("asyncio", "email", "http", "importlib", "json", "multiprocessing", "unittest", "xml")
TARGETS = ("concurrent", "urllib")
NUM_REPEATS = 3
STRATEGIES: dict[str, dict[str, Any]] = {
    "exhaustive": {"strategy": "exhaustive"},
    "greedy": {"strategy": "greedy"},
    "regression": {"strategy": "regression", "budget": 24},
    "gradient": {"strategy": "gradient", "budget": 30},
    "optuna": {"strategy": "optuna", "budget": 12},
    "racing": {"strategy": "exhaustive", "racing": 0.05},
    "weights": {"space": "weights", "strategy": "gradient", "budget": 24},
}


def write(folder: Path, num: int, search: dict[str, Any], **more: Any) -> Path:
    """Writes a recipe over the first `num` packages."""
    text = {"text": True}
    scored = {**text, "lines_per_example": 12, "score": "loss", "max_tokens": 6000}
    values: dict[str, Any] = {
        "base": str(BASE),
        "datasets": {
            name: {"path": sources(name), **text, "max_tokens": 12_000} for name in PACKAGES[:num]
        },
        "targets": {name: {"path": sources(name), **scored} for name in TARGETS},
        "train": {"method": "full", "learning_rate": 1.5e-4, "batch_size": 4, "max_length": 256},
        "merge": {"method": "linear"},
        "verify": {"budget": 2, "repeats": 1},
        "final": {"num_random": 1},
        "device": "cpu",
        "batch_tokens": 1024,
        "search": search,
    }
    values["train"]["max_tokens"] = 6000
    for key, value in more.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@contextmanager
def cluster(num_nodes: int) -> Iterator[Any]:
    """Starts a cluster of node processes on this machine, as the tests do."""
    sys.path.insert(0, str(TESTS))
    from clusters import cluster as of_tests

    with of_tests(num_nodes=num_nodes) as made:
        yield made


# --- the same


def same() -> None:
    """Runs every strategy in the process, on local workers and on clusters, and compares."""
    import mergetomix as m2m

    differing = 0
    for name, search in STRATEGIES.items():
        with tempfile.TemporaryDirectory() as temporary:
            wanted: Any = None
            for how, said, nodes in kinds():
                folder = Path(temporary) / how.replace(" ", "-")
                path = write(folder, 4, search, executor=said)
                started = time.monotonic()
                with nodes():
                    result = m2m.run(path)
                rows = [(row.name, row.mixture, row.scores) for row in result.table]
                found = result.selection, result.verification, rows
                wanted = found if wanted is None else wanted
                equal = found == wanted
                differing += not equal
                taken = time.monotonic() - started
                says = "the same" if equal else "DIFFERENT"
                num = len(result.selection.trials)
                print(f"{name}, {how}: {says}, {num} trials, {taken:.0f} s", flush=True)
    print(f"{differing} differ")
    sys.exit(differing > 0)


def kinds() -> list[tuple[str, dict[str, Any], Callable[[], Any]]]:
    """The executors: a name, the recipe's section, and what starts its nodes."""

    @contextmanager
    def nothing() -> Iterator[None]:
        yield

    def nodes(num: int) -> Callable[[], Any]:
        return lambda: cluster(num_nodes=num)

    found: list[tuple[str, dict[str, Any], Callable[[], Any]]] = [
        ("in the process", {"threads": 1}, nothing)
    ]
    found += [(f"local with {num}", {"workers": num, "threads": 1}, nothing) for num in (2, 4)]
    return found + [(f"ray with {num}", {"kind": "ray"}, nodes(num)) for num in (1, 2, 4)]


# --- the time

LOOP = """
import sys, time
import torch
from mergetomix.recipe.recipe import load
from mergetomix.progress import Silent
from mergetomix.session.inputs import read_inputs
torch.set_num_threads(1)
inputs = read_inputs(load({path!r}), Silent())
family, model = inputs.family, inputs.family.load()
batches = [inputs.sequences(name)[:4] for name in inputs.candidates]
scorers = inputs.targets("select").values()
def once(what):
    for each in batches if what == "train" else ():
        family.training_loss(model, each).backward()
    for each in scorers if what == "score" else ():
        each.score(model)
once({what!r})
print("ready", flush=True)
sys.stdin.readline()
started = time.monotonic()
for _ in range({num}):
    once({what!r})
print(time.monotonic() - started, flush=True)
"""


def ceiling(path: Path, what: str, num: int) -> float:
    """How many times as fast two processes are as one, with nothing between them.

    That is what the machine allows: its two cores share caches, memory and their clock.
    """

    def taken(num_processes: int) -> float:
        code = LOOP.format(path=str(path), what=what, num=num // num_processes)
        running = [
            subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(num_processes)
        ]
        for each in running:
            assert each.stdout is not None and each.stdout.readline() == "ready\n"
        for each in running:
            assert each.stdin is not None
            each.stdin.write("go\n")
            each.stdin.flush()
        return max(float(each.communicate()[0]) for each in running)

    return taken(1) / taken(2)


def speed() -> None:
    """Times 255 proxies, six experts and a search by gradients, with one worker and with two."""
    ratios: dict[str, list[float]] = {}
    for repeat in range(NUM_REPEATS):
        with tempfile.TemporaryDirectory() as temporary:
            path = write(Path(temporary), 8, {"strategy": "exhaustive"})
            for what, num in (("train", 24), ("score", 40)):
                found = ceiling(path, what, num)
                ratios.setdefault(f"two processes alone, {what}", []).append(found)
                print(f"two processes alone, {what}: {found:.2f} times", flush=True)
        for backend in ("local", "ray"):
            with tempfile.TemporaryDirectory() as temporary:
                for what in ("experts", "proxies", "gradient"):
                    taken = {
                        num: timed(Path(temporary), backend, what, num, repeat) for num in (1, 2)
                    }
                    ratio = taken[1] / taken[2]
                    ratios.setdefault(f"{backend}, {what}", []).append(ratio)
                    text = f"{taken[1]:.1f} s, with two {taken[2]:.1f} s: {ratio:.2f} times"
                    print(f"{backend}, {what}: with one worker {text}", flush=True)
    for name, found in ratios.items():
        spread = f"{min(found):.2f} to {max(found):.2f}"
        print(f"{name}: two workers are {statistics.median(found):.2f} times as fast ({spread})")


def timed(folder: Path, backend: str, what: str, num: int, repeat: int) -> float:
    """Seconds of a piece of a run beyond start-up."""
    searches = {
        "proxies": {"strategy": "exhaustive"},
        "gradient": {"strategy": "gradient", "budget": 40},
        "experts": {"strategy": "greedy"},
    }
    datasets = 6 if what == "experts" else 8
    more: dict[str, Any] = {"select_fraction": 0.5 + (repeat * 2 + num) * 1e-3}
    if what == "experts":
        more["train"] = {"max_tokens": 24_000, "seed": repeat * 2 + num}
    else:
        more["train"] = {"max_tokens": None, "max_steps": 5}
    if backend == "ray":
        more["executor"] = {"kind": "ray", "max_evaluators": num, "max_trainings": num}
    path = write(folder / f"{what}-{backend}-{num}", datasets, searches[what], **more)
    recipe = load(path)
    if backend == "local":
        with local(num), open_session(recipe) as session:
            return of_experts(session) if what == "experts" else of_search(session)
    with cluster(num_nodes=num), open_session(recipe) as session:
        return of_experts(session) if what == "experts" else of_search(session)


@contextmanager
def local(num: int) -> Iterator[None]:
    """Has sessions use local workers even where one process would do."""
    places = [Slot(f"core {i}", {"OMP_NUM_THREADS": "1"}, 1) for i in range(num)]

    def made(_: Any, around: Surroundings) -> Any:
        opens = around.opens(num)
        return lambda _: LocalWorkers(opens, places, around.logs, around.listener, around.busy)

    original, sessions.chosen = sessions.chosen, made
    try:
        yield
    finally:
        sessions.chosen = original


def of_search(session: Session) -> float:
    pipeline.train_experts(session)
    warm_up(session)
    started = time.monotonic()
    search_mixtures(session)
    return time.monotonic() - started


def warm_up(session: Session) -> None:
    """Has every worker score something, so that all have started and have read the experts.

    A cluster's evaluators start when there is work: the first may do all of it alone.
    """
    executor, wanted = session.opened.executor, session.opened.executor.num_workers
    for mixture in session.spaces.subsets:
        session.evaluations.proxy(mixture, "report")
        evaluators = getattr(executor, "_evaluators", None)
        if evaluators is None or sum(each.is_ready for each in evaluators) == wanted:
            break
        time.sleep(0.5)
    every = Mixture.union(session.recipe.datasets)
    session.evaluations.proxy(every, "report")  # all workers share it


def of_experts(session: Session) -> float:
    pair = [Mixture.union([name]) for name in list(session.recipe.datasets)[:2]]
    list(session.finetunes.fit_all(pair, "warm-up", seed=999))
    started = time.monotonic()
    pipeline.experts_of(session, tuple(session.recipe.datasets))
    return time.monotonic() - started


# --- faults


LEADER = """
import mergetomix as m2m
m2m.run({path!r})
"""


def faults() -> None:
    """Kills workers, nodes and the process that leads, and compares the result."""
    import mergetomix as m2m

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        search = {"strategy": "exhaustive"}
        calm = m2m.run(write(folder / "calm", 5, search, executor={"threads": 1}))
        wanted = calm.selection, calm.verification

        path = write(folder / "killed", 5, search, executor={"workers": 2, "threads": 1})
        killed = run_while(path, kill_workers("executors.worker", 20))
        tell("20 local workers killed at random", path, wanted, killed)

        path = write(folder / "leader", 5, search, executor={"workers": 2, "threads": 1})
        times = 0
        while run_for(path, 12 + 6 * times):
            times += 1
        tell("the leader killed and started again", path, wanted, times)

        path = write(folder / "ray", 5, search, executor={"kind": "ray"})
        with cluster(num_nodes=4) as nodes:  # the last two of which stay
            killed = run_while(path, kill_nodes(nodes, Path(load(path).store)))
            tell("nodes killed in training and search", path, wanted, killed)

        with s3_server(folder) as server:
            os.environ["MERGETOMIX_CACHE"] = str(folder / "cache")
            executor = {"workers": 2, "threads": 1}
            path = write(folder / "s3", 5, search, executor=executor, store="s3://runs/study")
            paused = run_while(path, pauses(server))
            tell("the S3 server stopped for 10 s", path, wanted, paused)


def tell(what: str, path: Path, wanted: Any, num: int) -> None:
    """Runs the recipe once more, which finds all of it in the store, and compares."""
    import mergetomix as m2m

    result = m2m.run(path)
    found = result.selection, result.verification
    reused = dict(result.cost.reused)
    says = "the same result" if found == wanted else "ANOTHER RESULT"
    print(f"{what}: {num} times, {says}; then in the store: {reused}", flush=True)


def run_while(path: Path, disturb: Callable[[threading.Event], int]) -> int:
    """Runs a recipe in this process, disturbed by a thread; returns how often."""
    import mergetomix as m2m

    stop, found = threading.Event(), [0]
    thread = threading.Thread(target=lambda: found.__setitem__(0, disturb(stop)))
    thread.start()
    m2m.run(path)
    stop.set()
    thread.join()
    return found[0]


def run_for(path: Path, seconds: float) -> bool:
    """Runs a recipe in a process that is killed after a while; returns whether it was."""
    leader = subprocess.Popen([sys.executable, "-c", LEADER.format(path=str(path))])
    try:
        leader.wait(seconds)
    except subprocess.TimeoutExpired:
        os.kill(leader.pid, signal.SIGKILL)
        leader.wait()
        return True
    return False


def kill_workers(name: str, most: int) -> Callable[[threading.Event], int]:
    """Kills a worker at random every few seconds."""

    def disturb(stop: threading.Event) -> int:
        rng, num = random.Random(0), 0
        while num < most and not stop.wait(rng.uniform(2.0, 9.0)):
            there = []
            for each in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if name in " ".join(each.cmdline()):
                        there.append(each.pid)
            if there:
                with suppress(ProcessLookupError):
                    os.kill(rng.choice(there), signal.SIGKILL)
                    num += 1
        return num

    return disturb


@contextmanager
def s3_server(folder: Path) -> Iterator[Any]:
    """Starts moto's S3 server with a bucket, as the tests do."""
    sys.path.insert(0, str(TESTS))
    import boto3
    from test_mirror import Server

    server = Server(folder)
    os.environ |= {
        "AWS_ENDPOINT_URL": server.address,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    boto3.client("s3").create_bucket(Bucket="runs")
    try:
        yield server
    finally:
        server.end()


def pauses(server: Any) -> Callable[[threading.Event], int]:
    """Stops a server for ten seconds, again and again."""

    def disturb(stop: threading.Event) -> int:
        num = 0
        while num < 3 and not stop.wait(15.0):
            server.stop_for(10.0)
            num += 1
        return num

    return disturb


def kill_nodes(nodes: Any, store: Path) -> Callable[[threading.Event], int]:
    """Kills a node's processes while experts train, and another's once merges are scored."""

    def num_done(kind: str) -> int:
        if not store.is_dir():
            return 0
        with suppress(Exception), Store.peek(store) as peeked:
            return int(peeked.counts()[kind])
        return 0

    def disturb(stop: threading.Event) -> int:
        num = 0
        for kind, least in (("experts", 1), ("trials", 6)):
            while num_done(kind) < least and not stop.wait(0.5):
                pass
            node = next(iter(nodes.worker_nodes))
            for info in node.all_processes.get("raylet", []):
                with suppress(psutil.Error):
                    raylet = psutil.Process(info.process.pid)
                    for each in [*raylet.children(recursive=True), raylet]:
                        with suppress(psutil.Error):
                            each.kill()
            nodes.worker_nodes.discard(node)
            num += not stop.is_set()
        return num

    return disturb


# --- what a piece of work costs beside itself


def overhead() -> None:
    """Times pieces of work that do nothing, on two workers that are ready."""
    from mergetomix.executors.ray_cluster import RayWorkers, Site
    from mergetomix.progress import Silent
    from mergetomix.sections.executor import ExecutorSection

    sys.path.insert(0, str(TESTS))
    import fake_work

    with tempfile.TemporaryDirectory() as temporary, cluster(num_nodes=2):
        folder = Path(temporary)
        places = [Slot(f"core {i}", {}, None) for i in range(2)]
        makers: dict[str, Callable[[], Any]] = {
            "local": lambda: LocalWorkers(
                fake_work.opened, places, folder, Silent(), lambda states: None
            ),
            "ray": lambda: RayWorkers(
                ExecutorSection(kind="ray"),
                lambda _: fake_work.opened,
                Site(),
                Silent(),
                lambda states: None,
            ),
        }
        for name, maker in makers.items():
            executor, num = maker(), 1000
            list(executor.run(fake_work.piece(i, "slow", folder) for i in range(4)))
            started = time.monotonic()
            list(executor.run(fake_work.piece(i, "quick", folder) for i in range(num)))
            print(f"{name}: {(time.monotonic() - started) / num * 1000:.2f} ms a piece", flush=True)
            executor.close()


# --- memory


def memory() -> None:
    """Measures what four evaluators hold of the experts: the proportional set size of its pages."""
    with tempfile.TemporaryDirectory() as temporary:
        search = {"strategy": "exhaustive", "max_datasets": 2}
        more = {
            "executor": {"workers": 4, "threads": 1},
            "train": {"max_tokens": None, "max_steps": 1},
        }
        recipe = load(write(Path(temporary), 8, search, **more))
        with open_session(recipe) as session:
            pipeline.train_experts(session)
            search_mixtures(session)
            files = [
                str(file)
                for name in recipe.datasets
                for file in session.proxies.folder(name).glob("*.safetensors")
            ]
            size = sum(Path(file).stat().st_size for file in files)
            workers = [
                each
                for each in psutil.Process().children()
                if "executors.worker" in " ".join(each.cmdline())
            ]
            rows = [
                row
                for each in workers
                for row in each.memory_maps(grouped=False)
                if row.path in files
            ]
            pss, rss = (sum(getattr(row, key) for row in rows) for key in ("pss", "rss"))
        mib = 2**20
        print(f"{len(workers)} evaluators, 8 experts of {size / mib:.0f} MiB in all:", end=" ")
        print(f"resident {rss / mib:.0f} MiB, proportional {pss / mib:.0f} MiB")


def main() -> None:
    parts = {"same": same, "speed": speed, "faults": faults, "memory": memory}
    parts["overhead"] = overhead
    for name in sys.argv[1:] or ("overhead", "speed", "memory", "faults", "same"):
        print(f"-- {name}", flush=True)
        parts[name]()


if __name__ == "__main__":
    main()
