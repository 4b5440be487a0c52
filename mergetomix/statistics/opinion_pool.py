"""Experts pooled by their probabilities: a guess at a mixture's real scores that needs no merge and no evaluation.

The linear opinion pool (Stone 1961): a model trained on the union of some data learns the mixture of their distributions, so an
answer is as likely as the experts' mean makes it.

    pooled loss of example e    = -log(sum_i w_i exp(-n_e loss_ie)) / n_e        n_e scored tokens, losses in nats per token
    pooled score of example e   = sum_i w_i score_ie
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mergetomix.records import Mixture, Scores


def pooled(mixture: Mixture, experts: Mapping[str, Scores]) -> Scores:
    """A mixture's pooled scores on one target.

    Args:
        experts: the scores of every expert of the mixture on the same examples, by dataset.
    """
    parts = {name: weight for name, weight in mixture.as_dict().items() if weight > 0}
    first = experts[mixture.datasets[0]]
    values_KE = np.array([experts[name].values for name in parts])
    weights_K = np.array(list(parts.values()))
    if first.kind == "score":
        return Scores(first.kind, tuple((weights_K @ values_KE).tolist()), first.weights)
    tokens_E = np.maximum(np.array(first.weights), 1.0)
    logs_KE = np.log(weights_K)[:, None] - values_KE * tokens_E
    return Scores(
        first.kind,
        tuple((-np.logaddexp.reduce(logs_KE, axis=0) / tokens_E).tolist()),
        first.weights,
    )
