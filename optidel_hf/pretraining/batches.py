"""
The batches of a run: images of the pool in their order, cut into views on the device.

What is random about them is told by [`~optidel_hf.pretraining.draws`], what is done to them by
[`~optidel_hf.pretraining.augmentation`], and where they come from by [`~optidel_hf.pretraining.residency`].

Shapes: `B` images in a part of a batch, `L` patches of a model input, `T` its side.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from transformers import PretrainedConfig, ViTImageProcessorPil
from transformers.image_utils import IMAGENET_DEFAULT_MEAN as MEAN
from transformers.image_utils import IMAGENET_DEFAULT_STD as STD

from optidel_hf.pretraining.augmentation import augment
from optidel_hf.pretraining.draws import Augmentation, draw
from optidel_hf.pretraining.residency import Pool, SequentialPool
from optidel_hf.pretraining.tiles import grid_side


# Views `(B, 3, T, T)` of a part of a batch and its mask noise `(B, L)`, one part after the other.
Views = Iterator[tuple[list[torch.Tensor], torch.Tensor]]


class Batches:
    """
    The views that this process trains on, in order, from any step on.

    Args:
        pool ([`~optidel_hf.pretraining.residency.Pool`]): the images, or their tiles where the augmentation has any.
        augmentation ([`~optidel_hf.pretraining.draws.Augmentation`]): how views are made.
        model (`transformers.PretrainedConfig`): says how large they are, and how many patches they have.
        seed (`int`): seed of the run.
        batch_size (`int`): images in a step's global batch.
        accumulation (`int`, *optional*, defaults to 1): parts in which a process takes its share of it.
        rank (`int`, *optional*, defaults to 0), processes (`int`, *optional*, defaults to 1): which share that is.
        names (`Sequence[str]`, *optional*): what the pool's rows are called, by default their numbers.
    """

    def __init__(
        self,
        pool: Pool,
        augmentation: Augmentation,
        model: PretrainedConfig,
        *,
        seed: int,
        batch_size: int,
        accumulation: int = 1,
        rank: int = 0,
        processes: int = 1,
        names: Sequence[str] | None = None,
    ) -> None:
        self.pool, self.augmentation, self.seed, self.batch_size = pool, augmentation, seed, batch_size
        self.names = names
        self.tiles = augmentation.tiles
        self.size, self.n_tokens = model.image_size, (model.image_size // model.patch_size) ** 2
        self.accumulation, self.rank, self.processes = accumulation, rank, processes
        grid_side(self.tiles, self.size)  # refuses a view without whole tiles

    @property
    def parts(self) -> list[Batches]:
        """Those that take turns: these alone."""
        return [self]

    @property
    def n_images(self) -> int:
        """How many different images the pool has given, or can give."""
        return self.pool.n_images // self.tiles

    def n_shown(self, steps: int) -> int:
        """How many images a run of so many steps is of: all of a table's, of a stream those that it has shown."""
        if not isinstance(self.pool, SequentialPool):
            return self.n_images
        if not self.n_images:  # a run that was finished has read nothing
            next(self.after(steps))
        return min(steps * self.batch_size, self.n_images)

    def images_of(self, step: int) -> list[int] | list[str]:
        """Which images a global batch shows, after `step` finished steps: of a mosaic's tiles, where each is from."""
        batch = range(step * self.batch_size, (step + 1) * self.batch_size)
        rows = [row // self.tiles for row in self.pool.rows(self._shown(batch))]
        return [self.names[row] for row in rows] if self.names else rows

    def after(self, step: int) -> Views:
        """
        The parts that follow `step` finished steps, `accumulation` of them a step, without end.

        Yields:
            `tuple`: the views, each a float32 tensor `(B, 3, T, T)` normalised by ImageNet's mean and deviation, and
            the mask noise `(B, L)`.
        """
        device = self.pool.device
        mean, std = (255 * torch.tensor(channels, device=device).view(3, 1, 1) for channels in (MEAN, STD))
        shown = (self._shown(place) for place in self._places(step))
        for place, images in zip(self._places(step), self.pool.batches(shown)):
            number, start = divmod(place.start, self.batch_size)
            options = {"augmentation": self.augmentation, "n_tokens": self.n_tokens}
            draws = draw(self.seed, number, start, len(place), **options).to(device)
            views = augment(images, draws, self.augmentation, self.size)
            yield [(view - mean) / std for view in views], draws.noise

    def _shown(self, place: range) -> range:
        """Where the tiles of the images at `place` lie in the endless row of tiles: an epoch pairs them anew."""
        return range(place.start * self.tiles, place.stop * self.tiles)

    def _places(self, step: int) -> Iterator[range]:
        """Where this process's parts lie in the endless row of images that the run takes, from `step` on."""
        count = self.batch_size // (self.accumulation * self.processes)
        for number in itertools.count(step):
            for part in range(self.accumulation):
                start = number * self.batch_size + (part * self.processes + self.rank) * count
                yield range(start, start + count)


class BatchesInTurn:
    """
    The views of one pool up to a step, then those of another; used as [`Batches`] are.

    Args:
        first ([`Batches`]), last ([`Batches`]): of one run, as they have its seed, batch size and shares.
        turn (`int`): steps that `first` is for.
    """

    def __init__(self, first: Batches, last: Batches, turn: int) -> None:
        self.first, self.last, self.turn = first, last, turn

    @property
    def parts(self) -> list[Batches]:
        return [self.first, self.last]

    @property
    def n_images(self) -> int:
        return self.first.n_images + self.last.n_images

    def n_shown(self, steps: int) -> int:
        return self.first.n_shown(self.turn) + self.last.n_shown(steps - self.turn)

    def images_of(self, step: int) -> list[int] | list[str]:
        return (self.first if step < self.turn else self.last).images_of(step)

    def after(self, step: int) -> Views:
        left = max(0, self.turn - step)
        yield from itertools.islice(self.first.after(step), left * self.first.accumulation)
        yield from self.last.after(step + left)


def image_processor(size: int) -> ViTImageProcessorPil:
    """The processor that turns an image into what the model was trained on: a square of `size`, normalised alike."""
    return ViTImageProcessorPil(
        size={"height": size, "width": size},
        resample=3,  # bicubic
        image_mean=list(MEAN),
        image_std=list(STD),
    )
