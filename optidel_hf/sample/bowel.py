"""The wall of one synthetic examination: a bowel, unrolled into a map over (angle, depth).

The bowel is a tube of radius about one along a winding centre line `c(z)`. The map holds how far the wall stands
from that line (folds, undulation, standing liquid), its slopes, its colour (mottling, vessels, residue) and its
wetness. It is drawn once a sequence, so that every frame of the sequence sees the same wall.

Legend: `A` angles, `Z` depths, `C` channels of the map; lengths are in units of the bowel's radius.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter, minimum_filter


ANGLES, DEPTHS, LENGTH = 320, 540, 7.0
REACH = 0.2
# Channels of the map: slopes along angle and depth, colour, wetness (bumps that only highlights see).
SLOPE_ANGLE, SLOPE_DEPTH, COLOUR, WET, CHANNELS = 0, 1, slice(2, 5), 5, 6

# Mucosa as light reflects from it, linear RGB: pink, salmon, orange, red, yellowish, pale, brownish.
MUCOSA = np.array(
    [
        (0.62, 0.23, 0.18),
        (0.64, 0.24, 0.14),
        (0.64, 0.25, 0.08),
        (0.58, 0.14, 0.09),
        (0.60, 0.31, 0.11),
        (0.62, 0.33, 0.25),
        (0.48, 0.22, 0.12),
    ],
    dtype=np.float32,
)
RESIDUE = np.array([(0.50, 0.28, 0.04), (0.36, 0.19, 0.05), (0.52, 0.36, 0.15)], dtype=np.float32)


@dataclass
class Bowel:
    """The wall of one scene.

    Attributes:
        radius: (A, Z) float32, the distance of the wall from the centre line.
        narrowest: (A, Z) float32, the least radius within `REACH` of a place.
        surface: (A, Z, C) float32, the channels named at the top of this module.
        bend: (2, 3) amplitudes, wave numbers and phases of the centre line's x and y.
        mucosa: (3,) the patient's linear RGB.
    """

    radius: np.ndarray
    narrowest: np.ndarray
    surface: np.ndarray
    bend: np.ndarray
    mucosa: np.ndarray

    def centre(self, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The centre line's x and y at `depth`."""
        (ax, kx, px), (ay, ky, py) = self.bend
        return ax * np.sin(kx * depth + px), ay * np.sin(ky * depth + py)

    def centre_slope(self, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The centre line's derivative at `depth`."""
        (ax, kx, px), (ay, ky, py) = self.bend
        return ax * kx * np.cos(kx * depth + px), ay * ky * np.cos(ky * depth + py)


def build_bowel(rng: np.random.Generator) -> Bowel:
    """Draw the wall of one scene."""
    mucosa = MUCOSA[rng.integers(len(MUCOSA))] * rng.uniform(0.92, 1.08, 3).astype(np.float32)
    bend = np.stack([rng.uniform(0.15, 0.7, 2), rng.uniform(0.6, 1.3, 2), rng.uniform(0, 2 * np.pi, 2)], axis=1)
    radius, pool = pour_liquid(rng, draw_folds(rng))
    residue, foam = np.maximum(draw_residue(rng), pool), blow_bubbles(rng)
    grain = rng.uniform(0.002, 0.008) * noise(rng, 0.05) * (1 - pool) + 0.0012 * noise(rng, 0.02)
    relief = radius + grain - 0.03 * residue - foam
    surface = np.empty((ANGLES, DEPTHS, CHANNELS), dtype=np.float32)
    surface[..., SLOPE_ANGLE] = np.gradient(relief, 2 * np.pi / ANGLES, axis=0)
    surface[..., SLOPE_DEPTH] = np.gradient(relief, LENGTH / DEPTHS, axis=1)
    surface[..., COLOUR] = draw_colour(rng, mucosa, residue) + np.clip(4 * foam, 0, 0.15)[..., None]
    surface[..., WET] = (0.5 * noise(rng, 0.10) + 0.5 * noise(rng, 0.035)) * rng.choice([0.6, 1.0, 1.3]) + pool
    # A narrow tube turns through more angle in the same length, so the window is twice as wide there.
    window = (1 + round(4 * REACH * ANGLES / (2 * np.pi)), 1 + round(2 * REACH * DEPTHS / LENGTH))
    narrowest = minimum_filter(radius, window, mode=("wrap", "nearest"))
    return Bowel(radius.astype(np.float32), narrowest.astype(np.float32), surface, bend.astype(np.float32), mucosa)


def noise(rng: np.random.Generator, scale: float) -> np.ndarray:
    """A smooth field (A, Z) of mean 0 and deviation 1, seamless round the tube; its features measure `scale`."""
    # Beyond this wave number the filter exp(-(k scale / 2)^2) passes nothing, so nothing is drawn.
    highest = 5 / scale
    rows, columns = min(int(highest), ANGLES // 2 - 1), min(int(highest * LENGTH / (2 * np.pi)), DEPTHS // 2 - 1)
    across, along = np.r_[0 : rows + 1, -rows:0], np.arange(columns + 1) * np.float32(2 * np.pi / LENGTH)
    filtered = np.exp(-(across[:, None] ** 2 + along**2) * scale**2 / 4).astype(np.float32)
    waves = rng.standard_normal((*filtered.shape, 2), dtype=np.float32).view(np.complex64)[..., 0] * filtered
    waves[0, 0] = 0
    spectrum = np.zeros((ANGLES, DEPTHS // 2 + 1), dtype=np.complex64)
    spectrum[across, : columns + 1] = waves
    field = scipy.fft.irfft2(spectrum, s=(ANGLES, DEPTHS))
    return field / field.std()


def draw_folds(rng: np.random.Generator) -> np.ndarray:
    """The wall's distance (A, Z) from the centre line: three bands, undulation, crescent-shaped folds."""
    angle = np.linspace(0, 2 * np.pi, ANGLES, endpoint=False, dtype=np.float32)[:, None]
    depth = np.linspace(0, LENGTH, DEPTHS, dtype=np.float32)[None]
    bands, uneven = rng.uniform(0, 0.12) * np.cos(3 * angle + rng.uniform(0, 6)), rng.uniform(0.01, 0.05)
    radius = 1 + bands + 0.06 * noise(rng, 0.6) + uneven * noise(rng, 0.2)
    wander = depth + 0.14 * noise(rng, 0.7)
    place, spacing, height = rng.uniform(0, 0.5), rng.uniform(0.4, 1.0), rng.uniform(0.2, 0.6)
    while place < LENGTH:
        away = np.arccos(np.cos(angle - rng.uniform(0, 2 * np.pi)))
        crescent = height * rng.uniform(0.5, 1.2) / (1 + np.exp((away - rng.uniform(0.5, 2.4)) / 0.3))
        around = slice(*np.searchsorted(depth[0], (place - 1.2, place + 1.2)))
        line = wander[:, around] - place - rng.normal(0, 0.2) * np.cos(away)
        width = np.where(line > 0, np.float32(rng.uniform(0.06, 0.12)), np.float32(rng.uniform(0.10, 0.22)))
        radius[:, around] -= crescent * np.exp(-(np.abs(line / width) ** np.float32(1.6)))
        place += spacing * rng.uniform(0.4, 1.4)
    return np.maximum(radius, 0.25)


def pour_liquid(rng: np.random.Generator, radius: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Let liquid stand in the lower side of one tube in four: the new radius, and where the liquid is (A, Z)."""
    if rng.random() > 0.25:
        return radius, np.zeros_like(radius)
    angle = np.linspace(0, 2 * np.pi, ANGLES, endpoint=False, dtype=np.float32)[:, None]
    level = rng.uniform(0.75, 0.95) / np.maximum(np.cos(angle - rng.uniform(0, 2 * np.pi)), 1e-3)
    return np.minimum(radius, level + 0.002 * noise(rng, 0.2)), np.clip((radius - level) * 25, 0, 1)


def blow_bubbles(rng: np.random.Generator) -> np.ndarray:
    """The height (A, Z) of bubbles, in clusters, in one scene of three."""
    height = np.zeros((ANGLES, DEPTHS), dtype=np.float32)
    for _ in range(rng.choice([0, 2, 5], p=[0.65, 0.2, 0.15])):
        row, column = rng.integers((0, DEPTHS // 4), (ANGLES, DEPTHS // 2))
        for dy, dx, size in zip(rng.normal(0, 14, 25), rng.normal(0, 12, 25), rng.uniform(1.5, 5, 25)):
            y, x = np.mgrid[-6:7, -6:7]
            dome = np.sqrt(np.clip(1 - (y**2 + x**2) / size**2, 0, None)) * size * LENGTH / DEPTHS
            rows, columns = (row + int(dy) + y) % ANGLES, (column + int(dx) + x) % DEPTHS
            height[rows, columns] = np.maximum(height[rows, columns], dome)
    return height


def draw_residue(rng: np.random.Generator) -> np.ndarray:
    """How much residue (0 to 1) covers the wall (A, Z); most scenes have little or none."""
    amount = rng.choice([9.0, 2.4, 1.7, 1.1], p=[0.5, 0.25, 0.17, 0.08])
    return np.clip((noise(rng, 0.22) + 0.25 * noise(rng, 0.05) - amount) * 3, 0, 1)


def draw_colour(rng: np.random.Generator, mucosa: np.ndarray, residue: np.ndarray) -> np.ndarray:
    """The wall's linear RGB (A, Z, 3): mottled mucosa, vessels under it, residue on it."""
    mottle = (
        rng.uniform(0.03, 0.10) * noise(rng, 0.35)
        + rng.uniform(0.02, 0.07) * noise(rng, 0.08)
        + 0.03 * noise(rng, 0.02)
    )
    red = rng.uniform(0.02, 0.10) * noise(rng, 0.25)
    pigment = np.array([0.25, 1.0, 0.9])
    density = rng.choice([0.15, 0.4, 0.8]) * draw_vessels(rng) * np.clip(0.7 + 0.5 * noise(rng, 0.5), 0, 1)
    absorbed = (red + density)[..., None] * pigment
    colour = mucosa * np.exp(mottle[..., None] - absorbed, dtype=np.float32)
    stain = RESIDUE[rng.integers(len(RESIDUE))] * (1 + 0.2 * noise(rng, 0.04)[..., None])
    return colour + (stain - colour) * residue[..., None] * rng.uniform(0.6, 1.0)


def draw_vessels(rng: np.random.Generator) -> np.ndarray:
    """Branching vessels (A, Z) in 0 to 1: random walks that fork and thin out, drawn seamlessly round the tube."""
    canvas = Image.new("L", (DEPTHS, 3 * ANGLES))
    pen = ImageDraw.Draw(canvas)
    stack = [(*rng.uniform((0, 0), (DEPTHS, ANGLES)), rng.uniform(0, 6.3), 3.0) for _ in range(rng.integers(15, 45))]
    while stack:
        x, y, heading, width = stack.pop()
        headings = heading + np.cumsum(rng.normal(0, 0.25, rng.integers(8, 22)))
        xs = x + np.cumsum(5 * np.cos(headings))
        ys = y % ANGLES + ANGLES + np.cumsum(4 * np.sin(headings))
        pen.line(np.stack([xs, ys], axis=1).ravel().tolist(), 255, round(width))
        if width > 1:
            stack += [(xs[-1], ys[-1], headings[-1] + fork, width - 0.8) for fork in rng.normal(0, 0.7, 2)]
    # What left the middle third above or below comes in again on the other side.
    drawn = np.asarray(canvas, dtype=np.float32).reshape(3, ANGLES, DEPTHS).max(axis=0) / 255
    return gaussian_filter(drawn, 0.7, mode=("wrap", "nearest"))
