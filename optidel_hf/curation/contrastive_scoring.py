"""
Contrastive scores of key patches under any ViT backbone, with or without a projection head.

    CONTRASTIVE/{contrastive.json, bank.safetensors}

A contrastive folder names the model and holds the candidate bank and the temperature, both from a calibration part of
the pool. Shapes: `B` patches, `S` the model's input side, `W` width of an embedding.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset, Features, Value
from PIL import Image, ImageEnhance, ImageOps
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoImageProcessor, ViTModel

from optidel_hf.checkpoints import checkpoint_fingerprint, folder_fingerprint, require_kind
from optidel_hf.curation.contrastive import (
    SATURATED,
    CandidateBank,
    candidates_in_batch,
    fit_temperature,
    info_nce,
    information,
)
from optidel_hf.curation.keys import KEY_FEATURES
from optidel_hf.curation.scoring import normalise
from optidel_hf.devices import resolve_device
from optidel_hf.errors import UserError
from optidel_hf.files import read_json, write_text
from optidel_hf.images import DECODING_THREADS, centre_square, cut_square, open_image
from optidel_hf.processes import take_one_thread_in_a_pool
from optidel_hf.tables import batch_column, require_patches


logger = logging.getLogger(__name__)

FACTS_FILE, BANK_FILE, HEAD_FILE = "contrastive.json", "bank.safetensors", "projection_head.safetensors"
COLUMNS = ("contrastive_pvi", "contrastive_entropy")
LEAST_CROP, COLOUR, GREY = 0.2, 0.4, 0.2  # of a view: least area, how far colour factors lie from 1, chance of none
CALIBRATION_SHARE, MOST_PATCHES = 0.1, 1000  # of the pool's groups, and of their patches


class Encoder(NamedTuple):
    """A backbone, the projection head behind it, if any, and how its input is normalised."""

    model: ViTModel
    head: nn.Sequential | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """
        8-bit images `(B, S, S, C)` to L2-normalised embeddings `(B, W)` on the CPU.

        With a head, its projection of the class token, as in SimCLR; without, the mean patch token.
        """
        pixels = normalise(images.to(self.model.device), self.mean, self.std)
        tokens = self.model(pixels).last_hidden_state
        embedded = tokens[:, 1:].mean(1) if self.head is None else self.head(tokens[:, 0])
        return normalize(embedded.float(), dim=-1).cpu()


@dataclass(frozen=True)
class ContrastiveFacts:
    """
    What a contrastive folder says.

    Args:
        backbone (`str`): the model's folder or Hub id.
        seed (`int`): of the views.
        temperature (`float`): fitted on the calibration part.
        groups (`tuple[str, ...]`): of the candidates, the spare last; as many as C.
        patches (`int`): of the calibration part.
        information (`float`): I_V there, in bits.
    """

    backbone: str
    seed: int
    temperature: float
    groups: tuple[str, ...]
    patches: int
    information: float

    @property
    def ceiling(self) -> float:
        """log2 C: the most bits there are."""
        return math.log2(len(self.groups))

    def save(self, path: Path) -> None:
        """Write as JSON, with the ceiling and how much of it is reached."""
        bounds = {
            "candidates": len(self.groups),
            "ceiling": self.ceiling,
            "saturation": self.information / self.ceiling,
        }
        write_text(json.dumps({**asdict(self), **bounds}, indent=2) + "\n", path)

    @classmethod
    def load(cls, path: Path) -> ContrastiveFacts:
        """Read what [`ContrastiveFacts.save`] wrote."""
        facts = read_json(path)
        return cls(**{field.name: facts[field.name] for field in fields(cls)} | {"groups": tuple(facts["groups"])})


@dataclass(frozen=True)
class ContrastiveScorer:
    """
    Adds `contrastive_pvi` and `contrastive_entropy`, bits: for `datasets.map(batched=True, with_rank=True)`.

    Views are a function of seed, source and crop, and the candidates are the same for every patch, so batch size,
    order and rank change scores by float32 rounding alone. Low `contrastive_pvi` is hard; log2 C is the most there is.

    Args:
        folder (`str` or `Path`): written by [`calibrate_contrastive`].
        device (`str`, *optional*, defaults to `"auto"`).
        patches_per_batch (`int`, *optional*, defaults to 64).
    """

    folder: str | Path
    device: str = "auto"
    patches_per_batch: int = 64

    def __getstate__(self) -> dict[str, Any]:
        """The fields, and what is in the folder and its backbone's: the cache of `map` tells other models by it."""
        path = Path(self.folder) / FACTS_FILE
        weights = _weights(ContrastiveFacts.load(path).backbone) if path.exists() else None
        return self.__dict__ | {"models": folder_fingerprint(self.folder), "weights": weights}

    @property
    def features(self) -> Features:
        """Declared output features: the keys, the two scores, and `fold`, 0 as one model scores every row."""
        return Features({**KEY_FEATURES, **{name: Value("float32") for name in COLUMNS}, "fold": Value("int8")})

    def __call__(self, batch: dict[str, list[Any]], rank: int | None = None) -> dict[str, Any]:
        """Score the patches of `batch` (columns `image` and the keys)."""
        take_one_thread_in_a_pool(self.device)
        facts, bank = load_contrastive(self.folder)
        encoder = load_encoder(facts.backbone, str(resolve_device(self.device, rank)))
        first, second = embed_views(encoder, batch, facts.seed, self.patches_per_batch)
        pvi = information(bank.loss(first, second, batch["group"], facts.temperature), bank.candidates)
        columns = dict(zip(COLUMNS, (pvi, facts.ceiling - pvi)))
        keys: dict[str, Any] = {name: batch[name] for name in KEY_FEATURES}
        scores = {name: values.float().numpy() for name, values in columns.items()}
        return {**keys, **scores, "fold": np.zeros(len(pvi), np.int8)}


