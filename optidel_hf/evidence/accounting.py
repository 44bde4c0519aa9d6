"""
What an arm is made of and what it cost: facts that stand beside its result.

    images, stored_pixels, stored_bytes   what pre-training reads; which arms store as many pixels, `arms.py` says
    sources, groups                       distinct source images and near-duplicate groups of its tiles
    native_pixels                         pixels of the source images inside its tiles, each counted once
    curation_seconds                      to make this arm and all it needs, added up over processes (by `build_arm`)

and, of its tiles under the seed's reference model of key patches, the same for every arm, so that figures compare:

    null_entropy    (i)   H_V(Y|0), bits per value
    coverage        (i)   mean cosine distance from the pool's key patches to the nearest tile, about the pool's mean
    cond_entropy    (ii)  H_V(Y|X), bits per value; each tile by the model that has not seen its group

The third measurement, held-out V-information, is of the model that was pre-trained on the arm.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from optidel_hf.curation.keys import KEY_FEATURES
from optidel_hf.curation.scoring import ScoreConfig, VInformationScorer
from optidel_hf.curation.shards import read_columns
from optidel_hf.embeddings import nearest_distance, spaced, unit_vectors
from optidel_hf.images import cut_square, encode_png, open_image
from optidel_hf.layout import existing_shards
from optidel_hf.parquet import read_table


CONTENTS = ("images", "stored_pixels", "stored_bytes", "sources", "groups", "native_pixels")
MEASURES = ("null_entropy", "coverage", "cond_entropy")
MEASURED = 2048
"""Tiles, and patches of the pool, evenly spaced, that are measured at most."""
ROWS_AT_ONCE = 256

FindSource = Callable[[str], Any]
"""From a source's name to its undecoded image."""


def count_contents(chosen: pa.Table, curated: Path, size: int) -> dict[str, float]:
    """
    Facts of a curated dataset and its tiles.

    Args:
        chosen (`pyarrow.Table`): its tiles, with `source`, `group` and `crop`.
        curated (`Path`): folder of its shards.
        size (`int`): side of its images, in pixels.
    """
    lengths = [_png_bytes(path) for path in existing_shards(curated)]
    images = sum(map(len, lengths))
    facts = {
        "images": images,
        "stored_pixels": images * size**2,
        "stored_bytes": sum(map(sum, lengths)),
        "sources": pc.count_distinct(chosen["source"]).as_py(),
        "groups": pc.count_distinct(chosen["group"]).as_py(),
        "native_pixels": count_native_pixels(chosen["source"].to_pylist(), chosen["crop"].to_pylist()),
    }
    return {name: float(value) for name, value in facts.items()}


def count_native_pixels(sources: list[str], crops: list[list[int]]) -> int:
    """Pixels of the source images that lie in at least one of their crops (x, y, side)."""
    squares: dict[str, list[list[int]]] = {}
    for source, crop in zip(sources, crops):
        squares.setdefault(source, []).append(crop)
    return sum(_union(np.array(crops)) for crops in squares.values())


def _png_bytes(shard: Path) -> list[int]:
    images = read_table(shard, columns=["image"])["image"]
    return pc.binary_length(pc.struct_field(images, "bytes")).to_pylist()


def _union(crops: np.ndarray) -> int:
    """Area of the union of squares `(k, 3)`, on the grid of their own edges."""
    low, high = crops[:, :2], crops[:, :2] + crops[:, 2:]
    x, y = (np.unique([low[:, axis], high[:, axis]]) for axis in (0, 1))
    inside_x, inside_y = (
        (low[:, axis, None] <= edges[:-1]) & (edges[1:] <= high[:, axis, None]) for axis, edges in ((0, x), (1, y))
    )
    covered = (inside_x[:, :, None] & inside_y[:, None, :]).any(axis=0)
    return int(np.diff(x) @ covered @ np.diff(y))


def measure_tiles(
    chosen: pa.Table, find_source: FindSource, scored: Path, config: ScoreConfig, size: int, device: str
) -> dict[str, float]:
    """
    What the seed's reference model of key patches says of an arm's tiles.

    Args:
        chosen (`pyarrow.Table`): the tiles.
        find_source (`Callable`): from a source's name to its image.
        scored (`Path`): output of `curate` with the pool's scored key patches.
        config ([`ScoreConfig`]): how they were scored.
        size (`int`): side at which patches are scored, in pixels.
    """
    scorer = VInformationScorer(str(scored / "reference"), config, device)
    tiles = chosen.select(list(KEY_FEATURES)).take(spaced(len(chosen), MEASURED))
    parts = []
    for start in range(0, len(tiles), ROWS_AT_ONCE):
        batch = tiles.slice(start, ROWS_AT_ONCE).to_pydict()
        batch["image"] = [
            _cut(find_source(source), crop, size) for source, crop in zip(batch["source"], batch["crop"])
        ]
        parts.append(scorer(batch))
    embedding = np.concatenate([np.stack(part["embedding"]) for part in parts])
    means = {
        name: float(np.mean(np.concatenate([part[name] for part in parts]))) for name in MEASURES if name in parts[0]
    }
    return {**means, "coverage": coverage(_pool_embeddings(scored), embedding)}


def coverage(pool: np.ndarray, tiles: np.ndarray) -> float:
    """Mean cosine distance, 0 to 2, from `(n, D)` patches to the nearest of `(m, D)` tiles, about the pool's mean."""
    mean = pool.mean(axis=0, dtype=np.float64)
    return nearest_distance(unit_vectors(pool, mean), unit_vectors(tiles, mean))


def _pool_embeddings(scored: Path) -> np.ndarray:
    """Evenly spaced patches of the pool, `(n, D)`."""
    column = read_columns(scored / "scores", ["embedding"])["embedding"].combine_chunks()
    embedding = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    return embedding[spaced(len(embedding), MEASURED)]


def _cut(value: Any, crop: list[int], size: int) -> dict[str, Any]:
    x, y, side = crop
    return {"bytes": encode_png(cut_square(open_image(value), (x, y, side), size)), "path": None}
