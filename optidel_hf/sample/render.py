"""Rendering one frame: a fisheye lens's rays are marched to the wall and the polyps, and lit from the lens's own lamp.

The march advances by a fraction of the distance to the scene (sphere tracing; Hart, 1996), capped so that no fold is
stepped over, then bisects. Only rays that pass near a polyp pay for its distance. Light falls off with distance, which
alone makes the lumen dark; highlights are where the wet surface faces the lamp.

Legend: `S` image side, `N` rays or points.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import minimum_filter

from optidel_hf.sample.bowel import (
    ANGLES,
    COLOUR,
    DEPTHS,
    LENGTH,
    REACH,
    SLOPE_ANGLE,
    SLOPE_DEPTH,
    WET,
    Bowel,
)
from optidel_hf.sample.polyps import Polyp, paint_polyp, polyp_normals, smooth_minimum


NEAR, FAR = np.float32(0.03), np.float32(5.0)


@dataclass
class Camera:
    """Where the lens is, where it looks, and how wide.

    Attributes:
        position: (3,).
        axes: (3, 3) rows are right, down and forward.
        half_angle: the angle in radians between the axis and the middle of an image's side.
    """

    position: np.ndarray
    axes: np.ndarray
    half_angle: float

    def rays(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Unit directions (N, 3) through image points whose sides lie at -1 and 1."""
        rho = np.hypot(x, y) + 1e-6
        sine = np.sin(rho * self.half_angle) / rho
        local = np.stack([x * sine, y * sine, np.cos(rho * self.half_angle)], axis=-1)
        return (local @ self.axes).astype(np.float32)


@dataclass
class Rendering:
    """What the lens sees before the camera's electronics.

    Attributes:
        diffuse: (S, S, 3) float32 linear light.
        highlight: (S, S) float32, 0 to 1.
        polyp: (S, S) bool.
    """

    diffuse: np.ndarray
    highlight: np.ndarray
    polyp: np.ndarray


