"""Writes a mixture as a folder: the merged model, or one adapter that stands for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergetomix import merge
from mergetomix.errors import UserError
from mergetomix.experts.deltas import LoraDelta, nonfinite, params, read_delta
from mergetomix.export import adapter, card, folder
from mergetomix.export.folder import Form
from mergetomix.merge.lora_delta import Pair
from mergetomix.recipe.errors import nearest
from mergetomix.recipe.recipe import Recipe, dump
from mergetomix.records import Mixture
from mergetomix.session.session import Session
from mergetomix.stages import pipeline
from mergetomix.stages.rehearsal import rehearse
from mergetomix.stages.requirements import check_space

_FULL = "the expert of {!r} is a full model, and only adapters make an adapter"


@dataclass(frozen=True)
class Written:
    """What was written: where, in which number type, and the adapter if it is one."""

    path: Path
    dtype: str
    adapter: adapter.Adapter | None = None

    def sentences(self) -> list[str]:
        """Returns what a person should know of it."""
        what = "the merged model" if self.adapter is None else "an adapter"
        more = [] if self.adapter is None else self.adapter.sentences()
        return [f"wrote {self.path}: {what} in {self.dtype}", *more]


def check(recipe: Recipe, datasets: Sequence[str], out: Path, form: Form) -> None:
    """Raises UserError for what cannot be written, before anything is read or trained."""
    _check_names(recipe, datasets)
    folder.check_free(out)
    if not form.adapter:
        return
    method = recipe.merge.method
    if method not in card.SUMS:
        message = f"a merge by {method} is no sum of the experts' deltas, so no adapter holds it"
        raise UserError(message, hint="leave --adapter out, or add --set merge.method=linear")
    for name in datasets:
        given = recipe.datasets[name].expert
        is_full = recipe.train.method != "lora"
        if given is not None:
            is_full = not (Path(given) / "adapter_config.json").exists()
        if is_full:
            hint = "leave --adapter out; experts are adapters with train.method: lora"
            raise UserError(_FULL.format(name), hint=hint)


def _check_names(recipe: Recipe, datasets: Sequence[str]) -> None:
    known = list(recipe.datasets)
    if not datasets:
        raise UserError("name at least one dataset", hint=", ".join(known))
    unknown = [name for name in dict.fromkeys(datasets) if name not in known]
    if unknown:
        wrong = [f"no dataset is called {name!r}{nearest(name, known)}" for name in unknown]
        raise UserError("; ".join(wrong), hint=f"the recipe has {', '.join(known)}")
    twice = sorted({name for name in datasets if datasets.count(name) > 1})
    if twice:
        message = f"the dataset {twice[0]!r} stands twice"
        raise UserError(message, hint="weigh it more with --weights")


def write(session: Session, mixture: Mixture, out: Path, form: Form) -> Written:
    """Writes a mixture in some form; those of its experts that the store lacks are trained first.

    Raises:
        UserError: `out` holds something, or a number is too large for the number type.
    """
    folder.check_free(out)
    singles = [Mixture.union([name]) for name in mixture.datasets]
    check_space(session, [(each, None) for each in singles], is_run=False)
    own = [each for each in singles if session.recipe.datasets[each.members[0]].expert is None]
    if any(session.finetunes.known(each) is None for each in own):
        rehearse(session)
    pipeline.experts_of(session, mixture.datasets)
    if form.adapter:
        return _write_adapter(session, mixture, out, form)
    return _write_model(session, mixture, out, form)


def _write_model(session: Session, mixture: Mixture, out: Path, form: Form) -> Written:
    import torch

    bank = session.proxies.bank(mixture.datasets)
    dtype = _model_dtype(session, form)
    # what a method needs of the experts is measured in the base's own number type
    session.proxies.rule(mixture.datasets)
    bank.model.to(getattr(torch, dtype))  # first, so that the float32 sums are rounded once
    session.proxies.live(mixture, session.recipe.merge.scale.exponent)
    name = nonfinite(bank.model)
    if name is not None:
        raise _does_not_fit(name, dtype)
    return _save(session, mixture, Written(out, dtype), bank.model, form)


def _model_dtype(session: Session, form: Form) -> str:
    """Returns the number type asked for, or what `base.dtype` says, or the base's own."""
    import torch

    if form.dtype is not None:
        return form.dtype
    config, base = session.inputs.family.config, session.recipe.base
    stated = getattr(config, "dtype", None) if base.dtype == "auto" else None
    if not (isinstance(stated, torch.dtype) and stated.is_floating_point):
        stated = next(iter(params(session.proxies.bank().model).values())).dtype
    return str(stated).removeprefix("torch.")


