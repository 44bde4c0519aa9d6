"""Intervals that hold the truth as often as they say, and what they are made of."""

from __future__ import annotations

import numpy as np
import pytest
from simulated import confusion, experiment, true_difference

from optidel_hf.evaluation.metrics.mean_iou.mean_iou import MeanIoU
from optidel_hf.evaluation.statistics import bootstrap_correction, mean_interval
from optidel_hf.evidence.inference import (
    Components,
    correlate_arms,
    minimum_detectable_difference,
    miou_interval,
    paired_interval,
    pooled_miou,
    seeds_needed,
    steps_to_level,
    variance_components,
)


LEVELS = (0.75, 0.70)
PART = Components(seed=0.01, image=0.05, residual=0.1)


def even_arms(rng: np.random.Generator, levels: tuple[float, float], seeds: int, images: int) -> np.ndarray:
    """Two arms on polyps of one size, so that mIoU is nearly linear in quality and `PART` is known in quality."""
    seed, image, residual = np.array([PART.seed, PART.image, PART.residual]) / np.sqrt(2)
    quality = [
        level
        + rng.normal(0, seed, (seeds, 1))
        + rng.normal(0, image, images)
        + rng.normal(0, residual, (seeds, images))
        for level in levels
    ]
    return confusion(np.array(quality), np.full(images, 1.0))


def slope(level: float) -> float:
    """How mIoU grows with quality."""
    above, below = (pooled_miou(confusion(np.array([level + step]), np.array([1.0]))) for step in (0.02, -0.02))
    return float(above - below) / 0.04


def test_miou_is_that_of_the_metric():
    rng = np.random.default_rng(0)
    maps = rng.integers(0, 2, (2, 5, 8, 8))
    metric = MeanIoU()
    each = []
    for predicted, true in zip(*maps):
        one = MeanIoU()
        one.add(prediction=predicted, reference=true)
        each.append(one.compute()["confusion_matrix"])
        metric.add(prediction=predicted, reference=true)
    assert pooled_miou(np.array(each)) == pytest.approx(metric.compute()["mean_iou"], abs=1e-15)


def test_a_class_that_occurs_nowhere_does_not_count():
    background = np.array([[[90, 0], [0, 0]], [[80, 0], [0, 0]]])
    assert pooled_miou(background) == 1.0
    assert paired_interval(np.stack([background] * 2), np.stack([background] * 2)).difference == 0


def test_images_that_are_all_alike_leave_students_interval_over_seeds():
    quality = np.array([[0.7, 0.75, 0.72], [0.66, 0.7, 0.71]])[..., None].repeat(6, axis=-1)
    a, b = confusion(quality, np.full(6, 1.0))
    interval = paired_interval(a, b)
    expected = mean_interval(pooled_miou(a) - pooled_miou(b))
    assert (interval.difference, interval.low, interval.high) == pytest.approx(expected, abs=1e-5)
    assert (interval.seeds, interval.images) == (3, 6)


def test_seeds_that_are_all_alike_leave_the_bootstrap_over_images():
    rng = np.random.default_rng(0)
    a, b = experiment(rng, LEVELS, 1, 200, (0.0, 0.3, 0.0)).repeat(3, axis=1)
    interval = paired_interval(a, b)
    picked = rng.integers(0, 200, (1000, 200))
    plain = pooled_miou(a[0][picked]) - pooled_miou(b[0][picked])
    assert (interval.low, interval.high) == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.1 * np.ptp(plain))


@pytest.mark.parametrize("seeds", [2, 3, 5, 11])
def test_the_interval_holds_the_truth_in_95_of_100_experiments(seeds):
    spread, runs, rng = (0.02, 0.15, 0.3), 250, np.random.default_rng(seeds)
    truth, held = true_difference(LEVELS, spread[0]), 0
    for _ in range(runs):
        interval = paired_interval(*experiment(rng, LEVELS, seeds, 80, spread), draws=300)
        held += interval.low <= truth <= interval.high
    # Three standard deviations of a binomial share; the sum of a t and a bootstrap may hold it somewhat more often.
    assert held / runs == pytest.approx(0.955, abs=3 * np.sqrt(0.95 * 0.05 / runs))


def test_components_are_found_again():
    rng, squares = np.random.default_rng(0), []
    for _ in range(150):
        found = variance_components(*even_arms(rng, (0.7, 0.7), 4, 60))
        squares.append(np.square([found.seed, found.image, found.residual]))
    expected = slope(0.7) * np.array([PART.seed, PART.image, PART.residual])
    # A component below zero counts as none, which lifts the mean of the small one.
    assert np.sqrt(np.mean(squares, axis=0)) == pytest.approx(expected, rel=0.15)


def test_the_detectable_difference_is_seen_19_times_in_20():
    rng, runs, scale = np.random.default_rng(0), 250, slope(0.7)
    part = Components(scale * PART.seed, scale * PART.image, scale * PART.residual)
    least = minimum_detectable_difference(part, seeds=4, images=60) / scale
    levels = (0.7 + least / 2, 0.7 - least / 2)
    seen = sum(paired_interval(*even_arms(rng, levels, 4, 60), draws=300).low > 0 for _ in range(runs))
    assert seen / runs == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / runs))


