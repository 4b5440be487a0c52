"""Fine-tuning of image classifiers, on transformers' Trainer."""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergetomix.models.images.classifier import EncodedImage, ImageClassifier, placed
from mergetomix.sections.train import Augment, Train

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from transformers import Trainer

MOST_WORKERS = 4


def trainer(
    family: ImageClassifier,
    images: Sequence[EncodedImage],
    settings: Train,
    arguments: Mapping[str, Any],
) -> Trainer:
    """The trainer of the base on these images. Layers of batch normalisation keep the base's statistics."""
    from transformers import TrainingArguments

    num_workers = workers(family, images)
    config = TrainingArguments(
        **arguments,
        remove_unused_columns=False,
        dataloader_num_workers=num_workers,
        dataloader_prefetch_factor=2 if num_workers else None,
    )
    if config.n_gpu > 1:
        config._n_gpu = 1  # the model is on the first and stays there
    model: Any = family.load()
    layout = family.layout([image.head for image in images])
    if layout is not None:
        model.frozen_heads = dict(layout.heads)
    if settings.method == "lora":
        model = family.adapted(model, settings.lora)
    return _class(family, images, settings, layout)(
        model=model, args=config, train_dataset=_Items(family, images)
    )


def workers(family: ImageClassifier, images: Sequence[EncodedImage]) -> int:
    """Processes that decode: those that the recipe says, or none where all images are ready in memory, or where processes
    are not forked."""
    ready = family.pixels.holds([image.picture for image in images])
    wanted = family.images.num_workers
    if wanted is None:
        wanted = 0 if ready else max(1, min(MOST_WORKERS, (os.cpu_count() or 2) - 1))
    if multiprocessing.get_start_method() != "fork":
        return 0  # the images in memory would be copied to every process
    if wanted:
        family.pixels.keep_no_more()
    return wanted


class _Items:
    """Images by their place, as the data loader takes them."""

    def __init__(self, family: ImageClassifier, images: Sequence[EncodedImage]) -> None:
        self.pixels, self.images = family.pixels, images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return self.pixels.get(self.images[place].picture), place


def _class(
    family: ImageClassifier, images: Sequence[EncodedImage], settings: Train, layout: Any
) -> type[Trainer]:
    import torch
    from transformers import Trainer

    class ImageTrainer(Trainer):
        model_accepts_loss_kwargs = True

        def __init__(self, **options: Any) -> None:
            labels_B, bounds_B2 = placed(images, layout)

            def collate(items: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
                places = [place for _, place in items]
                pixels = torch.stack([pixels for pixels, _ in items])
                return {
                    "pixel_values": pixels,
                    "labels": labels_B[places],
                    "bounds": bounds_B2[places],
                }

            super().__init__(**options, data_collator=collate)
            self.model_accepts_loss_kwargs = True
            self.generator = torch.Generator().manual_seed(settings.seed)

        def compute_loss(
            self,
            model: Any,
            inputs: Any,
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            _hold_statistics(model)
            pixels_BCHW = inputs["pixel_values"]
            if settings.augment is not None:
                pixels_BCHW = augmented(pixels_BCHW, settings.augment, self.generator)
            self.state.num_input_tokens_seen += len(pixels_BCHW) * images[0].num_tokens
            total = family.batch_loss(
                model, pixels_BCHW, inputs["labels"], inputs["bounds"], layout
            )
            return total / (len(pixels_BCHW) if num_items_in_batch is None else num_items_in_batch)

    return ImageTrainer


def _hold_statistics(model: Any) -> None:
    from torch.nn.modules.batchnorm import _BatchNorm

    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def augmented(pixels_BCHW: Tensor, settings: Augment, generator: Generator) -> Tensor:
    """Images changed at random, each in its own way: mirrored, turned, zoomed and shifted by one affine map with bilinear
    sampling; what comes from beyond the border repeats it.

    The draws are made on the processor by `generator`, so that they are the same on every device.
    """
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    num, height, width = len(pixels_BCHW), pixels_BCHW.shape[2], pixels_BCHW.shape[3]
    draw_B6 = torch.rand(num, 6, generator=generator)
    both_B5 = 2 * draw_B6[:, 1:] - 1
    mirror_B = torch.where(draw_B6[:, 0] < settings.flip, -1.0, 1.0)
    angle_B = math.radians(settings.rotate) * both_B5[:, 0]
    size_B = 1 / (1 + settings.zoom * both_B5[:, 1])
    cos_B, sin_B = size_B * torch.cos(angle_B), size_B * torch.sin(angle_B)
    # in units where both sides are 2 long, a turn of pixels is one of these
    ratio = height / width
    map_B23 = torch.stack(
        [
            torch.stack(
                [mirror_B * cos_B, -sin_B * ratio, 2 * settings.shift * both_B5[:, 2]], dim=1
            ),
            torch.stack(
                [mirror_B * sin_B / ratio, cos_B, 2 * settings.shift * both_B5[:, 3]], dim=1
            ),
        ],
        dim=1,
    ).to(pixels_BCHW)
    grid = affine_grid(map_B23, list(pixels_BCHW.shape), align_corners=False)
    return grid_sample(pixels_BCHW, grid, padding_mode="border", align_corners=False)
