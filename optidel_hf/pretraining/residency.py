"""
Where the pool of images lies while a model is trained on it, and how a batch of it reaches the device.

A curated set is small (5 % of ImageNet is 9.6 GB at 224 pixels): it lies on the device, or in memory, as 8-bit pixels
and no image is decoded twice. A larger one stays where it is stored and is decoded by threads, ahead of the device.
Tables are read in the same order wherever they lie, so that the batches are the same. A pool of mosaics may be one of
their tiles: it lies as it lay, and what is read are tiles.

Shapes: `N` images in the pool or `M` tiles of each, `B` in a part of a batch, `S` side of a stored image or tile.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from joblib import cpu_count

from optidel_hf.devices import send
from optidel_hf.errors import UserError
from optidel_hf.memory import free_memory
from optidel_hf.pretraining.draws import sample_order
from optidel_hf.pretraining.stored import StoredImages, StreamedImages, decode
from optidel_hf.pretraining.tiles import grid_side, take_tiles


logger = logging.getLogger(__name__)

# What a pool may take of the memory that is free: the rest is the model's, its activations' and everybody else's.
DEVICE_SHARE, RAM_SHARE = 0.25, 0.5
AHEAD = 3
SPARE = 32
"""Images of a stream among which one is looked for to take the place of one that cannot be read."""


class Pool(Protocol):
    """A pool of images or tiles in the order of a run, endlessly: one epoch after the other, each in another order."""

    fingerprint: str
    device: torch.device

    @property
    def n_images(self) -> int:
        """How many different images, or tiles, it has given, or can give."""

    def rows(self, place: range) -> list[int]:
        """Which images lie there: rows of the table, or their places in the stream; of tiles, their numbers."""

    def batches(self, places: Iterable[range]) -> Iterator[torch.Tensor]:
        """The images at each range of places, `(B, 3, S, S)` uint8 on the device."""


def place(
    images: torch.Tensor | StoredImages | StreamedImages,
    residency: str,
    device: torch.device,
    seed: int,
    workers: int | None = None,
    tiles: int = 1,
) -> Pool:
    """
    Bring a pool to where it is to lie.

    Args:
        images (`torch.Tensor` of shape `(N, 3, S, S)`, [`StoredImages`] or [`StreamedImages`]): uint8 pixels, or where
            they are stored.
        residency (`str`): `"device"`, `"ram"`, `"stream"`, or `"auto"`, which takes the first of these in which the
            pool has room and says so.
        device (`torch.device`): where the model is.
        seed (`int`): seed of the order.
        workers (`int`, *optional*): decoding threads, by default this process's share of the cores.
        tiles (`int`, *optional*, defaults to 1): tiles `M` of each image by which a table is read.

    Raises:
        `UserError`: if the images have another shape, there are none, or they cannot lie there.
    """
    workers = workers or max(1, cpu_count() // _processes_here())
    if isinstance(images, StreamedImages):
        if residency in ("device", "ram"):
            raise UserError(f"--residency {residency}: an archive is read from its start; give stream, or a table.")
        return SequentialPool(images, device, seed, workers)
    if not isinstance(images, StoredImages):
        _check(images)
        if residency == "stream":
            raise UserError("--residency stream: these images are in memory already; give device or ram.")
    grid_side(tiles, images.shape[-1] if isinstance(images, torch.Tensor) else images.size)
    chosen = choose_residency(images, device) if residency == "auto" else residency
    if isinstance(images, StoredImages):
        if chosen == "stream":
            return StoredPool(images, device, seed, workers, tiles)
        return ResidentPool(images.read_all(workers), device, seed, chosen == "device", images.fingerprint, tiles)
    return ResidentPool(images, device, seed, chosen == "device", tiles=tiles)


def choose_residency(images: torch.Tensor | StoredImages, device: torch.device) -> str:
    """The first of device, ram and stream in which `N * 3 * S * S` bytes have room; the log says why."""
    size = images.shape[-1] if isinstance(images, torch.Tensor) else images.size
    needed = len(images) * 3 * size * size
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    memory = free_memory() // _processes_here()
    if device.type == "cuda":
        chosen = "device" if needed <= DEVICE_SHARE * free else "ram" if needed <= RAM_SHARE * memory else "stream"
    else:
        chosen = "device" if needed <= RAM_SHARE * memory else "stream"  # the device's memory is this one
    what = f"{len(images):,} images of {size} px are {needed / 1e9:.2f} GB"
    device_room = f"{free / 1e9:.1f} GB on the device and " if device.type == "cuda" else ""
    logger.info("residency %s: %s; %s%.1f GB of memory are free", chosen, what, device_room, memory / 1e9)
    return chosen


class ResidentPool:
    """
    A pool that lies on the device or in memory.

    Args:
        images (`torch.Tensor` of shape `(N, 3, S, S)`): RGB, uint8.
        device (`torch.device`): where batches go.
        seed (`int`): seed of the order.
        on_device (`bool`, *optional*, defaults to `True`): whether the whole pool goes there.
        fingerprint (`str`, *optional*): what identifies the images, by default a hash of their pixels.
        tiles (`int`, *optional*, defaults to 1): tiles of each image by which it is read.
    """

    def __init__(
        self,
        images: torch.Tensor,
        device: torch.device,
        seed: int,
        on_device: bool = True,
        fingerprint: str | None = None,
        tiles: int = 1,
    ) -> None:
        self.fingerprint = fingerprint or hashlib.sha256(images.cpu().contiguous().numpy().data).hexdigest()[:16]
        self.images = images.to(device) if on_device else images
        self.device, self.seed, self.tiles = device, seed, tiles

    @property
    def n_images(self) -> int:
        return self.tiles * len(self.images)

    def rows(self, place: range) -> list[int]:
        return sample_order(self.seed, place, self.n_images).tolist()

    def batches(self, places: Iterable[range]) -> Iterator[torch.Tensor]:
        for place in places:
            rows = send(torch.tensor(self.rows(place)), self.images.device)
            yield _to_device(take_tiles(self.images, rows, self.tiles), self.device)


class StoredPool:
    """
    A pool that stays in its table: rows are read and decoded by threads, a few batches ahead. For a tile its whole
    mosaic is decoded.

    Args:
        stored ([`~optidel_hf.pretraining.stored.StoredImages`]): the table.
        device (`torch.device`): where batches go.
        seed (`int`): seed of the order.
        workers (`int`): decoding threads.
        tiles (`int`, *optional*, defaults to 1): tiles of each image by which it is read.
    """

    def __init__(self, stored: StoredImages, device: torch.device, seed: int, workers: int, tiles: int = 1) -> None:
        self.stored, self.device, self.seed, self.workers, self.tiles = stored, device, seed, workers, tiles
        self.fingerprint = stored.fingerprint

    @property
    def n_images(self) -> int:
        return self.tiles * len(self.stored)

    def rows(self, place: range) -> list[int]:
        return sample_order(self.seed, place, self.n_images).tolist()

    def batches(self, places: Iterable[range]) -> Iterator[torch.Tensor]:
        with ThreadPoolExecutor(self.workers) as pool:
            decoded = (list(pool.map(self._read, self.rows(place))) for place in places)
            yield from _ahead((torch.cat(images) for images in decoded), self.device)

    def _read(self, number: int) -> torch.Tensor:
        """An image or a tile, `(1, 3, S, S)`."""
        row, slot = divmod(number, self.tiles)
        return take_tiles(self.stored.read(row)[None], torch.tensor([slot]), self.tiles)


class SequentialPool:
    """
    A pool that is read from its start: archives, or the Hub.

    Args:
        streamed ([`~optidel_hf.pretraining.stored.StreamedImages`]): the stream.
        device (`torch.device`): where batches go.
        seed (`int`): seed of the order.
        workers (`int`): decoding threads.
    """

    def __init__(self, streamed: StreamedImages, device: torch.device, seed: int, workers: int) -> None:
        self.streamed, self.device, self.seed, self.workers = streamed, device, seed, workers
        self.fingerprint = streamed.fingerprint

    @property
    def n_images(self) -> int:
        return self.streamed.n_read

    def rows(self, place: range) -> list[int]:
        return list(place)

    def batches(self, places: Iterable[range]) -> Iterator[torch.Tensor]:
        read = functools.partial(decode, size=self.streamed.size)
        with ThreadPoolExecutor(self.workers) as pool:
            batches = self.streamed.values(places, self.seed, beyond=SPARE)
            yield from _ahead((_stack_readable(values, read, pool) for values in batches), self.device)


def _ahead(batches: Iterator[torch.Tensor], device: torch.device) -> Iterator[torch.Tensor]:
    """An endless iterator's items on the device, made in a thread of their own before they are asked for."""
    with ThreadPoolExecutor(1) as thread:
        ahead = deque(thread.submit(next, batches) for _ in range(AHEAD))
        while True:
            batch = ahead.popleft().result()
            ahead.append(thread.submit(next, batches))
            yield _to_device(batch, device)