def test_seeds_needed_are_the_fewest_that_do():
    count = seeds_needed(PART, images=700, difference=0.012)
    assert minimum_detectable_difference(PART, count, 700) <= 0.012
    assert minimum_detectable_difference(PART, count - 1, 700) > 0.012
    assert seeds_needed(PART, images=700, difference=0.5) == 5
    assert seeds_needed(PART, images=100, difference=0.01) is None  # 3.6 x 0.05 / 10 is 1.8 points with endless seeds


def test_one_seed_or_one_image_has_no_interval():
    arms = experiment(np.random.default_rng(0), LEVELS, 1, 30, (0.02, 0.1, 0.1))
    for a, b in (arms, arms.swapaxes(1, 2)[:, :1].swapaxes(1, 2)):
        interval = paired_interval(a, b)
        assert interval.difference == pytest.approx(float(np.mean(pooled_miou(a) - pooled_miou(b))))
        assert np.isnan([interval.low, interval.high]).all()
        assert not interval.excludes_zero
        assert np.isnan(variance_components(a, b).seed)
        assert np.isnan(minimum_detectable_difference(variance_components(a, b), interval.seeds, interval.images))
        assert seeds_needed(variance_components(a, b), 30) is None


def test_an_arms_own_interval_is_wider_than_that_of_its_paired_difference():
    a, b = experiment(np.random.default_rng(0), LEVELS, 5, 100, (0.001, 0.01, 0.02))
    own, paired = miou_interval(a), paired_interval(a, b)
    assert own.difference == pytest.approx(pooled_miou(a).mean())
    assert own.high - own.low > 2 * (paired.high - paired.low)
    assert paired.excludes_zero


def test_steps_to_a_level_ask_for_all_later_checkpoints():
    steps = np.array([100, 200, 300, 400])
    curves = np.array([[0.60, 0.58, 0.598, 0.61], [0.60, 0.58, 0.598, 0.61]])
    found = steps_to_level(curves, steps, level=0.6)
    assert (found.steps, found.low, found.high) == (300, 300, 300)  # 100 reaches it and loses it again
    assert np.isinf(steps_to_level(curves, steps, level=0.7).steps)
    assert steps_to_level(curves, steps, level=0.5).steps == 100
    one = steps_to_level(curves[:1], steps, level=0.6)
    assert one.steps == 300
    assert np.isnan(one.low)


def test_the_interval_of_steps_shows_what_seeds_disagree_on():
    steps = np.array([100, 200, 300])
    curves = np.array([[0.59, 0.62, 0.66], [0.50, 0.56, 0.62], [0.55, 0.60, 0.63]])
    found = steps_to_level(curves, steps, level=0.6)
    assert (found.steps, found.low) == (300, 100)
    assert np.isinf(found.high)
    # The level of the same seeds: the arm is as far below it in each, and nothing is left to disagree on.
    paired = steps_to_level(curves, steps, level=curves[:, -1])
    assert (paired.steps, paired.low, paired.high) == (300, 300, 300)


def test_the_rank_correlation_of_arms_by_hand():
    found = correlate_arms(np.array([1.0, 2, 3, 4, 5, np.nan]), np.array([0.1, 0.3, 0.2, 0.4, 0.5, 0.9]))
    assert found.value == pytest.approx(1 - 6 * 2 / (5 * 24))
    # atanh(0.9) -+ 1.959964 sqrt((1 + 0.405) / 2)
    assert (found.low, found.high) == pytest.approx((np.tanh(-0.17053), np.tanh(3.11498)), abs=1e-4)
    assert found.arms == 5


def test_a_perfect_order_of_few_arms_is_no_certainty():
    found = correlate_arms(np.arange(6.0), np.arange(6.0))
    assert found.value == pytest.approx(1.0)
    assert found.low < 0.9
    assert np.isnan(correlate_arms(np.arange(4.0), np.arange(4.0)).low)
    assert np.isnan(correlate_arms(np.ones(6), np.arange(6.0)).value)


def test_few_images_widen_the_bootstrap_as_students_t_does():
    rng = np.random.default_rng(0)
    a, b = experiment(rng, LEVELS, 1, 6, (0.0, 0.3, 0.0)).repeat(3, axis=1)
    interval = paired_interval(a, b)
    picked = rng.integers(0, 6, (4000, 6))
    plain = np.quantile(pooled_miou(a[0][picked]) - pooled_miou(b[0][picked]), [0.025, 0.975]) - interval.difference
    found = np.array([interval.low, interval.high]) - interval.difference
    assert bootstrap_correction(6) > 1.4
    assert found == pytest.approx(bootstrap_correction(6) * plain, abs=0.1 * np.ptp(plain))


def test_without_an_image_effect_the_interval_is_students_over_seeds():
    rng = np.random.default_rng(1)
    a, b = experiment(rng, LEVELS, 4, 60, (0.02, 0.0, 0.3))
    while variance_components(a, b).image > 0:  # what chance leaves of it
        a, b = experiment(rng, LEVELS, 4, 60, (0.02, 0.0, 0.3))
    interval = paired_interval(a, b)
    expected = mean_interval(pooled_miou(a) - pooled_miou(b))
    # Seeds are by their influence there and by their mIoU here: the same but for rounding.
    assert (interval.low, interval.high) == pytest.approx(expected[1:], abs=1e-4)
