"""Experts pooled by their probabilities: a mixture's real scores guessed without any evaluation.

The linear opinion pool (Stone 1961): a model trained on the union of some data learns the mixture
of their distributions, so an answer is as likely as the experts' mean makes it.

    pooled loss of example e  = -log(sum_i w_i exp(-n_e loss_ie)) / n_e
    pooled score of example e = sum_i w_i score_ie

n_e is the number of scored tokens; losses are in nats per token.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mergetomix.records import Mixture, Scores


def pooled(mixture: Mixture, experts: Mapping[str, Scores]) -> Scores:
    """Returns a mixture's pooled scores on one target, from its experts' on the same examples."""
    first, members = experts[mixture.datasets[0]], mixture.members
    values_KE = np.array([experts[name].values for name in members])
    weights_K = np.array([mixture.as_dict()[name] for name in members])
    if first.kind == "score":
        return Scores(first.kind, tuple((weights_K @ values_KE).tolist()), first.weights)
    tokens_E = np.maximum(np.array(first.weights), 1.0)
    logs_KE = np.log(weights_K)[:, None] - values_KE * tokens_E
    losses_E = -np.logaddexp.reduce(logs_KE, axis=0) / tokens_E
    return Scores(first.kind, tuple(losses_E.tolist()), first.weights)
