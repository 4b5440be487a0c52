"""A user's functions: found by their names, and known by their code."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mergetomix.errors import RecipeError
from mergetomix.models.causal_lm.model import CausalLM
from mergetomix.sections.user_function import load_function
from mergetomix.targets.function import source_of
from mergetomix.targets.python import Function, PythonTarget
from mergetomix.targets.target import TargetSetting

WHERE = "targets.x"
ROWS = [{"q": "the cat"}, {"q": "a"}, {"q": "one plus two is three"}]
CODE = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Judge:
    factor: float = 2.0

def score(model, tokenizer, rows):
    return [Judge().factor * len(row["q"]) for row in rows]

number = 3
"""


def test_functions_are_loaded_from_files_and_modules(
    family: CausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a file may be called like an installed module and must not hide it
    (tmp_path / "json.py").write_text(CODE)
    loaded = load_function(f"{tmp_path / 'json.py'}:score", WHERE)
    assert loaded(None, None, ROWS) == [14.0, 2.0, 42.0]
    assert sys.modules["json"].__name__ == "json" and hasattr(sys.modules["json"], "dumps")
    (tmp_path / "judge_of_mine.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_function("judge_of_mine:score", WHERE)(None, None, ROWS) == [14.0, 2.0, 42.0]
    assert load_function(scaled, WHERE) is scaled
    section = PythonTarget(score="python", function=f"{tmp_path / 'json.py'}:score")
    target = Function(section, ROWS, range(3), TargetSetting(family, WHERE, 512), ROWS)
    assert target.score(family.load()).values == (14.0, 2.0, 42.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{0}/nowhere.py:score", "no file"),
        ("nowhere_at_all:score", "No module named"),
        ("{0}/code.py:missing", "no attribute 'missing'"),
        ("{0}/code.py:number", "is not a function"),
        ("{0}/syntax.py:score", "SyntaxError"),
        ("{0}/raises.py:score", "ZeroDivisionError"),
    ],
)
def test_a_function_that_cannot_be_loaded_names_the_key(
    tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "code.py").write_text(CODE)
    (tmp_path / "syntax.py").write_text("def score(:")
    (tmp_path / "raises.py").write_text("1 / 0")
    with pytest.raises(RecipeError, match=rf"^targets\.x\.function: .*{message}"):
        load_function(name.format(tmp_path), WHERE)


def make(factor: float) -> Callable[..., list[float]]:
    return lambda m, t: [factor] * 3


def scaled(m: Any, t: Any, factor: float = 1.0) -> list[float]:
    return [factor] * 3


class Scorer:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, m: Any, t: Any) -> list[float]:
        return [self.factor] * 3

    def other(self, m: Any, t: Any) -> list[float]:
        return [self.factor] * 3


def test_the_fingerprint_of_a_function_is_its_code_and_what_is_bound_to_it(tmp_path: Path) -> None:
    two = [lambda m, t: [1.0], lambda m, t: [2.0]]
    different: list[Any] = [
        make(1.0),
        make(2.0),
        functools.partial(scaled, factor=1.0),
        functools.partial(scaled, factor=2.0),
        scaled,
        Scorer(1.0),
        Scorer(2.0),
        Scorer(1.0).other,
        Scorer(2.0).other,
        *two,
        helper,
        None,
    ]
    prints = [source_of(given) for given in different]
    assert len(set(prints)) == len(prints)
    assert source_of(make(1.0)) == prints[0] and source_of(Scorer(2.0)) == prints[6]
    assert source_of(functools.partial(scaled, factor=2.0)) == prints[3]
    file = tmp_path / "code.py"
    file.write_text(CODE)
    first = source_of(f"{file}:score")
    assert first == source_of(f"{file}:score") != source_of(f"{file}:number")
    file.write_text(CODE.replace("2.0", "3.0"))
    assert source_of(f"{file}:score") != first


def helper() -> float:
    return 1.0


def uses_helper(m: Any, t: Any) -> list[float]:
    return [helper()]


def test_the_fingerprint_follows_functions_of_the_same_module(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = source_of(uses_helper)

    def helper() -> float:
        return 2.0

    monkeypatch.setitem(globals(), "helper", helper)
    assert source_of(uses_helper) != before


def test_the_fingerprint_of_a_recursive_function_ends() -> None:
    def count(n: int) -> int:
        return n and 1 + count(n - 1)

    assert source_of(count) == source_of(count)
