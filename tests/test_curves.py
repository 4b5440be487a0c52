"""How trainings went: their curves, what is said of one that did not learn, and trackers."""

from __future__ import annotations

import builtins
import json
import math
import random
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import stdev
from typing import Any, ClassVar

import pytest
import tiny
from recipes import Heard, recipe_values, write_recipe

import mergetomix as m2m
from mergetomix import curves, training
from mergetomix.curves import Curve, OwnRows, StepLog, complaint
from mergetomix.models.causal_lm.model import CausalLM
from mergetomix.models.causal_lm.sequences import Encoded
from mergetomix.sections.train import Lora, Train
from mergetomix.session.session import open_session
from mergetomix.store.store import Store
from mergetomix.trackers import kinds
from mergetomix.trackers.trackers import About, Tracked, Trackers


def steps_of(losses: Sequence[float]) -> list[StepLog]:
    return [StepLog(i + 1, loss, 0.1, 1.0, 10 * (i + 1), i + 1.0) for i, loss in enumerate(losses)]


# --- the curve


@pytest.mark.parametrize("num", [1, 2, 199, 200, 201, 1000])
def test_a_curve_has_few_points_and_all_of_the_losses(num: int) -> None:
    losses = [random.Random(i).random() for i in range(num)]
    found = Curve.of(steps_of(losses))
    assert len(found.step) == min(num, curves.MOST_POINTS) and found.step[-1] == num
    lengths = [b - a for a, b in zip((0, *found.step), found.step, strict=False)]
    mean = sum(n * loss for n, loss in zip(lengths, found.loss, strict=True)) / num
    assert mean == pytest.approx(sum(losses) / num)
    assert set(found.tokens_per_s) == {10.0}
    own = OwnRows(8, 3.0, 2.0, 0.5)
    again = Curve.read(replace(found, own=own).written())
    assert again.own == own and list(again.to_frame()) == list(found.written())[:-1]
    assert again.step == found.step and again.loss == pytest.approx(found.loss, rel=1e-5)


def test_a_training_without_steps_has_an_empty_curve() -> None:
    assert Curve.of([]) == Curve() == Curve.read(None) == Curve.read(Curve().written())


@pytest.mark.parametrize(
    ("after", "error", "wanted"),
    [
        (2.9, 0.5, None),
        (2.99, 0.001, None),
        (2.995, 0.001, "did not learn"),
        (3.0, 0.0, "did not learn"),
        (3.005, 0.0, "did not learn"),
        (3.1, 0.06, "did not learn"),
        (3.1, None, "did not learn"),
        (3.4, 0.5, "went astray"),
        (3.4, None, "went astray"),
        (3.1, 0.04, "went astray"),
        (9.0, 1.0, "went astray"),
        (math.nan, math.nan, "went astray"),
    ],
)
def test_what_is_said_follows_the_loss_on_own_rows(
    after: float, error: float | None, wanted: str | None
) -> None:
    found = complaint(OwnRows(8, 3.0, after, error))
    assert found is None if wanted is None else wanted in (found or "")
    assert complaint(None) is None


def test_the_error_is_that_of_the_rows_differences() -> None:
    rng = random.Random(0)
    num = [rng.randrange(5, 50) for _ in range(2000)]
    before = [n * rng.gauss(3, 1) for n in num]
    after = [b - n * rng.gauss(0.1, 0.5) for b, n in zip(before, num, strict=True)]
    own = OwnRows.of(before, after, num)
    means = []
    for _ in range(400):
        drawn = [rng.randrange(len(num)) for _ in num]
        total = sum(num[i] for i in drawn)
        means.append(sum(after[i] - before[i] for i in drawn) / total)
    assert own.error is not None
    assert own.after - own.before == pytest.approx(-0.1, abs=4 * own.error)
    assert own.error == pytest.approx(stdev(means), rel=0.15)
    assert OwnRows.of([3.0], [2.0], [1]).error is None


