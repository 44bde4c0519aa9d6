"""Rendering frames: a fisheye lens's rays are marched to the wall and the polyps, and lit from the lens's own lamp.

The march advances by a fraction of the distance to the scene (sphere tracing; Hart, 1996), capped so that no fold is
stepped over, then bisects. Only rays that pass near a polyp pay for its distance. Light falls off with distance, which
alone makes the lumen dark; highlights are where the wet surface faces the lamp.

Legend: `F` frames, `S` image side, `N` rays or points.
"""

from __future__ import annotations

from collections.abc import Iterator
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
from optidel_hf.sample.polyps import Polyp, length, paint_polyp, polyp_normals, smooth_minimum


NEAR, FAR = np.float32(0.03), np.float32(5.0)
PIXELS_AT_ONCE = 2**17


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
class Rays:
    """Half-lines from `origins` (N, 3) along unit `directions` (N, 3)."""

    origins: np.ndarray
    directions: np.ndarray

    def at(self, travelled: np.ndarray) -> np.ndarray:
        """The points (N, 3) that lie `travelled` (N,) away."""
        return self.origins + travelled[:, None] * self.directions

    def take(self, rows: np.ndarray) -> Rays:
        """Some of the rays, by index or mask."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        return Rays(self.origins.take(rows, axis=0), self.directions.take(rows, axis=0))


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


def march(bowel: Bowel, polyps: list[Polyp], rays: Rays, start: np.ndarray) -> np.ndarray:
    """How far rays, already `start` (N,) away, travel to the scene, at most `FAR`."""
    # A start that is already behind a fold starts anew.
    buried = scene_distance(bowel, polyps, rays.at(start))[0] < 0
    travelled, before = np.where(buried, NEAR, start), np.zeros_like(start)
    active, flown = np.arange(len(start)), rays
    for _ in range(100):
        t = travelled[active]
        distance, room = scene_distance(bowel, polyps, flown.at(t))
        flying = np.flatnonzero((distance > 0.003) & (t < FAR))
        active, flown, t, room = active[flying], flown.take(flying), t[flying], room[flying]
        if not len(active):
            break
        before[active] = t
        travelled[active] = t + np.maximum(0.9 * room, 0.006 + 0.015 * t)
    for _ in range(3):
        middle = (before + travelled) / 2
        outside = scene_distance(bowel, polyps, rays.at(middle))[0] > 0
        before, travelled = np.where(outside, middle, before), np.where(outside, travelled, middle)
    return travelled


def close_in(
    bowel: Bowel, polyps: list[Polyp], rays: Rays, least: np.ndarray, most: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where rays meet the scene between `least` and `most` (N,) away, by secants; and whether (N,) they do."""
    before, behind = (scene_distance(bowel, polyps, rays.at(t))[0] for t in (least, most))
    met = (before > 0) & (behind < 0)
    for _ in range(2):
        travelled = secant(least, most, before, behind)
        distance = scene_distance(bowel, polyps, rays.at(travelled))[0]
        outside = distance > 0
        least, before = np.where(outside, travelled, least), np.where(outside, distance, before)
        most, behind = np.where(outside, most, travelled), np.where(outside, behind, distance)
    return secant(least, most, before, behind), met


