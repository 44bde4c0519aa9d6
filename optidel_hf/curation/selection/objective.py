"""
What `optidel` maximises: hardness and coverage of the pool.

    F(S) = h sum over i in S of w_i  +  lambda C(S)
    C(S) = sum over u in the pool of max over i in S of max(0, z_u . z_i)        (facility location)

w_i is the patch's hardness, its within-fold rank from 0 to 1; lambda makes both terms equal on a random set of the
same size where h is 1, its default; h = 0 leaves coverage alone. `z` is the embedding less the mean of all candidates,
at unit length: mean tokens share a large component (of two patches of real colonoscopy frames the median cosine is
.99, and .01 about the mean) with which any patch would cover all others. F is monotone and submodular: greedy reaches
1 - 1/e of its maximum (Nemhauser, Wolsey, Fisher 1978).

Every patch's gain is kept up to date: choosing i takes from j's gain the sum over u of max(0, min(s_uj, new_u) -
old_u), where only those u count that i covers better than before. The similarities of all pairs are n^2 numbers; where
they do not fit in `MEMORY`, clusters are halved along their widest direction into blocks that do, and a patch covers
its own block only. So memory is bounded, time grows with n, and the C that is maximised is a lower bound of C.

B patches in a block; D width of the embedding.
"""

from __future__ import annotations

import numpy as np

from optidel_hf.curation.selection.clusters import members
from optidel_hf.embeddings import unit_vectors


MEMORY = 2 << 30  # bytes of similarities
PAIRS_AT_ONCE = 1 << 22
POOL_SAMPLE = 2048
POWER_STEPS = 8


class Directions:
    """
    Unit vectors from the mean embedding to each, computed when asked for: a copy would take gigabytes.

    Args:
        embedding (`np.ndarray` of shape `(m, D)`, float32).
        pool (`np.ndarray` of shape `(n,)`): which rows of it make up the pool, in the pool's order.
    """

    def __init__(self, embedding: np.ndarray, pool: np.ndarray) -> None:
        self.embedding = embedding
        self.pool = pool
        self.mean = embedding.mean(axis=0, dtype=np.float64).astype(np.float32)

    def __len__(self) -> int:
        return len(self.pool)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """`(B, D)` of rows of the pool; what differs from the mean by rounding alone stays near zero."""
        return unit_vectors(self.embedding[self.pool[rows]], self.mean)


class Objective:
    """
    F of a set that grows patch by patch.

    Args:
        worth (`np.ndarray` of shape `(n,)`): h w.
        directions ([`Directions`]): z, of `n` patches.
        weight (`float`): lambda.
        blocks (`list[np.ndarray]`): rows of each block; every patch is in one.

    Attributes:
        gain (`np.ndarray` of shape `(n,)`, float64): by how much choosing each would raise F.
        covered (`np.ndarray` of shape `(n,)`, float32): similarity of each to the nearest chosen patch, 0 to 1.
    """

    def __init__(self, worth: np.ndarray, directions: Directions, weight: float, blocks: list[np.ndarray]) -> None:
        self.weight = weight
        self.blocks = blocks
        self.gain = worth.astype(np.float64)
        self.covered = np.zeros(len(worth), dtype=np.float32)
        self._similar = []  # (B, B) of each block, symmetric
        self._place = np.empty((len(worth), 2), dtype=np.int64)
        for code, rows in enumerate(blocks):
            z = directions[rows]
            similar = z @ z.T
            self._similar.append(np.maximum(similar, 0, out=similar))
            self._place[rows, 0], self._place[rows, 1] = code, np.arange(len(rows))
            self.gain[rows] += weight * similar.sum(axis=0, dtype=np.float64)

    def add(self, row: int) -> None:
        """Choose a patch: it and its like gain less from now on."""
        block, place = self._place[row]
        rows, similar = self.blocks[block], self._similar[block]
        old = self.covered[rows]
        new = np.maximum(old, similar[place])
        nearer = np.flatnonzero(new > old)
        step = PAIRS_AT_ONCE // len(rows) + 1
        for part in (nearer[start : start + step] for start in range(0, len(nearer), step)):
            lost = np.clip(similar[part], old[part, None], new[part, None]) - old[part, None]
            self.gain[rows] -= self.weight * lost.sum(axis=0, dtype=np.float64)
        self.covered[rows] = new


def coverage(directions: Directions, chosen: np.ndarray, rng: np.random.Generator) -> float:
    """C of `chosen`, over all of a small pool and else estimated from 2,048 patches of it."""
    pool = directions[np.sort(rng.permutation(len(directions))[:POOL_SAMPLE])]
    nearest = np.zeros(len(pool), dtype=np.float32)
    for part in np.array_split(chosen, len(chosen) // POOL_SAMPLE + 1):
        np.maximum(nearest, (pool @ directions[part].T).max(axis=1), out=nearest)
    return float(nearest.mean(dtype=np.float64)) * len(directions)


def equal_weight(worth: np.ndarray, directions: Directions, count: int, seed: int) -> float:
    """lambda: the hardness of `count` random patches over their coverage; 0 where all patches are the same."""
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(len(worth))[:count]
    covered = coverage(directions, drawn, rng)
    return float(worth[drawn].sum()) / covered if covered else 0.0


def make_blocks(directions: Directions, clusters: np.ndarray, memory: int = MEMORY) -> list[np.ndarray]:
    """
    One block where all similarities fit in `memory` bytes, else every cluster, halved until they do.

    Args:
        clusters (`np.ndarray` of shape `(n,)`): cluster of each patch.
    """
    size = max(2, memory // (4 * len(directions)))
    if len(directions) <= size:
        return [np.arange(len(directions))]
    waiting = [rows for rows in members(clusters) if len(rows)]
    blocks = []
    while waiting:
        rows = waiting.pop()
        if len(rows) <= size:
            blocks.append(rows)
        else:
            order = np.argsort(_along_widest(directions[rows]), kind="stable")
            waiting += [np.sort(half) for half in np.array_split(rows[order], 2)]
    return blocks


def _along_widest(z: np.ndarray) -> np.ndarray:
    """Where each of some directions `(B, D)` lies along about the axis in which they differ most: `(B,)`."""
    sample = z[:: len(z) // POOL_SAMPLE + 1]
    offset = sample - sample.mean(axis=0)
    axis = offset[np.linalg.norm(offset, axis=1).argmax()]
    for _ in range(POWER_STEPS):
        axis = (offset @ axis) @ offset
        axis /= max(float(np.linalg.norm(axis)), 1e-20)
    return z @ axis
