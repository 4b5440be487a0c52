"""One class for each tracker, which begins a run when it is made.

Each holds its own handle and leaves the tracker's current run alone, as a fine-tune's run lies
inside the tool's. Where it writes to is said by the tracker's own environment variables, as with
transformers: TENSORBOARD_LOGGING_DIR, WANDB_PROJECT, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME,
TRACKIO_PROJECT.
"""

from __future__ import annotations

import contextvars
import io
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PROJECT = "mergetomix"
"""Where the user names none."""
PATIENCE_S = 10
"""So long a server may take to answer, unless the user says otherwise."""
SEND_EVERY_S = 2.0
"""How often numbers are sent to MLflow, whose client waits for the answer."""
MOST_CHARACTERS = 500
"""Of a setting that is told; MLflow refuses longer ones."""


@dataclass(frozen=True)
class RunPlace:
    """A run's name, the group it belongs to, and the folder of the tool's run."""

    name: str
    group: str
    folder: Path

    @property
    def file_name(self) -> str:
        """The run's name as that of a file."""
        return re.sub(r"[^\w.+-]+", "-", self.name)[:120]


class TrackedRun(Protocol):
    """A run in one tracker, see `trackers.Tracked`; every method may raise whatever it likes."""

    where: str

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Notes some numbers."""
        ...

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Notes a table."""
        ...

    def files(self, paths: Sequence[Path]) -> None:
        """Keeps copies of files."""
        ...

    def end(self, failed: bool) -> None:
        """Ends the run."""
        ...


class TensorBoardRun:
    """Event files in a folder of the run's own, by default under `tensorboard` in the run's."""

    def __init__(self, place: RunPlace, values: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # perhaps an address, which is no path
        root = os.environ.get("TENSORBOARD_LOGGING_DIR") or str(place.folder / "tensorboard")
        self.where = f"tensorboard --logdir {root}"
        began = time.strftime("%Y%m%d-%H%M%S")
        folder = f"{root.rstrip('/')}/{place.group}/{place.file_name}-{began}"
        self._writer = SummaryWriter(folder)
        lines = [f"| {key} | {value} |" for key, value in values.items()]
        self._writer.add_text("settings", "\n".join(["| setting | value |", "|---|---|", *lines]))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Notes some numbers."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Notes a table as text."""
        head = list(rows[0]) if rows else []
        lines = [" | ".join(str(row[key]) for key in head) for row in rows]
        marks = " | ".join("---" for _ in head)
        self._writer.add_text(name, "\n".join([" | ".join(head), marks, *lines]))

    def files(self, paths: Sequence[Path]) -> None:
        """Shows reports as text; TensorBoard keeps no files."""
        for path in paths:
            if path.suffix == ".md":
                self._writer.add_text(path.name, path.read_text(encoding="utf-8"))

    def end(self, failed: bool) -> None:  # an event file does not say how it ended
        """Closes the file."""
        self._writer.close()


class WandbRun:
    """A run of Weights & Biases, beside whatever else this process reports there."""

    def __init__(self, place: RunPlace, values: Mapping[str, Any]) -> None:
        import wandb

        self._wandb = wandb
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            group=place.group,
            name=place.name,
            config=dict(values),
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", init_timeout=PATIENCE_S),
        )
        self.where = str(self._run.dir if self._run.offline else self._run.url)
        self._axes: set[str] = set()

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Notes some numbers; each group of them has an axis of its own."""
        axes = {f"{name.partition('/')[0]}/step": step for name in values}
        for axis in axes.keys() - self._axes:
            self._run.define_metric(axis, hidden=True)
            self._run.define_metric(f"{axis.partition('/')[0]}/*", step_metric=axis)
            self._axes.add(axis)
        self._run.log({**values, **axes})

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Notes a table."""
        head = list(rows[0]) if rows else []
        cells = [[row[key] for key in head] for row in rows]
        self._run.log({name: self._wandb.Table(columns=head, data=cells)})

    def files(self, paths: Sequence[Path]) -> None:
        """Keeps copies of files as one artifact."""
        artifact = self._wandb.Artifact("report", type="report")
        for path in paths:
            artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def end(self, failed: bool) -> None:
        """Ends the run."""
        self._run.finish(exit_code=int(failed))


