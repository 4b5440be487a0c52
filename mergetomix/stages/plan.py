"""What a run will do and cost, before it does it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mergetomix.models.encoding import Item
from mergetomix.progress import Listener
from mergetomix.recipe.recipe import Recipe
from mergetomix.records import Mixture
from mergetomix.search.gradient.strategy import default_budget
from mergetomix.session.evaluations import scored_within_memory
from mergetomix.session.session import Session, open_session
from mergetomix.stages import costs, requirements, search
from mergetomix.stages.budget import limit_of


@dataclass(frozen=True)
class DatasetPlan:
    """A dataset as training will see it. `samples` are (text, trained on) pieces of its first examples."""

    name: str
    num_rows: int
    num_examples: int
    num_sequences: int
    num_tokens: int
    columns: tuple[str, ...]
    samples: tuple[tuple[tuple[str, bool], ...], ...]


@dataclass(frozen=True)
class TargetPlan:
    """A target: how it is scored, and how many examples the search and the final table see."""

    name: str
    score: str
    num_select: int
    num_report: int


@dataclass(frozen=True)
class Plan:
    """The fine-tunes and evaluations of a run, and what they are expected to take on this machine.

    Seconds are measured on one batch, so they are rough; `num_reused` fine-tunes are in the store already and cost nothing.
    """

    datasets: tuple[DatasetPlan, ...]
    targets: tuple[TargetPlan, ...]
    num_finetunes: int
    num_reused: int
    num_mixtures: int
    num_space: float
    strategy: str
    train_s: float
    evaluate_s: float
    disk_bytes: int
    free_bytes: int
    brute_force_s: float
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Speed:
    """Seconds per token of training and per evaluation of all targets' select parts."""

    train_s_per_token: float
    evaluate_s: float


def check(recipe: Recipe, listener: Listener | None = None) -> Plan:
    """Read everything a run reads, try one training batch and one evaluation, and plan the rest.

    Raises:
        UserError: what a run would stumble over, before any training.
    """
    with open_session(recipe, listener) as session:
        requirements.check_space(session, requirements.finetunes(session))
        speed = measure(session)
        return plan(session, speed)


def plan(session: Session, speed: Speed) -> Plan:
    """The plan of a job at a given speed."""
    space = session.spaces.searched
    strategy = search.first_strategy(session)
    wanted = requirements.finetunes(session)
    todo = [mixture for mixture, seed in wanted if session.finetunes.known(mixture, seed) is None]
    mean = sum(session.finetunes.num_tokens(Mixture.union([name])) for name in space.allowed) / len(
        space.allowed
    )
    experts_s = mean * speed.train_s_per_token * len(space.allowed)
    return Plan(
        datasets=tuple(_dataset(session, name) for name in session.recipe.datasets),
        targets=tuple(_target(session, name) for name in session.recipe.targets),
        num_finetunes=len(wanted),
        num_reused=len(wanted) - len(todo),
        num_mixtures=strategy.expected(),
        num_space=space.size,
        strategy=strategy.name,
        train_s=sum(session.finetunes.num_tokens(mixture) for mixture in todo)
        * speed.train_s_per_token,
        evaluate_s=evaluations(session, len(wanted)) * speed.evaluate_s,
        disk_bytes=len(todo) * session.inputs.finetune_bytes(),
        free_bytes=session.store.free_bytes(),
        brute_force_s=costs.brute_force_s(
            session, experts_s, speed.evaluate_s, strategy.expected()
        ),
        warnings=tuple(session.opened.warnings),
    )


def evaluations(session: Session, num_finetunes: int) -> int:
    """How many times a run scores the targets: the trials that the store lacks, the checks' proxies at other exponents, and
    both parts for every fine-tune (experts are trials on the select part). Proxies at an exponent that checks may ask for are
    left out.

    The report part is taken to be as long as the select part. Before its experts are trained, a proxy is in no store.
    """
    strategy = search.first_strategy(session)
    trials = strategy.expected()
    space, both = session.spaces.searched, session.recipe.search.space == "both"
    if strategy.name == "exhaustive":
        trials = sum(
            bool(session.evaluations.lacking(session.addresses.proxy(mixture), "select"))
            for mixture in session.spaces.subsets
        )
    if strategy.name == "gradient" or both:
        # of the weights, too, which are searched with gradients after the subsets
        passes = default_budget(len(space.allowed), session.recipe.search.objective == "pareto")
        most = passes + trials if both else passes
        trials = int(min(limit_of(session).num_passes or most, space.size))
    others = len({*session.recipe.verify.exponents} - {session.recipe.merge.scale.exponent})
    return (
        trials
        + others * requirements.num_checks(session)
        + 2 * num_finetunes
        - len(session.spaces.searched.allowed)
        + 2
    )


def measure(session: Session) -> Speed:
    """Time one training batch of the first dataset, the second of two, and the select part of each target once."""
    family = session.inputs.family
    with session.listener.task(
        "check", "measuring the speed of this machine", len(session.recipe.targets) + 1
    ) as advance:
        model = family.load()
        evaluate_s = 0.0
        for name in session.recipe.targets:
            evaluate_s += _time_target(session, name, model)
            advance(1)
        train_s_per_token = _time_training(session, model)
        advance(1)
    return Speed(train_s_per_token, evaluate_s)


def _time_training(session: Session, model: Any) -> float:
    """Seconds per token of one training batch."""
    settings = session.recipe.train
    name = session.spaces.searched.allowed[0]
    batch = list(session.inputs.sequences(name)[: settings.batch_size])
    if settings.method == "lora":
        model = session.inputs.family.adapted(model, settings.lora)
    return _time_step(session, model.train(), batch) / sum(
        sequence.num_tokens for sequence in batch
    )


def _time_step(session: Session, model: Any, batch: Sequence[Item]) -> float:
    """Seconds of a forward and backward pass, the second of two."""
    import torch

    family = session.inputs.family
    seconds = 0.0
    for _ in range(2):
        started = time.monotonic()
        family.training_loss(model, batch).backward()
        if family.device == "cuda":
            torch.cuda.synchronize()  # a GPU works on while Python goes on
        seconds = time.monotonic() - started
    return seconds


def _time_target(session: Session, name: str, model: Any) -> float:
    scorer = session.inputs.targets("select")[name]
    started = time.monotonic()
    scored_within_memory(scorer, model, name)
    return time.monotonic() - started


def _dataset(session: Session, name: str) -> DatasetPlan:
    candidate, where = session.inputs.candidates[name], f"datasets.{name}"
    examples, encoding = candidate.examples, candidate.encoding
    samples = tuple(tuple(session.inputs.family.shown(item, where)) for item in examples.items[:2])
    return DatasetPlan(
        name,
        examples.num_rows,
        encoding.num_examples,
        len(encoding.sequences),
        encoding.num_tokens,
        examples.columns,
        samples,
    )


def _target(session: Session, name: str) -> TargetPlan:
    select, report = session.inputs.targets("select")[name], session.inputs.targets("report")[name]
    return TargetPlan(
        name, session.recipe.targets[name].score, select.num_examples, report.num_examples
    )
