"""The report's pictures: charts as inline SVG, images as small data URIs.

The charts carry classes and no colours, so that one style sheet gives them their light and their dark dress, and text
that scales with the page. Each is drawn in a box of `WIDTH` units, about the width of a phone.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from optidel_hf.images import open_image


WIDTH = 400
HEIGHT = 236
LEFT, RIGHT, TOP, BOTTOM = 50, 20, 12, 40
COLOURS = 8
"""Line colours in the style sheet (`c0` to `c7`); further lines begin again, dashed."""


@dataclass
class Axes:
    """
    The mapping from data to the chart's box.

    Args:
        x (`tuple[float, float]`): Range of the horizontal axis.
        y (`tuple[float, float]`): Range of the vertical axis.
        left (`float`, *optional*, defaults to `LEFT`): Where the horizontal axis begins.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    left: float = LEFT

    def across(self, value: float) -> float:
        """Horizontal position of a value."""
        return self.left + (value - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - self.left - RIGHT)

    def up(self, value: float) -> float:
        """Vertical position of a value."""
        return HEIGHT - BOTTOM - (value - self.y[0]) / (self.y[1] - self.y[0]) * (HEIGHT - TOP - BOTTOM)

    def path(self, xs: np.ndarray, ys: np.ndarray) -> str:
        """An SVG path through the points."""
        return "M" + "L".join(f"{self.across(x):.1f},{self.up(y):.1f}" for x, y in zip(xs, ys))

    def draw(self, x_label: str, y_label: str, y_format: str = "g") -> str:
        """Grid, ticks and labels."""
        bottom = HEIGHT - BOTTOM
        parts = [f'<path class="axis" d="M{LEFT},{bottom}H{WIDTH - RIGHT}"/>']
        for tick in ticks(*self.y, count=4):
            y = self.up(tick)
            parts.append(f'<path class="grid" d="M{LEFT},{y:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(_text(LEFT - 6, y + 4, format(tick, y_format), "end"))
        for tick in ticks(*self.x, count=5):
            parts.append(_text(self.across(tick), bottom + 16, _short(tick), "middle"))
        parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label, "middle"))
        middle = (TOP + bottom) / 2
        parts.append(f'<g transform="rotate(-90 12 {middle})">{_text(12, middle, y_label, "middle")}</g>')
        return "".join(parts)


def histogram(everything: np.ndarray, chosen: np.ndarray, label: str, bins: int = 40) -> Markup:
    """
    The chosen patches' distribution over that of all patches, each as shares that sum to one.

    The axis spans all but the outermost thousandth on either side; what lies beyond counts in the end bins.

    Args:
        everything (`np.ndarray`): Scores of all patches, shape `(n,)`; NaN is left out.
        chosen (`np.ndarray`): Scores of the chosen, possibly empty.
        label (`str`): What the horizontal axis shows, with its unit.
        bins (`int`, *optional*, defaults to 40): Bars.

    Returns:
        `Markup`: The chart as SVG.
    """
    everything, chosen = everything[np.isfinite(everything)], chosen[np.isfinite(chosen)]
    low, high = _spread(*np.quantile(everything, [0.001, 0.999]))
    edges = np.linspace(low, high, bins + 1)
    shares = [
        np.histogram(np.clip(values, low, high), edges)[0] / max(1, len(values)) for values in (everything, chosen)
    ]
    axes = Axes((low, high), (0.0, 1.05 * max(share.max() for share in shares)))
    drawn = "".join(
        f'<path class="{name}" d="{axes.path(*_steps(edges, share))}Z"/>'
        for name, share in zip(("all", "chosen"), shares)
    )
    return _svg(axes.draw(label, "share of patches", ".0%") + drawn, f"Histogram of {label}")


