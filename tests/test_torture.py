"""A little of what `make torture` does in full: kills, full disks, odd recipes and files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TORTURE = Path(__file__).resolve().parents[1] / "torture"


@pytest.fixture
def torture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TORTURE))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "num"), [("recipes", 300), ("files", 300), ("benchmarks", 150)])
def test_what_nobody_meant_ends_as_the_law_says(
    torture: None, tmp_path: Path, kind: str, num: int
) -> None:
    import fuzz

    counts = getattr(fuzz, kind)(num, tmp_path, seed=2)
    assert counts.tried == num
    assert counts.wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora"])
def test_kills_and_full_disks_change_nothing(torture: None, tmp_path: Path, name: str) -> None:
    """In a process of its own, which forks before any thread is there."""
    import subprocess

    command = [sys.executable, str(TORTURE / "run.py"), "--kills", "3", "--fuzz", "0"]
    done = subprocess.run(
        [*command, "--worlds", name], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WRONG" not in done.stdout
    assert "| at a moment | 2 | 2 |" in done.stdout
