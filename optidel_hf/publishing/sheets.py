"""Contact sheets: which patches and mosaics the report shows, and their thumbnails.

Rows are chosen by their scores first; then only those rows' images are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from optidel_hf.embeddings import spaced
from optidel_hf.layout import existing_shards
from optidel_hf.publishing.figures import thumbnail
from optidel_hf.publishing.records import CurationRecord, Key, Row, find_rows, list_rows, patch_key, read_rows


PATCHES_DRAWN = 24
MOSAICS_DRAWN = 12
PATCH_SIDE, MOSAIC_SIDE = 120, 224
HARD_WHEN_LOW = ("pvi", "contrastive_pvi")
"""Scores of which a low value means a hard patch."""
HARDNESS = (*HARD_WHEN_LOW, "cond_entropy", "recon_error", "difficulty")
"""Scores that tell how well the reference model predicts a patch."""


def patch_sheets(record: CurationRecord) -> list[dict[str, Any]]:
    """
    The hardest and easiest (of another score the highest and lowest), the chosen and, where the selection names them,
    the dropped key patches.

    Args:
        record (`CurationRecord`): The curation.

    Returns:
        `list[dict]`: One sheet each: `title`, `caption` and `tiles` (`uri`, `title`, `note`, `chosen`).
    """
    folder = record.folder / "patches"
    if not record.columns or not existing_shards(folder):
        return []
    score, order = by_hardness(record)
    (top, of_top), (bottom, of_bottom) = _ends(score)
    keys = _chosen_keys(record)
    dropped = {patch_key(row): row["reason"] for row in record.facts.get("dropped", [])[:PATCHES_DRAWN]}
    shown = [keys[number] for number in spaced(len(keys), PATCHES_DRAWN)]
    where = find_rows(folder, {*shown, *dropped})
    sheets = [
        (
            top,
            f"The key patches {of_top}; a frame marks the chosen. Mostly blur, glare or text here would mean that the "
            "score finds nuisances rather than content.",
            [record.row(index) for index in order[::-1][:PATCHES_DRAWN]],
        ),
        (
            bottom,
            f"The key patches {of_bottom}; a frame marks the chosen.",
            [record.row(index) for index in order[:PATCHES_DRAWN]],
        ),
        ("Chosen", "Chosen key patches, evenly spaced from the first rank to the last.", _found(where, shown)),
        ("Dropped", "Key patches that the strategy left out before ranking, and why.", _found(where, dropped)),
    ]
    return [
        {"title": title, "caption": caption, "tiles": _patch_tiles(folder, rows, score, set(keys), dropped)}
        for title, caption, rows in sheets
        if rows
    ]


def mosaic_sheet(record: CurationRecord) -> list[dict[str, Any]]:
    """
    Curated images, evenly spaced over all of them.

    Args:
        record (`CurationRecord`): The curation.

    Returns:
        `list[dict]`: One mosaic each: `uri`, `across` (tiles side by side) and `tiles` (`name`, `title`), row by row.
    """
    folder = record.folder / "curated"
    everywhere = list_rows(folder)
    shown = [everywhere[number] for number in spaced(len(everywhere), MOSAICS_DRAWN)]
    return [
        {
            "uri": thumbnail(row["image"], MOSAIC_SIDE),
            "across": max(1, math.isqrt(len(row["tiles"]))),
            "tiles": [{"name": PurePosixPath(tile["source"]).name, "title": _lineage(tile)} for tile in row["tiles"]],
        }
        for row in read_rows(folder, shown, ["image", "tiles"])
    ]


def by_hardness(record: CurationRecord) -> tuple[str, np.ndarray]:
    """
    The key patches from the easiest to the hardest, or from the lowest of another score to its highest.

    Returns:
        `tuple[str, np.ndarray]`: The score that orders them (the selection's own, `difficulty` where it has none) and
        the patches' numbers; patches without a score are left out.
    """
    score = record.facts.get("score")
    score = score if score in record.columns else "difficulty"
    values = record.columns[score]
    order = np.argsort(-values if score in HARD_WHEN_LOW else values, kind="stable")
    return score, order[np.isfinite(values[order])]


def _ends(score: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """What the two ends of the order by a score are called: title and description."""
    if score in HARDNESS:
        worst, best = (f"that the reference model predicts {how}, by {score}" for how in ("worst", "best"))
        return ("Hardest", worst), ("Easiest", best)
    return (f"Highest {score}", f"with the highest {score}"), (f"Lowest {score}", f"with the lowest {score}")


def _patch_tiles(
    folder: Path, rows: Sequence[Row], score: str, chosen: set[Key], notes: dict[Key, str]
) -> list[dict[str, Any]]:
    scores = folder.parent / "scores"
    images = read_rows(folder, rows, ["image", "source", "crop"])
    values = read_rows(scores, rows, [score])
    return [
        {
            "uri": thumbnail(image["image"], PATCH_SIDE),
            "title": f"{_lineage(image)}, {score} {value[score]:.3g}",
            "note": notes.get(patch_key(image), ""),
            "chosen": patch_key(image) in chosen,
        }
        for image, value in zip(images, values)
    ]


def _lineage(tile: dict[str, Any]) -> str:
    x, y, side = tile["crop"]
    return f"{tile['source']}, {side} px square at ({x}, {y})"


def _chosen_keys(record: CurationRecord) -> list[Key]:
    if record.selection is None:
        return []
    return [patch_key(row) for row in record.selection.select(["source", "crop"]).to_pylist()]


def _found(where: dict[Key, Row], keys: Iterable[Key]) -> list[Row]:
    return [where[key] for key in keys if key in where]