def _to_device(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    if device.type == "cuda" and images.device.type == "cpu":
        images = images.pin_memory()
    return send(images, device)


def _stack_readable(
    values: list[Any], read: Callable[[Any], torch.Tensor | str], pool: ThreadPoolExecutor
) -> torch.Tensor:
    """
    The images `(B, 3, S, S)` of all values but the last `SPARE`.

    In the place of one that cannot be read stands the next one that can be, wherever its part of the batch ends.
    """
    count = len(values) - SPARE
    decoded = dict(enumerate(pool.map(read, values[:count])))
    for reason in (image for image in decoded.values() if isinstance(image, str)):
        logger.warning("an image of the stream is left out, the next one takes its place: %s", reason)
    return torch.stack([_next_readable(values, decoded, place, read) for place in range(count)])


def _next_readable(
    values: list[Any], decoded: dict[int, torch.Tensor | str], start: int, read: Callable[[Any], torch.Tensor | str]
) -> torch.Tensor:
    """The image at `start` or the first that can be read after it; what is not yet among the `decoded` is added."""
    for place in range(start, start + SPARE + 1):
        if place not in decoded:
            decoded[place] = read(values[place])
        if isinstance(image := decoded[place], torch.Tensor):
            return image
    raise UserError(f"None of {SPARE + 1} images in a row can be read; see the warnings.")


def _processes_here() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _check(images: torch.Tensor) -> None:
    if not isinstance(images, torch.Tensor):
        raise UserError(f"Images must be a datasets.Dataset or a uint8 tensor (N, 3, S, S), not {type(images)}.")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise UserError(f"Images must be a uint8 tensor (N, 3, S, S), not {images.dtype} {tuple(images.shape)}.")
    if len(images) == 0:
        raise UserError("There are no images to train on.")
