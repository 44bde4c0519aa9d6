"""
SAM's masks of whole images: a grid of points, decoded, filtered and suppressed; what is kept of a mask is its box.

Shapes: `B` images, `P` points, `N` masks, `S` SAM's input side, `h` the side of its low-resolution logits.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import SamModel, SamProcessor

from optidel_hf.checkpoints import checkpoint_path, require_kind
from optidel_hf.curation import amg
from optidel_hf.curation.decoder import Decoded, PointDecoder
from optidel_hf.curation.patch_config import PatchConfig
from optidel_hf.devices import resolve_device, resolve_dtype
from optidel_hf.images import Opened


CACHED_TOKENS = 2**14  # image tokens that a CPU decodes at once: of more points, the intermediates leave its cache


class Masks(NamedTuple):
    """The surviving masks of one image, best predicted IoU first."""

    boxes: Tensor  # (N, 4) xyxy, whole pixels of the source image, inclusive
    areas: Tensor  # (N,) fraction of the image
    predicted_iou: Tensor  # (N,)
    stability: Tensor  # (N,)


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
        compiled = config.sam_compile
        self.model, self.processor = load_sam(config.sam, config.sam_revision, self.device, self.dtype, compiled)

    @property
    def side(self) -> int:
        """Longer side, in pixels, at which SAM sees an image."""
        return self.processor.image_processor.size["longest_edge"]

    @torch.inference_mode()
    def __call__(self, images: list[Opened]) -> list[Masks]:
        """`B` images to `B` sets of masks."""
        if not images:
            return []
        # Resized by Pillow, as the processor would: given the whole image it holds copies of it as arrays.
        inputs = self.processor(images=[self._shrink(image) for image in images], return_tensors="pt", device="cpu")
        embeddings = self.model.get_image_embeddings(inputs["pixel_values"].to(self.device, self.dtype))
        resized = inputs["reshaped_input_sizes"].tolist()
        return [self._masks(*each) for each in zip(embeddings, resized, (image.size for image in images))]

    def _shrink(self, opened: Opened) -> Image.Image:
        """The image with its longer side at SAM's, rounded as the processor rounds."""
        width, height = (int(length * (self.side / max(opened.size)) + 0.5) for length in opened.size)
        right, bottom = (length * opened.scale for length in opened.size)  # of a reduced image, not quite its edges
        return opened.image.resize((width, height), self.processor.image_processor.resample, (0, 0, right, bottom))

    def _masks(self, embedding: Tensor, resized: list[int], size: tuple[int, int]) -> Masks:
        """The masks of one image of `size` (width, height), which SAM sees `resized` to (height, width)."""
        decoder = PointDecoder(self.model, embedding, self.config.sam_compile)
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


@lru_cache(maxsize=2)
def load_sam(
    sam: str, revision: str | None, device: torch.device, dtype: torch.dtype, compiled: bool
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
    if compiled:
        compile_encoder(model)
    return model.to(device).eval(), processor


def compile_encoder(model: SamModel) -> None:
    """Have the encoder run through `torch.compile` layer by layer: alike layers are compiled once, not each anew."""
    for layer in model.vision_encoder.layers:
        layer.compile()
