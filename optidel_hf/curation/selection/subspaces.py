"""
Coverage of the embedding space by voting in random planes, after the idea of ZCore (Griffin et al., arXiv 2411.15349).

From the paper: no label and no training; low-dimensional subspaces of an embedding are sampled again and again, and in
each a patch gains by covering the space and loses by being redundant. Ours is how: a subspace is two axes of the
embedding; targets are drawn in the box that the pool spans there, densest at its middle; each target votes for the
nearest patch. Patches that lie close together share the votes of their neighbourhood, so redundancy needs no term.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from optidel_hf.curation.selection.candidates import Candidates
from optidel_hf.curation.selection.choice import Choice, Options, reasons


PLANES = 64


def zcore(candidates: Candidates, count: int, options: Options) -> Choice:
    """The `count` patches with the most votes of `PLANES` planes, in each of which as many targets vote as patches."""
    assert candidates.embedding is not None
    rng = np.random.default_rng(options.seed)
    votes = np.zeros(len(candidates), dtype=np.int64)
    for _ in range(PLANES):
        axes = rng.choice(candidates.embedding.shape[1], size=2, replace=False)
        votes += _vote(candidates.embedding[:, axes].astype(np.float64), rng)
    chosen = np.argsort(-votes, kind="stable")[:count]
    return Choice(chosen, reasons(len(candidates), chosen, "covers much alone", "what it covers, others cover"))


def _vote(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For how many of `n` targets each of the `n` points of a plane is the nearest: `(n,)`."""
    low, high = points.min(axis=0), points.max(axis=0)
    targets = low + (high - low) * rng.random((2, *points.shape)).mean(axis=0)
    nearest = cKDTree(points, balanced_tree=False).query(targets)[1]
    return np.bincount(nearest, minlength=len(points))