def calibrate_contrastive(
    patches: Dataset,
    output_dir: str | Path,
    backbone: str | Path,
    candidates: int = candidates_in_batch(256),
    seed: int = 0,
    device: str = "auto",
) -> Path:
    """
    Draw the candidate bank and fit the temperature for a backbone.

    Args:
        patches (`datasets.Dataset`): key patches with `image` (undecoded) and the keys.
        output_dir (`str` or `Path`): gets `contrastive.json` and `bank.safetensors`.
        backbone (`str` or `Path`): a `ViTModel` folder or Hub id, or a folder with `backbone/` in it; a
            `projection_head.safetensors` in the folder is used.
        candidates (`int`, *optional*, defaults to 511): C, at most: as many as NT-Xent has in a batch of 256 images. A
            pool of fewer groups has fewer, and says so.
        seed (`int`, *optional*, defaults to 0): of views, bank and calibration part.
        device (`str`, *optional*, defaults to `"auto"`).

    Returns:
        `Path`: the folder that [`ContrastiveScorer`] takes.

    Raises:
        `UserError`: if the pool has under four groups, or `backbone` is no ViT.
    """
    require_patches(patches)
    for loaded in (load_encoder, load_contrastive):  # of what may have been written anew since
        loaded.cache_clear()
    encoder = load_encoder(str(backbone), str(resolve_device(device)))
    groups = sorted(set(patches["group"]), key=lambda group: _key(seed, group))
    held = max(1, round(CALIBRATION_SHARE * len(groups)))
    calibrating, drawn = set(groups[:held]), groups[held : held + candidates]
    if len(drawn) < 3:
        raise UserError(f"The pool has {len(groups)} group(s): contrastive scores need at least 4.")
    bank = draw_bank(encoder, patches, drawn, seed)
    part = _rows_of(patches, calibrating, seed)
    first, second = embed_views(encoder, part, seed)
    right, wrong = bank.both_ways(first, second, part["group"])
    temperature = fit_temperature(right, wrong)
    known = float(information(info_nce(right, wrong, temperature), bank.candidates).mean())
    facts = ContrastiveFacts(str(backbone), seed, temperature, bank.groups, len(part["group"]), known)
    _warn(facts, candidates)
    output = Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    save_file({"embeddings": bank.embeddings}, output / BANK_FILE)
    facts.save(output / FACTS_FILE)
    return output


def draw_bank(encoder: Encoder, patches: Dataset, groups: Sequence[str], seed: int) -> CandidateBank:
    """One view of one patch of each of these groups; the last group's is the spare."""
    representatives = _one_of_each(patches, groups, seed)
    return CandidateBank(embed_views(encoder, representatives, seed)[0], tuple(representatives["group"]))


def embed_views(encoder: Encoder, batch: Mapping[str, Any], seed: int, patches_per_batch: int = 64) -> list[Tensor]:
    """Embeddings `(B, W)` of the two views of every patch: of `image`, seeded by its `source` and `crop`."""
    size = encoder.model.config.image_size
    images = batch_column(batch, "image")
    sources, crops = batch["source"], batch["crop"]  # a batch of `map` is not for threads

    def views(row: int) -> np.ndarray:
        rng = np.random.default_rng(int(_key(seed, sources[row], *map(int, crops[row])), 16))
        image = open_image(images[row])
        x, y, side = centre_square(*image.size)  # of a whole frame; a patch is square
        image = image.crop((x, y, x + side, y + side))
        return np.stack([np.asarray(draw_view(image, rng, size)) for _ in range(2)])

    rows, embedded = iter(range(len(sources))), []
    with ThreadPoolExecutor(DECODING_THREADS) as pool:  # draws ahead of the encoder
        drawn = pool.map(views, rows)
        while chunk := list(islice(drawn, patches_per_batch)):
            pairs = torch.from_numpy(np.stack(chunk, axis=1))  # (2, B, S, S, C)
            embedded.append([encoder(view) for view in pairs])
    return [torch.cat(parts) for parts in zip(*embedded)]


