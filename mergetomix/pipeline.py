"""The stages and `run`: experts, search, final. It reads as the method's algorithm.

What the store holds is not done twice, so every stage can be run alone, and again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from mergetomix import aims, fidelity, merge, racing, search, verify
from mergetomix.budget import Limit, Meter, limit_of
from mergetomix.errors import RecipeError, StoreError, TrainingError, UserError
from mergetomix.job import (
    Job,
    beat,
    environment,
    evaluate_base,
    evaluate_proxy,
    evaluate_real,
    fit,
    free_memory,
    open_job,
    trial_of,
)
from mergetomix.mixture import Simplex, Space, Subsets, everything, holds
from mergetomix.progress import Listener
from mergetomix.recipe import Recipe
from mergetomix.records import Cost, Finetune, Mixture, Result, Row, Scores, Selection, Trial, Verification
from mergetomix.search.auto import choose
from mergetomix.slopes import companions, has_slopes, slopes, smooth, smooth_scorer, warn_of_companions

NUM_CHECKS = 3
"""Checks that a run pays for unless the recipe says otherwise."""
OF_SUBSETS = ("exhaustive", "greedy")
"""Strategies that know no weights."""


def run(recipe: Recipe, listener: Listener | None = None) -> Result:
    """The whole method: one expert for each dataset, the best mixture by proxy, a real fine-tune on it, and the evidence."""
    with open_job(recipe, listener) as job:
        experts = train_experts(job)
        selection = search_mixtures(job)
        verification = verify_mixtures(job, selection)
        table = finalize(job, selection, verification)
        return result_of(job, experts, selection, verification, table)


def train_experts(job: Job) -> tuple[Finetune, ...]:
    """One expert for each dataset that a mixture may hold, in order of their names.

    An expert that fails does not stop the others. Raises TrainingError at the end, naming each that failed.
    """
    num_checks(job)  # a budget that cannot be spent is said before anything is trained
    strategy_of(job)
    check_length(job)
    check_space(job)
    experts, failures = [], []
    for name in job.space().allowed:
        try:
            experts.append(fit(job, Mixture.union([name]), "experts"))
        except TrainingError as error:
            failures.append(f"expert {name}: {error.message}")
            job.listener.warn(failures[-1])
    if failures:
        hint = "the other experts are in the store; lower train.learning_rate or look for odd rows in these datasets"
        raise TrainingError("; ".join(failures), hint=hint)
    job.tell_reused("experts")
    return tuple(experts)


def search_mixtures(job: Job) -> Selection:
    """Evaluate proxies on the select part of the targets until the strategy is done; the best first.

    Where the recipe chooses a subset and then its weights, half of the budget goes to each.
    """
    base = evaluate_base(job, "select")
    aims.begin(job, base)
    space, options, limit = job.space(), job.recipe.search, limit_of(job)
    if options.space == "both":
        trials, name = explore(job, base, job.subsets(), limit.half())
        more, second = explore(job, base, weights_of_best(job, trials), limit.half(up=True))
        trials, name = [*trials, *more], f"{name}, then {second}"
    else:
        trials, name = explore(job, base, space, limit)
    job.tell_reused("trials")
    trials, stopped = [each for each in trials if each.complete], [each for each in trials if not each.complete]
    warn_of_blunt_targets(job, trials)
    tried = {trial.mixture: trial for trial in trials}
    singles = [Mixture((name,), (1.0,)) for name in space.allowed]
    experts = [tried.get(single) or trial_of(job, single, base) for single in singles]
    candidates = [trial for trial in tried.values() if holds(space, trial.mixture)]
    aims.settle(job, candidates, base)
    best_first, experts_first = (ranked(aims.again(job, each, base)) for each in (candidates, experts))
    return Selection(best_first[0].mixture, best_first, name, base, experts_first, job.objective, ranked(stopped))


def explore(job: Job, base: Mapping[str, Scores], space: Space, limit: Limit) -> tuple[list[Trial], str]:
    """The trials of a search over a space, and the name of its strategy."""
    strategy = strategy_of(job, space, limit.num_passes)
    aims.warn_of_strategy(job, strategy.name)
    if job.recipe.search.strategy == "auto":
        _, why = choose(space, limit.num_passes, has_slopes(job))
        job.listener.note(f"search: {strategy.name}, as {why}")
    if strategy.name == "optuna":
        Path(job.recipe.run_dir).mkdir(parents=True, exist_ok=True)
    trials: list[Trial] = []
    meter = Meter()
    with job.listener.task("search", f"trying mixtures ({strategy.name})", strategy.expected()) as advance:
        try_out = racing.begin(job, strategy, base)
        while (asked := strategy.ask()) is not None and not (trials and meter.is_over(limit)):
            trials.append(try_out(asked))
            values = trials[-1].gains(base)
            gradients = slopes(job, asked.mixture, base) if asked.gradient else None
            beside = smooth(job, trials[-1], base) if strategy.name == "gradient" else None
            strategy.tell(search.Told(asked.mixture, trials[-1].objective, values, gradients, beside))
            advance(1)
            meter.num_passes += asked.cost
            job.listener.state(meter.line(strategy, trials))
            beat(job, "search", len(trials), strategy.expected())
    job.listener.note(f"search: {meter.line(strategy, trials)}")
    if strategy.name == "gradient":
        warn_of_companions(job, trials)
    return trials, strategy.name


def weights_of_best(job: Job, trials: Sequence[Trial]) -> Space:
    """The weights of the best subset that may have some."""
    space = job.space()
    assert isinstance(space, Simplex)
    able = [frozenset(trial.mixture.members) for trial in ranked(trials)]
    chosen = next((datasets for datasets in able if space.holds(datasets)), None)
    if chosen is None:
        message = f"none of the {len(trials)} subsets that were tried can have weights under its caps"
        raise RecipeError("search.max_repeats", message, hint="raise it, or leave it out")
    return replace(space, least=len(chosen), most=len(chosen), require=chosen)


def strategy_of(job: Job, space: Space | None = None, budget: int | None = None) -> search.Strategy:
    """The recipe's way to search a space, by default what is searched first. Raises RecipeError where the budget is too small.

    A strategy that tries subsets alone leaves their weights to another.
    """
    options = job.recipe.search
    if space is None:
        limit = limit_of(job)
        space, limit = (job.subsets(), limit.half()) if options.space == "both" else (job.space(), limit)
        budget = limit.num_passes
    setting = search.Setting(
        space,
        job.recipe.train.seed,
        budget,
        job.objective.combine,
        lambda mixture: merge.coefficients(mixture, job.exponent),
        has_slopes(job),
        job.objective.aim == "pareto",
        search.Options(options.regressor, options.sampler, storage_of(job, space)),
    )
    name = "auto" if isinstance(space, Simplex) and options.strategy in OF_SUBSETS else options.strategy
    if name == "gradient" and not setting.differentiable:
        blunt = next(target for target in job.recipe.targets if smooth_scorer(job, target) is None)
        message = f"gradient needs derivatives, and target {blunt} has no right answers whose loss could stand for its score"
        raise RecipeError("search.strategy", message, hint="give it prompt and completion, or use regression or greedy")
    try:
        return search.build(name, setting)
    except search.SettingError as error:
        raise RecipeError(f"search.{error.key}", str(error)) from None
    except ValueError as error:
        raise RecipeError("search.budget", str(error)) from None


def storage_of(job: Job, space: Space) -> str | None:
    """Where Optuna keeps its trials for others to look at, such as optuna-dashboard: `optuna.db` in the run's folder, and
    beside it `optuna-weights.db` where the weights of the best subset are searched after the subsets."""
    if job.recipe.search.strategy != "optuna":
        return None
    is_second = job.recipe.search.space == "both" and isinstance(space, Simplex)
    return f"sqlite:///{Path(job.recipe.run_dir) / ('optuna-weights.db' if is_second else 'optuna.db')}"


def warn_of_blunt_targets(job: Job, trials: Sequence[Trial]) -> None:
    """Says of every target whose examples cannot tell even its best mixture from its worst how many would."""
    for name in job.recipe.targets if len(trials) > 1 else ():
        scores = [trial.scores[name] for trial in trials]
        best, worst = max(scores, key=lambda each: each.mean), min(scores, key=lambda each: each.mean)
        num = len(best.values)
        gap, sd = fidelity.paired_difference(best.values, worst.values, best.weights)
        if gap <= 0:
            job.warn(f"target {name}: all {len(trials)} mixtures score the same, {best.mean:.4g}; it has no say in the choice")
        elif not sd * fidelity.STANDARD_ERRORS < gap:
            needed = f"about {fidelity.examples_needed(sd, num, gap)} are needed" if math.isfinite(sd) else "several are needed"
            spread = f"{gap:.3g}, standard error {sd:.3g}" if math.isfinite(sd) else f"{gap:.3g}"
            job.warn(f"target {name}: {num} examples cannot tell even its best mixture from its worst ({spread}); {needed}")


def verify_mixtures(job: Job, selection: Selection) -> Verification | None:
    """A few real fine-tunes that prove the pick, or another; None where the recipe turns checks off."""
    budget = num_checks(job)
    aims.resume(job, selection)
    return verify.verify(job, selection, budget, list(baselines(job).values())) if budget else None


def num_checks(job: Job) -> int:
    """How many checks to pay for. Raises RecipeError where there are fewer mixtures to check than the recipe wants."""
    num, budget = job.space().num_plural, job.recipe.verify.budget
    if budget is None:
        return int(min(NUM_CHECKS, num))
    if budget > num:
        message = f"{budget} checks, but the search may choose among {num} mixtures of several datasets"
        raise RecipeError("verify.budget", message, hint="a mixture of one dataset is its own expert and needs no check")
    return budget


def baselines(job: Job) -> dict[str, Mixture]:
    """The mixtures that the final table compares with, by name."""
    options, space = job.recipe.final, job.space()
    found = {"all datasets": everything(space)} if "all" in options.baselines else {}
    if "random" in options.baselines:
        drawn = space.sample(options.num_random, job.recipe.train.seed)
        found |= {f"random {i + 1}": mixture for i, mixture in enumerate(drawn)}
    return found


def ranked(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Trials, the best objective first; of equals the one with fewer datasets, then by name."""
    return tuple(sorted(trials, key=lambda trial: (-trial.objective, len(trial.mixture), trial.mixture.datasets)))


