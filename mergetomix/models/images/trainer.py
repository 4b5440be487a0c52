"""Fine-tuning of image classifiers, on transformers' Trainer."""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergetomix.models.images.pixels import EncodedImage, Pixels
from mergetomix.sections.train import Augment, Train

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from transformers import Trainer

MOST_WORKERS = 4


class TrainingImages:
    """Images with their classes and the bounds of their heads, as a data loader takes them."""

    def __init__(
        self, pixels: Pixels, images: Sequence[EncodedImage], labels_B: Tensor, bounds_B2: Tensor
    ) -> None:
        self.pixels, self.images = pixels, images
        self.labels_B, self.bounds_B2 = labels_B, bounds_B2

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        pixels = self.pixels.get(self.images[place].picture)
        targets = {"labels": self.labels_B[place], "bounds": self.bounds_B2[place]}
        return {"pixel_values": pixels, **targets}

    def num_workers(self, wanted: int | None) -> int:
        """Returns how many processes decode: those wanted, or none if all images fit in memory.

        There are none if processes are not forked: each would get a copy of the images in memory.
        """
        ready = self.pixels.holds([image.picture for image in self.images])
        if wanted is None:
            wanted = 0 if ready else max(1, min(MOST_WORKERS, (os.cpu_count() or 2) - 1))
        if multiprocessing.get_start_method() != "fork":
            return 0
        if wanted:
            self.pixels.room_bytes = 0  # what is kept stays; workers would each keep their own
        return wanted


def trainer(
    model: Any,
    data: TrainingImages,
    loss: Callable[..., Tensor],
    settings: Train,
    arguments: Mapping[str, Any],
) -> Trainer:
    """Returns the trainer of a model; its batch normalisation keeps the base's statistics.

    `loss` is the sum over the images of a batch, of a model, pixels, labels and bounds; `arguments`
    are those of transformers' TrainingArguments.
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm
    from transformers import Trainer, TrainingArguments

    num_tokens, generator = data.images[0].num_tokens, torch.Generator().manual_seed(settings.seed)

    class ImageTrainer(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **counts: Any) -> Any:
            for module in model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
            pixels_BCHW = inputs["pixel_values"]
            if settings.augment is not None:
                pixels_BCHW = augmented(pixels_BCHW, settings.augment, generator)
            self.state.num_input_tokens_seen += len(pixels_BCHW) * num_tokens
            num = counts.get("num_items_in_batch")
            total = loss(model, pixels_BCHW, inputs["labels"], inputs["bounds"])
            return total / (len(pixels_BCHW) if num is None else num)

    ahead = 2 if arguments["dataloader_num_workers"] else None
    config = TrainingArguments(
        **arguments, remove_unused_columns=False, dataloader_prefetch_factor=ahead
    )
    if config.n_gpu > 1:
        config._n_gpu = 1  # the model is on the first and stays there
    made = ImageTrainer(model=model, args=config, train_dataset=data)
    made.model_accepts_loss_kwargs = True  # so that accumulated batches weigh every image the same
    return made


def augmented(pixels_BCHW: Tensor, settings: Augment, generator: Generator) -> Tensor:
    """Returns images changed at random, each in its own way.

    They are mirrored, turned, zoomed and shifted by one affine map with bilinear sampling; what
    comes from beyond the border repeats it. The draws are made on the CPU by `generator`, so that
    they are the same on every device.
    """
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    num, _, height, width = pixels_BCHW.shape
    draw_B6 = torch.rand(num, 6, generator=generator)
    both_B5 = 2 * draw_B6[:, 1:] - 1
    mirror_B = torch.where(draw_B6[:, 0] < settings.flip, -1.0, 1.0)
    angle_B = math.radians(settings.rotate) * both_B5[:, 0]
    size_B = 1 / (1 + settings.zoom * both_B5[:, 1])
    cos_B, sin_B = size_B * torch.cos(angle_B), size_B * torch.sin(angle_B)
    ratio = height / width  # in units where both sides are 2 long, a turn of pixels is one of these
    across_B3 = (mirror_B * cos_B, -sin_B * ratio, 2 * settings.shift * both_B5[:, 2])
    down_B3 = (mirror_B * sin_B / ratio, cos_B, 2 * settings.shift * both_B5[:, 3])
    map_B23 = torch.stack([*across_B3, *down_B3], dim=1).view(num, 2, 3).to(pixels_BCHW)
    grid = affine_grid(map_B23, list(pixels_BCHW.shape), align_corners=False)
    return grid_sample(pixels_BCHW, grid, padding_mode="border", align_corners=False)
