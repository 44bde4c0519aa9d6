"""A grid so small that a cell takes tenths of a second: a tiny ViT, and bright squares on noise to find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from optidel_hf.evidence.arm_data import ArmData
from optidel_hf.evidence.config import Experiment, ReproduceConfig
from optidel_hf.evidence.pool import Pool
from optidel_hf.pretraining.config import PretrainConfig


SIDE, SQUARE = 32, 14
SIZES = {
    "image_size": SIDE,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
}
TRAINING = {"steps": 4, "batch_size": 8, "base_learning_rate": 2e-2, "log_every": 1}
ARMS = ["none", "full", "random_images"]
COUNTS = {"train": 12, "validation": 3, "test": 4}


def write_square(folder: Path, name: str, seed: int) -> None:
    """One image and its mask: a bright square of 14 pixels anywhere in 32."""
    rng = np.random.default_rng(seed)
    image, mask = rng.integers(0, 80, (SIDE, SIDE, 3), dtype=np.uint8), np.zeros((SIDE, SIDE), np.uint8)
    top, left = rng.integers(0, SIDE - SQUARE, 2)
    image[top : top + SQUARE, left : left + SQUARE] += 150
    mask[top : top + SQUARE, left : left + SQUARE] = 255
    for kind, pixels in (("images", image), ("masks", mask)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / kind / f"{name}.png")


def write_squares(folder: Path) -> Path:
    """A downstream set: `train_00` ... `train_11`, and a few images of validation and test."""
    numbered = [f"{split}_{number:02d}" for split, count in COUNTS.items() for number in range(count)]
    for seed, name in enumerate(numbered):
        write_square(folder, name, seed)
    return folder


def fake_arm(name: str, budget: float, seed: int, pool: Pool, *, label_images: Any = None) -> ArmData:
    """Every arm is the whole pool: what an arm is made of is not the grid's business."""
    return ArmData(None if name == "none" else pool.inputs.dataset, {"images": 24.0, "curation_seconds": 1.5})


def tiny_experiment(pool: Path, downstream: Path, output: Path, training: Any = None, **changes: Any) -> Experiment:
    fields = {"arms": ARMS, "seeds": 2, "labels": [4], "label_range": "train_00:train_07", "held_out": 0.0}
    fields |= {"test_range": "train_08:train_11", "near_distance": 0, "finetune_steps": 2, "probe_steps": 2}
    fields |= {"checkpoints": 2, "downstream_batch_size": 4, "device": "cpu", "test_reads": str(output / "reads.md")}
    places = {"pool": str(pool), "downstream": str(downstream), "output_dir": str(output)}
    return Experiment(
        ReproduceConfig(**{**fields, **places, **changes}), PretrainConfig(**{**SIZES, **TRAINING, **(training or {})})
    )
