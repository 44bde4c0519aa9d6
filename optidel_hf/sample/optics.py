"""From light to a stored frame: exposure, blur, glare, the endoscope's window, sensor noise, and JPEG.

Legend: `S` image side. Images are float32 (S, S, 3) in 0 to 1 unless they are uint8.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, uniform_filter, uniform_filter1d

from optidel_hf.sample.render import Rendering


@dataclass
class Endoscope:
    """What stays the same through one examination.

    Attributes:
        window: (S, S) float32, 1 where the picture is, 0 in the black border.
        overlay: (S, S) float32, on-screen marks.
        exposure: where the brighter part of the picture is held, 0 to 1.
        white: (3,) white balance.
        quality: JPEG quality.
    """

    window: np.ndarray
    overlay: np.ndarray
    exposure: float
    white: np.ndarray
    quality: int


def build_endoscope(rng: np.random.Generator, side: int) -> Endoscope:
    """Draw one endoscope: its window's shape, its marks, its habits."""
    y, x = (np.mgrid[:side, :side] + 0.5) * (2 / side) - 1
    kind = rng.choice(["octagon", "rounded", "circle", "full"], p=[0.4, 0.25, 0.2, 0.15])
    inset = rng.uniform(0.0, 0.2) if rng.random() < 0.5 else 0.0
    x, y = np.abs(x - inset) / (1 - inset), np.abs(y) / (1 - 0.3 * inset)
    inside = {
        "octagon": np.minimum(0.98 - np.maximum(x, y), (rng.uniform(1.5, 1.75) - x - y) / 1.41),
        "rounded": 0.97 - (x**5 + y**5) ** 0.2,
        "circle": rng.uniform(1.0, 1.2) - np.hypot(x, y),
        "full": np.ones_like(x),
    }[kind]
    window = np.clip(inside * side / 2 + 0.5, 0, 1)
    return Endoscope(
        window.astype(np.float32),
        draw_overlay(rng, side, window),
        rng.uniform(0.6, 1.0),
        rng.uniform(0.94, 1.06, 3),
        int(rng.integers(70, 93)),
    )


def draw_overlay(rng: np.random.Generator, side: int, window: np.ndarray) -> np.ndarray:
    """Lines of marks as small as text at the left edge, in half of the endoscopes, where the border is black."""
    overlay = np.zeros((side, side), dtype=np.float32)
    if rng.random() < 0.5:
        for row in rng.integers(side // 16, side // 2, 4):
            length = int(rng.integers(side // 32, side // 8))
            overlay[row, 2 : 2 + length] = rng.random(length) > 0.35
    return overlay * (window == 0) * 0.7


def expose(rendering: Rendering, endoscope: Endoscope, gain: float) -> np.ndarray:
    """Linear light to display values: automatic gain, a film-like shoulder that burns near walls out, gamma."""
    red, green, blue = rendering.diffuse[endoscope.window > 0.5].T
    level = np.percentile(np.maximum(np.maximum(red, green), blue), 70)
    exposed = rendering.diffuse * endoscope.white.astype(np.float32) * np.float32(gain * endoscope.exposure / level)
    exposed = 1 - np.exp(-1.4 * exposed)
    lit = exposed ** np.float32(1 / 1.8)
    lit += 0.08 * (lit - (lit @ np.full((3, 1), 1 / 3, dtype=np.float32)))
    glare = np.minimum(rendering.highlight, 1)[..., None]
    return lit + (np.float32(1.0) - lit) * glare


def photograph(
    rendering: Rendering, endoscope: Endoscope, rng: np.random.Generator, blur: float, gain: float, haze: float
) -> np.ndarray:
    """Turn a rendering into a stored frame.

    Args:
        rendering (`Rendering`): the light.
        endoscope (`Endoscope`): window, exposure, quality.
        rng (`np.random.Generator`): for the sensor's noise.
        blur (`float`): deviation of the blur in pixels.
        gain (`float`): factor on the automatic exposure.
        haze (`float`): 0 to 1, how much a dirty lens veils.

    Returns:
        `np.ndarray`: (S, S, 3) uint8.
    """
    image = gaussian_filter(expose(rendering, endoscope, gain), (blur, blur, 0))
    if haze > 0:
        veil = uniform_filter(image, (image.shape[0] // 2, image.shape[1] // 2, 1))
        image += haze * (0.3 + 0.7 * veil - image)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    image += 0.006 * noise + 0.008 * uniform_filter1d(noise, 3, axis=1)
    border = endoscope.overlay + np.float32(0.02) * (endoscope.window < 1)
    image = image * endoscope.window[..., None] + border[..., None]
    return compress((image.clip(0, 1) * 255).astype(np.uint8), endoscope.quality)


def compress(image: np.ndarray, quality: int) -> np.ndarray:
    """Store (S, S, 3) uint8 as JPEG and read it again."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer))
