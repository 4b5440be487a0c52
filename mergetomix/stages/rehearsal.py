"""A run in small before anything is trained: what would fail at its end fails now.

A fine-tune of one step, saved, read as an expert, merged, written, loaded again and scored, all by
the code of a run and with the recipe's own settings. A large base is stood for by a model of its
configuration with fewer layers and random weights.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mergetomix import training
from mergetomix.errors import MergeToMixError, ModelError
from mergetomix.experts import fisher_and_gram
from mergetomix.experts.bank import GIB, Bank, Rule
from mergetomix.experts.deltas import nonfinite, params, read_delta
from mergetomix.merge.methods import METHODS
from mergetomix.models.encoding import Item
from mergetomix.models.family import Family
from mergetomix.session.finetunes import environment
from mergetomix.session.memory import enough_memory, free_memory
from mergetomix.session.session import Session
from mergetomix.stages.requirements import size
from mergetomix.store.address import digest
from mergetomix.store.disk import is_no_space
from mergetomix.targets.generate import GenerateTarget
from mergetomix.targets.kinds import AnyTarget
from mergetomix.targets.python import PythonTarget
from mergetomix.targets.target import TargetSetting

LEARNING_RATE = 1e-3
"""Of the one step, so that an expert that is merged wrongly is far from one merged right."""
CLOSE = 1e-3
"""How far the losses of a merged and of a loaded expert may be apart, as a share; bfloat16 has
fewer digits, and may be as far off as they let it."""
MOST_BYTES = 2.0**34
"""What a rehearsal writes at most: 16 GiB."""
NUM_EXAMPLES = 2
MAX_NEW_TOKENS = 4
FILE = "passed.json"
PASSED: set[str] = set()
"""The addresses of what was rehearsed in this process, whatever its store."""


def rehearse(session: Session) -> None:
    """Does the whole job once in small, unless that was done before: the store remembers.

    Raises:
        UserError: what the run would stumble over; nothing was trained.
    """
    recipe, store = session.recipe, session.store
    if not recipe.base.rehearse:
        return
    targets = [scorer.address for scorer in session.inputs.targets("select").values()]
    method = [recipe.merge.method, recipe.merge.options]
    made_with = environment(session.opened)["versions"]
    settings = session.addresses.settings()
    key = digest("rehearsal", session.addresses.base, settings, method, targets, made_with)
    if key in PASSED or store.file(key, FILE) is not None:
        return
    folder = session.opened.scratch() / "rehearsal"
    room = min(float(store.free_bytes()), MOST_BYTES)
    hint = "the run needs more of it; lower train.batch_size or train.max_length"
    try:
        with (
            session.listener.task("check", "a rehearsal in small", 4) as advance,
            enough_memory("a rehearsal of the run", hint),
        ):
            lora = recipe.train.lora if recipe.train.method == "lora" else None
            with _blamed("base.path", "making a small model of the base's configuration"):
                family = session.inputs.family.small(folder / "base", lora, room)
            advance(1)
            if family is None:
                why = f"no small model of its configuration stands for the base in {size(room)}"
                session.opened.warn(f"the run is not rehearsed: {why}")
                return
            sequences = _shortest(session)
            _train(session, family, sequences, folder / "expert")
            advance(1)
            merged = _merged(session, family, sequences, folder)
            advance(1)
            for name, spec in recipe.targets.items():
                _score(session, family, merged, name, spec)
            advance(1)
        PASSED.add(key)
        with store.artifact(key) as kept:
            (kept / FILE).write_text(json.dumps(made_with), encoding="utf-8")
    except Exception as error:  # safetensors has one of its own for a full disk
        if not is_no_space(error):
            raise
        session.opened.warn(f"the run is not rehearsed: {store.path} has too little room for it")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        merged = None
        free_memory()


def _shortest(session: Session) -> list[Item]:
    """The shortest sequences to train on of the first dataset."""
    name = min(session.recipe.datasets)
    found = [each for each in session.inputs.sequences(name) if each.num_scored]
    return sorted(found, key=lambda each: each.num_tokens)[:NUM_EXAMPLES]


def _train(session: Session, family: Family, sequences: Sequence[Item], folder: Path) -> None:
    """One step with the recipe's settings, saved."""
    changes = {
        "max_steps": 1,
        "learning_rate": LEARNING_RATE,
        "warmup_ratio": 0.0,
        "gradient_accumulation": 1,
        "batch_size": len(sequences),
    }
    with _blamed("train", "one step of fine-tuning"):
        settings = session.recipe.train.model_copy(update=changes)
        training.finetune(family, sequences, settings, folder)


