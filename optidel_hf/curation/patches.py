"""
Key patches: SAM's masks, filtered, boxed, and cut out of the source image as squares.

OptiDEL (arXiv 2408.07107) cuts "key patches" with SAM and leaves their geometry open. Ours: a square around the box
of each mask, 1.2 times its longer side, at least 0.15 of the image's shorter side, shifted to stay inside.

Decoded images take 4 bytes a pixel in Pillow, and no more than `max_image_pixels` of them are in memory at once; one
that must be turned upright or converted to RGB is there twice for a moment. A large JPEG is decoded at reduced scale.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from datasets import Features, Image, Value

from optidel_hf.checkpoints import checkpoint_commit, checkpoint_path, folder_fingerprint
from optidel_hf.curation import amg
from optidel_hf.curation.borders import border_shares
from optidel_hf.curation.keys import KEY_FEATURES
from optidel_hf.curation.masks import MaskGenerator, Masks
from optidel_hf.curation.patch_config import PatchConfig
from optidel_hf.errors import UserError
from optidel_hf.images import (
    DECODING_THREADS,
    ImageRejected,
    Opened,
    centre_square,
    count_pixels,
    cut_square,
    encode_png,
    open_reduced,
    split_runs,
)
from optidel_hf.layout import NO_PATCH
from optidel_hf.processes import take_one_thread_in_a_pool
from optidel_hf.sources import is_missing
from optidel_hf.tables import batch_column


PATCH_FEATURES = Features(
    {
        "image": Image(),
        **KEY_FEATURES,
        "predicted_iou": Value("float32"),
        "stability_score": Value("float32"),
        "rejected": Value("string"),
    }
)
SAME_CROP = 1 - 1e-6  # intersection over union above which two crops are one


@dataclass(frozen=True)
class SamPatchExtractor:
    """
    A batch of images in, a batch of key patches out: for `datasets.map(batched=True, with_rank=True)`.

    Pickles to its configuration and the hash of `sam`, or its commit on the Hub, by which the cache of `map` tells
    other weights; the model comes from a per-process cache. An image that cannot be used, or in which SAM finds
    nothing, is one output row with a null image and its reason in `rejected`. With `map(num_proc=...)` each process
    takes the device of its rank, or one thread; where the parent has used CUDA they must be spawned.

    Args:
        config ([`PatchConfig`], *optional*).
        device (`str`, *optional*, defaults to `"auto"`).
        image_column (`str`, *optional*, defaults to `"image"`): undecoded images, or PIL images.

    Example:

    ```python
    extractor = SamPatchExtractor(PatchConfig(sam="facebook/sam-vit-base"))
    patches = images.map(extractor, batched=True, with_rank=True, features=extractor.features,
                         remove_columns=images.column_names)
    ```
    """

    config: PatchConfig = field(default_factory=PatchConfig)
    device: str = "auto"
    image_column: str = "image"

    def __getstate__(self) -> dict[str, Any]:
        """The fields, and what is in the folder of a local model now, or the commit of one on the Hub."""
        sam = self.config.sam
        commit = checkpoint_commit(sam, self.config.sam_revision)
        return self.__dict__ | {"model": commit or folder_fingerprint(checkpoint_path(sam))}

    @property
    def features(self) -> Features:
        """Declared output features, for `map(features=...)`."""
        return PATCH_FEATURES

    def __call__(self, batch: dict[str, list[Any]], rank: int | None = None) -> dict[str, list[Any]]:
        """Extract the key patches of `batch`: columns `image`, and `source` and `group` where they are given."""
        take_one_thread_in_a_pool(self.device)
        values = batch_column(batch, self.image_column)
        sources = batch["source"] if "source" in batch else _paths_of(values)
        groups = batch.get("group", sources)
        groups = [source if is_missing(group) else group for source, group in zip(sources, groups)]
        rows: list[dict[str, Any]] = []
        for source, group, found in zip(sources, groups, self._extract(values, rank)):
            rows += [{**row, "source": source, "group": group} for row in found]
        return {name: [row.get(name) for row in rows] for name in PATCH_FEATURES}

    def _extract(self, values: list[Any], rank: int | None) -> Iterator[list[dict[str, Any]]]:
        """The rows of each image: its patches or, where there are none, the reason."""
        config = self.config
        generator = MaskGenerator(config, self.device, rank) if config.unit == "patch" else None
        least = config.least_sides(generator.side if generator else 0)
        rows_of = partial(_rows_of, generator=generator, config=config)
        # By `map`, which unlike a loop's variable holds no run of images while the next is decoded.
        for rows in map(rows_of, _open_in_runs(values, config, least)):
            yield from rows


def _open_in_runs(values: list[Any], config: PatchConfig, least: tuple[int, int]) -> Iterator[list[Opened | str]]:
    """
    Decode in threads, a run of images at a time: each image or the reason why it cannot be used.

    While the caller works on a run the next one is decoded, if together they stay within `max_image_pixels`.
    """
    most = config.max_image_pixels
    pixels = [count_pixels(value, most) for value in values]
    runs = split_runs(pixels, config.images_per_batch, most)
    held = [sum(pixels[i] for i in run) for run in runs]
    queue: deque[Future[Opened | str]] = deque()
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        begun = 0
        for number, run in enumerate(runs):
            ahead = number + 2 if sum(held[number : number + 2]) <= most else number + 1
            for later in runs[begun:ahead]:
                queue.extend(pool.submit(_open, values[i], config, least) for i in later)
            begun = ahead
            yield [queue.popleft().result() for _ in run]


def _open(value: Any, config: PatchConfig, least: tuple[int, int]) -> Opened | str:
    try:
        opened = open_reduced(value, least, config.max_image_pixels)
    except ImageRejected as rejected:
        return str(rejected)
    shorter, longer = sorted(opened.size)
    if shorter < config.min_image_side or longer > config.max_aspect * shorter:
        return f"{opened.size[0]}x{opened.size[1]} is too small or too thin to cut patches from"
    return opened


def _rows_of(run: list[Opened | str], generator: MaskGenerator | None, config: PatchConfig) -> list[list[dict]]:
    usable = [opened for opened in run if isinstance(opened, Opened)]
    if generator is None:
        found = iter([[_whole_image(opened, config)] for opened in usable])
    else:
        found = iter([cut_patches(opened, masks, config) for opened, masks in zip(usable, generator(usable))])
    return [[{"rejected": each}] if isinstance(each, str) else next(found) or [{"rejected": NO_PATCH}] for each in run]


def cut_patches(opened: Opened, masks: Masks, config: PatchConfig) -> list[dict[str, Any]]:
    """
    Cut the best `max_patches` masks out of an image as squares at `patch_size`.

    Crops with more than `max_border` of black border, and crops that repeat a better one, are left out: image and crop
    tell a patch from all others.
    """
    crops = [crop_square(box, opened.size, config) for box in masks.boxes.tolist()]
    quality = masks.predicted_iou * masks.stability
    inside = [i for i, share in enumerate(_border_shares(opened, crops)) if share <= config.max_border]
    squares = torch.tensor([_corners(crops[i]) for i in inside], dtype=torch.float32).reshape(-1, 4)
    threshold = min(config.crop_nms_thresh, SAME_CROP)
    kept = amg.non_maximum_suppression(squares, quality[inside], threshold)[: config.max_patches]
    return [_patch(opened, crops[i], masks, i, config) for i in (inside[k] for k in kept.tolist())]


def crop_square(box: list[float], size: tuple[int, int], config: PatchConfig) -> tuple[int, int, int]:
    """The square (x, y, side) around an xyxy box that is cut from an image of `size` (width, height)."""
    left, top, right, bottom = box
    shorter = min(size)
    longer_side = max(right - left, bottom - top)
    side = max(1, round(min(max(config.context * longer_side, config.min_crop * shorter), shorter)))
    x, y = ((low + high - side) / 2 for low, high in ((left, right), (top, bottom)))
    return round(min(max(x, 0), size[0] - side)), round(min(max(y, 0), size[1] - side)), side


def _paths_of(values: list[Any]) -> list[str]:
    """The paths of a batch's images, which stand for names that nobody gave."""
    paths: dict[str, int] = {}
    for row, value in enumerate(values):
        path = value.get("path") if isinstance(value, dict) else getattr(value, "filename", None)
        if not path:
            raise UserError(f"Row {row} of the batch has neither a path nor a 'source': add a unique 'source' column.")
        if paths.setdefault(str(path), row) != row:
            raise UserError(f"Two images of the batch are called '{path}': add a unique 'source' column.")
    return list(paths)


