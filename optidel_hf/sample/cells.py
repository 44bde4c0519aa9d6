"""Synthetic cells under a fluorescence microscope: a second domain, unlike endoscopy, on which nothing is ever tuned.

A slide is one stain under one microscope; each of its fields is a frame. Round and elongated cells, equal in area and
in brightness, lie apart, touch, or are out of focus, among debris, under uneven light. A mask marks the elongated
cells in focus: what tells them is their shape, and no threshold does.

A field is a function of its seed, its slide's number, its own number and its size alone. It is computed in float64 up
to the expected photons and in integers from their counts on, so that a frame can be frozen by a hash of its pixels.

Legend: `S` side of a frame, `N` blobs, `W` side of the window that a blob is drawn in.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


SIDE = 128  # lengths are in pixels of a frame of this side
RADII = np.array([6.0, 8.0, 11.0])  # the root of the half axes' product, for both kinds of cells
LIGHTS = np.array([0.3, 0.55, 1.0])
# The camera's false colours in 256ths. They tell slides apart, not kinds of cells.
TINTS = np.array([[256, 256, 256], [90, 256, 110], [100, 150, 256], [256, 150, 60]])
CELL_REACH, SPECK_REACH = 36.0, 8.0  # half sides of the windows: the longest blob ends inside, blurred edge included
GRAINS = 2  # in a cell
# One stream of random numbers a purpose.
STAIN, FIELD = 0, 1


class Slide(NamedTuple):
    """What the fields of a slide share."""

    cells: float  # mean number a field
    elongated: float  # share of the cells
    blurred: float  # share of the cells
    spread: float  # standard deviation of a clump of cells
    hollow: float  # above 0 the membrane is brighter than the middle, below 0 the middle is
    debris: float  # mean number of specks a field
    haze: float  # light of the background
    lamp: np.ndarray  # (2,) where the light is brightest, as a share of the side
    falloff: float  # share of the light that is gone at the farthest corner
    photons: int  # that a pixel of the brightest cells counts
    tint: np.ndarray  # (3,) int, in 256ths


class Blobs(NamedTuple):
    """Ellipses with bent axes and wavy outlines: (N,) arrays, but for `place`."""

    place: np.ndarray  # (N, 2) y and x
    angle: np.ndarray  # of the long axis
    long: np.ndarray  # half axes
    short: np.ndarray
    bend: np.ndarray  # how far the ends of the long axis are off it
    wave: np.ndarray  # of the outline, as a share
    edge: np.ndarray  # half the width over which the light fades
    hollow: np.ndarray
    light: np.ndarray
    marked: np.ndarray  # bool


def generate_slide(seed: int, slide: int, fields: int, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Generate the first fields of one slide.

    Args:
        seed (`int`): the sample's seed.
        slide (`int`): the slide's number.
        fields (`int`): number of frames.
        image_size (`int`): side S of the frames in pixels.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: frames (fields, S, S, 3) uint8, and masks (fields, S, S) bool, true on the
        elongated cells in focus.
    """
    prepared = prepare_slide(np.random.default_rng([seed, slide, STAIN]))
    streams = (np.random.default_rng([seed, slide, FIELD, field]) for field in range(fields))
    frames, masks = zip(*(photograph_field(rng, prepared, image_size) for rng in streams))
    return np.stack(frames), np.stack(masks)


def prepare_slide(rng: np.random.Generator) -> Slide:
    """Draw a slide."""
    return Slide(
        cells=rng.uniform(6, 24),
        elongated=rng.uniform(0.2, 0.5),
        blurred=rng.uniform(0, 0.3),
        spread=rng.uniform(10, 45),
        hollow=rng.uniform(-0.4, 0.6),
        debris=rng.uniform(0, 16),
        haze=rng.uniform(0.02, 0.15),
        lamp=rng.uniform(0.2, 0.8, 2),
        falloff=rng.uniform(0.1, 0.7),
        photons=int(rng.integers(40, 400)),
        tint=TINTS[rng.integers(len(TINTS))],
    )


