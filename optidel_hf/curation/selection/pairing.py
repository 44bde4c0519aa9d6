"""Which chosen patches share a mosaic: tiles from different source images and, where possible, different clusters."""

from __future__ import annotations

import numpy as np


SOURCE_WEIGHT = 1000  # one repeated source outweighs every repeated cluster of two mosaics


def pair(source: np.ndarray, clusters: np.ndarray, tiles: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Deal `k * tiles` chosen patches, best first, into `k` mosaics.

    Patches are dealt like cards with those of one source in a row, and so lie in different mosaics unless a source has
    more than `k`; sources follow each other by cluster. Tiles that still repeat a cluster are then exchanged with
    another mosaic's wherever that leaves fewer repeats.

    Args:
        source (`np.ndarray` of shape `(k * tiles,)`): source code of each chosen patch.
        clusters (`np.ndarray` of shape `(k * tiles,)`): cluster of each, or -1 where there are none.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: mosaic and slot of each patch.
    """
    _, first, code = np.unique(source, return_index=True, return_inverse=True)
    best = first[code]  # the best patch of each one's source
    grid = np.lexsort((clusters, best, clusters[best])).reshape(tiles, -1)
    clusters = np.where(clusters < 0, -1 - np.arange(len(clusters)), clusters)
    while _exchange(grid, source, clusters):
        pass
    place = np.empty((len(source), 2), dtype=np.int32)
    slots, mosaics = np.indices(grid.shape)
    place[grid.ravel()] = np.stack([mosaics.ravel(), slots.ravel()], axis=1)
    return place[:, 0], place[:, 1]


def _exchange(grid: np.ndarray, source: np.ndarray, clusters: np.ndarray) -> bool:
    """Make the best exchange, where one helps, for every tile that repeats a cluster; whether any was made."""
    made = False
    for slot, mosaic in np.argwhere(_repeats(clusters[grid])):
        gain = SOURCE_WEIGHT * _undone(source[grid], slot, mosaic) + _undone(clusters[grid], slot, mosaic)
        other = np.unravel_index(gain.argmax(), grid.shape)
        if gain[other] > 0:
            grid[slot, mosaic], grid[other] = grid[other], grid[slot, mosaic]
            made = True
    return made


def _undone(values: np.ndarray, slot: int, mosaic: int) -> np.ndarray:
    """How many pairs of equal `values` vanish if the tile at (slot, mosaic) is exchanged with each: `(tiles, k)`."""
    same = values == values[slot, mosaic]
    stay = np.delete(values[:, mosaic], slot)
    now = _repeats(values)
    then = (values[..., None] == stay).sum(-1) + same.sum(0) - same
    undone = now[slot, mosaic] + now - then
    undone[:, mosaic] = 0
    return undone


def _repeats(values: np.ndarray) -> np.ndarray:
    """How many other tiles of its mosaic have each tile's value: `(tiles, k)`."""
    return (values[:, None] == values).sum(1) - 1