def finalize(job: Job, selection: Selection, verification: Verification | None = None) -> tuple[Row, ...]:
    """The final table, on the report part that the search never saw: base, experts, proxy, the selected mixture fine-tuned
    for real, the other mixtures checked, and the baselines that the recipe asks for."""
    aims.resume(job, selection)
    picked = selection.mixture if verification is None else verification.mixture
    rows = merged_rows(job, picked, job.exponent if verification is None else verification.exponent)
    base = rows[0].scores
    job.release()
    if job.recipe.final.train:
        rows.append(real_row(job, "selected", "final", picked, base))
    paid = () if verification is None else [check.mixture for check in verification.checks if check.origin == "verify"]
    for mixture in paid:
        if mixture != picked:
            rows.append(real_row(job, f"check {mixture}", "check", mixture, base))
    failed = set() if verification is None else {mixture for mixture, _ in verification.failures}
    for name, mixture in baselines(job).items():
        if mixture in failed:
            continue  # verify has said so, and would only fail again
        rows += baseline_row(job, name, "all" if name == "all datasets" else "random", mixture, base)
    job.tell_reused("real fine-tunes")
    return tuple(rows)


def merged_rows(job: Job, picked: Mixture, exponent: float) -> list[Row]:
    """The lines of the final table that need no fine-tune: base, experts, and the picked mixture's proxy."""
    singles = [Mixture((name,), (1.0,)) for name in job.space().allowed]
    with job.listener.task("final", "scoring base, experts and proxy on the report part", len(singles) + 2) as advance:
        base = evaluate_base(job, "report")
        rows = [row(job, "base", "base", None, base, base)]
        for single in singles:
            advance(1)
            beat(job, "final: scoring experts", len(rows), len(singles) + 2)
            scores = evaluate_proxy(job, single, "report")
            rows.append(row(job, f"expert {single}", "expert", single, scores, base))
        advance(1)
        scores = evaluate_proxy(job, picked, "report", exponent)
        rows.append(row(job, "proxy", "proxy", picked, scores, base))
        advance(1)
    return rows


