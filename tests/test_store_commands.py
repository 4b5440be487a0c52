"""The commands that show what a store keeps and clear it out: what they print, when they ask."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from kept_work import Filled, files_in, held, three, write
from typer.testing import CliRunner

import mergetomix as m2m
from mergetomix.cli import commands
from mergetomix.cli.commands import app
from mergetomix.errors import StoreError, UserError
from mergetomix.session import gradients, proxies
from mergetomix.stages import answers, checks, rehearsal, stopping
from mergetomix.store import contents


class Keyboard:
    """Stands for standard input with somebody at it."""

    def isatty(self) -> bool:
        return True


Answer = Callable[..., tuple[list[str], str]]


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Answer:
    """Runs `store gc` with somebody who answers: what was asked, and what was printed."""

    def run(answer: bool, path: Path) -> tuple[list[str], str]:
        asked: list[str] = []
        out = io.StringIO()
        with monkeypatch.context() as patch:
            patch.setattr("typer.confirm", lambda text: asked.append(text) or answer)
            patch.setattr(sys, "stdin", Keyboard())
            patch.setattr(sys, "stdout", out)
            commands.clear_store([path])
        return asked, out.getvalue()

    return run


def test_it_asks_and_goes_by_the_answer(tmp_path: Path, answered: Answer) -> None:
    path, other = write(tmp_path, "first", "ab"), write(tmp_path, "second", "cd")
    Filled(path)
    Filled(other)
    before = held(tmp_path / "store")
    asked, said = answered(False, path)
    assert len(asked) == 1 and "nothing was removed" in said and "c + d" in said
    assert held(tmp_path / "store") == before
    asked, said = answered(True, path)
    assert len(asked) == 1 and "removed " in said
    assert len(held(tmp_path / "store")[0]) == 3
    asked, said = answered(False, path)
    assert asked == [] and "keeps nothing that these recipes do not reach" in said


def test_where_nobody_can_be_asked_it_wants_yes(tmp_path: Path) -> None:
    path, other = write(tmp_path, "first", "ab"), write(tmp_path, "second", "cd")
    Filled(other)
    before = held(tmp_path / "store")
    refused = CliRunner().invoke(app, ["store", "gc", str(path)])
    assert isinstance(refused.exception, UserError) and refused.exception.exit_code == 2
    assert refused.exception.hint == "add --yes" and held(tmp_path / "store") == before
    done = CliRunner().invoke(app, ["store", "gc", str(path), "--yes"])
    assert done.exit_code == 0, done.output
    assert held(tmp_path / "store")[0] == set()


def test_show_tells_what_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path, "first", "ab")
    Filled(path)
    (tmp_path / "store" / "damaged").mkdir()
    (tmp_path / "store" / "damaged" / "broken.1").write_bytes(bytes(5000))
    found = m2m.store_contents(tmp_path / "store")
    table = found.to_frame()
    assert list(table["key"]) == [each.key for each in found.finetunes]
    assert list(table["num_bytes"]) == [each.num_bytes for each in found.finetunes]
    assert [each.mixture.members for each in found.finetunes] == [("a",), ("b",), ("a", "b")]
    size = len("weights of ") + 32
    assert all(each.num_bytes > size and each.num_tokens == 100 for each in found.finetunes)
    assert {what: num for what, (num, _) in found.by_kind().items()} == {
        "derivatives of targets": 2,
        "statistics of experts (Fisher, Gram)": 2,
        "what checks knew at their start": 1,
    }
    assert dict(found.num_models) == {"base": 1, "proxy": 2, "real": 3}
    assert (found.num_scores, found.num_example_scores) == (6, 12)
    on_disk = sum(each.stat().st_size for each in (tmp_path / "store").rglob("*") if each.is_file())
    assert found.total_bytes == on_disk and 0 < found.ledger_bytes < on_disk
    before = files_in(tmp_path / "store")
    shown = CliRunner().invoke(app, ["store", "show", str(path)])
    assert shown.exit_code == 0, shown.output
    for text in ("a + b", "statistics of experts", "broken.1", "5 kB", "models scored: proxy"):
        assert text in shown.output
    assert files_in(tmp_path / "store") == before


def test_show_of_shared_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"file://{tmp_path}/shared"
    monkeypatch.setenv("MERGETOMIX_CACHE", str(tmp_path / "here"))
    Filled(write(tmp_path, "first", "ab", store=url))
    here = contents.survey(url)
    monkeypatch.setenv("MERGETOMIX_CACHE", str(tmp_path / "there"))
    there = contents.survey(url)
    assert here.finetunes == there.finetunes and here.total_bytes == there.total_bytes > 0
    assert here.cache_bytes is not None and there.cache_bytes is not None
    assert here.cache_bytes > there.cache_bytes  # which has the ledger alone
    shown = CliRunner().invoke(app, ["store", "show", url])
    assert shown.exit_code == 0 and url in shown.output and "a + b" in shown.output


def test_show_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store"):
        m2m.store_contents(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_the_kinds_of_artifacts_are_those_that_are_written() -> None:
    files = {gradients.FILE, proxies.FILE, checks.KNOWN, stopping.PASSES, answers.FILE}
    assert set(contents.KINDS) == files | {rehearsal.FILE}


def test_a_dry_run_changes_no_byte(tmp_path: Path) -> None:
    paths = three(tmp_path)
    for path in paths:
        Filled(path)
    before = files_in(tmp_path / "store")
    shown = CliRunner().invoke(app, ["store", "gc", str(paths[0]), str(paths[1]), "--dry-run"])
    assert shown.exit_code == 0 and "c + e" in shown.output and "b + c + d" not in shown.output
    assert files_in(tmp_path / "store") == before
