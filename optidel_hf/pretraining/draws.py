"""
Every random number of pre-training: which images, which crops, which colours, which masks.

A number is a pure function of (seed, step, index in the global batch): row `i` of a step's table of uniform numbers
belongs to the batch's `i`-th image, whatever the number of processes, of accumulated parts and of images in the batch.
A process jumps to its own rows, so a resumed run needs to know its step and nothing else.

Shapes: `N` images in the pool, `B` of them in a part of a batch, `V` views of each, cut from `M` tiles of mosaics or
from one image (`M` = 1), `L` patches of a model input.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, fields

import numpy as np
import torch

from optidel_hf.devices import send


LOG_ASPECT = math.log(4 / 3)
ATTEMPTS = 10
SIGMA = 0.1, 2.0
ALONE = 0.5  # share of the images that show one tile enlarged, where tiles are cut one by one
VIEW_STREAM, EPOCH_STREAM, NOISE_STREAM, TILE_STREAM = 0, 1, 2, 3
# Where a view's uniform numbers lie in its row: one column each, and one for each attempt at a crop.
SCALE, ASPECT = slice(0, ATTEMPTS), slice(ATTEMPTS, 2 * ATTEMPTS)
CORNER, FACTORS = slice(2 * ATTEMPTS, 2 * ATTEMPTS + 2), slice(2 * ATTEMPTS + 2, 2 * ATTEMPTS + 6)
FLIP, JITTERED, GREY, BLURRED, WIDTH = range(2 * ATTEMPTS + 6, 2 * ATTEMPTS + 11)
COLUMNS = 2 * ATTEMPTS + 11


@dataclass(frozen=True)
class Augmentation:
    """
    How views of an image differ from it; the defaults are MAE's (He et al. 2022, appendix A.1).

    Args:
        views (`int`, *optional*, defaults to 1): views of each image.
        min_scale (`float`, *optional*, defaults to 0.2): smallest crop, in shares of the image's area; aspect ratios
            are 3/4 to 4/3.
        flip (`bool`, *optional*, defaults to `True`): mirror half of the views.
        jitter (`float`, *optional*, defaults to 0.0): strength `s`, up to 1, of the colour jitter, which four in five
            views get: brightness, contrast and saturation times 1 - 0.8 s to 1 + 0.8 s, hue turned by up to 0.2 s.
        grey (`float`, *optional*, defaults to 0.0): share of the views without colour.
        blur (`float`, *optional*, defaults to 0.0): share of the views under a Gaussian of 0.1 to 2 pixels.
        tiles (`int`, *optional*, defaults to 1): tiles of a stored mosaic, which are cropped and mirrored one by one
            and paired anew at each step; half of the images show one of them, enlarged. 1 takes images as they are.
    """

    views: int = 1
    min_scale: float = 0.2
    flip: bool = True
    jitter: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    tiles: int = 1


@dataclass(frozen=True)
class Draws:
    """
    The random numbers of some images of a batch.

    Args:
        box (`torch.Tensor` of shape `(B, V, M, 4)`): crops as x, y, width, height in shares of the side of what they
            are cut from, the image or each of its tiles, float32.
        flip (`torch.Tensor` of shape `(B, V, M)`): which of them are mirrored, bool.
        alone (`torch.Tensor` of shape `(B,)`): which images show their first tile alone, in all views, bool.
        factors (`torch.Tensor` of shape `(B, V, 4)`): brightness, contrast and saturation as factors (1 changes
            nothing), hue as a share of the full turn (0 changes nothing), float32.
        grey (`torch.Tensor` of shape `(B, V)`): which views lose their colour, bool.
        sigma (`torch.Tensor` of shape `(B, V)`): width of the blur in pixels (0: none), float32.
        noise (`torch.Tensor` of shape `(B, L)`): mask noise from 0 to 1, float32.
    """

    box: torch.Tensor
    flip: torch.Tensor
    alone: torch.Tensor
    factors: torch.Tensor
    grey: torch.Tensor
    sigma: torch.Tensor
    noise: torch.Tensor

    def to(self, device: torch.device) -> Draws:
        """The same numbers on `device`."""
        return Draws(*(send(getattr(self, field.name), device) for field in fields(self)))


def draw(seed: int, step: int, start: int, count: int, *, augmentation: Augmentation, n_tokens: int) -> Draws:
    """
    Draw everything random about images `start` to `start + count` of one step's global batch.

    Args:
        seed (`int`): seed of the run, not negative.
        step (`int`): steps that were taken before this one.
        start (`int`), count (`int`): places in the global batch.
        augmentation ([`Augmentation`]): how views are made.
        n_tokens (`int`): patches `L` of a model input.

    Returns:
        [`Draws`] on the CPU; equal arguments give equal numbers.
    """
    shape = augmentation.views, augmentation.tiles, COLUMNS
    tables = _uniform([seed, VIEW_STREAM, step], start, count, math.prod(shape)).reshape(count, *shape)
    table = tables[:, :, 0]  # (B, V, COLUMNS): colour and blur are a whole view's
    alone = _uniform([seed, TILE_STREAM, step], start, count, 1)[:, 0] < ALONE
    arrays = {
        "box": _boxes(tables, augmentation.min_scale),
        "flip": (tables[..., FLIP] < 0.5) & augmentation.flip,
        "alone": alone & (augmentation.tiles > 1),
        "factors": _factors(table, augmentation.jitter),
        "grey": table[..., GREY] < augmentation.grey,
        "sigma": np.where(table[..., BLURRED] < augmentation.blur, _between(*SIGMA, table[..., WIDTH]), 0),
        "noise": _uniform([seed, NOISE_STREAM, step], start, count, n_tokens),
    }
    return Draws(**{name: torch.from_numpy(_narrow(array)) for name, array in arrays.items()})


def sample_order(seed: int, places: range, n_images: int) -> np.ndarray:
    """
    Rows of the pool at `places` of an endless row of images that runs through one permutation of the pool after
    another, so that a batch may span epochs and none is dropped.
    """
    epoch, position = np.divmod(np.asarray(places), n_images)
    order = np.empty(len(places), dtype=np.int64)
    for number in np.unique(epoch):
        chosen = epoch == number
        order[chosen] = _permutation(seed, int(number), n_images)[position[chosen]]
    return order


def _uniform(key: list[int], start: int, count: int, columns: int) -> np.ndarray:
    """Rows `start` to `start + count` of an endless table with `columns` columns; PCG64 jumps there."""
    generator = np.random.PCG64(key)
    generator.advance(start * columns)
    return np.random.Generator(generator).random((count, columns))


def _boxes(table: np.ndarray, min_scale: float) -> np.ndarray:
    """Random resized crops `(B, V, M, 4)`: the first of ten attempts that fits, else the whole image."""
    scale = _between(min_scale, 1, table[..., SCALE])
    aspect = np.exp(_between(-LOG_ASPECT, LOG_ASPECT, table[..., ASPECT]))
    sides = np.stack([np.sqrt(scale * aspect), np.sqrt(scale / aspect)], axis=-1)  # (B, V, M, ATTEMPTS, 2)
    fits = sides.max(axis=-1) <= 1
    first = np.take_along_axis(sides, fits.argmax(axis=-1)[..., None, None], axis=-2)[..., 0, :]
    chosen = np.where(fits.any(axis=-1, keepdims=True), first, 1)
    return np.concatenate([table[..., CORNER] * (1 - chosen), chosen], axis=-1)


def _factors(table: np.ndarray, strength: float) -> np.ndarray:
    reach = strength * np.array([0.8, 0.8, 0.8, 0.2])
    neutral = np.array([1.0, 1, 1, 0])
    drawn = neutral + _between(-reach, reach, table[..., FACTORS])
    return np.where(table[..., JITTERED, None] < 0.8, drawn, neutral)


def _between(low: float | np.ndarray, high: float | np.ndarray, uniform: np.ndarray) -> np.ndarray:
    return low + (high - low) * uniform


def _narrow(array: np.ndarray) -> np.ndarray:
    return array if array.dtype == bool else array.astype(np.float32)


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, n_images: int) -> np.ndarray:
    return np.random.default_rng([seed, EPOCH_STREAM, epoch]).permutation(n_images)
