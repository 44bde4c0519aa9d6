"""
What every strategy would choose from the patches of a finished curation, and what each term of `optidel` buys.

All choose the same number, by columns alone: no image is opened and nothing is trained. Beside the strategies stand
the terms of `optidel` one by one: hardness with and without the outlier cut, coverage alone, and both without the caps
by source, group and cluster. Of each set there are the source images and near-duplicate groups that it touches, its
mean hardness, the mean cosine distance from a patch of the pool to the nearest of the set (about the pool's mean), and
which of its patches the outlier cut would refuse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from optidel_hf.curation.selection import mosaics_in_budget, select
from optidel_hf.curation.selection.candidates import LEARNABILITY, NUISANCES, Candidates
from optidel_hf.curation.selection.choice import Options
from optidel_hf.curation.selection.objective import MEMORY, Directions, Objective, equal_weight, make_blocks
from optidel_hf.curation.selection.optidel import Turns, deal, optidel
from optidel_hf.curation.selection.outliers import cut_outliers
from optidel_hf.curation.selection.select import STRATEGIES, read_pool
from optidel_hf.curation.shards import read_columns, read_rows
from optidel_hf.embeddings import nearest_distance
from optidel_hf.errors import UserError
from optidel_hf.layout import existing_shards
from optidel_hf.parquet import read_schema


POOL = 4096
"""Patches, at most, that are chosen from: of a larger pool whole near-duplicate groups, evenly spaced."""
NEEDED = ("source", "group", "bbox", "upscale", "cond_entropy", "difficulty", "fold", "embedding")
CUT_BY = (*NUISANCES, LEARNABILITY, "recon_error")
OPTIONS = Options(seed=0, trim=None, keep="far", max_distance=0.9)


@dataclass(frozen=True)
class Compared:
    """
    A set of patches that a rule chose.

    Args:
        name (`str`): of the strategy, or what the rule of a term does.
        term (`bool`): whether it is one of `optidel`'s terms, rather than a strategy.
        rows (`np.ndarray` of shape `(count,)`): rows over all score shards, best first.
        refused (`np.ndarray` of shape `(count,)`, bool): which of them the outlier cut would refuse.
        sources, groups (`int`): source images and near-duplicate groups that gave a patch.
        hardness (`float`): mean within-fold rank of their difficulty, 0 to 1.
        distance (`float`): mean cosine distance from a patch of the pool to the nearest of them, 0 to 2.
    """

    name: str
    term: bool
    rows: np.ndarray
    refused: np.ndarray
    sources: int
    groups: int
    hardness: float
    distance: float


def left(pool: Candidates, count: int) -> np.ndarray:
    """What the outlier cut leaves, hardest first."""
    return cut_outliers(pool, count, None).pool


def uncapped(pool: Candidates, rows: np.ndarray, count: int, hard: float) -> np.ndarray:
    """Greedy on hardness, `hard` times, and coverage, over some rows, whatever their sources, groups and clusters."""
    assert pool.embedding is not None
    directions, worth = Directions(pool.embedding, rows), pool.hardness[rows]
    weight = equal_weight(worth, directions, count, OPTIONS.seed)
    blocks = make_blocks(directions, np.zeros(len(rows), dtype=np.int64), MEMORY)
    free = Turns(np.arange(len(rows)), np.arange(len(rows)), np.zeros(len(rows), dtype=np.int64))
    return rows[deal(free, Objective(hard * worth, directions, weight, blocks), count)[0]]


TERMS: dict[str, Callable[[Candidates, int], np.ndarray]] = {
    "hardness alone": lambda pool, count: cut_outliers(pool, count, 0.0).pool[:count],
    "hardness, outliers cut": lambda pool, count: left(pool, count)[:count],
    "coverage alone, outliers cut": lambda pool, count: uncapped(pool, left(pool, count), count, 0.0),
    "hardness and coverage, outliers cut": lambda pool, count: uncapped(pool, left(pool, count), count, 1.0),
    "optidel without the outlier cut": lambda pool, count: optidel(pool, count, replace(OPTIONS, trim=0.0)).chosen,
    "optidel: both, cut, and capped by source, group and cluster": lambda pool, count: (
        optidel(pool, count, OPTIONS).chosen
    ),
    "optidel with the log-determinant for coverage": lambda pool, count: (
        optidel(pool, count, replace(OPTIONS, diversity="logdet")).chosen
    ),
}


def compare(curation_dir: str | Path, budget: float, tiles: int) -> list[Compared]:
    """
    Choose by every strategy and by every term, from the same patches.

    Args:
        curation_dir (`str` or `Path`): output of a curation whose patches were scored.
        budget (`float`): fraction of the source images that gave a patch.
        tiles (`int`): patches that make up a mosaic.

    Returns:
        `list[Compared]`: strategies first; empty where a column is missing or the budget asks for more than there is.
    """
    folder = Path(curation_dir) / "scores"
    shards = existing_shards(folder)
    known = set(read_schema(shards[0]).names) if shards else set()
    if not known.issuperset(NEEDED):
        return []
    drawn = _spaced_groups(read_columns(folder, ["group"])["group"])
    table = read_rows(folder, drawn.tolist(), [*NEEDED, *(name for name in CUT_BY if name in known)])
    images = pc.count_distinct(table["source"]).as_py()
    eligible = np.sort(read_pool(table).rows)
    table, drawn = table.take(eligible), drawn[eligible]
    pool = read_pool(table, max_upscale=np.inf)
    try:
        count = tiles * mosaics_in_budget(budget, images)
    except UserError:  # a sample too small for the budget
        return []
    if count > len(pool):
        return []
    told = {"images": images, "tiles_per_mosaic": tiles, "max_upscale": np.inf}
    place = np.argsort(pool.rows)  # of each row of the table among the candidates
    chosen = {name: place[select(table, budget, name, **told).rows] for name in STRATEGIES}
    terms = {name: choose(pool, count) for name, choose in TERMS.items()}
    return [_describe(pool, name, name in terms, rows, drawn) for name, rows in (chosen | terms).items()]


def _describe(pool: Candidates, name: str, term: bool, chosen: np.ndarray, drawn: np.ndarray) -> Compared:
    """A set with its figures; `chosen` counts candidates, `drawn` says which rows of all shards there were."""
    assert pool.embedding is not None
    everything = np.arange(len(pool))
    z = Directions(pool.embedding, everything)[everything]
    return Compared(
        name=name,
        term=term,
        rows=drawn[pool.rows[chosen]],
        refused=(cut_outliers(pool, 0, None).reasons != "")[chosen],
        sources=len(np.unique(pool.source[chosen])),
        groups=len(np.unique(pool.group[chosen])),
        hardness=float(pool.hardness[chosen].mean()),
        distance=nearest_distance(z, z[chosen]),
    )


def _spaced_groups(group: pa.ChunkedArray) -> np.ndarray:
    """Rows of whole groups, evenly spaced in the order of their names, about `POOL` at most."""
    codes = np.unique(group.to_numpy(zero_copy_only=False).astype(str), return_inverse=True)[1]
    return np.flatnonzero(codes % -(-len(codes) // POOL) == 0)
