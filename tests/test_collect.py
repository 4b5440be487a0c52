"""What a store keeps, and what goes of it: nothing that a recipe reaches, and soundly."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout
from kept_work import DATASETS, SCORES, Filled, files_in, held, keep, three, write
from recipes import Heard, recipe_values, result_of, without_times, write_recipe

import mergetomix as m2m
from mergetomix.errors import StoreError, UserError
from mergetomix.executors.in_process import InProcess
from mergetomix.records import Finetune, Mixture
from mergetomix.session.session import open_session
from mergetomix.stages import reach
from mergetomix.store import collect, contents, repair
from mergetomix.store.ledger import Ledger
from mergetomix.store.leftovers import host_tag
from mergetomix.store.store import Store

ROOT = Path(__file__).resolve().parents[1]

# --- what goes


def test_what_no_recipe_reaches_goes_and_nothing_else(tmp_path: Path) -> None:
    paths = three(tmp_path)
    repeat = ("ab", 1)
    first, second, third = (
        Filled(paths[0], repeat, ("ab", 0), ("ac", 17)),
        Filled(paths[1]),
        Filled(paths[2]),
    )
    with Store(tmp_path / "store") as store:
        store.add_model("another-base", "base", None)
        store.add_scores("another-base", "t", "select", SCORES, 0.1)
    before = held(tmp_path / "store")
    found = m2m.collect_unreached(paths[:2])
    gone = {third.finetunes[key] for key in (("e", 0), ("ce", 0))}
    assert {each.key for each in found.finetunes} == gone
    finetunes, models, artifacts = held(tmp_path / "store")
    kept = set(first.finetunes.values()) | set(second.finetunes.values())
    assert finetunes == kept and before[0] == kept | gone
    assert before[1] - models == gone | {third.proxies["ce"], "another-base"}
    # of what two recipes share nothing goes: the expert of c, its statistic
    assert third.statistics["c"] in artifacts and third.statistics["e"] not in artifacts
    assert third.proxies["c"] in models
    assert len(before[2] - artifacts) == 2  # the statistic of e, derivatives at c + e
    assert "note-third" in artifacts  # nobody knows from what it came
    assert repair.verify(tmp_path / "store") == []
    assert m2m.collect_unreached(paths[:2], dry_run=True).is_empty
    # nothing is left of what went
    files = "".join(files_in(tmp_path / "store"))
    assert not any(key in files for key in gone)
    with Store.peek(tmp_path / "store") as store:
        for table in ("sources", "artifacts", "finetunes"):
            keys = {key for (key,) in store.ledger.execute(f"SELECT key FROM {table}")}
            assert not keys & gone


def test_derivatives_that_another_recipe_added_to_stay(tmp_path: Path) -> None:
    """They are of a proxy that two recipes share, in the weights of either's experts."""
    path, other = write(tmp_path, "first", "ab"), write(tmp_path, "second", "ac")
    mine, theirs = Filled(path), Filled(other)
    key = mine.derivatives["a"]
    assert key == theirs.derivatives["a"]
    sources = [mine.finetunes[name, 0] for name in "ab"] + [theirs.finetunes["c", 0]]
    with Store(tmp_path / "store") as store:
        shutil.rmtree(store.artifact_path(key))
        with store.artifact(key, sources) as folder:
            (folder / "gradient.json").write_text("{}")
    found = m2m.collect_unreached([path])
    assert {each.key for each in found.finetunes} == {theirs.finetunes[k, 0] for k in ("c", "ac")}
    kept = held(tmp_path / "store")[2]
    assert key in kept and theirs.derivatives["ac"] not in kept


def test_other_settings_are_another_recipe(tmp_path: Path) -> None:
    path = write(tmp_path, "first", "ab")
    mine = Filled(path)
    train = recipe_values(tmp_path)["train"] | {"learning_rate": 2e-3}
    theirs = Filled(write(tmp_path, "second", "ab", train=train))
    found = m2m.collect_unreached([path])
    assert {each.key for each in found.finetunes} == set(theirs.finetunes.values())
    assert held(tmp_path / "store")[0] == set(mine.finetunes.values())


