"""
Coverage of the embedding space less redundancy, in random planes (ZCore: Griffin et al. 2024, arXiv 2411.15349).

No label and no training. In random low-dimensional subspaces of the embedding, targets are drawn from a triangular
distribution between the pool's extremes with its mode at the pool's median, axis by axis. The patch nearest to a
target (city-block distance) gains a vote, and one vote is taken from its neighbours there, shared out by distance^-4,
or from a copy alone. Scores begin at random numbers below one vote, so that ties are broken by the seed.

From the paper: all of the above, with subspaces of two axes. Ours: as many targets as patches share one plane, so that
one tree answers for all of them, in 64 planes; and of the paper's 1,000 neighbours the 10 nearest, which in a plane of
even density carry 94 % of the weight.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from optidel_hf.curation.selection.candidates import Candidates
from optidel_hf.curation.selection.choice import Choice, Options, reasons


PLANES = 64
NEIGHBOURS = 10
EXPONENT = 4


def zcore(candidates: Candidates, count: int, options: Options) -> Choice:
    """The `count` patches of highest score over `PLANES` planes, in each of which as many targets vote as patches."""
    assert candidates.embedding is not None
    rng = np.random.default_rng(options.seed)
    score = rng.random(len(candidates))
    for _ in range(PLANES):
        axes = rng.choice(candidates.embedding.shape[1], size=2, replace=False)
        points = candidates.embedding[:, axes].astype(np.float64)
        tree = cKDTree(points, balanced_tree=False)
        votes = _vote(tree, rng)
        score += votes - _redundancy(tree, votes)
    chosen = np.argsort(-score, kind="stable")[:count]
    return Choice(chosen, reasons(len(candidates), chosen, "covers much alone", "what it covers, others cover"))


def _vote(tree: cKDTree, rng: np.random.Generator) -> np.ndarray:
    """For how many of `n` targets each of the `n` points of a plane is the nearest: `(n,)`."""
    points = tree.data
    low, middle, high = points.min(axis=0), np.median(points, axis=0), points.max(axis=0)
    high = np.maximum(high, low + 1e-12)  # an axis on which all are equal is no triangle
    nearest = tree.query(rng.triangular(low, middle, high, size=points.shape), p=1)[1]
    return np.bincount(nearest, minlength=len(points))


def _redundancy(tree: cKDTree, votes: np.ndarray) -> np.ndarray:
    """The votes, taken from the neighbours of those that won them: `(n,)`."""
    won = np.flatnonzero(votes)
    known = min(NEIGHBOURS, len(votes) - 1)
    if known == 0:
        return np.zeros(len(votes))
    distance, neighbour = (found.reshape(len(won), -1) for found in tree.query(tree.data[won], k=known + 1, p=1))
    distance = np.where(neighbour == won[:, None], np.inf, distance)  # itself; unless it has more copies than that
    order = np.argsort(distance, axis=1, kind="stable")[:, :known]
    distance, neighbour = (np.take_along_axis(found, order, axis=1) for found in (distance, neighbour))
    nearest = distance[:, :1]
    copies = np.arange(known) == 0  # of several the first
    weight = np.where(nearest > 0, (nearest / np.where(distance > 0, distance, 1)) ** EXPONENT, copies)
    share = votes[won, None] * weight / weight.sum(axis=1, keepdims=True)
    return np.bincount(neighbour.ravel(), weights=share.ravel(), minlength=len(votes))
