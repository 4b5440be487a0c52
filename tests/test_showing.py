"""Who sees how far a run is: a terminal, a notebook, a log, and nobody else."""

from __future__ import annotations

import inspect
import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from recipes import Heard, recipe_values, write_recipe
from tqdm import auto

import mergetomix as m2m
from mergetomix.progress import Silent
from mergetomix.showing import Bars, Lines, NotebookBars, heard, is_notebook, listening


class Screen(io.StringIO):
    """Standard error that is a terminal."""

    def isatty(self) -> bool:
        return True


class Bar:
    """Stands for tqdm's bar. As those of a notebook, all are equal to one another."""

    shown: list[Bar] = []  # noqa: RUF012  # emptied before every test
    lines: list[tuple[str, Any]] = []  # noqa: RUF012

    def __init__(self, total: int, desc: str, leave: bool) -> None:
        self.total, self.desc, self.leave = total, desc, leave
        self.done, self.state, self.is_closed = 0, "", False
        self.shown.append(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bar)

    def update(self, units: int) -> None:
        self.done += units

    def set_postfix_str(self, text: str) -> None:
        self.state = text

    def close(self) -> None:
        self.is_closed = True

    @classmethod
    def write(cls, text: str, file: Any = None) -> None:
        cls.lines.append((text, file))


@pytest.fixture
def turn_on(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Screen]:
    """Makes standard error a terminal, within a test: pytest puts its own there before it."""

    def made() -> Screen:
        screen = Screen()
        monkeypatch.setattr(sys, "stderr", screen)
        monkeypatch.setenv("TERM", "xterm")
        return screen

    return made


def shell(monkeypatch: pytest.MonkeyPatch, **what: Any) -> None:
    """Has IPython be imported, with a shell that has some attributes."""
    ipython = ModuleType("IPython")
    ipython.get_ipython = lambda: SimpleNamespace(**what)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> type[Bar]:
    """The kernel of a notebook, whose bars are kept."""
    shell(monkeypatch, kernel=object())
    monkeypatch.setattr(auto, "tqdm", Bar)
    Bar.shown.clear()
    Bar.lines.clear()
    return Bar


def recipe_of(folder: Path) -> Path:
    """A recipe that has a warning: a row of a dataset stands in a target."""
    values = recipe_values(folder)
    with (folder / "a.jsonl").open("a") as file:
        file.write((folder / "t.jsonl").read_text().splitlines()[0] + "\n")
    return write_recipe(folder, values)


WARNING = "targets.t: 1 of its 12 examples (8%) stand in datasets.a"

# --- which


def test_none_is_chosen_by_where_somebody_looks(
    turn_on: Callable[[], Screen], monkeypatch: pytest.MonkeyPatch
) -> None:
    turn_on()
    with heard(None) as found:
        assert isinstance(found, Bars)
    shell(monkeypatch)  # IPython in a terminal
    assert not is_notebook()
    with heard(None) as found:
        assert isinstance(found, Bars)
    shell(monkeypatch, kernel=object())
    assert is_notebook()
    with heard(None) as found:
        assert isinstance(found, NotebookBars)
    given = Heard()
    with heard(given) as found:
        assert found is given


@pytest.mark.parametrize("stream", [io.StringIO(), None])
def test_elsewhere_nothing_is_shown(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO | None
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    with heard(None) as found:
        assert isinstance(found, Silent)
    with listening() as found:  # the command line leaves lines in a log
        assert isinstance(found, Lines)


def test_a_closed_stream_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = Screen()
    closed.close()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO()))
    sys.stderr.close()
    with heard(None) as found:
        assert isinstance(found, Silent)


def test_the_command_line_has_bars_in_a_terminal_and_lines_in_a_notebook(
    turn_on: Callable[[], Screen], monkeypatch: pytest.MonkeyPatch
) -> None:
    turn_on()
    with listening() as found:
        assert isinstance(found, Bars)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    shell(monkeypatch, kernel=object())
    with listening() as found:
        assert isinstance(found, Lines)


# --- what a notebook shows


def test_a_notebook_has_bars_that_go(notebook: type[Bar]) -> None:
    bars = NotebookBars()
    with bars.task("search", "proxies", 7) as advance:
        with bars.task("search", "search: a part", 2) as of_part:
            of_part(2)
            bars.state("inner")
        advance(3)
        bars.state("outer")
        bars.note("a line")
        bars.warn("look")
    first, second = notebook.shown
    assert (first.desc, first.total, first.done, first.state) == ("search: proxies", 7, 3, "outer")
    assert (second.desc, second.done, second.state) == ("search: a part", 2, "inner")
    assert first.is_closed and second.is_closed and not first.leave
    assert notebook.lines == [("a line", None), ("warning: look", sys.stderr)]