@pytest.mark.parametrize("own", [OwnRows(1, 3.0, 2.0, None), OwnRows(8, 3.0, math.nan, math.nan)])
def test_what_is_kept_is_json_that_every_reader_takes(own: OwnRows) -> None:
    curve = replace(Curve.of(steps_of([3.0, 2.0])), own=own)
    text = json.dumps(curve.written(), allow_nan=False)
    again = Curve.read(json.loads(text)).own
    assert again is not None and again.num == own.num
    assert (complaint(again) or "")[:15] == (complaint(own) or "")[:15]


# --- in a run


def values_of(folder: Path, **more: Any) -> dict[str, Any]:
    values = recipe_values(folder)
    values["train"] = {**values["train"], "max_steps": 24}
    return {**values, **more}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, m2m.Result]:
    folder = tmp_path_factory.mktemp("plain")
    return folder, m2m.run(write_recipe(folder, values_of(folder)))


def test_curves_are_kept_and_shown(plain: tuple[Path, m2m.Result]) -> None:
    folder, result = plain
    names = {str(each.mixture) for each in result.experts} | {str(result.selected)}
    assert names <= result.curves.keys()
    for curve in result.curves.values():
        assert curve.step == tuple(range(1, 25)) and all(map(math.isfinite, curve.loss))
        assert max(curve.tokens_per_s) > 0 and max(curve.grad_norm) > 0
        assert curve.own is not None and curve.own.num == 8 and curve.own.after < curve.own.before
    assert "Losses of the fine-tunes" in (folder / "run" / "report.html").read_text()
    with Store.peek(folder / "store") as store:
        key = result.experts[0].key
        kept = Curve.read(store.environment(key)["curve"])
        assert kept == result.curves[str(result.experts[0].mixture)]
        assert store.environment("unknown") == {}


def test_a_run_says_which_fine_tunes_did_not_learn(tmp_path: Path) -> None:
    values = values_of(tmp_path)
    values["train"] |= {"learning_rate": 1e-12}
    recipe = write_recipe(tmp_path, values)
    heard, again = Heard(), Heard()
    m2m.train_experts(recipe, heard)
    told = [each for each in heard.warnings if "it did not learn" in each]
    assert len(told) == 3 and all("train.learning_rate" in each for each in told)
    m2m.train_experts(recipe, again)
    assert [each for each in again.warnings if "it did not learn" in each] == told


def test_the_report_of_an_unfinished_run_has_all_curves_and_warnings(tmp_path: Path) -> None:
    values = values_of(tmp_path)
    values["train"] |= {"learning_rate": 1e-12}
    recipe = write_recipe(tmp_path, values)
    m2m.verify_mixtures(recipe)
    m2m.write_report(recipe)
    text = (tmp_path / "run" / "report.html").read_text()
    with open_session(m2m.load_recipe(recipe), is_run=False) as session:
        kept = [
            str(mixture)
            for mixture in session.spaces.subsets
            if session.finetunes.known(mixture) is not None
        ]
    assert len(kept) > 3
    for name in kept:
        assert f"<title>{name}</title></polyline>" in text
        assert f"fine-tune on {name}: it did not learn" in text


def test_curves_outlive_the_ledger(plain: tuple[Path, m2m.Result], tmp_path: Path) -> None:
    import shutil

    from mergetomix.store.repair import rebuild

    shutil.copytree(plain[0] / "store", tmp_path / "store")
    for path in (tmp_path / "store").glob("ledger.sqlite*"):
        path.unlink()
    rebuild(tmp_path / "store")
    expert = plain[1].experts[0]
    with Store.peek(tmp_path / "store") as store:
        kept = Curve.read(store.environment(expert.key)["curve"])
    assert kept == plain[1].curves[str(expert.mixture)]


# --- trackers


