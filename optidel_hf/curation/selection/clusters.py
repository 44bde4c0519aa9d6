"""k-means on the embeddings: each patch's cluster and how far it lies from the cluster's centre."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans

from optidel_hf.curation.selection.candidates import Candidates


MAX_CLUSTERS = 100
FULL_KMEANS = 20_000


class Clusters(NamedTuple):
    """
    Args:
        label (`np.ndarray` of shape `(n,)`, int32): cluster of each patch.
        distance (`np.ndarray` of shape `(n,)`, float32): cosine distance, 0 to 2, to its cluster's centre.
    """

    label: np.ndarray
    distance: np.ndarray


def cluster(candidates: Candidates, count: int, seed: int) -> Clusters:
    """
    k-means of all candidates, fewer clusters where there are fewer patches.

    Args:
        count (`int`): patches to be chosen; about four a cluster, in 4 to 100 clusters.
    """
    assert candidates.embedding is not None
    k = min(max(4, min(MAX_CLUSTERS, count // 4)), len(candidates))
    method = KMeans if len(candidates) <= FULL_KMEANS else MiniBatchKMeans
    model = method(n_clusters=k, n_init=1, random_state=seed)
    label = model.fit_predict(candidates.embedding).astype(np.int32)
    centres = model.cluster_centers_ / np.linalg.norm(model.cluster_centers_, axis=1, keepdims=True)
    distance = np.empty(len(label), dtype=np.float32)
    for code, rows in enumerate(members(label)):
        distance[rows] = 1 - candidates.embedding[rows] @ centres[code]
    return Clusters(label, distance)


def members(codes: np.ndarray) -> list[np.ndarray]:
    """Where each code from 0 to the largest occurs, in rising order."""
    return np.split(np.argsort(codes, kind="stable"), np.bincount(codes).cumsum()[:-1])