def lines(series: dict[str, tuple[np.ndarray, np.ndarray]], x_label: str, y_label: str) -> Markup:
    """
    One line a series.

    Args:
        series (`dict[str, tuple[np.ndarray, np.ndarray]]`): Positions and values, by name, in the legend's order.
        x_label (`str`): What the horizontal axis shows.
        y_label (`str`): What the vertical axis shows.

    Returns:
        `Markup`: The chart as SVG, without a legend: line number i has the class [`line_class`]`(i)`.
    """
    xs = np.concatenate([x for x, _ in series.values()])
    ys = np.concatenate([y for _, y in series.values()])
    axes = Axes(_spread(xs.min(), xs.max()), _spread(*_padded(ys.min(), ys.max())))
    drawn = "".join(
        f'<path class="line {line_class(number)}" d="{axes.path(x, y)}"><title>{escape(name)}</title></path>'
        for number, (name, (x, y)) in enumerate(series.items())
    )
    return _svg(axes.draw(x_label, y_label) + drawn, f"{y_label} over {x_label}")


def intervals(rows: Sequence[tuple[str, float, float | None, float | None]], x_label: str) -> Markup:
    """
    Means with their intervals, one row an arm, the name above its interval.

    Args:
        rows (sequence of `(name, mean, low, high)`): What is drawn; without an interval only the mean's dot.
        x_label (`str`): What the horizontal axis shows.

    Returns:
        `Markup`: The chart as SVG.
    """
    values = [value for row in rows for value in row[1:] if value is not None]
    axes, step = Axes(_spread(*_padded(min(values), max(values))), (0.0, 1.0), left=RIGHT), 38
    bottom = TOP + step * len(rows)
    parts = [f'<path class="axis" d="M{RIGHT},{bottom}H{WIDTH - RIGHT}"/>']
    for tick in ticks(*axes.x, count=5):
        parts.append(f'<path class="grid" d="M{axes.across(tick):.1f},{TOP}V{bottom}"/>')
        parts.append(_text(axes.across(tick), bottom + 16, _short(tick), "middle"))
    for number, (name, mean, low, high) in enumerate(rows):
        y = TOP + step * number + 26
        parts.append(_text(RIGHT, y - 10, name, "start", "name"))
        if low is not None and high is not None:
            parts.append(f'<path class="whisker" d="M{axes.across(low):.1f},{y}H{axes.across(high):.1f}"/>')
        parts.append(f'<circle class="mean" cx="{axes.across(mean):.1f}" cy="{y}" r="4.5"/>')
    parts.append(_text(WIDTH / 2, bottom + 34, x_label, "middle"))
    return _svg("".join(parts), x_label, bottom + BOTTOM)


def thumbnail(value: dict[str, Any], side: int) -> str:
    """
    A small JPEG of a stored image.

    Args:
        value (`dict`): The image as `{"bytes", "path"}`.
        side (`int`): The longer side, in pixels.

    Returns:
        `str`: A `data:` URI.
    """
    image = open_image(value)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def line_class(number: int) -> str:
    """The style sheet's classes for line `number` of a chart."""
    return f"c{number % COLOURS}" + (" again" if number >= COLOURS else "")


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round values from `low` to `high`: steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / count
    power = 10.0 ** np.floor(np.log10(raw))
    step = power * min((1, 2, 5, 10), key=lambda factor: abs(factor * power - raw))
    first, last = int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9))
    return [round(number * step, 12) for number in range(first, last + 1)]


def _steps(edges: np.ndarray, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The outline of a histogram, down to the axis at both ends."""
    return np.repeat(edges, 2), np.concatenate([[0.0], np.repeat(heights, 2), [0.0]])


def _spread(low: float, high: float) -> tuple[float, float]:
    """A range of non-zero width, also where all values are equal."""
    return (float(low), float(high)) if high > low else (float(low) - 0.5, float(high) + 0.5)


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = 0.06 * (high - low)
    return low - margin, high + margin


def _short(value: float) -> str:
    return (f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}").replace("-", "−")


def _text(x: float, y: float, content: str, anchor: str, name: str = "tick") -> str:
    return f'<text class="{name}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def _svg(content: str, label: str, height: float = HEIGHT) -> Markup:
    return Markup(f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">{content}</svg>')
