"""Heads: what turns the features of an image into the logits of its classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mergetomix.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Head:
    """A frozen linear head: logits = features @ weight.T + bias, shapes (classes, hidden) and (classes,)."""

    weight: Tensor
    bias: Tensor

    def logits(self, features_BD: Tensor) -> Tensor:
        """Shape (images, classes)."""
        return features_BD @ self.weight.T + self.bias

    def tensors(self) -> dict[str, Tensor]:
        """What it is made of, by name."""
        return {"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}


@dataclass(frozen=True)
class HeadLayout:
    """Several heads side by side as one; `bounds` are the first class of each and the one behind its last."""

    head: Head
    bounds: Mapping[str, tuple[int, int]]
    heads: Mapping[str, Head]

    @classmethod
    def of(cls, heads: Mapping[str, Head]) -> HeadLayout:
        """The heads in the order given."""
        import torch

        bounds, start = {}, 0
        for key, head in heads.items():
            bounds[key] = (start, start + len(head.bias))
            start += len(head.bias)
        weight = torch.cat([head.weight for head in heads.values()])
        return cls(
            Head(weight, torch.cat([head.bias for head in heads.values()])), bounds, dict(heads)
        )


def logits_by_head(layout: HeadLayout, features_BD: Tensor, bounds_B2: Tensor) -> Tensor:
    """Logits of all heads' classes, those that are not of an image's own head at minus infinity: shape (images, classes)."""
    import torch

    places_C = torch.arange(len(layout.head.bias), device=features_BD.device)
    is_own_BC = (places_C >= bounds_B2[:, :1]) & (places_C < bounds_B2[:, 1:])
    logits_BC = layout.head.logits(features_BD)
    return logits_BC.masked_fill(~is_own_BC, float("-inf"))


def text_head(model: Any, tokenizer: Any, texts: Sequence[Sequence[str]], device: str) -> Head:
    """The head that a model of two encoders makes of texts, several for each class.

    weight_c = exp(logit_scale) * unit(mean over texts of unit(text encoder(text))); the bias is the model's, or
    zero.
    """
    import torch

    limit = getattr(model.config.text_config, "max_position_embeddings", None)
    rows = []
    with torch.inference_mode():
        for own in texts:
            # SigLIP was trained on texts padded to the longest; masked padding changes nothing for the others
            padding: Any = "max_length" if model.config.model_type.startswith("siglip") else True
            encoded = tokenizer(
                list(own), padding=padding, truncation=True, max_length=limit, return_tensors="pt"
            ).to(device)
            out = model.get_text_features(**encoded)
            vectors_TD = _unit(getattr(out, "pooler_output", out).float())
            rows.append(_unit(vectors_TD.mean(dim=0)))
        weight_CD = torch.stack(rows) * model.logit_scale.float().exp()
        bias = getattr(model, "logit_bias", None)
        shift = torch.zeros(1, device=device) if bias is None else bias.float().reshape(1)
    return Head(weight_CD.clone(), shift.expand(len(rows)).clone())


def _unit(vectors: Tensor) -> Tensor:
    unit: Tensor = vectors / vectors.norm(dim=-1, keepdim=True)
    return unit


def probe(states_BD: Any, labels: Sequence[int], num_classes: int, device: str) -> Head:
    """A logistic regression on features (scikit-learn, C = 1): the head that a linear probe finds.

    Features are scaled to mean square 1, which the head takes back. A class without an example gets the lowest logit.
    """
    import numpy as np
    import torch
    from sklearn.linear_model import LogisticRegression

    scale = float(np.sqrt(np.mean(states_BD**2))) or 1.0
    found = LogisticRegression(max_iter=1000).fit(states_BD / scale, labels)
    weight_CD, bias_C = (
        np.zeros((num_classes, states_BD.shape[1])),
        np.full(num_classes, float(found.intercept_.min()) - 10.0),
    )
    rows = (
        found.coef_ if len(found.classes_) > 2 else np.concatenate([-found.coef_, found.coef_]) / 2
    )
    shifts = (
        found.intercept_
        if len(found.classes_) > 2
        else np.array([-found.intercept_[0], found.intercept_[0]]) / 2
    )
    weight_CD[found.classes_], bias_C[found.classes_] = rows / scale, shifts
    return Head(
        torch.tensor(weight_CD, dtype=torch.float32, device=device),
        torch.tensor(bias_C, dtype=torch.float32, device=device),
    )


def last_layer(
    model: Any, num_classes: int | None, name: str, alone: bool = False
) -> tuple[str, Any, Callable[[Tensor], Tensor]]:
    """The linear layer that gives the logits: its name, itself, and a function from pixels to what it reads.

    Args:
        num_classes: how many logits the model has; None where `name` is the layer's.
        name: the layer's name, or, for errors, the model's path.
        alone: no other layer may have as many outputs.

    Raises:
        ModelError: no linear layer has so many outputs.
    """
    from torch import nn

    if num_classes is not None:
        linear = [
            n
            for n, each in model.named_modules()
            if isinstance(each, nn.Linear) and each.out_features == num_classes
        ]
        if not linear:
            raise ModelError(
                "base.path", f"{name} has no linear layer of {num_classes} outputs as its head"
            )
        if alone and len(linear) > 1:
            message = f"{name} has {len(linear)} linear layers of {num_classes} outputs, so which is the head is not known"
            raise ModelError(
                "base.path",
                message,
                hint="use images.head: own, or a base whose head knows the classes",
            )
        name = linear[-1]
    layer = model.get_submodule(name)

    def features(pixels_BCHW: Tensor) -> Tensor:
        seen: list[Tensor] = []
        hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            model(pixel_values=pixels_BCHW.to(layer.weight.dtype))
        finally:
            hook.remove()
        return seen[-1].float()

    return name, layer, features
