"""A piece of work as a value: what any process that opens the same recipe can carry out.

Each kind of work is a frozen record of plain values, and so is what it gives back. The process
that handed the work out is the only one that writes rows to the store.
"""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from mergetomix.curves import Curve
from mergetomix.errors import MergeToMixError
from mergetomix.records import Mixture, Part, Scores
from mergetomix.stretches import WHOLE, Stretch


@dataclass(frozen=True)
class ModelReference:
    """A model that is scored, named so that any process can load it.

    `base` is the recipe's base, `proxy` the merge that stands for `mixture` at `exponent`, and
    `real` the fine-tune in the folder `path`. `key` is the model's address.
    """

    kind: Literal["base", "proxy", "real"]
    key: str
    mixture: Mixture | None = None
    exponent: float = 1.0
    path: str = ""


@dataclass(frozen=True)
class FinetuneWork:
    """A fine-tune on a mixture to make, in the folder `folder`.

    The model lies in a folder of its own there, whose name the result says: a worker that was taken
    for lost may still write to another. `seed` is None where it is train.seed. `stage` says for
    which stage it is made, for the progress bar. `devices` are the GPUs of a training of several
    processes, as CUDA_VISIBLE_DEVICES calls them; without any it takes those that there are.
    """

    key: str
    mixture: Mixture
    seed: int | None
    stage: str
    folder: str
    devices: tuple[str, ...] = ()


@dataclass(frozen=True)
class FinetuneResult:
    """The result of FinetuneWork; the model lies in the folder `name` of the work's folder.

    `environment` says what the numbers depend on where it was made: versions, device, threads.
    `curve` is how its loss went.
    """

    name: str
    num_examples: int
    num_tokens: int
    seconds: float
    environment: Mapping[str, Any] = field(default_factory=dict)
    curve: Curve = field(default_factory=Curve)


@dataclass(frozen=True)
class Piece:
    """Something of a target to look at: its address, and which of its batches."""

    target: str
    address: str
    stretch: Stretch = WHOLE


@dataclass(frozen=True)
class ScoringWork:
    """A model to score on one part of some targets, or on blocks or stretches of their examples."""

    model: ModelReference
    part: Part
    pieces: tuple[Piece, ...]

    @property
    def key(self) -> str:
        """The address of the model."""
        return self.model.key


@dataclass(frozen=True)
class ScoredPiece:
    """What a model is worth on a piece.

    `scores` are of a whole one; of a stretch there is what the model made of its batches, `read`.
    `remark` says what is odd about the answers.
    """

    piece: Piece
    seconds: float
    scores: Scores | None = None
    read: Mapping[Any, Any] | None = None
    remark: str = ""


@dataclass(frozen=True)
class ScoringResult:
    """The result of ScoringWork."""

    merge_s: float
    pieces: tuple[ScoredPiece, ...]


@dataclass(frozen=True)
class GradientWork:
    """The derivatives of some targets at a proxy to take, in the coefficient of every expert."""

    model: ModelReference
    pieces: tuple[Piece, ...]

    @property
    def key(self) -> str:
        """The address of the model."""
        return self.model.key


@dataclass(frozen=True)
class Derivatives:
    """What a stretch of a target's batches adds to d loss / d c_i, by the address of expert i."""

    piece: Piece
    by_expert: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class GradientResult:
    """The result of GradientWork."""

    pieces: tuple[Derivatives, ...]


@dataclass(frozen=True)
class StatisticWork:
    """A statistic of an expert to measure on its own data, in a file in the folder `folder`."""

    key: str
    statistic: str
    dataset: str
    folder: str


Work: TypeAlias = FinetuneWork | ScoringWork | GradientWork | StatisticWork
Outcome: TypeAlias = FinetuneResult | ScoringResult | GradientResult | None
CarryOut: TypeAlias = Callable[[Work], Outcome]


@dataclass(frozen=True)
class Failure:
    """An error as a value: what was raised, where, and the traceback as text."""

    error: Exception
    traceback: str
    worker: str


@dataclass(frozen=True)
class Done:
    """A piece of work that came to an end, one way or the other."""

    work: Work
    outcome: Outcome = None
    failure: Failure | None = None

    def result(self) -> Outcome:
        """Returns the outcome. Raises the error of a failure, with its traceback as a note."""
        if self.failure is None:
            return self.outcome
        error = self.failure.error
        if error.__traceback__ is None and not isinstance(error, MergeToMixError):
            error.add_note(f"in {self.failure.worker}:\n{self.failure.traceback}")
        raise error


class Executor(Protocol):
    """Carries out work, `num_workers` pieces of it at a time.

    Results may come in any order, each as soon as it is there. An error of one piece of work is
    its result and does not end the others. Work is taken from the iterable only when there is a
    worker for it, so that a caller who stops asking stops the work.
    """

    @property
    def num_workers(self) -> int:
        """How many pieces of work may be under way at a time."""
        ...

    def run(self, work: Iterable[Work]) -> Iterator[Done]:
        """Yields the end of every piece of work, in any order."""
        ...

    def close(self) -> None:
        """Ends all workers, whatever they do."""
        ...


def attempt(carry_out: CarryOut, work: Work) -> Done:
    """Carries out one piece of work; an exception becomes a failure."""
    try:
        return Done(work, carry_out(work))
    except Exception as error:  # noqa: BLE001  # errors are values here; who asked raises them
        return Done(work, failure=Failure(error, traceback.format_exc(), whereabouts()))


def whereabouts() -> str:
    """Returns what this process is called in errors."""
    return f"process {os.getpid()} on {socket.gethostname()}"
