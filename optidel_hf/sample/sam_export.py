"""Writing a trained small SAM as a `from_pretrained` folder: float16 weights, its processor, its filters' preset."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from transformers import SamModel
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil


def scale_logits(model: SamModel, scale: float) -> SamModel:
    """A copy whose mask logits are `scale` times as large: the same masks, another unit for the stability offset."""
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for network in scaled.mask_decoder.output_hypernetworks_mlps:
            network.proj_out.weight.mul_(scale)
            network.proj_out.bias.mul_(scale)
    return scaled


def export_sam(model: SamModel, folder: Path, preset: dict[str, Any]) -> None:
    """Write config.json, model.safetensors (float16), preprocessor_config.json and amg_preset.json into `folder`.

    Args:
        model (`SamModel`): the trained model; it is not changed.
        folder (`Path`): made if it is not there.
        preset (`dict`): points_per_side and thresholds for automatic mask generation with this model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).half().save_pretrained(folder)
    side = model.config.vision_config.image_size
    square, masks = {"height": side, "width": side}, {"height": side // 4, "width": side // 4}
    processor = SamImageProcessorPil(
        size={"longest_edge": side}, pad_size=square, mask_size={"longest_edge": side // 4}, mask_pad_size=masks
    )
    processor.save_pretrained(folder)
    (folder / "amg_preset.json").write_text(json.dumps(preset, indent=2) + "\n", encoding="utf-8")
