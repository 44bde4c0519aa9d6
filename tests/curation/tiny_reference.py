"""A ViT-MAE of 32 pixels and patches for it, so small that a forward pass takes a millisecond."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image
from PIL import Image as PILImage
from tiny_sizes import TINY_SIZES
from transformers import ViTMAEForPreTraining

from optidel_hf.curation.keys import KEY_FEATURES
from optidel_hf.curation.reference import ReferenceConfig
from optidel_hf.images import encode_png
from optidel_hf.pretraining.batches import image_processor
from optidel_hf.pretraining.objectives.mae import build_mae


SIZES = {**TINY_SIZES, "decoder_intermediate_size": 64}
PATCH_FEATURES = Features({"image": Image(decode=False), **KEY_FEATURES})


def tiny_mae(seed: int = 0, **options: Any) -> ViTMAEForPreTraining:
    return build_mae(**SIZES, seed=seed, **{"norm_pix_loss": False, **options}).eval()


def save_mae(folder: Path, model: ViTMAEForPreTraining) -> str:
    model.save_pretrained(folder)
    image_processor(32).save_pretrained(folder)
    return str(folder)


def picture(seed: int, side: int = 32) -> PILImage.Image:
    """A coarse coloured texture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return PILImage.fromarray(coarse).resize((side, side), PILImage.Resampling.BICUBIC)


def tiny_patches(n: int = 24, per_source: int = 2, sources_per_group: int = 2) -> Dataset:
    sources = [i // per_source for i in range(n)]
    rows = {
        "image": [{"bytes": encode_png(picture(i)), "path": None} for i in range(n)],
        "source": [f"{s:03d}.png" for s in sources],
        "group": [f"video-{s // sources_per_group:02d}" for s in sources],
        "bbox": [[float(i), 0.0, 9.0, 9.0] for i in range(n)],
        "crop": [[i, 0, 20 + 3 * (i % 7)] for i in range(n)],
        "upscale": [1.0] * n,
        "area": [0.1] * n,
    }
    return Dataset.from_dict(rows, features=PATCH_FEATURES)


def tiny_config(**changes: Any) -> ReferenceConfig:
    small = {"reference_steps": 2, "reference_batch_size": 4, "reference_width": 64, "reference_layers": 1}
    return ReferenceConfig(**{**small, "reference_token": 8, **changes})
