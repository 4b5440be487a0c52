"""The shape of the package: imports point downwards, heavy packages wait until they are needed, nothing grows too long."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mergetomix"
# From the bottom up. A module may import its own layer and those above it here; the package itself is `mergetomix`.
LAYERS = (
    "errors",
    "front records objective progress problems values",
    "merge",
    "sections",
    "mixture recipe address disk ledger store image rows fidelity calibrate pool shares several tradeoffs race regression",
    "kernels adapters data card folder",
    "pictures passes",
    "families",
    "deltas statistics",
    "bank beside",
    "train targets search",
    "inputs",
    "blocks",
    "job",
    "slopes budget aims racing",
    "explore needs verify",
    "costs",
    "pipeline",
    "plan starter demo write",
    "study",
    "report",
    "mergetomix",
    "cli",
    "__main__",
)
LEVEL = {module: level for level, layer in enumerate(LAYERS) for module in layer.split()}
HEAVY = {
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "accelerate",
    "pandas",
    "plotly",
    "numba",
    "psutil",
}
HEAVY |= {"optuna", "cmaes", "lightgbm"}  # optional
COMPILED = "mergetomix.kernels"  # the module that others import inside functions because of what it imports at once
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE_LINES, MAX_BODY_LINES = 600, 60


@dataclass(frozen=True)
class Import:
    """One imported name: of which module it is, and whether importing the file imports it at once."""

    module: str
    line: int
    at_once: bool


def name_of(file: Path) -> str:
    """The dotted name of a module of the package, such as `mergetomix.search.greedy`."""
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in FILES}


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports_in(text: str) -> list[Import]:
    return list(walk(ast.parse(text), at_once=True))


def walk(node: ast.AST, *, at_once: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from (Import(name, node.lineno, at_once) for name in names_in(node))
    inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        for_types = is_for_types(node) and child in getattr(node, "body", [])
        yield from walk(child, at_once=at_once and not inside and not for_types)


def names_in(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert node.level == 0, f"line {node.lineno}: imports are absolute here"
    whole = [f"{node.module}.{alias.name}" for alias in node.names]
    return [name if name in MODULES else str(node.module) for name in whole]


def layer_of(module: str) -> str:
    """The module or folder that stands in LAYERS."""
    return module.split(".")[1] if "." in module else module


def own(file: Path) -> list[Import]:
    return [found for found in imports_in(file.read_text()) if found.module in MODULES]


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_downwards(name: str) -> None:
    mine = layer_of(name)
    for found in own(MODULES[name]):
        theirs = layer_of(found.module)
        assert LEVEL[theirs] <= LEVEL[mine], (
            f"{name}, line {found.line}: {mine} imports {theirs}, which lies above"
        )


def test_every_module_has_its_layer() -> None:
    assert {layer_of(name) for name in MODULES} <= set(LEVEL)


def test_no_module_imports_itself_by_way_of_others() -> None:
    # `import a.b` runs a first, but a package may import its parts, so only what is named counts
    graph = {
        name: {found.module for found in own(file) if found.at_once} - {name}
        for name, file in MODULES.items()
    }
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert set(order) == set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_heavy_packages_are_imported_inside_functions(name: str) -> None:
    for found in imports_in(MODULES[name].read_text()):
        is_heavy = found.module == COMPILED or (
            found.module.partition(".")[0] in HEAVY and name != COMPILED
        )
        assert not (is_heavy and found.at_once), (
            f"{name}, line {found.line}: imports {found.module} at once"
        )


@pytest.mark.parametrize(
    "statement", ["import mergetomix", "import mergetomix.cli", "import mergetomix.pipeline"]
)
def test_importing_loads_nothing_heavy(statement: str) -> None:
    code = f"import sys; {statement}; print(sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "file",
    [*FILES, *sorted((ROOT / "tests").glob("*.py"))],
    ids=lambda file: "/".join(file.parts[-2:]),
)
def test_files_are_short(file: Path) -> None:
    assert len(file.read_text().splitlines()) < MAX_FILE_LINES


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_functions_are_short() -> None:
    long = [
        f"{name}.{node.name}: {body_lines(node)}"
        for name, file in MODULES.items()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and body_lines(node) > MAX_BODY_LINES
    ]
    assert long == []


def test_the_walk_tells_when_an_import_happens() -> None:
    text = """
import torch
from mergetomix import merge, __version__
from mergetomix.search.greedy import Greedy
if TYPE_CHECKING:
    import peft
else:
    import trl
try:
    import datasets
except ImportError:
    pass
class A:
    import plotly
def f():
    import pandas
    if 1:
        from transformers.x import y
g = lambda: __import__("os")
"""
    found = {item.module: item.at_once for item in imports_in(text)}
    assert found == {
        "torch": True,
        "mergetomix.merge": True,
        "mergetomix": True,
        "mergetomix.search.greedy": True,
        "peft": False,
        "trl": True,
        "datasets": True,
        "plotly": True,
        "pandas": False,
        "transformers.x": False,
    }
