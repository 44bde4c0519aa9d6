"""Polyps: ellipsoids with waves on their surface, as signed distances that a ray can be marched against.

Near an ellipsoid its distance is about k0 (k0 - 1) / k1, with k0 and k1 the lengths of a point over the half-axes and
over their squares; lobes melt into each other by a polynomial smooth minimum (Quilez, "Distance functions").

Legend: `K` lobes, `W` waves, `N` points; lengths are in units of the bowel's radius.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


# Wave number and height, over the polyp's half-width, of the waves on a polyp: lumps, then grain.
WAVES = [(2.2, 0.10)] * 4 + [(6.0, 0.03)] * 4


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


def smooth_minimum(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """The minimum of two distances, rounded where they meet within `width`."""
    overlap = np.maximum(width - np.abs(a - b), 0) / width
    return np.minimum(a, b) - overlap**2 * width / 4


def length(vectors: np.ndarray) -> np.ndarray:
    """The lengths (N,) of vectors (N, 3)."""
    return np.sqrt(np.einsum("ni,ni->n", vectors, vectors))


def polyp_normals(polyp: Polyp, points: np.ndarray) -> np.ndarray:
    """Unit normals (N, 3): central differences of the polyp's distance."""
    step = np.float32(0.05 * polyp.axes.min())
    shifts = np.eye(3, dtype=np.float32) * step
    normal = np.stack([polyp.distance(points + s) - polyp.distance(points - s) for s in shifts], axis=1)
    return normal / np.maximum(length(normal), 1e-9)[:, None]


def paint_polyp(mucosa: np.ndarray, polyp: Polyp, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The colour (N, 3) and wetness (N,) of a polyp: its own tint of the `mucosa` (3,), with pits and patches."""
    x, y, z = ((points - polyp.centres[0]) @ polyp.frame.T * (polyp.grain / polyp.axes.max())).T
    pits = np.sin(x + 1.5 * np.sin(0.6 * y + z)) * np.sin(y + 1.5 * np.sin(0.7 * x - z))
    patches = np.sin(0.23 * x + 0.31 * y + 0.4 * z)
    shade = np.exp(polyp.spots * (pits + 0.7 * patches)[:, None] * np.array([0.3, 1.0, 0.9], dtype=np.float32))
    return mucosa * polyp.tint * shade, 1.4 * np.sin(1.1 * x + np.sin(y)) * np.sin(0.9 * y + z)


def grow_polyp(rng: np.random.Generator, foot: np.ndarray, normal: np.ndarray, size: float) -> Polyp:
    """Grow a flat, sessile or stalked polyp of half-width `size` at `foot` (3,); `normal` (3,) points inwards."""
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
    lobed = np.array(centres, np.float32), np.array(axes, np.float32)
    look = np.array(waves, np.float32), tint.astype(np.float32)
    return Polyp(frame.astype(np.float32), *lobed, *look, 0.12 * size, rng.uniform(0.1, 0.4), rng.uniform(7, 18))
