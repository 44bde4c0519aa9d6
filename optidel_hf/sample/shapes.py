"""Shapes with a height, and the canvas that they are painted on back to front.

Every object is a window of the canvas with a *height* field, positive inside: star-shaped objects have the height
`1 - (rho / r(theta))^2` (ellipses, blobs whose radius is a random Fourier series, polygons whose radius is the polar
equation of their sides), tubes the height `1 - (distance / half width)^2` around a quadratic Bezier curve. The height
gives the mask (its sign), the soft edge, and by its gradient the shading under the scene's light. The label map holds
for each pixel the object on top, so the masks of one scene are disjoint and hold only what is visible.

Shapes: `S` side of the canvas in pixels, `h`, `w` sides of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image


Array = np.ndarray
Window = tuple[slice, slice]
_ANGLES = np.linspace(0, 2 * np.pi, 257, dtype=np.float32)


@dataclass
class Shape:
    """An object's window and height field `(h, w)` float32: positive inside, 1 on the crest; `size`: half width."""

    window: Window
    height: Array
    size: float


class Canvas:
    """The scene while it is painted: `rgb` `(S, S, 3)` float32 in [0, 1], `labels` `(S, S)` uint8, 0 for background.

    Args:
        rng (`numpy.random.Generator`): the only source of randomness.
        side (`int`): side of the scene in pixels.
    """

    def __init__(self, rng: np.random.Generator, side: int) -> None:
        self.rng = rng
        self.side = side
        self.rgb = np.zeros((side, side, 3), dtype=np.float32)
        self.labels = np.zeros((side, side), dtype=np.uint8)
        angle = rng.uniform(0, 2 * np.pi)
        self.light = np.array([np.cos(angle), np.sin(angle)]) * rng.uniform(0.4, 1.0)

    def paint(self, shape: Shape, colour: Array, opacity: float = 1.0, edge: float = 1.5, label: bool = True) -> None:
        """Blend `colour` (`(h, w, 3)` or `(3,)`) over the window, `edge` pixels soft, and claim what is inside."""
        # A height of the form 1 - t^2 falls at the rim by 2 / size a pixel: this is the distance to the rim in pixels.
        cover = np.clip(shape.height * shape.size / (2 * edge) + 0.5, 0, 1)
        under = self.rgb[shape.window]
        under += (cover * opacity)[..., None] * (colour - under)
        if label and self.labels.max() < 255:
            self.labels[shape.window][shape.height > 0] = self.labels.max() + 1

    def shading(self, shape: Shape, relief: float) -> Array:
        """Lambert's factor `(h, w, 1)` about 1 of a surface with the shape's height times `relief` times its size."""
        rows, columns = np.gradient(np.sqrt(np.clip(shape.height, 0, None) + 0.02) * shape.size * relief)
        slope = rows * self.light[1] + columns * self.light[0]
        return ((1.15 - slope) / np.sqrt(1 + rows**2 + columns**2)).clip(0.25, 1.7)[..., None].astype(np.float32)


@lru_cache(maxsize=4)
def grid(side: int) -> tuple[Array, Array]:
    """Rows and columns of every pixel, each `(S, S)` float32."""
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float32)
    return rows, columns


def _window(side: int, low: Array, high: Array) -> Window:
    """The part of the canvas between two (x, y) corners, at least 2 pixels wide."""
    x0, y0 = np.clip(np.floor(low), 0, side - 2).astype(int)
    x1, y1 = np.clip(np.ceil(high), [x0 + 2, y0 + 2], side).astype(int)
    return slice(y0, y1), slice(x0, x1)


def noise(rng: np.random.Generator, side: int, cells: int, octaves: int = 3) -> Array:
    """Fractal value noise `(S, S)` float32, about in [-1, 1]: grids of `cells`, 2 `cells`, ..., enlarged, summed."""
    total = np.zeros((side, side), dtype=np.float32)
    for octave in range(octaves):
        grid = rng.uniform(-1, 1, (min(cells << octave, side),) * 2).astype(np.float32)
        total += np.asarray(Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC)) * 0.55**octave
    return total


def radius(rng: np.random.Generator, kind: str) -> Array:
    """The radius `(257,)` at the angles 0 to 2 pi, about 1, of an "ellipse", a "blob" or a "polygon"."""
    if kind == "blob":
        order = np.arange(2, 8)[:, None]
        waves = rng.normal(size=(6, 1)) * np.cos(order * _ANGLES + rng.uniform(0, 2 * np.pi, (6, 1))) / order**1.3
        return np.clip(1 + rng.uniform(0.1, 0.6) * waves.sum(0), 0.35, 2)
    if kind == "polygon":
        count = rng.integers(3, 9)
        corners = (np.arange(count) + rng.uniform(0.05, 0.55, count)) * 2 * np.pi / count
        lengths = rng.uniform(0.75, 1.3, count)
        after = np.searchsorted(corners, _ANGLES) % count
        before = (after - 1) % count
        to_after, from_before = (corners[after] - _ANGLES) % (2 * np.pi), (_ANGLES - corners[before]) % (2 * np.pi)
        # A straight side has 1/r linear in sine and cosine of the angle between its corners.
        inverse = np.sin(to_after) / lengths[before] + np.sin(from_before) / lengths[after]
        return np.clip(np.sin(to_after + from_before) / inverse, 0.2, 2)
    return np.ones_like(_ANGLES)


