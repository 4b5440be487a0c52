"""The command line: the only place that prints. Results go to standard output, progress and warnings to standard error."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mergetomix import __version__
from mergetomix.errors import MergeToMixError, UserError
from mergetomix.progress import duration

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from mergetomix.recipe.recipe import Recipe

app = typer.Typer(
    name="mergetomix",
    help="Tells which datasets to fine-tune on: merges of experts stand for the models that nobody trained.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich help costs a fifth of a second
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipePath = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a key, such as train.seed=1. Repeatable."
    ),
]
AGAIN = "what was computed is in the store: the same command goes on from there"
PLAIN_EVERY_S = 10.0


class Lines:
    """Progress as plain lines, for logs: one at the start of a piece of work, one every ten seconds, one at its end."""

    def __init__(self) -> None:
        self._state = ""

    @contextmanager
    def task(self, stage: str, text: str, total: int) -> Iterator[Callable[[int], None]]:
        """A line now and then."""
        started = last = time.monotonic()
        done = 0
        self._state = ""

        def advance(units: int) -> None:
            nonlocal done, last
            done += units
            now = time.monotonic()
            if now - last >= PLAIN_EVERY_S and done < total:
                last = now
                left = (now - started) / done * (total - done)
                self._print(
                    f"{stage}: {text}: {done} of {total}, about {duration(left)} left{self._state}"
                )

        self._print(f"{stage}: {text} ({total})")
        yield advance
        self._print(f"{stage}: {text}: done in {duration(time.monotonic() - started)}{self._state}")
        self._state = ""

    def state(self, text: str) -> None:
        """Shown with the next line."""
        self._state = f"; {text}"

    def note(self, text: str) -> None:
        """A line."""
        self._print(text)

    def warn(self, text: str) -> None:
        """A line that says so."""
        self._print(f"warning: {text}")

    def _print(self, text: str) -> None:
        with suppress(OSError):  # a run outlives the reader of its log
            print(text, file=sys.stderr, flush=True)


class Bars:
    """Progress as bars with the time left, for a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bar: TaskID | None = None

    @contextmanager
    def task(self, stage: str, text: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar that goes when the work is done."""
        bar = self._progress.add_task(
            f"{stage}: {text}" if stage not in text else text, total=total, state=""
        )
        outer, self._bar = self._bar, bar
        try:
            yield lambda units: self._progress.advance(bar, units)
        finally:
            self._bar = outer
            self._progress.remove_task(bar)

    def state(self, text: str) -> None:
        """Behind the innermost bar."""
        if self._bar is not None:
            self._progress.update(self._bar, state=text)

    def note(self, text: str) -> None:
        """A line above the bars."""
        self._progress.console.print(text, highlight=False, markup=False)

    def warn(self, text: str) -> None:
        """A yellow line above the bars."""
        self._progress.console.print(
            f"warning: {text}", style="yellow", highlight=False, markup=False
        )


@contextmanager
def listening() -> Iterator[Any]:
    """Bars where standard error is a terminal, plain lines elsewhere."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    state = TextColumn("{task.fields[state]}", markup=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        state,
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield Bars(progress)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        print(f"mergetomix {__version__}")
        raise typer.Exit


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where to write the recipe.")] = Path("recipe.yaml"),
    base: Annotated[str | None, typer.Option(help="Model folder or hub id.")] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH of a candidate dataset. Repeatable.")
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH of a target. Repeatable.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented recipe, from flags or questions."""
    from mergetomix.cli import first_recipe

    if path.exists() and not force:
        raise UserError(f"{path} exists", hint="name another file, or add --force")
    if sys.stdin.isatty():
        base = base or typer.prompt("Base model (folder or hub id)")
        dataset = dataset or _ask_sources("Candidate dataset", least=2)
        target = target or _ask_sources("Target", least=1)
    text = first_recipe.recipe(
        base,
        first_recipe.pairs(dataset, "--dataset"),
        first_recipe.pairs(target, "--target"),
        path.parent,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.with_name("recipe.schema.json").write_text(_schema(), encoding="utf-8")
    print(f"wrote {path}\nnext: look it over, then `mergetomix check {path}`")


def _ask_sources(what: str, least: int) -> list[str]:
    given: list[str] = []
    while True:
        optional = len(given) >= least
        question = f"{what} {len(given) + 1} as NAME=PATH" + (
            " (empty to go on)" if optional else ""
        )
        answer = typer.prompt(question, default="" if optional else None, show_default=False)
        if not answer:
            return given
        given.append(answer)


@app.command()
def check(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Read everything and print the plan; trains nothing."""
    import mergetomix
    from mergetomix.cli import console

    loaded = _load(recipe, overrides)
    with listening() as listener:
        plan = mergetomix.check(loaded, listener)
    console.show_plan(plan)
    print(f"next: mergetomix run {recipe}")


@app.command()
def run(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Experts, search, final fine-tune, report."""
    _run(_load(recipe, overrides))


def _run(recipe: Recipe) -> None:
    import mergetomix
    from mergetomix.cli import console

    with listening() as listener:
        result = mergetomix.run(recipe, listener)
    console.show_result(result, recipe)


@app.command()
def experts(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Stage 1: one expert for each dataset."""
    import mergetomix
    from mergetomix.cli import console

    with listening() as listener:
        console.show_experts(mergetomix.train_experts(_load(recipe, overrides), listener))


@app.command()
def search(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Stage 2: evaluate proxies, rank the mixtures."""
    import mergetomix
    from mergetomix.cli import console

    loaded = _load(recipe, overrides)
    with listening() as listener:
        selection = mergetomix.search_mixtures(loaded, listener)
    console.show_ranking(selection, loaded)
    console.show_given_up(selection)


@app.command()
def verify(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Stage 3: fine-tune a few mixtures for real; choose by what they show.

    Trains experts and searches first where that was not done.
    """
    import mergetomix
    from mergetomix.cli import console

    loaded = _load(recipe, overrides)
    if loaded.verify.budget == 0:
        raise UserError("verify.budget is 0 in this recipe", hint="add --set verify.budget=3")
    with listening() as listener:
        selection, verification = mergetomix.verify_mixtures(loaded, listener)
    console.show_ranking(selection, loaded)
    if verification is not None:
        console.show_verification(verification)
    console.show_given_up(selection, verification)


@app.command()
def study(
    recipe: RecipePath,
    yes: Annotated[bool, typer.Option("--yes", help="Start however large it is.")] = False,
    overrides: Overrides = None,
) -> None:
    """Test the method: every mixture for real, other ways to choose beside it."""
    from mergetomix.study import study as studies

    loaded = _load(recipe, overrides)
    with listening() as listener:
        found = studies.run(loaded, listener, yes=yes)
    print(f"wrote {studies.write(found, loaded) / 'study.md'}")


@app.command()
def final(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Stage 4: fine-tune on the selection, compare, report.

    Trains experts and searches first where that was not done.
    """
    loaded = _load(recipe, overrides)
    if not loaded.final.train:
        raise UserError("final.train is false in this recipe", hint="add --set final.train=true")
    _run(loaded)


@app.command()
def status(
    path: Annotated[Path, typer.Argument(help="A recipe, a run's folder, or a store.")] = Path(
        ".mergetomix"
    ),
) -> None:
    """Show what a store holds and how far its runs are."""
    from mergetomix.cli import console, first_recipe
    from mergetomix.store.store import Store

    store = Store.peek(first_recipe.store_of(path))
    try:
        console.show_status(store)
    finally:
        store.close()


@app.command()
def merge(
    recipe: RecipePath,
    datasets: Annotated[str, typer.Argument(help="Names of datasets, with commas between.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
    weights: Annotated[
        str | None,
        typer.Option(help="One number for each dataset, with commas between; scaled to sum to 1."),
    ] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="One LoRA adapter instead of the merged model.")
    ] = False,
    rank: Annotated[
        int | None, typer.Option(help="Rank of the adapter: the nearest one. Exact without.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16 or float16. The base's without; float32 for an adapter."
        ),
    ] = None,
    max_shard_size: Annotated[
        str | None, typer.Option(help="Largest file of weights, such as 5GB.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Write a mixture's merged model, or one adapter for it, as a folder."""
    import mergetomix

    names = [name.strip() for name in datasets.split(",") if name.strip()]
    form = mergetomix.Form(adapter, rank, dtype, max_shard_size)
    with listening() as listener:
        written = mergetomix.write_proxy(
            _load(recipe, overrides), names, out, _numbers(weights), listener, form
        )
    print("\n".join(written.sentences()))


def _numbers(weights: str | None) -> list[float] | None:
    try:
        return None if weights is None else [float(weight) for weight in weights.split(",")]
    except ValueError:
        raise UserError(f"--weights needs numbers with commas between, not {weights!r}") from None


@app.command()
def schema() -> None:
    """Print the recipe's JSON schema, for editors."""
    print(_schema(), end="")


def _schema() -> str:
    import json

    from mergetomix.recipe.recipe import Recipe

    return json.dumps(Recipe.model_json_schema(), indent=2) + "\n"


@app.command()
def demo(
    folder: Annotated[
        Path | None,
        typer.Argument(help="Where to leave the recipe and the run.", show_default=False),
    ] = None,
    family: Annotated[
        str,
        typer.Option(
            help="`text`: a language model on Python's own library. `image`: CLIP on digits."
        ),
    ] = "text",
    overrides: Overrides = None,
) -> None:
    """Run everything offline on what every installation carries."""
    from mergetomix import demo

    path = demo.write(family, folder)
    print(f"recipe: {path}\n")
    _run(_load(path, overrides))
    print(f"\nread or change the recipe, then: mergetomix run {path}")


def _load(path: Path, overrides: list[str] | None) -> Recipe:
    from mergetomix.recipe.recipe import load

    return load(path, overrides or [])


def main() -> None:
    """The entry point: errors become one message and an exit code."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that spin for long while they wait halve the speed when another program wants a core; see docs/log.md
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        app()
    except MergeToMixError as error:
        _complain(error.message, error.hint or (AGAIN if error.exit_code == 1 else None))
        sys.exit(error.exit_code)
    except Interrupted:
        _complain("interrupted", AGAIN)
        sys.exit(1)
    except OSError as error:
        _complain(f"{type(error).__name__}: {error}", AGAIN)
        sys.exit(1)
    except Exception:  # noqa: BLE001  # a fault of this program: show all of it, and say how to go on
        traceback.print_exc()
        _complain("this is a fault of mergetomix; please report it with the lines above", AGAIN)
        sys.exit(1)


class Interrupted(BaseException):
    """Ctrl-C, or the end that a scheduler asks for. No library on the way takes it for its own."""


def _interrupt(*_: object) -> None:
    raise Interrupted


def _complain(message: str, hint: str | None) -> None:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)


if __name__ == "__main__":
    main()
