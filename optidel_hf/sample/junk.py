"""Frames that teach nothing: out of focus, black, blinded by glare, or covered by burned-in text.

Images are (H, W, 3) uint8.
"""

from __future__ import annotations

import string
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont


INKS = ((255, 255, 255), (255, 235, 60), (90, 255, 120), (90, 220, 255))


def defocus(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The lens far out of focus: nothing smaller than a tenth of the frame is left."""
    radius = float(rng.uniform(0.06, 0.12) * min(image.shape[:2]))
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def darken(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The lamp off: a few levels of the picture and the sensor's noise."""
    noise = rng.normal(2, 1.5, image.shape)
    return (image * rng.uniform(0, 0.03) + noise).clip(0, 255).astype(np.uint8)


def blind(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light straight into the lens: the middle of the frame is burnt out, and white fades towards its rim."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width] / max(height, width)
    centre, reach = rng.uniform(0.35, 0.65, 2) * (height, width) / max(height, width), rng.uniform(0.50, 0.65)
    away = np.hypot(y - centre[0], x - centre[1])
    veil = 1 / (1 + np.exp((away - reach) / 0.05))[..., None]
    return (image * (1 - veil) + 262 * veil).clip(0, 255).astype(np.uint8)


def write_over(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A report's text from edge to edge, on a black page or on the picture itself."""
    height, width = image.shape[:2]
    size = max(6, round(height * rng.uniform(0.07, 0.11)))
    page = Image.fromarray(image) if rng.random() < 0.5 else Image.new("RGB", (width, height))
    pen, font, ink = ImageDraw.Draw(page), ImageFont.load_default(size), INKS[rng.integers(len(INKS))]
    letters = list(string.ascii_uppercase + string.digits + "  :.-/")
    for top in range(size // 2, height - size, round(1.3 * size)):
        line = "".join(rng.choice(letters, int(rng.uniform(0.8, 1.8) * width / size)))
        pen.text((size // 2, top), line, ink, font)
    return np.asarray(page)


JUNK: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "blur": defocus,
    "black": darken,
    "glare": blind,
    "text": write_over,
}
