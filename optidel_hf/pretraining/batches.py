"""
How images reach the device, and every random number that training uses.

The pool lies on the device as 8-bit pixels. A step draws a random resized crop and a flip for each image (He et al.
2022, appendix A.1: area 20 to 100 %, aspect 3/4 to 4/3, bicubic) and cuts the whole batch with two matrix products

    out = R_y x R_x^T

where the rows of `R_y` and `R_x` are Pillow's antialiased bicubic weights for that image's own crop.

All randomness is a pure function of (seed, step, index in the global batch): the numbers of a whole global batch are
drawn on the CPU, then ranks and accumulation take their slices. So a resumed run needs to know its step and nothing
else, and any number of processes trains on the same views.

Shapes: `N` images in the pool, `B` in a batch, `L` patches of a model input, `S` side of a stored image, `T` side of a
model input.
"""

from __future__ import annotations

import functools
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import ViTImageProcessorPil
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from optidel_hf.errors import UserError
from optidel_hf.images import ImageRejected, centre_square, cut_square, open_image


logger = logging.getLogger(__name__)

LOG_ASPECT = math.log(4 / 3)
ATTEMPTS = 10
ROWS_AT_ONCE = 256
STEP_STREAM, EPOCH_STREAM = 0, 1


@dataclass(frozen=True)
class Draws:
    """
    The random numbers of one batch, or of a slice of it.

    Args:
        index (`torch.Tensor` of shape `(B,)`): rows of the pool, int64.
        box (`torch.Tensor` of shape `(B, 4)`): crops as x, y, width, height in shares of the image's side, float32.
        flip (`torch.Tensor` of shape `(B,)`): which views are mirrored, bool.
        noise (`torch.Tensor` of shape `(B, L)`): mask noise in [0, 1), float32.
    """

    index: torch.Tensor
    box: torch.Tensor
    flip: torch.Tensor
    noise: torch.Tensor

    def part(self, number: int, count: int, device: torch.device) -> Draws:
        """The `number`-th of `count` equal slices, on `device`."""
        size = len(self.index) // count
        rows = slice(number * size, (number + 1) * size)
        return Draws(*(getattr(self, field.name)[rows].to(device, non_blocking=True) for field in fields(self)))


def draw_batch(
    seed: int,
    step: int,
    *,
    batch_size: int,
    n_images: int,
    n_tokens: int,
    min_crop_scale: float = 0.2,
    flip: bool = True,
) -> Draws:
    """
    Draw everything random about one step's global batch.

    Args:
        seed (`int`): seed of the run, not negative.
        step (`int`): steps that were taken before this one.
        batch_size (`int`): global batch size `B`.
        n_images (`int`): size of the pool.
        n_tokens (`int`): patches `L` of a model input.
        min_crop_scale (`float`, *optional*, defaults to 0.2): smallest crop, in shares of the image's area.
        flip (`bool`, *optional*, defaults to `True`): mirror half of the views.

    Returns:
        [`Draws`] on the CPU; equal arguments give equal numbers.
    """
    rng = np.random.default_rng([seed, STEP_STREAM, step])
    box = _draw_boxes(rng, batch_size, min_crop_scale)
    mirrored = (rng.random(batch_size) < 0.5) & flip
    noise = rng.random((batch_size, n_tokens), dtype=np.float32)
    index = sample_order(seed, step * batch_size, batch_size, n_images)
    return Draws(*(torch.from_numpy(array) for array in (index, box, mirrored, noise)))


def sample_order(seed: int, start: int, count: int, n_images: int) -> np.ndarray:
    """
    Rows of the pool at positions `start` to `start + count` of an endless stream that runs through one permutation of
    the pool after another, so that a batch may span epochs and none is dropped.
    """
    epoch, place = np.divmod(np.arange(start, start + count), n_images)
    order = np.empty(count, dtype=np.int64)
    for number in np.unique(epoch):
        chosen = epoch == number
        order[chosen] = _permutation(seed, int(number), n_images)[place[chosen]]
    return order


