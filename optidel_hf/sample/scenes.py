"""Procedural scenes with instance masks: what the embedded SAM learns from, without one real image or mask.

Five families: everyday objects, mucosa (lumen, folds and polyps in the wall's own colour), partitions without rest
(haustra, patchworks), cells, skin lesions; all seen through a camera with falling light, blur, noise and black frames.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter, shift

from optidel_hf.sample.shapes import Array, Canvas, Shape, grid, noise, star, texture, tube


def _size(canvas: Canvas, low: float, high: float) -> float:
    """A radius between two fractions of the side, uniform in the logarithm."""
    return float(np.exp(canvas.rng.uniform(np.log(low), np.log(high)))) * canvas.side


def _glints(canvas: Canvas, count: int) -> None:
    """Specular highlights: small, white, never labelled."""
    for _ in range(count):
        shape = star(canvas, "blob", _size(canvas, 0.004, 0.02))
        canvas.paint(shape, np.full(3, 0.97), canvas.rng.uniform(0.6, 1), label=False)


def _any_shape(canvas: Canvas) -> Shape:
    if canvas.rng.random() < 0.15:
        return tube(canvas, _size(canvas, 0.03, 0.24) * 0.4, _size(canvas, 3 * 0.03, 3 * 0.24))
    return star(canvas, str(canvas.rng.choice(["ellipse", "blob", "polygon"])), _size(canvas, 0.03, 0.24))


def paint_everyday(canvas: Canvas) -> None:
    """Objects of every shape and texture, shaded, shadowed, some transparent, over a textured ground."""
    rng = canvas.rng
    whole = (slice(0, canvas.side), slice(0, canvas.side))
    canvas.rgb[:] = texture(canvas, whole, rng.uniform(0.1, 0.9, 3))
    for _ in range(rng.integers(3, 17)):
        shape = _any_shape(canvas)
        if rng.random() < 0.4:
            shadow = Shape(shape.window, shift(shape.height, rng.integers(-5, 6, 2), order=0, cval=-9), shape.size)
            canvas.paint(shadow, np.zeros(3), rng.uniform(0.1, 0.5), edge=3, label=False)
        colour = texture(canvas, shape.window, rng.uniform(0, 1, 3))
        if rng.random() < 0.6:
            colour = colour * canvas.shading(shape, rng.uniform(0.2, 1.0))
        canvas.paint(shape, colour, float(rng.choice([1.0, rng.uniform(0.4, 0.9)], p=[0.8, 0.2])), rng.uniform(0.7, 2))


def _mucosa(canvas: Canvas) -> None:
    """A pink to red ground with slow relief and a tree of thin vessels."""
    rng = canvas.rng
    base = np.array([rng.uniform(0.5, 0.95), rng.uniform(0.2, 0.6), rng.uniform(0.12, 0.5)])
    relief = noise(rng, canvas.side, int(rng.integers(2, 5)), 2)[..., None] * rng.uniform(0.04, 0.25)
    grain = noise(rng, canvas.side, int(rng.integers(24, 64)), 2)[..., None] * rng.uniform(0, 0.06)
    canvas.rgb[:] = (base * (1 + relief + grain)).clip(0, 1)
    for _ in range(rng.integers(0, 6)):
        vessel = tube(canvas, rng.uniform(0.5, 1.4), _size(canvas, 0.15, 0.6))
        canvas.paint(vessel, base * [0.7, 0.45, 0.45], rng.uniform(0.15, 0.5), label=False)


def _bump(canvas: Canvas, shape: Shape) -> None:
    """An object in its ground's own colour, slightly tinted: seen by its shading alone."""
    rng = canvas.rng
    ground = gaussian_filter(canvas.rgb[shape.window], (2, 2, 0))
    tint = 1 + rng.normal(0, 0.06, 3) + rng.choice([0, rng.uniform(-0.2, 0.25)])
    grain = noise(rng, canvas.side, int(rng.integers(12, 60)), 2)[shape.window][..., None] * rng.uniform(0, 0.08)
    canvas.paint(
        shape, ground * tint * canvas.shading(shape, rng.uniform(0.12, 0.8)) * (1 + grain), 1.0, rng.uniform(1, 4)
    )