class Recorder:
    """A tracker that remembers what it is told, and fails where it is asked to."""

    made: ClassVar[list[Recorder]] = []
    fails_at = ""
    where = "here"

    def __init__(self, place: kinds.RunPlace, values: Mapping[str, Any]) -> None:
        self.place, self.values = place, values
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.told: list[Any] = []
        self._maybe("begin")
        Recorder.made.append(self)

    def _maybe(self, what: str) -> None:
        if Recorder.fails_at == what:
            raise ConnectionError(f"no answer at {what}\nand more")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._maybe("log")
        self.logged.append((step, dict(values)))

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self._maybe("table")
        self.told.append((name, list(rows)))

    def files(self, paths: Sequence[Path]) -> None:
        self._maybe("files")
        self.told.append([path.name for path in paths if path.is_file()])

    def end(self, failed: bool) -> None:
        self._maybe("end")
        self.told.append(failed)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    monkeypatch.setattr(Recorder, "made", [])
    monkeypatch.setattr(Recorder, "fails_at", "")
    monkeypatch.setattr("mergetomix.trackers.trackers.KINDS", {"wandb": Recorder})
    return Recorder


def test_trackers_hear_of_every_fine_tune_and_of_the_search(
    recorder: type[Recorder], plain: tuple[Path, m2m.Result], tmp_path: Path
) -> None:
    """Nothing that is made depends on them: addresses, scores and bits are those without."""
    values = values_of(tmp_path, report_to="wandb")
    result = m2m.run(write_recipe(tmp_path, values))
    tool, *others = recorder.made
    assert tool.place.name == "mixtures" and {each.place.group for each in recorder.made} == {"run"}
    assert {each.place.name for each in others} == result.curves.keys()
    for each in others:
        *steps, (_, rows) = each.logged
        assert [step for step, _ in steps] == list(range(1, 25))
        losses = [found["train/loss"] for _, found in steps]
        assert rows["rows/after"] < rows["rows/before"]
        assert losses == pytest.approx(result.curves[each.place.name].loss, rel=1e-5)
        assert each.values["method"] and each.values["lora.rank"]
        assert each.told == [False]
    searched = [found for _, found in tool.logged if "search/objective" in found]
    assert len(searched) == len(result.selection.trials)
    assert searched[-1]["search/best"] == max(each["search/objective"] for each in searched)
    assert result.verification is not None
    checked = [(step, found) for step, found in tool.logged if "checks/real" in found]
    assert [step for step, _ in checked] == list(range(1, len(result.verification.checks) + 1))
    (name, rows), files, ended = tool.told
    assert name == "final" and len(rows) == len(result.table)
    assert files == ["report.md", "report.html", "result.json"] and ended is False
    assert [each.key for each in result.experts] == [each.key for each in plain[1].experts]
    assert result.selection.trials == plain[1].selection.trials


@pytest.mark.parametrize("moment", ["begin", "log", "table", "files", "end"])
def test_a_tracker_that_fails_is_left_out(
    recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, moment: str
) -> None:
    monkeypatch.setattr(recorder, "fails_at", moment)
    heard: list[str] = []
    trackers = Trackers(["wandb"], str(tmp_path / "first"), heard.append)
    for _ in range(2):
        with trackers.run(About("a")) as tracked:
            tracked.log({"train/loss": 1.0, "train/rate": math.nan}, 3)
            tracked.log({"search/best": math.inf})
            tracked.table("final", [{"a": 1}])
            tracked.files([tmp_path])
    (told,) = heard
    assert "wandb is left out, and the run goes on" in told and f"no answer at {moment}" in told
    assert "and more" not in told


def test_an_error_ends_its_run_as_failed(recorder: type[Recorder], tmp_path: Path) -> None:
    trackers = Trackers(["wandb"], str(tmp_path), lambda _: None)
    with pytest.raises(KeyboardInterrupt), trackers.run(About("a")):
        raise KeyboardInterrupt
    assert recorder.made[0].told == [True]
    with trackers.run(About("b", is_silent=True)) as tracked:
        tracked.log({"a/b": 1.0})
    assert len(recorder.made) == 1 and Tracked().where() == []


