"""
Hard *and* diverse: OptiDEL's "key patches of high difficulty and diversity" as a rule.

The paper states the aim (raise H_V(Y|0) by diversity, choose what is hard) and no rule for diversity; this one is
ours. The very hardest are cut as outliers; k-means clusters of the embeddings are visited in turn, each giving its
hardest patch; no source image and no near-duplicate group gives a second patch before all have given one.
"""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans

from optidel_hf.curation.selection.candidates import Candidates, hardest_first


MAX_CLUSTERS = 100
FULL_KMEANS = 20_000


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
    """Round-robin over clusters, hardest first in each, under a cap a source and a group that rises when all wait."""
    queues = [order[clusters[order] == c].tolist() for c in np.unique(clusters[order])]
    used_source = np.zeros(candidates.source.max() + 1, dtype=np.int64)
    used_group = np.zeros(candidates.group.max() + 1, dtype=np.int64)
    chosen: list[int] = []
    cap = 1
    while len(chosen) < count:
        waiting: list[list[int]] = [[] for _ in queues]
        while any(queues) and len(chosen) < count:
            for queue, later in zip(queues, waiting):
                if (pick := _next_under(queue, later, candidates, used_source, used_group, cap)) is not None:
                    chosen.append(pick)
                    used_source[candidates.source[pick]] += 1
                    used_group[candidates.group[pick]] += 1
        queues, cap = waiting, cap + 1
    return np.array(chosen[:count])


def _next_under(
    queue: list[int],
    later: list[int],
    candidates: Candidates,
    used_source: np.ndarray,
    used_group: np.ndarray,
    cap: int,
) -> int | None:
    """The first patch of `queue` whose source and group are under `cap`; those passed over wait in `later`."""
    for position, patch in enumerate(queue):
        if used_source[candidates.source[patch]] < cap and used_group[candidates.group[patch]] < cap:
            later.extend(queue[:position])
            del queue[: position + 1]
            return patch
    later.extend(queue)
    queue.clear()
    return None
