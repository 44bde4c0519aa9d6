"""
How many mask partitions to average, for a score to be trusted to order patches.

If two partitions' scores correlate by rho, the mean over P partitions has the reliability P rho / (1 + (P - 1) rho)
(Spearman 1910; Brown 1910): the correlation that two such means would have.
"""

from __future__ import annotations

import math


RELIABLE = 0.9
MOST_PARTITIONS = 8


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