def paint_mucosa(canvas: Canvas) -> None:
    """Colonoscopy-like: a dark lumen, folds and polyps in the colour of the wall, sometimes an instrument, glints."""
    rng = canvas.rng
    _mucosa(canvas)
    if rng.random() < 0.5:
        lumen = star(canvas, "blob", _size(canvas, 0.06, 0.22))
        canvas.paint(
            lumen, np.array([0.16, 0.06, 0.05]) * rng.uniform(0.2, 1.8), rng.uniform(0.7, 1), rng.uniform(2, 8)
        )
    for _ in range(rng.integers(0, 6)):
        _bump(canvas, tube(canvas, _size(canvas, 0.02, 0.1), _size(canvas, 0.3, 1.0)))
    for _ in range(rng.integers(1, 6)):
        _bump(canvas, star(canvas, str(rng.choice(["ellipse", "blob"])), _size(canvas, 0.04, 0.24)))
    for _ in range(rng.integers(0, 2)):
        tool = tube(canvas, _size(canvas, 0.015, 0.05), _size(canvas, 0.4, 1.2))
        canvas.paint(tool, rng.uniform(0.05, 0.9) * canvas.shading(tool, 0.8) * np.ones(3))
    _glints(canvas, int(rng.integers(0, 14)))


def paint_partition(canvas: Canvas) -> None:
    """The canvas divided without rest: warped cells, as haustra between folds or as a patchwork of textures."""
    rng = canvas.rng
    count, tissue = int(rng.integers(4, 15)), rng.random() < 0.6
    _mucosa(canvas)
    rows, columns = grid(canvas.side)
    warp = rng.uniform(5, 28)
    x, y = (axis + warp * noise(rng, canvas.side, 4, 2) for axis in (columns, rows))
    seeds = (rng.uniform(0, canvas.side, (count, 2)) * 1.0).astype(np.float32)
    distance = np.sqrt((x[..., None] - seeds[:, 0]) ** 2 + (y[..., None] - seeds[:, 1]) ** 2)
    nearest = np.partition(distance, 1, axis=-1)
    gap, owner = nearest[..., 1] - nearest[..., 0], distance.argmin(-1)
    canvas.labels[:] = owner + 1
    if tissue:
        valley = rng.uniform(4, 25)
        whole = Shape((slice(None), slice(None)), np.clip(gap / valley, 0, 1), valley)
        tint = 1 + rng.normal(0, 0.09, (count, 1)) + rng.normal(0, 0.025, (count, 3))
        canvas.rgb *= canvas.shading(whole, rng.uniform(0.3, 1)) * tint[owner].astype(np.float32)
        canvas.rgb *= 1 - rng.uniform(0, 0.6) * np.exp(-gap / rng.uniform(2, 8))[..., None]
        _glints(canvas, int(rng.integers(0, 10)))
        return
    window = (slice(0, canvas.side), slice(0, canvas.side))
    for cell in range(count):
        canvas.rgb[owner == cell] = texture(canvas, window, rng.uniform(0, 1, 3))[owner == cell]


def paint_cells(canvas: Canvas) -> None:
    """Microscopy-like: many similar cells with nucleus and membrane, stained on light or glowing on dark."""
    rng = canvas.rng
    ground, body = rng.uniform(0.75, 0.98, 3), rng.uniform(0.3, 0.8, 3)
    if rng.random() < 0.4:
        ground, body = rng.uniform(0, 0.15, 3), rng.uniform(0.2, 1, 3)
    size = _size(canvas, 0.035, 0.13)
    canvas.rgb[:] = ground + noise(rng, canvas.side, 6)[..., None] * rng.uniform(0.01, 0.06)
    grain = noise(rng, canvas.side, int(rng.integers(16, 60)), 2)[..., None] * rng.uniform(0.02, 0.12)
    nucleated, rim, opacity = rng.random() < 0.6, rng.uniform(0, 0.5), rng.uniform(0.5, 1)
    for _ in range(int(np.clip(0.5 * (canvas.side / size / 2) ** 2 * rng.uniform(0.3, 1), 4, 30))):
        centre, scale = rng.uniform(0, canvas.side, 2), size * rng.uniform(0.75, 1.3)
        cell = star(canvas, str(rng.choice(["ellipse", "blob"])), scale, centre)
        membrane = rim * np.exp(-((cell.height / 0.25) ** 2))[..., None]
        colour = (body * rng.uniform(0.85, 1.15) + grain[cell.window]) * (1 - membrane)
        canvas.paint(cell, colour.clip(0, 1), opacity, rng.uniform(0.8, 2.5))
        if nucleated:
            nucleus = star(canvas, "ellipse", scale * rng.uniform(0.25, 0.5), centre)
            canvas.paint(nucleus, body * rng.uniform(0.3, 0.6), 0.9, 1.5, label=False)


