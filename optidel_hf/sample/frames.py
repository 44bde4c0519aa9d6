"""Colonoscopy-like sequences with pixel masks of their polyps, from a seed.

A sequence is one scene (`bowel`, `polyps`) seen by a camera that drifts smoothly, so that consecutive frames are
near-duplicates as in a real examination. A sequence is a function of its seed, its number and its configuration alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from optidel_hf.sample.bowel import Bowel, build_bowel
from optidel_hf.sample.optics import build_endoscope, photograph
from optidel_hf.sample.polyps import Polyp, grow_polyp
from optidel_hf.sample.render import NEAR, Camera, Rays, look_up, march, render, wall_distance, wall_normals


@dataclass
class FrameConfig:
    """What frames look like; `seed` and the sequence's number do the rest."""

    image_size: int = field(default=128, metadata={"help": "Side of the frames in pixels."})
    frames_per_sequence: int = field(default=20, metadata={"help": "Frames in a sequence."})
    stride: int = field(
        default=1, metadata={"help": "Keep every stride-th frame: more, and frames of a sequence differ more."}
    )
    polyp_rate: float = field(default=0.6, metadata={"help": "Share of the sequences with a polyp in their scene."})

    def __post_init__(self) -> None:
        if self.image_size < 16:
            raise ValueError(f"image_size is {self.image_size}; frames need at least 16 pixels a side.")
        if self.frames_per_sequence < 1 or self.stride < 1:
            raise ValueError("frames_per_sequence and stride count frames and must be at least 1.")
        if not 0 <= self.polyp_rate <= 1:
            raise ValueError(f"polyp_rate is {self.polyp_rate}; it is a share between 0 and 1.")


@dataclass
class Flight:
    """How the camera drifts: every quantity is a start, a steady rate a frame, and a slow wave.

    Attributes:
        start, rate: (6,) depth, offset x and y, pan, tilt, roll.
        waves: (6, 3) amplitude, angular frequency a frame, phase.
        half_angle: of the lens, radians.
    """

    start: np.ndarray
    rate: np.ndarray
    waves: np.ndarray
    half_angle: float

    def camera(self, bowel: Bowel, frame: float) -> Camera:
        """The camera at a frame's time."""
        amplitude, frequency, phase = self.waves.T
        depth, right, down, pan, tilt, roll = (
            self.start + frame * self.rate + amplitude * np.sin(frequency * frame + phase)
        )
        cx, cy = bowel.centre(np.asarray(depth))
        sx, sy = bowel.centre_slope(np.asarray(depth))
        forward = np.array([sx, sy, 1.0]) / np.sqrt(sx**2 + sy**2 + 1)
        side = np.cross([0.0, 1.0, 0.0], forward)
        side /= np.linalg.norm(side)
        axes = turn(pan, 0, 2) @ turn(tilt, 1, 2) @ np.stack([side, np.cross(forward, side), forward])
        return Camera(
            np.array([cx + right, cy + down, depth], dtype=np.float32), turn(roll, 0, 1) @ axes, self.half_angle
        )

    def path(self, bowel: Bowel, frames: int) -> np.ndarray:
        """The positions (T, 3) of the camera at every frame."""
        return np.stack([self.camera(bowel, frame).position for frame in range(frames)])


def turn(angle: float, first: int, second: int) -> np.ndarray:
    """The rotation by `angle` in the plane of two axes."""
    matrix = np.eye(3)
    matrix[[first, second], [first, second]] = np.cos(angle)
    matrix[first, second], matrix[second, first] = np.sin(angle), -np.sin(angle)
    return matrix


def plan_flight(rng: np.random.Generator, bowel: Bowel, frames: int) -> Flight:
    """Draw flights until one keeps clear of the wall and its folds, asking for less room each time."""
    for clearance in np.linspace(0.4, 0, 40):
        flight = draw_flight(rng)
        path = flight.path(bowel, frames)
        ahead = [wall_distance(bowel, path + np.array([0, 0, step], dtype=np.float32)) for step in (-0.2, 0, 0.2)]
        if np.min(ahead) >= clearance:
            break
    return flight


