"""
Coverage-centric coreset selection, CCS (Zheng et al. 2023, arXiv 2210.15809, Algorithm 1).

The hardest share beta is cut, for it is likely noise. The range of the remaining scores is divided into strata of
equal width. From the stratum with the fewest patches to the one with the most, each gives its equal share of what is
still to be chosen, at random, or all that it has. `trim` is beta; the paper tunes it to the share that is dropped.
"""

from __future__ import annotations

import numpy as np

from optidel_hf.curation.selection.candidates import Candidates
from optidel_hf.curation.selection.choice import OUTLIER, Choice, Options, reasons, without_outliers
from optidel_hf.curation.selection.clusters import members


STRATA = 50


def ccs(candidates: Candidates, count: int, options: Options) -> Choice:
    """`count` patches spread evenly over the range of the score, without the hardest share `trim`; hardest first."""
    pool = without_outliers(candidates, count, options.trim)
    drawn = np.concatenate(_draw(candidates.score[pool], count, np.random.default_rng(options.seed)))
    chosen = pool[np.sort(drawn)]
    why = np.full(len(candidates), OUTLIER, dtype=object)
    why[pool] = reasons(len(pool), drawn, "drawn from its stratum of scores", "its stratum of scores had its share")
    return Choice(chosen, why, facts={"trim": options.trim})


def _draw(score: np.ndarray, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """What each stratum gives, fewest first: indices into `score`, `count` in all."""
    inner = np.linspace(score.min(), score.max(), STRATA + 1)[1:-1]
    strata = [rows for rows in members(np.searchsorted(inner, score, side="right")) if len(rows)]
    drawn = []
    for left, rows in zip(range(len(strata), 0, -1), sorted(strata, key=len)):
        share = min(len(rows), count // left)
        drawn.append(rng.permutation(rows)[:share])
        count -= share
    return drawn
