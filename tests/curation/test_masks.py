"""What SAM is shown is what its own processor would show it."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from optidel_hf.checkpoints import EMBEDDED, checkpoint_path
from optidel_hf.curation.masks import MaskGenerator
from optidel_hf.curation.patch_config import PatchConfig
from optidel_hf.images import Opened


@pytest.mark.parametrize("size", [(352, 288), (257, 301), (100, 37), (256, 256), (1001, 640)])
def test_sam_sees_the_stock_pixels(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.effect_noise(size, 90).convert("RGB")
    stock = SamImageProcessorPil.from_pretrained(checkpoint_path(EMBEDDED))(images=image, return_tensors="pt")
    generator, seen = MaskGenerator(PatchConfig(points_per_side=1), "cpu"), []
    embed = generator.model.get_image_embeddings
    monkeypatch.setattr(generator.model, "get_image_embeddings", lambda pixels: seen.append(pixels) or embed(pixels))
    generator([Opened.whole(image)])
    # Where torchvision is installed the processor normalises by it, with another rounding.
    torch.testing.assert_close(seen[0], stock["pixel_values"], atol=1e-6, rtol=0)


def test_no_images_have_no_masks() -> None:
    assert MaskGenerator(PatchConfig(), "cpu")([]) == []
