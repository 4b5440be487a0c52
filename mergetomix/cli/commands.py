"""The commands. Results go to standard output, progress and warnings to standard error.

Modules are imported inside the commands, so that `--help` loads nothing heavy.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import mergetomix
from mergetomix.errors import Fault, UserError
from mergetomix.showing import listening

if TYPE_CHECKING:
    from mergetomix.cli.first_recipe import Look
    from mergetomix.recipe.recipe import Recipe

app = typer.Typer(
    name="mergetomix",
    help="Tells which datasets to fine-tune on: merges of experts stand for the models that nobody"
    " trained.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich help costs a fifth of a second
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipePath = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.", show_default=False)
]
WEIGHTS = "One number for each dataset, with commas between; scaled to sum to 1."
StorePath = Annotated[str, typer.Argument(help="A recipe, a run's folder, or a store.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a key, such as train.seed=1. Repeatable."
    ),
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        print(f"mergetomix {mergetomix.__version__}")
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
    """Look at the data, and write a commented recipe that fits it, from flags or questions."""
    from mergetomix.cli import console, first_recipe

    if path.exists() and not force:
        raise UserError(f"{path} exists", hint="name another file, or add --force")
    folder, asks = path.parent, sys.stdin.isatty()
    looks = first_recipe.Looks()
    if base is not None:
        first_recipe.check_base(base, folder)
    elif asks:
        base = _ask_base(folder)
    for kind, given, found in (
        ("dataset", dataset, looks.datasets),
        ("target", target, looks.targets),
    ):
        for name, source in first_recipe.pairs(given, f"--{kind}").items():
            ask = _ask if asks else None
            look = first_recipe.looked_at(name, source, folder, kind == "target", ask)
            found[name] = (source, look)
            console.show_look(kind, name, look)
        if asks and not given:
            _ask_sources(kind, folder, found, least=2 if kind == "dataset" else 1)
    every = [*looks.datasets.values(), *looks.targets.values()]
    has_images = any(first_recipe.has_images(source, folder) for source, _ in every)
    text = first_recipe.recipe(base, looks, has_images)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.with_name("recipe.schema.json").write_text(_schema(), encoding="utf-8")
    print(f"wrote {path}\nnext: look it over, then `mergetomix check {path}`")


def _ask(question: str) -> str:
    return str(typer.prompt(question, default="", show_default=False))


def _ask_base(folder: Path) -> str:
    from mergetomix.cli import first_recipe

    while True:
        given = _ask("Base model (folder or hub id)")
        try:
            first_recipe.check_base(given, folder)
        except UserError as error:
            print(error, file=sys.stderr)
            continue
        if given:
            return given


def _ask_sources(kind: str, folder: Path, found: dict[str, tuple[str, Look]], least: int) -> None:
    """Asks for sources until the user has no more; each is looked at before the next."""
    from mergetomix.cli import console, first_recipe

    what = {"dataset": "Candidate dataset", "target": "Target"}[kind]
    while True:
        optional = len(found) >= least
        more = " (empty to go on)" if optional else ""
        answer = _ask(f"{what} {len(found) + 1} as NAME=PATH{more}")
        if not answer:
            if optional:
                return
            continue
        try:
            ((name, source),) = first_recipe.pairs([answer], "answer").items()
            look = first_recipe.looked_at(name, source, folder, kind == "target", _ask)
        except UserError as error:
            print(error, file=sys.stderr)
            continue
        found[name] = (source, look)
        console.show_look(kind, name, look)


@app.command()
def check(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Read everything, rehearse a run in small and print the plan; trains no expert."""
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
    from mergetomix.cli import console

    with listening() as listener:
        result = mergetomix.run(recipe, listener)
    console.show_result(result, recipe)


@app.command()
def experts(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Stage 1: one expert for each dataset."""
    from mergetomix.cli import console

    with listening() as listener:
        console.show_experts(mergetomix.train_experts(_load(recipe, overrides), listener))


@app.command()
def search(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Stage 2: evaluate proxies, rank the mixtures."""
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
    from mergetomix.cli import console

    loaded = _load(recipe, overrides)
    if loaded.verify.budget == 0:
        raise UserError("verify.budget is 0 in this recipe", hint="add --set verify.budget=3")
    with listening() as listener:
        selection, verification = mergetomix.verify_mixtures(loaded, listener)
    console.show_ranking(selection, loaded)
    if verification is not None:
        console.show_verification(verification, blunt=selection.blunt)
    console.show_given_up(selection, verification)


@app.command()
def explain(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Tell what each dataset adds to each target, from what a run has found; trains nothing."""
    from mergetomix.cli import console

    loaded = _load(recipe, overrides)
    with listening() as listener:
        found = mergetomix.explain(loaded, listener)
    console.show_effects(found, loaded)


@app.command()
def predict(
    recipe: RecipePath,
    datasets: Annotated[str, typer.Argument(help="Names of datasets, with commas between.")],
    weights: Annotated[str | None, typer.Option(help=WEIGHTS)] = None,
    overrides: Overrides = None,
) -> None:
    """Tell what a fine-tune on a mixture is expected to gain; trains nothing."""
    from mergetomix.cli import console

    with listening() as listener:
        found = mergetomix.predict(
            _load(recipe, overrides), _names(datasets), _numbers(weights), listener
        )
    console.show_prediction(found)


@app.command()
def report(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, or its recipe.")],
) -> None:
    """Write a run's report anew from its store; of an unfinished run, what there is."""
    with listening() as listener:
        folder = mergetomix.write_report(path, listener)
    print(f"report: {folder}/report.html")


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    second: Annotated[Path, typer.Argument(help="The folder of another one.")],
) -> None:
    """Show two runs beside each other: decisions, gains, settings that differ."""
    from mergetomix.cli import console
    from mergetomix.report import compare as comparing

    console.show_tables(comparing.compare(first, second))


@app.command()
def study(
    recipe: RecipePath,
    yes: Annotated[bool, typer.Option("--yes", help="Start however large it is.")] = False,
    overrides: Overrides = None,
) -> None:
    """Test the method: every mixture for real, other ways to choose beside it."""
    from mergetomix.study import document
    from mergetomix.study import study as studies

    loaded = _load(recipe, overrides)
    with listening() as listener:
        found = studies.run(loaded, listener, yes=yes)
    folder = Path(loaded.run_dir)
    document.write(found, folder)
    print(f"wrote {folder / 'study.md'}")


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
    path: StorePath = ".mergetomix",
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again and again until no run is under way.")
    ] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.1)] = 2.0,
) -> None:
    """Show what a store holds and how far its runs are."""
    from mergetomix.cli import console, first_recipe
    from mergetomix.store.store import Store

    place = first_recipe.store_of(path)
    while True:
        with Store.peek(place) as store:
            is_alive = console.show_status(store)
        if not (watch and is_alive):
            return
        time.sleep(every)
        console.clear()


