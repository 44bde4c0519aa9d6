"""The scene of one synthetic examination: a bowel as an unrolled wall map, the polyps on it, and the patient's colours.

The bowel is a tube of radius about one along a winding centre line `c(z)`. Its wall is a map over (angle, depth): how far the
wall stands from the centre line (folds, undulation), its slopes, its colour (mottling, vessels, residue) and its wetness.
A map is drawn once a sequence, so that every frame of it sees the same wall. Polyps are ellipsoids with waves on their surface.

Legend: `A` angles, `Z` depths, `C` channels of the map, `N` points; lengths are in units of the bowel's radius.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter


ANGLES, DEPTHS, LENGTH = 320, 540, 7.0
# Channels of the map: the wall's slopes along angle and depth, its colour, its wetness (a bump seen by highlights only).
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
# Wave number and height, over the polyp's half-width, of the waves on a polyp: lumps, then grain.
WAVES = [(2.5, 0.07)] * 4 + [(8.0, 0.012)] * 4


@dataclass
class Bowel:
    """The wall of one scene.

    Attributes:
        radius: (A, Z) float32, the distance of the wall from the centre line.
        surface: (A, Z, C) float32, the channels named at the top of this module.
        bend: (2, 3) amplitudes, wave numbers and phases of the centre line's x and y.
        mucosa: (3,) the patient's linear RGB.
    """

    radius: np.ndarray
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


@dataclass
class Polyp:
    """One polyp: lobes (ellipsoids, the stalk among them) in a common frame.

    Attributes:
        frame: (3, 3) rows are two tangents of the wall and its normal, into the lumen.
        centres: (K, 3) the lobes' centres in the scene.
        axes: (K, 3) the lobes' half-axes along `frame`.
        waves: (W, 5) wave vector, phase and height of the waves on the surface.
        tint: (3,) factor on the mucosa's colour.
        foot: the width over which the wall turns into the polyp.
        spots: strength of the surface pattern, and `grain`, its frequency.
    """

    frame: np.ndarray
    centres: np.ndarray
    axes: np.ndarray
    waves: np.ndarray
    tint: np.ndarray
    foot: float
    spots: float
    grain: float

    def reach(self) -> tuple[np.ndarray, float]:
        """Centre and radius of a ball that holds the polyp."""
        middle = self.centres.mean(axis=0)
        far = np.linalg.norm(self.centres - middle, axis=1) + self.axes.max(axis=1)
        return middle, float(far.max() * 1.25)

    def distance(self, points: np.ndarray) -> np.ndarray:
        """The signed distance (approximate near the surface) of points (N, 3)."""
        distance = np.full(len(points), np.inf, dtype=np.float32)
        for centre, axes in zip(self.centres, self.axes):
            local = (points - centre) @ (self.frame.T / axes)
            k0 = length(local)
            k1 = length(local / axes)
            lobe = k0 * (k0 - 1) / np.maximum(k1, 1e-6)
            distance = smooth_minimum(distance, lobe, 0.3 * float(axes.min()))
        return distance + np.sin(points @ self.waves[:, :3].T + self.waves[:, 3]) @ self.waves[:, 4]


def length(vectors: np.ndarray) -> np.ndarray:
    """The lengths (N,) of vectors (N, 3)."""
    return np.sqrt(np.einsum("ni,ni->n", vectors, vectors))


def smooth_minimum(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """The minimum of two distances, rounded where they meet within `width`."""
    overlap = np.maximum(width - np.abs(a - b), 0) / width
    return np.minimum(a, b) - overlap**2 * width / 4


class Noise:
    """Smooth random fields on the map, seamless round the tube, from one white noise each."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        across = np.fft.fftfreq(ANGLES, d=1 / ANGLES)[:, None]
        along = np.fft.rfftfreq(DEPTHS, d=LENGTH / DEPTHS)[None] * 2 * np.pi
        self.square = (across**2 + along**2).astype(np.float32)
        self.stretch = (across**2 / 9 + along**2).astype(np.float32)

    def __call__(self, scale: float, ringed: bool = False) -> np.ndarray:
        """A field (A, Z) of mean 0 and deviation 1 whose features measure about `scale`; `ringed` drops fast changes along depth."""
        white = scipy.fft.rfft2(self.rng.standard_normal((ANGLES, DEPTHS), dtype=np.float32))
        white *= np.exp(-(self.stretch if ringed else self.square) * np.float32(scale**2 / 4))
        white[0, 0] = 0
        field = scipy.fft.irfft2(white, s=(ANGLES, DEPTHS))
        return field / field.std()


