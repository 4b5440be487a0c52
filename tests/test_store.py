"""The store: exact round trips, whole or nothing, several processes, a way on after any kill."""

from __future__ import annotations

import errno
import itertools
import json
import math
import multiprocessing
import os
import secrets
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import mergetomix.store.store as store_module
from mergetomix.errors import StoreError
from mergetomix.records import Finetune, Mixture, Scores
from mergetomix.store.store import Store

ROOT = Path(__file__).resolve().parents[1]
A, AB = Mixture.union(["a"]), Mixture(("a", "b"), (0.1, 0.9))
ODD = (
    0.1,
    5e-324,
    2.2250738585072014e-308,
    1.7976931348623157e308,
    -0.0,
    1 / 3,
    math.inf,
    math.nan,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as opened:
        yield opened


def bits(values: tuple[float, ...]) -> bytes:
    return struct.pack(f"<{len(values)}d", *values)


def finetune_of(store: Store, key: str, mixture: Mixture, train_s: float = 1.25) -> Finetune:
    return Finetune(mixture, key, str(store.artifact_path(key)), 10, 2**40, train_s)


def keep(store: Store, key: str, mixture: Mixture = A, text: str = "weights") -> Finetune:
    with store.artifact(key) as folder:
        (folder / "model.bin").write_text(text)
    record = finetune_of(store, key, mixture)
    store.add_finetune(record, {"seed": 1}, {"torch": "2"})
    return record


def set_mtime(path: Path, mtime_ns: int) -> None:
    os.utime(path, ns=(mtime_ns, mtime_ns))


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Another process that has printed its first line."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    assert process.wait(timeout=20) == -signal.SIGKILL
    assert process.stdout is not None
    process.stdout.close()


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait(timeout=20)
    return process.pid


# --- round trips ---


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store for many examples of one law, each under a key of its own."""
    with Store(tmp_path_factory.mktemp("shared")) as opened:
        yield opened


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(), st.floats()), min_size=1, max_size=20))
@example(list(zip(ODD, ODD[::-1], strict=True)))
def test_scores_come_back_to_the_bit_to_everybody(shared, pairs):
    values, weights = zip(*pairs, strict=True)
    key = secrets.token_hex(8)
    shared.add_scores(key, "t", "select", Scores("loss", values, weights), 0.1)
    with Store.peek(shared.path) as peeked:
        for found in (each.scores(key, "t", "select") for each in (shared, peeked)):
            assert found is not None and found.kind == "loss"
            assert (bits(found.values), bits(found.weights)) == (bits(values), bits(weights))


def test_scores_of_another_model_target_or_part_are_not_there(store):
    store.add_scores("m", "t", "select", Scores("loss", (1.0,), (1.0,)), 0.1)
    with Store(store.path) as other:
        assert other.scores("m", "t", "select") == store.scores("m", "t", "select") is not None
    for place in (("m", "t", "report"), ("m", "u", "select"), ("n", "t", "select")):
        assert store.scores(*place) is None


def test_the_first_scores_and_the_first_model_stand(store):
    for value, merge_s in ((1.0, 2.0), (5.0, 7.0)):
        store.add_model("m", "proxy", AB, merge_s)
        store.add_scores("m", "t", "select", Scores("score", (value,), (1.0,)), value)
    assert store.scores("m", "t", "select") == Scores("score", (1.0,), (1.0,))
    assert store.seconds(["m"]) == (2.0, 1.0)


def test_a_model_of_unknown_kind_is_refused(store):
    with pytest.raises(ValueError, match="'trial'"):
        store.add_model("m", "trial", AB)


def test_finetunes_come_back_as_they_were_and_survive_a_move(store, tmp_path):
    third = Mixture(("a", "b", "ü"), (1 / 3, 1 / 3, 1 - 2 / 3))
    records = [keep(store, "k1", A), keep(store, "k2", AB), keep(store, "k3", third)]
    assert [store.finetune(record.key) for record in records] == records
    assert bits(store.finetune("k3").mixture.weights) == bits(third.weights)
    assert store.counts() | {"artifact_bytes": 0} == {
        "experts": 1, "reals": 2, "trials": 0, "example_scores": 0, "artifact_bytes": 0
    }  # fmt: skip
    store.close()
    store.path.rename(tmp_path / "moved")
    with Store(tmp_path / "moved") as moved:
        assert Path(moved.finetune("k1").path, "model.bin").read_text() == "weights"
        assert moved.finetune("k1").path == str(tmp_path / "moved" / "artifacts" / "k1")


def test_a_finetune_from_elsewhere_keeps_its_path(store, tmp_path):
    (tmp_path / "hub").mkdir()
    record = Finetune(A, "k", str(tmp_path / "hub"), 1, 1, 0.0)
    store.add_finetune(record, {}, {})
    assert store.finetune("k") == record


def test_a_finetune_needs_its_row_and_its_folder(store):
    assert store.finetune("k") is None
    keep(store, "k")
    store.artifact_path("k").rename(store.path / "gone")
    assert store.finetune("k") is None


def test_the_ledger_keeps_how_a_finetune_came_about(store):
    settings, environment = {"lr": 1e-4, "where": Path("a/b")}, {"torch": "2"}
    store.add_finetune(finetune_of(store, "k", A), settings, environment)
    ((*notes, created),) = store._ledger.execute(
        "SELECT settings, environment, created FROM finetunes"
    )
    assert [json.loads(text) for text in notes] == [{"lr": 1e-4, "where": "a/b"}, {"torch": "2"}]
    assert created.endswith("+00:00")


def test_seconds_sums_over_the_models_targets_and_part_asked_for(store):
    for i, (model, target, part) in enumerate(itertools.product("xyz", "tu", ("select", "report"))):
        store.add_model(model, "proxy", AB, 100.0)
        store.add_scores(model, target, part, Scores("score", (1.0,), (1.0,)), 2.0**i)
    assert store.seconds(["x", "y", "x", "none"]) == (200.0, 255.0)
    assert store.seconds("z", part="select") == (100.0, 2.0**8 + 2.0**10)
    assert store.seconds(iter("xy"), iter("u"), "report") == (200.0, 2.0**3 + 2.0**7)
    assert store.seconds("x", []) == (100.0, 0.0)
    assert store.seconds([]) == (0.0, 0.0)
    assert store.seconds([f"m{i}" for i in range(70_000)] + ["x"]) == (100.0, 15.0)


def test_counts(store):
    keep(store, "e", A, "12345")
    keep(store, "r", AB, "123")
    for kind in ("base", "proxy", "expert", "real"):
        store.add_model(kind, kind, None)
        store.add_scores(kind, "t", "select", Scores("score", (1.0, 0.0), (1.0, 1.0)), 1.0)
    expected = {"experts": 1, "reals": 1, "trials": 1, "example_scores": 8, "artifact_bytes": 8}
    assert store.counts() == expected


# --- whole or nothing ---


def test_a_transaction_is_kept_whole_or_not_at_all(store):
    one = Scores("score", (1.0,), (1.0,))
    with pytest.raises(KeyboardInterrupt), store.transaction():
        store.add_model("m", "proxy", AB)
        store.add_scores("m", "t", "select", one, 1.0)
        raise KeyboardInterrupt
    assert (store.counts()["trials"], store.scores("m", "t", "select")) == (0, None)
    with store.transaction(), Store(store.path) as other:
        store.add_model("m", "proxy", AB)
        with store.transaction():
            store.add_scores("m", "t", "select", one, 1.0)
        with pytest.raises(ZeroDivisionError), store.transaction():
            store.add_scores("m", "u", "select", one, 1 / 1)
            raise ZeroDivisionError
        assert other.counts()["trials"] == 0, "nothing is seen before the commit"
    with Store(store.path) as other:
        assert (other.counts()["trials"], other.scores("m", "t", "select")) == (1, one)
        assert other.scores("m", "u", "select") is None, "an inner one is taken back alone"


def test_a_kill_inside_a_transaction_leaves_nothing_of_it(store):
    script = """if True:
        import sys, time
        from mergetomix.store.store import Store
        store = Store(sys.argv[1])
        with store.transaction():
            store.add_model("m", "proxy", None)
            print("ready", flush=True)
            time.sleep(60)"""
    kill(start(script, store.path))
    assert store.counts()["trials"] == 0
    store.add_model("m", "proxy", None)
    assert store.counts()["trials"] == 1


def test_an_artifact_appears_whole_on_a_clean_exit(store):
    with store.artifact("k") as folder:
        assert list(folder.iterdir()) == []
        (folder / "sub").mkdir()
        (folder / "sub" / "f").write_bytes(b"\0" * 10)
        (folder / "link").symlink_to("sub/f")
        assert not store.artifact_path("k").exists()
        assert folder.parent == store.path / "tmp"
    assert (store.artifact_path("k") / "sub" / "f").read_bytes() == b"\0" * 10
    assert (store.artifact_path("k") / "link").is_symlink()
    assert os.listdir(store.path / "tmp") == []


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_an_exception_leaves_nothing_of_an_artifact(store, error):
    with pytest.raises(type(error)), store.artifact("k") as folder:
        (folder / "f").write_text("1")
        raise error
    assert os.listdir(store.path / "tmp") == os.listdir(store.path / "artifacts") == []


def test_files_have_the_permissions_of_the_umask(store: Store) -> None:
    """safetensors writes files that nobody else can read."""
    before = os.umask(0o027)
    try:
        with store.artifact("k") as folder:
            save_file({"x": np.zeros(2)}, folder / "model.safetensors")
            assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o600
        written = store.artifact_path("k") / "model.safetensors"
        assert written.stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


def test_every_file_and_folder_of_an_artifact_is_flushed_before_it_appears(store, monkeypatch):
    flushed, fsync = [], os.fsync

    def spy(handle: int) -> None:
        flushed.append(
            (Path(os.readlink(f"/proc/self/fd/{handle}")).name, store.artifact_path("k").exists())
        )
        fsync(handle)

    monkeypatch.setattr(os, "fsync", spy)
    with store.artifact("k") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "f").write_text("1")
    *before, last = flushed
    assert [name for name, _ in before[-4:]] == ["f", "sub", "artifact.json", folder.name]
    assert not any(appeared for _, appeared in before)
    assert last == ("artifacts", True)


def test_an_artifact_that_the_ledger_knows_is_kept(store):
    keep(store, "k", text="first")
    with store.artifact("k") as folder:
        (folder / "model.bin").write_text("second")
    assert (store.artifact_path("k") / "model.bin").read_text() == "first"
    assert os.listdir(store.path / "tmp") == []


def test_an_artifact_left_by_a_crash_before_its_row_is_replaced(store):
    script = """if True:
        import os, sys, time
        from mergetomix.store.store import Store
        store = Store(sys.argv[1])
        with store.artifact("k") as folder:
            (folder / "old.bin").write_text("1")
        print("ready", flush=True)
        time.sleep(60)"""
    kill(start(script, store.path))
    assert (store.artifact_path("k") / "old.bin").exists()
    assert store.finetune("k") is None
    record = keep(store, "k", text="new")
    assert store.finetune("k") == record
    assert sorted(os.listdir(store.artifact_path("k"))) == ["artifact.json", "model.bin"]
    assert os.listdir(store.path / "tmp") == []


WRITE_SLOWLY = """if True:
    import sys, time
    from mergetomix.store.store import Store
    store = Store(sys.argv[1])
    with store.artifact("k") as folder:
        (folder / "half.bin").write_text("1")
        print("ready", flush=True)
        time.sleep(60)"""


def test_a_kill_while_writing_leaves_no_artifact_and_opening_cleans_up_after_the_dead_only(
    tmp_path,
):
    path = tmp_path / "store"
    process = start(WRITE_SLOWLY, path)
    with Store(path) as store, store.artifact("mine"):
        Store(path).close()
        assert len(os.listdir(path / "tmp")) == 2, "both writers live"
        kill(process)
        assert len(os.listdir(path / "tmp")) == 2
        Store.peek(path).close()
        assert len(os.listdir(path / "tmp")) == 2, "peek changes nothing"
        Store(path).close()
        assert [name.split(".")[0] for name in os.listdir(path / "tmp")] == ["mine"]
    assert os.listdir(path / "artifacts") == ["mine"]


def test_opening_leaves_what_may_be_alive(store):
    tag, dead = store_module.host_tag(), dead_pid()
    alive = [f"k.{os.getppid()}.{tag}-00000000", f"k.{dead}.ffffffff-00000000", "notes", "k.x.y"]
    gone = [
        f"k.{dead}.{tag}-00000000",
        f"k.{os.getpid()}.{tag}-00000000",
        f"k.{dead}.ffffffff-11111111",
    ]
    for name in alive + gone:
        (store.path / "tmp" / name).mkdir()
    set_mtime(store.path / "tmp" / gone[2], 10**18)
    Store(store.path).close()
    assert sorted(os.listdir(store.path / "tmp")) == sorted(alive)


class WrappedError(Exception):
    """What a library makes of an error of the system."""


def out_of_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["fsync", "inside", "wrapped"])
def test_a_full_disk_is_said_with_its_path_and_free_bytes_and_leaves_nothing(
    store, monkeypatch, where
):
    if where == "fsync":
        monkeypatch.setattr(os, "fsync", out_of_space)
    monkeypatch.setattr(Store, "free_bytes", lambda self: 1234)
    with (
        pytest.raises(StoreError, match=r"disk full.*artifacts/k: 1234 bytes") as caught,
        store.artifact("k"),
    ):
        if where == "inside":
            out_of_space()
        if where == "wrapped":
            raise WrappedError('I/O error: Os { code: 28, message: "No space left on device" }')
    assert caught.value.hint
    assert os.listdir(store.path / "tmp") == os.listdir(store.path / "artifacts") == []


def test_another_error_of_the_system_is_not_called_a_full_disk(store):
    with pytest.raises(PermissionError), store.artifact("k"):
        raise PermissionError(errno.EACCES, "no")


def test_a_ledger_that_cannot_grow_says_disk_full_and_keeps_what_it_has(store):
    store.add_scores("m", "t", "select", Scores("score", (1.0,), (1.0,)), 1.0)
    store._ledger.execute("PRAGMA max_page_count = 20")
    large = Scores("score", (0.5,) * 20_000, (1.0,) * 20_000)
    with pytest.raises(StoreError, match="disk full"), store.transaction():
        store.add_model("n", "proxy", None)
        store.add_scores("n", "t", "select", large, 1.0)
    assert (store.scores("n", "t", "select"), store.counts()["trials"]) == (None, 0)
    assert store.scores("m", "t", "select") is not None
    store.add_model("o", "proxy", None)
    assert store.counts()["trials"] == 1


@pytest.mark.parametrize("key", ["", "a/b", "..", ".open", "a b", "a\n"])
def test_a_key_that_is_no_file_name_is_refused(store, key):
    with pytest.raises(ValueError, match="plain file name"):
        store.artifact_path(key)
    with pytest.raises(ValueError, match="plain file name"), store.lock(key):
        pass
    with pytest.raises(ValueError, match="plain file name"), store.artifact(key):
        pass


# --- several processes ---


def add_many(path: str, mine: str, gate: object) -> None:
    """Opens a store when others do, and adds what all add and what only this one does."""
    gate.wait(60)
    with Store(path) as store:
        for i, name in itertools.product(range(15), ("shared", mine)):
            with store.transaction():
                store.add_model(f"{name}{i}", "proxy", AB, 1.0)
                for target in "tu":
                    store.add_scores(
                        f"{name}{i}",
                        target,
                        "select",
                        Scores("loss", (float(i), 0.1), (1.0, 2.0)),
                        1.0,
                    )
        with store.lock("shared"):
            if store.finetune("shared") is None:
                keep(store, "shared", A, mine)
        with store.artifact("unlocked") as folder:
            (folder / "f").write_text(mine)
        keep(store, mine, AB)


def test_two_processes_at_once_end_with_one_sound_ledger(tmp_path):
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(2)
    workers = [
        context.Process(target=add_many, args=(str(tmp_path / "store"), name, gate))
        for name in ("p", "q")
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    with Store(tmp_path / "store") as store:
        assert store._ledger.execute("PRAGMA integrity_check") == [("ok",)]
        expected = {"experts": 1, "reals": 2, "trials": 45, "example_scores": 45 * 2 * 2}
        assert store.counts().items() >= expected.items()
        assert store.seconds([f"shared{i}" for i in range(15)]) == (15.0, 30.0)
        assert store.scores("q14", "u", "select") == Scores("loss", (14.0, 0.1), (1.0, 2.0))
        assert sorted(os.listdir(store.path / "artifacts")) == ["p", "q", "shared", "unlocked"]
        assert (store.artifact_path("unlocked") / "f").read_text() in "pq"
        assert os.listdir(store.path / "tmp") == []


def test_a_lock_excludes_and_goes_with_its_process(store):
    script = """if True:
        import sys, time
        from mergetomix.store.store import Store
        with Store(sys.argv[1]).lock("k"):
            print("ready", flush=True)
            time.sleep(60)"""
    process = start(script, store.path)
    waited = []

    def on_wait() -> None:
        waited.append(process.poll())
        kill(process)

    with store.lock("other", on_wait):
        pass
    assert waited == []
    with store.lock("k", on_wait), store.lock("k", on_wait):
        assert waited == [None], "the holder lived, and it was said once"
    with store.lock("k", on_wait):
        pass
    assert waited == [None]


def test_a_lock_is_let_go_after_an_exception(store):
    with pytest.raises(ZeroDivisionError), store.lock("k"):
        raise ZeroDivisionError
    script = """if True:
        import sys
        from mergetomix.store.store import Store
        with Store(sys.argv[1]).lock("k"):
            pass"""
    subprocess.run([sys.executable, "-c", script, store.path], cwd=ROOT, timeout=20, check=True)


# --- peek ---


def everything(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_peek_creates_nothing(tmp_path):
    for place in (tmp_path, tmp_path / "none"):
        with pytest.raises(StoreError, match="no store"):
            Store.peek(place)
    assert everything(tmp_path) == []
    Store(tmp_path / "store").close()
    before = everything(tmp_path)
    with Store.peek(tmp_path / "store") as peeked:
        assert (peeked.counts()["experts"], peeked.runs(), peeked.finetune("k")) == (0, [], None)
        assert everything(tmp_path) == before
    assert everything(tmp_path) == before


def test_peek_writes_nothing(store):
    with Store.peek(store.path) as peeked:
        before = everything(store.path)
        with pytest.raises(StoreError, match="cannot be used"):
            peeked.add_model("m", "proxy", None)
        with pytest.raises(StoreError, match="read only"), peeked.lock("k"):
            pass
        with pytest.raises(StoreError, match="read only"), peeked.artifact("k"):
            pass
        assert everything(store.path) == before


def test_peek_sees_what_a_killed_process_has_committed(tmp_path):
    script = """if True:
        import sys, time
        from mergetomix.store.store import Store
        store = Store(sys.argv[1])
        run = store.begin_run("runs/1", {"n": 3})
        store.heartbeat(run, "search", 1, 8)
        print("ready", flush=True)
        time.sleep(60)"""
    process = start(script, tmp_path)
    with Store.peek(tmp_path) as peeked:
        (live,) = peeked.runs()
    kill(process)
    with Store.peek(tmp_path) as peeked:
        (dead,) = peeked.runs()
    assert (live["pid"], live["stage"], live["alive"]) == (process.pid, "search", True)
    assert {**live, "alive": False} == dead


# --- runs ---


def test_a_run_is_noted_from_beginning_to_end(store):
    first, second = store.begin_run("runs/1", {"experts": 4}), store.begin_run("runs/2", {})
    store.heartbeat(first, "experts", 1, 4)
    store.end_run(second, "failed: no space")
    one, two = store.runs()
    told = {"id": first, "run_dir": "runs/1", "plan": {"experts": 4}, "outcome": None}
    told |= {"stage": "experts", "done": 1, "total": 4, "pid": os.getpid(), "alive": True}
    assert one | told == one
    assert (two["id"], two["outcome"], two["alive"]) == (second, "failed: no space", False)
    assert one["started"] < one["updated"]
    assert one["started"].endswith("+00:00")


def test_a_run_of_a_dead_process_or_of_another_host_is_not_alive(store):
    for sql in ("UPDATE runs SET pid = ?", "UPDATE runs SET pid = pid, host = ?"):
        run = store.begin_run("runs/1", {})
        assert store.runs()[-1]["alive"]
        store._ledger.execute(
            f"{sql} WHERE id = ?", (dead_pid() if "pid = ?" in sql else "elsewhere", run)
        )
        assert not store.runs()[-1]["alive"]


def test_heartbeats_are_thinned_but_not_those_that_matter(store, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    run = store.begin_run("runs/1", {})

    def beat(stage: str, done: int, after_s: float = 0.0) -> int:
        now[0] += after_s
        store.heartbeat(run, stage, done, 9)
        return store.runs()[0]["done"]

    assert beat("search", 1) == 1, "the first"
    assert beat("search", 2, 0.4) == 1, "too soon"
    assert beat("search", 3, 0.2) == 3, "0.6 s after the last that was written"
    assert beat("verify", 0) == 0, "a new stage"
    assert beat("verify", 4) == 0
    assert beat("verify", 9) == 9, "the end"