def test_a_renamed_dataset_is_the_same(tmp_path: Path) -> None:
    path = write(tmp_path, "first", "abc")
    filled = Filled(path, ("ab", 5))
    values = recipe_values(tmp_path, DATASETS)
    renamed = {"new" + key: each for key, each in values["datasets"].items() if key in "abc"}
    renamed["e"] = values["datasets"]["e"]
    path = write_recipe(tmp_path, values | {"datasets": renamed}, "second.yaml")
    assert m2m.collect_unreached([path]).is_empty
    assert held(tmp_path / "store")[0] == set(filled.finetunes.values())


def drawn(folder: Path, names: dict[str, str], run: str) -> Path:
    """A recipe that searches weights, whose datasets have new names."""
    values = recipe_values(folder, DATASETS)
    values["train"] |= {"max_tokens": 400}
    datasets = {new: values["datasets"][old] for old, new in names.items()}
    changes = {"datasets": datasets, "run_dir": run, "search": {"space": "weights"}}
    return write_recipe(folder, values | changes, f"{run}.yaml")


def test_weights_are_those_of_a_renamed_dataset(tmp_path: Path) -> None:
    mixture = Mixture(("a", "b", "c"), (0.2, 0.3, 0.5))
    recipe = m2m.load_recipe(drawn(tmp_path, {"a": "a", "b": "b", "c": "c"}, "first"))
    with open_session(recipe, executor=InProcess) as session:
        key = session.addresses.finetune(mixture, 3)
        keep(session.store, key, mixture, session.addresses.settings(3))
    second = drawn(tmp_path, {"a": "z", "b": "y", "c": "x"}, "second")
    assert m2m.collect_unreached([second]).is_empty
    third = drawn(tmp_path, {"a": "a", "b": "b", "d": "c"}, "third")
    assert [each.key for each in m2m.collect_unreached([third]).finetunes] == [key]


def test_what_cannot_be_told_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many mixtures to compare: kept, unless it was surely made with other settings."""
    path, other = write(tmp_path, "first", "abc"), write(tmp_path, "second", "de")
    filled = Filled(other)
    train = recipe_values(tmp_path)["train"] | {"learning_rate": 2e-3}
    unlike = Filled(write(tmp_path, "third", "de", train=train))
    monkeypatch.setattr(reach, "MOST_TRIED", 2)
    found = m2m.collect_unreached([path])
    assert {each.key for each in found.finetunes} == set(unlike.finetunes.values())
    monkeypatch.setattr(reach, "MOST_TRIED", 3)
    found = m2m.collect_unreached([path])
    assert {each.key for each in found.finetunes} == set(filled.finetunes.values())


def test_what_other_hardware_made_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that a GPU filled, cleared out by a machine without one."""
    path = write(tmp_path, "first", "abc")
    with monkeypatch.context() as patch:
        patch.setattr("mergetomix.models.pretrained.Pretrained.assumed_bf16", True)
        filled = Filled(path)
    here = Filled(path)
    assert not set(here.finetunes.values()) & set(filled.finetunes.values())
    assert m2m.collect_unreached([path]).is_empty


def test_an_expert_from_elsewhere_stays_where_it_is(tmp_path: Path) -> None:
    path = write(tmp_path, "first", "ab")
    Filled(path)
    given = tmp_path / "given"
    given.mkdir()
    (given / "model.safetensors").write_text("mine")
    with Store(tmp_path / "store") as store:
        with store.artifact("given-key"):
            pass
        record = Finetune(Mixture.union(["x"]), "given-key", str(given), 1, 0, 0.0)
        store.add_finetune(record, {"seed": 0}, {})
    found = m2m.collect_unreached([path])
    assert [each.key for each in found.finetunes] == ["given-key"]
    assert (given / "model.safetensors").read_text() == "mine"


def test_what_dead_processes_and_damage_left_goes(tmp_path: Path) -> None:
    path = write(tmp_path, "first", "ab")
    filled = Filled(path)
    store_path = tmp_path / "store"
    (store_path / "damaged").mkdir()
    (store_path / "damaged" / "x.1").mkdir()
    (store_path / "damaged" / "x.1" / "model.safetensors").write_bytes(bytes(5000))
    left = store_path / "tmp" / f"k.999999999.{host_tag()}-00000000"
    left.mkdir()
    (left / "half").write_bytes(bytes(700))
    with sqlite3.connect(store_path / "ledger.sqlite") as ledger:
        # as a kill leaves it between a trained model's folder and its row
        for table in ("finetunes", "artifacts"):
            ledger.execute(f"DELETE FROM {table} WHERE key = ?", (filled.finetunes["ab", 0],))
    found = m2m.collect_unreached([path])
    assert [each.name for each in found.damaged] == ["x.1"]
    assert [each.name for each in found.leftovers] == [left.name]
    assert [each.what for each in found.artifacts] == [contents.NO_ROW]
    assert found.num_bytes > 5700
    assert list((store_path / "damaged").iterdir()) == list((store_path / "tmp").iterdir()) == []
    assert repair.verify(store_path) == []


