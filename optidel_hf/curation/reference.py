"""
The reference model, with its calibration: a ViT-MAE fitted on the pool by two-fold cross-fitting, or any checkpoint.

A masked autoencoder memorises what it trains on, so no patch is scored by a model that saw its group: whole groups
are dealt into two folds, a model is fitted on each, and each scores the other's patches. A tenth of a fold's groups is
kept from its training; variances, null, the difficulty fit and the number of mask partitions come from there.

Where scores are to say what longer training gains (`learnability`), each fold also keeps an early model: the same
weights trained on the same patches for a fifth of the steps, under a schedule of its own. A snapshot of the long run
would cost nothing, but at a high learning rate a model is worse than its steps allow (Hoffmann et al. 2022, arXiv
2203.15556, on loss curves of cosines that are too long), and what annealing gains would pass for learning.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets

from optidel_hf.checkpoints import checkpoint_commit
from optidel_hf.curation import agreement, vinfo
from optidel_hf.curation.calibration import (
    EARLY,
    FITTED_HERE,
    SETTINGS,
    Calibration,
    Reference,
    forget_loaded,
    open_reference,
)
from optidel_hf.curation.folds import assign_folds, hashed, held_out, rows_of, split_fold, write_folds
from optidel_hf.curation.reliability import MOST_PARTITIONS, RELIABLE, fewest_partitions, spearman_brown
from optidel_hf.curation.scoring import Measures, ScoreConfig, measure_patches
from optidel_hf.curation.stages import determining
from optidel_hf.devices import resolve_device
from optidel_hf.errors import Diverged, UserError, changes
from optidel_hf.evaluation.statistics import rank_correlation
from optidel_hf.files import read_json, write_text
from optidel_hf.images import open_image
from optidel_hf.pretraining.trainer import PretrainConfig, Pretrainer
from optidel_hf.tables import require_patches


logger = logging.getLogger(__name__)

MODEL_FILES = ("config.json", "model.safetensors", "preprocessor_config.json")
FEW_PATCHES = 30  # in simulations `difficulty` then has a rank correlation of .97 with its true value, of 5 .79
EARLY_SHARE = 0.2  # of a fold's steps, those of its early model
TARGET_PATCHES, TARGET_MARGIN = 256, 0.05  # on which a checkpoint's target is checked, and by how many bits


@dataclass(frozen=True)
class ReferenceConfig:
    """Where the scores come from: a given checkpoint, or a small ViT-MAE fitted here."""

    reference: str | None = field(default=None, metadata={"help": "ViTMAE checkpoint; without it one is fitted."})
    reference_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of it."})
    second_reference: str | None = field(
        default=None, metadata={"help": "Another ViTMAE checkpoint: how far its ranks agree is reported."}
    )
    reference_steps: int = field(default=300, metadata={"help": "Steps of each fold's model."})
    reference_batch_size: int = field(default=64, metadata={"help": "Its batch size."})
    reference_learning_rate: float = field(default=4e-3, metadata={"help": "Its base rate, for a batch of 256."})
    reference_width: int = field(default=192, metadata={"help": "Its encoder's hidden size."})
    reference_layers: int = field(default=6, metadata={"help": "Its encoder's layers."})
    reference_token: int = field(default=8, metadata={"help": "Side of its tokens, in pixels."})
    reference_seed: int = field(default=0, metadata={"help": "Seed of folds, weights and batches."})
    holdout: float = field(default=0.1, metadata={"help": "Share of a fold's images that calibrate its model."})
    max_reference_patches: int = field(default=50_000, metadata={"help": "Most patches that a fold trains on."})

    def __post_init__(self) -> None:
        if not 0 < self.holdout < 0.5:
            raise UserError(f"holdout is {self.holdout}: it is between 0 and half of a fold.")
        if self.reference_steps < 1 or self.reference_batch_size < 1 or self.reference_layers < 1:
            raise UserError("reference_steps, reference_batch_size and reference_layers are at least 1.")
        if self.reference_token < 1 or self.max_reference_patches < 1 or self.reference_seed < 0:
            raise UserError("reference_token and max_reference_patches are at least 1, and reference_seed at least 0.")
        if not 0 < self.reference_learning_rate < math.inf:
            raise UserError(f"reference_learning_rate is {self.reference_learning_rate}: it is a number above 0.")
        if self.reference_width < 64 or self.reference_width % 64:
            raise UserError(f"reference_width is {self.reference_width}: it is a multiple of 64, the width of a head.")


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
        output_dir (`str` or `Path`): gets `settings.json`, `fold-0/`, `fold-1/`, `folds.parquet`, `reliability.json`.
        config ([`ReferenceConfig`], *optional*).
        score ([`ScoreConfig`], *optional*): the masks that the calibration stands for, those of the scorer.
        folds (`dict[str, int]`, *optional*): from [`assign_folds`], where `patches` is only a part of the pool.
        device (`str`, *optional*, defaults to `"auto"`).

    Returns:
        `Path`: the folder that [`VInformationScorer`] takes.

    Raises:
        `UserError`: if a row has no patch, `config` names a checkpoint, the folder holds models of other groups, or of
            the same ones dealt otherwise, if there are too few groups to train and calibrate, if a training diverges,
            or if its models were made with other settings.
    """
    require_patches(patches)
    config, score, output = config or ReferenceConfig(), score or ScoreConfig(), Path(output_dir)
    if config.reference:
        raise UserError(f"{config.reference} is not to be fitted: calibrate_checkpoint calibrates a given checkpoint.")
    forget_loaded()
    _refuse_other_settings(output, config, score)
    folds = folds or assign_folds(patches["group"], patches["source"], config.reference_seed)
    patches = _sorted(patches)
    parts = [split_fold(patches, folds, fold, config.holdout, config.reference_seed) for fold in (0, 1)]
    write_settings(output, config, score)
    write_folds(folds, output)
    for fold, (train, held) in enumerate(parts):
        if not (output / f"fold-{fold}").exists():
            _fit_fold(fold, patches, train, held, output, config, score, device)
        shutil.rmtree(output / f".fold-{fold}.partial", ignore_errors=True)
    if not (output / agreement.FILE).exists():
        # What a fold keeps from its training the other never sees: no model has trained on either's.
        held = concatenate_datasets([held for _, held in parts])
        agreement.write_agreement(output, held, score, config.second_reference, str(resolve_device(device)))
    return output


