"""A metric of the harness as one number a document, whose mean is the harness's own number.

Means over documents are what they are. Perplexities are losses: the mean over documents (or over
their words or bytes) of -log p, in nats, of which the harness's number is the exponential. Any
other metric is one number T of all documents, such as an F1 of a whole set. It is taken apart by
leaving out one document at a time: document i counts T + (n - 1)(mean of all T_-j - T_-i), the
jackknife's influence (Efron and Stein, 1981), whose mean is T.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from statistics import fmean
from typing import Any, Literal

from mergetomix.errors import DataError, RecipeError
from mergetomix.records import Scores
from mergetomix.targets.harness.tasks import LoadedTasks

Form = Literal["mean", "loss", "whole"]
MOST_WHOLE = 2000
"""Documents of a metric that is computed anew without each of them."""
DIGITS = 12
"""Decimals of an influence: what lies behind them are roundings of the sums."""


@dataclass(frozen=True)
class Metric:
    """A metric of a task behind one of its filters.

    `form` says what the harness makes of the values of documents: their mean, a perplexity, or
    another number of all of them.
    """

    name: str
    filter: str
    aggregate: Callable[[Sequence[Any]], float]
    form: Form
    higher_is_better: bool

    def __str__(self) -> str:
        return f"{self.name},{self.filter}"

    def scores(self, items: Sequence[Any], weights: Sequence[float], where: str) -> Scores:
        """Returns what the harness says of each document, higher better unless it is a loss.

        Args:
            items: what the task's `process_results` gives for each document, nan for one whose
                responses are not finite.
            weights: of the documents in the mean; a loss has those of its words or bytes.

        Raises:
            DataError: it gives no numbers.
        """
        key = f"{where}.metric"
        try:
            if self.form == "loss":
                return self._losses(items)
            if self.form == "mean":
                values = [_number(each) for each in items]
            else:
                values = self._influences(items)
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise DataError(key, f"{self} is no number of these documents: {error}") from error
        sign = 1.0 if self.higher_is_better else -1.0
        return Scores("score", tuple(sign * each for each in values), tuple(weights))

    def _losses(self, items: Sequence[Any]) -> Scores:
        """The loss of each document in nats (bits for bits_per_byte) per what it is counted in."""
        pairs = [each if isinstance(each, tuple) else (each, 1) for each in items]
        unit = math.log(2) if self.name == "bits_per_byte" else 1.0
        values = tuple(-float(logp) / float(num) / unit for logp, num in pairs)
        return Scores("loss", values, tuple(float(num) for _, num in pairs))

    def _influences(self, items: Sequence[Any]) -> list[float]:
        """The influence of each document on the number of all of them."""
        kept = list(items)
        if any(isinstance(each, float) and each != each for each in kept):
            return [math.nan] * len(kept)  # of a model whose logits are not finite
        whole = float(self.aggregate(kept))
        if len(kept) == 1:
            return [whole]
        without = [float(self.aggregate([*kept[:i], *kept[i + 1 :]])) for i in range(len(kept))]
        middle = fmean(without)
        return [round(whole + (len(kept) - 1) * (middle - each), DIGITS) for each in without]


def _number(value: Any) -> float:
    if isinstance(value, str) or not (isinstance(value, Real) or hasattr(value, "item")):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def metric_of(task: Any, wanted: str | None, where: str) -> Metric:
    """Returns the metric of a task that a section names.

    Raises:
        RecipeError: the task has no such metric or filter, or several and none is named.
    """
    known, filters = list(map(str, task.aggregation())), filters_of(task)
    every = [f"{name},{each}" for name in known for each in filters]
    key, title = f"{where}.metric", task.task_name
    if not every:
        raise RecipeError(key, f"{title} has no metric, or no filter")
    if wanted is None:
        if len(every) == 1:
            return _metric(task, known[0], filters[0])
        raise RecipeError(key, f"{title} has {' and '.join(every)}: name one")
    name, _, chosen = wanted.partition(",")
    if not chosen and len(filters) > 1:
        raise RecipeError(key, f"{title} has the filters {', '.join(filters)}: name one of {every}")
    chosen = chosen or filters[0]
    # a task's own code may give more than it declares
    is_open = callable(task.get_config("process_results")) or not hasattr(task, "_metric_fn_list")
    if chosen not in filters or (name not in known and not is_open):
        raise RecipeError(key, f"{title} has {', '.join(every)}, not {wanted}")
    return _metric(task, name, chosen)


def filters_of(task: Any) -> list[str]:
    """Returns the names of a task's filters."""
    return [str(each.name) for each in task._filters]


def _metric(task: Any, name: str, chosen: str) -> Metric:
    from lm_eval.api import metrics

    aggregate = task.aggregation().get(name, metrics.mean)
    perplexities = (metrics.perplexity, metrics.weighted_perplexity, metrics.bits_per_byte)
    form: Form = "whole"
    if aggregate is metrics.mean:
        form = "mean"
    elif aggregate in perplexities:
        form = "loss"
    better = bool(task.higher_is_better().get(name, True))
    return Metric(name, chosen, aggregate, form, better)


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
            named = ", ".join(each.task_name for each in loaded.tasks[:3])
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
    same = [key for key in every if wanted in (None, key, key.partition(",")[0])]
    if len(same) != 1:
        which = "" if not same else ": name one"
        not_it = f", not {wanted}" if wanted and not same else ""
        raise RecipeError(f"{where}.metric", f"{title} has {', '.join(every)}{not_it}{which}")
    name, _, chosen = same[0].partition(",")
    config = every[same[0]]
    found = [
        (task, _metric(task, name, chosen))
        for task in loaded.tasks
        if name in task.aggregation() and chosen in filters_of(task)
    ]
    if not found or any(each.form != "mean" for _, each in found) or config.aggregation != "mean":
        message = f"{same[0]} of {title} is no mean over documents"
        raise RecipeError(f"{where}.metric", message, hint=each_of)
    return found, bool(config.weight_by_size)


def _filters(some: Sequence[Any], metric: str) -> list[str]:
    having = [task for task in some if metric in task.aggregation()]
    return sorted({name for task in having for name in filters_of(task)})


def missing_metric(metric: Metric, given: Mapping[str, Any], place: int, where: str) -> DataError:
    """Returns the error of a document for which a task's own code gives another metric."""
    there = ", ".join(given) or "nothing"
    return DataError(f"{where}.metric", f"document {place} has {there}, not {metric.name}")
