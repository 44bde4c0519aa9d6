"""`select`: one signature for every strategy."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from optidel_hf.curation.mosaic import grid_side
from optidel_hf.curation.selection.candidates import Candidates, read_candidates
from optidel_hf.curation.selection.choice import BEFORE_RANKING, ENLARGED, Choice, Options
from optidel_hf.curation.selection.duplicates import meddel, semdedup
from optidel_hf.curation.selection.optidel import optidel
from optidel_hf.curation.selection.pairing import pair
from optidel_hf.curation.selection.prototypes import prototypes
from optidel_hf.curation.selection.ranked import easiest, hardest, medium
from optidel_hf.curation.selection.strata import ccs
from optidel_hf.curation.selection.subspaces import zcore
from optidel_hf.curation.selection.uniform import random, random_images
from optidel_hf.errors import UserError
from optidel_hf.tables import require_table


logger = logging.getLogger(__name__)


class Strategy(NamedTuple):
    """
    Args:
        choose: the function that chooses.
        score: column that it ranks by unless told otherwise, or `None` if it looks at no score.
        embedding: whether it reads the `embedding` column.
        options: fields of [`Options`] that change what it chooses, besides `seed`.
    """

    choose: Callable[[Candidates, int, Options], Choice]
    score: str | None
    embedding: bool
    options: tuple[str, ...] = ()

    @property
    def scored(self) -> bool:
        """Whether it needs any column that scoring adds."""
        return self.embedding or self.score is not None


# The published rule is raw reconstruction error; the others that rank do so by what contrast and size do not explain.
STRATEGIES = {
    "optidel": Strategy(optidel, score="difficulty", embedding=True, options=("trim", "diversity", "hardness_weight")),
    "hardest": Strategy(hardest, score="cond_entropy", embedding=False),
    "easiest": Strategy(easiest, score="cond_entropy", embedding=False),
    "medium": Strategy(medium, score="difficulty", embedding=False),
    "random": Strategy(random, score=None, embedding=False),
    "random_images": Strategy(random_images, score=None, embedding=False),
    "prototypes": Strategy(prototypes, score=None, embedding=True, options=("keep", "distance")),
    "semdedup": Strategy(semdedup, score=None, embedding=True, options=("keep", "distance")),
    "meddel": Strategy(meddel, score=None, embedding=True, options=("keep", "distance", "max_distance")),
    "ccs": Strategy(ccs, score="difficulty", embedding=False, options=("trim",)),
    "zcore": Strategy(zcore, score=None, embedding=True),
}
MAX_LOST_TO_UPSCALE = 0.1
MAX_LISTED = 100


@dataclass(frozen=True)
class Selection:
    """
    What was chosen: aligned arrays over the chosen patches, best first.

    Args:
        rows: row of each in the table that was given.
        mosaic, slot: which mosaic it goes to, and where in it (row by row).
        cluster: its k-means cluster, or -1 for strategies without clusters.
        facts: strategy, score, seed, tiles, the counts of the funnel and what the strategy settled on; with reasons
            also their counts and, as `dropped`, up to 100 patches that were left out before any ranking.
        reasons: one for each row of the table, why it was kept or dropped; `None` unless asked for.
    """

    rows: np.ndarray
    mosaic: np.ndarray
    slot: np.ndarray
    cluster: np.ndarray
    facts: dict[str, Any]
    reasons: np.ndarray | None = None


def select(
    table: Dataset | pa.Table,
    budget: float,
    strategy: str = "optidel",
    seed: int = 0,
    score: str | None = None,
    tiles_per_mosaic: int = 4,
    images: int | None = None,
    trim: float | None = None,
    max_upscale: float = 2.0,
    keep: str = "far",
    max_distance: float = 0.9,
    diversity: str = "coverage",
    hardness_weight: float = 1.0,
    distance: str = "cosine",
    explain: bool = False,
) -> Selection:
    """
    Choose patches for a budget and deal them into mosaics.

    Args:
        table (`datasets.Dataset` or `pyarrow.Table`):
            Patches: `source`, `group`, `bbox` and `upscale`, and what the strategy needs: its score with `fold`, or
            `embedding`; `crop` to explain. Nuisance columns are used where they are.
        budget (`float`):
            Fraction of usable source images: round(budget x images) mosaics, rounded half up.
        strategy (`str`, *optional*, defaults to `"optidel"`):
            `optidel` (hard and diverse), `hardest` (as published), `easiest`, `medium`, `random`, `random_images` (all
            patches of random images), `prototypes`, `semdedup`, `meddel`, `ccs` or `zcore`. On a table of whole images
            these choose whole images.
        seed (`int`, *optional*, defaults to 0).
        score (`str`, *optional*, defaults to the strategy's own):
            Column to rank by: `cond_entropy` for `hardest` and `easiest`, `difficulty` for the others that rank.
        tiles_per_mosaic (`int`, *optional*, defaults to 4): M.
        images (`int`, *optional*): usable source images; counted from `source` by default.
        trim (`float`, *optional*):
            Share of the hardest that `optidel` and `ccs` cut. By default they cut what is spoilt (by `border`, `text`,
            `saturation`, `defocus`, where the table has these columns), is of an image out of focus (by the median
            `defocus` of its patches), is hard while longer training does not help (by `learnability`, where the table
            has it) or lies beyond the tail of the pool's scores.
        max_upscale (`float`, *optional*, defaults to 2.0):
            Patches enlarged by more are left out where that costs under a tenth of the pool.
        keep (`str`, *optional*, defaults to `"far"`):
            Of patches (`prototypes`) or near-duplicates (`semdedup`, `meddel`) those `"far"` from their cluster's
            centre, or those `"near"`.
        max_distance (`float`, *optional*, defaults to 0.9):
            Distance to its cluster's centre beyond which `meddel` cuts a patch.
        diversity (`str`, *optional*, defaults to `"coverage"`):
            What `optidel` maximises beside hardness: `"coverage"` of the pool (facility location), or, as an ablation
            for pools up to about 10^5 patches, the log-determinant of what is chosen, `"logdet"`.
        hardness_weight (`float`, *optional*, defaults to 1.0):
            How much hardness counts against diversity in `optidel`: 1 makes both equal, and 0 leaves diversity alone.
        distance (`str`, *optional*, defaults to `"cosine"`):
            Which distance to the cluster's centre `prototypes` and `meddel` mean, `"cosine"` or `"euclidean"`.
        explain (`bool`, *optional*, defaults to `False`): whether to return a reason for every row.

    Raises:
        `UserError`: if the budget rounds to nothing or exceeds the patches, or a column is missing.
    """
    require_table(table, "The table to select from", (Dataset, pa.Table))
    options = Options(seed, trim, keep, max_distance, diversity, hardness_weight, distance)
    grid_side(tiles_per_mosaic)
    if images is not None and images < 1:
        raise UserError(f"images is {images}: it is the number of usable source images.")
    _check_columns(table, strategy, score, explain)
    chooser, columns = STRATEGIES[strategy], _Columns(table)
    score = chooser.score and (score or chooser.score)
    images = len(set(columns["source"])) if images is None else images
    mosaics = mosaics_in_budget(budget, images)
    count = mosaics * tiles_per_mosaic
    allowed = eligible(columns["upscale"], max_upscale)
    candidates = read_candidates(columns, score, allowed, chooser.embedding)
    refuse_too_few(len(candidates), budget, images, tiles_per_mosaic)
    choice = chooser.choose(candidates, count, options)
    clusters = np.full(count, -1, dtype=np.int32) if choice.clusters is None else choice.clusters[choice.chosen]
    mosaic, slot = pair(candidates.source[choice.chosen], clusters, tiles_per_mosaic)
    facts = {
        "strategy": strategy,
        "score": score,
        "seed": seed,
        "budget": budget,
        "tiles_per_mosaic": tiles_per_mosaic,
        "trim": 0.0,
        "counts": {"pool": len(allowed), "eligible": len(candidates), "chosen": count, "mosaics": mosaics},
        **choice.facts,
    }
    reasons = _reasons(len(allowed), candidates, choice) if explain else None
    if reasons is not None:
        facts |= {"reasons": dict(Counter(reasons)), "dropped": _list_dropped(columns, reasons)}
    return Selection(candidates.rows[choice.chosen], mosaic, slot, clusters, facts, reasons)


def read_pool(table: Dataset | pa.Table, max_upscale: float = 2.0) -> Candidates:
    """What `optidel` chooses from: a table's patches that are not enlarged too much, with score and embedding."""
    columns = _Columns(table)
    return read_candidates(columns, "difficulty", eligible(columns["upscale"], max_upscale), embeddings=True)


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
        least = math.ceil(5e5 / max(images, 1)) / 1e6
        raise UserError(
            f"Budget {budget:g} of {images} images rounds to none: give at least {least:g}, or more images."
        )
    return mosaics


def refuse_too_few(patches: int, budget: float, images: int, tiles_per_mosaic: int) -> None:
    """
    Refuse a budget that `patches` cannot fill.

    Raises:
        `UserError`: naming the largest budget that they can.
    """
    count = mosaics_in_budget(budget, images) * tiles_per_mosaic
    if count > patches:
        affordable = patches // tiles_per_mosaic * 10**6 // images / 10**6
        lower = f"lower it to at most {affordable:g}" if affordable else "lower --tiles_per_mosaic, give more images"
        raise UserError(
            f"Budget {budget:g} of {images} images needs {count} patches and the pool has {patches}: {lower}, or "
            "loosen the patch filters."
        )


class _Columns(Mapping[str, np.ndarray]):
    """Columns of either kind of table as arrays, converted once: `(n,)`, or `(n, length)` for lists."""

    def __init__(self, table: Dataset | pa.Table) -> None:
        self._table = table
        self._cache: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._cache:
            column = self._read(name).combine_chunks()
            nested = pa.types.is_nested(column.type)
            if nested and column.null_count:
                row = pc.index(column.is_null(), True).as_py()
                raise UserError(f"Column '{name}' is null in row {row}: leave out what was `rejected`.")
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


def _check_columns(table: Dataset | pa.Table, strategy: str, score: str | None, explain: bool) -> None:
    if strategy not in STRATEGIES:
        raise UserError(f"Strategy '{strategy}' is not known: choose one of {', '.join(STRATEGIES)}.")
    default, embedding = STRATEGIES[strategy].score, STRATEGIES[strategy].embedding
    needed = ["source", "group", "bbox", "upscale"] + ["crop"] * explain
    needed += [score or default, "fold"] if default else []
    needed += ["embedding"] * embedding
    missing = [name for name in needed if name not in table.column_names]
    if missing:
        raise UserError(f"Strategy '{strategy}' needs column '{missing[0]}': add it with VInformationScorer.")


def eligible(upscale: np.ndarray, limit: float) -> np.ndarray:
    """Which patches are enlarged by `limit` at most, `(n,)` bool; all where a tenth or more are enlarged by more."""
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


def _reasons(rows: int, candidates: Candidates, choice: Choice) -> np.ndarray:
    """A reason for each row of the table, `(rows,)`: what is no candidate was enlarged too much."""
    reasons = np.full(rows, ENLARGED, dtype=object)
    reasons[candidates.rows] = choice.reasons
    return reasons


def _list_dropped(columns: Mapping[str, np.ndarray], reasons: np.ndarray) -> list[dict[str, Any]]:
    """Some of the patches that were never ranked, the reasons in turn: they travel in a file's metadata."""
    found = [np.flatnonzero(reasons == reason)[:MAX_LISTED] for reason in BEFORE_RANKING]
    turns = sorted((turn, place, row) for place, rows in enumerate(found) for turn, row in enumerate(rows))
    return [
        {
            "source": columns["source"][row],
            "crop": columns["crop"][row].tolist(),
            "reason": reasons[row].removeprefix("dropped: "),
        }
        for *_, row in turns[:MAX_LISTED]
    ]