def calibrate_checkpoint(
    patches: Dataset,
    output_dir: str | Path,
    config: ReferenceConfig,
    score: ScoreConfig | None = None,
    device: str = "auto",
) -> Path:
    """
    Calibrate a given ViTMAE checkpoint on a tenth of the pool's groups: it scores every patch, as fold 0.

    Args and result are those of [`fit_scorer`], without its folds; `config.reference` names the checkpoint.

    Raises:
        `UserError`: if no checkpoint is named, its predictions do not fit its recorded target, or the folder was made
            with other settings.
    """
    if config.reference is None:
        raise UserError("There is no checkpoint to calibrate: name one in ReferenceConfig.reference, or fit_scorer.")
    require_patches(patches)
    forget_loaded()
    score, output, where = score or ScoreConfig(), Path(output_dir), str(resolve_device(device))
    _refuse_other_settings(output, config, score)
    if (output / agreement.FILE).exists():
        return output
    own = set(patches["group"])
    # It has trained on none of them, so a single group will do.
    kept_out = held_out(own, patches, config.holdout, config.reference_seed)
    held = rows_of(_sorted(patches), kept_out or own)
    if not (output / "fold-0").exists():
        commit = checkpoint_commit(config.reference, config.reference_revision)
        reference = open_reference(config.reference, commit, where)
        _check_target(reference, held, config.reference, score)
        calibration = _calibrate(reference, held, config.reference, commit, score)
        write_settings(output, config, score)
        partial = output / ".fold-0.partial"
        partial.mkdir(parents=True, exist_ok=True)
        calibration.save(partial / "calibration.json")
        partial.rename(output / "fold-0")
    agreement.write_agreement(output, held, score, config.second_reference, where)
    return output


def write_settings(output: Path, config: ReferenceConfig, score: ScoreConfig) -> None:
    """Write what a folder's models are made by."""
    write_text(json.dumps(_settings(config, score), indent=2) + "\n", output / SETTINGS)


def _refuse_other_settings(output: Path, config: ReferenceConfig, score: ScoreConfig) -> None:
    """Refuse a folder that holds models which were made otherwise."""
    if not any(output.glob("fold-*")):
        return
    if changed := changes(read_json(output / SETTINGS), _settings(config, score)):
        raise UserError(f"{output} holds models of other settings ({changed}): give another folder, or delete it.")


def _settings(config: ReferenceConfig, score: ScoreConfig) -> dict[str, Any]:
    return asdict(config) | determining(score)


def _fit_fold(
    fold: int,
    patches: Dataset,
    train: list[int],
    held: Dataset,
    output: Path,
    config: ReferenceConfig,
    score: ScoreConfig,
    device: str,
) -> None:
    chosen = sorted(train, key=lambda i: hashed(config.reference_seed, str(i)))[: config.max_reference_patches]
    partial = output / f".fold-{fold}.partial"
    images = decode_patches(patches.select(sorted(chosen)))
    early = replace(config, reference_steps=max(1, round(EARLY_SHARE * config.reference_steps)))
    runs = [("early model", partial / EARLY, early)] if score.learnability else []
    for name, target, told in (*runs, ("reference model", partial, config)):
        run = training_config(told, target, patches, device)
        trainer = Pretrainer(run, images, description=f"{name}, fold {fold}")
        try:
            trainer.train()
        except Diverged as error:
            shutil.rmtree(partial)
            reason = str(error).split(";")[0]
            raise UserError(
                f"The {name} of fold {fold} diverged: {reason}. Lower --reference_learning_rate."
            ) from None
        trainer.save()
    reference = open_reference(str(partial), None, str(resolve_device(device)))
    calibration = _calibrate(reference, held, FITTED_HERE, None, score)
    _publish_fold(partial, output / f"fold-{fold}", calibration)


