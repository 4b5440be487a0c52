"""The final table: models scored on the report part, which the search never saw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mergetomix.errors import TrainingError
from mergetomix.objectives.objective import Objective
from mergetomix.records import Finetune, Merging, Mixture, Scores
from mergetomix.results import Row, Selection, Verification
from mergetomix.session.memory import free_memory
from mergetomix.session.session import Session
from mergetomix.stages.checks import repeated
from mergetomix.stages.decision import with_intervals
from mergetomix.stages.ways import own_way


def final_table(
    session: Session,
    selection: Selection,
    verification: Verification | None,
    objective: Objective,
    baselines: Mapping[str, Mixture],
) -> tuple[Row, ...]:
    """Returns a row for base, experts, proxy, the selected mixture, other checks, and baselines."""
    table = FinalTable(session, objective)
    picked, merging = selection.mixture, own_way(session)
    paid: list[Mixture] = []
    failed: set[Mixture] = set()
    if verification is not None:
        picked, merging = verification.mixture, verification.merging
        paid = [each.mixture for each in verification.checks if each.origin == "verify"]
        # verify has named these, and they would only fail again
        failed = {mixture for mixture, _ in verification.failures}
    table.add_merged(picked, merging)
    session.proxies.release()
    others = [mixture for mixture in paid if mixture != picked]
    compared = {name: each for name, each in baselines.items() if each not in failed}
    finals = [picked] if session.recipe.final.train else []
    table.fit([*finals, *others, *compared.values()])
    if verification is not None:
        checked = repeated(verification.checks, session.recipe.verify.repeats)
        table.score_again([check.mixture for check in checked])
    if finals:
        table.add_real("selected", "final", picked)
    for mixture in others:
        table.add_real(f"check {mixture}", "check", mixture)
    for name, mixture in compared.items():
        table.add_baseline(name, "all" if name == "all datasets" else "random", mixture)
    session.opened.tell_reused("real fine-tunes")
    return with_intervals(table.rows, objective)


class FinalTable:
    """The rows so far; gains are over the base, which is scored first."""

    def __init__(self, session: Session, objective: Objective) -> None:
        self._session, self._objective = session, objective
        self._base = session.evaluations.base("report")
        self.rows: list[Row] = []
        self._fits: dict[Mixture, Finetune | TrainingError] = {}
        self._again: dict[Mixture, Mapping[str, Scores]] = {}
        self._add("base", "base", None, self._base)

    def add_merged(self, picked: Mixture, merging: Merging) -> None:
        """Adds the models that need no fine-tune: the experts, and the picked mixture's proxy."""
        session, evaluations = self._session, self._session.evaluations
        singles = [Mixture((name,), (1.0,)) for name in session.spaces.searched.allowed]
        text, num = "scoring base, experts and proxy on the report part", len(singles) + 2
        with session.listener.task("final", text, num) as advance:
            advance(1)
            found = {}
            for mixture, scores in evaluations.proxies(singles, "report"):
                found[mixture] = scores
                advance(1)
                session.opened.beat("final: scoring experts", len(found) + 1, num)
            for mixture in singles:
                self._add(f"expert {mixture}", "expert", mixture, found[mixture])
            merged = session.spaces.merged(picked, merging.weighting)
            scores = evaluations.proxy(merged, "report", merging.exponent)
            self._add("proxy", "proxy", picked, scores)
            advance(1)

    def fit(self, mixtures: Iterable[Mixture]) -> None:
        """Fine-tunes on some mixtures and scores what comes of it; workers share all of them."""
        fits = self._session.finetunes.fit_each(mixtures, "final")
        self._fits = self._session.evaluations.scored(fits, "report")
        free_memory()

    def score_again(self, mixtures: Iterable[Mixture]) -> None:
        """Scores the fine-tunes that checks made with the next seed, of mixtures of the table."""
        session, seed = self._session, self._session.recipe.train.seed + 1
        wanted = [mixture for mixture in mixtures if mixture in self._fits]
        known = {mixture: session.finetunes.known(mixture, seed) for mixture in wanted}
        fits = {mixture: record for mixture, record in known.items() if record is not None}
        for mixture, record in session.evaluations.scored(fits, "report").items():
            if isinstance(record, Finetune):
                self._again[mixture] = session.evaluations.real(record, "report")

    def add_real(self, name: str, kind: Any, mixture: Mixture) -> None:
        """Adds a fine-tune on a mixture. Raises TrainingError where it could not be made."""
        record = self._fits[mixture]
        if isinstance(record, TrainingError):
            raise record
        scores = self._session.evaluations.real(record, "report")
        self._add(name, kind, mixture, scores, record.path)

    def add_baseline(self, name: str, kind: Any, mixture: Mixture) -> None:
        """Adds a baseline, unless its training fails: a comparison less, but the result stands."""
        try:
            self.add_real(name, kind, mixture)
        except TrainingError as error:
            self._session.opened.warn(f"the baseline {name!r} is left out: {error.message}")

    def _add(
        self,
        name: str,
        kind: Any,
        mixture: Mixture | None,
        scores: Mapping[str, Scores],
        path: str | None = None,
    ) -> None:
        gain = self._objective.of(scores, self._base)
        has_seeds = mixture in self._again and kind not in ("expert", "proxy")
        again = (self._again[mixture],) if has_seeds and mixture is not None else ()
        self.rows.append(Row(name, kind, mixture, scores, gain, path, again))
