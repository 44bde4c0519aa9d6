"""
k-means on the embeddings: each patch's cluster and how far it lies from the cluster's centre.

Papers that speak of the distance to a centroid seldom say which. Of unit vectors z about their mean c it is either

    cosine       1 - z . c / |c|                          direction alone, 0 to 2
    euclidean    |z - c|, squared 1 - 2 z . c + |c|^2     what k-means itself minimises, 0 to 2

Within a cluster both order patches alike, so what is deduplicated is the same. Between clusters they differ: where
patches scatter, c is short and all of them are far from it by Euclid, the one in its direction included.
"""

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
        distance (`np.ndarray` of shape `(n,)`, float32): to its cluster's centre.
    """

    label: np.ndarray
    distance: np.ndarray


def cluster(candidates: Candidates, count: int, seed: int, distance: str = "cosine") -> Clusters:
    """
    k-means of all candidates, fewer clusters where there are fewer patches.

    Args:
        count (`int`): patches to be chosen; about four a cluster, in 4 to 100 clusters.
        distance (`str`, *optional*, defaults to `"cosine"`): or `"euclidean"`.
    """
    assert candidates.embedding is not None
    k = min(max(4, min(MAX_CLUSTERS, count // 4)), len(candidates))
    method = KMeans if len(candidates) <= FULL_KMEANS else MiniBatchKMeans
    model = method(n_clusters=k, n_init=1, random_state=seed)
    label = model.fit_predict(candidates.embedding).astype(np.int32)
    away = np.empty(len(label), dtype=np.float32)
    for centre, rows in zip(model.cluster_centers_, members(label)):
        z = candidates.embedding[rows]
        euclidean = distance == "euclidean"
        away[rows] = np.linalg.norm(z - centre, axis=1) if euclidean else 1 - z @ (centre / np.linalg.norm(centre))
    return Clusters(label, away)


def members(codes: np.ndarray) -> list[np.ndarray]:
    """Where each code from 0 to the largest occurs, in rising order."""
    return np.split(np.argsort(codes, kind="stable"), np.bincount(codes).cumsum()[:-1])
