"""Masks from low-resolution logits against transformers' stock pipeline, which enlarges every mask first."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.sam.image_processing_pil_sam import (
    SamImageProcessorPil,
    _batched_mask_to_box,
    _build_point_grid,
    _compute_stability_score,
)

from optidel_hf.curation import amg


SAM_SIDE = 256  # of a model whose logits are 64 x 64
# Width and height: square, twice as large, thin, and scales that are no whole number.
SIZES = [(256, 256), (512, 512), (400, 300), (333, 517), (97, 80), (1001, 640)]


def blobs(count: int, seed: int, extent: tuple[float, float] = (64, 64), side: int = 64) -> Tensor:
    """Logits `(count, side, side)` of a small smooth object each, centred in `extent`, some cut by the border."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    centre = torch.tensor(extent)[:, None, None] * torch.rand(count, 2, 1, 1, generator=generator)
    width = 1.5 + 4 * torch.rand(count, 2, 1, 1, generator=generator)
    bump = (-((x - centre[:, 0]) ** 2 / width[:, 0] ** 2 + (y - centre[:, 1]) ** 2 / width[:, 1] ** 2) / 2).exp()
    ripple = F.interpolate(torch.randn(count, 1, 16, 16, generator=generator), (side, side), mode="bicubic")[:, 0]
    return 10 * bump - 5 + 0.5 * ripple


