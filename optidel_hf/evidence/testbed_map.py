"""
The map of where selection pays: one arm minus another over the redundancy and the junk of a testbed.

Each cell is one grid's `results.parquet` on one pool. It says whether the difference lies above zero, below it, or
holds it: the 95 % interval decides, and only where it leaves zero out has the cell a colour. One seed has no interval,
and its cell stays blank. A pool whose gate has not passed is marked "no headroom": there the colour supports no claim.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping
from typing import TypeVar

import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from optidel_hf.drawing import FAINT, PAPER, hide_frame, in_style, new_figure
from optidel_hf.evidence.comparison import VALIDATION, Judged
from optidel_hf.evidence.inference import Interval
from optidel_hf.evidence.wording import count_text, mode_words, seeds_text


PAIRS = (("optidel", "random_images"), ("optidel", "full"))
COLOURS = {"above zero": "#bfe3c6", "holds zero": "#eceef1", "below zero": "#f3c3b5"}
NO_INTERVAL = "no interval"
CELL_SIZE = (1.3, 0.65)
LEFT, HEADING, HEAD, FOOT = 0.9, 5.3, 0.7, 0.5
"""In inches: a cell, the names beside a panel, the least width, the figure's head and legend, a panel's own."""

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
    """Where the interval lies; a single seed has none."""
    if math.isnan(difference.low):
        return NO_INTERVAL
    if not difference.excludes_zero:
        return "holds zero"
    return "above zero" if difference.low > 0 else "below zero"


@in_style
def map_figure(found: Contrasts, level: Collection[Cell] = ()) -> Figure:
    """
    Draw one panel a contrast, two in a row; redundancy across and junk upwards. A cell that was not run stays empty.

    Args:
        found (`dict`): What [`contrasts`] gives.
        level (`Collection`, *optional*): The pools whose gate has not passed.

    Returns:
        `Figure`: Matplotlib's, with one axes a contrast, in which a cell's sides are 1.
    """
    cells = {cell for intervals in found.values() for cell in intervals}
    across, upwards = sorted({r for r, _ in cells}), sorted({q for _, q in cells})
    rows, columns = -(-len(found) // 2), min(2, len(found))
    width, height = max(HEADING / columns, LEFT + len(across) * CELL_SIZE[0]), FOOT + len(upwards) * CELL_SIZE[1]
    title = "Where selection pays, on synthetic pools: points of mIoU, 95 % interval"
    figure = new_figure(columns * width, HEAD + rows * height, title)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for axes, (title, intervals) in zip(panels, found.items()):
        _draw_panel(axes, intervals, across, upwards, level)
        axes.set_title(title)
    for unused in panels[len(found) :]:
        unused.remove()
    legend = [Patch(color=colour, label=meaning) for meaning, colour in COLOURS.items()]
    figure.legend(handles=legend, loc="outside lower left", ncols=len(legend))
    return figure


def _draw_panel(
    axes: Axes,
    intervals: Mapping[Cell, Interval],
    across: list[int],
    upwards: list[float],
    level: Collection[Cell],
) -> None:
    """One contrast: its cells and its axes."""
    hide_frame(axes, "left", "bottom")
    axes.grid(visible=False)
    axes.set(xlim=(-0.5, len(across) - 0.5), ylim=(-0.5, len(upwards) - 0.5))
    names = ["no near copies" if redundancy == 1 else f"{redundancy} near copies" for redundancy in across]
    axes.set_xticks(range(len(across)), names)
    axes.set_yticks(range(len(upwards)), [f"{100 * junk:g} % junk" for junk in upwards])
    for (redundancy, junk), difference in intervals.items():
        place = across.index(redundancy), upwards.index(junk)
        _draw_cell(axes, *place, difference, (redundancy, junk) in level)


def _draw_cell(axes: Axes, x: int, y: int, difference: Interval, level: bool) -> None:
    """The colour of the verdict, and in it the difference, its interval and what it rests on."""
    found = verdict(difference)
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=COLOURS.get(found, PAPER), edgecolor=PAPER))
    ends = f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}"
    note = f"{count_text(difference.seeds, 'seed')}, no headroom" if level else seeds_text(difference.seeds)
    axes.text(x, y + 0.22, f"{100 * difference.difference:+.1f}", ha="center", va="center", fontsize=12)
    details = NO_INTERVAL if found == NO_INTERVAL else ends
    axes.text(x, y - 0.18, f"{details}\n{note}", ha="center", va="center", fontsize=7, color=FAINT)
