"""The truth that a study compares against: mixtures fine-tuned for real, over several seeds.

Array names end in their shape: M mixtures, N datasets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mergetomix.errors import RecipeError, TrainingError
from mergetomix.models.family import UNITS
from mergetomix.records import Finetune, Merging, Mixture, Part, Scores, Trial, Weighting
from mergetomix.session.session import Session
from mergetomix.stages.expectations import example_variance, longer_of, on_examples, weights_of
from mergetomix.statistics import opinion_pool
from mergetomix.statistics.noise import Noise, OnExamples
from mergetomix.statistics.posterior import Array, Views, with_strongest

TRAINING = 3.0
"""Forward passes that training costs: a backward pass is two (arXiv 2001.08361, table 1)."""


@dataclass(frozen=True, eq=False)
class World:
    """One target and one seed: what every mixture's proxies and its real fine-tune score.

    Higher is better: scores are minus the loss (in `unit`) if the target is a loss. `proxies` are
    select scores by exponent, of shape (M,), merged with the weights of `weighting`; `weighted`
    those at `exponent` with other weights; `pooled_M` those of the experts pooled; `proxy_report_M`
    the proxies' at `exponent` on the report part. `examples` is what the select part's examples add
    to all scores, `check_M` the variance of what they add to each mixture's real score alone.
    `longer_M` says how much longer than its experts each fine-tune is trained, None where all are
    for equally long. `train_tokens_M` are the tokens that a fine-tune sees, `expert_tokens` those
    of all experts, whether or not the search may choose them, `eval_tokens` those of one evaluation
    of the select part. `failures` are mixtures whose fine-tune failed, and why; they are not among
    `mixtures`.
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
    weighting: Weighting = "equal"
    weighted: Mapping[Weighting, Array] = field(default_factory=dict)
    examples: OnExamples | None = None
    check_M: Array | None = None
    longer_M: Array | None = None

    @property
    def ways(self) -> dict[Merging, Array]:
        """The proxies by the way to merge, the recipe's own first."""
        own = Merging(self.weighting, self.exponent)
        found = {own: self.proxy_M}
        found |= {replace(own, exponent=each): of for each, of in self.proxies.items()}
        return found | {replace(own, weighting=each): of for each, of in self.weighted.items()}

    @property
    def report_as_select_M(self) -> Array:
        """The real scores on the report part, as the same gains would be on the select part."""
        gains_M = self.real_report_M - self.base_report
        if self.kind == "loss" and self.base_report and self.base_select:
            gains_M = gains_M * self.base_select / self.base_report
        return np.asarray(self.base_select + gains_M)

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

    def views(self, way: Merging | None = None, rows: Sequence[int] | None = None) -> Views:
        """Returns what is known of all mixtures, or of some rows, before any real fine-tune."""
        chosen = slice(None) if rows is None else list(rows)
        proxy_M = self.proxy_M if way is None else self.ways[way]
        strongest_M = None
        rows_of = {mixture.datasets: row for row, mixture in enumerate(self.mixtures)}
        if len(self.singles) == len(self.datasets):
            alone = [rows_of[(name,)] for name in self.datasets]
            unit = abs(self.base_select) if self.kind == "loss" and self.base_select else 1.0
            away_M = (proxy_M - self.base_select) / unit
            found_M = with_strongest(self.weights_MN, away_M, away_M[alone])
            strongest_M = (self.base_select + unit * found_M)[chosen]
        longer_M = None if self.longer_M is None else self.longer_M[chosen]
        weights_MN, pooled_M = self.weights_MN[chosen], self.pooled_M[chosen]
        return Views(weights_MN, proxy_M[chosen], pooled_M, strongest_M, longer_M)

    def noise(self, checked: Sequence[int], seed_sd: float) -> Noise:
        """Returns the noise of what was measured, as `verify` knows it after some checks.

        Of the examples' part nothing is known in worlds that were recorded as means alone.
        """
        if self.examples is None or self.check_M is None:
            return replace(Noise.none(len(self.mixtures)), seed_sd=seed_sd)
        checks = {row: float(self.check_M[row]) for row in checked}
        plural_M = np.array([len(mixture) > 1 for mixture in self.mixtures])
        return self.examples.noise(checks, plural_M, seed_sd)

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
    session: Session,
    mixtures: Sequence[Mixture],
    exponents: Sequence[float],
    weightings: Sequence[Weighting] = (),
) -> list[World]:
    """Fine-tunes on every mixture and scores proxies and fine-tunes: one world for each target.

    What the store holds is not done again.
    """
    own, tokens = session.recipe.merge.scale.exponent, session.finetunes.num_tokens
    weighting = session.recipe.merge.weighting
    reals, failures = _reals(session, mixtures)
    mixtures = tuple(reals)
    base = {part: session.evaluations.base(part) for part in ("select", "report")}
    proxies = {
        exponent: _proxies(session, mixtures, "select", Merging(weighting, exponent))
        for exponent in sorted({*exponents, own})
    }
    weighted = {
        each: _proxies(session, mixtures, "select", Merging(each, own))
        for each in weightings
        if each != weighting
    }
    reports = _proxies(session, mixtures, "report", Merging(weighting, own))
    space, proxy = session.spaces.subsets, session.evaluations.proxy
    alone = {name: proxy(space.mixture([name]), "select") for name in space.allowed}
    session.proxies.release()
    expert_tokens = float(sum(tokens(Mixture.union([name])) for name in alone))
    worlds = []
    for name, scorer in session.inputs.targets("select").items():
        experts = {each: scores[name] for each, scores in alone.items()}
        shares = map(session.finetunes.shares, mixtures)
        pooled = [{name: opinion_pool.pooled(each, experts)} for each in shares]
        measured = [each["select"][name] for each in reals.values()]
        num_report = base["report"][name].num_examples
        seen = [proxies[own], pooled]
        proxied, guessed = ([each[name] for each in scores] for scores in seen)
        noise = _of_the_examples(
            mixtures, proxied, guessed, measured, base["select"][name], num_report
        )
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
            weighting=weighting,
            weighted={each: _means(scores, name) for each, scores in weighted.items()},
            examples=noise[0],
            check_M=noise[1],
            longer_M=longer_of(session, mixtures),
        )
        worlds.append(world)
    return worlds


