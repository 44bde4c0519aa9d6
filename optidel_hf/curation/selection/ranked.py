"""Selection by score alone: the published OptiDEL rule, its reverse, and what lies between."""

from __future__ import annotations

import numpy as np

from optidel_hf.curation.selection.candidates import Candidates, hardest_first
from optidel_hf.curation.selection.choice import Choice, Options, reasons


def hardest(candidates: Candidates, count: int, options: Options) -> Choice:
    """The hardest `count` patches of the whole pool (OptiDEL, arXiv 2408.07107: the top N by reconstruction error)."""
    chosen = hardest_first(candidates)[:count]
    return Choice(chosen, reasons(len(candidates), chosen, "among the hardest", "not hard enough"))


def easiest(candidates: Candidates, count: int, options: Options) -> Choice:
    """The easiest `count` patches (RDED, arXiv 2312.03526, keeps the lowest loss)."""
    chosen = np.argsort(candidates.hardness, kind="stable")[:count]
    return Choice(chosen, reasons(len(candidates), chosen, "among the easiest", "not easy enough"))


def medium(candidates: Candidates, count: int, options: Options) -> Choice:
    """The `count` patches about the median, easiest first: the middle arm of `--strategy auto`."""
    start = (len(candidates) - count) // 2
    chosen = np.argsort(candidates.hardness, kind="stable")[start : start + count]
    return Choice(chosen, reasons(len(candidates), chosen, "of medium hardness", "not of medium hardness"))