def baseline_row(job: Job, name: str, kind: Any, mixture: Mixture, base: Mapping[str, Scores]) -> list[Row]:
    """A baseline's line, or none where its training failed: a comparison less, but the result stands."""
    try:
        return [real_row(job, name, kind, mixture, base)]
    except TrainingError as error:
        job.warn(f"the baseline {name!r} is left out: {error.message}")
        return []


def row(job: Job, name: str, kind: Any, mixture: Mixture | None, scores: Any, base: Mapping[str, Scores]) -> Row:
    """One line of the final table."""
    return Row(name, kind, mixture, scores, job.objective.of(scores, base))


def real_row(job: Job, name: str, kind: Any, mixture: Mixture, base: Mapping[str, Scores]) -> Row:
    """Fine-tune on a mixture for real and score it."""
    record = fit(job, mixture, "final")
    line = row(job, name, kind, mixture, evaluate_real(job, record, "report"), base)
    free_memory()
    return Row(line.name, line.kind, line.mixture, line.scores, line.gain, record.path)


def result_of(
    job: Job, experts: Sequence[Finetune], selection: Selection, verification: Verification | None, table: Sequence[Row]
) -> Result:
    """Everything that a run found, with what it cost and where it ran."""
    path = str(Path(job.recipe.run_dir))
    cost = cost_of(job, experts, selection, verification, table)
    portions = job.portions(selection.mixture if verification is None else verification.mixture)
    about, warnings = environment(job), tuple(job.warnings)
    return Result(selection, verification, tuple(experts), tuple(table), cost, about, path, warnings, portions)