def _proxies(
    session: Session, mixtures: Sequence[Mixture], part: Part, way: Merging
) -> list[dict[str, Scores]]:
    text = f"seed {session.recipe.train.seed}: proxies, {way}, {part} part"
    found, merged = {}, [session.spaces.merged(each, way.weighting) for each in mixtures]
    with session.listener.task("study", text, len(mixtures)) as advance:
        for mixture, scores in session.evaluations.proxies(merged, part, way.exponent):
            found[mixture] = scores
            advance(1)
    return [found[mixture] for mixture in merged]


def _of_the_examples(
    mixtures: Sequence[Mixture],
    proxies: Sequence[Scores],
    pools: Sequence[Scores],
    reals: Sequence[Scores],
    base: Scores,
    num_report: int,
) -> tuple[OnExamples, Array]:
    """What the select part's examples add to all scores on a target, and to each real alone.

    In the unit of the scores, where a run counts in gains.
    """
    trials = [Trial(mixture, {}, 0.0) for mixture in mixtures]
    unit = base.mean if base.kind == "loss" and base.mean > 0 else 1.0
    ratio = base.num_examples / num_report
    found = on_examples(weights_of(trials), proxies, pools, base, ratio)
    check_M = np.array(
        [
            unit**2 * example_variance(real, proxy, base) if len(mixture) > 1 else 0.0
            for mixture, real, proxy in zip(mixtures, reals, proxies, strict=True)
        ]
    )
    root_MR = unit * main_columns(found.root_MR)
    return OnExamples(root_MR, unit**2 * found.unchecked, ratio), check_M


def main_columns(root_MR: Array, share: float = 0.999) -> Array:
    """Returns a root of nearly the same covariance with few columns: the largest components."""
    left_MR, sizes_R, _ = np.linalg.svd(root_MR, full_matrices=False)
    total = float((sizes_R**2).sum())
    num = int(np.searchsorted(np.cumsum(sizes_R**2), share * total)) + 1 if total > 0 else 0
    return np.asarray(left_MR[:, :num] * sizes_R[:num])


def _reals(
    session: Session, mixtures: Sequence[Mixture]
) -> tuple[dict[Mixture, dict[Part, dict[str, Scores]]], tuple[tuple[Mixture, str], ...]]:
    """Returns every mixture's real scores, and those left out as training failed, with the why."""
    seed = f"seed {session.recipe.train.seed}"
    fits: dict[Mixture, Finetune | TrainingError] = {}
    with session.listener.task("study", f"{seed}: real fine-tunes", len(mixtures)) as advance:
        for mixture, fit in session.finetunes.fit_all(mixtures, "study"):
            fits[mixture] = fit
            advance(1)
    parts: tuple[Part, ...] = ("select", "report")
    for part in parts:
        fits = session.evaluations.scored(fits, part)
    found: dict[Mixture, dict[Part, dict[str, Scores]]] = {}
    failures = []
    for mixture in mixtures:
        fit = fits[mixture]
        if isinstance(fit, TrainingError):
            failures.append((mixture, fit.message))
            session.opened.warn(f"{seed}: {mixture} is left out: {fit.message}")
        else:
            found[mixture] = {part: session.evaluations.real(fit, part) for part in parts}
    return found, tuple(failures)


def _means(scores: Sequence[Mapping[str, Scores]], name: str) -> Array:
    """Returns means that are better when higher."""
    sign = -1.0 if scores[0][name].kind == "loss" else 1.0
    return np.array([sign * each[name].mean for each in scores])
