"""Mosaics: M tiles cut from their source images make one new image; every tile keeps its lineage."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import PIL
from PIL import Image

from optidel_hf.errors import UserError
from optidel_hf.images import cut_square


RENDERER = "grid-1"  # changes when the same sources and crops would give other pixels


def grid_side(tiles: int) -> int:
    """
    Tiles along a side of a mosaic of `tiles`.

    Raises:
        `UserError`: if `tiles` is no square number.
    """
    side = math.isqrt(max(tiles, 0))
    if side * side != tiles or tiles < 1:
        raise UserError(f"tiles_per_mosaic is {tiles}: a mosaic is a square grid, of 1, 4, 9 or 16 tiles.")
    return side


def render_mosaic(sources: Sequence[Image.Image], crops: Sequence[tuple[int, int, int]], size: int) -> Image.Image:
    """
    Tile M crops, row by row, into one image.

    Args:
        sources (`Sequence[PIL.Image.Image]`): the RGB source image of each tile.
        crops (`Sequence[tuple[int, int, int]]`): x, y, side of each tile, in pixels of its source.
        size (`int`): side of the mosaic in pixels, a multiple of the grid's side.

    Returns:
        `PIL.Image.Image` of `size` x `size` pixels.
    """
    side = grid_side(len(crops))
    tile = size // side
    mosaic = Image.new("RGB", (size, size))
    for slot, (source, crop) in enumerate(zip(sources, crops)):
        mosaic.paste(cut_square(source, crop, tile), (slot % side * tile, slot // side * tile))
    return mosaic


def pixels_sha256(image: Image.Image) -> str:
    """Hash of the decoded RGB pixels: equal for equal pictures, whatever the encoder."""
    return hashlib.sha256(np.asarray(image.convert("RGB")).tobytes()).hexdigest()


def renderer_versions() -> dict[str, str]:
    """What the bytes of a mosaic depend on beside its sources."""
    return {"renderer": RENDERER, "pillow": PIL.__version__}
