"""Grids with known differences: what an experiment would have measured, and what is true of endless seeds and images.

A polyp covers `size` of an image of 10 units; a run finds the share `quality` of it, and half of the rest beside it.
Quality is linear in the effects, so that the pooled confusion matrix of endless images follows from the seed's alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from optidel_hf.evidence.inference import pooled_miou


SHARED_SEED, SHARED_IMAGE = 0.03, 0.05
PIXELS = 100


def confusion(quality: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Confusion matrices `(..., 2, 2)` in pixels, rows are the truth."""
    found = size * quality
    beside = 0.5 * (size - found)
    cells = np.stack([10 - size - beside, beside, size - found, found], axis=-1)
    return np.rint(PIXELS * cells).astype(np.int64).reshape(*cells.shape[:-1], 2, 2)


def experiment(
    rng: np.random.Generator, levels: Sequence[float], seeds: int, images: int, spread: tuple[float, float, float]
) -> np.ndarray:
    """Arms' confusion matrices `(A, S, N, 2, 2)`; `spread` is a *difference*'s, by seed, image and residual."""
    size = np.exp(rng.normal(-0.32, 0.8, images))
    shared = rng.normal(0, SHARED_IMAGE, images) + rng.normal(0, SHARED_SEED, (seeds, 1))
    seed, image, residual = np.array(spread) / np.sqrt(2)
    arms = [
        level + rng.normal(0, seed, (seeds, 1)) + rng.normal(0, image, images) + rng.normal(0, residual, shared.shape)
        for level in levels
    ]
    return confusion(np.array(arms) + shared, size)


def true_difference(levels: Sequence[float], seed: float) -> float:
    """The first arm's mIoU minus the second's, with endless seeds and images."""
    rng = np.random.default_rng(1)
    shared = rng.normal(0, SHARED_SEED, 100_000)
    quality = [level + shared + rng.normal(0, seed / np.sqrt(2), shared.size) for level in levels]
    a, b = (pooled_miou(confusion(one, np.full(one.shape, 1.0))[:, None]).mean() for one in quality)
    return float(a - b)


def results_table(
    arms: Mapping[str, float],
    seeds: int = 5,
    images: int = 40,
    splits: Sequence[str] = ("validation",),
    modes: Sequence[str] = ("finetune", "probe"),
    budget: float = 0.05,
    labels: int = 100,
    checkpoints: int = 1,
    spread: tuple[float, float, float] = (0.004, 0.02, 0.05),
) -> pa.Table:
    """A grid's rows with these arms' qualities, and only the columns that every grid has."""
    rng, rows = np.random.default_rng(0), []
    own = {"none": 0.0, "full": 1.0, "full_mosaics": 1.0}
    for split in splits:
        for mode in modes:
            runs = experiment(rng, list(arms.values()), seeds, images, spread)
            for arm, by_seed in zip(arms, runs):
                row = {"arm": arm, "budget": own.get(arm, budget), "labels": labels, "mode": mode, "split": split}
                for seed, run in enumerate(by_seed):
                    rows += _checkpoints(row | {"seed": seed}, run, 1 if arm == "none" else checkpoints)
    return pa.Table.from_pylist(rows)


def _checkpoints(row: dict[str, Any], run: np.ndarray, count: int) -> list[dict[str, Any]]:
    """The last checkpoint with this confusion, and ones before it that found less."""
    rows, steps = [], 0 if row["arm"] == "none" else 400
    for number in range(1, count + 1):
        lost = np.rint(run[..., 1, 1] * 0.1 * (count - number) / count).astype(np.int64)
        earlier = run + np.stack([0 * lost, 0 * lost, lost, -lost], axis=-1).reshape(run.shape)
        facts = {"images_seen": 64 * steps * number // count, "pretrain_seconds": 60.0, "curation_seconds": 30.0}
        facts |= {"step": steps * number // count, "steps": steps, "miou": float(pooled_miou(earlier))}
        rows.append(row | facts | {"confusion": earlier.ravel().tolist()})
    return rows
