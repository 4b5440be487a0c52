"""Who does the work of a run: processes on this machine, or a Ray cluster."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from mergetomix.sections.section import Section, Text

Count = Annotated[int, Field(ge=1)]
LOCAL = ("devices", "workers", "threads")
"""The keys for kind: local alone; all others are for kind: ray."""


class ExecutorSection(Section):
    """Who does the work: processes on this machine, or a Ray cluster."""

    kind: Literal["local", "ray"] = "local"
    """`local`: processes on this machine. `ray`: trainings are tasks of a Ray cluster, evaluations
    are done by its actors; needs `mergetomix[ray]`."""
    devices: Literal["auto"] | list[Annotated[int, Field(ge=0)]] = "auto"
    """The GPUs to use, a process for each: `auto` is all that there are, a list names some of those
    that CUDA_VISIBLE_DEVICES leaves, counted from 0. Where there is one in all, or none, the run's
    own process does the work."""
    workers: Count | None = None
    """How many processes to use; null is one for each GPU, or one without. Without GPUs they share
    the cores."""
    threads: Count | None = None
    """CPU threads of each process; null shares the cores among them. The last bits of sums on a CPU
    depend on it."""
    address: Text = "auto"
    """The cluster: `auto` is the one that this machine belongs to, `local` starts one on this
    machine, and HOST:PORT names one."""
    gpus_per_training: float | None = Field(default=None, ge=0)
    """GPUs of a training; null is one, or as many as train.launch says, or none where models are on
    the CPU."""
    gpus_per_evaluator: float | None = Field(default=None, ge=0)
    """GPUs of an evaluator, such as 0.5 where two models fit on one; null is one, or none where
    models are on the CPU."""
    cpus_per_training: Count = 1
    """CPU cores of a training, and its threads; of each of its processes if train.launch says
    several."""
    cpus_per_evaluator: Count = 1
    """CPU cores of an evaluator, and its threads."""
    max_evaluators: Count | None = None
    """Most evaluators at a time; null is as many as the cluster has room for."""
    max_trainings: Count | None = None
    """Most trainings at a time; null is as many as the cluster has room for."""
    labels: dict[str, str] = Field(default={})
    """Labels of the nodes that may work, such as {ray.io/accelerator-type: H100}."""
    runtime_env: dict[str, Any] = Field(default={})
    """Ray's environment of the workers, such as {env_vars: {...}}."""

    @field_validator("devices")
    @classmethod
    def _each_once(cls, value: Any) -> Any:
        if not value or (isinstance(value, list) and len(set(value)) < len(value)):
            raise ValueError("name each GPU once, such as [0, 1], or use auto")
        return value

    @model_validator(mode="after")
    def _has_its_own_keys(self) -> ExecutorSection:
        for key, known in type(self).model_fields.items():
            other = "ray" if key not in LOCAL else "local"
            if key != "kind" and other != self.kind and getattr(self, key) != known.default:
                raise ValueError(f"{key} is for kind: {other}, not {self.kind}")
        return self