def paint_lesions(canvas: Canvas) -> None:
    """Dermatoscopy-like: one to three irregular pigmented lesions on skin, under hairs."""
    rng = canvas.rng
    skin = np.array([rng.uniform(0.6, 0.95), rng.uniform(0.45, 0.75), rng.uniform(0.35, 0.65)])
    canvas.rgb[:] = skin * (1 + noise(rng, canvas.side, int(rng.integers(3, 30)))[..., None] * rng.uniform(0.02, 0.08))
    for _ in range(rng.integers(1, 4)):
        lesion = star(canvas, "blob", _size(canvas, 0.06, 0.27), rng.uniform(0.15, 0.85, 2) * canvas.side)
        ragged = noise(rng, canvas.side, int(rng.integers(8, 24)), 2)[lesion.window]
        lesion.height += ragged * rng.uniform(0, 0.25)
        colour = skin * rng.uniform([0.4, 0.25, 0.2], [1.0, 0.75, 0.75]) * (1 + 0.3 * ragged[..., None])
        canvas.paint(lesion, colour.clip(0, 1), rng.uniform(0.6, 1), rng.uniform(1.5, 8))
    for _ in range(rng.choice(np.array([0, rng.integers(1, 12)]))):
        hair = tube(canvas, rng.uniform(0.5, 1.3), _size(canvas, 0.3, 1.2))
        canvas.paint(hair, np.array([0.1, 0.07, 0.05]), rng.uniform(0.4, 0.9), label=False)


def _frame(canvas: Canvas) -> None:
    """A camera's black surround: a disc or a square with cut corners, outside which nothing is an object."""
    rng = canvas.rng
    rows, columns = (np.abs(axis / canvas.side - 0.5) for axis in grid(canvas.side))
    reach, cut = rng.uniform(0.42, 0.5), rng.uniform(0.12, 0.35)
    outside = (np.maximum(rows, columns) > reach) | (rows + columns > 2 * reach - cut)
    if rng.random() < 0.4:
        outside = rows**2 + columns**2 > rng.uniform(0.44, 0.62) ** 2
    canvas.rgb[outside] = rng.uniform(0, 0.05)
    canvas.labels[outside] = 0


def _camera(canvas: Canvas) -> Array:
    """Light that falls off, exposure, blur and noise; returns the image `(S, S, 3)` uint8."""
    rng = canvas.rng
    rows, columns = (axis / canvas.side - 0.5 for axis in grid(canvas.side))
    x, y = rng.uniform(-0.3, 0.3, 2)
    falloff = 1 - rng.uniform(0, 0.9) * ((rows - y) ** 2 + (columns - x) ** 2)
    canvas.rgb *= (falloff.clip(0.15, None) * rng.uniform(0.75, 1.15))[..., None]
    if rng.random() < 0.3:
        _frame(canvas)
    rgb = (
        gaussian_filter(canvas.rgb, (s := rng.uniform(0.3, 1.6), s, 0), truncate=3)
        if rng.random() < 0.5
        else canvas.rgb
    )
    grain = rng.standard_normal((canvas.side, canvas.side, 1), dtype=np.float32) * rng.uniform(0, 0.025)
    return ((rgb + grain).clip(0, 1) * 255).astype(np.uint8)


FAMILIES: dict[str, tuple[Callable[[Canvas], None], float]] = {
    "everyday": (paint_everyday, 0.28),
    "mucosa": (paint_mucosa, 0.32),
    "partition": (paint_partition, 0.18),
    "cells": (paint_cells, 0.12),
    "lesions": (paint_lesions, 0.10),
}


def make_scene(seed: int, index: int, side: int = 256) -> tuple[Array, Array]:
    """Paint scene number `index` of the series `seed`: a pure function of its arguments.

    Args:
        seed (`int`): the series; another seed gives scenes that share nothing with this one.
        index (`int`): the scene's number in the series.
        side (`int`, *optional*, defaults to 256): side in pixels.

    Returns:
        `tuple`: image `(S, S, 3)` uint8 and labels `(S, S)` uint8, 0 for background, else the visible object's number.
    """
    canvas = Canvas(np.random.default_rng([seed, index]), side)
    painters, shares = zip(*FAMILIES.values())
    painters[canvas.rng.choice(len(shares), p=shares)](canvas)
    return _camera(canvas), canvas.labels
