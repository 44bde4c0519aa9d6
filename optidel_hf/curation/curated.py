"""
From a selection to a curated dataset: mosaics cut from the sources, their lineage, and the published list.

`selection.parquet` is a list, not a copy: with the source images it is enough to make the curated images again, pixel
for pixel. Its hashes are taken from the finished mosaics.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Image, List, Value
from tqdm.auto import tqdm

from optidel_hf.curation.mosaic import grid_side, pixels_sha256, render_mosaic, renderer_versions
from optidel_hf.curation.selection import Selection
from optidel_hf.curation.shards import FirstRank, shard_bounds, wait_for
from optidel_hf.errors import UserError
from optidel_hf.images import ACCEPTED, DECODING_THREADS, MAX_IMAGE_PIXELS, encode_png, open_image, source_sha256
from optidel_hf.layout import METADATA_KEY, existing_shards, shard_paths
from optidel_hf.parquet import read_table, write_parquet
from optidel_hf.processes import process_rank
from optidel_hf.sources import find_image_column, undecoded
from optidel_hf.tables import require_table


CURATED_FEATURES = Features(
    {
        "image": Image(),
        "tiles": List(
            {
                "source": Value("string"),
                "crop": List(Value("int32"), length=3),
                "pvi": Value("float32"),
                "cond_entropy": Value("float32"),
                "cluster": Value("int32"),
            }
        ),
    }
)


@dataclass(frozen=True)
class MosaicConfig:
    """The curated images."""

    image_size: int = field(default=64, metadata={"help": "Side of the curated images: the training resolution."})

    def __post_init__(self) -> None:
        if self.image_size < 16:
            raise UserError(f"image_size is {self.image_size}: a curated image has at least 16 pixels a side.")
        if self.image_size**2 > MAX_IMAGE_PIXELS:
            raise UserError(f"image_size is {self.image_size}: a curated image has at most {MAX_IMAGE_PIXELS} pixels.")


def check_grid(tiles: int, size: int) -> None:
    """Refuse an image size that the grid does not divide, before anything is computed."""
    if size % grid_side(tiles):
        raise UserError(f"image_size {size} is no multiple of {grid_side(tiles)}, the tiles along a mosaic's side.")


def draft_selection(table: pa.Table, selection: Selection) -> pa.Table:
    """
    The chosen rows of `table` in order of rank, with where each goes.

    Args:
        table (`pyarrow.Table`): scored patches; embeddings are left out of the list.
        selection ([`Selection`]).
    """
    columns = [name for name in table.column_names if name not in ("embedding", "image", "rejected")]
    chosen = table.select(columns).take(selection.rows)
    places = {"mosaic": selection.mosaic, "slot": selection.slot, "cluster": selection.cluster}
    chosen = chosen.append_column("rank", pa.array(np.arange(len(chosen)), pa.int32()))
    for name, values in places.items():
        chosen = chosen.append_column(name, pa.array(values, pa.int32()))
    return chosen.replace_schema_metadata({METADATA_KEY: json.dumps(selection.facts, sort_keys=True).encode()})


def curated_dataset(scored: Dataset, selection: Selection, images: Dataset, size: int = 64) -> Dataset:
    """
    The curated images of a selection, in memory: `select`'s counterpart to what [`curate`] writes in shards.

    Args:
        scored (`datasets.Dataset`): the table that the selection was made from.
        selection ([`Selection`]).
        images (`datasets.Dataset`): the source images, in a column of any name, with `source` names or file paths.
        size (`int`, *optional*, defaults to 64): side of the curated images, in pixels.

    Returns:
        `datasets.Dataset` with `image` and `tiles`, one row a mosaic.

    Raises:
        `UserError`: if two images have one name, one selected is not there, or its grid does not divide `size`.
    """
    for table, what in ((scored, "`scored`"), (images, "`images`")):
        require_table(table, what)
    check_grid(int(selection.slot.max()) + 1, size)
    values = undecoded(images)[find_image_column(images)]
    names = images["source"] if "source" in images.column_names else [value and value["path"] for value in values]
    rows: dict[str, int] = {}
    for row, name in enumerate(names):
        if name is not None and rows.setdefault(str(name), row) != row:
            raise UserError(
                f"Images {rows[str(name)]} and {row} are both called '{name}', so nothing tells whose a patch is: "
                "add a column 'source' of unique names before patches are cut."
            )
    chosen = draft_selection(scored.with_format("arrow")[:], selection)
    if unknown := set(chosen["source"].to_pylist()) - set(rows):
        raise UserError(f"'{min(unknown)}' is selected and not among these images: give those that were cut.")
    return build_curated(chosen, lambda source: values[rows[source]], size)


def build_curated(chosen: pa.Table, find_source: Callable[[str], Any], size: int) -> Dataset:
    """
    Render every mosaic of a selection.

    Args:
        chosen (`pyarrow.Table`): from [`draft_selection`], or rows of `selection.parquet`.
        find_source (`Callable[[str], Any]`): from a source's name to its (undecoded) image.
        size (`int`): side of the curated images, in pixels.

    Returns:
        `datasets.Dataset` with `image` and `tiles`, one row a mosaic.
    """
    mosaics = _tiles_of(chosen)
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        images = list(pool.map(lambda tiles: _render(tiles, find_source, size), mosaics))
    rows = {"image": [{"bytes": image, "path": None} for image in images], "tiles": [_lineage(t) for t in mosaics]}
    return Dataset.from_dict(rows, features=CURATED_FEATURES)


def curated_shards(
    chosen: pa.Table,
    find_source: Callable[[str], Any],
    size: int,
    folder: Path,
    rows_per_shard: int,
    first: FirstRank | None = None,
) -> None:
    """Write the curated dataset's shards that do not exist yet, those of this rank; then wait for the others'."""
    rank, world = process_rank()
    mosaic = np.asarray(chosen["mosaic"])
    bounds = shard_bounds(int(mosaic.max()) + 1, rows_per_shard)
    paths = shard_paths(folder, len(bounds))
    with tqdm(total=bounds[-1].stop, desc="mosaics", unit=" images", disable=rank > 0) as bar:
        for i, rows in enumerate(bounds):
            if i % world == rank and not paths[i].exists():
                part = chosen.filter(pa.array((mosaic >= rows.start) & (mosaic < rows.stop)))
                write_parquet(to_arrow(build_curated(part, find_source, size)), paths[i])
            bar.update(len(rows))
    wait_for(paths, first)


def publish_selection(
    chosen: pa.Table, find_source: Callable[[str], Any], folder: Path, path: Path, facts: dict[str, Any]
) -> None:
    """Write `selection.parquet`: the draft with the hashes of its sources and of its finished mosaics."""
    hashes = [pixels_sha256(open_image(value)) for path in existing_shards(folder) for value in _images(path)]
    sources = chosen["source"].to_pylist()
    known = {source: source_sha256(find_source(source)) for source in sorted(set(sources))}
    table = chosen.append_column("source_sha256", pa.array([known[source] for source in sources]))
    table = table.append_column("pixels_sha256", pa.array([hashes[m] for m in chosen["mosaic"].to_pylist()]))
    drafted = json.loads(chosen.schema.metadata[METADATA_KEY])
    metadata = {**drafted, **facts, "versions": renderer_versions()}
    write_parquet(table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()}), path)


def to_arrow(dataset: Dataset) -> pa.Table:
    """A dataset's rows as one arrow table that carries its features, as `load_dataset` reads them from parquet."""
    schema = dataset.features.arrow_schema
    return dataset.with_format("arrow")[:].cast(schema).replace_schema_metadata(schema.metadata)


def _tiles_of(chosen: pa.Table) -> list[list[dict[str, Any]]]:
    rows = sorted(chosen.to_pylist(), key=lambda row: (row["mosaic"], row["slot"]))
    mosaics: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        mosaics.setdefault(row["mosaic"], []).append(row)
    return list(mosaics.values())


def _render(tiles: Sequence[dict[str, Any]], find_source: Callable[[str], Any], size: int) -> bytes:
    sources = [open_image(find_source(tile["source"]), ACCEPTED) for tile in tiles]
    return encode_png(render_mosaic(sources, [tuple(tile["crop"]) for tile in tiles], size))


def _lineage(tiles: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: tile.get(name) for name in ("source", "crop", "pvi", "cond_entropy", "cluster")} for tile in tiles]


def _images(path: Path) -> list[dict[str, Any]]:
    return read_table(path, columns=["image"])["image"].to_pylist()
