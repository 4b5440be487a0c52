"""Damaged artifacts: found before they are read, named, set aside and made again."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from recipes import Heard, recipe_values, result_of, without_times, write_recipe
from typer.testing import CliRunner

import mergetomix as m2m
from mergetomix.cli.commands import app
from mergetomix.errors import Fault, StoreError
from mergetomix.records import Finetune, Mixture, Scores
from mergetomix.store import repair
from mergetomix.store.manifest import MANIFEST, Manifest
from mergetomix.store.store import Store

A, B, AB = (Mixture.union(names) for names in (["a"], ["b"], ["a", "b"]))
SIZE = 40_000


def bytes_of(key: str) -> bytes:
    return random.Random(key).randbytes(SIZE)


def keep(store: Store, key: str, mixture: Mixture) -> Finetune:
    with store.artifact(key) as folder:
        (folder / "model.safetensors").write_bytes(bytes_of(key))
        (folder / "config.json").write_text('{"layers": 2}')
        (folder / "sub").mkdir()
        (folder / "sub" / "more.bin").write_bytes(bytes_of(f"{key} more"))
    record = Finetune(mixture, key, str(store.artifact_path(key)), 10, 100, 1.5)
    store.add_finetune(record, {"seed": 1}, {"torch": "2"})
    return record


def filled(path: Path) -> Store:
    """A store with two experts, a real fine-tune, proxies, their scores and what they led to."""
    store = Store(path)
    for key, mixture in (("expert-a", A), ("expert-b", B), ("real-ab", AB)):
        keep(store, key, mixture)
        store.add_model(key, "expert" if len(mixture) == 1 else "real", mixture)
        store.add_scores(key, "t", "select", Scores("loss", (1.0,), (1.0,)), 0.1)
    for key, sources in (("proxy-a", ["expert-a"]), ("proxy-ab", ["expert-a", "expert-b"])):
        store.add_model(key, "proxy", AB, 0.1, sources)
        store.add_scores(key, "t", "select", Scores("loss", (1.0,), (1.0,)), 0.1)
    with store.artifact("slope-ab", ["expert-a", "expert-b"]) as folder:
        (folder / "slope.json").write_text("[1]")
    with store.artifact("fisher-b", ["expert-b"]) as folder:
        (folder / "fisher.bin").write_text("1")
    return store


def filled_by_an_earlier_release(path: Path) -> None:
    """The same store without what this release notes of its folders."""
    filled(path).close()
    with sqlite3.connect(path / "ledger.sqlite") as ledger:
        ledger.execute("DROP TABLE artifacts")
        ledger.execute("DROP TABLE sources")
    for manifest in (path / "artifacts").glob(f"*/{MANIFEST}"):
        manifest.unlink()


def zero_pages(file: Path) -> None:
    with file.open("r+b") as opened:
        for page in (0, 3, 7):
            opened.seek(page * 4096)
            opened.write(bytes(4096))


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file: Path, part: float) -> None:
    os.truncate(file, int(file.stat().st_size * part))


def replaced(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/null")


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def as_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def with_its_old_time(file: Path) -> None:
    before = file.stat()
    flip_a_bit(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


WEIGHTS = "model.safetensors"
DAMAGES: dict[str, Callable[[Path], object]] = {
    "zeroed pages": lambda f: zero_pages(f / WEIGHTS),
    "one bit": lambda f: flip_a_bit(f / WEIGHTS),
    "one bit, with the time that it had": lambda f: with_its_old_time(f / WEIGHTS),
    "cut in half": lambda f: cut(f / WEIGHTS, 0.5),
    "cut by one byte": lambda f: os.truncate(f / WEIGHTS, SIZE - 1),
    "no bytes": lambda f: cut(f / WEIGHTS, 0),
    "one byte more": lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes() + b"x"),
    "a file is gone": lambda f: (f / WEIGHTS).unlink(),
    "a file below is gone": lambda f: (f / "sub" / "more.bin").unlink(),
    "a folder below is gone": lambda f: shutil.rmtree(f / "sub"),
    "a file below is damaged": lambda f: flip_a_bit(f / "sub" / "more.bin"),
    "a small file has other words": lambda f: (f / "config.json").write_text('{"layers": 3}'),
    "a file too many": lambda f: (f / "model.safetensors.index.json").write_text("{}"),
    "a file too many below": lambda f: (f / "sub" / "tokenizer_config.json").write_text("{}"),
    "two files changed places": lambda f: (
        (f / WEIGHTS).rename(f / "x"),
        (f / "sub" / "more.bin").rename(f / WEIGHTS),
        (f / "x").rename(f / "sub" / "more.bin"),
    ),
    "another expert's weights": lambda f: shutil.copy(f.parent / "expert-b" / WEIGHTS, f / WEIGHTS),
    "another's whole folder": lambda f: (
        shutil.rmtree(f),
        shutil.copytree(f.parent / "real-ab", f),
    ),
    "a link to nothing": lambda f: replaced(f / WEIGHTS),
    "a folder in a file's place": lambda f: as_a_folder(f / WEIGHTS),
    "an empty folder": emptied,
    "other bytes after a rename": lambda f: (
        (f / "new").write_bytes(bytes(SIZE)),
        (f / "new").replace(f / WEIGHTS),
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_expert_is_named_and_set_aside_with_what_came_of_it(
    tmp_path: Path, kind: str
) -> None:
    filled(tmp_path).close()
    with Store(tmp_path) as store:  # another process, which has looked once
        assert store.finetune("expert-a") is not None
    DAMAGES[kind](tmp_path / "artifacts" / "expert-a")
    heard: list[str] = []
    with Store(tmp_path) as store:
        store.on_damage(heard.append)
        assert store.finetune("expert-a") is None
        assert store.finetune("expert-a") is None
        (said,) = heard
        assert said.startswith("the fine-tune on a in the store is damaged: ")
        assert "made again" in said
        (aside,) = (tmp_path / "damaged").iterdir()
        assert str(aside) in said
        gone = ("expert-a", "proxy-a", "proxy-ab")
        assert [store.scores(key, "t", "select") for key in gone] == [None] * 3
        assert store.file("slope-ab", "slope.json") is None
        # and nothing else
        assert store.finetune("expert-b") is not None
        assert store.finetune("real-ab") is not None
        assert store.scores("real-ab", "t", "select") is not None
        assert store.file("fisher-b", "fisher.bin") is not None
        # it is made again
        record = keep(store, "expert-a", A)
        assert store.finetune("expert-a") == record


def test_what_is_sound_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path).close()
    old = 10**9
    for file in (tmp_path / "artifacts").rglob("*"):
        os.utime(file, ns=(old, old))
    read: list[Path] = []
    hashed = m2m.store.store.sha256_of
    monkeypatch.setattr(
        "mergetomix.store.store.sha256_of", lambda path: read.append(path) or hashed(path)
    )
    monkeypatch.setattr("mergetomix.store.store._SETTLED_NS", -1)
    for _ in range(3):
        with Store(tmp_path) as store:
            for _ in range(3):
                assert store.finetune("expert-a") is not None
    assert sorted(path.name for path in read) == ["config.json", "model.safetensors", "more.bin"]


def test_two_experts_that_changed_places_are_found(tmp_path: Path) -> None:
    filled(tmp_path).close()
    folders = [tmp_path / "artifacts" / f"expert-{name}" for name in "ab"]
    folders[0].rename(tmp_path / "x")
    folders[1].rename(folders[0])
    (tmp_path / "x").rename(folders[1])
    with Store(tmp_path) as store:
        assert store.finetune("expert-a") is store.finetune("expert-b") is None
        assert store.scores("proxy-ab", "t", "select") is None


def test_a_damaged_file_of_another_artifact_is_none(tmp_path: Path) -> None:
    with filled(tmp_path) as store:
        flip_a_bit(tmp_path / "artifacts" / "fisher-b" / "fisher.bin")
        assert store.file("fisher-b", "fisher.bin") is None
        assert store.file("fisher-b", "fisher.bin") is None
        assert store.finetune("expert-b") is not None


def test_who_may_not_write_is_told(tmp_path: Path) -> None:
    filled(tmp_path).close()
    cut(tmp_path / "artifacts" / "expert-a" / WEIGHTS, 0.5)
    with Store.peek(tmp_path) as store:
        assert store.finetune("expert-b") is not None
        with pytest.raises(Fault, match=r"fine-tune on a in the store is damaged: model\.safe"):
            store.finetune("expert-a")
    assert not (tmp_path / "damaged").exists()


def test_a_store_of_an_earlier_release_is_noted_as_it_lies(tmp_path: Path) -> None:
    filled_by_an_earlier_release(tmp_path)
    with Store.peek(tmp_path) as store:
        assert store.finetune("expert-a") is not None
    with Store(tmp_path) as store:
        assert store.finetune("expert-a") is not None
        store.add_model("proxy-new", "proxy", AB, 0.1, ["expert-b"])
        store.add_scores("proxy-new", "t", "select", Scores("loss", (1.0,), (1.0,)), 0.1)
    found = Manifest.read(tmp_path / "artifacts" / "expert-a")
    assert found is not None and found.row is not None and found.row["num_tokens"] == 100
    cut(tmp_path / "artifacts" / "expert-a" / WEIGHTS, 0.5)
    with Store(tmp_path) as store:
        assert store.finetune("expert-a") is None
        # of what it computed nobody knows from what
        assert store.scores("proxy-ab", "t", "select") is None
        assert store.file("slope-ab", "slope.json") is None
        assert store.scores("proxy-new", "t", "select") is not None
        assert store.scores("real-ab", "t", "select") is not None


def test_what_another_process_made_again_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes find the same damage; the second comes after the first has trained again."""
    filled(tmp_path).close()
    cut(tmp_path / "artifacts" / "expert-a" / WEIGHTS, 0.5)
    with Store(tmp_path) as first, Store(tmp_path) as second:
        artifacts, heard = second._artifacts, []
        second.on_damage(heard.append)
        seen = artifacts.damage

        def late(key: str) -> str | None:
            found = seen(key)
            if found is not None and first.finetune(key) is None:
                keep(first, key, A)
            return found

        monkeypatch.setattr(artifacts, "damage", late)
        assert second.finetune("expert-a") == first.finetune("expert-a") is not None
        assert heard == []
    with Store(tmp_path) as third, Store(tmp_path) as fourth:
        cut(tmp_path / "artifacts" / "expert-a" / WEIGHTS, 0.5)
        assert third.finetune("expert-a") is fourth.finetune("expert-a") is None


