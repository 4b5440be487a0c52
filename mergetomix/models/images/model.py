"""Models that read images: CLIP and its kin, and any of transformers' models with a head for them.

Only the image encoder (and a shared head) is trained and merged. What turns its features into
classes is one of three heads:

    text    frozen; row c is the mean over templates of the text encoder's unit vectors, made a unit
            vector again, times the base's logit scale; features are unit vectors
            (arXiv 2103.00020, section 3.1.4)
    own     frozen, one for each dataset: a logistic regression on the base's features (the first
            half of arXiv 2202.10054)
    shared  the model's own last layer, trained and merged as all else; new and zero if the base
            knows other classes
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from mergetomix.bounds import Exceeded, limited
from mergetomix.data.examples import Examples
from mergetomix.errors import ModelError, RecipeError
from mergetomix.models.images.heads import unit
from mergetomix.models.images.label_spaces import same_classes
from mergetomix.models.pretrained import Pretrained, quiet
from mergetomix.sections.base import Base
from mergetomix.sections.images import Images
from mergetomix.sections.train import Lora
from mergetomix.store.address import digest
from mergetomix.store.store import Store

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_SIDE = ("vision_model.", "visual_projection.", "vision_projection.", "vision_proj.")
"""How the names of params begin that belong to the image side of a model of two encoders."""


class ImageModel(Pretrained):
    """A base that reads images: what is trained of it, and what an expert may change.

    `classes` are those of a shared head, and `has_new_head` says whether it replaces the base's.
    """

    kind: ClassVar[str] = "a model that reads images"

    def __init__(self, base: Base, device: str, images: Images, method: str) -> None:
        super().__init__(base, device, method)
        if base.gguf_file is not None:
            raise RecipeError("base.gguf_file", "is for language models alone")
        self.images, config = images, self.config
        self.has_two_encoders = hasattr(config, "vision_config") and hasattr(config, "text_config")
        usual, known = ("text", "text") if self.has_two_encoders else ("shared", "shared or own")
        self.head_kind = usual if images.head == "auto" else images.head
        if (self.head_kind == "text") != self.has_two_encoders:
            model = f"{base.path} is a {config.model_type} model"
            message = f"{self.head_kind}, but {model}, whose head can be {known}"
            raise RecipeError("images.head", message)
        self.auto_class = (
            "AutoModel" if self.has_two_encoders else "AutoModelForImageClassification"
        )
        names = config.architectures or ()
        self.is_headless = not any("ForImageClassification" in name for name in names)
        self.classes: tuple[str, ...] = ()
        self.has_new_head = False
        self._statistics: dict[str, Tensor] | None = None

    @cached_property
    def processor(self) -> Any:
        """The model's image processor, with Pillow behind it."""
        with quiet():
            return self.part("AutoImageProcessor", backend="pil")

    @cached_property
    def tokenizer(self) -> Any:
        """The text encoder's tokenizer."""
        return self.part("AutoTokenizer")

    def settings(self) -> dict[str, Any]:
        """Returns number types and the kind of head."""
        return {"dtype": str(self.dtype), "bf16": self.bf16, "head": self.head_kind}

    def key(self, store: Store) -> str:
        """Returns the address of the base's content, a new head included."""
        known = super().key(store)
        return digest("head", known, list(self.classes)) if self.has_new_head else known

    # --- heads

    def _check_encoders(self) -> None:
        """Raises ModelError if a model of images and texts does not compare the two."""
        model = self.skeleton()
        for part in ("get_image_features", "get_text_features", "logit_scale"):
            if not hasattr(model, part):
                named = f"{self.base.path} is a {self.config.model_type} model"
                message = f"{named}, which has no {part}, so texts make no head"
                raise ModelError("base.path", message, hint="use CLIP, SigLIP or their kin")

    def _share_head(self, sources: Sequence[Examples]) -> None:
        """Takes one list of classes for all: the base's own if it knows them, else a new head."""
        first = same_classes(sources)
        known = tuple(str(self.config.id2label[i]) for i in range(self.config.num_labels))
        self.has_new_head = self.is_headless or not set(first) <= set(known)
        # by name: which source lists them first, and how, must not matter
        self.classes = tuple(sorted(first)) if self.has_new_head else known
        if self.has_new_head and self.method == "lora":
            other = f"the head of {self.base.path} knows other classes than {', '.join(first[:5])}"
            message = f"{other}, and adapters cannot hold a new one"
            raise RecipeError("train.method", message, hint="use full, or images.head: own")

    @cached_property
    def _last(self) -> str:
        """The name of the linear layer that gives the base's logits.

        Raises ModelError if there is none, or if several might be the one that a new head replaces.
        """
        from torch import nn

        num, path = int(self.config.num_labels), self.base.path
        modules = self.skeleton().named_modules()
        found = [n for n, m in modules if isinstance(m, nn.Linear) and m.out_features == num]
        if not found:
            message = f"{path} has no linear layer of {num} outputs as its head"
            raise ModelError("base.path", message)
        if self.has_new_head and len(found) > 1:
            several = f"{path} has {len(found)} linear layers of {num} outputs"
            message = f"{several}, so which is the head is not known"
            hint = "use images.head: own, or a base whose head knows the classes"
            raise ModelError("base.path", message, hint=hint)
        return str(found[-1])

    def features(self, model: Any, pixels_BCHW: Tensor) -> Tensor:
        """Returns what the head reads: unit vectors if it is made of text.

        float32, shape (images, hidden).
        """
        model = beneath_adapter(model)
        if self.has_two_encoders:
            out = model.get_image_features(pixel_values=pixels_BCHW.to(self.dtype))
            return unit(getattr(out, "pooler_output", out).float())
        layer = model.get_submodule(self._last)
        seen: list[Tensor] = []
        hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            model(pixel_values=pixels_BCHW.to(layer.weight.dtype))
        finally:
            hook.remove()
        return seen[-1].float()

    # --- what is trained

    def is_trained(self, name: str) -> bool:
        """Returns whether a fine-tune changes a param."""
        if self.has_two_encoders:
            return name.startswith(IMAGE_SIDE)
        return self.head_kind == "shared" or not name.startswith(f"{self._last}.")

    def may_lack(self, name: str) -> bool:
        """Returns whether a param is of the head of a base that was saved without one."""
        has_none = self.is_headless and not self.has_two_encoders
        return has_none and name.startswith(f"{self._last}.")

    def prepared(self, model: Any) -> Any:
        """Returns a base with a head for its classes, and gradients only for what is trained."""
        if self.has_new_head:
            put_head(model, self._last, self.classes)
        elif self.is_headless and not self.has_two_encoders:
            put_zeros(model.get_submodule(self._last))
        for name, param in model.named_parameters():
            param.requires_grad_(self.is_trained(name))
        if self._statistics is None and not any(each.is_meta for each in model.buffers()):
            self._statistics = running_statistics(model)
        return model

    def lora_config(self, lora: Lora) -> Any:
        """Returns PEFT's configuration of adapters on the linear layers that are trained."""
        from torch import nn

        wanted, path = lora.target_modules, self.base.path
        # as PEFT reads them: a text is a pattern of the whole name, a list has the ends of names
        ends = r"(.*\.)?(" + "|".join(map(re.escape, wanted)) + ")"
        pattern = wanted if isinstance(wanted, str) else ends
        try:
            matches = re.compile(".*" if wanted == "all-linear" else pattern).fullmatch
        except (re.error, RecursionError) as error:
            message = f"{wanted!r} is no regular expression: {error}"
            raise RecipeError("train.lora.target_modules", message) from None
        modules = self.skeleton().named_modules()
        linear = [name for name, module in modules if isinstance(module, nn.Linear)]
        linear = [name for name in linear if self.is_trained(f"{name}.")]
        try:
            with limited():
                chosen = [name for name in linear if matches(name)]
        except Exceeded as error:
            raise RecipeError("train.lora.target_modules", f"{wanted!r} {error}") from None
        if not chosen:
            none = f"{path} has no linear layer to adapt"
            message = f"no linear layer of {path} is called so" if linear else none
            raise RecipeError("train.lora.target_modules", message, hint="use train.method: full")
        return super().lora_config(lora.model_copy(update={"target_modules": chosen}))

    # --- experts

    def check_expert(
        self, load: Callable[[], Any] | None, changed: frozenset[str], where: str
    ) -> None:
        """Raises ModelError if an expert changes what stays the base's in every merge."""
        odd = sorted(name for name in changed if not self.is_trained(name))
        if odd:
            stays = f"the expert changes {odd[0]}, which stays the base's"
            hint = "experts must have been trained with the text encoder and the heads frozen"
            raise ModelError(where, f"{stays}: only the image encoder is merged", hint=hint)
        if load is None or not (self.head_kind == "shared" or self._statistics):
            return
        model = load()
        labels = model.config.id2label if self.head_kind == "shared" else {}
        for i, shared in zip(sorted(labels), self.classes, strict=False):
            if str(labels[i]) != shared:
                has = f"the expert's head has the class {str(labels[i])!r}"
                hint = "a merge adds heads up class by class, so their order must be one"
                raise ModelError(where, f"{has} where the shared head has {shared!r}", hint=hint)
        found = running_statistics(model)
        for name, tensor in (self._statistics or {}).items():
            if name in found and not tensor.equal(found[name]):
                changes = f"the expert changes the running statistics {name}"
                hint = "train it with its normalisation layers in evaluation mode"
                raise ModelError(where, f"{changes}, which cannot be merged", hint=hint)


def beneath_adapter(model: Any) -> Any:
    """Returns the model of transformers beneath an adapter, if there is one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def put_zeros(layer: Any) -> None:
    """Puts zeros in place of a layer's params."""
    import torch

    with torch.no_grad():
        for param in layer.parameters():
            param.zero_()


def put_head(model: Any, name: str, classes: Sequence[str]) -> None:
    """Puts a layer of zeros for these classes in the place of the model's last one."""
    from torch import nn

    parent, _, leaf = name.rpartition(".")
    old = model.get_submodule(name)
    on = {"device": old.weight.device, "dtype": old.weight.dtype}
    layer = nn.Linear(old.in_features, len(classes), **on)
    put_zeros(layer)
    setattr(model.get_submodule(parent), leaf, layer)
    model.num_labels = model.config.num_labels = len(classes)
    model.config.id2label = dict(enumerate(classes))
    model.config.label2id = {label: i for i, label in enumerate(classes)}


def running_statistics(model: Any) -> dict[str, Tensor]:
    """Returns the running statistics of batch normalisation, which stay the base's."""
    return {
        name: each.detach().clone().cpu()
        for name, each in model.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    }
