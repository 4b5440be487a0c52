"""The contract of executors: whoever does the work, the store and the result are the same.

An executor joins by a line in EXECUTORS.
"""

from __future__ import annotations

import json
import pickle
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clusters import cluster
from elsewhere import Elsewhere
from recipes import Heard, recipe_values, write_recipe

import mergetomix as m2m
from mergetomix.errors import DataError, Fault, RecipeError, TrainingError
from mergetomix.executors.in_process import InProcess
from mergetomix.executors.work import (
    CarryOut,
    Done,
    Executor,
    Failure,
    FinetuneWork,
    GradientWork,
    ModelReference,
    Piece,
    ScoringWork,
    Work,
    attempt,
)
from mergetomix.records import Mixture
from mergetomix.session import gradients
from mergetomix.session.session import kind_of, open_session, open_worker
from mergetomix.stages import pipeline
from mergetomix.stages.search import search_mixtures
from mergetomix.store.store import Store

Makers = Callable[[str, Path], Callable[[CarryOut], Executor] | None]
FAKE = "three workers elsewhere"
EXECUTORS: dict[str, dict[str, Any]] = {
    "in process": {"kind": "local"},
    FAKE: {},
    "local, two workers": {"kind": "local", "workers": 2},
    "ray, two nodes": {"kind": "ray"},
}
"""Each with what a recipe says; the fake one is not for recipes."""


@pytest.fixture(scope="module")
def makers() -> Iterator[Makers]:
    """Makes the executor of a name, None for what the recipe says; all end with these tests."""
    made: list[Elsewhere] = []
    clusters: list[Any] = []
    with ExitStack() as stack:

        def maker(name: str, recipe: Path) -> Callable[[CarryOut], Executor] | None:
            if name == FAKE:
                made.append(Elsewhere(recipe, 3))
                return lambda _: made[-1]
            if EXECUTORS[name]["kind"] == "ray" and not clusters:
                clusters.append(stack.enter_context(cluster(num_nodes=2)))
            return None

        yield maker
    for each in made:
        each.end()


def values_of(folder: Path, name: str) -> dict[str, Any]:
    values = recipe_values(folder, ("a", "b", "c"), ("t", "u"))
    values["train"] |= {"max_steps": 2}
    values["targets"]["u"] |= {"score": "generate", "max_new_tokens": 2}
    values |= {"search": {"strategy": "exhaustive"}, "merge": {"method": "linear"}}
    told = {"executor": EXECUTORS[name], "batch_tokens": 64, "report_to": "tensorboard"}
    return values | told


def outcome(folder: Path, name: str, makers: Makers) -> tuple[Any, Any]:
    """The trials of a search and a gradient, and all scores that the store holds after it."""
    path = write_recipe(folder, values_of(folder, name))
    with open_session(m2m.load_recipe(path), Heard(), makers(name, path)) as session:
        experts = pipeline.train_experts(session)
        selection = search_mixtures(session)
        gradient = session.gradients.of(selection.mixture, selection.base)
        real = session.finetunes.fit(Mixture.union(["a", "b"]), "test")
        scores = session.evaluations.real(real, "report")
        keys = [each.key for each in (*experts, real)]
        losses = {name: curve.loss for name, curve in session.finetunes.curves.items()}
    # whoever trains tells trackers of it
    runs = (folder / "run" / "tensorboard" / "run").iterdir()
    assert {each.name.rsplit("-", 2)[0] for each in runs} == {"a", "b", "c", "a-+-b", "mixtures"}
    sql = "SELECT model, target, part, example_values FROM scores ORDER BY model, target, part"
    with sqlite3.connect(folder / "store" / "ledger.sqlite") as ledger:
        kept = ledger.execute(sql).fetchall()
    return (keys, selection, gradient, scores, losses), kept


@pytest.fixture(scope="module")
def wanted(
    tmp_path_factory: pytest.TempPathFactory, makers: Makers, _many_chunks: None
) -> tuple[Any, Any]:
    return outcome(tmp_path_factory.mktemp("wanted"), "in process", makers)