def secant(least: np.ndarray, most: np.ndarray, before: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """Where a line from `before` at `least` to `behind` at `most` crosses zero."""
    return least + (most - least) * before / np.maximum(before - behind, 1e-6)


def march_images(
    bowel: Bowel, polyps: list[Polyp], cameras: list[Camera], side: int
) -> tuple[Rays, np.ndarray, np.ndarray]:
    """March the rays of images: the `N = F S S` rays, how far they travel (N,), and which pass near a polyp (N,).

    Every fourth pixel of every fourth row goes first. Where the four round a pixel travel about equally far, its own
    ray is taken to meet the same surface; the others are marched, from a little before the nearest neighbour.
    """
    coarse = -(-side // 4) + 1
    rays, near = image_rays(polyps, cameras, coarse, 8 / side, 1 / side - 1)
    ends = np.full(len(near), NEAR)
    for some, part in ((near, polyps), (~near, [])):
        ends[some] = march(bowel, part, rays.take(some), ends[some])
    marched = ends.reshape(-1, coarse, coarse)

    def enlarge(values: np.ndarray) -> np.ndarray:
        return values.repeat(4, axis=1).repeat(4, axis=2)[:, :side, :side].ravel()

    corners = np.stack([marched[:, i : coarse - 1 + i, j : coarse - 1 + j] for i in (0, 1) for j in (0, 1)])
    least, most = enlarge(0.95 * corners.min(axis=0)), enlarge(1.05 * corners.max(axis=0))
    travelled = enlarge(0.95 * minimum_filter(marched, (1, 3, 3)))
    rays, near = image_rays(polyps, cameras, side, 2 / side, 1 / side - 1)
    even = most < 1.3 * least
    for some, part in ((near, polyps), (~near, [])):
        smooth = np.flatnonzero(some & even)
        found, met = close_in(bowel, part, rays.take(smooth), least[smooth], most[smooth])
        travelled[smooth[met]] = found[met]
        rest = np.r_[np.flatnonzero(some & ~even), smooth[~met]]
        travelled[rest] = march(bowel, part, rays.take(rest), travelled[rest])
    return rays, travelled, near


def image_rays(
    polyps: list[Polyp], cameras: list[Camera], pixels: int, step: float, corner: float
) -> tuple[Rays, np.ndarray]:
    """The rays of images of `pixels` a side, `step` apart from `corner` on, and which (N,) pass near a polyp."""
    y, x = (np.mgrid[:pixels, :pixels].reshape(2, -1) * step + corner).astype(np.float32)
    directions = [camera.rays(x, y) for camera in cameras]
    near = [passes_near(polyps, camera.position, rays) for camera, rays in zip(cameras, directions)]
    origins = np.stack([camera.position for camera in cameras]).repeat(pixels**2, axis=0)
    return Rays(origins, np.concatenate(directions)), np.concatenate(near)


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
    corner = [flat.take(places, axis=0) for places in (here, here + 1, below, below + 1)]
    for first, second in ((0, 1), (2, 3)):
        corner[first] += v * (corner[second] - corner[first])
    return corner[0] + u * (corner[2] - corner[0])


def wall_normals(bowel: Bowel, points: np.ndarray, surface: np.ndarray) -> np.ndarray:
    """Unit normals (N, 3) into the lumen: the gradient of `wall_distance`, from the map's slopes."""
    x, y, r, _ = cylinder(bowel, points)
    x, y = x / r, y / r
    sx, sy = bowel.centre_slope(points[:, 2])
    turn = surface[:, SLOPE_ANGLE] / np.maximum(r, 0.2)
    normal = np.stack([-x - y * turn, -y + x * turn, surface[:, SLOPE_DEPTH] + x * sx + y * sy], axis=1)
    return normal / length(normal)[:, None]


def render(bowel: Bowel, polyps: list[Polyp], cameras: list[Camera], side: int) -> Iterator[Rendering]:
    """Render frames of `side` pixels.

    Args:
        bowel (`Bowel`): the wall.
        polyps (`list[Polyp]`): what grows on it, possibly nothing.
        cameras (`list[Camera]`): from where.
        side (`int`): the images' side in pixels.

    Yields:
        `Rendering`: light, highlights and the polyps' pixels of each frame.
    """
    few = max(1, PIXELS_AT_ONCE // side**2)
    for first in range(0, len(cameras), few):
        yield from render_together(bowel, polyps, cameras[first : first + few], side)


def render_together(bowel: Bowel, polyps: list[Polyp], cameras: list[Camera], side: int) -> list[Rendering]:
    """`render` of a few frames at once, which share what a call to numpy costs."""
    rays, travelled, near = march_images(bowel, polyps, cameras, side)
    points = rays.at(travelled)
    surface = look_up(bowel, points)
    colour, wet, normals = surface[:, COLOUR].copy(), surface[:, WET].copy(), wall_normals(bowel, points, surface)
    label = np.zeros(len(points), dtype=bool)
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
    diffuse, highlight = light(normals, -rays.directions, travelled, colour, wet)
    images = diffuse.reshape(-1, side, side, 3), highlight.reshape(-1, side, side), label.reshape(-1, side, side)
    return [Rendering(*image) for image in zip(*images)]


def light(
    normals: np.ndarray, to_lamp: np.ndarray, travelled: np.ndarray, colour: np.ndarray, wet: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Diffuse light (N, 3), redder the deeper it has been, and highlights (N,) of surfaces lit from the lens."""
    facing = np.clip(np.einsum("ni,ni->n", normals, to_lamp), 0, 1)
    strength = (0.4 + 0.6 * facing) / (0.10 + travelled**1.8)
    bounced = 0.03 / (0.3 + travelled)
    deeper = colour ** (1 + 0.25 * np.minimum(travelled, 2.5))[:, None]
    diffuse = deeper * (strength + bounced)[:, None]
    glint = np.clip((facing + 0.015 * wet - 1.0) / 0.005, 0, 1)
    return diffuse.astype(np.float32), (2.0 * glint / (0.5 + travelled)).astype(np.float32)
