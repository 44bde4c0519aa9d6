from __future__ import annotations

import numpy as np
import pytest

from optidel_hf.sample.bowel import build_bowel
from optidel_hf.sample.frames import place_polyp, plan_flight
from optidel_hf.sample.render import FAR, NEAR, march, march_images, render, wall_distance


@pytest.fixture(scope="module", params=[0, 1, 2])
def scene(request):
    """A wall, two polyps on it and three cameras of a flight."""
    rng = np.random.default_rng(request.param)
    bowel = build_bowel(rng)
    flight = plan_flight(rng, bowel, 30)
    polyps = [place_polyp(rng, bowel, flight, 30) for _ in range(2)]
    return bowel, polyps, [flight.camera(bowel, frame) for frame in (0.0, 10.0, 25.0)]


def test_rays_from_coarse_to_fine_end_where_rays_marched_one_by_one_end(scene):
    bowel, polyps, cameras = scene
    rays, travelled, _ = march_images(bowel, polyps, cameras, 64)
    plain = march(bowel, polyps, rays, np.full(len(travelled), NEAR))
    reached = plain < FAR
    error = np.abs(travelled - plain)[reached] / plain[reached]
    # The rest graze a fold or a polyp, where a hair's breadth decides what they meet.
    assert np.mean(error < 0.02) > 0.96
    assert np.median(error) < 0.002


def test_a_frame_does_not_depend_on_those_rendered_with_it(scene):
    bowel, polyps, cameras = scene
    together, alone = list(render(bowel, polyps, cameras, 32))[1], next(render(bowel, polyps, cameras[1:2], 32))
    np.testing.assert_allclose(together.diffuse, alone.diffuse, rtol=1e-4, atol=1e-5)
    assert np.array_equal(together.polyp, alone.polyp)


def test_a_mask_holds_the_pixels_where_a_polyp_is_nearer_than_the_wall(scene):
    bowel, polyps, cameras = scene
    rays, travelled, _ = march_images(bowel, polyps, cameras, 64)
    points = rays.at(travelled)
    nearer = np.min([polyp.distance(points) for polyp in polyps], axis=0) < wall_distance(bowel, points)
    masks = np.stack([one.polyp for one in render(bowel, polyps, cameras, 64)])
    assert nearer.any()
    assert (masks.ravel() != nearer).sum() <= 2  # at a distance of 0


def test_wet_walls_glint(scene):
    bowel, polyps, cameras = scene
    assert max(one.highlight.max() for one in render(bowel, polyps, cameras, 32)) > 0.5
