"""The panel of what the selection covers: near-duplicate groups, source images, and folders of the pool."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePosixPath
from typing import Any

import pyarrow.compute as pc

from optidel_hf.layout import existing_shards
from optidel_hf.parquet import read_table
from optidel_hf.publishing.figures import thumbnail
from optidel_hf.publishing.records import CurationRecord, Key, Row, patch_key, read_rows, rows_of


GROUPS_DRAWN, TILES_DRAWN = 6, 8
GROUPS_LISTED, FOLDERS_LISTED = 20, 20
TILE_SIDE, TILE_BYTES = 72, 5_000
MOST = 5
"""Chosen patches of one source image or group from which on they are counted together."""


def coverage_panel(record: CurationRecord) -> dict[str, Any] | None:
    """
    How evenly the selection draws on the pool.

    Args:
        record (`CurationRecord`): A curation with a selection; without one the panel is left out.

    Returns:
        `dict`, or `None`: `shares` (how many source images and groups gave how many patches), `groups` (the largest:
        `name`, `images`, `patches`, `chosen`, `tiles`), `copies` (images beyond the first of their group), and
        `folders` (`name`, `images`, `chosen`, and their shares), empty where all images lie in one.
    """
    if record.selection is None or not existing_shards(record.folder / "patches"):
        return None
    inputs = read_table(record.folder / "inputs.parquet", columns=["source", "group"])
    group = dict(zip(inputs["source"].to_pylist(), inputs["group"].to_pylist()))
    chosen = {patch_key(row): row["rank"] for row in record.selection.select(["source", "crop", "rank"]).to_pylist()}
    given, cut = Counter(source for source, _ in chosen), _patches_by_source(record)
    by_group, patches, images = (Counter[str]() for _ in range(3))
    for source, count in cut.items():
        patches[group[source]] += count
        by_group[group[source]] += given[source]
        images[group[source]] += 1
    largest = [name for name in _most(images) if images[name] > 1][:GROUPS_LISTED]
    drawn = {name: _first_sources(name, group, cut, given) for name in largest[:GROUPS_DRAWN]}
    tiles = _tiles(record, {source for part in drawn.values() for source in part}, chosen)
    return {
        "shares": _shares({"sources": (given, set(cut)), "groups": (by_group, set(images))}),
        "copies": len(cut) - len(images),
        "groups": [
            {"name": name, "images": images[name], "patches": patches[name], "chosen": by_group[name]}
            | {"tiles": [tiles[source] for source in drawn.get(name, [])]}
            for name in largest
        ],
        "folders": _folders(set(cut), given),
    }


def _patches_by_source(record: CurationRecord) -> Counter[str]:
    """How many key patches were cut from each source image, one shard in memory at a time."""
    found: Counter[str] = Counter()
    for path in existing_shards(record.folder / "patches"):
        for count in pc.value_counts(read_table(path, columns=["source"])["source"]).to_pylist():
            found[count["values"]] += count["counts"]
    return found


def _most(counts: Counter[str]) -> list[str]:
    """Names by falling count, equal ones by name."""
    return sorted(counts, key=lambda name: (-counts[name], name))


def _first_sources(name: str, group: dict[str, str], cut: Counter[str], given: Counter[str]) -> list[str]:
    """Some source images of a group, those that gave a chosen patch first."""
    sources = [source for source in cut if group[source] == name]
    return sorted(sources, key=lambda source: (not given[source], source))[:TILES_DRAWN]


def _tiles(record: CurationRecord, sources: set[str], chosen: dict[Key, int]) -> dict[str, dict[str, Any]]:
    """One patch of each of some source images: the first that was chosen, else the first that was cut."""
    folder = record.folder / "patches"
    found: dict[str, tuple[Key, Row]] = {}
    for key, row in rows_of(folder, sources):
        best, _ = found.setdefault(key[0], (key, row))
        if chosen.get(key, len(chosen)) < chosen.get(best, len(chosen)):
            found[key[0]] = key, row
    images = read_rows(folder, [row for _, row in found.values()], ["image"])
    return {
        source: {
            "uri": thumbnail(image["image"], TILE_SIDE, TILE_BYTES),
            "title": source,
            "chosen": key in chosen,
        }
        for (source, (key, _)), image in zip(found.items(), images)
    }


def _shares(counted: dict[str, tuple[Counter[str], set[str]]]) -> list[dict[str, Any]]:
    """How many of each kind gave 0, 1, ... patches; the last row counts all that gave `MOST` or more."""
    rows = []
    for number in range(MOST + 1):
        row: dict[str, Any] = {"chosen": f"{number}" if number < MOST else f"{MOST} or more"}
        for kind, (given, everything) in counted.items():
            count = sum(min(given[name], MOST) == number for name in everything)
            row[kind] = count
            row[f"{kind}_share"] = count / max(1, len(everything))
        rows.append(row)
    return rows


def _folders(sources: set[str], by_source: Counter[str]) -> list[dict[str, Any]]:
    """The largest folders' shares of the images and of the chosen patches."""
    images, chosen = Counter(map(_folder, sources)), Counter[str]()
    for source, count in by_source.items():
        chosen[_folder(source)] += count
    if len(images) < 2:
        return []
    return [
        {"name": name, "images": count, "chosen": chosen[name]}
        | {"images_share": count / len(sources), "chosen_share": chosen[name] / max(1, chosen.total())}
        for name, count in ((name, images[name]) for name in _most(images)[:FOLDERS_LISTED])
    ]


def _folder(source: str) -> str:
    return str(PurePosixPath(source).parent)
