"""
What is cut before hard patches are ranked: spoilt patches, then those that lie beyond the tail of the pool's scores.

The very hardest samples are mostly noise: EL2N's highest scores are odd views and label noise (Paul et al. 2021, arXiv
2107.07075), and CCS (Zheng et al. 2023, arXiv 2210.15809) cuts a share of them that it tunes with labels. Without
labels the limit comes from the pool: the modified z-score of Iglewicz and Hoaglin ("How to Detect and Handle
Outliers", 1993) with their 3.5, on the upper side and by the upper half's own spread, so that easy patches, however
far they reach, do not move it:

    limit = Q2 + 3.5 (Q3 - Q2) / 0.6745              (Q2 median, Q3 upper quartile; of a normal: 3.5 deviations)

`difficulty` is a log error less what contrast and size explain, and so about normal where nothing is wrong. What
spoils a patch has columns of its own (`border`, `text`, `saturation`, `defocus`, each from 0 to 1), each cut where it
exceeds both what an eye would object to (`LEAST`) and the same limit. Junk must not lift the limit that cuts it, as a
quarter of blurred patches would, Q3 being one of them: Q2 and Q3 are those of the patches within `LEAST`, while these
are the majority. Where half of a pool is soft they are those of all patches, and soft is no reason.

Defocus spoils images and not patches, and sharpness varies within an image: a smooth patch of a sharp one is as soft
as an edge in a blurred one. So all patches are cut, too, of an image whose median `defocus` exceeds the limit of these
medians, which is as much tighter as they vary less.

A table with the column `learnability` tells noise from what is merely hard, as RHO-LOSS (Mindermann et al. 2022, arXiv
2206.07137) does: of the quarter with the highest raw error a patch is cut if longer training has gained less than a
tenth of what it gained on the median patch. Learnability has a natural zero, so no spread is needed; where the median
patch gained nothing either, the two models say nothing and nothing is cut. The error is the raw one because what is
flat cannot be learnt any better either, and does no harm; and because `difficulty`, which expects a high error where
contrast is high, is fitted on what noise there is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.ndimage import median

from optidel_hf.curation.selection.candidates import Candidates, hardest_first
from optidel_hf.curation.selection.choice import OUT_OF_FOCUS, OUTLIER, SPOILT, UNLEARNT


DEVIATIONS = 3.5
QUARTILE = 0.6745  # of a standard normal
LEAST_GAIN, HARD_SHARE = 0.1, 0.25  # of the median's learnability; of the patches, by raw error
LEAST = {"border": 0.25, "text": 0.02, "saturation": 0.1, "defocus": 0.6}


class Cut(NamedTuple):
    """
    Args:
        pool (`np.ndarray` of shape `(m,)`): candidate indices that are left, hardest first.
        reasons (`np.ndarray` of shape `(n,)`, object): why each candidate was cut; empty for those left.
        facts (`dict`): `trim`, and for each reason the `limit` of its column, if there is one, and how many it `cut`.
    """

    pool: np.ndarray
    reasons: np.ndarray
    facts: dict[str, Any]


def cut_outliers(candidates: Candidates, count: int, trim: float | None) -> Cut:
    """
    Leave out spoilt, unlearnable and outlying patches, the hardest of them first, as far as that leaves `count`.

    Args:
        trim (`float`, *optional*): cut this share of the hardest instead, whatever they are; 0 cuts nothing.
    """
    order = hardest_first(candidates)
    why = np.full(len(order), "", dtype=object)
    limits: dict[str, float | None] = {OUTLIER: None}
    if trim is None:
        known = _limits(candidates)
        limits = {**known, **({} if candidates.learning is None else {UNLEARNT: None})}
        why[candidates.score > known[OUTLIER]] = OUTLIER
        if candidates.learning is not None:
            gain, error = candidates.learning.T
            why[(error > 1 - HARD_SHARE) & (gain < LEAST_GAIN)] = UNLEARNT
        if OUT_OF_FOCUS in known:
            softness, image = _softness(candidates)
            why[softness[image] > known[OUT_OF_FOCUS]] = OUT_OF_FOCUS
        for name, values in candidates.nuisances.items():
            why[values > known[SPOILT[name]]] = SPOILT[name]
    else:
        why[order[: int(round(trim * len(order), 9))]] = OUTLIER
    flagged = order[why[order] != ""]
    why[flagged[len(order) - count :]] = ""
    cut = {reason: {"limit": limit, "count": int((why == reason).sum())} for reason, limit in limits.items()}
    return Cut(order[why[order] == ""], why, {"trim": trim, "cut": cut})


def _limits(candidates: Candidates) -> dict[str, float]:
    """What no patch may exceed, by the reason that is given if it does."""
    limits = {SPOILT[name]: spoilt_limit(values, LEAST[name]) for name, values in candidates.nuisances.items()}
    if "defocus" in candidates.nuisances:
        limits[OUT_OF_FOCUS] = spoilt_limit(_softness(candidates)[0], LEAST["defocus"])
    fence = upper_fence(candidates.score)
    tied = fence == np.median(candidates.score)  # no spread above the median to judge a tail by
    return {**limits, OUTLIER: float(candidates.score.max()) if tied else fence}


def _softness(candidates: Candidates) -> tuple[np.ndarray, np.ndarray]:
    """The median `defocus` of each image's patches, `(images,)`, and each patch's image, `(n,)`."""
    images, image = np.unique(candidates.source, return_inverse=True)
    return np.asarray(median(candidates.nuisances["defocus"], image, np.arange(len(images)))), image


def spoilt_limit(values: np.ndarray, least: float) -> float:
    """The limit of a nuisance: the fence of what is at most `least`, if that is the majority, else of all values."""
    fine = values[values <= least]
    return max(least, upper_fence(fine if 2 * len(fine) > len(values) else values))


def upper_fence(values: np.ndarray) -> float:
    """Where the upper tail of most distributions has ended: Q2 + 3.5 (Q3 - Q2) / 0.6745."""
    median, quartile = np.quantile(values, [0.5, 0.75])
    return float(median + DEVIATIONS * (quartile - median) / QUARTILE)
