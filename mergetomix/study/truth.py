"""The truth that a study compares against: mixtures fine-tuned for real, over several seeds.

Array names end in their shape: M mixtures, N datasets.
"""

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

TRAINING = 3.0
"""Forward passes that training costs: a backward pass is two (arXiv 2001.08361, table 1)."""


@dataclass(frozen=True, eq=False)
class World:
    """One target and one seed: what every mixture's proxies and its real fine-tune score.

    Higher is better: scores are minus the loss (in `unit`) if the target is a loss. `proxies` are
    select scores by exponent, of shape (M,); `pooled_M` those of the experts pooled;
    `proxy_report_M` the proxies' at `exponent` on the report part. `train_tokens_M` are the tokens
    that a fine-tune sees, `expert_tokens` those of all experts, whether or not the search may
    choose them, `eval_tokens` those of one evaluation of the select part. `failures` are mixtures
    whose fine-tune failed, and why; they are not among `mixtures`.
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
        names, rows = self.datasets, [mixture.as_dict() for mixture in self.mixtures]
        return np.array([[row.get(name, 0.0) for name in names] for row in rows])

    @property
    def datasets(self) -> tuple[str, ...]:
        """The names of all datasets, in order."""
        return tuple(sorted({name for mixture in self.mixtures for name in mixture.datasets}))

    @property
    def proxy_M(self) -> Array:
        """The proxies at the recipe's exponent."""
        return self.proxies[self.exponent]

    def views(self, exponent: float, rows: Sequence[int] | None = None) -> Views:
        """Returns what is known of all mixtures, or of some rows, before any real fine-tune."""
        chosen = slice(None) if rows is None else list(rows)
        return Views(self.weights_MN[chosen], self.proxies[exponent][chosen], self.pooled_M[chosen])

    def row(self, datasets: Sequence[str]) -> int | None:
        """Returns the row of the mixture of some datasets, None if it was not fine-tuned."""
        found = [mixture.datasets for mixture in self.mixtures]
        wanted = tuple(sorted(datasets))
        return found.index(wanted) if wanted in found else None

    @property
    def singles(self) -> list[int]:
        """Rows of the mixtures of one dataset: the experts."""
        return [i for i, mixture in enumerate(self.mixtures) if len(mixture) == 1]

    def check_cost(self, row: int) -> float:
        """Returns the tokens, in forward passes, of fine-tuning on a mixture and scoring it."""
        return TRAINING * float(self.train_tokens_M[row]) + self.eval_tokens

    @property
    def proxies_cost(self) -> float:
        """The tokens, in forward passes, of all experts and of one score for every mixture."""
        return TRAINING * self.expert_tokens + self.eval_tokens * len(self.mixtures)


def mixtures_of(session: Session, num: int | None, seed: int) -> tuple[Mixture, ...]:
    """Returns the mixtures of a study: all of the space, or `num`.

    Those of one dataset are among them, and a seeded sample of the rest. Raises RecipeError if
    `num` leaves no room for a mixture of several datasets.
    """
    every = tuple(session.spaces.subsets)
    if num is None or num >= len(every):
        return every
    singles = [mixture for mixture in every if len(mixture) == 1]
    if num <= len(singles):
        few = f"{num} mixtures, but {len(singles)} of them are single datasets"
        message = f"{few}: at least {len(singles) + 1} are needed"
        raise RecipeError("study.num_mixtures", message)
    rest = [mixture for mixture in every if len(mixture) > 1]
    drawn = np.random.default_rng(seed).permutation(len(rest))[: num - len(singles)]
    return tuple(singles + [rest[i] for i in sorted(drawn.tolist())])


def gather(
    session: Session, mixtures: Sequence[Mixture], exponents: Sequence[float]
) -> list[World]:
    """Fine-tunes on every mixture and scores proxies and fine-tunes: one world for each target.

    What the store holds is not done again.
    """
    own, tokens = session.recipe.merge.scale.exponent, session.finetunes.num_tokens
    reals, failures = _reals(session, mixtures)
    mixtures = tuple(reals)
    base = {part: session.evaluations.base(part) for part in ("select", "report")}
    proxies = {
        exponent: _proxies(session, mixtures, "select", exponent)
        for exponent in sorted({*exponents, own})
    }
    reports = _proxies(session, mixtures, "report", own)
    space, proxy = session.spaces.subsets, session.evaluations.proxy
    alone = {name: proxy(space.mixture([name]), "select") for name in space.allowed}
    session.proxies.release()
    expert_tokens = float(sum(tokens(Mixture.union([name])) for name in alone))
    worlds = []
    for name, scorer in session.inputs.targets("select").items():
        experts = {each: scores[name] for each, scores in alone.items()}
        shares = map(session.finetunes.shares, mixtures)
        pooled = [{name: opinion_pool.pooled(each, experts)} for each in shares]
        world = World(
            seed=session.recipe.train.seed,
            target=name,
            kind=base["select"][name].kind,
            mixtures=mixtures,
            proxies={exponent: _means(scores, name) for exponent, scores in proxies.items()},
            exponent=own,
            pooled_M=_means(pooled, name),
            proxy_report_M=_means(reports, name),
            real_select_M=_means([each["select"] for each in reals.values()], name),
            real_report_M=_means([each["report"] for each in reals.values()], name),
            base_select=float(_means([base["select"]], name)[0]),
            base_report=float(_means([base["report"]], name)[0]),
            train_tokens_M=np.array([tokens(mixture) for mixture in mixtures], dtype=float),
            expert_tokens=expert_tokens,
            eval_tokens=scorer.target.num_tokens,
            failures=failures,
            unit=UNITS[session.recipe.family],
        )
        worlds.append(world)
    return worlds


def _proxies(
    session: Session, mixtures: Sequence[Mixture], part: Part, exponent: float
) -> list[dict[str, Scores]]:
    text = f"seed {session.recipe.train.seed}: proxies, exponent {exponent:g}, {part} part"
    found = {}
    with session.listener.task("study", text, len(mixtures)) as advance:
        for mixture, scores in session.evaluations.proxies(mixtures, part, exponent):
            found[mixture] = scores
            advance(1)
    return [found[mixture] for mixture in mixtures]


def _reals(
    session: Session, mixtures: Sequence[Mixture]
) -> tuple[dict[Mixture, dict[Part, dict[str, Scores]]], tuple[tuple[Mixture, str], ...]]:
    """Returns every mixture's real scores, and those left out as training failed, with the why."""
    seed = f"seed {session.recipe.train.seed}"
    found: dict[Mixture, dict[Part, dict[str, Scores]]] = {}
    failures, real = [], session.evaluations.real
    with session.listener.task("study", f"{seed}: real fine-tunes", len(mixtures)) as advance:
        for mixture in mixtures:
            try:
                record = session.finetunes.fit(mixture, "study")
                found[mixture] = {
                    "select": real(record, "select"),
                    "report": real(record, "report"),
                }
            except TrainingError as error:
                failures.append((mixture, error.message))
                session.opened.warn(f"{seed}: {mixture} is left out: {error.message}")
            advance(1)
    return found, tuple(failures)


def _means(scores: Sequence[Mapping[str, Scores]], name: str) -> Array:
    """Returns means that are better when higher."""
    sign = -1.0 if scores[0][name].kind == "loss" else 1.0
    return np.array([sign * each[name].mean for each in scores])
