"""
The reference model, with its calibration: a ViT-MAE fitted on the pool by two-fold cross-fitting, or any checkpoint.

A masked autoencoder memorises what it trains on, so no patch is scored by a model that saw its group: whole groups
are dealt into two folds, a model is fitted on each, and each scores the other's patches. A tenth of a fold's groups is
kept from its training; variances, null and the difficulty fit come from there.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset

from optidel_hf.curation import vinfo
from optidel_hf.curation.scoring import (
    FITTED_HERE,
    Calibration,
    Measures,
    Reference,
    ScoreConfig,
    load_pixels,
    measure,
    open_reference,
)
from optidel_hf.devices import resolve_device
from optidel_hf.errors import UserError
from optidel_hf.images import open_image
from optidel_hf.pretraining.trainer import PretrainConfig, Pretrainer


logger = logging.getLogger(__name__)

MODEL_FILES = ("config.json", "model.safetensors", "preprocessor_config.json")
CHUNK = 1024  # patches that calibration holds as float32 at a time


@dataclass(frozen=True)
class ReferenceConfig:
    """Where the scores come from: a given checkpoint, or a small ViT-MAE fitted here."""

    reference: str | None = field(default=None, metadata={"help": "ViTMAE checkpoint; without it one is fitted."})
    reference_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of it."})
    reference_steps: int = field(default=300, metadata={"help": "Steps of each fold's model."})
    reference_batch_size: int = field(default=64, metadata={"help": "Its batch size."})
    reference_learning_rate: float = field(default=4e-3, metadata={"help": "Its base rate, for a batch of 256."})
    reference_width: int = field(default=192, metadata={"help": "Its encoder's hidden size."})
    reference_layers: int = field(default=6, metadata={"help": "Its encoder's layers."})
    reference_token: int = field(default=8, metadata={"help": "Side of its tokens, in pixels."})
    reference_seed: int = field(default=0, metadata={"help": "Seed of folds, weights and batches."})
    holdout: float = field(default=0.1, metadata={"help": "Share of a fold's images kept for calibration."})
    max_reference_patches: int = field(default=50_000, metadata={"help": "Most patches that a fold trains on."})

    def __post_init__(self) -> None:
        if not 0 < self.holdout < 0.5:
            raise UserError(f"holdout is {self.holdout}: keep between 0 and half of a fold for calibration.")
        if self.reference_steps < 1 or self.reference_batch_size < 1 or self.reference_layers < 1:
            raise UserError("reference_steps, reference_batch_size and reference_layers are at least 1.")
        if self.reference_width < 64 or self.reference_width % 64:
            raise UserError(f"reference_width is {self.reference_width}: it is a multiple of 64, the width of a head.")


def assign_folds(groups: Sequence[str], sources: Sequence[str], seed: int = 0) -> dict[str, int]:
    """
    Deal whole groups into two folds, balanced in images: largest first to the lighter fold, ties by hash.

    Args:
        groups (`Sequence[str]`): group of each patch.
        sources (`Sequence[str]`): source image of each patch.

    Returns:
        `dict[str, int]`: the fold in which each group *trains*.
    """
    images = _count_images(groups, sources)
    folds, weight = {}, [0, 0]
    for group in sorted(images, key=lambda name: (-images[name], _hash(seed, name))):
        fold = int(weight[1] < weight[0])
        folds[group] = fold
        weight[fold] += images[group]
    return folds


def fit_scorer(
    patches: Dataset,
    output_dir: str | Path,
    config: ReferenceConfig | None = None,
    score: ScoreConfig | None = None,
    folds: dict[str, int] | None = None,
    device: str = "auto",
) -> Path:
    """
    Fit and calibrate the reference models, cross-fitted by group; a finished fold is never fitted again.

    Args:
        patches (`datasets.Dataset`): key patches with `image` (undecoded), `source`, `group`, `bbox`, `crop`.
        output_dir (`str` or `Path`): gets `fold-0/`, `fold-1/` and `folds.parquet`.
        config ([`ReferenceConfig`], *optional*).
        score ([`ScoreConfig`], *optional*): the masks that the calibration stands for, those of the scorer.
        folds (`dict[str, int]`, *optional*): from [`assign_folds`], where `patches` is only a part of the pool.
        device (`str`, *optional*, defaults to `"auto"`).

    Returns:
        `Path`: the folder that [`VInformationScorer`] takes.
    """
    config, score, output = config or ReferenceConfig(), score or ScoreConfig(), Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    folds = folds or assign_folds(patches["group"], patches["source"], config.reference_seed)
    if not (output / "folds.parquet").exists():
        write_folds(folds, output)
    patches = _sorted(patches)
    for fold in (0, 1):
        if not (output / f"fold-{fold}").exists():
            _fit_fold(patches, folds, fold, output, config, score, device)
        shutil.rmtree(output / f".fold-{fold}.partial", ignore_errors=True)
    return output


def calibrate_checkpoint(
    patches: Dataset, output_dir: str | Path, config: ReferenceConfig, score: ScoreConfig, device: str = "auto"
) -> Path:
    """
    Calibrate a given ViTMAE checkpoint on a tenth of the pool's groups: it scores every patch, as fold 0.

    Args and result are those of [`fit_scorer`]; `config.reference` names the checkpoint.
    """
    output = Path(output_dir)
    if (output / "fold-0").exists():
        return output
    assert config.reference is not None
    own = set(patches["group"])
    groups = _held_out(own, patches, config) or own  # it has trained on none of them, so a single group will do
    reference = open_reference(config.reference, config.reference_revision, str(resolve_device(device)))
    if reference.model.config.norm_pix_loss:
        logger.warning("%s predicts normalised pixels: the null entropy is then nearly constant.", config.reference)
    partial = output / ".fold-0.partial"
    partial.mkdir(parents=True, exist_ok=True)
    rows = [i for i, group in enumerate(patches["group"]) if group in groups]
    held = _sorted(patches.select(rows))
    calibration = _calibrate(reference, held, config.reference, config.reference_revision, score)
    calibration.save(partial / "calibration.json")
    partial.rename(output / "fold-0")
    return output


def write_folds(folds: dict[str, int], output: Path) -> None:
    """Write `folds.parquet`: the model that *scores* each group, which is the one that did not train on it."""
    groups = sorted(folds)
    scorers = pa.array([1 - folds[group] for group in groups], pa.int8())
    temporary = output / ".folds.parquet.partial"
    pq.write_table(pa.table({"group": groups, "fold": scorers}), temporary)
    temporary.rename(output / "folds.parquet")


def _fit_fold(
    patches: Dataset,
    folds: dict[str, int],
    fold: int,
    output: Path,
    config: ReferenceConfig,
    score: ScoreConfig,
    device: str,
) -> None:
    own = [group for group in folds if folds[group] == fold]
    kept_out = _held_out(own, patches, config)
    train = [i for i, g in enumerate(patches["group"]) if folds[g] == fold and g not in kept_out]
    held = [i for i, g in enumerate(patches["group"]) if g in kept_out]
    if not train or not held:
        raise UserError(
            f"Fold {fold} has {len(own)} group(s), too few to train and calibrate a reference model on: "
            "give more images, or a checkpoint with --reference."
        )
    chosen = sorted(train, key=lambda i: _hash(config.reference_seed, str(i)))[: config.max_reference_patches]
    partial = output / f".fold-{fold}.partial"
    trainer = Pretrainer(
        _training_config(config, partial, patches, device),
        _pixels(patches.select(sorted(chosen))),
        description=f"reference model, fold {fold}",
    )
    trainer.train()
    trainer.save()
    reference = open_reference(str(partial), None, str(resolve_device(device)))
    calibration = _calibrate(reference, patches.select(held), FITTED_HERE, None, score)
    _publish_fold(partial, output / f"fold-{fold}", calibration)


def _publish_fold(partial: Path, target: Path, calibration: Calibration) -> None:
    """Keep what scoring reads and nothing that holds a time, so that a resumed run ends with the same bytes."""
    whole = target.with_name(f".{target.name}.whole")
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir()
    for name in MODEL_FILES:
        shutil.copyfile(partial / name, whole / name)
    calibration.save(whole / "calibration.json")
    whole.rename(target)


def _training_config(config: ReferenceConfig, output: Path, patches: Dataset, device: str) -> PretrainConfig:
    return PretrainConfig(
        output_dir=str(output),
        image_size=open_image(patches[0]["image"]).width,
        patch_size=config.reference_token,
        hidden_size=config.reference_width,
        num_hidden_layers=config.reference_layers,
        num_attention_heads=max(1, config.reference_width // 64),
        intermediate_size=4 * config.reference_width,
        norm_pix_loss=False,
        steps=config.reference_steps,
        batch_size=config.reference_batch_size,
        base_learning_rate=config.reference_learning_rate,
        min_crop_scale=0.5,
        checkpoint_every=100,
        mixed_precision="no",
        seed=config.reference_seed,
        device=device,
    )


def _calibrate(
    reference: Reference, patches: Dataset, name: str, revision: str | None, score: ScoreConfig
) -> Calibration:
    chunks = (patches[start : start + CHUNK]["image"] for start in range(0, len(patches), CHUNK))
    parts = [measure(reference.model, load_pixels(images, reference), score) for images in chunks]
    measured = Measures(*(torch.cat(values) for values in zip(*parts)))
    error = measured.errors.mean(1)
    sides = torch.tensor([crop[2] for crop in patches["crop"]], dtype=torch.float32)
    return Calibration(
        model=name,
        revision=revision,
        family=vinfo.calibrate(error, measured.channel_mean, measured.channel_square),
        difficulty=vinfo.fit_difficulty(error, measured.variance, sides),
        patches=len(patches),
        groups=len(set(patches["group"])),
        reliability=vinfo.reliability(measured.errors),
    )


def _held_out(groups: Iterable[str], patches: Dataset, config: ReferenceConfig) -> set[str]:
    """Groups, in hashed order, until they hold their share of the images; never the largest, which trains."""
    pool = _count_images(patches["group"], patches["source"])
    images = {group: pool[group] for group in groups if group in pool}
    order = sorted(images, key=lambda name: _hash(config.reference_seed + 1, name))
    largest = max(order, key=images.__getitem__, default=None)
    held: set[str] = set()
    wanted = config.holdout * sum(images.values())
    for group in order:
        if wanted > 0 and group != largest:
            held.add(group)
            wanted -= images[group]
    return held


def _count_images(groups: Iterable[str], sources: Iterable[str]) -> Counter[str]:
    """Source images in each group, from the group and the source of every patch."""
    return Counter(group for group, _ in set(zip(groups, sources)))


def _pixels(patches: Dataset) -> torch.Tensor:
    arrays = [np.asarray(open_image(value)) for value in patches["image"]]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def _sorted(patches: Dataset) -> Dataset:
    sources, boxes = patches["source"], patches["bbox"]
    return patches.select(sorted(range(len(patches)), key=lambda i: (sources[i], list(boxes[i]))))


def _hash(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()
