"""Selection: which patches are kept, and which of them share a mosaic. Columns in, rows out; no image and no GPU."""

from __future__ import annotations

from optidel_hf.curation.selection.select import (
    DISTANCES,
    DIVERSITY,
    KEEP,
    STRATEGIES,
    Selection,
    check_numbers,
    eligible,
    mosaics_in_budget,
    refuse_too_few,
    select,
)


__all__ = [
    "DISTANCES",
    "DIVERSITY",
    "KEEP",
    "STRATEGIES",
    "Selection",
    "check_numbers",
    "eligible",
    "mosaics_in_budget",
    "refuse_too_few",
    "select",
]