def cost_of(
    job: Job, experts: Sequence[Finetune], selection: Selection, verification: Verification | None, table: Sequence[Row]
) -> Cost:
    """Seconds of the work behind a result, from the ledger: what earlier runs did counts too."""
    keys = scored_keys(job, selection, verification)
    scorers = [*job.inputs.targets("select").values(), *(companions(job).values() if is_by_gradients(selection) else ())]
    addresses = [address for scorer in scorers for address in scorer.addresses]
    merge_s, evaluate_s = job.store.seconds(keys, addresses, "select")
    seconds = {line.kind: 0.0 for line in table}
    for line in table:
        if line.mixture is not None and line.kind in ("final", "all", "random") and len(line.mixture) > 1:
            seconds[line.kind] += train_s(job, line.mixture)
    experts_s = sum(expert.train_s for expert in experts)
    per_trial = (evaluate_s + merge_s) / max(1, len(keys))
    return Cost(
        experts_s=experts_s,
        merge_s=merge_s,
        evaluate_s=evaluate_s,
        checks_s=0.0 if verification is None else checks_s(job, verification),
        final_s=seconds.get("final", 0.0),
        baselines_s=seconds.get("all", 0.0) + seconds.get("random", 0.0),
        brute_force_s_estimate=brute_force_s(job, experts_s, per_trial, len(selection.trials)),
        wall_s=time.monotonic() - job.started,
        reused=dict(job.reused),
    )


def is_by_gradients(selection: Selection) -> bool:
    """Whether a search learnt from derivatives."""
    return "gradient" in selection.strategy


def train_s(job: Job, mixture: Mixture, seed: int | None = None) -> float:
    """Seconds that a fine-tune took, zero where there is none."""
    record = job.store.finetune(job.real_key(mixture, seed))
    return record.train_s if record else 0.0


def checks_s(job: Job, verification: Verification) -> float:
    """Seconds of the fine-tunes made for checks alone: where there is a final model, its own are counted there."""
    paid = [check.mixture for check in verification.checks if check.origin == "verify"]
    again = verify.repeated(verification.checks, job.recipe.verify.repeats)
    repeats_s = sum(train_s(job, check.mixture, job.recipe.train.seed + 1) for check in again)
    final = verification.mixture if job.recipe.final.train else None
    return sum(train_s(job, mixture) for mixture in paid if mixture != final) + repeats_s


def scored_keys(job: Job, selection: Selection, verification: Verification | None) -> set[str]:
    """The addresses of all proxies that were scored, and of the base."""
    keys = {job.inputs.base_key(job.store)} | {
        job.proxy_key(trial.mixture) for trial in (*selection.trials, *selection.stopped)
    }
    if verification is not None:
        keys |= {job.proxy_key(each.mixture, verification.exponent) for each in verification.predictions}
        exponents = job.recipe.verify.exponents
        keys |= {job.proxy_key(check.mixture, exponent) for check in verification.checks for exponent in exponents}
    return keys


