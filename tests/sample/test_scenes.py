"""Scenes are pure functions of their number, and their label maps hold what is visible."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from optidel_hf.sample.scenes import FAMILIES, make_scene
from optidel_hf.sample.shapes import Canvas, Shape, radius, star, tube


def canvas(seed: int = 0, side: int = 96) -> Canvas:
    return Canvas(np.random.default_rng(seed), side)


def test_a_scene_is_a_pure_function_of_series_and_number() -> None:
    first, again, other, series = (make_scene(*key, side=64) for key in [(3, 5), (3, 5), (3, 6), (4, 5)])
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[0], series[0])


def test_scenes_are_images_with_objects_of_useful_size() -> None:
    scenes = [make_scene(0, index) for index in range(12)]
    assert all(image.dtype == np.uint8 and image.shape == (256, 256, 3) for image, _ in scenes)
    large = [(np.bincount(labels.ravel())[1:] >= 0.01 * labels.size).sum() for _, labels in scenes]
    assert 2 <= np.mean(large) <= 15
    assert np.mean([image.std() > 10 for image, _ in scenes]) > 0.8


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_paints_finite_colours_and_numbers_its_objects_from_one(family: str) -> None:
    scene = canvas(side=64)
    FAMILIES[family][0](scene)
    assert np.isfinite(scene.rgb).all()
    assert scene.labels.max() >= 1


def test_a_disc_covers_its_area_and_its_pixels_take_the_colour() -> None:
    scene = canvas()
    rows, columns = np.mgrid[0:96, 0:96]
    height = 1 - ((rows - 48) ** 2 + (columns - 48) ** 2) / 20**2
    scene.paint(Shape((slice(0, 96), slice(0, 96)), height.astype(np.float32), 20), np.array([1.0, 0, 0]))
    assert (scene.labels == 1).sum() == pytest.approx(np.pi * 20**2, rel=0.02)
    assert np.array_equal(scene.labels == 1, scene.rgb[..., 0] > 0.5)


def test_what_is_painted_later_hides_what_was_there_and_the_unlabelled_claims_nothing() -> None:
    scene = canvas()
    square = Shape((slice(10, 50), slice(10, 50)), np.ones((40, 40), np.float32), 20)
    corner = Shape((slice(30, 70), slice(30, 70)), np.ones((40, 40), np.float32), 20)
    scene.paint(square, np.ones(3))
    scene.paint(corner, np.zeros(3))
    scene.paint(square, np.ones(3), label=False)
    assert (scene.labels == 1).sum() == 40 * 40 - 20 * 20
    assert (scene.labels == 2).sum() == 40 * 40


@pytest.mark.parametrize("kind", ["ellipse", "blob", "polygon"])
def test_radii_close_and_stay_positive(kind: str) -> None:
    for seed in range(20):
        rim = radius(np.random.default_rng(seed), kind)
        assert rim.shape == (257,)
        assert rim[0] == pytest.approx(rim[-1], abs=0.02)
        assert rim.min() > 0


def test_a_polygons_sides_are_straight() -> None:
    angles = np.linspace(0, 2 * np.pi, 257)
    rim = radius(np.random.default_rng(1), "polygon") * np.exp(1j * angles)
    sides = np.diff(rim)
    bends = (sides[:-1].conj() * sides[1:]).imag
    assert (np.abs(bends) < 1e-5).mean() > 0.9


def test_shapes_leave_no_gap_at_their_seam() -> None:
    shape = star(canvas(2), "blob", 20, np.array([48.0, 48.0]))
    inside = shape.height > 0
    neighbours = sum(np.roll(inside, step, axis).astype(int) for step in (1, -1) for axis in (0, 1))
    assert not (~inside & (neighbours == 4)).any()


def test_a_tube_is_as_wide_as_asked() -> None:
    for seed in range(10):
        inside = tube(canvas(seed), 6.0, 60.0).height > 0
        # A square wider than the tube fits nowhere inside.
        assert not binary_erosion(inside, np.ones((15, 15), bool)).any()
        assert inside.any()
