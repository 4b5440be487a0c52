"""Write a mixture as a folder of the user's own: the merged model, or one adapter that stands for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergetomix import merge
from mergetomix.errors import UserError
from mergetomix.experts.deltas import LoraDelta, nonfinite, params, read_delta
from mergetomix.export import adapter, card, folder
from mergetomix.export.folder import Form
from mergetomix.recipe.errors import nearest
from mergetomix.recipe.recipe import Recipe, dump
from mergetomix.records import Mixture
from mergetomix.session.finetunes import environment
from mergetomix.session.session import Session
from mergetomix.stages import pipeline
from mergetomix.stages.requirements import check_space

if TYPE_CHECKING:
    import torch

SUMS = ("linear",)
"""Methods whose merge is base + sum_i c_i delta_i, so that adapters make an adapter."""


@dataclass(frozen=True)
class Written:
    """What was written: where, in which number type, and the adapter where it is one."""

    path: Path
    dtype: str
    adapter: adapter.Adapter | None = None

    def sentences(self) -> list[str]:
        """What a person should know of it."""
        what = "the merged model" if self.adapter is None else "an adapter"
        return [
            f"wrote {self.path}: {what} in {self.dtype}",
            *([] if self.adapter is None else self.adapter.sentences()),
        ]


def check(recipe: Recipe, datasets: Sequence[str], out: Path, form: Form) -> None:
    """Raises UserError for what cannot be written, before anything is read or trained."""
    _check_names(recipe, datasets)
    folder.check_free(out)
    if not form.adapter:
        return
    if recipe.merge.method not in SUMS:
        message = f"a merge by {recipe.merge.method} is no sum of the experts' deltas, so no adapter holds it"
        raise UserError(message, hint="leave --adapter out, or add --set merge.method=linear")
    full = [name for name in datasets if not _is_adapter(recipe, name)]
    if full:
        message = f"the expert of {full[0]!r} is a full model, and only adapters make an adapter"
        raise UserError(
            message, hint="leave --adapter out; experts are adapters with train.method: lora"
        )


def _check_names(recipe: Recipe, datasets: Sequence[str]) -> None:
    if not datasets:
        raise UserError("name at least one dataset", hint=", ".join(recipe.datasets))
    unknown = [name for name in dict.fromkeys(datasets) if name not in recipe.datasets]
    if unknown:
        wrong = "; ".join(
            f"no dataset is called {name!r}{nearest(name, list(recipe.datasets))}"
            for name in unknown
        )
        raise UserError(wrong, hint=f"the recipe has {', '.join(recipe.datasets)}")
    twice = sorted({name for name in datasets if datasets.count(name) > 1})
    if twice:
        raise UserError(
            f"the dataset {twice[0]!r} stands twice", hint="weigh it more with --weights"
        )


def _is_adapter(recipe: Recipe, name: str) -> bool:
    given = recipe.datasets[name].expert
    return (
        recipe.train.method == "lora"
        if given is None
        else (Path(given) / "adapter_config.json").exists()
    )


def write(session: Session, mixture: Mixture, out: Path, form: Form) -> Written:
    """Write a mixture in some form; those of its experts that the store lacks are trained first.

    Raises:
        UserError: `out` holds something, or a number is too large for the number type.
    """
    folder.check_free(out)
    check_space(session, [(Mixture.union([name]), None) for name in mixture.datasets])
    pipeline.experts_of(session.finetunes, mixture.datasets)
    return (
        _write_adapter(session, mixture, out, form)
        if form.adapter
        else _write_model(session, mixture, out, form)
    )


def _write_model(session: Session, mixture: Mixture, out: Path, form: Form) -> Written:
    bank, family = session.proxies.bank(mixture.datasets), session.inputs.family
    dtype = model_dtype(session, form)
    session.proxies.rule(
        mixture.datasets
    )  # what a method needs of the experts is measured in the base's own number type
    bank.model.to(dtype)  # first, so that the float32 sums are rounded once
    session.proxies.live(mixture, session.recipe.merge.scale.exponent)
    _check_fits(nonfinite(bank.model), dtype)
    with folder.place(out) as partial:
        family.save(bank.model, partial, form.max_shard_size)
        folder.describe(
            partial, card.card(_origin(session, mixture), _name(dtype)), dump(session.recipe)
        )
    return Written(out, _name(dtype))


def model_dtype(session: Session, form: Form) -> torch.dtype:
    """The number type of a merged model: as asked for, else as `base.dtype` says, else as the base's own folder has it."""
    import torch

    family = session.inputs.family
    if form.dtype is not None:
        return _dtype(form.dtype)
    stated = getattr(family.config, "dtype", None) if session.recipe.base.dtype == "auto" else None
    if isinstance(stated, torch.dtype) and stated.is_floating_point:
        return stated
    return next(iter(params(session.proxies.bank().model).values())).dtype


