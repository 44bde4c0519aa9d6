"""The report's pictures: charts as inline SVG, images as small data URIs.

The charts carry classes and no colours, so that one style sheet gives them their light and their dark dress, and text
that scales with the page. Each is drawn in a box of `WIDTH` units, about the width of a phone.
"""

from __future__ import annotations

import base64
import io
import math
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
ABREAST = 28.0
"""Units that the series of a chart take side by side, at most."""
QUALITIES = (80, 60, 40, 20)
"""Of a thumbnail's JPEG: the first that stays within its bytes."""

Point = tuple[float, float, float | None, float | None]
"""Of a series: where it lies, its value, and the ends of the value's interval, if it has one."""


@dataclass
class Axes:
    """
    The mapping from data to the chart's box.

    Args:
        x (`tuple[float, float]`): Range of the horizontal axis.
        y (`tuple[float, float]`): Range of the vertical axis.
        left (`float`, *optional*, defaults to `LEFT`): Where the horizontal axis begins.
        logarithmic (`str`, *optional*, defaults to `""`): Which axes are: `"x"`, `"y"` or `"xy"`.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    left: float = LEFT
    logarithmic: str = ""

    def across(self, value: float) -> float:
        """Horizontal position of a value."""
        return self.left + _share(value, self.x, "x" in self.logarithmic) * (WIDTH - self.left - RIGHT)

    def up(self, value: float) -> float:
        """Vertical position of a value."""
        return HEIGHT - BOTTOM - _share(value, self.y, "y" in self.logarithmic) * (HEIGHT - TOP - BOTTOM)

    def path(self, xs: np.ndarray, ys: np.ndarray) -> str:
        """An SVG path through the points."""
        return "M" + "L".join(f"{self.across(x):.1f},{self.up(y):.1f}" for x, y in zip(xs, ys))

    def draw(self, x_label: str, y_label: str, y_format: str = "g") -> str:
        """Grid, ticks and labels."""
        bottom = HEIGHT - BOTTOM
        parts = [f'<path class="axis" d="M{LEFT},{bottom}H{WIDTH - RIGHT}"/>']
        for tick in decades(*self.y) if "y" in self.logarithmic else ticks(*self.y, count=4):
            y = self.up(tick)
            parts.append(f'<path class="grid" d="M{LEFT},{y:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(_text(LEFT - 6, y + 4, format(tick, y_format), "end"))
        for tick in decades(*self.x) if "x" in self.logarithmic else ticks(*self.x, count=5):
            parts.append(_text(self.across(tick), bottom + 16, _short(tick), "middle"))
        parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label, "middle"))
        middle = (TOP + bottom) / 2
        parts.append(f'<g transform="rotate(-90 12 {middle})">{_text(12, middle, y_label, "middle")}</g>')
        return "".join(parts)


def binned_shares(everything: np.ndarray, chosen: np.ndarray, bins: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """
    The edges of bins `(bins + 1,)` over all but the outermost thousandth of everything on either side, and the shares
    `(2, bins)` of everything and of the chosen in them; what lies beyond counts in the end bins, and NaN in none.
    """
    finite = [values[np.isfinite(values)] for values in (everything, chosen)]
    low, high = _spread(*np.quantile(finite[0], [0.001, 0.999]))
    edges = np.linspace(low, high, bins + 1)
    counts = [np.histogram(np.clip(values, low, high), edges)[0] / max(1, len(values)) for values in finite]
    return edges, np.stack(counts)


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
    edges, shares = binned_shares(everything, chosen, bins)
    axes = Axes((edges[0], edges[-1]), (0.0, 1.05 * shares.max()))
    drawn = "".join(
        f'<path class="{name}" d="{axes.path(*_steps(edges, share))}Z"/>'
        for name, share in zip(("all", "chosen"), shares)
    )
    return _svg(axes.draw(label, "share of patches", ".0%") + drawn, f"Histogram of {label}")


def lines(
    series: dict[str, tuple[np.ndarray, np.ndarray]],
    x_label: str,
    y_label: str,
    logarithmic: str = "",
    classes: Sequence[str] | None = None,
) -> Markup:
    """
    One line a series.

    Args:
        series (`dict[str, tuple[np.ndarray, np.ndarray]]`): Positions and values, by name, in the legend's order.
        x_label (`str`): What the horizontal axis shows.
        y_label (`str`): What the vertical axis shows.
        logarithmic (`str`, *optional*, defaults to `""`): Which axes are: `"x"`, `"y"` or `"xy"`.
        classes (`Sequence[str]`, *optional*): The lines' classes; line number i has [`line_class`]`(i)` by default.

    Returns:
        `Markup`: The chart as SVG, without a legend.
    """
    xs = np.concatenate([x for x, _ in series.values()])
    ys = np.concatenate([y for _, y in series.values()])
    heights = (ys.min(), ys.max()) if "y" in logarithmic else _spread(*_padded(ys.min(), ys.max()))
    axes = Axes(_spread(xs.min(), xs.max()), heights, logarithmic=logarithmic)
    classes = classes or [line_class(number) for number in range(len(series))]
    drawn = "".join(
        f'<path class="line {css}" d="{axes.path(x, y)}"><title>{escape(name)}</title></path>'
        for css, (name, (x, y)) in zip(classes, series.items())
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
    parts = [_ruler(axes, bottom)]
    for number, (name, mean, low, high) in enumerate(rows):
        y = TOP + step * number + 26
        parts.append(_text(RIGHT, y - 10, name, "start", "name"))
        if low is not None and high is not None:
            parts.append(f'<path class="whisker" d="M{axes.across(low):.1f},{y}H{axes.across(high):.1f}"/>')
        parts.append(f'<circle class="mean" cx="{axes.across(mean):.1f}" cy="{y}" r="4.5"/>')
    parts.append(_text(WIDTH / 2, bottom + 34, x_label, "middle"))
    return _svg("".join(parts), x_label, bottom + BOTTOM)


def points(
    series: dict[str, list[Point]],
    levels: dict[str, float],
    classes: dict[str, str],
    x_label: str,
    y_label: str,
    joined: bool = True,
) -> Markup:
    """
    Values with their intervals over a logarithmic axis.

    Args:
        series (`dict[str, list[Point]]`): By name; every position is above zero.
        levels (`dict[str, float]`): Values that have no position, by name: dashed lines from side to side.
        classes (`dict[str, str]`): Each series' class, by name.
        x_label (`str`): What the horizontal axis shows.
        y_label (`str`): What the vertical axis shows.
        joined (`bool`, *optional*, defaults to `True`): Whether a series is a line, as where positions are the same
            for all; series are then drawn side by side, a few units apart, so that none hides another.

    Returns:
        `Markup`: The chart as SVG, each series a group whose `data-arm` is its name.
    """
    xs = [x for row in series.values() for x, *_ in row]
    ys = [y for row in series.values() for point in row for y in point[1:] if y is not None]
    ys += levels.values()
    wide = (min(xs) / 1.25, max(xs) * 1.25)
    axes = Axes(wide, _spread(*_padded(min(ys), max(ys))), logarithmic="x")
    parts = [axes.draw(x_label, y_label)]
    for number, (name, y) in enumerate(sorted(levels.items(), key=lambda level: level[1])):
        at = axes.up(y)
        line = f'<path class="level" d="M{LEFT},{at:.1f}H{WIDTH - RIGHT}"/>'
        x, anchor = (LEFT + 4, "start") if number % 2 == 0 else (WIDTH - RIGHT - 4, "end")  # neighbours may be close
        parts.append(_group(name, line + _text(x, at - 4, name, anchor)))
    apart = min(4.0, ABREAST / len(series)) if joined else 0.0
    for number, (name, row) in enumerate(series.items()):
        aside = apart * (number - (len(series) - 1) / 2)
        row = sorted(row, key=lambda point: point[0])
        line = _series(axes, row, aside, classes[name]) if joined else ""
        parts.append(_group(name, line + _dots(axes, row, aside, classes[name])))
    return _svg("".join(parts), f"{y_label} over {x_label}")


def strips(rows: Sequence[tuple[str, Sequence[float]]], x_label: str) -> Markup:
    """
    Distributions as strips, one a row: from the 5th to the 95th percentile, thick between the quartiles, the median.

    Args:
        rows (sequence of `(name, quantiles)`): The five percentiles 5, 25, 50, 75 and 95.
        x_label (`str`): What the horizontal axis shows.

    Returns:
        `Markup`: The chart as SVG.
    """
    values = [value for _, quantiles in rows for value in quantiles]
    axes, step = Axes(_spread(*_padded(min(values), max(values))), (0.0, 1.0), left=RIGHT), 34
    bottom = TOP + step * len(rows)
    parts = [_ruler(axes, bottom)]
    for number, (name, quantiles) in enumerate(rows):
        low, first, middle, third, high = (f"{axes.across(value):.1f}" for value in quantiles)
        y = TOP + step * number + 26
        parts.append(_text(RIGHT, y - 10, name, "start", "name"))
        parts.append(f'<path class="span" d="M{low},{y}H{high}"/><path class="whisker" d="M{first},{y}H{third}"/>')
        parts.append(f'<circle class="mean" cx="{middle}" cy="{y}" r="4"/>')
    parts.append(_text(WIDTH / 2, bottom + 34, x_label, "middle"))
    return _svg("".join(parts), x_label, bottom + BOTTOM)


def thumbnail(value: dict[str, Any], side: int, most: int = 12_000) -> str:
    """
    A small JPEG of a stored image, as coarse as it takes to stay within its bytes.

    Args:
        value (`dict`): The image as `{"bytes", "path"}`.
        side (`int`): The longer side, in pixels.
        most (`int`, *optional*, defaults to 12,000): Bytes of the file, at most; base64 makes a third more of them.

    Returns:
        `str`: A `data:` URI.
    """
    image = open_image(value)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    while True:
        for quality in QUALITIES:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=quality)
            if buffer.tell() <= most:
                return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
        image.thumbnail((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)


def figure(value: float | None) -> str:
    """A figure of any size as text: whole numbers and large ones without decimals."""
    return number(value, 0 if value is not None and (value == int(value) or abs(value) >= 100) else 3)


def number(value: float | None, digits: int = 3) -> str:
    """A figure as text, with a true minus sign; a dash where there is none."""
    return "–" if value is None else f"{value:,.{digits}f}".replace("-", "−")


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


def decades(low: float, high: float) -> list[float]:
    """Values of 1, 2 and 5 times a power of ten from `low` to `high`; the powers alone over three of them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if math.log10(high / low) < 3 else (1,)
    values = [round(factor * 10.0**power, 12) for power in range(first, last + 1) for factor in factors]
    return [value for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]


