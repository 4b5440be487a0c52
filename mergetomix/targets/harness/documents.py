"""The documents of a task as examples, and the task over some of them as a target."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mergetomix.bounds import limited
from mergetomix.data.examples import Example, Examples
from mergetomix.data.leaks import Affixes
from mergetomix.errors import DataError, MergeToMixError
from mergetomix.models.family import AnswersRequests
from mergetomix.records import Scores
from mergetomix.store.address import digest
from mergetomix.stretches import WHOLE, Stretch
from mergetomix.targets.harness import metrics, tasks
from mergetomix.targets.harness.library import (
    NO_SYSTEM_TURN,
    TESTED,
    own_folder,
    quiet,
    seeded,
)
from mergetomix.targets.harness.metrics import Metric
from mergetomix.targets.harness.requests import Answers, Encoder, Place, Requests, is_finite
from mergetomix.targets.harness.section import HarnessSection
from mergetomix.targets.harness.shots import Shots
from mergetomix.targets.target import TargetSetting, about_answers

BUILDING_S = 600.0
"""For the prompts of all documents of a task."""
SCORING_S = 60.0
"""For the filters and metrics of a task, and a second more for each document."""
SCORED_BY = (
    *("output_type", "doc_to_text", "doc_to_target", "doc_to_choice", "process_results"),
    *("metric_list", "filter_list", "repeats"),
)
"""What of a task's configuration says how answers become numbers."""


@dataclass(frozen=True)
class Document:
    """One document: its task, the places of its requests among all, and how much it weighs."""

    task: Any
    metric: Metric
    doc: Any
    instances: tuple[Any, ...]
    places: range
    weight: float


