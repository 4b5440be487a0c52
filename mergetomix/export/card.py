"""The model card of a written mixture: what it was made of, in Markdown with YAML in front, as model hubs read it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from mergetomix.recipe.recipe import Recipe, dump
from mergetomix.records import Mixture

if TYPE_CHECKING:
    from mergetomix.export.adapter import Adapter

TAGS = ["merge", "mergetomix"]


@dataclass(frozen=True)
class Origin:
    """What a mixture was made of.

    Args:
        factors: the factor on each expert's delta, by dataset; none where the merge is no sum.
        addresses: of the base's content under "", and of each expert, by dataset.
        revision: of the base, where it is known.
        versions: of the packages that made it.
    """

    recipe: Recipe
    mixture: Mixture
    factors: Mapping[str, float]
    addresses: Mapping[str, str]
    revision: str | None
    versions: Mapping[str, str]


def card(origin: Origin, dtype: str, adapter: Adapter | None = None) -> str:
    """The text of README.md."""
    parts = [
        _front(origin, adapter),
        f"# {origin.mixture}",
        _summary(origin, adapter),
        _experts(origin),
        "\n".join(f"- {line}" for line in _facts(origin, dtype)),
    ]
    if adapter is not None:
        parts += [
            "## Adapter",
            "\n".join(f"- {line}" for line in adapter.sentences()),
            _errors(adapter),
        ]
    text = yaml.safe_dump(_short(origin.recipe), sort_keys=False, allow_unicode=True, width=120)
    return "\n\n".join([*parts, "## Recipe", _fenced(text)]) + "\n"


def _front(origin: Origin, adapter: Adapter | None) -> str:
    values = {
        "base_model": origin.recipe.base.path,
        "base_model_relation": "merge" if adapter is None else "adapter",
        "library_name": "transformers" if adapter is None else "peft",
        "tags": TAGS if adapter is None else [*TAGS, "lora"],
    }
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---"


def _summary(origin: Origin, adapter: Adapter | None) -> str:
    kind = "A merge of" if adapter is None else "One LoRA adapter for the merge of"
    loads = "`from_pretrained`" if adapter is None else "`PeftModel.from_pretrained`, on the base"
    count = len(origin.mixture)
    experts = "one fine-tune" if count == 1 else f"{count} fine-tunes"
    return (
        f"{kind} {experts} of `{origin.recipe.base.path}`, each on one dataset alone. Nothing was trained on the datasets "
        f"together. Made by mergetomix {origin.versions.get('mergetomix', '')} (Merge to Mix, arXiv 2505.16066). "
        f"Load it with {loads}."
    )


def _experts(origin: Origin) -> str:
    """A row for each dataset."""
    lines = [
        "| dataset | weight | factor of its delta | data | expert's address |",
        "|---|---|---|---|---|",
    ]
    for name, weight in origin.mixture.as_dict().items():
        spec = origin.recipe.datasets[name]
        source = "rows given in the recipe" if spec.path is None else f"`{spec.path}`"
        factor = f"{origin.factors.get(name, 0.0):.6g}" if origin.factors else "no sum"
        lines.append(
            f"| {name} | {weight:.6g} | {factor} | {source} | `{origin.addresses[name]}` |"
        )
    return "\n".join(lines)


def _facts(origin: Origin, dtype: str) -> list[str]:
    recipe = origin.recipe
    options = "".join(f", {name} {value:g}" for name, value in recipe.merge.options.items())
    revision = f", revision `{origin.revision}`" if origin.revision else ""
    versions = ", ".join(f"{name} {version}" for name, version in origin.versions.items())
    return [
        f"base: `{recipe.base.path}`{revision}, address of its content `{origin.addresses['']}`",
        f"method: {recipe.merge.method}{options}, exponent of the scale: {recipe.merge.scale.exponent:g}",
        f"number type: {dtype}",
        f"versions: {versions}",
    ]


def _errors(adapter: Adapter) -> str:
    lines = [f"| {name} | {error:.3g} |" for name, error in adapter.errors.items()]
    table = "\n".join(["| param | relative error |", "|---|---|", *lines])
    return f"<details><summary>Relative error of every param</summary>\n\n{table}\n\n</details>"


def _short(recipe: Recipe) -> dict[str, Any]:
    """The recipe's values; rows written in it are only counted, for they would make a book of the card."""
    values: dict[str, Any] = yaml.safe_load(dump(recipe))
    for section in ("datasets", "targets"):
        for source in values[section].values():
            if isinstance(source["rows"], list):
                source["rows"] = f"<{len(source['rows'])} rows, see recipe.yaml>"
    return values


def _fenced(text: str) -> str:
    """YAML as a block of code, whatever it quotes."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{text}{fence}"
