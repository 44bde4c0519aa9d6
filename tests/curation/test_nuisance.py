"""Nuisances of patches drawn by hand, where each is known, and on surfaces that have none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from optidel_hf.curation.nuisance import NUISANCES, nuisances
from optidel_hf.curation.selection.outliers import LEAST
from optidel_hf.sample.junk import write_over


def surface(seed: int = 0, side: int = 64) -> np.ndarray:
    """A shaded reddish surface with grain: no frame, no letters, no glare."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    light = 90 + 60 * np.sin(3 * x + rng.uniform(0, 6)) * np.cos(2 * y) + rng.normal(0, 6, (side, side))
    return (light[..., None] * [1.2, 0.8, 0.6]).clip(0, 245).astype(np.uint8)


def measure(*patches: np.ndarray) -> dict[str, list[float]]:
    return {name: values.tolist() for name, values in nuisances(torch.from_numpy(np.stack(patches))).items()}


def framed(level: int) -> np.ndarray:
    """A disc of the surface in a frame of one level, with the noise that JPEG leaves."""
    y, x = np.mgrid[:64, :64] - 31.5
    outside = (x**2 + y**2 > 30**2)[..., None]
    noise = np.random.default_rng(1).integers(-1, 2, (64, 64, 1))
    return np.where(outside, np.clip(level + noise, 0, 255), surface()).astype(np.uint8)


def test_a_plain_surface_has_none() -> None:
    found = measure(*(surface(seed) for seed in range(8)))
    assert set(found) == set(NUISANCES)
    for name in ("border", "text", "saturation"):
        assert max(found[name]) < 0.01, name
    assert max(found["defocus"]) < 0.4


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_frame_of_any_level_is_border(level: int) -> None:
    y, x = np.mgrid[:64, :64] - 31.5
    assert measure(framed(level))["border"][0] == pytest.approx((x**2 + y**2 > 30**2).mean(), abs=0.01)


def test_a_flat_place_inside_the_picture_is_no_border() -> None:
    hole = surface()
    hole[20:40, 20:40] = 0
    assert measure(hole)["border"][0] < 0.01
    half = surface()
    half[:, :16] = 0
    half[10:20, :10] = surface()[10:20, :10]  # a notch: what lies behind it is still reached from above and below
    assert measure(half)["border"][0] == pytest.approx((16 * 64 - 100) / 64**2, abs=0.005)


def test_letters_on_a_flat_ground_are_text_and_glare_is_not() -> None:
    lettered = surface()
    lettered[:24] = 12
    image = Image.fromarray(lettered)
    ImageDraw.Draw(image).text((2, 4), "18/11/2020", fill=(230, 230, 230))
    glaring = surface()
    for y, x in np.random.default_rng(0).integers(4, 60, (12, 2)):
        glaring[y : y + 2, x : x + 3] = 255
    found = measure(np.asarray(image), glaring)
    assert found["text"][0] > 0.1
    assert found["text"][1] < 0.01
    assert found["saturation"][1] == pytest.approx((glaring == 255).all(-1).mean())


@pytest.mark.parametrize("ink", [(255, 255, 255), (255, 235, 60), (90, 220, 255), (10, 10, 10)])
def test_letters_on_the_picture_are_text_and_glints_are_not(ink: tuple[int, int, int]) -> None:
    page, words = (Image.fromarray(surface()) for _ in range(2))
    for top in range(0, 64, 10):
        ImageDraw.Draw(page).text((0, top - 2), "MHE4A8WNKB", fill=ink)
    ImageDraw.Draw(words).text((4, 22), "Age: 61", fill=ink, font=ImageFont.load_default(14))
    glinting = surface()
    for y, x in np.random.default_rng(1).integers(2, 60, (30, 2)):
        glinting[y : y + 2, x : x + 3] = 255
    found = measure(*map(np.asarray, (page, words, glinting)))["text"]
    assert found[0] > 0.5
    assert found[1] > 0.05
    assert found[2] < 0.02


@pytest.mark.parametrize("height", [10, 40, 90])
def test_small_and_large_letters_on_a_large_patch_are_text(height: int) -> None:
    page = Image.fromarray(surface(side=224))
    ImageDraw.Draw(page).text((20, 60), "HK 4", fill=(255, 255, 255), font=ImageFont.load_default(height))
    plain, lettered = measure(surface(side=224), np.asarray(page))["text"]
    assert plain < 0.01
    assert lettered > 0.01