class Documents:
    """The documents of a task or group, with their requests as tokens; made once for all models."""

    has_texts = True

    def __init__(self, section: HarnessSection, setting: TargetSetting) -> None:
        self._section, self._setting, self._where = section, setting, setting.where
        base = str(getattr(setting.family.config, "_name_or_path", ""))
        with seeded():  # from the data to the last prompt, as in one call of the command
            self._make(tasks.load(section, base, self._where))

    def _make(self, loaded: tasks.LoadedTasks) -> None:
        """Makes all requests of the tasks."""
        section, setting = self._section, self._setting
        self._notes = list(loaded.notes)
        several, weigh_alike = metrics.metrics_of(loaded, section.metric, self._where)
        if section.apply_chat_template and not setting.family.processor.chat_template:
            key = f"{self._where}.apply_chat_template"
            raise DataError(key, "the tokenizer of the base has no chat template")
        encoder = Encoder(setting.family, setting.batch_tokens, self._where)
        self._documents = self._built(several, weigh_alike, encoder)
        self._requests = self._encoded(encoder)
        metric = several[0][1]
        self.whole_only = ""
        if metric.form == "whole":
            self.whole_only = f"the metric {metric} is one number of all documents"
            if len(self._documents) > metrics.MOST_WHOLE:
                message = f"{self.whole_only}, of which it can take {metrics.MOST_WHOLE:,}"
                hint = f"limit: {metrics.MOST_WHOLE} takes the first"
                raise DataError(f"{self._where}.limit", message, hint=hint)
        if tasks.uses_test_split(loaded.tasks):
            says = f"mixtures are chosen on documents of the test split of {section.task}"
            also = "the report is on the others, which the search does not see"
            self._notes.append(f"{self._where}: {says} (allow_test_split: true); {also}")
        left = len(loaded.tasks) - len(several)
        if left:
            what = f"{left} of {len(loaded.tasks)} tasks lack {metric}"
            self._notes.append(f"{self._where}: {what} and are left out, as the harness does")
        self._check_answers()
        items = tuple(self._examples())
        self.examples = Examples(self._where, items, len(items), notes=tuple(self._notes))

    # --- building

    def _built(
        self, several: Sequence[tuple[Any, Metric]], weigh_alike: bool, encoder: Encoder
    ) -> list[Document]:
        """The documents of all tasks, in their order."""
        by_task = [self._instances(task, encoder) for task, _ in several]
        num, found, start = sum(map(len, by_task)), list[Document](), 0
        for (task, metric), docs in zip(several, by_task, strict=True):
            weight = 1.0 if weigh_alike else num / (len(several) * len(docs))
            for own in docs:
                places = range(start, start + len(own))
                found.append(Document(task, metric, own[0].doc, tuple(own), places, weight))
                start = places.stop
        return found

    def _instances(self, task: Any, encoder: Encoder) -> list[list[Any]]:
        """The instances of a task, by document, in the order of its documents."""
        from lm_eval.evaluator_utils import get_sample_size

        section, where = self._section, self._where
        shots = Shots(task, section.fewshot_seed, where)
        name = tasks.name_of(task)
        wanted = task.get_config("num_fewshot") or 0
        pool = getattr(getattr(task, "sampler", None), "df", None)
        if pool is not None and len(pool) < wanted:
            message = f"{name} has {len(pool)} documents to show, and {wanted} are asked for"
            raise DataError(f"{where}.num_fewshot", message)
        with (
            _blamed(f"{where}.task", f"the requests of {name} cannot be made"),
            limited(BUILDING_S),
            quiet() as logged,
            shots.watched(),
        ):
            task.build_all_requests(
                limit=get_sample_size(task, section.limit),
                system_instruction=section.system_instruction,
                apply_chat_template=section.apply_chat_template,
                fewshot_as_multiturn=section.as_turns,
                chat_template=encoder.chat_template if section.apply_chat_template else None,
                tokenizer_name="",
            )
        by_document: dict[int, list[Any]] = {}
        for each in task.instances:
            by_document.setdefault(each.doc_id, []).append(each)
        if shots.num_redrawn:
            what = f"{shots.num_redrawn} of {len(by_document)} documents of {name}"
            others = "would see their own answer among the examples, and see others instead"
            says = "lm_eval scores them with their answer in sight"
            self._notes.append(f"{where}: {what} {others}; {says}")
        if any(NO_SYSTEM_TURN in line for line in logged):
            self._notes.append(f"{where}: the chat template takes no system turn: it is left out")
        return [
            sorted(own, key=lambda each: int(each.idx)) for _, own in sorted(by_document.items())
        ]

    def _encoded(self, encoder: Encoder) -> Requests:
        instances = [each for document in self._documents for each in document.instances]
        with _blamed(f"{self._where}.task", "a request cannot be encoded"), quiet():
            found = encoder.requests(instances)
        if found.num_cut:
            what = f"{found.num_cut} of {len(instances)} requests lose their beginning"
            self._notes.append(f"{self._where}: {what}, as the model reads no more tokens")
        return found

    def _check_answers(self) -> None:
        """Notes what is odd about the right answers.

        Raises DataError where no document has one among its options.
        """
        found = [
            (place, answer)
            for place, document in enumerate(self._documents)
            if (answer := _missing_answer(document.task, document.doc)) is not None
        ]
        if found:
            (place, answer), num = found[0], len(self._documents)
            at = f"the right answer of document {place}, {answer[:60]!r}, is none of its options"
            if len(found) == num:
                raise DataError(f"{self._where}.task", at, hint="see doc_to_target")
            many = f"{len(found)} of {num} documents count as wrong whatever a model says"
            self._notes.append(f"{self._where}: {many}: {at}")
        answers = {_said(each.task, each.doc)[2] for each in self._documents}
        kinds = {each.instances[0].request_type for each in self._documents}
        if kinds == {"generate_until"} and len(answers) == 1 and len(self._documents) > 1:
            (same,) = answers
            says = f"all {len(self._documents)} documents have the right answer {same[:60]!r}"
            self._notes.append(f"{self._where}: {says}; is a column meant?")

    # --- as examples

    def _examples(self) -> Iterator[Example]:
        """Yields what each document asks, and its options where others ask the same."""
        found = [self._example(i, each) for i, each in enumerate(self._documents)]
        num = Counter(each.prompt for each in found)
        for item, document in zip(found, self._documents, strict=True):
            _, choices, _ = _said(document.task, document.doc)
            asked = " / ".join([item.prompt, *choices])
            yield replace(item, prompt=asked) if choices and num[item.prompt] > 1 else item

    def _example(self, place: int, document: Document) -> Example:
        """What a document asks, without what the task writes around it, and its answer."""
        task, doc = document.task, document.doc
        text, choices, answer = _said(task, doc)
        written = task.get_config("doc_to_text")
        if isinstance(written, str) and "{" in written and "}" in written:
            before, after = written[: written.index("{")], written[written.rindex("}") + 1 :]
            text = Affixes(before, after).strip(text)
        asked = text or " / ".join(choices)
        return (
            Example(place, prompt=asked, completion=answer)
            if asked
            else Example(place, text=answer)
        )

    def over(self, part: Sequence[Example], most_new_tokens: int | None = None) -> Benchmark:
        """Returns the target over some of the documents."""
        some = [self._documents[item.row] for item in part]
        places = [place for document in some for place in document.places]
        requests = self._requests.some(places, most_new_tokens)
        return Benchmark(some, requests, self._setting)

    def answered(self, part: Sequence[Example]) -> Sequence[Example]:
        """Returns documents with their right answers, as a model reads them; none if unknown."""
        found = [self._answer_of(self._documents[item.row], item.row) for item in part]
        known = [each for each in found if each is not None]
        return known if len(known) == len(found) else ()

    def _answer_of(self, document: Document, place: int) -> Example | None:
        first, task = document.instances[0], document.task
        _, choices, answer = _said(task, document.doc)
        if first.request_type == "loglikelihood_rolling":
            return Example(place, text=first.args[0]) if first.args[0] else None
        if first.request_type == "generate_until":
            between = (
                "" if self._section.apply_chat_template else task.get_config("target_delimiter")
            )
            completion = f"{between or ''}{answer}"
            return Example(place, prompt=first.args[0], completion=completion) if answer else None
        after = tuple(each.args[1] for each in document.instances[: len(choices) or 1])
        if len(after) == 1:
            return Example(place, prompt=first.args[0], completion=after[0], is_open=True)
        right = choices.index(answer) if answer in choices else None
        if right is None:
            return None
        prompt, completion = document.instances[right].args[:2]
        return Example(place, prompt=prompt, completion=completion, options=after, is_open=True)


