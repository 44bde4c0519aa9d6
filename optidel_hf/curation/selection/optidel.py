"""
Hard *and* diverse: OptiDEL's "key patches of high difficulty and diversity" as a rule.

The paper states the aim (raise H_V(Y|0) by diversity, choose what is hard) and no rule for diversity; this one is
ours. The very hardest are cut as outliers. Then no source image and no near-duplicate group gives a second patch
before all have given one, and of those whose turn it is, the k-means clusters of the embeddings give equally, each its
hardest.
"""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans

from optidel_hf.curation.selection.candidates import Candidates, hardest_first


MAX_CLUSTERS = 100
FULL_KMEANS = 20_000
TAKEN = 2**62  # above any count, and far enough from the end of int64 to be counted up further


def optidel(candidates: Candidates, count: int, seed: int, trim: float) -> tuple[np.ndarray, np.ndarray]:
    """
    Choose `count` hard and diverse patches.

    Args:
        trim (`float`): the fraction of hardest patches that is cut as outliers (glare, blur, burned-in text), as far
            as the budget leaves enough.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: chosen candidate indices, best first, and the cluster of every candidate.
    """
    clusters = cluster(candidates, max(4, min(MAX_CLUSTERS, count // 4)), seed)
    order = hardest_first(candidates)
    cut = min(int(trim * len(order)), len(order) - count)
    return _deal(candidates, order[cut:], clusters, count), clusters


def cluster(candidates: Candidates, k: int, seed: int) -> np.ndarray:
    """k-means cluster of every candidate's embedding, `(n,)`; fewer clusters where there are fewer patches."""
    assert candidates.embedding is not None
    method = KMeans if len(candidates) <= FULL_KMEANS else MiniBatchKMeans
    model = method(n_clusters=min(k, len(candidates)), n_init=1, random_state=seed)
    return model.fit_predict(candidates.embedding).astype(np.int32)


def _deal(candidates: Candidates, order: np.ndarray, clusters: np.ndarray, count: int) -> np.ndarray:
    """
    `count` of the patches in `order` (hardest first), one at a time: the one whose source has given least so far, then
    whose group, then whose cluster; the hardest of those.
    """
    codes = [values[order] for values in (clusters, candidates.group, candidates.source)]
    members = [_members(code) for code in codes]
    given = np.zeros(len(order), dtype=np.int64)  # (source, group, cluster) counts as three digits of one number
    chosen = np.empty(count, dtype=np.int64)
    for i in range(count):
        pick = chosen[i] = given.argmin()  # the first, and so the hardest, of equals
        for place, (code, rows) in enumerate(zip(codes, members)):
            given[rows[code[pick]]] += (count + 1) ** place
        given[pick] = TAKEN
    return order[chosen]


def _members(codes: np.ndarray) -> list[np.ndarray]:
    """Where each code from 0 to the largest occurs."""
    return np.split(np.argsort(codes, kind="stable"), np.bincount(codes).cumsum()[:-1])
