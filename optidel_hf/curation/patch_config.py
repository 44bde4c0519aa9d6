"""What determines the key patches of an image: the point grid, what a mask must pass, and how a patch is cut."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from optidel_hf.checkpoints import EMBEDDED, checkpoint_path, locate_file
from optidel_hf.devices import DTYPES
from optidel_hf.errors import UserError
from optidel_hf.files import read_json
from optidel_hf.images import MAX_IMAGE_PIXELS


PRESET_FILE = "amg_preset.json"
FRACTIONS = (
    "stability_score_thresh",
    "box_nms_thresh",
    "min_area",
    "max_area",
    "max_border",
    "min_crop",
    "crop_nms_thresh",
)
REDUCING_GAP = 2  # as Pillow's thumbnails have it: closer to the final size the decoder's box filter would show


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
    stability_score_thresh: float | None = field(default=None, metadata={"help": "The least (preset, else 0.95)."})
    stability_score_offset: float | None = field(default=None, metadata={"help": "Of logits (preset, else 1.0)."})
    box_nms_thresh: float | None = field(default=None, metadata={"help": "Boxes are one above (preset, else 0.7)."})
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
    max_aspect: float = field(default=8.0, metadata={"help": "Longer over shorter side at which images are rejected."})
    sam_dtype: str = field(default="float32", metadata={"help": "float32, bfloat16 or auto (bf16 where native)."})
    sam_compile: bool = field(
        default=False,
        metadata={"help": "Compile SAM: pays after tens of images with sam-vit-base, a thousand with 'embedded'."},
    )
    points_per_batch: int = field(default=64, metadata={"help": "Points that SAM decodes at once for an image."})
    images_per_batch: int = field(default=4, metadata={"help": "Images that SAM encodes at once."})

    def __post_init__(self) -> None:
        if self.unit not in ("patch", "image"):
            raise UserError(f"unit is '{self.unit}': it is 'patch' (cut by SAM) or 'image' (whole images).")
        if not self.min_area < self.max_area:
            raise UserError(f"min_area {self.min_area} and max_area {self.max_area}: the first is to be smaller.")
        for name, value in vars(self).items():
            if isinstance(value, float) and math.isnan(value):
                raise UserError(f"{name} is not a number: nothing compares with it.")
        if self.sam_dtype not in DTYPES:
            raise UserError(f"sam_dtype is '{self.sam_dtype}': choose one of {', '.join(DTYPES)}.")
        if self.points_per_side is not None and self.points_per_side < 1:
            raise UserError(f"points_per_side is {self.points_per_side}: a grid has at least one point.")
        for name in FRACTIONS:
            if (value := getattr(self, name)) is not None and not 0 <= value <= 1:
                raise UserError(f"{name} is {value}: it is a fraction, from 0 to 1.")
        if self.min_crop == 0:
            raise UserError("min_crop is 0: a crop has a side.")
        if self.context <= 0 or self.max_aspect < 1 or self.max_image_pixels < 1:
            raise UserError("context is above 0; max_aspect and max_image_pixels are at least 1.")
        if self.max_patches < 1 or self.patch_size < 8:
            raise UserError("max_patches is at least 1 and patch_size at least 8 pixels.")
        if self.points_per_batch < 1 or self.images_per_batch < 1:
            raise UserError("points_per_batch and images_per_batch are at least 1.")

    def least_sides(self, sam_side: int) -> tuple[int, int]:
        """
        Shorter and longer side that an image keeps when it is decoded at reduced scale: no crop and not SAM's input of
        `sam_side` pixels (0 without SAM) is then made of less than `REDUCING_GAP` pixels for each of its own.
        """
        smallest = self.min_crop if self.unit == "patch" else 1.0
        shorter = math.ceil(REDUCING_GAP * self.patch_size / smallest)
        return shorter, max(shorter, REDUCING_GAP * sam_side)

    def thresholds(self) -> Thresholds:
        """The grid and thresholds in force: given here, else the checkpoint's preset, else segment-anything's."""
        given = {name: getattr(self, name) for name in Thresholds._fields if getattr(self, name) is not None}
        return Thresholds(**{**_read_preset(self.sam, self.sam_revision), **given})


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


def _read_preset(sam: str, revision: str | None) -> dict[str, Any]:
    path = locate_file(checkpoint_path(sam), PRESET_FILE, revision)
    preset = read_json(path) if path else {}
    return {name: preset[name] for name in Thresholds._fields if name in preset}
