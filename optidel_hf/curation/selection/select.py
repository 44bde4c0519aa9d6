"""`select`: one signature for every strategy."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from optidel_hf.curation.selection.candidates import Candidates, read_candidates
from optidel_hf.curation.selection.optidel import optidel
from optidel_hf.curation.selection.pairing import pair
from optidel_hf.curation.selection.ranked import easiest, hardest
from optidel_hf.curation.selection.uniform import random
from optidel_hf.errors import UserError


logger = logging.getLogger(__name__)

STRATEGIES = ("optidel", "hardest", "easiest", "random")
# The published rule is raw reconstruction error; `optidel` ranks by what contrast and size do not explain.
DEFAULT_SCORE = {"optidel": "difficulty", "hardest": "cond_entropy", "easiest": "cond_entropy"}
MAX_LOST_TO_UPSCALE = 0.1


@dataclass(frozen=True)
class Selection:
    """
    What was chosen: aligned arrays over the chosen patches, best first.

    Args:
        rows: row of each in the table that was given.
        mosaic, slot: which mosaic it goes to, and where in it (row by row).
        cluster: its k-means cluster, or -1 for strategies without clusters.
        facts: strategy, score, seed, tiles and the counts of the funnel.
    """

    rows: np.ndarray
    mosaic: np.ndarray
    slot: np.ndarray
    cluster: np.ndarray
    facts: dict[str, Any]


def select(
    table: Dataset | pa.Table,
    budget: float,
    strategy: str = "optidel",
    seed: int = 0,
    score: str | None = None,
    tiles_per_mosaic: int = 4,
    images: int | None = None,
    trim: float = 0.02,
    max_upscale: float = 2.0,
) -> Selection:
    """
    Choose patches for a budget and deal them into mosaics.

    Args:
        table (`datasets.Dataset` or `pyarrow.Table`):
            Scored patches: `source`, `group`, `bbox`, `upscale`, and for scored strategies the score, `fold` and
            `embedding`.
        budget (`float`):
            Fraction of usable source images: round(budget x images) mosaics, rounded half up.
        strategy (`str`, *optional*, defaults to `"optidel"`):
            `optidel` (hard and diverse), `hardest` (as published), `easiest` or `random`. On a table of whole images
            these choose whole images.
        seed (`int`, *optional*, defaults to 0).
        score (`str`, *optional*, defaults to the strategy's own):
            Column to rank by: `difficulty` for `optidel`, `cond_entropy` for `hardest` and `easiest`.
        tiles_per_mosaic (`int`, *optional*, defaults to 4): M.
        images (`int`, *optional*): usable source images; counted from `source` by default.
        trim (`float`, *optional*, defaults to 0.02): share of the hardest that `optidel` cuts as outliers.
        max_upscale (`float`, *optional*, defaults to 2.0):
            Patches enlarged by more are left out where that costs under a tenth of the pool.

    Raises:
        `UserError`: if the budget rounds to nothing or exceeds the patches, or a column is missing.
    """
    score = _check(table, strategy, score)
    columns = _Columns(table)
    images = images or len(set(columns["source"]))
    mosaics = mosaics_in_budget(budget, images)
    count = mosaics * tiles_per_mosaic
    eligible = _eligible(columns["upscale"], max_upscale)
    candidates = read_candidates(columns, score, eligible, embeddings=strategy == "optidel")
    if count > len(candidates):
        raise UserError(
            f"Budget {budget:g} of {images} images needs {count} patches and the pool has {len(candidates)}: lower "
            f"it to at most {len(candidates) // tiles_per_mosaic / images:.4f}, or loosen the patch filters."
        )
    chosen, clusters = _choose(candidates, strategy, count, seed, trim)
    mosaic, slot = pair(candidates.source[chosen], clusters[chosen], tiles_per_mosaic)
    facts = {
        "strategy": strategy,
        "score": score,
        "seed": seed,
        "budget": budget,
        "tiles_per_mosaic": tiles_per_mosaic,
        "trim": trim if strategy == "optidel" else 0.0,
        "counts": {"pool": len(eligible), "eligible": len(candidates), "chosen": count, "mosaics": mosaics},
    }
    return Selection(candidates.rows[chosen], mosaic, slot, clusters[chosen], facts)


def mosaics_in_budget(budget: float, images: int) -> int:
    """
    round(budget x images), half up.

    Raises:
        `UserError`: if `budget` is no fraction or rounds to no image at all.
    """
    if not 0 < budget <= 1:
        raise UserError(f"Budget {budget:g} is not a fraction of the source images: give one in (0, 1], such as 0.05.")
    # Decimal fractions are not exact in binary: 0.05 * 1530 must not fall below 76.5 by an ulp.
    mosaics = math.floor(round(budget * images, 9) + 0.5)
    if mosaics == 0:
        raise UserError(
            f"Budget {budget:g} of {images} images rounds to none: give at least {0.5 / max(images, 1):.4f}, or more "
            "images."
        )
    return mosaics


class _Columns(Mapping[str, np.ndarray]):
    """Columns of either kind of table as arrays, converted once: `(n,)`, or `(n, length)` for lists."""

    def __init__(self, table: Dataset | pa.Table) -> None:
        self._table = table
        self._cache: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._cache:
            column = self._read(name).combine_chunks()
            nested = pa.types.is_nested(column.type)
            values = (column.flatten() if nested else column).to_numpy(zero_copy_only=False)
            self._cache[name] = values.reshape(len(column), -1) if nested else values
        return self._cache[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return len(self._table.column_names)

    def _read(self, name: str) -> pa.ChunkedArray:
        if isinstance(self._table, Dataset):  # one column alone: a pool's images would not fit in memory
            return self._table.select_columns([name]).with_format("arrow")[:][name]
        return self._table[name]


def _check(table: Dataset | pa.Table, strategy: str, score: str | None) -> str | None:
    if strategy not in STRATEGIES:
        raise UserError(f"Strategy '{strategy}' is not known: choose one of {', '.join(STRATEGIES)}.")
    score = None if strategy == "random" else score or DEFAULT_SCORE[strategy]
    needed = ["source", "group", "bbox", "upscale"] + ([score, "fold"] if score else [])
    needed += ["embedding"] if strategy == "optidel" else []
    missing = [name for name in needed if name not in table.column_names]
    if missing:
        raise UserError(f"Strategy '{strategy}' needs column '{missing[0]}': add it with VInformationScorer.")
    return score


def _eligible(upscale: np.ndarray, limit: float) -> np.ndarray:
    enlarged = upscale > limit
    share = enlarged.mean() if len(enlarged) else 0.0
    if share >= MAX_LOST_TO_UPSCALE:
        logger.warning(
            "%.0f %% of the patches are enlarged more than %g times and are kept: an enlarged crop is smooth and so "
            "looks easy. A smaller patch_size avoids that.",
            100 * share,
            limit,
        )
        return np.ones_like(enlarged)
    return ~enlarged


def _choose(
    candidates: Candidates, strategy: str, count: int, seed: int, trim: float
) -> tuple[np.ndarray, np.ndarray]:
    no_clusters = np.full(len(candidates), -1, dtype=np.int32)
    if strategy == "optidel":
        return optidel(candidates, count, seed, trim)
    if strategy == "random":
        return random(candidates, count, seed), no_clusters
    return (hardest if strategy == "hardest" else easiest)(candidates, count), no_clusters