def draw_view(image: Image.Image, rng: np.random.Generator, size: int) -> Image.Image:
    """A random square of a square patch, mirrored or not, in other colours or none: SimCLR's views, drawn milder."""
    side = max(1, round(image.width * math.sqrt(rng.uniform(LEAST_CROP, 1))))
    x, y = rng.integers(0, image.width - side + 1, 2).tolist()
    view = cut_square(image, (x, y, side), size)
    if rng.random() < 0.5:
        view = ImageOps.mirror(view)
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        view = enhancer(view).enhance(rng.uniform(1 - COLOUR, 1 + COLOUR))
    return ImageOps.grayscale(view).convert("RGB") if rng.random() < GREY else view


@lru_cache(maxsize=2)
def load_contrastive(folder: str | Path) -> tuple[ContrastiveFacts, CandidateBank]:
    """What [`calibrate_contrastive`] wrote, once a process."""
    path = Path(folder) / FACTS_FILE
    if not path.exists():
        raise UserError(f"{folder} is no contrastive folder ({path} is missing): make one by calibrate_contrastive.")
    facts = ContrastiveFacts.load(path)
    return facts, CandidateBank(load_file(path.with_name(BANK_FILE))["embeddings"], facts.groups)


@lru_cache(maxsize=2)
def load_encoder(backbone: str, device: str) -> Encoder:
    """
    A ViT with its projection head, if one lies beside it, once a process.

    Raises:
        `UserError`: if it is not there, has no image processor, or is a model of another kind.
    """
    folder, name = Path(backbone), _encoder_name(backbone)
    require_kind("backbone", name, None, "vit", "google/vit-base-patch16-224-in21k")
    options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True}
    model = ViTModel.from_pretrained(name, add_pooling_layer=False, **options)
    processor = AutoImageProcessor.from_pretrained(name)
    head = _read_head(folder / HEAD_FILE).to(device) if (folder / HEAD_FILE).exists() else None
    return Encoder(model.to(device).eval(), head, tuple(processor.image_mean), tuple(processor.image_std))


def _encoder_name(backbone: str) -> str:
    """The encoder of a pre-training's folder, which has its head beside it; of all else it is itself."""
    inside = Path(backbone) / "backbone"
    return str(inside) if inside.is_dir() else backbone


def _weights(backbone: str) -> list[str]:
    """Fingerprints of an encoder and of its head."""
    return [checkpoint_fingerprint(name) for name in dict.fromkeys((_encoder_name(backbone), backbone))]


def _read_head(path: Path) -> nn.Sequential:
    """SimCLR's g(h) = W2 relu(W1 h), with or without biases: `0.weight`, `2.weight` and theirs."""
    weights = load_file(path)
    (hidden, width), (projected, _) = weights["0.weight"].shape, weights["2.weight"].shape
    first = nn.Linear(width, hidden, bias="0.bias" in weights)
    head = nn.Sequential(first, nn.ReLU(), nn.Linear(hidden, projected, bias="2.bias" in weights))
    head.load_state_dict(weights)
    return head.eval()


def _keys(patches: Dataset, seed: int) -> list[str]:
    """What shuffles rows by the seed, whatever order they came in."""
    return [_key(seed, source, *map(int, crop)) for source, crop in zip(patches["source"], patches["crop"])]


def _one_of_each(patches: Dataset, groups: Sequence[str], seed: int) -> dict[str, Any]:
    """One patch of each group."""
    chosen: dict[str, tuple[str, int]] = {}
    for row, (group, key) in enumerate(zip(patches["group"], _keys(patches, seed))):
        chosen[group] = min(chosen.get(group, (key, row)), (key, row))
    return patches[[chosen[group][1] for group in groups]]


def _rows_of(patches: Dataset, groups: set[str], seed: int) -> dict[str, Any]:
    """The patches of some groups, as many as calibration takes."""
    keys = _keys(patches, seed)
    rows = [row for row, group in enumerate(patches["group"]) if group in groups]
    return patches[sorted(rows, key=keys.__getitem__)[:MOST_PATCHES]]


def _key(*parts: str | int) -> str:
    return hashlib.sha256(":".join(map(str, parts)).encode()).hexdigest()


def _warn(facts: ContrastiveFacts, wanted: int) -> None:
    if len(facts.groups) < wanted:
        logger.warning("%d candidates instead of %d: the pool has no more groups.", len(facts.groups), wanted)
    if facts.information > SATURATED * facts.ceiling:
        logger.warning(
            "Contrastive V-information is %.2f of at most %.2f bits: with so few candidates scores hardly differ.",
            facts.information,
            facts.ceiling,
        )
