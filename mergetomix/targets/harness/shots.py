"""Keeps a document's own answer out of the examples that are shown before it.

lm-eval leaves a document out of its own examples where they come from the split that it calls the
test split. They may also come from there without its noticing: where a task has no other split, or
where documents and examples are both of the validation split.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mergetomix.errors import DataError
from mergetomix.targets.harness.tasks import name_of


class Shots:
    """Watches the draws of one task, and draws others where a document would see its answer.

    These come from a generator of their own, so that all other documents get the examples that the
    command `lm_eval` draws for them. `num_redrawn` counts the documents.
    """

    def __init__(self, task: Any, seed: int, where: str) -> None:
        self._task, self._seed, self._where = task, seed, where
        self._said: dict[int, Any] = {}
        self._current: Any = None
        self.num_redrawn = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watches what the task draws while its requests are made."""
        task, sampler = self._task, getattr(self._task, "sampler", None)
        if sampler is None:  # a task of Python code, which takes them in its own way
            yield
            return
        context, sample = task.fewshot_context, sampler.sample

        def context_of(doc: Any, *args: Any, **kwargs: Any) -> Any:
            self._current = doc
            return context(doc, *args, **kwargs)

        def sampled(n: int, *args: Any, **kwargs: Any) -> Any:
            return self._others(sample(n, *args, **kwargs), n)

        task.fewshot_context, sampler.sample = context_of, sampled
        try:
            yield
        finally:
            del task.fewshot_context, sampler.sample

    def _others(self, drawn: Sequence[Any], num: int) -> Sequence[Any]:
        """Returns the examples drawn, or others if the document is among them."""
        if not any(self._is_current(each) for each in drawn):
            return drawn
        from lm_eval.api.samplers import ContextSampler, FirstNSampler

        sampler = self._task.sampler
        pool = [each for each in sampler.fewshot_docs() if not self._is_current(each)]
        name, key = name_of(self._task), f"{self._where}.num_fewshot"
        if type(sampler) not in (ContextSampler, FirstNSampler):
            message = f"{name} shows a document its own answer, by a sampler of its own"
            raise DataError(key, message, hint="num_fewshot: 0 shows none")
        if len(pool) < num:
            message = f"{name} has {len(pool)} other documents to show, and num_fewshot is {num}"
            raise DataError(key, message)
        place = self.num_redrawn
        self.num_redrawn += 1
        if isinstance(sampler, FirstNSampler):
            return pool[:num]
        return random.Random(f"{self._seed}:{place}").sample(pool, num)

    def _is_current(self, doc: Any) -> bool:
        """Whether a document is the one that is asked, or asks and answers the same."""
        if doc == self._current:
            return True
        asked = self._shown(self._current)
        return asked is not None and self._shown(doc) == asked

    def _shown(self, doc: Any) -> Any:
        """What a document asks and answers; None if it asks nothing that can be compared."""
        if id(doc) not in self._said:
            task = self._task
            try:
                text = task.doc_to_text(doc)
                choices = task.doc_to_choice(doc) if task.config.doc_to_choice else None
                said = (text, choices, task.doc_to_target(doc))
            except Exception:  # noqa: BLE001  # examples may be of another shape than documents
                said = None
            is_text = said is not None and isinstance(said[0], str) and said[0].strip()
            # the document is kept with it, so that no other one gets its id
            self._said[id(doc)] = (doc, said if is_text else None)
        return self._said[id(doc)][1]
