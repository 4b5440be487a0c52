"""A metric of the harness as one number a document, whose mean is the harness's own number.

Means over documents are what they are. Perplexities are losses: the mean over documents (or over
their words or bytes) of -log p, in nats, of which the harness's number is the exponential. Any
other metric is one number T of all documents, such as an F1 of a whole set. It is taken apart by
leaving out one document at a time: document i counts T + (n - 1)(mean of all T_-j - T_-i), the
jackknife's influence (Efron and Stein, 1981), whose mean is T.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Real
from statistics import fmean
from typing import Any, Literal

from mergetomix.errors import DataError, RecipeError
from mergetomix.records import Scores
from mergetomix.targets.harness.tasks import LoadedTasks, name_of

Form = Literal["mean", "loss", "whole"]
MOST_WHOLE = 2000
"""Documents of a metric that is computed anew without each of them."""
MOST_S = 60.0
"""Seconds that this may take for each model."""
NEARLY = 0.8
"""A name that is so near to a declared one is a slip."""
DIGITS = 12
"""Decimals of an influence: what lies behind them are roundings of the sums."""


@dataclass(frozen=True)
class Metric:
    """A metric of a task behind one of its filters.

    `form` says what the harness makes of the values of documents: their mean, a perplexity, or
    another number of all of them. A task may say that only once it has scored a document.
    """

    name: str
    filter: str
    task: Any

    def __str__(self) -> str:
        return f"{self.name},{self.filter}"

    @property
    def aggregate(self) -> Callable[[Sequence[Any]], float]:
        """What makes one number of the values of all documents."""
        from lm_eval.api.metrics import mean

        found: Callable[[Sequence[Any]], float] = self.task.aggregation().get(self.name, mean)
        return found

    @property
    def form(self) -> Form:
        """What kind of number that is."""
        from lm_eval.api import metrics

        if self.aggregate in (metrics.mean, metrics.nanmean):
            return "mean"
        perplexities = (metrics.perplexity, metrics.weighted_perplexity, metrics.bits_per_byte)
        return "loss" if self.aggregate in perplexities else "whole"

    def scores(self, items: Mapping[int, Any], weights: Sequence[float], where: str) -> Scores:
        """Returns what the harness says of each document, higher better unless it is a loss.

        Args:
            items: what the task's `process_results` gives for each document, by its place; where a
                model's responses are not finite, nothing.
            weights: of all documents in the mean; a loss has those of its words or bytes.

        Raises:
            DataError: it gives no numbers.
        """
        key, num = f"{where}.metric", len(weights)
        if self.form == "whole" and len(items) < num:
            return Scores("score", (math.nan,) * num, tuple(weights))
        try:
            if self.form == "loss":
                return _losses(items, num, self.name == "bits_per_byte")
            if self.form == "mean":
                values = {place: _number(each, place) for place, each in items.items()}
            else:
                values = dict(zip(items, self._influences(list(items.values())), strict=True))
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise DataError(key, f"{self} is no number of these documents: {error}") from error
        sign = 1.0 if self.task.higher_is_better().get(self.name, True) else -1.0
        found = tuple(sign * values.get(place, math.nan) for place in range(num))
        return Scores("score", found, tuple(weights))

    def _influences(self, items: Sequence[Any]) -> list[float]:
        """The influence of each document on the number of all of them."""
        started = time.monotonic()
        whole = float(self.aggregate(items))
        wanted_s = (time.monotonic() - started) * len(items)
        if wanted_s > MOST_S:
            message = f"it is computed anew without each document, which takes {wanted_s:.0f} s"
            raise ValueError(f"{message} for each model; a limit of fewer documents takes less")
        if len(items) == 1:
            return [whole]
        without = [float(self.aggregate([*items[:i], *items[i + 1 :]])) for i in range(len(items))]
        middle = fmean(without)
        return [round(whole + (len(items) - 1) * (middle - each), DIGITS) for each in without]


def _losses(items: Mapping[int, Any], num: int, in_bits: bool) -> Scores:
    """The loss of each document in nats, or bits, per what it is counted in."""
    unit = math.log(2) if in_bits else 1.0
    values, weights = [], []
    for place in range(num):
        each = items.get(place, math.nan)
        logp, size = each if isinstance(each, tuple) else (each, 1)
        if not size:
            raise ValueError(f"document {place} is empty")
        values.append(-float(logp) / float(size) / unit)
        weights.append(float(size))
    return Scores("loss", tuple(values), tuple(weights))


def _number(value: Any, place: int) -> float:
    if isinstance(value, str) or not (isinstance(value, Real) or hasattr(value, "item")):
        raise TypeError(f"document {place} has {str(value)[:50]!r}")
    number = float(value)
    if not math.isfinite(number):
        says = "lm-eval leaves such documents out, and models are compared document by document"
        raise ValueError(f"document {place} has {number}; {says}")
    return number


def metric_of(task: Any, wanted: str | None, where: str) -> Metric:
    """Returns the metric of a task that a section names.

    Raises:
        RecipeError: the task has no such metric or filter, or several and none is named.
    """
    known, filters = list(map(str, task.aggregation())), filters_of(task)
    every = [f"{name},{each}" for name in known for each in filters]
    key, title = f"{where}.metric", name_of(task)
    if not every:
        raise RecipeError(key, f"{title} has no metric, or no filter")
    if wanted is None:
        if len(every) == 1:
            return Metric(known[0], filters[0], task)
        raise RecipeError(key, f"{title} has {' and '.join(every)}: name one")
    name, _, chosen = wanted.partition(",")
    if not chosen and len(filters) > 1:
        raise RecipeError(key, f"{title} has the filters {', '.join(filters)}: name one of {every}")
    chosen = chosen or filters[0]
    nearly = get_close_matches(name, known, n=1, cutoff=NEARLY)
    is_one = name in known or (gives_more(task) and not nearly)
    if chosen not in filters or not is_one:
        raise RecipeError(key, f"{title} has {', '.join(every)}, not {wanted}")
    return Metric(name, chosen, task)


def gives_more(task: Any) -> bool:
    """Returns whether a task may give metrics that it does not declare, by code of its own."""
    listed = task.get_config("metric_list") or ()
    is_own = any(callable(each.get("metric")) for each in listed if isinstance(each, Mapping))
    code = callable(task.get_config("process_results")) or not hasattr(task, "_metric_fn_list")
    return is_own or code


def filters_of(task: Any) -> list[str]:
    """Returns the names of a task's filters."""
    return [str(each.name) for each in task._filters]


