"""The shape of the package: what may import what, what waits until it is needed, what is one."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mergetomix"
# From the bottom up: the folders, and the modules that lie in none. Each may import what stands
# above it here; of what shares a line none imports another.
LAYERS = (
    "errors progress bounds quoting stretches devices curves trackers",
    "records showing",
    "mixtures objectives store merge",
    "results sections",
    "statistics data",
    "search models",
    "experts targets",
    "training recipe executors",
    "launch",
    "session",
    "stages",
    "report export study demo",
    "mergetomix",
    "cli",
    "__main__",
)
LEVEL = {folder: level for level, layer in enumerate(LAYERS) for folder in layer.split()}
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "pandas", "psutil"}
HEAVY |= {
    "optuna",
    "cmaes",
    "lightgbm",
    "matplotlib",
    "sentence_transformers",
    "lm_eval",
    "ray",
    "fsspec",
    "tensorboard",
    "wandb",
    "mlflow",
    "trackio",
}  # optional
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE_LINES, MAX_BODY_LINES, MAX_PARAMETERS = 600, 60, 6
GONE = set(
    re.findall(
        r"\w+",
        "aims explore needs slopes several tradeoffs passes beside blocks pool kept walk forms"
        " choices pools values problems",
    )
)
"""Names of files that a reader needed a page to understand."""


@dataclass(frozen=True)
class Import:
    """One imported name: its module, and whether importing the file imports it at once."""

    module: str
    line: int
    at_once: bool


def name_of(file: Path) -> str:
    """The dotted name of a module of the package, such as `mergetomix.search.greedy`."""
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in FILES}
TREES = {name: ast.parse(file.read_text()) for name, file in MODULES.items()}


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def walk(node: ast.AST, *, at_once: bool = True) -> Iterator[Import]:
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


def folder_of(module: str) -> str:
    """The folder or the lone module that stands in LAYERS."""
    return module.split(".")[1] if "." in module else module


def own(name: str) -> list[Import]:
    """What a module imports of this package, within functions and for types too."""
    return [found for found in walk(TREES[name]) if found.module in MODULES]


# --- imports


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down_the_table(name: str) -> None:
    mine = folder_of(name)
    for found in own(name):
        theirs = folder_of(found.module)
        wrong = f"{name}, line {found.line}: {mine} imports {theirs}, which is not below it"
        assert theirs == mine or LEVEL[theirs] < LEVEL[mine], wrong


def test_every_folder_has_its_place_in_the_table() -> None:
    assert {folder_of(name) for name in MODULES} == set(LEVEL)


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Not even for types or within functions: what knows each other is one."""
    graph = {name: {found.module for found in own(name)} - {name} for name in MODULES}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert set(order) == set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_heavy_packages_are_imported_inside_functions(name: str) -> None:
    for found in walk(TREES[name]):
        is_heavy = found.module.partition(".")[0] in HEAVY
        assert not (is_heavy and found.at_once), f"{name}, line {found.line}: {found.module}"


@pytest.mark.parametrize(
    "module", ["mergetomix", "mergetomix.cli.main", "mergetomix.stages.pipeline"]
)
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


def test_only_the_command_line_prints() -> None:
    """The command line does, and `showing`, which shows progress to who calls from Python too."""
    printing = {
        folder_of(name)
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    }
    assert printing <= {"cli", "showing"}


# --- sizes


@pytest.mark.parametrize(
    "file",
    [*FILES, *sorted((ROOT / "tests").glob("*.py"))],
    ids=lambda file: str(file.relative_to(ROOT)),
)
def test_files_are_short(file: Path) -> None:
    assert len(file.read_text().splitlines()) < MAX_FILE_LINES


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name}.{node.name}", node


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def num_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def test_functions_are_short() -> None:
    assert [name for name, node in functions() if body_lines(node) > MAX_BODY_LINES] == []


