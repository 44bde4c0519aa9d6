"""Opening images as a viewer would show them, or saying in one phrase why that cannot be done."""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from optidel_hf.errors import UserError


# Pillow's own decompression-bomb limit: 1024 * 1024 * 1024 / 4 / 3 pixels.
MAX_IMAGE_PIXELS = 89_478_485
# For sources whose size was accepted when their patches were cut: Pillow's own limit, twice the above, still holds.
ACCEPTED = sys.maxsize
DECODING_THREADS = 4
LEAST_OF_16_BITS = 2**12  # of the largest value: 12 bits in 16, as cameras and scanners write them, would be black
# `open_image` has a limit of its own. For the whole process: `catch_warnings` is not safe in the threads that decode.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class ImageRejected(ValueError):
    """An image that cannot be used; the message is the reason that goes to `rejected/`."""


class Opened(NamedTuple):
    """A decoded image and the size of the image that it stands for."""

    image: Image.Image  # RGB, upright
    size: tuple[int, int]  # width and height of the source, upright

    @classmethod
    def whole(cls, image: Image.Image) -> Opened:
        """An RGB image that stands for itself."""
        return cls(image, image.size)

    @property
    def scale(self) -> float:
        """Pixels of `image` for one of the source: 1, or 1/2, 1/4, 1/8."""
        return 1 / round(max(self.size) / max(self.image.size))


def open_image(value: Any, max_pixels: int = MAX_IMAGE_PIXELS, canvas: str = "white") -> Image.Image:
    """
    Open one image as 8-bit RGB, upright.

    EXIF orientation is applied, the first frame of an animation is taken, transparency is laid on `canvas`,
    CMYK and palettes are converted, and 16-bit grey is scaled to 8 bits; 16 bits that hold 12 or fewer are rejected.

    Args:
        value (`dict`, `PIL.Image.Image`, `str` or `Path`):
            An undecoded `datasets.Image` (`{"bytes": ..., "path": ...}`), a PIL image, or a path.
        max_pixels (`int`, *optional*, defaults to Pillow's bomb limit):
            Larger images are rejected before they are decoded.
        canvas (`str`, *optional*, defaults to `"white"`):
            The colour that shows where an image is transparent.

    Returns:
        `PIL.Image.Image` in mode `"RGB"`.

    Raises:
        `ImageRejected`: with the reason, if the image is missing, truncated, too large or not an image.
    """
    return open_reduced(value, None, max_pixels, canvas).image