def build_bowel(rng: np.random.Generator) -> Bowel:
    """Draw the wall of one scene."""
    noise = Noise(rng)
    mucosa = MUCOSA[rng.integers(len(MUCOSA))] * rng.uniform(0.92, 1.08, 3).astype(np.float32)
    bend = np.stack([rng.uniform(0.15, 0.7, 2), rng.uniform(0.6, 1.3, 2), rng.uniform(0, 2 * np.pi, 2)], axis=1)
    radius = draw_folds(rng, noise)
    radius, pool = pour_liquid(rng, radius, noise)
    residue, foam = np.maximum(draw_residue(rng, noise), pool), blow_bubbles(rng)
    relief = (
        radius - 0.03 * residue - foam + (1 - pool) * rng.uniform(0.002, 0.008) * noise(0.05) + 0.0012 * noise(0.02)
    )
    surface = np.empty((ANGLES, DEPTHS, CHANNELS), dtype=np.float32)
    surface[..., SLOPE_ANGLE] = np.gradient(relief, 2 * np.pi / ANGLES, axis=0)
    surface[..., SLOPE_DEPTH] = np.gradient(relief, LENGTH / DEPTHS, axis=1)
    surface[..., COLOUR] = draw_colour(rng, noise, mucosa, residue) + np.clip(4 * foam, 0, 0.15)[..., None]
    surface[..., WET] = (0.5 * noise(0.10) + 0.5 * noise(0.035)) * rng.choice([0.6, 1.0, 1.3]) + pool
    return Bowel(radius.astype(np.float32), surface, bend.astype(np.float32), mucosa)


def draw_folds(rng: np.random.Generator, noise: Noise) -> np.ndarray:
    """The wall's distance (A, Z) from the centre line: three bands' cross-section, undulation, and crescent-shaped folds."""
    angle = np.linspace(0, 2 * np.pi, ANGLES, endpoint=False, dtype=np.float32)[:, None]
    depth = np.linspace(0, LENGTH, DEPTHS, dtype=np.float32)[None]
    uneven = rng.uniform(0.01, 0.05)
    radius = 1 + rng.uniform(0, 0.12) * np.cos(3 * angle + rng.uniform(0, 6)) + 0.06 * noise(0.6) + uneven * noise(0.2)
    wander = 0.14 * noise(0.7)
    place, spacing, height = rng.uniform(0, 0.5), rng.uniform(0.4, 1.0), rng.uniform(0.2, 0.6)
    while place < LENGTH:
        middle, extent = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 2.4)
        away = np.arccos(np.cos(angle - middle))
        crescent = 1 / (1 + np.exp((away - extent) / 0.3))
        line = depth + wander - place - rng.normal(0, 0.2) * np.cos(angle - middle)
        width = np.where(line > 0, rng.uniform(0.06, 0.12), rng.uniform(0.10, 0.22))
        radius = radius - height * rng.uniform(0.5, 1.2) * crescent * np.exp(-(np.abs(line / width) ** 1.6))
        place += spacing * rng.uniform(0.4, 1.4)
    return np.maximum(radius, 0.25)


def pour_liquid(rng: np.random.Generator, radius: np.ndarray, noise: Noise) -> tuple[np.ndarray, np.ndarray]:
    """Let liquid stand in the lower side of the tube, in one scene of four: the new radius, and where the liquid is (A, Z)."""
    if rng.random() > 0.25:
        return radius, np.zeros_like(radius)
    angle = np.linspace(0, 2 * np.pi, ANGLES, endpoint=False, dtype=np.float32)[:, None]
    level = rng.uniform(0.75, 0.95) / np.maximum(np.cos(angle - rng.uniform(0, 2 * np.pi)), 1e-3)
    return np.minimum(radius, level + 0.002 * noise(0.2)), np.clip((radius - level) * 25, 0, 1)


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


def draw_residue(rng: np.random.Generator, noise: Noise) -> np.ndarray:
    """How much residue (0 to 1) covers the wall (A, Z); most scenes have little or none."""
    amount = rng.choice([9.0, 2.4, 1.7, 1.1], p=[0.5, 0.25, 0.17, 0.08])
    return np.clip((noise(0.22) + 0.25 * noise(0.05) - amount) * 3, 0, 1)


