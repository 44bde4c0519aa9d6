"""
Automatic mask generation on SAM's low-resolution logits (Kirillov et al. 2023, arXiv 2304.02643, appendix B).

Areas, stability scores and boxes come straight from the logits, to sub-pixel precision under the bilinear
interpolation that the stock pipeline applies before it thresholds, so no mask is ever enlarged to the image.

Shapes: `N` masks, `h` x `w` logits, `P` points. A position on the logit grid is a *continuous* coordinate: pixel `i`
covers `[i, i + 1]`, its centre is at `i + 0.5`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def point_grid(points_per_side: int) -> Tensor:
    """Centres of a regular grid over the unit square, `(P, 2)` as (x, y), row by row as segment-anything does."""
    ticks = (torch.arange(points_per_side) + 0.5) / points_per_side
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=-1)


def mask_area(logits: Tensor, threshold: float = 0.0) -> Tensor:
    """
    Area of `{logits > threshold}` under bilinear interpolation, in logit pixels.

    In every cell between four pixel centres the positive share is sum(relu(v)) / sum(|v|): exact for an edge along
    a row or column, second order otherwise. Cells at the border reach only half a pixel out, as the image does.

    Args:
        logits (`Tensor` of shape `(N, h, w)`).
        threshold (`float`, *optional*, defaults to 0.0).

    Returns:
        `Tensor` of shape `(N,)`, from 0 to h * w.
    """
    values = F.pad((logits - threshold).unsqueeze(1), (1, 1, 1, 1), mode="replicate").squeeze(1)
    inside, total = F.relu(values), values.abs()

    def corners(field: Tensor) -> Tensor:
        return field[:, :-1, :-1] + field[:, 1:, :-1] + field[:, :-1, 1:] + field[:, 1:, 1:]

    share = corners(inside) / corners(total).clamp_min(torch.finfo(values.dtype).tiny)
    return torch.einsum("nhw,h,w->n", share, *(_cell_lengths(n, share) for n in share.shape[1:]))


def stability_score(logits: Tensor, threshold: float = 0.0, offset: float = 1.0) -> Tensor:
    """IoU of the mask thresholded `offset` above and `offset` below: `(N,)` in [0, 1], 0 for an empty mask."""
    outer = mask_area(logits, threshold - offset)
    inner = mask_area(logits, threshold + offset)
    return torch.where(outer > 0, inner / outer.clamp_min(1e-9), torch.zeros_like(outer))


def mask_boxes(logits: Tensor, threshold: float = 0.0) -> Tensor:
    """
    Extents of `{logits > threshold}` under bilinear interpolation.

    In a bilinear cell the boundary is monotone between neighbouring rows, so the extremes lie on rows and columns of
    the grid, where they are plain linear interpolations.

    Args:
        logits (`Tensor` of shape `(N, h, w)`).

    Returns:
        `Tensor` of shape `(N, 4)`: left, top, right, bottom in continuous logit coordinates; zeros for empty masks.
    """
    values = (logits - threshold).float()
    height, width = values.shape[1:]
    left, right = _first_crossing(values), width - _first_crossing(values.flip(-1))
    columns = values.transpose(1, 2)
    top, bottom = _first_crossing(columns), height - _first_crossing(columns.flip(-1))
    boxes = torch.stack([left, top, right, bottom], dim=-1)
    return torch.where(boxes.isfinite().all(-1, keepdim=True), boxes, torch.zeros_like(boxes))


def to_pixel_boxes(boxes: Tensor, scale: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """
    Boxes in whole pixels of the source image, with segment-anything's inclusive edges.

    Args:
        boxes (`Tensor` of shape `(N, 4)`): continuous logit coordinates, from [`mask_boxes`].
        scale (`tuple[float, float]`): source pixels per logit pixel along x and y.
        size (`tuple[int, int]`): width and height of the source image.

    Returns:
        `Tensor` of shape `(N, 4)`, xyxy: the first and last pixel whose centre lies inside, along each axis.
    """
    limit = boxes.new_tensor([size[0] - 1, size[1] - 1] * 2)
    centres = boxes * boxes.new_tensor([*scale, *scale]) - 0.5
    first, last = centres[:, :2].ceil(), centres[:, 2:].floor()
    return torch.minimum(torch.cat([first, torch.maximum(first, last)], dim=-1).clamp_min(0), limit)


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Pairwise intersection over union of xyxy boxes: `(N, 4)` and `(M, 4)` to `(N, M)`."""
    low = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    overlap = (high - low).clamp_min(0).prod(-1)
    area, other_area = ((b[:, 2:] - b[:, :2]).prod(-1) for b in (boxes, others))
    return overlap / (area[:, None] + other_area[None, :] - overlap).clamp_min(1e-9)


def non_maximum_suppression(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """
    Greedy box NMS: indices of the kept boxes, best score first; equal scores keep their order.

    Args:
        boxes (`Tensor` of shape `(N, 4)`): xyxy.
        scores (`Tensor` of shape `(N,)`).
        iou_threshold (`float`): a box that overlaps a kept one by more than this is dropped.
    """
    order = scores.argsort(descending=True, stable=True)
    overlaps = box_iou(boxes[order], boxes[order]) > iou_threshold
    keep = torch.ones(len(order), dtype=torch.bool)
    for i in range(len(order)):
        if keep[i]:
            keep[i + 1 :] &= ~overlaps[i, i + 1 :]
    return order[keep]


def _first_crossing(values: Tensor) -> Tensor:
    """Smallest continuous x at which any row of `(N, h, w)` turns positive; inf where none does."""
    positive = values > 0
    first = positive.int().argmax(-1, keepdim=True)
    here = values.gather(-1, first)
    before = values.gather(-1, (first - 1).clamp_min(0))
    # Linear interpolation between the centres of the pixels before and at the change of sign.
    crossing = first + 0.5 - here / (here - before).clamp_min(torch.finfo(values.dtype).tiny)
    crossing = torch.where(first > 0, crossing, torch.zeros_like(crossing))
    infinite = torch.full_like(crossing, torch.inf)
    return torch.where(positive.any(-1, keepdim=True), crossing, infinite).squeeze(-1).amin(-1)


def _cell_lengths(cells: int, like: Tensor) -> Tensor:
    lengths = torch.ones(cells, dtype=like.dtype, device=like.device)
    lengths[0] = lengths[-1] = 0.5
    return lengths
