"""
How sure a difference of two arms is, when seeds and test images are both samples and every seed meets every image.

The figure is D, the mean over seeds of mIoU(sum_n a_sn) - mIoU(sum_n b_sn): both arms of a seed on the same images,
each from its pooled confusion matrix. mIoU is a ratio and no mean over images: image n counts by its influence on it,

    y_sn = D_s + mean over classes of (I_cn - IoU_c U_cn) / (U_c / N)  of a,  minus the same of b,   mean_n y_sn = D_s,

where I and U are pixels in both and in either of truth and prediction. Two crossed random effects describe y,

    y_sn = D + seed_s + image_n + residual_sn,        Var(D) = seed^2 / S + image^2 / N + residual^2 / (S N),

estimated by the analysis of variance without replication (a component that comes out negative is zero):

    Q_seed  = N sum_s (y_s. - D)^2 / (S - 1)                                seed^2  = (Q_seed - Q_residual) / N
    Q_image = S sum_n (y_.n - D)^2 / (N - 1)                                image^2 = (Q_image - Q_residual) / S
    Q_residual = sum_sn (y_sn - y_s. - y_.n + D)^2 / ((S - 1) (N - 1))      residual^2 = Q_residual

`image` is the interaction of image and arm: what both arms find difficult has cancelled.

The interval is a crossed bootstrap whose two halves are each put right. Drawing seeds and images with replacement at
once (Owen 2007) has (S - 1) / S of the seeds' variance, with tails too short for few of them, and counts the residual
three times: its 95 % intervals held the truth in 86 to 100 % of 400 simulated experiments of 2 to 11 seeds and 80
images, depending on what varied. So (there: 91.5 to 98 %; with 2 or 3 seeds rather more than 95 %)

    D* = D + t_{S-1} sqrt(Q_seed / (S N)) + c_N sqrt(image^2 / (Q_image / S)) (D_w - D)

where D_w pools all confusion matrices anew under multinomial weights w of the images, t are draws of Student's t (at
equally spaced probabilities, shuffled), and c_N = sqrt(N / (N - 1)) t_{N-1} / z, quantiles of the confidence, makes up
for few images as t does for few seeds: 1.02 at 100, 1.22 at 10. Of 500 simulated experiments of 6 to 80 images these
intervals held the truth in 92 to 98 %, without c_N in 83 to 98 % (`benchmarks/simulate_intervals.py`).
Q_seed / (S N) is the variance of the seeds' mean: without an image effect this is the t interval over seeds, without a
seed effect the bootstrap over images. One seed has no interval.

S seeds, N images, C classes, A arms, K checkpoints.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, stats

from optidel_hf.evaluation.metrics.mean_iou.mean_iou import class_iou, overlap
from optidel_hf.evaluation.statistics import bootstrap_correction, rank_correlation


CONFIDENCE = 0.95
TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
DRAWS = 2000
POWER = 0.95
TOLERANCE = 0.005  # of a level that counts as reached: half a point
FEWEST_SEEDS, MOST_SEEDS = 5, 1000
"""No claim rests on fewer seeds; where more than the latter would be needed, seeds are not the way."""


@dataclass(frozen=True)
class Interval:
    """
    A difference of two arms' mIoU (or one arm's mIoU: its difference to zero) as a fraction.

    Args:
        difference (`float`): The estimate.
        low (`float`): Lower end; NaN with one seed or one image.
        high (`float`): Upper end.
        seeds (`int`): Seeds that both arms have.
        images (`int`): Images that each was judged on.
    """

    difference: float
    low: float
    high: float
    seeds: int
    images: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies off zero, on either side; never without an interval."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Components:
    """
    Standard deviations, in mIoU as a fraction, of what makes a difference of two arms vary; NaN with one seed.

    Args:
        seed (`float`): From seed to seed, with endless images.
        image (`float`): From image to image, with endless seeds: the interaction of image and arm.
        residual (`float`): Of a seed on an image, beyond both.
    """

    seed: float
    image: float
    residual: float


@dataclass(frozen=True)
class Reached:
    """
    The first checkpoint from which a mean stays at a level; infinite where it does not, NaN for the ends of one seed.

    Args:
        steps (`float`): Pre-training steps of that checkpoint.
        low (`float`): Lower end of the interval over seeds.
        high (`float`): Upper end.
        seeds (`int`): Seeds that were averaged.
    """

    steps: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True)
class RankCorrelation:
    """
    Spearman's rank correlation over arms.

    Args:
        value (`float`): From -1 to 1; NaN for fewer than 3 arms, or where all values of one side are equal.
        low (`float`): Lower end of the 95 % interval; NaN for fewer than 5 arms.
        high (`float`): Upper end.
        arms (`int`): Arms that have both values.
    """

    value: float
    low: float
    high: float
    arms: int


def pooled_miou(confusion: np.ndarray) -> np.ndarray:
    """
    Mean IoU of the confusion matrices `(..., N, C, C)` summed over images, `(...)`; classes that occur count.

    Returns:
        `numpy.ndarray`, float64, as fractions.
    """
    return np.nanmean(class_iou(confusion.sum(axis=-3)), axis=-1)


def paired_interval(a: np.ndarray, b: np.ndarray, draws: int = DRAWS, seed: int = 0) -> Interval:
    """
    The mean over seeds of `a`'s mIoU minus `b`'s, with its interval over seeds and images.

    Args:
        a (`np.ndarray`): Confusion matrices `(S, N, C, C)` of one arm, rows are the truth.
        b (`np.ndarray`): Those of the other arm, on the same seeds and images.
        draws (`int`, *optional*, defaults to 2000): Bootstrap draws.
        seed (`int`, *optional*, defaults to 0): Seed of the draws.

    Returns:
        [`Interval`]
    """
    return _interval(np.stack([a, b]), np.array([1.0, -1.0]), draws, seed)


def miou_interval(confusion: np.ndarray) -> Interval:
    """One arm's mean mIoU over seeds, by confusions `(S, N, C, C)`, with its interval over seeds and images."""
    return _interval(confusion[None], np.ones(1), DRAWS, 0)