def photograph_field(rng: np.random.Generator, slide: Slide, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One frame (S, S, 3) uint8 of fresh cells, and its mask (S, S) bool."""
    cells = scatter_cells(rng, slide)
    light, mask = draw(cells, size, CELL_REACH)
    specks, _ = draw(scatter_specks(rng, slide, cells), size, SPECK_REACH)
    y, x = ((np.arange(size) + 0.5) / size - slide.lamp[:, None]) ** 2
    farthest = (np.maximum(slide.lamp, 1 - slide.lamp) ** 2).sum()
    lamp = 1 - slide.falloff * (y[:, None] + x) / farthest
    counts = rng.poisson(slide.photons * lamp * (slide.haze + np.maximum(light + specks, 0)))
    grey = np.minimum(counts * 200 // slide.photons, 255)  # headroom for noise and for cells on one another
    return (grey[..., None] * slide.tint // 256).astype(np.uint8), mask


def scatter_cells(rng: np.random.Generator, slide: Slide) -> Blobs:
    """Cells in clumps, pushed apart until they touch rather than overlap."""
    count = 1 + rng.poisson(slide.cells)
    radius = RADII[rng.integers(len(RADII), size=count)] * rng.uniform(0.85, 1.15, count)
    elongated, blurred = rng.random((2, count)) < np.array([[slide.elongated], [slide.blurred]])
    clumps = rng.uniform(0, SIDE, (1 + count // 5, 2))
    place = clumps[rng.integers(len(clumps), size=count)] + slide.spread * rng.standard_normal((count, 2))
    aspect = np.where(elongated, rng.uniform(2.2, 3.4, count), rng.uniform(1.0, 1.25, count))
    return Blobs(
        place=push_apart(place, radius),
        angle=rng.uniform(0, np.pi, count),
        long=radius * np.sqrt(aspect),
        short=radius / np.sqrt(aspect),
        bend=np.where(elongated, radius * rng.uniform(-0.5, 0.5, count), 0.0),
        wave=rng.uniform(-0.08, 0.08, count),
        edge=np.where(blurred, rng.uniform(5, 8, count), rng.uniform(0.8, 1.6, count)),
        hollow=slide.hollow + rng.uniform(-0.1, 0.1, count),
        light=LIGHTS[rng.integers(len(LIGHTS), size=count)] * rng.uniform(0.85, 1.15, count),
        marked=elongated & ~blurred,
    )


def push_apart(place: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Move discs at `place` (N, 2) off one another, each pair by what it lacks."""
    wanted = radius[:, None] + radius
    np.fill_diagonal(wanted, 0)
    for _ in range(12):
        apart = place[:, None] - place  # (N, N, 2)
        distance = np.sqrt((apart**2).sum(axis=2) + 1e-6)
        lacking = np.maximum(wanted - distance, 0) / distance
        place = place + 0.5 * (lacking[..., None] * apart).sum(axis=1)
    return place


def scatter_specks(rng: np.random.Generator, slide: Slide, cells: Blobs) -> Blobs:
    """Brighter and darker grains in the cells in focus, and debris anywhere, the smaller the brighter."""
    host = np.repeat(np.flatnonzero(cells.edge < 2), GRAINS)
    debris = rng.poisson(slide.debris)
    sine, cosine = np.sin(cells.angle[host]), np.cos(cells.angle[host])
    along, across = rng.uniform(-0.45, 0.45, (2, len(host))) * [cells.long[host], cells.short[host]]
    grains = cells.place[host] + np.stack([along * sine + across * cosine, along * cosine - across * sine], axis=1)
    short = rng.uniform(0.6, 1.8, len(host) + debris)
    grain_light = cells.light[host] * rng.uniform(-0.45, 0.45, len(host))
    none = np.zeros_like(short)
    return Blobs(
        place=np.concatenate([grains, rng.uniform(0, SIDE, (debris, 2))]),
        angle=rng.uniform(0, np.pi, len(short)),
        long=short * rng.uniform(1, 3, len(short)),
        short=short,
        bend=none,
        wave=none,
        edge=none + 0.8,
        hollow=none,
        light=np.concatenate([grain_light, rng.uniform(0.3, 1.0, debris) / short[len(host) :]]),
        marked=none.astype(bool),
    )


def draw(blobs: Blobs, size: int, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """
    Add up the light of blobs, each in its own window.

    Args:
        blobs ([`Blobs`]): those whose windows do not touch the frame are left out.
        size (`int`): side S in pixels.
        reach (`float`): half the side of the windows, in pixels of a frame of [`SIDE`].

    Returns:
        `tuple[np.ndarray, np.ndarray]`: light (S, S) float64, and where a marked blob is (S, S) bool.
    """
    near = (np.abs(blobs.place - SIDE / 2) < SIDE / 2 + reach).all(axis=1)
    blobs, scale = Blobs(*(column[near] for column in blobs)), size / SIDE
    half = int(np.ceil(reach * scale))
    pad = 2 * half + 1  # a window that only just touches the frame lies wholly on the canvas
    pixels = np.floor(blobs.place * scale).astype(int)[..., None] + np.arange(-half, half + 1)  # (N, 2, W)
    y, x = ((pixels + 0.5) / scale - blobs.place[..., None]).transpose(1, 0, 2)
    light, marked_inside = shade(y[:, :, None], x[:, None, :], blobs)
    rows, columns = pixels.transpose(1, 0, 2) + pad
    side = size + 2 * pad
    place = rows[:, :, None] * side + columns[:, None, :]
    frame = slice(pad, pad + size)
    canvas = np.bincount(place.ravel(), light.ravel(), side * side).reshape(side, side)
    mask = np.zeros((side, side), dtype=bool)
    mask.flat[place[marked_inside]] = True
    return canvas[frame, frame], mask[frame, frame]


def shade(y: np.ndarray, x: np.ndarray, blobs: Blobs) -> tuple[np.ndarray, np.ndarray]:
    """Light (N, W, W) of each blob at offsets from its place, and where a marked one is."""
    _, angle, long, short, bend, wave, edge, hollow, light, marked = (column[:, None, None] for column in blobs)
    u = (x * np.cos(angle) + y * np.sin(angle)) / long
    v = (y * np.cos(angle) - x * np.sin(angle) - bend * u * u) / short
    square = u * u + v * v + 1e-6
    radius = np.sqrt(square)
    outline = 1 + wave * u * (u * u - 3 * v * v) / (square * radius)
    # To first order the distance to the outline: what is left of the radius over the radius's slope.
    inside = (outline - radius) * radius / np.sqrt((u / long) ** 2 + (v / short) ** 2 + 1e-6 / short**2)
    step = np.clip(0.5 + inside / (2 * edge), 0, 1)
    return light * step * step * (3 - 2 * step) * (1 - hollow * np.maximum(1 - square, 0)), marked & (inside > 0)
