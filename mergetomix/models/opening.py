"""The family that a recipe names."""

from __future__ import annotations

from mergetomix.errors import RecipeError
from mergetomix.models.family import Family
from mergetomix.recipe.recipe import Recipe


def open_family(recipe: Recipe) -> Family:
    """The family that a recipe names, with its base. Loads no weights.

    Raises:
        UserError: the base is not there or of another kind, or a key is not for this family.
    """
    _refuse_foreign(recipe)
    if recipe.family == "causal-lm":
        from mergetomix.models.causal_lm.model import CausalLM

        return CausalLM(recipe.base, recipe.device, recipe.train.max_length, recipe.train.method)
    from mergetomix.models.images.classifier import ImageClassifier

    return ImageClassifier(recipe.base, recipe.device, recipe.images, recipe.train.method)


def _refuse_foreign(recipe: Recipe) -> None:
    """Raises RecipeError for a key that only another family heeds: it would be ignored without a word."""
    if recipe.family == "image-classifier":
        return
    fields = type(recipe).model_fields
    foreign = {"images": recipe.images != fields["images"].default, "train.augment": recipe.train.augment is not None}
    foreign |= {f"targets.{name}.head": spec.head is not None for name, spec in recipe.targets.items()}
    for key, given in foreign.items():
        if given:
            raise RecipeError(key, "is for family: image-classifier", hint="add that key at the top, or take this one out")