def variance_components(a: np.ndarray, b: np.ndarray) -> Components:
    """
    What a difference of two arms varies with: see the module's text for the estimator.

    Args:
        a (`np.ndarray`): Confusion matrices `(S, N, C, C)` of one arm.
        b (`np.ndarray`): Those of the other arm, on the same seeds and images.
    """
    influence = _influence(np.stack([a, b]), np.array([1.0, -1.0]))
    if min(influence.shape) < 2:
        return Components(np.nan, np.nan, np.nan)
    by_seed, by_image, residual = _mean_squares(influence)
    seeds, images = influence.shape
    parts = ((by_seed - residual) / images, (by_image - residual) / seeds, residual)
    return Components(*(float(np.sqrt(max(0.0, part))) for part in parts))


def minimum_detectable_difference(components: Components, seeds: int, images: int) -> float:
    """
    The least true difference whose 95 % interval lies off zero in 95 % of experiments; NaN for one seed.

    The seeds' part and the images' part are those of t tests (non-central t), added as variances.

    Args:
        components ([`Components`]): Standard deviations of the paired difference.
        seeds (`int`): Seeds of the comparison.
        images (`int`): Images of the comparison.
    """
    if min(seeds, images) < 2:
        return np.nan
    over_seeds = (components.seed**2 + components.residual**2 / images) / seeds
    over_images = components.image**2 / images
    shifts = [_shift(count - 1) for count in (seeds, images)]
    return float(np.hypot(*np.multiply(shifts, np.sqrt([over_seeds, over_images]))))


def seeds_needed(components: Components, images: int, difference: float = 0.01) -> int | None:
    """
    Seeds with which a true difference is detected, 5 at least.

    Returns:
        `int`, or `None` where 1,000 seeds would not do: then it is the images that are too few. `None` too where the
        components are not known.
    """
    counts = range(FEWEST_SEEDS, MOST_SEEDS + 1)
    place = bisect_left(
        counts, True, key=lambda seeds: minimum_detectable_difference(components, seeds, images) <= difference
    )
    return counts[place] if place < len(counts) else None


def steps_to_level(
    curves: np.ndarray,
    steps: np.ndarray,
    level: float | np.ndarray,
) -> Reached:
    """
    The first checkpoint from which the seeds' mean stays, to the end, no more than half a point below a level.

    The interval is over seeds, for these images: the mean curve is redrawn from the multivariate t of its S - 1
    degrees of freedom, so that a seed's checkpoints stay together.

    Args:
        curves (`np.ndarray`): mIoU `(S, K)` of each seed at each checkpoint.
        steps (`np.ndarray`): Pre-training steps `(K,)` of the checkpoints, ascending.
        level (`float` or `np.ndarray`): What is to be reached; `(S,)` where it was measured with the same seeds.

    Returns:
        [`Reached`]
    """
    gaps = curves - np.reshape(level, (-1, 1))
    mean, count = gaps.mean(axis=0), len(gaps)
    at = np.append(np.asarray(steps, np.float64), np.inf)
    reached = float(at[_first_lasting(mean[None] >= -TOLERANCE)[0]])
    if count < 2:
        return Reached(reached, np.nan, np.nan, count)
    rng = np.random.default_rng([0, 2])
    shifts = rng.standard_normal((DRAWS, count)) @ (gaps - mean) / np.sqrt(count * (count - 1))
    shifts /= np.sqrt(rng.chisquare(count - 1, (DRAWS, 1)) / (count - 1))
    redrawn = at[_first_lasting(mean + shifts >= -TOLERANCE)]
    low, high = np.quantile(redrawn, TAILS, method="inverted_cdf")
    return Reached(reached, float(low), float(high), count)


def _first_lasting(there: np.ndarray) -> np.ndarray:
    """Where each row `(..., K)` of truth values begins to be true to its end; K where it does not."""
    return there.shape[1] - np.logical_and.accumulate(there[:, ::-1], axis=1).sum(axis=1)


