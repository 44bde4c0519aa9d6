"""What SAM is shown is what its own processor would show it."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from optidel_hf.checkpoints import EMBEDDED, checkpoint_path
from optidel_hf.curation import masks
from optidel_hf.curation.amg import point_grid
from optidel_hf.curation.decoder import Decoded
from optidel_hf.curation.masks import MaskGenerator
from optidel_hf.curation.patch_config import PatchConfig
from optidel_hf.errors import UserError
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


def test_a_device_without_float64_cuts(no_float64: TorchDispatchMode) -> None:
    lenient = {"min_area": 0.0, "max_area": 1.0, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    generator = MaskGenerator(PatchConfig(points_per_side=4, **lenient), "cpu")
    with no_float64:
        (masks,) = generator([Opened.whole(Image.effect_noise((257, 301), 90).convert("RGB"))])
    assert len(masks.boxes)


def test_no_images_have_no_masks() -> None:
    assert MaskGenerator(PatchConfig(), "cpu")([]) == []


def test_a_sam_that_is_not_there_is_refused_in_words() -> None:
    with pytest.raises(UserError, match="--sam /no/such cannot be loaded"):
        MaskGenerator(PatchConfig(sam="/no/such"), "cpu")


BACKGROUND = -9.0
DRAWN = [  # predicted IoU, logit, and rows and columns of the logits of an image 256 x 128 that SAM sees on 64 x 32
    (0.90, 9.0, (8, 16), (20, 40)),
    (0.95, 9.0, (8, 16), (20, 41)),  # nearly the same box, and better
    (0.99, 9.0, (4, 6), (4, 6)),  # 4 of 2048 logits
    (0.98, 9.0, (0, 32), (0, 64)),  # the whole image
    (0.97, 0.1, (20, 28), (40, 60)),  # vanishes where the threshold is one higher
    (0.50, 9.0, (20, 28), (4, 12)),
]


def drawn_masks(monkeypatch: pytest.MonkeyPatch, **changes: float) -> tuple[masks.Masks, Tensor]:
    """What is kept of `DRAWN` in an image of 512 x 256, and the points at which SAM was asked."""
    logits = torch.full((len(DRAWN), 64, 64), BACKGROUND)
    logits[:, 32:] = 5.0  # beside the image SAM may see anything
    for mask, (_, logit, rows, columns) in zip(logits, DRAWN):
        mask[slice(*rows), slice(*columns)] = logit
    asked: list[Tensor] = []

    class Decoder:
        def __init__(self, *_: object) -> None:
            pass

        def __call__(self, points: Tensor, least_iou: float) -> Decoded:
            asked.append(points)
            return Decoded(logits, torch.tensor([row[0] for row in DRAWN]), torch.zeros(len(DRAWN), dtype=torch.long))

    monkeypatch.setattr(masks, "PointDecoder", Decoder)
    thresholds = {"stability_score_thresh": 0.5, "stability_score_offset": 1.0, "box_nms_thresh": 0.7}
    config = PatchConfig(**{"points_per_side": 4, "min_area": 0.01, "max_area": 0.5, **thresholds, **changes})
    return MaskGenerator(config, "cpu")([Opened.whole(Image.new("RGB", (512, 256)))])[0], torch.cat(asked)


def test_kept_masks_lie_in_the_image_and_are_told_in_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, asked = drawn_masks(monkeypatch)
    assert torch.equal(asked, point_grid(4) * torch.tensor([256, 128]))  # none beside the image
    assert kept.predicted_iou.tolist() == pytest.approx([0.95, 0.5])
    assert kept.boxes.tolist() == [[160, 64, 327, 127], [32, 160, 95, 223]]  # 8 pixels a logit, the last inclusive
    assert kept.areas.tolist() == pytest.approx([168 / 2048, 64 / 2048], rel=0.01)
    assert (kept.stability > 0.9).all()


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"box_nms_thresh": 0.99}, [0.95, 0.9, 0.5]),
        ({"min_area": 0.001}, [0.99, 0.95, 0.5]),
        ({"max_area": 1.0}, [0.98, 0.95, 0.5]),
        ({"max_area": 0.05}, [0.5]),
        ({"stability_score_offset": 0.05}, [0.97, 0.95, 0.5]),
        ({"stability_score_thresh": 1.0}, []),
    ],
)
def test_each_filter_keeps_what_its_limit_lets_through(
    changes: dict[str, float], kept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert drawn_masks(monkeypatch, **changes)[0].predicted_iou.tolist() == pytest.approx(kept)
