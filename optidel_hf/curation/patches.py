"""
Key patches: SAM's masks, filtered, boxed, and cut out of the source image as squares.

OptiDEL (arXiv 2408.07107) cuts "key patches" with SAM and leaves their geometry open. Ours: a square around the box
of each mask, 1.2 times its longer side, at least 0.15 of the image's shorter side, shifted to stay inside.

Shapes: `B` images, `P` points, `N` masks, `S` SAM's input side, `h` the side of its low-resolution logits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Features, Image, List, Value
from PIL import Image as PILImage
from torch import Tensor
from transformers import SamModel, SamProcessor

from optidel_hf.checkpoints import EMBEDDED, checkpoint_path, require_kind
from optidel_hf.curation import amg
from optidel_hf.curation.borders import border_shares
from optidel_hf.curation.decoder import Decoded, PointDecoder
from optidel_hf.devices import resolve_device, resolve_dtype
from optidel_hf.errors import UserError
from optidel_hf.images import MAX_IMAGE_PIXELS, centre_square, cut_square, decode_reason, encode_png


PATCH_FEATURES = Features(
    {
        "image": Image(),
        "source": Value("string"),
        "group": Value("string"),
        "bbox": List(Value("float32"), length=4),
        "crop": List(Value("int32"), length=3),
        "upscale": Value("float32"),
        "area": Value("float32"),
        "predicted_iou": Value("float32"),
        "stability_score": Value("float32"),
        "rejected": Value("string"),
    }
)
PRESET_FILE = "amg_preset.json"
CACHED_TOKENS = 2**14  # image tokens that a CPU decodes at once: of more points, the intermediates leave its cache
NO_PATCH = "SAM found no key patch that passed the filters"


@dataclass(frozen=True)
class PatchConfig:
    """
    What determines the key patches of an image.

    The thresholds have segment-anything's names; where one is left at `None` it comes from the checkpoint's own
    `amg_preset.json` or, without that, from segment-anything's defaults.
    """

    sam: str = field(default=EMBEDDED, metadata={"help": "SamModel: a Hub id, a local folder, or 'embedded'."})
    sam_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the SAM checkpoint."})
    unit: str = field(default="patch", metadata={"help": "'patch' cuts key patches, 'image' takes whole images."})
    points_per_side: int | None = field(default=None, metadata={"help": "Side of the point grid (preset, else 32)."})
    pred_iou_thresh: float | None = field(default=None, metadata={"help": "Least predicted IoU (preset, else 0.88)."})
    stability_score_thresh: float | None = field(default=None, metadata={"help": "Least stability (else 0.95)."})
    stability_score_offset: float | None = field(default=None, metadata={"help": "Its logit offset (else 1.0)."})
    box_nms_thresh: float | None = field(default=None, metadata={"help": "IoU at which boxes are one (else 0.7)."})
    min_area: float = field(default=0.005, metadata={"help": "Least mask area, as a fraction of the image."})
    max_area: float = field(default=0.4, metadata={"help": "Largest mask area, as a fraction of the image."})
    max_border: float = field(default=0.25, metadata={"help": "Largest share of a crop in a flat black border."})
    context: float = field(default=1.2, metadata={"help": "Side of the crop over the longer side of the box."})
    min_crop: float = field(default=0.15, metadata={"help": "Least side of a crop over the image's shorter side."})
    crop_nms_thresh: float = field(default=0.7, metadata={"help": "IoU at which two crops are one."})
    max_patches: int = field(default=16, metadata={"help": "Most key patches an image, by IoU x stability."})
    patch_size: int = field(default=64, metadata={"help": "Stored side: the reference model's input size, in pixels."})
    max_image_pixels: int = field(default=MAX_IMAGE_PIXELS, metadata={"help": "Larger images are rejected."})
    min_image_side: int = field(default=32, metadata={"help": "Images with a shorter side under this are rejected."})
    max_aspect: float = field(default=8.0, metadata={"help": "Images longer than this many widths are rejected."})
    sam_dtype: str = field(default="float32", metadata={"help": "float32, bfloat16 or auto (bf16 where native)."})
    points_per_batch: int = field(default=64, metadata={"help": "Points that SAM decodes at once for an image."})
    images_per_batch: int = field(default=4, metadata={"help": "Images that SAM encodes at once."})

    def __post_init__(self) -> None:
        if self.unit not in ("patch", "image"):
            raise UserError(f"unit is '{self.unit}': it is 'patch' (cut by SAM) or 'image' (whole images).")
        if not 0 <= self.min_area < self.max_area <= 1:
            raise UserError(f"min_area {self.min_area} and max_area {self.max_area} are fractions, the first smaller.")
        if self.sam_dtype not in ("float32", "bfloat16", "auto"):
            raise UserError(f"sam_dtype is '{self.sam_dtype}': it is float32, bfloat16 or auto.")
        if self.points_per_side is not None and self.points_per_side < 1:
            raise UserError(f"points_per_side is {self.points_per_side}: a grid has at least one point.")
        if self.max_patches < 1 or self.patch_size < 8:
            raise UserError("max_patches is at least 1 and patch_size at least 8 pixels.")

    def thresholds(self) -> Thresholds:
        """The grid and thresholds in force: given here, else the checkpoint's preset, else segment-anything's."""
        given = {name: getattr(self, name) for name in Thresholds._fields if getattr(self, name) is not None}
        return Thresholds(**{**_read_preset(self.sam), **given})


class Thresholds(NamedTuple):
    """
    The point grid and what a mask must pass.

    Defaults are those of segment-anything's automatic_mask_generator.py, which were tuned for ViT-H.
    """

    points_per_side: int = 32
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7


class Masks(NamedTuple):
    """The surviving masks of one image, best predicted IoU first."""

    boxes: Tensor  # (N, 4) xyxy, whole pixels of the source image, inclusive
    areas: Tensor  # (N,) fraction of the image
    predicted_iou: Tensor  # (N,)
    stability: Tensor  # (N,)


@dataclass(frozen=True)
class SamPatchExtractor:
    """
    A batch of images in, a batch of key patches out: for `datasets.map(batched=True, with_rank=True)`.

    Pickles to its configuration; the model comes from a per-process cache. An image that cannot be used, or in which
    SAM finds nothing, is one output row with a null image and its reason in `rejected`.

    Args:
        config ([`PatchConfig`], *optional*).
        device (`str`, *optional*, defaults to `"auto"`).
        image_column (`str`, *optional*, defaults to `"image"`): undecoded images, or PIL images.

    Example:

    ```python
    extractor = SamPatchExtractor(PatchConfig(sam="facebook/sam-vit-base"))
    patches = images.map(extractor, batched=True, with_rank=True, features=extractor.features,
                         remove_columns=images.column_names)
    ```
    """

    config: PatchConfig = PatchConfig()
    device: str = "auto"
    image_column: str = "image"

    @property
    def features(self) -> Features:
        """Declared output features, for `map(features=...)`."""
        return PATCH_FEATURES

    def __call__(self, batch: dict[str, list[Any]], rank: int | None = None) -> dict[str, list[Any]]:
        """Extract the key patches of `batch`: columns `image`, and `source` and `group` where they are given."""
        config = self.config
        values = batch[self.image_column]
        sources = batch.get("source") or [_path_of(value, row) for row, value in enumerate(values)]
        groups = batch.get("group") or sources
        with ThreadPoolExecutor(max_workers=4) as pool:
            opened = list(pool.map(lambda value: _usable(value, config), values))
        usable = [i for i, (image, _) in enumerate(opened) if image is not None]
        found = dict(zip(usable, self._patches([opened[i][0] for i in usable], config, rank)))
        rows: list[dict[str, Any]] = []
        for i, (_, reason) in enumerate(opened):
            patches = found.get(i, [])
            rows += [{**patch, "source": sources[i], "group": groups[i], "rejected": None} for patch in patches]
            if not patches:
                reason = reason or NO_PATCH
                rows.append({"source": sources[i], "group": groups[i], "rejected": reason})
        return {name: [row.get(name) for row in rows] for name in PATCH_FEATURES}

    def _patches(self, images: list[Any], config: PatchConfig, rank: int | None) -> Iterator[list[dict[str, Any]]]:
        if config.unit == "image":
            yield from ([_whole_image(image, config)] for image in images)
            return
        generator = MaskGenerator(config, self.device, rank)
        for start in range(0, len(images), config.images_per_batch):
            chunk = images[start : start + config.images_per_batch]
            for image, masks in zip(chunk, generator(chunk)):
                yield cut_patches(image, masks, config)


class MaskGenerator:
    """
    SAM's automatic masks: images batched through the encoder, then the points of each through its decoder.

    Args:
        config ([`PatchConfig`]).
        device (`str`, *optional*, defaults to `"auto"`).
        rank (`int`, *optional*): of the process, for machines with several devices.
    """

    def __init__(self, config: PatchConfig, device: str = "auto", rank: int | None = None) -> None:
        self.config = config
        self.thresholds = config.thresholds()
        self.device = resolve_device(device, rank)
        self.dtype = resolve_dtype(config.sam_dtype, self.device)
        self.model, self.processor = load_sam(config.sam, config.sam_revision, self.device, self.dtype)

    @torch.inference_mode()
    def __call__(self, images: list[PILImage.Image]) -> list[Masks]:
        """`B` RGB images to `B` sets of masks."""
        inputs = self.processor(images=images, return_tensors="pt", device="cpu")
        embeddings = self.model.get_image_embeddings(inputs["pixel_values"].to(self.device, self.dtype))
        resized = inputs["reshaped_input_sizes"].tolist()
        return [self._masks(*each) for each in zip(embeddings, resized, (image.size for image in images))]

    def _masks(self, embedding: Tensor, resized: list[int], size: tuple[int, int]) -> Masks:
        """The masks of one image of `size` (width, height), which SAM sees `resized` to (height, width)."""
        decoder = PointDecoder(self.model, embedding)
        grid = amg.point_grid(self.thresholds.points_per_side).to(self.device)
        points = grid * grid.new_tensor(resized[::-1])  # float32 at any precision: bfloat16 skips pixels beyond 256
        at_once = self.config.points_per_batch
        if self.device.type == "cpu":
            at_once = min(at_once, max(1, CACHED_TOKENS // embedding[0].numel()))
        least = self.thresholds.pred_iou_thresh
        return self._suppress([self._filter(decoder(p, least), resized, size) for p in points.split(at_once)])

    def _filter(self, decoded: Decoded, resized: list[int], size: tuple[int, int]) -> Masks:
        """The other thresholds of the stock pipeline, cheapest first, where the logits show the image."""
        config, thresholds = self.config, self.thresholds
        stride = self.model.config.vision_config.image_size / decoded.logits.shape[-1]
        height, width = resized[0] / stride, resized[1] / stride
        logits, ious = decoded.logits.float(), decoded.ious
        image = logits[:, : int(np.ceil(height)), : int(np.ceil(width))]
        areas = amg.mask_area(image) / (height * width)
        sized = (areas >= config.min_area) & (areas <= config.max_area)
        logits, image, areas, ious = logits[sized], image[sized], areas[sized], ious[sized]
        stability = amg.stability_score(image, offset=thresholds.stability_score_offset)
        keep = stability > thresholds.stability_score_thresh
        boxes = amg.pixel_boxes(logits[keep], (size[0] / width, size[1] / height), size)
        return Masks(boxes.cpu(), areas[keep].cpu(), ious[keep].cpu(), stability[keep].cpu())

    def _suppress(self, parts: list[Masks]) -> Masks:
        masks = Masks(*(torch.cat(values) for values in zip(*parts)))
        keep = amg.non_maximum_suppression(masks.boxes, masks.predicted_iou, self.thresholds.box_nms_thresh)
        return Masks(*(values[keep] for values in masks))


def cut_patches(image: PILImage.Image, masks: Masks, config: PatchConfig) -> list[dict[str, Any]]:
    """
    Cut the best `max_patches` masks out of `image` as squares at `patch_size`.

    Crops with more than `max_border` of black border, and crops that repeat a better one, are left out.
    """
    crops = [crop_square(box, image.size, config) for box in masks.boxes.tolist()]
    quality = masks.predicted_iou * masks.stability
    inside = [i for i, share in enumerate(border_shares(image, crops)) if share <= config.max_border]
    squares = torch.tensor([_corners(crops[i]) for i in inside], dtype=torch.float32).reshape(-1, 4)
    kept = amg.non_maximum_suppression(squares, quality[inside], config.crop_nms_thresh)[: config.max_patches]
    return [_patch(image, crops[i], masks, i, config) for i in (inside[k] for k in kept.tolist())]


def crop_square(box: list[float], size: tuple[int, int], config: PatchConfig) -> tuple[int, int, int]:
    """The square (x, y, side) around an xyxy box that is cut from an image of `size` (width, height)."""
    left, top, right, bottom = box
    shorter = min(size)
    longer_side = max(right - left, bottom - top)
    side = round(min(max(config.context * longer_side, config.min_crop * shorter), shorter))
    x, y = ((low + high - side) / 2 for low, high in ((left, right), (top, bottom)))
    return round(min(max(x, 0), size[0] - side)), round(min(max(y, 0), size[1] - side)), side


@lru_cache(maxsize=2)
def load_sam(
    sam: str, revision: str | None, device: torch.device, dtype: torch.dtype
) -> tuple[SamModel, SamProcessor]:
    """
    Load a `SamModel` and its processor once a process, from safetensors only.

    Raises:
        `UserError`: if `sam` is not there or is a model of another kind.
    """
    path = checkpoint_path(sam)
    require_kind("--sam", sam, revision, "sam", "facebook/sam-vit-base")
    model = SamModel.from_pretrained(path, revision=revision, dtype=dtype, use_safetensors=True)
    processor = SamProcessor.from_pretrained(path, revision=revision)
    return model.to(device).eval(), processor


def _read_preset(sam: str) -> dict[str, Any]:
    path = Path(checkpoint_path(sam)) / PRESET_FILE
    preset = json.loads(path.read_text()) if path.exists() else {}
    return {name: preset[name] for name in Thresholds._fields if name in preset}


def _usable(value: Any, config: PatchConfig) -> tuple[PILImage.Image | None, str | None]:
    image, reason = decode_reason(value, config.max_image_pixels)
    if image is None:
        return None, reason
    shorter, longer = sorted(image.size)
    if shorter < config.min_image_side or longer > config.max_aspect * shorter:
        return None, f"{image.width}x{image.height} is too small or too thin to cut patches from"
    return image, None


def _path_of(value: Any, row: int) -> str:
    path = value.get("path") if isinstance(value, dict) else getattr(value, "filename", None)
    if not path:
        raise UserError(f"Row {row} of the batch has neither a path nor a 'source': add a unique 'source' column.")
    return str(path)


def _whole_image(image: PILImage.Image, config: PatchConfig) -> dict[str, Any]:
    crop = centre_square(*image.size)
    box = [0.0, 0.0, float(image.width - 1), float(image.height - 1)]
    return _row(image, crop, box, config, area=1.0, predicted_iou=None, stability_score=None)


def _patch(image: PILImage.Image, crop: tuple[int, int, int], masks: Masks, i: int, config: PatchConfig) -> dict:
    left, top, right, bottom = masks.boxes[i].tolist()
    return _row(
        image,
        crop,
        [left, top, right - left, bottom - top],
        config,
        area=masks.areas[i].item(),
        predicted_iou=masks.predicted_iou[i].item(),
        stability_score=masks.stability[i].item(),
    )


def _row(
    image: PILImage.Image, crop: tuple[int, int, int], bbox: list[float], config: PatchConfig, **measures: Any
) -> dict[str, Any]:
    tile = encode_png(cut_square(image, crop, config.patch_size))
    upscale = config.patch_size / crop[2]
    return {"image": {"bytes": tile, "path": None}, "bbox": bbox, "crop": list(crop), "upscale": upscale, **measures}


def _corners(crop: tuple[int, int, int]) -> tuple[int, int, int, int]:
    x, y, side = crop
    return x, y, x + side, y + side