def test_functions_take_few_parameters() -> None:
    """A command takes its options, and a public function of the package what its users write."""
    allowed = ("mergetomix.cli.", "mergetomix.write_proxy")
    many = [name for name, node in functions() if num_parameters(node) > MAX_PARAMETERS]
    assert [name for name in many if not name.startswith(allowed)] == []


# --- names and words


def test_no_two_public_classes_share_a_name() -> None:
    places = defaultdict(list)
    for name, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_files_are_named_by_what_is_in_them() -> None:
    assert [name for name in MODULES if name.rpartition(".")[2] in GONE] == []


def docstrings() -> Iterator[tuple[str, str]]:
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield f"{name}.{getattr(node, 'name', '')}", text


def test_docstrings_begin_with_a_whole_sentence() -> None:
    """No fragment such as `Of a gain.`, and a first line that ends."""
    fragment = re.compile(r"(Of|See|As|Where|With|Within|Whose|From|Like) ")
    found = {place: text.splitlines()[0] for place, text in docstrings()}
    assert {place: line for place, line in found.items() if fragment.match(line)} == {}
    assert {place: line for place, line in found.items() if line.rstrip()[-1] not in ".:?`"} == {}


def test_every_module_and_folder_says_what_it_is_for() -> None:
    assert [name for name, tree in TREES.items() if not ast.get_docstring(tree)] == []


def test_the_tree_in_the_documents_is_the_folders() -> None:
    """docs/architecture.md draws every folder and lone module of the package, and no other."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    drawn = text.partition("```\nmergetomix/\n")[2].partition("\n```")[0]
    lines = [line.strip().partition("  ")[0] for line in drawn.splitlines()]
    names = {re.sub(r"/$|\.py$", "", name) for line in lines for name in line.split(", ")}
    assert names == {folder_of(name) for name in MODULES} - {"mergetomix", "__main__"}


def defined(name: str) -> set[str]:
    """Returns what a module defines at its top, and the members of its classes as Class.member."""
    tops = [node for node in TREES[name].body if hasattr(node, "name")]
    return {node.name for node in tops} | {
        f"{node.name}.{member.name}"
        for node in tops
        if isinstance(node, ast.ClassDef)
        for member in node.body
        if hasattr(member, "name")
    }


def test_what_the_documents_name_is_there() -> None:
    """Modules, functions and classes of the two tables, and the tests beside them."""
    missing = []
    for document in ("methods.md", "architecture.md"):
        lines = (ROOT / "docs" / document).read_text().splitlines()
        quoted = re.findall(r"`([^`]+)`", "\n".join(line for line in lines if "|" in line))
        for each in quoted:
            if re.fullmatch(r"test_\w+\.py", each):
                missing += [] if (ROOT / "tests" / each).exists() else [each]
            elif re.fullmatch(r"[a-z_]+(\.\w+)+", each) and each.partition(".")[0] in LEVEL:
                module = f"mergetomix.{each}"
                while module not in MODULES:
                    module = module.rpartition(".")[0]
                rest = f"mergetomix.{each}".removeprefix(module).removeprefix(".")
                missing += [] if not rest or rest in defined(module) else [each]
    assert missing == []


def bound(name: str) -> set[str]:
    """Returns every name that a module binds at its top."""
    found = defined(name)
    for node in TREES[name].body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("folder", ["studies", "benchmarks"])
def test_what_scripts_import_is_there(folder: str) -> None:
    """Nobody runs them for months, so a name that is gone must show here."""
    missing = []
    for file in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ImportFrom) or not str(node.module).startswith(
                "mergetomix"
            ):
                continue
            module = str(node.module)
            names = [alias.name for alias in getattr(node, "names", ())]
            if module not in MODULES:
                missing.append(f"{file.name}: {module}")
                continue
            known = bound(module)
            missing += [
                f"{file.name}: {module}.{name}"
                for name in names
                if name not in known and f"{module}.{name}" not in MODULES
            ]
    assert missing == []


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
    found = {item.module: item.at_once for item in walk(ast.parse(text))}
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