def _said(task: Any, doc: Any) -> tuple[str, list[str], str]:
    """What a document asks, its choices and its answer, as texts; empty where there is none."""
    try:
        text, target = task.doc_to_text(doc), task.doc_to_target(doc)
        choices = task.doc_to_choice(doc) if task.get_config("doc_to_choice") is not None else []
        choices = [str(each) for each in choices]
        if getattr(task, "multiple_input", 0):  # the choices are the questions
            return "", choices, choices[text]
        if isinstance(target, list | tuple):
            target = target[0] if target else ""
        if isinstance(target, int) and choices:
            target = choices[target]
        return str(text), choices, str(target)
    except Exception:  # noqa: BLE001  # a task of Python code may have none of these
        return "", [], ""


def _missing_answer(task: Any, doc: Any) -> str | None:
    """Returns the right answer of a document that is none of its options; None if all is well."""
    is_plain = task.get_config("output_type") == "multiple_choice"
    if not is_plain or callable(task.get_config("process_results")):
        return None
    try:
        choices = task.doc_to_choice(doc)
        right = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    except Exception:  # noqa: BLE001  # what a task of Python code has no such functions for
        return None
    several = right if isinstance(right, list) else [right]
    known = [
        each in choices if isinstance(each, str) else each in range(len(choices))
        for each in several
    ]
    return None if any(known) else str(right)


@contextmanager
def _blamed(key: str, what: str) -> Iterator[None]:
    """Turns whatever a task raises into an error of the user's that names a key of the recipe."""
    try:
        yield
    except MergeToMixError:
        raise
    except Exception as error:  # a task file may ask for anything, and its code may raise anything
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise DataError(key, f"{what}: {said}") from error


