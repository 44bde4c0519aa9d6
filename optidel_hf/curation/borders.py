"""Flat black borders: the frame that endoscopes, scanners and letterboxes leave around the picture."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage


BLACK = 16  # of 255: above the noise that JPEG leaves in a black border, below any lit tissue
WORKING_SIDE = 256


def border_mask(image: Image.Image) -> tuple[np.ndarray, float]:
    """
    Where an image is flat black *and* connected to its edge (a dark region in the middle is no border).

    Returns:
        `tuple[np.ndarray, float]`: a bool mask of shape `(h, w)` at most 256 on a side, and its scale to the image.
    """
    scale = min(1.0, WORKING_SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    dark = np.asarray(image.resize(size, Image.Resampling.BOX)).max(axis=-1) < BLACK
    labels, _ = ndimage.label(dark)
    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return np.isin(labels, np.unique(edge[edge > 0])), scale


def border_shares(image: Image.Image, crops: list[tuple[int, int, int]]) -> list[float]:
    """Share of each crop (x, y, side) that lies in the image's flat black border, in [0, 1]."""
    mask, scale = border_mask(image)
    return [_share(mask, scale, crop) for crop in crops]


def _share(mask: np.ndarray, scale: float, crop: tuple[int, int, int]) -> float:
    rows, columns = mask.shape
    x, y, side = (int(value * scale) for value in crop)
    x, y, side = min(x, columns - 1), min(y, rows - 1), max(side, 1)  # the smaller copy may end short of the image
    return float(mask[y : y + side, x : x + side].mean())
