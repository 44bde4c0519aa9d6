"""
The oracle: pool frames nearest in embedding to the unlabelled images of a downstream set's label pool.

It knows where the pool will be used, which no product may: it bounds what choosing can gain. A grid in which it does
not beat random images has no room for any selection to show (`gate.py`). It sees images, never a mask.

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


IMAGES_AT_ONCE = 64


def nearest_frames(pool: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """
    The `count` frames whose nearest label image is nearest, that one first; ties by position.

    Args:
        pool (`np.ndarray` of shape `(n, D)`): embeddings of the pool's frames.
        labels (`np.ndarray` of shape `(m, D)`): of the label images, by the same model.
    """
    mean = pool.mean(axis=0, dtype=np.float64)
    frames, wanted = (_directions(part - mean) for part in (pool, labels))
    cosine = np.max([frames @ image for image in wanted], axis=0)
    return np.argsort(-cosine, kind="stable")[:count]


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


def _directions(offset: np.ndarray) -> np.ndarray:
    return offset / np.maximum(np.linalg.norm(offset, axis=1, keepdims=True), 1e-6)
