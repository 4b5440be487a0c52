"""What the documents say is there: links, anchors, commands and their options, recipes, code."""

from __future__ import annotations

import ast
import doctest
import json
import re
from pathlib import Path
from typing import Any

import pages
import pytest
import recipe_reference
import typer
import yaml

import mergetomix
from mergetomix.cli import commands
from mergetomix.recipe.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
ROOT_FILES = ("README.md", "SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md")
FILES = [
    *(ROOT / name for name in (*ROOT_FILES, "studies/README.md", "benchmarks/README.md")),
    *sorted(DOCS.rglob("*.md")),
]
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
SCHEMA = json.loads((DOCS / "recipe.schema.json").read_text(encoding="utf-8"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^ *|`)mergetomix ([a-z]+)( [^`\n#|]*)?", re.MULTILINE)


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(text: str) -> set[str]:
    """The anchors of a file's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_links_lead_somewhere(file: Path) -> None:
    for link in LINK.findall(file.read_text(encoding="utf-8")):
        if link.startswith(("http:", "https:", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        place = (file.parent / name).resolve() if name else file
        assert place.exists(), link
        if anchor:
            assert anchor in anchors(place.read_text(encoding="utf-8")), link


def known() -> dict[str, Any]:
    """Every command by its name, those of groups behind the name of theirs."""
    group = typer.main.get_command(commands.app)
    found: dict[str, Any] = dict(group.commands)  # type: ignore[attr-defined]  # a group has them
    store = found.pop("store")
    return found | {f"store {name}": each for name, each in store.commands.items()}


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_commands_are_there_with_their_options(file: Path) -> None:
    there = known()
    for name, rest in COMMAND.findall(file.read_text(encoding="utf-8")):
        words = rest.split()
        full = f"{name} {words[0]}" if name == "store" and words else name
        if full == "store":
            continue
        assert full in there, full
        options = {opt for each in there[full].params for opt in (*each.opts, *each.secondary_opts)}
        for word in words:
            if word.startswith("-") and len(word) > 1 and word != "--":
                assert word.split("=")[0].rstrip(",.;:)") in options, f"{full} {word}"


@pytest.mark.parametrize("file", FILES, ids=ids)
def test_python_compiles(file: Path) -> None:
    for kind, text in BLOCK.findall(file.read_text(encoding="utf-8")):
        if kind == "python":
            ast.parse(text)


WITH_RECIPES = ["README.md", "docs/guides/language_models.md", "docs/guides/images.md"]


@pytest.mark.parametrize("name", WITH_RECIPES)
def test_whole_recipes_are_recipes(name: str) -> None:
    num = 0
    for kind, text in BLOCK.findall((ROOT / name).read_text(encoding="utf-8")):
        values = yaml.safe_load(text) if kind == "yaml" else None
        if isinstance(values, dict) and {"base", "datasets", "targets"} <= values.keys():
            Recipe.model_validate(values)
            num += 1
    assert num >= 1


PARTS = [
    (file, text)
    for file in sorted((DOCS / "guides").glob("*.md"))
    for kind, text in BLOCK.findall(file.read_text(encoding="utf-8"))
    if kind == "yaml"
]
ONE_ROW: dict[str, Any] = {"path": "rows.jsonl", "text": "text"}


@pytest.mark.parametrize(("file", "text"), PARTS, ids=[ids(file) for file, _ in PARTS])
def test_parts_of_recipes_are_parts_of_recipes(file: Path, text: str) -> None:
    """What a guide shows is taken as it stands, with the least that makes a recipe beside it."""
    rest: dict[str, Any] = {
        "base": "base",
        "datasets": {"a": ONE_ROW, "b": ONE_ROW},
        "targets": {"held": ONE_ROW},
    }
    values = yaml.safe_load(text)
    if "base" in values:
        rest = {}
    for key in ("datasets", "targets"):
        values[key] = rest.get(key, {}) | (values.get(key) or {})
    Recipe.model_validate(rest | values)


def test_the_readme_is_short_and_opens_with_the_two_commands() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    code = [line.strip() for line in lines if line.startswith("    ")]
    assert code[:2] == ["make demo", "make test"]


def in_nav(nav: Any) -> list[str]:
    """The pages that the navigation of the site names."""
    if isinstance(nav, str):
        return [nav]
    return [
        page for each in (nav.values() if isinstance(nav, dict) else nav) for page in in_nav(each)
    ]


def test_every_page_is_in_the_navigation_once_and_there() -> None:
    written = {file.relative_to(DOCS).as_posix() for file in DOCS.rglob("*.md")}
    made = {*pages.BROUGHT.values(), pages.REFERENCE}
    assert not written & made
    left_out = set(SITE["exclude_docs"].split())
    assert left_out <= written
    named = in_nav(SITE["nav"])
    assert sorted(named) == sorted((written - left_out) | made)
    assert [name for name in pages.BROUGHT if not (ROOT / name).is_file()] == []


def test_links_of_the_site_lead_to_its_pages() -> None:
    """Every link of a page is turned to a page of the navigation, or to a file that comes along."""
    made = {*pages.BROUGHT.values(), pages.REFERENCE, *pages.linked().values()}
    names = pages.titles(SITE["nav"])
    for page in in_nav(SITE["nav"]):
        if page == pages.REFERENCE:
            continue
        source = ROOT / pages.source_of(page)
        text = pages.turned(source.read_text(encoding="utf-8"), pages.source_of(page), names)
        for link in LINK.findall(text):
            name = link.partition("#")[0]
            if name and ":" not in name:
                place = (DOCS / page).parent / name
                there = place.resolve().relative_to(DOCS).as_posix()
                assert there in made or (DOCS / there).is_file(), f"{page}: {link}"


def test_links_are_turned_in_text_and_stay_in_code() -> None:
    code = "\n```\n[a](docs/b.md)\n```\n[x](#y)"
    text = f"[docs/api.md](docs/api.md#run) and [studies](studies/README.md){code}"
    assert pages.turned(text, "README.md", {"api.md": "Python"}) == (
        f"[Python](api.md#run) and [studies](studies/index.md){code}"
    )
    back = pages.turned("[home](../../README.md)", "docs/guides/chats.md", {})
    assert back == "[home](../index.md)"


def of_section(text: str) -> dict[str, str]:
    """The sections of the recipe's reference, by their headings."""
    parts = re.split(r"^##+ (.*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_reference_names_every_key_of_the_recipe() -> None:
    text = recipe_reference.reference(SCHEMA)
    parts, found = of_section(text), recipe_reference.sections(SCHEMA)
    assert set(found) == {"", *SCHEMA["$defs"]}
    assert list(parts) == [section.title for section in found.values()]
    assert len(anchors(text)) == len(parts) + 1, "two sections share an anchor"
    for section in found.values():
        part = parts[section.title]
        entries = re.findall(r"\*\*`(\w+)`\*\*: (.+)\n\n:   (.+)", part)
        said = {name for name, *_ in entries}
        shared = set(re.findall(r"`(\w+)`", part.rpartition("These keys are those of ")[2]))
        assert set(section.node["properties"]) == said | (shared if section.shared else set())


def test_the_reference_says_type_default_and_allowed_values() -> None:
    train = of_section(recipe_reference.reference(SCHEMA))["`train`"]
    assert '**`method`**: `lora` or `full`; default `"lora"`' in train
    assert "**`learning_rate`**: number (over 0); default `0.0002`" in train
    assert "Peak learning rate of AdamW." in train
    links = re.findall(r"\]\(#([^)]+)\)", recipe_reference.reference(SCHEMA))
    heads = {
        recipe_reference.slug(each.title) for each in recipe_reference.sections(SCHEMA).values()
    }
    assert links and set(links) <= heads


def test_every_public_name_is_on_the_page_of_the_python_interface() -> None:
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    named = re.findall(r"^::: mergetomix\.(\w+)$", text, flags=re.MULTILINE)
    assert sorted(named) == sorted(mergetomix.__all__)


def test_decisions_are_dated_and_in_order() -> None:
    heads = re.findall(
        r"^##.*$", (DOCS / "decisions.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    dates = [head[3:13] for head in heads]
    assert heads and all(re.fullmatch(r"## 20\d\d-\d\d-\d\d: .*[^.]", head) for head in heads)
    assert dates == sorted(dates)


def test_a_page_that_fetches_from_another_server_is_found_out() -> None:
    fetches = (
        '<script defer src="https://example.org/a.js"></script><link href=//example.org/b.css>'
    )
    assert pages.ELSEWHERE.findall(fetches) == ["https://example.org/a.js", "//example.org/b.css"]
    assert pages.ELSEWHERE.findall('<a href="https://example.org">a</a><img src="../a.svg">') == []


@pytest.mark.parametrize("name", ["pages", "recipe_reference", "doctests"])
def test_examples_of_the_site_hooks_hold(name: str) -> None:
    """That of the docstrings' code needs griffe, which `make docs` installs."""
    num_failed, num = doctest.testmod(pytest.importorskip(name, reason="griffe is not installed"))
    assert num >= 1 and num_failed == 0
