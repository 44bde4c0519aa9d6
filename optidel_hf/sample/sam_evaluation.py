"""How good a SAM is on held-out scenes: does a grid of points find the objects, does predicted IoU rank the masks?

Shapes: `P` grid points, `K` masks a point, `N = P K`, `L` side of the logits, `S` side of the scene, `O` objects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor
from tqdm import tqdm
from transformers import SamModel

from optidel_hf.sample.sam_batches import IMAGE_MEAN, IMAGE_STD
from optidel_hf.sample.scenes import make_scene


HELD_OUT_SERIES = 20_261_124  # seed of the scenes, another than the training's
SMALLEST_OBJECT = 0.01  # as a fraction of the image: smaller ones are not asked for


@dataclass
class SceneScores:
    """What one scene gave: the best IoU of each object `(O,)`, and each mask's predicted and true IoU `(N,)`."""

    best: np.ndarray
    predicted: np.ndarray
    true: np.ndarray


@torch.inference_mode()
def grid_masks(model: SamModel, image: np.ndarray, points_per_side: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """Prompt an image `(S, S, 3)` uint8: logits (P, K, L, L), predicted IoU (P, K), points (P, 2) in pixels."""
    pixels = torch.from_numpy((image / np.float32(255) - IMAGE_MEAN) / IMAGE_STD).permute(2, 0, 1)[None]
    ticks = (np.arange(points_per_side) + 0.5) * image.shape[0] / points_per_side - 0.5
    points = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    prompts = torch.from_numpy(points).float()[None, :, None]
    output = model(pixel_values=pixels, input_points=prompts)
    return output.pred_masks[0], output.iou_scores[0], points


def score_scene(model: SamModel, image: np.ndarray, labels: np.ndarray, points_per_side: int) -> SceneScores:
    """Compare the grid's masks, enlarged to the scene, with its objects; a mask's own is the one under its point."""
    logits, predicted, points = grid_masks(model, image, points_per_side)
    masks = F.interpolate(logits, labels.shape, mode="bilinear").flatten(0, 1).flatten(1) > 0  # (N, S * S)
    objects = torch.from_numpy(
        np.arange(labels.max() + 1)[:, None] == labels.ravel()
    )  # (O + 1, S * S), 0 is background
    shared = masks.float() @ objects.float().T
    iou = shared / (masks.sum(1)[:, None] + objects.sum(1) - shared).clamp(min=1)
    under = torch.from_numpy(labels[tuple((points + 0.5).astype(int).T[::-1])].astype(int)).repeat_interleave(
        logits.shape[1]
    )
    true = iou.gather(1, under[:, None])[:, 0] * (under > 0)
    large = objects.sum(1) >= SMALLEST_OBJECT * labels.size
    large[0] = False
    return SceneScores(iou.amax(0)[large].numpy(), predicted.flatten().numpy(), true.numpy())


def evaluate_sam(
    model: SamModel,
    scenes: int = 100,
    points_per_side: int = 16,
) -> dict[str, float]:
    """Score a SAM on scenes that it was not trained on.

    Args:
        model (`SamModel`): in float32, with a square input.
        scenes (`int`, *optional*, defaults to 100): scenes to paint.
        points_per_side (`int`, *optional*, defaults to 16): side of the point grid.

    Returns:
        `dict`: `best_iou` (mean over objects of the best IoU of any mask), `best_iou_error` (its standard error, over
        scenes), `objects`, `recall_50` and `recall_75` (share of objects found with that IoU), `spearman` (predicted
        with true IoU, all masks of all scenes), `iou_error` (mean absolute error of the predicted IoU).
    """
    side = model.config.vision_config.image_size
    painted = (make_scene(HELD_OUT_SERIES, index, side) for index in range(scenes))
    scores = [
        score_scene(model, image, labels, points_per_side)
        for image, labels in tqdm(painted, total=scenes, unit="scene")
    ]
    best = np.concatenate([score.best for score in scores])
    predicted, true = (np.concatenate([getattr(score, name) for score in scores]) for name in ("predicted", "true"))
    by_scene = [score.best.mean() for score in scores if len(score.best)]
    return {
        "best_iou": float(best.mean()),
        "best_iou_error": float(np.std(by_scene, ddof=1) / len(by_scene) ** 0.5),
        "objects": len(best),
        "recall_50": float((best >= 0.5).mean()),
        "recall_75": float((best >= 0.75).mean()),
        "spearman": float(spearmanr(predicted, true).statistic),
        "iou_error": float(np.abs(predicted - true).mean()),
    }
