"""
The tiles of stored mosaics: a square grid, row by row.

Shapes: `N` mosaics, `M` tiles of each, `S` side of a tile, `B` tiles that are taken.
"""

from __future__ import annotations

import math

import torch

from optidel_hf.errors import UserError


def grid_side(tiles: int, pixels: int) -> int:
    """
    Tiles along a side of a mosaic that has `tiles` of them and is `pixels` wide.

    Raises:
        `UserError`: if it is no square grid, or its tiles have no whole number of pixels.
    """
    side = math.isqrt(max(tiles, 0))
    if tiles < 1 or side * side != tiles:
        raise UserError(f"tiles_per_mosaic is {tiles}: a mosaic is a square grid, of 1, 4, 9 or 16 tiles.")
    if pixels % side:
        raise UserError(f"An image of {pixels} px has no {side} whole tiles along a side: give another image_size.")
    return side


def take_tiles(images: torch.Tensor, numbers: torch.Tensor, tiles: int) -> torch.Tensor:
    """
    Take tiles by their numbers; with one tile a mosaic these are the images themselves.

    Args:
        images (`torch.Tensor` of shape `(N, 3, side * S, side * S)`): the mosaics.
        numbers (`torch.Tensor` of shape `(B,)`): from 0 to `N * M`, mosaic by mosaic and row by row within each.
        tiles (`int`): tiles `M` of each.

    Returns:
        `torch.Tensor` of shape `(B, 3, S, S)`.
    """
    side = math.isqrt(tiles)
    grid = images.unflatten(3, (side, -1)).unflatten(2, (side, -1))  # (N, 3, side, S, side, S), nothing is copied
    slot = numbers % tiles
    return grid[numbers // tiles, :, slot // side, :, slot % side]