def resized_for_sam(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height at which SAM sees an image of `size`; the rest of its input is padding."""
    return tuple(int(length * SAM_SIDE / max(size) + 0.5) for length in size)


def enlarge(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The stock pipeline's logits at the size of the image."""
    pad = {"height": SAM_SIDE, "width": SAM_SIDE}
    sizes = ([size[::-1]], [resized_for_sam(size)[::-1]])
    return SamImageProcessorPil().post_process_masks([logits[None]], *sizes, binarize=False, pad_size=pad)[0][0]


def ious(boxes: Tensor, others: Tensor) -> Tensor:
    """Row-aligned IoU of boxes with inclusive edges."""
    one = torch.tensor([0, 0, 1, 1])
    return amg.box_iou((boxes + one).float(), (others + one).float()).diagonal()


@pytest.mark.parametrize("size", SIZES)
def test_boxes_are_those_of_the_enlarged_masks(size: tuple[int, int]) -> None:
    width, height = (length * 64 / SAM_SIDE for length in resized_for_sam(size))
    logits = blobs(150, seed=size[0], extent=(width, height))
    expected = _batched_mask_to_box(enlarge(logits, size) > 0)
    logits = logits[:, : math.ceil(height), : math.ceil(width)]  # without the padding
    scale = (size[0] / width, size[1] / height)
    ours = amg.pixel_boxes(logits, scale, size)
    whole = (_batched_mask_to_box(logits > 0) + torch.tensor([0, 0, 1, 1])) * torch.tensor([*scale, *scale])
    whole = whole - torch.tensor([0, 0, 1, 1])
    seen = expected.any(1)
    good, crude = ((ious(boxes, expected)[seen] > 0.9).float().mean().item() for boxes in (ours, whole))
    assert seen.sum() > 140
    assert good >= 0.97  # at 97 x 80 an object has 6 pixels, and one more or less is IoU 0.85
    assert crude < 0.6  # boxes of whole logit pixels are no substitute


def test_boxes_at_the_logits_own_scale_are_exact() -> None:
    logits = torch.full((3, 6, 8), -1.0)
    logits[0, 2, 3] = 1.0  # crosses zero half a pixel from the centre on every side
    logits[1] = 1.0
    assert amg.pixel_boxes(logits, (1.0, 1.0), (8, 6)).tolist() == [[3, 2, 3, 2], [0, 0, 7, 5], [0, 0, 0, 0]]
    # Ten times as large it spans 30 to 40: the first pixel centre inside is at 30.5, the last at 39.5.
    assert amg.pixel_boxes(logits, (10.0, 10.0), (80, 60))[0].tolist() == [30, 20, 39, 29]


def test_a_weak_logit_moves_the_edge_towards_its_pixel() -> None:
    logits = torch.full((1, 3, 5), -3.0)
    logits[0, 1, 2] = 1.0  # zero at 1/4 of the way to the neighbours: from 2.25 to 2.75 along x, 1.25 to 1.75 along y
    assert amg.pixel_boxes(logits, (100.0, 100.0), (500, 300))[0].tolist() == [225, 125, 274, 174]


def test_a_speck_between_pixel_centres_is_not_seen() -> None:
    logits = torch.full((1, 4, 8), -1.0)
    logits[0, 1:3, 1:4] = 1.0
    alone = amg.pixel_boxes(logits, (2.0, 2.0), (16, 8))
    logits[0, 1, 6] = 0.01  # positive within 0.01 of its centre at 6.5; pixel centres lie at 6.25 and 6.75
    assert torch.equal(amg.pixel_boxes(logits, (2.0, 2.0), (16, 8)), alone)


@pytest.mark.parametrize("size", [(512, 256), (256, 512), (400, 300), (1001, 640)])
def test_what_sam_sees_beside_the_image_hides_no_box(size: tuple[int, int]) -> None:
    width, height = (length * 64 / SAM_SIDE for length in resized_for_sam(size))
    logits = torch.full((2, 64, 64), -9.0)
    logits[:, 8:16, 10:22] = 9.0
    logits[1, math.ceil(height) :], logits[1, :, math.ceil(width) :] = 3.0, 3.0
    plain, beside = amg.pixel_boxes(logits, (size[0] / width, size[1] / height), size)
    assert torch.equal(beside, plain)
    assert torch.equal(beside, _batched_mask_to_box(enlarge(logits, size) > 0)[1].float())


def test_no_box_reaches_out_of_the_image() -> None:
    everywhere = torch.full((1, 64, 64), 9.0)  # and beside the image, which is half as high
    assert amg.pixel_boxes(everywhere, (8.0, 8.0), (512, 256)).tolist() == [[0, 0, 511, 255]]


def test_each_axis_has_its_own_scale() -> None:
    logits = torch.full((1, 4, 6), -1.0)
    logits[0, 1:3, 2:4] = 1.0
    assert amg.pixel_boxes(logits, (100.0, 10.0), (600, 40))[0].tolist() == [200, 10, 399, 29]


def test_a_mask_on_the_border_reaches_the_border() -> None:
    logits = torch.full((1, 8, 8), -2.0)
    logits[0, 5:, :3] = 2.0
    assert amg.pixel_boxes(logits, (4.0, 4.0), (32, 32))[0].tolist() == [0, 20, 11, 31]
    assert amg.mask_area(logits).item() == pytest.approx(9, abs=0.15)  # the corner is cut by bilinear interpolation


def test_area_agrees_with_counting_a_fine_enlargement() -> None:
    logits = blobs(60, seed=1)
    counted = (F.interpolate(logits[:, None], scale_factor=16, mode="bilinear") > 0).flatten(1).sum(1) / 256
    area = amg.mask_area(logits)
    # Under half a logit pixel of 10 to 150: a round mask turns corners inside its cells.
    assert (area - counted).abs().max() < 0.4
    assert ((logits > 0).flatten(1).sum(1) - counted).abs().max() > 4  # what counting logit pixels is off by


def test_area_of_empty_full_and_half_masks() -> None:
    full = torch.ones(1, 5, 7)
    half = full.clone()
    half[:, :, :3], half[:, :, 3] = -1.0, 0.0  # the edge runs through the fourth column's centre
    assert amg.mask_area(full).item() == 35
    assert amg.mask_area(-full).item() == 0
    assert amg.mask_area(torch.zeros(1, 5, 7)).item() == 0
    assert amg.mask_area(half).item() == pytest.approx(17.5)
    assert amg.mask_area(full + 3, threshold=5.0).item() == 0


@pytest.mark.parametrize("offset", [0.5, 1.0])
def test_stability_is_that_of_the_enlarged_logits(offset: float) -> None:
    logits = blobs(80, seed=2)
    enlarged = F.interpolate(logits[:, None], scale_factor=8, mode="bilinear")[:, 0]
    large = (enlarged > offset).flatten(1).sum(1) > 8 * 64
    expected = _compute_stability_score(enlarged, 0.0, offset)[large]
    assert large.sum() > 60
    torch.testing.assert_close(amg.stability_score(logits, offset=offset)[large], expected, atol=0.01, rtol=0)


def test_an_empty_mask_has_no_stability() -> None:
    assert amg.stability_score(torch.full((1, 4, 4), -9.0)).tolist() == [0.0]
    assert amg.stability_score(torch.full((1, 4, 4), 9.0)).tolist() == [1.0]


def test_no_masks_at_all() -> None:
    none = torch.zeros(0, 8, 8)
    assert amg.mask_area(none).shape == (0,)
    assert amg.pixel_boxes(none, (1.0, 1.0), (8, 8)).shape == (0, 4)
    assert amg.non_maximum_suppression(torch.zeros(0, 4), torch.zeros(0), 0.7).shape == (0,)


@pytest.mark.parametrize("side", [1, 4, 32])
def test_the_point_grid_is_the_stock_one(side: int) -> None:
    np.testing.assert_allclose(amg.point_grid(side).numpy(), _build_point_grid(side), atol=1e-6)


def naive_nms(boxes: list[list[float]], scores: list[float], threshold: float) -> list[int]:
    def iou(a: list[float], b: list[float]) -> float:
        width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
        height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
        return width * height / max(sum(areas) - width * height, 1e-9)

    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(iou(boxes[i], boxes[k]) <= threshold for k in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_suppression_is_the_naive_one(threshold: float) -> None:
    generator = torch.Generator().manual_seed(4)
    corner = torch.randint(0, 30, (200, 2), generator=generator).float()
    boxes = torch.cat([corner, corner + torch.randint(1, 25, (200, 2), generator=generator)], dim=1)
    scores = torch.randint(0, 9, (200,), generator=generator) / 8  # many ties
    kept = amg.non_maximum_suppression(boxes, scores, threshold).tolist()
    assert kept == naive_nms(boxes.tolist(), scores.tolist(), threshold)
    assert 10 < len(kept) < 190


def test_of_equal_boxes_the_best_and_of_equal_scores_the_first_is_kept() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4]]).repeat(3, 1)
    assert amg.non_maximum_suppression(boxes, torch.tensor([0.5, 0.9, 0.9]), 0.7).tolist() == [1]