def open_reduced(
    value: Any, least: tuple[int, int] | None, max_pixels: int = MAX_IMAGE_PIXELS, canvas: str = "white"
) -> Opened:
    """
    Like [`open_image`], but a large JPEG is decoded at a half, a quarter or an eighth of its size: in that much less
    memory and time.

    Args:
        value, max_pixels, canvas: as for [`open_image`]; the limit is on the size in the file.
        least (`tuple[int, int]`, *optional*):
            Shorter and longer side that must remain, in pixels; without it nothing is reduced.

    Returns:
        [`Opened`].
    """
    try:
        image = _open_lazily(value)
        width, height = image.size
        if width * height > max_pixels:
            raise ImageRejected(f"{width}x{height} is over the limit of {max_pixels} pixels")
        if image is value:  # the caller's own: it stays as it is
            image = ImageOps.exif_transpose(image)
            turned = image.size != value.size
        else:
            turned = _load(image, least)
        return Opened(_to_rgb(image, canvas), (height, width) if turned else (width, height))
    except (ImageRejected, UserError):
        raise
    except UnidentifiedImageError:
        raise ImageRejected("not an image that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise ImageRejected(str(error)) from None
    except Exception as error:  # on broken data decoders raise OSError, SyntaxError, RuntimeError, struct.error, ...
        raise ImageRejected(f"broken image: {error}") from None


def count_pixels(value: Any, max_pixels: int = MAX_IMAGE_PIXELS) -> int:
    """Pixels that decoding an image takes, by its header alone; 0 for one that is rejected before."""
    try:
        width, height = _open_lazily(value).size
    except Exception:  # as many kinds as in `open_reduced`
        return 0
    return width * height if width * height <= max_pixels else 0


def split_runs(pixels: list[int], images: int, most: int) -> list[range]:
    """Consecutive rows in runs of at most `images` images with at most `most` pixels in all, none of them larger."""
    runs, start = [], 0
    for i in range(1, len(pixels) + 1):
        if i == len(pixels) or i - start == images or sum(pixels[start : i + 1]) > most:
            runs.append(range(start, i))
            start = i
    return runs


def decode_reason(value: Any, max_pixels: int = MAX_IMAGE_PIXELS) -> tuple[Image.Image | None, str | None]:
    """Like [`open_image`], returning `(image, None)` or `(None, reason)`: what a thread pool can map over."""
    try:
        return open_image(value, max_pixels), None
    except ImageRejected as rejected:
        return None, str(rejected)


def cut_square(image: Image.Image, crop: tuple[int, int, int], size: int, scale: float = 1.0) -> Image.Image:
    """
    Cut the square `crop` = (x, y, side) and resize it to `size` x `size` pixels.

    The one way in which tiles and patches are cut: Pillow's bicubic filter (antialiased, integer arithmetic), so that
    the same source and crop give the same pixels on every machine.

    Args:
        image (`PIL.Image.Image`).
        crop (`tuple[int, int, int]`): in pixels of the source.
        size (`int`).
        scale (`float`, *optional*, defaults to 1.0): pixels of `image` for one of the source, where it was reduced.
    """
    x, y, side = (scale * value for value in crop)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(x, y, x + side, y + side))


def centre_square(width: int, height: int) -> tuple[int, int, int]:
    """The largest centred square of an image as (x, y, side): the crop that stands for the whole image."""
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side


def encode_png(image: Image.Image) -> bytes:
    """Lossless PNG bytes, at a fixed compression level so that equal pixels give equal bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def source_sha256(value: dict[str, Any]) -> str:
    """Hash of a source image's file, from its undecoded value."""
    content = value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()
    return hashlib.sha256(content).hexdigest()


def _open_lazily(value: Any) -> Image.Image:
    if isinstance(value, Image.Image):
        return value
    if hasattr(value, "shape"):
        raise UserError("An image came as an array: take the dataset's format off, by with_format(None).")
    if isinstance(value, dict):
        value = io.BytesIO(value["bytes"]) if value.get("bytes") is not None else value.get("path")
    if value is None:
        raise ImageRejected("no image in this row")
    if isinstance(value, io.BytesIO):
        return Image.open(value)
    if not (path := Path(value)).exists():
        raise ImageRejected(_not_found(str(path)))
    if not path.is_file():
        raise ImageRejected("not a regular file")
    return Image.open(path)


def _not_found(path: str) -> str:
    if re.match(r"\w+:/", path):
        return "a URL, which is not fetched: download it first"
    return "file not found" if os.path.isabs(path) else "file not found: relative paths begin at the working folder"


def _load(image: Image.Image, least: tuple[int, int] | None) -> bool:
    """
    Decode in place and turn upright; no copy is made where nothing is turned.

    Returns whether that exchanged width and height, which EXIF alone does not tell: Pillow turns some formats itself.
    """
    if least is not None:
        reduction = min(side / kept for side, kept in zip(sorted(image.size), least))
        # A decoder takes the power of two that leaves at least the size asked for; all but JPEG's ignore it.
        width, height = (math.ceil(side / max(reduction, 1)) for side in image.size)
        image.draft(None, (width, height))
    stored = image.size
    ImageOps.exif_transpose(image, in_place=True)
    image.load()
    return image.size != stored


def _to_rgb(image: Image.Image, canvas: str) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # Pillow's for 16-bit PGM
        values = np.asarray(image)
        if 0 < values.max() < LEAST_OF_16_BITS:
            raise ImageRejected(f"16 bits with no value above {values.max()}, nearly black: scale it to 65535")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageRejected(f"mode {image.mode} has no fixed range: convert it to 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, canvas), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