def correlate_arms(information: np.ndarray, miou: np.ndarray) -> RankCorrelation:
    """
    Spearman's rho of two values over arms, with Bonett and Wright's 95 % interval (2000): atanh(rho) has about the
    variance (1 + rho^2 / 2) / (A - 3). Arms are the sample: what seeds leave uncertain is part of their scatter.

    Args:
        information (`np.ndarray`): One value an arm `(A,)`, such as its mean held-out V-information; NaN is left out.
        miou (`np.ndarray`): The other value `(A,)`.
    """
    arms = int((np.isfinite(information) & np.isfinite(miou)).sum())
    if (value := rank_correlation(information, miou)) is None:
        return RankCorrelation(np.nan, np.nan, np.nan, arms)
    if arms < 5:
        return RankCorrelation(value, np.nan, np.nan, arms)
    # A perfect order of few arms is no certainty: the interval is that of half a step of rho below it.
    inside = np.clip(value, -1 + (half := 6 / (arms**3 - arms)), 1 - half)
    spread = stats.norm.ppf((1 + CONFIDENCE) / 2) * np.sqrt((1 + inside**2 / 2) / (arms - 3))
    low, high = np.tanh(np.arctanh(inside) + np.array([-spread, spread]))
    return RankCorrelation(value, float(low), float(high), arms)


def _interval(arms: np.ndarray, signs: np.ndarray, draws: int, seed: int) -> Interval:
    """The interval of the arms' `(A, S, N, C, C)` signed sum of mIoU."""
    seeds, images = arms.shape[1:3]
    difference = float((signs @ pooled_miou(arms)).mean())
    if min(seeds, images) < 2:
        return Interval(difference, np.nan, np.nan, seeds, images)
    by_seed, by_image, residual = _mean_squares(_influence(arms, signs))
    shrink = np.sqrt(max(0.0, by_image - residual) / by_image) if by_image > 0 else 0.0
    redrawn = bootstrap_correction(images) * (_redrawn(arms, signs, draws, seed) - difference)
    student = _student(draws, seeds - 1, seed) * np.sqrt(by_seed / (seeds * images))
    low, high = np.quantile(difference + student + shrink * redrawn, TAILS, method="hazen")
    return Interval(difference, float(low), float(high), seeds, images)


def _influence(arms: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """y `(S, N)`: how image n moves seed s's difference; its mean over images is the difference."""
    intersection, union = overlap(arms)  # (A, S, N, C)
    pooled = class_iou(arms.sum(axis=2))[:, :, None]  # (A, S, 1, C), NaN where a class does not occur
    with np.errstate(invalid="ignore"):
        moved = np.nanmean((intersection - pooled * union) / union.mean(axis=2, keepdims=True), axis=-1)
    return np.tensordot(signs, np.nanmean(pooled, axis=-1) + moved, axes=1)


def _mean_squares(values: np.ndarray) -> tuple[float, float, float]:
    """Q_seed, Q_image and Q_residual of `(S, N)` values."""
    seeds, images = values.shape
    by_seed = values.mean(axis=1, keepdims=True) - values.mean()
    by_image = values.mean(axis=0, keepdims=True) - values.mean()
    residual = values - values.mean() - by_seed - by_image
    return (
        float(images * np.square(by_seed).sum() / (seeds - 1)),
        float(seeds * np.square(by_image).sum() / (images - 1)),
        float(np.square(residual).sum() / ((seeds - 1) * (images - 1))),
    )


def _redrawn(arms: np.ndarray, signs: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """The difference `(draws,)` over all seeds, on images drawn with replacement."""
    counts = np.stack(overlap(arms))  # (2, A, S, N, C): intersections and unions, of which pooling is the sum
    weights = _image_weights(draws, arms.shape[2], seed)
    intersection, union = np.einsum("dn,kasnc->kdasc", weights, counts, optimize=True)
    iou = np.divide(intersection, union, out=np.full_like(intersection, np.nan), where=union > 0)
    return np.einsum("a,das->d", signs, np.nanmean(iou, axis=-1)) / arms.shape[1]


@lru_cache(maxsize=2)
def _image_weights(draws: int, images: int, seed: int) -> np.ndarray:
    """How often each image is drawn, `(draws, N)`: the same for all comparisons, which keeps tables consistent."""
    rng = np.random.default_rng([seed, 0])
    return rng.multinomial(images, np.full(images, 1 / images), size=draws).astype(np.float64)


def _student(draws: int, freedom: int, seed: int) -> np.ndarray:
    """Student's t at equally spaced probabilities in random order, `(draws,)`."""
    spaced = (np.arange(draws) + 0.5) / draws
    return np.random.default_rng([seed, 1]).permutation(stats.t.ppf(spaced, freedom))


@lru_cache(maxsize=4096)
def _shift(freedom: int) -> float:
    """By how many standard errors a t estimate must lie off zero to be seen in [`POWER`] of experiments."""
    edge = stats.t.ppf(TAILS[1], freedom)
    return float(optimize.brentq(lambda shift: stats.nct.sf(edge, freedom, shift) - POWER, 0.0, 10 * edge))
