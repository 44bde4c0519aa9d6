"""Batches to train the embedded SAM with: cached scenes, augmented, prompted with points, and the masks there.

Everything is a pure function of (seed, step, place in the batch), so a resumed run sees the same batches.

Shapes: `N` scenes in the pool, `B` scenes and `P` points a scene in a batch, `S` side of the input, `L = S / 4` side
of the logits.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from optidel_hf.sample.scenes import make_scene


IMAGE_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
IMAGE_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)


def scene_pool(folder: Path, seed: int, count: int, side: int) -> np.ndarray:
    """The first `count` scenes of a series, `(N, S, S, 4)` uint8, RGB and label, painted once into `folder`."""
    path = folder / f"scenes-{seed}-{count}-{side}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        pool = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=(count, side, side, 4))
        paint = partial(make_scene, seed, side=side)
        with ProcessPoolExecutor(max_workers=joblib.cpu_count()) as workers:
            painted = workers.map(paint, range(count), chunksize=16)
            for index, (image, labels) in enumerate(tqdm(painted, total=count, unit="scene", desc="painting")):
                pool[index, ..., :3], pool[index, ..., 3] = image, labels
        pool.flush()
        os.replace(part, path)
    return np.load(path, mmap_mode="r")


def augment(scene: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Turn, mirror, recolour and cut a scene `(S, S, 4)`; returns image, labels, and the rows and columns left of it.

    The processor pads an oblong photo at its bottom or right with 0 *after* normalisation; so are the scenes cut here.
    """
    scene = np.rot90(scene, int(rng.integers(4)))
    scene = scene[:, ::-1] if rng.random() < 0.5 else scene
    image: np.ndarray = scene[..., :3].astype(np.float32) / 255
    labels = scene[..., 3].copy()
    if rng.random() < 0.25:
        image = image[..., rng.permutation(3)]
    image = image ** np.float32(rng.uniform(0.7, 1.4)) * rng.uniform(0.75, 1.2, 3).astype(np.float32)
    image = (image.clip(0, 1) - IMAGE_MEAN) / IMAGE_STD
    height = width = len(labels)
    if rng.random() < 0.4:
        height, width = rng.permutation([height, int(height * rng.uniform(0.55, 1))])
        image[height:], image[:, width:], labels[height:], labels[:, width:] = 0, 0, 0, 0
    return image, labels, int(height), int(width)


def sample_points(labels: np.ndarray, count: int, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Pixels `(P, 2)` as (x, y): three in four on objects, each object as likely as any other, the rest anywhere."""
    points = np.stack([rng.integers(0, width, count), rng.integers(0, height, count)], 1)
    areas = np.bincount(labels.ravel(), minlength=2)
    present = np.flatnonzero(areas[1:] >= 0.002 * labels.size) + 1
    for place in np.flatnonzero(rng.random(count) < 0.75) if len(present) else ():
        inside = np.flatnonzero(labels == rng.choice(present))
        points[place] = np.divmod(rng.choice(inside), labels.shape[1])[::-1]
    return points


def target_masks(labels: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Masks `(P, L, L)` float32 in [0, 1] of the objects under the points, averaged over 4 x 4; 0 on background."""
    objects = labels[points[:, 1], points[:, 0]]
    masks = (labels == objects[:, None, None]) & (objects > 0)[:, None, None]
    side = len(labels) // 4
    return masks.reshape(len(points), side, 4, side, 4).mean((2, 4), dtype=np.float32)


def make_batch(pool: np.ndarray, places: range, prompts: int, seed: int, step: int) -> dict[str, Tensor]:
    """The scenes at some places of one step's batch.

    Args:
        pool (`numpy.ndarray` of shape `(N, S, S, 4)`): from [`scene_pool`].
        places (`range`): of length `B`, which places of the batch: all of them, or this process's share.
        prompts (`int`): points a scene, `P`.
        seed (`int`): seed of the run.
        step (`int`): step of the run.

    Returns:
        `dict`: `pixel_values` (B, 3, S, S), `points` (B, P, 1, 2) in input pixels, `masks` (B, P, L, L) in [0, 1],
        `labels` (B, S / 16, S / 16) the object at the centre of each of the encoder's tokens, 0 for background.
    """
    images, points, masks, tokens = [], [], [], []
    for place in places:
        rng = np.random.default_rng([seed, 1, step, place])
        image, labels, height, width = augment(pool[rng.integers(len(pool))], rng)
        points.append(sample_points(labels, prompts, rng, height, width))
        masks.append(target_masks(labels, points[-1]))
        images.append(image.transpose(2, 0, 1))
        tokens.append(labels[8::16, 8::16].astype(np.int64))
    return {
        "pixel_values": torch.from_numpy(np.stack(images)),
        "points": torch.from_numpy(np.stack(points)).float()[:, :, None],
        "masks": torch.from_numpy(np.stack(masks)),
        "labels": torch.from_numpy(np.stack(tokens)),
    }
