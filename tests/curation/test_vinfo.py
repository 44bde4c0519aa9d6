"""V-information against values worked by hand and against a linear Gaussian whose information is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from optidel_hf.curation.vinfo import (
    LEAST_VARIANCE,
    DifficultyFit,
    GaussianFamily,
    calibrate,
    code_length,
    fit_difficulty,
    gaussian_entropy,
    null_error,
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


def moments(values: torch.Tensor, predicted: torch.Tensor, family: str = "global") -> tuple[torch.Tensor, ...]:
    """Errors `(n, G)` and moments `(n, G, U)` of `(n, L, C)` values: tokens of one pixel each."""
    squares = (values - predicted).square()
    if family == "position":
        return squares.mean(2), values, values.square()
    mean, square = values.mean(1), values.square().mean(1)
    if family == "channel":
        return squares.mean(1), mean.unsqueeze(2), square.unsqueeze(2)
    return squares.mean((1, 2)).unsqueeze(1), mean.unsqueeze(1), square.unsqueeze(1)


@pytest.mark.parametrize("sharing", ["global", "channel", "position"])
def test_a_calibrated_family_spends_its_entropy_on_average(sharing: str) -> None:
    values, predicted = samples()
    error, mean, square = moments(values, predicted, sharing)
    family = calibrate(error, mean, square)
    sets = {"global": 1, "channel": 3, "position": 50}[sharing]
    assert (len(family.model_variance), len(family.null_variance)) == (sets, sets)
    null = null_error(mean, square, family.null_mean)
    assert family.conditional_entropy(error).mean().item() == pytest.approx(family.entropy)
    assert family.null_entropy(null).mean().item() == pytest.approx(family.entropy + family.information)
    assert family.pointwise(error, null).mean().item() == pytest.approx(family.information)
    # All sets have the same variances here, so every family tells the same: 1/2 log2(0.49 / 0.16).
    assert family.information == pytest.approx(0.5 * math.log2(0.49 / 0.16), abs=0.02)


def test_the_fit_is_the_held_out_mean_and_mean_squares() -> None:
    values, predicted = samples()
    family = calibrate(*moments(values, predicted))
    assert family.null_mean[0] == pytest.approx(values.mean((0, 1)).tolist())
    assert family.null_variance[0] == pytest.approx(values.var((0, 1), unbiased=False).mean().item(), rel=1e-5)
    assert family.model_variance[0] == pytest.approx((values - predicted).square().mean().item(), rel=1e-5)


def test_a_variance_for_each_channel_worked_by_hand() -> None:
    # Variances 1 and 4 under the null, 0.25 and 4 under the model: 1 bit for the first channel, none for the second.
    family = GaussianFamily((0.25, 4.0), (1.0, 4.0), ((0.0,), (0.0,)))
    assert family.information == pytest.approx(0.5)
    pvi = family.pointwise(torch.tensor([[0.25, 4.0], [0.5, 4.0]]), torch.tensor([[1.0, 4.0], [1.0, 4.0]]))
    # The second sample's first channel errs by twice its variance: half a variance more, 1 / (2 ln 2) bits, over two.
    assert pvi.tolist() == pytest.approx([0.5, 0.5 - 0.5 / (2 * math.log(2))])
    # One variance for both channels, of the same data, knows less: 1/2 log2(2.5 / 2.125).
    assert v_information(2.5, 2.125) < family.information


def test_what_never_varies_is_not_known_without_bound() -> None:
    """A position that is black in every held-out patch, and predicted so."""
    values = torch.zeros(4, 2, 3)
    values[:, 1] = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    family = calibrate(*moments(values, values * 0, "position"))
    assert family.model_variance[0] == family.null_variance[0] == LEAST_VARIANCE
    assert math.isfinite(family.information)


def test_calibration_holds_on_data_that_it_was_not_fitted_on() -> None:
    fitted = calibrate(*moments(*samples(400, seed=1)))
    error, _, _ = moments(*samples(400, seed=2))
    ratio = error.mean().item() / fitted.model_variance[0]
    # 60,000 independent squares: a standard error of sqrt(2 / 60,000) on each side.
    assert ratio == pytest.approx(1, abs=4 * math.sqrt(4 / 60_000))
    # It is seen in the code lengths: each percent too much costs 1 / (200 ln 2) bits.
    excess = fitted.conditional_entropy(error).mean().item() - fitted.entropy
    assert excess == pytest.approx((ratio - 1) / (2 * math.log(2)))


def test_the_null_error_is_the_mean_square_about_the_null_mean() -> None:
    values, predicted = samples(n=5)
    _, mean, square = moments(values, predicted)
    expected = (values.double() - torch.tensor([0.5, -1.0, 0.0])).square().mean((1, 2)).unsqueeze(1)
    found = null_error(mean, square, ((0.5, -1.0, 0.0),))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_pvi_is_null_minus_conditional_entropy_and_negative_below_the_null() -> None:
    family = GaussianFamily(model_variance=(0.25,), null_variance=(1.0,), null_mean=((0.0,),))
    error, null = torch.tensor([[0.25], [2.0]]), torch.tensor([[1.0], [1.0]])
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


def linear_gaussian(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`n` rows of x, 8 wide, and y = x W + e in three channels, of which x explains 4/5, 1/2 and nothing."""
    x = rng.normal(size=(n, 8))
    signal = x @ np.linalg.qr(np.random.default_rng(0).normal(size=(8, 3)))[0]  # three independent unit variances
    return x, signal * [1, 1, 0] + rng.normal(size=(n, 3)) * [0.5, 1, 2] + [3, -1, 0]


