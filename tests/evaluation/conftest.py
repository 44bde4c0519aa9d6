"""A tiny ViT on disk, and a downstream folder of bright squares on dark noise drawn on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel


SIDE, SQUARE = 32, 14
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": SIDE,
    "patch_size": 4,
}


@pytest.fixture(autouse=True)
def alone(one_thread: None) -> None:
    """Every test of this folder, on one thread: sums are compared bit by bit."""


@pytest.fixture(scope="session")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT without pooler that was never trained, saved as `save_pretrained` does."""
    folder = tmp_path_factory.mktemp("vit")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        ViTModel(ViTConfig(**TINY), add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def squares_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images/` and `masks/`: 24 training, 4 validation and 8 test images, JPEG masks as some data sets have them."""
    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("validation", 4), ("test", 8)):
        for number in range(count):
            _write_square(folder, f"{split}_{number:03d}", rng)
    return folder


def _write_square(folder: Path, name: str, rng: np.random.Generator, suffix: str = ".jpg") -> None:
    """Draw one image and its mask: a bright square of 14 pixels anywhere in 32."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(exist_ok=True)
    image = rng.integers(0, 80, (SIDE, SIDE, 3), dtype=np.uint8)
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
    top, left = rng.integers(0, SIDE - SQUARE, 2)
    image[top : top + SQUARE, left : left + SQUARE] += 150
    mask[top : top + SQUARE, left : left + SQUARE] = 255
    Image.fromarray(image).save(folder / "images" / f"{name}.png")
    Image.fromarray(mask).save(folder / "masks" / f"{name}{suffix}")


@pytest.fixture
def small_folder(tmp_path: Path) -> Path:
    """Two training images and one test image that a test may spoil."""
    rng = np.random.default_rng(1)
    for name in ("train_a", "train_b", "test_c"):
        _write_square(tmp_path, name, rng, suffix=".png")
    return tmp_path
