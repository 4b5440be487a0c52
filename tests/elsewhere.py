"""An executor for tests: the work goes to processes that open the same recipe themselves.

Answers come back in another order than the work went out. Run as a program, `elsewhere.py RECIPE`
carries out pickled pieces of work from the standard input, one after the other.
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
    """Hands out as many pieces of work at a time as it has workers, which live as long as it."""

    def __init__(self, recipe: Path, num_workers: int, seed: int = 0) -> None:
        self._recipe, self._num_workers = recipe, num_workers
        self._random = random.Random(seed)
        self._workers: list[subprocess.Popen[bytes]] = []

    @property
    def num_workers(self) -> int:
        """How many pieces of work go out at a time."""
        return self._num_workers

    def run(self, work: Iterable[Work]) -> Iterator[Done]:
        """Yields the end of every piece of work, in an order of its own."""
        left = iter(work)
        while batch := list(islice(left, self._num_workers)):
            while len(self._workers) < len(batch):
                self._workers.append(self._started())
            pairs = list(zip(self._workers, batch, strict=False))
            for worker, each in pairs:
                assert worker.stdin is not None
                pickle.dump(each, worker.stdin)
                worker.stdin.flush()
            self._random.shuffle(pairs)
            for worker, _ in pairs:
                assert worker.stdout is not None
                done = pickle.load(worker.stdout)
                assert isinstance(done, Done)
                yield done

    def _started(self) -> subprocess.Popen[bytes]:
        here = Path(__file__).parent
        paths = os.pathsep.join([str(here.parent), str(here), os.environ.get("PYTHONPATH", "")])
        return subprocess.Popen(
            [sys.executable, __file__, str(self._recipe)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
        )

    def close(self) -> None:
        """Does nothing: the workers live on for the next recipe."""

    def end(self) -> None:
        """Ends the workers."""
        for worker in self._workers:
            worker.communicate()
        self._workers.clear()


def main() -> None:
    import torch

    import mergetomix as m2m
    from mergetomix.progress import Silent
    from mergetomix.session.session import open_worker

    # as conftest.py does: OMP_NUM_THREADS alone leaves some libraries another number
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    # what libraries print must not stand among the answers
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    with open_worker(m2m.load_recipe(Path(sys.argv[1])), None, 1, Silent()) as carry_out:
        while True:
            try:
                work = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            pickle.dump(attempt(carry_out, work), answers)
            answers.flush()


if __name__ == "__main__":
    main()
