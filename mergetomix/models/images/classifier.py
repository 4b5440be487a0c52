"""Classifiers of images: CLIP and its kin with text heads, and any of transformers' models with a head for images.

Only the image encoder (and a shared head) is trained and merged. What turns its features into classes is one of three heads:

    text    frozen; row c is the mean over templates of the text encoder's unit vectors, made a unit vector again, times the
            base's logit scale; features are unit vectors (arXiv 2103.00020, section 3.1.4)
    own     frozen, one for each dataset: a logistic regression on the base's features (the first half of arXiv 2202.10054)
    shared  the model's own last layer, trained and merged as all else; new and zero where the base knows other classes
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mergetomix.data import labelled_images, reading
from mergetomix.data.examples import Example, Examples
from mergetomix.data.image import LabelSpace, Picture
from mergetomix.data.tables import Row, open_table
from mergetomix.errors import DataError, ModelError, RecipeError
from mergetomix.models.encoding import Encoding
from mergetomix.models.images.heads import (
    Head,
    HeadLayout,
    last_layer,
    logits_by_head,
    probe,
    text_head,
)
from mergetomix.models.images.label_spaces import check_names, owner_of, same_classes, space_of
from mergetomix.models.images.pixels import Pixels
from mergetomix.models.pretrained import Pretrained, quiet
from mergetomix.sections.base import Base
from mergetomix.sections.images import Images
from mergetomix.sections.source import Source
from mergetomix.sections.train import Lora, Train
from mergetomix.store.address import digest
from mergetomix.store.store import Store

if TYPE_CHECKING:
    from torch import Tensor, nn

PLAIN_PATCH = (16, 16)
"""Pixels that count as one token where a model makes no patches."""
PROBE_TOKENS = 8192
"""Patches in one forward pass when features are taken for a head."""
IMAGE_SIDE = ("vision_model.", "visual_projection.", "vision_projection.", "vision_proj.")
"""How the names of params begin that belong to the image side of a model of two encoders."""


@dataclass(frozen=True)
class EncodedImage:
    """One image, its class as a place among its head's classes, and which head that is."""

    picture: Picture
    label: int
    head: str
    example: int
    num_tokens: int

    @property
    def num_scored(self) -> int:
        """An image has one class."""
        return 1

    def fingerprint(self) -> bytes:
        """Pixels, class, head, and the example that they are of."""
        return repr((self.picture.digest, self.label, self.head, self.example)).encode()


@dataclass(frozen=True)
class ImageBatch:
    """Images that are scored together; `rows` says which of the whole each is."""

    images: tuple[EncodedImage, ...]
    rows: tuple[int, ...]


