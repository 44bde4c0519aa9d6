"""
Scores: V-information columns for every key patch, under a reference ViT-MAE that has not seen it.

Shapes: `B` patches, `K` masks a partition, `L` tokens, `D` values a token, `C` channels, `S` the model's input side.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from datasets import Features, List, Value
from PIL.Image import Resampling
from torch import Tensor
from transformers import AutoImageProcessor, ViTMAEForPreTraining

from optidel_hf.curation import vinfo
from optidel_hf.curation.masking import hidden_mean, mask_partition, mask_ratio
from optidel_hf.devices import resolve_device
from optidel_hf.errors import UserError
from optidel_hf.images import open_image
from optidel_hf.pretraining.objectives.mae import load_mae


KEYS = ("source", "group", "bbox", "crop", "upscale", "area")
FITTED_HERE = "."  # the calibration lies beside the weights that it belongs to
SCORES = ("cond_entropy", "null_entropy", "pvi", "pvi_std", "recon_error", "contrast", "difficulty")


@dataclass(frozen=True)
class ScoreConfig:
    """How patches are masked and scored; the reference model is a stage of its own."""

    partitions: int = field(default=2, metadata={"help": "Independent mask partitions averaged for a score."})
    masks: int = field(default=4, metadata={"help": "Visible sets a partition: each token is hidden masks - 1 times."})
    mask_seed: int = field(default=0, metadata={"help": "Seed of the mask partitions, the same for every patch."})
    patches_per_batch: int = field(default=64, metadata={"help": "Patches in one forward pass of a mask."})

    def __post_init__(self) -> None:
        if self.partitions < 1 or self.masks < 2:
            raise UserError(f"partitions is {self.partitions} and masks {self.masks}: at least 1 and 2 are needed.")


@dataclass(frozen=True)
class Calibration:
    """What a reference model's scores are measured against: fitted on groups that its training did not see."""

    model: str
    revision: str | None
    family: vinfo.GaussianFamily
    difficulty: vinfo.DifficultyFit
    patches: int
    groups: int
    reliability: float | None = None

    def save(self, path: Path) -> None:
        """Write as JSON, with the held-out V-information in bits per value beside the parameters."""
        facts = {**asdict(self), "v_information_held_out": self.family.information}
        path.write_text(json.dumps(facts, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what [`Calibration.save`] wrote."""
        facts = json.loads(path.read_text())
        facts.pop("v_information_held_out")
        family = {**facts.pop("family")}
        family["null_mean"] = tuple(family["null_mean"])
        return cls(
            family=vinfo.GaussianFamily(**family), difficulty=vinfo.DifficultyFit(**facts.pop("difficulty")), **facts
        )


class Reference(NamedTuple):
    """A reference model and how its input is normalised."""

    model: ViTMAEForPreTraining
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Measures(NamedTuple):
    """What a forward pass tells of `B` patches, before any calibration."""

    errors: Tensor  # (B, partitions) mean squared error over the hidden values
    channel_mean: Tensor  # (B, C) of the target values
    channel_square: Tensor  # (B, C)
    variance: Tensor  # (B,) of the patch's pixel values, whatever the model's target is


@dataclass(frozen=True)
class VInformationScorer:
    """
    Adds the score columns: for `datasets.map(batched=True, with_rank=True)`.

    Pickles to its configuration; models come from a per-process cache. Rows are scored independently of batch size,
    order and rank, up to float32 rounding.

    Args:
        reference (`str` or `Path`): folder written by [`fit_scorer`] or [`calibrate_checkpoint`].
        config ([`ScoreConfig`], *optional*).
        device (`str`, *optional*, defaults to `"auto"`).

    Columns added, in bits per value unless said otherwise: `cond_entropy`, `null_entropy`, `pvi`, `pvi_std` (over
    partitions; NaN for one), `recon_error` (mean squared error, in the target's units), `contrast` (standard
    deviation of the normalised pixels), `difficulty` (nats, free of contrast and size), `fold` (the model that
    scored the row), `embedding` (float16, L2-normalised mean token of one model for all rows).
    """

    reference: str | Path
    config: ScoreConfig = ScoreConfig()
    device: str = "auto"

    @property
    def features(self) -> Features:
        """Declared output features: the keys and the scores, without the image."""
        width = load_reference(self.reference, 0, "cpu").model.config.hidden_size
        return Features(
            {
                "source": Value("string"),
                "group": Value("string"),
                "bbox": List(Value("float32"), length=4),
                "crop": List(Value("int32"), length=3),
                "upscale": Value("float32"),
                "area": Value("float32"),
                **{name: Value("float32") for name in SCORES},
                "fold": Value("int8"),
                "embedding": List(Value("float16"), length=width),
            }
        )

    def __call__(self, batch: dict[str, list[Any]], rank: int | None = None) -> dict[str, list[Any]]:
        """Score the patches of `batch` (columns `image` and the keys)."""
        device = str(resolve_device(self.device, rank))
        reference = load_reference(self.reference, 0, device)
        pixels = load_pixels(batch["image"], reference)
        folds = np.array([load_folds(self.reference).get(group, 0) for group in batch["group"]], dtype=np.int8)
        sides = torch.tensor([crop[2] for crop in batch["crop"]], dtype=torch.float32)
        scores = {name: np.empty(len(folds), np.float32) for name in SCORES}
        for fold in np.unique(folds):
            rows = np.flatnonzero(folds == fold)
            columns = self._score(pixels[rows], sides[rows], int(fold), device)
            for name in SCORES:
                scores[name][rows] = columns[name].numpy()
        embeddings = embed(reference.model, pixels, self.config.patches_per_batch)
        keys: dict[str, Any] = {name: batch[name] for name in KEYS}
        return {**keys, **scores, "fold": folds, "embedding": list(embeddings.half().numpy())}

    def _score(self, pixels: Tensor, sides: Tensor, fold: int, device: str) -> dict[str, Tensor]:
        calibration = load_calibration(self.reference, fold)
        measured = measure(load_reference(self.reference, fold, device).model, pixels, self.config)
        family = calibration.family
        null = vinfo.null_error(measured.channel_mean, measured.channel_square, family.null_mean)
        error = measured.errors.mean(1)
        pvi = family.pointwise(measured.errors, null.unsqueeze(1))
        return {
            "cond_entropy": family.conditional_entropy(error),
            "null_entropy": family.null_entropy(null),
            "pvi": pvi.mean(1),
            "pvi_std": pvi.std(1) if pvi.shape[1] > 1 else torch.full_like(error, torch.nan),
            "recon_error": error,
            "contrast": measured.variance.sqrt(),
            "difficulty": calibration.difficulty.difficulty(error, measured.variance, sides),
        }


@torch.inference_mode()
def measure(model: ViTMAEForPreTraining, pixels: Tensor, config: ScoreConfig) -> Measures:
    """
    Mean squared error of the hidden values and moments of the target, for each patch.

    Args:
        model (`ViTMAEForPreTraining`).
        pixels (`Tensor` of shape `(B, C, S, S)`): normalised as the model's processor does.
        config ([`ScoreConfig`]).
    """
    parts = [_measure(model, chunk, config) for chunk in pixels.split(config.patches_per_batch)]
    return Measures(*(torch.cat(values).float().cpu() for values in zip(*parts)))


def _measure(model: ViTMAEForPreTraining, pixels: Tensor, config: ScoreConfig) -> Measures:
    pixels = pixels.to(model.device)
    raw = model.patchify(pixels)
    target = _normalise_tokens(raw) if model.config.norm_pix_loss else raw
    model.config.mask_ratio = mask_ratio(target.shape[1], config.masks)
    errors = [_partition_error(model, pixels, target, config, p) for p in range(config.partitions)]
    values = target.unflatten(-1, (-1, pixels.shape[1])).flatten(1, 2)  # (B, L D / C, C): channels vary fastest
    variance = pixels.flatten(1).var(1, unbiased=False)
    return Measures(torch.stack(errors, dim=1), values.mean(1), values.square().mean(1), variance)


def _partition_error(
    model: ViTMAEForPreTraining, pixels: Tensor, target: Tensor, config: ScoreConfig, partition: int
) -> Tensor:
    noise = mask_partition(target.shape[1], config.masks, config.mask_seed + partition).to(pixels.device)
    errors = []
    for row in noise:
        logits = model(pixels, noise=row.expand(len(pixels), -1)).logits
        errors.append((logits - target).square().mean(-1))
    return hidden_mean(torch.stack(errors, dim=1), noise)


def _normalise_tokens(tokens: Tensor) -> Tensor:
    """The MAE paper's per-patch target: zero mean, unit (unbiased) variance, as ViTMAE's own loss computes it."""
    return (tokens - tokens.mean(-1, keepdim=True)) / (tokens.var(-1, keepdim=True) + 1.0e-6).sqrt()


@torch.inference_mode()
def embed(model: ViTMAEForPreTraining, pixels: Tensor, batch: int) -> Tensor:
    """L2-normalised mean patch token of one unmasked forward: `(B, C, S, S)` to `(B, width)` on the CPU."""
    embedded = []
    model.config.mask_ratio = 0.0
    # ViTMAE shuffles tokens even where it hides none: in one fixed order, a run repeated rounds the same way.
    order = torch.arange(model.vit.embeddings.patch_embeddings.num_patches, dtype=torch.float32, device=model.device)
    for chunk in pixels.split(batch):
        tokens = model.vit(chunk.to(model.device), noise=order.expand(len(chunk), -1)).last_hidden_state[:, 1:]
        embedded.append(torch.nn.functional.normalize(tokens.mean(1).float(), dim=-1).cpu())
    return torch.cat(embedded)


def load_pixels(images: list[Any], reference: Reference) -> Tensor:
    """Undecoded patches to `(B, C, S, S)` float32, at the model's input size and normalisation."""
    size = reference.model.config.image_size

    def decode(value: Any) -> np.ndarray:
        image = open_image(value)
        return np.asarray(image if image.size == (size, size) else image.resize((size, size), Resampling.BICUBIC))

    with ThreadPoolExecutor(max_workers=4) as pool:
        stacked = torch.from_numpy(np.stack(list(pool.map(decode, images))))
    pixels = stacked.permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(reference.mean)[:, None, None]) / torch.tensor(reference.std)[:, None, None]


@lru_cache(maxsize=4)
def load_reference(reference: str | Path, fold: int, device: str) -> Reference:
    """The reference model of one fold, once a process."""
    calibration = load_calibration(reference, fold)
    fitted_here = calibration.model == FITTED_HERE
    checkpoint = str(Path(reference) / f"fold-{fold}") if fitted_here else calibration.model
    return open_reference(checkpoint, calibration.revision, device)


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
def load_calibration(reference: str | Path, fold: int) -> Calibration:
    """The calibration of one fold, once a process."""
    path = Path(reference) / f"fold-{fold}" / "calibration.json"
    if not path.exists():
        raise UserError(f"{reference} is no reference folder ({path} is missing): make one with `optidel score`.")
    return Calibration.load(path)


@lru_cache(maxsize=2)
def load_folds(reference: str | Path) -> dict[str, int]:
    """Which model scores each group; empty where one checkpoint scores all."""
    path = Path(reference) / "folds.parquet"
    if not path.exists():
        return {}
    table = pq.read_table(path)
    return dict(zip(table["group"].to_pylist(), table["fold"].to_pylist()))