class MlflowRun:
    """A run of MLflow, by its client."""

    def __init__(self, place: RunPlace, values: Mapping[str, Any]) -> None:
        import mlflow  # noqa: F401  # which sets the level of its logger

        with _patient():
            self._begin(place, values)

    def _begin(self, place: RunPlace, values: Mapping[str, Any]) -> None:
        import mlflow
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        wanted = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        known = self._client.get_experiment_by_name(wanted)
        number = self._client.create_experiment(wanted) if known is None else known.experiment_id
        run = self._client.create_run(number, run_name=place.name, tags={"group": place.group})
        self._id = str(run.info.run_id)
        params = [Param(key, str(value)[:MOST_CHARACTERS]) for key, value in values.items()]
        self._client.log_batch(self._id, params=params)
        self.where = f"experiment {wanted} at {without_passwords(mlflow.get_tracking_uri())}"
        self._waiting: list[Any] = []
        self._sent = time.monotonic()

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Notes some numbers, which are sent every few seconds."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._waiting += [Metric(name, value, now, step) for name, value in values.items()]
        if time.monotonic() - self._sent > SEND_EVERY_S or len(self._waiting) > SEND_AT_MOST:
            self._send()

    def _send(self) -> None:
        while self._waiting:
            part, self._waiting = self._waiting[:SEND_AT_MOST], self._waiting[SEND_AT_MOST:]
            with _patient():
                self._client.log_batch(self._id, metrics=part)
        self._sent = time.monotonic()

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Notes a table as an artifact."""
        head = list(rows[0]) if rows else []
        columns = {key: [row[key] for row in rows] for key in head}
        with _patient():
            self._client.log_table(self._id, columns, f"{name}.json")

    def files(self, paths: Sequence[Path]) -> None:
        """Keeps copies of files as artifacts."""
        for path in paths:
            with _patient():
                self._client.log_artifact(self._id, str(path))

    def end(self, failed: bool) -> None:
        """Sends what waits and ends the run."""
        self._send()
        with _patient():
            self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


SEND_AT_MOST = 500
"""Numbers in one request to MLflow, which takes a thousand."""


class TrackioRun:
    """A run of Trackio: on this machine, or in the Space that TRACKIO_SPACE_ID names."""

    def __init__(self, place: RunPlace, values: Mapping[str, Any]) -> None:
        import trackio

        self._trackio = trackio
        project = os.environ.get("TRACKIO_PROJECT") or PROJECT
        # its current run is a variable of the context, and is ended where another one begins
        self._context = contextvars.Context()
        self._run: Any = self._quietly(
            trackio.init,
            project=project,
            name=place.name,
            group=place.group,
            config=dict(values),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self.where = f"trackio show --project {project}"

    def _quietly(self, do: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with redirect_stdout(io.StringIO()):
            return self._context.run(do, *args, **kwargs)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Notes some numbers."""
        self._quietly(self._run.log, dict(values), step=step)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Notes a table."""
        import pandas as pd

        made = self._trackio.Table(dataframe=pd.DataFrame([dict(row) for row in rows]))
        self._quietly(self._run.log, {name: made})

    def files(self, paths: Sequence[Path]) -> None:
        """Keeps copies of files as artifacts."""
        for path in paths:
            self._quietly(self._run.log_artifact, path, name=path.name, type="report")

    def end(self, failed: bool) -> None:  # its runs do not say how they ended
        """Sends what waits and ends the run."""
        self._quietly(self._run.finish)


@contextmanager
def _default(name: str, value: str) -> Iterator[None]:
    """Sets an environment variable for a while, unless it is set."""
    is_set = name in os.environ
    os.environ.setdefault(name, value)
    try:
        yield
    finally:
        if not is_set:
            del os.environ[name]


@contextmanager
def _patient() -> Iterator[None]:
    """Has MLflow wait some seconds at most, log nothing but warnings, and print nothing."""
    with (
        _default("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),
        _default("MLFLOW_HTTP_REQUEST_TIMEOUT", str(PATIENCE_S)),
        _still("mlflow", logging.WARNING),
        _still("urllib3", logging.ERROR),
        redirect_stdout(io.StringIO()),
    ):
        yield


def without_passwords(text: str) -> str:
    """Returns a text without the users and the passwords of the addresses in it.

    >>> without_passwords("no answer from http://alice:secret@host:5000/a")
    'no answer from http://host:5000/a'
    """
    return re.sub(r"(\w[\w+.-]*://)[^/@\s]*@", r"\1", text)


@contextmanager
def _still(name: str, level: int) -> Iterator[None]:
    """Has a package log nothing below a level for a while, such as that it makes its tables."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


KINDS: Mapping[str, Callable[[RunPlace, Mapping[str, Any]], TrackedRun]] = {
    "tensorboard": TensorBoardRun,
    "wandb": WandbRun,
    "mlflow": MlflowRun,
    "trackio": TrackioRun,
}
