"""
Images where they are stored: rows of a table that can be read in any order, or a stream that is read from its start.

Both give centred squares of 8-bit pixels. An image that cannot be read is named with its reason, and the next one that
can be takes its place, so that rows are the same wherever a pool is kept.

Shapes: `N` images, `B` in a part of a batch, `S` side of a stored image.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path
from tarfile import TarError
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset, Image, IterableDataset, IterableDatasetDict, List, concatenate_datasets, load_dataset
from tqdm.auto import tqdm

from optidel_hf.errors import UserError
from optidel_hf.images import ImageRejected, centre_square, cut_square, open_image
from optidel_hf.sources import find_image_column, open_dataset, undecoded


logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 256
SHUFFLE_BUFFER = 10_000
FINGERPRINTED = 64


class StoredImages:
    """
    The images of a dataset, read row by row when they are asked for.

    Args:
        dataset (`datasets.Dataset`): with undecoded or decoded images.
        image_column (`str`): name of their column.
        size (`int`): side `S` in pixels; the shorter side is resized to it by Pillow's bicubic filter.
    """

    def __init__(self, dataset: Dataset, image_column: str, size: int) -> None:
        self.dataset, self.image_column, self.size = dataset, image_column, size
        self.rows = undecoded(dataset.select_columns(image_column)).with_format(None)
        self.names = dataset["source"] if "source" in dataset.column_names else None
        self.lineage = dataset.select_columns("tiles") if isinstance(dataset.features.get("tiles"), List) else None

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, rows: range) -> StoredImages:
        """Some of the rows, as images of their own."""
        return StoredImages(self.dataset.select(rows), self.image_column, self.size)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash over every source and the pixels of 64 images, the same wherever the pool is to lie."""
        told = [str(self.size), self.image_column, str(len(self)), *(self.names or [])]
        sample = np.unique(np.linspace(0, len(self) - 1, FINGERPRINTED).astype(int))
        decoded = (decode(self.rows[row][self.image_column], self.size) for row in sample.tolist())
        pixels = (image.numpy().tobytes().hex() if isinstance(image, torch.Tensor) else image for image in decoded)
        return _digest([*told, *pixels])

    @functools.cached_property
    def tiles_per_mosaic(self) -> int:
        """
        Tiles of an image, as the lineage in a curated dataset's column `tiles` has them.

        Raises:
            `UserError`: if there is no such column, or if it has not as many for each image.
        """
        if self.lineage is None:
            raise UserError("--tile_augmentation: the dataset has no column 'tiles'; give --tiles_per_mosaic.")
        counts = pc.list_value_length(self.lineage.with_format("arrow")[:]["tiles"]).fill_null(0).unique().to_pylist()
        if len(counts) > 1:
            found = f"{min(counts)} to {max(counts)}"
            raise UserError(f"--tile_augmentation: by the column 'tiles' images have {found} tiles, not all as many.")
        return counts[0]

    def read(self, row: int) -> torch.Tensor:
        """Row number `row`, or the next one that can be read, `(3, S, S)` uint8."""
        for place in range(row, row + len(self)):
            decoded = decode(self.rows[place % len(self)][self.image_column], self.size)
            if isinstance(decoded, torch.Tensor):
                return decoded
            self._skip(place % len(self), decoded)
        raise self._nothing()

    def read_all(self, workers: int | None = None) -> torch.Tensor:
        """
        Every row, decoded by `workers` threads: `(N, 3, S, S)` uint8, row by row what [`~StoredImages.read`] gives.

        Raises:
            `UserError`: if no image can be read.
        """
        images = torch.empty((len(self), 3, self.size, self.size), dtype=torch.uint8)
        good = []
        with ThreadPoolExecutor(workers) as pool, tqdm(total=len(self), desc="decode", unit="image") as bar:
            for start in range(0, len(self), ROWS_AT_ONCE):
                values = self.rows[start : start + ROWS_AT_ONCE][self.image_column]
                for row, decoded in enumerate(pool.map(functools.partial(decode, size=self.size), values), start):
                    if isinstance(decoded, torch.Tensor):
                        images[row] = decoded
                        good.append(row)
                    else:
                        self._skip(row, decoded)
                    bar.update()
        if not good:
            raise self._nothing()
        bad = np.setdiff1d(np.arange(len(self)), good)
        images[bad] = images[np.take(good, np.searchsorted(good, bad), mode="wrap")]
        return images

    def _skip(self, row: int, reason: str) -> None:
        which = f"row {row} of column '{self.image_column}'" + (f" ({self.names[row]})" if self.names else "")
        logger.warning("%s is left out, the next one takes its place: %s", which, reason)

    def _nothing(self) -> UserError:
        where = f"the {len(self)} images in column '{self.image_column}'"
        return UserError(f"None of {where} can be read; see the warnings.")


