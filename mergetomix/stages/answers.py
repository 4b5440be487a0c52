"""What models answer, side by side: a few examples of the report part of targets that generate."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from mergetomix.results import Answered, Row
from mergetomix.session.memory import free_memory
from mergetomix.session.session import Session
from mergetomix.store.address import digest
from mergetomix.targets.generate import Generate

NUM_SHOWN = 5
FILE = "answers.json"


def answered(session: Session, table: Sequence[Row]) -> dict[str, tuple[Answered, ...]]:
    """Returns what the base, the fine-tune on everything and the selected one answer, by target.

    Empty where no target generates, or nothing was fine-tuned for the table. It is kept in the
    store, so that models answer once.
    """
    scorers = {
        name: scorer.target
        for name, scorer in session.inputs.targets("report").items()
        if isinstance(scorer.target, Generate)
    }
    models: dict[str, str | None] = {}
    for row in table:
        if row.kind in ("base", "all", "final"):
            models.setdefault(row.name, row.path)
    if len(models) < 2:
        return {}  # there is nothing beside the base
    return {name: _kept(session, name, scorer, models) for name, scorer in scorers.items()}


def _kept(
    session: Session, name: str, scorer: Generate, models: Mapping[str, str | None]
) -> tuple[Answered, ...]:
    base, store = session.addresses.base, session.store
    key = digest("answers", base, list(models.items()), scorer.address(), NUM_SHOWN)
    with store.lock(key):
        if store.file(key, FILE) is None:
            with store.artifact(key) as folder:
                text = json.dumps(_asked(session, scorer, models))
                (folder / FILE).write_text(text, encoding="utf-8")
    found = json.loads((store.artifact_path(key) / FILE).read_text(encoding="utf-8"))
    return tuple(Answered(each["prompt"], each["right"], each["by_model"]) for each in found)


def _asked(
    session: Session, scorer: Generate, models: Mapping[str, str | None]
) -> list[dict[str, Any]]:
    """Has each model answer the first prompts of a target."""
    prompts, family = scorer.prompts[:NUM_SHOWN], scorer.family
    text_of = cast(Any, family).tokenizer.decode  # what generates text has a tokenizer
    found: list[dict[str, Any]] = [
        {
            "prompt": text_of(prompt, skip_special_tokens=True),
            "right": scorer.answers[i][0],
            "by_model": {},
        }
        for i, prompt in enumerate(prompts)
    ]
    for name, path in models.items():
        own = session.inputs.family
        model = own.load() if path is None else own.load_finetune(path)
        answers = family.continued(model, prompts, scorer.settings)
        for place, each in enumerate(found):
            each["by_model"][name] = str(answers[place] or "")
        del model
        free_memory()
    return found
