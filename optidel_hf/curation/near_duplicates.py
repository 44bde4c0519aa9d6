"""
Near-duplicate groups by perceptual hash: what a video or a burst leaves many times in a pool.

The hash is a 256-bit dHash: the signs of the horizontal differences of a 17 x 16 greyscale thumbnail. Images at a
Hamming distance of at most 30 are joined, and the connected components are the groups.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components


HASH_SIDE = 16
NEAR = 30  # of 256 bits; at 40, chaining joins frames that look nothing alike
BLOCK = 2048


def difference_hash(image: Image.Image) -> np.ndarray:
    """The dHash of an image: `(4,)` uint64."""
    thumbnail = image.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX)
    pixels = np.asarray(thumbnail, dtype=np.int16)
    return np.packbits(pixels[:, 1:] > pixels[:, :-1]).view(np.uint64)


def near_duplicate_components(hashes: np.ndarray, distance: int = NEAR) -> np.ndarray:
    """
    Connected components of the images whose hashes differ in at most `distance` bits.

    Args:
        hashes (`np.ndarray` of shape `(n, 4)`, uint64).
        distance (`int`, *optional*, defaults to 30).

    Returns:
        `np.ndarray` of shape `(n,)`: for each image the index of the first image of its component.
    """
    n = len(hashes)
    pairs = [np.zeros((2, 0), dtype=np.int64)]
    for start in range(0, n, BLOCK):
        for other in range(start, n, BLOCK):
            pairs.append(_near_pairs(hashes, start, other, distance))
    left, right = np.concatenate(pairs, axis=1)
    graph = coo_matrix((np.ones(len(left), bool), (left, right)), shape=(n, n))
    _, labels = connected_components(graph, directed=False)
    _, first = np.unique(labels, return_index=True)
    return first[labels]


def _near_pairs(hashes: np.ndarray, start: int, other: int, distance: int) -> np.ndarray:
    block, others = hashes[start : start + BLOCK], hashes[other : other + BLOCK]
    differing = np.zeros((len(block), len(others)), dtype=np.uint16)
    for word in range(hashes.shape[1]):
        differing += np.bitwise_count(block[:, None, word] ^ others[None, :, word])
    left, right = np.nonzero(differing <= distance)
    return np.stack([left + start, right + other])