class ResidentImages:
    """
    A pool of images that lies on the device and is cut there.

    Args:
        images (`torch.Tensor` of shape `(N, 3, S, S)`): RGB, uint8.
        device (`torch.device`): where they lie.
    """

    def __init__(self, images: torch.Tensor, device: torch.device) -> None:
        self.images = images.to(device)
        self.mean = 255 * torch.tensor(IMAGENET_DEFAULT_MEAN, device=device).view(3, 1, 1)
        self.std = 255 * torch.tensor(IMAGENET_DEFAULT_STD, device=device).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.images)

    def views(self, draws: Draws, size: int) -> torch.Tensor:
        """Augmented, normalised float32 views `(B, 3, T, T)` with `T = size`; `draws` lies on the same device."""
        return (crop_resize(self.images[draws.index], draws.box, draws.flip, size) - self.mean) / self.std


def crop_resize(images: torch.Tensor, box: torch.Tensor, flip: torch.Tensor, size: int) -> torch.Tensor:
    """
    Cut one crop from each image, resize it and mirror some, as `PIL.Image.resize(box=..., BICUBIC)` does.

    Args:
        images (`torch.Tensor` of shape `(B, 3, S, S)`): uint8 or float, in 0 to 255.
        box (`torch.Tensor` of shape `(B, 4)`): x, y, width, height in shares of the side.
        flip (`torch.Tensor` of shape `(B,)`): bool.
        size (`int`): side `T` of the result.

    Returns:
        `torch.Tensor` of shape `(B, 3, T, T)`, float32 in 0 to 255: within 0.01 of Pillow's float mode, and of its
        8-bit modes within 2 where nothing overshoots, for these round and clip after each of two passes.
    """
    side = images.shape[-1]
    x, y, width, height = (box * side).unbind(dim=1)
    across = _resize_weights(x, width, side, size)
    across = torch.where(flip[:, None, None], across.flip(1), across)
    down = _resize_weights(y, height, side, size)
    # Bicubic weights have negative lobes: beside an edge the product overshoots the range of a pixel.
    return (down[:, None] @ images.float() @ across[:, None].mT).clamp(0, 255)


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
        image_mean=list(IMAGENET_DEFAULT_MEAN),
        image_std=list(IMAGENET_DEFAULT_STD),
    )


def _draw_boxes(rng: np.random.Generator, count: int, min_scale: float) -> np.ndarray:
    """Random resized crops `(count, 4)`: the first of ten attempts that fits, else the whole image."""
    scale = rng.uniform(min_scale, 1, (count, ATTEMPTS + 1))
    aspect = np.exp(rng.uniform(-LOG_ASPECT, LOG_ASPECT, (count, ATTEMPTS + 1)))
    sides = np.stack([np.sqrt(scale * aspect), np.sqrt(scale / aspect)], axis=-1)  # (count, ATTEMPTS + 1, 2)
    sides[:, -1] = 1  # what is left where no attempt fits
    first = (sides.max(axis=-1) <= 1).argmax(axis=1)
    chosen = sides[np.arange(count), first]
    corner = rng.random((count, 2)) * (1 - chosen)
    return np.concatenate([corner, chosen], axis=1).astype(np.float32)


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, n_images: int) -> np.ndarray:
    return np.random.default_rng([seed, EPOCH_STREAM, epoch]).permutation(n_images)


def _resize_weights(start: torch.Tensor, length: torch.Tensor, source: int, target: int) -> torch.Tensor:
    """
    Rows `(B, target, source)` of weights that resample `[start, start + length)` of a line of `source` pixels to
    `target` pixels. Where that shrinks, the kernel widens with the scale, which is what keeps out aliasing.
    """
    scale = (length / target)[:, None, None]  # (B, 1, 1)
    middle = start[:, None, None] + (torch.arange(target, device=start.device)[:, None] + 0.5) * scale
    distance = torch.arange(source, device=start.device) + 0.5 - middle
    weights = _bicubic((distance / scale.clamp(min=1)).abs())
    return weights / weights.sum(dim=-1, keepdim=True)


def _bicubic(x: torch.Tensor) -> torch.Tensor:
    """Keys' cubic kernel with a = -1/2 at distances `x` >= 0, as in Pillow."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _decode(value: Any, size: int) -> torch.Tensor | str:
    try:
        image = open_image(value)
    except ImageRejected as reason:
        return str(reason)
    square = cut_square(image, centre_square(*image.size), size)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)
