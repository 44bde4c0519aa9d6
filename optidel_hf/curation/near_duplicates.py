"""
Near-duplicate groups by perceptual hash: what a video or a burst leaves many times in a pool.

The hash is a 256-bit dHash: the signs of the horizontal differences of a 17 x 16 greyscale thumbnail. Images at a
Hamming distance of at most 30 are joined, and the connected components are the groups.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import joblib
import numpy as np
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from tqdm.auto import tqdm


HASH_SIDE = 16
NEAR = 30  # of 256 bits; at 40, chaining joins frames that look nothing alike
ROWS, COLUMNS = 32, 4096  # of a block of pairs: its distances stay in a core's cache


def difference_hash(image: Image.Image) -> np.ndarray:
    """The dHash of an image: `(4,)` uint64."""
    thumbnail = image.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX)
    pixels = np.asarray(thumbnail, dtype=np.int16)
    return np.packbits(pixels[:, 1:] > pixels[:, :-1]).view(np.uint64)


def near_duplicate_components(hashes: np.ndarray, distance: int = NEAR) -> np.ndarray:
    """
    Connected components of the images whose hashes differ in at most `distance` bits, by comparing all pairs.

    All processors compare; memory grows with the images and not with the pairs.

    Args:
        hashes (`np.ndarray` of shape `(n, 4)`, uint64).
        distance (`int`, *optional*, defaults to 30): at most 127.

    Returns:
        `np.ndarray` of shape `(n,)`: for each image the index of the first image of its component.
    """
    _, index, same = np.unique(hashes, axis=0, return_index=True, return_inverse=True)
    first, distinct = index[same.ravel()], np.sort(index)
    joining: list[np.ndarray] = []
    held = 0
    near_pairs = partial(_near_pairs, np.ascontiguousarray(hashes[distinct].T), distance)
    with (
        ThreadPoolExecutor(joblib.cpu_count()) as pool,
        tqdm(total=len(distinct), desc="near-duplicates", unit=" images") as bar,
    ):
        for pairs in map(distinct.__getitem__, pool.map(near_pairs, range(0, len(distinct), ROWS))):
            joining.append(pairs[:, first[pairs[0]] != first[pairs[1]]])
            held += joining[-1].shape[1]
            if held > len(hashes):
                first, joining, held = _join(first, joining), [], 0
            bar.update(min(ROWS, len(distinct) - bar.n))
    return _join(first, joining)


def _near_pairs(words: np.ndarray, distance: int, start: int) -> np.ndarray:
    """Pairs `(2, m)` that connect what is near to one of `ROWS` images, with what comes after them in the pool."""
    pairs = [np.zeros((2, 0), dtype=np.int64)]
    scratch = [np.empty((ROWS, COLUMNS), kind) for kind in (np.uint64, np.uint8, np.uint8)]
    for other in range(start, words.shape[1], COLUMNS):
        near = _are_near(words[:, start : start + ROWS], words[:, other : other + COLUMNS], distance, scratch)
        if near.any():
            pairs += _star(near, start, other)
    return np.concatenate(pairs, axis=1)


def _are_near(some: np.ndarray, others: np.ndarray, distance: int, scratch: list[np.ndarray]) -> np.ndarray:
    """`(4, a)` and `(4, b)` words to `(a, b)`, judged word by word: most blocks are far before the last one."""
    near = np.ones((some.shape[1], others.shape[1]), bool)
    unequal, bits, apart = (array[: near.shape[0], : near.shape[1]] for array in scratch)
    apart.fill(0)
    for one, other in zip(some, others):
        np.bitwise_xor(one[:, None], other, out=unequal)
        apart += np.bitwise_count(unequal, out=bits)
        near &= apart <= distance  # also where 256 bits, which are none in 8, would be near
        if not near.any():
            break
    return near


def _star(near: np.ndarray, start: int, other: int) -> list[np.ndarray]:
    """What connects as all pairs of a block do: for every column its first row, and rows that share a column."""
    row, column = np.divmod(np.flatnonzero(near), near.shape[1])
    hub = np.full(near.shape[1], -1)
    hub[column[::-1]] = row[::-1]  # of a column's rows the first is written last
    sharing = np.zeros((len(near), len(near)), bool)
    sharing[hub[column], row] = True
    touched = np.flatnonzero(hub >= 0)
    return [np.stack([hub[touched] + start, touched + other]), np.stack(np.nonzero(sharing)) + start]


def _join(first: np.ndarray, pairs: list[np.ndarray]) -> np.ndarray:
    """The first image of every component, once the components of the pairs' images are one."""
    n = len(first)
    left, right = np.concatenate([[np.arange(n), first], *pairs], axis=1)
    graph = coo_matrix((np.ones(len(left), bool), (left, right)), shape=(n, n))
    _, labels = connected_components(graph, directed=False)
    _, index = np.unique(labels, return_index=True)
    return index[labels]