def test_letters_over_real_frames_are_text_in_a_font_that_was_not_learnt(realdata: Path) -> None:
    paths = sorted((realdata / "polypgen" / "images").iterdir())[::16]
    frames = [np.asarray(Image.open(path).convert("RGB").resize((128, 128))) for path in paths]
    rng = np.random.default_rng(0)
    corners = rng.integers(16, 48, (len(frames), 2))  # the middle: in their corners real frames have text of their own
    plain = [frame[y : y + 64, x : x + 64] for frame, (y, x) in zip(frames, corners)]
    written = [write_over(frame, rng)[y : y + 64, x : x + 64] for frame, (y, x) in zip(frames, corners)]
    found = np.array(measure(*written)["text"])
    false = np.array(measure(*plain)["text"])
    assert (found > LEAST["text"]).mean() > 0.9
    assert (false > LEAST["text"]).mean() < 0.1


def test_a_drawn_box_is_text() -> None:
    boxed = surface()
    boxed[40:60, 10:50] = [40, 180, 140]
    assert measure(boxed)["text"][0] == pytest.approx(20 * 40 / 64**2, abs=0.005)


def test_defocus_grows_with_blur() -> None:
    sharp = Image.fromarray(surface())
    blurred = [sharp.filter(ImageFilter.GaussianBlur(radius)) for radius in (0, 0.7, 1.5, 3)]
    found = measure(*(np.asarray(image) for image in blurred))["defocus"]
    assert found == sorted(found)
    assert found[-1] > found[0] + 0.3
    assert measure(np.full((64, 64, 3), 90, np.uint8))["defocus"] == [1.0]


def test_defocus_by_hand() -> None:
    """A step of 90 in the middle of a row: the mean of nine leaves steps of 10, one of them at the step's place."""
    step = np.zeros((32, 32, 3), np.uint8)
    step[:, 16:] = 90
    # Along rows 1 - (90 - 10) / 90; down the columns nothing differs, and the larger counts.
    assert measure(step)["defocus"] == [1.0]
    both = np.zeros((32, 32, 3), np.uint8)
    both[:16, 16:] = both[16:, :16] = 90
    assert measure(both)["defocus"][0] == pytest.approx(1 / 9, abs=1e-5)


def test_each_patch_is_measured_alone() -> None:
    patches = [surface(0), framed(0), framed(255), surface(3)]
    together = measure(*patches)
    for i, patch in enumerate(patches):
        alone = measure(patch)
        assert {name: values[i] for name, values in together.items()} == {n: v[0] for n, v in alone.items()}


def test_the_smallest_patches_are_measured_too() -> None:
    found = measure(surface(side=8), np.full((8, 8, 3), 7, np.uint8))
    assert all(0 <= value <= 1 for values in found.values() for value in values)
    assert found["defocus"][0] < found["defocus"][1] == 1
    assert found["border"] == [0, 1]


def test_only_what_is_white_is_saturated() -> None:
    red = surface()
    red[10:20, 10:20] = [255, 90, 60]
    red[30:40, 30:34] = 255
    assert measure(red)["saturation"] == [40 / 64**2]


def test_glints_on_a_colourless_slope_and_colourless_boxes_are_no_text() -> None:
    slope = np.broadcast_to((40 + 2 * np.arange(64))[None, :, None], (64, 64, 3)).astype(np.uint8)
    for y, x in np.random.default_rng(0).integers(4, 60, (12, 2)):
        slope[y : y + 2, x : x + 3] = 255
    boxed = surface()
    boxed[40:60, 10:50] = 128
    boxed[:20] = 0
    assert max(measure(slope, boxed)["text"]) < 0.01


def test_without_colour_letters_are_text_and_glints_are_not() -> None:
    """As radiographs and ultrasound have them."""
    tissue = np.repeat(np.tile(90 + np.arange(64) // 16, (64, 1))[..., None], 3, axis=-1).astype(np.uint8)
    for row, column in np.random.default_rng(0).integers(4, 60, (12, 2)):
        tissue[row : row + 2, column : column + 3] = 250
    label, lettered = Image.new("L", (64, 64), 8), Image.fromarray(tissue)
    ImageDraw.Draw(label).text((2, 4), "L 18/11/2020", fill=230)
    ImageDraw.Draw(lettered).text((2, 4), "L 18/11/2020", fill=(250, 250, 250))
    found = measure(tissue, np.asarray(label.convert("RGB")), np.asarray(lettered))["text"]
    assert found[0] < 0.01
    assert min(found[1:]) > 0.1
