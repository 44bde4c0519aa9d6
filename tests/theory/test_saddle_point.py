"""The saddle-point curves: limits, values from an independent solver of the same equations, and simulation."""

from __future__ import annotations

import numpy as np
import pytest

from optidel_hf.theory.saddle_point import saddle_point_errors
from optidel_hf.theory.study import TheoryConfig, run_study


FRACTIONS = np.logspace(-2, 0, 12)


def test_the_whole_pool_tends_to_one_half_over_the_ratio():
    for ratio in (50, 200):
        assert saddle_point_errors("random", ratio, [1.0], 0)[0] * ratio == pytest.approx(0.5, rel=0.01)


def test_few_random_points_teach_the_square_root():
    # A student of alpha points a dimension has R = sqrt(2 alpha / pi) to first order: Hebb's rule.
    alpha = 1e-3
    error = saddle_point_errors("random", 1, [alpha], 0)[0]
    assert np.cos(np.pi * error) == pytest.approx(np.sqrt(2 * alpha / np.pi), rel=0.02)


@pytest.mark.parametrize(
    ("ratio", "angle", "known"),
    [
        (10, 0, [0.4993, 0.4987, 0.4975, 0.4949, 0.4891, 0.4744, 0.4250, 0.1465, 0.0521, 0.0492, 0.0492, 0.0492]),
        (20, 10, [0.4810, 0.4771, 0.4723, 0.4666, 0.4583, 0.4405, 0.3634, 0.0461, 0.0272, 0.0250, 0.0249]),
        (100, 20, [0.4262, 0.4149, 0.4041, 0.3920, 0.3630, 0.2098, 0.0231, 0.0104, 0.0071, 0.0055, 0.0050]),
    ],
)
def test_known_curves_of_the_hard_samples(ratio, angle, known):
    np.testing.assert_allclose(saddle_point_errors("hard", ratio, FRACTIONS, angle)[: len(known)], known, atol=1.1e-4)


def test_a_small_angle_tends_to_no_angle():
    for strategy in ("hard", "easy"):
        aligned = saddle_point_errors(strategy, 10, [0.4, 0.7], 0)
        np.testing.assert_allclose(saddle_point_errors(strategy, 10, [0.4, 0.7], 1), aligned, rtol=0.02)


def test_easy_samples_teach_the_probe():
    errors = saddle_point_errors("easy", 100, [0.2, 0.3], 10)
    np.testing.assert_allclose(errors, 10 / 180, rtol=0.03)
    np.testing.assert_allclose(saddle_point_errors("easy", 100, [0.3], 5), 5 / 180, rtol=0.05)


def test_any_order_of_fractions_gives_the_same_errors():
    forwards = saddle_point_errors("hard", 20, [0.2, 0.5, 1.0], 0)
    np.testing.assert_array_equal(saddle_point_errors("hard", 20, [0.5, 1.0, 0.2], 0), forwards[[1, 2, 0]])


def test_simulation_follows_theory_away_from_the_transition():
    config = TheoryConfig(dimension=50, ratios=[40], smallest_fraction=0.3, fractions=3, draws=12)
    students = run_study(config).errors().mean(axis=-1)[:, 0]
    for strategy, measured in zip(("hard", "easy", "random"), students):
        theory = saddle_point_errors(strategy, 40, config.kept(), config.probe_angle)
        np.testing.assert_allclose(measured, theory, rtol=0.08)


def test_a_root_that_moves_quickly_is_followed():
    errors = saddle_point_errors("hard", 1000, np.logspace(-3, 0, 8), probe_angle=0)
    assert np.isfinite(errors).all()
    assert (np.diff(errors) < 1e-6).all()
