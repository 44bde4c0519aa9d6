"""Selection: which patches are kept, and which of them share a mosaic. Columns in, rows out; no image and no GPU."""

from __future__ import annotations

from optidel_hf.curation.selection.choice import DISTANCES, Options
from optidel_hf.curation.selection.select import (
    STRATEGIES,
    Selection,
    eligible,
    mosaics_in_budget,
    refuse_too_few,
    select,
)


__all__ = [
    "DISTANCES",
    "STRATEGIES",
    "Options",
    "Selection",
    "eligible",
    "mosaics_in_budget",
    "refuse_too_few",
    "select",
]