def test_bars_that_end_in_any_order(notebook: type[Bar]) -> None:
    bars = NotebookBars()
    one, two = bars.task("a", "a", 1), bars.task("b", "b", 1)
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    bars.state("left")
    first, second = notebook.shown
    assert (first.is_closed, second.is_closed, second.state) == (True, False, "left")
    two.__exit__(None, None, None)
    bars.state("nobody hears this")
    assert second.state == "left"


def test_a_bar_goes_where_the_work_fails(notebook: type[Bar]) -> None:
    with pytest.raises(RuntimeError), NotebookBars().task("a", "a", 1):
        raise RuntimeError
    assert notebook.shown[0].is_closed


def test_what_tqdm_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real bars, as text: what they are called and how far they came."""
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    bars = NotebookBars()
    with bars.task("experts", "training", 4) as advance:
        advance(2)
        bars.state("loss 2.5")
        bars.warn("look at this")
    assert "experts: training" in out.getvalue() and "2/4" in out.getvalue()
    assert "loss 2.5" in out.getvalue() and "warning: look at this" in out.getvalue()


# --- the functions of the package


def test_in_a_terminal_a_function_shows_bars_and_warnings(
    tmp_path: Path, turn_on: Callable[[], Screen]
) -> None:
    screen = turn_on()
    m2m.check(recipe_of(tmp_path))
    shown = screen.getvalue()
    assert "reading datasets and targets" in shown and WARNING in " ".join(shown.split())


def test_in_a_notebook_a_function_shows_bars_and_warnings(
    tmp_path: Path, notebook: type[Bar]
) -> None:
    m2m.check(recipe_of(tmp_path))
    assert "inputs: reading datasets and targets" in [each.desc for each in notebook.shown]
    assert any(text.startswith(f"warning: {WARNING}") for text, _ in notebook.lines)
    assert all(each.is_closed for each in notebook.shown)


def test_silent_shows_nothing_anywhere(
    tmp_path: Path,
    notebook: type[Bar],
    turn_on: Callable[[], Screen],
    capsys: pytest.CaptureFixture[str],
) -> None:
    screen = turn_on()
    m2m.check(recipe_of(tmp_path), m2m.Silent())
    assert notebook.shown == [] and notebook.lines == [] and screen.getvalue() == ""
    assert capsys.readouterr().out == ""


def test_in_a_script_nothing_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    m2m.check(recipe_of(tmp_path))
    assert capsys.readouterr() == ("", "")


class Hears(Exception):
    """Carries what a function of the package hands to the code that works."""


FUNCTIONS: dict[str, Callable[[Path], Any]] = {
    "run": m2m.run,
    "train_experts": m2m.train_experts,
    "search_mixtures": m2m.search_mixtures,
    "verify_mixtures": m2m.verify_mixtures,
    "finalize": lambda path: m2m.finalize(path, None),  # type: ignore[arg-type]
    "write_proxy": lambda path: m2m.write_proxy(path, ["a"], path.parent / "out"),
    "explain": m2m.explain,
    "predict": lambda path: m2m.predict(path, ["a"]),
    "write_report": m2m.write_report,
    "check": m2m.check,
    "collect_unreached": lambda path: m2m.collect_unreached([path]),
}


def test_every_function_with_a_listener_is_among_these() -> None:
    public = {name: getattr(m2m, name) for name in m2m.__all__}
    functions = {name: each for name, each in public.items() if inspect.isfunction(each)}
    taking = {
        n for n, each in functions.items() if "listener" in inspect.signature(each).parameters
    }
    assert taking == set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_chooses_alike(
    tmp_path: Path, notebook: type[Bar], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def reads(_: Any, listener: Any) -> None:
        raise Hears(listener)

    monkeypatch.setattr("mergetomix.session.session.read_inputs", reads)
    monkeypatch.setattr("mergetomix.stages.reach.read_inputs", reads)
    path = write_recipe(tmp_path, recipe_values(tmp_path))
    m2m.store.store.Store(tmp_path / "store").close()
    with pytest.raises(Hears) as seen:
        FUNCTIONS[name](path)
    assert isinstance(seen.value.args[0], NotebookBars)