def _write_adapter(session: Session, mixture: Mixture, out: Path, form: Form) -> Written:
    import torch

    family, dtype = session.inputs.family, form.dtype or "float32"
    factors = merge.coefficients(mixture, session.recipe.merge.scale.exponent)
    model = family.load()
    terms: dict[str, list[tuple[Pair, float]]] = {}
    for name in sorted(factors):
        path, where = str(session.proxies.folder(name)), f"datasets.{name}.expert"
        delta = read_delta(family, params(model), path, where)
        if not isinstance(delta, LoraDelta):
            raise UserError(_FULL.format(name))
        for param, pair in delta.factors.items():
            terms.setdefault(param, []).append((pair, factors[name] * delta.scaling_of(param)))
    found = adapter.combine(dict(sorted(terms.items())), form.rank, getattr(torch, dtype))
    for name, pair in found.factors.items():
        if not all(side.isfinite().all() for side in pair):
            raise _does_not_fit(name, dtype)
    modules = [name for name, _ in model.named_modules()]
    others = [name for name in found.factors if not _is_layers_weight(model, name)]
    stacks = family.stacks({"target_parameters": others}) if others else {}
    config = _peft_config(session, min(factors))
    files = folder.AdapterFiles(found, modules, config, family.transposed, stacks)
    return _save(session, mixture, Written(out, dtype, found), files, form)


def _is_layers_weight(model: Any, param: str) -> bool:
    """Whether a param is the weight of a layer that PEFT adapts as one."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    owner, _, name = param.rpartition(".")
    layers = (nn.Linear, Conv1D, nn.Conv1d, nn.Conv2d)
    return name == "weight" and isinstance(model.get_submodule(owner), layers)


def _peft_config(session: Session, dataset: str) -> dict[str, Any]:
    """Returns what of PEFT's configuration follows from the base, and its task as an expert's."""
    own = json.loads((session.proxies.folder(dataset) / "adapter_config.json").read_text())
    of_task = {key: own.get(key) for key in ("task_type", "auto_mapping")}
    # an expert from elsewhere may name any module there, and PEFT would import it
    mapping = of_task["auto_mapping"]
    module = str(mapping.get("parent_library", "")) if isinstance(mapping, dict) else ""
    if not module.startswith("transformers.models."):
        of_task["auto_mapping"] = None
    base = session.recipe.base
    return {**of_task, "base_model_name_or_path": base.path, "revision": base.revision}


def _save(session: Session, mixture: Mixture, written: Written, model: Any, form: Form) -> Written:
    """Writes a model or an adapter, its card and the recipe, all of them or nothing."""
    text = card.card(session, mixture, written.dtype, written.adapter)
    with folder.place(written.path) as partial:
        session.inputs.family.save(model, partial, form.max_shard_size)
        (partial / "README.md").write_text(text, encoding="utf-8")
        (partial / "recipe.yaml").write_text(dump(session.recipe), encoding="utf-8")
    return written


def _does_not_fit(param: str, dtype: str) -> UserError:
    message = f"{param} holds numbers that are not finite in {dtype}"
    return UserError(message, hint="write it with --dtype float32 or bfloat16")