def brute_force_s(job: Job, experts_s: float, evaluate_s: float, num_trials: int) -> float:
    """Seconds to fine-tune on every mixture of the space and evaluate each; of weights, on as many mixtures as were tried.

    A dataset stands in a share of the mixtures, so all fine-tunes together see its tokens so many times; with a fixed number
    of steps every fine-tune costs the same.
    """
    space = job.space()
    mean_s = experts_s / max(1, len(space.allowed))
    if isinstance(space, Simplex):
        return num_trials * (mean_s + evaluate_s)
    fixed = job.recipe.train.max_steps is not None or job.recipe.train.max_tokens is not None
    return sum(count * (mean_s * (1 if fixed else k) + evaluate_s) for k, count in space.num_by_size.items())


def finetunes(job: Job) -> list[tuple[Mixture, int | None]]:
    """The mixture of every fine-tune of a run, each once, with its seed where that is not train.seed. What is checked and
    chosen is not known before the search: others stand for it."""
    space, checks, seed = job.space(), num_checks(job), job.recipe.train.seed
    repeats = job.recipe.verify.repeats if checks else 0
    some = stand_ins(space, max(checks, repeats, 1))
    wanted = [Mixture.union([name]) for name in space.allowed]
    wanted += some[: max(checks, int(job.recipe.final.train))]
    wanted += baselines(job).values()
    return [(mixture, None) for mixture in dict.fromkeys(wanted)] + [(mixture, seed + 1) for mixture in some[:repeats]]


def stand_ins(space: Space, num: int) -> list[Mixture]:
    """At most `num` mixtures of a space that stand for those that a search will find: of half the datasets, two at least, or
    drawn where there are groups or weights."""
    if isinstance(space, Simplex) or space.groups:
        drawn = space.sample(4 * num, seed=0)
        return sorted(drawn, key=lambda mixture: len(mixture) == 1)[:num]
    least, most = space.bounds
    half = max(least, min(most, max(2, (len(space.allowed) + 1) // 2)))
    halves = Subsets(space.allowed, half, half, space.require)
    return [space.mixture(mixture.datasets) for mixture in islice(halves, num)]


def check_length(job: Job) -> None:
    """Raises RecipeError where training is too short to take a sequence of every dataset that a weighted mixture may have."""
    if job.is_drawn:
        job.counts(everything(job.space()))


def check_space(job: Job) -> None:
    """Raises StoreError where the disk has no room for what is to be trained."""
    given = {name for name, spec in job.recipe.datasets.items() if spec.expert is not None}
    wanted = [(mixture, seed) for mixture, seed in finetunes(job) if set(mixture.members) - given]
    todo = [mixture for mixture, seed in wanted if job.store.finetune(job.real_key(mixture, seed)) is None]
    needed = job.inputs.finetune_bytes() * len(todo)
    free = job.store.free_bytes()
    if needed > free:
        message = f"{job.store.path} has {free / 1e9:.1f} GB free, and the fine-tunes need about {needed / 1e9:.1f} GB"
        raise StoreError(message, hint="free some space, name another store, or train with method: lora")


def mixture_of(job: Job, datasets: Sequence[str], weights: Sequence[float] | None) -> Mixture:
    """The mixture that a user names. Raises UserError for an unknown dataset or weights that make none."""
    unknown = sorted(set(datasets) - set(job.recipe.datasets))
    if unknown or not datasets:
        known = ", ".join(job.recipe.datasets)
        raise UserError(f"no dataset is called {unknown[0]!r}" if unknown else "name at least one dataset", hint=known)
    forbidden = sorted(set(datasets) & set(job.recipe.search.forbid))
    if forbidden:
        raise UserError(f"the recipe forbids {forbidden[0]!r}", hint="take it out of search.forbid")
    if weights is None:
        return job.subsets().mixture(frozenset(datasets))
    finite = all(math.isfinite(weight) and weight >= 0 for weight in weights)
    if len(weights) != len(datasets) or not finite or sum(weights) <= 0:
        raise UserError(f"{len(datasets)} datasets need as many weights, none negative, not all zero; got {list(weights)}")
    return Mixture.union(datasets, dict(zip(datasets, weights, strict=True)))
