"""Proxies of an open recipe: the bank of experts, and the live model as any mixture's proxy."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mergetomix import merge
from mergetomix.errors import Fault
from mergetomix.executors.work import StatisticWork
from mergetomix.experts import fisher_and_gram
from mergetomix.experts.bank import GIB, Bank, Rule
from mergetomix.experts.deltas import mapped, params, read_delta
from mergetomix.records import Mixture
from mergetomix.session.addresses import Addresses
from mergetomix.session.memory import free_memory
from mergetomix.session.open_recipe import OpenRecipe
from mergetomix.session.spaces import Spaces

FILE = "statistic.safetensors"


class Proxies:
    """Owns the bank. Reads the experts when the first proxy is asked for."""

    def __init__(self, opened: OpenRecipe, addresses: Addresses, spaces: Spaces) -> None:
        self._open, self._addresses, self._spaces = opened, addresses, spaces
        self._bank: Bank | None = None
        self._live: tuple[Mixture, float] | None = None
        self._statistics: dict[str, Mapping[str, Any]] = {}

    @property
    def are_read(self) -> bool:
        """Whether the experts are in memory."""
        return self._bank is not None

    def bank(self, datasets: Sequence[str] | None = None) -> Bank:
        """Returns the live base and the experts of some datasets, for the caller to change.

        Args:
            datasets: None is all that a mixture may hold.
        """
        self._live = None
        return self.read(datasets)

    def read(self, datasets: Sequence[str] | None = None) -> Bank:
        """Reads the experts of some datasets, unless that was done; the model stays as it is."""
        if self._bank is None:
            family = self._open.inputs.family
            model = family.load()
            base = params(model)
            names = self._spaces.searched.allowed if datasets is None else datasets
            deltas = {}
            with self._open.listener.task("experts", "reading experts", len(names)) as advance:
                for name in names:
                    where, key = f"datasets.{name}.expert", self._addresses.expert(name)
                    folder, scratch = str(self.folder(name)), self._open.scratch() / key
                    deltas[name] = read_delta(family, base, folder, where, scratch)
                    advance(1)
            gib, section = self._open.recipe.merge.memory_gib, self._open.recipe.base
            path, origin = Path(section.path), None
            # the base's params as pages of its files, if a folder's files hold them by name
            if path.is_dir() and section.gguf_file is None:
                origin = mapped(family, path, base, "base.path")
            most_bytes = None if gib is None else gib * GIB
            self._bank = Bank(model, deltas, most_bytes, origin or {}, self._open.num_neighbours)
        return self._bank

    def folder(self, name: str) -> Path:
        """Returns the folder of a dataset's expert. Raises Fault where the store lost it."""
        record = self._open.store.finetune(self._addresses.expert(name))
        if record is None:
            hint = "run the experts stage again"
            raise Fault(f"the expert of {name} is gone from the store", hint=hint)
        return Path(record.path)

    def live(self, mixture: Mixture, exponent: float) -> Any:
        """Returns the live model as a mixture's proxy; merges unless it is that already."""
        bank = self.read()
        if self._live != (mixture, exponent):
            self._live = None
            if self._open.recipe.merge.method == "linear":
                bank.set(merge.coefficients(mixture, exponent))
            else:
                factor = self._addresses.delta_factor(mixture, exponent)
                bank.combine(self.rule(mixture.datasets), mixture.as_dict(), factor)
            self._live = mixture, exponent
        return bank.model

    def base(self) -> Any:
        """Returns the base: the live model where experts are in memory, else one loaded now."""
        if self._bank is None:
            return self._open.inputs.family.load()
        self._live = None
        self._bank.reset()
        return self._bank.model

    def release(self) -> None:
        """Frees the bank: a fine-tune needs the memory."""
        self._bank = self._live = None
        free_memory()

    # --- statistics of experts, which some methods weigh them by

    def rule(self, datasets: Sequence[str]) -> Rule:
        """Returns how the recipe's method combines some experts.

        Statistics that it needs are measured the first time.
        """
        from safetensors.torch import load_file

        section = self._open.recipe.merge
        self.measure(datasets)
        for name in datasets if self.needed is not None else ():
            if name not in self._statistics:
                key = self._addresses.statistic(str(self.needed), name)
                file = self._open.store.file(key, FILE)
                if file is None:
                    lost = f"the {self.needed} of the expert {name} is gone from the store"
                    raise Fault(lost, hint="run the same command again")
                self._statistics[name] = load_file(file)
        experts = {name: self._addresses.expert(name) for name in datasets}
        transposed = self._open.inputs.family.transposed
        return Rule(section.method, section.options, experts, self._statistics, transposed)

    @property
    def needed(self) -> str | None:
        """The statistic of experts that the recipe's method needs, or None."""
        return merge.METHODS[self._open.recipe.merge.method].needs

    def measure(self, datasets: Iterable[str]) -> None:
        """Measures the statistics of some experts that the store lacks, and keeps them there."""
        statistic, store = self.needed, self._open.store
        names = {self._addresses.statistic(str(statistic), name): name for name in datasets}
        lacking = [key for key in names if statistic is not None and store.file(key, FILE) is None]
        drafts = dict[str, ExitStack]()

        def work() -> Iterator[StatisticWork]:
            for key in lacking:
                draft = drafts[key] = every.enter_context(ExitStack())
                expert = self._addresses.expert(names[key])
                folder = draft.enter_context(store.artifact(key, [expert]))
                yield StatisticWork(key, str(statistic), names[key], str(folder))

        with ExitStack() as every:
            for done in self._open.executor.run(work()):
                done.result()
                assert isinstance(done.work, StatisticWork)
                for other in Path(done.work.folder).iterdir():
                    if other.name != FILE:
                        other.unlink()  # of a worker that died over it
                drafts[done.work.key].close()

    def take(self, work: StatisticWork) -> None:
        """Carries out the work: measures a statistic of an expert and writes it to its folder."""
        from safetensors.torch import save_file

        inputs, text = self._open.inputs, f"{work.statistic} of the expert {work.dataset}"
        bank = self.bank()
        bank.set({work.dataset: 1.0})
        with self._open.listener.task("search", text, 1) as advance:
            compute = fisher_and_gram.STATISTICS[work.statistic]
            sequences = inputs.sequences(work.dataset)
            found = compute(inputs.family, bank.model, sequences)
            tensors = {param: each.cpu().contiguous() for param, each in found.items()}
            draft = Path(work.folder) / f"{os.getpid()}-{socket.gethostname()}"
            save_file(tensors, draft)
            draft.replace(draft.with_name(FILE))
            advance(1)
