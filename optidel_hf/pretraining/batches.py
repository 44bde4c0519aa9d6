"""
How images reach the device: a pool of 8-bit pixels that lies there, and the batches that are cut from it.

What is random about them is told by [`~optidel_hf.pretraining.draws`], and what is done to them by
[`~optidel_hf.pretraining.augmentation`].

Shapes: `N` images in the pool, `B` in a part of a batch, `L` patches of a model input, `S` side of a stored image, `T`
side of a model input.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PretrainedConfig, ViTImageProcessorPil
from transformers.image_utils import IMAGENET_DEFAULT_MEAN as MEAN
from transformers.image_utils import IMAGENET_DEFAULT_STD as STD

from optidel_hf.errors import UserError
from optidel_hf.images import ImageRejected, centre_square, cut_square, open_image
from optidel_hf.pretraining.augmentation import augment
from optidel_hf.pretraining.draws import Augmentation, draw, sample_order


logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 256
# Views `(B, 3, T, T)` of a part of a batch and its mask noise `(B, L)`, one part after the other.
Views = Iterator[tuple[list[torch.Tensor], torch.Tensor]]


class Batches:
    """
    The views that this process trains on, in order, from any step on.

    Args:
        images ([`ResidentImages`]): the pool.
        augmentation ([`~optidel_hf.pretraining.draws.Augmentation`]): how views are made.
        model (`transformers.PretrainedConfig`): says how large they are, and how many patches they have.
        seed (`int`): seed of the run.
        batch_size (`int`): images in a step's global batch.
        accumulation (`int`): parts in which a process takes its share of it.
        rank (`int`), processes (`int`): which share that is.
    """

    def __init__(
        self,
        images: ResidentImages,
        augmentation: Augmentation,
        model: PretrainedConfig,
        *,
        seed: int,
        batch_size: int,
        accumulation: int = 1,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.images, self.augmentation, self.seed, self.batch_size = images, augmentation, seed, batch_size
        self.size, self.n_tokens = model.image_size, (model.image_size // model.patch_size) ** 2
        self.accumulation, self.rank, self.processes = accumulation, rank, processes
        self.part = batch_size // (accumulation * processes)

    def after(self, step: int) -> Views:
        """
        The parts that follow `step` finished steps, `accumulation` of them a step, without end.

        Yields:
            `tuple`: the views, each a float32 tensor `(B, 3, T, T)` normalised by ImageNet's mean and deviation, and
            the mask noise `(B, L)`.
        """
        device = self.images.device
        mean, std = (255 * torch.tensor(c, device=device).view(3, 1, 1) for c in (MEAN, STD))
        for (number, start), pixels in zip(self._places(step), self.images.stream(self._orders(step))):
            draws = draw(
                self.seed, number, start, self.part, augmentation=self.augmentation, n_tokens=self.n_tokens
            ).to(device)
            views = augment(pixels, draws, self.augmentation, self.size)
            yield [(view - mean) / std for view in views], draws.noise

    def _places(self, step: int) -> Iterator[tuple[int, int]]:
        """The steps from `step` on, and where in their global batches this process's parts begin."""
        for number in itertools.count(step):
            for part in range(self.accumulation):
                yield number, (part * self.processes + self.rank) * self.part

    def _orders(self, step: int) -> Iterator[np.ndarray]:
        """The rows of the pool that make up each part."""
        for number, start in self._places(step):
            yield sample_order(self.seed, number * self.batch_size + start, self.part, len(self.images))


class ResidentImages:
    """
    A pool of images that lies on the device.

    Args:
        images (`torch.Tensor` of shape `(N, 3, S, S)`): RGB, uint8.
        device (`torch.device`): where they lie.
    """

    def __init__(self, images: torch.Tensor, device: torch.device) -> None:
        self.images, self.device = images.to(device), device

    def __len__(self) -> int:
        return len(self.images)

    def stream(self, orders: Iterable[np.ndarray]) -> Iterator[torch.Tensor]:
        """The rows that each of `orders` names, `(B, 3, S, S)` uint8 on the device."""
        for rows in orders:
            yield self.images[torch.from_numpy(rows).to(self.device)]


def load_resident(dataset: Dataset, image_column: str, size: int, threads: int | None = None) -> torch.Tensor:
    """
    Decode a dataset of images into one tensor of centred squares.

    Args:
        dataset (`datasets.Dataset`): with undecoded or decoded images.
        image_column (`str`): name of their column.
        size (`int`): side `S` in pixels; the shorter side is resized to it by Pillow's bicubic filter.
        threads (`int`, *optional*): decoding threads, by default as `ThreadPoolExecutor` chooses.

    Returns:
        `torch.Tensor` of shape `(N, 3, S, S)`, uint8. Images that cannot be read are left out, each with a warning
        that names its row and the reason.

    Raises:
        `UserError`: if no image could be read.
    """
    rows = dataset.select_columns(image_column)
    images = torch.empty((len(rows), 3, size, size), dtype=torch.uint8)
    kept = 0
    with ThreadPoolExecutor(threads) as pool, tqdm(total=len(rows), desc="decode", unit="image") as bar:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            values = rows[start : start + ROWS_AT_ONCE][image_column]
            for row, decoded in enumerate(pool.map(functools.partial(_decode, size=size), values), start):
                if isinstance(decoded, torch.Tensor):
                    images[kept] = decoded
                    kept += 1
                else:
                    logger.warning("row %d of column '%s' is left out: %s", row, image_column, decoded)
                bar.update()
    if kept == 0:
        raise UserError(f"None of the {len(rows)} images in column '{image_column}' can be read; see the warnings.")
    return images[:kept]


def image_processor(size: int) -> ViTImageProcessorPil:
    """The processor that turns an image into what the model was trained on: a square of `size`, normalised alike."""
    return ViTImageProcessorPil(
        size={"height": size, "width": size},
        resample=3,  # bicubic
        image_mean=list(MEAN),
        image_std=list(STD),
    )


def _decode(value: Any, size: int) -> torch.Tensor | str:
    try:
        image = open_image(value)
    except ImageRejected as reason:
        return str(reason)
    square = cut_square(image, centre_square(*image.size), size)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)