def metrics_of(
    loaded: LoadedTasks, wanted: str | None, where: str
) -> tuple[list[tuple[Any, Metric]], bool]:
    """Returns tasks with the metric that a section names, and whether documents weigh alike.

    Of a group whose tasks weigh alike, documents do not. A task that lacks the metric of its group
    is left out, as the harness does.

    Raises:
        RecipeError: there is no such metric; or several tasks are no group, or it has no mean.
    """
    group, each_of = loaded.group, "each: true makes a target of each of its tasks"
    if group is None:
        if len(loaded.tasks) != 1:
            named = ", ".join(name_of(each) for each in loaded.tasks[:3])
            message = f"stands for {len(loaded.tasks)} tasks ({named}, ...) and is no group"
            raise RecipeError(f"{where}.task", message, hint=each_of)
        (task,) = loaded.tasks
        return [(task, metric_of(task, wanted, where))], True
    title, listed = f"the group {group.name}", group.aggregate_metric_list or ()
    if not listed:
        raise RecipeError(f"{where}.task", f"{title} has no number of its own", hint=each_of)
    every = {
        f"{each.metric},{name}": each
        for each in listed
        for name in each.filter_list or _filters(loaded.tasks, each.metric)
    }
    if not every:
        names = ", ".join(each.metric for each in listed)
        raise RecipeError(f"{where}.metric", f"no task of {title} has {names}", hint=each_of)
    same = [key for key in every if wanted in (None, key, key.partition(",")[0])]
    if len(same) != 1:
        which = "" if not same else ": name one"
        not_it = f", not {wanted}" if wanted and not same else ""
        raise RecipeError(f"{where}.metric", f"{title} has {', '.join(every)}{not_it}{which}")
    name, _, chosen = same[0].partition(",")
    config = every[same[0]]
    found = [
        (task, Metric(name, chosen, task))
        for task in _having(loaded.tasks, name)
        if chosen in filters_of(task)
    ]
    if not found or any(each.form != "mean" for _, each in found) or config.aggregation != "mean":
        message = f"{same[0]} of {title} is no mean over documents"
        raise RecipeError(f"{where}.metric", message, hint=each_of)
    return found, bool(config.weight_by_size)


def _having(some: Sequence[Any], metric: str) -> list[Any]:
    declared = [task for task in some if metric in task.aggregation()]
    return declared or [task for task in some if gives_more(task)]


def _filters(some: Sequence[Any], metric: str) -> list[str]:
    return sorted({name for task in _having(some, metric) for name in filters_of(task)})


def missing_metric(metric: Metric, given: Mapping[str, Any], place: int, where: str) -> DataError:
    """Returns the error of a document for which a task's own code gives another metric."""
    there = ", ".join(given) or "nothing"
    return DataError(f"{where}.metric", f"document {place} has {there}, not {metric.name}")
