"""How targets change with the weights: the derivatives of a proxy's gains in every expert's coefficient, kept in the store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mergetomix.errors import Fault
from mergetomix.job import Job
from mergetomix.records import Mixture, Scores
from mergetomix.store import digest
from mergetomix.targets.loss import Loss

FILE = "gradient.json"


def has_slopes(job: Job) -> bool:
    """Whether every target is a mean of losses and the merge a weighted sum, so that gains have derivatives."""
    linear = job.recipe.merge.method == "linear"
    return linear and all(isinstance(each.target, Loss) for each in job.inputs.targets("select").values())


def slopes(job: Job, mixture: Mixture, base: Mapping[str, Scores]) -> dict[str, dict[str, float]]:
    """d gain / d c_i of each target at a mixture's proxy, by target and dataset, on the select part.

    A gain is (base - loss) / base, and d loss / d c_i = <d loss / d params, delta_i>: one backward pass a target, whatever the
    number of datasets. What the store holds is not computed again.

    Args:
        base: the base's scores on the select part.

    Raises:
        Fault: a derivative is not finite.
    """
    found = {}
    for name in job.recipe.targets:
        scale = base[name].mean if base[name].mean > 0 else 1.0
        by_expert = _derivatives(job, mixture, name)
        found[name] = {dataset: -by_expert[job.finetune_key([dataset])] / scale for dataset in job.space().allowed}
    return found


def _derivatives(job: Job, mixture: Mixture, target: str) -> Mapping[str, float]:
    """d loss / d c_i by the address of each expert."""
    scorer = job.inputs.targets("select")[target]
    key = digest("gradient", job.proxy_key(mixture), scorer.address)
    file = job.store.artifact_path(key) / FILE
    experts = {job.finetune_key([name]) for name in job.space().allowed}
    known: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
    if not experts <= set(known):
        known |= _computed(job, mixture, scorer.target, target)
        with job.store.artifact(key) as folder:
            (folder / FILE).write_text(json.dumps(known))
    return known


def _computed(job: Job, mixture: Mixture, target: Any, name: str) -> dict[str, float]:
    model = job.merge_live(mixture, job.exponent)
    _, gradient = job.bank().gradient(target.parts(model))
    odd = next((dataset for dataset, value in gradient.items() if value - value != 0), None)
    if odd is not None:
        message = f"the derivative of target {name} in the weight of {odd} is {gradient[odd]} at {mixture}"
        raise Fault(message, hint="set search.strategy: greedy, or base.dtype: float32")
    return {job.finetune_key([dataset]): value for dataset, value in gradient.items()}
