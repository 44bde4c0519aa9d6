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


LOGITS_AT_ONCE = 2**21  # interpolated at pixels' rows and columns: beyond, many masks of a large image fill the memory


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


def stability_score(logits: Tensor, offset: float = 1.0) -> Tensor:
    """IoU of the mask thresholded at `offset` and at `-offset`: `(N,)` in [0, 1], 0 for an empty mask."""
    outer, inner = mask_area(logits, -offset), mask_area(logits, offset)
    return torch.where(outer > 0, inner / outer.clamp_min(1e-9), torch.zeros_like(outer))


def pixel_boxes(logits: Tensor, scale: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """
    Boxes of `{logits > 0}` in whole pixels of the source image, with segment-anything's inclusive edges.

    The first and the last pixel along each axis whose centre lies inside the mask, under bilinear interpolation of the
    logits. For the extent along x the logits are interpolated at the pixels' rows only, and the sign changes within a
    row solved for; likewise along y. So a speck that lies between pixel centres does not stretch a box.

    Args:
        logits (`Tensor` of shape `(N, h, w)`): with the padding beside the image, as stock interpolates it too.
        scale (`tuple[float, float]`): source pixels per logit pixel along x and y.
        size (`tuple[int, int]`): width and height of the source image.

    Returns:
        `Tensor` of shape `(N, 4)`, xyxy, float32; zeros for masks in which no pixel centre lies.
    """
    at_once = max(1, LOGITS_AT_ONCE // (sum(size) * max(logits.shape[1:])))
    return torch.cat([_pixel_boxes(part, scale, size) for part in logits.split(at_once)])


def _pixel_boxes(logits: Tensor, scale: tuple[float, float], size: tuple[int, int]) -> Tensor:
    values = logits.float()
    along_x = _extent(values, scale, size)
    along_y = _extent(values.transpose(1, 2), scale[::-1], size[::-1])
    boxes = torch.stack([edge for pair in zip(along_x, along_y) for edge in pair], dim=-1)
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


def _extent(values: Tensor, scale: tuple[float, float], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """
    First and last source pixel along the last axis of `(N, h, w)`, at the pixels' rows; beyond the image if none is.

    The first pixel lies in a row that is positive in the first column of all: only the columns around that one are
    interpolated. Where no such row holds a pixel's centre, all rows are asked.
    """
    last = (size[0] - 0.5) / scale[0]  # the outermost pixel's centre: what lies a column beyond it touches no pixel
    values = values[..., : math.floor(last - 0.5) + 2]
    seen = (values > 0).any(1, keepdim=True)
    edges = []
    for step, beyond in ((-1, size[0]), (+1, -1)):
        index = _outer(seen, step)
        edge = _outer_pixel(*_columns_around(values, index, step, scale, size[1]), index, step, scale[0], size[0])
        missed = (seen.squeeze(1).any(-1) & (edge == beyond)).nonzero().squeeze(-1)
        if len(missed):
            rows = _at_pixels(values[missed], scale[1], size[1])
            start = torch.zeros_like(index[missed])
            # Positive beyond that centre alone, the padding would stand before whatever else its row holds.
            outside = _interpolate(rows, torch.full_like(rows[..., :1], last), start) <= 0
            rows[..., -1:] = rows[..., -1:].where(~outside, rows[..., -1:].clamp_max(0))
            edge[missed] = _outer_pixel(rows, start, _outer(rows > 0, step), step, scale[0], size[0])
        edges.append(edge)
    return edges[0], edges[1]


def _outer(positive: Tensor, step: int) -> Tensor:
    """Index of the first (`step` -1) or last (+1) true value along the last axis, which is kept."""
    positive = positive.view(torch.uint8)
    if step < 0:
        return positive.argmax(-1, keepdim=True)
    return positive.shape[-1] - 1 - positive.flip(-1).argmax(-1, keepdim=True)


def _columns_around(
    values: Tensor, index: Tensor, step: int, scale: tuple[float, float], pixels: int
) -> tuple[Tensor, Tensor]:
    """The columns that an outer pixel in column `index` depends on, at the pixels' rows, and where they start."""
    count = min(math.ceil(1 / scale[0]) + 3, values.shape[-1])
    start = (index - 1 if step < 0 else index + 2 - count).clamp(0, values.shape[-1] - count)
    columns = (start + torch.arange(count, device=values.device)).expand(-1, values.shape[1], -1)
    return _at_pixels(values.gather(-1, columns), scale[1], pixels), start


def _outer_pixel(rows: Tensor, start: Tensor, index: Tensor, step: int, scale: float, pixels: int) -> Tensor:
    """
    The outermost pixel of all rows that are positive in column `index`; else one beyond the image. `(N,)`

    Args:
        rows (`Tensor` of shape `(N, rows, columns)`): columns from `start` `(N, 1, 1)` on.
    """
    index = index.expand(-1, rows.shape[1], -1)
    crossing = _crossing(rows, index, start, step) * scale - 0.5
    pixel = (crossing.ceil() if step < 0 else crossing.floor()).clamp(0, pixels - 1)
    # A run shorter than a pixel may hold no pixel centre: then its row says nothing.
    inside = (rows.gather(-1, index - start) > 0) & (_interpolate(rows, (pixel + 0.5) / scale, start) > 0)
    if step < 0:
        return torch.where(inside, pixel, torch.full_like(pixel, pixels)).amin((1, 2))
    return torch.where(inside, pixel, torch.full_like(pixel, -1)).amax((1, 2))


def _crossing(rows: Tensor, index: Tensor, start: Tensor, step: int) -> Tensor:
    """Where the line from the centre of column `index` to its neighbour's crosses zero; else the edge of the image."""
    neighbour = index + step - start
    here = rows.gather(-1, index - start)
    beyond = rows.gather(-1, neighbour.clamp(0, rows.shape[-1] - 1))
    share = here / (here - beyond).clamp_min(torch.finfo(rows.dtype).tiny)
    at_edge = (neighbour < 0) | (neighbour >= rows.shape[-1])
    return index + 0.5 + step * torch.where(at_edge, torch.full_like(share, 0.5), share)


def _interpolate(rows: Tensor, position: Tensor, start: Tensor) -> Tensor:
    """Linear interpolation along the columns at continuous positions, constant beyond the outer centres."""
    last = rows.shape[-1] - 1
    shifted = (position - 0.5 - start).clamp(0, last)
    below = shifted.floor().long().clamp_max(max(last - 1, 0))
    above = (below + 1).clamp_max(last)
    return torch.lerp(rows.gather(-1, below), rows.gather(-1, above), shifted - below)


def _cell_lengths(cells: int, like: Tensor) -> Tensor:
    lengths = torch.ones(cells, dtype=like.dtype, device=like.device)
    lengths[0] = lengths[-1] = 0.5
    return lengths