def star(canvas: Canvas, kind: str, size: float, centre: Array | None = None) -> Shape:
    """A star-shaped object of mean radius `size` in pixels, stretched and turned at random, anywhere on the canvas."""
    rng = canvas.rng
    centre = rng.uniform(-0.02, 1.02, 2) * canvas.side if centre is None else centre
    turn, stretch = rng.uniform(0, 2 * np.pi), np.exp(rng.uniform(-0.45, 0.45))
    reach = size * 2.1 * max(stretch, 1 / stretch)
    window = _window(canvas.side, centre - reach, centre + reach)
    rows, columns = (axis[window] for axis in grid(canvas.side))
    x, y = columns - np.float32(centre[0]), rows - np.float32(centre[1])
    along = (x * np.cos(turn) + y * np.sin(turn)) * (stretch / size)
    across = (y * np.cos(turn) - x * np.sin(turn)) / (stretch * size)
    place = (np.arctan2(across, along) % (2 * np.pi)) * (256 / (2 * np.pi))
    rim = radius(rng, kind).astype(np.float32)[(place + 0.5).astype(np.int32)]
    return Shape(window, 1 - (along**2 + across**2) / rim**2, size)


def tube(canvas: Canvas, half_width: float, length: float) -> Shape:
    """A curved band: the pixels within `half_width` of a quadratic Bezier curve about `length` pixels long."""
    rng = canvas.rng
    centre, turn = rng.uniform(0.05, 0.95, 2) * canvas.side, rng.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(turn), np.sin(turn)])
    middle = centre + direction[::-1] * [1, -1] * rng.uniform(-0.6, 0.6) * length
    ends = centre - direction * length / 2, centre + direction * length / 2
    t = np.linspace(0, 1, 16)[:, None]
    curve = ((1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * middle + t**2 * ends[1]).astype(np.float32)
    width = half_width * rng.uniform(0.6, 1.0, 2) @ np.stack([1 - t[:, 0], t[:, 0]])
    window = _window(canvas.side, curve.min(0) - half_width - 2, curve.max(0) + half_width + 2)
    rows, columns = (axis[window] for axis in grid(canvas.side))
    height = np.full(rows.shape, -np.inf, dtype=np.float32)
    for start, stop, wide in zip(curve[:-1], curve[1:], width.astype(np.float32)):
        step = (stop - start) / max(float(np.linalg.norm(stop - start)), 1e-3)
        x, y = columns - start[0], rows - start[1]
        beyond = (x * step[0] + y * step[1]).clip(0, float(np.linalg.norm(stop - start)))
        np.maximum(height, 1 - ((x - beyond * step[0]) ** 2 + (y - beyond * step[1]) ** 2) / wide**2, out=height)
    return Shape(window, np.maximum(height, -50), half_width)


def texture(canvas: Canvas, window: Window, base: Array) -> Array:
    """Colour `(h, w, 3)` around `base`: flat, a gradient, noise, stripes, checks or dots."""
    rng = canvas.rng
    other = np.clip(base + rng.normal(0, 0.22, 3), 0, 1)
    rows, columns = (axis[window] for axis in grid(canvas.side))
    turn, pitch = rng.uniform(0, np.pi), rng.uniform(4, 24)
    along, across = columns * np.cos(turn) + rows * np.sin(turn), rows * np.cos(turn) - columns * np.sin(turn)
    kind = rng.choice(["flat", "gradient", "noise", "stripes", "checks", "dots"], p=[0.3, 0.15, 0.3, 0.1, 0.07, 0.08])
    if kind == "flat":
        mix = np.zeros_like(rows)
    elif kind == "gradient":
        mix = 0.5 + (along - along.mean()) / (np.ptp(along) + 1)
    elif kind == "noise":
        mix = 0.5 + 0.5 * noise(rng, canvas.side, int(rng.integers(4, 40)), 2)[window]
    elif kind == "stripes":
        mix = 0.5 + 0.5 * np.sin(along * 2 * np.pi / pitch)
    else:
        product = np.sin(along * 2 * np.pi / pitch) * np.sin(across * 2 * np.pi / pitch)
        mix = (product > (0 if kind == "checks" else 0.5)).astype(np.float32)
    return base.astype(np.float32) + np.clip(mix, 0, 1)[..., None] * (other - base).astype(np.float32)
