"""
Embeddings about a mean, how far the nearest lie, and evenly spaced rows.

Mean tokens share a large component, with which all images are alike: what tells them apart is their direction from the
pool's mean.

D width of an embedding.
"""

from __future__ import annotations

import numpy as np


ROUNDING = 1e-3  # about what float16 changes in a unit vector
AT_ONCE = 2048  # chosen vectors that are compared with a pool's in one product


def unit_vectors(vectors: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Unit vectors `(n, D)` from a mean; what differs from it by float16 rounding alone stays near zero."""
    offset = vectors - mean
    return offset / np.maximum(np.linalg.norm(offset, axis=1, keepdims=True), ROUNDING)


def nearest_distance(pool: np.ndarray, chosen: np.ndarray) -> float:
    """Mean cosine distance, 0 to 2, from each direction `(n, D)` of a pool to the nearest chosen `(m, D)`."""
    parts = np.array_split(chosen, -(-len(chosen) // AT_ONCE))
    nearest = np.max([(pool @ part.T).max(axis=1) for part in parts], axis=0)
    return float(1 - nearest.mean(dtype=np.float64))


def spaced(rows: int, count: int) -> np.ndarray:
    """At most `count` of so many rows, evenly spaced from the first to the last, ascending."""
    return np.linspace(0, rows - 1, min(count, rows)).round().astype(np.int64)
