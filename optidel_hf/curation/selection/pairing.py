"""Which chosen patches share a mosaic: tiles from different source images and, where possible, different clusters."""

from __future__ import annotations

import numpy as np


def pair(source: np.ndarray, clusters: np.ndarray, tiles: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Deal `k * tiles` chosen patches, best first, into `k` mosaics.

    Patches sorted by cluster are dealt like cards, so that a mosaic's tiles lie `k` apart and in different clusters
    unless a cluster holds more than `k`; then tiles that repeat a source are exchanged with another mosaic's.

    Args:
        source (`np.ndarray` of shape `(k * tiles,)`): source code of each chosen patch.
        clusters (`np.ndarray` of shape `(k * tiles,)`): cluster of each, or -1 where there are none.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: mosaic and slot of each patch.
    """
    count = len(source) // tiles
    grid = np.argsort(clusters, kind="stable").reshape(tiles, count)
    for mosaic in range(count):
        for slot in range(1, tiles):
            if source[grid[slot, mosaic]] in source[grid[:slot, mosaic]]:
                _exchange(grid, source, slot, mosaic)
    place = np.empty((len(source), 2), dtype=np.int32)
    slots, mosaics = np.indices(grid.shape)
    place[grid.ravel()] = np.stack([mosaics.ravel(), slots.ravel()], axis=1)
    return place[:, 0], place[:, 1]


def _exchange(grid: np.ndarray, source: np.ndarray, slot: int, mosaic: int) -> None:
    """Swap with the nearest mosaic for which both stay free of repeats; without one the repeat remains."""
    tile = grid[slot, mosaic]
    for distance in range(1, grid.shape[1]):
        other = (mosaic + distance) % grid.shape[1]
        swapped = grid[slot, other]
        here, there = np.delete(grid[:, mosaic], slot), np.delete(grid[:, other], slot)
        if source[swapped] not in source[here] and source[tile] not in source[there]:
            grid[slot, mosaic], grid[slot, other] = swapped, tile
            return