def test_a_store_of_an_earlier_release_is_reached_whole(tmp_path: Path) -> None:
    """No fine-tune of its recipes goes, and none of their scores."""
    with tarfile.open(Path(__file__).parent / "fixtures" / "store-0.1.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / "fixture"
    names = ("recipe", "weights", "fisher", "gradient", "race")
    with Store(folder / "store") as store:  # notes what it does not know of its folders
        assert store.counts()["experts"]
    before = files_in(folder / "store")
    found = m2m.collect_unreached([folder / f"{name}.yaml" for name in names], dry_run=True)
    assert not found.finetunes and not found.models and not found.artifacts
    assert files_in(folder / "store") == before


# --- when


def test_a_store_in_use_is_refused(tmp_path: Path) -> None:
    path, other = write(tmp_path, "first", "ab"), write(tmp_path, "second", "cd")
    Filled(other)
    before = held(tmp_path / "store")
    with Store(tmp_path / "store") as store:
        run = store.begin_run("runs/mine", {})
        with pytest.raises(StoreError, match=r"in use by the run in runs/mine \(process \d+ on"):
            m2m.collect_unreached([path])
        assert m2m.collect_unreached([path], dry_run=True).finetunes
        store.end_run(run, "finished")
        with (
            store.lock("some-key"),
            pytest.raises(StoreError, match=r"in use by the process that holds some-key\.lock"),
        ):
            m2m.collect_unreached([path])
        found = m2m.collect_unreached([path], dry_run=True)
        store.end_run(store.begin_run("runs/next", {}), "finished")
        with pytest.raises(StoreError, match="a run began in the store"):
            collect.remove(found)
    assert held(tmp_path / "store") == before


def test_a_run_of_another_host_is_asked_by_its_last_word(tmp_path: Path) -> None:
    path, other = write(tmp_path, "first", "ab"), write(tmp_path, "second", "cd")
    Filled(other)
    with Store(tmp_path / "store") as store:
        store.begin_run("runs/far", {})
    with sqlite3.connect(tmp_path / "store" / "ledger.sqlite") as ledger:
        ledger.execute("UPDATE runs SET host = 'far', pid = 1 WHERE run_dir = 'runs/far'")
    with pytest.raises(StoreError, match=r"runs/far \(process 1 on far\)"):
        m2m.collect_unreached([path])
    with sqlite3.connect(tmp_path / "store" / "ledger.sqlite") as ledger:
        ledger.execute("UPDATE runs SET updated = '2020-01-01T00:00:00.000000+00:00'")
    assert m2m.collect_unreached([path]).finetunes


WAITS = """
import sys
from mergetomix.store.store import Store

with Store(sys.argv[1]) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    store.end_run(store.begin_run("runs/other", {}), "finished")
    print("began", flush=True)
"""


def test_others_wait_until_it_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who opens the store meanwhile, or begins a run, would find things half gone."""
    path, other = write(tmp_path, "first", "ab"), write(tmp_path, "second", "cd")
    Filled(other)
    place = tmp_path / "store"
    command = [sys.executable, "-c", WAITS, str(place)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, **pipes)  # type: ignore[call-overload]
    assert process.stdout.readline() == "ready\n"
    real, seen = collect._remove_artifact, list[int]()

    def slow(*given: Any) -> None:
        if not seen:
            process.stdin.write("go\n")
            process.stdin.flush()
            time.sleep(0.7)
            with pytest.raises(Timeout):
                FileLock(place / "locks" / ".open.lock").acquire(timeout=0)
            seen.append(len(given[0].runs()))
        real(*given)

    monkeypatch.setattr(collect, "_remove_artifact", slow)
    before = len(runs_of(place))
    assert m2m.collect_unreached([path]).finetunes
    assert seen == [before]
    assert process.stdout.readline() == "began\n" and process.wait(timeout=60) == 0
    assert len(runs_of(place)) == before + 1


def runs_of(place: Path) -> list[dict[str, Any]]:
    with Store.peek(place) as store:
        return store.runs()


def test_an_expert_that_is_gone_removes_nothing(tmp_path: Path) -> None:
    """Its content is part of addresses: without it nobody knows what is the recipe's."""
    values = recipe_values(tmp_path, ("a", "b"))
    values["datasets"]["a"]["expert"] = "given"
    given = tmp_path / "given"
    given.mkdir()
    (given / "config.json").write_text("{}")
    (given / "model.safetensors").write_text("weights")
    path = write_recipe(tmp_path, values, "given.yaml")
    Filled(write(tmp_path, "second", "cd"))
    before = held(tmp_path / "store")
    (given / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"datasets\.a\.expert"):
        m2m.collect_unreached([path])
    shutil.rmtree(given)
    with pytest.raises(UserError, match=r"datasets\.a\.expert"):
        m2m.collect_unreached([path])
    assert held(tmp_path / "store") == before


def test_a_base_without_its_weights_removes_nothing(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(recipe_values(tmp_path)["base"], base)
    path, other = write(tmp_path, "first", "ab", base=str(base)), write(tmp_path, "second", "cd")
    Filled(path)
    Filled(other)
    for file in base.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(UserError, match=r"base\.path: no file of weights"):
        m2m.collect_unreached([path])


def test_a_recipe_that_reaches_nothing_is_said(tmp_path: Path) -> None:
    """Its base may have changed, and then all that it made goes."""
    path, other = write(tmp_path, "first", "ab"), write(tmp_path, "second", "cd")
    Filled(other)
    heard = Heard()
    m2m.collect_unreached([path, other], heard, dry_run=True)
    (said,) = [text for text in heard.warnings if "reaches no fine-tune" in text]
    assert str(tmp_path / "first") in said


def test_recipes_of_two_stores_are_refused(tmp_path: Path) -> None:
    paths = write(tmp_path, "first", "ab"), write(tmp_path, "second", "ab", store="another")
    with pytest.raises(UserError, match="must name one store"):
        m2m.collect_unreached(paths)
    with pytest.raises(UserError, match="at least one recipe"):
        m2m.collect_unreached([])
    with pytest.raises(StoreError, match="there is no store"):
        m2m.collect_unreached(paths[:1])
    assert not (tmp_path / "store").exists()


def test_a_recipe_that_cannot_be_read_removes_nothing(tmp_path: Path) -> None:
    path, other = write(tmp_path, "first", "ab"), write(tmp_path, "second", "cd")
    Filled(other)
    before = held(tmp_path / "store")
    (tmp_path / "b.jsonl").unlink()
    with pytest.raises(UserError, match=r"b\.jsonl"):
        m2m.collect_unreached([path])
    assert held(tmp_path / "store") == before


# --- a kill in the middle


class Killed(BaseException):
    """Stands for a kill: nothing may take it for its own."""


def killed_at(moment: int, patch: pytest.MonkeyPatch) -> Iterator[int]:
    """Has the process die at the given commit, rename or removal, before or after it."""
    passed = 0

    def tick() -> None:
        nonlocal passed
        passed += 1
        if passed == moment:
            raise Killed

    def around(owner: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        def call(*given: Any, **named: Any) -> Any:
            tick()
            found = real(*given, **named)
            tick()
            return found

        patch.setattr(owner, name, call)

    around(Path, "rename")
    around(collect, "_delete")
    around(collect, "_remove_path")
    execute = Ledger.execute

    def commits(self: Ledger, sql: str, *given: Any, **named: Any) -> Any:
        if sql == "COMMIT" or sql == "VACUUM":
            tick()
        return execute(self, sql, *given, **named)

    patch.setattr(Ledger, "execute", commits)
    # a process that is dead cleans nothing up
    patch.setattr(collect.shutil, "rmtree", lambda *given, **named: tick())
    yield passed


def test_a_kill_at_any_step_leaves_a_sound_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = three(tmp_path)
    for path in paths:
        Filled(path)
    place, copy, half = (tmp_path / name for name in ("store", "copy", "half"))
    (place / "damaged").mkdir()
    (place / "damaged" / "x").write_text("x")
    shutil.copytree(place, copy)
    known: dict[str, Any] = {}  # what recipes name is read once
    real = reach.read_inputs
    monkeypatch.setattr(
        reach,
        "read_inputs",
        lambda recipe, hear: (
            known.get(recipe.run_dir) or known.setdefault(recipe.run_dir, real(recipe, hear))
        ),
    )
    m2m.collect_unreached(paths[:2])
    wanted = held(place)
    moment, num_killed = 0, 0
    while True:
        moment += 1
        shutil.rmtree(place)
        shutil.copytree(copy, place)
        found = m2m.collect_unreached(paths[:2], dry_run=True)
        try:
            with monkeypatch.context() as patch:
                for _ in killed_at(moment, patch):
                    collect.remove(found)
        except Killed:
            num_killed += 1
        else:
            break
        # looked at beside it, as looking notes what a folder without rows holds
        shutil.rmtree(half, ignore_errors=True)
        shutil.copytree(place, half)
        assert repair.verify(half) == [], moment
        with Store(half) as store:  # what is handed out is whole
            for each in contents.survey(half).finetunes:
                assert store.finetune(each.key) is not None
        m2m.collect_unreached(paths[:2])
        assert held(place) == wanted, moment
    assert num_killed > 20


# --- shared storage


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_on_shared_storage_every_machine_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    url = f"file://{tmp_path}/shared" if kind == "file" else f"memory://{tmp_path.name}"
    monkeypatch.setenv("MERGETOMIX_CACHE", str(tmp_path / "here"))
    path, other = (
        write(tmp_path, "first", "abc", store=url),
        write(tmp_path, "second", "cd", store=url),
    )
    mine, theirs = Filled(path), Filled(other)
    monkeypatch.setenv("MERGETOMIX_CACHE", str(tmp_path / "there"))
    gone = {theirs.finetunes[key] for key in (("d", 0), ("cd", 0))}
    with Store(url) as store:
        # this machine fetches copies, which another one knows nothing of
        assert all(store.finetune(key) is not None for key in gone)
        assert store.shared is not None
        num_before = len(store.shared.mirror.folders())
        with pytest.raises(StoreError, match="in use by"):
            m2m.collect_unreached([path])
    monkeypatch.setenv("MERGETOMIX_CACHE", str(tmp_path / "here"))
    found = m2m.collect_unreached([path])
    assert {each.key for each in found.finetunes} == gone and found.num_bytes > 0
    with Store.peek(url) as store:  # before anybody who writes sweeps up
        assert store.shared is not None
        assert not {key for key, _ in store.shared.mirror.folders()} & gone
    assert repair.verify(url) == []
    for machine in ("there", "new"):
        monkeypatch.setenv("MERGETOMIX_CACHE", str(tmp_path / machine))
        assert repair.verify(url) == []
        assert held(url)[0] == set(mine.finetunes.values())
        with Store(url) as store:
            assert all(store.finetune(key) is None for key in gone)
            assert all(store.finetune(key) is not None for key in mine.finetunes.values())
            assert store.shared is not None
            left = store.shared.mirror.folders()
            assert len(left) == num_before - 4 and not {key for key, _ in left} & gone


# --- whole runs


@pytest.mark.slow
def test_a_run_afterwards_trains_nothing_anew(tmp_path: Path) -> None:
    paths, wanted = [], {}
    for name, datasets in (("first", "abc"), ("second", "bcd"), ("third", "ce")):
        verify = {"budget": 1, "repeats": 1, "exponents": []}
        path = write(tmp_path, name, datasets, verify=verify)
        m2m.run(path, Heard())
        paths.append(path)
    for path in paths[:2]:
        m2m.run(path, Heard())  # a second run says what is in the store, as a third will
        wanted[path] = said(path)
    before = contents.survey(tmp_path / "store")
    found = m2m.collect_unreached(paths[:2])
    assert {each.mixture.members for each in found.finetunes} == {("e",), ("c", "e")}
    after = contents.survey(tmp_path / "store")
    assert after.total_bytes < before.total_bytes
    assert repair.verify(tmp_path / "store") == []
    for path in paths[:2]:
        heard = Heard()
        result = m2m.run(path, heard)
        assert heard.trained() == [] and said(path) == wanted[path]
        assert result.cost.reused["trials"] == 7
        assert not [text for text in heard.tasks if "scoring the fine-tune" in text]
    heard = Heard()
    m2m.run(paths[2], heard)
    assert len([text for text in heard.trained() if "expert e" in text]) == 1


def said(path: Path) -> Any:
    folder = path.parent
    shutil.rmtree(folder / "run", ignore_errors=True)
    shutil.copytree(folder / path.stem, folder / "run")
    return without_times(result_of(folder), folder)
