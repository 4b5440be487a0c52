"""What a run will do and cost, before it does it."""

from __future__ import annotations

import html
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mergetomix.objectives.objective import gains
from mergetomix.progress import Listener, duration
from mergetomix.recipe.recipe import Recipe
from mergetomix.records import Mixture, Part, Scores
from mergetomix.results import frame
from mergetomix.search.budgets import default_budget
from mergetomix.session.evaluations import scored_within_memory
from mergetomix.session.session import Session, open_session
from mergetomix.stages import costs, requirements, search, units
from mergetomix.stages.rehearsal import rehearse
from mergetomix.stages.stopping import limit_of
from mergetomix.stages.ways import ways

if TYPE_CHECKING:
    import pandas as pd

PARTS: tuple[Part, ...] = ("select", "report")
NUM_SAMPLES = 2
"""Examples of each source that a plan shows."""


@dataclass(frozen=True)
class DatasetPlan:
    """A dataset as training will see it.

    `samples` are (text, trained on) pieces of its first examples.
    """

    name: str
    num_rows: int
    num_examples: int
    num_sequences: int
    num_tokens: int
    columns: tuple[str, ...]
    samples: tuple[tuple[tuple[str, bool], ...], ...]


@dataclass(frozen=True)
class TargetPlan:
    """A target: how it is scored, and how many examples the search and the final table see.

    `samples` are its first examples: (text, scored) pieces, and the other options and answers.
    """

    name: str
    score: str
    num_select: int
    num_report: int
    samples: tuple[tuple[tuple[tuple[str, bool], ...], tuple[str, ...]], ...] = ()


@dataclass(frozen=True)
class Plan:
    """The fine-tunes and evaluations of a run, and what they are expected to take on this machine.

    Seconds are measured on one batch, so they are rough, and are those of one worker; `num_workers`
    share all but the checks. `num_reused` fine-tunes are in the store already and cost nothing.
    `checks_all` says that every mixture is fine-tuned, as that costs no more.
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
    num_workers: int = 1
    checks_all: bool = False

    def to_frame(self) -> pd.DataFrame:
        """Returns a pandas table, a line for each dataset: rows, examples, sequences, tokens."""
        return frame(
            {
                "dataset": each.name,
                "rows": each.num_rows,
                "examples": each.num_examples,
                "sequences": each.num_sequences,
                "tokens": each.num_tokens,
            }
            for each in self.datasets
        )

    def __str__(self) -> str:
        expected = duration(self.train_s + self.evaluate_s)
        text = (
            f"{self.num_finetunes} fine-tunes, of which {self.num_reused} are in the store;"
            f" {self.num_mixtures} mixtures to try ({self.strategy} search); about {expected}."
        )
        return f"{text}\n\n{self.to_frame().to_string(index=False)}"

    def _repr_html_(self) -> str:
        text = html.escape(str(self).partition("\n")[0])
        return f"<p><b>{text}</b></p>{self.to_frame().to_html(index=False, escape=True)}"


@dataclass(frozen=True)
class Speed:
    """Seconds for each token of training, and for scoring every target's select part."""

    train_s_per_token: float
    evaluate_s: float


def check(recipe: Recipe, listener: Listener | None = None) -> Plan:
    """Reads what a run reads, rehearses it, times a batch and an evaluation, plans the rest.

    Raises:
        UserError: what a run would stumble over, before any training.
    """
    with open_session(recipe, listener, is_run=False) as session:
        requirements.check_space(session, requirements.finetunes(session))
        if requirements.lacks_experts(session):
            rehearse(session)
        speed, base = measure(session)
        for line in about_targets(session, base):
            session.opened.warn(line)
        return plan(session, speed)


def plan(session: Session, speed: Speed) -> Plan:
    """Returns the plan of a run at a given speed."""
    space, recipe, made = session.spaces.searched, session.recipe, session.finetunes
    strategy = search.first_strategy(session)
    wanted = requirements.finetunes(session)
    todo = [mixture for mixture, seed in wanted if made.known(mixture, seed) is None]
    tokens = sum(made.num_tokens(Mixture.union([name])) for name in space.allowed)
    num_tried = strategy.expected()
    brute_force_s = costs.brute_force_s(
        session, tokens * speed.train_s_per_token, speed.evaluate_s, num_tried
    )
    return Plan(
        datasets=tuple(_dataset(session, name) for name in recipe.datasets),
        targets=tuple(_target(session, name) for name in recipe.targets),
        num_finetunes=len(wanted),
        num_reused=len(wanted) - len(todo),
        num_mixtures=num_tried,
        num_space=space.size,
        strategy=strategy.name,
        train_s=sum(map(made.num_tokens, todo)) * speed.train_s_per_token,
        evaluate_s=evaluations(session, len(wanted)) * speed.evaluate_s,
        disk_bytes=len(todo) * session.inputs.finetune_bytes(),
        free_bytes=session.store.free_bytes(),
        brute_force_s=brute_force_s,
        warnings=tuple(session.opened.warnings),
        num_workers=session.opened.executor.num_workers,
        checks_all=requirements.checks_all(session),
    )


