"""
Does the embedded SAM find what a human outlined? Recall of polyps by its masks, against Felzenszwalb's proposals.

    pip install -e ".[bench]"
    python benchmarks/polyp_recall.py --images kvasir-seg/images --masks kvasir-seg/masks

The model proposes the masks that its preset keeps. Its rivals are the regions of Felzenszwalb and Huttenlocher (2004)
at five scales: a random subset as large as the model's set on each frame, mean of 20 draws, and all of them. Both
lists pass the same area filter. The human masks serve this measurement alone. Frames are square.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import label
from skimage.segmentation import felzenszwalb
from tqdm import tqdm
from transformers import SamModel

from optidel_hf.checkpoints import EMBEDDED, checkpoint_path
from optidel_hf.curation import amg
from optidel_hf.curation.patches import PatchConfig
from optidel_hf.sample.sam_evaluation import grid_masks


SCALES = (50, 100, 200, 400, 800)
AREAS = 0.005, 0.4
THRESHOLDS = 0.5, 0.7
DRAWS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--sam", default=EMBEDDED)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--masks", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=200, help="random frames to measure on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("polyp_recall.json"))
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    propose = Proposer(given.sam)
    paths = sorted(given.images.iterdir())
    frames = [paths[i] for i in sorted(rng.permutation(len(paths))[: given.frames])]
    found: dict[str, list[np.ndarray]] = {"sam": [], "random": [], "all": []}
    counts = []
    for path in tqdm(frames, unit="frame"):
        image = Image.open(path).convert("RGB")
        polyps = list(polyps_of(given.masks / path.name, image.size))
        masks, regions = (filter_areas(proposals) for proposals in (propose(image), segments(image)))
        counts.append((len(masks), len(regions)))
        ours, theirs = best_overlaps(polyps, masks), best_overlaps(polyps, regions)
        found["sam"].append(ours.max(axis=0, initial=0)[None])
        found["all"].append(theirs.max(axis=0, initial=0)[None])
        draws = [rng.permutation(len(regions))[: len(masks)] for _ in range(DRAWS)]
        found["random"].append(np.stack([theirs[draw].max(axis=0, initial=0) for draw in draws]))
    results = summarise(found, np.array(counts))
    given.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


class Proposer:
    """Image to the binary masks `(N, H, W)` that the preset keeps, `N` after non-maximum suppression of boxes."""

    def __init__(self, sam: str) -> None:
        self.thresholds = PatchConfig(sam=sam).thresholds()
        self.model = SamModel.from_pretrained(checkpoint_path(sam), dtype=torch.float32).eval()

    def __call__(self, image: Image.Image) -> np.ndarray:
        side = self.model.config.vision_config.image_size
        resized = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))
        logits, ious, _ = grid_masks(self.model, resized, self.thresholds.points_per_side)
        logits, ious = logits.flatten(0, 1), ious.flatten()
        stability = amg.stability_score(logits, offset=self.thresholds.stability_score_offset)
        keep = (ious > self.thresholds.pred_iou_thresh) & (stability > self.thresholds.stability_score_thresh)
        logits, ious = logits[keep], ious[keep]
        scale = image.width / logits.shape[-1], image.height / logits.shape[-2]
        boxes = amg.pixel_boxes(logits, scale, image.size)
        best = amg.non_maximum_suppression(boxes, ious, self.thresholds.box_nms_thresh)
        enlarged = F.interpolate(logits[best][None], (image.height, image.width), mode="bilinear")
        return (enlarged[0] > 0).numpy()


def segments(image: Image.Image) -> np.ndarray:
    """The regions `(N, H, W)` of Felzenszwalb's segmentation at every scale."""
    pixels = np.asarray(image)
    labels = [felzenszwalb(pixels, scale=scale) for scale in SCALES]
    return np.concatenate([each == np.arange(each.max() + 1)[:, None, None] for each in labels])


def polyps_of(path: Path, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """The connected parts `(H, W)` of a human mask that pass the lower area bound."""
    mask = np.asarray(Image.open(path).convert("L").resize(size, Image.Resampling.NEAREST)) > 127
    parts, count = label(mask)
    yield from (parts == part for part in range(1, count + 1) if (parts == part).mean() >= AREAS[0])


def filter_areas(masks: np.ndarray) -> np.ndarray:
    shares = masks.mean(axis=(1, 2))
    return masks[(shares >= AREAS[0]) & (shares <= AREAS[1])]


def best_overlaps(polyps: list[np.ndarray], masks: np.ndarray) -> np.ndarray:
    """IoU of every mask with every polyp, `(N, polyps, 2)`: by masks and by boxes."""
    overlaps = np.zeros((len(masks), len(polyps), 2))
    for column, polyp in enumerate(polyps):
        shared = (masks & polyp).sum(axis=(1, 2))
        overlaps[:, column, 0] = shared / np.maximum((masks | polyp).sum(axis=(1, 2)), 1)
        overlaps[:, column, 1] = [box_iou(box_of(mask), box_of(polyp)) for mask in masks]
    return overlaps


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def box_iou(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / (sum(areas) - shared)


def summarise(found: dict[str, list[np.ndarray]], counts: np.ndarray) -> dict:
    """Recall by masks and by boxes at each threshold; of the random subsets, mean and deviation over the draws."""
    results: dict = {"frames": len(counts), "proposals": dict(zip(("sam", "all"), counts.mean(axis=0).round(1)))}
    for name, frames in found.items():
        best = np.concatenate(frames, axis=1)  # (draws, polyps, 2)
        results["polyps"] = best.shape[1]
        for kind, ious in zip(("masks", "boxes"), np.moveaxis(best, -1, 0)):
            for threshold in THRESHOLDS:
                recall = (ious >= threshold).mean(axis=1)
                results[f"{name} {kind} {threshold}"] = [round(float(recall.mean()), 3), round(float(recall.std()), 3)]
    return results


if __name__ == "__main__":
    main()
