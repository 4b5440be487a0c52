"""The first recipe: what `init` makes of each source, what it asks, and what it says at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from shape_rows import ROWS
from sources import jsonl, put
from test_cli import Call, call

import mergetomix as m2m
from mergetomix.cli import commands, first_recipe
from mergetomix.data import reading, shapes
from mergetomix.demo.text import BASE
from mergetomix.errors import UserError

__all__ = ["call"]
CASES = Path(__file__).resolve().parents[2] / "shared" / "cases" / "shapes"
PAIRS = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(12)]


def called(each: Any) -> str:
    """The name of a shape or a file, the same in every process."""
    return str(each.name)


@pytest.mark.parametrize("shape", [each for each in shapes.SHAPES if each.is_told], ids=called)
def test_every_shape_makes_a_recipe_that_reads(tmp_path: Path, shape: shapes.Shape) -> None:
    put(tmp_path / "x.jsonl", jsonl(ROWS[shape.name].rows))
    looks = first_recipe.Looks()
    for name, is_target in (("x", False), ("t", True)):
        found = looks.targets if is_target else looks.datasets
        found[name] = "x.jsonl", first_recipe.looked_at(name, "x.jsonl", tmp_path, is_target)
    put(tmp_path / "y.md", "some text")
    looks.datasets["y"] = "y.md", first_recipe.looked_at("y", "y.md", tmp_path, False)
    (tmp_path / "recipe.yaml").write_text(first_recipe.recipe(None, looks))
    recipe = m2m.load_recipe(tmp_path / "recipe.yaml")
    wanted = shape.of(False)
    assert {key: getattr(recipe.datasets["x"], key) for key in wanted} == wanted
    assert reading.read(recipe.targets["t"], "targets.t").items


@pytest.mark.skipif(not CASES.exists(), reason="they lie beside this project's checkout alone")
@pytest.mark.parametrize("file", sorted(CASES.glob("*")) if CASES.exists() else [], ids=called)
def test_the_shapes_of_public_datasets(file: Path, tmp_path: Path) -> None:
    for is_target in (False, True):
        look = first_recipe.looked_at("x", str(file), tmp_path, is_target)
        assert look.items and not any("run into" in note for note in look.notes)
        item = look.items[0]
        assert item.completion or item.text or item.messages
        is_choice = look.lines.get("score") == "choice"
        assert is_choice == bool(item.options)


def test_rows_are_shown_as_they_are_used(tmp_path: Path, call: Call) -> None:
    put(tmp_path / "a.jsonl", jsonl([*PAIRS, {"question": "x", "answer": None}]))
    rows = [{**ROWS["options by place"].rows[0], "question": f"which {i}"} for i in range(4)]
    put(tmp_path / "b.jsonl", jsonl([*rows, *ROWS["options by place"].rows]))
    mine = [{**row, "question": f"{row['question']} of mine"} for row in rows]
    put(tmp_path / "t.jsonl", jsonl([*mine, *ROWS["options by place"].rows]))
    path = tmp_path / "recipe.yaml"
    given = ["--base", BASE, "--dataset", "a=a.jsonl", "--dataset", "b=b.jsonl"]
    code, output, _ = call("init", path, *given, "--target", "t=t.jsonl")
    assert code == 0
    assert "dataset a: questions and answers" in output
    assert "Question: q0\\nAnswer:[ a0]" in output
    assert "target t: options by place" in output
    assert "Answer:[ elm] |  oak |  fir |  yew" in output
    assert "passed over 1 bad rows" in output
    raw = yaml.safe_load(path.read_text())
    assert raw["datasets"]["a"]["on_bad_row"] == "skip" and "on_bad_row" not in raw["datasets"]["b"]
    code, output, errors = call("check", path, "--set", "train.max_steps=2")
    assert code == 0, errors
    assert "Question: which 0\\nAnswer:[ elm]" in output


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"id": 1, "weight": 2}], "none of the usual shapes; its columns are id, weight"),
        ([{"text": "a film", "label": 1}] * 3, "label holds numbers (1), and no word"),
        ([{"question": "a", "answer": ""}] * 3, "gives an empty text"),
        ([{"text": "a", "label": [0, 1]}] * 3, "none of the usual shapes"),
        ([{"text": "a", "label": 1, "word": "b"}] * 3, "none of the usual shapes"),
        ([{"prompt": "a", "completion": "b", "label": False}] * 3, "none of the usual shapes"),
        ([{"question": "a", "answer": "b", "paragraph": "c"}] * 3, "none of the usual shapes"),
        ([{"text": "a", "summary": "b"}] * 3, "none of the usual shapes"),
        ([{"question": "a", "options": {"A": "b"}, "answer": "A"}] * 3, "none of the usual shapes"),
    ],
)
def test_what_cannot_be_told_is_asked_for_and_nothing_is_written(
    tmp_path: Path, call: Call, rows: list[Any], says: str
) -> None:
    put(tmp_path / "a.jsonl", jsonl(rows))
    path = tmp_path / "recipe.yaml"
    code, _, errors = call("init", path, "--dataset", "a=a.jsonl")
    assert (code == 2 and says in errors and "a.jsonl" in errors) or says in errors
    assert not path.exists()


def test_labels_are_words_where_the_file_knows_them(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["wet", "dry"])}
    )
    rows = datasets.Dataset.from_dict({"text": ["rain", "sun"], "label": [0, 1]}, features=features)
    rows.to_parquet(str(tmp_path / "x.parquet"))
    look = first_recipe.looked_at("x", "x.parquet", tmp_path, True)
    assert look.lines["answer_map"] == {"0": "wet", "1": "dry"}
    assert look.items[1].completion == " dry" and look.items[1].options == (" wet", " dry")
    nli = {"premise": ["a"] * 2, "hypothesis": ["b"] * 2, "label": [0, 1]}
    features = datasets.Features(
        {
            **dict.fromkeys(["premise", "hypothesis"], datasets.Value("string")),
            "label": datasets.ClassLabel(names=["entailment", "contradiction", "neutral"]),
        }
    )
    datasets.Dataset.from_dict(nli, features=features).to_parquet(str(tmp_path / "cb.parquet"))
    look = first_recipe.looked_at("x", "cb.parquet", tmp_path, True)
    assert look.items[1].completion == " contradiction" and not look.notes
    put(tmp_path / "cb.jsonl", jsonl([{"premise": "a", "hypothesis": "b", "label": 1}]))
    look = first_recipe.looked_at("x", "cb.jsonl", tmp_path, True)
    assert "1 for 'neutral'" in look.notes[-1] and "see that it is so" in look.notes[-1]
    words = [{"text": f"rain {i}", "label": ["wet", "dry"][i % 2]} for i in range(4)]
    put(tmp_path / "w.jsonl", jsonl(words))
    look = first_recipe.looked_at("w", "w.jsonl", tmp_path, True)
    assert look.lines["options"] == ["dry", "wet"] and look.items[0].completion == " wet"
    put(tmp_path / "y.jsonl", jsonl([{"text": "rain", "label": "wet"}] * 2))
    look = first_recipe.looked_at("y", "y.jsonl", tmp_path, False)
    assert (look.items[0].prompt, look.items[0].completion) == ("rain\nLabel:", " wet")


def test_questions_are_asked_until_an_answer_fits(
    tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "odd.jsonl", jsonl([{"ask": "dry?", "reply": "yes"}] * 4))
    put(tmp_path / "film.jsonl", jsonl([{"text": f"film {i}", "label": i % 2} for i in range(4)]))
    put(tmp_path / "t.jsonl", jsonl(PAIRS))
    said = iter(
        [
            str(tmp_path / "nowhere"),  # no base
            str(BASE),
            "oops",
            "a=none.jsonl",
            "a=odd.jsonl",
            "asks",  # no such column
            "reply",
            "",
            "ask",
            "reply",
            "b=film.jsonl",
            "bad",  # two words are needed
            "bad, good",
            "",
            "t=t.jsonl",
            "",
        ]
    )
    asked: list[str] = []

    def answer(question: str) -> str:
        asked.append(question)
        return next(said)

    monkeypatch.setattr(commands, "_ask", answer)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    path = tmp_path / "recipe.yaml"
    code, output, errors = call("init", path)
    assert code == 0, errors
    assert next(said, "all was asked for") == "all was asked for"
    assert "no model in" in errors and "NAME=PATH" in errors and "no file" in errors
    assert any("no column 'asks'" in question for question in asked)
    recipe = m2m.load_recipe(path)
    assert recipe.datasets["a"].prompt == "{ask}\n" and recipe.datasets["a"].completion == "reply"
    assert recipe.datasets["b"].answer_map == {"0": "bad", "1": "good"}
    assert "dataset b: texts with labels" in output


def test_names_that_yaml_reads_as_something_else(tmp_path: Path, call: Call) -> None:
    put(tmp_path / "a.jsonl", jsonl(PAIRS))
    path = tmp_path / "recipe.yaml"
    given = ["--dataset", "yes=a.jsonl", "--dataset", "1=a.jsonl", "--target", "null=a.jsonl"]
    code, _, errors = call("init", path, "--base", "org/a model: x", *given)
    assert code == 0, errors
    found = m2m.load_recipe(path)
    assert list(found.datasets) == ["yes", "1"] and found.base.path == "org/a model: x"
    code, _, errors = call("init", tmp_path / "b.yaml", "--dataset", "my data=a.jsonl")
    assert code == 2 and "a name starts with a letter" in errors


def test_a_base_that_is_no_model_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model in"):
        first_recipe.check_base("./none", tmp_path)
    first_recipe.check_base("owner/name", tmp_path)
    first_recipe.check_base(str(BASE), tmp_path)
