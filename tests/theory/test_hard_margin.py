"""The hard-margin solver: by hand, by its optimality conditions, and against two other solvers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import nnls
from sklearn.svm import SVC

from optidel_hf.theory.hard_margin import HardMargin, kkt_residual, solve_nested
from optidel_hf.theory.study import STRATEGIES, TheoryConfig, draw_pool, keep_order


def separable(draws: int, count: int, dimension: int, seed: int = 0) -> np.ndarray:
    """Inputs times the labels of a teacher along the first axis, not very close to its boundary."""
    points = np.random.default_rng(seed).standard_normal((draws, count, dimension))
    points *= np.sign(points[:, :, :1])
    points[:, :, 0] += 0.05
    return points


def least_distance(points: np.ndarray) -> np.ndarray:
    """Lawson and Hanson's least-distance programming for one pool `(P, N)`."""
    stacked = np.concatenate([points.T, np.ones((1, len(points)))])
    target = np.append(np.zeros(points.shape[1]), 1.0)
    residual = stacked @ nnls(stacked, target, maxiter=10_000)[0] - target
    return -residual[:-1] / residual[-1]


def test_two_points_worked_by_hand():
    (solution,) = solve_nested(np.array([[[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [4.0, 1.0]]]), [2])
    np.testing.assert_allclose(solution.weights, [[1, 1], [0.5, 0]], atol=1e-12)
    np.testing.assert_allclose(solution.multipliers.sum(axis=1), [2, 0.25], atol=1e-12)  # their sum is ||w||^2
    assert set(solution.support[1]) == {0, -1}  # the second point is beyond the margin


def test_a_support_point_leaves_when_a_nearer_one_comes():
    points = np.array([[[1.0, 0.0], [0.5, 0.0]]])
    first, second = solve_nested(points, [1, 2])
    np.testing.assert_allclose(first.weights, [[1, 0]])
    np.testing.assert_allclose(second.weights, [[2, 0]])
    assert set(second.support[0]) == {1, -1}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_optimality_conditions_hold_on_the_study_pools(strategy):
    config = TheoryConfig()
    pools = [draw_pool(config, 100, draw) for draw in range(3)]
    points = np.stack([points[keep_order(points, shuffled, strategy)] for points, _, shuffled in pools])
    counts = [int(3000 * fraction) for fraction in config.kept()]
    solutions = solve_nested(points, counts)
    for count, solution in zip(counts, solutions):
        assert kkt_residual(points[:, :count], solution).max() < 1e-7
    assert np.linalg.norm(solutions[-1].weights, axis=1).min() > 300  # badly conditioned, as the study is


@pytest.mark.timeout(60)
def test_weights_too_long_for_an_absolute_tolerance_are_found():
    pools = [draw_pool(TheoryConfig(dimension=3, ratios=[5000]), 5000, draw) for draw in range(2)]
    points = np.stack([points[shuffled] for points, _, shuffled in pools])
    (solution,) = solve_nested(points, [15_000])
    assert np.linalg.norm(solution.weights, axis=1).max() > 5000
    assert kkt_residual(points, solution).max() < 1e-6


def test_the_residual_sees_each_condition_broken():
    points = np.array([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    support = np.array([[0, 1]])
    assert kkt_residual(points, HardMargin(np.array([[1.0, 1.0]]), support, np.array([[1.0, 1.0]])))[0] == 0
    for weights, used, multipliers in (
        ([0.9, 1.0], [0, 1], [0.9, 1.0]),  # a margin below 1
        ([1.0, 1.0], [0, 1], [1.0, 0.9]),  # weights that are no combination of the support
        ([1.0, 1.0], [2, -1], [1.0, 0.0]),  # a multiplier on a point beyond the margin
    ):
        broken = HardMargin(np.array([weights]), np.array([used]), np.array([multipliers]))
        assert kkt_residual(points, broken)[0] > 0.05
    both = np.array([[[1.0, 0.0], [2.0, -1.0]]])  # margins of 1 under weights that are longer than they must be
    negative = HardMargin(np.array([[1.0, 1.0]]), np.array([[0, 1]]), np.array([[3.0, -1.0]]))
    assert kkt_residual(both, negative)[0] == pytest.approx(0.25)


def test_agrees_with_least_distance_programming():
    points = separable(6, 200, 8)
    (solution,) = solve_nested(points, [200])
    for pool, weights in zip(points, solution.weights):
        np.testing.assert_allclose(weights, least_distance(pool), rtol=1e-7, atol=1e-7)


def test_agrees_with_a_support_vector_machine():
    points = separable(1, 60, 4, seed=1)[0]
    machine = SVC(kernel="linear", C=1e6, tol=1e-9).fit(np.concatenate([points, -points]), np.repeat([1, -1], 60))
    np.testing.assert_allclose(solve_nested(points[None], [60])[0].weights, machine.coef_, rtol=1e-4, atol=1e-4)


def test_nested_pools_equal_pools_solved_afresh_and_draws_solved_alone():
    points = separable(5, 400, 10, seed=2)
    nested = solve_nested(points, [3, 40, 400])
    for count, solution in zip([3, 40, 400], nested):
        fresh = np.concatenate([solve_nested(draw[None], [count])[0].weights for draw in points])
        np.testing.assert_allclose(solution.weights, fresh, rtol=1e-9, atol=1e-9)


def test_copies_of_the_points_change_nothing():
    points = separable(2, 50, 6, seed=3)
    copied = np.repeat(points, 5, axis=1)
    np.testing.assert_allclose(
        solve_nested(copied, [250])[0].weights, solve_nested(points, [50])[0].weights, rtol=1e-9, atol=1e-9
    )


def test_labels_that_no_weights_separate_are_refused():
    with pytest.raises(ValueError, match="not linearly separable"):
        solve_nested(np.array([[[1.0, 0.5], [-1.0, -0.5], [0.3, 1.0]]]), [3])
