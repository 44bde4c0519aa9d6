"""
How far a score can be trusted to order patches: rank correlations, and how many mask partitions to average.

If two partitions' scores correlate by rho, the mean over P partitions has the reliability P rho / (1 + (P - 1) rho)
(Spearman 1910; Brown 1910): the correlation that two such means would have.
"""

from __future__ import annotations

import math

from scipy.stats import spearmanr
from torch import Tensor


RELIABLE = 0.9
MOST_PARTITIONS = 8


def rank_correlation(first: Tensor, second: Tensor) -> float | None:
    """Spearman's rank correlation of two scores of the same patches, or `None` where it has no meaning."""
    if len(first) < 2 or first.eq(first[0]).all() or second.eq(second[0]).all():
        return None
    return float(spearmanr(first, second).statistic)


def spearman_brown(rho: float, partitions: int) -> float:
    """Reliability of the mean over `partitions` whose scores correlate by `rho`; 0 where they do not."""
    rho = max(0.0, rho)
    return partitions * rho / (1 + (partitions - 1) * rho)


def fewest_partitions(rho: float | None, most: int = MOST_PARTITIONS) -> int:
    """The fewest partitions whose mean has a reliability of 0.9 at least; `most` where more would be needed."""
    if rho is None or rho <= 0:
        return most
    needed = RELIABLE * (1 - rho) / (rho * (1 - RELIABLE))
    return min(most, max(1, math.ceil(needed - 1e-9)))  # rounding must not ask for one more
