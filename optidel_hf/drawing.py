"""Figures in one style, by Matplotlib without pyplot and so without a display."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from optidel_hf.files import written_whole


INK, FAINT, GRID, PAPER = "#22262e", "#6b7078", "#dfe2e8", "#ffffff"
DPI = 160
STYLE = {
    "font.size": 8,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.linewidth": 0.6,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1,
    "lines.markersize": 5.5,
    "lines.markeredgewidth": 1,
    "legend.frameon": False,
}

in_style = matplotlib.rc_context(STYLE)
"""Decorates what draws a figure."""


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure of a size in inches, under its title; what is put into it is laid out without overlaps."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor=PAPER)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def hide_frame(axes: Axes, *sides: str) -> None:
    """Remove sides of a panel's frame, and the marks of their ticks."""
    for side in sides:
        axes.spines[side].set_visible(False)
        axes.tick_params(axis="x" if side in ("bottom", "top") else "y", length=0)


def encode_figure(figure: Figure) -> bytes:
    """A figure as PNG."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None}, pil_kwargs={"optimize": True})
    return drawn.getvalue()


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a PNG file, whole or not at all."""
    with written_whole(Path(path)) as file:
        file.write(encode_figure(figure))