class StreamedImages:
    """
    The images of a stream, which is read from its start: WebDataset archives, or a dataset on the Hub.

    The order is that of `datasets`' shuffle buffer: each epoch it deals the shards out anew by (seed, epoch) and then
    draws from a buffer of 10,000 rows, so neighbours in a shard stay near each other. The order is the same for any
    number of processes, all of which read the whole stream and decode their own images; a resumed run reads again,
    without decoding it, what came before.

    Args:
        rows (`datasets.IterableDataset`): with one undecoded image a row.
        image_column (`str`): name of their column.
        size (`int`): side `S` in pixels.
        fingerprint (`str`): what identifies the stream.
    """

    def __init__(self, rows: IterableDataset, image_column: str, size: int, fingerprint: str) -> None:
        self.rows, self.image_column, self.size, self.fingerprint = rows, image_column, size, fingerprint
        self.n_read = 0

    def values(self, places: Iterable[range], seed: int, beyond: int = 0) -> Iterator[list[Any]]:
        """Undecoded images at each range of places of the endless stream and `beyond` it; the ranges ascend."""
        stream, at = self._epochs(seed), 0
        read = deque[Any]()  # from place `at` on
        for place in places:
            while at < place.start:
                read.popleft() if read else next(stream)
                at += 1
            read.extend(itertools.islice(stream, len(place) + beyond - len(read)))
            yield list(read)

    def _epochs(self, seed: int) -> Iterator[Any]:
        shuffled = self.rows.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
        for epoch in itertools.count():
            shuffled.set_epoch(epoch)
            count = 0
            for row in shuffled:
                count += 1
                self.n_read = max(self.n_read, count)
                yield row[self.image_column]
            if count == 0:
                raise UserError("The stream holds no rows.")


def open_images(
    dataset: str,
    *,
    size: int,
    split: str | None = None,
    revision: str | None = None,
    config: str | None = None,
    image_column: str | None = None,
    limit: int | None = None,
    stream: bool = False,
) -> StoredImages | StreamedImages:
    """
    Open a pool of images where it is stored.

    Args:
        dataset (`str`): what [`~optidel_hf.sources.open_dataset`] opens, or `.tar` files of a WebDataset.
        size (`int`): side `S` in pixels to which images are cut.
        split (`str`, *optional*), revision (`str`, *optional*), config (`str`, *optional*): of a dataset on the Hub.
        image_column (`str`, *optional*): needed where there are several.
        limit (`int`, *optional*): take the first images only.
        stream (`bool`, *optional*, defaults to `False`): read a dataset on the Hub without downloading it first.

    Raises:
        `UserError`: if nothing is there, or no image is in it.
    """
    archives = dataset.endswith(".tar")
    if archives or (stream and not _is_local(dataset)):
        if archives and (split or revision or config):
            raise UserError(
                f"--dataset {dataset}: archives have no splits, revisions or configurations; give those to be read."
            )
        rows = _stream_archives(dataset) if archives else _stream_hub(dataset, split, revision, config)
        column = find_image_column(rows, image_column)
        rows = rows.select_columns(column).cast_column(column, Image(decode=False))
        rows = rows if limit is None else rows.take(limit)
        which = _names_and_sizes(dataset) if archives else dataset
        told = (which, split, revision, config, column, limit, size, SHUFFLE_BUFFER)
        return StreamedImages(rows, column, size, _digest(map(str, told)))
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}: take at least one image, or leave it out for all of them.")
    opened = open_dataset(dataset, split, revision, config)
    opened = opened if limit is None else opened.select(range(min(limit, len(opened))))
    return StoredImages(opened, find_image_column(opened, image_column), size)


def decode(value: Any, size: int) -> torch.Tensor | str:
    """The centred square of an image, `(3, size, size)` uint8, or the reason why there is none."""
    try:
        image = open_image(value)
    except ImageRejected as reason:
        return str(reason)
    square = cut_square(image, centre_square(*image.size), size)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def _is_local(dataset: str) -> bool:
    path = Path(dataset).expanduser()
    return path.exists() or bool(path.suffix in (".parquet", ".arrow"))


def _stream_archives(pattern: str) -> IterableDataset:
    try:
        return load_dataset("webdataset", data_files=pattern, split="train", streaming=True)
    except (OSError, ValueError, TarError) as error:
        raise UserError(f"--dataset {pattern} cannot be read as WebDataset archives: {error}") from None


def _names_and_sizes(pattern: str) -> list[tuple[str, int]] | str:
    """What tells archives here, wherever they lie; of others the pattern itself."""
    return [(os.path.basename(file), os.path.getsize(file)) for file in sorted(glob(pattern))] or pattern


def _stream_hub(
    repo: str, split: str | None = None, revision: str | None = None, config: str | None = None
) -> IterableDataset:
    try:
        opened = load_dataset(repo, config, split=split, revision=revision, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"--dataset {repo} cannot be streamed from the Hub: {error}") from None
    return concatenate_datasets(list(opened.values())) if isinstance(opened, IterableDatasetDict) else opened


def _digest(parts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part}\n".encode())
    return digest.hexdigest()[:16]
