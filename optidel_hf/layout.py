"""A curation's folder on disk: the names that who writes it and who reads it share."""

from __future__ import annotations

from pathlib import Path


STAGES = ("patches", "rejected", "reference", "scores", ".selection", "curated")
"""The folders of the stages, beside `inputs.parquet`."""

METADATA_KEY = b"optidel"
"""Under which `selection.parquet` says how it was made, as JSON."""

NO_PATCH = "SAM found no key patch that passed the filters"
"""In `rejected/`, the reason of images that could be used, and so count in the budget, but gave nothing."""


def shard_paths(folder: Path, count: int) -> list[Path]:
    """The paths of a stage's `count` shards, whether they exist or not."""
    return [folder / f"shard-{i:05d}-of-{count:05d}.parquet" for i in range(count)]


def existing_shards(folder: Path) -> list[Path]:
    """The finished shards of a stage, in order."""
    return sorted(folder.glob("shard-*-of-*.parquet"))


def shard_number(path: Path) -> int:
    """The number in a shard's name, `shard-00002-of-00004.parquet`."""
    return int(path.name.split("-")[1])
