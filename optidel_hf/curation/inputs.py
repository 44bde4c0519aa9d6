"""The first stage: which source images there are, and what must not be torn apart (`inputs.parquet`)."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, concatenate_datasets
from tqdm.auto import tqdm

from optidel_hf.checkpoints import EMBEDDED
from optidel_hf.curation.near_duplicates import difference_hash, near_duplicate_components
from optidel_hf.curation.shards import FirstRank, shard_bounds, wait_for
from optidel_hf.errors import UserError
from optidel_hf.images import DECODING_THREADS, MAX_IMAGE_PIXELS, count_pixels, decode_reason, split_runs
from optidel_hf.layout import shard_paths
from optidel_hf.parquet import read_table, write_parquet
from optidel_hf.processes import process_rank
from optidel_hf.sources import find_image_column, image_columns, is_missing, open_dataset, unique_sources


logger = logging.getLogger(__name__)

LARGEST_GROUP = 0.1
IMAGES_AT_ONCE = 32


@dataclass(frozen=True)
class InputConfig:
    """The source images: any dataset that `load_dataset` opens."""

    dataset: str = field(
        default="embedded",
        metadata={"help": "Folder of images, .parquet/.arrow files, or Hub id; or 'embedded', the sample."},
    )
    split: str | None = field(default=None, metadata={"help": "One split; all of them by default."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub dataset."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset with several."})
    image_column: str | None = field(default=None, metadata={"help": "Needed where there are several."})
    id_column: str | None = field(default=None, metadata={"help": "Unique name of each image (else its path or row)."})
    group_column: str | None = field(
        default=None,
        metadata={"help": "Video or patient; one with over a tenth of the images is split (else near-duplicates)."},
    )
    limit: int | None = field(default=None, metadata={"help": "Take the first N images only."})
    held_out: float = field(
        default=0.0, metadata={"help": "Share of the images, in whole groups, that no stage sees: to judge models on."}
    )

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 0.5:
            raise UserError(f"held_out is {self.held_out}: it is a share of the images, from 0 to below 0.5.")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit is {self.limit}: take at least one image, or leave it out for all of them.")


def open_sources(config: InputConfig) -> Dataset:
    """
    The source images with columns `image` (undecoded), `source` and, where it is given, `group`.

    Raises:
        `UserError`: for a missing column, a source that occurs twice, or a dataset without images.
    """
    if config.dataset == EMBEDDED:
        raise UserError("'embedded' is the command line's name for the sample, which `optidel sample` writes.")
    dataset = open_dataset(config.dataset, config.split, config.revision, config.dataset_config)
    image = find_image_column(dataset, config.image_column)
    for flag, column in (("id_column", config.id_column), ("group_column", config.group_column)):
        if column is not None and column not in dataset.column_names:
            raise UserError(f"--{flag} {column}: no such column; the columns are {dataset.column_names}.")
        if column in image_columns(dataset):
            raise UserError(f"--{flag} {column} holds images: name a column of names or numbers.")
    column = config.id_column or "source"
    names = {"source": unique_sources(dataset[column], column)}
    if config.group_column:
        names["group"] = ["" if is_missing(value) else str(value) for value in dataset[config.group_column]]
    pictures = dataset.select_columns([image]).rename_columns({image: "image"})
    # Columns first, then order: to add columns to rows in another order datasets would copy every image.
    named = concatenate_datasets([pictures, Dataset.from_dict(names)], axis=1)
    first = range(len(named))[: config.limit]
    return named.select(sorted(first, key=names["source"].__getitem__))


def list_inputs(
    dataset: Dataset,
    output: Path,
    images_per_shard: int,
    max_pixels: int = MAX_IMAGE_PIXELS,
    first: FirstRank | None = None,
) -> pa.Table:
    """
    Write `inputs.parquet` (source, group, size in bytes; sorted by source), or check it against the dataset.

    Perceptual hashes are computed shard by shard under a hidden folder, so that a killed run goes on where it was.

    Returns:
        `pyarrow.Table`: the inputs, row-aligned with `dataset`.

    Raises:
        `UserError`: if the output was made from other images or groups.
    """
    path = output / "inputs.parquet"
    rank, world = process_rank()
    bounds = shard_bounds(len(dataset), images_per_shard)
    if not path.exists():
        # of these images in these shards: what another beginning left there is none of theirs
        folder = output / ".hashes" / _names_and_sizes(dataset, images_per_shard)
        paths = shard_paths(folder, len(bounds))
        with tqdm(total=len(dataset), desc="reading images", unit=" images", disable=rank > 0) as bar:
            for i, rows in enumerate(bounds):
                if i % world == rank and not paths[i].exists():
                    write_parquet(_hash_rows(dataset.select(rows), max_pixels), paths[i])
                bar.update(len(rows))
        if rank == 0:
            wait_for(paths, first)
            write_parquet(_with_groups(pa.concat_tables([read_table(p) for p in paths]), dataset), path)
        wait_for([path], first)
    inputs = read_table(path)
    _refuse_other_inputs(inputs, dataset, path)
    return inputs


def read_hashes(output: Path) -> pa.Table:
    """The `source` and `dhash` (32 bytes, null where it cannot be read) of the images that an output has listed."""
    none = pa.table({"source": pa.array([], pa.string()), "dhash": pa.array([], pa.binary())})
    shards = sorted(output.glob(".hashes/*/shard-*.parquet"))
    return pa.concat_tables([none, *(read_table(path, columns=none.column_names) for path in shards)])


def group_images(dataset: Dataset) -> list[str]:
    """Near-duplicate group of each image of a small set, which needs no shards; an unreadable one is its own group."""
    hashed = _hash_rows(dataset, MAX_IMAGE_PIXELS)
    return _components(hashed["source"].to_pylist(), hashed["dhash"].to_pylist())


def inputs_hash(inputs: pa.Table) -> str:
    """sha256 over source, group and size of every input."""
    rows = zip(*(inputs[name].to_pylist() for name in ("source", "group", "size")))
    return hashlib.sha256("\n".join(map(repr, rows)).encode()).hexdigest()


def _names_and_sizes(dataset: Dataset, images_per_shard: int) -> str:
    names = "\n".join(map(repr, zip(dataset["source"], _sizes(dataset))))
    return hashlib.sha256(f"{images_per_shard}\n{names}".encode()).hexdigest()[:16]


def _hash_rows(dataset: Dataset, max_pixels: int) -> pa.Table:
    values = dataset["image"]
    hashes: list[np.ndarray | None] = []
    runs = split_runs([count_pixels(value, max_pixels) for value in values], IMAGES_AT_ONCE, max_pixels)
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        for run in runs:  # together no larger than one largest image
            hashes += pool.map(lambda i: _perceptual_hash(values[i], max_pixels), run)
    return pa.table(
        {
            "source": pa.array(dataset["source"], pa.string()),
            "size": pa.array(_sizes(dataset), pa.int64()),
            "dhash": pa.array([None if h is None else h.tobytes() for h in hashes], pa.binary()),
        }
    )


def _perceptual_hash(value: Any, max_pixels: int) -> np.ndarray | None:
    image, _ = decode_reason(value, max_pixels)
    return None if image is None else difference_hash(image)


def _sizes(dataset: Dataset) -> list[int | None]:
    """Bytes of each image from lengths and file systems alone, no image is read; null where there is none."""
    images = dataset.data.column("image")
    lengths = pc.binary_length(pc.struct_field(images, "bytes"))
    paths = pc.struct_field(images, "path")
    if dataset._indices is not None:  # rows in another order: datasets would copy every image to follow it
        order = dataset._indices.column(0)
        lengths, paths = lengths.take(order), paths.take(order)
    pairs = zip(lengths.to_pylist(), paths.to_pylist())
    return [_file_size(path) if length is None else length for length, path in pairs]


def _file_size(path: str | None) -> int | None:
    return os.path.getsize(path) if path is not None and os.path.exists(path) else None


def _with_groups(hashed: pa.Table, dataset: Dataset) -> pa.Table:
    sources = hashed["source"].to_pylist()
    groups = _components(sources, hashed["dhash"].to_pylist())
    if "group" in dataset.column_names:
        groups = _given_groups(list(dataset["group"]), groups)
    return pa.table({"source": sources, "group": groups, "size": hashed["size"]})


def _given_groups(groups: list[str], components: list[str]) -> list[str]:
    """
    Given groups; an image without one is of its near-duplicates' group, a given one where one of them has it.

    Groups over a tenth of the pool are split into near-duplicate groups so that folds can balance.
    """
    counts = Counter(group for group in groups if group)
    large = {group for group, images in counts.items() if images > LARGEST_GROUP * len(groups)}
    for group in sorted(large):
        logger.warning("group '%s' holds over a tenth of the images: it is split by near-duplicates.", group)
    final = [f"{group}/{part}" if group in large else group for group, part in zip(groups, components)]
    given: dict[str, str] = {}
    for group, part in zip(final, components):
        if group:
            given.setdefault(part, group)
    return [group or given.get(part, part) for group, part in zip(final, components)]


def _components(sources: list[str], hashes: list[bytes | None]) -> list[str]:
    """Name of each image's near-duplicate group: its first source. An unreadable image is a group of its own."""
    readable = [i for i, value in enumerate(hashes) if value is not None]
    if not readable:
        return sources
    words = np.stack([np.frombuffer(hashes[i], dtype=np.uint64) for i in readable])  # type: ignore[arg-type]
    first = near_duplicate_components(words)
    names = list(sources)
    for i, j in zip(readable, first):
        names[i] = sources[readable[j]]
    return names


