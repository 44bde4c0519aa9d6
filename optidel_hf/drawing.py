"""Figures as PNG files: text, lines and dots with Pillow, placed in units of `SCALE` pixels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont


INK, GRID, PAPER = "#22262e", "#dfe2e8", "#ffffff"
SCALE = 2
Point = tuple[float, float]


def new_picture(width: float, height: float) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty picture of a size in units, and what draws on it."""
    picture = Image.new("RGB", (round(width * SCALE), round(height * SCALE)), PAPER)
    return picture, ImageDraw.Draw(picture)


def save_picture(picture: Image.Image, path: str | Path) -> None:
    """Write a PNG file, whole or not at all."""
    temporary = Path(path).with_name(f".{Path(path).name}.tmp")
    picture.save(temporary, "PNG", optimize=True)
    os.replace(temporary, path)


def text(draw: ImageDraw.ImageDraw, at: Point, words: str, size: int, anchor: str = "la", colour: str = INK) -> float:
    """Write at a place in units and give the width."""
    font = ImageFont.load_default(size * SCALE)
    draw.text((at[0] * SCALE, at[1] * SCALE), words, colour, font, anchor)
    return draw.textlength(words, font) / SCALE


def line(draw: ImageDraw.ImageDraw, points: Sequence[Point], colour: str, width: float) -> None:
    """Connect points."""
    draw.line([(x * SCALE, y * SCALE) for x, y in points], colour, round(width * SCALE), "curve")


def dot(draw: ImageDraw.ImageDraw, at: Point, colour: str, filled: bool = True) -> None:
    """A disc with a thin edge of paper, or a ring."""
    x, y, r = at[0] * SCALE, at[1] * SCALE, 3.5 * SCALE
    inside, edge = (colour, PAPER) if filled else (PAPER, colour)
    draw.ellipse((x - r, y - r, x + r, y + r), inside, edge, SCALE if filled else round(1.5 * SCALE))
