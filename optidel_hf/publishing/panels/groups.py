"""The panel of what the selection covers: near-duplicate groups, source images, and folders of the pool."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from optidel_hf.publishing.figures import thumbnail
from optidel_hf.publishing.records import CurationRecord, Key, find_rows, patch_key, read_rows, shards


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
    if record.selection is None or not shards(record.folder / "patches"):
        return None
    inputs = pq.read_table(record.folder / "inputs.parquet", columns=["source", "group"])
    group = dict(zip(inputs["source"].to_pylist(), inputs["group"].to_pylist()))
    keys = _patch_keys(record)
    chosen = [patch_key(row) for row in record.selection.select(["source", "crop"]).to_pylist()]
    by_source, by_group = Counter(source for source, _ in chosen), Counter(group[source] for source, _ in chosen)
    seen = {source for source, _ in keys}
    images, patches = Counter(group[source] for source in seen), Counter(group[source] for source, _ in keys)
    largest = [name for name, _ in sorted(images.items(), key=lambda item: (-item[1], item[0]))]
    drawn = [name for name in largest[:GROUPS_DRAWN] if images[name] > 1]
    tiles = _group_tiles(record, drawn, keys, set(chosen), group)
    return {
        "shares": _shares({"sources": (by_source, seen), "groups": (by_group, set(images))}),
        "copies": len(seen) - len(images),
        "groups": [
            {"name": name, "images": images[name], "patches": patches[name], "chosen": by_group[name]}
            | {"tiles": tiles.get(name, [])}
            for name in largest[:GROUPS_LISTED]
            if images[name] > 1
        ],
        "folders": _folders(seen, by_source),
    }


def _patch_keys(record: CurationRecord) -> list[Key]:
    """Every key patch, in the order of the shards."""
    return [
        patch_key(row)
        for path in shards(record.folder / "patches")
        for row in pq.read_table(path, columns=["source", "crop"]).to_pylist()
    ]


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


def _group_tiles(
    record: CurationRecord, names: list[str], keys: list[Key], chosen: set[Key], group: dict[str, str]
) -> dict[str, list[dict[str, Any]]]:
    """One patch a source image of some groups, the chosen first: what the groups' likeness looks like."""
    wanted: dict[str, dict[str, Key]] = {name: {} for name in names}
    for key in sorted((key for key in keys if group[key[0]] in wanted), key=lambda key: key not in chosen):
        wanted[group[key[0]]].setdefault(key[0], key)
    shown = {name: list(found.values())[:TILES_DRAWN] for name, found in wanted.items()}
    folder = record.folder / "patches"
    where = find_rows(folder, {key for part in shown.values() for key in part})
    return {
        name: [
            {
                "uri": thumbnail(row["image"], TILE_SIDE, TILE_BYTES),
                "title": row["source"],
                "chosen": patch_key(row) in chosen,
            }
            for row in read_rows(folder, [where[key] for key in part], ["image", "source", "crop"])
        ]
        for name, part in shown.items()
    }


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
        for name, count in sorted(images.items(), key=lambda item: (-item[1], item[0]))[:FOLDERS_LISTED]
    ]


def _folder(source: str) -> str:
    return str(PurePosixPath(source).parent)
