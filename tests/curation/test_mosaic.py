"""Mosaics, pixel for pixel."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from optidel_hf.curation.mosaic import grid_side, pixels_sha256, render_mosaic, renderer_versions
from optidel_hf.errors import UserError
from optidel_hf.images import cut_square, encode_png


def noise(seed: int, width: int = 50, height: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("tiles", "size"), [(1, 32), (4, 64), (9, 48)])
def test_every_tile_is_its_cut(tiles: int, size: int) -> None:
    sources = [noise(i) for i in range(tiles)]
    crops = [(i, 2 * (i % 3), 20 + i) for i in range(tiles)]
    mosaic = render_mosaic(sources, crops, size)
    assert mosaic.mode == "RGB"
    assert mosaic.size == (size, size)
    side = grid_side(tiles)
    tile = size // side
    for slot in range(tiles):
        left, top = slot % side * tile, slot // side * tile
        part = mosaic.crop((left, top, left + tile, top + tile))
        assert part.tobytes() == cut_square(sources[slot], crops[slot], tile).tobytes()


def test_an_uncut_tile_at_its_own_size_is_the_source() -> None:
    sources = [noise(i, 16, 16) for i in range(4)]
    mosaic = np.asarray(render_mosaic(sources, [(0, 0, 16)] * 4, 32))
    assert np.array_equal(mosaic[:16, 16:], np.asarray(sources[1]))
    assert np.array_equal(mosaic[16:, :16], np.asarray(sources[2]))


@pytest.mark.parametrize("tiles", [0, 2, 3, 8])
def test_a_grid_is_a_square(tiles: int) -> None:
    with pytest.raises(UserError, match=f"tiles_per_mosaic is {tiles}: a mosaic is a square grid"):
        grid_side(tiles)


def test_equal_pictures_have_equal_hashes_whatever_the_encoder() -> None:
    picture = noise(0)
    stored = Image.open(io.BytesIO(encode_png(picture)))
    buffer = io.BytesIO()
    picture.save(buffer, "BMP")
    assert pixels_sha256(picture) == pixels_sha256(stored) == pixels_sha256(Image.open(buffer))
    changed = np.array(picture)
    changed[0, 0, 0] ^= 1
    assert pixels_sha256(Image.fromarray(changed)) != pixels_sha256(picture)


def test_the_versions_that_pixels_depend_on_are_told() -> None:
    assert set(renderer_versions()) == {"renderer", "pillow"}
