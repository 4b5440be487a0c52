"""Heads: what turns the features of an image into the logits of its classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Head:
    """A frozen linear head: logits = features @ weight.T + bias.

    Shapes are (classes, hidden) and (classes,).
    """

    weight: Tensor
    bias: Tensor

    def logits(self, features_BD: Tensor) -> Tensor:
        """Returns logits of shape (images, classes)."""
        return features_BD @ self.weight.T + self.bias


class HeadLayout:
    """Several heads by key, and side by side as one.

    `bounds` are the first class of each and the one behind its last.
    """

    def __init__(self, heads: Mapping[str, Head]) -> None:
        import torch

        ends = accumulate((len(head.bias) for head in heads.values()), initial=0)
        self.heads, self.bounds = heads, dict(zip(heads, pairwise(ends), strict=True))
        weight_CD = torch.cat([head.weight for head in heads.values()])
        self.whole = Head(weight_CD, torch.cat([head.bias for head in heads.values()]))

    def logits(self, features_BD: Tensor, bounds_B2: Tensor) -> Tensor:
        """Returns logits of all heads' classes, shape (images, classes).

        Those that are not of an image's own head, whose bounds are given, are minus infinity.
        """
        import torch

        places_C = torch.arange(len(self.whole.bias), device=features_BD.device)
        is_own_BC = (places_C >= bounds_B2[:, :1]) & (places_C < bounds_B2[:, 1:])
        return self.whole.logits(features_BD).masked_fill(~is_own_BC, float("-inf"))


def text_head(model: Any, tokenizer: Any, texts: Sequence[Sequence[str]], device: str) -> Head:
    """Returns the head that a model of two encoders makes of texts, several for each class.

    weight_c = exp(logit_scale) * unit(mean over texts of unit(text encoder(text))); the bias is the
    model's, or zero.
    """
    import torch

    # SigLIP was trained on texts padded to the longest; masked padding changes nothing for others
    padding: Any = "max_length" if model.config.model_type.startswith("siglip") else True
    limit = getattr(model.config.text_config, "max_position_embeddings", None)
    how = {"padding": padding, "truncation": True, "max_length": limit}
    rows = []
    with torch.inference_mode():
        for own in texts:
            ids = tokenizer(list(own), return_tensors="pt", **how).to(device)
            out = model.get_text_features(**ids)
            vectors_TD = unit(getattr(out, "pooler_output", out).float())
            rows.append(unit(vectors_TD.mean(dim=0)))
        weight_CD = torch.stack(rows) * model.logit_scale.float().exp()
        bias = getattr(model, "logit_bias", None)
        shift = torch.zeros(1, device=device) if bias is None else bias.float().reshape(1)
    return Head(weight_CD.clone(), shift.expand(len(rows)).clone())


def unit(vectors: Tensor) -> Tensor:
    """Returns vectors of length 1."""
    return vectors.div(vectors.norm(dim=-1, keepdim=True))


def probe(states_BD: Any, labels: Sequence[int], num_classes: int, device: str) -> Head:
    """Returns the head that a linear probe finds: a logistic regression on features.

    It is scikit-learn's with C = 1. Features are scaled to mean square 1, which the head takes
    back. A class without an example gets the lowest logit.
    """
    import numpy as np
    import torch
    from sklearn.linear_model import LogisticRegression

    scale = float(np.sqrt(np.mean(states_BD**2))) or 1.0
    found = LogisticRegression(max_iter=1000).fit(states_BD / scale, labels)
    rows, shifts = found.coef_, found.intercept_
    weight_CD = np.zeros((num_classes, states_BD.shape[1]))
    bias_C = np.full(num_classes, float(shifts.min()) - 10.0)
    if len(found.classes_) == 2:  # scikit-learn keeps one row for the two
        rows, shifts = np.concatenate([-rows, rows]) / 2, np.concatenate([-shifts, shifts]) / 2
    weight_CD[found.classes_], bias_C[found.classes_] = rows / scale, shifts
    on: Any = {"dtype": torch.float32, "device": device}
    return Head(torch.tensor(weight_CD, **on), torch.tensor(bias_C, **on))