def cylinder(bowel: Bowel, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Offset from the centre line (x, y), its length, and its angle in map cells, of points (N, 3)."""
    cx, cy = bowel.centre(points[:, 2])
    x, y = points[:, 0] - cx, points[:, 1] - cy
    return x, y, np.sqrt(x * x + y * y), np.arctan2(y, x) * np.float32(ANGLES / (2 * np.pi)) + np.float32(ANGLES / 2)


def wall_distance(bowel: Bowel, points: np.ndarray) -> np.ndarray:
    """How far points (N, 3) stand inside the wall, measured towards the centre line; negative behind it."""
    return wall_and_room(bowel, points)[0]


def wall_and_room(bowel: Bowel, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`wall_distance` (N,), and how far points (N, 3) may move with no fold in the way (N,), not over `REACH`."""
    _, _, r, angle = cylinder(bowel, points)
    depth = np.minimum(np.maximum(points[:, 2] * np.float32(DEPTHS / LENGTH), 0), np.float32(DEPTHS - 1.01))
    row, column = angle.astype(np.int32), depth.astype(np.int32)
    u, v, here = angle - row, depth - column, row * DEPTHS + column
    corner = [bowel.radius.take(here + step, mode="wrap") for step in (0, 1, DEPTHS, DEPTHS + 1)]
    above, below = corner[0] + v * (corner[1] - corner[0]), corner[2] + v * (corner[3] - corner[2])
    room = np.minimum(bowel.narrowest.take(here, mode="wrap") - r, np.float32(REACH))
    return above + u * (below - above) - r, room


def scene_distance(bowel: Bowel, polyps: list[Polyp], points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distance (N,) of points (N, 3) to the wall or the nearest polyp, and how far they may move (N,)."""
    distance, room = wall_and_room(bowel, points)
    for polyp in polyps:
        own = polyp.distance(points)
        distance, room = smooth_minimum(distance, own, 2 * polyp.foot), np.minimum(room, own)
    return distance, room


def march(bowel: Bowel, polyps: list[Polyp], origin: np.ndarray, rays: np.ndarray, start: np.ndarray) -> np.ndarray:
    """How far rays (N, 3) from `origin` (3,), already `start` (N,) away, travel to the scene, at most `FAR`."""
    # A start that is already behind a fold starts anew.
    buried = scene_distance(bowel, polyps, origin + start[:, None] * rays)[0] < 0
    travelled, before = np.where(buried, NEAR, start), np.zeros_like(start)
    active, flown = np.arange(len(rays)), rays
    for _ in range(100):
        t = travelled[active]
        distance, room = scene_distance(bowel, polyps, origin + t[:, None] * flown)
        flying = np.flatnonzero((distance > 0.003) & (t < FAR))
        active, flown, t, room = active[flying], flown.take(flying, axis=0), t[flying], room[flying]
        if not len(active):
            break
        before[active] = t
        travelled[active] = t + np.maximum(0.9 * room, 0.006 + 0.015 * t)
    for _ in range(3):
        middle = (before + travelled) / 2
        outside = scene_distance(bowel, polyps, origin + middle[:, None] * rays)[0] > 0
        before, travelled = np.where(outside, middle, before), np.where(outside, travelled, middle)
    return travelled


def march_image(
    bowel: Bowel, polyps: list[Polyp], camera: Camera, side: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """March an image's rays: the rays (N, 3), how far they travel (N,), and which pass near a polyp (N,).

    Every fourth pixel of every fourth row goes first; the others start a little before the nearest of its neighbours.
    """
    coarse = -(-side // 4) + 1
    start = np.full(coarse**2, NEAR)
    travelled = march_grid(bowel, polyps, camera, coarse, 8 / side, start, 1 / side - 1)[1]
    nearest = 0.95 * minimum_filter(travelled.reshape(coarse, coarse), 3)
    start = nearest.repeat(4, axis=0).repeat(4, axis=1)[:side, :side].ravel()
    return march_grid(bowel, polyps, camera, side, 2 / side, start, 1 / side - 1)


def march_grid(
    bowel: Bowel, polyps: list[Polyp], camera: Camera, pixels: int, step: float, start: np.ndarray, corner: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`march_image` for a square of `pixels` a side, `step` apart, whose first pixel lies at `corner` on both axes."""
    y, x = (np.mgrid[:pixels, :pixels].reshape(2, -1) * step + corner).astype(np.float32)
    rays = camera.rays(x, y)
    near = passes_near(polyps, camera.position, rays)
    travelled = np.empty_like(start)
    travelled[near] = march(bowel, polyps, camera.position, rays[near], start[near])
    travelled[~near] = march(bowel, [], camera.position, rays[~near], start[~near])
    return rays, travelled, near


def passes_near(polyps: list[Polyp], origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Which rays (N, 3) pass through the ball round a polyp."""
    near = np.zeros(len(rays), dtype=bool)
    for polyp in polyps:
        centre, radius = polyp.reach()
        towards = centre - origin
        along = rays @ towards.astype(np.float32)
        near |= (towards @ towards - along**2 < radius**2) & (along > -radius)
    return near


def look_up(bowel: Bowel, points: np.ndarray) -> np.ndarray:
    """The map's channels (N, C) at points (N, 3), interpolated linearly."""
    angle = cylinder(bowel, points)[3]
    depth = np.clip(points[:, 2] * np.float32(DEPTHS / LENGTH), 0, DEPTHS - 1.001)
    row, column = angle.astype(np.int32) % ANGLES, depth.astype(np.int32)
    u, v = (angle % 1)[:, None], (depth % 1)[:, None]
    flat = bowel.surface.reshape(ANGLES * DEPTHS, -1)
    here, below = row * DEPTHS + column, (row + 1) % ANGLES * DEPTHS + column
    return (flat[here] * (1 - v) + flat[here + 1] * v) * (1 - u) + (flat[below] * (1 - v) + flat[below + 1] * v) * u


def wall_normals(bowel: Bowel, points: np.ndarray, surface: np.ndarray) -> np.ndarray:
    """Unit normals (N, 3) into the lumen: the gradient of `wall_distance`, from the map's slopes."""
    x, y, r, _ = cylinder(bowel, points)
    x, y = x / r, y / r
    sx, sy = bowel.centre_slope(points[:, 2])
    turn = surface[:, SLOPE_ANGLE] / np.maximum(r, 0.2)
    normal = np.stack([-x - y * turn, -y + x * turn, surface[:, SLOPE_DEPTH] + x * sx + y * sy], axis=1)
    return normal / np.linalg.norm(normal, axis=1, keepdims=True)


def render(bowel: Bowel, polyps: list[Polyp], camera: Camera, side: int) -> Rendering:
    """Render one frame of `side` pixels.

    Args:
        bowel (`Bowel`): the wall.
        polyps (`list[Polyp]`): what grows on it, possibly nothing.
        camera (`Camera`): from where.
        side (`int`): the image's side in pixels.

    Returns:
        `Rendering`: light, highlights and the polyps' pixels.
    """
    rays, travelled, near = march_image(bowel, polyps, camera, side)
    points = camera.position + travelled[:, None] * rays
    surface = look_up(bowel, points)
    colour, wet, normals = surface[:, COLOUR].copy(), surface[:, WET].copy(), wall_normals(bowel, points, surface)
    label = np.zeros(len(rays), dtype=bool)
    if near.any():
        distances = np.stack([wall_distance(bowel, points[near]), *(polyp.distance(points[near]) for polyp in polyps)])
        nearest = distances[1:].argmin(axis=0)
        for index, polyp in enumerate(polyps):
            # Over the foot, the polyp's normal and colour take over from the wall's.
            weight = np.clip((distances[0] - distances[index + 1]) / polyp.foot + 0.5, 0, 1) * (nearest == index)
            part, weight = np.flatnonzero(near)[weight > 0], weight[weight > 0][:, None]
            own_colour, own_wet = paint_polyp(bowel.mucosa, polyp, points[part])
            normals[part] += weight * (polyp_normals(polyp, points[part]) - normals[part])
            colour[part] += weight * (own_colour - colour[part])
            wet[part] += weight[:, 0] * (own_wet - wet[part])
            label[part] = weight[:, 0] > 0.5
    diffuse, highlight = light(normals, -rays, travelled, colour, wet)
    return Rendering(diffuse.reshape(side, side, 3), highlight.reshape(side, side), label.reshape(side, side))


def light(
    normals: np.ndarray, to_lamp: np.ndarray, travelled: np.ndarray, colour: np.ndarray, wet: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Diffuse light (N, 3), redder the deeper it has been, and highlights (N,) of surfaces lit from the lens."""
    facing = np.clip(np.sum(normals * to_lamp, axis=1), 0, 1)
    strength = (0.4 + 0.6 * facing) / (0.10 + travelled**1.8)
    bounced = 0.03 / (0.3 + travelled)
    deeper = colour ** (1 + 0.25 * np.minimum(travelled, 2.5))[:, None]
    diffuse = deeper * (strength + bounced)[:, None]
    glint = np.clip((facing + 0.015 * wet - 1.0) / 0.005, 0, 1)
    return diffuse.astype(np.float32), (2.0 * glint / (0.5 + travelled)).astype(np.float32)
