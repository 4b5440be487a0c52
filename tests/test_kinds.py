"""The table of kinds of target: a new kind is a class and a line, and nothing else knows of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from recipes import recipe_values
from said import refused
from sources import target_section

from mergetomix.data.examples import Example
from mergetomix.errors import RecipeError
from mergetomix.progress import Silent
from mergetomix.recipe.errors import readable
from mergetomix.recipe.recipe import Recipe
from mergetomix.records import Scores
from mergetomix.sections.target import TargetSection
from mergetomix.session.inputs import read_inputs
from mergetomix.store.address import digest
from mergetomix.targets.kinds import KINDS
from mergetomix.targets.target import Target, TargetKind, TargetSetting, equal_scores


class LengthTarget(TargetSection, TargetKind):
    """A toy: an answer's length, whatever the model."""

    needs: ClassVar[type[Any]] = object

    score: Literal["length"]
    """`length`: how long the right answer is."""
    per_letter: float = 1.0
    """What a letter counts."""

    def build(self, examples: Sequence[Example], setting: TargetSetting) -> Target:
        return Lengths(self.per_letter, examples)


class Lengths:
    num_cut = num_tokens = 0

    def __init__(self, per_letter: float, examples: Sequence[Example]) -> None:
        self.values = [per_letter * len(example.completion) for example in examples]

    def address(self) -> str:
        return digest("length", self.values)

    def score(self, model: Any) -> Scores:
        return equal_scores(self.values)


@pytest.fixture
def recipe_with_lengths(monkeypatch: pytest.MonkeyPatch) -> type[Recipe]:
    """The recipe of a package whose table has one line more."""
    monkeypatch.setitem(KINDS, "length", LengthTarget)

    class WithLengths(Recipe):
        """Made anew, so that pydantic reads the table again."""

    return WithLengths


def test_a_new_kind_is_a_class_and_a_line_of_the_table(
    recipe_with_lengths: type[Recipe], tmp_path: Path
) -> None:
    values = recipe_values(tmp_path)
    values["targets"]["t"] |= {"score": "length", "per_letter": 2}
    values["targets"]["u"] = dict(values["datasets"]["a"], path="t.jsonl")
    recipe = recipe_with_lengths.model_validate(values).resolved(tmp_path)
    assert isinstance(recipe.targets["t"], LengthTarget)
    inputs = read_inputs(recipe, Silent())
    scorers = inputs.targets("select")
    given = [2.0 * len(example.completion) for example in inputs.select_examples("t")]
    assert scorers["t"].score(None).values == tuple(given) and len(given) == 6
    assert scorers["u"].score(inputs.family.load()).kind == "loss"
    assert scorers["t"].address != inputs.targets("report")["t"].address


def test_a_new_kind_is_in_the_schema_and_in_the_errors(recipe_with_lengths: type[Recipe]) -> None:
    schema = recipe_with_lengths.model_json_schema()
    assert schema["$defs"]["LengthTarget"]["properties"]["per_letter"]["description"]
    pair = {"path": "x.csv", "prompt": "p", "completion": "c"}
    source = {"path": "x.csv", "text": "t"}
    for changes, message in (
        (
            {"score": "length", "per_lettre": 1},
            "per_lettre: unknown key; did you mean 'per_letter'",
        ),
        ({"per_letter": 2}, "per_letter: is for score: length, not loss"),
        ({"score": "lenght"}, "score: input should be .* 'harness' or 'length', not 'lenght'"),
    ):
        values = {"base": "b", "datasets": {"a": source, "b": source}}
        with pytest.raises(ValueError) as caught:
            recipe_with_lengths.model_validate({**values, "targets": {"t": {**pair, **changes}}})
        with pytest.raises(RecipeError, match=rf"^targets\.t\.{message}"):
            raise readable(caught.value, recipe_with_lengths)


def test_the_table_is_as_it_was() -> None:
    assert "length" not in KINDS
    refused("targets.t.score", "not 'length'", targets__t__score="length")


@pytest.mark.parametrize("score", KINDS)
def test_a_kind_says_its_own_name_and_what_it_needs(score: str) -> None:
    assert KINDS[score].model_fields["score"].annotation == Literal[score]
    assert isinstance(KINDS[score].needs, type)


def test_a_section_knows_what_it_was_made_of() -> None:
    fields = {"path": "x", "prompt": "p", "completion": "c", "score": "choice", "options": "o"}
    section = target_section(**fields)
    assert isinstance(section, KINDS["choice"])
    assert target_section(**section.model_dump()) == section