def _write_adapter(session: Session, mixture: Mixture, out: Path, form: Form) -> Written:
    family, dtype = session.inputs.family, _dtype(form.dtype or "float32")
    factors = merge.coefficients(mixture, session.recipe.merge.scale.exponent)
    model = family.load()
    deltas = {name: _lora(session, params(model), name) for name in sorted(factors)}
    terms: dict[str, list[Any]] = {}
    for name, delta in deltas.items():
        for param, pair in delta.factors.items():
            terms.setdefault(param, []).append((pair, factors[name] * delta.scaling))
    found = adapter.combine(dict(sorted(terms.items())), form.rank, dtype)
    _check_fits(
        next((name for name, pair in found.factors.items() if not _finite(pair)), None), dtype
    )
    modules = [name for name, _ in model.named_modules()]
    files = folder.AdapterFiles(
        found, modules, _peft_config(session, next(iter(deltas))), family.transposed
    )
    with folder.place(out) as partial:
        family.save(files, partial)
        folder.describe(
            partial, card.card(_origin(session, mixture), _name(dtype), found), dump(session.recipe)
        )
    return Written(out, _name(dtype), found)


def _lora(session: Session, base: Any, name: str) -> LoraDelta:
    delta = read_delta(
        session.inputs.family, base, str(session.proxies.folder(name)), f"datasets.{name}.expert"
    )
    if not isinstance(delta, LoraDelta):
        raise UserError(
            f"the expert of {name!r} is a full model, and only adapters make an adapter"
        )
    return delta


def _peft_config(session: Session, dataset: str) -> dict[str, Any]:
    """What of PEFT's configuration follows from the base and its task, the latter as an expert has it."""
    own = json.loads((session.proxies.folder(dataset) / "adapter_config.json").read_text())
    of_task = {key: own.get(key) for key in ("task_type", "auto_mapping")}
    return {
        **of_task,
        "base_model_name_or_path": session.recipe.base.path,
        "revision": session.recipe.base.revision,
    }


def _origin(session: Session, mixture: Mixture) -> card.Origin:
    family, base = session.inputs.family, session.recipe.base
    about = environment(session.opened)
    addresses = {
        "": session.addresses.base,
        **{name: session.addresses.expert(name) for name in mixture.datasets},
    }
    revision = getattr(family.config, "_commit_hash", None) or base.revision
    factors = (
        merge.coefficients(mixture, session.recipe.merge.scale.exponent)
        if session.recipe.merge.method in SUMS
        else {}
    )
    return card.Origin(
        session.recipe,
        mixture,
        factors,
        addresses,
        revision,
        {**about["versions"], "python": about["python"]},
    )


def _check_fits(name: str | None, dtype: torch.dtype) -> None:
    if name is not None:
        message = f"{name} holds numbers that are not finite in {_name(dtype)}"
        raise UserError(message, hint="write it with --dtype float32 or bfloat16")


def _finite(pair: Any) -> bool:
    return all(bool(side.isfinite().all()) for side in pair)


def _dtype(name: str) -> torch.dtype:
    import torch

    found: torch.dtype = getattr(torch, name)
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
