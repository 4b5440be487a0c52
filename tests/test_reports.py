"""What a person gets after a run: the page, datasets and mixtures explained, runs compared."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from recipes import WORDS, Heard, recipe_values, result_of, write_recipe
from typer.testing import CliRunner

import mergetomix as m2m
from mergetomix.cli import commands
from mergetomix.curves import OwnRows
from mergetomix.errors import UserError
from mergetomix.records import Mixture
from mergetomix.report import charts, decision, page

ODD = "<script>alert(1)</script>\"'&"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, m2m.Result]:
    folder = tmp_path_factory.mktemp("finished")
    values = recipe_values(folder, targets=("t", "u"))
    return folder, m2m.run(write_recipe(folder, values))


class Tags(HTMLParser):
    """The tags of a page, its text, and what is not closed."""

    VOID = frozenset({"meta", "input", "line", "circle", "polyline", "polygon", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data


def test_the_page_says_the_decision_first(finished: tuple[Path, m2m.Result]) -> None:
    folder, result = finished
    text = (folder / "run" / "report.html").read_text()
    found = Tags(text)
    assert found.open == []
    headings = [each for each, _ in found.tags if each in ("h1", "h2")]
    assert headings[0] == "h1" and len(headings) > 6
    assert found.text.index(str(result.decision)) < found.text.index("Gains over the base")
    for name in ("a", "b", "c", "What it took", "Environment", "what about a and red?"):
        assert name in found.text
    assert "Losses of the fine-tunes" in found.text and "Words on this page" in found.text
    keys = [attrs for tag, attrs in found.tags if tag == "polyline" and "curve" in str(attrs)]
    assert len(keys) == len(result.curves)
    assert sorted(map(str, result.selection.order)) == sorted(
        str(trial.mixture) for trial in result.selection.trials
    )
    assert len(text) < 300_000
    ids = [attrs["id"] for _, attrs in found.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_the_page_needs_no_network(finished: tuple[Path, m2m.Result]) -> None:
    text = (finished[0] / "run" / "report.html").read_text()
    assert not re.search(r"(src|href)\s*=|@import|url\(|fetch\(|XMLHttp", text)


def test_report_md_and_result_json_say_the_same(finished: tuple[Path, m2m.Result]) -> None:
    folder, result = finished
    report, plain = (folder / "run" / "report.md").read_text(), result_of(folder)
    first = report.split("\n\n")[1]
    assert str(result.decision).replace("+", "\\+") in first or str(result.decision) in first
    assert plain["decision"]["headline"] == str(result.decision)
    assert plain["decision"]["kind"] == result.decision.kind
    assert len(plain["decision"]["because"]) >= 3
    effects = plain["verification"]["effects"]
    assert {each["dataset"] for each in effects["datasets"]} == {"a", "b", "c"}
    assert effects["is_exact"] and set(effects["datasets"][0]["values"]) == {"t", "u", "objective"}
    intervals = [each["interval"] for each in plain["baselines"]["experts"]]
    assert all(each["low"] <= each["high"] for each in intervals)


def test_values_add_up_to_all_datasets(finished: tuple[Path, m2m.Result]) -> None:
    checked = finished[1].verification
    assert checked is not None and checked.effects is not None
    total = sum(each.values["objective"].value for each in checked.effects.datasets)
    every = next(each for each in checked.predictions if len(each.mixture) == 3)
    # both of what the mixture is worth; the prediction is of this seed's fine-tune
    assert total == pytest.approx(every.mean, abs=0.05)


def test_names_and_rows_cannot_inject_markup() -> None:
    section = page.Block(ODD, ODD, [ODD], samples=[{"name": ODD, "rows": [[(ODD, True)]]}])
    section.tables.append(page.PageTable.of("key", ODD, [[ODD, "b"], [ODD, "1"]]))
    dots = [charts.Dot(ODD, 0.1, 0.0, 0.2)]
    axes = charts.Axes(ODD, ODD, ODD, line=[(0.0, 0.0), (1.0, 1.0)])
    drawn = [
        charts.dots(dots, axes),
        charts.heat([ODD], [ODD], [dots]),
        charts.scatter([charts.Point(ODD, 1.0, 2.0, 1.5, 2.5)], axes),
        charts.lines({ODD: [(0.0, 1.0), (1.0, 0.5)]}, axes),
    ]
    section.charts += [page.safe(each) for each in drawn]
    plain = page.Block("k", "t", ["x"], samples=[{"name": "x", "rows": [[("x", True)]]}])
    found = Tags(page.page(ODD, ODD, [ODD], [section]))
    of_plain = Tags(page.page("x", "x", ["x"], [plain]))
    scripts = [each for each, _ in found.tags if each == "script"]
    assert scripts == [each for each, _ in of_plain.tags if each == "script"] == ["script"]
    assert found.open == [] and ODD in found.text
    for _, attrs in found.tags:
        assert not any(name.startswith("on") for name in attrs)


def test_explain_and_predict_train_nothing(finished: tuple[Path, m2m.Result]) -> None:
    folder, result = finished
    recipe, heard = folder / "recipe.yaml", Heard()
    found = m2m.explain(recipe, heard)
    assert result.verification is not None and found == result.verification.effects
    for each in result.verification.predictions:
        assert m2m.predict(recipe, each.mixture.datasets, listener=heard) == each
    weighted = m2m.predict(recipe, ["a", "b"], [3, 1], heard)
    assert weighted.low < weighted.mean < weighted.high and not weighted.measured
    assert heard.trained() == []
    with pytest.raises(UserError, match="no dataset is called 'd'"):
        m2m.predict(recipe, ["d"])


def test_what_was_not_trained_is_not_explained(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, recipe_values(tmp_path))
    for ask in (m2m.explain, lambda each: m2m.predict(each, ["a"])):
        with pytest.raises(UserError, match="experts of this recipe are not trained yet"):
            ask(recipe)


def test_a_report_is_made_again(finished: tuple[Path, m2m.Result]) -> None:
    folder, _ = finished
    file = folder / "run" / "report.html"
    before = re.sub(r"this run by the clock.*?</td></tr>", "", file.read_text(), flags=re.S)
    file.unlink()
    assert m2m.write_report(folder / "run") == folder / "run"
    after = re.sub(r"this run by the clock.*?</td></tr>", "", file.read_text(), flags=re.S)
    assert after == before


def test_a_run_that_was_not_finished_is_marked_so(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, recipe_values(tmp_path))
    m2m.train_experts(recipe)
    m2m.search_mixtures(recipe)
    found = CliRunner().invoke(commands.app, ["report", str(recipe)])
    assert found.exit_code == 0, found.output
    text = (tmp_path / "run" / "report.html").read_text()
    assert "This run was not finished: there is no decision yet." in text
    assert "3 of 3 fine-tunes on single datasets are there." in text
    assert "7 merges were scored on the select part so far" in text
    assert "Losses of the fine-tunes" in text
    assert not (tmp_path / "run" / "result.json").exists()


def test_two_runs_beside_each_other(finished: tuple[Path, m2m.Result], tmp_path: Path) -> None:
    folder, result = finished
    values = recipe_values(folder, targets=("t", "u")) | {"run_dir": "second"}
    values["verify"] = {"budget": 0}
    m2m.run(write_recipe(folder, values, "second.yaml"))
    found = m2m.compare(folder / "run", folder / "second")
    decisions = found["Decisions"].set_index("what")
    assert decisions.loc["decision"].iloc[0] == str(result.decision)
    assert decisions.loc["chance to be the best"].iloc[1] == ""
    settings = found["Settings that differ"]
    assert {"verify.budget", "run_dir"} <= set(settings["key"])
    shown = CliRunner().invoke(
        commands.app, ["compare", str(folder / "run"), str(folder / "second")]
    )
    assert shown.exit_code == 0 and "Settings that differ" in shown.output
    with pytest.raises(UserError, match="holds no finished run"):
        m2m.compare(folder / "run", tmp_path)
    (tmp_path / "result.json").write_text(json.dumps({"schema": 1}))
    with pytest.raises(UserError, match="older version"):
        m2m.compare(folder / "run", tmp_path)


def test_a_result_shows_itself(finished: tuple[Path, m2m.Result]) -> None:
    result = finished[1]
    assert str(result).startswith(str(result.decision))
    frame = result.to_frame()
    assert list(frame["gain"]) == sorted(frame["gain"], reverse=True)
    assert {"model", "datasets", "t", "u", "gain", "low", "high"} == set(frame.columns)
    assert str(result.decision) in result._repr_html_()
    assert len(result.selection.to_frame()) == 7
    assert result.verification is not None
    assert len(result.verification.to_frame()) == len(result.verification.predictions)


def test_answers_stand_side_by_side(tmp_path: Path) -> None:
    values = recipe_values(tmp_path)
    values["targets"]["t"] |= {"score": "generate", "max_new_tokens": 4}
    recipe = write_recipe(tmp_path, values)
    result = m2m.run(recipe)
    (found,) = result.answers.values()
    assert len(found) == 5 and list(found[0].by_model) == ["base", "selected", "all datasets"]
    assert found[0].prompt.startswith("what about t and") and found[0].right.strip() in WORDS
    text = (tmp_path / "run" / "report.html").read_text()
    assert "What the models answer" in text and f"<td>{found[0].right}</td>" in text
    assert m2m.run(recipe).answers == result.answers
    # a right answer of the selected model is one that its score counts
    row = result.row("final")
    assert row is not None
    right = [each.by_model["selected"].strip() == each.right.strip() for each in found]
    assert [bool(value) for value in row.scores["t"].values[:5]] == right


def test_all_mixtures_are_checked_where_that_costs_no_more(tmp_path: Path) -> None:
    values = recipe_values(tmp_path)
    del values["verify"]
    recipe, heard = write_recipe(tmp_path, values), Heard()
    assert m2m.check(recipe).checks_all
    result = m2m.run(recipe, heard)
    assert result.verification is not None
    assert {each.mixture for each in result.verification.checks} == {
        Mixture.union(each) for each in ("ab", "ac", "bc", "abc")
    }
    values["verify"] = {"budget": 1}
    assert not m2m.check(write_recipe(tmp_path, values)).checks_all


def test_a_search_that_chooses_shows_how_it_came_to_its_best(
    finished: tuple[Path, m2m.Result],
) -> None:
    folder, result = finished
    recipe = m2m.load_recipe(folder / "recipe.yaml")
    assert "The best merge so far" not in page.render(result, recipe)  # all were tried anyway
    greedy = replace(result, selection=replace(result.selection, strategy="greedy"))
    text = page.render(greedy, recipe)
    chart = text[text.index("<figcaption>The best merge so far") :]
    line = re.findall(r'class="fit" points="([^"]+)"', chart)[0]
    heights = [float(each.split(",")[1]) for each in line.split()]
    assert heights == sorted(heights, reverse=True)
    assert len(heights) == 2 * len(result.selection.order) - 1


def test_the_calibration_is_a_line_with_a_band() -> None:
    def expected(proxy: float, measured: bool = False) -> m2m.Prediction:
        mean = 0.5 * proxy + 0.1
        mixture = Mixture.union([f"d{proxy}"])
        return m2m.Prediction(mixture, proxy, mean, mean - 0.2, mean + 0.3, 0.1, measured)

    found = [expected(each / 10) for each in range(6)]
    line, band = page.calibration([*found, expected(9.0, measured=True)])
    assert line == [pytest.approx((0.0, 0.1)), pytest.approx((0.5, 0.35))]
    assert band == [pytest.approx((0.0, -0.1, 0.4)), pytest.approx((0.5, 0.15, 0.65))]
    assert page.calibration(found[:2]) == page.calibration([found[0]] * 3) == ([], [])


def test_a_target_that_tells_nothing_apart_is_said_at_once(
    finished: tuple[Path, m2m.Result],
) -> None:
    _, result = finished
    blunt = replace(result, selection=replace(result.selection, blunt=("u",)))
    assert "This rests on t alone: u tells no mixtures apart." in decision.lines(blunt)
    both = replace(result, selection=replace(result.selection, blunt=("t", "u")))
    assert "t, u tell no mixtures apart." in decision.lines(both)


def test_what_it_took_and_whether_trainings_learned_is_said_at_once(
    finished: tuple[Path, m2m.Result],
) -> None:
    _, result = finished
    text = "\n".join(decision.lines(result))
    num = len(result.curves)
    assert f"{num} fine-tunes and 7 merges" in text and "harmful: " in text
    assert f"All {num} fine-tunes lowered the loss on some of their training rows." in text
    name, curve = next(iter(result.curves.items()))
    own = OwnRows(8, 3.0, 3.0, 0.0)
    bad = replace(result, curves={**result.curves, name: replace(curve, own=own)})
    assert f"Did not learn their training rows: {name} (see the warnings)." in decision.lines(bad)


def test_a_model_has_one_interval_wherever_it_stands(finished: tuple[Path, m2m.Result]) -> None:
    """Its draws are its own, whichever models it is compared with."""
    _, result = finished
    trained = (each for each in result.table if each.kind != "proxy")
    row = next(each for each in trained if each.mixture == result.decision.mixture)
    (beside_base,) = [each for each in result.decision.comparisons if each.name == "the base"]
    assert result.decision.gain == row.interval == beside_base.lead
