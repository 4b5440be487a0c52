"""Proxies around checked models: a real fine-tune is itself a point, so it may stand beside the experts.

Anchors are the experts and some checked models, each with its weights w_j and its params theta_j. The proxy of w is

    theta(w) = sum_j c_j theta_j        c_j >= 0, sum_j c_j = 1, sum_j c_j w_j = w, least sum_j c_j |w_j - w|^2

With the experts alone c = w and the least sum is h(w) = 1 - |w|^2, the factor by which `calibrate` measures how far a real may
lie from its proxy. By theory the error of a mean of nearby models is of second order in their distances, so checks should
sharpen the proxies near them. docs/log.md says what came of it.

Shapes: A anchors, M mixtures, N datasets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mergetomix.experts.bank import Bank
from mergetomix.experts.deltas import params, read_delta
from mergetomix.records import Mixture, Scores
from mergetomix.session.job import Job, Model, known_scores, score_and_keep
from mergetomix.statistics import posterior
from mergetomix.statistics.posterior import Array
from mergetomix.store.address import digest
from mergetomix.study.truth import World

_NEGLIGIBLE = 1e-9


def around(point_N: Array, anchors_AN: Array) -> tuple[Array, float]:
    """The convex combination of anchors that gives a point with the least mean squared distance, and that distance.

    A linear program (scipy's HiGHS).

    Raises:
        ValueError: the point is no convex combination of the anchors.
    """
    from scipy.optimize import linprog

    squares_A = np.sum((anchors_AN - point_N) ** 2, axis=1)
    equal = np.vstack([anchors_AN.T, np.ones(len(anchors_AN))])
    found = linprog(squares_A, A_eq=equal, b_eq=[*point_N, 1.0], bounds=(0, None), method="highs")
    if not found.success:
        raise ValueError(f"no convex combination of the anchors gives {point_N.tolist()}")
    return np.where(found.x > _NEGLIGIBLE, found.x, 0.0), float(found.fun)


@dataclass(frozen=True)
class Anchored:
    """Proxies around some checked models: the distance left, shape (M,), and every mixture's scores; None where no checked
    model has a part in the combination, so that the proxy is the experts' own."""

    distance_M: Array
    scores: tuple[Mapping[str, Scores] | None, ...]


def evaluate(job: Job, mixtures: Sequence[Mixture], checked: Sequence[int]) -> Anchored:
    """Scores the proxies of some mixtures around the experts and the real fine-tunes on the mixtures of the rows `checked`.

    The store must hold the experts and those fine-tunes. What it holds of these scores is not computed again.
    """
    names = job.space().allowed
    weights_MN = np.array([[mixture.as_dict().get(name, 0.0) for name in names] for mixture in mixtures])
    anchors_AN = np.vstack([np.eye(len(names)), weights_MN[list(checked)]])
    keys = [job.finetune_key([name]) for name in names] + [job.finetune_key(mixtures[row].datasets) for row in checked]
    bank: Bank | None = None
    distances: list[float] = []
    scores: list[Mapping[str, Scores] | None] = []
    for mixture, weights_N in zip(mixtures, weights_MN, strict=True):
        shares_A, distance = around(weights_N, anchors_AN)
        distances.append(distance)
        if not shares_A[len(names) :].any():
            scores.append(None)
            continue
        key = digest("anchored", sorted([keys[a], float(shares_A[a])] for a in np.flatnonzero(shares_A)))
        known, missing = known_scores(job, key, "select")
        if missing:
            bank = bank or _bank(job, keys)
            bank.set({keys[a]: float(shares_A[a]) for a in np.flatnonzero(shares_A)})
            known |= score_and_keep(job, bank.model, Model(key, "proxy", mixture, 0.0), missing, "select")
        scores.append(known)
    return Anchored(np.array(distances), tuple(scores))


def _bank(job: Job, keys: Sequence[str]) -> Bank:
    """The base and the deltas of some fine-tunes of the store, by their keys."""
    model = job.inputs.family.load()
    base, folder = params(model), job.store.artifact_path
    return Bank(model, {key: read_delta(job.inputs.family, base, str(folder(key)), "study") for key in keys})


def predictions(world: World, found: Anchored, checked: Sequence[int]) -> dict[str, Array]:
    """What four ways say of every mixture's real score after the same checks, exponent 1, shape (M,) each:

    - `experts`: the proxies of the experts alone;
    - `anchored`: the proxies around the experts and the checked models;
    - `calibrated`: the experts' proxies and what `calibrate` learns from the checks;
    - `both`: the anchored proxies and the calibration's correction times the distance left over that to the experts.
    """
    proxy_M = world.proxies[1.0]
    sign = -1.0 if world.kind == "loss" else 1.0
    anchored_M = np.array(
        [proxy if each is None else sign * each[world.target].mean for proxy, each in zip(proxy_M, found.scores, strict=True)]
    )
    known = {row: float(world.real_select_M[row]) for row in checked}
    calibrated_M = posterior.posterior_of(world.views(1.0), known).mean_M
    whole_M = 1 - np.sum(world.weights_MN**2, axis=1)
    left_M = np.divide(found.distance_M, whole_M, out=np.zeros_like(whole_M), where=whole_M > _NEGLIGIBLE)
    both_M = anchored_M + left_M * (calibrated_M - proxy_M)
    return {"experts": proxy_M, "anchored": anchored_M, "calibrated": calibrated_M, "both": both_M}
