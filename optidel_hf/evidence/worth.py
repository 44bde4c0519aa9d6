"""
What a selection is worth on a testbed, where it is known: how much junk it took, and how much of the pool it covers.

    junk share   = chosen tiles cut from junk / chosen tiles            beside the pool's: junk images / images
    coverage     = scenes (or scene types) with a chosen tile / those with a usable image in the pool

A tile of junk covers nothing. Junk is a property of the whole image: a tile of bare tissue, cut from a frame with text
on it, counts as junk. The tail are the rarest half of the scene types, by their scenes in the pool.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from optidel_hf.curation.shards import read_columns
from optidel_hf.errors import UserError
from optidel_hf.layout import existing_shards
from optidel_hf.parquet import read_table


@dataclass(frozen=True)
class Worth:
    """
    What the chosen tiles are worth.

    Args:
        tiles (`int`): Chosen tiles.
        junk (`int`): Of them, tiles cut from junk.
        kinds (`dict[str, int]`): ... by kind of junk, only those that occur.
        scenes, scene_types, tail_types (`tuple[int, int]`): With a usable tile, and in the pool. A pool whose scene
            types are not known has none.
    """

    tiles: int
    junk: int
    kinds: dict[str, int]
    scenes: tuple[int, int]
    scene_types: tuple[int, int]
    tail_types: tuple[int, int]

    @property
    def junk_share(self) -> float:
        """Junk's share of the tiles."""
        return self.junk / self.tiles


def judge_curated(folder: str | Path, latents: str | Path) -> Worth:
    """
    Judge a curated dataset, of `curate` or of an arm, by the lineage of its tiles.

    Args:
        folder (`str` or `Path`): `curated/`, its shards.
        latents (`str` or `Path`): the testbed's `latents.parquet`.

    Raises:
        `UserError`: if there are no shards or no latents, or the tiles are not of this pool.
    """
    for found, place, hint in (
        (bool(existing_shards(Path(folder))), folder, "optidel curate"),
        (Path(latents).exists(), latents, "optidel testbed"),
    ):
        if not found:
            raise UserError(f"{place}: nothing is there; `{hint}` writes it.")
    tiles = read_columns(Path(folder), ["tiles"])["tiles"].combine_chunks().flatten()
    return judge(tiles.field("source").to_pylist(), read_table(Path(latents)))


def judge(sources: Sequence[str], latents: pa.Table) -> Worth:
    """
    Judge chosen tiles by what is known of their sources.

    Args:
        sources (`Sequence[str]`): the source of every tile.
        latents (`pyarrow.Table`): `source`, `scene`, `scene_type` and `junk` of every image of the pool.

    Raises:
        `UserError`: if there is no tile, or one's source is not in the pool.
    """
    if not sources:
        raise UserError("no tile was chosen: there is nothing to judge.")
    rows = {row["source"]: row for row in latents.to_pylist()}
    if unknown := next((source for source in sources if source not in rows), None):
        raise UserError(f"source '{unknown}' is not in these latents: give the testbed's images/ as --dataset.")
    tiles, pool = [rows[source] for source in sources], list(rows.values())
    kinds = Counter(row["junk"] for row in tiles if row["junk"])
    tail = _tail(pool)
    return Worth(
        tiles=len(tiles),
        junk=kinds.total(),
        kinds=dict(sorted(kinds.items())),
        scenes=(len(_usable(tiles, "scene")), len(_usable(pool, "scene"))),
        scene_types=(len(_usable(tiles, "scene_type")), len(_usable(pool, "scene_type"))),
        tail_types=(len(_usable(tiles, "scene_type") & tail), len(tail)),
    )


def _usable(rows: Sequence[dict], latent: str) -> set[int]:
    """The values of a latent among rows that are no junk."""
    return {row[latent] for row in rows if row["junk"] is None and row[latent] is not None}


def _tail(pool: Sequence[dict]) -> set[int]:
    """The rarest half of the scene types, rounded down; of equally rare ones those with the higher number."""
    scenes = {
        (row["scene_type"], row["scene"]) for row in pool if row["junk"] is None and row["scene_type"] is not None
    }
    counts = Counter(kind for kind, _ in scenes)
    rarest = sorted(counts, key=lambda kind: (counts[kind], -kind))
    return set(rarest[: len(rarest) // 2])