KNOWN = {
    # var(y) = 1.25, 2, 4 and var(y | x) = 0.25, 1, 4: over all values, and channel by channel.
    "global": 0.5 * math.log2((1.25 + 2 + 4) / (0.25 + 1 + 4)),
    "channel": (0.5 * math.log2(5) + 0.5 * math.log2(2) + 0) / 3,
}


def held_out_information(n: int, seed: int, sharing: str) -> float:
    """
    The procedure of a score: least squares on n samples, variances on n others, the mean PVI of n more.

    Samples are 16 rows each, as a patch has many values.
    """
    rng = np.random.default_rng(seed)
    (x, y), *others = (linear_gaussian(16 * n, rng) for _ in range(3))
    fitted = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0]
    measured = []
    for x, y in others:
        predicted = np.c_[x, np.ones(len(x))] @ fitted
        measured.append(moments(*(torch.from_numpy(v).unflatten(0, (n, 16)) for v in (y, predicted)), sharing))
    (error, mean, square), scored = measured
    family = calibrate(error, mean, square)
    return family.pointwise(scored[0], null_error(scored[1], scored[2], family.null_mean)).mean().item()


@pytest.mark.parametrize("sharing", ["global", "channel"])
def test_the_held_out_estimate_converges_to_the_known_information(sharing: str) -> None:
    known = KNOWN[sharing]
    off = {n: np.array([held_out_information(n, s, sharing) for s in range(20)]) - known for n in (4, 64, 1024)}
    error = {n: np.abs(values).mean() for n, values in off.items()}
    # As 1 / sqrt(n): sixteen times the samples, a quarter of the error; half is asked, for 20 runs scatter.
    assert error[64] < error[4] / 2
    assert error[1024] < error[64] / 2
    # 16,384 rows a split: each variance's logarithm has a standard error of sqrt(2 / 16,384) / (2 ln 2) = 0.008 bits.
    assert error[1024] < 0.01
    # Least squares on 64 rows overfits: out of sample it can only lose, which keeps the estimate below the truth.
    assert off[4].mean() < 0


def test_predictions_for_other_samples_carry_no_information() -> None:
    """Xu et al.: V-information is never under 0 and 0 for independent X; an estimate of it falls below, not above."""
    values, predicted = samples(400)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    error, mean, square = moments(values, predicted[order])
    assert calibrate(error, mean, square).information < 0


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
