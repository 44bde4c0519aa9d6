"""
Random square crops: what remains of key patches when SAM is taken away and their sizes are kept.

Each crop lies anywhere in a random image, with a side drawn from given ones, as a share of the image's shorter side.
Images are drawn without replacement, and again when all have given one. SAM's filter on black borders does not apply:
it is part of what SAM's arm has and this one has not.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from optidel_hf.curation.keys import KEY_FEATURES


def crop_shares(tiles: pa.Table, whole: pa.Table) -> np.ndarray:
    """
    Sides of crops over the shorter sides of their images, `(n,)`.

    Args:
        tiles (`pyarrow.Table`): `n` rows with `source` and `crop`.
        whole (`pyarrow.Table`): the pool's whole images, one row an image.
    """
    shorter = dict(zip(whole["source"].to_pylist(), image_sizes(whole).min(axis=1).tolist()))
    pairs = zip(tiles["source"].to_pylist(), tiles["crop"].to_pylist())
    return np.array([crop[2] / shorter[source] for source, crop in pairs])


def random_crops(whole: pa.Table, shares: np.ndarray, seed: int) -> pa.Table:
    """
    One crop a share, `(n,)`.

    Returns:
        `pyarrow.Table`: `n` rows with the columns of key patches.
    """
    rng = np.random.default_rng(seed)
    rounds = -(-len(shares) // len(whole))
    images = whole.take(np.concatenate([rng.permutation(len(whole)) for _ in range(rounds)])[: len(shares)])
    size = image_sizes(images)
    side = np.rint(rng.permutation(shares) * size.min(axis=1)).astype(np.int64).clip(1)
    corner = rng.integers(0, size - side[:, None] + 1)
    stored = images["upscale"].to_numpy() * np.stack(images["crop"].to_numpy())[:, 2]
    columns = {
        "source": images["source"],
        "group": images["group"],
        "bbox": np.column_stack([corner, side - 1, side - 1]).tolist(),
        "crop": np.column_stack([corner, side]).tolist(),
        "upscale": stored / side,
        "area": side**2 / size.prod(axis=1),
    }
    return pa.table(columns).cast(KEY_FEATURES.arrow_schema)


def image_sizes(whole: pa.Table) -> np.ndarray:
    """Width and height of whole images `(n, 2)`, from the box around each: its last pixel, not its side."""
    return np.stack(whole["bbox"].to_numpy())[:, 2:].astype(np.int64) + 1
