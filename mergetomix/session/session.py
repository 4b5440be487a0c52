"""The session: a recipe that is open, and everything that stages ask of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from mergetomix import launch
from mergetomix.errors import RecipeError
from mergetomix.executors.choose import Surroundings, chosen
from mergetomix.executors.in_process import InProcess
from mergetomix.executors.messages import Opens
from mergetomix.executors.work import (
    CarryOut,
    Executor,
    FinetuneWork,
    GradientWork,
    Outcome,
    ScoringWork,
    Work,
    whereabouts,
)
from mergetomix.experts.deltas import params, read_delta
from mergetomix.progress import Listener, Silent
from mergetomix.recipe.recipe import Recipe
from mergetomix.session.addresses import Addresses
from mergetomix.session.evaluations import Evaluations
from mergetomix.session.finetunes import Finetunes
from mergetomix.session.gradients import Gradients
from mergetomix.session.inputs import Inputs, read_inputs
from mergetomix.session.open_recipe import OpenRecipe
from mergetomix.session.proxies import Proxies
from mergetomix.session.spaces import Spaces
from mergetomix.store.address import digest
from mergetomix.store.store import Store
from mergetomix.trackers.trackers import About


class Session:
    """A recipe that is open, and what is done with it.

    Each part does one thing: `spaces` are the mixtures that are allowed, `addresses` name what is
    made, `finetunes` train, `proxies` merge, `evaluations` score, `gradients` differentiate.
    """

    def __init__(self, opened: OpenRecipe, executor: Callable[[CarryOut], Executor]) -> None:
        self.opened = opened
        self.recipe, self.inputs = opened.recipe, opened.inputs
        self.store, self.listener = opened.store, opened.listener
        self.spaces = Spaces(self.recipe, self.inputs)
        self.addresses = Addresses(self.recipe, self.inputs, self.store)
        self.finetunes = Finetunes(opened, self.addresses, self.spaces)
        self.proxies = Proxies(opened, self.addresses, self.spaces)
        self.evaluations = Evaluations(opened, self.addresses, self.proxies)
        self.gradients = Gradients(
            opened, self.addresses, self.spaces, self.proxies, self.evaluations
        )
        opened.executor = executor(self.carry_out)
        opened.closing.callback(opened.executor.close)

    def carry_out(self, work: Work) -> Outcome:
        """Carries out one piece of work in this process."""
        if isinstance(work, FinetuneWork):
            return self.finetunes.train(work)
        if isinstance(work, ScoringWork):
            return self.evaluations.take(work)
        if isinstance(work, GradientWork):
            return self.gradients.take(work)
        self.proxies.take(work)
        return None


@contextmanager
def open_session(
    recipe: Recipe,
    listener: Listener | None = None,
    executor: Callable[[CarryOut], Executor] | None = None,
    is_run: bool = True,
) -> Iterator[Session]:
    """Reads everything that a recipe names and opens its store; records how the run ends.

    Args:
        is_run: whether `status` lists it among the runs: what only looks is none.
        executor: makes what carries out the work, given what carries it out in this process; None
            is what the recipe asks for.

    Raises:
        UserError: something that the user can mend, before any training.
    """
    listener = listener or Silent()
    with Store(recipe.store) as store:
        opened = OpenRecipe(recipe, read_inputs(recipe, listener), store, listener)
        store.on_damage(opened.warn)
        for warning in opened.inputs.warnings:
            opened.warn(warning)
        check_given_experts(opened)
        names = {"datasets": sorted(recipe.datasets), "targets": sorted(recipe.targets)}
        about = {**names, "is_run": is_run}
        opened.run = store.begin_run(recipe.run_dir, about)
        outcome = "interrupted"
        try:
            with opened.trackers.run(about_run(recipe, is_run)) as opened.tracked:
                for line in opened.tracked.where():
                    listener.note(f"report_to: {line}")
                yield Session(opened, executor or chosen(recipe.executor, surroundings(opened)))
            outcome = "finished"
        except Exception as error:
            lines = str(error).splitlines()
            outcome = f"failed: {lines[0] if lines else type(error).__name__}"
            raise
        finally:
            opened.closing.close()
            store.end_run(opened.run, outcome)


def about_run(recipe: Recipe, is_run: bool) -> About:
    """Returns what trackers are told of a run; what only looks is not told of."""
    values = {
        "base": recipe.base.path,
        "datasets": ", ".join(recipe.datasets),
        "targets": ", ".join(recipe.targets),
        **recipe.model_dump(mode="json", include={"train", "merge", "search", "verify"}),
    }
    return About("mixtures", values, is_silent=not is_run)


def surroundings(opened: OpenRecipe) -> Surroundings:
    """Returns what an executor needs of an open recipe to start workers."""
    logs = Path(opened.recipe.run_dir) / "workers"

    def opens(num_neighbours: int) -> Opens:
        # what is left out here need not be tried by every worker
        told = {"device": opened.inputs.family.device, "report_to": opened.trackers.names}
        recipe = opened.recipe.model_copy(update=told)
        scratch, own = str(opened.scratch()), kind_of(opened.inputs)
        return partial(open_worker, recipe, scratch, num_neighbours, wanted=own)

    device, listener = opened.inputs.family.device, opened.listener
    launched = opened.recipe.train.launch
    num = 1 if launched is None else launched.processes
    joins = None if launched is None else partial(launch.join, launched, device)
    return Surroundings(
        opens,
        device,
        opened.scratch,
        logs,
        listener,
        opened.hear_workers,
        num,
        joins,
        shares_disk=opened.store.shared is None,
    )


def kind_of(inputs: Inputs) -> dict[str, str]:
    """Returns what a worker must have in common with the process that leads, beside the recipe."""
    family = inputs.family
    contents = digest(*(inputs.content(name) for name in sorted(inputs.candidates)))
    settings = {key: str(value) for key, value in family.settings().items()}
    return {"device": family.device, **settings, "data": contents}


@contextmanager
def open_worker(
    recipe: Recipe,
    scratch: str | None,
    num_neighbours: int,
    listener: Listener,
    wanted: Mapping[str, str] | None = None,
) -> Iterator[CarryOut]:
    """Opens a recipe for a process that carries out work for another one.

    Gives the function that carries it out. The store is read, never written: what is trained goes
    to the folder that the work names.

    Args:
        scratch: a folder for what all workers of a machine share; None makes one for this alone.
        num_neighbours: how many processes share the memory that models are in, this one included.
        wanted: what `kind_of` says in the process that leads.

    Raises:
        RecipeError: this process has another kind of device, or reads other data.
    """
    with Store.peek(recipe.store) as store:
        inputs = read_inputs(recipe, Silent())
        here = kind_of(inputs) if wanted else {}
        for key, value in (wanted or {}).items():
            if here.get(key) != value:
                own = here.get(key)
                what = f"{key} is {own} in {whereabouts()}, and {value} in the process that leads"
                hint = "a run has one kind of device, and the same files wherever it works"
                raise RecipeError("executor", what, hint=hint)
        opened = OpenRecipe(recipe, inputs, store, listener)
        opened.num_neighbours = num_neighbours
        if scratch is not None and Path(scratch).is_dir():
            opened.shared_scratch = Path(scratch)
        session = Session(opened, InProcess)

        def carry_out(work: Work) -> Outcome:
            if isinstance(work, FinetuneWork):
                session.proxies.release()  # training needs the memory
            return session.carry_out(work)

        try:
            yield carry_out
        finally:
            opened.closing.close()


def check_given_experts(opened: OpenRecipe) -> None:
    """Raises ModelError where an expert that the recipe gives does not fit the base."""
    specs = opened.recipe.datasets.items()
    given = {name: spec.expert for name, spec in specs if spec.expert is not None}
    if not given:
        return
    base = params(opened.inputs.family.load())
    for name, path in given.items():
        read_delta(opened.inputs.family, base, path, f"datasets.{name}.expert")
