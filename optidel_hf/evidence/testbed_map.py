"""
The map of where selection pays: one arm minus another over the redundancy and the junk of a testbed.

Each cell is one grid's `results.parquet` on one pool. It says whether the difference lies above zero, below it, or
cannot be told from it: the 95 % interval decides, and only where it leaves zero out has the cell a colour. A pool
whose gate has not passed is marked "no headroom": there the colour supports no claim.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from PIL import ImageDraw

from optidel_hf.drawing import SCALE, Point, new_picture, save_picture, text
from optidel_hf.evidence.comparison import VALIDATION, Judged
from optidel_hf.evidence.inference import Interval
from optidel_hf.evidence.wording import count_text, mode_words, seeds_text


PAIRS = (("optidel", "random_images"), ("optidel", "full"))
FAINT = "#6b7078"
COLOURS = {"above zero": "#bfe3c6", "not told from zero": "#eceef1", "below zero": "#f3c3b5"}
CELL_WIDTH, CELL_HEIGHT = 130, 64
LEFT, TOP, RIGHT, BOTTOM, TITLE = 84, 72, 36, 40, 26
HEADING = 530
"""A cell's size, the margins and the least width, in units of `SCALE` pixels; `TITLE` is the height of a panel's."""

Cell = tuple[int, float]
"""Redundancy and junk of a pool."""
Contrasts = dict[str, dict[Cell, Interval]]
Pool = TypeVar("Pool", bound=Hashable)


def contrasts(results: Mapping[Pool, pa.Table]) -> dict[str, dict[Pool, Interval]]:
    """
    `optidel` minus random images, and minus the full pool, on the validation part of every pool.

    Args:
        results (`Mapping`): From a pool, for the map its redundancy and junk, to the rows of its `results.parquet`.

    Returns:
        `dict`: From a title, one a contrast and mode, to the intervals; a pool without both arms is left out.
    """
    judged = {pool: Judged.of(table, VALIDATION) for pool, table in results.items()}
    found: dict[str, dict[Pool, Interval]] = {}
    for a, b in PAIRS:
        for pool, one in judged.items():
            for mode in one.modes:
                if comparison := one.compare(a, b, mode):
                    title = f"{a} minus {b}, {mode_words(mode)}"
                    found.setdefault(title, {})[pool] = comparison.interval
    return found


def verdict(difference: Interval) -> str:
    """Where the interval lies; one that holds zero, or is none, is not told from it."""
    if not difference.excludes_zero:
        return "not told from zero"
    return "above zero" if difference.low > 0 else "below zero"


def draw_map(path: str | Path, found: Contrasts, level: Collection[Cell] = ()) -> None:
    """
    Draw one panel a contrast, two in a row; redundancy across and junk upwards. A cell that was not run stays empty.

    Args:
        path (`str` or `Path`): PNG file to write.
        found (`dict`): What [`contrasts`] gives.
        level (`Collection`, *optional*): The pools whose gate has not passed.
    """
    cells = {cell for intervals in found.values() for cell in intervals}
    across, upwards = sorted({r for r, _ in cells}), sorted({q for _, q in cells}, reverse=True)
    width, height = panel_size(len(across), len(upwards))
    rows = -(-len(found) // 2)
    picture, draw = new_picture(max(HEADING, min(2, len(found)) * width), TOP + rows * height)
    text(draw, (14, 12), "Where selection pays, on synthetic pools: points of mIoU, 95 % interval", 16)
    _legend(draw)
    for number, (title, intervals) in enumerate(found.items()):
        corner = number % 2 * width, TOP + number // 2 * height
        _panel(draw, corner, title, intervals, across, upwards, level)
    save_picture(picture, path)


def panel_size(columns: int, rows: int) -> Point:
    """Width and height of a panel with its margins; its title needs the width of two columns."""
    return LEFT + max(2, columns) * CELL_WIDTH + RIGHT, TITLE + rows * CELL_HEIGHT + BOTTOM


def _legend(draw: ImageDraw.ImageDraw) -> None:
    x, y = 14.0, 40.0
    for meaning, colour in COLOURS.items():
        _box(draw, (x, y), (14, 12), colour)
        x += 20 + text(draw, (x + 20, y - 1), meaning, 11) + 14


def _panel(
    draw: ImageDraw.ImageDraw,
    corner: Point,
    title: str,
    intervals: Mapping[Cell, Interval],
    across: list[int],
    upwards: list[float],
    level: Collection[Cell],
) -> None:
    """One contrast: its cells and its axes."""
    left, top = corner[0] + LEFT, corner[1] + TITLE
    text(draw, (left, corner[1] + 4), title, 13)
    for row, junk in enumerate(upwards):
        y = top + row * CELL_HEIGHT
        text(draw, (left - 8, y + CELL_HEIGHT / 2), f"{100 * junk:g} % junk", 11, "rm")
        for column, redundancy in enumerate(across):
            if (redundancy, junk) in intervals:
                corner = left + column * CELL_WIDTH, y
                _cell(draw, corner, intervals[redundancy, junk], (redundancy, junk) in level)
    foot = top + len(upwards) * CELL_HEIGHT + 6
    for column, redundancy in enumerate(across):
        name = "no near copies" if redundancy == 1 else f"{redundancy} near copies"
        text(draw, (left + (column + 0.5) * CELL_WIDTH, foot), name, 11, "ma")


def _cell(draw: ImageDraw.ImageDraw, corner: Point, difference: Interval, level: bool) -> None:
    _box(draw, corner, (CELL_WIDTH - 2, CELL_HEIGHT - 2), COLOURS[verdict(difference)])
    middle, top = corner[0] + CELL_WIDTH / 2 - 1, corner[1]
    # With a hyphen: Pillow's own font has no true minus.
    text(draw, (middle, top + 17), f"{100 * difference.difference:+.1f}", 17, "mm")
    ends = f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}"
    text(draw, (middle, top + 36), "no interval" if math.isnan(difference.low) else ends, 11, "mm", FAINT)
    note = f"{count_text(difference.seeds, 'seed')}, no headroom" if level else seeds_text(difference.seeds)
    text(draw, (middle, top + 51), note, 10, "mm", FAINT)


def _box(draw: ImageDraw.ImageDraw, corner: Point, size: Point, colour: str) -> None:
    x, y, width, height = (value * SCALE for value in (*corner, *size))
    draw.rectangle((x, y, x + width, y + height), colour)
