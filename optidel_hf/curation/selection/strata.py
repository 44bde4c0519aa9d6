"""
Coverage-centric coreset selection, CCS (Zheng et al. 2023, arXiv 2210.15809, Algorithm 1).

The hardest share beta is cut, for it is likely noise. The range of the remaining scores is divided into 50 strata of
equal width. From the stratum with the fewest patches to the one with the most, each gives its equal share of what is
still to be chosen, at random, or all that it has (the authors' code counts empty strata too, which give their share
on, so nothing differs). `trim` is beta, which the paper tunes to the share that is dropped; without it the cut is
`optidel`'s, estimated from the pool.
"""

from __future__ import annotations

import numpy as np

from optidel_hf.curation.selection.candidates import Candidates
from optidel_hf.curation.selection.choice import Choice, Options, reasons
from optidel_hf.curation.selection.clusters import members
from optidel_hf.curation.selection.outliers import cut_outliers


STRATA = 50


def ccs(candidates: Candidates, count: int, options: Options) -> Choice:
    """`count` patches spread evenly over the range of the score, without outliers; hardest first."""
    pool, why, facts = cut_outliers(candidates, count, options.trim)
    drawn = np.concatenate(_draw(candidates.score[pool], count, np.random.default_rng(options.seed)))
    chosen = pool[np.sort(drawn)]
    why[pool] = reasons(len(pool), drawn, "drawn from its stratum of scores", "its stratum of scores had its share")
    return Choice(chosen, why, facts=facts)


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