def test_one_that_is_not_installed_is_named_and_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "wandb":
            raise ModuleNotFoundError("No module named 'wandb'", name="wandb")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    heard = Heard()
    values = values_of(tmp_path, report_to=["wandb"])
    m2m.train_experts(write_recipe(tmp_path, values), heard)
    (told,) = [each for each in heard.warnings if "report_to" in each]
    assert "it is not installed (pip install wandb)" in told


def test_what_only_looks_is_not_told_of(recorder: type[Recorder], tmp_path: Path) -> None:
    recipe = m2m.load_recipe(write_recipe(tmp_path, values_of(tmp_path, report_to=["wandb"])))
    with open_session(recipe, is_run=False):
        pass
    assert recorder.made == []


@pytest.mark.parametrize("given", ["tensorbord", ["wandb", 3]])
def test_unknown_trackers_are_refused(tmp_path: Path, given: Any) -> None:
    with pytest.raises(m2m.RecipeError, match="report_to"):
        m2m.load_recipe(write_recipe(tmp_path, values_of(tmp_path, report_to=given)))


@pytest.mark.parametrize(
    ("given", "wanted"), [("none", []), (None, []), ("mlflow", ["mlflow"]), ([], [])]
)
def test_one_name_is_a_list_of_one(tmp_path: Path, given: Any, wanted: list[str]) -> None:
    recipe = m2m.load_recipe(write_recipe(tmp_path, values_of(tmp_path, report_to=given)))
    assert recipe.report_to == wanted


# --- real ones, on local files


def told_to(name: str, folder: Path) -> list[str]:
    """Tells a tracker of a run inside another, as fine-tunes lie inside the tool's run."""
    heard: list[str] = []
    report = folder / "report.md"
    report.write_text("# what to train on\n")
    trackers = Trackers([name], str(folder / "first"), heard.append)
    with trackers.run(About("mixtures", {"base": "b" * 2000, "search.space": "subsets"})) as outer:
        with trackers.run(About("a+b, seed 1", {"method": "lora"})) as inner:
            for step in range(1, 31):
                inner.log({"train/loss": 3.0 / step, "train/grad_norm": 1.0}, step)
                if step % 10 == 0:
                    outer.log({"search/objective": step / 10, "search/best": step / 10})
        outer.log({"checks/merge": 0.5, "checks/real": 0.25})
        outer.table("final", [{"model": "base", "gain": 0.0}, {"model": "a+b", "gain": 0.5}])
        outer.files([report])
    return heard


def test_tensorboard_keeps_them(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert told_to("tensorboard", tmp_path) == []
    folders = sorted((tmp_path / "first" / "tensorboard" / "first").iterdir())
    inner, outer = (EventAccumulator(str(folder)).Reload() for folder in folders)
    assert folders[0].name.startswith("a+b-seed-1-")
    assert [each.step for each in inner.Scalars("train/loss")] == list(range(1, 31))
    assert [each.value for each in outer.Scalars("search/best")] == [1.0, 2.0, 3.0]
    assert inner.Tags()["scalars"] == ["train/loss", "train/grad_norm"]
    assert {"final/text_summary", "report.md/text_summary"} <= set(outer.Tags()["tensors"])


def test_mlflow_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "ours")
    monkeypatch.chdir(tmp_path)
    assert told_to("mlflow", tmp_path) == []
    client = MlflowClient()
    experiment = client.get_experiment_by_name("ours")
    assert experiment is not None
    runs = {each.info.run_name: each for each in client.search_runs([experiment.experiment_id])}
    inner, outer = runs["a+b, seed 1"], runs["mixtures"]
    assert inner.data.tags["group"] == "first" == outer.data.tags["group"]
    history = client.get_metric_history(inner.info.run_id, "train/loss")
    assert sorted(each.step for each in history) == list(range(1, 31))
    assert outer.data.metrics["search/best"] == 3.0 and outer.data.params["search.space"]
    assert {each.path for each in client.list_artifacts(outer.info.run_id)} == {
        "final.json",
        "report.md",
    }
    assert {inner.info.status, outer.info.status} == {"FINISHED"}


