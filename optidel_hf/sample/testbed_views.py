"""What a testbed's frames show: generated scenes, or real frames, each seen by a drifting view.

A generated scene is rendered once, as light; its copies are views of that light, photographed anew (exposure, blur,
noise, JPEG) through the same endoscope, so that its black border and its marks stand still. A real frame drifts as it
is, border and all. Near copies have no parallax: the scene is still and the lens only turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
from datasets import Dataset

from optidel_hf.errors import UserError
from optidel_hf.images import ImageRejected, open_image
from optidel_hf.sample.bowel import Bowel, build_bowel
from optidel_hf.sample.drift import draw_drift, look
from optidel_hf.sample.frames import place_polyp, plan_flight
from optidel_hf.sample.optics import Endoscope, build_endoscope, photograph
from optidel_hf.sample.render import Rendering, render
from optidel_hf.sources import find_image_column


# Streams of random numbers: [seed, stream, number of the type, the scene or the frame].
WALL, DEVICE, SCENE, SHOT = range(10, 14)
POLYP_RATE = 0.6
GAMMA = 2.2
EXPOSURE = 0.12  # standard deviation of the exposure's logarithm
SHUTTER = 0.5  # mean time, in copies, for which the shutter is open

View = tuple[int, float]
"""Number of a frame, and when its scene is looked at, in copies."""
Camera = Callable[[int, Sequence[View]], Iterator[np.ndarray]]
"""From a scene's number and its views to frames (H, W, 3) uint8."""


def generated_scenes(types: np.ndarray, size: int, seed: int) -> Camera:
    """
    A camera on generated scenes.

    Args:
        types (`np.ndarray`): (scenes,) each scene's type: scenes of a type share their wall and their endoscope.
        size (`int`): side of the frames.
        seed (`int`): of the testbed.
    """

    @lru_cache(maxsize=1)  # scenes come sorted by their type
    def examination(kind: int) -> tuple[Bowel, Endoscope]:
        wall, device = (np.random.default_rng([seed, stream, kind]) for stream in (WALL, DEVICE))
        return build_bowel(wall), build_endoscope(device, size)

    def camera(scene: int, views: Sequence[View]) -> Iterator[np.ndarray]:
        bowel, endoscope = examination(int(types[scene]))
        rng = np.random.default_rng([seed, SCENE, scene])
        light, drift = _render_light(rng, bowel, size), draw_drift(rng)
        for number, time in views:
            shot = np.random.default_rng([seed, SHOT, number])
            seen = look(light, drift, time, shot.exponential(SHUTTER))
            rendering = Rendering(seen[..., :3].clip(0), seen[..., 3].clip(0), np.zeros((size, size), dtype=bool))
            gain, blur = np.exp(shot.normal(0, EXPOSURE)), shot.uniform(0.2, 0.6) * size / 128
            yield photograph(rendering, endoscope, shot, blur, gain, haze=0.0)

    return camera


def _render_light(rng: np.random.Generator, bowel: Bowel, size: int) -> np.ndarray:
    """One scene, (S, S, 4) float32: linear light, and highlights."""
    flight = plan_flight(rng, bowel, 1)
    polyps = [place_polyp(rng, bowel, flight, 1)] if rng.random() < POLYP_RATE else []
    (rendering,) = render(bowel, polyps, [flight.camera(bowel, 0.0)], size)
    return np.concatenate([rendering.diffuse, rendering.highlight[..., None]], axis=-1)


def drifting_frames(frames: Dataset, seed: int) -> Camera:
    """
    A camera on real frames.

    Args:
        frames (`datasets.Dataset`): what `open_dataset` gives, one scene a row.
        seed (`int`): of the testbed.
    """
    values = frames[find_image_column(frames)]

    def camera(scene: int, views: Sequence[View]) -> Iterator[np.ndarray]:
        picture = _read(values[scene], frames["source"][scene])
        drift = draw_drift(np.random.default_rng([seed, SCENE, scene]))
        for number, time in views:
            shot = np.random.default_rng([seed, SHOT, number])
            seen = look(picture, drift, time, shot.exponential(SHUTTER))
            gain = np.exp(shot.normal(0, EXPOSURE)) ** (1 / GAMMA)  # on light, seen through the display's gamma
            yield (seen * gain).clip(0, 255).astype(np.uint8)

    return camera


def _read(value: dict, source: str) -> np.ndarray:
    try:
        return np.asarray(open_image(value), dtype=np.float32)
    except ImageRejected as rejected:
        raise UserError(f"'{source}' cannot be used ({rejected}): remove it from the folder.") from None
