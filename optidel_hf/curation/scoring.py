"""
Scores: V-information columns for every key patch, under a reference ViT-MAE that has not seen it.

Shapes: `B` patches, `K` masks a partition, `P` partitions, `L` tokens, `D` values a token, `C` channels, `S` the
model's input side; `G` index sets that share a variance, `U` means in a set (`vinfo.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from PIL.Image import Resampling
from torch import Tensor
from transformers import AutoConfig, ViTMAEForPreTraining

from optidel_hf.checkpoints import folder_fingerprint
from optidel_hf.curation import vinfo
from optidel_hf.curation.calibration import (
    Calibration,
    Reference,
    given_weights,
    load_calibration,
    load_early,
    load_folds,
    load_reference,
    load_settings,
    reference_checkpoint,
)
from optidel_hf.curation.keys import KEY_FEATURES
from optidel_hf.curation.masking import hidden_mean, mask_partition, mask_ratio
from optidel_hf.curation.nuisance import NUISANCES, nuisances
from optidel_hf.devices import DTYPES, resolve_device, resolve_dtype, send
from optidel_hf.errors import UserError, changes
from optidel_hf.images import DECODING_THREADS, open_image
from optidel_hf.pretraining.objectives.mae import MaskedAutoencoding
from optidel_hf.processes import take_one_thread_in_a_pool
from optidel_hf.tables import batch_column


SCORES = ("cond_entropy", "null_entropy", "pvi", "pvi_std", "recon_error", "contrast", "difficulty")
LEARNABILITY = "learnability"
CALIBRATED = ("masks", "mask_seed", "variance")  # fields of `ScoreConfig` that a calibration holds for
VARIANCES = ("global", "channel", "position")


@dataclass(frozen=True)
class ScoreConfig:
    """How patches are masked and scored; the reference model is a stage of its own."""

    partitions: int | None = field(
        default=None, metadata={"help": "Mask partitions averaged (else the fewest with a reliability of 0.9)."}
    )
    masks: int = field(default=4, metadata={"help": "Visible sets a partition: each token is hidden masks - 1 times."})
    mask_seed: int = field(default=0, metadata={"help": "Seed of the mask partitions, the same for every patch."})
    variance: str = field(
        default="global", metadata={"help": f"Values that share a variance, one of: {', '.join(VARIANCES)}."}
    )
    patches_per_batch: int = field(default=64, metadata={"help": "Patches in one forward pass of a mask."})
    score_dtype: str = field(
        default="float32",
        metadata={"help": "What reference models compute in: float32, bfloat16 or auto (bf16 where native)."},
    )
    learnability: bool = field(
        default=False,
        metadata={"help": "Add the column learnability: what longer training gains, by an early model of each fold."},
    )

    def __post_init__(self) -> None:
        if (self.partitions is not None and self.partitions < 1) or self.masks < 2:
            raise UserError(f"partitions is {self.partitions} and masks {self.masks}: at least 1 and 2 are needed.")
        if self.patches_per_batch < 1:
            raise UserError(f"patches_per_batch is {self.patches_per_batch}: at least one is scored at a time.")
        if self.variance not in VARIANCES:
            raise UserError(f"variance is '{self.variance}': choose one of {', '.join(VARIANCES)}.")
        if self.score_dtype not in DTYPES:
            raise UserError(f"score_dtype is '{self.score_dtype}': choose one of {', '.join(DTYPES)}.")


class Measures(NamedTuple):
    """What forward passes tell of `B` patches, before any calibration."""

    errors: Tensor  # (B, P, G) mean squared error over the hidden values
    mean: Tensor  # (B, G, U) of the target's values
    square: Tensor  # (B, G, U)
    variance: Tensor  # (B,) of the patch's pixel values, whatever the model's target is

    @classmethod
    def gather(cls, parts: list[Measures]) -> Measures:
        """The patches of several forward passes, float32 on the CPU."""
        return cls(*(torch.cat(values).float().cpu() for values in zip(*parts)))


@dataclass(frozen=True)
class VInformationScorer:
    """
    Adds the score columns: for `datasets.map(batched=True, with_rank=True)`.

    Pickles to its configuration and the hash of `reference`, by which the cache of `map` tells other models; they come
    from a per-process cache. Rows are scored independently of batch size, order and rank, up to rounding.
    Patches are decoded ahead of the model, so give `map` large batches.

    Args:
        reference (`str` or `Path`): folder written by [`fit_scorer`] or [`calibrate_checkpoint`].
        config ([`ScoreConfig`], *optional*): by default what `reference` was calibrated with; masks and variances
            are of the calibration and cannot be others.
        device (`str`, *optional*, defaults to `"auto"`).

    Columns added, in bits per value unless said otherwise: `cond_entropy`, `null_entropy`, `pvi`, `pvi_std` (over
    partitions; NaN for one), `recon_error` (mean squared error, in the target's units), `contrast` (standard
    deviation of the normalised pixels), `difficulty` (nats, free of contrast and size), what spoils a patch
    (`border`, `text`, `saturation`, `defocus`: see [`nuisances`]), `fold` (the model that scored the row), `embedding`
    (float16, L2-normalised mean token of one model for all rows); where `config` asks for it, `learnability`, which
    takes the masked passes of the fold's early model as well.
    """

    reference: str | Path
    config: ScoreConfig | None = None
    device: str = "auto"

    def __getstate__(self) -> dict[str, Any]:
        """The fields, and what is in the folder and in a checkpoint elsewhere that it names."""
        return self.__dict__ | {"models": folder_fingerprint(self.reference), "given": given_weights(self.reference)}

    @property
    def score(self) -> ScoreConfig:
        """The configuration in force."""
        fitted = {field.name: load_settings(self.reference)[field.name] for field in fields(ScoreConfig)}
        if self.config is None:
            return ScoreConfig(**fitted)
        asked = asdict(self.config)
        if changed := changes(*({name: told[name] for name in CALIBRATED} for told in (fitted, asked))):
            raise UserError(f"{self.reference} is calibrated otherwise ({changed}): calibrate in another folder.")
        return self.config

    @property
    def features(self) -> Features:
        """Declared output features: the keys and the scores, without the image."""
        checkpoint, revision = reference_checkpoint(self.reference, 0), load_calibration(self.reference, 0).revision
        try:
            width = AutoConfig.from_pretrained(checkpoint, revision=revision).hidden_size
        except (OSError, ValueError) as error:
            raise UserError(f"{checkpoint} is no folder here and no checkpoint on the Hub: {error}") from None
        return Features(
            {
                **KEY_FEATURES,
                **{name: Value("float32") for name in (*SCORES, *NUISANCES)},
                **({LEARNABILITY: Value("float32")} if self.score.learnability else {}),
                "fold": Value("int8"),
                "embedding": List(Value("float16"), length=width),
            }
        )

    def __call__(self, batch: dict[str, list[Any]], rank: int | None = None) -> dict[str, list[Any]]:
        """Score the patches of `batch` (columns `image` and the keys)."""
        take_one_thread_in_a_pool(self.device)
        images = batch_column(batch, "image")
        if any(image is None for image in images):
            raise UserError("A row has no image: leave those that were `rejected` out before scoring.")
        device = str(resolve_device(self.device, rank))
        size = load_reference(self.reference, 0, device).model.config.image_size
        folds = np.array([load_folds(self.reference).get(group, 0) for group in batch["group"]], dtype=np.int8)
        sides = torch.tensor([crop[2] for crop in batch["crop"]], dtype=torch.float32)
        scored = []
        order = np.argsort(folds, kind="stable")
        with ThreadPoolExecutor(DECODING_THREADS) as pool:
            decoded = pool.map(partial(decode_patch, size=size), [images[row] for row in order])
            for fold in np.unique(folds):
                rows = np.flatnonzero(folds == fold)
                scored.append(self._score(islice(decoded, len(rows)), sides[rows], int(fold), device))
        place = np.argsort(order)
        columns = {name: torch.cat([part[name] for part in scored]).numpy()[place] for name in scored[0]}
        embedding = list(columns.pop("embedding"))
        keys: dict[str, Any] = {name: batch[name] for name in KEY_FEATURES}
        return {**keys, **columns, "fold": folds, "embedding": embedding}

    def _score(self, decoded: Iterator[np.ndarray], sides: Tensor, fold: int, device: str) -> dict[str, Tensor]:
        calibration, first = load_calibration(self.reference, fold), load_reference(self.reference, 0, device)
        model = load_reference(self.reference, fold, device).model
        config = self.score
        early = load_early(self.reference, fold, device).model if config.learnability else None
        partitions = range(config.partitions or calibration.partitions)
        measured, begun, spoilt, embedded = [], [], [], []
        while images := list(islice(decoded, config.patches_per_batch)):
            patches = send(torch.from_numpy(np.stack(images)), torch.device(device))
            pixels = normalise(patches, first.mean, first.std)
            measured.append(measure(model, pixels, config, partitions))
            if early is not None:
                begun.append(measure(early, pixels, config, partitions))
            embedded.append(embed(first.model, pixels, config.score_dtype).half())
            spoilt.append(nuisances(patches))
        columns = _score_columns(Measures.gather(measured), calibration, sides)
        if begun:
            error = Measures.gather(begun).errors.mean((1, 2))
            columns[LEARNABILITY] = vinfo.learnability(error, columns["recon_error"]).float()
        return {
            **columns,
            **{name: torch.cat([part[name] for part in spoilt]).cpu() for name in NUISANCES},
            "embedding": torch.cat(embedded).cpu(),
        }


def _score_columns(measured: Measures, calibration: Calibration, sides: Tensor) -> dict[str, Tensor]:
    family = calibration.family
    null = vinfo.null_error(measured.mean, measured.square, family.null_mean)
    error = measured.errors.mean(1)
    pvi = family.pointwise(measured.errors, null.unsqueeze(1))
    columns = {
        "cond_entropy": family.conditional_entropy(error),
        "null_entropy": family.null_entropy(null),
        "pvi": pvi.mean(1),
        "pvi_std": pvi.std(1) if pvi.shape[1] > 1 else torch.full((len(pvi),), torch.nan),
        "recon_error": error.mean(1),
        "contrast": measured.variance.sqrt(),
        "difficulty": calibration.difficulty.difficulty(error.mean(1), measured.variance, sides),
    }
    return {name: values.float() for name, values in columns.items()}


@torch.inference_mode()
def measure(model: ViTMAEForPreTraining, pixels: Tensor, config: ScoreConfig, partitions: range) -> Measures:
    """
    Mean squared error of the hidden values and moments of the target, for each patch.

    Args:
        model (`ViTMAEForPreTraining`).
        pixels (`Tensor` of shape `(B, C, S, S)`): normalised as the model's processor does, on the model's device.
        config ([`ScoreConfig`]).
        partitions (`range`): numbers of the mask partitions; each is another seed.
    """
    target, channels = MaskedAutoencoding(model).target(pixels), pixels.shape[1]
    model.config.mask_ratio = mask_ratio(target.shape[1], config.masks)
    errors = [_partition_error(model, pixels, target, config, config.mask_seed + p) for p in partitions]
    values = _index_sets(target.unflatten(-1, (-1, channels)), config.variance)
    flat = pixels.flatten(1)
    variance = (flat - flat.mean(1, keepdim=True)).square().mean(1)  # torch's var takes twice as long
    return Measures(torch.stack(errors, dim=1), values.mean(2), values.square().mean(2), variance)


def measure_patches(reference: Reference, patches: Dataset, config: ScoreConfig, partitions: range) -> Measures:
    """[`measure`] over a dataset of patches, a device batch at a time."""
    starts = range(0, len(patches), config.patches_per_batch)
    batches = (patches[start : start + config.patches_per_batch]["image"] for start in starts)
    parts = [measure(reference.model, load_pixels(images, reference), config, partitions) for images in batches]
    return Measures.gather(parts)


def _partition_error(
    model: ViTMAEForPreTraining, pixels: Tensor, target: Tensor, config: ScoreConfig, seed: int
) -> Tensor:
    """Mean squared errors `(B, G)` of one partition."""
    noise = send(mask_partition(target.shape[1], config.masks, seed), pixels.device)
    channels = pixels.shape[1] if config.variance == "channel" else 1
    errors = []
    with _computing_in(config.score_dtype, pixels.device):
        for row in noise:
            encoded = model.vit(pixels, noise=row.expand(len(pixels), -1))
            logits = model.decoder(encoded.last_hidden_state, encoded.ids_restore).logits.float()
            errors.append((logits - target).square().unflatten(-1, (-1, channels)).mean(-2))
    by_token = hidden_mean(torch.stack(errors, dim=1), noise)  # (B, L, 1 or C)
    return by_token.squeeze(-1) if config.variance == "position" else by_token.mean(1)


def _index_sets(values: Tensor, variance: str) -> Tensor:
    """The target's values `(B, L, D / C, C)` by index set: `(B, G, values that share a mean, U)`."""
    if variance == "position":
        return values
    flat = values.flatten(1, 2)
    return flat.unsqueeze(1) if variance == "global" else flat.mT.unsqueeze(-1)


