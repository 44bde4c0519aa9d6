"""V-information against values worked by hand and against a linear Gaussian whose information is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from optidel_hf.curation.vinfo import (
    DifficultyFit,
    GaussianFamily,
    calibrate,
    code_length,
    fit_difficulty,
    gaussian_entropy,
    null_error,
    reliability,
    v_information,
)


def test_bits_worked_by_hand() -> None:
    assert v_information(1.0, 0.5) == pytest.approx(0.5)
    assert v_information(4.0, 1.0) == pytest.approx(1.0)
    assert v_information(1.0, 2.0) == pytest.approx(-0.5)
    # Patches normalised to unit variance: 1/2 log2(2 pi e), whatever the data.
    assert gaussian_entropy(1.0) == pytest.approx(2.0471, abs=1e-4)
    # At no error only the normaliser is left; an error of one variance adds 1 / (2 ln 2) bits.
    lengths = code_length(torch.tensor([0.0, 1.0]), 1.0)
    assert lengths.tolist() == pytest.approx([1.32575, 1.32575 + 0.72135], abs=1e-5)
    assert gaussian_entropy(0.25) - gaussian_entropy(1.0) == pytest.approx(-1.0)


def samples(n: int = 200, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """`(n, 50, 3)` values about a mean of each channel's own, and their predictions."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, 50, 3, generator=generator) * 0.7 + torch.tensor([1.0, -2.0, 0.3])
    return values, values + 0.4 * torch.randn(values.shape, generator=generator)


