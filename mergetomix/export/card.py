"""The model card of a written mixture: Markdown with YAML in front, as model hubs read it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from mergetomix import merge
from mergetomix.quoting import code, front_matter, plain
from mergetomix.recipe.recipe import Recipe, dump
from mergetomix.records import Mixture
from mergetomix.session.finetunes import environment

if TYPE_CHECKING:
    from mergetomix.export.adapter import Adapter
    from mergetomix.session.session import Session

SUMS = ("linear",)
"""Methods whose merge is base + sum_i c_i delta_i, so that adapters make an adapter."""


def card(session: Session, mixture: Mixture, dtype: str, adapter: Adapter | None = None) -> str:
    """Returns the text of README.md, for a merged model or for an adapter."""
    recipe = session.recipe
    values = {
        "base_model": recipe.base.path,
        "base_model_relation": "merge" if adapter is None else "adapter",
        "library_name": "transformers" if adapter is None else "peft",
        "tags": ["merge", "mergetomix", *([] if adapter is None else ["lora"])],
    }
    versions = environment(session.opened)
    names = {**versions["versions"], "python": versions["python"]}
    parts = [
        front_matter(values),
        f"# {plain(str(mixture))}",
        _summary(recipe, mixture, names.get("mergetomix", ""), adapter is not None),
        _experts(session, mixture),
        _listed([*_facts(session, dtype), f"versions: {', '.join(map(' '.join, names.items()))}"]),
    ]
    if adapter is not None:
        lines = [f"| {plain(name)} | {error:.3g} |" for name, error in adapter.errors.items()]
        table = "\n".join(["| param | relative error |", "|---|---|", *lines])
        summary = "<summary>Relative error of every param</summary>"
        hidden = f"<details>{summary}\n\n{table}\n\n</details>"
        parts += ["## Adapter", _listed(adapter.sentences()), hidden]
    text = yaml.safe_dump(_short(recipe), sort_keys=False, allow_unicode=True, width=120)
    return "\n\n".join([*parts, "## Recipe", fenced(text)]) + "\n"


def _summary(recipe: Recipe, mixture: Mixture, version: str, is_adapter: bool) -> str:
    kind = "One LoRA adapter for the merge of" if is_adapter else "A merge of"
    loads = "`PeftModel.from_pretrained`, on the base" if is_adapter else "`from_pretrained`"
    experts = "one fine-tune" if len(mixture) == 1 else f"{len(mixture)} fine-tunes"
    return (
        f"{kind} {experts} of {code(recipe.base.path)}, each on one dataset alone. Nothing was"
        f" trained on the datasets together. Made by mergetomix {version} (Merge to Mix, arXiv"
        f" 2505.16066). Load it with {loads}."
    )


def _experts(session: Session, mixture: Mixture) -> str:
    """Returns a table with a row for each dataset."""
    recipe = session.recipe
    is_sum = recipe.merge.method in SUMS
    factors = merge.coefficients(mixture, recipe.merge.scale.exponent) if is_sum else {}
    lines = [
        "| dataset | weight | factor of its delta | data | expert's address |",
        "|---|---|---|---|---|",
    ]
    for name, weight in mixture.as_dict().items():
        paths, address = recipe.datasets[name].paths, session.addresses.expert(name)
        source = ", ".join(code(path, in_table=True) for path in paths)
        source = source or "rows given in the recipe"
        factor = f"{factors.get(name, 0.0):.6g}" if is_sum else "no sum"
        lines.append(f"| {plain(name)} | {weight:.6g} | {factor} | {source} | `{address}` |")
    return "\n".join(lines)


def _facts(session: Session, dtype: str) -> list[str]:
    base, section = session.recipe.base, session.recipe.merge
    known = getattr(session.inputs.family.config, "_commit_hash", None) or base.revision
    revision = f", revision {code(known)}" if known else ""
    options = "".join(f", {name} {value:g}" for name, value in section.options.items())
    return [
        f"base: {code(base.path)}{revision}, address of its content `{session.addresses.base}`",
        f"method: {section.method}{options}, exponent of the scale: {section.scale.exponent:g}",
        f"number type: {dtype}",
    ]


def _listed(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _short(recipe: Recipe) -> dict[str, Any]:
    """Returns the recipe's values; rows written in it are only counted, for they are many."""
    values: dict[str, Any] = yaml.safe_load(dump(recipe))
    for section in ("datasets", "targets"):
        for source in values[section].values():
            if isinstance(source.get("rows"), list):
                source["rows"] = f"<{len(source['rows'])} rows, see recipe.yaml>"
    return values


def fenced(text: str) -> str:
    """Returns YAML as a block of code, whatever it quotes.

    >>> fenced("a: 1\\n")
    '```yaml\\na: 1\\n```'
    """
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{text}{fence}"