def _refuse_other_inputs(inputs: pa.Table, dataset: Dataset, path: Path) -> None:
    """Names, sizes and given groups are compared: what can be known without reading an image."""
    before = dict(zip(inputs["source"].to_pylist(), inputs["size"].to_pylist()))
    now = dict(zip(dataset["source"], _sizes(dataset)))
    changes = [f"'{name}' is new" for name in now if name not in before]
    changes += [f"'{name}' is gone" for name in before if name not in now]
    changes = changes or [f"'{name}' has changed" for name in now if now[name] != before[name]]
    changes = changes or _regrouped(inputs, dataset)
    if changes:
        raise UserError(
            f"{path} lists {len(before)} images and the dataset now has {len(now)}: {changes[0]}. "
            f"Run `optidel curate --reuse {path.parent} --output_dir <another folder> ...` with the dataset as it is."
        )


def _regrouped(inputs: pa.Table, dataset: Dataset) -> list[str]:
    """Images whose group is not that of --group_column. Without the column a group is named by its first image."""
    sources, groups = inputs["source"].to_pylist(), inputs["group"].to_pylist()
    if "group" not in dataset.column_names:
        return ["--group_column was given then"] if not set(groups) <= set(sources) else []
    pairs = zip(sources, groups, dataset["group"])
    torn = [(name, old) for name, old, new in pairs if new and old != new and not old.startswith(f"{new}/")]
    return [f"the group of '{name}' was '{old}'" for name, old in torn]
