"""The truth that a study compares against: every mixture (or a sample) fine-tuned for real, over several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mergetomix.errors import RecipeError, TrainingError
from mergetomix.models.family import UNITS
from mergetomix.records import Mixture, Part, Scores
from mergetomix.session.session import Session
from mergetomix.statistics import opinion_pool
from mergetomix.statistics.posterior import Array, Views

BACKWARD = 2.0
"""A backward pass costs about two forward passes (Kaplan et al. 2020, arXiv 2001.08361, table 1)."""


@dataclass(frozen=True)
class World:
    """One target and one seed: what every mixture's proxies and its real fine-tune score. Higher is better throughout.

    Scores are minus the loss (in `unit`) where the target is a loss. `proxies` are select scores by exponent, of shape
    (M,); `pooled_M` those of the experts pooled; `proxy_report_M` the proxies' at `exponent` on the report part.
    `train_tokens_M` are the tokens that a fine-tune sees, `expert_tokens` those of all experts, whether or not the search may
    choose them, `eval_tokens` those of one evaluation of the select part.
    `failures` are mixtures whose fine-tune failed, and why; they are not among `mixtures`.
    """

    seed: int
    target: str
    kind: str
    mixtures: tuple[Mixture, ...]
    proxies: Mapping[float, Array]
    exponent: float
    pooled_M: Array
    proxy_report_M: Array
    real_select_M: Array
    real_report_M: Array
    base_select: float
    base_report: float
    train_tokens_M: Array
    expert_tokens: float
    eval_tokens: int
    similarities: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    embed_tokens: int = 0
    failures: tuple[tuple[Mixture, str], ...] = ()
    unit: str = UNITS["causal-lm"]

    @property
    def weights_MN(self) -> Array:
        """The mixtures' weights, datasets in the order of their names."""
        return np.array(
            [
                [mixture.as_dict().get(name, 0.0) for name in self.datasets]
                for mixture in self.mixtures
            ]
        )

    @property
    def datasets(self) -> tuple[str, ...]:
        """The names of all datasets, in order."""
        return tuple(sorted({name for mixture in self.mixtures for name in mixture.datasets}))

    @property
    def proxy_M(self) -> Array:
        """The proxies at the recipe's exponent."""
        return self.proxies[self.exponent]

    def views(self, exponent: float, rows: Sequence[int] | None = None) -> Views:
        """What is known of all mixtures, or of some rows, before any real fine-tune."""
        chosen = list(range(len(self.mixtures))) if rows is None else list(rows)
        return Views(self.weights_MN[chosen], self.proxies[exponent][chosen], self.pooled_M[chosen])

    def row(self, datasets: Sequence[str]) -> int | None:
        """The row of the mixture of some datasets, None where it was not fine-tuned."""
        wanted = tuple(sorted(datasets))
        return next(
            (i for i, mixture in enumerate(self.mixtures) if mixture.datasets == wanted), None
        )

    @property
    def singles(self) -> list[int]:
        """Rows of the mixtures of one dataset: the experts."""
        return [i for i, mixture in enumerate(self.mixtures) if len(mixture) == 1]

    def check_cost(self, row: int) -> float:
        """Compute of fine-tuning on a mixture and scoring it: tokens, in forward passes of one token."""
        return (1 + BACKWARD) * float(self.train_tokens_M[row]) + self.eval_tokens

    @property
    def proxies_cost(self) -> float:
        """Compute of all experts and of one score for every mixture."""
        return (1 + BACKWARD) * self.expert_tokens + self.eval_tokens * len(self.mixtures)


def mixtures_of(session: Session, num: int | None, seed: int) -> tuple[Mixture, ...]:
    """The mixtures of a study: all of the space, or those of one dataset and a seeded sample of the rest, `num` in all.

    Raises:
        RecipeError: `num` leaves no room for a mixture of several datasets.
    """
    every = tuple(session.spaces.subsets)
    if num is None or num >= len(every):
        return every
    singles = [mixture for mixture in every if len(mixture) == 1]
    if num <= len(singles):
        message = f"{num} mixtures, but {len(singles)} of them are single datasets: at least {len(singles) + 1} are needed"
        raise RecipeError("study.num_mixtures", message)
    rest = [mixture for mixture in every if len(mixture) > 1]
    drawn = np.random.default_rng(seed).permutation(len(rest))[: num - len(singles)]
    return tuple(singles + [rest[i] for i in sorted(drawn.tolist())])


