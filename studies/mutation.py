"""Which single changes of statistics and stages does no test notice? By cosmic-ray, in a copy.

python studies/mutation.py [--num 30] [--seed 0] [MODULE ...]

Of every module of TESTS (or of those named) a seeded sample of `--num` places (0: all) is changed,
one at a time and in one way each, and the module's tests are run. Printed are how many changes they
noticed, and every other one as a diff. The exit status is that of the tests on the code as it is.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("mergetomix", "tests", "studies", "docs", "pyproject.toml")
TESTS = {
    "statistics/posterior": ("test_calibrate.py",),
    "statistics/noise": ("test_noise.py",),
    "statistics/next_check": ("test_calibrate.py",),
    "statistics/drawn_posterior": ("test_drawn_posterior.py", "test_objective.py"),
    "statistics/opinion_pool": ("test_pool.py",),
    "statistics/early_stopping": ("test_race.py",),
    "statistics/agreement": ("test_fidelity.py", "test_differences.py"),
    "statistics/standard_errors": ("test_drawn_posterior.py", "test_objective.py"),
    "stages/checks": ("test_conclusion.py", "test_verify.py", "test_several_targets.py"),
    "stages/race": ("test_racing.py",),
    "stages/search": ("test_budget.py", "test_several_targets.py", "test_search_samplers.py"),
    "stages/stopping": ("test_budget.py",),
}
"""Modules of the package, and the files of tests that state their laws."""
SILENT = "core/ReplaceBinaryOperator_BitOr"
"""Mutants of annotations (`Array | None`), which nothing evaluates."""
TIMEOUT_S = 120
PYTEST = "-m pytest -x -q -p no:cacheprovider -p no:xdist -p no:randomly"
ALONE = " --noconftest"
"""Tests of numbers need no models, and start in a moment without."""
CONFIG = """[cosmic-ray]
module-path = "mergetomix/{module}.py"
timeout = {timeout}
excluded-modules = []
test-command = "{command}"
distributor.name = "local"
"""


def main() -> int:
    """Reads the command line, and tests each module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("modules", nargs="*", choices=[*TESTS, []], metavar="MODULE")
    parser.add_argument("--num", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(folder) / name)
        for module in arguments.modules or TESTS:
            tests = " ".join(f"tests/{name}" for name in TESTS[module])
            options = PYTEST + ALONE * module.startswith("statistics")
            command = f"{sys.executable} {options} {tests}"
            if run(folder, command.split()):
                return 1
            tested, survivors = mutate(Path(folder), module, command, arguments)
            print(f"{module}: {tested - len(survivors)} of {tested} mutants killed")
            print("\n".join(survivors), flush=True)
    return 0


def run(folder: str | Path, command: Sequence[str]) -> int:
    """Runs a command in the copy, whose package is the one that is imported; silent if all is well.

    Returns the exit status.
    """
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if found.returncode:
        print(found.stdout[-3000:], found.stderr[-3000:])
    return found.returncode


def mutate(
    folder: Path, module: str, command: str, arguments: argparse.Namespace
) -> tuple[int, list[str]]:
    """Tests a sample of a module's mutants: how many there were, and the survivors' diffs."""
    config, session = (folder / f"{Path(module).name}.{kind}" for kind in ("toml", "sqlite"))
    text = CONFIG.format(module=module, timeout=TIMEOUT_S, command=command)
    config.write_text(text, encoding="utf-8")
    cosmic_ray = [sys.executable, "-m", "cosmic_ray.cli"]
    run(folder, [*cosmic_ray, "init", str(config), str(session)])
    with use_db(session, WorkDB.Mode.open) as database:
        every = sorted(database.work_items, key=lambda item: str(item.mutations))
        random.Random(arguments.seed).shuffle(every)
        # one mutant of a place says as much as all ten that put another operator there
        chosen = {
            item.mutations[0].start_pos: item
            for item in every
            if not item.mutations[0].operator_name.startswith(SILENT)
        }
        database.clear()
        database.add_work_items(list(chosen.values())[: arguments.num or len(chosen)])
    run(folder, [*cosmic_ray, "exec", str(config), str(session)])
    with use_db(session, WorkDB.Mode.open) as database:
        results = [result for _, result in database.completed_work_items]
    survived = [each for each in results if each.test_outcome == TestOutcome.SURVIVED]
    return len(results), [each.diff or "" for each in survived]


if __name__ == "__main__":
    sys.exit(main())
