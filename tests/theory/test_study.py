"""The study's draws, orders, measures and known values (those from an independent solver of the same equations)."""

from __future__ import annotations

import numpy as np
import pytest

from optidel_hf.theory import study as module
from optidel_hf.theory.study import (
    STRATEGIES,
    Study,
    TheoryConfig,
    downstream_teacher,
    draw_pool,
    error_of_mean_overlap,
    keep_order,
    run_study,
)


def published_error(students: Study) -> np.ndarray:
    """arccos of the mean Pearson overlap over pi, shape `(S, A, F)`."""
    return error_of_mean_overlap(students.overlaps(centred=True))


def test_a_pool_is_labelled_by_a_teacher_at_the_probe_angle():
    config = TheoryConfig(probe_angle=20)
    points, teacher, shuffled = draw_pool(config, 20, 3)
    assert points.shape == (600, 30)
    assert np.isclose(np.linalg.norm(teacher), 1)
    assert np.isclose(teacher[0], np.cos(np.deg2rad(20)))
    assert (points @ teacher > 0).all()
    assert abs((points**2).sum(axis=1).mean() - 1) < 0.05  # inputs of variance 1/N
    assert sorted(shuffled) == list(range(600))
    np.testing.assert_array_equal(points, draw_pool(config, 20, 3)[0])
    assert not np.allclose(points, draw_pool(config, 20, 4)[0])
    assert not np.allclose(teacher, draw_pool(config, 40, 3)[1])
    assert not np.allclose(teacher, draw_pool(TheoryConfig(probe_angle=20, seed=1), 20, 3)[1])


def test_orders_worked_by_hand():
    points = np.array([[0.5, 9], [-0.1, 9], [2.0, 9], [-0.5, 9]])
    shuffled = np.array([2, 0, 3, 1])
    assert list(keep_order(points, shuffled, "hard")) == [1, 0, 3, 2]
    assert list(keep_order(points, shuffled, "easy")) == [2, 0, 3, 1]
    assert list(keep_order(points, shuffled, "random")) == [2, 0, 3, 1]


def test_overlaps_worked_by_hand():
    students = Study(np.array([3.0, 4.0, 0.0]).reshape(1, 1, 1, 1, 3), np.array([1.0, 0.0, 0.0]).reshape(1, 1, 3))
    assert np.isclose(students.overlaps().item(), 0.6)
    assert np.isclose(students.errors().item(), np.arccos(0.6) / np.pi)
    # Centred: (2, 5, -7)/3 against (2, -1, -1)/3.
    assert np.isclose(students.overlaps(centred=True).item(), 6 / np.sqrt(78 * 6))


def test_the_published_error_is_that_of_the_mean_overlap():
    np.testing.assert_allclose(error_of_mean_overlap(np.array([[1.0, 0.0], [-1.0, -1.0]])), [1 / 3, 1])


def test_the_shift_spares_the_probe():
    shifted = downstream_teacher(np.array([0.6, 0.8, 0.0]), 0.5)
    np.testing.assert_allclose(shifted, np.array([0.6, 1.3, 0.5]) / np.sqrt(0.36 + 1.69 + 0.25))


def test_blocks_do_not_change_the_students(monkeypatch):
    config = TheoryConfig(dimension=10, ratios=[20], smallest_fraction=0.1, fractions=3, draws=4)
    whole = run_study(config).weights
    monkeypatch.setattr(module, "BLOCK", 1)
    np.testing.assert_allclose(run_study(config).weights, whole, rtol=1e-9)


def test_the_smallest_fraction_may_keep_one_point():
    config = TheoryConfig(dimension=5, ratios=[40], smallest_fraction=0.005, fractions=3, draws=2)
    assert np.isfinite(run_study(config).weights).all()


def test_known_errors_of_hard_easy_and_random():
    known = {"hard": (0.4805, 0.0275, 0.0248), "easy": (0.2032, 0.0677, 0.0248), "random": (0.3872, 0.0839, 0.0248)}
    config = TheoryConfig(ratios=[20])
    measured = published_error(run_study(config))[:, 0]
    for strategy, errors in zip(STRATEGIES, measured):
        np.testing.assert_allclose(errors[[0, 8, 11]], known[strategy], rtol=0.12)


def test_known_errors_of_a_redundant_pool():
    config = TheoryConfig(ratios=[200], copies=10, draws=40)
    errors = published_error(run_study(config))[0, 0]
    np.testing.assert_allclose(errors[[4, 8, 11]], [0.4566, 0.0270, 0.0250], rtol=0.12)  # a plain pool's at 20


def test_known_errors_of_a_shifted_downstream_task():
    students = run_study(TheoryConfig(ratios=[50], shift=0.4))
    assert published_error(students)[0, 0, -1] == pytest.approx(0.0375, rel=0.05)
    assert students.errors()[0, 0, -1].mean() == pytest.approx(0.362, abs=0.006)  # the same students, by the cosine


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dimension", 2, "at least 3"),
        ("smallest_fraction", 1.5, "between 0 and 1"),
        ("ratios", [1], "keeps none"),
        ("ratios", [], "ratios needs at least one"),
        ("probe_angle", 90, "below 90"),
        ("fractions", 1, "at least 2 fractions"),
        ("copies", 7, "divide"),
        ("copies", 0, "divide"),
        ("shift", float("inf"), "shift is inf"),
        ("seed", -1, "one of at least 0"),
        ("draws", 1, "at least 2"),
    ],
)
def test_a_configuration_that_cannot_be_drawn_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        TheoryConfig(**{field: value})
