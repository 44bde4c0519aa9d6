"""
The map of where selection pays: one arm minus another over the redundancy and the junk of a testbed.

Each cell says whether the difference lies above zero, below it, or cannot be told from it: its 95 % interval decides,
and only where it leaves zero out has the cell a colour.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from PIL import Image, ImageDraw, ImageFont


INK, FAINT, PAPER = "#22262e", "#6b7078", "#ffffff"
ABOVE, LEVEL, BELOW = "#bfe3c6", "#eceef1", "#f3c3b5"
SCALE = 2
CELL_WIDTH, CELL_HEIGHT = 130, 64
LEFT, TOP, GAP, BOTTOM = 84, 88, 36, 44
"""In units of `SCALE` pixels."""

Cell = tuple[int, float]  # redundancy, junk


class Difference(Protocol):
    """One arm's mIoU minus another's, as fractions, with its 95 % interval; NaN ends where there is none."""

    @property
    def difference(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def verdict(difference: Difference) -> str:
    """`above`, `below`, or `level` where the interval holds zero or there is none."""
    return "above" if difference.low > 0 else "below" if difference.high < 0 else "level"


def draw_map(path: str | Path, contrasts: Mapping[str, Mapping[Cell, Difference]]) -> None:
    """
    Draw one panel a contrast, redundancy across and junk upwards; a cell that was not run stays empty.

    Args:
        path (`str` or `Path`): PNG file to write.
        contrasts (`Mapping`): From a title ("optidel minus random_images, fine-tuned") to the difference in each cell.
    """
    cells = sorted({cell for found in contrasts.values() for cell in found})
    across, upwards = sorted({r for r, _ in cells}), sorted({q for _, q in cells}, reverse=True)
    width, height = LEFT + len(across) * CELL_WIDTH, TOP + len(upwards) * CELL_HEIGHT + BOTTOM
    size = len(contrasts) * width + GAP, height
    picture = Image.new("RGB", (size[0] * SCALE, size[1] * SCALE), PAPER)
    draw = ImageDraw.Draw(picture)
    _text(draw, (14, 14), "Where selection pays: points of mIoU, 95 % interval", 16)
    _legend(draw, (14, 42))
    for number, (title, found) in enumerate(contrasts.items()):
        _panel(draw, number * width, title, found, across, upwards)
    temporary = Path(path).with_name(f".{Path(path).name}.tmp")
    picture.save(temporary, "PNG", optimize=True)
    temporary.replace(path)


def _legend(draw: ImageDraw.ImageDraw, at: tuple[float, float]) -> None:
    x, y = at
    for colour, meaning in ((ABOVE, "above zero"), (LEVEL, "not told from zero"), (BELOW, "below zero")):
        _box(draw, (x, y, 14, 12), colour)
        x += 20 + _text(draw, (x + 20, y - 1), meaning, 11) + 14


def _panel(
    draw: ImageDraw.ImageDraw,
    left: float,
    title: str,
    found: Mapping[Cell, Difference],
    across: list[int],
    upwards: list[float],
) -> None:
    """One contrast: its grid of cells and its axes."""
    _text(draw, (left + LEFT, TOP - 20), title, 13)
    for row, junk in enumerate(upwards):
        y = TOP + row * CELL_HEIGHT
        _text(draw, (left + LEFT - 8, y + CELL_HEIGHT / 2), f"{100 * junk:g} % junk", 11, "rm")
        for column, redundancy in enumerate(across):
            if (redundancy, junk) in found:
                _cell(draw, (left + LEFT + column * CELL_WIDTH, y), found[redundancy, junk])
    foot = TOP + len(upwards) * CELL_HEIGHT
    for column, redundancy in enumerate(across):
        name = "no near copies" if redundancy == 1 else f"{redundancy} near copies"
        _text(draw, (left + LEFT + (column + 0.5) * CELL_WIDTH, foot + 6), name, 11, "ma")


def _cell(draw: ImageDraw.ImageDraw, corner: tuple[float, float], difference: Difference) -> None:
    colour = {"above": ABOVE, "level": LEVEL, "below": BELOW}[verdict(difference)]
    _box(draw, (*corner, CELL_WIDTH - 2, CELL_HEIGHT - 2), colour)
    middle = corner[0] + CELL_WIDTH / 2 - 1
    _text(draw, (middle, corner[1] + 24), f"{100 * difference.difference:+.1f}", 17, "mm")
    known = difference.low == difference.low
    interval = f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}" if known else "one seed"
    _text(draw, (middle, corner[1] + 46), interval, 11, "mm", FAINT)


def _box(draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], colour: str) -> None:
    x, y, width, height = (value * SCALE for value in box)
    draw.rectangle((x, y, x + width, y + height), colour)


def _text(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, anchor: str = "la", ink: str = INK
) -> float:
    """Write at a place in units and give the width."""
    font = ImageFont.load_default(size * SCALE)
    draw.text((at[0] * SCALE, at[1] * SCALE), text, ink, font, anchor)
    return draw.textlength(text, font) / SCALE