@app.command()
def merge(
    recipe: RecipePath,
    datasets: Annotated[str, typer.Argument(help="Names of datasets, with commas between.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.")],
    weights: Annotated[str | None, typer.Option(help=WEIGHTS)] = None,
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
    names, given = _names(datasets), _numbers(weights)
    form = mergetomix.Form(adapter, rank, dtype, max_shard_size)
    with listening() as listener:
        loaded = _load(recipe, overrides)
        written = mergetomix.write_proxy(loaded, names, out, given, listener, form)
    print("\n".join(written.sentences()))


store_app = typer.Typer(
    help="Show what a store keeps, remove what no recipe needs, look it through, mend it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(store_app, name="store")


@store_app.command("show")
def show_store(path: StorePath = ".mergetomix") -> None:
    """Show what a store keeps, and how large it is."""
    from mergetomix.cli import console, first_recipe
    from mergetomix.store import contents

    console.show_contents(contents.survey(first_recipe.store_of(path)))


@store_app.command("gc")
def clear_store(
    recipes: Annotated[
        list[Path], typer.Argument(metavar="RECIPE...", help="Every recipe whose work is to stay.")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would go, and remove nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it without asking.")] = False,
) -> None:
    """Remove from a store what none of these recipes reaches; their runs train nothing anew."""
    from mergetomix.cli import console
    from mergetomix.stages import reach
    from mergetomix.store import collect

    with listening() as listener:
        found = reach.unreached([_load(path, None) for path in recipes], listener)
    console.show_unreached(found)
    if dry_run or found.is_empty:
        return
    collect.check_unused(found.place)
    if not yes:
        if not sys.stdin.isatty():
            raise UserError("nothing was removed: nobody can be asked", hint="add --yes")
        if not typer.confirm("Remove all of this?"):
            print("nothing was removed")
            return
    collect.remove(found)
    print(f"removed {console.size(found.num_bytes)}")


@store_app.command("verify")
def verify_store(path: StorePath = ".mergetomix") -> None:
    """Read every byte of a store's artifacts and name those that are damaged (exit code 1)."""
    from mergetomix.cli import first_recipe
    from mergetomix.store import repair

    found = repair.verify(first_recipe.store_of(path))
    print("\n".join(found) or "nothing is damaged")
    if found:
        raise Fault(
            f"{len(found)} of the store's parts are damaged",
            hint="mergetomix run sets damaged artifacts aside and makes them again; a damaged"
            " ledger is written anew by mergetomix store rebuild",
        )


@store_app.command("rebuild")
def rebuild_store(path: StorePath = ".mergetomix") -> None:
    """Write a lost or damaged ledger anew from what the artifacts say of themselves.

    Scores are computed again: they are in the ledger alone. No run may use the store meanwhile.
    """
    from mergetomix.cli import first_recipe
    from mergetomix.store import repair

    found = repair.rebuild(first_recipe.store_of(path))
    print(f"{found.finetunes} fine-tunes and {found.others} other artifacts are in the ledger")
    for line in found.damaged:
        print(f"set aside as damaged: {line}")
    for name in found.unknown:
        print(f"left where it is, as it does not say what it is: artifact {name}")


@app.command()
def schema() -> None:
    """Print the recipe's JSON schema, for editors."""
    print(_schema(), end="")


def _schema() -> str:
    import json

    return json.dumps(mergetomix.Recipe.model_json_schema(), indent=2) + "\n"


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


def _names(datasets: str) -> list[str]:
    return [name.strip() for name in datasets.split(",") if name.strip()]


def _numbers(weights: str | None) -> list[float] | None:
    try:
        return None if weights is None else [float(weight) for weight in weights.split(",")]
    except ValueError:
        raise UserError(f"--weights needs numbers with commas between, not {weights!r}") from None


def _load(path: Path, overrides: list[str] | None) -> Recipe:
    return mergetomix.load_recipe(path, overrides or [])
