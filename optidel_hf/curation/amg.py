"""
Automatic mask generation on SAM's low-resolution logits (Kirillov et al. 2023, arXiv 2304.02643, appendix B).

Areas, stability scores and boxes come straight from the logits, to sub-pixel precision under the bilinear
interpolation that the stock pipeline applies before it thresholds, so no mask is ever enlarged to the image.

Shapes: `N` masks, `h` x `w` logits, `P` points. A position on the logit grid is a *continuous* coordinate: pixel `i`
covers `[i, i + 1]`, its centre is at `i + 0.5`.
"""

from __future__ import annotations

import math

import numpy as np
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
    total, signed = _corner_sums(values.abs()), _corner_sums(values)
    share = signed.add_(total).div_((2 * total).clamp_min_(torch.finfo(values.dtype).tiny))  # relu(v) = (v + |v|) / 2
    height, width = (_cell_lengths(n, share) for n in share.shape[1:])
    return share @ width @ height


def stability_score(logits: Tensor, threshold: float = 0.0, offset: float = 1.0) -> Tensor:
    """IoU of the mask thresholded `offset` above and `offset` below: `(N,)` in [0, 1], 0 for an empty mask."""
    outer = mask_area(logits, threshold - offset)
    inner = mask_area(logits, threshold + offset)
    return torch.where(outer > 0, inner / outer.clamp_min(1e-9), torch.zeros_like(outer))


def pixel_boxes(logits: Tensor, scale: tuple[float, float], size: tuple[int, int], threshold: float = 0.0) -> Tensor:
    """
    Boxes of `{logits > threshold}` in whole pixels of the source image, with segment-anything's inclusive edges.

    The first and the last pixel along each axis whose centre lies inside the mask, under bilinear interpolation of the
    logits. For the extent along x the logits are interpolated at the pixels' rows only, and the sign changes within a
    row solved for; likewise along y. So a speck that lies between pixel centres does not stretch a box.

    Args:
        logits (`Tensor` of shape `(N, h, w)`): with the padding beside the image, as stock interpolates it too.
        scale (`tuple[float, float]`): source pixels per logit pixel along x and y.
        size (`tuple[int, int]`): width and height of the source image.
        threshold (`float`, *optional*, defaults to 0.0).

    Returns:
        `Tensor` of shape `(N, 4)`, xyxy, float32; zeros for masks in which no pixel centre lies.
    """
    values = (logits - threshold).float()
    rows = _at_pixels(values, scale[1], size[1])  # (N, height, w)
    columns = _at_pixels(values.transpose(1, 2), scale[0], size[0])  # (N, width, h)
    extents = [_extent(rows, scale[0], size[0]), _extent(columns, scale[1], size[1])]
    boxes = torch.stack([edge for pair in zip(*extents) for edge in pair], dim=-1)
    seen = (boxes[:, 2:] >= boxes[:, :2]).all(-1, keepdim=True)
    return torch.where(seen, boxes, torch.zeros_like(boxes))


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
    left = scores.argsort(descending=True, stable=True).numpy(force=True)
    corners = boxes.numpy(force=True)
    low, high = corners[:, :2], corners[:, 2:]
    areas = (high - low).prod(-1)
    kept = []
    while len(left):  # a step a kept box, against those still left: fewer than the pairs, and no matrix of them
        best, left = left[0], left[1:]
        kept.append(best)
        overlap = (np.minimum(high[best], high[left]) - np.maximum(low[best], low[left])).clip(min=0).prod(-1)
        left = left[overlap / (areas[best] + areas[left] - overlap).clip(min=1e-9) <= iou_threshold]
    return torch.tensor(kept, dtype=torch.long, device=boxes.device)


def _corner_sums(values: Tensor) -> Tensor:
    """Sums over the four corners of every cell between pixel centres: `(N, h, w)` to `(N, h - 1, w - 1)`."""
    rows = values[:, :-1] + values[:, 1:]
    return rows[..., :-1] + rows[..., 1:]


def _at_pixels(values: Tensor, scale: float, pixels: int) -> Tensor:
    """Linear interpolation of `(N, h, w)` along `h` at the centres of source pixels: `(N, pixels, w)`."""
    length = values.shape[1]
    shifted = ((torch.arange(pixels, device=values.device) + 0.5) / scale - 0.5).clamp(0, length - 1)
    below = shifted.floor().long()
    above = (below + 1).clamp_max(length - 1)
    # Whole rows at a time: a gather of single values, with an index for each, is several times as slow.
    return values.index_select(1, below).lerp_(values.index_select(1, above), (shifted - below).unsqueeze(-1))


def _extent(values: Tensor, scale: float, pixels: int) -> tuple[Tensor, Tensor]:
    """First and last source pixel along the last axis that is positive in any row of `(N, rows, w)`."""
    values = values[..., : math.ceil(pixels / scale) + 1]  # what lies further out is padding, and touches no pixel
    positive = values > 0
    width = values.shape[-1]
    first = positive.view(torch.uint8).argmax(-1, keepdim=True)
    last = width - 1 - positive.flip(-1).view(torch.uint8).argmax(-1, keepdim=True)
    low = (_crossing(values, first, -1) * scale - 0.5).ceil().clamp(0, pixels - 1)
    high = (_crossing(values, last, +1) * scale - 0.5).floor().clamp(0, pixels - 1)
    # A run shorter than a pixel may hold no pixel centre: then its row says nothing.
    inside = [positive.any(-1, keepdim=True) & (_interpolate(values, (p + 0.5) / scale, -1) > 0) for p in (low, high)]
    low = torch.where(inside[0], low, torch.full_like(low, pixels))
    high = torch.where(inside[1], high, torch.full_like(high, -1))
    return low.squeeze(-1).amin(-1), high.squeeze(-1).amax(-1)


def _crossing(values: Tensor, index: Tensor, step: int) -> Tensor:
    """Where the line from the centre of pixel `index` to its neighbour's crosses zero; else the edge of the image."""
    width = values.shape[-1]
    neighbour = index + step
    here = values.gather(-1, index)
    beyond = values.gather(-1, neighbour.clamp(0, width - 1))
    share = here / (here - beyond).clamp_min(torch.finfo(values.dtype).tiny)
    at_edge = (neighbour < 0) | (neighbour >= width)
    return index + 0.5 + step * torch.where(at_edge, torch.full_like(share, 0.5), share)


def _interpolate(values: Tensor, position: Tensor, dim: int) -> Tensor:
    """Linear interpolation of `values` along `dim` at continuous positions, constant beyond the outer centres."""
    length = values.shape[dim]
    shifted = (position - 0.5).clamp(0, length - 1)
    below = shifted.floor().long().clamp_max(max(length - 2, 0))
    shape = [*values.shape]
    shape[dim] = position.shape[dim]
    below, weight = below.expand(shape), (shifted - below).expand(shape)
    above = (below + 1).clamp_max(length - 1)
    return torch.lerp(values.gather(dim, below), values.gather(dim, above), weight)


def _cell_lengths(cells: int, like: Tensor) -> Tensor:
    lengths = torch.ones(cells, dtype=like.dtype, device=like.device)
    lengths[0] = lengths[-1] = 0.5
    return lengths
