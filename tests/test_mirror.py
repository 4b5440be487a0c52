"""Stores on shared storage: files, memory, and a real S3 server on this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from recipes import Heard, recipe_values, result_of, without_times, write_recipe

import mergetomix as m2m
from mergetomix.cli import commands
from mergetomix.errors import Fault, StoreError
from mergetomix.executors.in_process import InProcess
from mergetomix.executors.work import CarryOut, FinetuneWork, Work
from mergetomix.records import Finetune, Mixture, Scores
from mergetomix.session.session import open_session
from mergetomix.store import mirror, repair
from mergetomix.store.store import Store

SCORES = Scores("loss", (0.1, 2.5e-17, 3.0), (1.0, 2.0, 3.0))
A = Mixture.union(["a"])


class Server:
    """A real S3 server, moto's, in a process of its own; it can be stopped for a while."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        self._log = (folder / "server.log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-p", str(self.port), "-H", "127.0.0.1"],
            stdout=self._log,
            stderr=self._log,
        )
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                urllib.request.urlopen(self.address, timeout=1)
                break
            except OSError:
                time.sleep(0.1)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop_for(self, seconds: float) -> None:
        """Answers nothing for a while; what it holds stays."""
        os.kill(self.process.pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(self.process.pid, signal.SIGCONT)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install mergetomix[s3]")
    pytest.importorskip("moto.server", reason="moto is not installed")
    made = Server(tmp_path_factory.mktemp("s3"))
    values = {
        "AWS_ENDPOINT_URL": made.address,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    import boto3

    boto3.client("s3").create_bucket(Bucket="runs")
    yield made
    made.end()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@pytest.fixture(params=["file", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    elsewhere(tmp_path, monkeypatch, "here")
    if request.param == "s3":
        request.getfixturevalue("server")
        return f"s3://runs/{tmp_path.name}"
    return f"file://{tmp_path}/shared" if request.param == "file" else f"memory://{tmp_path.name}"


def elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    """Has this process stand for another machine, which has a cache of its own."""
    monkeypatch.setenv("MERGETOMIX_CACHE", str(folder / "machines" / machine))


def fill(store: Store, key: str = "k", content: str = "weights") -> None:
    with store.artifact(key) as folder:
        (folder / "inner").mkdir()
        (folder / "model.txt").write_text(content)
        (folder / "inner" / "more.txt").write_text("more")
    store.add_finetune(Finetune(A, key, str(store.artifact_path(key)), 3, 4, 5.0), {}, {})
    store.add_model("m", "proxy", A, 0.5, [key])
    store.add_scores("m", "t", "select", SCORES, 1.0)


def check(store: Store, key: str = "k", content: str = "weights") -> None:
    found = store.finetune(key)
    assert found is not None and (found.mixture, found.num_tokens) == (A, 4)
    assert (Path(found.path) / "model.txt").read_text() == content
    assert (Path(found.path) / "inner" / "more.txt").read_text() == "more"
    assert store.scores("m", "t", "select") == SCORES


def test_another_machine_finds_what_was_put_to_the_bit(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(url) as store:
        fill(store)
        run = store.begin_run("run", {})
        store.heartbeat(run, "search", 1, 2)
        store.end_run(run, "finished")
        check(store)
    elsewhere(tmp_path, monkeypatch, "there")
    with Store.peek(url) as store:
        check(store)
        assert [each["outcome"] for each in store.runs()] == ["finished"]
    with Store(url) as store:
        check(store)
        fill(store, "other", "others")
    elsewhere(tmp_path, monkeypatch, "here")
    with Store(url) as store:
        check(store, "other", "others")
        assert store.look_through() == []


def test_one_process_writes_at_a_time(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "RENEW_S", 0.3)
    with Store(url) as store:
        with pytest.raises(StoreError, match="in use by another process of this machine"):
            Store(url)
        elsewhere(tmp_path, monkeypatch, "there")
        with pytest.raises(StoreError, match=r"in use by process \d+ on"):
            # this process lives, so that the lock is watched, which is renewed
            monkeypatch.setattr(mirror, "STALE_S", 30.0)
            Store(url)
        fill(store)
    Store(url).close()


def test_a_writer_that_lost_its_lock_cannot_commit(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is taken for dead while it only sleeps: its next transaction is refused."""
    monkeypatch.setattr(mirror, "STALE_S", 1.5)
    monkeypatch.setattr(mirror, "RENEW_S", 1000.0)
    with Store(url) as slow:
        elsewhere(tmp_path, monkeypatch, "there")
        with Store(url) as other:
            fill(other)
            with pytest.raises(StoreError, match="another process writes to the store"):
                slow.add_model("late", "proxy", A)
            check(other)
    with Store.peek(url) as store:
        check(store)
        assert store.counts()["trials"] == 1


def test_damage_in_the_cache_is_mended_from_the_storage(url: str) -> None:
    with Store(url) as store:
        fill(store)
        path = store.artifact_path("k") / "model.txt"
    path.write_text("wrong bytes")
    with Store(url) as store:
        check(store)


def test_a_machine_that_has_fetched_nothing_looks_through_all_of_it(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(url) as store:
        fill(store)
    elsewhere(tmp_path, monkeypatch, "there")
    assert repair.verify(url) == []
    fs, root = fsspec.url_to_fs(url)
    (file,) = [each for each in fs.find(f"{root}/artifacts") if each.endswith("model.txt")]
    fs.pipe_file(file, b"other bytes")
    elsewhere(tmp_path, monkeypatch, "further")
    (said,) = repair.verify(url)
    assert said.startswith("artifact k: model.txt has")


def test_what_is_gone_from_the_storage_is_absent(url: str, tmp_path: Path) -> None:
    with Store(url) as store:
        fill(store)
        place = store.artifact_path("k")
        for file in sorted(place.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        place.rmdir()
    fs, root = fsspec.url_to_fs(url)
    fs.rm(f"{root}/artifacts", recursive=True)
    with Store(url) as store:
        assert store.finetune("k") is None


def test_what_was_put_for_nothing_is_removed(url: str, tmp_path: Path) -> None:
    """By the next process that writes; what a row names stays."""
    with Store(url) as store:
        fill(store)
        assert store.shared is not None
        folder = store.artifact_path("k")
        shared = store.shared
        shared.hand_over("never", folder)
        shared.mirror.put("k", folder)  # one that was to take its place
        name = shared.hand_over("other", folder)
        (tmp_path / "other").mkdir()
        shared.take_over("other", name, tmp_path / "other")
        assert {key for key, _ in shared.mirror.folders()} == {"k", "incoming-never"}
        assert len(shared.mirror.folders()) == 3
    with Store.peek(url) as store:
        assert store.shared is not None and len(store.shared.mirror.folders()) == 3
    with Store(url) as store:
        assert store.shared is not None
        assert store.shared.mirror.folders() == set(
            store._ledger.execute("SELECT key, token FROM places")
        )
        check(store)


def test_a_writer_that_lost_its_lock_removes_nothing(url: str) -> None:
    with Store(url) as store:
        fill(store)
        assert store.shared is not None
        mirror_ = store.shared.mirror
        mirror_._fs.rm_file(f"{mirror_._root}/lock.json")
        ((key, token),) = mirror_.folders()
        with pytest.raises(StoreError, match="another process writes"):
            mirror_.remove(key, token)
        assert mirror_.folders() == {(key, token)}


def test_a_reader_sees_what_is_written_after_it_opened(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(url) as writer:
        elsewhere(tmp_path, monkeypatch, "there")
        with Store.peek(url) as reader:
            assert reader.finetune("k") is None
            fill(writer)
            check(reader)


def test_a_transaction_that_fails_leaves_nothing(url: str) -> None:
    with Store(url) as store:
        fill(store)
        with pytest.raises(RuntimeError, match="stop"), store.transaction():
            store.add_model("half", "proxy", A)
            raise RuntimeError("stop")
        with store.transaction():
            store.add_model("whole", "proxy", A)
        assert store.counts()["trials"] == 2


def test_what_others_put_into_a_journal_does_not_run(url: str, tmp_path: Path) -> None:
    with Store(url) as store:
        fill(store)
        assert store.shared is not None
        number = store.shared.number + 1
        store.shared.mirror.commit(number, [(f"ATTACH DATABASE '{tmp_path}/made' AS made", ())])
        with pytest.raises(StoreError, match="holds a file elsewhere"):
            store.shared.mirror.get("k", "token", ["../../made"], tmp_path)
    with pytest.raises(StoreError, match="is none of ours"):
        Store(url)
    assert not (tmp_path / "made").exists()


def test_no_store_is_said(url: str) -> None:
    with pytest.raises(StoreError, match="there is no store at"):
        Store.peek(url)


def test_unknown_storage_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere(tmp_path, monkeypatch, "here")
    with pytest.raises(StoreError, match="cannot be opened") as raised:
        Store("nowhere://bucket/prefix")
    assert "s3fs" in str(raised.value.hint)


# --- a server that does not answer


def test_a_server_that_pauses_is_waited_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(tmp_path, monkeypatch, "here")
    with Store(f"s3://runs/{tmp_path.name}") as store:
        pause = threading.Thread(target=server.stop_for, args=(3.0,))
        pause.start()
        time.sleep(0.2)
        started = time.monotonic()
        fill(store)
        check(store)
        assert time.monotonic() - started > 2
        pause.join()


def test_a_server_that_is_gone_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere(tmp_path, monkeypatch, "here")
    heard: list[str] = []
    with Store(f"memory://{tmp_path.name}") as store:
        assert store.shared is not None
        store.on_damage(heard.append)
        monkeypatch.setattr(mirror, "PATIENCE_S", 1.0)

        def refused(*_: Any, **__: Any) -> None:
            raise ConnectionError("connection refused")

        monkeypatch.setattr(store.shared.mirror._fs, "pipe_file", refused)
        with pytest.raises(Fault, match="out of reach: ConnectionError: connection refused"):
            store.add_model("m", "proxy", A)
    assert any("trying again" in text for text in heard)


# --- trainings on other machines


class Elsewhere(InProcess):
    """Does the work as a machine does that does not see the folder of the process that leads."""

    def __init__(self, carry_out: CarryOut) -> None:
        def without_folder(work: Work) -> Any:
            is_training = isinstance(work, FinetuneWork)
            return carry_out(replace(work, folder="/not/there") if is_training else work)

        super().__init__(without_folder)


@pytest.mark.slow
def test_a_fine_tune_of_another_machine_comes_by_the_storage(url: str, tmp_path: Path) -> None:
    values = recipe_values(tmp_path) | {"store": url}
    values["train"]["max_steps"] = 1
    recipe = m2m.load_recipe(write_recipe(tmp_path, values))
    with open_session(recipe, Heard(), Elsewhere) as session:
        (mixture,) = [Mixture.union(["a", "b"])]
        made = session.finetunes.fit(mixture, "test")
        files = {file.name for file in Path(made.path).iterdir()}
        assert {"config.json", "model.safetensors"} <= files
        assert session.evaluations.real(made, "report")
        assert session.store.look_through() == []


def test_status_shows_what_a_writer_elsewhere_does(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mirror, "RENEW_S", 0.2)
    with Store(url) as store:
        run = store.begin_run("run", {})
        store.heartbeat(run, "search", 3, 9)
        elsewhere(tmp_path, monkeypatch, "there")
        time.sleep(0.7)
        with Store.peek(url) as reader:
            (found,) = reader.runs()
            assert found["alive"] and (found["stage"], found["done"]) == ("search", 3)
        commands.status(url)
    assert "3 of 9" in capsys.readouterr().out


def test_a_ledger_that_is_a_journal_is_not_rebuilt(url: str) -> None:
    with pytest.raises(StoreError, match="is its journal"):
        repair.rebuild(url)


# --- a whole run


@pytest.mark.slow
def test_a_run_on_s3_is_the_run_on_a_disk(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same result; another machine does nothing again; what it holds can be verified."""
    elsewhere(tmp_path, monkeypatch, "here")
    values = recipe_values(tmp_path) | {"executor": {"workers": 2}}
    values["train"]["max_steps"] = 2
    m2m.run(write_recipe(tmp_path, values))
    wanted = without_times(result_of(tmp_path), tmp_path)
    values |= {"store": f"s3://runs/{tmp_path.name}", "run_dir": "shared"}
    path = write_recipe(tmp_path, values, "shared.yaml")
    m2m.run(path)
    elsewhere(tmp_path, monkeypatch, "there")
    heard = Heard()
    result = m2m.run(path, heard)
    assert result.cost.reused["experts"] == 3 and result.cost.reused["trials"] == 7
    found = json.loads((tmp_path / "shared" / "result.json").read_text())
    for key in ("objective", "trials", "selection", "evaluations", "targets"):
        assert found.get(key) == wanted.get(key)
