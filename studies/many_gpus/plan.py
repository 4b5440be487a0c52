"""Where time and bytes go with many datasets, a large model and many GPUs, by simulation.

Usage: python studies/many_gpus/plan.py [--datasets 64] [--params 8e9] [--gpus 32] ...

Trainings of drawn sizes go to the GPU that is free first; a search's step goes to all of them at
once. What a piece of work costs beside itself is measured (`benchmarks/executors.py overhead`);
the speed of GPUs, disks and links is assumed from their makers' figures, as no GPU was at hand.
"""

from __future__ import annotations

import argparse
import heapq
from dataclasses import dataclass

import numpy as np

OVERHEAD_S = {"local": 0.0003, "ray": 0.0015}
"""Seconds a piece of work takes beside itself: measured on two cores."""
CHANGED = 8
"""Experts that come or go between two mixtures that a search tries one after the other."""
START_S = 12.0
"""Seconds until a worker has imported its packages and read small data: measured on two cores."""


@dataclass(frozen=True)
class Assumed:
    """What was not measured: floating-point operations and bytes a second."""

    flops: float = 0.4 * 989e12
    """An H100's dense bfloat16 (its data sheet), of which fine-tuning is assumed to reach 40%."""
    flops_float32: float = 0.8 * 67e12
    """Its float32 without tensor cores (its data sheet), of which a product is assumed to reach
    80%."""
    memory: float = 3.35e12
    """Its memory (its data sheet)."""
    disk: float = 2e9
    """A shared file system, for each node."""
    per_node: int = 8
    """GPUs of a node."""


@dataclass(frozen=True)
class Job:
    """What is asked: datasets and tokens, the model, targets, and how the search goes."""

    datasets: int
    params: float
    gpus: int
    tokens: float
    targets: int
    target_tokens: float
    full: bool
    gradients: int
    values: int
    checks: int
    gpus_per_training: int
    seed: int


def trainings_s(tokens: np.ndarray, job: Job, assumed: Assumed) -> tuple[float, float]:
    """Seconds until all trainings are done, and GPU seconds that they take."""
    # forward 2, backward 4 a weight and token; LoRA needs no gradients of the weights
    flops_a_token = (6 if job.full else 4) * job.params
    places = job.gpus // job.gpus_per_training
    free = [0.0] * places
    busy = 0.0
    for each in sorted(tokens, reverse=True):
        seconds = each * flops_a_token / assumed.flops / job.gpus_per_training
        seconds += 2 * job.params / (assumed.disk / assumed.per_node)  # the base, in bfloat16
        heapq.heappush(free, heapq.heappop(free) + seconds)
        busy += seconds * job.gpus_per_training
    return max(free), busy


def simulate(job: Job, assumed: Assumed) -> list[tuple[str, float, float, str]]:
    """Returns lines of what, wall seconds, GPU hours, and what limits it."""
    rng = np.random.default_rng(job.seed)
    sizes = rng.lognormal(0.0, 0.8, job.datasets)
    tokens = job.tokens * sizes / sizes.mean()
    lines = []

    start = START_S + 2 * job.params / (assumed.disk / assumed.per_node)
    lines.append(("workers start", start, start * job.gpus / 3600, "the shared file system"))

    wall, busy = trainings_s(tokens, job, assumed)
    alone = float(tokens.max()) * (6 if job.full else 4) * job.params / assumed.flops
    limit = "its largest dataset" if wall < 1.2 * alone else "arithmetic"
    lines.append((f"{job.datasets} experts", wall, busy / 3600, limit))

    adapter = 4 * 42e6 * job.params / 8e9  # rank 16 on all linear layers of an 8 B Llama
    expert = 4 * job.params if job.full else adapter
    read = job.datasets * expert / assumed.disk
    lines.append(("reading experts", read, read * job.gpus / 3600, "the shared file system"))

    reads = job.targets * job.target_tokens
    # adapters: one product of all their factors, in float32, added to the base; full experts: those
    # that come or go since the mixture before are read from their files
    merge = 2 * 16 * job.datasets * job.params / assumed.flops_float32
    merge += 4 * job.params / assumed.memory
    if job.full:
        merge = CHANGED * expert / (assumed.disk / assumed.per_node)
    shared = OVERHEAD_S["ray"] * job.gpus
    value = reads * 2 * job.params / assumed.flops / job.gpus + merge + shared
    gradient = reads * 6 * job.params / assumed.flops / job.gpus + 2 * merge + shared
    steps = job.gradients * (value + gradient) + job.values * value
    share = (merge + shared) / value
    limit = f"arithmetic, {share:.0%} merging and handing out"
    what = f"search: {job.gradients} gradients, {job.values} mixtures more"
    lines.append((what, steps, steps * job.gpus / 3600, limit))

    union = float(tokens.sum()) * 0.25  # a mixture of a quarter of the data
    one = union * (6 if job.full else 4) * job.params / assumed.flops / job.gpus_per_training
    wall = job.checks * one
    where = f"one after the other, {job.gpus_per_training} GPUs each"
    lines.append((f"{job.checks} checks", wall, wall * job.gpus_per_training / 3600, where))
    lines.append(("final fine-tune", one, one * job.gpus_per_training / 3600, "the same"))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--datasets", type=int, default=64)
    parser.add_argument("--params", type=float, default=8e9)
    parser.add_argument("--gpus", type=int, default=32)
    parser.add_argument("--tokens", type=float, default=5e6, help="mean tokens of a dataset")
    parser.add_argument("--targets", type=int, default=4)
    parser.add_argument("--target-tokens", type=float, default=2e5)
    parser.add_argument("--full", action="store_true", help="full fine-tuning, not LoRA")
    parser.add_argument("--gradients", type=int, default=40)
    parser.add_argument("--values", type=int, default=120)
    parser.add_argument("--checks", type=int, default=5)
    parser.add_argument("--gpus-per-training", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    job, assumed = Job(**vars(parser.parse_args())), Assumed()
    print("| what | time | GPU hours | what limits it |\n|---|---|---|---|")
    lines = simulate(job, assumed)
    for what, wall, hours, limit in lines:
        print(f"| {what} | {wall / 60:.1f} min | {hours:.1f} | {limit} |")
    total, spent = (sum(line[i] for line in lines) for i in (1, 2))
    print(f"| together | {total / 3600:.1f} h | {spent:.0f} | |")
    expert = 4 * job.params if job.full else 4 * 42e6 * job.params / 8e9
    print(f"\nbytes of the experts: {job.datasets * expert / 1e9:.0f} GB;", end=" ")
    print(f"of real fine-tunes: {(job.checks + 1) * expert / 1e9:.0f} GB")


if __name__ == "__main__":
    main()