def test_an_interruption_while_setting_aside_leaves_nothing_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path).close()
    cut(tmp_path / "artifacts" / "expert-a" / WEIGHTS, 0.5)

    def interrupted(_: Path) -> None:
        raise KeyboardInterrupt

    with Store(tmp_path) as store, monkeypatch.context() as patch:
        patch.setattr("mergetomix.store.artifacts.fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.finetune("expert-a")
    with Store(tmp_path) as store:
        assert store.finetune("expert-a") is None
        keep(store, "expert-a", A)
        assert store.scores("proxy-a", "t", "select") is None
        assert store.file("slope-ab", "slope.json") is None


def test_a_folder_without_its_rows_is_compared_with_its_manifest(tmp_path: Path) -> None:
    """As a kill leaves it between the folder and the commit of its rows."""
    filled(tmp_path).close()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as ledger:
        for table in ("artifacts", "sources"):
            ledger.execute(f"DELETE FROM {table} WHERE key IN ('fisher-b', 'slope-ab')")
    flip_a_bit(tmp_path / "artifacts" / "slope-ab" / "slope.json")
    with Store(tmp_path) as store:
        assert store.file("slope-ab", "slope.json") is None
        assert store.file("fisher-b", "fisher.bin") is not None
        # and what it was made from is known again
        cut(tmp_path / "artifacts" / "expert-b" / WEIGHTS, 0.5)
        assert store.finetune("expert-b") is None
        assert store.file("fisher-b", "fisher.bin") is None


def test_what_an_earlier_release_made_goes_though_it_was_noted(tmp_path: Path) -> None:
    filled_by_an_earlier_release(tmp_path)
    with Store(tmp_path) as store:
        assert store.file("fisher-b", "fisher.bin") is not None
        assert store.finetune("expert-a") is not None
    cut(tmp_path / "artifacts" / "expert-a" / WEIGHTS, 0.5)
    with Store(tmp_path) as store:
        assert store.finetune("expert-a") is None
        assert store.file("fisher-b", "fisher.bin") is None


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    filled(tmp_path).close()
    file = tmp_path / "artifacts" / "expert-a" / WEIGHTS
    file.unlink()
    os.mkfifo(file)
    with Store(tmp_path) as store:
        assert store.finetune("expert-a") is None


def test_a_folder_that_is_gone_is_damage(tmp_path: Path) -> None:
    filled(tmp_path).close()
    shutil.rmtree(tmp_path / "artifacts" / "expert-a")
    assert repair.verify(tmp_path) == ["artifact expert-a: its folder is gone"]
    with Store(tmp_path) as store:
        assert store.finetune("expert-a") is None
        assert store.scores("proxy-ab", "t", "select") is None
    assert repair.verify(tmp_path) == []


def test_a_store_is_rebuilt_by_a_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / ".mergetomix").close()
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(app, ["store", "rebuild"])
    assert shown.exit_code == 0 and "3 fine-tunes" in shown.output
    assert CliRunner().invoke(app, ["store", "verify"]).output == "nothing is damaged\n"