def draw_colour(rng: np.random.Generator, noise: Noise, mucosa: np.ndarray, residue: np.ndarray) -> np.ndarray:
    """The wall's linear RGB (A, Z, 3): mottled mucosa, vessels under it, residue on it."""
    mottle = rng.uniform(0.03, 0.10) * noise(0.35) + rng.uniform(0.02, 0.07) * noise(0.08) + 0.03 * noise(0.02)
    red = rng.uniform(0.02, 0.10) * noise(0.25)
    pigment = np.array([0.25, 1.0, 0.9])
    density = rng.choice([0.15, 0.4, 0.8]) * draw_vessels(rng) * np.clip(0.7 + 0.5 * noise(0.5), 0, 1)
    absorbed = (red + density)[..., None] * pigment
    colour = mucosa * np.exp(mottle[..., None] - absorbed, dtype=np.float32)
    stain = RESIDUE[rng.integers(len(RESIDUE))] * (1 + 0.2 * noise(0.04)[..., None])
    return colour + (stain - colour) * residue[..., None] * rng.uniform(0.6, 1.0)


def draw_vessels(rng: np.random.Generator) -> np.ndarray:
    """Branching vessels (A, Z) in 0 to 1: random walks that fork and thin out, drawn seamlessly round the tube."""
    canvas = Image.new("L", (DEPTHS, 3 * ANGLES))
    pen = ImageDraw.Draw(canvas)
    stack = [(*rng.uniform((0, 0), (DEPTHS, ANGLES)), rng.uniform(0, 6.3), 3.0) for _ in range(rng.integers(15, 45))]
    while stack:
        x, y, heading, width = stack.pop()
        path = [(x, y)]
        for turn in rng.normal(0, 0.25, rng.integers(8, 22)):
            heading += turn
            x, y = x + 5 * np.cos(heading), y + 4 * np.sin(heading)
            path.append((x, y))
        for shift in (0, ANGLES, 2 * ANGLES):
            pen.line(
                [(a, b % ANGLES + shift + (b // ANGLES - path[0][1] // ANGLES) * ANGLES) for a, b in path],
                255,
                round(width),
            )
        if width > 1:
            stack += [(x, y, heading + fork, width - 0.8) for fork in rng.normal(0, 0.7, 2)]
    drawn = np.asarray(canvas, dtype=np.float32)[ANGLES : 2 * ANGLES] / 255
    return gaussian_filter(drawn, 0.7, mode=("wrap", "nearest"))


def grow_polyp(rng: np.random.Generator, foot: np.ndarray, normal: np.ndarray, size: float) -> Polyp:
    """Grow a flat, sessile or stalked polyp of half-width `size` at `foot` (3,) on a wall with inward `normal` (3,)."""
    tangent = np.cross(normal, rng.standard_normal(3))
    tangent /= np.linalg.norm(tangent)
    frame = np.stack([tangent, np.cross(normal, tangent), normal])
    kind = rng.choice(["flat", "sessile", "stalked"], p=[0.25, 0.5, 0.25])
    height = {"flat": 0.3, "sessile": 0.7, "stalked": 0.8}[kind] * rng.uniform(0.8, 1.2)
    lift = {"flat": 0.0, "sessile": rng.uniform(-0.1, 0.4), "stalked": rng.uniform(0.8, 1.2)}[kind]
    lobes = 1 + (int(rng.integers(1, 5)) if rng.random() < 0.5 else 0)
    offsets = np.concatenate([np.zeros((1, 2)), rng.normal(0, 0.5, (lobes - 1, 2))])
    centres = [foot + size * (across * frame[0] + along * frame[1] + lift * normal) for across, along in offsets]
    axes = [size * np.array([*rng.uniform(0.6, 1.1, 2), height]) * (0.65 if i else 1) for i in range(lobes)]
    if kind == "stalked":
        centres.append(foot + size * 0.4 * normal)
        axes.append(size * np.array([0.35, 0.3, 0.9]))
    tint = rng.uniform(0.9, 1.1) * np.exp(-rng.normal(0.05, 0.12) * np.array([0.2, 1.0, 0.9]))
    waves = [
        (*rng.normal(0, 1, 3) * pitch / size, rng.uniform(0, 6.3), rng.uniform(0, swell) * size)
        for pitch, swell in WAVES
    ]
    arrays = (np.asarray(array, dtype=np.float32) for array in (frame, centres, axes, waves, tint))
    return Polyp(*arrays, foot=0.12 * size, spots=rng.uniform(0.05, 0.35), grain=rng.uniform(7, 18))
