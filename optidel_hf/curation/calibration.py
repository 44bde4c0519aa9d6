"""
What a reference folder holds: for each fold a ViT-MAE and what its scores are measured against.

    REFERENCE/{settings.json, folds.parquet, reliability.json,
               fold-0/{calibration.json, model.safetensors, ...}, fold-1/}

With `learnability`, `fold-0/early/` and `fold-1/early/` each hold the model of a shorter training on the same patches.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoImageProcessor, ViTMAEForPreTraining

from optidel_hf.checkpoints import checkpoint_fingerprint
from optidel_hf.curation import vinfo
from optidel_hf.errors import UserError
from optidel_hf.files import read_json
from optidel_hf.parquet import read_table
from optidel_hf.pretraining.objectives.mae import load_mae


FITTED_HERE = "."  # the calibration lies beside the weights that it belongs to
SETTINGS = "settings.json"  # what the models and their calibration are made by
EARLY = "early"  # folder of the early model, within its fold's


@dataclass(frozen=True)
class Calibration:
    """
    What a reference model's scores are measured against: fitted on groups that its training did not see.

    Args:
        model (`str`): the checkpoint, or `"."` for the weights beside the calibration.
        revision (`str`, *optional*): its commit on the Hub.
        normalised_target (`bool`): whether it predicts pixels normalised token by token (`norm_pix_loss`).
        family ([`vinfo.GaussianFamily`]): both predictors' variances and the null means, in the target's units.
        difficulty ([`vinfo.DifficultyFit`]): the error that a patch of a contrast and size is expected to have.
        patches, groups (`int`): how many it was fitted on.
        partitions (`int`): mask partitions that are averaged for a score.
        mask_correlation (`float`, *optional*): rank correlation of `difficulty` between two partitions.
        reliability (`float`, *optional*): that of the mean over all partitions, by Spearman and Brown.
    """

    model: str
    revision: str | None
    normalised_target: bool
    family: vinfo.GaussianFamily
    difficulty: vinfo.DifficultyFit
    patches: int
    groups: int
    partitions: int
    mask_correlation: float | None = None
    reliability: float | None = None

    def save(self, path: Path) -> None:
        """Write as JSON, with the held-out information and entropy in bits per value beside the parameters."""
        held_out = {
            "v_information_held_out": self.family.information,
            "conditional_entropy_held_out": self.family.entropy,
        }
        path.write_text(json.dumps({**asdict(self), **held_out}, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what [`Calibration.save`] wrote."""
        facts = read_json(path)
        del facts["v_information_held_out"], facts["conditional_entropy_held_out"]
        family = facts.pop("family")
        means = tuple(map(tuple, family.pop("null_mean")))
        variances = {name: tuple(values) for name, values in family.items()}
        return cls(
            family=vinfo.GaussianFamily(**variances, null_mean=means),
            difficulty=vinfo.DifficultyFit(**facts.pop("difficulty")),
            **facts,
        )


class Reference(NamedTuple):
    """A reference model and how its input is normalised."""

    model: ViTMAEForPreTraining
    mean: tuple[float, ...]
    std: tuple[float, ...]


def forget_loaded() -> None:
    """Load anew what a folder holds, after something was written into it by this process."""
    for loaded in (load_reference, load_early, load_calibration, load_settings, load_folds):
        loaded.cache_clear()


@lru_cache(maxsize=4)
def load_reference(folder: str | Path, fold: int, device: str) -> Reference:
    """
    The reference model of one fold, once a process.

    Raises:
        `UserError`: if its target is no longer the one that it was calibrated for.
    """
    calibration, checkpoint = load_calibration(folder, fold), reference_checkpoint(folder, fold)
    reference = open_reference(checkpoint, calibration.revision, device)
    if reference.model.config.norm_pix_loss != calibration.normalised_target:
        raise UserError(
            f"{checkpoint} has norm_pix_loss {reference.model.config.norm_pix_loss}, but {folder} was calibrated for "
            f"{calibration.normalised_target}: calibrate it again in another folder."
        )
    return reference


def reference_checkpoint(folder: str | Path, fold: int) -> str:
    """The folder or Hub id of a fold's model."""
    model = load_calibration(folder, fold).model
    return str(Path(folder) / f"fold-{fold}") if model == FITTED_HERE else model


@lru_cache(maxsize=4)
def load_early(folder: str | Path, fold: int, device: str) -> Reference:
    """
    The early model of one fold, once a process.

    Raises:
        `UserError`: if the reference was fitted without.
    """
    checkpoint = Path(folder) / f"fold-{fold}" / EARLY
    if not checkpoint.is_dir():
        raise UserError(f"{folder} has no early model of fold {fold}: fit it with --learnability in another folder.")
    return open_reference(str(checkpoint), None, device)


def open_reference(checkpoint: str, revision: str | None, device: str) -> Reference:
    """
    Load any ViTMAE checkpoint as a reference model.

    Raises:
        `UserError`: if `checkpoint` is not there, is a model of another kind, or does not say how it takes pixels.
    """
    model = load_mae(checkpoint, revision)
    try:
        processor = AutoImageProcessor.from_pretrained(checkpoint, revision=revision)
    except OSError:
        raise UserError(f"{checkpoint} has no preprocessor_config.json: save its image processor beside it.") from None
    return Reference(model.to(device).eval(), tuple(processor.image_mean), tuple(processor.image_std))


@lru_cache(maxsize=8)
def load_calibration(folder: str | Path, fold: int) -> Calibration:
    """The calibration of one fold, once a process."""
    return Calibration.load(_part(folder, f"fold-{fold}/calibration.json"))


@lru_cache(maxsize=4)
def load_settings(folder: str | Path) -> dict[str, Any]:
    """The fields of `ReferenceConfig` and `ScoreConfig` that a folder was made by, once a process."""
    return read_json(_part(folder, SETTINGS))


def _part(folder: str | Path, name: str) -> Path:
    if not (path := Path(folder) / name).exists():
        raise UserError(f"{folder} is no reference folder ({path} is missing): make one with `optidel score`.")
    return path


def given_weights(folder: str | Path) -> list[str]:
    """Fingerprints of the checkpoints outside of a reference folder that its calibrations are of."""
    told = [Calibration.load(path) for path in sorted(Path(folder).glob("fold-*/calibration.json"))]
    return [checkpoint_fingerprint(one.model, one.revision) for one in told if one.model != FITTED_HERE]


@lru_cache(maxsize=2)
def load_folds(folder: str | Path) -> dict[str, int]:
    """Which model scores each group; empty where one checkpoint scores all."""
    path = Path(folder) / "folds.parquet"
    if not path.exists():
        return {}
    table = read_table(path)
    return dict(zip(table["group"].to_pylist(), table["fold"].to_pylist()))
