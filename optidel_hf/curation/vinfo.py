"""
Predictive V-information of masked pixels under a factorised Gaussian family, in bits per value.

Xu et al. 2020 (arXiv 2002.10689) define H_V(Y|X) = inf_f E[-log f[X](Y)], H_V(Y|0) the same without X, and
I_V(X -> Y) = H_V(Y|0) - H_V(Y|X); Ethayarajh et al. 2022 (arXiv 2110.08420) its pointwise form
PVI(x -> y) = -log2 f[0](y) + log2 f[x](y). Here X is what a masked autoencoder sees of an image (visible patches,
positions, the mask), Y the hidden values, and f[x] = prod_j N(y_j; mu_j(x), s^2) with one variance s^2 for all values;
f[0] has the pool's channel means and one variance s0^2. Both variances are fitted on data that the model has not seen.

All entropies are differential: they may be negative, and they depend on the units of Y, while I_V does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def code_length(squared_error: Tensor, variance: float) -> Tensor:
    """
    Bits per value that a Gaussian of `variance` spends: 1/2 log2(2 pi s^2) + e / (2 s^2 ln 2).

    Args:
        squared_error (`Tensor`): mean squared error per value, any shape.
        variance (`float`): s^2, in the squared units of the values.
    """
    return 0.5 * math.log2(2 * math.pi * variance) + squared_error / (2 * variance * math.log(2))


def gaussian_entropy(variance: float) -> float:
    """Differential entropy of a Gaussian in bits: 1/2 log2(2 pi e s^2), the mean of a calibrated [`code_length`]."""
    return 0.5 * math.log2(2 * math.pi * math.e * variance)


def v_information(null_variance: float, model_variance: float) -> float:
    """The closed form for calibrated variances: I_V = 1/2 log2(s0^2 / s^2) bits per value."""
    return 0.5 * math.log2(null_variance / model_variance)


@dataclass(frozen=True)
class GaussianFamily:
    """
    A calibrated pair of predictors, f[x] and f[0].

    Args:
        model_variance (`float`): s^2, the model's mean squared error on held-out data.
        null_variance (`float`): s0^2, the mean squared deviation of held-out values from `null_mean`.
        null_mean (`tuple[float, ...]`): mean of the held-out values per channel.
    """

    model_variance: float
    null_variance: float
    null_mean: tuple[float, ...]

    def conditional_entropy(self, model_error: Tensor) -> Tensor:
        """Sample estimate of H_V(Y|X), from each sample's mean squared error: bits per value, same shape."""
        return code_length(model_error, self.model_variance)

    def null_entropy(self, null_error: Tensor) -> Tensor:
        """Sample estimate of H_V(Y|0), from each sample's mean squared deviation from `null_mean`."""
        return code_length(null_error, self.null_variance)

    def pointwise(self, model_error: Tensor, null_error: Tensor) -> Tensor:
        """PVI: null entropy minus conditional entropy; negative where the model does worse than the mean."""
        return self.null_entropy(null_error) - self.conditional_entropy(model_error)

    @property
    def information(self) -> float:
        """I_V on the calibration data, in bits per value."""
        return v_information(self.null_variance, self.model_variance)


def calibrate(model_error: Tensor, channel_mean: Tensor, channel_square: Tensor) -> GaussianFamily:
    """
    Fit both variances and the null mean on held-out samples (maximum likelihood, in closed form).

    Args:
        model_error (`Tensor` of shape `(n,)`): mean squared error of each sample.
        channel_mean (`Tensor` of shape `(n, C)`): mean value of each sample's channels.
        channel_square (`Tensor` of shape `(n, C)`): mean squared value of each sample's channels.
    """
    mean = channel_mean.double().mean(0)
    null_variance = (channel_square.double().mean(0) - mean**2).mean()
    return GaussianFamily(float(model_error.double().mean()), float(null_variance), tuple(mean.tolist()))


def reliability(errors: Tensor) -> float | None:
    """
    How far patches keep their ranks under other masks: the Spearman-Brown reliability of the mean over P partitions.

    P rho / (1 + (P - 1) rho), with rho the mean rank correlation between two independent partitions.

    Args:
        errors (`Tensor` of shape `(n, P)`): each patch's error under each partition.

    Returns:
        `float` up to 1, or `None` for one partition, which has nothing to be compared with.
    """
    partitions = errors.shape[1]
    if partitions < 2:
        return None
    correlations = torch.corrcoef(errors.argsort(0).argsort(0).double().T)
    rho = (correlations.sum() - partitions) / (partitions * (partitions - 1))
    return float(partitions * rho / (1 + (partitions - 1) * rho))


def null_error(channel_mean: Tensor, channel_square: Tensor, null_mean: tuple[float, ...]) -> Tensor:
    """Mean squared deviation of each sample's values from `null_mean`: `(n, C)` moments to `(n,)`."""
    mean = torch.tensor(null_mean, dtype=channel_mean.dtype, device=channel_mean.device)
    return (channel_square - 2 * channel_mean * mean + mean**2).mean(-1)


@dataclass(frozen=True)
class DifficultyFit:
    """
    What a patch's error is expected to be from its contrast and its size alone.

    Raw error follows contrast (rank correlation +0.74 on real crops) and crop side; the residual of
    log e = a + b log(var + tau) + c log side follows neither.
    """

    intercept: float
    contrast_slope: float
    side_slope: float
    tau: float = 1e-3

    def difficulty(self, error: Tensor, variance: Tensor, side: Tensor) -> Tensor:
        """log e minus its expectation, in nats: positive is harder than patches of its contrast and size."""
        expected = self.contrast_slope * torch.log(variance + self.tau) + self.side_slope * torch.log(side)
        return torch.log(error.clamp_min(1e-12)) - (self.intercept + expected)


def fit_difficulty(error: Tensor, variance: Tensor, side: Tensor, tau: float = 1e-3) -> DifficultyFit:
    """Least squares for [`DifficultyFit`] on held-out samples; all arguments of shape `(n,)`, side in pixels."""
    design = torch.stack([torch.log(variance + tau), torch.log(side)], dim=1).double().cpu()
    target = torch.log(error.clamp_min(1e-12)).double().cpu()
    centre, level = design.mean(0), target.mean()
    # Centred, so that gelsd's least-norm solution gives slope 0 where all sides are equal (whole images of one size).
    slopes = torch.linalg.lstsq(design - centre, (target - level).unsqueeze(1), driver="gelsd").solution.flatten()
    contrast_slope, side_slope = slopes.tolist()
    return DifficultyFit(float(level - slopes @ centre), contrast_slope, side_slope, tau)
