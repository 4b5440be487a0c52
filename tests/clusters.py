"""Ray clusters for tests: real node processes on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# nodes are looked at whether they live every second, so that a killed one is missed soon; on a busy
# machine one that lives may be late by seconds, and takes the process that belongs to it along
FAST = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 8,
}


@contextmanager
def cluster(num_nodes: int, connect: bool = True, **node: Any) -> Iterator[Any]:
    """Starts a cluster whose nodes have one CPU each; the last can be killed.

    Yields Ray's Cluster. With `connect` this process belongs to it, as one on its head would.
    """
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    import ray
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 1, "object_store_memory": 80 * 2**20, **node}
    head = {**options, "include_dashboard": False, "_system_config": FAST}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(num_nodes - 1):
            made.add_node(**options)
        if connect:
            env = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths())}
            ray.init(
                made.address,
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env={"env_vars": env},
            )
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def paths() -> list[str]:
    """Where workers find the tests' own modules."""
    here = os.path.dirname(os.path.abspath(__file__))
    return [os.path.dirname(here), here]