def _border_shares(opened: Opened, crops: list[tuple[int, int, int]]) -> list[float]:
    scale = opened.scale
    return border_shares(opened.image, [(round(x * scale), round(y * scale), round(s * scale)) for x, y, s in crops])


def _whole_image(opened: Opened, config: PatchConfig) -> dict[str, Any]:
    width, height = opened.size
    box = [0.0, 0.0, float(width - 1), float(height - 1)]
    return _row(opened, centre_square(width, height), box, config, area=1.0, predicted_iou=None, stability_score=None)


def _patch(opened: Opened, crop: tuple[int, int, int], masks: Masks, i: int, config: PatchConfig) -> dict[str, Any]:
    left, top, right, bottom = masks.boxes[i].tolist()
    return _row(
        opened,
        crop,
        [left, top, right - left, bottom - top],
        config,
        area=masks.areas[i].item(),
        predicted_iou=masks.predicted_iou[i].item(),
        stability_score=masks.stability[i].item(),
    )


def _row(
    opened: Opened, crop: tuple[int, int, int], bbox: list[float], config: PatchConfig, **measures: Any
) -> dict[str, Any]:
    tile = encode_png(cut_square(opened.image, crop, config.patch_size, opened.scale))
    upscale = config.patch_size / crop[2]
    return {"image": {"bytes": tile, "path": None}, "bbox": bbox, "crop": list(crop), "upscale": upscale, **measures}


def _corners(crop: tuple[int, int, int]) -> tuple[int, int, int, int]:
    x, y, side = crop
    return x, y, x + side, y + side
