"""Opens the family of models that a recipe names."""

from __future__ import annotations

from mergetomix.models.family import Family
from mergetomix.sections.base import Base
from mergetomix.sections.images import Images
from mergetomix.sections.train import Train


def open_family(name: str, base: Base, device: str, train: Train, images: Images) -> Family:
    """Returns the family of a name, with its base; loads no weights.

    Raises UserError if the base is not there or of another kind.
    """
    if name == "causal-lm":
        from mergetomix.models.causal_lm.model import CausalLM

        return CausalLM(base, device, train.max_length, train.method)
    from mergetomix.models.images.classifier import ImageClassifier

    return ImageClassifier(base, device, images, train.method)
