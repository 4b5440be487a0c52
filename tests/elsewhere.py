"""An executor for tests: every piece of work goes to a process that opens the same recipe itself.

Answers come back in another order than the work went out. Usage: elsewhere.py RECIPE, with pickled
pieces of work on the standard input and pickled results on the standard output.
"""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from mergetomix.executors.work import Done, Work, attempt


class Elsewhere:
    """Keeps `num_workers` pieces of work in flight, all in one batch at a time."""

    def __init__(self, recipe: Path, num_workers: int, seed: int = 0) -> None:
        self._recipe, self._num_workers = recipe, num_workers
        self._random = random.Random(seed)

    def run(self, work: Iterable[Work]) -> Iterator[Done]:
        """Yields the end of every piece of work, in an order of its own."""
        left = iter(work)
        while batch := list(islice(left, self._num_workers)):
            done = self._carried_out(batch)
            self._random.shuffle(done)
            yield from done

    def _carried_out(self, batch: list[Work]) -> list[Done]:
        here = Path(__file__).parent
        paths = os.pathsep.join([str(here.parent), str(here), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, __file__, str(self._recipe)],
            input=pickle.dumps(batch),
            capture_output=True,
            check=False,
            env={**os.environ, "PYTHONPATH": paths},
        )
        assert done.returncode == 0, done.stderr.decode()
        found = pickle.loads(done.stdout)
        assert isinstance(found, list)
        return found


def main() -> None:
    import mergetomix as m2m
    from mergetomix.session.session import open_worker

    batch = pickle.load(sys.stdin.buffer)
    with open_worker(m2m.load_recipe(Path(sys.argv[1]))) as carry_out:
        done = [attempt(carry_out, work) for work in batch]
    sys.stdout.buffer.write(pickle.dumps(done))


if __name__ == "__main__":
    main()
