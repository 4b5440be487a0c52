"""Image classifiers: sources to images and heads, images to losses, right answers and features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mergetomix.data import labelled_images
from mergetomix.data.examples import Example, Examples
from mergetomix.data.image import LabelSpace
from mergetomix.data.selected import selected
from mergetomix.data.tables import Row, open_table
from mergetomix.errors import DataError, RecipeError
from mergetomix.models.encoding import Encoding
from mergetomix.models.images.heads import Head, HeadLayout, probe, text_head
from mergetomix.models.images.label_spaces import check_names, owner_of, space_of
from mergetomix.models.images.model import ImageModel, beneath_adapter
from mergetomix.models.images.pixels import EncodedImage, Pixels
from mergetomix.models.pretrained import quiet
from mergetomix.sections.base import Base
from mergetomix.sections.images import Images
from mergetomix.sections.source import Source
from mergetomix.sections.train import Train
from mergetomix.store.address import digest

if TYPE_CHECKING:
    from torch import Tensor

PROBE_TOKENS = 8192
"""Patches in one forward pass when features are taken for a head."""


class ImageClassifier(ImageModel):
    """A base that reads images, and the heads of the sources that `settle` was told of."""

    name: ClassVar[str] = "image-classifier"
    has_texts: ClassVar[bool] = False

    def __init__(self, base: Base, device: str, images: Images, method: str) -> None:
        super().__init__(base, device, images, method)
        vision = self.config.vision_config if self.has_two_encoders else self.config
        self.pixels = Pixels(lambda: self.processor, vision, images.memory_gib, self._reads)
        self._owners: dict[str, Examples] = {}
        self._made_of: dict[str, tuple[LabelSpace, str]] = {}
        self._heads: dict[str, Head] = {}

    def _reads(self, shape: tuple[int, ...]) -> bool:
        """Returns whether the model takes images of a shape, by a forward pass without weights."""
        import torch

        model = self.prepared(self.skeleton())
        try:
            with torch.inference_mode(), torch.device("meta"), quiet():
                self.features(model, torch.zeros(2, *shape))
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):
            return False
        return True

    # --- sources

    def read(self, source: Source, where: str) -> Examples:
        """Returns the examples of one source of labelled images."""
        if not source.label:
            needs = "family: image-classifier needs labelled images"
            raise DataError(f"{where}.label", f"{needs}: name the columns image and label")
        return labelled_images.read(source, where, self.images.broken == "skip")

    def rows(self, source: Source, where: str) -> tuple[list[Row], list[Any]]:
        """Returns rows with images decoded and classes by name, and what each is made of."""
        image, label = source.image or "image", source.label or "label"
        if not {image, label} <= set(selected(open_table(source, where), source, where).columns):
            return super().rows(source, where)
        items = self.read(source, where).items
        rows: list[Row] = [
            {image: each.picture.open(), label: each.label} for each in items if each.picture
        ]
        return rows, [list(item.content()) for item in items]

    def settle(self, sources: Mapping[str, Examples]) -> None:
        """Finds the heads of all sources, and whether images, processor and model fit.

        Raises UserError if a class has no name for a text head, sources of a shared head differ in
        theirs, a dataset of own heads has one class alone, a target names a head that it cannot
        have, or images are not of one shape.
        """
        every = list(sources.values())
        self._owners = {w: each for w, each in sources.items() if not w.startswith("targets.")}
        for where, examples in sources.items():
            if self.head_kind != "own" and space_of(examples).head is not None:
                message = f"names a dataset's head, but images.head is {self.head_kind}"
                raise RecipeError(f"{where}.head", message)
        if self.head_kind == "text":
            self._check_encoders()
            limit = getattr(self.config.text_config, "max_position_embeddings", None)
            check_names(every, self.tokenizer, limit)
        elif self.head_kind == "shared":
            self._share_head(every)
        else:
            for where, examples in self._owners.items():
                if len({item.label for item in examples.items}) < 2:
                    same = f"all examples are of the class {examples.items[0].label!r}"
                    raise DataError(where, f"{same}, so no head can be learnt")
        self.pixels.check(every)

    def shown(self, example: Example, where: str) -> list[tuple[str, bool]]:
        """Returns an image by its size, and its class."""
        width, height = example.picture.size if example.picture else (0, 0)
        return [(f"[image {width}x{height}] ", False), (example.label, True)]

    def encode(self, examples: Sequence[Example], where: str) -> Encoding:
        """Returns every image as a sequence of patches. Raises DataError if one cannot be read."""
        found: list[EncodedImage] = []
        heads: dict[LabelSpace, str] = {}
        for i, example in enumerate(examples):
            picture, space = example.picture, example.space
            if picture is None or space is None:
                raise DataError(where, "an example without an image")
            if space not in heads:
                heads[space] = self._head_of(space, where)
            classes = self.classes or self._made_of[heads[space]][0].classes
            label, num_tokens = classes.index(example.label), self.pixels.num_tokens(picture)
            found.append(EncodedImage(picture, label, heads[space], i, num_tokens))
        return Encoding(tuple(found), len(examples))

    def batches(
        self, sequences: Sequence[EncodedImage], batch_tokens: int
    ) -> list[list[EncodedImage]]:
        """Returns images in their order, of one head and at most `batch_tokens` patches a batch.

        A batch has one image at least.
        """
        found: list[list[EncodedImage]] = []
        for image in sequences:
            last = found[-1] if found else []
            fits = (len(last) + 1) * image.num_tokens <= batch_tokens
            if last and fits and last[0].head == image.head:
                last.append(image)
            else:
                found.append([image])
        return found

    def rows_of(self, batches: Sequence[Sequence[EncodedImage]]) -> list[tuple[int, ...]]:
        """Returns which images each batch holds, by their places."""
        ends = list(accumulate((len(batch) for batch in batches), initial=0))
        return [tuple(range(*each)) for each in pairwise(ends)]

    # --- heads

    def _head_of(self, space: LabelSpace, where: str) -> str:
        """Returns the key of a source's head, which says what it is made of."""
        if self.head_kind == "shared":
            return "shared"
        if self.head_kind == "text":
            owner, key = "", digest("text", list(space.classes), list(space.templates))
        else:
            owner = where if where in self._owners else owner_of(self._owners, space, where)
            space = space_of(self._owners[owner])
            key = digest("own", self._owners[owner].fingerprint(), list(space.classes))
        self._made_of[key] = (space, owner)
        return key

    def heads(self, keys: Sequence[str]) -> dict[str, Head]:
        """Returns frozen heads by key, made from the base the first time one is asked for."""
        missing = [key for key in keys if key not in self._heads]
        model = self.load() if missing else None
        for key in missing:
            space, owner = self._made_of[key]
            if self.head_kind == "text":
                texts = [space.texts(name) for name in space.classes]
                self._heads[key] = text_head(model, self.tokenizer, texts, self.device)
            else:
                images = self.encode(self._owners[owner].items, owner).sequences
                states, labels = self.states(model, images, PROBE_TOKENS), [i.label for i in images]
                self._heads[key] = probe(states, labels, len(space.classes), self.device)
        return {key: self._heads[key] for key in keys}

    def _layout(self, images: Sequence[EncodedImage]) -> HeadLayout | None:
        """Returns the heads of some images in the order of their keys; None for a shared head."""
        keys = sorted({image.head for image in images})
        return None if self.head_kind == "shared" else HeadLayout(self.heads(keys))

    # --- scores

    def _stacked(self, images: Sequence[EncodedImage]) -> Tensor:
        return self.pixels.stacked([image.picture for image in images]).to(self.device)

    def states(self, model: Any, images: Sequence[EncodedImage], batch_tokens: int) -> Any:
        """Returns the features of images, float64, shape (images, hidden)."""
        import numpy as np
        import torch

        with torch.inference_mode():
            batches = self.batches(images, batch_tokens)
            parts = [self.features(model, self._stacked(batch)).cpu() for batch in batches]
        return np.asarray(torch.cat(parts).double().numpy())

    def mean_state(self, model: Any, sequences: Sequence[EncodedImage], batch_tokens: int) -> Any:
        """Returns the mean features of images; float64, shape (hidden,)."""
        return self.states(model, sequences, batch_tokens).mean(axis=0)

    def _predicted(self, model: Any, batch: Sequence[EncodedImage]) -> tuple[Tensor, Tensor]:
        """Returns logits of one head's classes, float32, (images, classes), and labels."""
        import torch

        labels_B = torch.tensor([image.label for image in batch], device=self.device)
        pixels_BCHW = self._stacked(batch)
        if self.head_kind == "shared":
            return model(pixel_values=pixels_BCHW.to(self.dtype)).logits.float(), labels_B
        (key,) = {image.head for image in batch}
        return self.heads([key])[key].logits(self.features(model, pixels_BCHW)), labels_B

    def losses(self, model: Any, batch: Sequence[EncodedImage]) -> Tensor:
        """Returns -log p of each image's class, in nats; float64 on the CPU, with its graph."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(*self._predicted(model, batch), reduction="none").cpu().double()

    def negative_log_likelihoods(
        self, model: Any, batches: Sequence[Sequence[EncodedImage]]
    ) -> list[float]:
        """Returns -log p of its class, in nats, for every image."""
        import torch

        with torch.inference_mode():
            return [loss for batch in batches for loss in self.losses(model, batch).tolist()]

    def right(self, model: Any, batches: Sequence[Sequence[EncodedImage]]) -> list[float]:
        """Returns 1 if its class is the likeliest, else 0, for every image.

        nan stands for an image whose logits are not all finite.
        """
        import torch

        found: list[float] = []
        with torch.inference_mode():
            for batch in batches:
                logits_BC, labels_B = self._predicted(model, batch)
                right_B = (logits_BC.argmax(dim=1) == labels_B).double()
                found += right_B.where(logits_BC.isfinite().all(dim=1), torch.nan).tolist()
        return found

    # --- training

    def batch_loss(
        self,
        layout: HeadLayout | None,
        model: Any,
        pixels_BCHW: Tensor,
        labels_B: Tensor,
        bounds_B2: Tensor,
    ) -> Tensor:
        """Returns the sum over images of -log p of their class among their own head's classes."""
        import torch
        from torch.nn.functional import cross_entropy

        halves = self.bf16 and self.dtype == torch.float32
        # the trainer's own autocast is around the model's forward alone; scores are in float32
        with torch.autocast(self.device, torch.bfloat16, enabled=halves):
            if layout is None:
                logits_BC = model(pixel_values=pixels_BCHW.to(self.dtype)).logits.float()
            else:
                features_BD = self.features(model, pixels_BCHW)
        if layout is not None:
            logits_BC = layout.logits(features_BD, bounds_B2)
        return cross_entropy(logits_BC, labels_B, reduction="sum")

    def training_loss(self, model: Any, sequences: Sequence[EncodedImage]) -> Any:
        """Returns the mean loss of one batch with its graph."""
        layout = self._layout(sequences)
        targets = [each.to(self.device) for each in placed(sequences, layout)]
        total = self.batch_loss(layout, model, self._stacked(sequences), *targets)
        return total / len(sequences)

    def untrained(self) -> EncodedImage:
        """Raises RecipeError: an image is always trained on."""
        raise RecipeError("train.launch", "is for family: causal-lm")

    def trainer(
        self, sequences: Sequence[EncodedImage], settings: Train, arguments: Mapping[str, Any]
    ) -> Any:
        """Returns transformers' Trainer of the base on these images."""
        from mergetomix.models.images.trainer import TrainingImages, trainer

        layout, model = self._layout(sequences), self.load()
        if layout is not None:
            model.frozen_heads = layout.heads
        if settings.method == "lora":
            model = self.adapted(model, settings.lora)
        data = TrainingImages(self.pixels, sequences, *placed(sequences, layout))
        workers = {"dataloader_num_workers": data.num_workers(self.images.num_workers)}
        loss = partial(self.batch_loss, layout)
        return trainer(model, data, loss, settings, {**arguments, **workers})

    def save(self, model: Any, folder: Path, max_shard_size: str | None = None) -> None:
        """Writes a model and its processor for `from_pretrained`, the frozen heads beside it."""
        super().save(model, folder, max_shard_size)
        if self.has_two_encoders:
            self.tokenizer.save_pretrained(folder)
        heads: Mapping[str, Head] | None = getattr(beneath_adapter(model), "frozen_heads", None)
        if heads is None:
            heads = self.heads(list(self._made_of))  # a merge serves every source
        if not heads:
            return
        from safetensors.torch import save_file

        tensors = {f"{key}.weight": head.weight.contiguous() for key, head in heads.items()}
        tensors |= {f"{key}.bias": head.bias.contiguous() for key, head in heads.items()}
        classes = {key: "\n".join(self._made_of[key][0].classes) for key in heads}
        save_file(tensors, folder / "heads.safetensors", classes)


def placed(images: Sequence[EncodedImage], layout: HeadLayout | None) -> tuple[Tensor, Tensor]:
    """Returns images' classes among all heads', (images,), and their bounds, (images, 2)."""
    import torch

    bounds = [(0, 0) if layout is None else layout.bounds[image.head] for image in images]
    labels = [first + image.label for (first, _), image in zip(bounds, images, strict=True)]
    return torch.tensor(labels), torch.tensor(bounds)