def _publish_fold(partial: Path, target: Path, calibration: Calibration) -> None:
    """Keep what scoring reads and nothing that holds a time, so that a resumed run ends with the same bytes."""
    whole = target.with_name(f".{target.name}.whole")
    shutil.rmtree(whole, ignore_errors=True)
    for model in (".", EARLY) if (partial / EARLY).exists() else (".",):
        (whole / model).mkdir()
        for name in MODEL_FILES:
            shutil.copyfile(partial / model / name, whole / model / name)
    calibration.save(whole / "calibration.json")
    whole.rename(target)


def training_config(config: ReferenceConfig, output: Path, patches: Dataset, device: str) -> PretrainConfig:
    """How a reference model is pre-trained on patches."""
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
        report_to="none",
        seed=config.reference_seed,
        device=device,
    )


def _calibrate(
    reference: Reference, patches: Dataset, name: str, revision: str | None, score: ScoreConfig
) -> Calibration:
    if len(patches) < FEW_PATCHES:
        logger.warning(
            "%d patches calibrate a reference model: with fewer than %d what contrast and size explain of its error, "
            "and so `difficulty`, is known roughly. More images would help.",
            len(patches),
            FEW_PATCHES,
        )
    sides = torch.tensor([crop[2] for crop in patches["crop"]], dtype=torch.float32)
    measured = measure_patches(reference, patches, score, range(max(2, score.partitions or 2)))
    rho = _mask_correlation(measured, sides)
    partitions = score.partitions or _count_partitions(rho)
    known = measured.errors.shape[1]
    if partitions > known:
        further = measure_patches(reference, patches, score, range(known, partitions))
        measured = measured._replace(errors=torch.cat([measured.errors, further.errors], dim=1))
    error = measured.errors[:, :partitions].mean(1)
    return Calibration(
        model=name,
        revision=revision,
        normalised_target=reference.model.config.norm_pix_loss,
        family=vinfo.calibrate(error, measured.mean, measured.square),
        difficulty=vinfo.fit_difficulty(error.mean(1), measured.variance, sides),
        patches=len(patches),
        groups=len(set(patches["group"])),
        partitions=partitions,
        mask_correlation=rho,
        reliability=None if rho is None else spearman_brown(rho, partitions),
    )


def _mask_correlation(measured: Measures, sides: torch.Tensor) -> float | None:
    """Rank correlation of `difficulty`, the score that orders patches, between two independent partitions."""
    first, second = (measured.errors[:, p].mean(1) for p in (0, 1))
    fit = vinfo.fit_difficulty((first + second) / 2, measured.variance, sides)
    return rank_correlation(*(fit.difficulty(error, measured.variance, sides) for error in (first, second)))


def _count_partitions(rho: float | None) -> int:
    partitions = fewest_partitions(rho)
    if partitions == MOST_PARTITIONS and (rho is None or spearman_brown(rho, partitions) < RELIABLE):
        logger.warning(
            "Two mask partitions order patches with a rank correlation of %s: the %d that are averaged stay below a "
            "reliability of %g. More --partitions or a better reference model would help.",
            "unknown size" if rho is None else f"{rho:.2f}",
            partitions,
            RELIABLE,
        )
    return partitions


def _check_target(reference: Reference, patches: Dataset, name: str, score: ScoreConfig) -> None:
    """
    Refuse a checkpoint whose predictions fit the target that its configuration does not name.

    `norm_pix_loss` is easily lost when weights are converted or copied, and nothing fails: every score is nonsense.
    In mean squares, predictions of one target explain less of the other: the true one has more information.
    """
    sample, config = patches.select(range(min(len(patches), TARGET_PATCHES))), reference.model.config
    declared, information = config.norm_pix_loss, {}
    for normalised in (declared, not declared):
        config.norm_pix_loss = normalised
        measured = measure_patches(reference, sample, score, range(1))
        family = vinfo.calibrate(measured.errors.mean(1), measured.mean, measured.square)
        information[normalised] = family.information
    config.norm_pix_loss = declared
    if information[not declared] > max(0, information[declared]) + TARGET_MARGIN:
        raise UserError(
            f"{name} says norm_pix_loss {declared}, but its predictions fit the other target "
            f"({information[not declared]:.2f} bits a value against {information[declared]:.2f}): "
            "correct norm_pix_loss in its config.json."
        )
    if declared:
        logger.warning("%s predicts normalised pixels: the null entropy is then nearly constant.", name)


def decode_patches(patches: Dataset) -> torch.Tensor:
    """Patches of one size as `(n, 3, S, S)` uint8."""
    arrays = [np.asarray(open_image(value)) for value in patches["image"]]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def _sorted(patches: Dataset) -> Dataset:
    sources, boxes = patches["source"], patches["bbox"]
    return patches.select(sorted(range(len(patches)), key=lambda i: (sources[i], list(boxes[i]))))
