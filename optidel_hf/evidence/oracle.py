"""
Oracles: pool frames nearest in embedding to the unlabelled images of a downstream set's label pool.

`oracle`, which is the gate's, takes those nearest to any label image; on a redundant pool they are near copies of each
other. `oracle_coverage` takes them such that each label image has one that is near. Both know where the pool will be
used, which no product may: they bound what choosing can gain. A grid in which the gate's does not beat random images
has no room for any selection to show (`gate.py`). They see images, never a mask.

Cosines are taken about the pool's mean embedding: without that all frames are alike.

Shapes: `n` pool frames, `m` label images, `D` width of the embedding, `S` the reference model's input side.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from optidel_hf.curation.calibration import load_reference
from optidel_hf.curation.scoring import embed, normalise
from optidel_hf.devices import resolve_device
from optidel_hf.embeddings import unit_vectors


IMAGES_AT_ONCE = 64


def nearest_frames(pool: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """
    The `count` frames whose nearest label image is nearest, that one first; ties by position.

    Args:
        pool (`np.ndarray` of shape `(n, D)`): embeddings of the pool's frames.
        labels (`np.ndarray` of shape `(m, D)`): of the label images, by the same model.
    """
    return np.argsort(-_cosines(pool, labels).max(axis=1), kind="stable")[:count]


def covering_frames(pool: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """
    `count` frames, each the one that most raises the label images' mean cosine to their nearest chosen frame.

    Where none raises it, the frames that are left cover the label images once more. Ties go by position.

    Args:
        pool (`np.ndarray` of shape `(n, D)`): embeddings of the pool's frames, `count` or more.
        labels (`np.ndarray` of shape `(m, D)`): of the label images, by the same model.
    """
    cosine = _cosines(pool, labels)
    nothing = np.full(len(labels), -2.0)  # farther than any frame can be
    nearest, left = nothing, np.ones(len(pool), bool)
    chosen: list[int] = []
    while len(chosen) < count:
        gain = np.where(left, np.maximum(cosine - nearest, 0).sum(axis=1), 0)
        if not gain.any():
            nearest = nothing
            continue
        chosen.append(int(gain.argmax()))
        left[chosen[-1]] = False
        nearest = np.maximum(nearest, cosine[chosen[-1]])
    return np.array(chosen)


def _cosines(pool: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of every frame to every label image, `(n, m)`, about the pool's mean."""
    mean = pool.mean(axis=0, dtype=np.float64)
    return unit_vectors(pool, mean) @ unit_vectors(labels, mean).T


def embed_images(reference: Path, images: Tensor, device: str) -> np.ndarray:
    """
    Embeddings of label images by the model that embedded the pool.

    The downstream set squashes its images to a square, of the pool's frames the centred square is cut.

    Args:
        reference (`Path`): folder of the seed's reference models.
        images (`Tensor` of shape `(m, 3, S', S')`, uint8): enlarged or reduced to the model's side.

    Returns:
        `np.ndarray` of shape `(m, D)`, float32, of unit length.
    """
    first = load_reference(reference, 0, str(resolve_device(device)))
    size = first.model.config.image_size
    embedded = []
    for part in images.split(IMAGES_AT_ONCE):
        resized = torch.nn.functional.interpolate(part.float(), (size, size), mode="bicubic", antialias=True)
        pixels = resized.round().clamp(0, 255).byte().permute(0, 2, 3, 1).to(first.model.device)
        embedded.append(embed(first.model, normalise(pixels, first.mean, first.std)).cpu())
    return torch.cat(embedded).numpy()
