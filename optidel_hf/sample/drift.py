"""A view that wanders over a still picture, as a hand-held camera does: the near copies of one scene.

Zoom, pan and roll each swing slowly about a middle, so that consecutive copies differ least, and the view stays inside
the picture. While the shutter is open the view moves on: motion blur is the mean of what passes before it.

Shapes: `H`, `W` sides of the picture, `C` channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image


NEAREST, FARTHEST = 1.30, 1.08  # zoom: the view never leaves the picture, rolled as far as it goes
ROLL = 0.06  # radians
INSTANTS = 5  # of an exposure that blurs
SHARP = 0.4  # pixels that may pass before an open shutter unseen
ZOOM, ACROSS, DOWN, TURN = range(4)


@dataclass(frozen=True)
class Drift:
    """How one view wanders.

    Attributes:
        middle: (4,) of zoom, pan across and down, roll; each stays within -1 and 1.
        waves: (4, 3) amplitude, angular frequency a copy, phase.
    """

    middle: np.ndarray
    waves: np.ndarray

    def affine(self, time: float, width: int, height: int) -> tuple[float, ...]:
        """Coefficients (6,) that take a pixel of the copy at a `time` to its place in the picture."""
        amplitude, frequency, phase = self.waves.T
        state = self.middle + amplitude * np.sin(frequency * time + phase)
        share = FARTHEST ** ((state[ZOOM] - 1) / 2) / NEAREST ** ((state[ZOOM] + 1) / 2)
        cosine, sine = share * np.cos(ROLL * state[TURN]), share * np.sin(ROLL * state[TURN])
        room_x = max(0.0, width - cosine * width - abs(sine) * height) / 2
        room_y = max(0.0, height - cosine * height - abs(sine) * width) / 2
        x = width / 2 + room_x * state[ACROSS] - cosine * width / 2 + sine * height / 2
        y = height / 2 + room_y * state[DOWN] - sine * width / 2 - cosine * height / 2
        return cosine, -sine, x, sine, cosine, y


def draw_drift(rng: np.random.Generator) -> Drift:
    """Draw how a view wanders."""
    waves = np.stack([rng.uniform(0.2, 0.5, 4), rng.uniform(0.1, 0.5, 4), rng.uniform(0, 2 * np.pi, 4)], axis=1)
    return Drift(rng.uniform(-0.5, 0.5, 4), waves)


def look(picture: np.ndarray, drift: Drift, time: float, shutter: float) -> np.ndarray:
    """
    One copy of a picture.

    Args:
        picture (`np.ndarray`): (H, W, C) float32.
        drift (`Drift`): how the view wanders.
        time (`float`): when, in copies.
        shutter (`float`): how long the shutter stays open, in copies.

    Returns:
        `np.ndarray`: (H, W, C) float32.
    """
    height, width = picture.shape[:2]
    first, last = (np.array(drift.affine(moment, width, height)) for moment in (time, time + shutter))
    blurred = np.abs(first - last)[[2, 5]].max() > SHARP
    moments = np.linspace(time, time + shutter, INSTANTS) if blurred else [time]
    return np.mean([_view(picture, drift.affine(moment, width, height)) for moment in moments], axis=0)


def _view(picture: np.ndarray, affine: tuple[float, ...]) -> np.ndarray:
    size = picture.shape[1], picture.shape[0]
    planes = (Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(picture, -1, 0))
    moved = [plane.transform(size, Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC) for plane in planes]
    return np.stack([np.asarray(plane) for plane in moved], axis=-1)
