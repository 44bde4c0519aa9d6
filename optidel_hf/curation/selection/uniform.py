"""Selection without a score: the baseline that every strategy has to beat."""

from __future__ import annotations

import numpy as np

from optidel_hf.curation.selection.candidates import Candidates


def random(candidates: Candidates, count: int, seed: int) -> np.ndarray:
    """`count` patches drawn without replacement, every patch equally likely."""
    return np.random.default_rng(seed).permutation(len(candidates))[:count]