@pytest.fixture(autouse=True, scope="module")
def _many_chunks() -> Iterator[None]:
    """Has gradients taken in several chunks, though targets are small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "TOKENS_A_PRODUCT", 10)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("name", EXECUTORS)
def test_results_do_not_depend_on_who_does_the_work(
    name: str, tmp_path: Path, wanted: tuple[Any, Any], makers: Makers
) -> None:
    found, kept = outcome(tmp_path, name, makers)
    assert found == wanted[0]
    assert kept == wanted[1]


def pieces(num: int) -> list[Work]:
    model = ModelReference("proxy", "k", Mixture.union(["a"]), 1.0)
    return [GradientWork(replace(model, key=f"key {i}"), (Piece("t", "a"),)) for i in range(num)]


@pytest.mark.parametrize("name", EXECUTORS)
def test_every_piece_comes_to_one_end_and_an_error_is_a_value(
    name: str, tmp_path: Path, makers: Makers
) -> None:
    """No expert is in the store here: every piece of work fails, and none stops another."""
    path = write_recipe(tmp_path, values_of(tmp_path, name))
    with open_session(m2m.load_recipe(path), Heard(), makers(name, path)) as session:
        work = pieces(4)
        done = list(session.opened.executor.run(work))
    assert sorted(each.work.key for each in done) == sorted(each.key for each in work)
    for each in done:
        assert each.outcome is None and isinstance(each.failure, Failure)
        assert isinstance(each.failure.error, Fault)
        assert "is gone from the store" in each.failure.traceback
        assert "process" in each.failure.worker
        with pytest.raises(Fault, match="is gone from the store"):
            each.result()


@pytest.mark.parametrize("num_asked", [0, 1, 3])
def test_work_is_taken_only_when_it_is_asked_for(num_asked: int) -> None:
    taken: list[str] = []

    def work() -> Iterator[Work]:
        for each in pieces(5):
            taken.append(each.key)
            yield each

    done = InProcess(lambda each: None).run(work())
    for _ in range(num_asked):
        next(done)
    assert len(taken) == num_asked


def test_an_interrupt_is_no_result() -> None:
    def interrupted(work: Work) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(InProcess(interrupted).run(pieces(2)))


ERRORS = [
    Fault("it broke", hint="mend it"),
    TrainingError("the loss is nan", hint="lower the rate"),
    RecipeError("train.seed", "must be a number", hint="give one"),
    DataError("targets.t", "is empty"),
    ValueError("odd"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_come_back_whole_from_another_process(error: Exception) -> None:
    def failing(work: Work) -> None:
        raise error

    done = pickle.loads(pickle.dumps(attempt(failing, pieces(1)[0])))
    assert isinstance(done, Done) and done.failure is not None
    with pytest.raises(type(error)) as raised:
        done.result()
    assert str(raised.value) == str(error)
    assert getattr(raised.value, "hint", None) == getattr(error, "hint", None)
    assert getattr(raised.value, "where", None) == getattr(error, "where", None)
    notes = "".join(getattr(raised.value, "__notes__", []))
    assert ("Traceback" in notes) == (type(error) is ValueError)


def test_work_is_plain_values() -> None:
    model = ModelReference("real", "k", Mixture.union(["a", "b"]), path="/somewhere")
    every: list[Work] = [
        FinetuneWork("k", Mixture.union(["a"]), None, "experts", "/folder"),
        ScoringWork(model, "select", (Piece("t", "address"),)),
        *pieces(1),
    ]
    for work in every:
        assert pickle.loads(pickle.dumps(work)) == work
        assert isinstance(work.key, str) and hash(work) == hash(pickle.loads(pickle.dumps(work)))
        assert json.loads(json.dumps(work.key)) == work.key


@pytest.mark.slow
@pytest.mark.parametrize("name", EXECUTORS)
def test_a_fine_tune_that_fails_elsewhere_stops_no_other(
    name: str, tmp_path: Path, makers: Makers
) -> None:
    values = values_of(tmp_path, name)
    rows = [{"question": f"q {i}", "answer": f" {i}"} for i in range(12)]
    values["datasets"]["b"] = {"rows": rows, "prompt": "question", "completion": "answer"}
    values["train"] |= {"learning_rate": 1e30}
    path = write_recipe(tmp_path, values)
    with open_session(m2m.load_recipe(path), Heard(), makers(name, path)) as session:
        found = dict(
            session.finetunes.fit_all([Mixture.union([name]) for name in "abc"], "experts")
        )
        assert {str(mixture) for mixture in found} == {"a", "b", "c"}
        assert all(isinstance(each, TrainingError) for each in found.values())
        left = [each.name for each in (tmp_path / "store" / "tmp").iterdir()]
        assert [name for name in left if not name.startswith("scratch.")] == []
        with pytest.raises(TrainingError, match=r"expert a: .*; expert b: .*; expert c: "):
            pipeline.experts_of(session, ("a", "b", "c"))


@pytest.mark.slow
def test_datasets_of_the_same_content_share_an_expert(tmp_path: Path) -> None:
    """Their fine-tunes and merges have one address: each is made once, and all get it."""
    values = values_of(tmp_path, "local, two workers")
    values["datasets"]["b"] = dict(values["datasets"]["a"])
    with open_session(m2m.load_recipe(write_recipe(tmp_path, values)), Heard()) as session:
        experts = pipeline.train_experts(session)
        assert experts[0].key == experts[1].key != experts[2].key
        assert [each.dataset for each in experts] == ["a", "b", "c"]
        selection = search_mixtures(session)
        assert len(selection.trials) == 7
        assert session.store.counts()["experts"] == 2
        assert session.store.look_through() == []


@pytest.mark.slow
def test_two_leaders_with_workers_share_a_store(tmp_path: Path) -> None:
    """Each takes experts that the other does not work on, keeps its own, and waits last."""
    values = values_of(tmp_path, "local, two workers")
    values["train"]["max_steps"] = 20
    recipes = [
        write_recipe(tmp_path, {**values, "run_dir": name}, f"{name}.yaml") for name in ("x", "y")
    ]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "mergetomix", "experts", str(path)], stderr=subprocess.PIPE
        )
        for path in recipes
    ]
    for each in running:
        _, errors = each.communicate(timeout=180)
        assert each.returncode == 0, errors.decode()
    with Store.peek(tmp_path / "store") as store:
        assert store.counts()["experts"] == 3


@pytest.mark.slow
def test_a_fault_of_one_training_loses_no_other(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, values_of(tmp_path, "in process"))

    class Faulty(InProcess):
        """Breaks over the first training, in a way that is none of the training's own."""

        def __init__(self, carry_out: CarryOut) -> None:
            def broken(work: Work) -> Any:
                if isinstance(work, FinetuneWork) and str(work.mixture) == "a":
                    raise Fault("the machine broke")
                return carry_out(work)

            super().__init__(broken)

        def run(self, work: Iterable[Work]) -> Iterator[Done]:
            return iter(list(super().run(work)))  # all of it was under way

    with open_session(m2m.load_recipe(path), Heard(), Faulty) as session:
        singles = [Mixture.union([name]) for name in "abc"]
        with pytest.raises(Fault, match="the machine broke"):
            list(session.finetunes.fit_all(singles, "experts"))
        assert [session.finetunes.known(each) is not None for each in singles] == [
            False,
            True,
            True,
        ]


@pytest.mark.slow
def test_a_worker_of_another_kind_is_refused(tmp_path: Path) -> None:
    """It would compute what the addresses do not say."""
    recipe = m2m.load_recipe(write_recipe(tmp_path, values_of(tmp_path, "in process")))
    with open_session(recipe, Heard()) as session:
        wanted = kind_of(session.inputs)
    with open_worker(recipe, None, 1, Heard(), wanted):
        pass
    with (
        pytest.raises(RecipeError, match=r"executor: device is cpu in process .* and cuda in"),
        open_worker(recipe, None, 1, Heard(), wanted | {"device": "cuda"}),
    ):
        pass
    rows = (tmp_path / "a.jsonl").read_text().splitlines()
    (tmp_path / "a.jsonl").write_text("\n".join(rows[1:]) + "\n")
    with (
        pytest.raises(RecipeError, match="executor: data is"),
        open_worker(recipe, None, 1, Heard(), wanted),
    ):
        pass
