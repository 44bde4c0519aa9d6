"""Selection by score alone: the published OptiDEL rule, and its reverse."""

from __future__ import annotations

import numpy as np

from optidel_hf.curation.selection.candidates import Candidates, hardest_first


def hardest(candidates: Candidates, count: int) -> np.ndarray:
    """The hardest `count` patches of the whole pool (OptiDEL, arXiv 2408.07107: the top N by reconstruction error)."""
    return hardest_first(candidates)[:count]


def easiest(candidates: Candidates, count: int) -> np.ndarray:
    """The easiest `count` patches (RDED, arXiv 2312.03526, keeps the lowest loss)."""
    return np.argsort(candidates.hardness, kind="stable")[:count]
