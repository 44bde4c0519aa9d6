"""Flat black borders are told from dark places inside the picture."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from optidel_hf.curation.borders import border_mask, border_shares


def framed(side: int = 100, frame: int = 20) -> Image.Image:
    """A grey square in a black frame with some noise, and a black hole in its middle."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 10, (side, side, 3), dtype=np.uint8)
    picture[frame:-frame, frame:-frame] = 120
    picture[45:55, 45:55] = 0
    return Image.fromarray(picture)


def test_the_frame_is_border_and_the_hole_is_not() -> None:
    mask, scale = border_mask(framed())
    assert scale == 1.0
    expected = np.ones((100, 100), bool)
    expected[20:-20, 20:-20] = False
    assert np.array_equal(mask, expected)


def test_shares_by_hand() -> None:
    crops = [(0, 0, 10), (20, 20, 60), (10, 30, 20), (10, 10, 20), (40, 40, 20)]
    assert border_shares(framed(), crops) == pytest.approx([1, 0, 0.5, 0.75, 0])


def test_large_images_are_looked_at_smaller() -> None:
    mask, scale = border_mask(framed().resize((1000, 500), Image.Resampling.NEAREST))
    assert (mask.shape, scale) == ((128, 256), 0.256)
    shares = border_shares(framed().resize((1000, 1000), Image.Resampling.NEAREST), [(0, 0, 100), (100, 300, 200)])
    assert shares == pytest.approx([1, 0.5], abs=0.05)


def test_a_bright_image_has_no_border() -> None:
    assert border_shares(Image.new("RGB", (64, 40), (17, 0, 0)), [(0, 0, 40)]) == [0.0]
    assert border_shares(Image.new("RGB", (64, 40)), [(0, 0, 40)]) == [1.0]


@pytest.mark.parametrize("turns", range(4))
def test_dark_that_touches_one_edge_alone_is_border(turns: int) -> None:
    picture = np.full((60, 60, 3), 120, np.uint8)
    picture[:12, 20:40] = 0
    picture = np.rot90(picture, turns)
    assert np.array_equal(border_mask(Image.fromarray(picture))[0], picture[..., 0] == 0)


def test_black_is_below_16() -> None:
    for value, share in ((15, 1.0), (16, 0.0)):
        assert border_shares(Image.new("RGB", (40, 40), (value,) * 3), [(0, 0, 40)]) == [share]


def test_a_crop_of_less_than_a_pixel_of_the_smaller_copy_is_judged_by_that_pixel() -> None:
    picture = np.full((603, 1000, 3), 120, np.uint8)
    picture[:, 500:] = 0  # at a scale of 0.256 the copy has 154 rows, and the last row of the image would be the 155th
    crops = [(0, 0, 2), (2, 602, 1), (999, 0, 1), (998, 601, 2), (999, 602, 1)]
    assert border_shares(Image.fromarray(picture), crops) == [0, 0, 1, 1, 1]
    upright = Image.fromarray(picture).transpose(Image.Transpose.TRANSPOSE)
    assert border_shares(upright, [(y, x, side) for x, y, side in crops]) == [0, 0, 1, 1, 1]


def test_an_image_of_one_row_has_a_border_too() -> None:
    mask, _ = border_mask(Image.new("RGB", (1000, 1)))
    assert mask.shape == (1, 256)
    assert mask.all()