def _share(value: float, ends: tuple[float, float], logarithmic: bool) -> float:
    """How far along an axis a value lies, 0 at its start and 1 at its end."""
    if logarithmic:
        return math.log(value / ends[0]) / math.log(ends[1] / ends[0])
    return (value - ends[0]) / (ends[1] - ends[0])


def _series(axes: Axes, row: list[Point], aside: float, css: str) -> str:
    """A series' line with its whiskers."""
    places = "L".join(f"{axes.across(x) + aside:.1f},{axes.up(y):.1f}" for x, y, *_ in row)
    parts = [f'<path class="line {css}" d="M{places}"/>']
    for x, _, low, high in row:
        if low is not None and high is not None:
            across = axes.across(x) + aside
            parts.append(f'<path class="line {css}" d="M{across:.1f},{axes.up(low):.1f}V{axes.up(high):.1f}"/>')
    return "".join(parts)


def _dots(axes: Axes, row: list[Point], aside: float, css: str) -> str:
    return "".join(
        f'<circle class="{css}" cx="{axes.across(x) + aside:.1f}" cy="{axes.up(y):.1f}" r="3.5"/>' for x, y, *_ in row
    )


def _group(name: str, content: str) -> str:
    return f'<g data-arm="{escape(name)}"><title>{escape(name)}</title>{content}</g>'


def _ruler(axes: Axes, bottom: float) -> str:
    """The horizontal axis under a chart of rows, with its grid."""
    parts = [f'<path class="axis" d="M{RIGHT},{bottom}H{WIDTH - RIGHT}"/>']
    for tick in ticks(*axes.x, count=5):
        parts.append(f'<path class="grid" d="M{axes.across(tick):.1f},{TOP}V{bottom}"/>')
        parts.append(_text(axes.across(tick), bottom + 16, _short(tick), "middle"))
    return "".join(parts)


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