def moments(values: torch.Tensor, predicted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (values - predicted).square().mean((1, 2)), values.mean(1), values.square().mean(1)


def test_a_calibrated_family_spends_its_entropy_on_average() -> None:
    values, predicted = samples()
    error, mean, square = moments(values, predicted)
    family = calibrate(error, mean, square)
    null = null_error(mean, square, family.null_mean)
    assert family.null_mean == pytest.approx(values.mean((0, 1)).tolist())
    assert family.null_variance == pytest.approx(values.var((0, 1), unbiased=False).mean().item(), rel=1e-5)
    assert family.conditional_entropy(error).mean().item() == pytest.approx(gaussian_entropy(family.model_variance))
    assert family.null_entropy(null).mean().item() == pytest.approx(gaussian_entropy(family.null_variance))
    assert family.pointwise(error, null).mean().item() == pytest.approx(family.information, abs=1e-5)
    assert family.information == pytest.approx(0.5 * math.log2(0.49 / 0.16), abs=0.02)


def test_the_null_error_is_the_mean_square_about_the_null_mean() -> None:
    values, predicted = samples(n=5)
    _, mean, square = moments(values, predicted)
    expected = (values - torch.tensor([0.5, -1.0, 0.0])).square().mean((1, 2))
    torch.testing.assert_close(null_error(mean, square, (0.5, -1.0, 0.0)), expected)


def test_pvi_is_null_minus_conditional_entropy_and_negative_below_the_null() -> None:
    family = GaussianFamily(model_variance=0.25, null_variance=1.0, null_mean=(0.0,))
    error, null = torch.tensor([0.25, 2.0]), torch.tensor([1.0, 1.0])
    pvi = family.pointwise(error, null)
    torch.testing.assert_close(pvi, family.null_entropy(null) - family.conditional_entropy(error))
    assert pvi[0].item() == pytest.approx(1.0)
    assert pvi[1].item() == pytest.approx(1.0 - 1.75 / (2 * 0.25 * math.log(2)))


def test_rescaling_the_values_moves_entropies_and_leaves_information() -> None:
    values, predicted = samples()
    before, after = [], []
    for scale, shift, result in ((1.0, 0.0, before), (255 * 0.229, 123.7, after)):
        error, mean, square = moments(*((x.double() * scale + shift) for x in (values, predicted)))
        family = calibrate(error, mean, square)
        null = null_error(mean, square, family.null_mean)
        result += [family.conditional_entropy(error), family.null_entropy(null), family.pointwise(error, null)]
    bits = math.log2(255 * 0.229)
    torch.testing.assert_close(after[0], before[0] + bits)
    torch.testing.assert_close(after[1], before[1] + bits)
    torch.testing.assert_close(after[2], before[2])


def linear_gaussian_estimate(n: int, seed: int) -> float:
    """Held-out information of least squares about y = w.x + e, with an 8-wide x of unit variance."""
    rng = np.random.default_rng(seed)
    weights = np.full(8, 1 / math.sqrt(8))
    x, noise = rng.normal(size=(2, n, 8)), 0.5 * rng.normal(size=(2, n))
    y = x @ weights + noise
    fitted = np.linalg.lstsq(x[0], y[0], rcond=None)[0]
    values, predicted = (torch.from_numpy(v)[:, None, None] for v in (y[1], x[1] @ fitted))
    return calibrate(*moments(values, predicted)).information


def test_a_linear_gaussian_has_its_known_information() -> None:
    known = 0.5 * math.log2(1.25 / 0.25)  # var(y) = 1 + 0.25
    off = {n: abs(np.array([linear_gaussian_estimate(n, s) for s in range(20)]) - known).mean() for n in (50, 3200)}
    assert off[3200] < 0.03
    assert off[3200] < off[50] / 4  # the error falls as 1 / sqrt(n), to an eighth


def crops(n: int = 3000, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Error, variance and side of crops whose error follows contrast and size, and a difficulty of its own."""
    generator = torch.Generator().manual_seed(seed)
    variance = torch.randn(n, generator=generator).mul(0.8).exp() * 0.05
    side = 40 * torch.randn(n, generator=generator).mul(0.4).exp()
    own = 0.3 * torch.randn(n, generator=generator)
    return 0.02 * (variance + 1e-3) ** 0.67 * side**0.38 * own.exp(), variance, side, own


def test_difficulty_is_free_of_contrast_and_side() -> None:
    error, variance, side, own = crops()
    assert spearmanr(error, variance).statistic > 0.5
    fit = fit_difficulty(error[:1500], variance[:1500], side[:1500])
    assert (fit.contrast_slope, fit.side_slope) == pytest.approx((0.67, 0.38), abs=0.03)
    difficulty = fit.difficulty(error[1500:], variance[1500:], side[1500:])
    for explained in (variance, side):
        assert abs(spearmanr(difficulty, explained[1500:]).statistic) < 0.05
    assert spearmanr(difficulty, own[1500:]).statistic > 0.99
    torch.testing.assert_close(difficulty, own[1500:], atol=0.05, rtol=0)


def test_equal_sides_explain_nothing() -> None:
    error, variance, side, _ = crops()
    fit = fit_difficulty(error, variance, torch.full_like(side, 48.0))
    assert fit.side_slope == 0
    assert fit.contrast_slope == pytest.approx(0.67, abs=0.05)
    assert fit.difficulty(error, variance, torch.full_like(side, 48.0)).mean().item() == pytest.approx(0, abs=1e-5)
    # A side that calibration never saw moves nothing.
    torch.testing.assert_close(fit.difficulty(error, variance, side), fit.difficulty(error, variance, 2 * side))


def test_one_held_out_patch_sets_the_level_alone() -> None:
    fit = fit_difficulty(torch.tensor([0.2]), torch.tensor([0.1]), torch.tensor([32.0]))
    assert fit == DifficultyFit(pytest.approx(math.log(0.2)), 0.0, 0.0)


def test_a_perfectly_predicted_patch_is_finite() -> None:
    fit = DifficultyFit(0.0, 0.5, 0.0)
    assert fit.difficulty(torch.zeros(1), torch.zeros(1), torch.ones(1)).isfinite().all()


def test_reliability_is_spearman_brown_of_the_rank_correlation() -> None:
    same = torch.arange(10.0)
    assert reliability(torch.stack([same, same], 1)) == pytest.approx(1.0)
    assert reliability(same.unsqueeze(1)) is None
    # Ranks 0 1 2 3 against 1 0 3 2: rho = 1 - 6 x 4 / (4 x 15) = 0.6, and two partitions give 1.2 / 1.6.
    swapped = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 9.0], [3.0, 5.0]])
    assert reliability(swapped) == pytest.approx(0.75)
