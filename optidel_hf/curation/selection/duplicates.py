"""
Semantic deduplication: of patches of one cluster that look alike, one is kept.

SemDeDup (Abbas et al. 2023, arXiv 2303.09540): k-means; each cluster sorted by the distance to its centroid; a patch
goes if its cosine to an earlier one exceeds 1 - epsilon, whether or not the earlier one stays, as in the authors'
code. MedDEL (Yang et al. 2024, arXiv 2401.17542, Algorithm 1) first deletes what lies farther than epsilon = 0.9 from
its centroid, then does the same with a cosine threshold eta, which alone sets the budget (0.9 keeps half of their
pool, 0.7 a twentieth).

What the threshold decides for a patch is one number, its largest cosine to an earlier patch, and a lower threshold
keeps fewer. So bisection on the threshold ends at the `count`-th smallest of these numbers, which is taken at once.
"""

from __future__ import annotations

import numpy as np

from optidel_hf.curation.selection.candidates import Candidates
from optidel_hf.curation.selection.choice import UNUSUAL, Choice, Options, reasons
from optidel_hf.curation.selection.clusters import Clusters, cluster, members


ROWS_AT_ONCE = 1024


def semdedup(candidates: Candidates, count: int, options: Options) -> Choice:
    """
    The `count` patches that are least like an earlier patch of their cluster.

    With `keep="far"`, the paper's default, those far from the centroid (the hard ones) come first and so stay.
    """
    clusters = cluster(candidates, count, options.seed, options.distance)
    return _deduplicate(candidates, count, clusters, np.arange(len(candidates)), options.keep)


def meddel(candidates: Candidates, count: int, options: Options) -> Choice:
    """
    `semdedup` on what lies within `max_distance` of its centroid, as far as the budget leaves enough.

    The paper's pseudo-code deletes the duplicate nearer to the centroid (`keep="far"`), its text the one farther from
    it (`keep="near"`). It does not say which distance its 0.9 is of, hence `distance`. By cosine it is an angle of 84
    degrees to the centroid, by Euclid one of 53 to 64 unless a cluster scatters so far that its mean nearly vanishes.
    Mean tokens lie closer than either: of 1,102 patches of real frames in 10 clusters 0.9 cuts none and one.
    """
    clusters = cluster(candidates, count, options.seed, options.distance)
    nearest_first = np.argsort(clusters.distance, kind="stable")
    valid = max(count, int((clusters.distance <= options.max_distance).sum()))
    choice = _deduplicate(candidates, count, clusters, np.sort(nearest_first[:valid]), options.keep)
    choice.reasons[nearest_first[valid:]] = UNUSUAL
    choice.facts["distance"] = options.distance
    return choice


def _deduplicate(candidates: Candidates, count: int, clusters: Clusters, pool: np.ndarray, keep: str) -> Choice:
    assert candidates.embedding is not None
    distance = clusters.distance[pool]
    order = pool[np.argsort(-distance if keep == "far" else distance, kind="stable")]
    likeness = np.empty(len(order), dtype=np.float32)
    for rows in members(clusters.label[order]):
        likeness[rows] = _nearest_before(candidates.embedding[order[rows]])
    best = np.argsort(likeness, kind="stable")[:count]
    threshold = float(likeness[best[-1]])
    why = reasons(
        len(candidates),
        order[best],
        "unlike the earlier ones of its cluster",
        f"like an earlier one of its cluster (cosine {threshold:.4f} or more)",
    )
    return Choice(order[best], why, clusters.label, {"keep": keep, "cosine_threshold": threshold})


def _nearest_before(embedding: np.ndarray) -> np.ndarray:
    """The largest cosine of each row to a row before it, `(n,)`; -1 for the first."""
    nearest = np.full(len(embedding), -1, dtype=np.float32)
    for start in range(0, len(embedding), ROWS_AT_ONCE):
        rows = embedding[start : start + ROWS_AT_ONCE]
        cosine = rows @ embedding[: start + len(rows)].T
        cosine[np.triu_indices(len(rows), start, cosine.shape[1])] = -1
        nearest[start : start + len(rows)] = cosine.max(axis=1)
    return nearest