class ImageClassifier(Pretrained):
    """A base that reads images, and the heads of the datasets and targets that `settle` was told of.

    Args:
        base: the recipe's section.
        device: `auto`, `cpu`, `cuda` or `mps`.
        images: the recipe's section.
        method: `lora` or `full`.
    """

    name: ClassVar[str] = "image-classifier"
    kind: ClassVar[str] = "a model that reads images"
    has_texts: ClassVar[bool] = False
    limits: tuple[str, ...] = ()

    def __init__(self, base: Base, device: str, images: Images, method: str) -> None:
        super().__init__(base, device, method)
        self.images = images
        self.has_two_encoders = hasattr(self.config, "vision_config") and hasattr(
            self.config, "text_config"
        )
        self.head_kind = (
            images.head if images.head != "auto" else "text" if self.has_two_encoders else "shared"
        )
        if (self.head_kind == "text") != self.has_two_encoders:
            wanted = "text" if self.has_two_encoders else "shared or own"
            message = f"{self.head_kind}, but {base.path} is a {self.config.model_type} model, whose head can be {wanted}"
            raise RecipeError("images.head", message)
        self.num_base_classes = 0 if self.has_two_encoders else int(self.config.num_labels)
        self.is_headless = not any(
            "ForImageClassification" in name for name in self.config.architectures or ()
        )
        self.classes: tuple[str, ...] = ()
        self.has_new_head = False
        self._spaces: dict[str, LabelSpace] = {}
        self._owners: dict[str, Examples] = {}
        self._heads: dict[str, Head] = {}
        self._makers: dict[str, str] = {}
        self._shapes: dict[tuple[int, int], Any] = {}
        self._statistics: dict[str, Tensor] | None = None
        self.pixels = Pixels(lambda: self.processor, self.num_channels, images.memory_gib)

    @property
    def auto_class(self) -> Any:
        """transformers' class that loads it."""
        from transformers import AutoModel, AutoModelForImageClassification

        return AutoModel if self.has_two_encoders else AutoModelForImageClassification

    @cached_property
    def processor(self) -> Any:
        """The model's image processor, with Pillow behind it."""
        from transformers import AutoImageProcessor

        with self.errors(), quiet():
            return AutoImageProcessor.from_pretrained(self.base.path, backend="pil", **self._source)

    @cached_property
    def tokenizer(self) -> Any:
        """The text encoder's tokenizer."""
        from transformers import AutoTokenizer

        with self.errors():
            return AutoTokenizer.from_pretrained(self.base.path, **self._source)

    @property
    def vision(self) -> Any:
        """The configuration of what reads images."""
        return self.config.vision_config if self.has_two_encoders else self.config

    @property
    def num_channels(self) -> int:
        """Colours that the model reads: 3, or 1 for grey."""
        return int(getattr(self.vision, "num_channels", 3))

    @cached_property
    def side(self) -> tuple[int, int] | None:
        """Height and width that the model reads, None where it reads any."""
        size = getattr(self.vision, "image_size", None)
        if size is None:
            return None
        return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))

    @cached_property
    def patch(self) -> tuple[int, int] | None:
        """Height and width of a patch, None where the model makes none."""
        size = getattr(self.vision, "patch_size", None)
        if size is None:
            return None
        return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))

    def settings(self) -> dict[str, Any]:
        """Number types and the kind of head."""
        return {"dtype": str(self.dtype), "bf16": self.bf16, "head": self.head_kind}

    def key(self, store: Store) -> str:
        """The address of the base's content, a new head included."""
        known = super().key(store)
        return digest("head", known, list(self.classes)) if self.has_new_head else known

    # --- sources

    def read(self, source: Source, where: str) -> Examples:
        """The examples of one source of labelled images."""
        if not source.label:
            raise DataError(
                f"{where}.label",
                "family: image-classifier needs labelled images: name the columns image and label",
            )
        return labelled_images.read(source, where, self.images.broken == "skip")

    def settle(self, sources: Mapping[str, Examples]) -> None:
        """Which head serves which source, and whether images, processor and model fit.

        Raises:
            UserError: a class has no name for a text head, sources of a shared head differ in theirs, a dataset of own heads
                has one class alone, a target names a head that it cannot have, or images are not of one shape.
        """
        self._owners = {
            where: examples
            for where, examples in sources.items()
            if not where.startswith("targets.")
        }
        every = list(sources.values())
        for where, examples in sources.items():
            if self.head_kind != "own" and space_of(examples).head is not None:
                raise RecipeError(
                    f"{where}.head", f"names a dataset's head, but images.head is {self.head_kind}"
                )
        if self.head_kind == "text":
            self._check_encoders()
            check_names(
                every,
                self.tokenizer,
                getattr(self.config.text_config, "max_position_embeddings", None),
            )
        if self.head_kind == "shared":
            self._share(every)
        if self.head_kind == "own":
            for where, examples in self._owners.items():
                if len({item.label for item in examples.items}) < 2:
                    raise DataError(
                        where,
                        f"all examples are of the class {examples.items[0].label!r}, so no head can be learnt",
                    )
        self._check_shapes(every)

    def rows(self, source: Source, where: str) -> tuple[list[Row], list[Any]]:
        """Rows for a function of the user's, and what each is made of: images are decoded, labels are classes by name; rows
        without images are as they are."""
        image, label = source.image or "image", source.label or "label"
        if not {image, label} <= set(open_table(source, where).columns):
            plain = reading.read_rows(source, where)
            return plain, [reading.plain_content(row) for row in plain]
        items = self.read(source, where).items
        rows: list[Row] = [
            {image: item.picture.open(), label: item.label}
            for item in items
            if item.picture is not None
        ]
        return rows, [list(item.content()) for item in items]

    def _check_encoders(self) -> None:
        """Raises ModelError where a model of images and texts is not one that compares the two."""
        model = self._bare_skeleton()
        for part in ("get_image_features", "get_text_features", "logit_scale"):
            if not hasattr(model, part):
                message = f"{self.base.path} is a {self.config.model_type} model, which has no {part}, so texts make no head"
                raise ModelError("base.path", message, hint="use CLIP, SigLIP or their kin")

    def _share(self, sources: Sequence[Examples]) -> None:
        """One list of classes for all: the base's own where it knows them, else a new head."""
        first = same_classes(sources)
        known = [str(self.config.id2label[i]) for i in range(self.num_base_classes)]
        self.has_new_head = self.is_headless or not set(first) <= set(known)
        # by name: which source lists them first, and how, must not matter
        self.classes = tuple(sorted(first)) if self.has_new_head else tuple(known)
        if self.has_new_head and self.method == "lora":
            listed = ", ".join(first[:5])
            message = f"the head of {self.base.path} knows other classes than {listed}, and adapters cannot hold a new one"
            raise RecipeError("train.method", message, hint="use full, or images.head: own")

    def _check_shapes(self, sources: Sequence[Examples]) -> None:
        """Raises UserError where what the processor makes of the images is not what the model reads, or not of one shape."""
        if not getattr(self.processor, "do_resize", False) and self.side is not None:
            return  # encode compares every image with what the model reads
        from PIL import Image

        sizes: dict[tuple[int, int], tuple[str, str]] = {}
        for examples in sources:
            for item in examples.items:
                if item.picture is not None:
                    sizes.setdefault(item.picture.size, (examples.where, item.picture.name))
        wanted = None if self.side is None else (self.num_channels, *self.side)
        for size, (where, name) in sizes.items():
            found = tuple(self.pixels.processed(Image.new("RGB", size), name).shape)
            wanted = wanted or (found[0], found[1], found[2])
            if found == wanted:
                continue
            makes = f"the image processor makes {found} of {name} ({size[0]}x{size[1]} pixels)"
            if self.side is None:
                message = f"{makes}, but {wanted} of others, and a batch needs one shape"
                raise DataError(
                    f"{where}.path",
                    message,
                    hint="resize or crop to one size in preprocessor_config.json",
                )
            message = f"{makes}, but the model reads {wanted} (colours, height, width)"
            raise ModelError(
                "base.path", message, hint="mend size and crop_size in preprocessor_config.json"
            )

    def encode(self, examples: Sequence[Example], where: str) -> Encoding:
        """Every image as one sequence of patches. Raises DataError naming an image that the model cannot read."""
        found = []
        for i, example in enumerate(examples):
            if example.picture is None or example.space is None:
                raise DataError(where, "an example without an image")
            self._check_size(example.picture, where)
            head = self._head_of(example.space, where)
            classes = self.classes or self._spaces[head].classes
            found.append(
                EncodedImage(
                    example.picture,
                    classes.index(example.label),
                    head,
                    i,
                    self._num_tokens(example.picture),
                )
            )
        return Encoding(tuple(found), len(examples))

    def _check_size(self, picture: Picture, where: str) -> None:
        """An image is as the model reads it where nothing resizes it."""
        if getattr(self.processor, "do_resize", False):
            return
        width, height = picture.size
        if self.patch is not None and (height < self.patch[0] or width < self.patch[1]):
            message = f"{picture.name} is {width}x{height} pixels, smaller than a patch of {self.patch[1]}x{self.patch[0]}"
            raise DataError(
                f"{where}.path",
                message,
                hint="set do_resize in the model's preprocessor_config.json",
            )
        if self.side is not None and (height, width) != self.side:
            message = f"{picture.name} is {width}x{height} pixels, but the model reads {self.side[1]}x{self.side[0]}"
            raise DataError(
                f"{where}.path",
                message,
                hint="set do_resize in the model's preprocessor_config.json",
            )

    def _num_tokens(self, picture: Picture) -> int:
        """Patches of an image; where the model makes none, as many as a vision transformer's of 16 x 16 pixels would be."""
        shape = self._shapes.get(picture.size)
        if shape is None:
            shape = self._shapes[picture.size] = self.side or tuple(
                self.pixels.get(picture).shape[1:]
            )
        down, across = self.patch or PLAIN_PATCH
        rounded = math.floor if self.patch else math.ceil
        return int(max(1, rounded(shape[0] / down) * rounded(shape[1] / across)))

    def _head_of(self, space: LabelSpace, where: str) -> str:
        """The key of a source's head, which says what it is made of."""
        if self.head_kind == "shared":
            return "shared"
        if self.head_kind == "text":
            key = digest("text", list(space.classes), list(space.templates))
            self._spaces[key] = space
            return key
        owner = where if where in self._owners else owner_of(self._owners, space, where)
        space = space_of(self._owners[owner])
        key = digest("own", self._owners[owner].fingerprint(), list(space.classes))
        self._spaces[key], self._makers[key] = space, owner
        return key

    def notes(self, encodings: Mapping[str, Encoding]) -> list[str]:
        """Nothing is cut from an image."""
        return []

    def shown(self, example: Example, where: str) -> list[tuple[str, bool]]:
        """An image by its size, and its class."""
        width, height = example.picture.size if example.picture else (0, 0)
        return [(f"[image {width}x{height}] ", False), (example.label, True)]

    # --- models

    def num_saved(self, lora: Lora | None) -> int:
        """How many params a saved fine-tune holds: those of the text side too."""
        return (
            self.num_trained(lora)
            if lora is not None
            else sum(p.numel() for p in self._skeleton().parameters())
        )

    def is_trained(self, name: str) -> bool:
        """Whether a fine-tune changes a param."""
        if self.has_two_encoders:
            return name.startswith(IMAGE_SIDE)
        return self.head_kind == "shared" or not name.startswith(f"{self._last_name}.")

    @cached_property
    def _last_name(self) -> str:
        """The name of the model's last layer."""
        return last_layer(
            self._bare_skeleton(), self.num_base_classes, self.base.path, alone=self.has_new_head
        )[0]

    def _bare_skeleton(self) -> Any:
        import torch

        with self.errors(), torch.device("meta"), quiet():
            return self.auto_class.from_config(
                copy.deepcopy(self.config), trust_remote_code=self.base.trust_remote_code
            )

    @property
    def may_lack(self) -> tuple[str, ...]:
        """The head of a base that was saved without one: another takes its place, or it is not used."""
        return (f"{self._last_name}.",) if self.is_headless and self.head_kind != "text" else ()

    def prepare(self, model: Any) -> None:
        """A new head where the base's is for other classes; no gradients where nothing is trained."""
        if self.has_new_head:
            _replace(model, self._last_name, self.classes)
        elif self.is_headless and not self.has_two_encoders:
            _zero(model.get_submodule(self._last_name))
        for name, param in model.named_parameters():
            param.requires_grad_(self.is_trained(name))
        if self._statistics is None and not any(each.is_meta for each in model.buffers()):
            self._statistics = _statistics(model)

    def lora_config(self, lora: Lora) -> Any:
        """The recipe's section as PEFT's configuration: adapters on the linear layers that are trained."""
        import re

        from peft import LoraConfig
        from torch import nn

        wanted, model = lora.target_modules, self._bare_skeleton()
        try:
            pattern = re.compile(wanted if isinstance(wanted, str) else "")
        except re.error as error:
            raise RecipeError(
                "train.lora.target_modules", f"{wanted!r} is no regular expression: {error}"
            ) from None

        def is_wanted(name: str) -> bool:
            if isinstance(wanted, str):
                return wanted == "all-linear" or pattern.fullmatch(name) is not None
            return any(name == each or name.endswith(f".{each}") for each in wanted)

        linear = [
            n
            for n, module in model.named_modules()
            if isinstance(module, nn.Linear) and self.is_trained(f"{n}.")
        ]
        chosen = [name for name in linear if is_wanted(name)]
        if not chosen:
            message = (
                f"no linear layer of {self.base.path} is called so"
                if linear
                else f"{self.base.path} has no linear layer to adapt"
            )
            raise RecipeError("train.lora.target_modules", message, hint="use train.method: full")
        return LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=chosen
        )  # type: ignore[arg-type]  # PEFT divides alpha by the rank: a fraction is as good

    def check_folder(self, folder: Path, where: str) -> None:
        """Images are prepared as the base wants them, whatever a folder says."""

    def check_expert(
        self, load: Callable[[], Any] | None, changed: frozenset[str], where: str
    ) -> None:
        """Raises ModelError where an expert changes what stays the base's in every merge."""
        odd = sorted(name for name in changed if not self.is_trained(name))
        if odd:
            message = f"the expert changes {odd[0]}, which stays the base's: only the image encoder is merged"
            raise ModelError(
                where,
                message,
                hint="experts must have been trained with the text encoder and the heads frozen",
            )
        if load is None or not (self.head_kind == "shared" or self._statistics):
            return
        model = load()
        if self.head_kind == "shared":
            labels = tuple(str(model.config.id2label[i]) for i in sorted(model.config.id2label))
            pairs = [
                (mine, shared)
                for mine, shared in zip(labels, self.classes, strict=False)
                if mine != shared
            ]
            if pairs:
                message = f"the expert's head has the class {pairs[0][0]!r} where the shared head has {pairs[0][1]!r}"
                raise ModelError(
                    where,
                    message,
                    hint="a merge adds heads up class by class, so their order must be one",
                )
        found = _statistics(model)
        for name, tensor in (self._statistics or {}).items():
            if name in found and not tensor.equal(found[name]):
                message = (
                    f"the expert changes the running statistics {name}, which cannot be merged"
                )
                raise ModelError(
                    where, message, hint="train it with its normalisation layers in evaluation mode"
                )

    def save(self, model: Any, folder: Path, max_shard_size: str | None = None) -> None:
        """Write a model and its processor as a folder that `from_pretrained` loads, with the frozen heads beside it."""
        super().save(model, folder, max_shard_size)
        if self.has_two_encoders:
            self.tokenizer.save_pretrained(folder)
        trained_with: Mapping[str, Head] | None = getattr(_core(model), "frozen_heads", None)
        heads = (
            self.heads(list(self._spaces)) if trained_with is None else trained_with
        )  # a merge serves every source
        if heads:
            from safetensors.torch import save_file

            tensors = {
                f"{key}.{part}": tensor
                for key, head in heads.items()
                for part, tensor in head.tensors().items()
            }
            save_file(
                tensors,
                folder / "heads.safetensors",
                {key: "\n".join(self._spaces[key].classes) for key in heads},
            )

    # --- features, heads, losses

    def features(self, model: Any, pixels_BCHW: Tensor) -> Tensor:
        """What the head reads, float32, shape (images, hidden); unit vectors where the head is made of text."""
        core = _core(model)
        if not self.has_two_encoders:
            return last_layer(core, None, self._last_name)[2](pixels_BCHW)
        out = core.get_image_features(pixel_values=pixels_BCHW.to(self.dtype))
        features_BD = getattr(out, "pooler_output", out).float()
        unit_BD: Tensor = features_BD / features_BD.norm(dim=-1, keepdim=True)
        return unit_BD

    def heads(self, keys: Sequence[str]) -> dict[str, Head]:
        """Frozen heads by key, made from the base the first time one is asked for."""
        missing = [key for key in keys if key not in self._heads]
        if missing:
            model = self.load()
            for key in missing:
                self._heads[key] = self._made(model, key)
        return {key: self._heads[key] for key in keys}

    def _made(self, model: Any, key: str) -> Head:
        space = self._spaces[key]
        if self.head_kind == "text":
            return text_head(
                model, self.tokenizer, [space.texts(name) for name in space.classes], self.device
            )
        owner = self._makers[key]
        images = self.encode(self._owners[owner].items, owner).sequences
        return probe(
            self.states(model, images, PROBE_TOKENS),
            [image.label for image in images],
            len(space.classes),
            self.device,
        )

    def states(self, model: Any, images: Sequence[EncodedImage], batch_tokens: int) -> Any:
        """The features of images, float64, shape (images, hidden)."""
        import numpy as np
        import torch

        with torch.inference_mode():
            parts = [
                self.features(model, self._stacked(batch.images)).cpu()
                for batch in self.batches(images, batch_tokens)
            ]
        return np.asarray(torch.cat(parts).double().numpy())

    def mean_state(self, model: Any, sequences: Sequence[EncodedImage], batch_tokens: int) -> Any:
        """The mean features of images; float64, shape (hidden,)."""
        return self.states(model, sequences, batch_tokens).mean(axis=0)

    def batches(self, sequences: Sequence[EncodedImage], batch_tokens: int) -> list[ImageBatch]:
        """Images in their order, of one head and at most `batch_tokens` patches a batch (or one image)."""
        groups: list[list[int]] = []
        for i, image in enumerate(sequences):
            last = groups[-1] if groups else []
            fits = (len(last) + 1) * image.num_tokens <= batch_tokens
            if last and fits and sequences[last[0]].head == image.head:
                last.append(i)
            else:
                groups.append([i])
        return [ImageBatch(tuple(sequences[i] for i in group), tuple(group)) for group in groups]

    def _stacked(self, images: Sequence[EncodedImage]) -> Tensor:
        return self.pixels.stacked([image.picture for image in images]).to(self.device)

    def _logits(self, model: Any, batch: ImageBatch) -> Tensor:
        """Logits of one head's classes, float32, shape (images, classes)."""
        pixels_BCHW = self._stacked(batch.images)
        if self.head_kind == "shared":
            logits_BC: Tensor = model(pixel_values=pixels_BCHW.to(self.dtype)).logits.float()
            return logits_BC
        (key,) = {image.head for image in batch.images}
        return self.heads([key])[key].logits(self.features(model, pixels_BCHW))

    def losses(self, model: Any, batch: ImageBatch) -> Tensor:
        """-log p of each image's class, in nats; float64 on the CPU, shape (images,), with its graph."""
        from torch.nn.functional import cross_entropy

        logits_BC = self._logits(model, batch)
        return cross_entropy(logits_BC, self._labels(batch), reduction="none").cpu().double()

    def negative_log_likelihoods(self, model: Any, batches: Sequence[ImageBatch]) -> list[float]:
        """-log p of its class, in nats, for every image in its original order."""
        return self._scored(batches, lambda batch: self.losses(model, batch))

    def right(self, model: Any, batches: Sequence[ImageBatch]) -> list[bool]:
        """Whether its class is the likeliest, for every image in its original order."""
        found = self._scored(
            batches, lambda batch: self._logits(model, batch).argmax(dim=1) == self._labels(batch)
        )
        return [bool(value) for value in found]

    def _labels(self, batch: ImageBatch) -> Tensor:
        import torch

        return torch.tensor([image.label for image in batch.images], device=self.device)

    def _scored(
        self, batches: Sequence[ImageBatch], score: Callable[[ImageBatch], Tensor]
    ) -> list[float]:
        import torch

        found: dict[int, float] = {}
        with torch.inference_mode():
            for batch in batches:
                found |= dict(zip(batch.rows, score(batch).tolist(), strict=True))
        return [found[i] for i in range(len(found))]

    def layout(self, keys: Sequence[str]) -> HeadLayout | None:
        """The heads of some training images side by side, in the order of their keys; None for a shared head."""
        return None if self.head_kind == "shared" else HeadLayout.of(self.heads(sorted(set(keys))))

    def batch_loss(
        self,
        model: Any,
        pixels_BCHW: Tensor,
        labels_B: Tensor,
        bounds_B2: Tensor,
        layout: HeadLayout | None,
    ) -> Tensor:
        """The sum over images of -log p of their class among their own head's classes."""
        import torch
        from torch.nn.functional import cross_entropy

        # the trainer's own autocast is around the model's forward alone; scores are taken in float32
        with torch.autocast(
            self.device, torch.bfloat16, enabled=self.bf16 and self.dtype == torch.float32
        ):
            if layout is None:
                logits_BC = model(pixel_values=pixels_BCHW.to(self.dtype)).logits.float()
            else:
                features_BD = self.features(model, pixels_BCHW)
        if layout is not None:
            logits_BC = logits_by_head(layout, features_BD, bounds_B2)
        loss: Tensor = cross_entropy(logits_BC, labels_B, reduction="sum")
        return loss

    def training_loss(self, model: Any, sequences: Sequence[EncodedImage]) -> Any:
        """The mean loss of one batch with its graph."""
        layout = self.layout([image.head for image in sequences])
        labels_B, bounds_B2 = placed(sequences, layout)
        pixels_BCHW = self._stacked(sequences)
        total = self.batch_loss(
            model, pixels_BCHW, labels_B.to(self.device), bounds_B2.to(self.device), layout
        )
        return total / len(sequences)

    def trainer(
        self, sequences: Sequence[EncodedImage], settings: Train, arguments: Mapping[str, Any]
    ) -> Any:
        """transformers' Trainer of the base on these images."""
        from mergetomix.models.images.trainer import trainer

        return trainer(self, sequences, settings, arguments)


