"""How targets change with the weights: the derivatives of a proxy's gains in every expert's coefficient, kept in the store.

A score that has no derivative, such as that of a generated answer, is stood for by its companion: the loss of the right answers
on the same examples. What is learnt from companions says which mixtures to try; their scores decide.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from mergetomix.errors import Fault
from mergetomix.records import Mixture, Scores, Trial, gain
from mergetomix.session.inputs import Scorer
from mergetomix.session.job import Job, enough_memory, within_memory
from mergetomix.store.address import digest
from mergetomix.targets.loss import Loss

FILE = "gradient.json"
LEAST_TRIALS, LEAST_AGREEMENT = 6, 0.3
"""From so many trials on a companion's ranking is compared with the score's; a lower Spearman correlation is said."""


def has_slopes(job: Job) -> bool:
    """Whether the merge is a weighted sum and every target is a mean of losses or has a companion, so that gains have
    derivatives."""
    if job.recipe.merge.method != "linear":
        return False
    found = all(smooth_scorer(job, name) is not None for name in job.recipe.targets)
    for text in job.inputs.warnings:
        job.warn(text)  # of a companion that could not be made
    return found


def smooth_scorer(job: Job, target: str) -> Scorer | None:
    """What stands for a target where derivatives are needed: itself, its companion, or None."""
    own = job.inputs.targets("select")[target]
    return own if isinstance(own.target, Loss) else job.inputs.companion(target)


def companions(job: Job) -> dict[str, Scorer]:
    """The companions of the targets that have no derivative, by target."""
    found = {name: job.inputs.companion(name) for name in job.recipe.targets if not is_smooth(job, name)}
    return {name: scorer for name, scorer in found.items() if scorer is not None}


def is_smooth(job: Job, target: str) -> bool:
    """Whether a target has a derivative of its own."""
    return isinstance(job.inputs.targets("select")[target].target, Loss)


def smooth(job: Job, trial: Trial, base: Mapping[str, Scores]) -> dict[str, float] | None:
    """What a search by gradients learns from at a trial's mixture: gains by target, those of companions where there are such;
    None where every target has its own derivative."""
    beside = companions(job)
    if not beside:
        return None
    found = {name: value for name, value in trial.gains(base).items() if name not in beside}
    return found | {name: gain(_losses(job, trial.mixture, name), _losses(job, None, name)) for name in beside}


def _losses(job: Job, mixture: Mixture | None, target: str) -> Scores:
    """A companion's losses of a mixture's proxy, or of the base; from the store, or computed now and kept there."""
    scorer = job.inputs.companion(target)
    assert scorer is not None
    key = job.inputs.base_key(job.store) if mixture is None else job.proxy_key(mixture)
    known = job.store.scores(key, scorer.address, "select")
    if known is not None:
        return known
    if mixture is None:
        job.bank().reset()
    model = job.bank().model if mixture is None else job.merge_live(mixture, job.exponent)
    started = time.monotonic()
    found = within_memory(scorer, model, target)
    with job.store.transaction():
        job.store.add_model(key, "base" if mixture is None else "proxy", mixture, 0.0)
        job.store.add_scores(key, scorer.address, "select", found, time.monotonic() - started)
    return found


def slopes(job: Job, mixture: Mixture, base: Mapping[str, Scores]) -> dict[str, dict[str, float]]:
    """d gain / d c_i of each target at a mixture's proxy, by target and dataset, on the select part.

    A gain is (base - loss) / base, and d loss / d c_i = <d loss / d params, delta_i>: one backward pass a target, whatever the
    number of datasets. Of a target without derivatives it is its companion's gain. What the store holds is not computed again.

    Args:
        base: the base's scores on the select part.

    Raises:
        Fault: a derivative is not finite.
    """
    found = {}
    for name in job.recipe.targets:
        start = base[name].mean if is_smooth(job, name) else _losses(job, None, name).mean
        scale = start if start > 0 else 1.0
        by_expert = _derivatives(job, mixture, name)
        found[name] = {dataset: -by_expert[job.finetune_key([dataset])] / scale for dataset in job.space().allowed}
    return found


def warn_of_companions(job: Job, trials: Sequence[Trial]) -> None:
    """Says where a companion ranks the mixtures tried otherwise than the score that it stands for."""
    for name in companions(job) if len(trials) >= LEAST_TRIALS else ():
        losses = [-_losses(job, trial.mixture, name).mean for trial in trials]
        scores = [trial.scores[name].mean for trial in trials]
        if max(scores) == min(scores):
            continue  # a target without any difference is warned of elsewhere
        agreement = float(spearmanr(losses, scores).statistic)
        if not agreement >= LEAST_AGREEMENT:
            job.warn(
                f"target {name}: the loss of its answers, which the search learnt from, ranks the {len(trials)} mixtures tried"
                f" unlike its score (Spearman {agreement:.2f}); set search.strategy: regression, greedy or exhaustive"
            )


def seconds(job: Job, mixtures: Iterable[Mixture]) -> float:
    """What the derivatives at some mixtures took, whichever run computed them; nothing where there are none."""
    scorers = [smooth_scorer(job, name) for name in job.recipe.targets]
    files = [_file(job, mixture, scorer) for mixture in mixtures for scorer in scorers if scorer is not None]
    return sum(_known(file)[1] for file in files)


def _derivatives(job: Job, mixture: Mixture, target: str) -> Mapping[str, float]:
    """d loss / d c_i by the address of each expert."""
    scorer = smooth_scorer(job, target)
    assert scorer is not None
    file = _file(job, mixture, scorer)
    experts = {job.finetune_key([name]) for name in job.space().allowed}
    known, taken = _known(file)
    if not experts <= set(known):
        started = time.monotonic()
        known |= _computed(job, mixture, scorer.target, target)
        taken += time.monotonic() - started
        with job.store.artifact(file.parent.name) as folder:
            (folder / file.name).write_text(json.dumps({"by_expert": known, "seconds": taken}))
    return known


def _file(job: Job, mixture: Mixture, scorer: Scorer) -> Path:
    """Where the store keeps the derivatives of a target at a mixture's proxy."""
    return job.store.artifact_path(digest("derivatives", job.proxy_key(mixture), scorer.address)) / FILE


def _known(file: Path) -> tuple[dict[str, float], float]:
    """The derivatives in a file, by the address of each expert, and the seconds that they took; none where there is no file."""
    if not file.exists():
        return {}, 0.0
    found = json.loads(file.read_text())
    return found["by_expert"], found["seconds"]


def _computed(job: Job, mixture: Mixture, target: Any, name: str) -> dict[str, float]:
    model = job.merge_live(mixture, job.exponent)
    with enough_memory(f"the gradient of target {name}", "lower batch_tokens, or set search.strategy: regression"):
        _, gradient = job.bank().gradient(target.parts(model))
    odd = next((dataset for dataset, value in gradient.items() if value - value != 0), None)
    if odd is not None:
        message = f"the derivative of target {name} in the weight of {odd} is {gradient[odd]} at {mixture}"
        raise Fault(message, hint="set search.strategy: greedy, or base.dtype: float32")
    return {job.finetune_key([dataset]): value for dataset, value in gradient.items()}