# --- a ledger that is lost


LOST: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "without bytes": lambda ledger: os.truncate(ledger, 0),
    "of zeros": lambda ledger: ledger.write_bytes(bytes(8192)),
    "of something else": lambda ledger: ledger.write_bytes(b"x" * 5000),
    "cut": lambda ledger: os.truncate(ledger, 5000),
}


@pytest.mark.parametrize("kind", LOST)
def test_a_lost_ledger_is_said_and_written_anew(tmp_path: Path, kind: str) -> None:
    filled(tmp_path).close()
    for name in ("-wal", "-shm"):
        (tmp_path / f"ledger.sqlite{name}").unlink(missing_ok=True)
    LOST[kind](tmp_path / "ledger.sqlite")
    cut(tmp_path / "artifacts" / "expert-b" / WEIGHTS, 0.5)
    (tmp_path / "artifacts" / "mine").mkdir()
    with pytest.raises(StoreError, match=r"ledger\.sqlite") as caught:
        Store(tmp_path)
    assert "mergetomix store rebuild" in str(caught.value.hint)
    shown = CliRunner().invoke(app, ["store", "rebuild", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    assert "2 fine-tunes and 2 other artifacts" in shown.output
    assert "set aside as damaged: expert-b: model.safetensors" in shown.output
    assert "artifact mine" in shown.output
    with Store(tmp_path) as store:
        found = store.finetune("expert-a")
        folder = str(tmp_path / "artifacts" / "expert-a")
        assert found == Finetune(A, "expert-a", folder, 10, 100, 1.5)
        assert store.finetune("expert-b") is None
        assert store.file("fisher-b", "fisher.bin") is not None
        assert store.scores("real-ab", "t", "select") is None
        # what it was made from is known again
        flip_a_bit(tmp_path / "artifacts" / "expert-a" / WEIGHTS)
        assert store.finetune("expert-a") is None
        assert store.file("slope-ab", "slope.json") is None


def test_no_store_is_made_of_a_folder_that_is_none(tmp_path: Path) -> None:
    for command in ("rebuild", "verify"):
        shown = CliRunner().invoke(app, ["store", command, str(tmp_path / "none")])
        assert shown.exit_code != 0
        assert isinstance(shown.exception, StoreError)
    assert list(tmp_path.iterdir()) == []


def test_verify_reads_every_byte(tmp_path: Path) -> None:
    filled(tmp_path).close()
    assert repair.verify(tmp_path) == []
    with Store(tmp_path) as store:
        store.finetune("expert-a")
    file = tmp_path / "artifacts" / "expert-a" / WEIGHTS
    flip_a_bit(file)
    # as a disk would lose it: no time stamp tells
    stat = file.stat()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as ledger:
        (known,) = ledger.execute(
            "SELECT sha256 FROM artifacts WHERE key = 'expert-a' AND file = ?", (WEIGHTS,)
        ).fetchone()
        stamps = (str(file), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, known)
        ledger.execute("REPLACE INTO files VALUES (?, ?, ?, ?, ?)", stamps)
    with Store(tmp_path) as store:
        assert store.finetune("expert-a") is not None
    shown = CliRunner().invoke(app, ["store", "verify", str(tmp_path)])
    assert shown.exit_code == 1
    assert "artifact expert-a: model.safetensors holds other bytes" in shown.output
    with Store(tmp_path) as store:
        assert store.finetune("expert-a") is None


# --- whole runs


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    m2m.run(write_recipe(folder, recipe_values(folder)))
    return folder


def kept(folder: Path) -> dict[str, Path]:
    """The folders of the fine-tunes by their mixtures."""
    found = {}
    for manifest in (folder / "store" / "artifacts").glob(f"*/{MANIFEST}"):
        row = json.loads(manifest.read_text())["row"]
        if row is not None:
            found["+".join(json.loads(row["mixture"])[0])] = manifest.parent
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zeroed", "swapped", "cut", "ledger"])
def test_a_run_on_damaged_artifacts_ends_as_if_nothing_had_been(
    undisturbed: Path, tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "again"
    shutil.copytree(undisturbed, folder)
    before, folders, heard = result_of(undisturbed), kept(folder), Heard()
    picked = "+".join(before["selected"]["datasets"])
    damaged = {"zeroed": ["a"], "swapped": ["a", "b"], "cut": [picked], "ledger": []}[kind]
    if kind == "zeroed":
        zero_pages(folders["a"] / WEIGHTS)
    elif kind == "swapped":
        one, other = folders["a"] / WEIGHTS, folders["b"] / WEIGHTS
        one.rename(folder / "x")
        other.rename(one)
        (folder / "x").rename(other)
    elif kind == "cut":
        cut(folders[picked] / WEIGHTS, 0.5)
    else:
        (folder / "store" / "ledger.sqlite").unlink()
        repair.rebuild(folder / "store")
    m2m.run(folder / "recipe.yaml", heard)
    assert sum("is damaged" in line for line in heard.warnings) == len(damaged)
    assert len(heard.trained()) == len(damaged)
    after = result_of(folder)
    before["warnings"] = after["warnings"] = []
    assert without_times(after, folder) == without_times(before, undisturbed)
    final = folder / "run" / "final" / WEIGHTS
    assert final.read_bytes() == (undisturbed / "run" / "final" / WEIGHTS).read_bytes()
    assert not (folder / "run" / "final" / MANIFEST).exists()


@pytest.mark.slow
def test_what_is_done_to_the_final_model_does_nothing_to_the_store(undisturbed: Path) -> None:
    result = result_of(undisturbed)
    final, source = undisturbed / "run" / "final", Path(result["final"]["path"])
    source = kept(undisturbed)["+".join(result["selected"]["datasets"])]
    for file in final.rglob("*"):
        if file.is_file() and (source / file.name).exists():
            assert file.stat().st_ino != (source / file.name).stat().st_ino


@pytest.mark.slow
def test_a_final_model_that_is_damaged_at_the_last_moment_is_not_handed_over(
    undisturbed: Path, tmp_path: Path
) -> None:
    from mergetomix.report.files import hand_over

    source = tmp_path / "artifacts" / "key"
    shutil.copytree(kept(undisturbed)["a"], source)
    cut(source / WEIGHTS, 0.5)
    with pytest.raises(Fault, match="holds other bytes than were trained"):
        hand_over(source, tmp_path / "final", "a card")
    assert not (tmp_path / "final").exists()