@torch.inference_mode()
def embed(model: ViTMAEForPreTraining, pixels: Tensor, dtype: str = "float32") -> Tensor:
    """L2-normalised mean patch token of one unmasked forward in `dtype`: `(B, C, S, S)` to `(B, width)`, float32."""
    model.config.mask_ratio = 0.0
    # ViTMAE shuffles tokens even where it hides none: in one fixed order, a run repeated rounds the same way.
    order = torch.arange(model.vit.embeddings.patch_embeddings.num_patches, dtype=torch.float32, device=pixels.device)
    with _computing_in(dtype, pixels.device):
        tokens = model.vit(pixels, noise=order.expand(len(pixels), -1)).last_hidden_state[:, 1:]
    return torch.nn.functional.normalize(tokens.float().mean(1), dim=-1)


def _computing_in(dtype: str, device: torch.device) -> torch.autocast:
    """A context in which a model's products are of `dtype`; what follows from its predictions stays float32."""
    half = resolve_dtype(dtype, device) == torch.bfloat16
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def decode_patch(value: Any, size: int) -> np.ndarray:
    """One undecoded patch as `(size, size, 3)` uint8."""
    image = open_image(value)
    return np.asarray(image if image.size == (size, size) else image.resize((size, size), Resampling.BICUBIC))


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """8-bit patches `(B, S, S, C)` to a model's input `(B, C, S, S)`, on the device where they lie."""
    centre, scale = (send(torch.tensor(values), images.device)[:, None, None] for values in (mean, std))
    return (images.permute(0, 3, 1, 2).contiguous().float() / 255 - centre) / scale


def load_pixels(images: list[Any], reference: Reference) -> Tensor:
    """Undecoded patches to `(B, C, S, S)` float32, at the model's input size and normalisation, on its device."""
    size = reference.model.config.image_size
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        stacked = torch.from_numpy(np.stack(list(pool.map(partial(decode_patch, size=size), images))))
    return normalise(stacked.to(reference.model.device), reference.mean, reference.std)
