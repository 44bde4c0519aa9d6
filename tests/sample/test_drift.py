from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from optidel_hf.sample.drift import Drift, draw_drift, look
from optidel_hf.sample.junk import JUNK


def picture(seed=0, height=60, width=80):
    return np.random.default_rng(seed).uniform(0, 255, (height, width, 3)).astype(np.float32)


def sharpness(image):
    return np.abs(np.diff(image.astype(float), axis=1)).mean()


@pytest.mark.parametrize(("width", "height"), [(128, 128), (352, 270), (270, 352)])
def test_the_view_never_leaves_the_picture(width, height):
    for seed in range(200):
        drift = draw_drift(np.random.default_rng(seed))
        a, b, c, d, e, f = drift.affine(float(seed), width, height)
        corners = np.array([(0, 0), (width, 0), (0, height), (width, height)])
        places = corners @ np.array([(a, d), (b, e)]) + (c, f)
        assert places.min() > -0.01
        assert (places.max(axis=0) < (width + 0.01, height + 0.01)).all()


def test_a_view_straight_ahead_is_the_magnified_middle():
    ahead = Drift(np.array([-1.0, 0, 0, 0]), np.zeros((4, 3)))
    image = Image.new("L", (108, 108))
    ImageDraw.Draw(image).rectangle((27, 27, 80, 80), 255)  # the middle half: 54 pixels
    seen = look(np.asarray(image, dtype=np.float32)[..., None], ahead, 3.0, 0.0)
    assert seen[54].mean() * 108 / 255 == pytest.approx(54 * 1.08, abs=0.7)
    assert np.allclose(seen, seen[::-1], atol=1e-3)


def test_copies_that_follow_each_other_differ_less_than_later_ones():
    smooth = np.asarray(Image.fromarray(picture().astype(np.uint8)).resize((160, 120)), dtype=np.float32)
    near, far = [], []
    for seed in range(8):
        drift = draw_drift(np.random.default_rng(seed))
        first, second, later = (look(smooth, drift, time, 0.0) for time in (0.0, 0.3, 6.0))
        near.append(np.abs(first - second).mean())
        far.append(np.abs(first - later).mean())
    assert np.median(near) < np.median(far) / 2


def test_an_open_shutter_blurs():
    for seed in range(4):
        drift = draw_drift(np.random.default_rng(seed))
        assert sharpness(look(picture(), drift, 0.0, 4.0)) < 0.8 * sharpness(look(picture(), drift, 0.0, 0.0))


@pytest.fixture
def spoiled():
    frame = picture(height=96, width=96).astype(np.uint8)
    return frame, lambda kind, seed: JUNK[kind](frame, np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(5))
def test_junk_is_what_it_is_called(spoiled, seed):
    frame, spoil = spoiled
    assert sharpness(spoil("blur", seed)) < 0.1 * sharpness(frame)
    assert spoil("black", seed).mean() < 12
    assert (spoil("glare", seed) >= 250).all(axis=-1).mean() > 0.3
    page = JUNK["text"](np.full_like(frame, 100), np.random.default_rng(seed)).astype(int)
    ground = np.median(page, axis=(0, 1))
    assert ground.tolist() in ([100] * 3, [0] * 3)
    assert (np.abs(page - ground).max(axis=-1) > 60).mean() > 0.05


@pytest.mark.parametrize("kind", JUNK)
def test_junk_is_a_function_of_its_numbers_and_leaves_the_frame_alone(spoiled, kind):
    frame, spoil = spoiled
    before = frame.copy()
    assert (spoil(kind, 7) == spoil(kind, 7)).all()
    assert (spoil(kind, 7) != spoil(kind, 8)).any()
    assert (frame == before).all()