def placed(images: Sequence[EncodedImage], layout: HeadLayout | None) -> tuple[Tensor, Tensor]:
    """Every image's class as a place among all heads' classes, shape (images,), and its own head's bounds, (images, 2)."""
    import torch

    starts = [(0, 0) if layout is None else layout.bounds[image.head] for image in images]
    labels = [start + image.label for (start, _), image in zip(starts, images, strict=True)]
    return torch.tensor(labels), torch.tensor(starts)


def _core(model: Any) -> Any:
    """The model of transformers beneath an adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _statistics(model: nn.Module) -> dict[str, Tensor]:
    """The running statistics of batch normalisation, which stay the base's."""
    names = ("running_mean", "running_var")
    return {
        name: each.detach().clone().cpu()
        for name, each in model.named_buffers()
        if name.endswith(names)
    }


def _zero(layer: Any) -> None:
    """Zeros in place of a layer's params."""
    import torch

    with torch.no_grad():
        for param in layer.parameters():
            param.zero_()


def _replace(model: Any, name: str, classes: Sequence[str]) -> None:
    """Puts a layer of zeros for these classes in the place of the model's last one."""
    from torch import nn

    parent, _, leaf = name.rpartition(".")
    old = model.get_submodule(name)
    layer = nn.Linear(
        old.in_features, len(classes), device=old.weight.device, dtype=old.weight.dtype
    )
    _zero(layer)
    setattr(model.get_submodule(parent), leaf, layer)
    model.config.num_labels = len(classes)
    model.config.id2label = dict(enumerate(classes))
    model.config.label2id = {label: i for i, label in enumerate(classes)}
    model.num_labels = len(classes)