def _merged(session: Session, family: Family, sequences: Sequence[Item], folder: Path) -> Any:
    """Returns the live model with the expert merged into it, written and read again before."""
    section, expert = session.recipe.merge, str(folder / "expert")
    gib = section.memory_gib
    with _blamed("train", "reading the fine-tune as an expert"):
        live = family.load()
        delta = read_delta(family, params(live), expert, "train", folder / "pages")
        bank = Bank(live, {"a": delta, "b": delta}, None if gib is None else gib * GIB)
        bank.set({"a": 1.0})
    with _blamed("train", "loading and scoring the fine-tune"):
        own = _loss(session, family, family.load_finetune(expert), sequences)
        merged = _loss(session, family, live, sequences)
    _check_same(merged, own, live)
    with _blamed("base.path", "writing a merged model and loading it"):
        family.save(live, folder / "merged")
        family.load(str(folder / "merged"))
    if section.method != "linear":
        with _blamed("merge.method", f"merging by {section.method}"):
            _merge_as_asked(session, family, bank, sequences)
            bank.set({"a": 1.0})
    return live


def _loss(session: Session, family: Family, model: Any, sequences: Sequence[Item]) -> float:
    """The loss of a model over some sequences, in nats."""
    batches = family.batches(sequences, session.recipe.batch_tokens)
    return sum(family.negative_log_likelihoods(model, batches))


def _check_same(merged: float, own: float, model: Any) -> None:
    """Raises ModelError if a merge of one expert has another loss than the expert as saved."""
    import torch

    digits = max(torch.finfo(each.dtype).eps for each in params(model).values())
    if math.isclose(merged, own, rel_tol=max(CLOSE, 8 * digits), abs_tol=CLOSE):
        return
    losses = f"its loss is {merged:.6g} nats merged, and {own:.6g} as it was saved"
    hint = "another train.method or train.lora.target_modules may do"
    raise ModelError("train.method", f"an expert cannot be merged exactly: {losses}", hint=hint)


def _merge_as_asked(
    session: Session, family: Family, bank: Bank, sequences: Sequence[Item]
) -> None:
    """Merges two equal experts by the recipe's method."""
    section, statistics = session.recipe.merge, {}
    needs = METHODS[section.method].needs
    if needs is not None:
        found = fisher_and_gram.STATISTICS[needs](family, bank.model, sequences)
        statistics = {"a": found, "b": found}
    known = {"a": "a", "b": "b"}
    rule = Rule(section.method, section.options, known, statistics, family.transposed)
    bank.combine(rule, {"a": 0.5, "b": 0.5}, 1.0)
    name = nonfinite(bank.model)
    if name is not None:
        raise ModelError("merge.method", f"{name} is not finite after merging two equal experts")


def _score(session: Session, family: Family, model: Any, name: str, spec: AnyTarget) -> None:
    """Scores a merged model on a few of a target's examples; a function's target is left out."""
    if isinstance(spec, PythonTarget):
        return
    if isinstance(spec, GenerateTarget):
        # a function of the user's is not for answers that are cut, and of no real model
        is_own = spec.metric == "function"
        metric = {"metric": "exact", "function": None} if is_own else {}
        new = min(spec.max_new_tokens, MAX_NEW_TOKENS)
        spec = spec.model_copy(update={"max_new_tokens": new, **metric})
    examples, where = session.inputs.select_examples(name)[:NUM_EXAMPLES], f"targets.{name}"
    with _blamed(where, "scoring a merged model"):
        setting = TargetSetting(family, where, session.recipe.batch_tokens)
        own = session.inputs.own.get(name)
        if own is not None:
            target = own.over(session.inputs.selected[name][:NUM_EXAMPLES], MAX_NEW_TOKENS)
        else:
            target = spec.build(examples, setting)
        scores = target.score(model)
    if not all(map(math.isfinite, scores.values)):
        message = "a merged model of the base's configuration has scores that are not finite"
        raise ModelError(where, message, hint="base.dtype: float32 has more room")


@contextmanager
def _blamed(where: str, what: str) -> Iterator[None]:
    """Turns whatever goes wrong into an error of the user's that names a key of the recipe."""
    import torch

    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if is_no_space(error):
            raise
        reason, hint = " ".join(f"{type(error).__name__}: {error}".split())[:300], ""
        if isinstance(error, MergeToMixError):
            where = getattr(error, "where", "") or where
            reason, hint = error.message.removeprefix(f"{where}: "), error.hint or ""
        message = f"a rehearsal of the run failed at {what}: {reason}"
        way = "nothing was trained; base.rehearse: false goes on in spite of it"
        raise ModelError(where, message, hint="; ".join(filter(None, [hint, way]))) from error
