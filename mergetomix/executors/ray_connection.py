"""The connection of who leads a run to a Ray cluster."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mergetomix.devices import visible_gpus
from mergetomix.errors import RecipeError
from mergetomix.sections.executor import ExecutorSection

STORE_BYTES = 128 * 2**20
"""Ray's memory for objects on a cluster that is started here: only records are passed."""
PASSED_ON = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HOME", "GOMP_SPINCOUNT")
"""Variables of who leads the run that its workers get too."""


def connect(section: ExecutorSection) -> bool:
    """Connects this process to the cluster of a recipe; returns whether it is to end it.

    Raises:
        RecipeError: Ray is not installed, there is no such cluster, or it is of another version.
    """
    try:
        import ray
    except ImportError:
        message = 'kind: ray takes the package ray: pip install "mergetomix[ray]"'
        raise RecipeError("executor.kind", message) from None
    if ray.is_initialized():
        return False
    # a job that was submitted may have set them for its workers, and Ray refuses to hear it twice
    of_job = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "")
    names = [name for name in PASSED_ON if name in os.environ and name not in of_job]
    variables = {name: os.environ[name] for name in names}
    given_variables = section.runtime_env.get("env_vars", {})
    environment = {**section.runtime_env, "env_vars": {**variables, **given_variables}}
    options: dict[str, Any] = {"runtime_env": environment, "log_to_driver": False}
    if section.address == "local":
        options |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    try:
        with own_signals(), all_gpus():
            ray.init(section.address, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        hint = "start it with `ray start --head`, or use executor.address: local"
        if "runtime" in str(error):
            hint = "the job's own runtime environment says the same: leave it out of one of them"
        elif "ersion" in str(error):
            hint = "install the same versions of Python and Ray as the cluster has"
        message = " ".join(str(error).split())
        raise RecipeError("executor.address", f"{section.address}: {message}", hint=hint) from None
    return True


@contextmanager
def all_gpus() -> Iterator[None]:
    """Shows all GPUs that there were for this process, of which it sees one for itself."""
    name, names = "CUDA_VISIBLE_DEVICES", visible_gpus()
    before = os.environ.get(name)
    if names:
        os.environ[name] = ",".join(names)
    try:
        yield
    finally:
        if names and before is not None:
            os.environ[name] = before
        elif names:
            os.environ.pop(name)


@contextmanager
def own_signals() -> Iterator[None]:
    """Keeps the handlers of signals that Ray would replace."""
    names = ("SIGINT", "SIGTERM")
    before = {name: signal.getsignal(getattr(signal, name)) for name in names}
    try:
        yield
    finally:
        with suppress(ValueError):  # not in the main thread
            for name, handler in before.items():
                signal.signal(getattr(signal, name), handler)
