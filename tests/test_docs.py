"""What the documents say is there: links, anchors, commands and their options, recipes, code."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from mergetomix.cli import commands
from mergetomix.recipe.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
FILES = [
    *(ROOT / name for name in ("README.md", "SECURITY.md", "CHANGELOG.md", "studies/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
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


@pytest.mark.parametrize("file", [ROOT / "README.md", ROOT / "docs" / "guide.md"], ids=ids)
def test_whole_recipes_are_recipes(file: Path) -> None:
    num = 0
    for kind, text in BLOCK.findall(file.read_text(encoding="utf-8")):
        values = yaml.safe_load(text) if kind == "yaml" else None
        if isinstance(values, dict) and {"base", "datasets", "targets"} <= values.keys():
            Recipe.model_validate(values)
            num += 1
    assert num >= 1


def test_the_readme_is_short_and_opens_with_the_two_commands() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    code = [line.strip() for line in lines if line.startswith("    ")]
    assert code[:2] == ["make demo", "make test"]