def draw_flight(rng: np.random.Generator) -> Flight:
    """Draw a flight: into the lumen, or along a wall that fills the view."""
    away = rng.uniform(0, 2 * np.pi)
    angle = rng.uniform(0.0, 0.5) if rng.random() < 0.45 else rng.uniform(0.6, 1.35)
    start = np.array(
        [
            rng.uniform(1.6, 2.2),
            *rng.uniform(-0.35, 0.35, 2),
            angle * np.cos(away),
            angle * np.sin(away),
            rng.uniform(-3.1, 3.1),
        ]
    )
    scale = np.array([0.012, 0.006, 0.006, 0.010, 0.010, 0.008])
    waves = np.stack([rng.uniform(0.5, 3, 6) * scale, rng.uniform(0.1, 0.5, 6), rng.uniform(0, 6.3, 6)], axis=1)
    return Flight(start, rng.normal(0, 1, 6) * scale, waves, rng.uniform(0.9, 1.2))


def place_polyp(rng: np.random.Generator, bowel: Bowel, flight: Flight, frames: int) -> Polyp:
    """Grow a polyp on the wall that the camera sees at some frame, as large as a drawn share of that frame."""
    camera = flight.camera(bowel, rng.uniform(0.15, 0.85) * frames)
    directions = camera.rays(*rng.uniform(-0.6, 0.6, (2, 8)).astype(np.float32))
    rays = Rays(np.tile(camera.position, (8, 1)), directions)
    travelled = march(bowel, [], rays, np.full(8, NEAR))
    best = np.argmin(np.abs(np.log(travelled / 0.8)))
    foot = rays.at(travelled)[best]
    normal = wall_normals(bowel, foot[None], look_up(bowel, foot[None]))[0]
    share = np.exp(rng.uniform(np.log(0.01), np.log(0.15)))
    size = travelled[best] * min(0.6, np.tan(np.sqrt(4 * share / np.pi) * flight.half_angle))
    path = flight.path(bowel, frames)
    state = rng.integers(2**32)
    # The same polyp, ever smaller, until the camera keeps its distance.
    for shrunk in size * 0.8 ** np.arange(12):
        polyp = grow_polyp(np.random.default_rng(state), foot, normal, shrunk)
        if polyp.distance(path).min() > 0.1 + 0.8 * shrunk:
            break
    return polyp


def generate_sequence(seed: int, sequence: int, config: FrameConfig) -> tuple[np.ndarray, np.ndarray]:
    """Generate one sequence.

    Args:
        seed (`int`): the sample's seed.
        sequence (`int`): the sequence's number; another number is another patient and scene.
        config (`FrameConfig`): size, length, share of polyps.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: frames (T, S, S, 3) uint8, and masks (T, S, S) bool, true on polyps.
    """
    # One stream a purpose, so that without its polyps a sequence is the same in all else.
    wall, flying, growth, device, sensor = (np.random.default_rng([seed, sequence, stream]) for stream in range(5))
    times = np.arange(config.frames_per_sequence) * config.stride
    bowel = build_bowel(wall)
    moments = config.frames_per_sequence * config.stride
    flight, endoscope = plan_flight(flying, bowel, moments), build_endoscope(device, config.image_size)
    polyps: list[Polyp] = []
    if growth.random() < config.polyp_rate:
        count = growth.choice([1, 2, 3], p=[0.75, 0.18, 0.07])
        polyps = [place_polyp(growth, bowel, flight, moments) for _ in range(count)]
    blur, haze = device.uniform(0.3, 0.85), device.choice([0, 0, 0.25]) * device.random()
    frames, masks = [], []
    cameras = [flight.camera(bowel, float(time)) for time in times]
    for rendering in render(bowel, polyps, cameras, config.image_size):
        gain, jolt = np.exp(sensor.normal(0, 0.06)), sensor.exponential(0.25) ** 2
        frames.append(photograph(rendering, endoscope, sensor, (blur + jolt) * config.image_size / 128, gain, haze))
        masks.append(rendering.polyp & (endoscope.window > 0.5))
    return np.stack(frames), np.stack(masks)
