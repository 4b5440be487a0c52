"""The report of a run that was not finished: what there is of it, marked so."""

from __future__ import annotations

from pathlib import Path

from mergetomix.recipe.recipe import dump
from mergetomix.records import Finetune, Mixture, Scores
from mergetomix.report import page, tables
from mergetomix.report.files import begin, put
from mergetomix.session.session import Session
from mergetomix.stages.search import objective_of

HEADLINE = "This run was not finished: there is no decision yet."


def write(session: Session) -> Path:
    """Writes `report.html` into the run's folder, and returns the folder."""
    folder = begin(session.recipe)
    put(folder / "report.html", render(session))
    return folder


def render(session: Session) -> str:
    """Returns the page: the experts and the merges that are known so far, and how to go on."""
    names = session.spaces.searched.allowed
    singles = [Mixture.union([name]) for name in names]
    experts = [found for each in singles if (found := session.finetunes.known(each)) is not None]
    because = [
        f"{len(experts)} of {len(names)} fine-tunes on single datasets are there.",
        "The same command goes on from here: mergetomix run, with the same recipe.",
    ]
    _look_at_all(session)
    losses = page.curves(session.finetunes.curves)
    sections = [_experts(experts), _scores(session), *losses, *_warnings(session), _recipe(session)]
    title = f"Merge to Mix: {session.recipe.base.path}"
    return page.page(title, HEADLINE, because, sections, partial=True)


def _look_at_all(session: Session) -> None:
    """Takes the curves of all fine-tunes that are there, and says what is wrong with them."""
    for seed in (None, session.recipe.train.seed + 1):
        for mixture in _mixtures(session):
            if (found := session.finetunes.known(mixture, seed)) is not None:
                session.finetunes.look_at(found, seed)


def _warnings(session: Session) -> list[page.Block]:
    found = [*session.opened.warnings, *session.finetunes.complaints.values()]
    return [page.Block("warnings", "Warnings", found)] if found else []


def _experts(experts: list[Finetune]) -> page.Block:
    caption = "Fine-tunes on single datasets"
    found = [page.PageTable.of("experts", caption, tables.experts(experts))]
    return page.Block("single-datasets", caption, tables=found)


def _scores(session: Session) -> page.Block:
    """Returns the merges whose scores on the select part are in the store, the best first."""
    base = _known(session, session.addresses.base)
    objective, recipe = objective_of(session), session.recipe
    lines = []
    for mixture in _mixtures(session):
        scores = _known(session, session.addresses.proxy(mixture))
        if base is not None and scores is not None:
            means = [f"{scores[name].mean:.4f}" for name in recipe.targets]
            lines.append((objective.of(scores, base), [str(mixture), *means]))
    lines.sort(key=lambda each: -each[0])
    header = ["datasets", *recipe.targets, "gain over the base"]
    rows = [[*cells, f"{gain:+.4f}"] for gain, cells in lines[: page.MOST_ROWS]]
    caption = f"{len(lines)} merges were scored on the select part so far"
    found = [page.PageTable.of("merges", caption, [header, *rows])]
    return page.Block("merges-so-far", "Merges", tables=found)


def _mixtures(session: Session) -> list[Mixture]:
    """Returns the mixtures to ask the store for: all subsets if they are few, else single ones."""
    subsets = session.spaces.subsets
    if subsets.size <= page.MOST_SUBSETS:
        known = {name for name in subsets.allowed if _is_trained(session, name)}
        return [each for each in subsets if known.issuperset(each.datasets)]
    return [Mixture.union([name]) for name in subsets.allowed if _is_trained(session, name)]


def _is_trained(session: Session, name: str) -> bool:
    return session.finetunes.known(Mixture.union([name])) is not None


def _known(session: Session, key: str) -> dict[str, Scores] | None:
    found = session.evaluations.known(key, "select")
    return dict(found) if len(found) == len(session.recipe.targets) else None


def _recipe(session: Session) -> page.Block:
    code = dump(session.recipe)
    return page.Block("recipe", "Recipe", summary="The recipe with all its defaults", code=code)
