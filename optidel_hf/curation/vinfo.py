"""
Predictive V-information of masked pixels under a factorised Gaussian family, in bits per value.

Xu et al. 2020 (arXiv 2002.10689) define H_V(Y|X) = inf_f E[-log f[X](Y)], H_V(Y|0) the same without X, and
I_V(X -> Y) = H_V(Y|0) - H_V(Y|X); Ethayarajh et al. 2022 (arXiv 2110.08420) its pointwise form
PVI(x -> y) = -log2 f[0](y) + log2 f[x](y). Here X is what a masked autoencoder sees of an image (visible patches,
positions, the mask), Y the hidden values, and f[x] = prod_j N(y_j; mu_j(x), s_g(j)^2); f[0] has constant means mu0_j
and variances s0_g(j)^2. The values of an index set g share a variance: all of them (`global`), those of a `channel`,
or those of a token's `position`. Both members share over the same sets, and both are fitted on data that the model
has not seen. Figures of two families are not comparable.

All entropies are differential: they may be negative, and they depend on the units of Y, while I_V does not.

Shapes: `n` samples, `G` index sets, `U` means in a set (values of a set that share a mean are equally many).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


# Of normalised pixels: under the variance that rounding to 8 bits leaves, so that nothing constant is infinitely sure.
LEAST_VARIANCE = 1e-5
# About the variance of a JPEG's noise: errors and contrasts below it are no difference between two patches.
NOISE_VARIANCE = 1e-3


def code_length(squared_error: Tensor, variance: float | Tensor) -> Tensor:
    """
    Bits per value that a Gaussian of `variance` spends: 1/2 log2(2 pi s^2) + e / (2 s^2 ln 2).

    Args:
        squared_error (`Tensor`): mean squared error per value, any shape.
        variance (`float` or `Tensor`): s^2, in the squared units of the values.
    """
    variance = torch.as_tensor(variance, dtype=torch.float64)
    return 0.5 * torch.log2(2 * math.pi * variance) + squared_error / (2 * variance * math.log(2))


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
        model_variance (`tuple[float, ...]` of length `G`): s^2, the model's mean squared error on held-out data.
        null_variance (`tuple[float, ...]` of length `G`): s0^2, the held-out values' mean squared deviation from mu0.
        null_mean (`tuple` of `G` tuples of length `U`): mu0, the means of the held-out values.
    """

    model_variance: tuple[float, ...]
    null_variance: tuple[float, ...]
    null_mean: tuple[tuple[float, ...], ...]

    def conditional_entropy(self, model_error: Tensor) -> Tensor:
        """Sample estimate of H_V(Y|X), bits per value, from mean squared errors: `(..., G)` to `(...)`."""
        return code_length(model_error, torch.tensor(self.model_variance, dtype=torch.float64)).mean(-1)

    def null_entropy(self, null_error: Tensor) -> Tensor:
        """Sample estimate of H_V(Y|0), bits per value, from mean squared deviations: `(..., G)` to `(...)`."""
        return code_length(null_error, torch.tensor(self.null_variance, dtype=torch.float64)).mean(-1)

    def pointwise(self, model_error: Tensor, null_error: Tensor) -> Tensor:
        """PVI: null entropy minus conditional entropy; negative where the model does worse than the mean."""
        return self.null_entropy(null_error) - self.conditional_entropy(model_error)

    @property
    def entropy(self) -> float:
        """H_V(Y|X) on the calibration data, in bits per value."""
        return sum(map(gaussian_entropy, self.model_variance)) / len(self.model_variance)

    @property
    def information(self) -> float:
        """I_V on the calibration data, in bits per value: the mean of the sets' closed forms."""
        pairs = zip(self.null_variance, self.model_variance)
        return sum(v_information(null, model) for null, model in pairs) / len(self.model_variance)


def calibrate(model_error: Tensor, mean: Tensor, square: Tensor) -> GaussianFamily:
    """
    Fit the variances and the null means on held-out samples (maximum likelihood, in closed form).

    Args:
        model_error (`Tensor` of shape `(n, G)`): mean squared error of each sample's index sets.
        mean (`Tensor` of shape `(n, G, U)`): mean of the values that share a null mean.
        square (`Tensor` of shape `(n, G, U)`): their mean square.
    """
    null_mean = mean.double().mean(0)
    null_variance = (square.double().mean(0) - null_mean**2).mean(-1).clamp_min(LEAST_VARIANCE)
    model_variance = model_error.double().mean(0).clamp_min(LEAST_VARIANCE)
    means = tuple(map(tuple, null_mean.tolist()))
    return GaussianFamily(tuple(model_variance.tolist()), tuple(null_variance.tolist()), means)


def null_error(mean: Tensor, square: Tensor, null_mean: tuple[tuple[float, ...], ...]) -> Tensor:
    """Mean squared deviation of each sample's values from `null_mean`: `(n, G, U)` moments to `(n, G)`."""
    constant = torch.tensor(null_mean, dtype=torch.float64)
    return (square - 2 * mean * constant + constant**2).mean(-1)


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
    tau: float = NOISE_VARIANCE

    def difficulty(self, error: Tensor, variance: Tensor, side: Tensor) -> Tensor:
        """log e minus its expectation, in nats: positive is harder than patches of its contrast and size."""
        expected = self.contrast_slope * torch.log(variance + self.tau) + self.side_slope * torch.log(side)
        return torch.log(error.clamp_min(1e-12)) - (self.intercept + expected)


def fit_difficulty(error: Tensor, variance: Tensor, side: Tensor) -> DifficultyFit:
    """Least squares for [`DifficultyFit`] on held-out samples; all arguments of shape `(n,)`, side in pixels."""
    design = torch.stack([torch.log(variance + NOISE_VARIANCE), torch.log(side)], dim=1).double().cpu()
    target = torch.log(error.clamp_min(1e-12)).double().cpu()
    centre, level = design.mean(0), target.mean()
    # Centred, so that gelsd's least-norm solution gives slope 0 where all sides are equal (whole images of one size).
    slopes = torch.linalg.lstsq(design - centre, (target - level).unsqueeze(1), driver="gelsd").solution.flatten()
    contrast_slope, side_slope = slopes.tolist()
    return DifficultyFit(float(level - slopes @ centre), contrast_slope, side_slope)


def learnability(early_error: Tensor, late_error: Tensor) -> Tensor:
    """
    Bits per value that longer training gains on each sample: 1/2 log2((e_early + tau) / (e_late + tau)).

    RHO-LOSS (Mindermann et al. 2022, arXiv 2206.07137) trains on what has a high loss so far and a low irreducible
    one, for loss that does not fall is noise. The early model's code length stands for the first and the late model's
    for the second, each with the variance that suits the sample best: their difference is this ratio of mean squared
    errors, in which a sample's scale cancels, and 0 where nothing more is learnt. A shared variance would not do: it
    gives a flat patch bits for its flatness, and takes them from a contrasted one that both predict equally badly.
    Smooth patches are still learnt first, so under a model that is trained briefly they are what is learnable.
    """
    early, late = (error.double() + NOISE_VARIANCE for error in (early_error, late_error))
    return 0.5 * torch.log2(early / late)
