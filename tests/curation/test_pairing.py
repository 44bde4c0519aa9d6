"""Pairing: no source twice in a mosaic wherever that can be, and few clusters twice."""

from __future__ import annotations

import numpy as np
import pytest

from optidel_hf.curation.selection.pairing import pair


def mosaics(values: np.ndarray, source: np.ndarray, clusters: np.ndarray, tiles: int) -> list[list[int]]:
    """The values of each mosaic's tiles, after checking that every patch has one place."""
    mosaic, slot = pair(source, clusters, tiles)
    count = len(source) // tiles
    assert sorted(zip(mosaic.tolist(), slot.tolist())) == [(m, s) for m in range(count) for s in range(tiles)]
    return [values[mosaic == m].tolist() for m in range(count)]


def repeats(grouped: list[list[int]]) -> int:
    return sum(len(tiles) - len(set(tiles)) for tiles in grouped)


def feasible(source: list[int], clusters: list[int], tiles: int) -> bool:
    """Whether an assignment without any repeat exists: exhaustive search, equal mosaics tried once."""
    grid: list[list[int]] = [[] for _ in range(len(source) // tiles)]

    def place(i: int) -> bool:
        if i == len(source):
            return True
        for mosaic in {tuple(m): m for m in grid if len(m) < tiles}.values():
            if all(source[i] != source[j] and clusters[i] != clusters[j] for j in mosaic):
                mosaic.append(i)
                if place(i + 1):
                    return True
                mosaic.pop()
        return False

    return place(0)


@pytest.mark.parametrize("tiles", [2, 4, 9])
def test_sources_repeat_as_little_as_can_be(tiles: int) -> None:
    rng = np.random.default_rng(tiles)
    for _ in range(60):
        count = int(rng.integers(1, 12))
        source = rng.integers(1 + rng.integers(2 * tiles), size=count * tiles)
        clusters = rng.integers(-1, 4, size=count * tiles)
        # A source with more patches than there are mosaics repeats by the rest, and no other has to.
        least = np.maximum(np.bincount(source) - count, 0).sum()
        assert repeats(mosaics(source, source, clusters, tiles)) == least


def test_neither_source_nor_cluster_repeats_where_that_can_be() -> None:
    rng = np.random.default_rng(0)
    possible, found = 0, 0
    for _ in range(300):
        tiles, count = int(rng.choice([2, 4])), int(rng.integers(2, 4))
        size = tiles * count
        source, clusters = rng.integers(size, size=size), rng.integers(max(tiles, size // 2), size=size)
        if not feasible(source.tolist(), clusters.tolist(), tiles):
            continue
        possible += 1
        found += sum(repeats(mosaics(v, source, clusters, tiles)) for v in (source, clusters)) == 0
    assert possible > 60
    assert found >= 0.97 * possible  # exchanges of two tiles may end in a dead end where slack is nil


def test_a_realistic_selection_has_no_repeat() -> None:
    rng = np.random.default_rng(1)
    source, clusters = rng.integers(150, size=308), rng.choice(20, size=308, p=rng.dirichlet(np.full(20, 3.0)))
    assert repeats(mosaics(source, source, clusters, 4)) == 0
    assert repeats(mosaics(clusters, source, clusters, 4)) == 0


def test_without_clusters_and_repeats_patches_are_dealt_by_rank() -> None:
    mosaic, slot = pair(np.array([5, 3, 4, 9, 7, 1, 2, 8]), np.full(8, -1), 4)
    assert mosaic.tolist() == [0, 1] * 4
    assert slot.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_one_tile_a_mosaic_keeps_the_order_of_rank() -> None:
    mosaic, slot = pair(np.array([2, 2, 1]), np.full(3, -1), 1)
    assert mosaic.tolist() == [0, 1, 2]
    assert slot.tolist() == [0, 0, 0]
