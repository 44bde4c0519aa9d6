"""What a viewer shows is what is opened; what it cannot show is rejected with its reason."""

from __future__ import annotations

import io
import random
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from optidel_hf.images import (
    ImageRejected,
    centre_square,
    count_pixels,
    cut_square,
    decode_reason,
    encode_png,
    open_image,
    open_reduced,
    split_runs,
)


KINDS = ["JPEG", "PNG", "GIF", "TIFF", "DDS", "BMP", *(k for k in ("WEBP", "AVIF") if features.check(k.lower()))]


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> dict[str, object]:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def noise(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def huge_png(side: int) -> bytes:
    """A PNG whose header promises `side` x `side` pixels and whose data hold none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_every_kind_of_value_opens_to_the_same_pixels(tmp_path: Path) -> None:
    image = noise()
    image.save(tmp_path / "a.png")
    values = [image, str(tmp_path / "a.png"), tmp_path / "a.png", encoded(image)]
    values += [{"bytes": None, "path": str(tmp_path / "a.png")}]
    for value in values:
        assert open_image(value).tobytes() == image.tobytes()


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to show
    opened = open_image(encoded(noise(), exif=exif))
    assert opened.size == (30, 40)
    assert opened.tobytes() == noise().transpose(Image.Transpose.ROTATE_270).tobytes()


def smooth(width: int = 800, height: int = 600) -> Image.Image:
    return Image.merge("RGB", [Image.radial_gradient("L").resize((width, height))] * 3)


@pytest.mark.parametrize(
    ("least", "size", "scale"),
    [
        (None, (800, 600), 1),
        ((301, 400), (800, 600), 1),
        ((300, 400), (400, 300), 0.5),
        ((140, 200), (200, 150), 0.25),
        ((10, 10), (100, 75), 0.125),  # a decoder's least
    ],
)
def test_a_large_jpeg_is_decoded_reduced(least: tuple[int, int] | None, size: tuple[int, int], scale: float) -> None:
    opened = open_reduced(encoded(smooth(), "JPEG", quality=95), least)
    assert (opened.image.size, opened.size, opened.scale) == (size, (800, 600), scale)


@pytest.mark.parametrize("size", [(801, 599), (1000, 640)])
def test_a_crop_of_a_reduced_image_is_that_of_the_whole(size: tuple[int, int]) -> None:
    content = encoded(smooth(*size), "JPEG", quality=95)
    reduced = open_reduced(content, (200, 200))
    assert reduced.scale == 0.5
    crop = (size[0] - 300, 120, 300)
    tiles = [cut_square(reduced.image, crop, 64, reduced.scale), cut_square(open_image(content), crop, 64)]
    error = np.subtract(*(np.asarray(tile, dtype=float) for tile in tiles))
    assert np.abs(error).max() < 4
    assert np.asarray(tiles[1]).std() > 20


def test_a_reduced_image_is_upright_and_other_formats_are_not_reduced() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    opened = open_reduced(encoded(smooth(), "JPEG", exif=exif), (140, 200))
    assert (opened.image.size, opened.size, opened.scale) == ((150, 200), (600, 800), 0.25)
    assert open_reduced(encoded(smooth()), (140, 200)).image.size == (800, 600)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_upright_image_in_every_format(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    value = encoded(noise(), kind, exif=exif)
    for given in (value, Image.open(io.BytesIO(value["bytes"]))):
        opened = open_reduced(given, None)
        assert opened.size == opened.image.size == ((30, 40) if orientation > 4 else (40, 30))


def test_an_image_that_was_given_open_stays_as_it_is() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    given = Image.open(io.BytesIO(encoded(smooth(), "JPEG", exif=exif)["bytes"]))
    assert open_reduced(given, (140, 200)).image.size == (600, 800)
    assert given.size == (800, 600)
    assert given.getexif()[0x0112] == 6


def test_pixels_are_counted_from_the_header() -> None:
    assert count_pixels({"bytes": huge_png(9000), "path": None}) == 81_000_000
    assert count_pixels({"bytes": huge_png(9000), "path": None}, 80_000_000) == 0  # it will not be decoded
    assert count_pixels({"bytes": b"no image", "path": None}) == count_pixels(None) == 0


@pytest.mark.parametrize(
    ("pixels", "runs"),
    [
        ([], []),
        ([10], [(0, 1)]),
        ([1, 1, 1, 1], [(0, 3), (3, 4)]),  # at most three images
        ([4, 6, 1, 10, 0], [(0, 2), (2, 3), (3, 5)]),  # at most ten pixels
    ],
)
def test_runs_hold_so_many_images_and_pixels(pixels: list[int], runs: list[tuple[int, int]]) -> None:
    assert split_runs(pixels, 3, 10) == [range(*run) for run in runs]


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    opened = open_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert opened.getpixel((4, 4)) == (255, 0, 0)


def test_cmyk_is_converted() -> None:
    opened = open_image(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"))
    assert opened.mode == "RGB"
    assert opened.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_upper_eight(kind: str) -> None:
    grey = np.array([[0, 255, 256], [32768, 65279, 65535]], dtype=np.uint16)
    opened = np.asarray(open_image(encoded(Image.fromarray(grey), kind)))
    assert opened[..., 0].tolist() == [[0, 0, 1], [128, 254, 255]]
    assert (opened == opened[..., :1]).all()


def test_transparency_is_laid_on_white() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    opened = open_image(encoded(palette, transparency=1))
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]
    assert open_image(encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 0)))).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(encoded(Image.new("LA", (1, 1), (0, 0)))).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1)])
def test_extreme_shapes_open_and_can_be_cut(size: tuple[int, int]) -> None:
    opened = open_image(encoded(Image.new("RGB", size, "green")))
    assert opened.size == size
    assert cut_square(opened, centre_square(*size), 16).getpixel((8, 8)) == (0, 128, 0)


def test_pixel_limit_comes_before_decoding() -> None:
    """Decoded, these bytes would be a broken image; and 10^10 pixels would not fit."""
    with pytest.raises(ImageRejected, match="9000x9000 is over the limit of 1000000 pixels"):
        open_image({"bytes": huge_png(9000), "path": None}, max_pixels=1_000_000)
    with pytest.raises(ImageRejected, match="broken image"):
        open_image({"bytes": huge_png(90), "path": None})
    with pytest.raises(ImageRejected, match="exceeds limit"):
        open_image({"bytes": huge_png(100_000), "path": None}, max_pixels=10**11)


def test_reasons(tmp_path: Path) -> None:
    whole = encoded(noise(), "JPEG")["bytes"]
    assert isinstance(whole, bytes)
    floats = encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF")
    cases = [
        ({"bytes": whole[: len(whole) // 2], "path": None}, "broken image: image file is truncated"),
        ({"bytes": b"GIF, they said", "path": None}, "not an image that Pillow can read"),
        ({"bytes": b"", "path": None}, "not an image that Pillow can read"),
        (str(tmp_path / "gone.png"), "file not found"),
        ("gone.png", "file not found: relative paths begin at the working folder"),
        ("https://host/image.png", "a URL, which is not fetched: download it first"),
        (str(tmp_path), "not a regular file"),
        (encoded(Image.fromarray(np.full((4, 4), 4095, np.uint16))), "16 bits with no value above 4095, nearly black"),
        (None, "no image in this row"),
        ({"bytes": None, "path": None}, "no image in this row"),
        (floats, "mode F has no fixed range"),
    ]
    for value, reason in cases:
        image, said = decode_reason(value)
        assert image is None
        assert said is not None
        assert said.startswith(reason)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_no_corruption_raises_anything_else(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    content = encoded(noise(), kind, **({} if kind in ("GIF", "DDS", "BMP") else {"exif": exif}))["bytes"]
    assert isinstance(content, bytes)
    rng, rejected = random.Random(0), 0
    for _ in range(120):
        corrupt = bytearray(content)
        for _ in range(rng.randrange(1, 8)):
            corrupt[min(len(corrupt) - 1, int(rng.expovariate(1 / 60)))] = rng.randrange(256)
        rejected += decode_reason({"bytes": bytes(corrupt), "path": None}, 1_000_000)[0] is None
    assert rejected > 0


@pytest.mark.parametrize("most", [65535, 1023])
def test_a_pgm_of_more_than_8_bits(most: int) -> None:
    levels = np.arange(16).reshape(4, 4) * (most // 15)
    content = f"P5\n4 4\n{most}\n".encode() + levels.astype(">u2").tobytes()
    image = open_image({"bytes": content, "path": None})
    assert np.abs(np.asarray(image)[..., 0] - levels / most * 255).max() < 1


def test_threads_open_the_same() -> None:
    values = [encoded(noise(20 + i, 20)) for i in range(32)]
    with ThreadPoolExecutor(4) as pool:
        assert [image.size for image in pool.map(open_image, values)] == [(20 + i, 20) for i in range(32)]


def test_equal_pixels_give_equal_bytes() -> None:
    content = encode_png(noise())
    assert content == encode_png(open_image({"bytes": content, "path": None}))
