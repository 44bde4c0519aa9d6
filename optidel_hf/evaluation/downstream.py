"""
The downstream set: images with segmentation masks, read once into resident tensors.

Shapes: `N` images, `S` the side in pixels. Every image is squashed to a square, images by a bicubic and masks by a
nearest-neighbour filter, so that arms see the same pixels whatever their own size.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from tqdm.auto import tqdm

from optidel_hf.errors import UserError, named_by
from optidel_hf.images import DECODING_THREADS, ImageRejected, open_image
from optidel_hf.sources import find_image_column, open_dataset


logger = logging.getLogger(__name__)

# JPEG masks have grey rims; 127 is where their edge was.
MASK_THRESHOLD = 127
GREY = (32, 223)  # neither black nor white, as few of a binary mask's pixels are: 0.005 % of Kvasir-SEG's
MOST_GREY = 0.01

Pair = tuple[str, Any, Any]  # name, image, mask


@dataclass
class DownstreamSet:
    """
    One split of a downstream set.

    Args:
        names (`list[str]`): stem of the image file, or the row's source where there is no file name.
        images (`torch.Tensor` of shape `(N, 3, S, S)`, uint8): RGB.
        masks (`torch.Tensor` of shape `(N, S, S)`, uint8): 1 on the object, 0 elsewhere.
    """

    names: list[str]
    images: torch.Tensor
    masks: torch.Tensor

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, rows: np.ndarray) -> DownstreamSet:
        """The images of the given row numbers, in their order."""
        return DownstreamSet([self.names[row] for row in rows], self.images[rows], self.masks[rows])

    def sha256(self) -> str:
        """Hash of names and pixels: what tells one downstream set from another."""
        digest = hashlib.sha256("\n".join(self.names).encode())
        for pixels in (self.images, self.masks):
            digest.update(pixels.numpy().data)
        return digest.hexdigest()


def load_downstream(
    dataset: str,
    split: str,
    image_size: int,
    exclude: Sequence[str] = (),
    image_column: str = "image",
    mask_column: str = "mask",
    revision: str | None = None,
    config: str | None = None,
) -> DownstreamSet:
    """
    Read one split of a downstream set.

    Args:
        dataset (`str`):
            A folder with `images/` and `masks/` (same stem, any extension), where a file belongs to the split whose
            name its own begins with (`train_0001.jpg`); or what [`~sources.open_dataset`] opens, with an image and
            a mask column.
        split (`str`): name of the split.
        image_size (`int`): side S to which images and masks are resized, in pixels.
        exclude (`Sequence[str]`, *optional*): names (stems) to leave out.
        image_column (`str`, *optional*, defaults to `"image"`): ignored for folders.
        mask_column (`str`, *optional*, defaults to `"mask"`): ignored for folders.
        revision (`str`, *optional*): branch, tag or commit of a Hub dataset.
        config (`str`, *optional*): configuration of a Hub dataset with several.

    Returns:
        [`DownstreamSet`], in the order of the names (folders) or rows.

    Raises:
        `UserError`: if the split, an image or a mask is missing or broken, or all masks are empty.
    """
    pairs = list_pairs(dataset, split, image_column, mask_column, revision, config)
    excluded = set(exclude)
    kept = [pair for pair in pairs if pair[0] not in excluded]
    if not kept:
        raise UserError(f"{dataset}: no image is left in split '{split}' after excluding {len(pairs)}.")
    logger.info("%s, split %s: %d images, %d excluded", dataset, split, len(kept), len(pairs) - len(kept))
    return load_pairs(kept, image_size, f"{dataset}, split '{split}'")


def list_pairs(
    dataset: str,
    split: str,
    image_column: str = "image",
    mask_column: str = "mask",
    revision: str | None = None,
    config: str | None = None,
) -> list[Pair]:
    """Name, image and mask (none where it is missing) of every row of a split, nothing of which is opened yet."""
    if (Path(dataset) / "images").is_dir() and not (revision or config):
        return list(_folder_pairs(Path(dataset), split))
    return list(_table_pairs(open_dataset(dataset, split, revision, config), image_column, mask_column))


def shared_image(first: Sequence[Pair], second: Sequence[Pair]) -> str | None:
    """The name of an image that is in both: the same file, or of tables the same bytes under the same name."""
    there = {_identity(pair) for pair in second}
    return next((pair[0] for pair in first if _identity(pair) in there), None)


def refuse_unknown(excluded: Sequence[str], listed: Iterable[Sequence[Pair]], where: str) -> None:
    """Refuse to exclude a name that no listed image has: it would be mistyped, and its image stay."""
    known = {name for pairs in listed for name, *_ in pairs}
    if unknown := [name for name in excluded if name not in known]:
        raise UserError(f"--exclude {unknown[0]}: no image of {where} has this name; one is called '{min(known)}'.")


def _identity(pair: Pair) -> Any:
    name, image, _ = pair
    return (name, image["bytes"] or image["path"]) if isinstance(image, dict) else image


def load_pairs(pairs: Sequence[Pair], image_size: int, where: str) -> DownstreamSet:
    """
    Open listed images and their masks, resized to `image_size`.

    Raises:
        `UserError`: beginning with `where`, if a mask is missing or all are empty, or an image or mask is broken.
    """
    if without := [name for name, _, mask in pairs if mask is None]:
        raise UserError(f"{where}: '{without[0]}' has no mask; add it or exclude '{without[0]}'.")
    loaded = _load(pairs, image_size, where)
    if not loaded.masks.any():
        raise UserError(
            f"{where}: no mask has a pixel above {MASK_THRESHOLD}; objects must be white (255, in 16 bits 65535)."
        )
    return loaded


def _folder_pairs(root: Path, split: str) -> Iterable[Pair]:
    masks, images = (_image_files(root / part) for part in ("masks", "images"))
    chosen = [path for path in images if path.name.startswith(f"{split}_")]
    if not chosen:
        found = Counter(path.name.split("_")[0] for path in images if "_" in path.name)
        raise UserError(
            f"{root / 'images'}: none of {len(images)} images is of split '{split}', whose file names begin with "
            f"'{split}_'. Beginnings found: {[f'{name}_' for name, _ in found.most_common(5)]}."
        )
    mask_of = _by_stem([mask for mask in masks if mask.name.startswith(f"{split}_")])
    for stem, path in _by_stem(chosen).items():
        yield stem, path, mask_of.get(stem)


def _by_stem(paths: Sequence[Path]) -> dict[str, Path]:
    """Files by their stem, by which a mask belongs to an image."""
    found: dict[str, Path] = {}
    for path in paths:
        if (other := found.setdefault(path.stem, path)) != path:
            raise UserError(f"{other} and {path.name} are both called '{path.stem}': remove one, or rename it.")
    return found


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; a downstream folder holds images/ and masks/.")
    readable = Image.registered_extensions()
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in readable and path.name[0] != ".")


def _table_pairs(rows: Dataset, image_column: str, mask_column: str) -> Iterable[Pair]:
    find_image_column(rows, image_column)
    with named_by(image_column="mask_column"):
        find_image_column(rows, mask_column)
    columns = rows.select_columns([image_column, mask_column, "source"])
    for row in columns:
        path = (row[image_column] or {}).get("path")
        yield Path(path).stem if path else str(row["source"]), row[image_column], row[mask_column]


def _load(pairs: Sequence[Pair], image_size: int, where: str) -> DownstreamSet:
    images = np.empty((len(pairs), image_size, image_size, 3), dtype=np.uint8)
    levels = np.empty((len(pairs), image_size, image_size), dtype=np.uint8)
    wrong: dict[str, str] = {}
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        decoded = pool.map(partial(_decode, image_size=image_size), pairs)
        for row, found in enumerate(tqdm(decoded, total=len(pairs), desc=f"reading {where}", unit="img")):
            if isinstance(found, str):
                wrong[pairs[row][0]] = found
            else:
                images[row], levels[row] = found
    if wrong:
        raise UserError(
            f"{where}: {len(wrong)} cannot be used, first {next(iter(wrong.values()))}. Correct them, or leave them "
            f"out by --exclude {' '.join(wrong)}"
        )
    _tell_of_greys(levels, where)
    masks = (levels > MASK_THRESHOLD).astype(np.uint8)
    channels_first = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return DownstreamSet([name for name, *_ in pairs], channels_first, torch.from_numpy(masks))


def _tell_of_greys(levels: np.ndarray, where: str) -> None:
    """Warn where masks are not binary: greys, or numbers of classes in more pixels than are white."""
    numbered = ((levels > 0).any((1, 2)) & ~(levels > MASK_THRESHOLD).any((1, 2))).sum()
    if numbered:
        logger.warning(
            "%s: %d masks are not black but have no pixel above %d, and count as empty: objects are to be white.",
            where,
            numbered,
            MASK_THRESHOLD,
        )
    grey = np.mean((levels >= GREY[0]) & (levels <= GREY[1]))
    numbers, white = np.mean((levels > 0) & (levels < GREY[0])), np.mean(levels > MASK_THRESHOLD)
    if grey > MOST_GREY or numbers > white:
        logger.warning(
            "%s: %.0f %% of the masks' pixels are neither black (0) nor white (255); those above %d count as object. "
            "If the masks are of several classes, make them black and white first: white is what is to be found.",
            where,
            100 * (grey + numbers),
            MASK_THRESHOLD,
        )


def _decode(pair: Pair, image_size: int) -> tuple[np.ndarray, np.ndarray] | str:
    """The image and its mask's levels, or why there are none."""
    name, *values = pair
    opened = []
    for value, what, canvas in zip(values, ("image", "mask"), ("white", "black")):
        try:
            opened.append(open_image(value, canvas=canvas))
        except ImageRejected as rejected:
            return f"the {what} of '{name}' ({rejected})"
    image, mask = opened
    # A turned or cropped mask would be squashed onto the image in silence.
    if abs(image.width / image.height - mask.width / mask.height) > 0.05 * image.width / image.height:
        return f"'{name}', whose image is {image.width}x{image.height} but its mask {mask.width}x{mask.height}"
    size = (image_size, image_size)
    levels = np.asarray(mask.convert("L").resize(size, Image.Resampling.NEAREST))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC)), levels