def test_wandb_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("wandb", reason="Weights & Biases is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    assert told_to("wandb", tmp_path) == []
    assert len(list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))) == 2
    assert capsys.readouterr().out == ""


def test_a_server_that_does_not_answer_does_not_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (told,) = told_to("mlflow", tmp_path)
    assert "mlflow is left out" in told


@pytest.mark.parametrize("num_answered", [0, 4])
def test_a_server_that_falls_silent_is_waited_for_some_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_answered: int
) -> None:
    """One request at most is waited for, with the patience that every call of MLflow's has."""
    pytest.importorskip("mlflow")
    monkeypatch.setattr(kinds, "PATIENCE_S", 1)
    asked: list[str] = []
    with silent_server(asked, num_answered) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address.replace("//", "//alice:secret@"))
        (told,) = told_to("mlflow", tmp_path)
    assert "mlflow is left out" in told and "secret" not in told
    assert len(asked) <= num_answered + 2 * 2  # two runs, and each asks twice


@contextmanager
def silent_server(asked: list[str], num_answered: int) -> Iterator[str]:
    """Answers so many requests as MLflow does, and then no more."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if len(asked) > num_answered:
                over.wait(60)
                return
            answer = {"experiment": {"experiment_id": "1", "name": "mergetomix"}}
            info = {"run_id": "r", "experiment_id": "1", "status": "RUNNING", "start_time": 1}
            whole = json.dumps({**answer, "run": {"info": info, "data": {}}}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        over.set()
        server.shutdown()


def test_trackio_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("trackio")
    from trackio import sqlite_storage, utils

    monkeypatch.setattr(utils, "TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", tmp_path / "trackio")
    assert told_to("trackio", tmp_path) == []
    storage = sqlite_storage.SQLiteStorage
    assert set(storage.get_runs("mergetomix")) == {"mixtures", "a+b, seed 1"}
    logs = storage.get_logs("mergetomix", "a+b, seed 1")
    assert [each["step"] for each in logs] == list(range(1, 31))
    assert "Trackio" not in capsys.readouterr().out


# --- in training


def encode(family: CausalLM, count: int) -> Sequence[Encoded]:
    draw, words = random.Random(0), " ".join(tiny.TEXTS).split()
    rows = [(" ".join(draw.choices(words, k=draw.randint(1, 9))), " is") for _ in range(count)]
    return family.encode(tiny.pairs(*rows), "datasets.x").sequences


def test_looking_at_own_rows_changes_no_bit(tmp_path: Path, family: CausalLM) -> None:
    rows = encode(family, 30)
    settings = Train(method="lora", max_steps=6, batch_size=4, lora=Lora(dropout=0.3))
    seen: list[OwnRows] = []
    training.finetune(family, rows, settings, tmp_path / "looked", on_rows=seen.append)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_sample", lambda *_: [])
        training.finetune(family, rows, settings, tmp_path / "not", on_rows=seen.append)
    (own,) = seen
    assert own.num == 8
    one, other = (
        (tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("looked", "not")
    )
    assert one == other


def test_own_rows_are_those_of_the_base_and_of_the_fine_tune(
    tmp_path: Path, family: CausalLM
) -> None:
    rows = encode(family, 30)
    settings = Train(method="full", max_steps=6, batch_size=3, learning_rate=1e-3)
    seen: list[OwnRows] = []
    training.finetune(family, rows, settings, tmp_path, on_rows=seen.append)
    schedule = training.plan(len(rows), sum(row.num_tokens for row in rows), settings)
    sample = training._sample(family, rows, settings, schedule)
    models = family.load(), family.load_finetune(str(tmp_path))
    batches = family.batches(sample, 10**9)
    wanted = [family.negative_log_likelihoods(model, batches) for model in models]
    found = OwnRows.of(*wanted, [row.num_scored for row in sample])
    assert seen[0].before == pytest.approx(found.before, rel=1e-5)
    assert seen[0].after == pytest.approx(found.after, rel=1e-5)
    assert seen[0].error == pytest.approx(found.error, rel=1e-3)