def gather(
    session: Session, mixtures: Sequence[Mixture], exponents: Sequence[float]
) -> list[World]:
    """Fine-tunes on every mixture and scores proxies and fine-tunes: one world for each target. What the store holds is not
    done again."""
    reals, failures = _reals(session, mixtures)
    mixtures = tuple(reals)
    base = {part: session.evaluations.base(part) for part in ("select", "report")}
    proxies: dict[float, list[dict[str, Scores]]] = {}
    for exponent in sorted({*exponents, session.recipe.merge.scale.exponent}):
        proxies[exponent] = _proxies(session, mixtures, "select", exponent)
    reports = _proxies(session, mixtures, "report", session.recipe.merge.scale.exponent)
    alone = _experts(session)
    session.proxies.release()
    tokens_M = np.array(
        [session.finetunes.num_tokens(mixture) for mixture in mixtures], dtype=float
    )
    expert_tokens = float(
        sum(session.finetunes.num_tokens(Mixture.union([name])) for name in alone)
    )
    worlds = []
    for name, scorer in session.inputs.targets("select").items():
        world = World(
            seed=session.recipe.train.seed,
            target=name,
            kind=base["select"][name].kind,
            mixtures=mixtures,
            proxies={exponent: _means(scores, name) for exponent, scores in proxies.items()},
            exponent=session.recipe.merge.scale.exponent,
            pooled_M=_pooled(mixtures, alone, name),
            proxy_report_M=_means(reports, name),
            real_select_M=_means([each["select"] for each in reals.values()], name),
            real_report_M=_means([each["report"] for each in reals.values()], name),
            base_select=float(_means([base["select"]], name)[0]),
            base_report=float(_means([base["report"]], name)[0]),
            train_tokens_M=tokens_M,
            expert_tokens=expert_tokens,
            eval_tokens=scorer.num_tokens,
            failures=failures,
            unit=UNITS[session.recipe.family],
        )
        worlds.append(world)
    return worlds


def _proxies(
    session: Session, mixtures: Sequence[Mixture], part: Part, exponent: float
) -> list[dict[str, Scores]]:
    text = f"seed {session.recipe.train.seed}: proxies, exponent {exponent:g}, {part} part"
    with session.listener.task("study", text, len(mixtures)) as advance:
        found = []
        for mixture in mixtures:
            found.append(session.evaluations.proxy(mixture, part, exponent))
            advance(1)
    return found


Reals = dict[Mixture, dict[Part, dict[str, Scores]]]


def _reals(
    session: Session, mixtures: Sequence[Mixture]
) -> tuple[Reals, tuple[tuple[Mixture, str], ...]]:
    """Every mixture's real scores, and the mixtures whose training failed with what went wrong: those are left out."""
    text = f"seed {session.recipe.train.seed}: real fine-tunes"
    found: Reals = {}
    failures = []
    with session.listener.task("study", text, len(mixtures)) as advance:
        for mixture in mixtures:
            try:
                record = session.finetunes.fit(mixture, "study")
                found[mixture] = {
                    part: session.evaluations.real(record, part) for part in ("select", "report")
                }
            except TrainingError as error:
                failures.append((mixture, error.message))
                session.opened.warn(
                    f"seed {session.recipe.train.seed}: {mixture} is left out: {error.message}"
                )
            advance(1)
    return found, tuple(failures)


def _experts(session: Session) -> dict[str, dict[str, Scores]]:
    """Every expert's select scores, by dataset; an expert is the proxy of its dataset."""
    space = session.spaces.subsets
    return {
        name: session.evaluations.proxy(space.mixture([name]), "select") for name in space.allowed
    }


def _pooled(
    mixtures: Sequence[Mixture], alone: Mapping[str, Mapping[str, Scores]], target: str
) -> Array:
    """Pooled means on a target, better when higher."""
    experts = {name: scores[target] for name, scores in alone.items()}
    return _means([{target: opinion_pool.pooled(mixture, experts)} for mixture in mixtures], target)


def _means(scores: Sequence[Mapping[str, Scores]], name: str) -> Array:
    """Means that are better when higher."""
    sign = -1.0 if scores[0][name].kind == "loss" else 1.0
    return np.array([sign * each[name].mean for each in scores])