class Benchmark:
    """A task of the harness over some of its documents.

    A model answers all requests at once; then the harness's filters and metric make one number of
    each document. `remark` says how many answers were empty or cut.
    """

    num_cut = 0

    def __init__(
        self, documents: Sequence[Document], requests: Requests, setting: TargetSetting
    ) -> None:
        self._documents, self._where = list(documents), setting.where
        self._requests = requests
        if not isinstance(setting.family, AnswersRequests):
            raise setting.unable("harness")
        self._answers = Answers(setting.family, requests, setting.batch_tokens)
        self.num_tokens = self._answers.num_tokens
        self.remark = ""

    def address(self) -> str:
        """Returns the address of requests, documents, filters, metric and the harness's version."""
        own = [
            [[each.request_type, _plain(each.args), each.repeats] for each in document.instances]
            for document in self._documents
        ]
        docs = [[_plain(each.doc), each.weight] for each in self._documents]
        by_task = {id(each.task): each for each in self._documents}
        scored = [[_scored_by(each.task), str(each.metric)] for each in by_task.values()]
        return digest("harness", TESTED, own, self._requests.content(), docs, scored)

    def read(self, model: Any, stretch: Stretch = WHOLE) -> dict[Place, Any]:
        """Returns what a model says to the requests in a stretch of batches."""
        return self._answers.read(model, stretch)

    def score(self, model: Any) -> Scores:
        """Returns what the metric says of each document, see `scores_of`."""
        return self.scores_of(self.read(model))

    def scores_of(self, found: Mapping[Place, Any]) -> Scores:
        """Returns what the metric says of each document, in their order.

        It is nan where the model's logits are not finite.

        Raises:
            DataError: filters or metric fail on the answers.
        """
        answers, broken = self._answers.by_request(found), set[int]()
        told = [each for _, some in sorted(self._texts(answers).items()) for each in some]
        bound = f"max_gen_toks: {self._answers.most_new_tokens}"
        self.remark = about_answers(told, bound)
        place = 0
        for number, document in enumerate(self._documents):
            for instance in document.instances:
                answer, place = answers[place], place + 1
                if not is_finite(answer):
                    broken.add(number)
                instance.resps = _responses(instance, answer)
                instance.filtered_resps = {}
        key = f"{self._where}.metric"
        with (
            _blamed(key, "the answers cannot be scored"),
            quiet(),
            seeded(),
            limited(SCORING_S + len(self._documents)),
        ):
            self._filter()
            items = {
                number: self._item(number)
                for number in range(len(self._documents))
                if number not in broken
            }
            weights = [document.weight for document in self._documents]
            return self._documents[0].metric.scores(items, weights, self._where)

    @staticmethod
    def _texts(answers: Mapping[int, Any]) -> dict[int, list[Any]]:
        """The answers that are texts."""
        return {place: each for place, each in answers.items() if isinstance(each, list)}

    def _filter(self) -> None:
        """Applies each task's filter to all its answers, as some look at several."""
        by_task: dict[int, list[Document]] = {}
        for document in self._documents:
            by_task.setdefault(id(document.task), []).append(document)
        for documents in by_task.values():
            task, chosen = documents[0].task, documents[0].metric.filter
            instances = [each for document in documents for each in document.instances]
            for ensemble in task._filters:
                if str(ensemble.name) == chosen:
                    ensemble.apply(instances)

    def _item(self, number: int) -> Any:
        """What the task makes of the answers to one document."""
        document = self._documents[number]
        metric = document.metric
        # of the one filter that was applied
        responses = [next(iter(each.filtered_resps.values())) for each in document.instances]
        given = document.task.process_results(copy.deepcopy(document.doc), responses)
        if metric.name not in given:
            raise metrics.missing_metric(metric, given, number, self._where)
        return given[metric.name]


def _responses(instance: Any, answer: Any) -> list[Any]:
    """Returns a model's answer as the harness's own models give it, once for each repeat."""
    repeats = instance.repeats or 1
    if isinstance(answer, list):
        texts = ["" if each is None else str(each) for each in answer]
        return texts * (repeats // len(texts))
    return [answer[0] if instance.request_type == "loglikelihood_rolling" else answer] * repeats


def _plain(value: Any) -> str:
    return json.dumps(value, default=repr, sort_keys=True)


def _scored_by(task: Any) -> str:
    """Returns what of a task says how answers become numbers, functions by their code."""

    def known(value: Any) -> str:
        return f"{getattr(value, '__qualname__', repr(value))} {_text_of(value)}"

    config = {key: task.get_config(key) for key in SCORED_BY}
    return json.dumps([known(type(task)), config], default=known, sort_keys=True)


def _text_of(value: Any) -> str:
    """Returns the SHA-256 of the file that a function or class stands in; nothing of lm-eval's.

    A file says the same in every process; what its functions hold may not.
    """
    try:
        path = Path(inspect.getsourcefile(value) or "").resolve()
        if path.is_relative_to(own_folder().parent):
            return ""
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except (TypeError, OSError):
        return ""
