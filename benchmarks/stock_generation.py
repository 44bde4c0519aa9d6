"""The steps of transformers' mask generation on one image, their time taken: the other side of bench_patches.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from timings import CLOCK
from torch import Tensor
from transformers.models.sam.image_processing_pil_sam import (
    SamImageProcessorPil,
    _batched_mask_to_box,
    _compute_stability_score,
    _rle_to_mask,
)

from optidel_hf.curation import amg
from optidel_hf.curation.masks import MaskGenerator
from optidel_hf.curation.patch_config import PatchConfig


STOCK_BATCH = 64
NEAR_A_THRESHOLD = 0.02


class Stock:
    """The steps of transformers' `MaskGenerationPipeline` on one image."""

    def __init__(self, generator: MaskGenerator) -> None:
        self.model, self.thresholds = generator.model, generator.thresholds
        self.config, self.device, self.dtype = generator.config, generator.device, generator.dtype
        self.processor: SamImageProcessorPil = generator.processor.image_processor

    def embed(self, image: Image.Image) -> tuple[Any, ...]:
        """Image embedding, points `(1, P, 1, 2)`, labels and the processor's inputs."""
        side = self.processor.size["longest_edge"]
        per_side = self.thresholds.points_per_side
        boxes, points, images, labels = self.processor.generate_crop_boxes(image, side, points_per_crop=per_side)
        inputs = self.processor(images=images, return_tensors="pt")
        embedding = self.model.get_image_embeddings(inputs["pixel_values"].to(self.device, self.dtype))
        return embedding, points.to(self.device, self.dtype), labels.to(self.device), inputs, boxes

    def decode(self, image: Image.Image) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Logits at the image's size and predicted IoU, a batch of points at a time, and the crop's box."""
        embedding, points, labels, inputs, boxes = self.embed(image)
        for start in range(0, points.shape[1], STOCK_BATCH):
            batch = slice(start, start + STOCK_BATCH)
            with CLOCK.part("decoder"):
                output = self.model(
                    image_embeddings=embedding, input_points=points[:, batch], input_labels=labels[:, batch]
                )
            sizes = inputs["original_sizes"].tolist(), inputs["reshaped_input_sizes"].tolist()
            logits = self.processor.post_process_masks(output.pred_masks.float(), *sizes, binarize=False)[0]
            yield logits, output.iou_scores[0].float(), boxes[0]

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> int:
        """Masks of one image; returns how many."""
        thresholds, found = self.thresholds, []
        for logits, ious, box in self.decode(image):
            found.append(
                self.processor.filter_masks(
                    logits,
                    ious,
                    image.size[::-1],
                    box,
                    thresholds.pred_iou_thresh,
                    thresholds.stability_score_thresh,
                    stability_score_offset=thresholds.stability_score_offset,
                )
            )
        runs = [run for part in found for run in part[0]]
        scores, boxes = (torch.cat([part[i] for part in found]) for i in (1, 2))
        keep = amg.non_maximum_suppression(boxes.float(), scores, thresholds.box_nms_thresh)
        return len([_rle_to_mask(runs[i]) for i in keep.tolist()])

    @torch.inference_mode()
    def boxes(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """Boxes before suppression by our filters, and which of them are clear of every threshold."""
        parts = []
        for logits, ious, _ in self.decode(image):
            flat = logits.flatten(0, 1)
            stability = _compute_stability_score(flat, 0.0, self.thresholds.stability_score_offset)
            area = (flat > 0).float().mean((-1, -2))
            keep, clear = accepted(ious.flatten(), stability, area, self.thresholds, self.config)
            parts.append((_batched_mask_to_box(flat > 0)[keep].float(), clear[keep]))
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def accepted(ious: Tensor, stability: Tensor, area: Tensor, thresholds: Any, config: PatchConfig) -> tuple:
    """Which masks pass, and which are further than `NEAR_A_THRESHOLD` (a tenth of it for areas) from failing."""
    margins = [
        (ious - thresholds.pred_iou_thresh) / NEAR_A_THRESHOLD,
        (stability - thresholds.stability_score_thresh) / NEAR_A_THRESHOLD,
        (area - config.min_area) / (NEAR_A_THRESHOLD / 10),
        (config.max_area - area) / (NEAR_A_THRESHOLD / 10),
    ]
    return torch.stack(margins).amin(0) > 0, torch.stack(margins).amin(0) > 1
