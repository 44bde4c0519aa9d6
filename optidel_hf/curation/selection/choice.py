"""What a strategy is told besides the candidates, what it returns, and the reasons that it gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optidel_hf.errors import UserError


KEEP = ("far", "near")
DISTANCES = ("cosine", "euclidean")
DIVERSITY = ("coverage", "logdet")
ENLARGED = "dropped: enlarged too much"
OUTLIER = "dropped: outlier cut, at the very top of the ranking"
UNLEARNT = "dropped: hard, and longer training does not help"
SPOILT = {
    "border": "dropped: spoilt by a flat border",
    "text": "dropped: spoilt by burned-in text",
    "saturation": "dropped: spoilt by saturation",
    "defocus": "dropped: spoilt by defocus",
}
"""Reason for each nuisance column."""
OUT_OF_FOCUS = "dropped: of an image out of focus"
UNUSUAL = "dropped: too far from its cluster's centre"
BEFORE_RANKING = (ENLARGED, *SPOILT.values(), OUT_OF_FOCUS, UNLEARNT, OUTLIER, UNUSUAL)
"""Reasons of patches that a strategy never got to rank."""


@dataclass(frozen=True)
class Options:
    """
    What a strategy may look at besides the candidates; each uses what concerns it.

    Args:
        seed (`int`): seed of draws and of k-means.
        trim (`float`, *optional*): share of the hardest that is cut; without one the cut is estimated from the pool
            (`optidel`, `ccs`).
        keep (`str`): `"far"` from their cluster's centre or `"near"` it (`prototypes`, `semdedup`, `meddel`).
        max_distance (`float`): distance to the cluster's centre beyond which a patch is cut (`meddel`).
        diversity (`str`): what is maximised beside hardness, `"coverage"` or `"logdet"` (`optidel`).
        hardness_weight (`float`): how much hardness counts against diversity (`optidel`).
        distance (`str`): to the cluster's centre, `"cosine"` or `"euclidean"` (`prototypes`, `semdedup`, `meddel`).

    Raises:
        `UserError`: for a value that cannot be meant.
    """

    seed: int
    trim: float | None
    keep: str
    max_distance: float
    diversity: str = "coverage"
    hardness_weight: float = 1.0
    distance: str = "cosine"

    def __post_init__(self) -> None:
        for name, values in (("keep", KEEP), ("diversity", DIVERSITY), ("distance", DISTANCES)):
            if getattr(self, name) not in values:
                raise UserError(f"{name} is '{getattr(self, name)}': choose one of {', '.join(values)}.")
        if not 0 <= self.hardness_weight < np.inf:
            raise UserError(f"hardness_weight is {self.hardness_weight}: it is 0 (diversity alone) or more.")
        if self.trim is not None and not 0 <= self.trim < 1:
            raise UserError(f"trim is {self.trim}: it is the fraction of patches that is cut, from 0 to below 1.")
        if not self.max_distance >= 0:
            raise UserError(f"max_distance is {self.max_distance}: a distance is 0 or more.")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}: it is 0 or more, below 2**32.")


@dataclass(frozen=True)
class Choice:
    """
    What a strategy chose among `n` candidates, and why.

    Args:
        chosen (`np.ndarray` of shape `(count,)`): candidate indices, best first.
        reasons (`np.ndarray` of shape `(n,)`, object): a short reason for each candidate.
        clusters (`np.ndarray` of shape `(n,)`, int32, *optional*): k-means cluster of each.
        facts (`dict`, *optional*): what the strategy settled on, such as a threshold.
    """

    chosen: np.ndarray
    reasons: np.ndarray
    clusters: np.ndarray | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def reasons(n: int, chosen: np.ndarray, kept: str, dropped: str) -> np.ndarray:
    """One reason for all that were chosen and one for all that were not, `(n,)`."""
    given = np.full(n, f"dropped: {dropped}", dtype=object)
    given[chosen] = f"kept: {kept}"
    return given