def evaluations(session: Session, num_finetunes: int) -> int:
    """Returns how many times a run scores the targets.

    The trials that the store lacks, the checks' proxies merged in other ways, and both parts for
    every fine-tune (experts are trials on the select part). Proxies in a way that checks may ask
    for are left out. The report part is taken to be as long as the select part. Before its
    experts are trained, a proxy is in no store.
    """
    recipe, space = session.recipe, session.spaces.searched
    strategy, both = search.first_strategy(session), recipe.search.space == "both"
    trials = strategy.expected()
    if strategy.name == "exhaustive":
        proxies = map(session.addresses.proxy, session.spaces.subsets)
        trials = sum(bool(session.evaluations.lacking(key, "select")) for key in proxies)
    if strategy.name == "gradient" or both:
        # of the weights, too, which are searched with gradients after the subsets
        passes = default_budget("gradient", len(space.allowed), recipe.search.objective == "pareto")
        most = passes + trials if both else passes
        trials = int(min(limit_of(session).num_passes or most, space.size))
    checks = (len(ways(session)) - 1) * requirements.num_checks(session)
    return trials + checks + 2 * num_finetunes - len(space.allowed) + 2


def about_targets(session: Session, base: Mapping[str, Scores]) -> list[str]:
    """Returns what the user should know of how targets count beside each other, a line each.

    By the base's scores, and by those of the experts that the store has.
    """
    known = session.evaluations.known
    singles = [Mixture((name,), (1.0,)) for name in session.inputs.candidates]
    experts = [known(session.addresses.proxy(each), "select") for each in singles]
    complete = [gains(each, base) for each in experts if len(each) == len(base)]
    aim = units.aim_of(session.recipe, base)
    objective = replace(search.objective_of(session), aim=aim)
    lines = units.about_units(session.recipe, base)
    if aim == "gain":
        lines += units.about_rulers(objective, complete, f"{len(complete)} experts")
    return lines


def measure(session: Session) -> tuple[Speed, dict[str, Scores]]:
    """Times one training batch of the first dataset, and each target's select part once.

    Returns the scores of the base with it.
    """
    scores = {}
    family, targets = session.inputs.family, session.inputs.targets("select")
    text = "measuring the speed of this machine"
    with session.listener.task("check", text, len(targets) + 1) as advance:
        model = family.load()
        started = time.monotonic()
        for name, scorer in targets.items():
            scores[name] = scored_within_memory(scorer, model, name)
            advance(1)
        evaluate_s = time.monotonic() - started
        train_s_per_token = _time_training(session, model)
        advance(1)
    return Speed(train_s_per_token, evaluate_s), scores


def _time_training(session: Session, model: Any) -> float:
    """Seconds for each token of a forward and backward pass over one batch, the second of two."""
    import torch

    family, settings = session.inputs.family, session.recipe.train
    batch = session.inputs.sequences(session.spaces.searched.allowed[0])[: settings.batch_size]
    if settings.method == "lora":
        model = family.adapted(model, settings.lora)
    model.train()
    seconds = 0.0
    for _ in range(2):
        started = time.monotonic()
        family.training_loss(model, batch).backward()
        if family.device == "cuda":
            torch.cuda.synchronize()  # a GPU works on while Python goes on
        seconds = time.monotonic() - started
    return seconds / sum(sequence.num_tokens for sequence in batch)


def _dataset(session: Session, name: str) -> DatasetPlan:
    material, family = session.inputs.candidates[name], session.inputs.family
    examples, encoding = material.examples, material.encoding
    shown = (family.shown(item, f"datasets.{name}") for item in examples.items[:NUM_SAMPLES])
    return DatasetPlan(
        name,
        examples.num_rows,
        encoding.num_examples,
        len(encoding.sequences),
        encoding.num_tokens,
        examples.columns,
        tuple(tuple(pieces) for pieces in shown),
    )


def _target(session: Session, name: str) -> TargetPlan:
    select, report = (session.inputs.targets(part)[name].num_examples for part in PARTS)
    family, where = session.inputs.family, f"targets.{name}"
    samples = []
    for item in session.inputs.select_examples(name)[:NUM_SAMPLES]:
        others = (*item.options, *item.answers)
        kept = tuple(each for each in dict.fromkeys(others) if each != item.completion)
        samples.append((tuple(family.shown(item, where)), kept))
    score = session.recipe.targets[name].score
    return TargetPlan(name, score, select, report, tuple(samples))
